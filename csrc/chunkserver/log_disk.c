// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/log_disk.h"

#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "chunkserver/copyset_log_internal.h"

#define CACHE_BYTES_DEFAULT (32U << 20)

static uint64_t boottime(void *context) {
    (void)context;
    return cg_boottime_ns();
}

static uint64_t or_default(uint64_t value, uint64_t fallback) {
    return value != 0 ? value : fallback;
}

int cg_log_disk_create(const struct cg_log_disk_options *options, struct cg_log_disk **out) {
    struct cg_log_disk *disk = calloc(1, sizeof(*disk));
    if (disk == NULL) {
        return -ENOMEM;
    }
    disk->options = *options;
    struct cg_log_disk_options *o = &disk->options;
    o->now = o->now != NULL ? o->now : boottime;
    o->cache_bytes = or_default(o->cache_bytes, CACHE_BYTES_DEFAULT);
    o->election_timeout_ns = or_default(o->election_timeout_ns, 450 * CG_NS_PER_MS);
    o->heartbeat_interval_ns = or_default(o->heartbeat_interval_ns, 100 * CG_NS_PER_MS);
    o->quiesce_after_ns = or_default(o->quiesce_after_ns, 2 * CG_NS_PER_S);
    o->clock_drift_ppm = (uint32_t)or_default(o->clock_drift_ppm, 1000);
    cg_list_init(&disk->cached);
    for (uint32_t i = 0; i < LOG_BUCKETS; i++) {
        cg_list_init(&disk->bucket[i]);
    }
    log_fetch_init(disk);
    *out = disk;
    return 0;
}

void cg_log_disk_destroy(struct cg_log_disk *disk) {
    if (disk != NULL) {
        log_fetch_destroy(disk);
        free(disk);
    }
}

void cg_log_disk_attach(struct cg_log_disk *disk, struct cg_wal *wal) {
    disk->wal = wal;
}

// ---- The logs

static struct cg_list *bucket_of(const struct cg_log_disk *disk, uint64_t group) {
    uint64_t hash = group * UINT64_C(0x9e3779b97f4a7c15);
    // The table belongs to the disk, whoever looks into it.
    return (struct cg_list *)(uintptr_t)&disk->bucket[hash >> 32 & (LOG_BUCKETS - 1)];
}

void log_disk_add(struct cg_log_disk *disk, struct cg_copyset_log *log) {
    cg_list_push_back(bucket_of(disk, log->options.group), &log->bucket);
}

void log_disk_remove(struct cg_log_disk *disk, struct cg_copyset_log *log) {
    (void)disk;
    cg_list_remove(&log->bucket);
}

struct cg_copyset_log *cg_log_disk_find(const struct cg_log_disk *disk, uint64_t group) {
    struct cg_list *bucket = bucket_of(disk, group);
    CG_LIST_FOREACH (node, bucket) {
        struct cg_copyset_log *log = CG_CONTAINER_OF(node, struct cg_copyset_log, bucket);
        if (log->options.group == group) {
            return log;
        }
    }
    return NULL;
}

// ---- The end

static void retire(struct cg_log_disk *disk) {
    for (uint32_t i = 0; i < LOG_BUCKETS; i++) {
        CG_LIST_FOREACH (node, &disk->bucket[i]) {
            struct cg_copyset_log *log = CG_CONTAINER_OF(node, struct cg_copyset_log, bucket);
            if (log->started) {
                log_retire(log, -EIO);
                log_settle(log);
            }
        }
    }
}

void cg_log_disk_failed(struct cg_log_disk *disk, int error) {
    if (disk->error == 0) {
        disk->error = error;
        retire(disk);
    }
}

void log_disk_broken(struct cg_log_disk *disk, int error) {
    if (disk->error != 0) {
        return;
    }
    disk->error = error;
    if (disk->options.failed != NULL) {
        disk->options.failed(disk->options.failed_context, error);
    }
    retire(disk);
}

void cg_log_disk_stats(const struct cg_log_disk *disk, struct cg_log_disk_stats *out) {
    *out = (struct cg_log_disk_stats){
        .cached_entries = disk->cached_entries,
        .cached_bytes = disk->cached_bytes,
        .fetches = disk->fetches,
        .evictions = disk->evictions,
    };
}
