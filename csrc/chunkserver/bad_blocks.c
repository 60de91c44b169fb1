// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/bad_blocks.h"

#include <errno.h>
#include <stddef.h>

static void remove_at(struct cg_bad_blocks *table, uint32_t at) {
    table->item[at] = table->item[--table->count];
    table->full = false;
    table->change++;
}

int cg_bad_blocks_add(struct cg_bad_blocks *table, const struct cg_bad_block *block) {
    for (uint32_t i = 0; i < table->count; i++) {
        const struct cg_bad_block *known = &table->item[i];
        if (known->group == block->group && known->chunk_id == block->chunk_id &&
            known->block == block->block) {
            return -EEXIST;
        }
    }
    if (table->count == CG_BAD_BLOCKS_MAX) {
        table->full = true;
        return -ENOSPC;
    }
    table->item[table->count++] = *block;
    table->change++;
    return 0;
}

uint32_t cg_bad_blocks_clear(struct cg_bad_blocks *table, uint64_t group, uint64_t chunk_id,
                             uint32_t first, uint32_t count) {
    uint32_t removed = 0;
    for (uint32_t i = 0; i < table->count;) {
        const struct cg_bad_block *known = &table->item[i];
        if (known->group == group && known->chunk_id == chunk_id && known->block >= first &&
            known->block - first < count) {
            remove_at(table, i);
            removed++;
        } else {
            i++;
        }
    }
    return removed;
}

uint32_t cg_bad_blocks_clear_chunk(struct cg_bad_blocks *table, uint64_t group, uint64_t chunk_id) {
    return cg_bad_blocks_clear(table, group, chunk_id, 0, UINT32_MAX) +
           cg_bad_blocks_clear(table, group, chunk_id, UINT32_MAX, 1);
}

struct cg_bad_block *cg_bad_blocks_unseen(struct cg_bad_blocks *table, uint32_t round) {
    for (uint32_t i = 0; i < table->count; i++) {
        if (table->item[i].round != round) {
            table->item[i].round = round;
            return &table->item[i];
        }
    }
    return NULL;
}
