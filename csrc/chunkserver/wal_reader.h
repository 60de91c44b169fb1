// SPDX-License-Identifier: BSD-3-Clause
//
// Looking at the log's files during recovery, through one buffer that holds the longest legal
// batch.
#ifndef CG_CHUNKSERVER_WAL_READER_H
#define CG_CHUNKSERVER_WAL_READER_H

#include <stdint.h>

#include "chunkserver/wal_segments.h"

struct wal_reader {
    struct cg_disk *disk;
    const uint8_t *uuid;               // of the log; filled in when the first header is known
    const struct wal_segment *segment; // whose bytes the buffer holds; NULL: none
    uint8_t *buffer;                   // WAL_BATCH_MAX bytes
    uint64_t start;                    // file offset of the buffer's first byte
    uint64_t length;                   // valid bytes
};

// Returns 0 or -ENOMEM. `set` must stay.
int wal_reader_init(struct wal_reader *reader, const struct wal_segments *set);
void wal_reader_destroy(struct wal_reader *reader);

// Drops what is buffered: to be called before a segment's memory goes to something else.
void wal_reader_forget(struct wal_reader *reader);

// Points `*out` at `length` bytes (at most WAL_BATCH_MAX) at `offset`, valid until the next call;
// NULL when the file ends before. Returns 0 or -errno.
int wal_reader_get(struct wal_reader *reader, const struct wal_segment *segment, uint64_t offset,
                   uint64_t length, const uint8_t **out);

// The file offset of the log position `lsn` in `segment`.
static inline uint64_t wal_offset_of(const struct wal_segment *segment, uint64_t lsn) {
    return CG_WAL_BLOCK + (lsn - segment->header.start_lsn);
}

struct wal_batch_view {
    struct wal_batch_header header;
    const uint8_t *region;
    const uint8_t *payload;
};

// Looks for a batch header of this use of the segment with a right checksum at `lsn`. Returns 1
// with `view` (payload not looked at and not set), 0 if there is none, or -errno.
int wal_region_at(struct wal_reader *reader, const struct wal_segment *segment, uint64_t lsn,
                  struct wal_batch_view *view);

// As wal_region_at, for the whole batch, payload checked.
int wal_batch_at(struct wal_reader *reader, const struct wal_segment *segment, uint64_t lsn,
                 struct wal_batch_view *view);

#endif
