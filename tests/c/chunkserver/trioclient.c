// SPDX-License-Identifier: BSD-3-Clause
//
// The client of three stores, and what it knows that they must hold.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "chunkserver/store_internal.h"
#include "mutated.h"
#include "triomodel.h"

#define CLIENT 99U

static void free_op(struct trio_op *op) {
    free(op->data);
    memset(op, 0, sizeof(*op));
}

void trio_drop_mutations(struct trio *trio) {
    for (unsigned i = 0; i < TRIO_OPS; i++) {
        free_op(&trio->op[i]);
    }
    for (unsigned i = 0; i < TRIO_HISTORY; i++) {
        free_op(&trio->history[i]);
    }
}

// ---- What a mutation does

static void apply_to(struct trio_chunk *chunk, const struct trio_op *op) {
    if (mutated_bytes(chunk->data, sizeof(chunk->data), &op->mutation, op->data)) {
        chunk->version++;
    }
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

void trio_send_mutations(struct trio *trio) {
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
    trio_send_mutations(trio);
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
