// SPDX-License-Identifier: BSD-3-Clause
//
// The reactor, each test on both backends.
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/reactor.h"

static enum cg_reactor_backend backend_under_test;

static int set_up(void **state) {
    struct cg_reactor_options options = {.backend = backend_under_test, .file_depth = 8};
    struct cg_reactor *reactor;
    int rc = cg_reactor_create(&options, &reactor);
    if (rc < 0) {
        print_error("cg_reactor_create: %s\n", strerror(-rc));
        return -1;
    }
    *state = reactor;
    return 0;
}

static int tear_down(void **state) {
    cg_reactor_destroy(*state);
    return 0;
}

// Runs iterations until *flag, at most 10 s.
static void run_until(struct cg_reactor *reactor, const int *flag, int wanted) {
    uint64_t end = cg_now_ns() + 10 * CG_NS_PER_S;
    while (__atomic_load_n(flag, __ATOMIC_ACQUIRE) < wanted) {
        assert_true(cg_now_ns() < end);
        assert_true(cg_reactor_wait(reactor, 100 * CG_NS_PER_MS) >= 0);
    }
}

// ---- Timers

struct test_timer {
    struct cg_timer timer;
    int id;
    int *order;
    int *fired;
};

static void note_timer(struct cg_timer *timer) {
    struct test_timer *self = CG_CONTAINER_OF(timer, struct test_timer, timer);
    assert_true(cg_reactor_now(timer->reactor) >= timer->deadline_ns);
    self->order[(*self->fired)++] = self->id;
}

static void timers_fire_in_the_order_of_their_deadlines(void **state) {
    struct cg_reactor *reactor = *state;
    enum { COUNT = 500 };
    static struct test_timer timers[COUNT];
    static int order[COUNT];
    int fired = 0;
    memset(timers, 0, sizeof(timers));
    uint64_t base = cg_now_ns() + 5 * CG_NS_PER_MS;
    for (int i = 0; i < COUNT; i++) {
        int rank = (i * 7919) % COUNT; // a permutation: 7919 is prime
        timers[i] = (struct test_timer){{.fire = note_timer}, rank, order, &fired};
        assert_int_equal(cg_timer_arm(reactor, &timers[i].timer, base + (uint64_t)rank * 20000U),
                         0);
    }
    run_until(reactor, &fired, COUNT);
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(order[i], i);
        assert_false(cg_timer_armed(&timers[i].timer));
    }
}

static void a_disarmed_timer_does_not_fire_and_a_moved_one_fires_once(void **state) {
    struct cg_reactor *reactor = *state;
    int order[8], fired = 0;
    struct test_timer a = {{.fire = note_timer}, 1, order, &fired};
    struct test_timer b = {{.fire = note_timer}, 2, order, &fired};
    struct test_timer c = {{.fire = note_timer}, 3, order, &fired};
    uint64_t now = cg_now_ns();
    assert_int_equal(cg_timer_arm(reactor, &a.timer, now + CG_NS_PER_MS), 0);
    assert_int_equal(cg_timer_arm(reactor, &b.timer, now + 2 * CG_NS_PER_MS), 0);
    assert_int_equal(cg_timer_arm(reactor, &c.timer, now + 3600 * CG_NS_PER_S), 0);
    cg_timer_disarm(&b.timer);
    cg_timer_disarm(&b.timer);
    assert_int_equal(cg_timer_arm(reactor, &c.timer, now + 3 * CG_NS_PER_MS), 0);
    run_until(reactor, &fired, 2);
    assert_true(cg_reactor_wait(reactor, 5 * CG_NS_PER_MS) >= 0);
    assert_int_equal(fired, 2);
    assert_int_equal(order[0], 1);
    assert_int_equal(order[1], 3);
}

static void rearm_at_once(struct cg_timer *timer) {
    struct test_timer *self = CG_CONTAINER_OF(timer, struct test_timer, timer);
    if (++*self->fired < 1000) {
        assert_int_equal(cg_timer_arm(timer->reactor, timer, 1), 0);
    }
}

