// SPDX-License-Identifier: BSD-3-Clause
//
// What the logs of a disk share, as its parts see it: log_disk.c (life, finding a log, failure),
// log_disk_cache.c (durable entries in memory), log_disk_fetch.c (reading entries back).
#ifndef CG_CHUNKSERVER_LOG_DISK_INTERNAL_H
#define CG_CHUNKSERVER_LOG_DISK_INTERNAL_H

#include <stdbool.h>

#include "chunkserver/log_disk.h"

#define LOG_BUCKETS 1024U

struct cg_log_disk {
    struct cg_log_disk_options options;
    struct cg_wal *wal;
    int error; // negative errno: every log is retired
    struct cg_list bucket[LOG_BUCKETS];

    // Durable entries in memory, the one that came first in front.
    struct cg_list cached;
    uint64_t cached_entries;
    uint64_t cached_bytes;
    uint64_t evictions;

    // Logs that wait for memory to read entries back.
    struct cg_list wanting;
    struct cg_timer fetch_retry;
    uint64_t fetches;

    uint64_t refusal_told_ns; // when a message that makes no sense was last told of

    // A message's entries for the core, while it is being stepped.
    struct cg_raft_entry incoming[CG_RAFT_ENTRIES_MAX];
    struct cg_log_entry *outgoing[CG_RAFT_ENTRIES_MAX];
};

static inline uint64_t log_disk_now(const struct cg_log_disk *disk) {
    return disk->options.now(disk->options.now_context);
}

void log_disk_add(struct cg_log_disk *disk, struct cg_copyset_log *log);
void log_disk_remove(struct cg_log_disk *disk, struct cg_copyset_log *log);

// A write of the log on disk failed, or a batch cannot be read back.
void log_disk_broken(struct cg_log_disk *disk, int error);

// ---- log_disk_cache.c

// A durable entry that its log's index holds; may drop others from memory.
void log_cache_add(struct cg_log_disk *disk, struct cg_log_entry *entry);
// What an entry with so many bytes of meta and payload takes.
uint64_t log_cache_size(uint64_t bytes);
// If it is there.
void log_cache_remove(struct cg_log_entry *entry);

// ---- log_disk_fetch.c

void log_fetch_init(struct cg_log_disk *disk);
void log_fetch_destroy(struct cg_log_disk *disk);

// `log` wants the entry at `index`, which is durable and not in memory. When it is there
// log_fetched is called. One at a time: of several the lowest counts.
void log_fetch_want(struct cg_copyset_log *log, uint64_t index);
// It wants nothing any more.
void log_fetch_forget(struct cg_copyset_log *log);

#endif
