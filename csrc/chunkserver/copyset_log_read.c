// SPDX-License-Identifier: BSD-3-Clause
//
// Linearizable reads: under the lease at once, otherwise by a round of heartbeats that all reads of
// an iteration share.
#include <errno.h>

#include "chunkserver/copyset_log_internal.h"

bool cg_copyset_log_can_read(struct cg_copyset_log *log) {
    uint64_t index;
    return cg_copyset_log_ready(log) && cg_raft_read_index(log->raft, log_now(log), &index) &&
           index <= log->delivered;
}

void cg_copyset_log_read(struct cg_copyset_log *log, struct cg_log_read *read) {
    cg_list_init(&read->node);
    cg_list_push_back(&log->reads_new, &read->node);
    log_defer(log);
}

static struct cg_log_read *first_of(const struct cg_list *list) {
    return CG_CONTAINER_OF(list->next, struct cg_log_read, node);
}

static void fail(struct cg_copyset_log *log, struct cg_log_read *read, int error) {
    cg_list_remove(&read->node);
    read->index = (uint64_t)-error;
    cg_list_push_back(&log->reads_failed, &read->node);
}

static void fail_all(struct cg_copyset_log *log, struct cg_list *list, int error) {
    while (!cg_list_empty(list)) {
        fail(log, first_of(list), error);
    }
}

void log_reads_fail(struct cg_copyset_log *log, int error) {
    fail_all(log, &log->reads_ready, error);
    fail_all(log, &log->reads_asked, error);
    fail_all(log, &log->reads_new, error);
}

void log_reads_flush(struct cg_copyset_log *log) {
    if (cg_list_empty(&log->reads_new)) {
        return;
    }
    int result = log->disk->error != 0 ? -EIO : -EPERM;
    if (log->started && !log_retired(log)) {
        result = cg_raft_read(log->raft, log_now(log), ++log->read_round);
    }
    if (result != 0) {
        fail_all(log, &log->reads_new, result);
        return;
    }
    CG_LIST_FOREACH (node, &log->reads_new) {
        CG_CONTAINER_OF(node, struct cg_log_read, node)->round = log->read_round;
    }
    cg_list_splice_back(&log->reads_asked, &log->reads_new);
    log_step(log, NULL);
}

// The core tells of rounds in the order in which they were asked for.
void log_read_ready(struct cg_copyset_log *log, uint64_t round, uint64_t index) {
    while (!cg_list_empty(&log->reads_asked) && first_of(&log->reads_asked)->round == round) {
        struct cg_log_read *read = first_of(&log->reads_asked);
        read->index = index;
        cg_list_remove(&read->node);
        cg_list_push_back(&log->reads_ready, &read->node);
    }
}

void log_read_failed(struct cg_copyset_log *log, uint64_t round) {
    while (!cg_list_empty(&log->reads_asked) && first_of(&log->reads_asked)->round == round) {
        fail(log, first_of(&log->reads_asked), -EPERM);
    }
}

void log_reads_settle(struct cg_copyset_log *log) {
    while (!cg_list_empty(&log->reads_ready) &&
           first_of(&log->reads_ready)->index <= log->delivered) {
        struct cg_log_read *read = first_of(&log->reads_ready);
        cg_list_remove(&read->node);
        read->done(read, 0);
    }
    while (!cg_list_empty(&log->reads_failed)) {
        struct cg_log_read *read = first_of(&log->reads_failed);
        cg_list_remove(&read->node);
        read->done(read, -(int)read->index);
    }
}