static void a_timer_that_rearms_for_the_past_does_not_hold_the_loop(void **state) {
    struct cg_reactor *reactor = *state;
    int fired = 0;
    struct test_timer a = {{.fire = rearm_at_once}, 1, NULL, &fired};
    assert_int_equal(cg_timer_arm(reactor, &a.timer, 1), 0);
    assert_true(cg_reactor_progress(reactor) >= 0);
    assert_true(fired < 3);
    run_until(reactor, &fired, 1000);
}

static void waiting_ends_at_the_timeout(void **state) {
    struct cg_reactor *reactor = *state;
    uint64_t begin = cg_now_ns();
    while (cg_now_ns() - begin < 20 * CG_NS_PER_MS) {
        assert_true(cg_reactor_wait(reactor, 20 * CG_NS_PER_MS) >= 0);
    }
    assert_true(cg_now_ns() - begin < 2 * CG_NS_PER_S);
}

// ---- Tasks from other threads

enum { POSTERS = 4, POSTS_EACH = 20000 };

struct poster {
    pthread_t thread;
    struct cg_reactor *reactor;
    struct numbered_task {
        struct cg_task task;
        struct poster *poster;
        int number;
    } * tasks;
    int next_expected;
    int *ran;
};

static void note_task(struct cg_task *task) {
    struct numbered_task *self = CG_CONTAINER_OF(task, struct numbered_task, task);
    assert_int_equal(self->number, self->poster->next_expected);
    self->poster->next_expected++;
    __atomic_fetch_add(self->poster->ran, 1, __ATOMIC_RELEASE);
}

static void *post_many(void *argument) {
    struct poster *poster = argument;
    for (int i = 0; i < POSTS_EACH; i++) {
        poster->tasks[i] = (struct numbered_task){{.run = note_task}, poster, i};
        cg_reactor_post(poster->reactor, &poster->tasks[i].task);
        // Bursts and pauses, so that the reactor falls asleep now and then.
        if (i % 512 == 0) {
            usleep(100);
        }
    }
    return NULL;
}

static void posts_from_many_threads_all_run_in_order_per_thread(void **state) {
    struct cg_reactor *reactor = *state;
    struct poster posters[POSTERS];
    int ran = 0;
    for (int i = 0; i < POSTERS; i++) {
        posters[i] = (struct poster){.reactor = reactor, .ran = &ran};
        posters[i].tasks = calloc(POSTS_EACH, sizeof(struct numbered_task));
        assert_int_equal(pthread_create(&posters[i].thread, NULL, post_many, &posters[i]), 0);
    }
    run_until(reactor, &ran, POSTERS * POSTS_EACH);
    for (int i = 0; i < POSTERS; i++) {
        pthread_join(posters[i].thread, NULL);
        assert_int_equal(posters[i].next_expected, POSTS_EACH);
        free(posters[i].tasks);
    }
}

struct ping {
    struct cg_task task;
    int done;
};

static void note_ping(struct cg_task *task) {
    struct ping *ping = CG_CONTAINER_OF(task, struct ping, task);
    __atomic_store_n(&ping->done, 1, __ATOMIC_RELEASE);
}

static void *run_reactor(void *argument) {
    return (void *)(intptr_t)cg_reactor_run(argument);
}

// One post at a time at a reactor that has just gone to sleep or is about to: a lost wake-up hangs.
static void no_wakeup_is_lost_when_posting_one_by_one(void **state) {
    struct cg_reactor *reactor = *state;
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, run_reactor, reactor), 0);
    for (int i = 0; i < 20000; i++) {
        struct ping ping = {.task.run = note_ping};
        cg_reactor_post(reactor, &ping.task);
        uint64_t end = cg_now_ns() + 10 * CG_NS_PER_S;
        while (!__atomic_load_n(&ping.done, __ATOMIC_ACQUIRE)) {
            if (cg_now_ns() > end) {
                fail_msg("post %d was not run", i);
            }
        }
    }
    cg_reactor_stop(reactor);
    void *result;
    pthread_join(thread, &result);
    assert_null(result);
}

