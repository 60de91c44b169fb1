// SPDX-License-Identifier: BSD-3-Clause
//
// Handing leadership over [3.10]: no new proposals; the target gets all entries; then it is told to
// campaign at once, with a mark that makes voters ignore that the old leader lives. If it does not
// take over within an election timeout the leader goes on.
#include <assert.h>
#include <errno.h>

#include "raft/raft_internal.h"

int cg_raft_transfer(struct cg_raft *raft, uint64_t now_ns, uint64_t target) {
    if (raft->role != CG_RAFT_LEADER) {
        return -EPERM;
    }
    const struct raft_peer *peer = raft_peer(raft, target);
    if (peer == NULL || peer->learner) {
        return -EINVAL;
    }
    if (raft->transferee != 0 || !raft->voter) {
        return -EAGAIN;
    }
    raft->now_ns = now_ns;
    raft_wake_up(raft);
    raft->active_ns = now_ns;
    raft->transferee = target;
    raft->transfer_sent = false;
    raft->transfer_deadline_ns = now_ns + raft->options.election_timeout_ns;
    raft_advance_transfer(raft);
    return 0;
}

void raft_end_transfer(struct cg_raft *raft) {
    raft->transferee = 0;
}

void raft_tick_transfer(struct cg_raft *raft) {
    if (raft->transferee != 0 && raft->now_ns >= raft->transfer_deadline_ns) {
        raft_end_transfer(raft);
    }
}

void raft_advance_transfer(struct cg_raft *raft) {
    if (raft->role != CG_RAFT_LEADER || raft->transferee == 0 || raft->transfer_sent) {
        return;
    }
    struct raft_peer *peer = raft_peer(raft, raft->transferee);
    if (peer == NULL || peer->learner) {
        raft_end_transfer(raft);
        return;
    }
    if (peer->match < raft->log.last_index && !CG_RAFT_MUTATED(TRANSFER_WITHOUT_CATCH_UP)) {
        return;
    }
    raft->transfer_sent = true;
    peer->timeout_due = true;
    raft->lease_void = true; // the promise that it rests on can be broken from here on (read.c)
}

// An order older than what has been heard of the leader since is not followed: it would disturb.
void raft_receive_timeout_now(struct cg_raft *raft, const struct cg_raft_message *message) {
    raft_heard_leader(raft, message->from);
    if (!raft->voter || raft->seen_round == 0 || message->round < raft->seen_round ||
        raft->append_due || !log_terms_room(&raft->log, raft->term + 1)) {
        return;
    }
    raft_campaign(raft, true);
}
