// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/reservation_commands.h"

static uint32_t be32(const uint8_t *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

int alua_perform_report(struct bs_lun *lun, struct scsi_cmd *cmd) {
    struct lun_state *state = lun_state_of(lun);
    struct alua_own own = lun_state_own(state);
    uint8_t answer[ALUA_REPORT_MAX];
    size_t length;
    struct bs_status status = alua_report(state->now, &own, cmd->cdb, answer, &length);
    if (status.status != SAM_GOOD)
        return bs_finish(cmd, status);
    return bs_reply(cmd, answer, (uint32_t)length, be32(cmd->cdb + 6));
}

int alua_perform_set(struct bs_lun *lun, struct scsi_cmd *cmd) {
    struct lun_state *state = lun_state_of(lun);
    struct alua_own own = lun_state_own(state);
    bool take_over;
    struct bs_status status = alua_parse_set(state->now, &own, cmd->cdb, tgt_out_buffer(cmd),
                                             cmd->out.length, &take_over);
    if (status.status != SAM_GOOD || !take_over)
        return bs_finish(cmd, status);
    struct bs_command *command = bs_command_begin(lun, cmd);
    if (command == NULL)
        return BS_FULL;
    lun_state_take_over(state, command);
    return BS_PENDING;
}
