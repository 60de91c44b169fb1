// SPDX-License-Identifier: BSD-3-Clause
#include "triomodel.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "chunkserver/store_internal.h"
#include "simreactor.h"

void trio_fail(const struct trio *trio, const char *what) {
    fprintf(stderr, "seed %" PRIu64 ", %" PRIu64 " us: %s\n", trio->seed, trio->now_ns / 1000,
            what);
    abort();
}

uint64_t trio_pick(struct trio *trio, uint64_t below) {
    // splitmix64
    uint64_t z = (trio->random += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (z ^ (z >> 31)) % below;
}

struct cg_copyset *trio_copyset(const struct trio_node *node, uint32_t copyset) {
    return cg_store_copyset(node->store, 1, copyset + 1);
}

struct trio_node *trio_leader(struct trio *trio, uint32_t copyset) {
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        struct trio_node *node = &trio->node[i];
        if (node->up && cg_copyset_leads(trio_copyset(node, copyset))) {
            return node;
        }
    }
    return NULL;
}

// ---- Life and death

static uint64_t now_of(void *context) {
    const struct trio_node *node = context;
    return node->trio->now_ns;
}

static void role_changed(void *context, struct cg_copyset *copyset) {
    struct trio_node *node = context;
    node->trio->counts.leaders += cg_copyset_leads(copyset);
}

static void copy_state(void *context, struct cg_copyset *copyset, uint64_t member) {
    struct trio_node *node = context;
    trio_copy_wanted(node->trio, node, cg_copyset_id(copyset) - 1, member);
}

void trio_start(struct trio *trio, unsigned at) {
    struct trio_node *node = &trio->node[at];
    char error[256] = "";
    node->reactor = simreactor_create(node->sim);
    if (cg_buffer_pool_create(64U << 20, &node->pool) != 0) {
        abort();
    }
    struct cg_store_options options = trio->options;
    options.send = trio_send;
    options.send_context = node;
    options.now = now_of;
    options.now_context = node;
    options.events = (struct cg_store_events){
        .role_changed = role_changed, .copy_state = copy_state, .context = node};
    if (cg_store_open(simdisk_disk(node->sim), node->reactor, node->pool, &options, &node->store,
                      error, sizeof(error)) != 0) {
        trio_fail(trio, error);
    }
    node->up = true;
    node->life++;
    uint64_t founders[TRIO_NODES];
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        founders[i] = i + 1;
    }
    for (uint32_t i = 0; i < TRIO_COPYSETS; i++) {
        struct cg_copyset_spec spec = {.pool = 1,
                                       .copyset = i + 1,
                                       .self = at + 1,
                                       .founders = founders,
                                       .founder_count = TRIO_NODES};
        if (cg_store_add_copyset(node->store, &spec) != 0) {
            trio_fail(trio, "cannot add a copyset");
        }
    }
}

// Its objects are dropped as they are.
static void forget(struct trio *trio, unsigned at) {
    struct trio_node *node = &trio->node[at];
    struct cg_store_stats stats;
    cg_store_stats(node->store, &stats);
    trio->counts.checkpoints += stats.checkpoints;
    trio->counts.deaths++;
    node->up = false;
    node->store = NULL;
    node->stands_until_ns = 0;
    node->missed_ns = 0;
    trio_copy_forget(trio, at);
}

void trio_crash(struct trio *trio, unsigned at, enum simdisk_crash mode) {
    forget(trio, at);
    simdisk_crash(trio->node[at].sim, mode);
}

void trio_kill(struct trio *trio, unsigned at) {
    forget(trio, at);
    simdisk_kill(trio->node[at].sim);
}

void trio_init(struct trio *trio, uint64_t seed, const struct cg_store_options *options) {
    memset(trio, 0, sizeof(*trio));
    trio->seed = seed;
    trio->random = seed * 7919;
    trio->now_ns = CG_NS_PER_S;
    trio->delay_ns = 2 * CG_NS_PER_MS;
    trio->options = *options;
    trio->options.chunk_size = TRIO_CHUNK_SIZE;
    cg_list_init(&trio->network);
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        struct simdisk_options disk = {.seed = seed * 3 + i};
        trio->node[i] = (struct trio_node){.trio = trio, .at = i, .sim = simdisk_create(&disk)};
    }
}

void trio_destroy(struct trio *trio) {
    trio_drop_messages(trio);
    trio_drop_mutations(trio);
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        simdisk_destroy(trio->node[i].sim);
    }
}

// ---- Time

