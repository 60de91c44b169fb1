// SPDX-License-Identifier: BSD-3-Clause
//
// The scrub: reads all blocks of the disk, one piece after the other, and checks their CRCs, so
// that damage is found while there may be another copy, not when the data is needed. scrub_plan.c
// decides when; this is what happens then. At most one operation is under way, into a buffer of its
// own.
//
// It checks the medium (scrub_read.c), so it may compare only what is known to be there: a block
// that was applied and has not been synced since is passed over. A pass begins with a checkpoint,
// so these are the blocks that were written while it went on. A block that does not match is read
// again under its lock, with nothing of it on its way, before it is called bad.
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "chunkserver/store_internal.h"

#define FILE_NAME      "scrub"
#define FILE_TEMPORARY "scrub.tmp"

#define SAVE_EVERY_NS   (5 * CG_NS_PER_S)
#define REST_MAX_NS     (10 * CG_NS_PER_S)
#define SETTLE_LIMIT_NS (60 * CG_NS_PER_S)
#define SETTLE_POLL_NS  (20 * CG_NS_PER_MS)
#define LOCK_POLL_NS    (5 * CG_NS_PER_MS)
#define LOCK_PATIENCE   200U // polls; then the block is left to the next pass
#define SHORT_POLL_NS   CG_NS_PER_S
#define SHORT_PATIENCE  10U // polls while memory or descriptors are short
#define PROBES_MAX      3U  // of metadata that a checkpoint got in the way of

static void look_in(struct cg_store *store, uint64_t wait_ns);

// Something is short, not broken.
static bool is_short(int64_t result) {
    return result == -EMFILE || result == -ENFILE || result == -ENOMEM || result == -EINTR ||
           result == -EAGAIN;
}

// ---- Saving

static void save_call(struct cg_file_op *op) {
    struct cg_scrub *scrub = CG_CONTAINER_OF(op, struct cg_scrub, op);
    struct cg_disk *disk = scrub->read.disk;
    int handle = disk->ops->open(disk, FILE_TEMPORARY, O_RDWR | O_CREAT);
    if (handle < 0) {
        op->result = handle;
        return;
    }
    op->result = disk->ops->truncate(disk, handle, 0);
    if (op->result == 0) {
        int64_t written = disk->ops->write(disk, handle, scrub->file, scrub->file_length, 0);
        if (written != (int64_t)scrub->file_length) {
            op->result = written < 0 ? written : -EIO;
        }
    }
    disk->ops->close(disk, handle);
    // Not synced: a power loss costs some of the pass, and what was found is found again.
    if (op->result == 0) {
        op->result = disk->ops->rename(disk, FILE_TEMPORARY, FILE_NAME);
    }
}

static void save_done(struct cg_file_op *op) {
    struct cg_scrub *scrub = CG_CONTAINER_OF(op, struct cg_scrub, op);
    struct cg_store *store = CG_CONTAINER_OF(scrub, struct cg_store, scrub);
    scrub->active = false;
    if (op->result < 0 && op->result != -ENOSPC) {
        cg_log(CG_LOG_WARNING, "cannot save how far the scrub is: %s", strerror((int)-op->result));
    }
    look_in(store, 0);
}

static void save(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    scrub->moved = false;
    scrub->saved_change = store->bad.change;
    scrub->saved_ns = cg_reactor_now(store->reactor);
    scrub->file_length = cg_scrub_encode(&scrub->record, &store->bad, scrub->file);
    scrub->active = true;
    scrub->op = (struct cg_file_op){.opcode = CG_FILE_CALL, .call = save_call, .done = save_done};
    store->disk->ops->submit(store->disk, &scrub->op);
}

static bool unsaved(const struct cg_store *store) {
    return store->scrub.moved || store->bad.change != store->scrub.saved_change;
}

static bool save_now(const struct cg_store *store) {
    const struct cg_scrub *scrub = &store->scrub;
    return store->bad.change != scrub->saved_change ||
           (scrub->moved && cg_reactor_now(store->reactor) - scrub->saved_ns >= SAVE_EVERY_NS);
}

// The next look at what is to be done; after the stop, what is left to be saved.
static void look_in(struct cg_store *store, uint64_t wait_ns) {
    struct cg_scrub *scrub = &store->scrub;
    if (scrub->stopped || store->disk_error != 0) {
        cg_timer_disarm(&scrub->timer);
        if (store->disk_error == 0 && !scrub->active && unsaved(store)) {
            save(store);
        }
        return;
    }
    uint64_t wait = wait_ns < REST_MAX_NS ? wait_ns : REST_MAX_NS;
    if (cg_timer_arm(store->reactor, &scrub->timer, cg_reactor_now(store->reactor) + wait) != 0) {
        cg_log(CG_LOG_ERROR, "out of memory: the scrub ends");
        scrub->stopped = true;
    }
}

