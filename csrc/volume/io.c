// SPDX-License-Identifier: BSD-3-Clause
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "volume/client.h"
#include "volume/volume.h"

static uint64_t align_down(uint64_t value) {
    return value - value % VOL_BLOCK;
}

static bool aligned(const struct cg_io *io) {
    return io->offset % VOL_BLOCK == 0 && io->length % VOL_BLOCK == 0;
}

static bool iov_holds(const struct cg_io *io, uint64_t length) {
    uint64_t sum = 0;
    for (int i = 0; i < io->iovcnt && sum < length; i++) {
        sum += io->iov[i].iov_len;
    }
    return sum >= length;
}

// 0, or why the IO cannot be done.
static int check(const struct cg_volume *volume, const struct cg_io *io) {
    uint64_t size = atomic_load_explicit(&volume->size, memory_order_relaxed);
    if (volume->closing) {
        return -ESHUTDOWN;
    }
    if (volume->fenced != 0) {
        return volume->fenced;
    }
    if (volume->client->mode == CG_CLIENT_FOREIGN_LOOP && volume->ios > volume->inflight_max) {
        return -EBUSY;
    }
    if (io->offset > size || io->length > size - io->offset) {
        return -EINVAL;
    }
    if ((volume->flags & CG_OPEN_READ_ONLY) != 0 && io->op != CG_OP_READ &&
        io->op != CG_OP_BLOCK_STATUS && io->op != CG_OP_FLUSH) {
        return -EROFS;
    }
    switch (io->op) {
    case CG_OP_READ:
    case CG_OP_WRITE:
        return iov_holds(io, io->length) ? 0 : -EINVAL;
    case CG_OP_COMPARE_AND_WRITE:
        if (io->length > VOL_COMPARE_MAX) {
            return -EINVAL;
        }
        return iov_holds(io, 2 * io->length) ? 0 : -EINVAL;
    case CG_OP_BLOCK_STATUS:
        return io->extents != NULL && io->extent_capacity > 0 ? 0 : -EINVAL;
    case CG_OP_WRITE_ZEROES:
        if ((io->flags & CG_IO_FAST_ZERO) != 0 && !volume->native) {
            return -ENOTSUP;
        }
        return 0;
    case CG_OP_TRIM:
    case CG_OP_FLUSH:
        return 0;
    }
    return -EINVAL;
}

static void run_granted(struct cg_volume *volume) {
    if (volume->granting) {
        return; // further up the stack: it sees to these too
    }
    volume->granting = true;
    struct cg_range *range;
    while ((range = cg_range_granted(&volume->ranges)) != NULL) {
        struct vol_io *io = CG_CONTAINER_OF(range, struct vol_io, range);
        cg_timer_disarm(&io->transfer.timer);
        vol_io_granted(io);
    }
    volume->granting = false;
}

static void count(struct cg_volume *volume, const struct cg_io *io) {
    struct vol_counters *counters = &volume->counters;
    if (io->result != 0) {
        vol_count(&counters->errors, 1);
    }
    switch (io->op) {
    case CG_OP_READ:
        vol_count(&counters->reads, 1);
        vol_count(&counters->read_bytes, io->length);
        break;
    case CG_OP_WRITE:
        vol_count(&counters->writes, 1);
        vol_count(&counters->written_bytes, io->length);
        break;
    default:
        vol_count(&counters->others, 1);
        break;
    }
}

void vol_io_end(struct vol_io *state, int result) {
    struct cg_volume *volume = state->transfer.volume;
    struct cg_io *io = vol_io_public(state);
    io->result = result;
    vol_merge_release(state);
    bool ranged = state->range.state != CG_RANGE_IDLE;
    cg_range_release(&state->range);
    count(volume, io);
    cg_client_complete(volume->client, io);
    if (ranged && !cg_list_empty(&volume->ranges.waiting)) {
        run_granted(volume);
    }
}

void vol_io_delivered(struct cg_volume *volume) {
    volume->ios--;
    vol_count(&volume->counters.inflight, (uint64_t)-1);
    if (volume->ios == 0 && volume->drained != NULL) {
        void (*drained)(struct cg_volume *) = volume->drained;
        volume->drained = NULL;
        drained(volume);
    }
}

static void on_transferred(struct vol_transfer *transfer) {
    vol_io_end(CG_CONTAINER_OF(transfer, struct vol_io, transfer), transfer->error);
}

static enum vol_kind plain_kind(const struct cg_volume *volume, const struct cg_io *io) {
    switch (io->op) {
    case CG_OP_WRITE:
        return VOL_WRITE;
    case CG_OP_WRITE_ZEROES:
        return volume->native ? VOL_WRITE_ZEROES : VOL_WRITE_ZERO_DATA;
    case CG_OP_TRIM:
        return VOL_TRIM;
    case CG_OP_COMPARE_AND_WRITE:
        return VOL_COMPARE_AND_WRITE;
    case CG_OP_BLOCK_STATUS:
        return VOL_BLOCK_STATUS;
    default:
        return VOL_READ;
    }
}

// One request of the store does it atomically.
static bool store_compares(const struct cg_volume *volume, const struct cg_io *io) {
    if (!volume->native) {
        return false;
    }
    struct cg_piece piece;
    cg_split_next(&volume->layout, io->offset, io->length, volume->max_request / 2, &piece);
    return piece.length == io->length;
}

