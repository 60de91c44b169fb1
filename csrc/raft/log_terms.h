// SPDX-License-Identifier: BSD-3-Clause
//
// What raft has to know of its log: the term of each entry, as runs of equal terms. A log of a
// million entries under one leader is one run.
#ifndef CG_RAFT_LOG_TERMS_H
#define CG_RAFT_LOG_TERMS_H

#include <stdbool.h>
#include <stdint.h>

struct log_run {
    uint64_t first; // index
    uint64_t term;
};

struct log_terms {
    uint64_t base_index; // the entry before the first one; its term is known
    uint64_t base_term;
    uint64_t last_index; // base_index: empty
    uint32_t count;      // of runs
    uint32_t max;
    struct log_run *run; // the owner's memory, `max` of them
};

void log_terms_init(struct log_terms *log, struct log_run *memory, uint32_t max,
                    uint64_t base_index, uint64_t base_term);

// 0 if `index` is below base_index or above last_index.
uint64_t log_terms_at(const struct log_terms *log, uint64_t index);
uint64_t log_terms_last(const struct log_terms *log);

// Appends `count` entries of `term`, not below the last one's. False if that needs a run and all
// are taken; nothing has changed then.
bool log_terms_append(struct log_terms *log, uint64_t term, uint64_t count);
bool log_terms_room(const struct log_terms *log, uint64_t term);

// Removes all from `first` (> base_index) on.
void log_terms_truncate(struct log_terms *log, uint64_t first);

// Forgets all below `index`, which becomes the base.
void log_terms_compact(struct log_terms *log, uint64_t index);

// The greatest index at or below `index` whose term is at most `term`; base_index if none is.
uint64_t log_terms_not_above(const struct log_terms *log, uint64_t index, uint64_t term);

#endif
