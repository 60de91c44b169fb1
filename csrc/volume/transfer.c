// SPDX-License-Identifier: BSD-3-Clause
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "volume/clone.h"
#include "volume/volume.h"

// The longest piece that one request may carry.
static uint32_t piece_max(const struct vol_transfer *transfer) {
    const struct cg_volume *volume = transfer->volume;
    switch (transfer->kind) {
    case VOL_WRITE_ZEROES:
    case VOL_TRIM:
    case VOL_BLOCK_STATUS:
        return UINT32_MAX; // no data: up to the chunk's end
    default:
        return volume->max_request;
    }
}

static void on_deadline(struct cg_timer *timer) {
    vol_transfer_fail(CG_CONTAINER_OF(timer, struct vol_transfer, timer), -ETIMEDOUT);
}

void vol_transfer_wait(struct vol_transfer *transfer, struct cg_list *list, bool first) {
    assert(!transfer->waiting);
    transfer->timer.fire = on_deadline;
    if (cg_timer_arm(transfer->volume->reactor, &transfer->timer, transfer->deadline_ns) != 0) {
        transfer->error = -ENOMEM;
        return;
    }
    transfer->waiting = true;
    if (first) {
        cg_list_push_front(list, &transfer->node);
    } else {
        cg_list_push_back(list, &transfer->node);
    }
}

void vol_transfer_unwait(struct vol_transfer *transfer) {
    if (transfer->waiting) {
        transfer->waiting = false;
        cg_list_remove(&transfer->node);
        cg_timer_disarm(&transfer->timer);
    }
}

static void end_if_done(struct vol_transfer *transfer) {
    if (transfer->pending == 0 && !transfer->waiting &&
        (transfer->error != 0 || transfer->cursor == transfer->length)) {
        transfer->done(transfer);
    }
}

void vol_transfer_fail(struct vol_transfer *transfer, int error) {
    vol_transfer_unwait(transfer);
    if (transfer->error == 0) {
        transfer->error = error;
    }
    end_if_done(transfer);
}

// Bytes of nothing: reads give zeros; zeroing and trimming nothing is done.
static void pass_hole(struct vol_transfer *transfer, uint32_t length) {
    if (transfer->kind == VOL_READ) {
        uint64_t skip = transfer->cursor;
        uint64_t left = length;
        for (int i = 0; left > 0; i++) {
            assert(i < transfer->iovcnt);
            const struct iovec *one = &transfer->iov[i];
            if (skip >= one->iov_len) {
                skip -= one->iov_len;
                continue;
            }
            uint64_t run = one->iov_len - skip < left ? one->iov_len - skip : left;
            memset((uint8_t *)one->iov_base + skip, 0, run);
            left -= run;
            skip = 0;
        }
    } else if (transfer->kind == VOL_BLOCK_STATUS) {
        struct vol_io *io = CG_CONTAINER_OF(transfer, struct vol_io, transfer);
        if (!vol_status_add(io, length, false)) {
            transfer->cursor = transfer->length;
            return;
        }
    }
    transfer->cursor += length;
}

static uint64_t segment_offset(const struct cg_volume *volume, const struct cg_piece *piece) {
    return piece->chunk_index % volume->chunks_per_segment * volume->layout.chunk_size +
           piece->chunk_offset;
}

static bool make_request(struct vol_transfer *transfer, const struct cg_piece *piece,
                         struct vol_segment *segment, const struct vol_chunk *chunk) {
    struct cg_volume *volume = transfer->volume;
    struct vol_request *request = vol_request_get(volume);
    if (request == NULL) {
        vol_transfer_wait(transfer, &volume->queue, true);
        return false;
    }
    request->transfer = transfer;
    request->segment = segment;
    request->copyset = chunk->copyset;
    request->chunk_id = chunk->id;
    request->chunk_offset = piece->chunk_offset;
    request->length = piece->length;
    request->segment_offset = segment_offset(volume, piece);
    request->kind = transfer->kind;
    int error = vol_request_slice(request, transfer->cursor, piece->length);
    if (error != 0) {
        cg_list_push_front(&volume->free_requests, &request->node);
        transfer->error = error;
        return false;
    }
    transfer->cursor += piece->length;
    transfer->pending++;
    segment->requests++;
    vol_request_start(request);
    return true;
}

