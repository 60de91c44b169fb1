// SPDX-License-Identifier: BSD-3-Clause
//
// A checkpoint makes what was applied durable in the chunk files, so that the log before it is not
// needed any more: (1) capture each copyset's replicated state once all that was proposed when the
// checkpoint began is committed, and wait until it is applied; (2) write the metadata of the dirty
// chunks and sync them; (3) sync folders with new or deleted files; (4) write the checkpoint file;
// (5) only then recycle the log. Every sync is waited for; one that fails retires the disk.
//
// Chunk metadata may be ahead of the captured state. That does no harm: replay repeats the entries
// after it in order, and each of them writes whole blocks whatever was there before.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "chunkserver/bytes.h"
#include "chunkserver/store_internal.h"

#define FILE_HEAD    12U // u64 lsn, u32 copysets
#define COPYSET_HEAD 28U // u64 group, u64 index, u64 term, u32 length of dedup window and epochs

int cg_checkpoint_create(struct cg_store *store) {
    struct cg_checkpoint *checkpoint = &store->checkpoint;
    cg_list_init(&checkpoint->chunks);
    for (unsigned i = 0; i < CG_FLUSHES; i++) {
        struct cg_flush *flush = &checkpoint->flush[i];
        flush->store = store;
        flush->data = aligned_alloc(CG_BLOCK_SIZE, CG_CHUNK_SLOT_SIZE);
        if (flush->data == NULL) {
            return -ENOMEM;
        }
    }
    return 0;
}

void cg_checkpoint_destroy(struct cg_store *store) {
    for (unsigned i = 0; i < CG_FLUSHES; i++) {
        free(store->checkpoint.flush[i].data);
    }
    free(store->checkpoint.data);
    free(store->checkpoint.folders);
}

bool cg_store_checkpointing(const struct cg_store *store) {
    return store->checkpoint.stage != CG_CHECKPOINT_NONE;
}

bool cg_store_unsaved(const struct cg_store *store) {
    return store->proposals != store->saved_proposals || store->dirty_count > 0;
}

// ---- The end

static void drop_captures(struct cg_store *store) {
    for (uint32_t i = 0; i < store->copyset_count; i++) {
        free(store->copysets[i]->captured);
        store->copysets[i]->captured = NULL;
    }
}

// Whatever happened: what was to be flushed and was not is dirty again.
static void end(struct cg_store *store) {
    struct cg_checkpoint *checkpoint = &store->checkpoint;
    drop_captures(store);
    cg_list_splice_back(&store->dirty, &checkpoint->chunks);
    free(checkpoint->data);
    free(checkpoint->folders);
    checkpoint->data = NULL;
    checkpoint->folders = NULL;
    checkpoint->stage = CG_CHECKPOINT_NONE;
    store->last_checkpoint_ns = cg_reactor_now(store->reactor);
}

void cg_checkpoint_cancel(struct cg_store *store) {
    if (store->checkpoint.stage == CG_CHECKPOINT_CAPTURE) {
        end(store);
    }
}

// Gives up for now; the next try is up to the timer.
static void abandon(struct cg_store *store, const char *why) {
    cg_log(CG_LOG_WARNING, "the checkpoint is put off: %s", why);
    for (uint32_t i = 0; i < store->checkpoint.copysets; i++) {
        store->copysets[i]->folder_dirty = true; // may have been cleared for this checkpoint
    }
    end(store);
}

// ---- Capturing

static bool capture(struct cg_copyset *copyset) {
    size_t size = cg_dedup_size(&copyset->dedup) + cg_epoch_table_size(&copyset->epochs);
    copyset->captured = malloc(size);
    if (copyset->captured == NULL) {
        return false;
    }
    size_t length = cg_dedup_encode(&copyset->dedup, copyset->captured);
    length += cg_epoch_table_encode(&copyset->epochs, copyset->captured + length);
    copyset->captured_length = length;
    copyset->captured_index = copyset->replica.committed_index;
    copyset->captured_term = copyset->replica.committed_term;
    return true;
}

