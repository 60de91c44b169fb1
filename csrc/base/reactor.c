// SPDX-License-Identifier: BSD-3-Clause
//
// The loop: one iteration waits for events, then runs posted tasks, due timers and deferred work.
//
// Sleeping and waking. A poster pushes its task and then clears `sleeping`; if it was set, it
// writes wake_fd. The reactor sets `sleeping` and then looks at the tasks once more before it
// blocks (or hands control back to a foreign poller). Both sides use sequentially consistent
// operations, so that at least one of them sees the other: no wake-up is lost, and while the
// reactor works nobody pays for a system call. wake_fd is watched edge-triggered and therefore
// never read.
#include "base/reactor.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/reactor_internal.h"

// Deferred work that defers more work runs again in the same iteration, this often at most; the
// rest waits for the next iteration, which then does not sleep.
#define DEFERRED_ROUNDS 4

#define FILE_DEPTH_DEFAULT   256U
#define FILE_DEPTH_MAX       4096U
#define POOL_THREADS_DEFAULT 2U
#define POOL_THREADS_MAX     64U

static void ignore_event(struct cg_watch *watch, uint32_t events) {
    (void)watch;
    (void)events;
}

static int wanted_backend(enum cg_reactor_backend *wanted) {
    const char *environment = getenv("COPYGATE_REACTOR");
    if (*wanted != CG_REACTOR_AUTO || environment == NULL || environment[0] == '\0') {
        return 0;
    }
    if (strcmp(environment, "uring") == 0) {
        *wanted = CG_REACTOR_URING;
    } else if (strcmp(environment, "epoll") == 0) {
        *wanted = CG_REACTOR_EPOLL;
    } else {
        cg_log(CG_LOG_ERROR, "COPYGATE_REACTOR is \"%s\"; it can be uring or epoll", environment);
        return -EINVAL;
    }
    return 0;
}

static int watch_own(struct cg_reactor *reactor, struct cg_watch *watch, int fd) {
    watch->fd = fd;
    watch->events = EPOLLIN;
    watch->ready = ignore_event;
    return cg_reactor_watch(reactor, watch);
}

static int open_ring(struct cg_reactor *reactor, enum cg_reactor_backend wanted) {
    int rc = wanted_backend(&wanted);
    if (rc < 0 || wanted == CG_REACTOR_EPOLL) {
        return rc;
    }
    rc = cg_ring_create(reactor, reactor->file_depth, &reactor->ring);
    if (rc < 0 && wanted == CG_REACTOR_AUTO) {
        cg_log(CG_LOG_INFO, "io_uring cannot be used here (%s): file operations go to threads",
               strerrorname_np(-rc));
        return 0;
    }
    // What is reported is not needed: completions are looked for in each iteration.
    return rc < 0 ? rc
                  : watch_own(reactor, &reactor->ring_watch, cg_ring_descriptor(reactor->ring));
}

static int open_wake(struct cg_reactor *reactor) {
    reactor->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (reactor->wake_fd < 0) {
        return -errno;
    }
    return watch_own(reactor, &reactor->wake_watch, reactor->wake_fd);
}

// Frees whatever has been made.
static void take_down(struct cg_reactor *reactor) {
    cg_pool_destroy(reactor->pool);
    if (reactor->epoll != NULL) {
        cg_reactor_unwatch(&reactor->wake_watch);
        cg_reactor_unwatch(&reactor->timer_watch);
        cg_reactor_unwatch(&reactor->ring_watch);
        cg_epoll_close(reactor);
    }
    cg_ring_destroy(reactor->ring);
    if (reactor->wake_fd >= 0) {
        close(reactor->wake_fd);
    }
    if (reactor->timer_fd >= 0) {
        close(reactor->timer_fd);
    }
    free(reactor->heap);
    free(reactor->slots);
    free(reactor);
}

int cg_reactor_create(const struct cg_reactor_options *options, struct cg_reactor **out) {
    struct cg_reactor_options defaults = {0};
    if (options == NULL) {
        options = &defaults;
    }
    if (options->backend > CG_REACTOR_EPOLL || options->file_depth > FILE_DEPTH_MAX ||
        options->pool_threads > POOL_THREADS_MAX) {
        return -EINVAL;
    }
    struct cg_reactor *reactor = aligned_alloc(64, sizeof(*reactor));
    if (reactor == NULL) {
        return -ENOMEM;
    }
    memset(reactor, 0, sizeof(*reactor));
    reactor->wake_fd = -1;
    reactor->timer_fd = -1;
    reactor->now_ns = cg_now_ns();
    reactor->file_depth = options->file_depth != 0 ? options->file_depth : FILE_DEPTH_DEFAULT;
    cg_list_init(&reactor->deferred);
    cg_list_init(&reactor->files_waiting);

    unsigned threads = options->pool_threads != 0 ? options->pool_threads : POOL_THREADS_DEFAULT;
    int rc = cg_pool_create(reactor, threads, &reactor->pool);
    if (rc == 0) {
        rc = cg_epoll_open(reactor);
    }
    if (rc == 0) {
        rc = open_wake(reactor);
    }
    if (rc == 0) {
        rc = open_ring(reactor, options->backend);
    }
    if (rc < 0) {
        take_down(reactor);
        return rc;
    }
    *out = reactor;
    return 0;
}

