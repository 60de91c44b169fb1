// SPDX-License-Identifier: GPL-2.0-only
//
// VERIFY and WRITE AND VERIFY. The medium is read in windows, which checks the stored checksums,
// and compared with what the initiator sent where BYTCHK says so.
#include <errno.h>

#include "frontends/tgt/limits.h"
#include "frontends/tgt/medium.h"

enum { BYTCHK_NONE = 0, BYTCHK_ALL = 1, BYTCHK_RESERVED = 2, BYTCHK_ONE_BLOCK = 3 };

enum { STEP_WRITE, STEP_FIRST, STEP_READ };

static unsigned bytchk_of(const struct scsi_cmd *cmd) {
    return cmd->cdb[1] >> 1 & 3;
}

// Offset of the first byte that differs within the window just read, or its length.
static uint64_t compare(const struct bs_command *command) {
    const uint8_t *stored = command->scratch;
    const uint8_t *sent = tgt_out_buffer(command->cmd);
    uint64_t period =
        bytchk_of(command->cmd) == BYTCHK_ONE_BLOCK ? command->lun->options.block_size : UINT64_MAX;
    uint64_t i = 0;
    while (i < command->io.length && stored[i] == sent[(command->done + i) % period]) {
        i++;
    }
    return i;
}

static void next_window(struct bs_command *command) {
    if (command->io.result != 0) {
        bs_command_end_result(command, command->io.result);
        return;
    }
    if (command->step == STEP_READ) {
        uint64_t same =
            bytchk_of(command->cmd) == BYTCHK_NONE ? command->io.length : compare(command);
        if (same < command->io.length) {
            bs_command_end(command, bs_status_of(-EILSEQ, command->done + same));
            return;
        }
        command->done += same;
    }
    if (command->done == command->length) {
        bs_command_end(command, BS_GOOD);
        return;
    }
    uint64_t left = command->length - command->done;
    command->step = STEP_READ;
    command->iov[0] = (struct iovec){command->scratch, BS_COMPARE_WINDOW};
    command->io.op = CG_OP_READ;
    command->io.offset = command->offset + command->done;
    command->io.length = left < BS_COMPARE_WINDOW ? left : BS_COMPARE_WINDOW;
    bs_command_submit(command);
}

// `length` bytes at `offset`, first written if `write` is set.
static int start(struct bs_lun *lun, struct scsi_cmd *cmd, uint64_t offset, uint64_t length,
                 bool write) {
    int status = 0;
    struct bs_command *command = bs_medium_begin(lun, cmd, BS_COMPARE_WINDOW, &status);
    if (command == NULL) {
        return status;
    }
    command->offset = offset;
    command->length = length;
    command->step = write ? STEP_WRITE : STEP_FIRST;
    command->io.iov = command->iov;
    command->io.iovcnt = 1;
    command->next = next_window;
    if (write) {
        command->iov[0] = (struct iovec){tgt_out_buffer(cmd), length};
        command->io.op = CG_OP_WRITE;
        command->io.offset = offset;
        command->io.length = length;
        bs_command_submit(command);
    } else {
        next_window(command);
    }
    return BS_PENDING;
}

int bs_verify(struct bs_lun *lun, struct scsi_cmd *cmd) {
    uint64_t offset = 0;
    uint64_t length = 0;
    int status = bs_medium_range(lun, cmd, BS_TRANSFER_MAX, &offset, &length);
    if (status != 0) {
        return status;
    }
    uint64_t needed = 0;
    switch (bytchk_of(cmd)) {
    case BYTCHK_ALL:
        needed = length;
        break;
    case BYTCHK_ONE_BLOCK:
        needed = length != 0 ? lun->options.block_size : 0;
        break;
    case BYTCHK_RESERVED:
        return bs_sense(cmd, KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB);
    default:
        break;
    }
    tgt_set_in_length(cmd, 0);
    tgt_set_out_length(cmd, (uint32_t)needed);
    if (cmd->out.length < needed) {
        return bs_sense(cmd, KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB);
    }
    return length == 0 ? SAM_GOOD : start(lun, cmd, offset, length, false);
}

int bs_write_and_verify(struct bs_lun *lun, struct scsi_cmd *cmd) {
    uint64_t offset = 0;
    uint64_t length = 0;
    int status = bs_medium_range(lun, cmd, BS_TRANSFER_MAX, &offset, &length);
    if (status != 0) {
        return status;
    }
    if (bytchk_of(cmd) > BYTCHK_ALL) {
        return bs_sense(cmd, KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB);
    }
    tgt_set_out_length(cmd, (uint32_t)length);
    length = length < cmd->out.length ? length : cmd->out.length;
    return length == 0 ? SAM_GOOD : start(lun, cmd, offset, length, true);
}
