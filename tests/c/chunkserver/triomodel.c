// SPDX-License-Identifier: BSD-3-Clause
#include "triomodel.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "chunkserver/store_internal.h"
#include "simreactor.h"

#define CLIENT 99U

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

// ---- The network

struct sent_entry {
    uint32_t type;
    uint64_t term;
    uint64_t index;
    uint32_t meta_length;
    uint32_t payload_length;
    uint8_t meta[CG_WAL_META_MAX];
    uint8_t *payload;
};

struct sent {
    struct cg_list node;
    uint64_t due_ns;
    unsigned to;
    uint64_t group;
    struct cg_raft_message message;
    struct sent_entry entry[];
};

static void free_sent(struct sent *sent) {
    uint32_t count = sent->message.type == CG_RAFT_APPEND ? sent->message.count : 0;
    for (uint32_t i = 0; i < count; i++) {
        free(sent->entry[i].payload);
    }
    free(sent);
}

static void put_entry(struct sent_entry *out, const struct cg_log_entry *entry) {
    out->type = entry->type;
    out->term = entry->term;
    out->index = entry->index;
    out->meta_length = entry->meta_length;
    out->payload_length = entry->payload_length;
    memcpy(out->meta, entry->meta, entry->meta_length);
    out->payload = NULL;
    if (entry->payload_length > 0) {
        out->payload = malloc(entry->payload_length);
        memcpy(out->payload, entry->payload, entry->payload_length);
    }
}

static void put_message(struct trio *trio, uint64_t group, const struct cg_raft_message *message,
                        struct cg_log_entry *const *entries) {
    uint32_t count = message->type == CG_RAFT_APPEND ? message->count : 0;
    struct sent *sent = calloc(1, sizeof(*sent) + count * sizeof(sent->entry[0]));
    sent->to = (unsigned)(message->to - 1);
    sent->group = group;
    sent->message = *message;
    sent->message.entries = NULL;
    uint64_t most = trio_pick(trio, 50) == 0 ? 400 * CG_NS_PER_MS : trio->delay_ns;
    sent->due_ns = trio->now_ns + 1 + trio_pick(trio, most);
    for (uint32_t i = 0; i < count; i++) {
        put_entry(&sent->entry[i], entries[i]);
    }
    cg_list_init(&sent->node);
    cg_list_push_back(&trio->network, &sent->node);
}

static void send_message(void *context, uint64_t group, const struct cg_raft_message *message,
                         struct cg_log_entry *const *entries) {
    struct trio_node *node = context;
    struct trio *trio = node->trio;
    if (trio->cut[node->at][message->to - 1] || trio_pick(trio, 1000) < trio->lose) {
        return;
    }
    put_message(trio, group, message, entries);
    if (trio_pick(trio, 100) == 0) {
        put_message(trio, group, message, entries);
    }
}

// As a receiver gets it: in buffers of its own. False: no memory.
static bool get_entries(struct trio_node *node, const struct sent *sent, uint32_t count,
                        struct cg_log_entry **out) {
    for (uint32_t i = 0; i < count; i++) {
        const struct sent_entry *from = &sent->entry[i];
        struct cg_buffer *buffer = NULL;
        if (from->payload_length > 0) {
            buffer = cg_buffer_alloc(node->pool, from->payload_length);
            if (buffer == NULL) {
                return false;
            }
            memcpy(buffer->data, from->payload, from->payload_length);
        }
        out[i] = cg_log_entry_make(from->type, from->term, from->index, from->meta,
                                   from->meta_length, buffer, buffer != NULL ? buffer->data : NULL,
                                   from->payload_length, NULL);
        cg_buffer_unref(buffer);
    }
    return true;
}

static void deliver(struct trio *trio, struct sent *sent) {
    struct trio_node *node = &trio->node[sent->to];
    if (!node->up) {
        return;
    }
    uint32_t count = sent->message.type == CG_RAFT_APPEND ? sent->message.count : 0;
    struct cg_log_entry **entries = calloc(count + 1, sizeof(struct cg_log_entry *));
    if (get_entries(node, sent, count, entries)) {
        cg_store_receive(node->store, sent->group, &sent->message, entries);
    }
    for (uint32_t i = 0; i < count; i++) {
        cg_log_entry_unref(entries[i]);
    }
    free(entries);
}

