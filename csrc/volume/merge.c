// SPDX-License-Identifier: BSD-3-Clause
//
// What the store cannot do in one request: unaligned IO where it takes whole blocks (CurveBS), and
// compare-and-write there or across chunks. The IO holds its range exclusively meanwhile (reads
// hold none), so that a neighbour's write to the same block is not undone.
//
// User data is not copied: the blocks around it are read into a block of our own, and what is
// written is an iovec of both.
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "volume/volume.h"

#define MORE_KEPT 64U // unused ones, for the next unaligned IO
#define MORE_IOV  16

struct vol_more {
    struct vol_more *next_free;
    struct vol_io *io;
    struct vol_transfer sub[2]; // the first and the last block
    struct iovec sub_iov[2];
    void (*then)(struct vol_io *io); // when all under way have ended well
    unsigned pending;
    int error;
    uint64_t start; // of the blocks around the IO
    uint64_t end;
    uint8_t *buffer; // compare: the blocks
    struct iovec *iov_heap;
    struct iovec iov[MORE_IOV];
    uint8_t block[2][VOL_BLOCK];
};

static struct vol_more *more_get(struct vol_io *io) {
    struct vol_transfer *transfer = &io->transfer;
    struct cg_volume *volume = transfer->volume;
    struct vol_more *more = volume->more_free;
    if (more != NULL) {
        volume->more_free = more->next_free;
        volume->more_kept--;
    } else {
        more = malloc(sizeof(*more));
        if (more == NULL) {
            return NULL;
        }
    }
    more->io = io;
    memset(more->sub, 0, sizeof(more->sub));
    more->pending = 0;
    more->error = 0;
    more->buffer = NULL;
    more->iov_heap = NULL;
    more->start = transfer->offset - transfer->offset % VOL_BLOCK;
    uint64_t end = transfer->offset + transfer->length;
    more->end = (end + VOL_BLOCK - 1) / VOL_BLOCK * VOL_BLOCK;
    io->more = more;
    return more;
}

void vol_merge_release(struct vol_io *io) {
    struct vol_more *more = io->more;
    struct cg_volume *volume = io->transfer.volume;
    if (more == NULL) {
        return;
    }
    io->more = NULL;
    free(more->buffer);
    free(more->iov_heap);
    if (volume->more_kept < MORE_KEPT) {
        more->next_free = volume->more_free;
        volume->more_free = more;
        volume->more_kept++;
    } else {
        free(more);
    }
}

void vol_merge_free(struct cg_volume *volume) {
    while (volume->more_free != NULL) {
        struct vol_more *more = volume->more_free;
        volume->more_free = more->next_free;
        free(more);
    }
    volume->more_kept = 0;
}

// One of the transfers under way has ended.
static void part_done(struct vol_more *more, int error) {
    if (error != 0 && more->error == 0) {
        more->error = error;
    }
    if (--more->pending > 0) {
        return;
    }
    if (more->error != 0 || more->then == NULL) {
        vol_io_end(more->io, more->error);
    } else {
        more->then(more->io);
    }
}

static void on_sub(struct vol_transfer *transfer) {
    struct vol_io *io = (struct vol_io *)transfer->owner;
    part_done(io->more, transfer->error);
}

static void on_main(struct vol_transfer *transfer) {
    struct vol_io *io = CG_CONTAINER_OF(transfer, struct vol_io, transfer);
    part_done(io->more, transfer->error);
}

static void start_sub(struct vol_more *more, unsigned which, enum vol_kind kind, uint64_t offset,
                      void *data, uint64_t length) {
    struct vol_transfer *sub = &more->sub[which];
    *sub = (struct vol_transfer){
        .volume = more->io->transfer.volume,
        .deadline_ns = more->io->transfer.deadline_ns,
        .view = more->io->transfer.view,
        .offset = offset,
        .length = length,
        .iov = &more->sub_iov[which],
        .iovcnt = 1,
        .kind = kind,
        .done = on_sub,
        .owner = more->io,
    };
    more->sub_iov[which] = (struct iovec){data, length};
    more->pending++;
    vol_transfer_start(sub);
}

