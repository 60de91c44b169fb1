// SPDX-License-Identifier: BSD-3-Clause
//
// Raft for one group (copyset), without IO, clock or threads: every call is a step from the state
// and an event to the next state, and cg_raft_next hands out what is to be done about it. The rules
// are those of Diego Ongaro's dissertation, "Consensus: Bridging Theory and Practice" (2014),
// quoted as [section]; what goes beyond it says so.
//
// How to drive it. After each event call cg_raft_next until it returns false, and carry out the
// actions in that order: they refer to the event's memory (a message's entries). Only reads may be
// collected: those that come before the actions are taken share one round of heartbeats. What is
// asked to be persisted goes to a log that becomes durable in the order of the requests (one shared
// by many groups will do), and is reported by cg_raft_durable. Messages may be sent at once:
// whatever must not be said before something is durable is not handed out before.
//
// Memory. The core knows the terms of the log's entries as runs (log_terms.h), not their data and
// not their sizes; whoever drives it keeps entries, answers options.fit, and sends them from the
// buffers in which they arrived. Everything is bounded by the options; one allocation at creation.
//
// Times are nanoseconds of a clock of this server that never goes back; the same clock for all
// calls of a group. Its rate may be off by clock_drift_ppm from true time: leases depend on that
// bound.
//
// A group belongs to one thread. Functions return 0 or a negative errno.
#ifndef CG_RAFT_RAFT_H
#define CG_RAFT_RAFT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CG_RAFT_MEMBERS_MAX  9U    // voters and learners of a group
#define CG_RAFT_INFLIGHT_MAX 64U   // append messages on their way to one peer
#define CG_RAFT_ENTRIES_MAX  1024U // entries of one message

struct cg_raft;

// ---- Configurations

struct cg_raft_member {
    uint64_t id; // of a server; never 0, never used again for another one
    bool learner;
};

struct cg_raft_config {
    uint32_t count;
    struct cg_raft_member member[CG_RAFT_MEMBERS_MAX];
};

// ---- Entries and messages

enum cg_raft_entry_type {
    CG_RAFT_ENTRY_DATA = 0,
    CG_RAFT_ENTRY_NOOP = 1,   // what a leader begins its term with
    CG_RAFT_ENTRY_CONFIG = 2, // takes effect when it is in the log [4.1]
};

struct cg_raft_entry {
    uint64_t term;
    enum cg_raft_entry_type type;
    const struct cg_raft_config *config; // CONFIG only
};

enum cg_raft_message_type {
    CG_RAFT_VOTE = 1,
    CG_RAFT_VOTE_REPLY = 2,
    CG_RAFT_APPEND = 3,
    CG_RAFT_APPEND_REPLY = 4,
    CG_RAFT_HEARTBEAT = 5, // carries no entries: those of all groups for a server can share a frame
    CG_RAFT_HEARTBEAT_REPLY = 6,
    CG_RAFT_TIMEOUT_NOW = 7,
};

struct cg_raft_message {
    enum cg_raft_message_type type;
    uint64_t from;
    uint64_t to;
    uint64_t term; // the sender's; of a pre-vote and its grant, the term that it is about

    // VOTE, VOTE_REPLY
    bool pre_vote;       // [9.6]
    bool forced;         // VOTE: sent on TIMEOUT_NOW, a living leader is no reason to refuse [3.10]
    bool granted;        // VOTE_REPLY
    uint64_t last_index; // VOTE: of the candidate's log
    uint64_t last_term;

    // APPEND: entries prev_index + 1 ... prev_index + count
    uint64_t prev_index;
    uint64_t prev_term;
    uint64_t commit; // APPEND, HEARTBEAT
    uint32_t count;
    // Received: `count` of them, the caller's. Handed out: NULL, the sender has them.
    const struct cg_raft_entry *entries;