static void deliver_due(struct trio *trio) {
    CG_LIST_FOREACH_SAFE (node, following, &trio->network) {
        struct sent *sent = CG_CONTAINER_OF(node, struct sent, node);
        if (sent->due_ns <= trio->now_ns && trio->node[sent->to].stands_until_ns == 0) {
            cg_list_remove(node);
            deliver(trio, sent);
            free_sent(sent);
            return; // what is sent meanwhile may be anywhere in the list
        }
    }
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
    options.send = send_message;
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

static void free_op(struct trio_op *op) {
    free(op->data);
    memset(op, 0, sizeof(*op));
}

void trio_destroy(struct trio *trio) {
    struct cg_list *node;
    while ((node = cg_list_pop_front(&trio->network)) != NULL) {
        free_sent(CG_CONTAINER_OF(node, struct sent, node));
    }
    for (unsigned i = 0; i < TRIO_OPS; i++) {
        free_op(&trio->op[i]);
    }
    for (unsigned i = 0; i < TRIO_HISTORY; i++) {
        free_op(&trio->history[i]);
    }
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        simdisk_destroy(trio->node[i].sim);
    }
}

// ---- What a mutation does

static void apply_to(struct trio_chunk *chunk, const struct trio_op *op) {
    const struct cg_mutation *m = &op->mutation;
    uint32_t first = (m->offset + 4095) / 4096 * 4096;
    uint32_t last = (m->offset + m->size) / 4096 * 4096;
    switch (m->kind) {
    case CG_MUTATE_WRITE:
        memcpy(chunk->data + m->offset, op->data, m->size);
        break;
    case CG_MUTATE_COMPARE_AND_WRITE:
        memcpy(chunk->data + m->offset, op->data + m->size, m->size);
        break;
    case CG_MUTATE_ZERO:
        memset(chunk->data + m->offset, 0, m->size);
        break;
    case CG_MUTATE_TRIM:
        if (last > first) {
            memset(chunk->data + first, 0, last - first);
        }
        break;
    case CG_MUTATE_DELETE:
        memset(chunk->data, 0, sizeof(chunk->data));
        break;
    case CG_MUTATE_EPOCH:
        return;
    }
    chunk->version++;
}

static struct trio_chunk *chunk_of(struct trio *trio, const struct trio_op *op) {
    return &trio->chunk[op->copyset][op->chunk];
}

static bool meets(const struct cg_mutation *m, uint32_t offset, uint32_t size) {
    if (m->kind == CG_MUTATE_EPOCH) {
        return false;
    }
    if (m->kind == CG_MUTATE_DELETE) {
        return true;
    }
    return m->offset < offset + size && offset < m->offset + m->size;
}

static bool anything_under_way(const struct trio *trio, uint32_t copyset, uint32_t chunk,
                               uint32_t offset, uint32_t size) {
    for (unsigned i = 0; i < TRIO_OPS; i++) {
        const struct trio_op *op = &trio->op[i];
        if (op->used && op->copyset == copyset && op->chunk == chunk &&
            meets(&op->mutation, offset, size)) {
            return true;
        }
    }
    return false;
}

// ---- Answers

struct attempt {
    struct trio *trio;
    struct trio_op *op;
    uint64_t serial;
    unsigned at;
    uint64_t life;
};

static uint64_t lowest_open(const struct trio *trio) {
    uint64_t lowest = trio->sequence + 1;
    for (unsigned i = 0; i < TRIO_OPS; i++) {
        const struct trio_op *op = &trio->op[i];
        if (op->used && op->mutation.has_client && op->mutation.sequence < lowest) {
            lowest = op->mutation.sequence;
        }
    }
    return lowest;
}

static void remember(struct trio *trio, struct trio_op *op) {
    struct trio_op *place = &trio->history[trio->history_count++ % TRIO_HISTORY];
    free_op(place);
    *place = *op;
    place->known = true;
    memset(op, 0, sizeof(*op));
}

static void succeeded(struct trio *trio, struct trio_op *op) {
    const struct cg_mutation *m = &op->mutation;
    trio->counts.acknowledged++;
    if (m->kind == CG_MUTATE_EPOCH) {
        if (m->epoch > trio->epoch[op->copyset]) {
            trio->epoch[op->copyset] = m->epoch;
        }
        free_op(op);
        return;
    }
    if (m->has_epoch && m->epoch < op->low_epoch) {
        trio_fail(trio, "a fenced mutation was accepted");
    }
    apply_to(chunk_of(trio, op), op);
    remember(trio, op);
}

