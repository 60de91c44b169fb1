// SPDX-License-Identifier: BSD-3-Clause
//
// A checkpoint makes what was applied durable in the chunk files, so that the log before it is not
// needed any more: (1) capture each copyset's replicated state as of what has been delivered, and
// wait until that is applied; (2) write the metadata of the dirty chunks and sync them; (3) sync
// folders with new or deleted files; (4) write the checkpoint file; (5) only then recycle the log,
// but for what no replica has committed yet and what slow ones may ask for. Every sync is waited
// for; one that fails retires the disk.
//
// Chunk metadata may be ahead of the captured state. That does no harm: the entries after it are
// applied again in order, and each of them writes whole blocks whatever was there before.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "chunkserver/bytes.h"
#include "chunkserver/copyset_log_record.h"
#include "chunkserver/store_internal.h"

#define FILE_HEAD 12U // u64 lsn, u32 copysets

// u64 group, u64 index, u64 its term, u64 term, u64 vote, u64 member id (0: of an earlier version),
// u32 length of the members, u32 length of windows and epochs; then these.
#define COPYSET_HEAD 56U

// Version 1: u64 group, u64 index, u64 its term, u32 length of windows and epochs.
#define COPYSET_HEAD_1 28U

// How much has to have been logged since the last one before a log that is half full is reason
// enough for the next: what slow replicas need of it does not go away by a checkpoint.
#define PART_OF_LOG 8U

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
    free(store->checkpoint.copied);
}

bool cg_store_checkpointing(const struct cg_store *store) {
    return store->checkpoint.stage != CG_CHECKPOINT_NONE;
}

static bool much_logged(const struct cg_store *store) {
    return cg_wal_tail(store->wal) - store->saved_tail > cg_wal_capacity(store->wal) / PART_OF_LOG;
}

bool cg_store_unsaved(const struct cg_store *store) {
    return store->delivered != store->saved_delivered || store->dirty_count > 0 ||
           much_logged(store);
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
    free(checkpoint->copied);
    checkpoint->data = NULL;
    checkpoint->folders = NULL;
    checkpoint->copied = NULL;
    checkpoint->stage = CG_CHECKPOINT_NONE;
    store->last_checkpoint_ns = cg_reactor_now(store->reactor);
    cg_deliver_unblock(store); // chunks may leave memory now
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
    if (copyset->incomplete) {
        cg_copyset_capture_incomplete(copyset, &copyset->captured_log);
    } else if (copyset->log != NULL) {
        cg_copyset_log_capture(copyset->log, copyset->delivered_index, &copyset->captured_log);
    } else {
        copyset->captured_log = copyset->base;
        copyset->captured_log.replay_lsn = cg_replay_kept_lsn(copyset);
    }
    if (copyset->captured_log.replay_lsn < copyset->store->checkpoint.lsn) {
        copyset->store->checkpoint.lsn = copyset->captured_log.replay_lsn;
    }
    return true;
}

void cg_checkpoint_delivered(struct cg_store *store) {
    if (store->disk_error != 0 || store->checkpoint.stage != CG_CHECKPOINT_NONE) {
        return;
    }
    bool full = cg_wal_used(store->wal) > cg_wal_capacity(store->wal) / 2 && much_logged(store);
    if (full || store->dirty_count > store->options.chunks_max / 2) {
        cg_store_checkpoint(store);
    }
}

