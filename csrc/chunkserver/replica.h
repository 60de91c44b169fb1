// SPDX-License-Identifier: BSD-3-Clause
//
// A copyset's replicated log as the state machine above it sees it: propose an entry, learn when it
// is committed, in log order. With one replica an entry is committed when this disk's log has it;
// with several, when a majority's logs have it. Nothing above depends on which.
#ifndef CG_CHUNKSERVER_REPLICA_H
#define CG_CHUNKSERVER_REPLICA_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "chunkserver/wal.h"

enum cg_replica_role {
    CG_REPLICA_FOLLOWER,
    CG_REPLICA_CANDIDATE,
    CG_REPLICA_LEADER,
};

struct cg_replica {
    struct cg_wal *wal; // set before the first proposal
    uint64_t group;     // pool << 32 | copyset
    uint64_t term;
    uint64_t last_index;      // proposed
    uint64_t committed_index; // reported
    uint64_t committed_term;
    enum cg_replica_role role;
};

// One entry on its way. The proposer's memory, valid until `committed`.
struct cg_proposal {
    struct cg_wal_append
        append; // type, meta, payload and block_crcs of its record are the proposer's
    struct cg_replica *replica;
    uint64_t index; // valid from cg_replica_propose on
    // Called once, in log order, later than cg_replica_propose. 0: committed. Otherwise -errno: the
    // entry may or may not survive; after a failure of the disk every later one fails too.
    void (*committed)(struct cg_proposal *proposal, int status);
};

// A replica whose log ends at `index` of `term`; a single one leads at once, in the next term.
void cg_replica_init(struct cg_replica *replica, uint64_t group, uint64_t term, uint64_t index);

static inline bool cg_replica_leads(const struct cg_replica *replica) {
    return replica->role == CG_REPLICA_LEADER;
}

// An entry found in the log at start: it is committed.
void cg_replica_replayed(struct cg_replica *replica, uint64_t term, uint64_t index);

// Appends an entry. Leaders only.
void cg_replica_propose(struct cg_replica *replica, struct cg_proposal *proposal);

#endif