    // APPEND_REPLY
    bool rejected;
    // Not rejected, and HEARTBEAT_REPLY (in case the answer to the entries was lost): durable and
    // equal to the leader's log up to here
    uint64_t match;
    uint64_t hint_index; // rejected: the refused prev_index is in `prev_index`; the logs may agree
    uint64_t hint_term;  // at or below hint_index, which has term hint_term at the sender

    // HEARTBEAT, HEARTBEAT_REPLY (echoed), TIMEOUT_NOW (round only)
    uint64_t round;    // of heartbeats in this term
    uint64_t sent_ns;  // by the leader's clock
    bool quiesce;      // HEARTBEAT: the last one until something happens
    uint64_t received; // HEARTBEAT_REPLY: equal to the leader's log up to here, perhaps not durable
};

// ---- What a group is made with

struct cg_raft_options {
    uint64_t id;                      // this server's
    uint64_t election_timeout_ns;     // the shortest; drawn from [this, twice this) each time
    uint64_t heartbeat_interval_ns;   // at most a third of it
    uint32_t clock_drift_ppm;         // how far any server's clock rate may be off; below 500000
    uint32_t message_bytes_max;       // of entries in one message; one entry may exceed it
    uint32_t message_entries_max;     // at most CG_RAFT_ENTRIES_MAX
    uint32_t inflight_messages_max;   // to one peer; at most CG_RAFT_INFLIGHT_MAX
    uint64_t inflight_bytes_max;      // to one peer
    uint32_t uncommitted_entries_max; // beyond it a leader refuses proposals
    uint32_t reads_max;               // reads that wait for their confirmation
    uint32_t terms_max;               // runs of terms in memory, at least 8
    uint32_t promote_lag_max;         // entries that a learner may lack to become a voter
    uint32_t apply_lag_max;           // committed entries not applied yet, beyond which a server
                                      // lets others campaign first; 0: it never waits
    uint64_t quiesce_after_ns;        // idle groups stop their heartbeats after it; 0: never
    uint64_t seed;                    // of the election timeouts
    // How many of the entries [first, last] of the caller's log fit a message of max_bytes: at
    // least one, with their bytes in *bytes; or 0 if the first cannot be had now (it is being read
    // from the disk): the caller then calls cg_raft_peer_ready. Changes nothing.
    uint32_t (*fit)(void *context, uint64_t first, uint64_t last, uint32_t max_bytes,
                    uint64_t *bytes);
    void *context;
};

// What the disk says at a start. All zeros for a server that joins a group.
struct cg_raft_restored {
    uint64_t term;
    uint64_t vote;       // 0: none in `term`
    uint64_t base_index; // applied state covers this much: checkpoint or snapshot
    uint64_t base_term;
    struct cg_raft_config config; // as of base_index
};

// Returns 0, -EINVAL for options or a configuration out of bounds, or -ENOMEM. `options` is copied.
int cg_raft_create(const struct cg_raft_options *options, const struct cg_raft_restored *restored,
                   struct cg_raft **out);
void cg_raft_destroy(struct cg_raft *raft);

// Term and vote found in the log, in the log's order, between create and start. An older term than
// `restored` says is passed over.
void cg_raft_restore_state(struct cg_raft *raft, uint64_t term, uint64_t vote);

// An entry found in the log, likewise, be it needed or not: each makes void what came before with
// the same or a higher index, also one at or below base_index. A log may begin anywhere before the
// base, so entries that do not fit are passed over; they must turn out to be void. Returns 0,
// -EBADMSG for a term above the state's or a configuration out of bounds, or -ENOSPC beyond
// terms_max.
int cg_raft_restore_entry(struct cg_raft *raft, uint64_t index, const struct cg_raft_entry *entry);

// Begins. As if a leader had just been heard of: whoever promised not to vote before it crashed
// keeps the promise, which leases depend on [6.4.1]. A sole voter leads as soon as its disk has its
// vote. Returns 0, or -EBADMSG if the log had a gap.
int cg_raft_start(struct cg_raft *raft, uint64_t now_ns);

