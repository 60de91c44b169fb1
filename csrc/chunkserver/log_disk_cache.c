// SPDX-License-Identifier: BSD-3-Clause
//
// Durable entries stay in memory for members that lag a little, up to a number of bytes over all
// groups; the oldest go first. Entries that are not durable yet are no part of it: they cannot be
// read back.
#include "chunkserver/copyset_log_internal.h"

// What an entry takes besides its own bytes, roughly.
#define ENTRY_OVERHEAD 512U

uint64_t log_cache_size(uint64_t bytes) {
    return bytes + ENTRY_OVERHEAD;
}

static uint64_t size_of(const struct cg_log_entry *entry) {
    return log_cache_size((uint64_t)entry->meta_length + entry->payload_length);
}

void log_cache_remove(struct cg_log_entry *entry) {
    if (cg_list_linked(&entry->cached)) {
        struct cg_log_disk *disk = entry->log->disk;
        cg_list_remove(&entry->cached);
        disk->cached_entries--;
        disk->cached_bytes -= size_of(entry);
    }
}

void log_cache_add(struct cg_log_disk *disk, struct cg_log_entry *entry) {
    cg_list_push_back(&disk->cached, &entry->cached);
    disk->cached_entries++;
    disk->cached_bytes += size_of(entry);
    while (disk->cached_bytes > disk->options.cache_bytes) {
        struct cg_log_entry *oldest =
            CG_CONTAINER_OF(disk->cached.next, struct cg_log_entry, cached);
        if (oldest == entry) {
            return;
        }
        disk->evictions++;
        log_index_drop(log_index_at(&oldest->log->index, oldest->index));
    }
}