static void advance(struct trio *trio, uint64_t ns) {
    trio->now_ns += ns;
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        struct trio_node *node = &trio->node[i];
        if (node->stands_until_ns != 0) {
            node->missed_ns += ns;
        } else if (node->up) {
            simreactor_advance(node->reactor, ns);
        }
    }
}

void trio_stop(struct trio *trio, unsigned at, uint64_t ns) {
    if (trio->node[at].up) {
        trio->node[at].stands_until_ns = trio->now_ns + ns;
    }
}

static void go_on(struct trio *trio) {
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        struct trio_node *node = &trio->node[i];
        if (node->stands_until_ns == 0 || node->stands_until_ns > trio->now_ns) {
            continue;
        }
        uint64_t missed = node->missed_ns;
        node->stands_until_ns = 0;
        node->missed_ns = 0;
        for (uint32_t copyset = 0; copyset < TRIO_COPYSETS; copyset++) {
            trio_read_at(trio, i, copyset);
        }
        simreactor_advance(node->reactor, missed);
    }
}

void trio_step(struct trio *trio) {
    struct trio_node *node = &trio->node[trio_pick(trio, TRIO_NODES)];
    bool busy = false;
    go_on(trio);
    if (node->up && node->stands_until_ns == 0) {
        busy = simdisk_step(node->sim);
        simreactor_iterate(node->reactor);
    }
    trio_deliver(trio);
    trio_send_mutations(trio);
    trio_copy_step(trio);
    uint64_t due = trio_next_message(trio);
    uint64_t wait = busy ? 1 + trio_pick(trio, 50000) : 1 + trio_pick(trio, CG_NS_PER_MS);
    if (due > trio->now_ns && due - trio->now_ns < wait) {
        wait = due - trio->now_ns;
    }
    advance(trio, due <= trio->now_ns ? 0 : wait);
}

// ---- The end

static bool agree(struct trio *trio) {
    for (uint32_t copyset = 0; copyset < TRIO_COPYSETS; copyset++) {
        struct trio_node *leader = trio_leader(trio, copyset);
        if (leader == NULL) {
            return false;
        }
        struct cg_copyset_log_status status;
        cg_copyset_log_status(cg_copyset_raft(trio_copyset(leader, copyset)), &status);
        for (unsigned i = 0; i < TRIO_NODES; i++) {
            if (cg_copyset_applied(trio_copyset(&trio->node[i], copyset)) != status.last_index) {
                return false;
            }
        }
    }
    for (unsigned i = 0; i < TRIO_OPS; i++) {
        if (trio->op[i].used) {
            return false;
        }
    }
    return true;
}

static void describe(struct trio *trio) {
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        const struct cg_store *store = trio->node[i].store;
        fprintf(stderr,
                "node %u: log %" PRIu64 " of %" PRIu64 " bytes, checkpoint stage %d, %u chunks "
                "dirty, %" PRIu64 " bytes being logged\n",
                i + 1, cg_wal_used(store->wal), cg_wal_capacity(store->wal),
                (int)store->checkpoint.stage, store->dirty_count, store->logging_bytes);
        for (uint32_t c = 0; c < TRIO_COPYSETS; c++) {
            struct cg_copyset_log_status s;
            struct cg_copyset *copyset = trio_copyset(&trio->node[i], c);
            cg_copyset_log_status(cg_copyset_raft(copyset), &s);
            fprintf(stderr,
                    "node %u, copyset %u: role %d, term %" PRIu64 ", base %" PRIu64
                    ", last %" PRIu64 ", committed %" PRIu64 ", delivered %" PRIu64
                    ", applied %" PRIu64 "%s\n",
                    i + 1, c + 1, (int)s.role, s.term, s.base_index, s.last_index, s.commit_index,
                    s.delivered_index, cg_copyset_applied(copyset),
                    cg_copyset_incomplete(copyset) ? ", incomplete" : "");
        }
    }
    for (unsigned i = 0; i < TRIO_OPS; i++) {
        const struct trio_op *op = &trio->op[i];
        if (op->used) {
            fprintf(stderr,
                    "mutation %" PRIu64 ", kind %d of copyset %u, chunk %u, [%u, +%u): without an "
                    "answer from %u %u %u\n",
                    op->mutation.sequence, (int)op->mutation.kind, op->copyset + 1, op->chunk + 1,
                    op->mutation.offset, op->mutation.size, op->out[0], op->out[1], op->out[2]);
        }
    }
}

void trio_settle(struct trio *trio) {
    for (unsigned steps = 0; !agree(trio); steps++) {
        trio_step(trio);
        if (steps > 1000000) {
            describe(trio);
            trio_fail(trio, "the replicas do not come to an agreement");
        }
    }
}
