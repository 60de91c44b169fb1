// SPDX-License-Identifier: BSD-3-Clause
//
// Who leads [3.4, 3.6.1], with pre-vote [9.6] and with followers that refuse to vote while they
// hear a leader [4.2.3]: the promise that leases rest on.
#include <assert.h>

#include "raft/raft_internal.h"

void raft_reset_election(struct cg_raft *raft) {
    uint64_t timeout = raft->options.election_timeout_ns;
    raft->election_ns = raft->now_ns + timeout + raft_random(raft) % timeout;
}

void raft_become_follower(struct cg_raft *raft, uint64_t term, uint64_t leader) {
    assert(term >= raft->term);
    if (raft->role == CG_RAFT_LEADER) {
        raft_end_transfer(raft);
        raft_fail_reads(raft);
    }
    bool news = raft->role != CG_RAFT_FOLLOWER || raft->term != term || raft->leader != leader;
    raft->role_changed = raft->role_changed || news;
    if (term > raft->term) {
        raft->term = term;
        raft->vote = 0;
        raft->state_dirty = true;
        raft->vote_reply_due = false;
    }
    if (news && !(CG_RAFT_MUTATED(AGREEMENT_KEPT) && raft->leader == leader)) {
        // What is committed is in every leader's log: up to there the logs agree [3.6.3]. No more
        // is known, even of a server that led before: it may have lost what it had not synced.
        raft->verified = raft->commit_index;
        raft->acked = 0;
        raft->ack_target = 0;
        raft->ack_due = false;
        raft->heartbeat_reply_due = false;
        raft->seen_round = 0;
    }
    raft->role = CG_RAFT_FOLLOWER;
    raft->leader = leader;
    raft->forced = false;
    raft->quiet = false;
    raft->pre_votes = 0;
    raft->waited = false;
    raft_reset_election(raft);
}

// A message of the current term's leader.
void raft_heard_leader(struct cg_raft *raft, uint64_t leader) {
    assert(raft->role != CG_RAFT_LEADER);
    if (raft->role != CG_RAFT_FOLLOWER || raft->leader != leader) {
        raft_become_follower(raft, raft->term, leader);
    }
    raft->heard_ns = raft->now_ns;
    raft->heard_any = true;
    raft->quiet = false;
    raft->waited = false;
    raft->campaigns = 0;
    raft_reset_election(raft);
}

// True while this server may not help to depose a leader [4.2.3].
static bool leader_alive(const struct cg_raft *raft) {
    if (raft->role == CG_RAFT_LEADER || raft->quiet) {
        return true; // quiet: whoever belongs to the group has woken it by its question
    }
    return raft->heard_any && raft->now_ns - raft->heard_ns < raft->options.election_timeout_ns;
}

// The candidate's log is at least as complete as ours [3.6.1].
static bool up_to_date(const struct cg_raft *raft, const struct cg_raft_message *message) {
    if (CG_RAFT_MUTATED(VOTE_ANY_LOG)) {
        return true;
    }
    uint64_t last_term = log_terms_last(&raft->log);
    return message->last_term > last_term ||
           (message->last_term == last_term && message->last_index >= raft->log.last_index);
}

// ---- Candidates

static void ask_voters(struct cg_raft *raft) {
    for (uint32_t i = 0; i < raft->peer_count; i++) {
        struct raft_peer *peer = &raft->peer[i];
        peer->answered = false;
        peer->granted = false;
        peer->ask_vote = !peer->learner;
    }
}

// Those who heard the leader a moment longer do not answer yet: they are asked again soon, since
// nobody else may be electable, and then ever more rarely.
//
// The same after a campaign: two that began at the same moment have split the votes. But a vote has
// to be written first, and must not be given up again and again before it is.
static void reset_soon(struct cg_raft *raft, unsigned *times) {
    uint64_t pause = raft->options.heartbeat_interval_ns << *times;
    if (pause >= raft->options.election_timeout_ns) {
        raft_reset_election(raft);
        return;
    }
    (*times)++;
    raft->election_ns = raft->now_ns + pause + raft_random(raft) % pause;
}

