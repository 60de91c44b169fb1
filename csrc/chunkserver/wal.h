// SPDX-License-Identifier: BSD-3-Clause
//
// The write-ahead log that all copysets of a disk share. Appends that arrive while a write is under
// way leave together in the next one (group commit); each such batch is one O_DIRECT, O_DSYNC write
// of 4 KiB-aligned blocks: a header region with all records' headers and the CRC-32C of every
// payload block, then the payloads, sent from the buffers in which they arrived. Several batches
// may be in flight; completions are reported strictly in log order.
//
// Segments are preallocated files that are recycled. See docs/formats.md for the layout and for how
// a torn tail (cut) is told from corruption in the middle (refused).
//
// One reactor thread.
#ifndef CG_CHUNKSERVER_WAL_H
#define CG_CHUNKSERVER_WAL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/buffer.h"
#include "base/disk.h"
#include "base/list.h"
#include "base/reactor.h"

#define CG_WAL_BLOCK    4096U
#define CG_WAL_META_MAX 1024U // bytes of a record's own header
// Bytes; a multiple of CG_WAL_BLOCK. One MiB, and a block more because a MiB that begins inside a
// block touches 257 of them.
#define CG_WAL_PAYLOAD_MAX        ((1U << 20) + CG_WAL_BLOCK)
#define CG_WAL_PAYLOAD_BLOCKS_MAX (CG_WAL_PAYLOAD_MAX / CG_WAL_BLOCK)

struct cg_wal;

// Record types from here on void nothing: a group's term and vote, the start of a state that was
// copied. Below it are log entries: an entry of a group with index i makes all earlier entries of
// the group with an index >= i void (raft's truncation). The log itself looks at no type; whoever
// replays it follows the rule.
#define CG_WAL_TYPE_STATE 0x100U

// What a record says. `group` is the copyset ((uint64_t)pool << 32 | copyset).
struct cg_wal_record {
    uint64_t group;
    uint64_t term;
    uint64_t index;
    uint32_t type;        // the copyset's; see CG_WAL_TYPE_STATE
    uint32_t meta_length; // bytes, at most CG_WAL_META_MAX
    const void *meta;
    uint32_t payload_length;    // bytes, a multiple of CG_WAL_BLOCK
    const uint32_t *block_crcs; // payload_length / CG_WAL_BLOCK values: CRC-32C of each block
};

struct cg_wal_append {
    // The caller's, valid until `done`; meta and block_crcs are copied inside cg_wal_append.
    struct cg_wal_record record;
    const struct iovec *payload; // each piece aligned to and a multiple of CG_WAL_BLOCK
    int payload_count;
    void (*done)(struct cg_wal_append *append);
    // From `done` on: 0 or -errno. After the first failure every append fails: the disk is retired.
    int status;
    uint64_t lsn;        // where the record's batch begins, set before done
    struct cg_list node; // the log's
};

struct cg_wal_options {
    uint64_t segment_bytes;   // 0: 64 MiB
    uint64_t capacity_bytes;  // 0: 1 GiB; more than this is never held
    uint64_t keep_free_bytes; // the log does not grow where less than this would stay free
    // Asked when the disk has no space for what cg_wal_open cannot do without; true: try again.
    // NULL: there is nobody to ask.
    bool (*make_room)(void *context);
    void *room_context;
    unsigned batches_in_flight; // 0: 2
    uint32_t batch_bytes_max;   // 0: 4 MiB
};

struct cg_wal_replay {
    // Called for each durable record in log order. `payload` is contiguous, verified against
    // block_crcs, and valid only inside the call. A negative return stops cg_wal_open with it.
    int (*record)(void *context, uint64_t lsn, const struct cg_wal_record *record,
                  const void *payload);
    void *context;
    // Records of batches that begin below it are not reported (checkpointed). A value of
    // cg_wal_tail or of an append's lsn; 0 at first.
    uint64_t from_lsn;
};

// Opens the log in folder "wal" of `disk` (created if missing), replays it and makes ready to
// append in a fresh segment. Blocking. Returns 0; -EBADMSG for corruption in the middle; -ENOSPC if
// no segment is free or can be preallocated; or what `record` returned. `error` (may be NULL) gets
// a sentence.
int cg_wal_open(struct cg_disk *disk, struct cg_reactor *reactor,
                const struct cg_wal_options *options, const struct cg_wal_replay *replay,
                struct cg_wal **out, char *error, size_t error_size);