// The IO's own transfer, over other memory or another range than the caller gave.
static void start_main(struct vol_more *more, enum vol_kind kind, uint64_t offset, uint64_t length,
                       const struct iovec *iov, int iovcnt) {
    struct vol_transfer *transfer = &more->io->transfer;
    transfer->offset = offset;
    transfer->length = length;
    transfer->iov = iov;
    transfer->iovcnt = iovcnt;
    transfer->kind = kind;
    transfer->done = on_main;
    more->pending++;
    vol_transfer_start(transfer);
}

static bool first_partial(const struct vol_more *more) {
    return vol_io_public(more->io)->offset != more->start;
}

static bool last_partial(const struct vol_more *more) {
    const struct cg_io *io = vol_io_public(more->io);
    return io->offset + io->length != more->end;
}

static bool one_block(const struct vol_more *more) {
    return more->end - more->start == VOL_BLOCK;
}

// The block buffer that holds what comes after the IO.
static uint8_t *last_block(struct vol_more *more) {
    return one_block(more) ? more->block[0] : more->block[1];
}

// Reads the blocks that the IO covers in part, then goes on with `then`.
static void read_edges(struct vol_more *more, void (*then)(struct vol_io *io)) {
    more->then = then;
    more->pending = 1;
    if (first_partial(more) || one_block(more)) {
        start_sub(more, 0, VOL_READ, more->start, more->block[0], VOL_BLOCK);
    }
    if (last_partial(more) && !one_block(more)) {
        start_sub(more, 1, VOL_READ, more->end - VOL_BLOCK, more->block[1], VOL_BLOCK);
    }
    part_done(more, 0);
}

// [before the IO][the caller's memory][after the IO] as one iovec. NULL: memory is short.
static struct iovec *surround(struct vol_more *more, int *count_out) {
    const struct cg_io *io = vol_io_public(more->io);
    struct iovec *iov = more->iov;
    if (io->iovcnt + 2 > MORE_IOV) {
        iov = more->iov_heap = malloc(((size_t)io->iovcnt + 2) * sizeof(*iov));
        if (iov == NULL) {
            return NULL;
        }
    }
    int count = 0;
    uint64_t before = io->offset - more->start;
    uint64_t after = more->end - (io->offset + io->length);
    if (before > 0) {
        iov[count++] = (struct iovec){more->block[0], before};
    }
    uint64_t left = io->length;
    for (int i = 0; left > 0; i++) {
        uint64_t run = io->iov[i].iov_len < left ? io->iov[i].iov_len : left;
        iov[count++] = (struct iovec){io->iov[i].iov_base, run};
        left -= run;
    }
    if (after > 0) {
        iov[count++] = (struct iovec){last_block(more) + VOL_BLOCK - after, after};
    }
    *count_out = count;
    return iov;
}

static void transfer_surrounded(struct vol_io *io) {
    struct vol_more *more = io->more;
    int count;
    const struct iovec *iov = surround(more, &count);
    if (iov == NULL) {
        vol_io_end(io, -ENOMEM);
        return;
    }
    more->then = NULL;
    start_main(more, io->transfer.kind, more->start, more->end - more->start, iov, count);
}

void vol_merge_read(struct vol_io *io) {
    if (more_get(io) == NULL) {
        vol_io_end(io, -ENOMEM);
        return;
    }
    transfer_surrounded(io);
}

void vol_merge_write(struct vol_io *io) {
    struct vol_more *more = more_get(io);
    if (more == NULL) {
        vol_io_end(io, -ENOMEM);
        return;
    }
    read_edges(more, transfer_surrounded);
}

