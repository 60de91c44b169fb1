// SPDX-License-Identifier: GPL-2.0-only
//
// The commands that ask or tell of the logical unit itself. See struct bs_opcode.
#ifndef CG_FRONTENDS_TGT_UNIT_H
#define CG_FRONTENDS_TGT_UNIT_H

#include "frontends/tgt/module.h"

int bs_test_unit_ready(struct bs_lun *lun, struct scsi_cmd *cmd);
int bs_request_sense(struct bs_lun *lun, struct scsi_cmd *cmd);
int bs_start_stop(struct bs_lun *lun, struct scsi_cmd *cmd);
int bs_send_diagnostic(struct bs_lun *lun, struct scsi_cmd *cmd);
int bs_prevent_allow(struct bs_lun *lun, struct scsi_cmd *cmd);
int bs_report_luns(struct bs_lun *lun, struct scsi_cmd *cmd);
int bs_inquiry(struct bs_lun *lun, struct scsi_cmd *cmd);
int bs_mode_sense(struct bs_lun *lun, struct scsi_cmd *cmd);
int bs_mode_select(struct bs_lun *lun, struct scsi_cmd *cmd);
int bs_read_capacity_10(struct bs_lun *lun, struct scsi_cmd *cmd);
int bs_read_capacity_16(struct bs_lun *lun, struct scsi_cmd *cmd);
int bs_report_opcodes(struct bs_lun *lun, struct scsi_cmd *cmd);

#endif
