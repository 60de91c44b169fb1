// SPDX-License-Identifier: GPL-2.0-only
//
// READ, WRITE, SYNCHRONIZE CACHE and PRE-FETCH. FUA and DPO need no code: every write is durable
// when it completes, and there is no cache to keep clear.
#include "frontends/tgt/medium.h"

static uint64_t smaller(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

int bs_read(struct bs_lun *lun, struct scsi_cmd *cmd) {
    uint64_t offset = 0;
    uint64_t length = 0;
    int status = bs_medium_range(lun, cmd, BS_TRANSFER_MAX, &offset, &length);
    if (status != 0) {
        return status;
    }
    tgt_set_in_length(cmd, (uint32_t)length);
    length = smaller(length, cmd->in.length);
    // Data on this machine is there at once: no slot, no completion, no turn of the loop.
    if (length == 0 || cg_read_now(lun->volume, tgt_in_buffer(cmd), length, offset) == 0) {
        return SAM_GOOD;
    }
    return bs_medium_io(lun, cmd, CG_OP_READ, offset, length, tgt_in_buffer(cmd));
}

int bs_write(struct bs_lun *lun, struct scsi_cmd *cmd) {
    uint64_t offset = 0;
    uint64_t length = 0;
    int status = bs_medium_range(lun, cmd, BS_TRANSFER_MAX, &offset, &length);
    if (status != 0) {
        return status;
    }
    tgt_set_out_length(cmd, (uint32_t)length);
    length = smaller(length, cmd->out.length);
    if (length == 0) {
        return SAM_GOOD;
    }
    return bs_medium_io(lun, cmd, CG_OP_WRITE, offset, length, tgt_out_buffer(cmd));
}

int bs_synchronize_cache(struct bs_lun *lun, struct scsi_cmd *cmd) {
    tgt_set_in_length(cmd, 0);
    uint64_t offset = 0;
    uint64_t length = 0;
    int status = bs_medium_range(lun, cmd, UINT64_MAX, &offset, &length);
    // Asked of the core though nothing is cached: a gateway that was fenced must not say GOOD.
    return status != 0 ? status : bs_medium_io(lun, cmd, CG_OP_FLUSH, 0, 0, NULL);
}

int bs_pre_fetch(struct bs_lun *lun, struct scsi_cmd *cmd) {
    tgt_set_in_length(cmd, 0);
    uint64_t offset = 0;
    uint64_t length = 0;
    return bs_medium_range(lun, cmd, UINT64_MAX, &offset, &length);
}