static void stop_ends_run_however_close_to_falling_asleep(void **state) {
    (void)state;
    for (int i = 0; i < 300; i++) {
        struct cg_reactor *reactor;
        struct cg_reactor_options options = {.backend = backend_under_test};
        assert_int_equal(cg_reactor_create(&options, &reactor), 0);
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, run_reactor, reactor), 0);
        if (i % 2 == 0) {
            usleep((useconds_t)(i % 7) * 20U);
        }
        cg_reactor_stop(reactor);
        void *result;
        pthread_join(thread, &result);
        assert_null(result);
        cg_reactor_destroy(reactor);
    }
}

// ---- Deferred work

struct test_deferred {
    struct cg_deferred deferred;
    struct cg_reactor *reactor;
    int runs;
    int again;
};

static void note_deferred(struct cg_deferred *deferred) {
    struct test_deferred *self = CG_CONTAINER_OF(deferred, struct test_deferred, deferred);
    self->runs++;
    if (self->again > 0) {
        self->again--;
        cg_reactor_defer(self->reactor, deferred);
    }
}

static void deferred_work_runs_once_per_defer_and_may_defer_itself(void **state) {
    struct cg_reactor *reactor = *state;
    struct test_deferred once = {{.run = note_deferred}, reactor, 0, 0};
    struct test_deferred many = {{.run = note_deferred}, reactor, 0, 100};
    struct test_deferred never = {{.run = note_deferred}, reactor, 0, 0};
    cg_list_init(&once.deferred.node);
    cg_list_init(&many.deferred.node);
    cg_list_init(&never.deferred.node);
    cg_reactor_defer(reactor, &once.deferred);
    cg_reactor_defer(reactor, &once.deferred);
    cg_reactor_defer(reactor, &many.deferred);
    cg_reactor_defer(reactor, &never.deferred);
    cg_reactor_undefer(&never.deferred);
    assert_true(cg_reactor_progress(reactor) >= 0);
    assert_int_equal(once.runs, 1);
    assert_in_range(many.runs, 1, 50);   // bounded in one iteration
    run_until(reactor, &many.runs, 101); // and the loop does not sleep meanwhile
    assert_int_equal(never.runs, 0);
}

// ---- Descriptors

struct test_watch {
    struct cg_watch watch;
    int calls;
    uint32_t seen;
    int received;
};

static void drain(struct cg_watch *watch, uint32_t events) {
    struct test_watch *self = CG_CONTAINER_OF(watch, struct test_watch, watch);
    self->calls++;
    self->seen |= events;
    char data[64];
    ssize_t n;
    while ((n = recv(watch->fd, data, sizeof(data), MSG_DONTWAIT)) > 0) {
        self->received += (int)n;
    }
}

static void a_watch_reports_what_holds_already_and_every_change(void **state) {
    struct cg_reactor *reactor = *state;
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
    assert_int_equal(write(pair[1], "x", 1), 1);
    struct test_watch w = {.watch = {.fd = pair[0], .events = EPOLLIN, .ready = drain}};
    assert_int_equal(cg_reactor_watch(reactor, &w.watch), 0);
    run_until(reactor, &w.received, 1);
    for (int i = 2; i < 200; i++) {
        assert_int_equal(write(pair[1], "y", 1), 1);
        run_until(reactor, &w.received, i);
    }
    w.seen = 0;
    close(pair[1]);
    uint64_t end = cg_now_ns() + 5 * CG_NS_PER_S;
    while ((w.seen & EPOLLHUP) == 0 && cg_now_ns() < end) {
        cg_reactor_wait(reactor, CG_NS_PER_MS);
    }
    assert_true(w.seen & EPOLLHUP);
    cg_reactor_unwatch(&w.watch);
    cg_reactor_unwatch(&w.watch);
    close(pair[0]);
}

