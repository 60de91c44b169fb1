// SPDX-License-Identifier: BSD-3-Clause
//
// A group's state, and what its files offer one another. In the order in which an entry meets them:
// propose and append.c (both ends of the log), replicate.c (leader to followers), commit.c, read.c;
// election.c, transfer.c, membership.c and snapshot.c change who does it and from where; persist.c
// knows what is durable; action.c hands out what is to be done.
#ifndef CG_RAFT_RAFT_INTERNAL_H
#define CG_RAFT_RAFT_INTERNAL_H

#include "raft/log_terms.h"
#include "raft/mutation.h"
#include "raft/raft.h"

// A leader's knowledge of a peer's log [3.5], and how it is fed.
enum raft_peer_state {
    RAFT_PROBE,     // where its log agrees is not known: one message at a time
    RAFT_REPLICATE, // messages go out without waiting, within the window
    RAFT_SNAPSHOT,  // what it needs is gone from the log: fed by other means, not by messages
};

struct raft_inflight {
    uint64_t last; // index
    uint64_t bytes;
};

struct raft_peer {
    uint64_t id;
    bool learner;

    // As candidate
    bool ask_vote; // a request is to be sent
    bool answered;
    bool granted;

    // As leader
    enum raft_peer_state state;
    uint64_t match; // highest index known to be durable there and equal to ours
    uint64_t next;  // of the next message
    bool probing;   // PROBE: the message is on its way
    bool starved;   // options.fit had nothing
    bool ask_snapshot;
    bool heartbeat_due;
    bool quiesce_due;
    bool timeout_due;
    uint64_t heard_ns;
    uint64_t acked_round;
    uint64_t acked_sent_ns; // when the round was sent: a promise not to vote from then on [6.4.1]
    uint64_t sent_round;    // the round under way when the last append was sent
    uint32_t inflight_first, inflight_count;
    uint64_t inflight_bytes;
    struct raft_inflight inflight[CG_RAFT_INFLIGHT_MAX];
};

struct raft_config_entry {
    uint64_t index;
    struct cg_raft_config config;
};

struct raft_read {
    uint64_t id;
    uint64_t index;
    uint64_t round; // that a quorum has to confirm
};

struct cg_raft {
    struct cg_raft_options options;
    uint64_t random;
    bool started;
    uint64_t restore_misfit; // first entry passed over that is not void yet; 0: none

    // Persistent [3.1, figure]
    uint64_t term;
    uint64_t vote;
    struct log_terms log;
    // The last two in the log, or the base's. Two are enough: a change is not begun before the one
    // before it is committed, so that only the last can be cut off.
    struct raft_config_entry config[2];
    uint32_t config_count;

    // persist.c
    bool state_dirty; // PERSIST_STATE to be handed out
    uint64_t ticket;  // the last one given
    uint64_t state_ticket;
    uint64_t durable_ticket;
    uint64_t durable_index;
    uint64_t cut_ticket; // entries with a lower ticket are durable evidence only below cut_index
    uint64_t cut_index;
    bool append_due;
    enum cg_raft_source append_source;
    uint64_t append_first;
    struct cg_raft_entry append_entry;

    // Volatile
    enum cg_raft_role role;
    uint64_t leader;
    uint64_t commit_index;
    uint64_t applied_index;
    uint64_t now_ns;   // of the last event
    uint64_t heard_ns; // from the leader, or the start
    bool heard_any;
    uint64_t election_ns; // when to campaign
    unsigned pre_votes;   // asked for in a row without an answer that decides
    unsigned campaigns;   // since a leader was last heard
    bool waited;          // let others campaign first, since a leader was last heard
    uint64_t seen_round;  // of the leader, in this term and since the start
    bool quiet;
    bool forced; // the campaign was asked for by TIMEOUT_NOW

    // Follower: what is to be told to the leader
    uint64_t verified; // equal to the leader's log up to here
    uint64_t acked;
    uint64_t ack_target;
    bool ack_due;
    bool heartbeat_reply_due;
    uint64_t heartbeat_round;
    uint64_t heartbeat_sent_ns;
    bool vote_reply_due; // once term and vote are durable
    uint64_t vote_reply_to;
    bool vote_reply_granted;
    bool reply_due; // to the message just received
    struct cg_raft_message reply;