static void load_file(struct cg_store *store) {
    int handle = store->disk->ops->open(store->disk, FILE_NAME, O_RDWR);
    if (handle == -ENOENT) {
        return;
    }
    int64_t got = handle;
    if (handle >= 0) {
        got = store->disk->ops->read(store->disk, handle, store->scrub.file, CG_SCRUB_FILE_MAX, 0);
        store->disk->ops->close(store->disk, handle);
    }
    if (got < 0) {
        cg_log(CG_LOG_WARNING, "the scrub begins anew: cannot read how far it was: %s",
               strerror((int)-got));
    } else if (cg_scrub_decode(store->scrub.file, (size_t)got, &store->scrub.record, &store->bad) !=
               0) {
        // It is not synced: after a power loss anything may be there.
        cg_log(CG_LOG_INFO, "the scrub begins anew: how far it was did not survive");
    }
}

// ---- The list of a copyset's chunks

static int compare_ids(const void *a, const void *b) {
    const uint64_t *left = a;
    const uint64_t *right = b;
    return *left < *right ? -1 : *left > *right;
}

static void sort_ids(struct cg_scrub *scrub) {
    qsort(scrub->ids, scrub->id_count, sizeof(scrub->ids[0]), compare_ids);
    if (scrub->id_count > CG_SCRUB_LIST) {
        scrub->id_count = CG_SCRUB_LIST;
        scrub->list_cut = true;
    }
}

static int note_chunk(void *context, const char *name) {
    struct cg_scrub *scrub = context;
    uint64_t id;
    int used = 0;
    if (sscanf(name, "chunk_%" SCNu64 "%n", &id, &used) != 1 || name[used] != '\0' ||
        id < scrub->record.position.chunk_id) {
        return 0;
    }
    if (scrub->id_count == 2 * CG_SCRUB_LIST) {
        sort_ids(scrub); // keeps the lower half
    }
    scrub->ids[scrub->id_count++] = id;
    return 0;
}

static void list_call(struct cg_file_op *op) {
    struct cg_scrub *scrub = CG_CONTAINER_OF(op, struct cg_scrub, op);
    scrub->id_count = 0;
    scrub->id_at = 0;
    scrub->list_cut = false;
    op->result = scrub->read.disk->ops->list(scrub->read.disk, scrub->read.path, note_chunk, scrub);
    sort_ids(scrub);
}

static void list_done(struct cg_file_op *op) {
    struct cg_scrub *scrub = CG_CONTAINER_OF(op, struct cg_scrub, op);
    struct cg_store *store = CG_CONTAINER_OF(scrub, struct cg_store, scrub);
    scrub->active = false;
    scrub->listed = true;
    if (is_short(op->result)) {
        scrub->listed = false;
        look_in(store, SHORT_POLL_NS);
        return;
    }
    if (op->result != 0) {
        cg_log(CG_LOG_WARNING, "the scrub passes over %s: cannot list it: %s", scrub->read.path,
               strerror((int)-op->result));
    }
    look_in(store, 0);
}

static void start_list(struct cg_store *store, const struct cg_copyset *copyset) {
    struct cg_scrub *scrub = &store->scrub;
    cg_copyset_folder(copyset, scrub->read.path);
    scrub->active = true;
    scrub->op = (struct cg_file_op){.opcode = CG_FILE_CALL, .call = list_call, .done = list_done};
    store->disk->ops->submit(store->disk, &scrub->op);
}

// ---- What comes next

static struct cg_copyset *copyset_from(const struct cg_store *store, uint64_t group) {
    struct cg_copyset *found = NULL;
    for (uint32_t i = 0; i < store->copyset_count; i++) {
        struct cg_copyset *copyset = store->copysets[i];
        if (copyset->group >= group && (found == NULL || copyset->group < found->group)) {
            found = copyset;
        }
    }
    return found;
}

static void set_position(struct cg_scrub *scrub, uint64_t group, uint64_t chunk_id,
                         uint32_t block) {
    scrub->record.position = (struct cg_scrub_position){group, chunk_id, block};
    scrub->moved = true;
}