static void rewatch_changes_the_events_and_reports_what_holds(void **state) {
    struct cg_reactor *reactor = *state;
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
    struct test_watch w = {.watch = {.fd = pair[0], .events = EPOLLIN, .ready = drain}};
    assert_int_equal(cg_reactor_watch(reactor, &w.watch), 0);
    cg_reactor_wait(reactor, CG_NS_PER_MS);
    assert_false(w.seen & EPOLLOUT);
    for (int round = 0; round < 100; round++) {
        w.calls = 0;
        assert_int_equal(cg_reactor_rewatch(&w.watch, EPOLLIN | EPOLLOUT), 0);
        run_until(reactor, &w.calls, 1);
        assert_true(w.seen & EPOLLOUT);
        assert_int_equal(cg_reactor_rewatch(&w.watch, EPOLLIN), 0);
        w.seen = 0;
        int before = w.received;
        assert_int_equal(write(pair[1], "x", 1), 1);
        run_until(reactor, &w.received, before + 1);
        assert_false(w.seen & EPOLLOUT);
    }
    cg_reactor_unwatch(&w.watch);
    close(pair[0]);
    close(pair[1]);
}

struct mutual {
    struct cg_watch watch;
    struct mutual **other;
    int *calls;
};

static void remove_the_other(struct cg_watch *watch, uint32_t events) {
    (void)events;
    struct mutual *self = CG_CONTAINER_OF(watch, struct mutual, watch);
    (*self->calls)++;
    struct mutual *victim = *self->other;
    if (victim != NULL) {
        *self->other = NULL;
        cg_reactor_unwatch(&victim->watch);
        free(victim);
    }
}

// Both descriptors become ready in the same batch; the first callback frees the second watch. Under
// ASan a late callback is a use after free.
static void unwatch_is_final_even_with_events_under_way(void **state) {
    struct cg_reactor *reactor = *state;
    for (int round = 0; round < 50; round++) {
        int fd[2] = {eventfd(0, EFD_NONBLOCK), eventfd(0, EFD_NONBLOCK)};
        struct mutual *m[2];
        int calls = 0;
        for (int i = 0; i < 2; i++) {
            m[i] = calloc(1, sizeof(*m[i]));
            m[i]->watch =
                (struct cg_watch){.fd = fd[i], .events = EPOLLIN, .ready = remove_the_other};
            m[i]->calls = &calls;
        }
        m[0]->other = &m[1];
        m[1]->other = &m[0];
        for (int i = 0; i < 2; i++) {
            assert_int_equal(cg_reactor_watch(reactor, &m[i]->watch), 0);
        }
        cg_reactor_progress(reactor);
        uint64_t one = 1;
        assert_int_equal(write(fd[0], &one, 8), 8);
        assert_int_equal(write(fd[1], &one, 8), 8);
        run_until(reactor, &calls, 1);
        cg_reactor_wait(reactor, CG_NS_PER_MS / 10);
        assert_int_equal(calls, 1);
        for (int i = 0; i < 2; i++) {
            if (m[i] != NULL) {
                cg_reactor_unwatch(&m[i]->watch);
                free(m[i]);
            }
            close(fd[i]);
        }
    }
}

static void hundreds_of_watches_before_the_first_run(void **state) {
    struct cg_reactor *reactor = *state;
    enum { COUNT = 400 }; // more than the submission queue holds
    static struct test_watch w[COUNT];
    static int pair[COUNT][2];
    memset(w, 0, sizeof(w));
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair[i]), 0);
        w[i].watch = (struct cg_watch){.fd = pair[i][0], .events = EPOLLIN, .ready = drain};
        assert_int_equal(cg_reactor_watch(reactor, &w[i].watch), 0);
    }
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(write(pair[i][1], "x", 1), 1);
    }
    for (int i = 0; i < COUNT; i++) {
        run_until(reactor, &w[i].received, 1);
        cg_reactor_unwatch(&w[i].watch);
        close(pair[i][0]);
        close(pair[i][1]);
    }
}

