// SPDX-License-Identifier: BSD-3-Clause
//
// The public calls that submit IO, and the driver's side of taking it in.
#include <errno.h>
#include <stddef.h>

#include "volume/client.h"
#include "volume/volume.h"

// Takes the line over and begins its IO in the order of submission.
static void take_submitted(struct cg_task *task) {
    struct cg_client *client = CG_CONTAINER_OF(task, struct cg_client, submit_task);
    struct vol_io *newest = atomic_exchange(&client->submitted, NULL);
    struct cg_list *oldest = NULL;
    struct cg_list *node = newest != NULL ? &newest->transfer.node : NULL;
    while (node != NULL) {
        struct cg_list *following = node->next;
        node->next = oldest;
        oldest = node;
        node = following;
    }
    while (oldest != NULL) {
        struct vol_transfer *transfer = CG_CONTAINER_OF(oldest, struct vol_transfer, node);
        struct cg_io *io = vol_io_public(CG_CONTAINER_OF(transfer, struct vol_io, transfer));
        oldest = oldest->next;
        if (io->done != cg_blocking_done) {
            client->async_pending++;
        }
        vol_io_begin(transfer->volume, io);
    }
}

void vol_submit_init(struct cg_client *client) {
    client->submit_task.run = take_submitted;
    cg_list_init(&client->async_done);
}

// After IO of cg_submit was put in the line: the client's thread must drive, unless somebody does.
static void call_own_thread(struct cg_client *client) {
    if (client->mode == CG_CLIENT_FOREIGN_LOOP || atomic_load(&client->driven)) {
        return;
    }
    pthread_mutex_lock(&client->lock);
    client->own_turn = true;
    pthread_cond_signal(&client->wake);
    pthread_mutex_unlock(&client->lock);
}

CG_API void cg_submit(struct cg_volume *volume, struct cg_io *io) {
    struct vol_io *state = vol_io_of(io);
    state->transfer.volume = volume;
    cg_client_submit(volume->client, state, state);
    call_own_thread(volume->client);
}

CG_API void cg_submit_batch(struct cg_volume *volume, struct cg_io *const *ios, unsigned count) {
    if (count == 0) {
        return;
    }
    struct vol_io *older = NULL;
    for (unsigned i = 0; i < count; i++) {
        struct vol_io *state = vol_io_of(ios[i]);
        state->transfer.volume = volume;
        state->transfer.node.next = older != NULL ? &older->transfer.node : NULL;
        older = state;
    }
    cg_client_submit(volume->client, vol_io_of(ios[0]), older);
    call_own_thread(volume->client);
}

CG_API int cg_read_now(struct cg_volume *volume, void *data, uint64_t length, uint64_t offset) {
    if (volume->fenced != 0 || volume->closing) {
        return -EAGAIN;
    }
    return vol_local_read(volume, data, length, offset);
}

// ---- Blocking calls

void cg_blocking_done(struct cg_io *io) {
    struct cg_waiter *waiter = io->user;
    cg_waiter_done(vol_io_of(io)->transfer.volume->client, waiter);
}

static int run(struct cg_volume *volume, struct cg_io *io) {
    struct cg_waiter waiter;
    cg_waiter_init(&waiter);
    io->done = cg_blocking_done;
    io->user = &waiter;
    struct vol_io *state = vol_io_of(io);
    state->transfer.volume = volume;
    cg_client_submit(volume->client, state, state);
    cg_client_wait(volume->client, &waiter);
    return io->result;
}

CG_API int cg_pread(struct cg_volume *volume, void *data, uint64_t length, uint64_t offset) {
    if (vol_local_read(volume, data, length, offset) == 0) {
        return 0;
    }
    struct iovec iov = {data, length};
    struct cg_io io;
    io.op = CG_OP_READ;
    io.flags = 0;
    io.offset = offset;
    io.length = length;
    io.iov = &iov;
    io.iovcnt = 1;
    io.timeout_ms = 0;
    return run(volume, &io);
}

CG_API int cg_pwrite(struct cg_volume *volume, const void *data, uint64_t length, uint64_t offset) {
    // An iovec's memory is not const, but a write only reads it.
    struct iovec iov = {(void *)(uintptr_t)data, length};
    struct cg_io io;
    io.op = CG_OP_WRITE;
    io.flags = 0;
    io.offset = offset;
    io.length = length;
    io.iov = &iov;
    io.iovcnt = 1;
    io.timeout_ms = 0;
    return run(volume, &io);
}

static int run_plain(struct cg_volume *volume, enum cg_op op, uint64_t length, uint64_t offset,
                     uint32_t flags) {
    struct cg_io io;
    io.op = op;
    io.flags = flags;
    io.offset = offset;
    io.length = length;
    io.iov = NULL;
    io.iovcnt = 0;
    io.timeout_ms = 0;
    return run(volume, &io);
}

CG_API int cg_write_zeroes(struct cg_volume *volume, uint64_t length, uint64_t offset,
                           uint32_t flags) {
    return run_plain(volume, CG_OP_WRITE_ZEROES, length, offset, flags);
}

CG_API int cg_trim(struct cg_volume *volume, uint64_t length, uint64_t offset) {
    return run_plain(volume, CG_OP_TRIM, length, offset, 0);
}

CG_API int cg_flush(struct cg_volume *volume) {
    return run_plain(volume, CG_OP_FLUSH, 0, 0, 0);
}

CG_API int cg_compare_and_write(struct cg_volume *volume, const void *compare, const void *write,
                                uint64_t length, uint64_t offset, uint64_t *mismatch_offset) {
    struct iovec iov[2] = {{(void *)(uintptr_t)compare, length},
                           {(void *)(uintptr_t)write, length}};
    struct cg_io io = {
        .op = CG_OP_COMPARE_AND_WRITE,
        .offset = offset,
        .length = length,
        .iov = iov,
        .iovcnt = 2,
    };
    int result = run(volume, &io);
    if (mismatch_offset != NULL && result == -EILSEQ) {
        *mismatch_offset = io.mismatch_offset;
    }
    return result;
}

CG_API int cg_block_status(struct cg_volume *volume, uint64_t length, uint64_t offset,
                           struct cg_extent *extents, uint32_t capacity) {
    struct cg_io io = {
        .op = CG_OP_BLOCK_STATUS,
        .offset = offset,
        .length = length,
        .extents = extents,
        .extent_capacity = capacity,
    };
    int result = run(volume, &io);
    return result != 0 ? result : (int)io.extent_count;
}
