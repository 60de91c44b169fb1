// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/cdb.h"
#include "frontends/tgt/lun.h"
#include "frontends/tgt/mode_pages.h"
#include "frontends/tgt/unit.h"

#define OPCODE_MODE_SELECT_6 0x15
#define OPCODE_MODE_SENSE_6  0x1a

static struct mode_state state_of(const struct bs_lun *lun) {
    return (struct mode_state){
        .blocks = bs_lun_blocks(lun),
        .block_size = lun->options.block_size,
        .protected = bs_lun_protected(lun),
        .software_write_protect = lun->lu->attributes.software_write_protect != 0,
    };
}

int bs_mode_sense(struct bs_lun *lun, struct scsi_cmd *cmd) {
    uint8_t data[MODE_DATA_MAX];
    uint32_t length = 0;
    struct mode_state state = state_of(lun);
    struct bs_status status = mode_sense(&state, cmd->cdb, data, &length);
    if (status.status != SAM_GOOD) {
        return bs_finish(cmd, status);
    }
    bool six = cmd->cdb[0] == OPCODE_MODE_SENSE_6;
    return bs_reply(cmd, data, length, six ? cmd->cdb[4] : cdb_get16(cmd->cdb + 7));
}

int bs_mode_select(struct bs_lun *lun, struct scsi_cmd *cmd) {
    bool six = cmd->cdb[0] == OPCODE_MODE_SELECT_6;
    uint32_t length = six ? cmd->cdb[4] : cdb_get16(cmd->cdb + 7);
    if (length > cmd->out.length) {
        return bs_sense(cmd, KEY_ILLEGAL_REQUEST, ASC_PARAMETER_LENGTH);
    }
    struct mode_state state = state_of(lun);
    bool protect = state.software_write_protect;
    struct bs_status status = mode_select(&state, cmd->cdb, tgt_out_buffer(cmd), length, &protect);
    if (status.status == SAM_GOOD && protect != state.software_write_protect) {
        lun->lu->attributes.software_write_protect = (char)protect;
        ua_sense_add_other_it_nexus(cmd->nexus_id, lun->lu, ASC_MODE_CHANGED);
    }
    return bs_finish(cmd, status);
}
