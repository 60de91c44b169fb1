// SPDX-License-Identifier: BSD-3-Clause
//
// A checkpoint's part for one chunk: its metadata goes to the slot that is not the newest, then the
// file is synced, data and all.
#include <errno.h>
#include <string.h>

#include "chunkserver/store_internal.h"

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

bool cg_flush_start(struct cg_flush *flush, struct cg_chunk *chunk) {
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
