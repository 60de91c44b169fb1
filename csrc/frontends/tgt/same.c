// SPDX-License-Identifier: GPL-2.0-only
//
// WRITE SAME 10 and 16. Zeros are not written but asked of the store; with UNMAP the range is given
// back. Other data is written from a buffer that holds the block many times.
#include <string.h>

#include "frontends/tgt/limits.h"
#include "frontends/tgt/medium.h"
#include "frontends/tgt/zero.h"

#define OPCODE_WRITE_SAME_16 0x93
#define CDB_ANCHOR           0x10
#define CDB_UNMAP            0x08
#define CDB_OBSOLETE         0x06 // PBDATA, LBDATA
#define CDB_NDOB             0x01 // no data-out buffer: zeros

#define PATTERN_MAX (1U << 20)

enum { STEP_KEEP, STEP_DEALLOCATE };

static bool is_zero(const uint8_t *data, size_t length) {
    return data[0] == 0 && memcmp(data, data + 1, length - 1) == 0;
}

static void zero_more(struct bs_command *command) {
    if (command->io.result != 0 || command->done == command->length) {
        bs_command_end_result(command, command->io.result);
        return;
    }
    uint64_t at = command->offset + command->done;
    struct zero_piece piece =
        zero_first(at, command->length - command->done, command->step == STEP_DEALLOCATE);
    command->io.op = piece.op;
    command->io.flags = piece.flags;
    command->io.offset = at;
    command->io.length = piece.length;
    command->done += piece.length;
    bs_command_submit(command);
}

static void write_more(struct bs_command *command) {
    if (command->io.result != 0 || command->done == command->length) {
        bs_command_end_result(command, command->io.result);
        return;
    }
    uint64_t left = command->length - command->done;
    uint64_t now = left < command->iov[0].iov_len ? left : command->iov[0].iov_len;
    command->io.offset = command->offset + command->done;
    command->io.length = now;
    command->done += now;
    bs_command_submit(command);
}

static void repeat(const uint8_t *block, size_t block_size, uint8_t *out, size_t length) {
    for (size_t at = 0; at < length; at += block_size) {
        memcpy(out + at, block, block_size);
    }
}

// 0 or a SAM status; `zeros`: there is no data, or it is zeros.
static int check(struct bs_lun *lun, struct scsi_cmd *cmd, bool *zeros) {
    uint8_t flags = cmd->cdb[1];
    bool no_data = (flags & CDB_NDOB) != 0;
    if ((flags & (CDB_ANCHOR | CDB_OBSOLETE)) != 0 ||
        (no_data && cmd->cdb[0] != OPCODE_WRITE_SAME_16) ||
        ((flags & CDB_UNMAP) != 0 && !lun->lu->attributes.thin)) {
        return bs_sense(cmd, KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB);
    }
    if (!no_data && cmd->out.length != lun->options.block_size) {
        return bs_sense(cmd, KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB);
    }
    *zeros = no_data || is_zero(tgt_out_buffer(cmd), lun->options.block_size);
    return 0;
}

int bs_write_same(struct bs_lun *lun, struct scsi_cmd *cmd) {
    uint64_t offset = 0;
    uint64_t length = 0;
    bool zeros = false;
    int status = bs_medium_range(lun, cmd, BS_SAME_MAX, &offset, &length);
    if (status == 0) {
        status = check(lun, cmd, &zeros);
    }
    if (status != 0) {
        return status;
    }
    if (length == 0) { // would mean up to the medium's end: WSNZ says that it does not here
        return bs_sense(cmd, KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB);
    }
    size_t pattern = length < PATTERN_MAX ? length : PATTERN_MAX;
    size_t held = zeros ? 0 : pattern;
    struct bs_command *command = bs_medium_begin(lun, cmd, held, &status);
    if (command == NULL) {
        return status;
    }
    command->offset = offset;
    command->length = length;
    if (zeros) {
        command->step = (cmd->cdb[1] & CDB_UNMAP) != 0 ? STEP_DEALLOCATE : STEP_KEEP;
        command->next = zero_more;
        zero_more(command);
        return BS_PENDING;
    }
    repeat(tgt_out_buffer(cmd), lun->options.block_size, command->scratch, held);
    command->iov[0] = (struct iovec){command->scratch, held};
    command->io.op = CG_OP_WRITE;
    command->io.iov = command->iov;
    command->io.iovcnt = 1;
    command->next = write_more;
    write_more(command);
    return BS_PENDING;
}