// ---- Files

struct test_op {
    struct cg_file_op op;
    struct iovec iov;
    int *done;
};

static void note_file(struct cg_file_op *op) {
    struct test_op *self = CG_CONTAINER_OF(op, struct test_op, op);
    (*self->done)++;
}

static void do_file(struct cg_reactor *reactor, struct test_op *op) {
    int done = 0;
    op->op.done = note_file;
    op->done = &done;
    cg_reactor_file(reactor, &op->op);
    assert_int_equal(done, 0); // never from inside the call
    run_until(reactor, &done, 1);
}

static int open_scratch(int flags) {
    char path[] = "/tmp/copygate-reactor-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    fd = open(path, flags);
    unlink(path);
    return fd;
}

static void file_operations_of_every_kind(void **state) {
    struct cg_reactor *reactor = *state;
    int fd = open_scratch(O_RDWR);
    assert_true(fd >= 0);
    char out[] = "written", in[16] = {0};
    struct test_op op = {.op = {.opcode = CG_FILE_WRITE, .fd = fd, .iovcnt = 1, .offset = 100}};
    op.iov = (struct iovec){out, sizeof(out)};
    op.op.iov = &op.iov;
    do_file(reactor, &op);
    assert_int_equal(op.op.result, sizeof(out));
    op.op.opcode = CG_FILE_WRITE_BUFFERED;
    op.op.offset = 200;
    do_file(reactor, &op);
    assert_int_equal(op.op.result, sizeof(out));
    op.op.opcode = CG_FILE_READ;
    op.iov = (struct iovec){in, sizeof(in)};
    do_file(reactor, &op);
    assert_int_equal(op.op.result, sizeof(out)); // short: the end of the file
    assert_string_equal(in, out);
    static const enum cg_file_opcode plain[] = {CG_FILE_FDATASYNC, CG_FILE_FSYNC, CG_FILE_FALLOCATE,
                                                CG_FILE_SYNC_RANGE};
    for (unsigned i = 0; i < 4; i++) {
        op.op.opcode = plain[i];
        op.op.offset = 0;
        op.op.length = 8192;
        do_file(reactor, &op);
        assert_int_equal(op.op.result, 0);
    }
    assert_int_equal(lseek(fd, 0, SEEK_END), 8192);
    op.op.opcode = CG_FILE_READ;
    op.op.fd = -1;
    do_file(reactor, &op);
    assert_int_equal(op.op.result, -EBADF);
    op.op.opcode = CG_FILE_FSYNC;
    do_file(reactor, &op);
    assert_int_equal(op.op.result, -EBADF);
    close(fd);
}

static void call_elsewhere(struct cg_file_op *op) {
    op->result = gettid();
}

static void calls_run_on_another_thread(void **state) {
    struct test_op op = {.op = {.opcode = CG_FILE_CALL, .call = call_elsewhere}};
    do_file(*state, &op);
    assert_true(op.op.result > 0);
    assert_int_not_equal(op.op.result, gettid());
}

static void more_operations_than_the_depth_all_complete(void **state) {
    struct cg_reactor *reactor = *state;
    enum { COUNT = 2000 };
    static struct test_op ops[COUNT];
    static uint32_t values[COUNT];
    int fd = open_scratch(O_RDWR);
    for (int pass = 0; pass < 2; pass++) {
        int done = 0;
        memset(ops, 0, sizeof(ops));
        for (uint32_t i = 0; i < COUNT; i++) {
            values[i] = pass == 0 ? i : UINT32_MAX;
            ops[i].iov = (struct iovec){&values[i], 4};
            ops[i].op = (struct cg_file_op){.opcode = pass == 0 ? CG_FILE_WRITE : CG_FILE_READ,
                                            .fd = fd,
                                            .iov = &ops[i].iov,
                                            .iovcnt = 1,
                                            .offset = 4 * i,
                                            .done = note_file};
            ops[i].done = &done;
            cg_reactor_file(reactor, &ops[i].op);
        }
        run_until(reactor, &done, COUNT);
        for (uint32_t i = 0; i < COUNT; i++) {
            assert_int_equal(ops[i].op.result, 4);
            assert_int_equal(values[i], i);
        }
    }
    close(fd);
}

