// SPDX-License-Identifier: BSD-3-Clause
//
// The log, shared by wal.c (life cycle), wal_writer.c (the path of an append) and wal_fetch.c
// (reading back).
#ifndef CG_CHUNKSERVER_WAL_INTERNAL_H
#define CG_CHUNKSERVER_WAL_INTERNAL_H

#include "base/clock.h"
#include "chunkserver/wal_segments.h"

// Pieces of one batch's write, the header region included: the kernel's UIO_MAXIOV.
#define WAL_BATCH_PIECES 1024

// Batches that a burst left behind and that are kept for the next one.
#define WAL_SPARE_MAX 64U

// How long the log is idle before a seal states that the last batch was durable.
#define WAL_SEAL_DELAY_NS CG_NS_PER_S

// Records that are, or will be, one write.
struct wal_batch {
    struct cg_list node; // of queue, in_flight or spare
    struct cg_list appends;
    struct cg_wal *wal;
    struct cg_file_op op;
    uint8_t *region; // WAL_REGION_MAX bytes
    uint32_t used;   // bytes of the region
    uint32_t payload;
    uint32_t record_count;
    int iovcnt; // the region's included
    bool complete;
    uint64_t lsn; // from submission on
    struct iovec iov[WAL_BATCH_PIECES];
};

static inline uint32_t wal_batch_bytes(const struct wal_batch *batch) {
    return wal_region_size(batch->used) + batch->payload;
}

struct cg_wal {
    struct cg_disk *disk;
    struct cg_reactor *reactor;
    struct wal_segments segments;
    uint64_t incarnation;
    unsigned batches_in_flight;
    uint32_t batch_bytes_max;

    uint64_t next_lsn;    // of the next submission
    uint64_t durable_lsn; // all below is durable and acknowledged

    // Batches in log order: the last of `queue` still takes records; `in_flight` are in the kernel.
    struct cg_list queue;
    uint64_t queued_bytes; // of all in the queue
    uint64_t open_bytes;   // of the last batch in the queue
    struct cg_list in_flight;
    unsigned in_flight_count;
    struct cg_list spare;
    unsigned spare_count;
    struct cg_list refused; // appends that fail without being written

    struct cg_deferred flush;
    struct cg_timer seal_timer;
    uint64_t last_done_ns;
    bool sealed; // the last batch was a seal, or nothing was written

    struct wal_segment *opening; // its header is being written; batches wait for it
    struct cg_file_op header_op;
    struct iovec header_iov;
    uint8_t *header_block;

    // Reading back: who waits, who is read for, and the memory that this takes.
    struct cg_list fetches;
    struct cg_list fetching;
    struct cg_list readings; // idle struct wal_reading
    unsigned reading_count;  // in all
    struct cg_deferred fetch;

    int error;    // sticky: nothing is submitted any more
    bool retired; // the failed batch's turn has come: everything fails
    struct cg_wal_stats stats;
};

// Sets up the lists, callbacks and the first batches. Returns 0 or -ENOMEM.
int wal_writer_init(struct cg_wal *wal);
void wal_writer_destroy(struct cg_wal *wal);

void wal_fetch_init(struct cg_wal *wal);
void wal_fetch_destroy(struct cg_wal *wal);

// The header of a segment that begins at the next LSN.
void wal_fill_header(const struct cg_wal *wal, uint64_t sequence,
                     struct wal_segment_header *header);

// Goes on where the writer waited for a segment.
void wal_resume(struct cg_wal *wal);

// Writes a seal now, blocking, if the last batch was none. Best effort: it only sharpens recovery.
void wal_seal_blocking(struct cg_wal *wal);

#endif
