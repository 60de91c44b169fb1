// SPDX-License-Identifier: BSD-3-Clause
//
// Watches: the table that gives each its slot and generation (see struct cg_watch_slot).
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "base/reactor_internal.h"

// watch->internal[0] is the slot's index + 1; 0 means not watched.

static int take_slot(struct cg_reactor *reactor, uint32_t *out) {
    if (reactor->slot_free == 0) {
        uint32_t count = reactor->slot_count == 0 ? 16 : reactor->slot_count * 2;
        struct cg_watch_slot *slots = realloc(reactor->slots, count * sizeof(*slots));
        if (slots == NULL) {
            return -ENOMEM;
        }
        for (uint32_t i = reactor->slot_count; i < count; i++) {
            slots[i] = (struct cg_watch_slot){.next_free = i + 1 < count ? i + 2 : 0};
        }
        reactor->slots = slots;
        reactor->slot_free = reactor->slot_count + 1;
        reactor->slot_count = count;
    }
    *out = reactor->slot_free - 1;
    reactor->slot_free = reactor->slots[*out].next_free;
    return 0;
}

static void give_slot(struct cg_reactor *reactor, uint32_t index) {
    struct cg_watch_slot *slot = &reactor->slots[index];
    slot->watch = NULL;
    slot->generation++;
    slot->next_free = reactor->slot_free;
    reactor->slot_free = index + 1;
}

int cg_reactor_watch(struct cg_reactor *reactor, struct cg_watch *watch) {
    uint32_t index;
    int rc = take_slot(reactor, &index);
    if (rc < 0) {
        return rc;
    }
    reactor->slots[index].watch = watch;
    rc = cg_epoll_start(reactor, index);
    if (rc < 0) {
        give_slot(reactor, index);
        return rc;
    }
    watch->reactor = reactor;
    watch->internal[0] = (uint64_t)index + 1;
    cg_reactor_work_added(reactor);
    return 0;
}

int cg_reactor_rewatch(struct cg_watch *watch, uint32_t events) {
    assert(watch->internal[0] != 0);
    struct cg_reactor *reactor = watch->reactor;
    uint32_t index = (uint32_t)(watch->internal[0] - 1);
    reactor->slots[index].generation++;
    watch->events = events;
    cg_reactor_work_added(reactor);
    return cg_epoll_change(reactor, index);
}

void cg_reactor_unwatch(struct cg_watch *watch) {
    if (watch->internal[0] == 0) {
        return;
    }
    struct cg_reactor *reactor = watch->reactor;
    give_slot(reactor, (uint32_t)(watch->internal[0] - 1));
    watch->internal[0] = 0;
    cg_epoll_end(reactor, watch->fd);
}

void cg_reactor_dispatch(struct cg_reactor *reactor, uint32_t slot, uint32_t generation,
                         uint32_t events) {
    if (slot >= reactor->slot_count) {
        return;
    }
    struct cg_watch *watch = reactor->slots[slot].watch;
    if (watch != NULL && reactor->slots[slot].generation == generation) {
        watch->ready(watch, events);
    }
}