void cg_store_checkpoint(struct cg_store *store) {
    struct cg_checkpoint *checkpoint = &store->checkpoint;
    if (store->disk_error != 0 || cg_store_checkpointing(store) || !cg_store_unsaved(store)) {
        return;
    }
    checkpoint->stage = CG_CHECKPOINT_CAPTURE;
    checkpoint->abandoned = false;
    checkpoint->tail = cg_wal_tail(store->wal);
    checkpoint->lsn = checkpoint->tail;
    checkpoint->delivered = store->delivered;
    checkpoint->copysets = store->copyset_count;
    checkpoint->settled = 0;
    for (uint32_t i = 0; i < store->copyset_count; i++) {
        if (!capture(store->copysets[i])) {
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

// ---- Folders and the file

// This checkpoint has what the file "copy" says. A copyset that pauses now waits until this
// checkpoint is over before its next copying begins.
static bool has_copied(const struct cg_copyset *copyset) {
    return copyset->copied_index != 0 && !copyset->paused &&
           copyset->captured_log.index >= copyset->copied_index;
}

static int collect_folders(struct cg_store *store) {
    struct cg_checkpoint *checkpoint = &store->checkpoint;
    checkpoint->folder_count = 0;
    checkpoint->copied_count = 0;
    checkpoint->folders = calloc(checkpoint->copysets + 1, sizeof(*checkpoint->folders));
    checkpoint->copied = calloc(checkpoint->copysets + 1, sizeof(*checkpoint->copied));
    if (checkpoint->folders == NULL || checkpoint->copied == NULL) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < checkpoint->copysets; i++) {
        if (store->copysets[i]->folder_dirty) {
            store->copysets[i]->folder_dirty = false;
            cg_copyset_folder(store->copysets[i], checkpoint->folders[checkpoint->folder_count++]);
        }
        if (has_copied(store->copysets[i])) {
            cg_copyset_folder(store->copysets[i], checkpoint->copied[checkpoint->copied_count++]);
        }
    }
    return 0;
}

static size_t encode_copyset(const struct cg_copyset *copyset, uint8_t *out) {
    const struct cg_copyset_log_saved *saved = &copyset->captured_log;
    size_t members = cg_log_config_encode(&saved->config, out + COPYSET_HEAD);
    cg_put_u64(out, copyset->group);
    cg_put_u64(out + 8, saved->index);
    cg_put_u64(out + 16, saved->index_term);
    cg_put_u64(out + 24, saved->term);
    cg_put_u64(out + 32, saved->vote);
    cg_put_u64(out + 40, copyset->member.self);
    cg_put_u32(out + 48, (uint32_t)members);
    cg_put_u32(out + 52, (uint32_t)copyset->captured_length);
    memcpy(out + COPYSET_HEAD + members, copyset->captured, copyset->captured_length);
    return COPYSET_HEAD + members + copyset->captured_length;
}

static int build_file(struct cg_store *store) {
    struct cg_checkpoint *checkpoint = &store->checkpoint;
    size_t room = FILE_HEAD;
    for (uint32_t i = 0; i < checkpoint->copysets; i++) {
        room += COPYSET_HEAD + CG_LOG_CONFIG_SIZE_MAX + store->copysets[i]->captured_length;
    }
    checkpoint->data = malloc(room);
    if (checkpoint->data == NULL) {
        return -ENOMEM;
    }
    cg_put_u64(checkpoint->data, checkpoint->lsn);
    cg_put_u32(checkpoint->data + 8, checkpoint->copysets);
    checkpoint->length = FILE_HEAD;
    for (uint32_t i = 0; i < checkpoint->copysets; i++) {
        checkpoint->length +=
            encode_copyset(store->copysets[i], checkpoint->data + checkpoint->length);
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
    for (uint32_t i = 0; i < checkpoint->copied_count && op->result == 0; i++) {
        op->result = cg_copy_mark_remove(store->disk, checkpoint->copied[i]);
    }
}

// What slow replicas lack may take half of the log.
static void recycle(struct cg_store *store) {
    struct cg_checkpoint *checkpoint = &store->checkpoint;
    uint64_t keep_from = cg_wal_keep_from(store->wal, cg_wal_capacity(store->wal) / 2);
    uint64_t needed = checkpoint->lsn; // where the next start begins
    for (uint32_t i = 0; i < checkpoint->copysets; i++) {
        struct cg_copyset *copyset = store->copysets[i];
        uint64_t lsn = copyset->log != NULL
                           ? cg_copyset_log_saved(copyset->log, &copyset->captured_log, keep_from)
                           : cg_replay_kept_lsn(copyset);
        needed = lsn < needed ? lsn : needed;
    }
    cg_wal_recycle(store->wal, needed);
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
    recycle(store);
    for (uint32_t i = 0; i < checkpoint->copysets; i++) {
        if (has_copied(store->copysets[i])) {
            store->copysets[i]->copied_index = 0;
        }
    }
    store->saved_delivered = checkpoint->delivered;
    store->saved_tail = checkpoint->tail;
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
        if (copyset->applied_index < copyset->captured_log.index) {
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

int cg_copyset_decode(struct cg_copyset *copyset, const uint8_t *state, size_t length) {
    int64_t dedup = cg_dedup_decode(&copyset->dedup, state, length);
    if (dedup < 0) {
        return (int)dedup;
    }
    int64_t epochs = cg_epoch_table_decode(&copyset->epochs, state + dedup, length - (size_t)dedup);
    if (epochs < 0) {
        return (int)epochs;
    }
    return (size_t)(dedup + epochs) == length ? 0 : -EBADMSG;
}

// What stands before the members and the state, and how long these are.
struct head {
    uint64_t group;
    uint64_t member;
    struct cg_copyset_log_saved base;
    size_t length;
    size_t members;
    size_t state;
};

static int decode_head(const uint8_t *in, size_t length, uint32_t version, struct head *out) {
    *out = (struct head){.length = version == 1 ? COPYSET_HEAD_1 : COPYSET_HEAD};
    if (length < out->length) {
        return -EBADMSG;
    }
    out->group = cg_get_u64(in);
    out->base.index = cg_get_u64(in + 8);
    out->base.index_term = cg_get_u64(in + 16);
    if (version == 1) {
        out->base.term = out->base.index_term;
        out->state = cg_get_u32(in + 24);
    } else {
        out->base.term = cg_get_u64(in + 24);
        out->base.vote = cg_get_u64(in + 32);
        out->member = cg_get_u64(in + 40);
        out->members = cg_get_u32(in + 48);
        out->state = cg_get_u32(in + 52);
    }
    size_t rest = length - out->length;
    return rest >= out->members && rest - out->members >= out->state ? 0 : -EBADMSG;
}

static int restore_copyset(struct cg_store *store, const uint8_t *in, size_t length,
                           uint32_t version, size_t *used) {
    struct head head;
    int result = decode_head(in, length, version, &head);
    if (result != 0) {
        return result;
    }
    *used = head.length + head.members + head.state;
    struct cg_copyset *copyset = cg_copyset_of_group(store, head.group);
    if (copyset == NULL) {
        return cg_copyset_gone(store, head.group) ? 0 : -ENOENT;
    }
    if (head.member != 0 && head.member != copyset->member.self) {
        // Of a replica that was removed before this one came; its file would be there.
        return copyset->member.self != 0 ? 0 : -ENOENT;
    }
    if (head.members > 0 && cg_log_config_decode(in + head.length, head.members,
                                                 &head.base.config) != (int64_t)head.members) {
        return -EBADMSG;
    }
    copyset->base = head.base;
    copyset->applied_index = head.base.index;
    copyset->delivered_index = head.base.index;
    result = cg_copyset_decode(copyset, in + head.length + head.members, head.state);
    if (result == 0) {
        cg_copyset_state_restored(copyset);
    }
    return result;
}

static int restore(struct cg_store *store, const uint8_t *data, size_t length, uint32_t version,
                   uint64_t *lsn) {
    if (length < FILE_HEAD) {
        return -EBADMSG;
    }
    *lsn = cg_get_u64(data);
    uint32_t copysets = cg_get_u32(data + 8);
    size_t at = FILE_HEAD;
    for (uint32_t i = 0; i < copysets; i++) {
        size_t used = 0;
        int result = restore_copyset(store, data + at, length - at, version, &used);
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
    uint32_t version = 0;
    int result = cg_checkpoint_load(store->disk, &data, &length, &version);
    if (result == 0 && data != NULL) {
        result = restore(store, data, length, version, lsn);
        free(data);
    }
    if (result == -ENOENT) {
        snprintf(
            error, error_size,
            "the folder, or the file \"member\", of a copyset that the checkpoint knows is gone");
        return -EBADMSG;
    }
    if (result != 0) {
        snprintf(error, error_size, "cannot use the checkpoint: %s",
                 result == -EBADMSG ? "it is damaged" : strerror(-result));
    }
    return result;
}