static void pass_over(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    cg_scrub_complete(&scrub->record, cg_wall_us() / 1000000U);
    scrub->moved = true;
    scrub->saved_ns = 0; // save it at once
    scrub->listed = false;
    cg_log(CG_LOG_INFO,
           "scrub: a pass is complete, %" PRIu64 " blocks checked, %" PRIu64
           " written meanwhile, %" PRIu64 " newly found bad, %" PRIu32 " bad in all",
           scrub->record.checked, scrub->record.skipped, scrub->record.found, store->bad.count);
    look_in(store, 0);
}

static void choose_next(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    struct cg_scrub_position *position = &scrub->record.position;
    if (scrub->listed && scrub->id_at == scrub->id_count) {
        scrub->listed = false;
        if (!scrub->list_cut) {
            set_position(scrub, position->group + 1, 0, 0);
        }
    }
    struct cg_copyset *copyset = copyset_from(store, position->group);
    if (copyset == NULL) {
        pass_over(store);
        return;
    }
    if (copyset->group != position->group) {
        set_position(scrub, copyset->group, 0, 0);
        scrub->listed = false;
    }
    if (!scrub->listed) {
        start_list(store, copyset);
        return;
    }
    uint64_t id = scrub->ids[scrub->id_at++];
    uint32_t first = id == position->chunk_id ? position->block : 0;
    set_position(scrub, copyset->group, id, first);
    scrub->target = (struct cg_scrub_target){
        .set = true,
        .of_pass = true,
        .stage = CG_SCRUB_PROBE,
        .copyset = copyset,
        .chunk_id = id,
        .first = first,
        .end = store->format.chunk_size / CG_BLOCK_SIZE,
    };
    look_in(store, 0);
}

// A block that is known to be bad, to be looked at again: it may have been mended, or the table may
// be older than the disk.
static bool choose_known(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    struct cg_bad_block *bad;
    while ((bad = cg_bad_blocks_unseen(&store->bad, scrub->round)) != NULL) {
        struct cg_copyset *copyset = cg_copyset_of_group(store, bad->group);
        bool is_slot = CG_IS_BAD_SLOT(bad->block);
        uint32_t end = store->format.chunk_size / CG_BLOCK_SIZE;
        if (copyset == NULL || (!is_slot && bad->block >= end)) {
            cg_bad_blocks_clear(&store->bad, bad->group, bad->chunk_id, bad->block, 1);
            continue;
        }
        scrub->target = (struct cg_scrub_target){
            .set = true,
            .stage = CG_SCRUB_PROBE,
            .copyset = copyset,
            .chunk_id = bad->chunk_id,
            .first = is_slot ? 0 : bad->block,
            .end = is_slot ? 0 : bad->block + 1,
        };
        return true;
    }
    return false;
}

static void target_done(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    struct cg_scrub_target *target = &scrub->target;
    struct cg_chunk *chunk = cg_chunk_find(target->copyset, target->chunk_id);
    if (target->brought && chunk != NULL && chunk->state == CG_CHUNK_READY && chunk->refs == 0 &&
        !cg_list_linked(&chunk->dirty)) {
        cg_chunk_cool(chunk);
    }
    target->set = false;
    if (target->of_pass && scrub->record.running) {
        set_position(scrub, target->copyset->group, target->chunk_id + 1, 0);
    }
    look_in(store, 0);
}

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
        target_done(store);
        return;
    }
    look_in(store, SHORT_POLL_NS);
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
    look_in(store, 0);
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
    target_done(store);
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
    if (is_short(op->result)) {
        try_again(store);
        return;
    }
    scrub->target.stage = CG_SCRUB_LOAD;
    look_in(store, 0);
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
        look_in(store, 0);
        return NULL;
    }
    if (!chunk->exists) {
        target_done(store);
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
    if (is_short(op->result)) {
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
        set_position(scrub, target->copyset->group, target->chunk_id, target->first);
    }
    look_in(store, 0);
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
        target_done(store);
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
            set_position(scrub, target->copyset->group, target->chunk_id, target->first);
        }
    }
    look_in(store, 0);
}

