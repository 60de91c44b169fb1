// SPDX-License-Identifier: BSD-3-Clause
//
// What the parts of the reactor share: the loop (reactor.c), timers (reactor_timer.c), watches
// (reactor_watch.c, reactor_epoll.c), file operations (reactor_file.c, ring.c, pool.c).
#ifndef CG_BASE_REACTOR_INTERNAL_H
#define CG_BASE_REACTOR_INTERNAL_H

#include <stdatomic.h>
#include <stddef.h>

#include "base/pool.h"
#include "base/reactor.h"
#include "base/ring.h"

// A watch is known to the kernel by its slot and the slot's generation, never by its address:
// events that are still under way when it is removed find another generation and are dropped.
struct cg_watch_slot {
    struct cg_watch *watch; // NULL: free
    uint32_t generation;
    uint32_t next_free; // index + 1
};

struct cg_reactor {
    struct cg_epoll *epoll;
    struct cg_ring *ring; // NULL: all file operations go to the pool
    struct cg_watch ring_watch;
    uint64_t now_ns;
    bool iterating;
    bool foreign; // somebody polls the descriptor

    struct cg_timer **heap; // heap[1] is the earliest
    uint32_t heap_count;
    uint32_t heap_capacity;

    struct cg_list deferred;

    struct cg_watch_slot *slots;
    uint32_t slot_count;
    uint32_t slot_free; // index + 1

    struct cg_pool *pool;
    struct cg_list files_waiting;
    unsigned files_running;
    unsigned file_depth;

    int wake_fd;
    struct cg_watch wake_watch;
    int timer_fd; // foreign pollers only; -1 until then
    struct cg_watch timer_watch;
    uint64_t timer_fd_deadline_ns;

    // Other threads' line. `sleeping` means: whoever makes work must write wake_fd (and clears it).
    _Alignas(64) _Atomic(struct cg_task *) posted;
    atomic_bool sleeping;
    atomic_bool stopping;
};

// ---- reactor_epoll.c. Functions that may fail return 0 or -errno.
int cg_epoll_open(struct cg_reactor *reactor);
void cg_epoll_close(struct cg_reactor *reactor);
int cg_epoll_descriptor(const struct cg_reactor *reactor);
// Waits up to timeout_ns (0: not at all, UINT64_MAX: no limit). Returns the number of events, which
// cg_epoll_dispatch then reports, or -errno. A signal or a timeout is 0 events.
int cg_epoll_wait(struct cg_reactor *reactor, uint64_t timeout_ns);
void cg_epoll_dispatch(struct cg_reactor *reactor, int count);
int cg_epoll_start(struct cg_reactor *reactor, uint32_t slot);
int cg_epoll_change(struct cg_reactor *reactor, uint32_t slot);
void cg_epoll_end(struct cg_reactor *reactor, int fd);

// Makes a sleeping reactor look. Any thread.
void cg_reactor_wake(struct cg_reactor *reactor);

// Called when work was made outside of an iteration: a foreign poller must come back for it.
static inline void cg_reactor_work_added(struct cg_reactor *reactor) {
    if (reactor->foreign && !reactor->iterating) {
        cg_reactor_wake(reactor);
    }
}

// Fires what is due at now_ns; returns how many.
unsigned cg_reactor_fire_timers(struct cg_reactor *reactor);

// Reports `events` to the watch in `slot` if its generation is still this one.
void cg_reactor_dispatch(struct cg_reactor *reactor, uint32_t slot, uint32_t generation,
                         uint32_t events);

// Starts waiting reads and writes as far as there is room.
void cg_reactor_start_files(struct cg_reactor *reactor);

// A READ or WRITE that the ring took is done.
void cg_reactor_file_done(struct cg_reactor *reactor, struct cg_file_op *op, int64_t result);

#endif