// ---- Events

// Time has passed. To be called at cg_raft_deadline or later (or by a common tick).
void cg_raft_tick(struct cg_raft *raft, uint64_t now_ns);
uint64_t cg_raft_deadline(const struct cg_raft *raft); // UINT64_MAX: nothing is timed

// A message has come. Returns 0, or -EBADMSG for one that no server of this protocol sends (nothing
// has changed then). Messages that are late, doubled or from strangers are no errors.
int cg_raft_receive(struct cg_raft *raft, uint64_t now_ns, const struct cg_raft_message *message);

// `count` (> 0) entries to replicate. Returns 0 with the first one's index, an APPEND action
// follows. -EPERM: not the leader; -EAGAIN: too much is under way, or leadership is being
// transferred; -EIO: retired.
int cg_raft_propose(struct cg_raft *raft, uint64_t now_ns, uint32_t count, uint64_t *first);

// A PERSIST_STATE (index 0) or an entry of an APPEND is durable, and so is all that was asked for
// before. `ticket` is the action's.
void cg_raft_durable(struct cg_raft *raft, uint64_t now_ns, uint64_t ticket, uint64_t index);

// The state machine has applied all up to `index`.
void cg_raft_applied(struct cg_raft *raft, uint64_t index);

// The disk failed: what was asked for will never be durable. The server goes silent, for good.
void cg_raft_disk_error(struct cg_raft *raft);

// Entries that `fit` could not give to `peer` can be had now.
void cg_raft_peer_ready(struct cg_raft *raft, uint64_t peer);

// A server of the group does not answer at all (known from connections, which groups share), or is
// back: a quiet group resumes its timers.
void cg_raft_wake(struct cg_raft *raft, uint64_t now_ns);

// ---- Reads (read.c)

// A linearizable read. A READ_READY or READ_FAILED action with `id` follows. -EPERM: not the
// leader; -EAGAIN: too many wait, or the leader does not know yet what is committed.
int cg_raft_read(struct cg_raft *raft, uint64_t now_ns, uint64_t id);

// True with the index up to which all must be applied, if a read may be answered at this moment
// without asking anyone: the lease holds.
bool cg_raft_read_index(const struct cg_raft *raft, uint64_t now_ns, uint64_t *index);

// Until when the lease holds on this server's clock unless it is given up before (a ROLE action, a
// transfer); 0: there is none.
uint64_t cg_raft_lease_end(const struct cg_raft *raft, uint64_t now_ns);

// ---- Leadership and members

// Hands leadership to `target`, a voter: when it has all entries it is told to start an election.
// -EPERM, -EINVAL, -EAGAIN: another transfer is under way. Proposals are refused meanwhile, for at
// most an election timeout.
int cg_raft_transfer(struct cg_raft *raft, uint64_t now_ns, uint64_t target);

enum cg_raft_change {
    CG_RAFT_ADD_LEARNER,
    CG_RAFT_PROMOTE, // a learner that has caught up becomes a voter
    CG_RAFT_REMOVE,  // also the leader itself
};

// One server at a time. -EPERM: not the leader; -EAGAIN: the no-op of the term or the change before
// is not committed, or the learner lags; -EINVAL: no such member, or already one, or the last
// voter; -ENOSPC: too many members.
int cg_raft_change(struct cg_raft *raft, uint64_t now_ns, enum cg_raft_change kind, uint64_t id);

// ---- Snapshots and compaction (snapshot.c)

// The log up to `index` (applied) is not needed any more.
void cg_raft_compact(struct cg_raft *raft, uint64_t index);

// Leader: the transfer asked for by SEND_SNAPSHOT has ended; the state up to `index` is there if
// ok.
void cg_raft_snapshot_sent(struct cg_raft *raft, uint64_t peer, uint64_t index, bool ok);

