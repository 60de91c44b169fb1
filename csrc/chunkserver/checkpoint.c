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
    if (cg_checkpoint_build(store) != 0) {
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
        if (!cg_flush_start(&checkpoint->flush[i], chunk)) {
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
