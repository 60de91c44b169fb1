// SPDX-License-Identifier: BSD-3-Clause
//
// Reading entries back that are no longer, or after a restart not yet, in memory: for members that
// lag, and to be delivered. A log reads one batch at a time; what it holds of the group comes
// along.
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "chunkserver/copyset_log_internal.h"

#define RETRY_NS (10 * CG_NS_PER_MS)

static void start(struct cg_copyset_log *log);

static void retry(struct cg_timer *timer) {
    struct cg_log_disk *disk = CG_CONTAINER_OF(timer, struct cg_log_disk, fetch_retry);
    struct cg_list wanting;
    cg_list_init(&wanting);
    cg_list_splice_back(&wanting, &disk->wanting);
    struct cg_list *node;
    while ((node = cg_list_pop_front(&wanting)) != NULL) {
        start(CG_CONTAINER_OF(node, struct cg_copyset_log, wanting));
    }
}

void log_fetch_init(struct cg_log_disk *disk) {
    cg_list_init(&disk->wanting);
    disk->fetch_retry.fire = retry;
}

void log_fetch_destroy(struct cg_log_disk *disk) {
    cg_timer_disarm(&disk->fetch_retry);
}

// No memory now: later. Without memory for the timer, the next log that wants something.
static void wait(struct cg_copyset_log *log) {
    struct cg_log_disk *disk = log->disk;
    struct cg_reactor *reactor = disk->options.reactor;
    cg_list_remove(&log->wanting);
    cg_list_push_back(&disk->wanting, &log->wanting);
    if (!cg_timer_armed(&disk->fetch_retry)) {
        (void)cg_timer_arm(reactor, &disk->fetch_retry, cg_reactor_now(reactor) + RETRY_NS);
    }
}

// What the record says of an entry, be it the entry's or a copy's; NULL: nothing.
static struct cg_log_entry *entry_of(const struct cg_wal_record *record, struct cg_buffer *buffer,
                                     const uint8_t *payload) {
    uint32_t type = record->type;
    const uint8_t *meta = record->meta;
    uint32_t meta_length = record->meta_length;
    if (type == CG_RECORD_COPY && cg_record_copy_decode(record, &type, &meta, &meta_length) != 0) {
        return NULL;
    }
    return cg_log_entry_make(type, record->term, record->index, meta, meta_length, buffer, payload,
                             record->payload_length, record->block_crcs);
}

static void take_record(struct cg_wal_fetch *fetch, const struct cg_wal_record *record,
                        struct cg_buffer *buffer, const uint8_t *payload) {
    struct cg_copyset_log *log = CG_CONTAINER_OF(fetch, struct cg_copyset_log, fetch);
    struct log_slot *slot = log_index_at(&log->index, record->index);
    // A batch may hold an entry and what replaced it.
    if ((record->type >= CG_RECORD_STATE && record->type != CG_RECORD_COPY) ||
        record->index < log->fetch_for || slot == NULL || slot->entry != NULL ||
        slot->lsn != fetch->lsn || cg_raft_term_at(log->raft, record->index) != record->term) {
        return;
    }
    // What comes along must not push out what is wanted.
    if (log->fetched_bytes > 0 &&
        log->fetched_bytes + log_cache_size(slot->bytes) > log->disk->options.cache_bytes / 2) {
        return;
    }
    struct cg_log_entry *entry = entry_of(record, buffer, payload);
    if (entry == NULL) {
        log->fetch_short = true;
        return;
    }
    entry->log = log;
    slot->entry = entry;
    log->fetched_bytes += log_cache_size(slot->bytes);
    log->fetch_found = log->fetch_found || record->index == log->fetch_for;
    log_cache_add(log->disk, entry);
}

// Is the entry that the fetch was for still where it was looked for, and not there?
static bool missing(const struct cg_copyset_log *log) {
    const struct log_slot *slot = log_index_at(&log->index, log->fetch_for);
    return !log->fetch_found && slot != NULL && slot->entry == NULL && slot->durable &&
           slot->lsn == log->fetch.lsn;
}

static void done(struct cg_wal_fetch *fetch, int status) {
    struct cg_copyset_log *log = CG_CONTAINER_OF(fetch, struct cg_copyset_log, fetch);
    log->fetching = false;
    if (log->want != 0 && missing(log)) {
        if (status == -ENOMEM || log->fetch_short) {
            wait(log);
            return;
        }
        cg_log(CG_LOG_ERROR,
               "copyset %" PRIu32 "-%" PRIu32 ": entry %" PRIu64
               " cannot be read back from the log: %s",
               (uint32_t)(log->options.group >> 32), (uint32_t)log->options.group, log->fetch_for,
               status != 0 ? strerror(-status) : "it is not there");
        log_disk_broken(log->disk, status != 0 ? status : -EBADMSG);
        return;
    }
    if (log->want == log->fetch_for) {
        log->want = 0;
    }
    log_fetched(log); // who still wants something asks again
    if (log->want != 0 && !log->fetching && !cg_list_linked(&log->wanting)) {
        start(log);
    }
}

static void start(struct cg_copyset_log *log) {
    const struct log_slot *slot = log_index_at(&log->index, log->want);
    if (slot == NULL || slot->entry != NULL || !slot->durable) {
        log->want = 0;
        log_fetched(log);
        return;
    }
    log->fetching = true;
    log->fetch_short = false;
    log->fetched_bytes = 0;
    log->fetch_for = log->want;
    log->fetch_found = false;
    log->fetch = (struct cg_wal_fetch){
        .lsn = slot->lsn,
        .group = log->options.group,
        .record = take_record,
        .done = done,
    };
    log->disk->fetches++;
    cg_wal_fetch(log->disk->wal, log->disk->options.pool, &log->fetch);
}

void log_fetch_want(struct cg_copyset_log *log, uint64_t index) {
    if (log->want == 0 || index < log->want) {
        log->want = index;
    }
    if (!log->fetching && !cg_list_linked(&log->wanting)) {
        start(log);
    }
}

void log_fetch_forget(struct cg_copyset_log *log) {
    log->want = 0;
    cg_list_remove(&log->wanting);
}
