// SPDX-License-Identifier: GPL-2.0-only
//
// The parameter list of UNMAP. Pure.
#ifndef CG_FRONTENDS_TGT_UNMAP_LIST_H
#define CG_FRONTENDS_TGT_UNMAP_LIST_H

#include "frontends/tgt/cdb.h"
#include "frontends/tgt/sense.h"

struct unmap_list {
    const uint8_t *descriptors;
    unsigned count;
    uint64_t blocks; // together
};

// Checks all of the list before anything of it is done: complete descriptors within a medium of
// `capacity` blocks, at most BS_UNMAP_DESCRIPTORS, at most `most` blocks together. GOOD or CHECK
// CONDITION. An empty list is good.
struct bs_status unmap_list_parse(const uint8_t *list, uint32_t length, uint64_t capacity,
                                  uint64_t most, struct unmap_list *out);

struct cdb_range unmap_list_range(const struct unmap_list *list, unsigned index);

#endif
