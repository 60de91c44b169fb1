// SPDX-License-Identifier: BSD-3-Clause
//
// Why sockets are not watched by io_uring as well: a poll request wakes its thread by task work,
// and so without the hint that the waker is about to sleep. The scheduler then takes an idle
// processor for it, and with one request at a time each message costs a wake-up across processors:
// measured on two virtual ones, 20 us for each call instead of 4. epoll passes the hint on.
#include "base/ring.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>

#include "base/reactor_internal.h"

#define REAP_AT_ONCE 1024U

struct cg_ring {
    struct cg_reactor *reactor;
    struct io_uring ring;
};

static int setup(struct cg_ring *ring, unsigned depth, unsigned flags) {
    struct io_uring_params params = {
        .flags = flags | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
        .cq_entries = depth * 2,
    };
    int rc = io_uring_queue_init_params(depth, &ring->ring, &params);
    if (rc < 0) {
        return rc;
    }
    // NODROP: no completion is lost when the queue is full.
    unsigned needed = IORING_FEAT_NODROP | IORING_FEAT_SINGLE_MMAP;
    if ((params.features & needed) != needed) {
        io_uring_queue_exit(&ring->ring);
        return -ENOSYS;
    }
    return 0;
}

int cg_ring_create(struct cg_reactor *reactor, unsigned depth, struct cg_ring **out) {
    // From the best to the plainest; the kernel refuses with -EINVAL what it does not know. Not
    // DEFER_TASKRUN: its completions are made only when the thread enters the ring, so that epoll
    // would not see them.
    static const unsigned flag_sets[] = {
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
        0,
    };
    struct cg_ring *ring = calloc(1, sizeof(*ring));
    if (ring == NULL) {
        return -ENOMEM;
    }
    int rc = -EINVAL;
    for (unsigned i = 0; i < sizeof(flag_sets) / sizeof(flag_sets[0]) && rc == -EINVAL; i++) {
        rc = setup(ring, depth, flag_sets[i]);
    }
    if (rc < 0) {
        free(ring);
        return rc;
    }
    ring->reactor = reactor;
    *out = ring;
    return 0;
}

void cg_ring_destroy(struct cg_ring *ring) {
    if (ring != NULL) {
        io_uring_queue_exit(&ring->ring);
        free(ring);
    }
}

int cg_ring_descriptor(const struct cg_ring *ring) {
    return ring->ring.ring_fd;
}

bool cg_ring_file(struct cg_ring *ring, struct cg_file_op *op) {
    struct io_uring_sqe *entry = io_uring_get_sqe(&ring->ring);
    if (entry == NULL) {
        (void)io_uring_submit(&ring->ring);
        entry = io_uring_get_sqe(&ring->ring);
        if (entry == NULL) {
            return false;
        }
    }
    unsigned count = (unsigned)op->iovcnt;
    if (op->opcode == CG_FILE_READ) {
        io_uring_prep_readv2(entry, op->fd, op->iov, count, op->offset, op->rw_flags);
    } else {
        io_uring_prep_writev2(entry, op->fd, op->iov, count, op->offset, op->rw_flags);
    }
    io_uring_sqe_set_data(entry, op);
    return true;
}

int cg_ring_submit(struct cg_ring *ring) {
    if (io_uring_sq_ready(&ring->ring) == 0) {
        return 0;
    }
    int rc = io_uring_submit(&ring->ring);
    // A signal, or no room for requests or completions until some have been reaped: tried again
    // with the next iteration.
    bool passing = rc == -EINTR || rc == -EAGAIN || rc == -EBUSY;
    return rc >= 0 || passing ? 0 : rc;
}

bool cg_ring_ready(const struct cg_ring *ring) {
    return io_uring_cq_ready(&ring->ring) > 0 ||
           (*ring->ring.sq.kflags & (IORING_SQ_CQ_OVERFLOW | IORING_SQ_TASKRUN)) != 0;
}

unsigned cg_ring_reap(struct cg_ring *ring) {
    unsigned count = 0;
    struct io_uring_cqe *cqe;
    // Peeking enters the kernel only when its flags say that completions are still to be made.
    while (count < REAP_AT_ONCE && cg_ring_ready(ring) &&
           io_uring_peek_cqe(&ring->ring, &cqe) == 0) {
        struct cg_file_op *op = io_uring_cqe_get_data(cqe);
        int result = cqe->res;
        io_uring_cqe_seen(&ring->ring, cqe);
        cg_reactor_file_done(ring->reactor, op, result);
        count++;
    }
    return count;
}