void cg_checkpoint_committed(struct cg_copyset *copyset) {
    struct cg_store *store = copyset->store;
    if (store->replaying || store->disk_error != 0) {
        return;
    }
    if (store->checkpoint.stage == CG_CHECKPOINT_NONE) {
        if (cg_wal_used(store->wal) > cg_wal_capacity(store->wal) / 2 ||
            store->dirty_count > store->options.chunks_max / 2) {
            cg_store_checkpoint(store);
        }
        return;
    }
    if (store->checkpoint.stage == CG_CHECKPOINT_CAPTURE && copyset->captured == NULL &&
        copyset->replica.committed_index >= copyset->capture_at) {
        if (!capture(copyset)) {
            abandon(store, "out of memory");
            return;
        }
        cg_checkpoint_advance(store);
    }
}

void cg_store_checkpoint(struct cg_store *store) {
    struct cg_checkpoint *checkpoint = &store->checkpoint;
    if (store->replaying || store->disk_error != 0 || cg_store_checkpointing(store) ||
        !cg_store_unsaved(store)) {
        return;
    }
    checkpoint->stage = CG_CHECKPOINT_CAPTURE;
    checkpoint->abandoned = false;
    checkpoint->lsn = cg_wal_tail(store->wal);
    checkpoint->records = store->proposals;
    checkpoint->copysets = store->copyset_count;
    checkpoint->settled = 0;
    for (uint32_t i = 0; i < store->copyset_count; i++) {
        struct cg_copyset *copyset = store->copysets[i];
        copyset->capture_at = copyset->replica.last_index;
        if (copyset->replica.committed_index >= copyset->capture_at && !capture(copyset)) {
            abandon(store, "out of memory");
            return;
        }
    }
    cg_checkpoint_advance(store);
}

// ---- Flushing one chunk

static void flush_end(struct cg_flush *flush, bool saved) {
    struct cg_store *store = flush->store;
    struct cg_chunk *chunk = flush->chunk;
    chunk->flushing = false;
    if (!saved && store->disk_error == 0) {
        store->checkpoint.abandoned = true;
        if (chunk->exists) {
            cg_chunk_mark_dirty(chunk);
        }
    }
    cg_chunk_file_unref(store, flush->file);
    flush->chunk = NULL;
    store->checkpoint.flushing--;
    cg_chunk_put(chunk);
    cg_checkpoint_advance(store);
}

static void flush_synced(struct cg_file_op *op) {
    struct cg_flush *flush = CG_CONTAINER_OF(op, struct cg_flush, op);
    struct cg_chunk *chunk = flush->chunk;
    if (op->result < 0) {
        // The kernel may have dropped the dirty pages: trying again would prove nothing.
        cg_store_retire(flush->store, (int)-op->result, "syncing a chunk");
    } else if (chunk->generation == flush->generation) {
        chunk->newest = flush->slot;
        chunk->sequence++;
        chunk->unsure = false;
        chunk->unsynced = 0;
        memset(chunk->syncing_blocks, 0, sizeof(chunk->syncing_blocks));
        cg_damage_mended(chunk, CG_BAD_SLOT(flush->slot), 1);
    }
    flush_end(flush, op->result >= 0);
}

static void flush_write(struct cg_flush *flush);

// The newest slot that we found may be in the page cache alone: a predecessor that was killed wrote
// it and had no time to sync it. It has to be durable before the other one, which may be the only
// whole one on the medium, is written over.
static void flush_sure(struct cg_file_op *op) {
    struct cg_flush *flush = CG_CONTAINER_OF(op, struct cg_flush, op);
    if (op->result < 0) {
        cg_store_retire(flush->store, (int)-op->result, "syncing a chunk");
        flush_end(flush, false);
        return;
    }
    flush->sure = true;
    flush_write(flush);
}

