// SPDX-License-Identifier: BSD-3-Clause
//
// The log's beginning: what checkpoints save and make dispensable, and state that is copied instead
// of entries.
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "chunkserver/copyset_log_internal.h"

// Entries of a group that are remembered for lagging members, whatever the log on disk could keep.
#define ENTRIES_KEPT_MAX (1U << 17)

// A sole member forgets what it has applied in steps of so many.
#define ALONE_STEP 256U

static uint64_t lower(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

// ---- Checkpoints

void cg_copyset_log_capture(const struct cg_copyset_log *log, uint64_t index,
                            struct cg_copyset_log_saved *out) {
    assert(index >= log->index.base && index <= log->delivered);
    const struct log_slot *next = log_index_at(&log->index, index + 1);
    *out = (struct cg_copyset_log_saved){
        .term = log->status.term,
        .vote = log->status.vote,
        .index = index,
        .index_term = cg_raft_term_at(log->raft, index),
        .config = log_config_as_of(log, index)->config,
        .replay_lsn = next != NULL ? next->lsn : UINT64_MAX,
    };
}

void log_forget(struct cg_copyset_log *log, uint64_t index) {
    if (index > log->index.base) {
        log_index_compact(&log->index, index);
        cg_raft_compact(log->raft, index);
        cg_raft_status(log->raft, &log->status);
    }
}

static bool alone(const struct cg_copyset_log *log) {
    return cg_raft_config(log->raft)->count <= 1;
}

// Up to which index entries are given up early, whatever checkpoints keep: where nobody else needs
// them, where they are too many, or where the core has no room for their terms, as after elections
// in an idle group.
static uint64_t given_up(const struct cg_copyset_log *log) {
    const struct log_index *index = &log->index;
    uint64_t applied = log->status.applied_index;
    if (alone(log)) {
        return applied - index->base >= ALONE_STEP ? applied : 0;
    }
    if (log->status.terms > LOG_TERMS_MAX / 2) {
        return applied;
    }
    if (index->last - index->base > ENTRIES_KEPT_MAX) {
        return lower(applied, index->base + (index->last - index->base) / 2);
    }
    return 0;
}

void cg_copyset_log_applied(struct cg_copyset_log *log, uint64_t index) {
    assert(index <= log->delivered);
    cg_raft_applied(log->raft, index);
    if (index > log->status.applied_index) {
        log->status.applied_index = index;
    }
    log_forget(log, given_up(log));
}

// Up to which index what a checkpoint contains can be forgotten.
static uint64_t forgettable(const struct cg_copyset_log *log, uint64_t end,
                            uint64_t keep_from_lsn) {
    if (alone(log) || log->install.discarded) {
        return end;
    }
    const struct cg_wal *wal = log->disk->wal;
    uint64_t pinned_from_lsn = cg_wal_keep_from(wal, cg_wal_capacity(wal) / 4 * 3);
    uint64_t pinned = UINT64_MAX;
    for (uint32_t i = 0; i < log->pin_count; i++) {
        pinned = lower(pinned, log->pin[i].index);
    }
    uint64_t index = log->index.base;
    while (index < end) {
        uint64_t from = index >= pinned ? lower(keep_from_lsn, pinned_from_lsn) : keep_from_lsn;
        if (log_index_at(&log->index, index + 1)->lsn >= from) {
            break;
        }
        index++;
    }
    return index;
}

static uint64_t needed_lsn(const struct cg_copyset_log *log) {
    uint64_t need = UINT64_MAX;
    const struct log_slot *first = log_index_at(&log->index, log->index.base + 1);
    if (first != NULL && !log->install.discarded) {
        need = first->lsn;
    }
    need = lower(need, log->install_lsn != 0 ? log->install_lsn : UINT64_MAX);
    return lower(need, log->state_lsn != 0 ? log->state_lsn : UINT64_MAX);
}

uint64_t cg_copyset_log_saved(struct cg_copyset_log *log, const struct cg_copyset_log_saved *saved,
                              uint64_t keep_from_lsn) {
    uint64_t end = lower(saved->index, log->status.applied_index);
    if (end > log->index.base) {
        log_forget(log, forgettable(log, end, keep_from_lsn));
    }
    log_config_forget(log, saved->index);
    if (saved->index >= log->install_index) {
        log->install_lsn = 0;
    }
    if (saved->term == log->status.term && saved->vote == log->status.vote) {
        log->state_lsn = 0;
    }
    uint64_t need = needed_lsn(log);
    log_move_from(log, keep_from_lsn);
    return need;
}

// ---- Leader: a member's copy

static struct log_pin *pin_of(struct cg_copyset_log *log, uint64_t member) {
    for (uint32_t i = 0; i < log->pin_count; i++) {
        if (log->pin[i].member == member) {
            return &log->pin[i];
        }
    }
    return NULL;
}

void cg_copyset_log_copying(struct cg_copyset_log *log, uint64_t member, uint64_t index) {
    struct log_pin *pin = pin_of(log, member);
    if (pin == NULL && log_leads(log) && log->pin_count < CG_RAFT_MEMBERS_MAX) {
        pin = &log->pin[log->pin_count++];
    }
    if (pin != NULL) {
        *pin = (struct log_pin){.member = member, .index = index};
    }
}

void cg_copyset_log_copied(struct cg_copyset_log *log, uint64_t member, uint64_t index, bool ok) {
    if (!log->started || log_retired(log)) {
        return;
    }
    struct log_pin *pin = pin_of(log, member);
    if (pin != NULL) {
        *pin = log->pin[--log->pin_count];
    }
    log_flush(log);
    cg_raft_snapshot_sent(log->raft, member, index, ok);
    log_step(log, NULL);
    log_settle(log);
}

// ---- Receiver

bool cg_copyset_log_wants_state(const struct cg_copyset_log *log, uint64_t index, uint64_t term) {
    return log->started && !log->install.logging && term <= log->status.term &&
           cg_raft_snapshot_wanted(log->raft, index) && cg_raft_term_at(log->raft, index) != term;
}

void cg_copyset_log_install_begin(struct cg_copyset_log *log) {
    assert(!log->install.under_way);
    log->install.under_way = true;
}

void cg_copyset_log_install_discard(struct cg_copyset_log *log) {
    assert(log->install.under_way);
    log_move_cancel(log);
    log->install.discarded = true;
    for (uint64_t at = log->index.base + 1; at <= log->index.last; at++) {
        log_index_drop(log_index_at(&log->index, at));
    }
}

void cg_copyset_log_install_abort(struct cg_copyset_log *log) {
    assert(!log->install.logging && !log->install.discarded);
    log->install.under_way = false;
    log_defer(log); // what was committed meanwhile
}

// Told by log_install_settle.
static void end_install(struct cg_copyset_log *log, int status) {
    if (status == 0) {
        log->install.under_way = false;
        log->install.discarded = false;
    }
    log->install.logging = false;
    log->install.status = status;
    log->install.told_due = true;
    log_defer(log);
}

void log_install_settle(struct cg_copyset_log *log) {
    if (log->install.told_due) {
        log->install.told_due = false;
        log->settle_again = true; // what follows is delivered after this is told
        log->install.done(log->install.user, log->install.status);
    }
}

void log_install_fail(struct cg_copyset_log *log, int error) {
    if (log->install.logging) {
        end_install(log, error);
    }
}

static void take_state(struct cg_copyset_log *log) {
    const struct cg_copyset_log_saved *state = &log->install.state;
    bool empties = cg_raft_term_at(log->raft, state->index) != state->index_term;
    int result = cg_raft_snapshot_installed(log->raft, log_now(log), state->index,
                                            state->index_term, &state->config);
    assert(result == 0); // the log stood still since it was wanted
    assert(empties || !log->install.discarded);
    (void)result;
    log_move_cancel(log);
    if (empties) {
        log_index_reset(&log->index, state->index);
        log_config_reset(log, state->index, &state->config);
    } else {
        log_index_compact(&log->index, state->index);
        log_config_forget(log, state->index);
    }
    log->delivered = state->index;
    log->install_index = state->index;
    log->install_lsn = log->install.lsn;
    log_fetch_forget(log);
    log_step(log, NULL);
}

static void install_logged(struct cg_wal_append *append) {
    struct log_record_append *record = CG_CONTAINER_OF(append, struct log_record_append, append);
    struct cg_copyset_log *log = record->log;
    log->install.lsn = append->lsn;
    int status = append->status;
    free(record);
    log->appending--;
    if (status != 0) {
        log_disk_broken(log->disk, status);
        return;
    }
    if (!log->install.logging) {
        return; // the log was retired meanwhile
    }
    log_flush(log);
    take_state(log);
    end_install(log, 0);
}

static int log_install(struct cg_copyset_log *log) {
    const struct cg_copyset_log_saved *state = &log->install.state;
    if (!log->started || log_retired(log)) {
        return -EIO;
    }
    if (state->index_term > log->status.term || !cg_raft_snapshot_wanted(log->raft, state->index)) {
        return -EINVAL;
    }
    if (log->status.role == CG_RAFT_CANDIDATE) {
        return -EAGAIN; // it may lead before the record is durable, which its entries would
                        // contradict
    }
    struct log_record_append *record = calloc(1, sizeof(*record));
    if (record == NULL) {
        return -ENOMEM;
    }
    const struct cg_record_install install = {
        .voids = cg_raft_term_at(log->raft, state->index) != state->index_term,
        .config = state->config,
    };
    record->log = log;
    record->append.record = (struct cg_wal_record){
        .group = log->options.group,
        .term = state->index_term,
        .index = state->index,
        .type = CG_RECORD_INSTALL,
        .meta = record->meta,
        .meta_length = (uint32_t)cg_record_install_encode(&install, record->meta),
    };
    record->append.done = install_logged;
    cg_list_init(&record->append.node);
    log->install.logging = true;
    log->appending++;
    cg_wal_append(log->disk->wal, &record->append);
    return 0;
}

void cg_copyset_log_installed(struct cg_copyset_log *log, const struct cg_copyset_log_saved *state,
                              void (*done)(void *user, int status), void *user) {
    assert(log->install.under_way && !log->install.logging);
    log->install.state = *state;
    log->install.done = done;
    log->install.user = user;
    log_flush(log);
    int result = log_install(log);
    if (result != 0) {
        end_install(log, result);
    }
}
