// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/medium.h"

#include <stdlib.h>

#include "frontends/tgt/limits.h"

int bs_medium_range(struct bs_lun *lun, struct scsi_cmd *cmd, uint64_t longest, uint64_t *offset,
                    uint64_t *length) {
    struct cdb_range range = cdb_range(cmd->cdb);
    unsigned shift = lun->lu->block_shift;
    if (cmd->cdb[0] >= 0x20 && (cmd->cdb[1] & 0xe0) != 0) {
        return bs_sense(cmd, KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB);
    }
    if (!cdb_range_fits(range, bs_lun_blocks(lun))) {
        return bs_sense(cmd, KEY_ILLEGAL_REQUEST, ASC_LBA_OUT_OF_RANGE);
    }
    if (range.blocks > longest >> shift) {
        return bs_sense(cmd, KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB);
    }
    *offset = range.lba << shift;
    *length = range.blocks << shift;
    return 0;
}

struct bs_command *bs_medium_begin(struct bs_lun *lun, struct scsi_cmd *cmd, size_t scratch_size,
                                   int *status) {
    void *scratch = NULL;
    if (scratch_size > 0) {
        size_t whole = (scratch_size + BS_PHYSICAL_BLOCK - 1) / BS_PHYSICAL_BLOCK;
        scratch = aligned_alloc(BS_PHYSICAL_BLOCK, whole * BS_PHYSICAL_BLOCK);
        if (scratch == NULL) {
            *status = bs_finish(cmd, (struct bs_status){.status = SAM_BUSY});
            return NULL;
        }
    }
    struct bs_command *command = bs_command_begin(lun, cmd);
    if (command == NULL) {
        free(scratch);
        *status = bs_finish(cmd, (struct bs_status){.status = BS_FULL});
        return NULL;
    }
    command->scratch = scratch;
    return command;
}

void bs_medium_last(struct bs_command *command) {
    bs_command_end_result(command, command->io.result);
}

int bs_medium_io(struct bs_lun *lun, struct scsi_cmd *cmd, enum cg_op op, uint64_t offset,
                 uint64_t length, void *buffer) {
    int status = 0;
    struct bs_command *command = bs_medium_begin(lun, cmd, 0, &status);
    if (command == NULL) {
        return status;
    }
    command->iov[0] = (struct iovec){buffer, length};
    command->io.op = op;
    command->io.offset = offset;
    command->io.length = length;
    command->io.iov = command->iov;
    command->io.iovcnt = buffer != NULL ? 1 : 0;
    command->next = bs_medium_last;
    bs_command_submit(command);
    return BS_PENDING;
}
