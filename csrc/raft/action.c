// SPDX-License-Identifier: BSD-3-Clause
//
// What is to be done, worked out when it is asked for: nothing is queued, and what became pointless
// in the meantime is never said. Persisting comes first, so that a message of the same event finds
// its entries where they belong.
#include <assert.h>

#include "raft/raft_internal.h"

static bool next_persist(struct cg_raft *raft, struct cg_raft_action *out) {
    if (raft->state_dirty) {
        raft->state_dirty = false;
        raft->state_ticket = ++raft->ticket;
        out->type = CG_RAFT_PERSIST_STATE;
        out->ticket = raft->ticket;
        out->term = raft->term;
        out->vote = raft->vote;
        return true;
    }
    if (raft->append_due) {
        raft->append_due = false;
        out->type = CG_RAFT_PERSIST_ENTRIES;
        out->ticket = ++raft->ticket;
        out->source = raft->append_source;
        out->term = raft->term;
        out->first = raft->append_first;
        out->last = raft->log.last_index;
        out->entry = raft->append_entry;
        return true;
    }
    return false;
}

static bool next_read(struct cg_raft *raft, struct cg_raft_action *out) {
    if (raft->reads_ready == 0 && raft->reads_failed == 0) {
        return false;
    }
    const struct raft_read *read = &raft->read[raft->read_first];
    out->id = read->id;
    out->index = read->index;
    if (raft->reads_ready > 0) {
        raft->reads_ready--;
        out->type = CG_RAFT_READ_READY;
    } else {
        raft->reads_failed--;
        out->type = CG_RAFT_READ_FAILED;
    }
    raft->read_first = (raft->read_first + 1) % raft->options.reads_max;
    raft->read_count--;
    return true;
}

static bool next_notice(struct cg_raft *raft, struct cg_raft_action *out) {
    if (raft->role_changed) {
        raft->role_changed = false;
        out->type = CG_RAFT_ROLE;
        return true;
    }
    if (raft->commit_reported < raft->commit_index) {
        raft->commit_reported = raft->commit_index;
        out->type = CG_RAFT_COMMIT;
        out->index = raft->commit_index;
        return true;
    }
    return next_read(raft, out);
}

static void fill(const struct cg_raft *raft, struct cg_raft_action *out, uint64_t to) {
    out->type = CG_RAFT_SEND;
    out->message.from = raft->options.id;
    out->message.to = to;
    out->message.term = raft->term;
}

// ---- What was held back until it is durable

static bool next_vote_reply(struct cg_raft *raft, struct cg_raft_action *out) {
    if (!raft->vote_reply_due ||
        (!raft_state_durable(raft) && !CG_RAFT_MUTATED(VOTE_NOT_DURABLE))) {
        return false;
    }
    raft->vote_reply_due = false;
    fill(raft, out, raft->vote_reply_to);
    out->message.type = CG_RAFT_VOTE_REPLY;
    out->message.granted = raft->vote_reply_granted;
    return true;
}

// What this server can promise to have of the leader's log.
static uint64_t durable_match(const struct cg_raft *raft) {
    uint64_t durable =
        CG_RAFT_MUTATED(ACK_NOT_DURABLE) ? raft->log.last_index : raft->durable_index;
    uint64_t match = raft->verified < durable ? raft->verified : durable;
    if (CG_RAFT_MUTATED(MATCH_IS_LAST_INDEX)) {
        match = durable;
    }
    return match;
}

static bool next_ack(struct cg_raft *raft, struct cg_raft_action *out) {
    if (!raft->ack_due || raft->leader == 0 || !raft_state_durable(raft)) {
        return false; // nobody to tell, perhaps because this server asks to be elected
    }
    uint64_t match = durable_match(raft);
    bool whole = match >= raft->ack_target;
    if (match <= raft->acked && !whole) {
        return false;
    }
    raft->acked = match;
    raft->ack_due = !whole;
    fill(raft, out, raft->leader);
    out->message.type = CG_RAFT_APPEND_REPLY;
    out->message.match = match;
    return true;
}

