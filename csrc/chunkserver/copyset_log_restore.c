// SPDX-License-Identifier: BSD-3-Clause
//
// Start: what the log on disk says of a group, record by record.
#include <assert.h>
#include <errno.h>

#include "chunkserver/copyset_log_internal.h"

static int restore_state(struct cg_copyset_log *log, uint64_t lsn,
                         const struct cg_wal_record *record) {
    uint64_t vote;
    int result = cg_record_state_decode(record, &vote);
    if (result != 0) {
        return result;
    }
    log->legacy = false;
    log->state_lsn = lsn;
    cg_raft_restore_state(log->raft, record->term, vote);
    return 0;
}

// Feeds a new core what the present one knows above `base`.
static int copy_entries(const struct cg_copyset_log *log, struct cg_raft *to, uint64_t base) {
    for (uint64_t at = base + 1; at <= log->index.last; at++) {
        const struct log_config *config = log_config_as_of(log, at);
        struct cg_raft_entry entry = {.term = cg_raft_term_at(log->raft, at)};
        if (config->index == at) {
            entry.type = CG_RAFT_ENTRY_CONFIG;
            entry.config = &config->config;
        }
        int result = cg_raft_restore_entry(to, at, &entry);
        if (result != 0) {
            return result;
        }
    }
    return 0;
}

// Gives the log a core that begins at `base`; what is above stays, unless the log is void.
static int rebase(struct cg_copyset_log *log, const struct cg_raft_restored *base, bool empties) {
    struct cg_raft *raft = NULL;
    int result = log_core_create(log, base, &raft);
    if (result == 0 && !empties) {
        result = copy_entries(log, raft, base->base_index);
    }
    if (result != 0) {
        if (raft != NULL) {
            cg_raft_destroy(raft);
        }
        return result;
    }
    cg_raft_destroy(log->raft);
    log->raft = raft;
    return 0;
}

static int restore_install(struct cg_copyset_log *log, uint64_t lsn,
                           const struct cg_wal_record *record) {
    struct cg_record_install install;
    int result = cg_record_install_decode(record, &install);
    struct cg_raft_status status;
    cg_raft_status(log->raft, &status);
    if (result != 0 || (record->index <= status.base_index && !install.voids)) {
        return result;
    }
    struct cg_raft_restored base = {
        .term = status.term,
        .vote = status.vote,
        .base_index = record->index,
        .base_term = record->term,
        .config = install.config,
    };
    if (record->index <= status.base_index) {
        // The checkpoint contains it; of what came before it, what lies above is void.
        base.base_index = status.base_index;
        base.base_term = cg_raft_term_at(log->raft, status.base_index);
        base.config = log_config_as_of(log, status.base_index)->config;
    } else {
        log->install_index = record->index;
        log->install_lsn = lsn;
    }
    if (base.base_term > base.term) {
        return -EBADMSG;
    }
    // An INSTALL that voids nothing stands in a log that has its index.
    bool empties = install.voids || base.base_index > log->index.last;
    result = rebase(log, &base, empties);
    if (result != 0) {
        return result;
    }
    if (empties) {
        log->copies_lack = 0;
        log_index_reset(&log->index, base.base_index);
        log_config_reset(log, base.base_index, &base.config);
    } else {
        log_index_compact(&log->index, base.base_index);
        log_config_forget(log, base.base_index);
    }
    log->delivered = base.base_index;
    return 0;
}

int log_restore_entry(struct cg_copyset_log *log, uint64_t lsn, uint64_t index, uint32_t bytes,
                      const struct cg_raft_entry *entry) {
    int result = cg_raft_restore_entry(log->raft, index, entry);
    if (result == 0) {
        result = log_index_reserve(&log->index, 1);
    }
    if (result != 0) {
        return result;
    }
    uint64_t first = index > log->index.base ? index : log->index.base + 1;
    log_index_cut(&log->index, first);
    log_config_cut(log, first);
    if (log->copies_lack >= first) {
        log->copies_lack = 0;
    }
    struct cg_raft_status status;
    cg_raft_status(log->raft, &status);
    if (status.last_index == log->index.last) {
        return 0; // it is not above the base, or does not fit and must turn out to be void
    }
    struct log_slot *slot = log_index_push(&log->index);
    assert(log->index.last == index && status.last_index == index);
    slot->lsn = lsn;
    slot->bytes = bytes;
    slot->durable = true;
    if (entry->type == CG_RAFT_ENTRY_CONFIG && !log_config_push(log, index, entry->config)) {
        return -ENOMEM;
    }
    return 0;
}

static int restore_entry(struct cg_copyset_log *log, uint64_t lsn,
                         const struct cg_wal_record *record) {
    struct cg_raft_config config;
    struct cg_raft_entry entry = {.term = record->term};
    if (record->type == CG_ENTRY_CONFIG) {
        if (cg_log_config_decode(record->meta, record->meta_length, &config) !=
            (int64_t)record->meta_length) {
            return -EBADMSG;
        }
        entry.type = CG_RAFT_ENTRY_CONFIG;
        entry.config = &config;
    }
    struct cg_raft_status status;
    cg_raft_status(log->raft, &status);
    if (log->legacy && record->term > status.term) { // the term's vote may be the checkpoint's
        cg_raft_restore_state(log->raft, record->term, 0);
    }
    return log_restore_entry(log, lsn, record->index, record->meta_length + record->payload_length,
                             &entry);
}

int cg_copyset_log_restore(struct cg_copyset_log *log, uint64_t lsn,
                           const struct cg_wal_record *record) {
    assert(!log->started);
    switch (record->type) {
    case CG_RECORD_STATE:
        return restore_state(log, lsn, record);
    case CG_RECORD_INSTALL:
        return restore_install(log, lsn, record);
    case CG_RECORD_COPY:
        return log_restore_copy(log, lsn, record);
    case CG_RECORD_MOVED:
        return log_restore_moved(log, record);
    default:
        return restore_entry(log, lsn, record);
    }
}
