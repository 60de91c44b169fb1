// SPDX-License-Identifier: BSD-3-Clause
//
// What is committed [3.6.2].
#include <assert.h>

#include "raft/raft_internal.h"

uint64_t raft_quorum_value(const struct cg_raft *raft, uint64_t own,
                           uint64_t (*value)(const struct raft_peer *peer)) {
    uint64_t sorted[CG_RAFT_MEMBERS_MAX + 1];
    uint32_t count = 0;
    if (raft->voter || CG_RAFT_MUTATED(REMOVED_LEADER_COUNTS)) {
        sorted[count++] = own;
    }
    for (uint32_t i = 0; i < raft->peer_count; i++) {
        if (raft->peer[i].learner && !CG_RAFT_MUTATED(LEARNER_COUNTS)) {
            continue;
        }
        uint64_t v = value(&raft->peer[i]);
        uint32_t at = count++;
        while (at > 0 && sorted[at - 1] < v) {
            sorted[at] = sorted[at - 1];
            at--;
        }
        sorted[at] = v;
    }
    assert(count > 0);
    // Descending: a majority is at least at the middle one.
    return sorted[count / 2];
}

static uint64_t match_of(const struct raft_peer *peer) {
    return peer->match;
}

bool raft_knows_commit(const struct cg_raft *raft) {
    return raft->role == CG_RAFT_LEADER && raft->commit_index >= raft->term_start;
}

void raft_set_commit(struct cg_raft *raft, uint64_t index) {
    if (index <= raft->commit_index) {
        return;
    }
    assert(index <= raft->log.last_index);
    raft->commit_index = index;
    if (CG_RAFT_MUTATED(CONFIG_AT_COMMIT)) {
        raft_adopt_config(raft);
    }
}

// Leader. Counting replicas commits entries of the leader's own term only; older ones are committed
// by those after them [3.6.2, figure 3.7]. Its own entries count when they are durable [10.2.1].
void raft_advance_commit(struct cg_raft *raft) {
    uint64_t own =
        CG_RAFT_MUTATED(LEADER_COUNTS_NOT_DURABLE) ? raft->log.last_index : raft->durable_index;
    uint64_t index = raft_quorum_value(raft, own, match_of);
    if (index <= raft->commit_index) {
        return;
    }
    if (log_terms_at(&raft->log, index) != raft->term && !CG_RAFT_MUTATED(COMMIT_OLDER_TERM)) {
        return;
    }
    raft_set_commit(raft, index);
    raft->active_ns = raft->now_ns;
    if (!raft->voter && raft->config[raft->config_count - 1].index <= index) {
        // It has been removed, which is committed: others go on [4.2.2].
        raft_become_follower(raft, raft->term, 0);
    }
}
