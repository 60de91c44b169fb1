// SPDX-License-Identifier: BSD-3-Clause
//
// One reading of the scrub: from the medium, past the page cache, compared with what was expected.
// All of it on a pool thread: opening a file that was not used for long takes a while, and the
// event loop has better things to do than to compute checksums of what nobody asked for.
#include <errno.h>
#include <fcntl.h>

#include "base/crc32c.h"
#include "chunkserver/scrub_internal.h"

static int64_t read_file(struct cg_scrub_read *read, uint64_t offset, uint64_t length, int flags) {
    const struct cg_disk_ops *ops = read->disk->ops;
    int handle = ops->open(read->disk, read->path, O_RDONLY | flags);
    if (handle < 0) {
        return handle;
    }
    int64_t got = ops->read(read->disk, handle, read->data, length, offset);
    ops->close(read->disk, handle);
    return got;
}

static int64_t read_medium(struct cg_scrub_read *read, uint64_t offset, uint64_t length) {
    if (!read->cached) {
        int64_t got = read_file(read, offset, length, O_DIRECT);
        if (got != -EINVAL) {
            return got;
        }
        read->cached = true;
    }
    return read_file(read, offset, length, 0);
}

static void compare(struct cg_scrub_read *read) {
    for (uint32_t i = 0; i < read->count; i++) {
        const uint8_t *block = read->data + (size_t)i * CG_BLOCK_SIZE;
        if (cg_crc32c(0, block, CG_BLOCK_SIZE) != read->crcs[i]) {
            read->bad |= UINT64_C(1) << i;
        }
    }
}

static void decode_slots(struct cg_scrub_read *read) {
    for (unsigned slot = 0; slot < 2; slot++) {
        struct cg_chunk_header header = {0};
        read->slot_state[slot] =
            cg_chunk_slot_decode(read->data + (size_t)slot * CG_CHUNK_SLOT_STRIDE, &header);
        read->slot_sequence[slot] = header.sequence;
    }
}

// On a pool thread.
static void call(struct cg_file_op *op) {
    struct cg_scrub_read *read = CG_CONTAINER_OF(op, struct cg_scrub_read, op);
    uint64_t offset =
        read->count > 0 ? CG_CHUNK_DATA_OFFSET + (uint64_t)read->first * CG_BLOCK_SIZE : 0;
    // Whole blocks: what O_DIRECT takes.
    uint64_t length = read->count > 0 ? (uint64_t)read->count * CG_BLOCK_SIZE : CG_CHUNK_SLOTS_SIZE;
    int64_t got = read_medium(read, offset, length);
    if (got < 0) {
        op->result = got;
        return;
    }
    if (got != (int64_t)length) {
        op->result = -EIO; // a chunk file has its full length from its creation
        return;
    }
    op->result = 0;
    if (read->count > 0) {
        compare(read);
    } else {
        decode_slots(read);
    }
}

_Static_assert(CG_CHUNK_SLOTS_SIZE % CG_BLOCK_SIZE == 0, "O_DIRECT takes whole blocks");
_Static_assert(CG_CHUNK_SLOTS_SIZE <= CG_SCRUB_PIECE_BLOCKS * CG_BLOCK_SIZE, "the slots fit");

void cg_scrub_read_start(struct cg_scrub_read *read, void (*done)(struct cg_file_op *op)) {
    read->bad = 0;
    read->op = (struct cg_file_op){.opcode = CG_FILE_CALL, .call = call, .done = done};
    read->disk->ops->submit(read->disk, &read->op);
}
