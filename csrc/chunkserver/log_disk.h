// SPDX-License-Identifier: BSD-3-Clause
//
// What the copysets' logs of a disk share: the log on disk (wal.h), the memory for entries that
// slow peers may ask for again, reading entries back, and the end when the disk fails. One reactor
// thread.
#ifndef CG_CHUNKSERVER_LOG_DISK_H
#define CG_CHUNKSERVER_LOG_DISK_H

#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/reactor.h"
#include "chunkserver/log_entry.h"
#include "chunkserver/wal.h"
#include "raft/raft.h"

struct cg_log_disk;

struct cg_log_disk_options {
    struct cg_reactor *reactor;
    struct cg_buffer_pool *pool; // for entries that are read back

    // Sends a message to another member (message->to) of `group`; an APPEND has message->count
    // entries, of which the callee takes references. Best effort: what is lost is repeated. Must
    // not call back into a log. NULL: there are no others.
    void (*send)(void *context, uint64_t group, const struct cg_raft_message *message,
                 struct cg_log_entry *const *entries);
    void *send_context;

    // The log on disk failed with `error` (negative errno): called once, before anything that was
    // under way fails. Not if cg_log_disk_failed was told from outside. May be NULL.
    void (*failed)(void *context, int error);
    void *failed_context;

    // The clock of leases and timeouts, nanoseconds; NULL: CLOCK_BOOTTIME.
    uint64_t (*now)(void *context);
    void *now_context;

    uint64_t cache_bytes; // of durable entries in memory; 0: 32 MiB

    // Of every group; 0: the default.
    uint64_t election_timeout_ns;   // 450 ms; drawn from [this, twice this)
    uint64_t heartbeat_interval_ns; // 100 ms
    uint64_t quiesce_after_ns;      // 2 s
    uint32_t clock_drift_ppm;       // 1000
};

// Returns 0, -EINVAL or -ENOMEM.
int cg_log_disk_create(const struct cg_log_disk_options *options, struct cg_log_disk **out);
// All its logs are destroyed.
void cg_log_disk_destroy(struct cg_log_disk *disk);

// The log on disk, before the first cg_copyset_log_start: cg_wal_open reports its records to
// cg_copyset_log_restore, and gives it afterwards.
void cg_log_disk_attach(struct cg_log_disk *disk, struct cg_wal *wal);

// Retires every log of the disk: they fall silent for good; what is proposed fails with -EIO.
void cg_log_disk_failed(struct cg_log_disk *disk, int error);

// The log of a group; NULL if there is none.
struct cg_copyset_log *cg_log_disk_find(const struct cg_log_disk *disk, uint64_t group);

struct cg_log_disk_stats {
    uint64_t cached_entries; // durable ones in memory
    uint64_t cached_bytes;
    uint64_t fetches;   // batches read back
    uint64_t evictions; // entries dropped from memory for want of room
};
void cg_log_disk_stats(const struct cg_log_disk *disk, struct cg_log_disk_stats *out);

#endif