static void miscompared(struct trio *trio, struct trio_op *op, uint32_t mismatch) {
    const struct cg_mutation *m = &op->mutation;
    for (uint32_t i = 0; i <= mismatch; i++) {
        bool same = chunk_of(trio, op)->data[m->offset + i] == op->data[i];
        if (same != (i < mismatch)) {
            trio_fail(trio, "a wrong offset of the first difference");
        }
    }
}

static void try_again(struct trio *trio, struct trio_op *op, uint64_t leader, uint64_t wait_ns) {
    op->target = leader != 0 ? (unsigned)(leader - 1) : (unsigned)trio_pick(trio, TRIO_NODES);
    op->next_try_ns = trio->now_ns + wait_ns;
    trio->counts.redirected++;
}

static void answered(void *user, const struct cg_mutation_result *result) {
    struct attempt *attempt = user;
    struct trio *trio = attempt->trio;
    struct trio_op *op = attempt->op;
    bool open = op->used && op->serial == attempt->serial;
    if (open && op->lives[attempt->at] == attempt->life) {
        op->out[attempt->at]--;
    }
    free(attempt);
    if (!open) {
        return; // another attempt was answered before
    }
    switch (result->status) {
    case STATUS(SUCCESS):
        succeeded(trio, op);
        return;
    case STATUS(REDIRECTED):
        try_again(trio, op, result->leader, CG_NS_PER_MS);
        return;
    case STATUS(OVERLOAD):
        try_again(trio, op, 0, 5 * CG_NS_PER_MS);
        return;
    case STATUS(MISCOMPARE):
        miscompared(trio, op, result->mismatch_offset);
        break;
    case STATUS(EPOCH_TOO_OLD):
        if (!op->mutation.has_epoch) {
            trio_fail(trio, "a mutation without an epoch was fenced");
        }
        break;
    default:
        fprintf(stderr, "status %d\n", (int)result->status);
        trio_fail(trio, "an unexpected status of a mutation");
    }
    trio->counts.refused++;
    free_op(op);
}

// ---- Sending

// A buffer as the service makes it.
static struct cg_buffer *place(struct trio_node *node, const struct trio_op *op,
                               struct cg_mutation *m) {
    if (op->data == NULL) {
        return NULL;
    }
    uint32_t compare = m->kind == CG_MUTATE_COMPARE_AND_WRITE ? m->size : 0;
    m->data_offset = compare + (m->offset - compare) % 4096;
    struct cg_buffer *buffer = cg_buffer_alloc(node->pool, (size_t)m->data_offset + m->size + 4096);
    if (buffer == NULL) {
        trio_fail(node->trio, "the test's pool is too small");
    }
    memset(buffer->data, 0xee, buffer->capacity);
    memcpy(buffer->data + m->data_offset - compare, op->data, (size_t)compare + m->size);
    return buffer;
}

static void send_to(struct trio *trio, struct trio_op *op, unsigned at) {
    struct trio_node *node = &trio->node[at];
    if (!node->up || node->stands_until_ns != 0) {
        return;
    }
    struct cg_mutation m = op->mutation;
    struct attempt *attempt = malloc(sizeof(*attempt));
    *attempt = (struct attempt){trio, op, op->serial, at, node->life};
    m.copyset = trio_copyset(node, op->copyset);
    m.done = answered;
    m.user = attempt;
    m.settled_below = lowest_open(trio);
    m.buffer = place(node, op, &m);
    if (op->lives[at] != node->life) {
        op->lives[at] = node->life;
        op->out[at] = 0;
    }
    op->out[at]++;
    cg_store_mutate(node->store, &m); // may end and free `op`
    cg_buffer_unref(m.buffer);
}

static bool is_out(const struct trio *trio, const struct trio_op *op) {
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        if (trio->node[i].up && op->lives[i] == trio->node[i].life && op->out[i] > 0) {
            return true;
        }
    }
    return false;
}

static void send_due(struct trio *trio) {
    for (unsigned i = 0; i < TRIO_OPS; i++) {
        struct trio_op *op = &trio->op[i];
        if (op->used && op->next_try_ns <= trio->now_ns && !is_out(trio, op)) {
            trio->counts.retried++;
            op->next_try_ns = trio->now_ns + 10 * CG_NS_PER_MS;
            unsigned target = op->target;
            op->target = (unsigned)trio_pick(trio, TRIO_NODES);
            send_to(trio, op, target);
        }
    }
}

