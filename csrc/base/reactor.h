// SPDX-License-Identifier: BSD-3-Clause
//
// The event loop: one per thread, nothing shared. It watches descriptors, runs timers, performs
// file operations and takes tasks from other threads.
//
// It waits with epoll. File reads and direct writes go to an io_uring, or to a small thread pool
// where io_uring is refused (default container profiles) or CG_REACTOR_EPOLL asks for that; both
// behave alike. Blocking file operations that io_uring would only hand to kernel worker threads
// (fsync, fallocate, buffered writes) go to the thread pool in both.
//
// Two ways to run: cg_reactor_run on a thread of its own, or cg_reactor_progress from a foreign
// loop that polls cg_reactor_fd for input.
//
// Unless it says "any thread", a function belongs to the thread that runs the reactor. Callbacks
// run on that thread and may call anything here, except cg_reactor_destroy.
#ifndef CG_BASE_REACTOR_H
#define CG_BASE_REACTOR_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/list.h"

struct cg_reactor;

enum cg_reactor_backend {
    CG_REACTOR_AUTO = 0, // io_uring for files, else threads with a line in the log that says why
    CG_REACTOR_URING = 1,
    // Threads for files. The reactor's thread may change between calls when the callers order them
    // with a lock of their own.
    CG_REACTOR_EPOLL = 2,
};

struct cg_reactor_options {
    enum cg_reactor_backend
        backend;           // the environment's COPYGATE_REACTOR=uring|epoll overrides AUTO
    unsigned file_depth;   // file operations in the kernel at once; 0: 256. More are queued.
    unsigned pool_threads; // threads for blocking file operations; 0: 2
};

// Returns 0, -EINVAL, -ENOMEM, -EMFILE, or for CG_REACTOR_URING the error of io_uring_setup.
// `options` may be NULL. Any thread; the reactor belongs to whoever runs it first.
int cg_reactor_create(const struct cg_reactor_options *options, struct cg_reactor **out);

// No watch, timer or file operation may be left. Any thread, once nobody runs it.
void cg_reactor_destroy(struct cg_reactor *reactor);

// The backend in use: CG_REACTOR_URING or CG_REACTOR_EPOLL. Any thread.
enum cg_reactor_backend cg_reactor_backend(const struct cg_reactor *reactor);

// Handles events until cg_reactor_stop. Returns 0 or a negative errno of the wait itself.
int cg_reactor_run(struct cg_reactor *reactor);

// Makes cg_reactor_run return after the current iteration. Any thread; also from a callback.
void cg_reactor_stop(struct cg_reactor *reactor);

// A descriptor that is readable when cg_reactor_progress has something to do (timers and work
// started between two calls of it included; that costs a write to an eventfd, so better call
// cg_reactor_progress after starting work).
int cg_reactor_fd(struct cg_reactor *reactor);

// Handles what is ready and returns without blocking: the number of events handled, or -errno.
int cg_reactor_progress(struct cg_reactor *reactor);

// With a foreign poller: it will call cg_reactor_progress before it polls again, so nobody has to
// write the eventfd for work that is started until then.
void cg_reactor_awake(struct cg_reactor *reactor);

// As cg_reactor_progress, but waits up to `timeout_ns` for the first event (UINT64_MAX: no limit).
int cg_reactor_wait(struct cg_reactor *reactor, uint64_t timeout_ns);

// Monotonic time of the current iteration in nanoseconds, as cg_now_ns, read once per iteration;
// outside of an iteration it is the time now.
uint64_t cg_reactor_now(const struct cg_reactor *reactor);

// ---- Tasks from other threads

struct cg_task {
    struct cg_task *next;
    void (*run)(struct cg_task *task);
};

// Queues `task` to run once on the reactor's thread, in the order of posting per poster. Any
// thread; lock-free; the reactor's eventfd is written only when it sleeps. The task must stay valid
// until run.
void cg_reactor_post(struct cg_reactor *reactor, struct cg_task *task);

// ---- Work at the end of this iteration (batching: flush the log, send what was queued)