static void flush_written(struct cg_file_op *op) {
    struct cg_flush *flush = CG_CONTAINER_OF(op, struct cg_flush, op);
    if (op->result < 0 && op->result != -EINTR && op->result != -EAGAIN) {
        bool full = op->result == -ENOSPC || op->result == -EDQUOT;
        if (full && cg_store_make_room(flush->store)) {
            flush_write(flush);
            return;
        }
        if (!full) {
            cg_store_retire(flush->store, (int)-op->result, "writing a chunk's metadata");
        }
        flush_end(flush, false);
        return;
    }
    flush->written += op->result > 0 ? (uint32_t)op->result : 0;
    flush_write(flush);
}

// What is in the file by now will be on the medium when the sync is through.
static void begin_sync(struct cg_chunk *chunk) {
    for (unsigned i = 0; i < CG_BLOCKMAP_BYTES; i++) {
        chunk->syncing_blocks[i] |= chunk->unsynced_blocks[i];
    }
    memset(chunk->unsynced_blocks, 0, sizeof(chunk->unsynced_blocks));
}

static void flush_write(struct cg_flush *flush) {
    struct cg_store *store = flush->store;
    flush->op = (struct cg_file_op){.fd = flush->file->handle};
    if (!flush->sure) {
        flush->op.opcode = CG_FILE_FDATASYNC;
        flush->op.done = flush_sure;
    } else if (flush->written == CG_CHUNK_SLOT_SIZE) {
        flush->op.opcode = CG_FILE_FDATASYNC;
        flush->op.done = flush_synced;
        if (flush->chunk->generation == flush->generation) {
            begin_sync(flush->chunk);
        }
    } else {
        flush->iov =
            (struct iovec){flush->data + flush->written, CG_CHUNK_SLOT_SIZE - flush->written};
        flush->op.opcode = CG_FILE_WRITE_BUFFERED;
        flush->op.iov = &flush->iov;
        flush->op.iovcnt = 1;
        flush->op.offset = flush->slot * CG_CHUNK_SLOT_STRIDE + flush->written;
        flush->op.done = flush_written;
    }
    store->disk->ops->submit(store->disk, &flush->op);
}

// Takes `chunk` off the dirty list. False if it cannot be opened now.
static bool flush_start(struct cg_flush *flush, struct cg_chunk *chunk) {
    struct cg_store *store = flush->store;
    int result = cg_chunk_open(chunk, false);
    if (result != 0) {
        if (result != -EMFILE && result != -ENFILE && result != -ENOMEM) {
            cg_store_retire(store, -result, "opening a chunk");
        }
        return false;
    }
    cg_list_remove(&chunk->dirty);
    store->dirty_count--;
    chunk->refs++;
    chunk->flushing = true;
    flush->chunk = chunk;
    flush->file = cg_chunk_file_ref(chunk);
    flush->generation = chunk->generation;
    flush->slot = 1 - chunk->newest;
    flush->sure = !chunk->unsure;
    flush->written = 0;
    struct cg_chunk_header header = {
        .sequence = chunk->sequence + 1,
        .group = chunk->copyset->group,
        .chunk_id = chunk->id,
        .file_id = chunk->file_id,
        .sn = chunk->sn,
        .applied_index = chunk->applied_index,
        .chunk_size = store->format.chunk_size,
    };
    cg_chunk_slot_encode(&header, chunk->slot->allocated, chunk->slot->crc, flush->data);
    store->checkpoint.flushing++;
    flush_write(flush);
    return true;
}

int cg_checkpoint_flush_now(struct cg_chunk *chunk) {
    struct cg_store *store = chunk->copyset->store;
    struct cg_flush *flush = &store->checkpoint.flush[0];
    if (!flush_start(flush, chunk)) {
        return -EIO;
    }
    while (flush->chunk != NULL) {
        int result = cg_reactor_wait(store->reactor, UINT64_MAX);
        if (result < 0) {
            cg_store_retire(store, -result, "waiting for the disk");
            return result;
        }
    }
    return store->disk_error != 0 || cg_list_linked(&chunk->dirty) ? -EIO : 0;
}

// ---- Folders and the file

