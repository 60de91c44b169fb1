// SPDX-License-Identifier: BSD-3-Clause
//
// The log's beginning [5]. A snapshot is state that somebody else keeps (a list of chunk files);
// the core knows up to which entry it goes, that entry's term, and the configuration as of it.
#include <assert.h>
#include <errno.h>

#include "raft/raft_internal.h"

void cg_raft_applied(struct cg_raft *raft, uint64_t index) {
    assert(index <= raft->commit_index);
    if (index > raft->applied_index) {
        raft->applied_index = index;
    }
}

void cg_raft_compact(struct cg_raft *raft, uint64_t index) {
    assert(index <= raft->applied_index);
    if (index > raft->log.base_index) {
        log_terms_compact(&raft->log, index);
    }
    raft_check(raft);
}

void cg_raft_snapshot_sent(struct cg_raft *raft, uint64_t id, uint64_t index, bool ok) {
    struct raft_peer *peer = raft_peer(raft, id);
    if (raft->role != CG_RAFT_LEADER || peer == NULL || peer->state != RAFT_SNAPSHOT) {
        return;
    }
    // Probed either way: if the state did not arrive, the refusal leads to the next snapshot.
    uint64_t next =
        ok && index > peer->match && index <= raft->log.last_index ? index + 1 : peer->match + 1;
    raft_start_probe(peer, next);
}

bool cg_raft_snapshot_wanted(const struct cg_raft *raft, uint64_t index) {
    return raft->role != CG_RAFT_RETIRED && raft->role != CG_RAFT_LEADER &&
           index > raft->commit_index;
}

int cg_raft_snapshot_installed(struct cg_raft *raft, uint64_t now_ns, uint64_t index, uint64_t term,
                               const struct cg_raft_config *config) {
    if (!cg_raft_snapshot_wanted(raft, index) || term > raft->term || !raft_config_valid(config)) {
        return -EINVAL;
    }
    raft->now_ns = now_ns;
    struct log_terms *log = &raft->log;
    if (index <= log->last_index && log_terms_at(log, index) == term) {
        log_terms_compact(log, index); // the log goes on from it and stays [5.3]
    } else if (!CG_RAFT_MUTATED(SNAPSHOT_KEEPS_LOG) || index > log->last_index) {
        log_terms_init(log, log->run, log->max, index, term);
        raft_config_reset(raft, index, config);
        raft_note_cut(raft, index + 1);
    }
    if (raft->durable_index < index) {
        raft->durable_index = index;
    }
    raft->commit_index = index;
    raft->commit_reported = index;
    raft->applied_index = index;
    if (raft->verified < index) {
        raft->verified = index;
    }
    if (raft->leader != 0) {
        raft->ack_target = raft->verified;
        raft->ack_due = true;
    }
    raft_check(raft);
    return 0;
}
