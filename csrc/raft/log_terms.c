// SPDX-License-Identifier: BSD-3-Clause
#include "raft/log_terms.h"

#include <assert.h>
#include <string.h>

void log_terms_init(struct log_terms *log, struct log_run *memory, uint32_t max,
                    uint64_t base_index, uint64_t base_term) {
    *log = (struct log_terms){
        .base_index = base_index,
        .base_term = base_term,
        .last_index = base_index,
        .max = max,
        .run = memory,
    };
}

// The last run that begins at or below `index` (one does).
static uint32_t run_of(const struct log_terms *log, uint64_t index) {
    uint32_t low = 0;
    uint32_t high = log->count;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (log->run[middle].first <= index) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

uint64_t log_terms_at(const struct log_terms *log, uint64_t index) {
    if (index == log->base_index) {
        return log->base_term;
    }
    if (index < log->base_index || index > log->last_index) {
        return 0;
    }
    return log->run[run_of(log, index)].term;
}

uint64_t log_terms_last(const struct log_terms *log) {
    return log->count == 0 ? log->base_term : log->run[log->count - 1].term;
}

bool log_terms_room(const struct log_terms *log, uint64_t term) {
    return log->count < log->max || log->run[log->count - 1].term == term;
}

bool log_terms_append(struct log_terms *log, uint64_t term, uint64_t count) {
    assert(count > 0 && term >= log_terms_last(log));
    if (!log_terms_room(log, term)) {
        return false;
    }
    if (log->count == 0 || log->run[log->count - 1].term != term) {
        log->run[log->count++] = (struct log_run){.first = log->last_index + 1, .term = term};
    }
    log->last_index += count;
    return true;
}

void log_terms_truncate(struct log_terms *log, uint64_t first) {
    assert(first > log->base_index);
    if (first > log->last_index) {
        return;
    }
    log->last_index = first - 1;
    while (log->count > 0 && log->run[log->count - 1].first >= first) {
        log->count--;
    }
}

void log_terms_compact(struct log_terms *log, uint64_t index) {
    assert(index <= log->last_index);
    if (index <= log->base_index) {
        return;
    }
    log->base_term = log_terms_at(log, index);
    log->base_index = index;
    if (index == log->last_index) {
        log->count = 0;
        return;
    }
    uint32_t keep = run_of(log, index + 1);
    log->count -= keep;
    memmove(log->run, log->run + keep, log->count * sizeof(*log->run));
    log->run[0].first = index + 1;
}

uint64_t log_terms_not_above(const struct log_terms *log, uint64_t index, uint64_t term) {
    if (index > log->last_index) {
        index = log->last_index;
    }
    if (index <= log->base_index || log->count == 0) {
        return log->base_index;
    }
    // Terms only grow along the log, so whole runs can be stepped over.
    uint32_t at = run_of(log, index);
    while (log->run[at].term > term) {
        index = log->run[at].first - 1;
        if (at-- == 0) {
            return log->base_index;
        }
    }
    return index;
}
