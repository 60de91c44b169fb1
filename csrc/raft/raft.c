// SPDX-License-Identifier: BSD-3-Clause
//
// Life cycle of a group, and the common rules for messages [3.3, figure: rules for all servers].
#include "raft/raft.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "raft/raft_internal.h"

#ifdef CG_RAFT_MUTATIONS
enum cg_raft_mutation cg_raft_mutation;
#endif

#define TIMEOUT_MAX_NS (UINT64_C(1) << 43) // over two hours; keeps products in 64 bits
#define READS_LIMIT    65536U
#define TERMS_LIMIT    65536U

uint64_t raft_random(struct cg_raft *raft) {
    // splitmix64
    uint64_t z = raft->random += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

void raft_check(const struct cg_raft *raft) {
    assert(raft->log.base_index <= raft->applied_index);
    assert(raft->applied_index <= raft->commit_index);
    assert(raft->commit_index <= raft->log.last_index);
    assert(raft->durable_index <= raft->log.last_index);
    assert(raft->config_count >= 1 && raft->config_count <= 2);
    assert(log_terms_last(&raft->log) <= raft->term);
    assert(raft->role != CG_RAFT_LEADER || raft->term_start <= raft->log.last_index);
    (void)raft;
}

static bool options_valid(const struct cg_raft_options *o) {
    return o->id != 0 && o->fit != NULL && o->heartbeat_interval_ns > 0 &&
           o->election_timeout_ns >= 3 * o->heartbeat_interval_ns &&
           o->election_timeout_ns <= TIMEOUT_MAX_NS && o->clock_drift_ppm < 500000 &&
           o->message_bytes_max > 0 && o->message_entries_max > 0 &&
           o->message_entries_max <= CG_RAFT_ENTRIES_MAX && o->inflight_messages_max > 0 &&
           o->inflight_messages_max <= CG_RAFT_INFLIGHT_MAX && o->inflight_bytes_max > 0 &&
           o->uncommitted_entries_max > 0 && o->reads_max > 0 && o->reads_max <= READS_LIMIT &&
           o->terms_max >= 8 && o->terms_max <= TERMS_LIMIT;
}

int cg_raft_create(const struct cg_raft_options *options, const struct cg_raft_restored *restored,
                   struct cg_raft **out) {
    if (!options_valid(options) || !raft_config_valid(&restored->config) ||
        restored->base_term > restored->term) {
        return -EINVAL;
    }
    struct cg_raft *raft = calloc(1, sizeof(*raft) + options->terms_max * sizeof(struct log_run) +
                                         options->reads_max * sizeof(struct raft_read));
    if (raft == NULL) {
        return -ENOMEM;
    }
    struct log_run *runs = (struct log_run *)(raft + 1);
    raft->read = (struct raft_read *)(runs + options->terms_max);
    raft->options = *options;
    raft->random = options->seed;
    raft->term = restored->term;
    raft->vote = restored->vote;
    raft->role = CG_RAFT_FOLLOWER;
    log_terms_init(&raft->log, runs, options->terms_max, restored->base_index, restored->base_term);
    raft->commit_index = restored->base_index;
    raft->commit_reported = restored->base_index;
    raft->applied_index = restored->base_index;
    raft->durable_index = restored->base_index;
    raft_config_reset(raft, restored->base_index, &restored->config);
    *out = raft;
    return 0;
}

void cg_raft_destroy(struct cg_raft *raft) {
    free(raft);
}

void cg_raft_restore_state(struct cg_raft *raft, uint64_t term, uint64_t vote) {
    assert(!raft->started);
    if (term >= raft->term) {
        raft->term = term;
        raft->vote = vote;
    }
}

static void restore_cut(struct cg_raft *raft, uint64_t first) {
    if (raft->restore_misfit >= first) {
        raft->restore_misfit = 0;
    }
    if (first <= raft->log.base_index) {
        first = raft->log.base_index + 1;
    }
    log_terms_truncate(&raft->log, first);
    raft_config_truncate(raft, first);
}

int cg_raft_restore_entry(struct cg_raft *raft, uint64_t index, const struct cg_raft_entry *entry) {
    assert(!raft->started);
    bool config = entry->type == CG_RAFT_ENTRY_CONFIG;
    if (index == 0 || entry->term > raft->term || (config && !raft_config_valid(entry->config))) {
        return -EBADMSG;
    }
    restore_cut(raft, index);
    if (index <= raft->log.base_index) {
        return 0;
    }
    if (raft->restore_misfit != 0 || index != raft->log.last_index + 1 ||
        entry->term < log_terms_last(&raft->log)) {
        if (raft->restore_misfit == 0) {
            raft->restore_misfit = index;
        }
        return 0;
    }
    if (!log_terms_append(&raft->log, entry->term, 1)) {
        return -ENOSPC;
    }
    if (config) {
        raft_config_append(raft, index, entry->config);
    }
    return 0;
}

int cg_raft_start(struct cg_raft *raft, uint64_t now_ns) {
    assert(!raft->started);
    if (raft->restore_misfit != 0) {
        return -EBADMSG;
    }
    raft->started = true;
    raft->now_ns = now_ns;
    raft->durable_index = raft->log.last_index;
    raft->heard_ns = now_ns;
    raft->heard_any = !CG_RAFT_MUTATED(VOTE_RIGHT_AFTER_START);
    raft->role_changed = true;
    raft_reset_election(raft);
    if (raft->voter && raft->peer_count == 0 && log_terms_room(&raft->log, raft->term + 1)) {
        raft_campaign(raft, false); // nobody else could be leading
    }
    raft_check(raft);
    return 0;
}

void cg_raft_tick(struct cg_raft *raft, uint64_t now_ns) {
    assert(raft->started);
    if (raft->role == CG_RAFT_RETIRED) {
        return;
    }
    raft->now_ns = now_ns;
    if (raft->role == CG_RAFT_LEADER) {
        raft_tick_transfer(raft);
        raft_tick_leader(raft);
    } else {
        raft_tick_election(raft);
    }
    raft_check(raft);
}

uint64_t cg_raft_deadline(const struct cg_raft *raft) {
    if (raft->quiet || raft->role == CG_RAFT_RETIRED) {
        return UINT64_MAX;
    }
    if (raft->role != CG_RAFT_LEADER) {
        return raft_may_lead(raft) ? raft->election_ns : UINT64_MAX;
    }
    if (raft->transferee != 0 && raft->transfer_deadline_ns < raft->heartbeat_ns) {
        return raft->transfer_deadline_ns;
    }
    return raft->heartbeat_ns;
}

// ---- Messages

static bool entries_valid(const struct cg_raft_message *message) {
    uint64_t term = message->prev_term;
    if (message->count > CG_RAFT_ENTRIES_MAX || message->prev_term > message->term ||
        message->prev_index > UINT64_MAX - CG_RAFT_ENTRIES_MAX ||
        (message->count > 0 && message->entries == NULL)) {
        return false;
    }
    for (uint32_t i = 0; i < message->count; i++) {
        const struct cg_raft_entry *entry = &message->entries[i];
        if (entry->term < term || entry->term > message->term || entry->term == 0 ||
            (unsigned)entry->type > CG_RAFT_ENTRY_CONFIG ||
            (entry->type == CG_RAFT_ENTRY_CONFIG &&
             (entry->config == NULL || !raft_config_valid(entry->config)))) {
            return false;
        }
        term = entry->term;
    }
    return true;
}

static bool message_valid(const struct cg_raft *raft, const struct cg_raft_message *message) {
    if (message->from == 0 || message->from == raft->options.id ||
        message->to != raft->options.id || message->term == 0) {
        return false;
    }
    switch (message->type) {
    case CG_RAFT_VOTE:
        return message->last_term <= message->term;
    case CG_RAFT_APPEND:
        return entries_valid(message);
    case CG_RAFT_APPEND_REPLY:
        return !message->rejected || message->hint_index < message->prev_index;
    case CG_RAFT_VOTE_REPLY:
    case CG_RAFT_HEARTBEAT:
    case CG_RAFT_HEARTBEAT_REPLY:
    case CG_RAFT_TIMEOUT_NOW:
        return true;
    }
    return false;
}

static bool from_leader(const struct cg_raft_message *message) {
    return message->type == CG_RAFT_APPEND || message->type == CG_RAFT_HEARTBEAT ||
           message->type == CG_RAFT_TIMEOUT_NOW;
}

// From a server of an older term: it learns of ours [3.3, figure: reply false if term < ours].
static void answer_stale(struct cg_raft *raft, const struct cg_raft_message *message) {
    if (!from_leader(message) || message->type == CG_RAFT_TIMEOUT_NOW) {
        return;
    }
    raft->reply_due = true;
    raft->reply = (struct cg_raft_message){
        .type = CG_RAFT_APPEND_REPLY,
        .from = raft->options.id,
        .to = message->from,
        .term = raft->term,
        .rejected = true,
        .prev_index = 1,
    };
}

static int dispatch(struct cg_raft *raft, const struct cg_raft_message *message) {
    if (raft->role == CG_RAFT_LEADER && from_leader(message)) {
        return -EBADMSG; // two leaders in a term: somebody's disk or identity is not its own
    }
    switch (message->type) {
    case CG_RAFT_APPEND:
        raft_receive_append(raft, message);
        return 0;
    case CG_RAFT_APPEND_REPLY:
        return raft_receive_append_reply(raft, message);
    case CG_RAFT_HEARTBEAT:
        raft_receive_heartbeat(raft, message);
        return 0;
    case CG_RAFT_HEARTBEAT_REPLY:
        return raft_receive_heartbeat_reply(raft, message);
    case CG_RAFT_TIMEOUT_NOW:
        raft_receive_timeout_now(raft, message);
        return 0;
    case CG_RAFT_VOTE:
    case CG_RAFT_VOTE_REPLY:
        break;
    }
    return 0;
}

// Answers to the last heartbeats of a leader that falls quiet are no news, nor is a removed server
// that asks whether it might campaign.
static bool disturbs(struct cg_raft *raft, const struct cg_raft_message *message) {
    if (message->type == CG_RAFT_VOTE && message->pre_vote) {
        return raft_peer(raft, message->from) != NULL;
    }
    return raft->role != CG_RAFT_LEADER || message->term != raft->term || message->rejected ||
           (message->type != CG_RAFT_HEARTBEAT_REPLY && message->type != CG_RAFT_APPEND_REPLY);
}

int cg_raft_receive(struct cg_raft *raft, uint64_t now_ns, const struct cg_raft_message *message) {
    assert(raft->started && !raft->append_due);
    if (raft->role == CG_RAFT_RETIRED) {
        return 0;
    }
    if (!message_valid(raft, message)) {
        return -EBADMSG;
    }
    raft->now_ns = now_ns;
    if (disturbs(raft, message)) {
        raft_wake_up(raft);
    }
    int result = 0;
    if (message->type == CG_RAFT_VOTE) {
        raft_receive_vote(raft, message);
    } else {
        bool opinion = message->type == CG_RAFT_VOTE_REPLY && message->pre_vote && message->granted;
        if (message->term > raft->term && !opinion) {
            raft_become_follower(raft, message->term, from_leader(message) ? message->from : 0);
        }
        if (message->type == CG_RAFT_VOTE_REPLY) {
            raft_receive_vote_reply(raft, message);
        } else if (message->term == raft->term) {
            result = dispatch(raft, message);
        } else if (CG_RAFT_MUTATED(MATCH_FROM_OLD_TERM)) {
            result = message->type == CG_RAFT_APPEND_REPLY ? dispatch(raft, message) : 0;
        } else {
            answer_stale(raft, message);
        }
    }
    raft_check(raft);
    return result;
}

void cg_raft_status(const struct cg_raft *raft, struct cg_raft_status *out) {
    *out = (struct cg_raft_status){
        .role = raft->role,
        .term = raft->term,
        .vote = raft->vote,
        .leader = raft->leader,
        .transferee = raft->transferee,
        .base_index = raft->log.base_index,
        .last_index = raft->log.last_index,
        .durable_index = raft->durable_index,
        .commit_index = raft->commit_index,
        .applied_index = raft->applied_index,
        .terms = raft->log.count,
        .quiet = raft->quiet,
    };
}

uint64_t cg_raft_term_at(const struct cg_raft *raft, uint64_t index) {
    return log_terms_at(&raft->log, index);
}
