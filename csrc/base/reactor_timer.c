// SPDX-License-Identifier: BSD-3-Clause
//
// Timers: a binary heap by deadline. heap[0] is unused so that an index of 0 can mean "not armed".
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/reactor_internal.h"

static void place(struct cg_reactor *reactor, uint32_t index, struct cg_timer *timer) {
    reactor->heap[index] = timer;
    timer->heap_index = index;
}

static void sift_up(struct cg_reactor *reactor, uint32_t index) {
    struct cg_timer *timer = reactor->heap[index];
    while (index > 1 && reactor->heap[index / 2]->deadline_ns > timer->deadline_ns) {
        place(reactor, index, reactor->heap[index / 2]);
        index /= 2;
    }
    place(reactor, index, timer);
}

static void sift_down(struct cg_reactor *reactor, uint32_t index) {
    struct cg_timer *timer = reactor->heap[index];
    for (;;) {
        uint32_t child = index * 2;
        if (child > reactor->heap_count) {
            break;
        }
        if (child < reactor->heap_count &&
            reactor->heap[child + 1]->deadline_ns < reactor->heap[child]->deadline_ns) {
            child++;
        }
        if (reactor->heap[child]->deadline_ns >= timer->deadline_ns) {
            break;
        }
        place(reactor, index, reactor->heap[child]);
        index = child;
    }
    place(reactor, index, timer);
}

static void restore(struct cg_reactor *reactor, uint32_t index) {
    if (index > 1 && reactor->heap[index / 2]->deadline_ns > reactor->heap[index]->deadline_ns) {
        sift_up(reactor, index);
    } else {
        sift_down(reactor, index);
    }
}

static int grow(struct cg_reactor *reactor) {
    uint32_t capacity = reactor->heap_capacity == 0 ? 64 : reactor->heap_capacity * 2;
    struct cg_timer **heap = realloc(reactor->heap, capacity * sizeof(struct cg_timer *));
    if (heap == NULL) {
        return -ENOMEM;
    }
    reactor->heap = heap;
    reactor->heap_capacity = capacity;
    return 0;
}

int cg_timer_arm(struct cg_reactor *reactor, struct cg_timer *timer, uint64_t deadline_ns) {
    if (timer->heap_index != 0) {
        assert(timer->reactor == reactor);
        timer->deadline_ns = deadline_ns;
        restore(reactor, timer->heap_index);
    } else {
        if (reactor->heap_count + 1 >= reactor->heap_capacity && grow(reactor) != 0) {
            return -ENOMEM;
        }
        timer->reactor = reactor;
        timer->deadline_ns = deadline_ns;
        reactor->heap_count++;
        reactor->heap[reactor->heap_count] = timer;
        sift_up(reactor, reactor->heap_count);
    }
    if (deadline_ns < reactor->timer_fd_deadline_ns) {
        cg_reactor_work_added(reactor);
    }
    return 0;
}

void cg_timer_disarm(struct cg_timer *timer) {
    uint32_t index = timer->heap_index;
    if (index == 0) {
        return;
    }
    struct cg_reactor *reactor = timer->reactor;
    timer->heap_index = 0;
    struct cg_timer *last = reactor->heap[reactor->heap_count];
    reactor->heap_count--;
    if (last != timer) {
        place(reactor, index, last);
        restore(reactor, index);
    }
}

unsigned cg_reactor_fire_timers(struct cg_reactor *reactor) {
    // What the callbacks arm for a time that has passed waits for the next iteration: a timer that
    // always re-arms itself must not keep the loop from its other work.
    unsigned limit = reactor->heap_count;
    unsigned fired = 0;
    while (fired < limit && reactor->heap_count > 0 &&
           reactor->heap[1]->deadline_ns <= reactor->now_ns) {
        struct cg_timer *timer = reactor->heap[1];
        cg_timer_disarm(timer);
        fired++;
        timer->fire(timer);
    }
    return fired;
}
