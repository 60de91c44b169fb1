// SPDX-License-Identifier: BSD-3-Clause
//
// The steps in which an entry gets into a chunk file: a piece written, a hole made, the file
// removed. Each ends in cg_step_done or cg_step_failed, perhaps inside.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "chunkserver/store_internal.h"

// Writes up to this length go straight to the page cache: that is cheaper than a hop to a thread
// and back. If one takes long (the kernel makes writers wait for the disk), the threads do them for
// a while.
#define INLINE_MAX      16384U
#define WRITE_PIECE     16384U // bytes of a call when longer ones are written: see write_call
#define SLOW_WRITE_NS   (2 * CG_NS_PER_MS)
#define SLOW_FOR_NS     (50 * CG_NS_PER_MS)
#define WRITEBACK_FROM  65536U     // bytes: writes this long are taken for sequential
#define WRITEBACK_EVERY (4U << 20) // bytes of a chunk

// ---- Metadata of what was applied

static void note_allocated(struct cg_op *op, uint32_t first, uint32_t count) {
    uint32_t had = cg_blockmap_count(op->chunk->slot->allocated, first, count);
    uint64_t bytes = (uint64_t)(count - had) * CG_BLOCK_SIZE;
    op->store->free_bytes -= bytes < op->store->free_bytes ? bytes : op->store->free_bytes;
    cg_blockmap_set(op->chunk->slot->allocated, first, count);
    cg_blockmap_set(op->chunk->unsynced_blocks, first, count);
    cg_damage_mended(op->chunk, first, count);
}

static void note_written(struct cg_op *op, uint32_t first, uint32_t count, const uint32_t *crcs) {
    note_allocated(op, first, count);
    memcpy(op->chunk->slot->crc + first, crcs, count * sizeof(*crcs));
}

void cg_step_note(struct cg_op *op) {
    struct cg_chunk *chunk = op->chunk;
    // Operations of different ranges end in any order: the last one counts, as on other replicas.
    if (op->index > chunk->applied_index) {
        chunk->applied_index = op->index;
    }
    if (op->entry.sn > chunk->sn) {
        chunk->sn = op->entry.sn;
    }
    if (op->entry.file_id != 0 && chunk->file_id != op->entry.file_id) {
        chunk->file_id = op->entry.file_id;
        atomic_store_explicit(&chunk->slot->file_id, chunk->file_id, memory_order_relaxed);
    }
    cg_chunk_mark_dirty(chunk);
}

struct writeback {
    struct cg_file_op op;
    struct cg_store *store;
    struct cg_chunk_file *file;
};

static void writeback_done(struct cg_file_op *op) {
    struct writeback *writeback = CG_CONTAINER_OF(op, struct writeback, op);
    struct cg_store *store = writeback->store;
    cg_chunk_file_unref(store, writeback->file);
    store->file_ops--;
    if (op->result < 0 && op->result != -EINTR) {
        cg_store_retire(store, (int)-op->result, "writing back a chunk");
    }
    free(writeback);
}

// Under sequential load the disk starts early on what a checkpoint would otherwise find all at
// once.
static void start_writeback(struct cg_chunk *chunk, uint32_t length) {
    struct cg_store *store = chunk->copyset->store;
    chunk->unsynced += length;
    if (length < WRITEBACK_FROM || chunk->unsynced < WRITEBACK_EVERY) {
        return;
    }
    chunk->unsynced = 0;
    struct writeback *writeback = malloc(sizeof(*writeback));
    if (writeback == NULL) {
        return; // the checkpoint's sync does it all
    }
    *writeback = (struct writeback){
        .op = {.opcode = CG_FILE_SYNC_RANGE,
               .fd = chunk->file->handle,
               .offset = CG_CHUNK_DATA_OFFSET,
               .length = store->format.chunk_size,
               .done = writeback_done},
        .store = store,
        .file = cg_chunk_file_ref(chunk),
    };
    store->file_ops++;
    store->disk->ops->submit(store->disk, &writeback->op);
}

// ---- Writing

static void write_pieces(struct cg_op *op);

static void pool_write_done(struct cg_file_op *file_op) {
    struct cg_op *op = CG_CONTAINER_OF(file_op, struct cg_op, file_op);
    if (file_op->result < 0 && file_op->result != -EINTR && file_op->result != -EAGAIN) {
        cg_step_failed(op, (int)-file_op->result, "writing a chunk");
        return;
    }
    op->apply_done += file_op->result > 0 ? (uint32_t)file_op->result : 0;
    write_pieces(op);
}

// What the present step writes: `data` NULL stands for zeros.
struct piece {
    const uint8_t *data;
    uint32_t offset; // in the chunk
    uint32_t length;
};

