// SPDX-License-Identifier: BSD-3-Clause
//
// The scrub of one chunk: its metadata, its blocks, and once more what did not match. Each step
// ends in cg_scrub_look_in, which takes the next one when its time has come.
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "chunkserver/scrub_internal.h"

#define LOCK_POLL_NS   (5 * CG_NS_PER_MS)
#define LOCK_PATIENCE  200U // polls; then the block is left to the next pass
#define SHORT_PATIENCE 10U  // polls while memory or descriptors are short
#define PROBES_MAX     3U   // of metadata that a checkpoint got in the way of

// ---- Reading

static void read_target(struct cg_store *store, uint32_t first, uint32_t count,
                        void (*done)(struct cg_file_op *op)) {
    struct cg_scrub *scrub = &store->scrub;
    cg_chunk_path(scrub->target.copyset, scrub->target.chunk_id, scrub->read.path);
    scrub->read.first = first;
    scrub->read.count = count;
    scrub->read.began_ns = cg_reactor_now(store->reactor);
    scrub->active = true;
    if (count > 0) {
        // Not cg_chunk_get: that we look at it does not make it worth keeping.
        scrub->chunk = cg_chunk_find(scrub->target.copyset, scrub->target.chunk_id);
        scrub->chunk->refs++;
        memcpy(scrub->read.crcs, scrub->chunk->slot->crc + first, count * sizeof(uint32_t));
    }
    cg_scrub_read_start(&scrub->read, done);
}

// The store, after a reading.
static struct cg_store *read_over(struct cg_file_op *op) {
    struct cg_scrub_read *read = CG_CONTAINER_OF(op, struct cg_scrub_read, op);
    struct cg_scrub *scrub = CG_CONTAINER_OF(read, struct cg_scrub, read);
    struct cg_store *store = CG_CONTAINER_OF(scrub, struct cg_store, scrub);
    scrub->active = false;
    uint64_t bytes = read->count > 0 ? (uint64_t)read->count * CG_BLOCK_SIZE : CG_CHUNK_SLOTS_SIZE;
    cg_scrub_charge(&scrub->pace, bytes, read->began_ns, cg_reactor_now(store->reactor));
    if (read->cached && !scrub->direct_told) {
        scrub->direct_told = true;
        cg_log(CG_LOG_WARNING, "the scrub reads through the page cache: the file system refuses "
                               "O_DIRECT");
    }
    return store;
}

static void try_again(struct cg_store *store) {
    struct cg_scrub_target *target = &store->scrub.target;
    if (++target->patience > SHORT_PATIENCE) {
        cg_log(CG_LOG_WARNING,
               "the scrub passes over chunk %" PRIu64 ": no memory or descriptors for it",
               target->chunk_id);
        cg_scrub_target_done(store);
        return;
    }
    cg_scrub_look_in(store, SHORT_POLL_NS);
}

// ---- The metadata

// Nothing is writing the chunk's metadata, or has it to write.
static bool metadata_at_rest(const struct cg_chunk *chunk) {
    return !chunk->flushing && !cg_list_linked(&chunk->dirty);
}

static bool slot_bad(const struct cg_scrub_read *read, const struct cg_chunk *chunk,
                     unsigned slot) {
    if (read->slot_state[slot] == CG_CHUNK_SLOT_BAD) {
        return true;
    }
    return chunk->sequence != 0 && slot == chunk->newest &&
           (read->slot_state[slot] != CG_CHUNK_SLOT_VALID ||
            read->slot_sequence[slot] != chunk->sequence);
}

// Judges what the probe read, now that the chunk is in memory. False: it has to be read once more.
static bool judge_metadata(struct cg_store *store, struct cg_chunk *chunk) {
    struct cg_scrub_target *target = &store->scrub.target;
    const struct cg_scrub_read *read = &store->scrub.read;
    bool unreadable = read->op.result != 0;
    if (target->probes == 0) {
        return true; // judged before
    }
    if (!unreadable && !slot_bad(read, chunk, 0) && !slot_bad(read, chunk, 1)) {
        cg_damage_mended(chunk, CG_BAD_SLOT(1), 2);
        return true;
    }
    // What a checkpoint may have been writing is not to be compared with anything.
    if (!target->quiet || !metadata_at_rest(chunk) || chunk->sequence != target->sequence ||
        chunk->generation != target->generation) {
        return target->probes == PROBES_MAX;
    }
    for (unsigned slot = 0; slot < 2; slot++) {
        if (unreadable || slot_bad(read, chunk, slot)) {
            cg_damage_found(chunk->copyset, chunk->id, chunk->file_id, CG_BAD_SLOT(slot),
                            unreadable ? strerror((int)-read->op.result)
                                       : "its checksum does not match");
        }
    }
    return true;
}

