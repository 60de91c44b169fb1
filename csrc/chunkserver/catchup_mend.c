// SPDX-License-Identifier: BSD-3-Clause
//
// Damage, mended from another member. Without the log: a block's checksum in our metadata says what
// has to be there, so that a member which has applied at least as much and has a block with that
// checksum has the right one. The block is locked meanwhile. Of a member that is ahead of us the
// block may differ: then the entry that changed it is on its way to us and mends it.
//
// A metadata slot that is bad while the chunk is in memory is written anew by checkpoints. If the
// chunk cannot be loaded any more it is copied whole. As in any copy its blocks may be ahead of
// what is applied here: what is missing in between is applied to them again (catchup.h).
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/log.h"
#include "chunkserver/catchup_internal.h"

#define MENDERS_MAX 4U
#define LOCK_NS     (5 * CG_NS_PER_MS)
#define AGAIN_NS    (50 * CG_NS_PER_MS) // before the members are asked once more
#define LIMIT_NS    (3 * CG_NS_PER_S)   // from the beginning; then it is left to the next try

static void fetch(struct cg_mender *mender);
static void look(struct cg_mender *mender);
static void mend_next(struct cg_catchup *catchup, struct cg_mend *mend);

static struct cg_store *store_of(const struct cg_mender *mender) {
    return mender->catchup->store;
}

static uint64_t now_of(const struct cg_mender *mender) {
    return cg_reactor_now(store_of(mender)->reactor);
}

// ---- The end

static void free_mender(struct cg_mender *mender) {
    struct cg_catchup *catchup = mender->catchup;
    cg_list_remove(&mender->node);
    catchup->mender_count--;
    if (mender->pull != NULL) {
        cg_chunk_pull_free(mender->pull);
        free(mender->pull);
    }
    struct cg_list waiting;
    cg_list_init(&waiting);
    cg_list_splice_back(&waiting, &mender->waiting);
    int status = mender->status;
    free(mender);
    struct cg_list *node;
    while ((node = cg_list_pop_front(&waiting)) != NULL) {
        struct cg_mend *mend = CG_CONTAINER_OF(node, struct cg_mend, node);
        if (status == 0 && !mend->metadata) {
            mend_next(catchup, mend); // there may be more
        } else {
            mend->done(mend, status);
        }
    }
    cg_catchup_ended(catchup);
}

static void end(struct cg_mender *mender, int status) {
    struct cg_chunk *chunk = mender->chunk;
    mender->status = status;
    cg_timer_disarm(&mender->timer);
    cg_buffer_unref(mender->buffer);
    mender->buffer = NULL;
    if (chunk != NULL) {
        mender->chunk = NULL;
        if (mender->locked) {
            cg_blockmap_clear(chunk->busy, mender->block, 1);
            cg_ops_pump(chunk);
        }
        cg_chunk_put(chunk);
    }
    if (mender->held != NULL) {
        cg_chunk_release(mender->held);
        mender->held = NULL;
    }
    free_mender(mender);
}

static bool out_of_time(const struct cg_mender *mender) {
    return mender->forgotten || mender->catchup->stopped || store_of(mender)->disk_error != 0 ||
           now_of(mender) - mender->began_ns > LIMIT_NS;
}

static void look_in(struct cg_mender *mender, uint64_t wait_ns) {
    if (out_of_time(mender) ||
        cg_timer_arm(store_of(mender)->reactor, &mender->timer, now_of(mender) + wait_ns) != 0) {
        end(mender, -EAGAIN);
    }
}

// ---- Writing a block

