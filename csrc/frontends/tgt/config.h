// SPDX-License-Identifier: GPL-2.0-only
#ifndef CG_FRONTENDS_TGT_CONFIG_H
#define CG_FRONTENDS_TGT_CONFIG_H

#include "frontends/tgt/tgt_abi.h"

// `tgtadm --op update --params`: readonly=0|1 and thin_provisioning=0|1. Identifiers, size and mode
// pages follow the volume on every gateway alike and are refused with a line in the log. Returns
// TGTADM_*.
int32_t bs_config(struct scsi_lu *lu, char *parameters);

#endif
