// SPDX-License-Identifier: BSD-3-Clause
//
// Rounds of heartbeats: they keep followers from campaigning [3.4], confirm reads and leases
// [6.4], tell of lost messages, and let a leader without a majority step down (check-quorum,
// [6.2]). An idle group stops them (quiescing; not in the dissertation): the last round says so,
// and whatever happens next starts them again.
#include <assert.h>
#include <errno.h>

#include "raft/raft_internal.h"

void raft_start_round(struct cg_raft *raft) {
    raft->round++;
    if (CG_RAFT_MUTATED(READS_DELAY_HEARTBEAT)) {
        raft->heartbeat_ns = raft->now_ns + raft->options.heartbeat_interval_ns;
    }
    for (uint32_t i = 0; i < raft->peer_count; i++) {
        raft->peer[i].heartbeat_due = true;
        raft->peer[i].quiesce_due = false;
    }
}

// Rounds for reads do not put it off: the leader's timer also finds out that nobody answers.
void raft_regular_round(struct cg_raft *raft) {
    raft_start_round(raft);
    raft->heartbeat_ns = raft->now_ns + raft->options.heartbeat_interval_ns;
}

static uint64_t heard_of(const struct raft_peer *peer) {
    return peer->heard_ns;
}

// A leader that does not hear from a majority is one that a majority may have replaced.
static bool has_quorum(const struct cg_raft *raft) {
    uint64_t heard = raft_quorum_value(raft, raft->now_ns, heard_of);
    return raft->now_ns - heard <= 2 * raft->options.election_timeout_ns;
}

static bool idle(const struct cg_raft *raft) {
    uint64_t last = raft->log.last_index;
    if (raft->options.quiesce_after_ns == 0 || raft->transferee != 0 || raft->read_count != 0 ||
        raft->commit_index != last || raft->applied_index != last ||
        raft->now_ns - raft->active_ns < raft->options.quiesce_after_ns) {
        return false;
    }
    for (uint32_t i = 0; i < raft->peer_count; i++) {
        if (raft->peer[i].match != last) {
            return false;
        }
    }
    return true;
}

static void fall_quiet(struct cg_raft *raft) {
    raft_regular_round(raft);
    for (uint32_t i = 0; i < raft->peer_count; i++) {
        raft->peer[i].quiesce_due = true;
    }
    raft->quiet = true;
}

// Leader or follower: something has happened.
void raft_wake_up(struct cg_raft *raft) {
    if (!raft->quiet) {
        return;
    }
    raft->quiet = false;
    if (raft->role != CG_RAFT_LEADER) {
        raft_reset_election(raft);
        return;
    }
    raft->active_ns = raft->now_ns;
    for (uint32_t i = 0; i < raft->peer_count; i++) {
        raft->peer[i].heard_ns = raft->now_ns; // nobody was asked meanwhile
    }
    raft_regular_round(raft);
}

void raft_tick_leader(struct cg_raft *raft) {
    if (raft->quiet) {
        return;
    }
    if (!has_quorum(raft) && !CG_RAFT_MUTATED(NO_CHECK_QUORUM)) {
        raft_become_follower(raft, raft->term, 0);
        return;
    }
    if (raft->now_ns < raft->heartbeat_ns) {
        return;
    }
    if (idle(raft)) {
        fall_quiet(raft);
        return;
    }
    raft_regular_round(raft);
}

void raft_receive_heartbeat(struct cg_raft *raft, const struct cg_raft_message *message) {
    raft_heard_leader(raft, message->from);
    if (message->round > raft->seen_round) {
        raft->seen_round = message->round;
    }
    uint64_t commit = message->commit < raft->verified ? message->commit : raft->verified;
    raft_set_commit(raft, commit);
    raft->heartbeat_reply_due = true;
    raft->heartbeat_round = message->round;
    raft->heartbeat_sent_ns = message->sent_ns;
    if (message->quiesce && raft->commit_index == raft->log.last_index &&
        raft->verified == raft->log.last_index && message->round == raft->seen_round) {
        raft->quiet = true;
    }
}

// Messages sent before the round was, and not arrived when it was answered, are lost or will be
// late: they are sent again from there.
static void resend(struct cg_raft *raft, struct raft_peer *peer,
                   const struct cg_raft_message *message) {
    if (message->round <= peer->sent_round || peer->state == RAFT_SNAPSHOT) {
        return;
    }
    if (peer->state == RAFT_PROBE) {
        peer->probing = false;
        return;
    }
    if (message->received < peer->match && !CG_RAFT_MUTATED(RESTARTED_NOT_TOLD)) {
        // It has started again since, and may not take for committed what it does not know to be
        // ours. In an idle group no entry would tell it.
        raft_start_probe(peer, peer->match + 1);
        return;
    }
    uint64_t received = message->received > peer->match ? message->received : peer->match;
    if (received < peer->next - 1 && received <= raft->log.last_index) {
        raft_start_probe(peer, received + 1);
    }
}

int raft_receive_heartbeat_reply(struct cg_raft *raft, const struct cg_raft_message *message) {
    struct raft_peer *peer = raft_peer(raft, message->from);
    if (raft->role != CG_RAFT_LEADER || peer == NULL) {
        return 0;
    }
    if (message->round > raft->round || message->match > raft->log.last_index) {
        return -EBADMSG;
    }
    peer->heard_ns = raft->now_ns;
    uint64_t sent = CG_RAFT_MUTATED(LEASE_FROM_REPLY) ? raft->now_ns : message->sent_ns;
    if (message->round > peer->acked_round) {
        peer->acked_round = message->round;
        peer->acked_sent_ns = sent;
    }
    if (message->match > peer->match && !CG_RAFT_MUTATED(WINDOW_NOT_REOPENED)) {
        raft_matched(raft, peer, message->match);
        if (raft->role != CG_RAFT_LEADER) {
            return 0; // its own removal is committed
        }
    }
    resend(raft, peer, message);
    raft_confirm_reads(raft);
    raft_advance_transfer(raft);
    return 0;
}

void cg_raft_wake(struct cg_raft *raft, uint64_t now_ns) {
    raft->now_ns = now_ns;
    raft_wake_up(raft);
}