static void write_done(struct cg_file_op *op) {
    struct cg_mender *mender = CG_CONTAINER_OF(op, struct cg_mender, op);
    struct cg_store *store = store_of(mender);
    struct cg_chunk *chunk = mender->chunk;
    bool full = op->result == -ENOSPC || op->result == -EDQUOT;
    cg_chunk_file_unref(store, mender->file);
    mender->file = NULL;
    if (op->result < 0 && !full && op->result != -EINTR && op->result != -EAGAIN) {
        cg_store_retire(store, (int)-op->result, "mending a block");
    }
    chunk->changes++;
    cg_blockmap_clear(chunk->applying, mender->block, 1);
    chunk->applying_count--;
    bool whole = op->result == (int64_t)CG_BLOCK_SIZE;
    if (whole) {
        // A checkpoint syncs it. Until then the medium may have the bad one.
        cg_blockmap_set(chunk->unsynced_blocks, mender->block, 1);
        cg_chunk_mark_dirty(chunk);
        cg_damage_mended(chunk, mender->block, 1);
        mender->catchup->stats.mended_blocks++;
        cg_log(CG_LOG_INFO,
               "mended: chunk %" PRIu64 " of copyset %" PRIu32 "-%" PRIu32 ", offset %" PRIu32
               ", from member %" PRIu64,
               chunk->id, mender->copyset->pool, mender->copyset->id, mender->block * CG_BLOCK_SIZE,
               mender->members.member[mender->member_at].id);
    }
    cg_local_slot_end(chunk->slot, &chunk->slot_pending);
    cg_reads_pump(chunk);
    end(mender, whole ? 0 : -EAGAIN);
}

static void write_block(struct cg_mender *mender) {
    struct cg_store *store = store_of(mender);
    struct cg_chunk *chunk = mender->chunk;
    if (cg_chunk_open(chunk, false) != 0) {
        end(mender, -EAGAIN); // whoever reads it next finds out more
        return;
    }
    cg_blockmap_set(chunk->applying, mender->block, 1);
    chunk->applying_count++;
    cg_local_slot_begin(chunk->slot, &chunk->slot_pending);
    mender->file = cg_chunk_file_ref(chunk);
    mender->iov = (struct iovec){mender->buffer->data, CG_BLOCK_SIZE};
    mender->op = (struct cg_file_op){
        .opcode = CG_FILE_WRITE_BUFFERED,
        .fd = mender->file->handle,
        .iov = &mender->iov,
        .iovcnt = 1,
        .offset = CG_CHUNK_DATA_OFFSET + (uint64_t)mender->block * CG_BLOCK_SIZE,
        .done = write_done,
    };
    store->disk->ops->submit(store->disk, &mender->op);
}

// ---- Fetching

static void next_member(struct cg_mender *mender) {
    mender->member_at++;
    if (mender->member_at < mender->members.count) {
        fetch(mender);
    } else {
        mender->member_at = 0;
        look_in(mender, AGAIN_NS);
    }
}

// Is what came the block that has to be here?
static bool right_block(const struct cg_mender *mender) {
    const struct cg_copy_call *call = &mender->call;
    struct cg_copy_head head;
    uint32_t size = cg_copy_head_size(1);
    return call->status == 0 && call->reply.status == CG_COPY(OK) &&
           call->received == size + CG_BLOCK_SIZE &&
           cg_copy_head_decode(mender->head, 1, &head) == 0 && head.mask == 1 &&
           head.crc[0] == mender->chunk->slot->crc[mender->block] &&
           cg_crc32c(0, mender->buffer->data, CG_BLOCK_SIZE) == head.crc[0];
}

static void block_came(struct cg_copy_call *call) {
    struct cg_mender *mender = CG_CONTAINER_OF(call, struct cg_mender, call);
    if (out_of_time(mender)) {
        end(mender, -EAGAIN);
    } else if (right_block(mender)) {
        write_block(mender);
    } else {
        next_member(mender);
    }
}

static void pulled(struct cg_chunk_pull *pull, int status);

static void pull_chunk(struct cg_mender *mender, const struct cg_copy_chunk *info) {
    if (mender->pull == NULL) {
        mender->pull = malloc(sizeof(*mender->pull));
        if (mender->pull == NULL || cg_chunk_pull_init(mender->pull, mender->catchup) != 0) {
            free(mender->pull);
            mender->pull = NULL;
            end(mender, -ENOMEM);
            return;
        }
    }
    struct cg_chunk_pull *pull = mender->pull;
    pull->copyset = mender->copyset;
    pull->source = mender->members.member[mender->member_at].id;
    pull->min_index = mender->index;
    pull->urgency = CG_COPY_KEEPS_RATE; // to whom should it yield? Clients wait for this chunk
    pull->info = *info;
    pull->done = pulled;
    pull->user = mender;
    cg_chunk_pull_start(pull);
}

