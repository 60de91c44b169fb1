// SPDX-License-Identifier: BSD-3-Clause
//
// A copyset on several stores in one process: each member has a simulated disk, the network is a
// queue which the test may cut, and a client writes numbered data through whoever leads. It
// repeats what is not answered, so that in the end everything it asked for has been done, once. One
// seed decides the order of everything. The real code of the store, its log, and of catching up;
// what is faked is sockets: cg_peers_channel, cg_channel_call, cg_server_reply and the like.
#ifndef CG_TESTS_REPLICAMODEL_H
#define CG_TESTS_REPLICAMODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "chunkserver/catchup.h"
#include "chunkserver/store_internal.h"
#include "simdisk.h"

#define MEMBERS      4U
#define CHUNKS       6U
#define CHUNK_SIZE   (512U << 10)
#define CHUNK_BLOCKS (CHUNK_SIZE / CG_BLOCK_SIZE)
#define POOL         1U
#define COPYSET      1U
#define PENDING      8U

struct replicamodel;

struct member {
    struct replicamodel *model;
    unsigned at;
    uint64_t id; // member id: position + 1 in the low half
    struct simdisk *sim;
    struct cg_reactor *reactor;
    struct cg_buffer_pool *pool;
    struct cg_store *store; // NULL: down
    struct cg_catchup *catchup;
    struct cg_server_method methods[CG_CATCHUP_METHODS];
    unsigned life;
};

struct client_op {
    bool used;
    bool sent;
    unsigned to;
    unsigned life; // of the member it was sent to
    struct cg_mutation mutation;
    uint64_t stamp;
    uint64_t due_ns;
    struct replicamodel *model;
};

struct replicamodel {
    uint64_t random;
    uint64_t seed;
    uint64_t now;
    struct member member[MEMBERS];
    bool cut[MEMBERS][MEMBERS];
    struct cg_list network;
    unsigned queued;
    struct client_op op[PENDING];
    uint64_t sequence;
    uint64_t done;
    uint64_t expected[CHUNKS][CHUNK_BLOCKS]; // stamp; 0: zeros
    bool locked[CHUNKS][CHUNK_BLOCKS];       // by an operation under way
    struct cg_store_options options;
    uint64_t rate; // of copying
    uint64_t disk_bytes;
    unsigned calls[6];        // of each method, delivered
    bool lose_calls;          // one in eight
    unsigned garbled_members; // answers in which a leader names a member twice
    unsigned focus;           // operations are about the first so many chunks; 0: about all
};

void model_create(struct replicamodel *model, uint64_t seed);
void model_destroy(struct replicamodel *model);
uint64_t model_pick(struct replicamodel *model, uint64_t below);

// ---- Members. The first three found the copyset

void model_found(struct replicamodel *model);
// A blank one in the place of a member that is down, under a new id.
void model_wipe(struct replicamodel *model, unsigned at);
void model_start(struct replicamodel *model, unsigned at);
void model_crash(struct replicamodel *model, unsigned at, enum simdisk_crash mode);
void model_isolate(struct replicamodel *model, unsigned at, bool cut);
struct cg_copyset *model_copyset(const struct member *member);
// The position of the leader that is ready; MEMBERS: none.
unsigned model_leader(const struct replicamodel *model);
struct cg_catchup_stats model_stats(const struct member *member);

// ---- Time

// One thing happens.
void model_turn(struct replicamodel *model);
// Until `ready`; fails after a while.
void model_until(struct replicamodel *model, bool (*ready)(struct replicamodel *model),
                 const char *what);
void model_run(struct replicamodel *model, unsigned turns);
void model_await_leader(struct replicamodel *model);

// ---- The client

// Sends a random operation, unless too many are under way.
void model_mutate(struct replicamodel *model);
void model_write(struct replicamodel *model, unsigned chunk, unsigned block);
// Writes a part of a block at the leader, with what is there already. True if that was done.
bool model_unaligned(struct replicamodel *model, unsigned chunk, unsigned block);
// Until all is answered.
void model_drain(struct replicamodel *model);
// Reads a block at the leader, which must have what is expected.
void model_read(struct replicamodel *model, unsigned chunk, unsigned block);
// How a member's own block reads.
cg_status model_look(struct replicamodel *model, unsigned at, unsigned chunk, unsigned block);

// ---- Checks

// All members that are up have applied all, and have the same: what is expected.
void model_check_equal(struct replicamodel *model);

_Noreturn void model_fail(const struct replicamodel *model, const char *what);

#endif