static void choose_range(struct trio *trio, struct cg_mutation *m) {
    uint32_t longest = trio_pick(trio, 4) == 0 ? TRIO_CHUNK_SIZE : 20000;
    m->size = 1 + (uint32_t)trio_pick(trio, longest);
    m->offset = (uint32_t)trio_pick(trio, TRIO_CHUNK_SIZE);
    if (trio_pick(trio, 2) == 0) {
        m->offset = m->offset / 4096 * 4096;
        m->size = (m->size + 4095) / 4096 * 4096;
    }
    if (m->offset + m->size > TRIO_CHUNK_SIZE) {
        m->size = TRIO_CHUNK_SIZE - m->offset;
    }
}

static void choose_data(struct trio *trio, struct trio_op *op) {
    struct cg_mutation *m = &op->mutation;
    bool compare = m->kind == CG_MUTATE_COMPARE_AND_WRITE;
    if (m->kind != CG_MUTATE_WRITE && !compare) {
        return;
    }
    op->data = malloc(2 * (size_t)m->size);
    uint64_t value = trio_pick(trio, UINT64_MAX);
    for (size_t i = 0; i < 2 * (size_t)m->size; i++) {
        value = value * UINT64_C(6364136223846793005) + 1442695040888963407U;
        op->data[i] = (uint8_t)(value >> 56);
    }
    if (compare) {
        memcpy(op->data, chunk_of(trio, op)->data + m->offset, m->size);
        if (trio_pick(trio, 3) == 0) {
            op->data[trio_pick(trio, m->size)] ^= 0x40;
        }
    }
}

static struct trio_op *free_place(struct trio *trio) {
    for (unsigned i = 0; i < TRIO_OPS; i++) {
        if (!trio->op[i].used) {
            return &trio->op[i];
        }
    }
    return NULL;
}

void trio_mutate(struct trio *trio) {
    static const enum cg_op_kind kinds[] = {
        CG_MUTATE_WRITE, CG_MUTATE_WRITE, CG_MUTATE_WRITE,
        CG_MUTATE_WRITE, CG_MUTATE_WRITE, CG_MUTATE_ZERO,
        CG_MUTATE_ZERO,  CG_MUTATE_TRIM,  CG_MUTATE_COMPARE_AND_WRITE,
        CG_MUTATE_EPOCH, CG_MUTATE_WRITE, CG_MUTATE_COMPARE_AND_WRITE,
        CG_MUTATE_TRIM,  CG_MUTATE_WRITE, CG_MUTATE_DELETE,
    };
    struct trio_op *op = free_place(trio);
    if (op == NULL) {
        return;
    }
    struct trio_op fresh = {
        .copyset = (uint32_t)trio_pick(trio, TRIO_COPYSETS),
        .chunk = (uint32_t)trio_pick(trio, TRIO_CHUNKS),
        .serial = ++trio->serial,
        .target = (unsigned)trio_pick(trio, TRIO_NODES),
    };
    struct cg_mutation *m = &fresh.mutation;
    m->kind = kinds[trio_pick(trio, sizeof(kinds) / sizeof(kinds[0]))];
    m->chunk_id = fresh.chunk + 1;
    m->file_id = TRIO_VOLUME;
    m->epoch = trio->epoch[fresh.copyset];
    choose_range(trio, m);
    if (m->kind == CG_MUTATE_EPOCH) {
        m->epoch += trio_pick(trio, 2);
    } else {
        uint32_t offset = m->kind == CG_MUTATE_DELETE ? 0 : m->offset;
        uint32_t size = m->kind == CG_MUTATE_DELETE ? TRIO_CHUNK_SIZE : m->size;
        if (anything_under_way(trio, fresh.copyset, fresh.chunk, offset, size)) {
            return;
        }
        m->has_client = true;
        m->client_id = CLIENT;
        m->sequence = ++trio->sequence;
        m->sn = 1;
        m->no_hole = m->kind == CG_MUTATE_ZERO && trio_pick(trio, 2) == 0;
        m->has_epoch = trio_pick(trio, 2) == 0;
        if (m->has_epoch && m->epoch > 0 && trio_pick(trio, 8) == 0) {
            m->epoch--;
        }
    }
    fresh.low_epoch = trio->epoch[fresh.copyset];
    choose_data(trio, &fresh);
    fresh.used = true;
    *op = fresh;
    chunk_of(trio, op)->version++;
    send_due(trio);
}