static void settle_call(struct cg_file_op *op) {
    struct cg_mender *mender = CG_CONTAINER_OF(op, struct cg_mender, op);
    struct cg_disk *disk = store_of(mender)->disk;
    char path[CG_CHUNK_PATH_MAX];
    op->result = 0;
    if (mender->gone) {
        cg_chunk_path(mender->copyset, mender->chunk_id, path);
        op->result = disk->ops->unlink(disk, path);
        op->result = op->result == -ENOENT ? 0 : op->result;
    }
    if (op->result == 0) {
        cg_copyset_folder(mender->copyset, path);
        op->result = disk->ops->sync_directory(disk, path);
    }
}

static void settled(struct cg_file_op *op) {
    struct cg_mender *mender = CG_CONTAINER_OF(op, struct cg_mender, op);
    if (op->result != 0) {
        cg_store_retire(store_of(mender), (int)-op->result, "syncing a copyset's folder");
        end(mender, -EIO);
        return;
    }
    cg_damage_chunk_gone(mender->copyset, mender->chunk_id); // the damaged one
    mender->catchup->stats.mended_chunks++;
    cg_log(CG_LOG_INFO,
           "mended: chunk %" PRIu64 " of copyset %" PRIu32 "-%" PRIu32
           ", its metadata and all blocks, from member %" PRIu64,
           mender->chunk_id, mender->copyset->pool, mender->copyset->id,
           mender->members.member[mender->member_at].id);
    end(mender, 0);
}

// The new file, or that there is none, has to be durable.
static void settle(struct cg_mender *mender) {
    struct cg_disk *disk = store_of(mender)->disk;
    mender->op = (struct cg_file_op){.opcode = CG_FILE_CALL, .call = settle_call, .done = settled};
    disk->ops->submit(disk, &mender->op);
}

static void pulled(struct cg_chunk_pull *pull, int status) {
    struct cg_mender *mender = pull->user;
    if (status == 0) {
        settle(mender);
    } else if (out_of_time(mender) || status == -ENOSPC) {
        end(mender, -EAGAIN);
    } else {
        next_member(mender);
    }
}

static void info_came(struct cg_copy_call *call) {
    struct cg_mender *mender = CG_CONTAINER_OF(call, struct cg_mender, call);
    if (out_of_time(mender)) {
        end(mender, -EAGAIN);
    } else if (call->status == 0 && call->reply.status == CG_COPY(NO_CHUNK)) {
        mender->gone = true;
        settle(mender);
    } else if (call->status == 0 && call->reply.status == CG_COPY(OK) &&
               call->received == CG_COPY_RECORD_SIZE) {
        struct cg_copy_chunk info;
        cg_copy_chunk_decode(mender->record, &info);
        if (info.id == mender->chunk_id) {
            pull_chunk(mender, &info);
        } else {
            next_member(mender);
        }
    } else {
        next_member(mender);
    }
}

// Asks the member whose turn it is.
static void fetch(struct cg_mender *mender) {
    struct cg_copy_call *call = &mender->call;
    call->request = (copygate_CopyRequest){
        .has_chunk_id = true,
        .chunk_id = mender->chunk_id,
        .has_first = true,
        .first = mender->whole ? 0 : mender->block,
        .has_count = true,
        .count = mender->whole ? 0 : 1,
        .has_index = true,
        .index = mender->index,
        .has_urgency = true,
        .urgency = CG_COPY_HURRIES, // somebody may wait for it, and it is one block at most
    };
    if (mender->whole) {
        call->iov[0] = (struct iovec){mender->record, sizeof(mender->record)};
        call->iovcnt = 1;
        call->done = info_came;
    } else {
        call->iov[0] = (struct iovec){mender->head, cg_copy_head_size(1)};
        call->iov[1] = (struct iovec){mender->buffer->data, CG_BLOCK_SIZE};
        call->iovcnt = 2;
        call->done = block_came;
    }
    uint64_t member = mender->members.member[mender->member_at].id;
    cg_copy_ask(mender->catchup, mender->copyset, member, CG_COPY_BLOCKS, call);
}