static void in_memory(struct cg_store *store, struct cg_chunk *chunk) {
    struct cg_scrub_target *target = &store->scrub.target;
    if (!judge_metadata(store, chunk)) {
        target->stage = CG_SCRUB_PROBE;
    } else {
        target->probes = 0;
        target->stage = target->suspects != 0 ? CG_SCRUB_SUSPECTS : CG_SCRUB_PIECES;
    }
    cg_scrub_look_in(store, 0);
}

static void loaded(void *user, const struct cg_read_result *result) {
    struct cg_store *store = user;
    struct cg_scrub_target *target = &store->scrub.target;
    store->scrub.active = false;
    switch (result->status) {
    case STATUS(SUCCESS):
        in_memory(store, cg_chunk_find(target->copyset, target->chunk_id));
        return;
    case STATUS(OVERLOAD):
        try_again(store);
        return;
    case STATUS(CHUNK_NOTEXIST):
        cg_damage_chunk_gone(target->copyset, target->chunk_id);
        break;
    default: // damaged: whoever loaded it has reported that; or the disk is retired
        break;
    }
    cg_scrub_target_done(store);
}

static void load(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    struct cg_scrub_target *target = &scrub->target;
    struct cg_chunk *chunk = cg_chunk_find(target->copyset, target->chunk_id);
    if (chunk != NULL && chunk->state == CG_CHUNK_READY && chunk->exists) {
        in_memory(store, chunk);
        return;
    }
    target->brought = target->brought || chunk == NULL;
    struct cg_query query = {
        .kind = CG_READ_INFO,
        .copyset = target->copyset,
        .chunk_id = target->chunk_id,
        .local = true,
        .done = loaded,
        .user = store,
    };
    scrub->active = true;
    cg_store_read(store, &query);
}

static void probed(struct cg_file_op *op) {
    struct cg_store *store = read_over(op);
    struct cg_scrub *scrub = &store->scrub;
    if (scrub->chunk != NULL) {
        cg_chunk_put(scrub->chunk);
        scrub->chunk = NULL;
    }
    if (cg_scrub_is_short(op->result)) {
        try_again(store);
        return;
    }
    scrub->target.stage = CG_SCRUB_LOAD;
    cg_scrub_look_in(store, 0);
}

// Reads the metadata. A chunk that is in memory is kept there meanwhile, so that what is there can
// be compared; otherwise it is loaded next, which checks it, and read once more if need be.
static void probe(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    struct cg_scrub_target *target = &scrub->target;
    struct cg_chunk *chunk = cg_chunk_find(target->copyset, target->chunk_id);
    target->probes++;
    target->quiet = false;
    if (chunk != NULL && chunk->state == CG_CHUNK_READY && chunk->exists) {
        target->quiet = metadata_at_rest(chunk);
        target->sequence = chunk->sequence;
        target->generation = chunk->generation;
        scrub->chunk = chunk;
        chunk->refs++;
    }
    read_target(store, 0, 0, probed);
}

// ---- The blocks

// The blocks that can be compared: those that hold data, and are on the medium as they are.
static void settled_blocks(const struct cg_chunk *chunk, uint8_t map[CG_BLOCKMAP_BYTES]) {
    for (unsigned i = 0; i < CG_BLOCKMAP_BYTES; i++) {
        map[i] = (uint8_t)(chunk->slot->allocated[i] &
                           ~(chunk->busy[i] | chunk->applying[i] | chunk->unsynced_blocks[i] |
                             chunk->syncing_blocks[i]));
    }
}

// The target's chunk if it is in memory; otherwise it is loaded, or there is none any more.
static struct cg_chunk *chunk_of_target(struct cg_store *store) {
    struct cg_scrub_target *target = &store->scrub.target;
    struct cg_chunk *chunk = cg_chunk_find(target->copyset, target->chunk_id);
    if (chunk == NULL || chunk->state != CG_CHUNK_READY) {
        target->stage = CG_SCRUB_LOAD;
        cg_scrub_look_in(store, 0);
        return NULL;
    }
    if (!chunk->exists) {
        cg_scrub_target_done(store);
        return NULL;
    }
    return chunk;
}

static void piece_read(struct cg_file_op *op) {
    struct cg_store *store = read_over(op);
    struct cg_scrub *scrub = &store->scrub;
    struct cg_scrub_target *target = &scrub->target;
    const struct cg_scrub_read *read = &scrub->read;
    struct cg_chunk *chunk = scrub->chunk;
    scrub->chunk = NULL;
    if (cg_scrub_is_short(op->result)) {
        cg_chunk_put(chunk);
        try_again(store);
        return;
    }
    uint64_t all = UINT64_MAX >> (CG_SCRUB_PIECE_BLOCKS - read->count);
    uint64_t bad = op->result != 0 ? all : read->bad;
    for (uint32_t i = 0; i < read->count && store->bad.count > 0; i++) {
        if (!(bad >> i & 1U)) {
            cg_damage_mended(chunk, read->first + i, 1);
        }
    }
    cg_chunk_put(chunk);
    scrub->record.checked += (uint64_t)__builtin_popcountll(all & ~bad);
    target->first = read->first + read->count;
    target->patience = 0;
    if (bad != 0) {
        target->suspects = bad;
        target->suspects_first = read->first;
        target->stage = CG_SCRUB_SUSPECTS;
    } else if (target->of_pass && scrub->record.running) {
        cg_scrub_set_position(scrub, target->copyset->group, target->chunk_id, target->first);
    }
    cg_scrub_look_in(store, 0);
}