enum way {
    WAY_PLAIN,       // as it is, cut into requests
    WAY_READ_AROUND, // whole blocks around an unaligned read
    WAY_MERGE_WRITE, // read, merge, write
    WAY_MERGE_ZEROES,
    WAY_COMPARE, // read, compare, write
};

static enum way choose(const struct cg_volume *volume, const struct cg_io *io) {
    if (io->op == CG_OP_COMPARE_AND_WRITE) {
        return store_compares(volume, io) ? WAY_PLAIN : WAY_COMPARE;
    }
    if (volume->native || aligned(io)) {
        return WAY_PLAIN;
    }
    switch (io->op) {
    case CG_OP_READ:
        return WAY_READ_AROUND;
    case CG_OP_WRITE:
        return WAY_MERGE_WRITE;
    case CG_OP_WRITE_ZEROES:
        return WAY_MERGE_ZEROES;
    default:
        return WAY_PLAIN;
    }
}

void vol_io_granted(struct vol_io *state) {
    switch (choose(state->transfer.volume, vol_io_public(state))) {
    case WAY_PLAIN:
        vol_transfer_start(&state->transfer);
        break;
    case WAY_READ_AROUND:
        vol_merge_read(state);
        break;
    case WAY_MERGE_WRITE:
        vol_merge_write(state);
        break;
    case WAY_MERGE_ZEROES:
        vol_merge_zeroes(state);
        break;
    case WAY_COMPARE:
        vol_merge_compare(state);
        break;
    }
}

static void on_range_deadline(struct cg_timer *timer) {
    struct vol_transfer *transfer = CG_CONTAINER_OF(timer, struct vol_transfer, timer);
    vol_io_end(CG_CONTAINER_OF(transfer, struct vol_io, transfer), -ETIMEDOUT);
}

// What changes data takes its range: plain writes share, what reads first excludes.
static void begin_change(struct vol_io *state, enum way way) {
    struct vol_transfer *transfer = &state->transfer;
    struct cg_volume *volume = transfer->volume;
    uint64_t start = transfer->offset;
    uint64_t end = transfer->offset + transfer->length;
    if (!volume->native) {
        start = align_down(start);
        end = align_down(end + VOL_BLOCK - 1);
    }
    if (cg_range_acquire(&volume->ranges, &state->range, start, end, way != WAY_PLAIN)) {
        vol_io_granted(state);
        return;
    }
    transfer->timer.fire = on_range_deadline;
    if (cg_timer_arm(volume->reactor, &transfer->timer, transfer->deadline_ns) != 0) {
        vol_io_end(state, -ENOMEM);
    }
}

void vol_io_begin(struct cg_volume *volume, struct cg_io *io) {
    struct vol_io *state = vol_io_of(io);
    memset(state, 0, sizeof(*state));
    io->extent_count = 0;
    io->mismatch_offset = 0;
    struct vol_transfer *transfer = &state->transfer;
    transfer->volume = volume;
    transfer->view = volume->view;
    cg_list_init(&transfer->node);
    cg_list_init(&state->range.node);
    volume->ios++;
    vol_count(&volume->counters.inflight, 1);
    int error = check(volume, io);
    if (error != 0 || io->length == 0 || io->op == CG_OP_FLUSH) {
        // FLUSH: every completed write is durable already.
        vol_io_end(state, error);
        return;
    }
    if (io->op == CG_OP_READ && io->iovcnt == 1 && io->done != cg_blocking_done &&
        vol_local_read(volume, io->iov->iov_base, io->length, io->offset) == 0) {
        vol_io_end(state, 0);
        return;
    }
    uint64_t timeout_ns =
        io->timeout_ms != 0 ? io->timeout_ms * CG_NS_PER_MS : volume->io_timeout_ns;
    transfer->deadline_ns = cg_reactor_now(volume->reactor) + timeout_ns;
    transfer->offset = io->offset;
    transfer->length = io->length;
    transfer->iov = io->iov;
    transfer->iovcnt = io->iovcnt;
    transfer->kind = plain_kind(volume, io);
    transfer->no_hole = (io->flags & CG_IO_NO_HOLE) != 0;
    transfer->done = on_transferred;
    if (vol_kind_changes(transfer->kind)) {
        begin_change(state, choose(volume, io));
    } else {
        vol_io_granted(state);
    }
}

bool vol_status_add(struct vol_io *state, uint64_t length, bool allocated) {
    struct cg_io *io = vol_io_public(state);
    uint32_t flags = allocated ? CG_EXTENT_DATA : CG_EXTENT_HOLE | CG_EXTENT_ZERO;
    uint64_t at = io->offset;
    if (io->extent_count > 0) {
        struct cg_extent *last = &io->extents[io->extent_count - 1];
        if (last->flags == flags) {
            last->length += length;
            return true;
        }
        at = last->offset + last->length;
    }
    if (io->extent_count == io->extent_capacity) {
        return false;
    }
    io->extents[io->extent_count++] =
        (struct cg_extent){.offset = at, .length = length, .flags = flags};
    return true;
}
