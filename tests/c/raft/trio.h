// SPDX-License-Identifier: BSD-3-Clause
//
// A few raft cores, a log for each, and a network that does what the test says. Disks are instant
// unless held.
#ifndef CG_TESTS_TRIO_H
#define CG_TESTS_TRIO_H

#include "raft/raft.h"

#define TRIO_NODES     4U // ids 1 to 4; the group starts with 1 to 3
#define TRIO_LOG       512U
#define TRIO_FLIGHT    256U
#define TRIO_MS        UINT64_C(1000000)
#define TRIO_TIMEOUT   (100 * TRIO_MS)
#define TRIO_HEARTBEAT (10 * TRIO_MS)

struct trio_entry {
    uint64_t term;
    enum cg_raft_entry_type type;
    struct cg_raft_config config;
};

struct trio_node {
    struct cg_raft *raft;
    bool cut;  // no message to or from it
    bool held; // its disk does not finish anything
    bool late; // applies nothing
    uint64_t held_ticket[TRIO_FLIGHT], held_index[TRIO_FLIGHT];
    uint32_t held_count;
    struct trio_entry log[TRIO_LOG]; // by index
    uint64_t term, vote;             // what its disk was told last
    uint64_t commit;
    uint64_t read_ready, read_failed; // ids, the last ones
    uint64_t snapshot_for;
    uint32_t sent[8]; // by message type
};

struct trio {
    void (*adjust)(struct cg_raft_options *options);
    uint64_t now;
    struct trio_node node[TRIO_NODES];
    struct cg_raft_message flight[TRIO_FLIGHT];
    struct cg_raft_entry entries[TRIO_FLIGHT][16];
    uint32_t flight_first, flight_count;
};

// `adjust` (may be NULL) changes the options of all.
void trio_init(struct trio *trio, void (*adjust)(struct cg_raft_options *options));
void trio_destroy(struct trio *trio);
// The node comes back with its log from disk, of which all up to `base` is in a checkpoint.
void trio_restart(struct trio *trio, uint64_t id, uint64_t base);
struct trio_node *trio_node(struct trio *trio, uint64_t id);
struct cg_raft_status trio_status(struct trio *trio, uint64_t id);

// Carries out what the node's core asks for.
void trio_drain(struct trio *trio, uint64_t id);
// Delivers messages until there are none.
void trio_settle(struct trio *trio);
// Lets time pass in steps of a millisecond, everything delivered.
void trio_run(struct trio *trio, uint64_t ms);
// Lets `id` win an election: only its clock goes on.
void trio_elect(struct trio *trio, uint64_t id);
// Reports what the held disk has been asked for.
void trio_release(struct trio *trio, uint64_t id);
int trio_propose(struct trio *trio, uint64_t id, uint32_t count);
// A message as if sent by `message->from`, drained.
int trio_receive(struct trio *trio, const struct cg_raft_message *message);

#endif
