// SPDX-License-Identifier: BSD-3-Clause
//
// Defects that the simulator has to find.
#include "sim.h"

#define CORE(name, mutation, what)                                                                 \
    { name, what, CG_RAFT_MUTATION_##mutation, SIM_MUTATION_NONE, true, true }
#define CORE_MODE(name, mutation, what) /* in log mode the moment for it is seen too seldom */     \
    { name, what, CG_RAFT_MUTATION_##mutation, SIM_MUTATION_NONE, true, false }
#define LOG_MODE(name, mutation, what) /* in core mode, likewise */                                \
    { name, what, CG_RAFT_MUTATION_##mutation, SIM_MUTATION_NONE, false, true }
#define AROUND(name, mutation, what, core, log)                                                    \
    { name, what, CG_RAFT_MUTATION_NONE, SIM_MUTATION_##mutation, core, log }

const struct sim_defect sim_defects[] = {
    CORE("commit-older-term", COMMIT_OLDER_TERM,
         "counting replicas commits entries of older terms"),
    CORE("vote-not-durable", VOTE_NOT_DURABLE, "a vote is answered before it is synced"),
    CORE("vote-twice", VOTE_TWICE, "two votes in a term"),
    CORE("vote-any-log", VOTE_ANY_LOG, "a vote for a log that is behind"),
    CORE("own-vote-not-durable", SELF_VOTE_NOT_DURABLE,
         "a candidate counts itself before the sync"),
    CORE("ack-not-durable", ACK_NOT_DURABLE, "entries are acknowledged before they are synced"),
    CORE("leader-not-durable", LEADER_COUNTS_NOT_DURABLE, "a leader counts itself before the sync"),
    CORE("match-is-last-index", MATCH_IS_LAST_INDEX, "the log's end is acknowledged, unseen"),
    CORE("match-from-old-term", MATCH_FROM_OLD_TERM, "answers of an older term count"),
    CORE("no-conflict-check", NO_CONFLICT_CHECK, "entries of other terms are kept"),
    CORE("truncate-always", TRUNCATE_ALWAYS, "an old message cuts the log"),
    CORE("no-previous-check", NO_PREVIOUS_CHECK, "the entry before is not compared"),
    CORE("commit-beyond-match", COMMIT_BEYOND_MATCH, "a follower commits what it has not compared"),
    CORE("lease-without-drift", LEASE_WITHOUT_DRIFT, "a lease as if clocks ran alike"),
    CORE_MODE("lease-from-reply", LEASE_FROM_REPLY, "a lease from the answer on, not the question"),
    CORE("lease-in-transfer", LEASE_KEPT_IN_TRANSFER, "a lease while another may be elected"),
    CORE("vote-after-start", VOTE_RIGHT_AFTER_START, "a restart forgets the promise to a leader"),
    CORE("read-not-confirmed", READ_NOT_CONFIRMED, "a read without a round or a lease"),
    CORE("read-before-noop", READ_BEFORE_NOOP, "a read before the term's first commit"),
    CORE("config-before-noop", CONFIG_BEFORE_NOOP, "members change before the term's first commit"),
    CORE("config-two-at-once", CONFIG_TWO_AT_ONCE, "a change while another is not committed"),
    CORE("config-at-commit", CONFIG_AT_COMMIT, "a configuration counts when it is committed"),
    CORE("config-not-rolled-back", CONFIG_NOT_ROLLED_BACK, "a cut configuration still counts"),
    CORE("learner-counts", LEARNER_COUNTS, "learners count for commits"),
    CORE("removed-leader-counts", REMOVED_LEADER_COUNTS,
         "a leader counts itself after its removal"),
    CORE("transfer-without-catch-up", TRANSFER_WITHOUT_CATCH_UP, "the target lacks entries"),
    CORE("snapshot-keeps-log", SNAPSHOT_KEEPS_LOG, "a snapshot leaves a conflicting log"),
    CORE("agreement-kept", AGREEMENT_KEPT,
         "the same leader in a new term is taken to have the same log"),
    CORE("window-not-reopened", WINDOW_NOT_REOPENED, "a lost answer is never made up for"),
    CORE("removed-never-leads", REMOVED_NEVER_LEADS,
         "a server left out by a half-done change gives up"),
    CORE("no-pre-vote", NO_PRE_VOTE, "who was cut off comes back with a higher term"),
    CORE("no-check-quorum", NO_CHECK_QUORUM, "a leader without a majority stays"),
    CORE("restarted-not-told", RESTARTED_NOT_TOLD,
         "a restart in an idle group never learns what is committed"),
    LOG_MODE("reads-delay-heartbeat", READS_DELAY_HEARTBEAT,
             "while reads come a leader without a majority stays"),
    AROUND("no-dedup", NO_DEDUP, "a retry is a second write", true, true),
    AROUND("durable-before-sync", DURABLE_BEFORE_SYNC, "the log reports before the sync", true,
           true),
    AROUND("recycle-before-sync", RECYCLE_BEFORE_SYNC,
           "the log goes before its checkpoint is there", true, true),
    AROUND("checkpoint-without-blocks", CHECKPOINT_WITHOUT_BLOCKS, "blocks are not synced", true,
           true),
    AROUND("window-not-saved", WINDOW_NOT_SAVED, "a checkpoint forgets the request windows", true,
           true),
    AROUND("rot-as-torn-tail", ROT_TAKEN_FOR_TORN_TAIL, "damage in the middle is cut off", true,
           false),
    AROUND("read-before-applied", READ_BEFORE_APPLIED, "a read does not wait for the apply", true,
           false),
    AROUND("fetched-not-told", FETCHED_NOT_TOLD, "the core is not told that entries were read back",
           true, false),
    AROUND("clocks-beyond-bound", CLOCKS_BEYOND_BOUND,
           "no defect: clocks run off further than the cores are told", true, true),
    AROUND("vote-forgotten", VOTE_FORGOTTEN_BY_CHECKPOINT, "recycling takes the vote along", true,
           true),
    AROUND("vote-not-synced", VOTE_NOT_SYNCED, "the log reports a vote before it is synced", false,
           true),
    AROUND("state-recycled", STATE_RECYCLED,
           "the log is recycled past a vote that no checkpoint has", false, true),
};

const uint32_t sim_defect_count = sizeof(sim_defects) / sizeof(sim_defects[0]);
