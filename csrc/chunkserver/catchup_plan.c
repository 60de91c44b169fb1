// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/catchup_plan.h"

#include "base/clock.h"

enum cg_copy_step cg_copy_walk_next(struct cg_copy_walk *walk, uint64_t *id) {
    bool has_ours = walk->our_at < walk->our_count && walk->ours[walk->our_at] <= walk->last_id;
    bool has_theirs = walk->their_at < walk->their_count;
    if (!has_ours && !has_theirs) {
        return CG_COPY_OVER;
    }
    uint64_t ours = has_ours ? walk->ours[walk->our_at] : UINT64_MAX;
    uint64_t theirs = has_theirs ? walk->theirs[walk->their_at].id : UINT64_MAX;
    if (has_ours && has_theirs && ours == theirs) {
        walk->our_at++;
        walk->their_at++;
        *id = ours;
        return CG_COPY_COMPARE;
    }
    if (has_ours && (!has_theirs || ours < theirs)) {
        walk->our_at++;
        *id = ours;
        return CG_COPY_DELETE;
    }
    walk->their_at++;
    *id = theirs;
    return CG_COPY_PULL;
}

bool cg_copy_same(const struct cg_copy_chunk *theirs, uint64_t own_applied,
                  uint64_t replica_applied) {
    return own_applied == theirs->applied_index && own_applied <= replica_applied;
}

uint32_t cg_copy_next_window(const uint8_t *allocated, uint32_t from, uint32_t blocks) {
    while (from < blocks) {
        uint32_t count = CG_COPY_BLOCKS_MAX - from % CG_COPY_BLOCKS_MAX;
        count = blocks - from < count ? blocks - from : count;
        if (cg_blockmap_any(allocated, from, count)) {
            return from;
        }
        from += count;
    }
    return blocks;
}

uint64_t cg_copy_pause(const struct cg_copy_pace *pace, enum cg_copy_urgency urgency,
                       uint64_t now_ns) {
    return urgency < CG_COPY_HURRIES && pace->due_ns > now_ns ? pace->due_ns - now_ns : 0;
}

void cg_copy_charge(struct cg_copy_pace *pace, uint64_t bytes, enum cg_copy_urgency urgency,
                    bool busy, uint64_t now_ns) {
    // A piece is at most a few MiB: no overflow.
    uint64_t interval = bytes * CG_NS_PER_S / pace->rate;
    uint64_t from = pace->due_ns > now_ns ? pace->due_ns : now_ns;
    bool yields = busy && urgency == CG_COPY_YIELDS;
    pace->due_ns = from + interval * (yields ? CG_COPY_BUSY_SLOWDOWN : 1);
}