static void read_piece(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    struct cg_scrub_target *target = &scrub->target;
    struct cg_chunk *chunk = chunk_of_target(store);
    if (chunk == NULL) {
        return;
    }
    uint8_t settled[CG_BLOCKMAP_BYTES];
    settled_blocks(chunk, settled);
    uint32_t first = target->first;
    while (first < target->end && !cg_blockmap_test(settled, first)) {
        uint32_t run = cg_blockmap_run(settled, first, target->end - first);
        scrub->record.skipped += cg_blockmap_count(chunk->slot->allocated, first, run);
        first += run;
    }
    if (first >= target->end) {
        cg_scrub_target_done(store);
        return;
    }
    uint32_t count = cg_blockmap_run(settled, first, target->end - first);
    count = count < CG_SCRUB_PIECE_BLOCKS ? count : CG_SCRUB_PIECE_BLOCKS;
    read_target(store, first, count, piece_read);
}

// ---- Blocks that did not match

static void suspect_over(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    struct cg_scrub_target *target = &scrub->target;
    target->suspects &= target->suspects - 1;
    target->patience = 0;
    if (target->suspects == 0) {
        target->stage = CG_SCRUB_PIECES;
        if (target->of_pass && scrub->record.running) {
            cg_scrub_set_position(scrub, target->copyset->group, target->chunk_id, target->first);
        }
    }
    cg_scrub_look_in(store, 0);
}

static void suspect_read(struct cg_file_op *op) {
    struct cg_store *store = read_over(op);
    struct cg_scrub *scrub = &store->scrub;
    struct cg_chunk *chunk = scrub->chunk;
    uint32_t block = scrub->read.first;
    scrub->chunk = NULL;
    bool is_bad = !cg_scrub_is_short(op->result) && (op->result != 0 || scrub->read.bad != 0);
    if (is_bad) {
        store->crc_errors++;
        cg_damage_found(chunk->copyset, chunk->id, chunk->file_id, block,
                        op->result != 0 ? strerror((int)-op->result)
                                        : "its checksum does not match");
    } else if (op->result == 0) {
        cg_damage_mended(chunk, block, 1);
    }
    cg_blockmap_clear(chunk->busy, block, 1);
    cg_ops_pump(chunk);
    cg_chunk_put(chunk);
    if (cg_scrub_is_short(op->result)) {
        cg_scrub_look_in(store, SHORT_POLL_NS);
        return;
    }
    scrub->record.checked++;
    suspect_over(store);
}

// Reads the first suspect again. Under its lock no write of it is under way; and if it is settled
// then, the medium has to hold what the CRC says.
static void read_suspect(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    struct cg_scrub_target *target = &scrub->target;
    struct cg_chunk *chunk = chunk_of_target(store);
    if (chunk == NULL) {
        return;
    }
    uint32_t block = target->suspects_first + (uint32_t)__builtin_ctzll(target->suspects);
    bool written = !cg_blockmap_test(chunk->slot->allocated, block) ||
                   cg_blockmap_test(chunk->unsynced_blocks, block) ||
                   cg_blockmap_test(chunk->syncing_blocks, block);
    bool locked = cg_blockmap_test(chunk->busy, block) || cg_blockmap_test(chunk->applying, block);
    if (locked && !written && ++target->patience < LOCK_PATIENCE) {
        cg_scrub_look_in(store, LOCK_POLL_NS);
        return;
    }
    if (locked || written) {
        scrub->record.skipped++; // it was written while it was read
        suspect_over(store);
        return;
    }
    cg_blockmap_set(chunk->busy, block, 1);
    read_target(store, block, 1, suspect_read);
}

// ---- The next step

void cg_scrub_go_on(struct cg_store *store) {
    if (store->scrub.target.copyset->paused) {
        cg_scrub_target_done(store); // its files are being replaced, by what has just been checked
        return;
    }
    switch (store->scrub.target.stage) {
    case CG_SCRUB_PROBE:
        probe(store);
        break;
    case CG_SCRUB_LOAD:
        load(store);
        break;
    case CG_SCRUB_PIECES:
        read_piece(store);
        break;
    case CG_SCRUB_SUSPECTS:
        read_suspect(store);
        break;
    }
}