// One that is answered comes again, or one that is not comes to another node as well.
static void repeated(void *user, const struct cg_mutation_result *result) {
    struct trio *trio = user;
    switch (result->status) {
    case STATUS(SUCCESS):
    case STATUS(SETTLED):
    case STATUS(OVERLOAD):
    case STATUS(REDIRECTED):
    case STATUS(EPOCH_TOO_OLD):
        break;
    default:
        trio_fail(trio, "an unexpected status of a late copy");
    }
}

void trio_repeat(struct trio *trio) {
    unsigned at = (unsigned)trio_pick(trio, TRIO_NODES);
    struct trio_op *open = &trio->op[trio_pick(trio, TRIO_OPS)];
    if (trio_pick(trio, 2) == 0 && open->used) {
        send_to(trio, open, at);
        return;
    }
    unsigned known = trio->history_count < TRIO_HISTORY ? trio->history_count : TRIO_HISTORY;
    struct trio_node *node = &trio->node[at];
    if (known == 0 || !node->up || node->stands_until_ns != 0) {
        return;
    }
    const struct trio_op *old = &trio->history[trio_pick(trio, known)];
    struct cg_mutation m = old->mutation;
    m.copyset = trio_copyset(node, old->copyset);
    m.buffer = place(node, old, &m);
    m.done = repeated;
    m.user = trio;
    cg_store_mutate(node->store, &m);
    cg_buffer_unref(m.buffer);
}

// ---- Reads

struct reading {
    struct trio *trio;
    uint32_t copyset, chunk, offset, size;
    uint64_t version;
    unsigned at;
    bool exact;
};

static void read_answered(void *user, const struct cg_read_result *result) {
    struct reading *reading = user;
    struct trio *trio = reading->trio;
    const struct trio_chunk *chunk = &trio->chunk[reading->copyset][reading->chunk];
    if (result->status == STATUS(CRC_FAIL) || result->status == STATUS(DISK_FAIL)) {
        trio_fail(trio, "a read failed though others have the data");
    }
    bool answer = result->status == STATUS(SUCCESS) || result->status == STATUS(CHUNK_NOTEXIST);
    if (reading->exact && chunk->version == reading->version && answer) {
        static const uint8_t zeros[TRIO_CHUNK_SIZE];
        const uint8_t *got = result->status == STATUS(SUCCESS) ? result->data : zeros;
        if (memcmp(got, chunk->data + reading->offset, reading->size) != 0) {
            fprintf(stderr, "node %u, copyset %u, chunk %u\n", reading->at + 1,
                    reading->copyset + 1, reading->chunk + 1);
            trio_fail(trio, "a read returned other data than was written");
        }
        trio->counts.reads++;
    }
    free(reading);
}

void trio_read(struct trio *trio) {
    uint32_t copyset = (uint32_t)trio_pick(trio, TRIO_COPYSETS);
    const struct trio_node *node = trio_leader(trio, copyset);
    if (node == NULL || trio_pick(trio, 2) == 0) {
        node = &trio->node[trio_pick(trio, TRIO_NODES)];
    }
    trio_read_at(trio, node->at, copyset);
}

void trio_read_at(struct trio *trio, unsigned at, uint32_t copyset) {
    struct trio_node *node = &trio->node[at];
    if (!node->up || node->stands_until_ns != 0) {
        return;
    }
    uint32_t chunk = (uint32_t)trio_pick(trio, TRIO_CHUNKS);
    struct cg_mutation range = {0};
    choose_range(trio, &range);
    struct reading *reading = malloc(sizeof(*reading));
    *reading = (struct reading){
        .trio = trio,
        .copyset = copyset,
        .chunk = chunk,
        .offset = range.offset,
        .size = range.size,
        .version = trio->chunk[copyset][chunk].version,
        .at = node->at,
        .exact = !anything_under_way(trio, copyset, chunk, range.offset, range.size),
    };
    struct cg_query query = {
        .kind = CG_READ_DATA,
        .copyset = trio_copyset(node, copyset),
        .chunk_id = chunk + 1,
        .offset = range.offset,
        .size = range.size,
        .done = read_answered,
        .user = reading,
    };
    cg_store_read(node->store, &query);
}

// ---- Time

