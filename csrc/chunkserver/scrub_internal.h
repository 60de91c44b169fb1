// SPDX-License-Identifier: BSD-3-Clause
//
// What the scrub's parts share: scrub.c (what comes next, and when) - scrub_list.c (the chunks of a
// copyset) - scrub_chunk.c (one chunk) - scrub_read.c (one reading) - scrub_save.c (what outlives
// the process). The decisions are in scrub_plan.h.
#ifndef CG_CHUNKSERVER_SCRUB_INTERNAL_H
#define CG_CHUNKSERVER_SCRUB_INTERNAL_H

#include "chunkserver/store_internal.h"

#define SHORT_POLL_NS CG_NS_PER_S // while something is short

// Memory or descriptors are short: nothing is broken.
bool cg_scrub_is_short(int64_t result);

// ---- scrub.c
// Looks at what is to be done after `wait_ns`, and at what is left to be saved after the stop.
void cg_scrub_look_in(struct cg_store *store, uint64_t wait_ns);
// The next block of the pass to be checked, for after a restart.
void cg_scrub_set_position(struct cg_scrub *scrub, uint64_t group, uint64_t chunk_id,
                           uint32_t block);
// The target is through, or given up.
void cg_scrub_target_done(struct cg_store *store);

// ---- scrub_list.c
// Fills in scrub->ids: chunks of `copyset` from position.chunk_id on.
void cg_scrub_list(struct cg_store *store, const struct cg_copyset *copyset);

// ---- scrub_chunk.c
// Takes the next step with the target.
void cg_scrub_go_on(struct cg_store *store);

// ---- scrub_read.c
// Reads and compares what `read` says and calls `done` later.
void cg_scrub_read_start(struct cg_scrub_read *read, void (*done)(struct cg_file_op *op));

// ---- scrub_save.c
void cg_scrub_load_saved(struct cg_store *store);
void cg_scrub_save(struct cg_store *store);
bool cg_scrub_unsaved(const struct cg_store *store);
// It is time to save.
bool cg_scrub_save_due(const struct cg_store *store);

#endif