static bool next_heartbeat_reply(struct cg_raft *raft, struct cg_raft_action *out) {
    if (!raft->heartbeat_reply_due || raft->leader == 0 || !raft_state_durable(raft)) {
        return false;
    }
    raft->heartbeat_reply_due = false;
    fill(raft, out, raft->leader);
    out->message.type = CG_RAFT_HEARTBEAT_REPLY;
    out->message.round = raft->heartbeat_round;
    out->message.sent_ns = raft->heartbeat_sent_ns;
    out->message.match = durable_match(raft);
    out->message.received = raft->verified;
    return true;
}

static bool next_reply(struct cg_raft *raft, struct cg_raft_action *out) {
    if (raft->reply_due) {
        raft->reply_due = false;
        // A term that this server could forget is not told; who asks will ask again.
        if (raft_state_durable(raft) || raft->reply.term != raft->term) {
            out->type = CG_RAFT_SEND;
            out->message = raft->reply;
            return true;
        }
    }
    return next_vote_reply(raft, out) || next_ack(raft, out) || next_heartbeat_reply(raft, out);
}

// ---- What a leader or candidate says on its own

static bool next_vote_request(struct cg_raft *raft, struct cg_raft_action *out) {
    if (!raft_state_durable(raft)) {
        return false;
    }
    for (uint32_t i = 0; i < raft->peer_count; i++) {
        struct raft_peer *peer = &raft->peer[i];
        if (peer->ask_vote) {
            peer->ask_vote = false;
            fill(raft, out, peer->id);
            raft_fill_vote(raft, &out->message);
            return true;
        }
    }
    return false;
}

static void fill_heartbeat(struct cg_raft *raft, struct raft_peer *peer,
                           struct cg_raft_message *message) {
    message->type = CG_RAFT_HEARTBEAT;
    // Only of what this peer is known to have [3.5]; the core of a follower checks as well.
    message->commit = peer->match < raft->commit_index ? peer->match : raft->commit_index;
    message->round = raft->round;
    message->sent_ns = raft->now_ns;
    message->quiesce = peer->quiesce_due;
    peer->heartbeat_due = false;
    peer->quiesce_due = false;
}

static bool next_for_peer(struct cg_raft *raft, struct raft_peer *peer,
                          struct cg_raft_action *out) {
    if (peer->heartbeat_due) {
        fill(raft, out, peer->id);
        fill_heartbeat(raft, peer, &out->message);
        return true;
    }
    if (raft_fill_append(raft, peer, &out->message)) {
        fill(raft, out, peer->id);
        return true;
    }
    if (peer->ask_snapshot) {
        peer->ask_snapshot = false;
        out->type = CG_RAFT_SEND_SNAPSHOT;
        out->peer = peer->id;
        return true;
    }
    if (peer->timeout_due) {
        peer->timeout_due = false;
        fill(raft, out, peer->id);
        out->message.type = CG_RAFT_TIMEOUT_NOW;
        out->message.round = raft->round;
        return true;
    }
    return false;
}

bool cg_raft_next(struct cg_raft *raft, struct cg_raft_action *out) {
    *out = (struct cg_raft_action){0};
    if (raft->role == CG_RAFT_RETIRED) {
        return next_notice(raft, out);
    }
    if (next_persist(raft, out) || next_notice(raft, out) || next_reply(raft, out)) {
        return true;
    }
    if (raft->role == CG_RAFT_LEADER) {
        for (uint32_t i = 0; i < raft->peer_count; i++) {
            if (next_for_peer(raft, &raft->peer[i], out)) {
                return true;
            }
        }
        return false;
    }
    return (raft->role == CG_RAFT_CANDIDATE || raft->role == CG_RAFT_PRE_CANDIDATE) &&
           next_vote_request(raft, out);
}