static uint64_t next_due(const struct trio *trio) {
    uint64_t due = UINT64_MAX;
    CG_LIST_FOREACH (node, &trio->network) {
        const struct sent *sent = CG_CONTAINER_OF(node, struct sent, node);
        if (sent->due_ns < due && trio->node[sent->to].stands_until_ns == 0) {
            due = sent->due_ns;
        }
    }
    return due;
}

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
    deliver_due(trio);
    send_due(trio);
    trio_copy_step(trio);
    uint64_t due = next_due(trio);
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

struct local {
    bool done;
    cg_status status;
    uint64_t sn;
    uint8_t data[TRIO_CHUNK_SIZE];
    uint8_t allocated[CG_BLOCKMAP_BYTES];
};

static void local_done(void *user, const struct cg_read_result *result) {
    struct local *local = user;
    local->done = true;
    local->status = result->status;
    local->sn = result->sn;
    if (result->data != NULL) {
        memcpy(local->data, result->data, sizeof(local->data));
    }
    if (result->allocated != NULL) {
        memcpy(local->allocated, result->allocated, sizeof(local->allocated));
    }
}

static void look(struct trio *trio, unsigned at, uint32_t copyset, uint32_t chunk,
                 struct local *out) {
    memset(out, 0, sizeof(*out));
    for (int kind = 0; kind < 2; kind++) {
        struct cg_query query = {
            .kind = kind == 0 ? CG_READ_DATA : CG_READ_STATUS,
            .copyset = trio_copyset(&trio->node[at], copyset),
            .chunk_id = chunk + 1,
            .size = TRIO_CHUNK_SIZE,
            .local = true,
            .done = local_done,
            .user = out,
        };
        do {
            out->done = false;
            cg_store_read(trio->node[at].store, &query);
            while (!out->done) {
                trio_step(trio);
            }
            trio_step(trio);
        } while (out->status == STATUS(OVERLOAD));
    }
}

static void compare_state(struct trio *trio, uint32_t at, uint32_t copyset) {
    struct cg_copyset *a = trio_copyset(&trio->node[0], copyset);
    struct cg_copyset *b = trio_copyset(&trio->node[at], copyset);
    size_t size = cg_dedup_size(&a->dedup);
    uint8_t *first = malloc(size);
    uint8_t *second = malloc(size);
    if (cg_dedup_size(&b->dedup) != size) {
        trio_fail(trio, "windows of different sizes");
    }
    cg_dedup_encode(&a->dedup, first);
    cg_dedup_encode(&b->dedup, second);
    // Clients, the one client's number, floor and how many it has; the rest has no order.
    if (memcmp(first, second, 4 + 24) != 0) {
        trio_fail(trio, "windows that differ");
    }
    if (cg_copyset_epoch(a, TRIO_VOLUME) != cg_copyset_epoch(b, TRIO_VOLUME) ||
        cg_copyset_epoch(a, TRIO_VOLUME) < trio->epoch[copyset]) {
        trio_fail(trio, "epochs that differ, or one that was acknowledged is lost");
    }
    free(first);
    free(second);
}

void trio_compare(struct trio *trio) {
    static struct local first;
    static struct local other;
    static const uint8_t zeros[TRIO_CHUNK_SIZE];
    for (uint32_t copyset = 0; copyset < TRIO_COPYSETS; copyset++) {
        for (uint32_t chunk = 0; chunk < TRIO_CHUNKS; chunk++) {
            look(trio, 0, copyset, chunk, &first);
            bool exists = first.status == STATUS(SUCCESS);
            if (memcmp(exists ? first.data : zeros, trio->chunk[copyset][chunk].data,
                       TRIO_CHUNK_SIZE) != 0) {
                trio_fail(trio, "an acknowledged mutation is lost, or one came twice");
            }
            for (unsigned at = 1; at < TRIO_NODES; at++) {
                look(trio, at, copyset, chunk, &other);
                if (other.status != first.status || other.sn != first.sn ||
                    memcmp(other.data, first.data, sizeof(other.data)) != 0 ||
                    memcmp(other.allocated, first.allocated, sizeof(other.allocated)) != 0) {
                    fprintf(stderr,
                            "copyset %u, chunk %u, node %u: status %d %d, sn %" PRIu64 " %" PRIu64
                            "\n",
                            copyset + 1, chunk + 1, at + 1, (int)first.status, (int)other.status,
                            first.sn, other.sn);
                    trio_fail(trio, "replicas differ");
                }
            }
        }
        for (unsigned at = 1; at < TRIO_NODES; at++) {
            compare_state(trio, at, copyset);
        }
    }
}
