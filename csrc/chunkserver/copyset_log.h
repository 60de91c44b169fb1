// SPDX-License-Identifier: BSD-3-Clause
//
// A copyset's replicated log: the raft core (csrc/raft) driven over the disk's log, the clock and
// the messages of the other members. The state machine above it proposes entries, is given all
// committed ones in order, and asks whether it may answer reads.
//
// A member's id is the chunkserver's id in the low 32 bits and in the high ones the incarnation
// that the MDS gave it, so that a blank replica never has the id of a lost one.
//
// What is proposed, and what becomes durable, during an iteration of the reactor goes to the core
// at its end, together. Callbacks (struct cg_copyset_log_events and those of proposals and reads)
// may call anything here but cg_copyset_log_destroy.
//
// One reactor thread.
#ifndef CG_CHUNKSERVER_COPYSET_LOG_H
#define CG_CHUNKSERVER_COPYSET_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "chunkserver/log_disk.h"
#include "chunkserver/log_entry.h"
#include "chunkserver/wal.h"
#include "raft/raft.h"

struct cg_copyset_log;

// The proposer's memory, until the entry was given to events.committed with it, or `failed` was
// called.
struct cg_log_proposal {
    struct cg_log_entry *entry; // the proposer's reference passes to the log when it is taken
    uint64_t index;             // valid from cg_copyset_log_propose on
    // Not known to be committed. -ESTALE: leadership is lost; it may still commit, so that clients
    // try again and the window tells doubles. -EIO: the disk is retired. Never inside propose.
    void (*failed)(struct cg_log_proposal *proposal, int error);
    struct cg_list node; // the log's
};

struct cg_copyset_log_events {
    // `entry` is committed and durable here. In order, each index once, also NOOP and CONFIG, which
    // change nothing and count. `proposal`: the one made here that it comes from, else NULL. The
    // callee takes a reference to keep the entry. False: cannot take it now; it is offered again
    // after cg_copyset_log_resume.
    bool (*committed)(void *context, struct cg_log_entry *entry, struct cg_log_proposal *proposal);
    // Leader, readiness or term are different. Proposals that failed by it have been told.
    void (*role_changed)(void *context);
    // Leader: `member` needs entries that are gone. Its answer: cg_copyset_log_copied.
    void (*copy_state)(void *context, uint64_t member);
    // Local readers may read until end_ns of the log's clock; 0: not at all; UINT64_MAX: there is
    // nobody else. May be called inside any call; must not call back.
    void (*lease)(void *context, uint64_t end_ns);
    void *context;
};

struct cg_copyset_log_options {
    uint64_t group; // pool << 32 | copyset; not 0
    uint64_t self;  // own member id; not 0
    struct cg_log_disk *disk;
    struct cg_copyset_log_events events;
};

// What a checkpoint saves of a copyset's log, and what a start gives back.
struct cg_copyset_log_saved {
    uint64_t term;
    uint64_t vote;
    uint64_t index; // applied
    uint64_t index_term;
    struct cg_raft_config config; // as of `index`
    // Not saved: where a replay must begin to find what this does not contain; UINT64_MAX: nothing.
    uint64_t replay_lsn;
};

// ---- Life: create -> restore, for every record of the group in the order of the log -> start

// `saved`: the checkpoint's; or for a new replica all zeros with the founding configuration, which
// is empty if it joins a group. Returns 0, -EINVAL, -ENOMEM, or -EEXIST if the disk has a log of
// this group.
int cg_copyset_log_create(const struct cg_copyset_log_options *options,
                          const struct cg_copyset_log_saved *saved, struct cg_copyset_log **out);

// A record as cg_wal_open reports it; the payload is not kept but read back when it is needed.
// Records that `saved` contains may be given too. Returns 0, -EBADMSG for one that cannot be, or
// -ENOMEM, -ENOSPC.
int cg_copyset_log_restore(struct cg_copyset_log *log, uint64_t lsn,
                           const struct cg_wal_record *record);

// Begins. Nothing above the base (`saved`, or an INSTALL record's index) counts as committed until
// the group says so; a sole voter does at once. Returns 0, or -EBADMSG if the log had a gap.
int cg_copyset_log_start(struct cg_copyset_log *log);

// Falls silent for good: proposals fail with -ESTALE, reads with -EPERM.
void cg_copyset_log_stop(struct cg_copyset_log *log);

// True if nothing of it is under way in the log on disk.
bool cg_copyset_log_idle(const struct cg_copyset_log *log);

// A log that was never started, or is stopped or retired, and idle.
void cg_copyset_log_destroy(struct cg_copyset_log *log);

// ---- Entries

// Returns 0: taken, one of the two callbacks follows. -EPERM: not the leader, or not ready;
// -EAGAIN: too much is under way, or leadership is being transferred; -EIO: retired. Nothing has
// changed then.
int cg_copyset_log_propose(struct cg_copyset_log *log, struct cg_log_proposal *proposal);

// A message of another member; an APPEND with message->count entries, of which references are
// taken. message->entries is not looked at.
void cg_copyset_log_receive(struct cg_copyset_log *log, const struct cg_raft_message *message,
                            struct cg_log_entry *const *entries);

// See events.committed. Delivery goes on at the end of this iteration.
void cg_copyset_log_resume(struct cg_copyset_log *log);

