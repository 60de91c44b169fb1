// SPDX-License-Identifier: BSD-3-Clause
//
// The blocks of this disk that are known to be bad: found by a read or by the scrub, and not
// written, trimmed or deleted since. A bounded table in memory; the scrub saves it. No IO inside.
#ifndef CG_CHUNKSERVER_BAD_BLOCKS_H
#define CG_CHUNKSERVER_BAD_BLOCKS_H

#include <stdbool.h>
#include <stdint.h>

#define CG_BAD_BLOCKS_MAX 1024U

// In place of a block: one of the chunk's two metadata slots.
#define CG_BAD_SLOT(slot)     (UINT32_MAX - (slot))
#define CG_IS_BAD_SLOT(block) ((block) >= UINT32_MAX - 1U)

struct cg_bad_block {
    uint64_t group; // pool << 32 | copyset
    uint64_t chunk_id;
    uint64_t file_id; // the volume's, 0 if not known
    uint32_t block;   // or CG_BAD_SLOT
    uint32_t round;   // of the pass that looked at it last
};

struct cg_bad_blocks {
    struct cg_bad_block item[CG_BAD_BLOCKS_MAX];
    uint32_t count;
    bool full;       // more were found than there is room for
    uint64_t change; // counts changes: whoever saves the table compares
};

// 0 if it is new, -EEXIST if it is known, -ENOSPC if there is no room.
int cg_bad_blocks_add(struct cg_bad_blocks *table, const struct cg_bad_block *block);

// Removes those of `count` blocks from `first` on; returns how many that were.
uint32_t cg_bad_blocks_clear(struct cg_bad_blocks *table, uint64_t group, uint64_t chunk_id,
                             uint32_t first, uint32_t count);

// Removes all of a chunk, its metadata's too; returns how many that were.
uint32_t cg_bad_blocks_clear_chunk(struct cg_bad_blocks *table, uint64_t group, uint64_t chunk_id);

// The next one that has not been looked at in `round`, marked as looked at; NULL if there is none.
struct cg_bad_block *cg_bad_blocks_unseen(struct cg_bad_blocks *table, uint32_t round);

#endif