static struct piece piece_of(const struct cg_op *op) {
    const struct cg_entry *entry = &op->entry;
    const uint8_t *payload = op->logged_entry->payload;
    if (entry->type == CG_ENTRY_WRITE) {
        return (struct piece){payload, entry->offset, entry->length};
    }
    if (op->apply_step == 0) {
        return (struct piece){NULL, entry->offset, entry->length};
    }
    if (op->apply_step == 1) {
        return (struct piece){payload, entry->offset - CG_BLOCK_SIZE, CG_BLOCK_SIZE};
    }
    return (struct piece){payload + op->payload_length - CG_BLOCK_SIZE,
                          entry->offset + entry->length, CG_BLOCK_SIZE};
}

static void note_piece(struct cg_op *op, const struct piece *piece) {
    uint32_t first = piece->offset / CG_BLOCK_SIZE;
    uint32_t count = piece->length / CG_BLOCK_SIZE;
    if (piece->data == NULL) {
        note_allocated(op, first, count);
        for (uint32_t i = 0; i < count; i++) {
            op->chunk->slot->crc[first + i] = op->store->zero_crc;
        }
        return;
    }
    const struct cg_log_entry *logged = op->logged_entry;
    note_written(op, first, count,
                 logged->block_crcs + (size_t)(piece->data - logged->payload) / CG_BLOCK_SIZE);
}

// On a pool thread. In pieces: the kernel makes its page-cache folios as large as the write, and
// ext4 walks a whole folio for each small write into it later.
static void write_call(struct cg_file_op *file_op) {
    struct cg_op *op = CG_CONTAINER_OF(file_op, struct cg_op, file_op);
    struct cg_disk *disk = op->store->disk;
    const uint8_t *data = op->file_iov.iov_base;
    uint64_t done = 0;
    while (done < op->file_iov.iov_len) {
        uint64_t rest = op->file_iov.iov_len - done;
        int64_t written =
            disk->ops->write(disk, op->file->handle, data + done,
                             rest < WRITE_PIECE ? rest : WRITE_PIECE, file_op->offset + done);
        if (written <= 0) {
            file_op->result = done > 0 ? (int64_t)done : written;
            return;
        }
        done += (uint64_t)written;
    }
    file_op->result = (int64_t)done;
}

// Writes the rest of the step's piece on a pool thread.
static void write_on_pool(struct cg_op *op, const struct piece *piece) {
    struct cg_store *store = op->store;
    uint32_t rest = piece->length - op->apply_done;
    op->file_op = (struct cg_file_op){
        .opcode = CG_FILE_WRITE_BUFFERED,
        .iov = &op->file_iov,
        .iovcnt = 1,
        .offset = CG_CHUNK_DATA_OFFSET + (uint64_t)piece->offset + op->apply_done,
        .done = pool_write_done,
    };
    if (piece->data != NULL) {
        // It is only read from.
        op->file_iov = (struct iovec){(void *)(uintptr_t)(piece->data + op->apply_done), rest};
        if (rest > WRITE_PIECE) {
            op->file_op.opcode = CG_FILE_CALL;
            op->file_op.call = write_call;
        }
    } else if (rest < CG_ZERO_PIECE) {
        op->file_iov = (struct iovec){store->zeros, rest};
    } else {
        op->file_op.iov = store->zero_iov;
        op->file_op.iovcnt = (int)(rest / CG_ZERO_PIECE);
    }
    if (op->file == NULL) {
        op->file = cg_chunk_file_ref(op->chunk);
    }
    op->file_op.fd = op->file->handle;
    store->disk->ops->submit(store->disk, &op->file_op);
}

// True if the whole piece is written, or op was ended by a failure (*failed).
static bool write_inline(struct cg_op *op, const struct piece *piece, bool *failed) {
    struct cg_store *store = op->store;
    uint64_t before = cg_now_ns();
    int64_t written =
        store->disk->ops->write(store->disk, op->chunk->file->handle, piece->data + op->apply_done,
                                piece->length - op->apply_done,
                                CG_CHUNK_DATA_OFFSET + (uint64_t)piece->offset + op->apply_done);
    uint64_t after = cg_now_ns();
    if (after - before > SLOW_WRITE_NS) {
        store->slow_until_ns = after + SLOW_FOR_NS;
    }
    *failed = false;
    if (written < 0 && written != -EINTR) {
        *failed = true;
        cg_step_failed(op, (int)-written, "writing a chunk");
        return true;
    }
    op->apply_done += written > 0 ? (uint32_t)written : 0;
    return op->apply_done == piece->length;
}

static int create_file(struct cg_chunk *chunk) {
    struct cg_store *store = chunk->copyset->store;
    int result = cg_chunk_open(chunk, !chunk->exists);
    if (result != 0 || chunk->exists) {
        return result;
    }
    result = store->disk->ops->truncate(store->disk, chunk->file->handle,
                                        CG_CHUNK_DATA_OFFSET + (uint64_t)store->format.chunk_size);
    if (result == 0) {
        cg_chunk_created(chunk);
    } else {
        cg_chunk_close(chunk);
    }
    return result;
}

