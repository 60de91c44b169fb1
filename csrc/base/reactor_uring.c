// SPDX-License-Identifier: BSD-3-Clause
//
// The io_uring backend. Sockets are watched by multishot POLL_ADD; what is read and written there
// is the owner's business. One io_uring_enter an iteration hands in all new work and waits.
//
// The ring is created disabled and enabled by the thread that first runs it: SINGLE_ISSUER binds it
// to that thread. Before that everything just stays queued. DEFER_TASKRUN (Linux 6.1) keeps
// completions from interrupting the thread; its poll wakes a foreign poller all the same.
#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/reactor_internal.h"

#define SQ_ENTRIES     256U
#define CQ_ENTRIES     4096U
#define EVENTS_AT_ONCE 1024U

// user_data: an operation's address (its low bits are zero), or a watch's generation and slot with
// TAG_WATCH, or TAG_NOTHING for requests whose result nobody wants.
#define TAG_MASK    3U
#define TAG_WATCH   1U
#define TAG_NOTHING 2U
#define SLOT_MAX    (1U << 30)

struct uring_state {
    struct io_uring ring;
    bool enabled;
    unsigned unarmed; // watches that found no room in the submission queue
};

static uint64_t token(uint32_t slot, uint32_t generation) {
    return (uint64_t)generation << 32 | (uint64_t)slot << 2 | TAG_WATCH;
}

// From the best to the plainest; the kernel refuses with -EINVAL what it does not know.
static const unsigned flag_sets[] = {
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SUBMIT_ALL,
    IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
    0,
};
#define FLAG_SETS   (sizeof(flag_sets) / sizeof(flag_sets[0]))
#define FOREIGN_SET 1U

static int setup(struct uring_state *state, unsigned flags) {
    struct io_uring_params params = {
        .flags = flags | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_R_DISABLED,
        .cq_entries = CQ_ENTRIES,
    };
    int rc = io_uring_queue_init_params(SQ_ENTRIES, &state->ring, &params);
    if (rc < 0) {
        return rc;
    }
    // NODROP: no completion is lost when the queue is full. EXT_ARG: a timeout costs no request.
    unsigned needed = IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG | IORING_FEAT_SINGLE_MMAP;
    if ((params.features & needed) != needed) {
        io_uring_queue_exit(&state->ring);
        return -ENOSYS;
    }
    return 0;
}

static int probe_opcodes(struct uring_state *state) {
    struct io_uring_probe *probe = io_uring_get_probe_ring(&state->ring);
    if (probe == NULL) {
        return -ENOSYS;
    }
    bool all = io_uring_opcode_supported(probe, IORING_OP_POLL_ADD) &&
               io_uring_opcode_supported(probe, IORING_OP_POLL_REMOVE) &&
               io_uring_opcode_supported(probe, IORING_OP_READV) &&
               io_uring_opcode_supported(probe, IORING_OP_WRITEV);
    io_uring_free_probe(probe);
    return all ? 0 : -ENOSYS;
}

static int setup_best(struct uring_state *state, unsigned first_set) {
    int rc = -EINVAL;
    for (unsigned i = first_set; i < FLAG_SETS && rc == -EINVAL; i++) {
        rc = setup(state, flag_sets[i]);
    }
    return rc;
}

static int uring_open(struct cg_reactor *reactor) {
    struct uring_state *state = calloc(1, sizeof(*state));
    if (state == NULL) {
        return -ENOMEM;
    }
    int rc = setup_best(state, 0);
    if (rc == 0) {
        rc = probe_opcodes(state);
        if (rc < 0) {
            io_uring_queue_exit(&state->ring);
        }
    }
    if (rc < 0) {
        free(state);
        return rc;
    }
    reactor->backend_state = state;
    return 0;
}

// Exchanges the ring for one that wakes a poller. The watches move over by being armed again.
static int uring_prepare_foreign(struct cg_reactor *reactor) {
    struct uring_state *state = reactor->backend_state;
    if ((state->ring.flags & IORING_SETUP_DEFER_TASKRUN) == 0) {
        return 0;
    }
    if (reactor->files_running > 0) {
        return -EBUSY;
    }
    struct uring_state fresh = {0};
    int rc = setup_best(&fresh, FOREIGN_SET);
    if (rc < 0) {
        return rc;
    }
    io_uring_queue_exit(&state->ring);
    *state = fresh;
    for (uint32_t i = 0; i < reactor->slot_count; i++) {
        reactor->slots[i].armed = false;
        state->unarmed++;
    }
    return 0;
}

