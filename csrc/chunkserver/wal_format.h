// SPDX-License-Identifier: BSD-3-Clause
//
// The log's bytes on disk (docs/formats.md, "The write-ahead log"). Pure functions: no clock, file
// or allocation. Little-endian, written and read field by field.
#ifndef CG_CHUNKSERVER_WAL_FORMAT_H
#define CG_CHUNKSERVER_WAL_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "chunkserver/wal.h"

#define WAL_VERSION            1U
#define WAL_BATCH_HEADER_SIZE  64U
#define WAL_RECORD_HEADER_SIZE 48U

// A batch's header region is at most this long, and a whole batch at most WAL_BATCH_MAX: recovery
// sizes its buffer by it and takes anything longer for garbage.
#define WAL_REGION_MAX (64U << 10)
#define WAL_BATCH_MAX  (8U << 20)

// What one record can take of a header region.
#define WAL_RECORD_ENCODED_MAX                                                                     \
    (WAL_RECORD_HEADER_SIZE + CG_WAL_META_MAX + 4U * CG_WAL_PAYLOAD_BLOCKS_MAX)

_Static_assert(WAL_BATCH_HEADER_SIZE + WAL_RECORD_ENCODED_MAX <= WAL_REGION_MAX,
               "every legal record fits into an empty batch");
_Static_assert(WAL_REGION_MAX + CG_WAL_PAYLOAD_MAX <= WAL_BATCH_MAX,
               "every legal record fits into a batch");

#define WAL_UUID_SIZE 16U

// The first block of a segment file. `sequence` 0: prepared, never used.
struct wal_segment_header {
    uint8_t uuid[WAL_UUID_SIZE]; // of the log; random, never leaves the disk
    uint64_t sequence;           // of this use of the file; one more at each switch
    uint64_t incarnation;        // raised at each start of the log
    uint64_t start_lsn;   // of the first batch; what earlier segments hold at or above it is void
    uint64_t durable_lsn; // everything below it was durable when this header was submitted
};

// Fills the block at `out` (CG_WAL_BLOCK bytes).
void wal_segment_header_encode(const struct wal_segment_header *header, uint8_t *out);

// Reads a block. Returns 0; -ENODATA if it is all zeros (a file whose preparation was cut short);
// -EPROTONOSUPPORT for a version that we do not know; -EBADMSG if it is anything else.
int wal_segment_header_decode(const uint8_t *block, struct wal_segment_header *out);

struct wal_batch_header {
    uint64_t sequence;     // the segment's
    uint64_t incarnation;  // the segment's
    uint64_t lsn;          // where the batch begins
    uint64_t durable_lsn;  // everything below it was durable when this batch was submitted
    uint32_t used;         // bytes of the region that are in use, this header included
    uint32_t region;       // bytes of the header region, a multiple of CG_WAL_BLOCK
    uint32_t payload;      // bytes after the region, a multiple of CG_WAL_BLOCK
    uint32_t record_count; // 0: a seal, which only carries durable_lsn
};

static inline uint64_t wal_batch_total(const struct wal_batch_header *header) {
    return (uint64_t)header->region + header->payload;
}

// Bytes of a header region whose first `used` bytes are in use.
static inline uint32_t wal_region_size(uint32_t used) {
    return (used + CG_WAL_BLOCK - 1) & ~(CG_WAL_BLOCK - 1);
}

// Completes a region whose records are in place after WAL_BATCH_HEADER_SIZE: writes the header,
// zeros the rest of the last block, and the checksum. `header->region` must be
// wal_region_size(used). `uuid` seeds the checksum, so that a client's data can never pass for a
// batch of the log it is stored in.
void wal_batch_seal(const struct wal_batch_header *header, const uint8_t uuid[WAL_UUID_SIZE],
                    uint8_t *region);

// Reads the header's fields from the first block. Returns false if it cannot be a batch's (magic,
// sizes, limits); the checksum is not looked at.
bool wal_batch_peek(const uint8_t *block, struct wal_batch_header *out);

// True if the whole region (`header->region` bytes) has the right checksum.
bool wal_batch_region_valid(const struct wal_batch_header *header,
                            const uint8_t uuid[WAL_UUID_SIZE], const uint8_t *region);

// The bytes that `record` takes in a region.
uint32_t wal_record_encoded_size(const struct cg_wal_record *record);

// True if the record's lengths are within the limits.
bool wal_record_legal(const struct cg_wal_record *record);

// Writes wal_record_encoded_size(record) bytes.
void wal_record_encode(const struct cg_wal_record *record, uint8_t *out);

// Reads the record at `*position` of a region with a right checksum and moves `*position` past it;
// meta and block_crcs point into the region. Returns 0 or -EBADMSG if it does not fit.
int wal_record_decode(const uint8_t *region, uint32_t used, uint32_t *position,
                      struct cg_wal_record *out);

// Compares `payload` (record->payload_length bytes) with the record's CRCs. Returns 0 or -EBADMSG.
int wal_payload_verify(const struct cg_wal_record *record, const uint8_t *payload);

// Walks all records of a valid region and compares the payload with the CRCs of its blocks. Returns
// 0 or -EBADMSG.
int wal_batch_verify(const struct wal_batch_header *header, const uint8_t *region,
                     const uint8_t *payload);

#endif