static void pre_campaign(struct cg_raft *raft) {
    if (CG_RAFT_MUTATED(NO_PRE_VOTE)) {
        raft_campaign(raft, false);
        return;
    }
    raft->role_changed = raft->role_changed || raft->role != CG_RAFT_PRE_CANDIDATE;
    raft->role = CG_RAFT_PRE_CANDIDATE;
    raft->leader = 0;
    reset_soon(raft, &raft->pre_votes);
    ask_voters(raft);
    raft_count_votes(raft);
}

// Starts an election in a new term [3.4]. Requests leave when term and vote are durable.
void raft_campaign(struct cg_raft *raft, bool forced) {
    assert(raft->role != CG_RAFT_LEADER && raft_may_lead(raft));
    raft->role = CG_RAFT_CANDIDATE;
    raft->leader = 0;
    raft->role_changed = true;
    raft->term++;
    raft->vote = raft->options.id;
    raft->state_dirty = true;
    raft->vote_reply_due = false;
    raft->ack_due = false;
    raft->heartbeat_reply_due = false;
    raft->forced = forced;
    raft->quiet = false;
    raft->pre_votes = 0;
    reset_soon(raft, &raft->campaigns);
    ask_voters(raft);
}

// A server that its own last configuration leaves out still campaigns while that is not known to be
// committed: the others may lack its entries and need it to go on [4.2.2].
bool raft_may_lead(const struct cg_raft *raft) {
    if (raft->voter) {
        return true;
    }
    const struct raft_config_entry *last = &raft->config[raft->config_count - 1];
    if (CG_RAFT_MUTATED(REMOVED_NEVER_LEADS) || raft->config_count < 2 ||
        last->index <= raft->commit_index) {
        return false;
    }
    const struct cg_raft_config *before = &raft->config[raft->config_count - 2].config;
    for (uint32_t i = 0; i < before->count; i++) {
        if (before->member[i].id == raft->options.id) {
            return !before->member[i].learner;
        }
    }
    return false;
}

// A leader serves when it has applied what was committed before it. One that would take long (it
// has started a moment ago) lets the others try first, once.
static bool waits_for_others(struct cg_raft *raft) {
    uint32_t max = raft->options.apply_lag_max;
    if (max == 0 || raft->waited || raft->commit_index - raft->applied_index <= max) {
        return false;
    }
    raft->waited = true;
    raft_reset_election(raft);
    return true;
}

void raft_tick_election(struct cg_raft *raft) {
    if (!raft_may_lead(raft) || raft->quiet || raft->now_ns < raft->election_ns) {
        return;
    }
    // A leader's first entry would need a run of terms of its own.
    if (!log_terms_room(&raft->log, raft->term + 1)) {
        raft_reset_election(raft);
        return;
    }
    if (!waits_for_others(raft)) {
        pre_campaign(raft);
    }
}

void raft_fill_vote(const struct cg_raft *raft, struct cg_raft_message *message) {
    bool pre = raft->role == CG_RAFT_PRE_CANDIDATE;
    message->type = CG_RAFT_VOTE;
    message->pre_vote = pre;
    message->forced = raft->forced && !pre;
    message->term = pre ? raft->term + 1 : raft->term;
    message->last_index = raft->log.last_index;
    message->last_term = log_terms_last(&raft->log);
}

static void become_leader(struct cg_raft *raft) {
    raft->role = CG_RAFT_LEADER;
    raft->leader = raft->options.id;
    raft->role_changed = true;
    raft->forced = false;
    raft->round = 0;
    raft->campaigns = 0;
    raft->lease_void = false;
    raft->term_start = raft->log.last_index + 1;
    for (uint32_t i = 0; i < raft->peer_count; i++) {
        raft_reset_peer(raft, &raft->peer[i]);
    }
    // An entry of its own term, to find out what is committed [3.6.2, 6.4].
    const struct cg_raft_entry noop = {.term = raft->term, .type = CG_RAFT_ENTRY_NOOP};
    bool appended = raft_append_own(raft, CG_RAFT_FROM_CORE, 1, &noop);
    assert(appended);
    (void)appended;
    raft->active_ns = raft->now_ns;
    raft_regular_round(raft);
}