static void suspect_read(struct cg_file_op *op) {
    struct cg_store *store = read_over(op);
    struct cg_scrub *scrub = &store->scrub;
    struct cg_chunk *chunk = scrub->chunk;
    uint32_t block = scrub->read.first;
    scrub->chunk = NULL;
    bool is_bad = !is_short(op->result) && (op->result != 0 || scrub->read.bad != 0);
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
    if (is_short(op->result)) {
        look_in(store, SHORT_POLL_NS);
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
        look_in(store, LOCK_POLL_NS);
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

// ---- Going on

static void go_on(struct cg_store *store) {
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

static void settle_first(struct cg_store *store) {
    store->scrub.settle = 2;
    store->scrub.settle_until_ns = cg_reactor_now(store->reactor) + SETTLE_LIMIT_NS;
}

static void begin(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    cg_scrub_begin(&scrub->record, cg_wall_us() / 1000000U);
    scrub->moved = true;
    scrub->listed = false;
    scrub->round++;
    settle_first(store);
    cg_log(CG_LOG_INFO, "scrub: a pass begins");
    look_in(store, 0);
}

// Before a pass, and before one goes on after a restart, what was written so far goes to the
// medium, so that it can be compared. True while that is under way. A checkpoint that was running
// already may have missed something: after it comes another one.
static bool settling(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    if (cg_reactor_now(store->reactor) >= scrub->settle_until_ns) {
        scrub->settle = 0;
    }
    if (scrub->settle > 0 && !cg_store_checkpointing(store)) {
        scrub->settle--;
        if (scrub->settle > 0) {
            cg_store_checkpoint(store);
        }
    }
    if (scrub->settle > 0) {
        look_in(store, SETTLE_POLL_NS);
    }
    return scrub->settle > 0;
}

// Requests that wait for the disk. Those that the page cache serves are over by the time anyone
// could look.
static bool is_busy(const struct cg_store *store) {
    return store->reads_active > 0 ||
           store->ops_active > store->ops_parked + store->stalled_count ||
           cg_store_checkpointing(store);
}

static void look(struct cg_timer *timer) {
    struct cg_scrub *scrub = CG_CONTAINER_OF(timer, struct cg_scrub, timer);
    struct cg_store *store = CG_CONTAINER_OF(scrub, struct cg_store, scrub);
    if (scrub->active || scrub->stopped || store->disk_error != 0) {
        return;
    }
    if (save_now(store)) {
        save(store);
        return;
    }
    struct cg_scrub_view view = {
        .now_ns = cg_reactor_now(store->reactor),
        .wall_s = cg_wall_us() / 1000000U,
        .busy = is_busy(store),
    };
    bool known = scrub->pace.rate != 0 && (scrub->target.set || choose_known(store));
    uint64_t wait = known ? cg_scrub_pause(&scrub->pace, &view) : 0;
    if (known) {
        if (wait > 0) {
            look_in(store, wait);
        } else {
            go_on(store);
        }
        return;
    }
    struct cg_scrub_decision decision = cg_scrub_decide(&scrub->record, &scrub->pace, &view);
    switch (decision.step) {
    case CG_SCRUB_REST:
        look_in(store, decision.wait_ns);
        break;
    case CG_SCRUB_BEGIN:
        begin(store);
        break;
    case CG_SCRUB_CHECK:
        if (!settling(store)) {
            choose_next(store);
        }
        break;
    }
}

int cg_store_scrub(struct cg_store *store, uint64_t request) {
    struct cg_scrub *scrub = &store->scrub;
    if (scrub->pace.rate == 0 || scrub->stopped) {
        return -ENOTSUP;
    }
    cg_scrub_ask(&scrub->record, request);
    scrub->moved = true;
    if (!scrub->active) {
        if (!scrub->record.running) {
            scrub->target.set = false;
        }
        look_in(store, 0);
    }
    return 0;
}

void cg_store_scrub_stop(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    if (scrub->stopped) {
        return;
    }
    scrub->stopped = true;
    cg_timer_disarm(&scrub->timer);
    if (!scrub->active && unsaved(store) && store->disk_error == 0) {
        save(store);
    }
}

int cg_scrub_create(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    scrub->timer.fire = look;
    scrub->round = 1;
    scrub->pace.rate = store->options.scrub_rate;
    scrub->pace.period_s = store->options.scrub_period_s;
    scrub->read.disk = store->disk;
    scrub->file = malloc(CG_SCRUB_FILE_MAX);
    scrub->read.data = aligned_alloc(CG_BLOCK_SIZE, CG_SCRUB_PIECE_BLOCKS * CG_BLOCK_SIZE);
    if (scrub->file == NULL || scrub->read.data == NULL) {
        return -ENOMEM;
    }
    load_file(store);
    return 0;
}

void cg_scrub_start(struct cg_store *store) {
    struct cg_scrub *scrub = &store->scrub;
    scrub->saved_change = 0; // replay may have mended what was loaded
    settle_first(store);
    look_in(store, 0);
}

void cg_scrub_destroy(struct cg_store *store) {
    cg_timer_disarm(&store->scrub.timer);
    free(store->scrub.file);
    free(store->scrub.read.data);
}
