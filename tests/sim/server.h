// SPDX-License-Identifier: BSD-3-Clause
//
// A node in log mode: the chunkserver's own code for a copyset's log (csrc/chunkserver/copyset_log,
// log_disk, wal) on a simulated disk, with a reactor whose clock is the node's. The state machine
// above it and its checkpoints are the simulator's (machine.c).
//
// Files: server.c (life, events in both directions), server_state.c (checkpoints, recovery, copied
// state, damage), neighbour.c (another copyset on the same disk), server_watch.c (what the code
// does is looked at where the core meets the log, and the log the disk).
#ifndef CG_TESTS_SIM_SERVER_H
#define CG_TESTS_SIM_SERVER_H

#include "../c/chunkserver/simdisk.h"
#include "../c/chunkserver/simreactor.h"
#include "chunkserver/copyset_log.h"
#include "chunkserver/copyset_log_internal.h"
#include "chunkserver/copyset_log_record.h"
#include "chunkserver/log_disk.h"
#include "process.h"
#include "sim.h"

#define SERVER_GROUP     ((UINT64_C(1) << 32) | 1)
#define NEIGHBOUR_GROUP  ((UINT64_C(1) << 32) | 2)
#define SERVER_PROPOSALS 512U

// A record asked for, in the order of the log.
struct server_record {
    struct sim_record record;
    const struct cg_wal_append *append; // while it is under way
    void (*done)(struct cg_wal_append *append);
    uint64_t lsn; // once it is durable
};

struct server_proposal {
    struct cg_log_proposal base;
    struct sim_server *server;
    bool used;
    bool answer; // sim_flood has no client
    struct sim_request request;
};

struct server_read {
    struct cg_log_read base;
    struct sim_server *server;
};

struct server_neighbour { // neighbour.c
    // What survives a crash
    struct cg_copyset_log_saved saved;
    uint64_t saved_serial;
    uint64_t asked, answered; // serial numbers
    // The process
    struct cg_copyset_log *log;
    uint64_t delivered, serial;
    bool busy;
    struct cg_log_proposal proposal;
    struct cg_copyset_log_saved pending;
    uint64_t pending_serial;
};

struct sim_server {
    struct sim *sim;
    struct sim_node *node;

    // What survives a crash
    struct simdisk *medium;
    struct cg_copyset_log_saved saved; // of the checkpoint
    uint64_t from_lsn;
    struct sim_checkpoint staged; // copied state, durable; counts when its record is
    struct sim_checkpoint kept;   // the last one that counts: needed until a checkpoint is newer
    struct server_record record[SIM_RECORDS]; // at or above from_lsn
    uint32_t count, durable;
    uint64_t dropped; // records before the first
    bool rotten;      // one of them has been damaged

    // The process
    struct sim_process process;
    struct cg_reactor *reactor;
    struct cg_buffer_pool *pool;
    struct cg_wal *wal;
    struct cg_log_disk *disk;
    struct cg_copyset_log *log;
    uint32_t steps_due; // events of the disk that are queued
    bool failed;        // its disk has been reported to
    bool resume_due;
    uint64_t lease_end; // told to local readers
    uint32_t replayed;
    struct cg_copyset_log_saved pending; // of the checkpoint being made
    uint64_t pending_from;
    uint64_t pending_after; // records that have to be durable first
    struct server_proposal proposal[SERVER_PROPOSALS];
    struct server_read read[SIM_READS];
    struct server_neighbour neighbour;

    // A defect's: votes that are reported before they are durable
    struct cg_wal_append *early[64];
    uint32_t early_count;
};

// server.c
void server_enter(struct sim_server *server);
void server_leave(struct sim_server *server);
bool server_committed(void *context, struct cg_log_entry *entry, struct cg_log_proposal *proposal);
void server_role_changed(void *context);
void server_copy_state(void *context, uint64_t member);
void server_lease(void *context, uint64_t end_ns);

// server_state.c
bool server_recover(struct sim_server *server); // false: the disk is damaged

// neighbour.c
int neighbour_create(struct sim_server *server);
void neighbour_ask(struct sim_server *server); // now and then

// server_watch.c
void server_watch(struct sim_server *server); // whose code runs; NULL: nobody's
int server_replayed(void *context, uint64_t lsn, const struct cg_wal_record *found,
                    const void *payload);
bool server_report_early(struct sim_server *server);
const struct sim_entry *server_entry_of(struct sim *sim, uint32_t type, const void *meta,
                                        uint32_t meta_length, uint64_t index, uint64_t term);
void server_fill_payload(const struct sim_entry *entry, uint8_t *out);
uint32_t server_payload_length(const struct sim_entry *entry);

#endif
