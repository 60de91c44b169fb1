// SPDX-License-Identifier: GPL-2.0-only
//
// The commands of reservations and port groups: opcodes' `perform` functions (module.h).
#ifndef COPYGATE_TGT_RESERVATION_COMMANDS_H
#define COPYGATE_TGT_RESERVATION_COMMANDS_H

#include "frontends/tgt/lun_state.h"

int reservation_perform_in(struct bs_lun *lun, struct scsi_cmd *cmd);
int reservation_perform_out(struct bs_lun *lun, struct scsi_cmd *cmd);
int reservation_perform_reserve(struct bs_lun *lun, struct scsi_cmd *cmd);
int reservation_perform_release(struct bs_lun *lun, struct scsi_cmd *cmd);
int alua_perform_report(struct bs_lun *lun, struct scsi_cmd *cmd);
int alua_perform_set(struct bs_lun *lun, struct scsi_cmd *cmd);

// May the command run, as far as reservations go? GOOD, or RESERVATION CONFLICT.
struct bs_status reservation_admit(struct lun_state *state, const struct scsi_cmd *cmd);

#endif
