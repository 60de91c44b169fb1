// SPDX-License-Identifier: BSD-3-Clause
//
// What happens when a block turns out to be bad, whoever finds it, and when it is well again. With
// other replicas it is mended from them (catchup.h). With one there is nothing to mend it from: it
// is remembered, logged once, and reads of it fail until it is written, trimmed or deleted.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/log.h"
#include "chunkserver/store_internal.h"

static void log_found(const struct cg_copyset *copyset, const struct cg_bad_block *bad,
                      const char *why) {
    char where[64];
    if (CG_IS_BAD_SLOT(bad->block)) {
        snprintf(where, sizeof(where), "its metadata, slot %" PRIu32, UINT32_MAX - bad->block);
    } else {
        snprintf(where, sizeof(where), "offset %" PRIu32 " of the chunk",
                 bad->block * CG_BLOCK_SIZE);
    }
    cg_log(CG_LOG_ERROR,
           "bad block: volume %" PRIu64 ", chunk %" PRIu64 " of copyset %" PRIu32 "-%" PRIu32
           ", %s: %s",
           bad->file_id, bad->chunk_id, copyset->pool, copyset->id, where, why);
}

void cg_damage_found(struct cg_copyset *copyset, uint64_t chunk_id, uint64_t file_id,
                     uint32_t block, const char *why) {
    struct cg_store *store = copyset->store;
    struct cg_bad_block bad = {copyset->group, chunk_id, file_id, block, store->scrub.round};
    bool was_full = store->bad.full;
    int result = cg_bad_blocks_add(&store->bad, &bad);
    if (result == 0) {
        store->scrub.record.found++;
        log_found(copyset, &bad, why);
        if (store->options.events.damaged != NULL) {
            store->options.events.damaged(store->options.events.context, copyset, chunk_id, block);
        }
    } else if (result == -ENOSPC && !was_full) {
        cg_log(CG_LOG_ERROR, "more than %u bad blocks: further ones are not listed",
               CG_BAD_BLOCKS_MAX);
    }
}

void cg_damage_slots_found(struct cg_chunk *chunk, const uint8_t *slots) {
    bool bad[2];
    uint64_t file_id = 0;
    for (unsigned slot = 0; slot < 2; slot++) {
        struct cg_chunk_header header;
        enum cg_chunk_slot_state state =
            cg_chunk_slot_decode(slots + (size_t)slot * CG_CHUNK_SLOT_STRIDE, &header);
        bad[slot] = state == CG_CHUNK_SLOT_BAD;
        file_id = state == CG_CHUNK_SLOT_VALID ? header.file_id : file_id;
    }
    if (!bad[0] && !bad[1]) {
        bad[0] = true; // sound, but not this chunk's
    }
    for (unsigned slot = 0; slot < 2; slot++) {
        if (bad[slot]) {
            cg_damage_found(chunk->copyset, chunk->id, file_id, CG_BAD_SLOT(slot),
                            "its checksum does not match");
        }
    }
}

void cg_damage_mended(struct cg_chunk *chunk, uint32_t first, uint32_t count) {
    struct cg_store *store = chunk->copyset->store;
    if (store->bad.count > 0) {
        cg_bad_blocks_clear(&store->bad, chunk->copyset->group, chunk->id, first, count);
    }
}

void cg_damage_chunk_gone(struct cg_copyset *copyset, uint64_t chunk_id) {
    struct cg_store *store = copyset->store;
    if (store->bad.count > 0) {
        cg_bad_blocks_clear_chunk(&store->bad, copyset->group, chunk_id);
    }
}
