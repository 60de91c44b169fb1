// SPDX-License-Identifier: BSD-3-Clause
//
// Linearizable reads without a log entry [6.4]: confirmed by a round of heartbeats, or under a
// lease [6.4.1].
//
// The lease. A follower does not vote for an election timeout E of its clock after it heard the
// leader (election.c), so a majority that answered a round sent at time t keeps others from being
// elected until t + E by their clocks. With rates within 1 +- d of true time, E of theirs is at
// least E / (1 + d), and the leader may count E (1 - d) / (1 + d) of its own. A transfer breaks the
// promise: whoever is told to campaign may be elected at once. Nothing tells when that order can no
// longer arrive, so the lease is void for the rest of the term; rounds then confirm reads.
#include <assert.h>
#include <errno.h>

#include "raft/raft_internal.h"

static uint64_t acked_sent_of(const struct raft_peer *peer) {
    return peer->acked_sent_ns;
}

static uint64_t acked_round_of(const struct raft_peer *peer) {
    return peer->acked_round;
}

static uint64_t lease_length(const struct cg_raft *raft) {
    uint64_t timeout = raft->options.election_timeout_ns;
    if (CG_RAFT_MUTATED(LEASE_WITHOUT_DRIFT)) {
        return timeout;
    }
    const uint64_t million = 1000000;
    uint64_t drift = raft->options.clock_drift_ppm;
    // timeout is below 2^43 ns (raft.c), so the product fits. Rounded down.
    return timeout * (million - drift) / (million + drift);
}

uint64_t cg_raft_lease_end(const struct cg_raft *raft, uint64_t now_ns) {
    if (raft->role != CG_RAFT_LEADER ||
        (raft->lease_void && !CG_RAFT_MUTATED(LEASE_KEPT_IN_TRANSFER))) {
        return 0;
    }
    uint64_t start = raft_quorum_value(raft, now_ns, acked_sent_of);
    uint64_t end = start + lease_length(raft);
    return start != 0 && end > now_ns ? end : 0;
}

bool cg_raft_read_index(const struct cg_raft *raft, uint64_t now_ns, uint64_t *index) {
    if (!raft_knows_commit(raft) && !CG_RAFT_MUTATED(READ_BEFORE_NOOP)) {
        return false;
    }
    if (cg_raft_lease_end(raft, now_ns) == 0) {
        return false;
    }
    *index = raft->commit_index;
    return true;
}

static struct raft_read *read_at(const struct cg_raft *raft, uint32_t position) {
    return &raft->read[(raft->read_first + position) % raft->options.reads_max];
}

// The order of [6.4]: the no-op is committed; note the commit index; hear from a majority that this
// is still the leader; answer when that index is applied.
int cg_raft_read(struct cg_raft *raft, uint64_t now_ns, uint64_t id) {
    if (raft->role != CG_RAFT_LEADER) {
        return -EPERM;
    }
    raft->now_ns = now_ns;
    if (raft->read_count == raft->options.reads_max ||
        (!raft_knows_commit(raft) && !CG_RAFT_MUTATED(READ_BEFORE_NOOP))) {
        return -EAGAIN;
    }
    raft_wake_up(raft);
    raft->active_ns = now_ns;
    uint64_t index;
    bool leased = cg_raft_read_index(raft, now_ns, &index) || CG_RAFT_MUTATED(READ_NOT_CONFIRMED);
    if (!leased) {
        // The rounds under way were sent before the read came and say nothing about now. One new
        // round serves all reads that come before it is handed out.
        bool fresh = true;
        for (uint32_t i = 0; i < raft->peer_count; i++) {
            fresh = fresh && raft->peer[i].heartbeat_due;
        }
        if (!fresh || raft->peer_count == 0) {
            raft_start_round(raft);
        }
    }
    *read_at(raft, raft->read_count++) = (struct raft_read){
        .id = id,
        .index = raft->commit_index,
        .round = leased ? 0 : raft->round,
    };
    raft_confirm_reads(raft);
    return 0;
}

void raft_confirm_reads(struct cg_raft *raft) {
    uint64_t round = raft_quorum_value(raft, raft->round, acked_round_of);
    while (raft->reads_ready < raft->read_count &&
           read_at(raft, raft->reads_ready)->round <= round) {
        raft->reads_ready++;
    }
}

void raft_fail_reads(struct cg_raft *raft) {
    raft->reads_failed = raft->read_count - raft->reads_ready;
}