static int collect_folders(struct cg_store *store) {
    struct cg_checkpoint *checkpoint = &store->checkpoint;
    checkpoint->folder_count = 0;
    checkpoint->folders = calloc(checkpoint->copysets + 1, sizeof(*checkpoint->folders));
    if (checkpoint->folders == NULL) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < checkpoint->copysets; i++) {
        if (store->copysets[i]->folder_dirty) {
            store->copysets[i]->folder_dirty = false;
            cg_copyset_folder(store->copysets[i], checkpoint->folders[checkpoint->folder_count++]);
        }
    }
    return 0;
}

static int build_file(struct cg_store *store) {
    struct cg_checkpoint *checkpoint = &store->checkpoint;
    size_t length = FILE_HEAD;
    for (uint32_t i = 0; i < checkpoint->copysets; i++) {
        length += COPYSET_HEAD + store->copysets[i]->captured_length;
    }
    uint8_t *at = malloc(length);
    if (at == NULL) {
        return -ENOMEM;
    }
    checkpoint->data = at;
    checkpoint->length = length;
    cg_put_u64(at, checkpoint->lsn);
    cg_put_u32(at + 8, checkpoint->copysets);
    at += FILE_HEAD;
    for (uint32_t i = 0; i < checkpoint->copysets; i++) {
        const struct cg_copyset *copyset = store->copysets[i];
        cg_put_u64(at, copyset->group);
        cg_put_u64(at + 8, copyset->captured_index);
        cg_put_u64(at + 16, copyset->captured_term);
        cg_put_u32(at + 24, (uint32_t)copyset->captured_length);
        memcpy(at + COPYSET_HEAD, copyset->captured, copyset->captured_length);
        at += COPYSET_HEAD + copyset->captured_length;
    }
    return 0;
}

// On a pool thread.
static void save_call(struct cg_file_op *op) {
    struct cg_checkpoint *checkpoint = CG_CONTAINER_OF(op, struct cg_checkpoint, op);
    struct cg_store *store = CG_CONTAINER_OF(checkpoint, struct cg_store, checkpoint);
    op->result = 0;
    for (uint32_t i = 0; i < checkpoint->folder_count && op->result == 0; i++) {
        op->result = store->disk->ops->sync_directory(store->disk, checkpoint->folders[i]);
    }
    if (op->result == 0) {
        op->result = cg_checkpoint_save(store->disk, checkpoint->data, checkpoint->length);
    }
}

static void save_done(struct cg_file_op *op) {
    struct cg_checkpoint *checkpoint = CG_CONTAINER_OF(op, struct cg_checkpoint, op);
    struct cg_store *store = CG_CONTAINER_OF(checkpoint, struct cg_store, checkpoint);
    bool full = op->result == -ENOSPC || op->result == -EDQUOT;
    if (full && cg_store_make_room(store)) {
        store->disk->ops->submit(store->disk, op);
        return;
    }
    if (full || op->result == -ENOMEM) {
        abandon(store, strerror((int)-op->result));
        return;
    }
    if (op->result < 0) {
        cg_store_retire(store, (int)-op->result, "writing the checkpoint");
        end(store);
        return;
    }
    cg_wal_recycle(store->wal, checkpoint->lsn);
    store->saved_proposals = checkpoint->records;
    store->checkpoints++;
    end(store);
}

static void save(struct cg_store *store) {
    struct cg_checkpoint *checkpoint = &store->checkpoint;
    if (build_file(store) != 0) {
        abandon(store, "out of memory");
        return;
    }
    checkpoint->stage = CG_CHECKPOINT_FOLDERS;
    checkpoint->op =
        (struct cg_file_op){.opcode = CG_FILE_CALL, .call = save_call, .done = save_done};
    store->disk->ops->submit(store->disk, &checkpoint->op);
}

// ---- Going on

static bool settled(struct cg_store *store) {
    struct cg_checkpoint *checkpoint = &store->checkpoint;
    while (checkpoint->settled < checkpoint->copysets) {
        const struct cg_copyset *copyset = store->copysets[checkpoint->settled];
        if (copyset->captured == NULL || copyset->applied_index < copyset->captured_index) {
            return false;
        }
        checkpoint->settled++;
    }
    return true;
}