static void uring_close(struct cg_reactor *reactor) {
    struct uring_state *state = reactor->backend_state;
    io_uring_queue_exit(&state->ring);
    free(state);
}

static int uring_descriptor(struct cg_reactor *reactor) {
    struct uring_state *state = reactor->backend_state;
    return state->ring.ring_fd;
}

static int enable(struct uring_state *state) {
    // By hand: liburing 2.3 declares io_uring_enable_rings but its shared library lacks it.
    if (syscall(__NR_io_uring_register, state->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL,
                0) < 0) {
        return -errno;
    }
    state->enabled = true;
    // Saves looking up the descriptor on each call; does without if there is no room in the table.
    (void)io_uring_register_ring_fd(&state->ring);
    return 0;
}

// A free submission entry; hands the queued ones in when there is none. NULL: try later.
static struct io_uring_sqe *get_entry(struct uring_state *state) {
    struct io_uring_sqe *entry = io_uring_get_sqe(&state->ring);
    if (entry == NULL && state->enabled) {
        (void)io_uring_submit(&state->ring);
        entry = io_uring_get_sqe(&state->ring);
    }
    return entry;
}

static void arm(struct cg_reactor *reactor, uint32_t index) {
    struct uring_state *state = reactor->backend_state;
    struct cg_watch_slot *slot = &reactor->slots[index];
    struct io_uring_sqe *entry = get_entry(state);
    if (entry == NULL) {
        state->unarmed++;
        return;
    }
    io_uring_prep_poll_multishot(entry, slot->watch->fd, slot->watch->events);
    io_uring_sqe_set_data64(entry, token(index, slot->generation));
    slot->armed = true;
}

static void arm_remaining(struct cg_reactor *reactor) {
    struct uring_state *state = reactor->backend_state;
    state->unarmed = 0;
    for (uint32_t i = 0; i < reactor->slot_count; i++) {
        if (reactor->slots[i].watch != NULL && !reactor->slots[i].armed) {
            arm(reactor, i);
        }
    }
}

static int uring_start(struct cg_reactor *reactor, uint32_t slot) {
    if (slot >= SLOT_MAX) {
        return -ENOSPC;
    }
    arm(reactor, slot);
    return 0;
}

// Without room for the removal the old poll stays; its events are dropped by their generation, and
// the kernel frees it with the socket's last event or the ring.
static void remove_poll(struct cg_reactor *reactor, uint32_t slot, uint32_t generation) {
    struct uring_state *state = reactor->backend_state;
    struct io_uring_sqe *entry = get_entry(state);
    if (entry != NULL) {
        io_uring_prep_poll_remove(entry, token(slot, generation));
        io_uring_sqe_set_data64(entry, TAG_NOTHING);
    }
}

static int uring_change(struct cg_reactor *reactor, uint32_t slot, uint32_t old_generation) {
    if (reactor->slots[slot].armed) {
        remove_poll(reactor, slot, old_generation);
        reactor->slots[slot].armed = false;
    }
    arm(reactor, slot);
    return 0;
}

static void uring_end(struct cg_reactor *reactor, uint32_t slot, int fd, uint32_t old_generation) {
    (void)fd;
    struct uring_state *state = reactor->backend_state;
    remove_poll(reactor, slot, old_generation);
    if (state->enabled) {
        // At once: the poll holds the file, and a listener that is closed must free its port. From
        // another thread (taking down what no longer runs) it is refused; the ring's end does it
        // then.
        (void)io_uring_submit_and_get_events(&state->ring);
    }
}

static bool uring_file(struct cg_reactor *reactor, struct cg_file_op *op) {
    struct uring_state *state = reactor->backend_state;
    struct io_uring_sqe *entry = get_entry(state);
    if (entry == NULL) {
        return false;
    }
    if (op->opcode == CG_FILE_READ) {
        io_uring_prep_readv2(entry, op->fd, op->iov, (unsigned)op->iovcnt, op->offset,
                             op->rw_flags);
    } else {
        io_uring_prep_writev2(entry, op->fd, op->iov, (unsigned)op->iovcnt, op->offset,
                              op->rw_flags);
    }
    assert(((uintptr_t)op & TAG_MASK) == 0);
    io_uring_sqe_set_data(entry, op);
    return true;
}

