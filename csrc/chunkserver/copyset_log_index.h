// SPDX-License-Identifier: BSD-3-Clause
//
// Where the entries of a copyset's log are: in memory, or at which position of the log on disk. A
// ring over the indexes above the log's base; everything is O(1) but growing.
#ifndef CG_CHUNKSERVER_COPYSET_LOG_INDEX_H
#define CG_CHUNKSERVER_COPYSET_LOG_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "chunkserver/log_entry.h"

struct log_slot {
    struct cg_log_entry *entry; // a reference; NULL: on disk only
    uint64_t lsn;               // of its batch; until it is durable, a lower bound
    uint64_t moved_lsn;         // of its copy, while a move is under way; 0: none
    uint32_t bytes;             // meta and payload
    bool durable;
};

struct log_index {
    uint64_t base; // slots are base + 1 ... last
    uint64_t last;
    uint64_t size; // a power of two, or 0
    struct log_slot *slot;
};

void log_index_init(struct log_index *index, uint64_t base);
void log_index_destroy(struct log_index *index); // all entries are dropped

// The slot of an entry; NULL if it is not above the base or beyond the end.
static inline struct log_slot *log_index_at(const struct log_index *index, uint64_t at) {
    return at > index->base && at <= index->last ? &index->slot[at & (index->size - 1)] : NULL;
}

// Makes room for `count` more. Returns 0 or -ENOMEM.
int log_index_reserve(struct log_index *index, uint64_t count);

// A zeroed slot for the entry after the last one; there is room for it.
struct log_slot *log_index_push(struct log_index *index);

// Drops an entry from memory.
void log_index_drop(struct log_slot *slot);

// Removes all from `first` on; all up to `base`.
void log_index_cut(struct log_index *index, uint64_t first);
void log_index_compact(struct log_index *index, uint64_t base);

// Empties it; the next entry is base + 1.
void log_index_reset(struct log_index *index, uint64_t base);

#endif
