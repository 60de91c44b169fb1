// SPDX-License-Identifier: GPL-2.0-only
//
// ORWRITE 16: bits are added to the medium's. Each window is read and then written by a
// compare-and-write, which fails if another command came between; then it is read again.
#include <errno.h>

#include "base/clock.h"
#include "frontends/tgt/limits.h"
#include "frontends/tgt/medium.h"

enum { STEP_READ, STEP_WRITE };

static void read_window(struct bs_command *command) {
    uint64_t left = command->length - command->done;
    command->step = STEP_READ;
    command->io.op = CG_OP_READ;
    command->io.offset = command->offset + command->done;
    command->io.length = left < BS_ORWRITE_WINDOW ? left : BS_ORWRITE_WINDOW;
    command->iov[0] = (struct iovec){command->scratch, command->io.length};
    bs_command_submit(command);
}

static void write_window(struct bs_command *command) {
    uint64_t length = command->io.length;
    const uint8_t *stored = command->scratch;
    const uint8_t *sent = (const uint8_t *)tgt_out_buffer(command->cmd) + command->done;
    uint8_t *wanted = (uint8_t *)command->scratch + length;
    for (uint64_t i = 0; i < length; i++) {
        wanted[i] = stored[i] | sent[i];
    }
    command->step = STEP_WRITE;
    command->io.op = CG_OP_COMPARE_AND_WRITE;
    command->iov[0] = (struct iovec){command->scratch, 2 * length};
    bs_command_submit(command);
}

static void next_step(struct bs_command *command) {
    int result = command->io.result;
    if (result == -EILSEQ) {
        if (cg_now_ns() >= command->deadline_ns) {
            bs_command_end_result(command, -ETIMEDOUT);
        } else {
            read_window(command);
        }
        return;
    }
    if (result != 0) {
        bs_command_end_result(command, result);
    } else if (command->step == STEP_READ) {
        write_window(command);
    } else {
        command->done += command->io.length;
        if (command->done == command->length) {
            bs_command_end(command, BS_GOOD);
        } else {
            read_window(command);
        }
    }
}

int bs_orwrite(struct bs_lun *lun, struct scsi_cmd *cmd) {
    uint64_t offset = 0;
    uint64_t length = 0;
    int status = bs_medium_range(lun, cmd, BS_TRANSFER_MAX, &offset, &length);
    if (status != 0) {
        return status;
    }
    tgt_set_out_length(cmd, (uint32_t)length);
    length = length < cmd->out.length ? length : cmd->out.length;
    if (length == 0) {
        return SAM_GOOD;
    }
    struct bs_command *command = bs_medium_begin(lun, cmd, 2UL * BS_ORWRITE_WINDOW, &status);
    if (command == NULL) {
        return status;
    }
    command->offset = offset;
    command->length = length;
    command->io.iov = command->iov;
    command->io.iovcnt = 1;
    command->next = next_step;
    read_window(command);
    return BS_PENDING;
}