static void dispatch_watch(struct cg_reactor *reactor, uint64_t data, int result, unsigned flags) {
    uint32_t index = (uint32_t)data >> 2;
    uint32_t generation = (uint32_t)(data >> 32);
    if (index >= reactor->slot_count || reactor->slots[index].watch == NULL ||
        reactor->slots[index].generation != generation) {
        return;
    }
    if ((flags & IORING_CQE_F_MORE) == 0) {
        reactor->slots[index].armed = false;
    }
    uint32_t events = result < 0 ? EPOLLERR | EPOLLHUP : (uint32_t)result;
    cg_reactor_dispatch(reactor, index, generation, events);
    // Armed again after the owner has drained it, or the same condition would be reported twice. A
    // watch that cannot be armed (result < 0) has told its owner that the descriptor is lost.
    if (result >= 0 && reactor->slots[index].watch != NULL &&
        reactor->slots[index].generation == generation && !reactor->slots[index].armed) {
        arm(reactor, index);
    }
}

static unsigned dispatch(struct cg_reactor *reactor) {
    struct uring_state *state = reactor->backend_state;
    unsigned ready = io_uring_cq_ready(&state->ring);
    if (ready > EVENTS_AT_ONCE) {
        ready = EVENTS_AT_ONCE;
    }
    for (unsigned i = 0; i < ready; i++) {
        unsigned head = *state->ring.cq.khead;
        struct io_uring_cqe *cqe = &state->ring.cq.cqes[head & state->ring.cq.ring_mask];
        uint64_t data = cqe->user_data;
        int result = cqe->res;
        unsigned flags = cqe->flags;
        io_uring_cq_advance(&state->ring, 1);
        if ((data & TAG_MASK) == TAG_WATCH) {
            dispatch_watch(reactor, data, result, flags);
        } else if ((data & TAG_MASK) == 0) {
            cg_reactor_file_done(reactor, (struct cg_file_op *)(uintptr_t)data, result);
        }
    }
    return ready;
}

static int enter(struct uring_state *state, uint64_t timeout_ns) {
    if (timeout_ns == 0) {
        return io_uring_submit_and_get_events(&state->ring);
    }
    struct io_uring_cqe *first;
    if (timeout_ns == UINT64_MAX) {
        return io_uring_submit_and_wait_timeout(&state->ring, &first, 1, NULL, NULL);
    }
    struct __kernel_timespec timeout = {
        .tv_sec = (int64_t)(timeout_ns / CG_NS_PER_S),
        .tv_nsec = (long long)(timeout_ns % CG_NS_PER_S),
    };
    return io_uring_submit_and_wait_timeout(&state->ring, &first, 1, &timeout, NULL);
}

// Errors after which the loop goes on: time is up, a signal, or no room for more completions or
// requests until some have been handled.
static bool passing(int error) {
    return error == -ETIME || error == -EINTR || error == -EAGAIN || error == -EBUSY;
}

static int uring_wait(struct cg_reactor *reactor, uint64_t timeout_ns) {
    struct uring_state *state = reactor->backend_state;
    if (!state->enabled) {
        int rc = enable(state);
        if (rc < 0) {
            return rc;
        }
    }
    if (state->unarmed > 0) {
        arm_remaining(reactor);
    }
    if (!cg_list_empty(&reactor->files_waiting)) {
        cg_reactor_start_files(reactor);
    }
    int rc = enter(state, timeout_ns);
    cg_reactor_woke(reactor);
    if (rc < 0 && !passing(rc)) {
        return rc;
    }
    return (int)dispatch(reactor);
}

static int uring_flush(struct cg_reactor *reactor) {
    struct uring_state *state = reactor->backend_state;
    if (!state->enabled) {
        int rc = enable(state);
        if (rc < 0) {
            return rc;
        }
    }
    if (state->unarmed > 0) {
        arm_remaining(reactor);
    }
    if (io_uring_sq_ready(&state->ring) == 0) {
        return 0;
    }
    int rc = io_uring_submit(&state->ring);
    return rc >= 0 || passing(rc) ? 0 : rc;
}

const struct cg_backend cg_backend_uring = {
    .kind = CG_REACTOR_URING,
    .open = uring_open,
    .close = uring_close,
    .prepare_foreign = uring_prepare_foreign,
    .descriptor = uring_descriptor,
    .wait = uring_wait,
    .flush = uring_flush,
    .start = uring_start,
    .change = uring_change,
    .end = uring_end,
    .file = uring_file,
};
