// SPDX-License-Identifier: BSD-3-Clause
//
// The log's end: a leader's own entries, and a follower's side of AppendEntries [3.5].
#include <assert.h>
#include <errno.h>

#include "raft/raft_internal.h"

bool raft_append_own(struct cg_raft *raft, enum cg_raft_source source, uint32_t count,
                     const struct cg_raft_entry *entry) {
    uint64_t first = raft->log.last_index + 1;
    if (!log_terms_append(&raft->log, raft->term, count)) {
        return false;
    }
    raft_note_append(raft, source, first);
    raft->append_entry = *entry;
    if (entry->type == CG_RAFT_ENTRY_CONFIG) {
        raft_config_append(raft, first, entry->config);
        raft->append_entry.config = &raft->config[raft->config_count - 1].config;
    }
    return true;
}

int cg_raft_propose(struct cg_raft *raft, uint64_t now_ns, uint32_t count, uint64_t *first) {
    assert(count > 0);
    if (raft->role == CG_RAFT_RETIRED) {
        return -EIO;
    }
    if (raft->role != CG_RAFT_LEADER) {
        return -EPERM;
    }
    raft->now_ns = now_ns;
    if (raft->transferee != 0 ||
        raft->log.last_index - raft->commit_index + count > raft->options.uncommitted_entries_max) {
        return -EAGAIN;
    }
    const struct cg_raft_entry data = {.term = raft->term, .type = CG_RAFT_ENTRY_DATA};
    if (!raft_append_own(raft, CG_RAFT_FROM_PROPOSAL, count, &data)) {
        return -EAGAIN;
    }
    *first = raft->append_first;
    raft_wake_up(raft);
    raft->active_ns = now_ns;
    raft_check(raft);
    return 0;
}

// ---- Followers

static void refuse(struct cg_raft *raft, const struct cg_raft_message *message) {
    // Skips whole terms instead of single entries [3.5, end]: no entry above the hint can be the
    // leader's, as terms only grow along a log.
    uint64_t hint = log_terms_not_above(&raft->log, message->prev_index, message->prev_term);
    if (hint >= message->prev_index) {
        hint = message->prev_index - 1;
    }
    raft->reply_due = true;
    raft->reply = (struct cg_raft_message){
        .type = CG_RAFT_APPEND_REPLY,
        .from = raft->options.id,
        .to = message->from,
        .term = raft->term,
        .rejected = true,
        .prev_index = message->prev_index,
        .hint_index = hint,
        .hint_term = log_terms_at(&raft->log, hint),
    };
}

static void truncate(struct cg_raft *raft, uint64_t first) {
    assert(first > raft->commit_index || CG_RAFT_MUTATED(TRUNCATE_ALWAYS));
    log_terms_truncate(&raft->log, first);
    raft_config_truncate(raft, first);
    raft_note_cut(raft, first);
}

// Appends as many of `count` entries after the log's end as the bounds allow; returns how many.
static uint32_t append(struct cg_raft *raft, const struct cg_raft_entry *entries, uint32_t count) {
    uint64_t first = raft->log.last_index + 1;
    uint32_t done = 0;
    while (done < count && log_terms_room(&raft->log, entries[done].term)) {
        const struct cg_raft_entry *entry = &entries[done++];
        log_terms_append(&raft->log, entry->term, 1);
        if (entry->type == CG_RAFT_ENTRY_CONFIG) {
            raft_config_append(raft, raft->log.last_index, entry->config);
        }
    }
    if (done > 0) {
        raft_note_append(raft, CG_RAFT_FROM_MESSAGE, first);
    }
    return done;
}

// Puts entries after `prev`, where the logs agree. An entry that is there already is left alone:
// only a conflict removes entries, so that a late message cannot undo what a later one brought and
// what has been acknowledged [3.5]. Returns up to where the logs agree then.
static uint64_t merge(struct cg_raft *raft, uint64_t prev, const struct cg_raft_entry *entries,
                      uint32_t count) {
    uint32_t same = 0;
    while (same < count && prev + same < raft->log.last_index &&
           (log_terms_at(&raft->log, prev + same + 1) == entries[same].term ||
            CG_RAFT_MUTATED(NO_CONFLICT_CHECK))) {
        same++;
    }
    if (CG_RAFT_MUTATED(TRUNCATE_ALWAYS) && count > 0 && prev < raft->log.last_index) {
        same = 0;
    }
    if (same == count) {
        return prev + count;
    }
    uint64_t first = prev + same + 1;
    if (first <= raft->log.last_index) {
        truncate(raft, first);
    }
    return first - 1 + append(raft, entries + same, count - same);
}

static void acknowledge(struct cg_raft *raft, uint64_t agreed) {
    if (agreed > raft->verified) {
        raft->verified = agreed;
    }
    if (agreed > raft->ack_target) {
        raft->ack_target = agreed;
    }
    raft->ack_due = true;
}

void raft_receive_append(struct cg_raft *raft, const struct cg_raft_message *message) {
    raft_heard_leader(raft, message->from);
    uint64_t prev = message->prev_index;
    const struct cg_raft_entry *entries = message->entries;
    uint32_t count = message->count;
    if (prev < raft->commit_index) {
        // What is committed is in every leader's log: there is nothing to compare.
        uint64_t known = raft->commit_index - prev;
        if (known >= count) {
            acknowledge(raft, raft->commit_index);
            return;
        }
        prev += known;
        entries += known;
        count -= (uint32_t)known;
    } else if (prev > raft->log.last_index ||
               (log_terms_at(&raft->log, prev) != message->prev_term &&
                !CG_RAFT_MUTATED(NO_PREVIOUS_CHECK))) {
        refuse(raft, message);
        return;
    }
    uint64_t agreed = merge(raft, prev, entries, count);
    acknowledge(raft, agreed);
    // Beyond what this message has shown to agree the log may be another's [3.5, figure: the last
    // new entry].
    uint64_t bound = CG_RAFT_MUTATED(COMMIT_BEYOND_MATCH) ? raft->log.last_index : agreed;
    raft_set_commit(raft, message->commit < bound ? message->commit : bound);
}
