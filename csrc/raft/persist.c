// SPDX-License-Identifier: BSD-3-Clause
//
// What is durable. Everything to be persisted gets a ticket; tickets become durable in order. An
// answer that promises something (a vote, a term, entries) leaves when its ticket is durable
// [3.8: persisted before responding].
#include <assert.h>

#include "raft/raft_internal.h"

void raft_note_append(struct cg_raft *raft, enum cg_raft_source source, uint64_t first) {
    assert(!raft->append_due);
    raft->append_due = true;
    raft->append_source = source;
    raft->append_first = first;
}

// Entries from `first` on are about to be replaced: writes of the old ones that are still on their
// way say nothing about the new ones.
void raft_note_cut(struct cg_raft *raft, uint64_t first) {
    if (raft->durable_index >= first) {
        raft->durable_index = first - 1;
    }
    if (raft->durable_ticket >= raft->cut_ticket || first - 1 < raft->cut_index) {
        raft->cut_index = first - 1;
    }
    raft->cut_ticket = raft->ticket + 1;
}

static void note_entries(struct cg_raft *raft, uint64_t ticket, uint64_t index) {
    if (ticket < raft->cut_ticket && index > raft->cut_index) {
        index = raft->cut_index;
    }
    if (index > raft->log.last_index) {
        index = raft->log.last_index;
    }
    if (index > raft->durable_index) {
        raft->durable_index = index;
    }
}

void cg_raft_durable(struct cg_raft *raft, uint64_t now_ns, uint64_t ticket, uint64_t index) {
    assert(ticket <= raft->ticket && ticket >= raft->durable_ticket);
    raft->now_ns = now_ns;
    raft->durable_ticket = ticket;
    note_entries(raft, ticket, index);
    if (raft->role == CG_RAFT_LEADER) {
        raft_advance_commit(raft);
    } else if (raft->role == CG_RAFT_CANDIDATE) {
        raft_count_votes(raft); // for itself
    }
    raft_check(raft);
}

void cg_raft_disk_error(struct cg_raft *raft) {
    raft_end_transfer(raft);
    raft_fail_reads(raft);
    raft->role = CG_RAFT_RETIRED;
    raft->leader = 0;
    raft->role_changed = true;
    raft->state_dirty = false;
    raft->append_due = false;
    raft->ack_due = false;
    raft->heartbeat_reply_due = false;
    raft->vote_reply_due = false;
    raft->reply_due = false;
}
