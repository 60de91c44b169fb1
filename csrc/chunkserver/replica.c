// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/replica.h"

#include <assert.h>

void cg_replica_init(struct cg_replica *replica, uint64_t group, uint64_t term, uint64_t index) {
    *replica = (struct cg_replica){
        .group = group,
        .term = term == 0 ? 1 : term,
        .last_index = index,
        .committed_index = index,
        .committed_term = term,
        .role = CG_REPLICA_LEADER,
    };
}

void cg_replica_replayed(struct cg_replica *replica, uint64_t term, uint64_t index) {
    assert(index > replica->committed_index);
    replica->last_index = index;
    replica->committed_index = index;
    replica->committed_term = term;
    if (term > replica->term) {
        replica->term = term;
    }
}

static void appended(struct cg_wal_append *append) {
    struct cg_proposal *proposal = CG_CONTAINER_OF(append, struct cg_proposal, append);
    struct cg_replica *replica = proposal->replica;
    if (append->status == 0) {
        replica->committed_index = proposal->index;
        replica->committed_term = append->record.term;
    }
    proposal->committed(proposal, append->status);
}

void cg_replica_propose(struct cg_replica *replica, struct cg_proposal *proposal) {
    assert(cg_replica_leads(replica));
    proposal->replica = replica;
    proposal->index = ++replica->last_index;
    proposal->append.record.group = replica->group;
    proposal->append.record.term = replica->term;
    proposal->append.record.index = proposal->index;
    proposal->append.done = appended;
    cg_wal_append(replica->wal, &proposal->append);
}
