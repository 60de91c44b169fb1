// SPDX-License-Identifier: BSD-3-Clause
#include "volume/range_lock.h"

#include <assert.h>
#include <stddef.h>

void cg_range_lock_init(struct cg_range_lock *lock) {
    cg_list_init(&lock->shared);
    cg_list_init(&lock->exclusive);
    cg_list_init(&lock->waiting);
}

static bool overlaps_any(struct cg_list *head, const struct cg_list *stop,
                         const struct cg_range *range, bool exclusive_only) {
    for (struct cg_list *node = head->next; node != stop; node = node->next) {
        const struct cg_range *other = CG_CONTAINER_OF(node, struct cg_range, node);
        if ((other->exclusive || !exclusive_only) && other->start < range->end &&
            range->start < other->end) {
            return true;
        }
    }
    return false;
}

// `stop` is the first waiter that does not count: those before it came earlier.
static bool conflicts(struct cg_range_lock *lock, const struct cg_range *range,
                      const struct cg_list *stop) {
    if (overlaps_any(&lock->exclusive, &lock->exclusive, range, false)) {
        return true;
    }
    if (range->exclusive && overlaps_any(&lock->shared, &lock->shared, range, false)) {
        return true;
    }
    return overlaps_any(&lock->waiting, stop, range, !range->exclusive);
}

static void hold(struct cg_range_lock *lock, struct cg_range *range) {
    range->state = CG_RANGE_HELD;
    cg_list_push_back(range->exclusive ? &lock->exclusive : &lock->shared, &range->node);
}

bool cg_range_acquire(struct cg_range_lock *lock, struct cg_range *range, uint64_t start,
                      uint64_t end, bool exclusive) {
    assert(start < end && range->state == CG_RANGE_IDLE);
    range->start = start;
    range->end = end;
    range->exclusive = exclusive;
    if (conflicts(lock, range, &lock->waiting)) {
        range->state = CG_RANGE_WAITING;
        cg_list_push_back(&lock->waiting, &range->node);
        return false;
    }
    hold(lock, range);
    return true;
}

void cg_range_release(struct cg_range *range) {
    if (range->state != CG_RANGE_IDLE) {
        range->state = CG_RANGE_IDLE;
        cg_list_remove(&range->node);
    }
}

struct cg_range *cg_range_granted(struct cg_range_lock *lock) {
    CG_LIST_FOREACH (node, &lock->waiting) {
        struct cg_range *range = CG_CONTAINER_OF(node, struct cg_range, node);
        if (!conflicts(lock, range, node)) {
            cg_list_remove(node);
            hold(lock, range);
            return range;
        }
    }
    return NULL;
}
