// SPDX-License-Identifier: BSD-3-Clause
//
// Start: each copyset's log is told what the log on disk holds of it. What of that is committed,
// and so to be applied again, turns out when the copyset's replicas have found a leader; a replica
// that is alone knows it at once. Folders of an earlier version do not say who they are: their
// records are kept until somebody does.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "chunkserver/copyset_log_record.h"
#include "chunkserver/store_internal.h"

#define SETTLE_POLL_NS  (100 * CG_NS_PER_MS)
#define SETTLE_LIMIT_NS (2 * CG_NS_PER_S) // without any progress

// A record without its payload.
struct cg_kept_record {
    uint64_t lsn;
    struct cg_wal_record record;
    uint8_t meta[CG_ENTRY_META_SIZE];
};

struct replay {
    struct cg_store *store;
    char *error;
    size_t error_size;
};

static int refuse(struct replay *replay, int result, const struct cg_wal_record *record,
                  const char *why) {
    snprintf(replay->error, replay->error_size,
             "entry %" PRIu64 " of copyset %" PRIu32 "-%" PRIu32 " in the log: %s", record->index,
             (uint32_t)(record->group >> 32), (uint32_t)record->group, why);
    return result;
}

// ---- Folders of an earlier version

static int keep(struct replay *replay, struct cg_copyset *copyset, uint64_t lsn,
                const struct cg_wal_record *record) {
    if (record->meta_length > CG_ENTRY_META_SIZE) {
        return refuse(replay, -EBADMSG, record, "its header makes no sense");
    }
    uint32_t count = copyset->kept_count;
    if ((count & (count - 1)) == 0) {
        // Full: as many again.
        struct cg_kept_record *larger =
            realloc(copyset->kept, (count == 0 ? 1 : 2 * (size_t)count) * sizeof(*larger));
        if (larger == NULL) {
            return refuse(replay, -ENOMEM, record, "out of memory");
        }
        copyset->kept = larger;
    }
    struct cg_kept_record *kept = &copyset->kept[copyset->kept_count++];
    kept->lsn = lsn;
    kept->record = *record;
    kept->record.meta = NULL; // the array moves
    kept->record.block_crcs = NULL;
    memcpy(kept->meta, record->meta, record->meta_length);
    return 0;
}

int cg_replay_kept(struct cg_copyset *copyset) {
    int result = 0;
    for (uint32_t i = 0; i < copyset->kept_count && result == 0; i++) {
        struct cg_kept_record *kept = &copyset->kept[i];
        kept->record.meta = kept->meta;
        result = cg_copyset_log_restore(copyset->log, kept->lsn, &kept->record);
        if (kept->record.index > copyset->recovery_end) {
            copyset->recovery_end = kept->record.index;
        }
    }
    cg_replay_forget(copyset);
    return result;
}

uint64_t cg_replay_kept_lsn(const struct cg_copyset *copyset) {
    return copyset->kept_count > 0 ? copyset->kept[0].lsn : UINT64_MAX;
}

void cg_replay_forget(struct cg_copyset *copyset) {
    free(copyset->kept);
    copyset->kept = NULL;
    copyset->kept_count = 0;
}

// ---- The log

static int replay_record(void *context, uint64_t lsn, const struct cg_wal_record *record,
                         const void *payload) {
    struct replay *replay = context;
    (void)payload;
    struct cg_copyset *copyset = cg_copyset_of_group(replay->store, record->group);
    if (copyset == NULL) {
        return cg_copyset_gone(replay->store, record->group)
                   ? 0
                   : refuse(replay, -EBADMSG, record, "its copyset has no folder");
    }
    if (lsn < copyset->member.from_lsn) {
        return 0; // of a replica that was removed before this one came
    }
    if (copyset->log == NULL) {
        return keep(replay, copyset, lsn, record);
    }
    if (cg_copyset_incomplete(copyset) && record->type != CG_RECORD_STATE) {
        return 0; // only these count
    }
    if (record->index > copyset->recovery_end) {
        copyset->recovery_end = record->index;
    }
    int result = cg_copyset_log_restore(copyset->log, lsn, record);
    if (result == 0 && record->type == CG_RECORD_INSTALL) {
        result = cg_copyset_state_seen(copyset, record->index);
    }
    return result == 0 ? 0 : refuse(replay, result, record, strerror(-result));
}