// Everything up to `index`, which was delivered, is in the chunk files (or changes nothing there).
void cg_copyset_log_applied(struct cg_copyset_log *log, uint64_t index);

// A connection to a chunkserver was lost, or is back.
void cg_copyset_log_peer(struct cg_copyset_log *log, uint32_t chunkserver, bool up);

// ---- Leadership and reads

// Leads, and its term's no-op was delivered, and so all before it: takes proposals, serves reads.
bool cg_copyset_log_ready(const struct cg_copyset_log *log);
uint64_t cg_copyset_log_leader(const struct cg_copyset_log *log); // member id; 0: unknown

// A read may be answered now from what was delivered.
bool cg_copyset_log_can_read(struct cg_copyset_log *log);

struct cg_log_read {
    // 0: the read may be answered now. -EPERM: not the leader (any more). -EAGAIN: too many wait,
    // or it is not known yet what is committed. -EIO: retired. Never inside cg_copyset_log_read.
    void (*done)(struct cg_log_read *read, int status);
    // The log's
    struct cg_list node;
    uint64_t round;
    uint64_t index;
};

// Asks the other members first. `read` is the caller's memory until `done`.
void cg_copyset_log_read(struct cg_copyset_log *log, struct cg_log_read *read);

// ---- Members

// As cg_raft_change: begins; -EPERM, -EAGAIN, -EINVAL, -ENOSPC, -EIO. It counts when the CONFIG
// entry was delivered.
int cg_copyset_log_change(struct cg_copyset_log *log, enum cg_raft_change kind, uint64_t member);

// Hands leadership to `member`, as cg_raft_transfer: -EPERM, -EINVAL, -EAGAIN, -EIO.
int cg_copyset_log_transfer(struct cg_copyset_log *log, uint64_t member);

// Leader: that is under way, and proposals are refused.
bool cg_copyset_log_transferring(const struct cg_copyset_log *log);

struct cg_copyset_log_peer_status {
    uint64_t id;
    struct cg_raft_progress progress;
};

struct cg_copyset_log_status {
    enum cg_raft_role role;
    bool ready;
    bool quiet;
    uint64_t term;
    uint64_t leader; // member id; 0: unknown
    uint64_t base_index;
    uint64_t last_index;
    uint64_t durable_index;
    uint64_t commit_index;
    uint64_t delivered_index;
    uint64_t applied_index;
    struct cg_raft_config config; // the last one in the log
    uint64_t config_index;        // of its entry, committed if not above commit_index
    uint64_t now_ns;              // to compare progress.heard_ns with
    uint32_t peer_count;          // leader only
    struct cg_copyset_log_peer_status peer[CG_RAFT_MEMBERS_MAX];
};
void cg_copyset_log_status(const struct cg_copyset_log *log, struct cg_copyset_log_status *out);

// ---- Checkpoints

// What to save when everything up to `index` (applied, not below the last one saved) is to be in
// the chunk files.
void cg_copyset_log_capture(const struct cg_copyset_log *log, uint64_t index,
                            struct cg_copyset_log_saved *out);

// A checkpoint with `saved` is durable. Entries up to saved->index are kept for lagging members
// where they lie at or above keep_from_lsn in the log on disk, the others are forgotten. Returns
// the lowest lsn that this group needs; UINT64_MAX: none.
uint64_t cg_copyset_log_saved(struct cg_copyset_log *log, const struct cg_copyset_log_saved *saved,
                              uint64_t keep_from_lsn);

// ---- Copying state to a member that lacks entries which are gone

// Receiver: would a state as of index and term be news? Not if the log has that entry already.
bool cg_copyset_log_wants_state(const struct cg_copyset_log *log, uint64_t index, uint64_t term);

// From here until installed or abort no entries are taken from the leader, and nothing is
// delivered. May be called before cg_copyset_log_start.
void cg_copyset_log_install_begin(struct cg_copyset_log *log);
// What is in the chunk files does not fit the log any more: only `installed` ends it. The entries
// that the log has are not kept; whoever lacks an entry that is committed cannot lead, and what it
// has beyond is not needed by anybody.
void cg_copyset_log_install_discard(struct cg_copyset_log *log);
void cg_copyset_log_install_abort(struct cg_copyset_log *log);

// The state (index, index_term, config) is here and durable. Writes the record that makes it count;
// done(user, 0) when it does: the log goes on at state->index + 1. Otherwise done(user, error), and
// it is still as after install_begin: -EAGAIN campaigning, try again a little later; -EINVAL not
// wanted any more; -ENOMEM; -EIO. `done` is never called inside this call.
void cg_copyset_log_installed(struct cg_copyset_log *log, const struct cg_copyset_log_saved *state,
                              void (*done)(void *user, int status), void *user);

// Leader: `member` copies the state as of `index` or later: entries above it are kept longer, up to
// three quarters of the log on disk, until `copied`, or leadership is lost.
void cg_copyset_log_copying(struct cg_copyset_log *log, uint64_t member, uint64_t index);

// Leader: the copying has ended, asked for by events.copy_state or not; with `ok` the member has
// all up to `index`.
void cg_copyset_log_copied(struct cg_copyset_log *log, uint64_t member, uint64_t index, bool ok);

#endif