// All appends and fetches must be done. Blocking; not from a callback of the reactor: it runs the
// reactor (cg_reactor_wait) until a segment that is being prepared in the background is finished,
// and writes a seal.
void cg_wal_close(struct cg_wal *wal);

// Queues a record. Written at the end of this iteration of the reactor, or when a batch in flight
// completes. `done` is never called inside this call.
void cg_wal_append(struct cg_wal *wal, struct cg_wal_append *append);

// Where the next batch will begin: all records appended from now on have an lsn of at least this.
// It may serve as `from_lsn` once every append made before this call is done with status 0.
uint64_t cg_wal_tail(const struct cg_wal *wal);

// From there on the log takes at most `bytes` of the disk; for what is kept though it is not
// needed. Not the same as a distance from the tail: every start goes on in a fresh segment.
uint64_t cg_wal_keep_from(const struct cg_wal *wal, uint64_t bytes);

// Reading records back that were appended, or replayed, before. The fetch is the caller's memory,
// the log's from cg_wal_fetch until `done`.
struct cg_wal_fetch {
    uint64_t lsn;   // of the batch: an append's or a replayed record's
    uint64_t group; // whose records are wanted
    // Called for each record of `group` in the batch, in log order, verified. The payload lies in
    // `buffer`, both NULL for a record without; keep it by cg_buffer_ref. `record` itself, with
    // meta and block_crcs, is valid only inside the call.
    void (*record)(struct cg_wal_fetch *fetch, const struct cg_wal_record *record,
                   struct cg_buffer *buffer, const uint8_t *payload);
    // The end: 0; -ENOENT recycled; -EBADMSG what was durable there has rotted; -ENOMEM no memory,
    // or none in the pool; -EINVAL no position below what is durable; or the error of the read.
    // With an error some of the records may have been reported; those are good.
    void (*done)(struct cg_wal_fetch *fetch, int status);
    struct cg_buffer_pool *pool; // the log's
    struct cg_list node;         // the log's
};

// Reads the batch at `fetch->lsn` back, of which the payload only where it belongs to the group; up
// to CG_WAL_FETCHES at a time, others wait their turn. Neither callback is called inside this call;
// both may call cg_wal_fetch. A segment that is being read is recycled when the read is done.
#define CG_WAL_FETCHES 8U
void cg_wal_fetch(struct cg_wal *wal, struct cg_buffer_pool *pool, struct cg_wal_fetch *fetch);

// Nothing below `lsn` is needed any more: its segments may be reused. Fetches below it end with
// -ENOENT from now on; those under way are not disturbed.
void cg_wal_recycle(struct cg_wal *wal, uint64_t lsn);

// What has become of the disk's space: see cg_wal_options.keep_free_bytes. With `give_back`
// segments that are not needed go back to the disk while less than that is free. A log that could
// not grow tries again once there is space.
void cg_wal_tend(struct cg_wal *wal, uint64_t keep_free_bytes, bool give_back);

// Whether the log has a segment to go on in when the one being written is full, or is making one.
bool cg_wal_has_spare(const struct cg_wal *wal);

// Makes one, whatever the capacity and keep_free_bytes say. Blocking; none may be in the making.
// Returns 0 or -errno.
int cg_wal_make_spare(struct cg_wal *wal);

// Bytes of disk between the oldest needed record and the tail, queued appends included, and the
// limit: the owner starts a checkpoint at half and answers OVERLOAD when used + what it wants to
// append would pass the limit. Both may change by themselves: the limit falls when the disk is too
// full to make another segment, and used may pass it after a restart. Appends beyond it wait for a
// recycling.
uint64_t cg_wal_used(const struct cg_wal *wal);
uint64_t cg_wal_capacity(const struct cg_wal *wal);

struct cg_wal_stats {
    uint64_t batches;
    uint64_t records;
    uint64_t bytes; // written, headers included
};
void cg_wal_stats(const struct cg_wal *wal, struct cg_wal_stats *out);

#endif
