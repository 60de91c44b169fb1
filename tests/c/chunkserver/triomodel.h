// SPDX-License-Identifier: BSD-3-Clause
//
// Three stores in one process, replicas of the same copysets, each on a simulated disk of its own,
// with a network that loses, delays, doubles and cuts, and a client that repeats what got no
// answer. A model says what the chunks hold: an array of bytes each, changed when a mutation is
// answered with SUCCESS. The client never has two mutations of the same bytes under way, so what
// the model says is exact. One seed, one virtual clock.
#ifndef CG_TESTS_TRIOMODEL_H
#define CG_TESTS_TRIOMODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "chunkserver/store.h"
#include "simdisk.h"

#define TRIO_NODES      3U
#define TRIO_COPYSETS   2U
#define TRIO_CHUNKS     3U // of each copyset
#define TRIO_CHUNK_SIZE (128U << 10)
#define TRIO_OPS        10U // under way
#define TRIO_HISTORY    64U
#define TRIO_VOLUME     7U

struct trio;

struct trio_node {
    struct trio *trio;
    unsigned at; // member id - 1
    bool up;
    uint64_t life; // counts starts
    uint64_t up_at_ns;
    uint64_t stands_until_ns; // the process is stopped: nothing happens in it, clocks go on
    uint64_t missed_ns;
    struct simdisk *sim;
    struct cg_reactor *reactor;
    struct cg_buffer_pool *pool;
    struct cg_store *store;
};

struct trio_op {
    bool used;
    bool known;      // the client has an answer that may be late: nothing may happen any more
    uint64_t serial; // of the operation in this place
    uint32_t copyset;
    uint32_t chunk;
    struct cg_mutation mutation;
    uint8_t *data;              // WRITE: size bytes; COMPARE_AND_WRITE: twice that
    uint64_t low_epoch;         // acknowledged when it was first sent
    unsigned out[TRIO_NODES];   // attempts without an answer
    uint64_t lives[TRIO_NODES]; // of the nodes they were sent to
    uint64_t next_try_ns;
    unsigned target;
};

struct trio_chunk {
    uint8_t data[TRIO_CHUNK_SIZE];
    uint64_t version; // counts submissions and effects
};

struct trio_copy;

struct trio {
    uint64_t seed;
    uint64_t random;
    uint64_t now_ns;
    struct cg_store_options options;
    struct trio_node node[TRIO_NODES];
    struct cg_list network;
    bool cut[TRIO_NODES][TRIO_NODES]; // from, to
    unsigned lose;                    // messages in a thousand
    uint64_t delay_ns;                // at most, most of the time
    struct trio_chunk chunk[TRIO_COPYSETS][TRIO_CHUNKS];
    uint64_t epoch[TRIO_COPYSETS]; // acknowledged
    struct trio_op op[TRIO_OPS];
    struct trio_op history[TRIO_HISTORY]; // answered ones, to be sent again
    unsigned history_count;
    uint64_t sequence;
    uint64_t serial;
    unsigned reads;                                    // under way
    bool quiet;                                        // the client starts nothing new
    struct trio_copy *copy[TRIO_NODES][TRIO_COPYSETS]; // to a node
    struct trio_counts {
        uint64_t acknowledged, refused, redirected, retried, reads, deaths, leaders, checkpoints,
            copies;
    } counts;
};

void trio_init(struct trio *trio, uint64_t seed, const struct cg_store_options *options);
void trio_destroy(struct trio *trio);
uint64_t trio_pick(struct trio *trio, uint64_t below);
_Noreturn void trio_fail(const struct trio *trio, const char *what);

// Node `at` starts, or ends in one of the ways of simdisk.h.
void trio_start(struct trio *trio, unsigned at);
void trio_crash(struct trio *trio, unsigned at, enum simdisk_crash mode);
void trio_kill(struct trio *trio, unsigned at);

// It stands still for a while; then the first that it does is to read, by what it knew before.
void trio_stop(struct trio *trio, unsigned at, uint64_t ns);

// One thing happens: a message, an operation of a disk, time.
void trio_step(struct trio *trio);

// The client's.
void trio_mutate(struct trio *trio);
void trio_read(struct trio *trio);
void trio_read_at(struct trio *trio, unsigned at, uint32_t copyset);
void trio_repeat(struct trio *trio);

// The node that leads the copyset, or NULL.
struct trio_node *trio_leader(struct trio *trio, uint32_t copyset);
struct cg_copyset *trio_copyset(const struct trio_node *node, uint32_t copyset);

// All nodes are up and connected: until every mutation has its answer and all have applied the
// same. Then compares every byte with the model, and the replicas with each other.
void trio_settle(struct trio *trio);
void trio_compare(struct trio *trio);

// ---- trionetwork.c
void trio_send(void *context, uint64_t group, const struct cg_raft_message *message,
               struct cg_log_entry *const *entries);
void trio_deliver(struct trio *trio);                // one message that is due
uint64_t trio_next_message(const struct trio *trio); // when it is due; UINT64_MAX: there is none
void trio_drop_messages(struct trio *trio);

// ---- trioclient.c
void trio_send_mutations(struct trio *trio); // those that wait for another try
void trio_drop_mutations(struct trio *trio);

// ---- triocopy.c: state is copied, by the simplest means
void trio_copy_wanted(struct trio *trio, struct trio_node *leader, uint32_t copyset,
                      uint64_t member);
void trio_copy_step(struct trio *trio);
void trio_copy_forget(struct trio *trio, unsigned at); // the node died

#endif
