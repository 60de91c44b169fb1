// SPDX-License-Identifier: GPL-2.0-only
//
// What the commands that address the medium have in common.
#ifndef CG_FRONTENDS_TGT_MEDIUM_H
#define CG_FRONTENDS_TGT_MEDIUM_H

#include "frontends/tgt/cdb.h"
#include "frontends/tgt/lun.h"
#include "frontends/tgt/module.h"

// The command's range in bytes. Returns 0, or a SAM status: outside of the medium, longer than
// `longest` bytes, or protection information asked for, which we have none of.
int bs_medium_range(struct bs_lun *lun, struct scsi_cmd *cmd, uint64_t longest, uint64_t *offset,
                    uint64_t *length);

// bs_command_begin with `scratch_size` bytes of scratch memory (0: none), page-aligned. On failure
// NULL, and `status` is what perform returns.
struct bs_command *bs_medium_begin(struct bs_lun *lun, struct scsi_cmd *cmd, size_t scratch_size,
                                   int *status);

// Ends a command whose only IO is done.
void bs_medium_last(struct bs_command *command);

// Starts one IO of `op` for the command, with `buffer` (NULL: none). Returns what perform returns.
int bs_medium_io(struct bs_lun *lun, struct scsi_cmd *cmd, enum cg_op op, uint64_t offset,
                 uint64_t length, void *buffer);

// ---- One function for each kind of command; see struct bs_opcode.

int bs_read(struct bs_lun *lun, struct scsi_cmd *cmd);
int bs_write(struct bs_lun *lun, struct scsi_cmd *cmd);
int bs_synchronize_cache(struct bs_lun *lun, struct scsi_cmd *cmd);
int bs_pre_fetch(struct bs_lun *lun, struct scsi_cmd *cmd);
int bs_write_same(struct bs_lun *lun, struct scsi_cmd *cmd);
int bs_unmap(struct bs_lun *lun, struct scsi_cmd *cmd);
int bs_compare_and_write(struct bs_lun *lun, struct scsi_cmd *cmd);
int bs_verify(struct bs_lun *lun, struct scsi_cmd *cmd);
int bs_write_and_verify(struct bs_lun *lun, struct scsi_cmd *cmd);
int bs_orwrite(struct bs_lun *lun, struct scsi_cmd *cmd);
int bs_get_lba_status(struct bs_lun *lun, struct scsi_cmd *cmd);

#endif