// The edges are read: write them back with zeros inside, and zero the whole blocks between.
static void write_zeroed(struct vol_io *state) {
    struct vol_more *more = state->more;
    const struct cg_io *io = vol_io_public(state);
    uint64_t start = more->start;
    uint64_t end = more->end;
    more->then = NULL;
    more->pending = 1;
    if (one_block(more)) {
        memset(more->block[0] + (io->offset - start), 0, io->length);
        start_sub(more, 0, VOL_WRITE, start, more->block[0], VOL_BLOCK);
        part_done(more, 0);
        return;
    }
    if (first_partial(more)) {
        uint64_t before = io->offset - start;
        memset(more->block[0] + before, 0, VOL_BLOCK - before);
        start_sub(more, 0, VOL_WRITE, start, more->block[0], VOL_BLOCK);
        start += VOL_BLOCK;
    }
    if (last_partial(more)) {
        end -= VOL_BLOCK;
        memset(more->block[1], 0, io->offset + io->length - end);
        start_sub(more, 1, VOL_WRITE, end, more->block[1], VOL_BLOCK);
    }
    if (start < end) {
        start_main(more, VOL_WRITE_ZERO_DATA, start, end - start, NULL, 0);
    }
    part_done(more, 0);
}

void vol_merge_zeroes(struct vol_io *io) {
    struct vol_more *more = more_get(io);
    if (more == NULL) {
        vol_io_end(io, -ENOMEM);
        return;
    }
    read_edges(more, write_zeroed);
}

// Copies between the IO's memory from `skip` on and `data`; for comparing, returns the first
// difference's offset, or `length`.
static uint64_t compare_iov(const struct cg_io *io, const uint8_t *data) {
    uint64_t done = 0;
    for (int i = 0; done < io->length; i++) {
        const uint8_t *mine = io->iov[i].iov_base;
        uint64_t run =
            io->iov[i].iov_len < io->length - done ? io->iov[i].iov_len : io->length - done;
        if (memcmp(mine, data + done, run) != 0) {
            for (uint64_t k = 0; k < run; k++) {
                if (mine[k] != data[done + k]) {
                    return done + k;
                }
            }
        }
        done += run;
    }
    return done;
}

static void overlay(const struct cg_io *io, uint8_t *data) {
    uint64_t skip = io->length;
    uint64_t done = 0;
    for (int i = 0; done < io->length; i++) {
        uint64_t size = io->iov[i].iov_len;
        if (skip >= size) {
            skip -= size;
            continue;
        }
        uint64_t run = size - skip < io->length - done ? size - skip : io->length - done;
        memcpy(data + done, (const uint8_t *)io->iov[i].iov_base + skip, run);
        done += run;
        skip = 0;
    }
}

static void compare_read(struct vol_io *state) {
    struct vol_more *more = state->more;
    struct cg_io *io = vol_io_public(state);
    uint8_t *data = more->buffer + (io->offset - more->start);
    uint64_t same = compare_iov(io, data);
    if (same < io->length) {
        io->mismatch_offset = same;
        vol_io_end(state, -EILSEQ);
        return;
    }
    overlay(io, data);
    more->then = NULL;
    more->iov[0] = (struct iovec){more->buffer, more->end - more->start};
    start_main(more, VOL_WRITE, more->start, more->end - more->start, more->iov, 1);
}

void vol_merge_compare(struct vol_io *io) {
    struct vol_more *more = more_get(io);
    if (more == NULL) {
        vol_io_end(io, -ENOMEM);
        return;
    }
    if (io->transfer.volume->native) {
        more->start = io->transfer.offset; // the store merges: no need for whole blocks
        more->end = io->transfer.offset + io->transfer.length;
    }
    more->buffer = malloc(more->end - more->start);
    if (more->buffer == NULL) {
        vol_io_end(io, -ENOMEM);
        return;
    }
    more->then = compare_read;
    start_sub(more, 0, VOL_READ, more->start, more->buffer, more->end - more->start);
}