static void flush_next(struct cg_store *store) {
    struct cg_checkpoint *checkpoint = &store->checkpoint;
    for (unsigned i = 0; i < CG_FLUSHES; i++) {
        if (checkpoint->flush[i].chunk != NULL) {
            continue;
        }
        if (cg_list_empty(&checkpoint->chunks) || checkpoint->abandoned || store->disk_error != 0) {
            return;
        }
        struct cg_chunk *chunk = CG_CONTAINER_OF(checkpoint->chunks.next, struct cg_chunk, dirty);
        if (!flush_start(&checkpoint->flush[i], chunk)) {
            checkpoint->abandoned = true;
        }
    }
}

void cg_checkpoint_advance(struct cg_store *store) {
    struct cg_checkpoint *checkpoint = &store->checkpoint;
    if (checkpoint->advancing) {
        return;
    }
    checkpoint->advancing = true;
    if (checkpoint->stage == CG_CHECKPOINT_CAPTURE && settled(store)) {
        if (collect_folders(store) != 0) {
            abandon(store, "out of memory");
        } else {
            cg_list_splice_back(&checkpoint->chunks, &store->dirty);
            checkpoint->stage = CG_CHECKPOINT_FLUSH;
        }
    }
    if (checkpoint->stage == CG_CHECKPOINT_FLUSH) {
        flush_next(store);
        if (checkpoint->flushing == 0) {
            if (store->disk_error != 0) {
                end(store);
            } else if (checkpoint->abandoned) {
                abandon(store, "a chunk cannot be saved now");
            } else {
                save(store);
            }
        }
    }
    checkpoint->advancing = false;
}

// ---- Restoring

static int restore_copyset(struct cg_store *store, const uint8_t *in, size_t length, size_t *used) {
    if (length < COPYSET_HEAD || length - COPYSET_HEAD < cg_get_u32(in + 24)) {
        return -EBADMSG;
    }
    struct cg_copyset *copyset = cg_copyset_of_group(store, cg_get_u64(in));
    if (copyset == NULL) {
        return -ENOENT;
    }
    const uint8_t *state = in + COPYSET_HEAD;
    size_t state_length = cg_get_u32(in + 24);
    int64_t dedup = cg_dedup_decode(&copyset->dedup, state, state_length);
    if (dedup < 0) {
        return (int)dedup;
    }
    int64_t epochs =
        cg_epoch_table_decode(&copyset->epochs, state + dedup, state_length - (size_t)dedup);
    if (epochs < 0) {
        return (int)epochs;
    }
    if ((size_t)(dedup + epochs) != state_length) {
        return -EBADMSG;
    }
    copyset->applied_index = cg_get_u64(in + 8);
    cg_replica_init(&copyset->replica, copyset->group, cg_get_u64(in + 16), copyset->applied_index);
    *used = COPYSET_HEAD + state_length;
    return 0;
}

static int restore(struct cg_store *store, const uint8_t *data, size_t length, uint64_t *lsn) {
    if (length < FILE_HEAD) {
        return -EBADMSG;
    }
    *lsn = cg_get_u64(data);
    uint32_t copysets = cg_get_u32(data + 8);
    size_t at = FILE_HEAD;
    for (uint32_t i = 0; i < copysets; i++) {
        size_t used = 0;
        int result = restore_copyset(store, data + at, length - at, &used);
        if (result != 0) {
            return result;
        }
        at += used;
    }
    return at == length ? 0 : -EBADMSG;
}

int cg_checkpoint_restore(struct cg_store *store, uint64_t *lsn, char *error, size_t error_size) {
    uint8_t *data = NULL;
    size_t length = 0;
    *lsn = 0;
    int result = cg_checkpoint_load(store->disk, &data, &length);
    if (result == 0 && data != NULL) {
        result = restore(store, data, length, lsn);
        free(data);
    }
    if (result == -ENOENT) {
        snprintf(error, error_size, "the folder of a copyset that the checkpoint knows is gone");
        return -EBADMSG;
    }
    if (result != 0) {
        snprintf(error, error_size, "cannot use the checkpoint: %s",
                 result == -EBADMSG ? "it is damaged" : strerror(-result));
    }
    return result;
}
