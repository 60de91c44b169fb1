// SPDX-License-Identifier: BSD-3-Clause
//
// What a copyset's log entries say. An entry is decided before it is logged (whole blocks,
// comparison done, sn checked), so that applying it depends on nothing but the entry, the epochs
// and the clients' windows, and applying it again to a chunk that is already further does no harm.
#ifndef CG_CHUNKSERVER_ENTRY_H
#define CG_CHUNKSERVER_ENTRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CG_ENTRY_META_SIZE 72U

enum cg_entry_type {
    CG_ENTRY_WRITE = 1,  // the payload goes to [offset, offset + length)
    CG_ENTRY_ZERO = 2,   // [offset, offset + length) reads as zeros; the payload holds edge blocks
    CG_ENTRY_DELETE = 3, // the chunk is gone
    CG_ENTRY_EPOCH = 4,  // file_id's epoch is at least `epoch`
};

enum {
    CG_ENTRY_KEEP = 1U << 0,       // ZERO: the blocks stay allocated
    CG_ENTRY_HEAD = 1U << 1,       // ZERO: the payload begins with the block before `offset`
    CG_ENTRY_TAIL = 1U << 2,       // ZERO: the payload ends with the block after the range
    CG_ENTRY_HAS_EPOCH = 1U << 3,  // `epoch` is to be checked against the replicated record
    CG_ENTRY_HAS_CLIENT = 1U << 4, // client_id, sequence and settled_below mean something
};

struct cg_entry {
    enum cg_entry_type type;
    uint32_t flags;
    uint64_t chunk_id;
    uint64_t file_id;
    uint64_t epoch;
    uint64_t sn;
    uint64_t client_id;
    uint64_t sequence;
    uint64_t settled_below;
    uint32_t offset; // bytes, multiples of the block size
    uint32_t length;
};

// Writes all but the type, CG_ENTRY_META_SIZE bytes.
void cg_entry_encode(const struct cg_entry *entry, uint8_t *out);

// Reads and checks an entry of a log record: known type, range inside a chunk of `chunk_size`
// bytes, and payload_length as the type and the flags demand. Returns 0 or -EBADMSG.
int cg_entry_decode(uint32_t type, const uint8_t *meta, size_t meta_length, uint32_t payload_length,
                    uint32_t chunk_size, struct cg_entry *out);

// The bytes of payload that an entry carries.
uint32_t cg_entry_payload_length(const struct cg_entry *entry);

#endif
