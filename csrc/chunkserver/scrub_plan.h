// SPDX-License-Identifier: BSD-3-Clause
//
// What the scrub decides: when a pass begins, when it may read the next piece and when it has to
// wait, what it remembers over a restart. Pure functions; scrub.c does what they say.
#ifndef CG_CHUNKSERVER_SCRUB_PLAN_H
#define CG_CHUNKSERVER_SCRUB_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "chunkserver/bad_blocks.h"

// Under load a pass goes on at this fraction of its rate: it never stops altogether.
#define CG_SCRUB_BUSY_SLOWDOWN 8U

// Where a pass is: it goes through copysets, chunks and blocks in the order of their numbers.
struct cg_scrub_position {
    uint64_t group;
    uint64_t chunk_id;
    uint32_t block; // the next one to be checked
};

// What outlives the process. Times are seconds since 1970, 0: never.
struct cg_scrub_record {
    bool running;
    uint64_t request;   // that the pass under way, or the last one, serves; 0: none, it was due
    uint64_t queued;    // a request whose pass has to begin; 0: none
    uint64_t completed; // the newest request whose pass is complete
    struct cg_scrub_position position;
    uint64_t started_s;
    uint64_t completed_s;
    // Of the pass under way, or the last one; in blocks.
    uint64_t checked;
    uint64_t skipped; // written while the pass went on
    uint64_t found;   // bad ones that were not known before
};

// Takes note of a request; they are numbered upwards, and one that is known changes nothing. A pass
// that began because it was due makes way for it. One that serves a request is finished first, so
// that requests in quick succession cannot keep every pass from its end.
void cg_scrub_ask(struct cg_scrub_record *record, uint64_t request);

// A pass begins, or is over.
void cg_scrub_begin(struct cg_scrub_record *record, uint64_t wall_s);
void cg_scrub_complete(struct cg_scrub_record *record, uint64_t wall_s);

struct cg_scrub_pace {
    uint64_t rate;     // bytes per second at most; 0: no scrub
    uint64_t period_s; // from one pass to the next
    uint64_t due_ns;   // when the next piece may be read
    uint64_t yield_ns; // until when it makes way for requests
};

// A piece of `bytes` was read from `began_ns` to `ended_ns`. The next one is due so that the rate
// is kept, and so that the disk had at least half of the time for others.
void cg_scrub_charge(struct cg_scrub_pace *pace, uint64_t bytes, uint64_t began_ns,
                     uint64_t ended_ns);

enum cg_scrub_step {
    CG_SCRUB_REST,  // look again after wait_ns; UINT64_MAX: when something changes
    CG_SCRUB_BEGIN, // a pass
    CG_SCRUB_CHECK, // the next piece
};

struct cg_scrub_decision {
    enum cg_scrub_step step;
    uint64_t wait_ns;
};

struct cg_scrub_view {
    uint64_t now_ns; // monotonic
    uint64_t wall_s; // since 1970; may jump
    bool busy;       // requests wait for the disk
};

// How long a reading has to wait; 0: it may go ahead.
uint64_t cg_scrub_pause(const struct cg_scrub_pace *pace, const struct cg_scrub_view *view);

struct cg_scrub_decision cg_scrub_decide(const struct cg_scrub_record *record,
                                         const struct cg_scrub_pace *pace,
                                         const struct cg_scrub_view *view);

// ---- The file "scrub" (docs/formats.md): written without a sync, so anything may be found in it.

#define CG_SCRUB_FILE_MAX (128U + CG_BAD_BLOCKS_MAX * 32U)

// Returns the length written to `out`, which has CG_SCRUB_FILE_MAX bytes.
size_t cg_scrub_encode(const struct cg_scrub_record *record, const struct cg_bad_blocks *bad,
                       uint8_t *out);

// 0 or -EBADMSG, which leaves both as they are.
int cg_scrub_decode(const uint8_t *in, size_t length, struct cg_scrub_record *record,
                    struct cg_bad_blocks *bad);

#endif