// One piece further. False: it waits, has failed, or must wait for the request just made.
static bool step(struct vol_transfer *transfer) {
    struct cg_volume *volume = transfer->volume;
    if (volume->fenced != 0) {
        transfer->error = volume->fenced;
        return false;
    }
    if (transfer->view != volume->view) {
        transfer->error = -EAGAIN;
        return false;
    }
    if (!vol_lease_ok(volume)) {
        vol_transfer_wait(transfer, &volume->queue, true);
        return false;
    }
    struct cg_piece piece;
    cg_split_next(&volume->layout, transfer->offset + transfer->cursor,
                  transfer->length - transfer->cursor, piece_max(transfer), &piece);
    struct vol_segment *segment;
    struct vol_chunk *chunk;
    switch (vol_segment_find(transfer, piece.chunk_index, &segment, &chunk)) {
    case VOL_FOUND_CHUNK:
        break;
    case VOL_FOUND_HOLE:
        if (vol_clone_has(volume, piece.chunk_index / volume->chunks_per_segment)) {
            return vol_clone_pass(transfer);
        }
        pass_hole(transfer, piece.length);
        return true;
    case VOL_FOUND_WAIT:
        return false;
    case VOL_FOUND_ERROR:
        transfer->error = -ENOMEM;
        return false;
    }
    if (transfer->kind == VOL_BLOCK_STATUS && !volume->native) {
        // CurveBS does not tell; what is allocated may hold data.
        struct vol_io *io = CG_CONTAINER_OF(transfer, struct vol_io, transfer);
        bool room = vol_status_add(io, piece.length, true);
        transfer->cursor = room ? transfer->cursor + piece.length : transfer->length;
        return true;
    }
    // CurveBS has no trim: the bitmap of the segment remembers it.
    if (transfer->kind == VOL_TRIM && !volume->native) {
        vol_trim_mark(segment, segment_offset(volume, &piece), piece.length);
        transfer->cursor += piece.length;
        return true;
    }
    bool made = make_request(transfer, &piece, segment, chunk);
    // Answers of BLOCK_STATUS are put together in order: one at a time.
    return made && transfer->kind != VOL_BLOCK_STATUS;
}

void vol_transfer_advance(struct vol_transfer *transfer) {
    vol_transfer_unwait(transfer);
    transfer->pending++; // a request may end inside: it must not end the transfer here
    while (transfer->error == 0 && transfer->cursor < transfer->length && step(transfer)) {
    }
    transfer->pending--;
    end_if_done(transfer);
}

void vol_transfer_start(struct vol_transfer *transfer) {
    assert(transfer->length > 0 && transfer->pending == 0);
    struct cg_volume *volume = transfer->volume;
    cg_list_init(&transfer->node);
    if (!cg_list_empty(&volume->queue) && volume->fenced == 0) {
        vol_transfer_wait(transfer, &volume->queue, false);
        end_if_done(transfer); // only if it could not wait
        return;
    }
    vol_transfer_advance(transfer);
}

// Takes the runs of a BLOCK_STATUS answer: the lowest bit says allocated, the rest is blocks.
static int take_runs(struct vol_transfer *transfer, const struct vol_request *request) {
    struct vol_io *io = CG_CONTAINER_OF(transfer, struct vol_io, transfer);
    const uint8_t *at = request->runs;
    const uint8_t *end = at + request->runs_length;
    // The first run begins at the block that holds the first byte.
    uint64_t skip = request->chunk_offset % VOL_BLOCK;
    uint64_t left = request->length;
    while (left > 0) {
        uint64_t run = 0;
        at = at == end ? NULL : vol_varint(at, end, &run);
        if (at == NULL || (run >> 1) == 0 || (run >> 1) > UINT32_MAX) {
            return -EIO;
        }
        uint64_t bytes = (run >> 1) * VOL_BLOCK - skip;
        skip = 0;
        if (bytes > left) {
            bytes = left;
        }
        left -= bytes;
        if (!vol_status_add(io, bytes, (run & 1) != 0)) {
            transfer->cursor = transfer->length;
            return 0;
        }
    }
    return 0;
}

static int take_status(struct vol_transfer *transfer, const struct vol_request *request) {
    if (!request->hole) {
        return take_runs(transfer, request);
    }
    struct vol_io *io = CG_CONTAINER_OF(transfer, struct vol_io, transfer);
    if (!vol_status_add(io, request->length, false)) {
        transfer->cursor = transfer->length;
    }
    return 0;
}

void vol_transfer_request_done(struct vol_transfer *transfer, struct vol_request *request,
                               int result) {
    if (transfer->kind == VOL_BLOCK_STATUS && result == 0) {
        result = take_status(transfer, request);
    }
    transfer->pending--;
    if (result != 0) {
        vol_transfer_fail(transfer, result);
        return;
    }
    if (transfer->kind == VOL_BLOCK_STATUS && transfer->pending == 0 && transfer->error == 0 &&
        !transfer->waiting && transfer->cursor < transfer->length) {
        vol_transfer_advance(transfer);
        return;
    }
    end_if_done(transfer);
}

void vol_queue_run(struct cg_volume *volume) {
    while (
        !cg_list_empty(&volume->queue) &&
        (volume->fenced != 0 || (!cg_list_empty(&volume->free_requests) && vol_lease_ok(volume)))) {
        vol_transfer_advance(CG_CONTAINER_OF(volume->queue.next, struct vol_transfer, node));
    }
}