void cg_reactor_destroy(struct cg_reactor *reactor) {
    if (reactor != NULL) {
        assert(reactor->heap_count == 0 && reactor->files_running == 0);
        take_down(reactor);
    }
}

enum cg_reactor_backend cg_reactor_backend(const struct cg_reactor *reactor) {
    return reactor->ring != NULL ? CG_REACTOR_URING : CG_REACTOR_EPOLL;
}

uint64_t cg_reactor_now(const struct cg_reactor *reactor) {
    return reactor->iterating ? reactor->now_ns : cg_now_ns();
}

// ---- Waking and tasks

void cg_reactor_wake(struct cg_reactor *reactor) {
    if (atomic_exchange(&reactor->sleeping, false)) {
        uint64_t one = 1;
        // It can only fail when the counter is full: then the descriptor has been readable for
        // long.
        ssize_t n = write(reactor->wake_fd, &one, sizeof(one));
        (void)n;
    }
}

void cg_reactor_post(struct cg_reactor *reactor, struct cg_task *task) {
    struct cg_task *head = atomic_load_explicit(&reactor->posted, memory_order_relaxed);
    do {
        task->next = head;
    } while (!atomic_compare_exchange_weak(&reactor->posted, &head, task));
    // Reading first keeps posters off the shared line while the reactor is awake.
    if (atomic_load(&reactor->sleeping)) {
        cg_reactor_wake(reactor);
    }
}

static bool tasks_wait(struct cg_reactor *reactor) {
    return atomic_load(&reactor->posted) != NULL;
}

