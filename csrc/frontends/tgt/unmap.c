// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/limits.h"
#include "frontends/tgt/medium.h"
#include "frontends/tgt/unmap_list.h"
#include "frontends/tgt/zero.h"

#define CDB_ANCHOR 0x01

static struct bs_status parse(struct bs_lun *lun, struct scsi_cmd *cmd, struct unmap_list *list) {
    uint32_t length = cdb_get16(cmd->cdb + 7);
    if (length > cmd->out.length) {
        return BS_CHECK(KEY_ILLEGAL_REQUEST, ASC_PARAMETER_LENGTH);
    }
    return unmap_list_parse(tgt_out_buffer(cmd), length, bs_lun_blocks(lun), BS_UNMAP_BLOCKS, list);
}

// `step` counts descriptors, `done` is within the one before it.
static void more(struct bs_command *command) {
    struct bs_lun *lun = command->lun;
    struct unmap_list list;
    struct bs_status status = parse(lun, command->cmd, &list);
    if (command->io.result == 0 && status.status != SAM_GOOD) {
        bs_command_end(command, status); // the volume has become shorter
        return;
    }
    while (command->done == command->length && command->step < list.count) {
        struct cdb_range range = unmap_list_range(&list, command->step++);
        command->offset = range.lba << lun->lu->block_shift;
        command->length = range.blocks << lun->lu->block_shift;
        command->done = 0;
    }
    if (command->io.result != 0 || command->done == command->length) {
        bs_command_end_result(command, command->io.result);
        return;
    }
    uint64_t at = command->offset + command->done;
    struct zero_piece piece = zero_first(at, command->length - command->done, true);
    command->io.op = piece.op;
    command->io.flags = piece.flags;
    command->io.offset = at;
    command->io.length = piece.length;
    command->done += piece.length;
    bs_command_submit(command);
}

int bs_unmap(struct bs_lun *lun, struct scsi_cmd *cmd) {
    if (!lun->lu->attributes.thin) {
        return bs_sense(cmd, KEY_ILLEGAL_REQUEST, ASC_INVALID_OPCODE);
    }
    if ((cmd->cdb[1] & CDB_ANCHOR) != 0) {
        return bs_sense(cmd, KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB);
    }
    struct unmap_list list;
    struct bs_status parsed = parse(lun, cmd, &list);
    if (parsed.status != SAM_GOOD || list.blocks == 0) {
        return bs_finish(cmd, parsed);
    }
    int status = 0;
    struct bs_command *command = bs_medium_begin(lun, cmd, 0, &status);
    if (command == NULL) {
        return status;
    }
    command->next = more;
    more(command);
    return BS_PENDING;
}