// Counts what has come in; this server's own vote when it is durable.
void raft_count_votes(struct cg_raft *raft) {
    bool pre = raft->role == CG_RAFT_PRE_CANDIDATE;
    bool self =
        raft->voter && (pre || raft_state_durable(raft) || CG_RAFT_MUTATED(SELF_VOTE_NOT_DURABLE));
    uint32_t voters = raft->voter ? 1 : 0;
    uint32_t granted = self ? 1 : 0;
    uint32_t refused = 0;
    for (uint32_t i = 0; i < raft->peer_count; i++) {
        const struct raft_peer *peer = &raft->peer[i];
        if (peer->learner) {
            continue;
        }
        voters++;
        granted += peer->answered && peer->granted;
        refused += peer->answered && !peer->granted;
    }
    if (2 * granted > voters) {
        if (pre) {
            raft_campaign(raft, false);
        } else if (!raft->append_due && log_terms_room(&raft->log, raft->term)) {
            become_leader(raft);
        }
    } else if (2 * refused >= voters) {
        raft_become_follower(raft, raft->term, 0);
    }
}

void raft_receive_vote_reply(struct cg_raft *raft, const struct cg_raft_message *message) {
    struct raft_peer *peer = raft_peer(raft, message->from);
    bool pre = raft->role == CG_RAFT_PRE_CANDIDATE;
    uint64_t term = pre && message->granted ? raft->term + 1 : raft->term;
    if (peer == NULL || message->pre_vote != pre || message->term != term ||
        (!pre && raft->role != CG_RAFT_CANDIDATE)) {
        return;
    }
    peer->answered = true;
    peer->granted = message->granted;
    raft_count_votes(raft);
}

// ---- Voters

static void reply_vote(struct cg_raft *raft, const struct cg_raft_message *message, bool granted,
                       uint64_t term) {
    raft->reply_due = true;
    raft->reply = (struct cg_raft_message){
        .type = CG_RAFT_VOTE_REPLY,
        .from = raft->options.id,
        .to = message->from,
        .term = term,
        .pre_vote = message->pre_vote,
        .granted = granted,
    };
}

// Changes nothing: a promise about a vote is not given, only an opinion.
static void receive_pre_vote(struct cg_raft *raft, const struct cg_raft_message *message) {
    if (leader_alive(raft)) {
        return;
    }
    bool complete = up_to_date(raft, message);
    bool grant = message->term > raft->term && complete;
    reply_vote(raft, message, grant, grant ? message->term : raft->term);
    if (!complete && raft->role == CG_RAFT_FOLLOWER && raft_may_lead(raft)) {
        raft->election_ns = raft->now_ns; // nobody leads, and who asks cannot: this one may
        raft->waited = true;
    }
}

// At most one vote a term, durable before it is given [3.4, 3.8].
void raft_receive_vote(struct cg_raft *raft, const struct cg_raft_message *message) {
    if (message->pre_vote) {
        receive_pre_vote(raft, message);
        return;
    }
    if (message->term < raft->term) {
        reply_vote(raft, message, false, raft->term);
        return;
    }
    if (!message->forced && leader_alive(raft)) {
        return;
    }
    if (message->term > raft->term) {
        raft_become_follower(raft, message->term, 0);
    }
    bool free_vote = raft->vote == 0 || raft->vote == message->from || CG_RAFT_MUTATED(VOTE_TWICE);
    bool grant = free_vote && raft->leader == 0 && up_to_date(raft, message);
    if (grant && raft->vote != message->from) {
        raft->vote = message->from;
        raft->state_dirty = true;
        raft_reset_election(raft);
    }
    if (raft->vote_reply_due && raft->vote_reply_granted && !grant) {
        return; // a vote waits for the disk; the one who is refused will ask again
    }
    raft->vote_reply_due = true;
    raft->vote_reply_to = message->from;
    raft->vote_reply_granted = grant;
}