// ---- The beginning

static void mend_whole(struct cg_mender *mender) {
    mender->held = mender->chunk;
    mender->chunk = NULL;
    cg_chunk_hold(mender->held);
    mender->whole = true;
    mender->index = cg_copyset_delivered(mender->copyset);
    fetch(mender);
}

// The block is locked, so that all entries for it that were delivered are applied.
static void locked(struct cg_mender *mender) {
    struct cg_chunk *chunk = mender->chunk;
    if (!chunk->exists || !cg_blockmap_test(chunk->slot->allocated, mender->block)) {
        cg_damage_mended(chunk, mender->block, 1); // there is nothing any more that could be bad
        end(mender, 0);
        return;
    }
    mender->buffer = cg_buffer_alloc(store_of(mender)->pool, CG_BLOCK_SIZE);
    if (mender->buffer == NULL) {
        end(mender, -EAGAIN);
        return;
    }
    mender->index = cg_copyset_delivered(mender->copyset);
    fetch(mender);
}

// Takes the chunk and the lock.
static void look(struct cg_mender *mender) {
    if (out_of_time(mender)) {
        end(mender, -EAGAIN);
        return;
    }
    if (mender->locked || mender->held != NULL) {
        fetch(mender); // all members once more
        return;
    }
    if (mender->chunk == NULL && mender->copyset->paused) {
        end(mender, -EAGAIN); // its files are being replaced: nothing of it may be in memory
        return;
    }
    if (mender->chunk == NULL) {
        mender->chunk = cg_chunk_get(mender->copyset, mender->chunk_id, false);
    }
    struct cg_chunk *chunk = mender->chunk;
    if (chunk == NULL || chunk->state == CG_CHUNK_LOADING) {
        look_in(mender, LOCK_NS);
        return;
    }
    if (chunk->state == CG_CHUNK_BROKEN) {
        if (chunk->load_status == STATUS(CRC_FAIL)) {
            mend_whole(mender);
        } else {
            end(mender, -EAGAIN);
        }
        return;
    }
    if (CG_IS_BAD_SLOT(mender->block)) {
        if (chunk->exists) {
            cg_chunk_mark_dirty(chunk);
        }
        cg_store_checkpoint(store_of(mender));
        end(mender, 0);
        return;
    }
    if (cg_blockmap_test(chunk->busy, mender->block) ||
        cg_blockmap_test(chunk->applying, mender->block)) {
        look_in(mender, LOCK_NS);
        return;
    }
    cg_blockmap_set(chunk->busy, mender->block, 1);
    mender->locked = true;
    locked(mender);
}

static void timer_fired(struct cg_timer *timer) {
    look(CG_CONTAINER_OF(timer, struct cg_mender, timer));
}

static struct cg_mender *mender_of(const struct cg_catchup *catchup,
                                   const struct cg_copyset *copyset, uint64_t chunk_id,
                                   uint32_t block) {
    CG_LIST_FOREACH (node, &catchup->menders) {
        struct cg_mender *mender = CG_CONTAINER_OF(node, struct cg_mender, node);
        if (mender->copyset == copyset && mender->chunk_id == chunk_id &&
            (mender->block == block || mender->whole)) {
            return mender;
        }
    }
    return NULL;
}

// A new one begins at the next turn of the loop. NULL: there is nobody to mend it from, or memory
// is short.
static struct cg_mender *mender_make(struct cg_catchup *catchup, struct cg_copyset *copyset,
                                     uint64_t chunk_id, uint32_t block) {
    struct cg_raft_config others;
    cg_catchup_others(copyset, &others);
    struct cg_mender *mender = others.count > 0 ? calloc(1, sizeof(*mender)) : NULL;
    if (mender == NULL) {
        return NULL;
    }
    mender->catchup = catchup;
    mender->copyset = copyset;
    mender->chunk_id = chunk_id;
    mender->block = block;
    mender->members = others;
    mender->timer.fire = timer_fired;
    mender->began_ns = cg_reactor_now(catchup->store->reactor);
    cg_list_init(&mender->waiting);
    if (cg_timer_arm(catchup->store->reactor, &mender->timer, mender->began_ns) != 0) {
        free(mender);
        return NULL;
    }
    cg_list_push_back(&catchup->menders, &mender->node);
    catchup->mender_count++;
    return mender;
}

