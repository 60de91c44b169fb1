// SPDX-License-Identifier: GPL-2.0-only
//
// Ranges that shall read as zeros, cut into IOs. Pure.
#ifndef CG_FRONTENDS_TGT_ZERO_H
#define CG_FRONTENDS_TGT_ZERO_H

#include <stdbool.h>
#include <stdint.h>

#include "copygate.h"

struct zero_piece {
    enum cg_op op;
    uint32_t flags;
    uint64_t length; // bytes from the range's start
};

// The first IO for `length` (not 0) bytes at `offset`. With `deallocate` whole blocks are trimmed
// and what is left at the edges is zeroed: both read as zeros, as LBPRZ promises. Without, the
// range stays allocated.
struct zero_piece zero_first(uint64_t offset, uint64_t length, bool deallocate);

#endif