// ---- Inside a foreign loop

static bool readable(int fd, int timeout_ms) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, timeout_ms) == 1;
}

static void poll_until(struct cg_reactor *reactor, int fd, const int *flag, int wanted) {
    while (__atomic_load_n(flag, __ATOMIC_ACQUIRE) < wanted) {
        assert_true(readable(fd, 5000));
        assert_true(cg_reactor_progress(reactor) >= 0);
    }
}

static void settle(struct cg_reactor *reactor, int fd) {
    for (int i = 0; i < 20 && readable(fd, 0); i++) {
        assert_true(cg_reactor_progress(reactor) >= 0);
    }
    assert_false(readable(fd, 0));
}

static void *post_later(void *argument) {
    struct poster *poster = argument;
    for (int i = 0; i < 2000; i++) {
        poster->tasks[i] = (struct numbered_task){{.run = note_task}, poster, i};
        cg_reactor_post(poster->reactor, &poster->tasks[i].task);
        usleep(i % 10 == 0 ? 50 : 0);
    }
    return NULL;
}

static void a_foreign_loop_is_woken_by_everything(void **state) {
    struct cg_reactor *reactor = *state;
    int fd = cg_reactor_fd(reactor);
    assert_true(fd >= 0);
    settle(reactor, fd);

    int order[4], fired = 0;
    struct test_timer t = {{.fire = note_timer}, 1, order, &fired};
    for (int i = 1; i <= 3; i++) { // armed outside of an iteration, sooner each time
        uint64_t begin = cg_now_ns();
        uint64_t delay = (uint64_t)(40 - i * 10) * CG_NS_PER_MS;
        assert_int_equal(cg_timer_arm(reactor, &t.timer, begin + delay), 0);
        poll_until(reactor, fd, &fired, i);
        assert_true(cg_now_ns() - begin < delay + CG_NS_PER_S);
    }
    settle(reactor, fd);

    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
    struct test_watch w = {.watch = {.fd = pair[0], .events = EPOLLIN, .ready = drain}};
    assert_int_equal(cg_reactor_watch(reactor, &w.watch), 0);
    for (int i = 1; i <= 100; i++) {
        settle(reactor, fd);
        assert_int_equal(write(pair[1], "x", 1), 1);
        poll_until(reactor, fd, &w.received, i);
    }
    cg_reactor_unwatch(&w.watch);
    close(pair[0]);
    close(pair[1]);

    settle(reactor, fd);
    struct test_deferred d = {{.run = note_deferred}, reactor, 0, 30};
    cg_list_init(&d.deferred.node);
    cg_reactor_defer(reactor, &d.deferred);
    poll_until(reactor, fd, &d.runs, 31);

    settle(reactor, fd);
    int scratch = open_scratch(O_RDWR), done = 0;
    char byte = 'b';
    struct test_op op = {.iov = {&byte, 1}, .done = &done};
    op.op = (struct cg_file_op){
        .opcode = CG_FILE_WRITE, .fd = scratch, .iov = &op.iov, .iovcnt = 1, .done = note_file};
    cg_reactor_file(reactor, &op.op);
    poll_until(reactor, fd, &done, 1);
    assert_int_equal(op.op.result, 1);
    op.op.opcode = CG_FILE_FDATASYNC;
    cg_reactor_file(reactor, &op.op);
    poll_until(reactor, fd, &done, 2);
    close(scratch);

    int ran = 0;
    struct poster poster = {.reactor = reactor, .ran = &ran};
    poster.tasks = calloc(2000, sizeof(struct numbered_task));
    assert_int_equal(pthread_create(&poster.thread, NULL, post_later, &poster), 0);
    poll_until(reactor, fd, &ran, 2000);
    pthread_join(poster.thread, NULL);
    free(poster.tasks);
    settle(reactor, fd);
}

