// SPDX-License-Identifier: BSD-3-Clause
//
// Reads whole blocks of a chunk and never returns a byte that its CRC does not vouch for.
#include <errno.h>
#include <string.h>

#include "base/crc32c.h"
#include "chunkserver/store_internal.h"

#define ATTEMPTS_MAX 16U

static bool blocks_match(const struct cg_block_read *read, uint32_t first, uint32_t count) {
    const uint32_t *crcs = read->chunk->slot->crc;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *block = read->data + (size_t)(first - read->first + i) * CG_BLOCK_SIZE;
        if (cg_crc32c(0, block, CG_BLOCK_SIZE) != crcs[first + i]) {
            return false;
        }
    }
    return true;
}

// Checks the allocated blocks and makes zeros of the others, whatever the file holds there.
static bool verify(struct cg_block_read *read) {
    if (!read->chunk->exists) {
        memset(read->data, 0, (size_t)read->count * CG_BLOCK_SIZE);
        return true;
    }
    const uint8_t *allocated = read->chunk->slot->allocated;
    uint32_t at = 0;
    while (at < read->count) {
        uint32_t block = read->first + at;
        uint32_t run = cg_blockmap_run(allocated, block, read->count - at);
        if (!cg_blockmap_test(allocated, block)) {
            memset(read->data + (size_t)at * CG_BLOCK_SIZE, 0, (size_t)run * CG_BLOCK_SIZE);
        } else if (!blocks_match(read, block, run)) {
            return false;
        }
        at += run;
    }
    return true;
}

static void report(const struct cg_block_read *read) {
    struct cg_chunk *chunk = read->chunk;
    for (uint32_t block = read->first; block < read->first + read->count; block++) {
        if (cg_blockmap_test(chunk->slot->allocated, block) && !blocks_match(read, block, 1)) {
            cg_damage_found(chunk->copyset, chunk->id, chunk->file_id, block,
                            "its checksum does not match");
        }
    }
}

static void attempt(struct cg_block_read *read);

static void finish(struct cg_block_read *read, cg_status status) {
    if (read->file != NULL) {
        struct cg_chunk_file *file = read->file;
        read->file = NULL;
        cg_chunk_file_unref(read->chunk->copyset->store, file);
    }
    read->done(read, status);
}

static void filled(struct cg_block_read *read) {
    struct cg_chunk *chunk = read->chunk;
    if (verify(read)) {
        finish(read, STATUS(SUCCESS));
        return;
    }
    // A write that began after the read did: the file may have part of it, and the CRCs none.
    if (chunk->applying_count > 0 && cg_blockmap_any(chunk->applying, read->first, read->count)) {
        read->raced = true;
        finish(read, STATUS(OVERLOAD));
        return;
    }
    if (chunk->changes != read->changes && ++read->attempts < ATTEMPTS_MAX) {
        attempt(read); // an entry was applied while the read was under way
        return;
    }
    if (cg_copyset_recovered(chunk->copyset)) {
        chunk->copyset->store->crc_errors++;
        report(read);
    } // else it may be torn, and about to be written again
    finish(read, STATUS(CRC_FAIL));
}

static void submit(struct cg_block_read *read);

static void read_done(struct cg_file_op *op) {
    struct cg_block_read *read = CG_CONTAINER_OF(op, struct cg_block_read, op);
    struct cg_store *store = read->chunk->copyset->store;
    if (op->result == -EINTR || op->result == -EAGAIN) {
        submit(read);
        return;
    }
    if (op->result <= 0) {
        // A chunk file has its full length from its creation: its end cannot come here.
        cg_store_retire(store, op->result < 0 ? (int)-op->result : EIO, "reading a chunk");
        finish(read, STATUS(DISK_FAIL));
        return;
    }
    read->filled += (uint32_t)op->result;
    if (read->filled < read->count * CG_BLOCK_SIZE) {
        submit(read);
        return;
    }
    struct cg_chunk_file *file = read->file;
    read->file = NULL;
    cg_chunk_file_unref(store, file);
    filled(read);
}

static void submit(struct cg_block_read *read) {
    struct cg_store *store = read->chunk->copyset->store;
    read->iov = (struct iovec){read->data + read->filled,
                               (size_t)read->count * CG_BLOCK_SIZE - read->filled};
    read->op = (struct cg_file_op){
        .opcode = CG_FILE_READ,
        .fd = read->file->handle,
        .iov = &read->iov,
        .iovcnt = 1,
        .offset = CG_CHUNK_DATA_OFFSET + (uint64_t)read->first * CG_BLOCK_SIZE + read->filled,
        .done = read_done,
    };
    store->disk->ops->submit(store->disk, &read->op);
}

static void attempt(struct cg_block_read *read) {
    struct cg_chunk *chunk = read->chunk;
    struct cg_store *store = chunk->copyset->store;
    read->changes = chunk->changes;
    read->filled = 0;
    if (!chunk->exists || !cg_blockmap_any(chunk->slot->allocated, read->first, read->count)) {
        filled(read);
        return;
    }
    int result = cg_chunk_open(chunk, false);
    if (result != 0) {
        bool exhausted = result == -EMFILE || result == -ENFILE || result == -ENOMEM;
        if (!exhausted) {
            cg_store_retire(store, -result, "opening a chunk");
        }
        finish(read, exhausted ? STATUS(OVERLOAD) : STATUS(DISK_FAIL));
        return;
    }
    size_t length = (size_t)read->count * CG_BLOCK_SIZE;
    read->iov = (struct iovec){read->data, length};
    uint64_t offset = CG_CHUNK_DATA_OFFSET + (uint64_t)read->first * CG_BLOCK_SIZE;
    int64_t got =
        store->disk->ops->read_cached(store->disk, chunk->file->handle, &read->iov, 1, offset);
    if (got == (int64_t)length) {
        filled(read);
        return;
    }
    read->file = cg_chunk_file_ref(chunk);
    submit(read);
}

void cg_block_read_start(struct cg_block_read *read) {
    read->attempts = 0;
    read->raced = false;
    read->file = NULL;
    attempt(read);
}
