// SPDX-License-Identifier: BSD-3-Clause
//
// An entry of a copyset's log in memory: made by a proposal here, from a peer's message, or read
// back from the log on disk. One object is shared, by reference, by whoever logs, sends and applies
// it; nothing of it changes once the copyset's log has it. One reactor thread.
#ifndef CG_CHUNKSERVER_LOG_ENTRY_H
#define CG_CHUNKSERVER_LOG_ENTRY_H

#include <stdint.h>
#include <sys/uio.h>

#include "base/buffer.h"
#include "base/list.h"
#include "chunkserver/wal.h"

struct cg_copyset_log;

// Types besides those of entry.h: what a copyset's log says to itself.
enum {
    CG_ENTRY_NOOP = 16,   // a leader's first entry
    CG_ENTRY_CONFIG = 17, // meta: the members (copyset_log_record.h)
};

struct cg_log_entry {
    uint32_t refs;
    uint32_t type;
    uint64_t term; // of a proposal: set by cg_copyset_log_propose, like index
    uint64_t index;
    uint32_t meta_length;       // bytes, at most CG_WAL_META_MAX
    uint32_t payload_length;    // bytes, a multiple of CG_WAL_BLOCK, at most CG_WAL_PAYLOAD_MAX
    const uint8_t *meta;        // in this allocation
    const uint32_t *block_crcs; // in this allocation: CRC-32C of each block of the payload
    const uint8_t *payload;     // aligned to CG_WAL_BLOCK, inside `buffer`
    struct cg_buffer *buffer;   // a reference; NULL without payload

    // The copyset log's, from when it took the entry.
    struct cg_copyset_log *log;
    uint64_t ticket;             // of the core's request to persist it
    struct iovec piece;          // the payload
    struct cg_wal_append append; // to the log on disk
    struct cg_list cached;       // on the disk's list of what may be dropped from memory
};

// An entry with one reference. `meta` is copied; `block_crcs` too, NULL: they are computed. Takes a
// reference to `buffer`, which may be NULL if payload_length is 0. NULL: out of memory.
struct cg_log_entry *cg_log_entry_make(uint32_t type, uint64_t term, uint64_t index,
                                       const void *meta, uint32_t meta_length,
                                       struct cg_buffer *buffer, const uint8_t *payload,
                                       uint32_t payload_length, const uint32_t *block_crcs);

static inline struct cg_log_entry *cg_log_entry_ref(struct cg_log_entry *entry) {
    entry->refs++;
    return entry;
}

void cg_log_entry_unref(struct cg_log_entry *entry); // NULL is allowed

#endif
