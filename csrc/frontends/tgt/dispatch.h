// SPDX-License-Identifier: GPL-2.0-only
#ifndef CG_FRONTENDS_TGT_DISPATCH_H
#define CG_FRONTENDS_TGT_DISPATCH_H

#include "frontends/tgt/module.h"

// Makes the index of opcodes from the table and those of the extensions. Once, before the first
// command.
void bs_dispatch_init(void);

// The handler of every opcode of our LUNs: what tgtd calls.
int bs_dispatch(int host, struct scsi_cmd *cmd);

// Calls `visit` for every entry in the order of opcodes and service actions.
void bs_opcode_each(void (*visit)(const struct bs_opcode *op, void *context), void *context);

#endif