static void write_pieces(struct cg_op *op) {
    struct piece piece = piece_of(op);
    if (op->apply_done < piece.length) {
        bool on_pool = piece.data == NULL || piece.length > INLINE_MAX;
        if (!on_pool && op->store->slow_until_ns != 0) {
            on_pool = cg_now_ns() < op->store->slow_until_ns;
            op->store->slow_until_ns = on_pool ? op->store->slow_until_ns : 0;
        }
        bool failed;
        if (on_pool || !write_inline(op, &piece, &failed)) {
            write_on_pool(op, &piece);
            return;
        }
        if (failed) {
            return;
        }
    }
    note_piece(op, &piece);
    start_writeback(op->chunk, piece.length);
    cg_step_done(op);
}

void cg_step_write(struct cg_op *op) {
    int result = create_file(op->chunk);
    if (result != 0) {
        cg_step_failed(op, -result, "creating a chunk");
        return;
    }
    write_pieces(op);
}

// ---- Giving space back

static void punched(struct cg_op *op) {
    uint32_t first = op->entry.offset / CG_BLOCK_SIZE;
    uint32_t count = op->entry.length / CG_BLOCK_SIZE;
    cg_blockmap_clear(op->chunk->slot->allocated, first, count);
    cg_damage_mended(op->chunk, first, count);
    cg_step_done(op);
}

static void punch_done(struct cg_file_op *file_op) {
    struct cg_op *op = CG_CONTAINER_OF(file_op, struct cg_op, file_op);
    // Where holes cannot be made the space stays in use; the blocks read as zeros all the same.
    if (file_op->result < 0 && file_op->result != -EOPNOTSUPP && file_op->result != -ENOSYS) {
        cg_step_failed(op, (int)-file_op->result, "making a hole in a chunk");
        return;
    }
    punched(op);
}

#define PUNCH_HOLE_KEEP_SIZE 3 // FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE

void cg_step_punch(struct cg_op *op) {
    struct cg_chunk *chunk = op->chunk;
    uint32_t first = op->entry.offset / CG_BLOCK_SIZE;
    if (!chunk->exists ||
        !cg_blockmap_any(chunk->slot->allocated, first, op->entry.length / CG_BLOCK_SIZE)) {
        cg_step_done(op);
        return;
    }
    int result = cg_chunk_open(chunk, false);
    if (result != 0) {
        cg_step_failed(op, -result, "opening a chunk");
        return;
    }
    if (op->file == NULL) {
        op->file = cg_chunk_file_ref(chunk);
    }
    op->file_op = (struct cg_file_op){
        .opcode = CG_FILE_FALLOCATE,
        .fd = op->file->handle,
        .mode = PUNCH_HOLE_KEEP_SIZE,
        .offset = CG_CHUNK_DATA_OFFSET + (uint64_t)op->entry.offset,
        .length = op->entry.length,
        .done = punch_done,
    };
    op->store->disk->ops->submit(op->store->disk, &op->file_op);
}

// On a pool thread: freeing 16 MiB of blocks takes a while, and happens at the last close.
static void unlink_call(struct cg_file_op *file_op) {
    struct cg_op *op = CG_CONTAINER_OF(file_op, struct cg_op, file_op);
    struct cg_disk *disk = op->store->disk;
    char path[CG_CHUNK_PATH_MAX];
    cg_chunk_path(op->chunk->copyset, op->chunk->id, path);
    file_op->result = disk->ops->unlink(disk, path);
    if (op->close_there) {
        disk->ops->close(disk, op->file->handle);
    }
}

static void unlink_done(struct cg_file_op *file_op) {
    struct cg_op *op = CG_CONTAINER_OF(file_op, struct cg_op, file_op);
    if (op->close_there) {
        free(op->file);
        op->file = NULL;
        op->close_there = false;
    }
    if (file_op->result < 0 && file_op->result != -ENOENT) {
        cg_step_failed(op, (int)-file_op->result, "deleting a chunk");
        return;
    }
    if (op->chunk->exists) {
        cg_chunk_deleted(op->chunk);
    }
    cg_step_done(op);
}

void cg_step_delete(struct cg_op *op) {
    if (!op->chunk->exists) {
        cg_step_done(op);
        return;
    }
    // A checkpoint of what came before has nothing to save here, and would find no file to open.
    cg_chunk_mark_clean(op->chunk);
    // Checkpoints and reads hold references of their own; nobody takes a new one while we apply.
    if (op->file == NULL) {
        op->file = cg_chunk_detach(op->chunk);
    }
    op->close_there = op->file != NULL && op->file->refs == 1;
    op->file_op = (struct cg_file_op){
        .opcode = CG_FILE_CALL,
        .call = unlink_call,
        .done = unlink_done,
    };
    op->store->disk->ops->submit(op->store->disk, &op->file_op);
}
