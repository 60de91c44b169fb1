// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/zero.h"

#include "frontends/tgt/limits.h"

struct zero_piece zero_first(uint64_t offset, uint64_t length, bool deallocate) {
    if (!deallocate) {
        return (struct zero_piece){CG_OP_WRITE_ZEROES, CG_IO_NO_HOLE, length};
    }
    uint64_t into = offset % BS_PHYSICAL_BLOCK;
    if (into != 0) {
        uint64_t edge = BS_PHYSICAL_BLOCK - into;
        return (struct zero_piece){CG_OP_WRITE_ZEROES, 0, edge < length ? edge : length};
    }
    uint64_t whole = length - length % BS_PHYSICAL_BLOCK;
    if (whole != 0) {
        return (struct zero_piece){CG_OP_TRIM, 0, whole};
    }
    return (struct zero_piece){CG_OP_WRITE_ZEROES, 0, length};
}