// ---- Where io_uring is refused

// As container profiles do it, for this process and for good.
static bool refuse_io_uring(void) {
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = 4, .filter = rules};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static int create(enum cg_reactor_backend wanted, enum cg_reactor_backend *got) {
    struct cg_reactor_options options = {.backend = wanted};
    struct cg_reactor *reactor;
    int rc = cg_reactor_create(&options, &reactor);
    if (rc == 0) {
        *got = cg_reactor_backend(reactor);
        cg_reactor_destroy(reactor);
    }
    return rc;
}

static void auto_falls_back_where_io_uring_is_refused(void **state) {
    (void)state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        enum cg_reactor_backend got = CG_REACTOR_AUTO;
        unsetenv("COPYGATE_REACTOR");
        bool good = refuse_io_uring() && create(CG_REACTOR_URING, &got) == -EPERM &&
                    create(CG_REACTOR_AUTO, &got) == 0 && got == CG_REACTOR_EPOLL;
        _exit(good ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void the_environment_chooses_for_auto_only(void **state) {
    (void)state;
    enum cg_reactor_backend got;
    setenv("COPYGATE_REACTOR", "epoll", 1);
    assert_int_equal(create(CG_REACTOR_AUTO, &got), 0);
    assert_int_equal(got, CG_REACTOR_EPOLL);
    setenv("COPYGATE_REACTOR", "uring", 1);
    assert_int_equal(create(CG_REACTOR_EPOLL, &got), 0);
    assert_int_equal(got, CG_REACTOR_EPOLL);
    setenv("COPYGATE_REACTOR", "kqueue", 1);
    assert_int_equal(create(CG_REACTOR_AUTO, &got), -EINVAL);
    unsetenv("COPYGATE_REACTOR");
}

#define BOTH(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

static int run_suite(enum cg_reactor_backend backend, const char *name) {
    const struct CMUnitTest tests[] = {
        BOTH(timers_fire_in_the_order_of_their_deadlines),
        BOTH(a_disarmed_timer_does_not_fire_and_a_moved_one_fires_once),
        BOTH(a_timer_that_rearms_for_the_past_does_not_hold_the_loop),
        BOTH(waiting_ends_at_the_timeout),
        BOTH(posts_from_many_threads_all_run_in_order_per_thread),
        BOTH(no_wakeup_is_lost_when_posting_one_by_one),
        BOTH(stop_ends_run_however_close_to_falling_asleep),
        BOTH(deferred_work_runs_once_per_defer_and_may_defer_itself),
        BOTH(a_watch_reports_what_holds_already_and_every_change),
        BOTH(rewatch_changes_the_events_and_reports_what_holds),
        BOTH(unwatch_is_final_even_with_events_under_way),
        BOTH(hundreds_of_watches_before_the_first_run),
        BOTH(file_operations_of_every_kind),
        BOTH(calls_run_on_another_thread),
        BOTH(more_operations_than_the_depth_all_complete),
        BOTH(a_foreign_loop_is_woken_by_everything),
        cmocka_unit_test(auto_falls_back_where_io_uring_is_refused),
        cmocka_unit_test(the_environment_chooses_for_auto_only),
    };
    backend_under_test = backend;
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

// The name of a backend as the only argument; where io_uring is refused its run is skipped.
int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "epoll") == 0) {
        return run_suite(CG_REACTOR_EPOLL, "reactor, epoll");
    }
    struct cg_reactor_options options = {.backend = CG_REACTOR_URING};
    struct cg_reactor *probe;
    int rc = cg_reactor_create(&options, &probe);
    if (rc == -EPERM || rc == -ENOSYS) {
        print_message("io_uring is refused here: skipped\n");
        return 77;
    }
    if (rc == 0) {
        cg_reactor_destroy(probe);
    }
    return run_suite(CG_REACTOR_URING, "reactor, io_uring");
}
