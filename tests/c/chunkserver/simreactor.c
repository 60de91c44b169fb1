// SPDX-License-Identifier: BSD-3-Clause
#include "simreactor.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#define TIMERS_MAX 64U

struct cg_reactor {
    struct simdisk *sim;
    uint64_t now;
    struct cg_list deferred;
    struct cg_timer *timers[TIMERS_MAX + 1]; // by heap_index; 0 is not used
};

struct cg_reactor *simreactor_create(struct simdisk *sim) {
    struct cg_reactor *reactor = calloc(1, sizeof(*reactor));
    if (reactor == NULL) {
        abort();
    }
    reactor->sim = sim;
    reactor->now = 1;
    cg_list_init(&reactor->deferred);
    return reactor;
}

void simreactor_destroy(struct cg_reactor *reactor) {
    free(reactor);
}

void simreactor_iterate(struct cg_reactor *reactor) {
    struct cg_list ready;
    cg_list_init(&ready);
    cg_list_splice_back(&ready, &reactor->deferred);
    struct cg_list *node;
    while ((node = cg_list_pop_front(&ready)) != NULL) {
        struct cg_deferred *deferred = CG_CONTAINER_OF(node, struct cg_deferred, node);
        deferred->run(deferred);
    }
}

bool simreactor_idle(const struct cg_reactor *reactor) {
    return cg_list_empty(&reactor->deferred);
}

uint64_t simreactor_deadline(const struct cg_reactor *reactor) {
    uint64_t first = UINT64_MAX;
    for (unsigned i = 1; i <= TIMERS_MAX; i++) {
        const struct cg_timer *timer = reactor->timers[i];
        if (timer != NULL && timer->deadline_ns < first) {
            first = timer->deadline_ns;
        }
    }
    return first;
}

void simreactor_advance(struct cg_reactor *reactor, uint64_t ns) {
    reactor->now += ns;
    for (unsigned i = 1; i <= TIMERS_MAX; i++) {
        struct cg_timer *timer = reactor->timers[i];
        if (timer != NULL && timer->deadline_ns <= reactor->now) {
            cg_timer_disarm(timer);
            timer->fire(timer);
        }
    }
    simreactor_iterate(reactor);
}

uint64_t cg_reactor_now(const struct cg_reactor *reactor) {
    return reactor->now;
}

void cg_reactor_defer(struct cg_reactor *reactor, struct cg_deferred *deferred) {
    if (!cg_list_linked(&deferred->node)) {
        cg_list_push_back(&reactor->deferred, &deferred->node);
    }
}

void cg_reactor_undefer(struct cg_deferred *deferred) {
    cg_list_remove(&deferred->node);
}

int cg_timer_arm(struct cg_reactor *reactor, struct cg_timer *timer, uint64_t deadline_ns) {
    timer->reactor = reactor;
    timer->deadline_ns = deadline_ns;
    if (timer->heap_index == 0) {
        unsigned i = 1;
        while (i <= TIMERS_MAX && reactor->timers[i] != NULL) {
            i++;
        }
        if (i > TIMERS_MAX) {
            return -ENOMEM;
        }
        reactor->timers[i] = timer;
        timer->heap_index = i;
    }
    return 0;
}

void cg_timer_disarm(struct cg_timer *timer) {
    if (timer->heap_index != 0) {
        timer->reactor->timers[timer->heap_index] = NULL;
        timer->heap_index = 0;
    }
}

// For operations that are under way; time stands still.
int cg_reactor_wait(struct cg_reactor *reactor, uint64_t timeout_ns) {
    (void)timeout_ns;
    if (!cg_list_empty(&reactor->deferred)) {
        simreactor_iterate(reactor);
        return 1;
    }
    if (!simdisk_step(reactor->sim)) {
        return -ETIME;
    }
    simreactor_iterate(reactor);
    return 1;
}

// ---- What only real sockets need

int cg_reactor_watch(struct cg_reactor *reactor, struct cg_watch *watch) {
    (void)reactor;
    (void)watch;
    return -ENOSYS;
}

void cg_reactor_unwatch(struct cg_watch *watch) {
    (void)watch;
}
