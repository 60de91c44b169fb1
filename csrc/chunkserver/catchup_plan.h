// SPDX-License-Identifier: BSD-3-Clause
//
// What a replica that catches up has to copy, and how fast. Pure decisions.
#ifndef CG_CHUNKSERVER_CATCHUP_PLAN_H
#define CG_CHUNKSERVER_CATCHUP_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "chunkserver/catchup_wire.h"

// ---- Chunks

enum cg_copy_step {
    CG_COPY_OVER,    // nothing is left
    CG_COPY_DELETE,  // ours alone
    CG_COPY_COMPARE, // both have it
    CG_COPY_PULL,    // theirs alone
};

// Walks along two lists of chunks, both in ascending order. Theirs comes in pages: ours is compared
// up to `last_id`, to which the page reaches.
struct cg_copy_walk {
    const uint64_t *ours;
    uint32_t our_count;
    uint32_t our_at;
    const struct cg_copy_chunk *theirs;
    uint32_t their_count;
    uint32_t their_at;
    uint64_t last_id;
};

// The next chunk, whose id is put into *id; both lists are moved behind it. Theirs is
// walk->theirs[walk->their_at - 1] for COMPARE and PULL.
enum cg_copy_step cg_copy_walk_next(struct cg_copy_walk *walk, uint64_t *id);

// Is a chunk here, with `own_applied` in its metadata, the same as theirs? Entries with an effect
// on a chunk leave their index in it, so equal indexes mean equal chunks, but only if all entries
// up to there have been applied here: after a restart a chunk file may be ahead of what is applied
// (`replica_applied`), with some of its blocks from before.
bool cg_copy_same(const struct cg_copy_chunk *theirs, uint64_t own_applied,
                  uint64_t replica_applied);

// The first block at or after `from` of a window (aligned to CG_COPY_BLOCKS_MAX blocks) with
// allocated blocks; `blocks` (the chunk's) if there is none.
uint32_t cg_copy_next_window(const uint8_t *allocated, uint32_t from, uint32_t blocks);

// ---- Pace

#define CG_COPY_BUSY_SLOWDOWN 4U

struct cg_copy_pace {
    uint64_t rate;   // bytes per second
    uint64_t due_ns; // when the next piece may be copied
};

// A replica that has copied the state and finds that the leader's log does not have what comes
// after it any more has been too slow. It begins anew, and does not yield to clients; and if that
// is too slow, it does not keep the rate either.
enum cg_copy_urgency {
    CG_COPY_YIELDS,
    CG_COPY_KEEPS_RATE,
    CG_COPY_HURRIES,
};

// How long to wait before the next piece; 0: it may be copied now.
uint64_t cg_copy_pause(const struct cg_copy_pace *pace, enum cg_copy_urgency urgency,
                       uint64_t now_ns);

// A piece of `bytes` is copied now. `busy`: clients want the disk, too.
void cg_copy_charge(struct cg_copy_pace *pace, uint64_t bytes, enum cg_copy_urgency urgency,
                    bool busy, uint64_t now_ns);

#endif
