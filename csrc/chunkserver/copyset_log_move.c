// SPDX-License-Identifier: BSD-3-Clause
//
// Entries that are not delivered for long, because their group has no majority, or has yet to copy
// the state to this member, must not keep the log on disk, which others share, from being recycled:
// they are written again at its end.
//
// First a COPY record of each, in order; these change nothing. Then a MOVED record: from it on the
// log above what was delivered when this began is the copies. Until it is durable the entries are
// where they were. What is appended meanwhile is copied, too; if something is overwritten
// meanwhile, the copies made so far are forgotten, and a later checkpoint begins anew.
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "chunkserver/copyset_log_internal.h"

#define COPIES_IN_FLIGHT 32U

struct move_append {
    struct cg_wal_append append;
    struct cg_copyset_log *log;
    struct cg_log_entry *entry; // NULL: the MOVED record
    uint64_t round;
    uint64_t index;
    struct iovec piece;
    uint8_t meta[CG_WAL_META_MAX];
};

void log_move_cancel(struct cg_copyset_log *log) {
    if (log->move.next == 0) {
        return;
    }
    log->move.next = 0;
    for (uint64_t at = log->index.base + 1; at <= log->index.last; at++) {
        log_index_at(&log->index, at)->moved_lsn = 0;
    }
}

static bool running(const struct cg_copyset_log *log, uint64_t round) {
    return log->move.next != 0 && log->move.round == round && !log_retired(log);
}

// The copies are the log now.
static void switch_over(struct cg_copyset_log *log) {
    for (uint64_t at = log->index.base + 1; at <= log->index.last; at++) {
        struct log_slot *slot = log_index_at(&log->index, at);
        if (slot->moved_lsn != 0) {
            slot->lsn = slot->moved_lsn;
            slot->moved_lsn = 0;
        }
    }
    log->move.next = 0;
}

static void logged(struct cg_wal_append *append) {
    struct move_append *move = CG_CONTAINER_OF(append, struct move_append, append);
    struct cg_copyset_log *log = move->log;
    bool mine = running(log, move->round);
    bool last = move->entry == NULL;
    uint64_t index = move->index;
    uint64_t lsn = append->lsn;
    int status = append->status;
    cg_log_entry_unref(move->entry);
    free(move);
    log->appending--;
    log->move.in_flight--;
    if (status != 0) {
        log_disk_broken(log->disk, status);
        return;
    }
    struct log_slot *slot = log_index_at(&log->index, index);
    if (mine && last) {
        switch_over(log);
    } else if (mine && slot != NULL) { // not delivered and forgotten meanwhile
        slot->moved_lsn = lsn;
    }
    log_move_go_on(log);
}

static struct move_append *make(struct cg_copyset_log *log, uint64_t index,
                                struct cg_log_entry *entry) {
    struct move_append *move = calloc(1, sizeof(*move));
    if (move == NULL) {
        return NULL;
    }
    move->log = log;
    move->round = log->move.round;
    move->index = index;
    move->entry = entry != NULL ? cg_log_entry_ref(entry) : NULL;
    move->append.done = logged;
    move->append.record = (struct cg_wal_record){
        .group = log->options.group,
        .term = cg_raft_term_at(log->raft, index),
        .index = index,
        .meta = move->meta,
    };
    cg_list_init(&move->append.node);
    return move;
}

static void append(struct cg_copyset_log *log, struct move_append *move) {
    log->appending++;
    log->move.in_flight++;
    cg_wal_append(log->disk->wal, &move->append);
}

static bool copy_entry(struct cg_copyset_log *log, struct cg_log_entry *entry) {
    struct move_append *move = make(log, entry->index, entry);
    if (move == NULL) {
        return false;
    }
    struct cg_wal_record *record = &move->append.record;
    record->type = CG_RECORD_COPY;
    record->meta_length = (uint32_t)cg_record_copy_encode(entry, move->meta);
    record->payload_length = entry->payload_length;
    record->block_crcs = entry->block_crcs;
    // The log on disk reads it only.
    move->piece = (struct iovec){(void *)(uintptr_t)entry->payload, entry->payload_length};
    move->append.payload = &move->piece;
    move->append.payload_count = entry->payload_length > 0 ? 1 : 0;
    append(log, move);
    return true;
}

// What the log on disk was given already.
static uint64_t last_appended(const struct cg_copyset_log *log) {
    return log->index.last - log->proposed;
}

static bool end_copies(struct cg_copyset_log *log) {
    struct move_append *move = make(log, last_appended(log), NULL);
    if (move == NULL) {
        return false;
    }
    move->append.record.type = CG_RECORD_MOVED;
    move->append.record.meta_length = (uint32_t)cg_record_moved_encode(log->move.first, move->meta);
    log->move.ended = true;
    append(log, move);
    return true;
}

void log_move_go_on(struct cg_copyset_log *log) {
    if (log->move.next == 0 || log->move.ended || log_retired(log)) {
        return;
    }
    bool room = true;
    while (room && log->move.next <= last_appended(log)) {
        if (log->move.in_flight >= COPIES_IN_FLIGHT) {
            return;
        }
        const struct log_slot *slot = log_index_at(&log->index, log->move.next);
        if (slot == NULL) { // delivered and forgotten: nothing is in the way any more
            log_move_cancel(log);
            return;
        }
        if (slot->entry == NULL) {
            log_fetch_want(log, log->move.next);
            return;
        }
        room = copy_entry(log, slot->entry);
        log->move.next += room;
    }
    if (!room || !end_copies(log)) {
        log_move_cancel(log); // no memory: the next checkpoint tries again
    }
}

void log_move_from(struct cg_copyset_log *log, uint64_t before_lsn) {
    const struct log_slot *slot = log_index_at(&log->index, log->delivered + 1);
    if (slot == NULL || !slot->durable || slot->lsn >= before_lsn || log->move.next != 0 ||
        !log->started || log_retired(log) || log->install.under_way) {
        return;
    }
    log->move.round++;
    log->move.first = log->delivered + 1;
    log->move.next = log->move.first;
    log->move.ended = false;
    log_move_go_on(log);
}