    // Leader
    uint64_t term_start; // index of the no-op
    uint64_t round;
    uint64_t heartbeat_ns;
    uint64_t active_ns; // last proposal or the like
    uint64_t transferee;
    uint64_t transfer_deadline_ns;
    bool transfer_sent;
    bool lease_void; // somebody was told to campaign

    // Actions to be handed out
    bool role_changed;
    uint64_t commit_reported;
    uint32_t reads_failed; // the first ones of the queue
    uint32_t reads_ready;
    uint32_t read_first, read_count;

    struct raft_peer peer[CG_RAFT_MEMBERS_MAX]; // of the last configuration, without this server
    uint32_t peer_count;
    bool voter; // this server, in it

    struct raft_read *read; // options.reads_max
};

static inline bool raft_state_durable(const struct cg_raft *raft) {
    return !raft->state_dirty && raft->durable_ticket >= raft->state_ticket;
}

// raft.c
uint64_t raft_random(struct cg_raft *raft);
void raft_check(const struct cg_raft *raft); // invariants, by assert

// election.c
void raft_become_follower(struct cg_raft *raft, uint64_t term, uint64_t leader);
void raft_heard_leader(struct cg_raft *raft, uint64_t leader);
void raft_reset_election(struct cg_raft *raft);
void raft_tick_election(struct cg_raft *raft);
bool raft_may_lead(const struct cg_raft *raft);
void raft_campaign(struct cg_raft *raft, bool forced);
void raft_receive_vote(struct cg_raft *raft, const struct cg_raft_message *message);
void raft_receive_vote_reply(struct cg_raft *raft, const struct cg_raft_message *message);
void raft_count_votes(struct cg_raft *raft);
void raft_fill_vote(const struct cg_raft *raft, struct cg_raft_message *message);

// append.c
// False: no room for another run of terms; nothing has changed.
bool raft_append_own(struct cg_raft *raft, enum cg_raft_source source, uint32_t count,
                     const struct cg_raft_entry *entry);
void raft_receive_append(struct cg_raft *raft, const struct cg_raft_message *message);

// replicate.c
void raft_reset_peer(struct cg_raft *raft, struct raft_peer *peer);
bool raft_fill_append(struct cg_raft *raft, struct raft_peer *peer,
                      struct cg_raft_message *message);
int raft_receive_append_reply(struct cg_raft *raft, const struct cg_raft_message *message);
void raft_matched(struct cg_raft *raft, struct raft_peer *peer, uint64_t match);
void raft_start_probe(struct raft_peer *peer, uint64_t next);

// heartbeat.c
void raft_start_round(struct cg_raft *raft);   // of heartbeats, now
void raft_regular_round(struct cg_raft *raft); // and the next one after the interval
void raft_tick_leader(struct cg_raft *raft);
void raft_receive_heartbeat(struct cg_raft *raft, const struct cg_raft_message *message);
int raft_receive_heartbeat_reply(struct cg_raft *raft, const struct cg_raft_message *message);
void raft_wake_up(struct cg_raft *raft);

// commit.c
void raft_advance_commit(struct cg_raft *raft);
void raft_set_commit(struct cg_raft *raft, uint64_t index);
// The value that a majority of the voters has reached; `own` is this server's.
uint64_t raft_quorum_value(const struct cg_raft *raft, uint64_t own,
                           uint64_t (*value)(const struct raft_peer *peer));
bool raft_knows_commit(const struct cg_raft *raft); // the no-op of the term is committed

// read.c
void raft_confirm_reads(struct cg_raft *raft);
void raft_fail_reads(struct cg_raft *raft);

// membership.c
struct raft_peer *raft_peer(struct cg_raft *raft, uint64_t id);
bool raft_config_valid(const struct cg_raft_config *config);
void raft_config_append(struct cg_raft *raft, uint64_t index, const struct cg_raft_config *config);
void raft_config_truncate(struct cg_raft *raft, uint64_t first);
void raft_config_reset(struct cg_raft *raft, uint64_t index, const struct cg_raft_config *config);
void raft_adopt_config(struct cg_raft *raft);

// transfer.c
void raft_tick_transfer(struct cg_raft *raft);
void raft_advance_transfer(struct cg_raft *raft);
void raft_end_transfer(struct cg_raft *raft);
void raft_receive_timeout_now(struct cg_raft *raft, const struct cg_raft_message *message);

// persist.c
void raft_note_append(struct cg_raft *raft, enum cg_raft_source source, uint64_t first);
void raft_note_cut(struct cg_raft *raft, uint64_t first);

#endif