// Would a state as of `index` be news to this server?
bool cg_raft_snapshot_wanted(const struct cg_raft *raft, uint64_t index);

// The state as of index and term, with its configuration, is on this disk, durably, and so is the
// fact: after a restart it is the base. If cg_raft_term_at(index) is another term, the log is void
// as well, on the disk too; no APPEND may have been stepped since the caller decided that. -EINVAL
// if it is not wanted, or of a term above this server's.
int cg_raft_snapshot_installed(struct cg_raft *raft, uint64_t now_ns, uint64_t index, uint64_t term,
                               const struct cg_raft_config *config);

// ---- Actions

enum cg_raft_action_type {
    CG_RAFT_PERSIST_STATE,   // log `term` and `vote`
    CG_RAFT_PERSIST_ENTRIES, // log entries first..last; what was there from `first` on is void
    CG_RAFT_ROLE,            // role, term or leader have changed
    CG_RAFT_COMMIT, // all up to `index` is committed. Answer clients; apply what is durable here
    CG_RAFT_READ_READY,    // read `id` may be answered once all up to `index` is applied
    CG_RAFT_READ_FAILED,   // read `id`: no leader any more
    CG_RAFT_SEND,          // `message`; an APPEND's entries are the log's
    CG_RAFT_SEND_SNAPSHOT, // `peer` needs entries that are gone: copy the state to it
};

enum cg_raft_source {
    CG_RAFT_FROM_PROPOSAL, // of the cg_raft_propose just made
    CG_RAFT_FROM_MESSAGE,  // of the message just received
    CG_RAFT_FROM_CORE,     // one entry, `entry`
};

struct cg_raft_action {
    enum cg_raft_action_type type;
    uint64_t ticket; // PERSIST_*
    uint64_t term;   // PERSIST_STATE; PERSIST_ENTRIES from a proposal or the core: of the entries
    uint64_t vote;
    enum cg_raft_source source;
    uint64_t first;
    uint64_t last;
    struct cg_raft_entry entry;
    uint64_t index;
    uint64_t id;
    uint64_t peer;
    struct cg_raft_message message;
};

// The next thing to do; false: nothing. `out` is overwritten; pointers in it are valid until the
// next event.
bool cg_raft_next(struct cg_raft *raft, struct cg_raft_action *out);

// ---- Looking at it

enum cg_raft_role {
    CG_RAFT_FOLLOWER,
    CG_RAFT_PRE_CANDIDATE,
    CG_RAFT_CANDIDATE,
    CG_RAFT_LEADER,
    CG_RAFT_RETIRED, // its disk failed
};

struct cg_raft_status {
    enum cg_raft_role role;
    uint64_t term;
    uint64_t vote;
    uint64_t leader;     // 0: unknown
    uint64_t transferee; // leader: to whom leadership is being handed over; 0: nobody
    uint64_t base_index;
    uint64_t last_index;
    uint64_t durable_index;
    uint64_t commit_index;
    uint64_t applied_index;
    uint32_t terms; // runs of equal terms in the log, of options.terms_max
    bool quiet;
};
void cg_raft_status(const struct cg_raft *raft, struct cg_raft_status *out);

// The term of an entry, base_index included; 0 if it is not there or not known any more.
uint64_t cg_raft_term_at(const struct cg_raft *raft, uint64_t index);

// The configuration that counts now: the last in the log. A checkpoint needs the one as of what is
// applied, which the state machine knows: it applies CONFIG entries by remembering them.
const struct cg_raft_config *cg_raft_config(const struct cg_raft *raft);

// A leader's view of a peer. False if there is no such peer.
struct cg_raft_progress {
    uint64_t match;
    uint64_t next;
    uint64_t heard_ns; // when it last answered
    bool learner;
    bool snapshot; // it is being sent a snapshot
};
bool cg_raft_progress(const struct cg_raft *raft, uint64_t peer, struct cg_raft_progress *out);

#endif
