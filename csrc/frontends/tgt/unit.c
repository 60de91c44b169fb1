// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/unit.h"

#include <string.h>

#include "frontends/tgt/cdb.h"

#define SENSE_FIXED_LENGTH      18
#define SENSE_DESCRIPTOR_LENGTH 8

int bs_test_unit_ready(struct bs_lun *lun, struct scsi_cmd *cmd) {
    (void)lun;
    (void)cmd;
    return SAM_GOOD; // BS_OP_MEDIUM was checked
}

// Sense data is returned with each command, and pending unit attentions are told by tgtd before
// this runs: nothing is left to tell.
int bs_request_sense(struct bs_lun *lun, struct scsi_cmd *cmd) {
    (void)lun;
    uint8_t sense[SENSE_FIXED_LENGTH] = {0};
    bool descriptor = (cmd->cdb[1] & 0x01) != 0;
    if (descriptor) {
        sense[0] = 0x72;
        return bs_reply(cmd, sense, SENSE_DESCRIPTOR_LENGTH, cmd->cdb[4]);
    }
    sense[0] = 0x70;
    sense[7] = SENSE_FIXED_LENGTH - 8;
    return bs_reply(cmd, sense, SENSE_FIXED_LENGTH, cmd->cdb[4]);
}

// There is no motor and no medium to eject.
int bs_start_stop(struct bs_lun *lun, struct scsi_cmd *cmd) {
    (void)lun;
    tgt_set_in_length(cmd, 0);
    return SAM_GOOD;
}

int bs_send_diagnostic(struct bs_lun *lun, struct scsi_cmd *cmd) {
    (void)lun;
    if ((cmd->cdb[1] & 0x04) == 0) { // SELFTEST alone
        return bs_sense(cmd, KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB);
    }
    return SAM_GOOD;
}

int bs_prevent_allow(struct bs_lun *lun, struct scsi_cmd *cmd) {
    (void)lun;
    (void)cmd;
    return SAM_GOOD; // nothing can be removed
}

// The other LUNs are tgtd's to know.
int bs_report_luns(struct bs_lun *lun, struct scsi_cmd *cmd) {
    (void)lun;
    return spc_report_luns(0, cmd);
}
