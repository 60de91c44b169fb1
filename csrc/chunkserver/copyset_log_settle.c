// SPDX-License-Identifier: BSD-3-Clause
//
// What the state machine above is told, once the core is at rest. Its callbacks may cause further
// events: these are stepped at once, and settled by the loop that is running.
#include "base/clock.h"
#include "chunkserver/copyset_log_internal.h"

// Extensions of the lease that are worth telling.
#define LEASE_STEP_NS (10 * CG_NS_PER_MS)

static void settle_failed(struct cg_copyset_log *log) {
    struct cg_list *node;
    while ((node = cg_list_pop_front(&log->failed)) != NULL) {
        struct cg_log_proposal *proposal = CG_CONTAINER_OF(node, struct cg_log_proposal, node);
        proposal->failed(proposal, log->failed_error);
    }
}

static void settle_role(struct cg_copyset_log *log) {
    if (log->role_due) {
        log->role_due = false;
        log->options.events.role_changed(log->options.events.context);
    }
}

// ---- Delivery

static struct cg_log_proposal *proposal_of(struct cg_copyset_log *log, uint64_t index) {
    if (cg_list_empty(&log->proposals)) {
        return NULL;
    }
    struct cg_log_proposal *proposal =
        CG_CONTAINER_OF(log->proposals.next, struct cg_log_proposal, node);
    return proposal->index == index ? proposal : NULL;
}

static bool deliverable(const struct cg_copyset_log *log) {
    uint64_t end = log->status.commit_index < log->status.durable_index ? log->status.commit_index
                                                                        : log->status.durable_index;
    return !log->blocked && !log_retired(log) && !log->install.under_way && log->delivered < end;
}

static bool offer(struct cg_copyset_log *log, struct cg_log_entry *entry) {
    struct cg_log_proposal *proposal = proposal_of(log, entry->index);
    if (proposal != NULL) {
        cg_list_remove(&proposal->node); // it may be gone afterwards
    }
    log->delivered++;
    log->blocked = true;
    if (log->options.events.committed(log->options.events.context, entry, proposal)) {
        log->blocked = false;
        return true;
    }
    log->delivered--;
    if (proposal != NULL) {
        cg_list_push_front(log_retired(log) ? &log->failed : &log->proposals, &proposal->node);
    }
    return false;
}

static void deliver(struct cg_copyset_log *log) {
    while (deliverable(log)) {
        uint64_t index = log->delivered + 1;
        struct log_slot *slot = log_index_at(&log->index, index);
        if (slot->entry == NULL) {
            log_fetch_want(log, index);
            return;
        }
        struct cg_log_entry *entry = cg_log_entry_ref(slot->entry);
        if (offer(log, entry) && log_leads(log) && index == log->term_start) {
            log->role_due = true; // ready
        }
        cg_log_entry_unref(entry);
        slot = log_index_at(&log->index, index);
        if (slot != NULL && log->delivered >= index && cg_raft_config(log->raft)->count <= 1) {
            log_index_drop(slot); // nobody else will ask for it
        }
    }
}

// ---- Leases and copies

void log_lease(struct cg_copyset_log *log, uint64_t end_ns) {
    if (end_ns != log->lease_end) {
        log->lease_end = end_ns;
        log->options.events.lease(log->options.events.context, end_ns);
    }
}

// A leader that is removing itself is not: the one who stays may be elected without it.
static bool sole_member(const struct cg_copyset_log *log) {
    const struct cg_raft_config *config = cg_raft_config(log->raft);
    return config->count == 1 && config->member[0].id == log->options.self;
}

static void settle_lease(struct cg_copyset_log *log) {
    if (!cg_copyset_log_ready(log)) {
        log_lease(log, 0);
        return;
    }
    uint64_t end = sole_member(log) ? UINT64_MAX : cg_raft_lease_end(log->raft, log_now(log));
    if (end < log->lease_end || end - log->lease_end >= LEASE_STEP_NS) {
        log_lease(log, end);
    }
}

static void settle_copies(struct cg_copyset_log *log) {
    while (log->copy_due_count > 0) {
        uint64_t member = log->copy_due[--log->copy_due_count];
        log->options.events.copy_state(log->options.events.context, member);
    }
}

void log_settle(struct cg_copyset_log *log) {
    log->settle_again = true;
    if (log->settling) {
        return;
    }
    log->settling = true;
    while (log->settle_again || log->role_due) {
        log->settle_again = false;
        settle_lease(log); // before anything else if it is lost
        settle_failed(log);
        settle_role(log);
        log_install_settle(
            log); // what is delivered, and read, comes after the state that counts now
        deliver(log);
        log_reads_settle(log);
        settle_copies(log);
    }
    log->settling = false;
}

void cg_copyset_log_resume(struct cg_copyset_log *log) {
    if (log->blocked) {
        log->blocked = false;
        log_defer(log);
    }
}
