// SPDX-License-Identifier: GPL-2.0-only
//
// COMPARE AND WRITE: one operation of the store, or of the core under a range lock; atomic either
// way, because a volume has one writer.
#include "frontends/tgt/limits.h"
#include "frontends/tgt/medium.h"

int bs_compare_and_write(struct bs_lun *lun, struct scsi_cmd *cmd) {
    uint64_t offset = 0;
    uint64_t length = 0;
    uint64_t longest = (uint64_t)BS_COMPARE_BLOCKS << lun->lu->block_shift;
    int status = bs_medium_range(lun, cmd, longest, &offset, &length);
    if (status != 0) {
        return status;
    }
    tgt_set_out_length(cmd, (uint32_t)(2 * length));
    if (cmd->out.length != 2 * length) {
        // Neither half may be guessed.
        return bs_sense(cmd, KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB);
    }
    if (length == 0) {
        return SAM_GOOD;
    }
    struct bs_command *command = bs_medium_begin(lun, cmd, 0, &status);
    if (command == NULL) {
        return status;
    }
    command->iov[0] = (struct iovec){tgt_out_buffer(cmd), 2 * length};
    command->io.op = CG_OP_COMPARE_AND_WRITE;
    command->io.offset = offset;
    command->io.length = length;
    command->io.iov = command->iov;
    command->io.iovcnt = 1;
    command->next = bs_medium_last;
    bs_command_submit(command);
    return BS_PENDING;
}
