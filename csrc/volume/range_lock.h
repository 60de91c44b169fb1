// SPDX-License-Identifier: BSD-3-Clause
//
// Locks on ranges of a volume. Plain writes share; what reads before it writes (an unaligned write
// on a store that takes whole blocks only, compare-and-write) excludes. A waiter is never overtaken
// by a later one that conflicts with it. Belongs to one thread; no clock, no IO.
//
// A shared lock costs a list insertion while nobody excludes, so that writers can always take it.
#ifndef CG_VOLUME_RANGE_LOCK_H
#define CG_VOLUME_RANGE_LOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"

struct cg_range_lock {
    struct cg_list shared;    // held
    struct cg_list exclusive; // held
    struct cg_list waiting;   // in order of arrival
};

enum cg_range_state {
    CG_RANGE_IDLE = 0,
    CG_RANGE_WAITING,
    CG_RANGE_HELD,
};

struct cg_range {
    struct cg_list node;
    uint64_t start; // bytes
    uint64_t end;   // bytes, exclusive
    bool exclusive;
    uint8_t state; // enum cg_range_state; 0 before the first use
};

void cg_range_lock_init(struct cg_range_lock *lock);

// Takes the range [start, end). Returns true if it is held now; else it waits and comes out of
// cg_range_granted later.
bool cg_range_acquire(struct cg_range_lock *lock, struct cg_range *range, uint64_t start,
                      uint64_t end, bool exclusive);

// Gives the range back, or stops waiting for it. Harmless when idle. Call cg_range_granted after.
void cg_range_release(struct cg_range *range);

// The next waiter that holds its range as of now, or NULL. Call until NULL.
struct cg_range *cg_range_granted(struct cg_range_lock *lock);

#endif
