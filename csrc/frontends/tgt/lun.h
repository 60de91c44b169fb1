// SPDX-License-Identifier: GPL-2.0-only
//
// A LUN's life as tgtd leads it: init, open, (commands), close, exit. A failed init is not followed
// by exit, a failed open is. When close and exit run, tgtd has freed the LUN's VPD pages, mode
// pages and path: they must not touch them.
#ifndef CG_FRONTENDS_TGT_LUN_H
#define CG_FRONTENDS_TGT_LUN_H

#include "frontends/tgt/module.h"

int32_t bs_lun_init(struct scsi_lu *lu, char *options);
int32_t bs_lun_open(struct scsi_lu *lu, char *path, int *fd, uint64_t *size);
void bs_lun_close(struct scsi_lu *lu);
void bs_lun_exit(struct scsi_lu *lu);

// tgtd's own handlers call this; ours do not use them.
int32_t bs_lun_submit(struct scsi_cmd *cmd);

// Whether writes are refused: read-only=yes, the volume was opened so, `readonly=1` by tgtadm, or
// SWP of the control mode page.
bool bs_lun_protected(const struct bs_lun *lun);

// Logical blocks of the medium.
static inline uint64_t bs_lun_blocks(const struct bs_lun *lun) {
    return lun->lu->size >> lun->lu->block_shift;
}

#endif
