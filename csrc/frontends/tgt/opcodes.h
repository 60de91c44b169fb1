// SPDX-License-Identifier: GPL-2.0-only
#ifndef CG_FRONTENDS_TGT_OPCODES_H
#define CG_FRONTENDS_TGT_OPCODES_H

#include "frontends/tgt/module.h"

// What every LUN knows; extensions add theirs.
extern const struct bs_opcode bs_opcodes[];
extern const unsigned bs_opcode_count;

#endif