static unsigned run_tasks(struct cg_reactor *reactor) {
    if (atomic_load_explicit(&reactor->posted, memory_order_relaxed) == NULL) {
        return 0;
    }
    struct cg_task *newest = atomic_exchange(&reactor->posted, NULL);
    struct cg_task *oldest = NULL;
    while (newest != NULL) {
        struct cg_task *next = newest->next;
        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    unsigned count = 0;
    while (oldest != NULL) {
        struct cg_task *task = oldest;
        oldest = task->next; // the task may be freed or posted again by run
        task->run(task);
        count++;
    }
    return count;
}

// ---- Deferred work

void cg_reactor_defer(struct cg_reactor *reactor, struct cg_deferred *deferred) {
    if (cg_list_linked(&deferred->node)) {
        return;
    }
    cg_list_push_back(&reactor->deferred, &deferred->node);
    cg_reactor_work_added(reactor);
}

void cg_reactor_undefer(struct cg_deferred *deferred) {
    cg_list_remove(&deferred->node);
}

static unsigned run_deferred(struct cg_reactor *reactor) {
    unsigned count = 0;
    for (int round = 0; round < DEFERRED_ROUNDS && !cg_list_empty(&reactor->deferred); round++) {
        // A marker ends the round; the list is not moved, so that undefer works all the while.
        struct cg_list marker;
        cg_list_push_back(&reactor->deferred, &marker);
        for (;;) {
            struct cg_list *node = cg_list_pop_front(&reactor->deferred);
            if (node == &marker) {
                break;
            }
            struct cg_deferred *deferred = CG_CONTAINER_OF(node, struct cg_deferred, node);
            deferred->run(deferred);
            count++;
        }
    }
    return count;
}

// ---- The iteration

static uint64_t time_to_sleep(struct cg_reactor *reactor, uint64_t timeout_ns) {
    if (!cg_list_empty(&reactor->deferred) ||
        (reactor->ring != NULL && cg_ring_ready(reactor->ring))) {
        return 0;
    }
    if (timeout_ns != 0 && reactor->heap_count > 0) {
        uint64_t now = cg_now_ns();
        uint64_t deadline = reactor->heap[1]->deadline_ns;
        uint64_t left = deadline > now ? deadline - now : 0;
        timeout_ns = left < timeout_ns ? left : timeout_ns;
    }
    if (timeout_ns != 0) {
        atomic_store(&reactor->sleeping, true);
        if (tasks_wait(reactor) || atomic_load(&reactor->stopping)) {
            timeout_ns = 0;
        }
    }
    return timeout_ns;
}

static int start_files(struct cg_reactor *reactor) {
    if (reactor->ring == NULL) {
        return 0;
    }
    cg_reactor_start_files(reactor);
    return cg_ring_submit(reactor->ring);
}

static int iterate(struct cg_reactor *reactor, uint64_t timeout_ns) {
    int rc = start_files(reactor);
    if (rc < 0) {
        return rc;
    }
    timeout_ns = time_to_sleep(reactor, timeout_ns);
    int events = cg_epoll_wait(reactor, timeout_ns);
    // Relaxed is enough: a task that is missed because of it is found before the next sleep.
    atomic_store_explicit(&reactor->sleeping, false, memory_order_relaxed);
    if (events < 0) {
        return events;
    }
    reactor->iterating = true;
    reactor->now_ns = cg_now_ns();
    cg_epoll_dispatch(reactor, events);
    unsigned count = (unsigned)events;
    if (reactor->ring != NULL) {
        count += cg_ring_reap(reactor->ring);
    }
    count += run_tasks(reactor);
    count += cg_reactor_fire_timers(reactor);
    count += run_deferred(reactor);
    reactor->iterating = false;
    return (int)(count & INT32_MAX);
}

static void arm_timer_fd(struct cg_reactor *reactor) {
    uint64_t deadline = reactor->heap_count > 0 ? reactor->heap[1]->deadline_ns : UINT64_MAX;
    if (reactor->timer_fd_deadline_ns <= reactor->now_ns) {
        reactor->timer_fd_deadline_ns = UINT64_MAX; // it has fired
    }
    // A deadline that moved back costs one needless wake-up when the old one comes; setting the
    // clock after each request would cost a system call each time.
    if (deadline >= reactor->timer_fd_deadline_ns) {
        return;
    }
    struct itimerspec when = {
        .it_value = {.tv_sec = (time_t)(deadline / CG_NS_PER_S),
                     .tv_nsec = (long)(deadline % CG_NS_PER_S)},
    };
    if (when.it_value.tv_sec == 0 && when.it_value.tv_nsec == 0) {
        when.it_value.tv_nsec = 1;
    }
    if (timerfd_settime(reactor->timer_fd, TFD_TIMER_ABSTIME, &when, NULL) == 0) {
        reactor->timer_fd_deadline_ns = deadline;
    } else {
        cg_log(CG_LOG_ERROR, "timerfd_settime: %s", strerrorname_np(errno));
    }
}

// Hands control to the foreign poller: from here on whoever makes work writes wake_fd.
static int hand_back(struct cg_reactor *reactor) {
    arm_timer_fd(reactor);
    int rc = start_files(reactor);
    atomic_store(&reactor->sleeping, true);
    if (tasks_wait(reactor) || !cg_list_empty(&reactor->deferred) ||
        (reactor->ring != NULL && cg_ring_ready(reactor->ring))) {
        cg_reactor_wake(reactor);
    }
    return rc;
}

int cg_reactor_fd(struct cg_reactor *reactor) {
    if (!reactor->foreign) {
        reactor->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
        if (reactor->timer_fd < 0) {
            return -errno;
        }
        int rc = watch_own(reactor, &reactor->timer_watch, reactor->timer_fd);
        if (rc < 0) {
            close(reactor->timer_fd);
            reactor->timer_fd = -1;
            return rc;
        }
        reactor->timer_fd_deadline_ns = UINT64_MAX;
        reactor->foreign = true;
        rc = hand_back(reactor);
        if (rc < 0) {
            return rc;
        }
    }
    return cg_epoll_descriptor(reactor);
}

int cg_reactor_wait(struct cg_reactor *reactor, uint64_t timeout_ns) {
    if (reactor->foreign) {
        atomic_store_explicit(&reactor->sleeping, false, memory_order_relaxed);
    }
    int count = iterate(reactor, timeout_ns);
    if (reactor->foreign) {
        int rc = hand_back(reactor);
        return count < 0 || rc == 0 ? count : rc;
    }
    if (count >= 0) {
        int rc = start_files(reactor);
        return rc < 0 ? rc : count;
    }
    return count;
}

int cg_reactor_progress(struct cg_reactor *reactor) {
    return cg_reactor_wait(reactor, 0);
}

void cg_reactor_awake(struct cg_reactor *reactor) {
    // Only the thread that will run it clears the flag: what posters do until then is seen then.
    atomic_store_explicit(&reactor->sleeping, false, memory_order_relaxed);
}

void cg_reactor_stop(struct cg_reactor *reactor) {
    atomic_store(&reactor->stopping, true);
    cg_reactor_wake(reactor);
}

int cg_reactor_run(struct cg_reactor *reactor) {
    while (!atomic_load_explicit(&reactor->stopping, memory_order_relaxed)) {
        int rc = iterate(reactor, UINT64_MAX);
        if (rc < 0) {
            return rc;
        }
    }
    atomic_store(&reactor->stopping, false);
    return start_files(reactor);
}