struct cg_deferred {
    struct cg_list node; // cg_list_init before the first use
    void (*run)(struct cg_deferred *deferred);
};

// Runs `deferred` once after the events of this iteration. Deferring it twice runs it once.
void cg_reactor_defer(struct cg_reactor *reactor, struct cg_deferred *deferred);
void cg_reactor_undefer(struct cg_deferred *deferred);

// ---- Descriptors (sockets, eventfds)

// Edge-triggered: `ready` reports EPOLLIN/EPOLLOUT/EPOLLERR/EPOLLHUP transitions, at least one
// after each change; read or write until EAGAIN. May be reported when nothing is there.
struct cg_watch {
    int fd;
    uint32_t events; // EPOLLIN, EPOLLOUT, EPOLLRDHUP; EPOLLERR and EPOLLHUP always come
    void (*ready)(struct cg_watch *watch, uint32_t events);
    struct cg_reactor *reactor;
    uint64_t internal[4]; // the reactor's. Zero the struct before the first use.
};

// Watches `watch->fd` for `watch->events`; a condition that holds already is reported too.
// Returns 0 or -errno.
int cg_reactor_watch(struct cg_reactor *reactor, struct cg_watch *watch);

// Changes what a watched descriptor is watched for; a condition that holds already is reported.
// Returns 0 or -errno. For EPOLLOUT while a send is blocked: watched for all the time, a unix
// socket reports it after every read of the peer.
int cg_reactor_rewatch(struct cg_watch *watch, uint32_t events);

// Stops watching; `ready` is not called any more, and `watch` may be freed at once. Call it before
// the descriptor is closed. Harmless if not watched.
void cg_reactor_unwatch(struct cg_watch *watch);

// ---- Timers

struct cg_timer {
    void (*fire)(struct cg_timer *timer);
    uint64_t deadline_ns; // monotonic; valid while armed
    uint32_t heap_index;  // 0: not armed. Zero the struct before the first use.
    struct cg_reactor *reactor;
};

// Arms `timer` for the monotonic time `deadline_ns`, or moves it there. Returns 0 or -ENOMEM.
// O(log n).
int cg_timer_arm(struct cg_reactor *reactor, struct cg_timer *timer, uint64_t deadline_ns);
void cg_timer_disarm(struct cg_timer *timer);

static inline bool cg_timer_armed(const struct cg_timer *timer) {
    return timer->heap_index != 0;
}

// ---- Files

enum cg_file_opcode {
    CG_FILE_READ,           // preadv2(fd, iov, iovcnt, offset, rw_flags)
    CG_FILE_WRITE,          // pwritev2; for O_DIRECT descriptors
    CG_FILE_WRITE_BUFFERED, // pwritev2 into the page cache, on the thread pool
    CG_FILE_FDATASYNC,
    CG_FILE_FSYNC,
    CG_FILE_FALLOCATE,  // fallocate(fd, mode, offset, length)
    CG_FILE_SYNC_RANGE, // sync_file_range(fd, offset, length, SYNC_FILE_RANGE_WRITE): start
                        // writeback
    CG_FILE_CALL,       // call(op) on the thread pool; it sets op->result
};

struct cg_file_op {
    enum cg_file_opcode opcode;
    int fd;
    const struct iovec *iov; // caller's, valid until done
    int iovcnt;
    int rw_flags;                        // RWF_DSYNC and the like
    int mode;                            // of fallocate
    uint64_t offset;                     // bytes
    uint64_t length;                     // bytes; fallocate, sync range
    void (*call)(struct cg_file_op *op); // CG_FILE_CALL: runs on a pool thread
    void (*done)(struct cg_file_op *op); // runs on the reactor's thread
    int64_t result;       // bytes, 0, or -errno; short reads and writes are passed on
    struct cg_list node;  // reactor's
    uint64_t internal[2]; // reactor's
};

// Starts `op`; `op->done` is called later, never from inside this call. Operations may complete in
// any order. `op` and its buffers stay valid until `done`.
void cg_reactor_file(struct cg_reactor *reactor, struct cg_file_op *op);

#endif