static bool make_room(void *context) {
    return cg_store_make_room(context);
}

static int make_logs(struct cg_store *store, char *error, size_t error_size) {
    for (uint32_t i = 0; i < store->copyset_count; i++) {
        struct cg_copyset *copyset = store->copysets[i];
        int result = copyset->member.self != 0 ? cg_copyset_make_log(copyset) : 0;
        if (result != 0) {
            snprintf(error, error_size,
                     "cannot make the log of copyset %" PRIu32 "-%" PRIu32 ": %s", copyset->pool,
                     copyset->id, strerror(-result));
            return result;
        }
    }
    return 0;
}

static int start_logs(struct cg_store *store, char *error, size_t error_size) {
    for (uint32_t i = 0; i < store->copyset_count; i++) {
        struct cg_copyset *copyset = store->copysets[i];
        int result = copyset->log != NULL ? cg_copyset_log_start(copyset->log) : 0;
        if (result != 0) {
            snprintf(error, error_size, "cannot start copyset %" PRIu32 "-%" PRIu32 ": %s",
                     copyset->pool, copyset->id,
                     result == -EBADMSG ? "entries are missing in the log" : strerror(-result));
            return result;
        }
        if (copyset->log != NULL) {
            cg_copyset_state_started(copyset);
        }
    }
    return 0;
}

static bool is_alone(const struct cg_copyset *copyset) {
    struct cg_copyset_log_status status;
    cg_copyset_log_status(copyset->log, &status);
    return status.config.count == 1 && status.config.member[0].id == copyset->member.self &&
           !status.config.member[0].learner;
}

static bool settled(const struct cg_copyset *copyset) {
    return copyset->log == NULL || !is_alone(copyset) ||
           (copyset->term_led != 0 && copyset->applied_index == copyset->delivered_index);
}

// Until those that are alone have applied what they hold. What cannot be applied for want of space
// is not waited for.
static int settle_alone(struct cg_store *store) {
    uint64_t moved_ns = cg_reactor_now(store->reactor);
    uint64_t delivered = store->delivered;
    uint32_t at = 0;
    while (at < store->copyset_count && store->stalled_count == 0) {
        if (store->disk_error != 0) {
            return -store->disk_error;
        }
        if (settled(store->copysets[at])) {
            at++;
            continue;
        }
        int result = cg_reactor_wait(store->reactor, SETTLE_POLL_NS);
        uint64_t now = cg_reactor_now(store->reactor);
        if (store->delivered != delivered) {
            delivered = store->delivered;
            moved_ns = now;
        }
        if (result == -ETIME || now - moved_ns > SETTLE_LIMIT_NS) {
            break;
        }
        if (result < 0) {
            return result;
        }
    }
    if (at < store->copyset_count) {
        cg_log(CG_LOG_WARNING, "the log is not applied yet: going on with it while serving");
    }
    return 0;
}

int cg_store_replay(struct cg_store *store, uint64_t from_lsn, char *error, size_t error_size) {
    struct replay replay = {.store = store, .error = error, .error_size = error_size};
    struct cg_wal_replay callbacks = {
        .record = replay_record, .context = &replay, .from_lsn = from_lsn};
    struct cg_wal_options options = {
        .segment_bytes = store->options.wal_segment_bytes,
        .capacity_bytes = store->options.wal_bytes,
        .keep_free_bytes = cg_reserve_missing(&store->reserve),
        .make_room = make_room,
        .room_context = store,
    };
    int result = make_logs(store, error, error_size);
    if (result != 0) {
        return result;
    }
    result = cg_wal_open(store->disk, store->reactor, &options, &callbacks, &store->wal, error,
                         error_size);
    if (result != 0) {
        if (error[0] == '\0') {
            snprintf(error, error_size, "cannot open the log: %s", strerror(-result));
        }
        return result;
    }
    cg_log_disk_attach(store->log_disk, store->wal);
    result = start_logs(store, error, error_size);
    if (result != 0) {
        return result;
    }
    result = settle_alone(store);
    if (result != 0) {
        snprintf(error, error_size, "cannot apply the log: %s", strerror(-result));
    }
    return result;
}