// ---- Those who wait

// The first bad block in the range, or a bad slot of the chunk.
static const struct cg_bad_block *bad_in(const struct cg_store *store, const struct cg_mend *mend) {
    const struct cg_bad_block *found = NULL;
    for (uint32_t i = 0; i < store->bad.count; i++) {
        const struct cg_bad_block *bad = &store->bad.item[i];
        if (bad->group != mend->copyset->group || bad->chunk_id != mend->chunk_id) {
            continue;
        }
        bool in_range = bad->block >= mend->first && bad->block - mend->first < mend->count;
        bool wanted = mend->metadata ? CG_IS_BAD_SLOT(bad->block) : in_range;
        if (wanted && (found == NULL || bad->block < found->block)) {
            found = bad;
        }
    }
    return found;
}

static void mend_next(struct cg_catchup *catchup, struct cg_mend *mend) {
    const struct cg_bad_block *bad = bad_in(catchup->store, mend);
    if (bad == NULL) {
        mend->done(mend, 0); // by now
        return;
    }
    struct cg_mender *mender = mender_of(catchup, mend->copyset, mend->chunk_id, bad->block);
    if (mender == NULL) {
        mender = mender_make(catchup, mend->copyset, mend->chunk_id, bad->block);
    }
    if (mender == NULL) {
        mend->done(mend, -EIO);
        return;
    }
    cg_list_push_back(&mender->waiting, &mend->node);
}

void cg_catchup_mend(struct cg_catchup *catchup, struct cg_mend *mend) {
    assert(catchup->store != NULL);
    // One that is being removed is not found any more.
    if (catchup->stopped ||
        cg_copyset_of_group(catchup->store, mend->copyset->group) != mend->copyset) {
        mend->done(mend, -ECANCELED);
        return;
    }
    mend_next(catchup, mend);
}

// ---- Time

void cg_catchup_damaged(struct cg_catchup *catchup, struct cg_copyset *copyset, uint64_t chunk_id,
                        uint32_t block) {
    (void)copyset;
    (void)chunk_id;
    (void)block;
    if (catchup->store != NULL && !catchup->stopped) {
        // At the next turn of the loop; should memory be short, at the next tick.
        cg_timer_arm(catchup->store->reactor, &catchup->tick,
                     cg_reactor_now(catchup->store->reactor));
    }
}

// Takes some of the known bad blocks; the others have their turn at the next ticks.
void cg_menders_tick(struct cg_catchup *catchup) {
    struct cg_store *store = catchup->store;
    for (uint32_t i = 0; i < store->bad.count && catchup->mender_count < MENDERS_MAX; i++) {
        catchup->mend_at = catchup->mend_at + 1 < store->bad.count ? catchup->mend_at + 1 : 0;
        const struct cg_bad_block *bad = &store->bad.item[catchup->mend_at];
        struct cg_copyset *copyset = cg_copyset_of_group(store, bad->group);
        if (copyset != NULL && !copyset->paused &&
            mender_of(catchup, copyset, bad->chunk_id, bad->block) == NULL) {
            mender_make(catchup, copyset, bad->chunk_id, bad->block);
        }
    }
}

void cg_menders_stop(struct cg_catchup *catchup, const struct cg_copyset *copyset) {
    CG_LIST_FOREACH_SAFE (node, next, &catchup->menders) {
        struct cg_mender *mender = CG_CONTAINER_OF(node, struct cg_mender, node);
        if (copyset != NULL && mender->copyset != copyset) {
            continue;
        }
        mender->forgotten = true;
        if (cg_timer_armed(&mender->timer)) {
            end(mender, -ECANCELED);
        } else if (mender->call.active) {
            cg_copy_cancel(&mender->call);
        } else if (mender->pull != NULL) {
            cg_chunk_pull_cancel(mender->pull);
        }
    }
}
