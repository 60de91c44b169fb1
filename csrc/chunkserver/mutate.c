// SPDX-License-Identifier: BSD-3-Clause
//
// The way of a mutation up to the log: lock the range, fill up the edge blocks, compare, propose.
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "chunkserver/store_internal.h"

// What a record takes in the log besides its payload, at most: its share of a batch's header
// region.
#define RECORD_OVERHEAD 8192U

struct cg_op *cg_op_alloc(struct cg_store *store) {
    struct cg_list *node = cg_list_pop_front(&store->free_ops);
    struct cg_op *op;
    if (node != NULL) {
        op = CG_CONTAINER_OF(node, struct cg_op, node);
    } else {
        if (store->ops_made >= store->options.operations_max) {
            return NULL;
        }
        op = calloc(1, sizeof(*op));
        if (op == NULL) {
            return NULL;
        }
        store->ops_made++;
        cg_list_init(&op->node);
        cg_list_init(&op->unapplied);
        cg_list_init(&op->attached);
        cg_list_init(&op->stalled);
    }
    op->store = store;
    op->chunk = NULL;
    op->stage = CG_OP_WAITING;
    op->answered = false;
    op->effect = false;
    op->applied = false;
    op->payload_length = 0;
    op->crcs = op->own_crcs;
    op->buffer = NULL;
    op->scratch = NULL;
    op->merge_step = 0;
    op->apply_step = 0;
    op->apply_done = 0;
    op->logged = 0;
    op->file = NULL;
    op->close_there = false;
    op->entry.flags = 0;
    store->ops_active++;
    return op;
}

void cg_op_free(struct cg_op *op) {
    assert(cg_list_empty(&op->attached));
    cg_buffer_unref(op->buffer);
    cg_buffer_unref(op->scratch);
    op->buffer = NULL;
    op->scratch = NULL;
    op->store->ops_active--;
    cg_list_push_front(&op->store->free_ops, &op->node);
}

void cg_ops_destroy(struct cg_store *store) {
    // What waits for space stays in the log.
    for (uint32_t i = 0; i < store->copyset_count; i++) {
        struct cg_list *node;
        while ((node = cg_list_pop_front(&store->copysets[i]->unapplied)) != NULL) {
            struct cg_op *op = CG_CONTAINER_OF(node, struct cg_op, unapplied);
            if (op->file != NULL) {
                cg_chunk_file_unref(store, op->file);
            }
            cg_list_remove(&op->node);
            cg_op_free(op);
        }
    }
    struct cg_list *node;
    while ((node = cg_list_pop_front(&store->free_ops)) != NULL) {
        free(CG_CONTAINER_OF(node, struct cg_op, node));
    }
}

static void answer_one(const struct cg_mutation *request, cg_status status, uint64_t index,
                       uint32_t mismatch) {
    if (request->done != NULL) {
        struct cg_mutation_result result = {
            .status = status, .index = index, .mismatch_offset = mismatch};
        request->done(request->user, &result);
    }
}

static void answer_all(struct cg_op *op, cg_status status, uint32_t mismatch) {
    assert(!op->answered);
    op->answered = true;
    uint64_t index =
        op->stage >= CG_OP_LOGGING ? op->proposal.index : cg_copyset_applied(op->request.copyset);
    answer_one(&op->request, status, index, mismatch);
    struct cg_list *node;
    while ((node = cg_list_pop_front(&op->attached)) != NULL) {
        struct cg_op *retry = CG_CONTAINER_OF(node, struct cg_op, node);
        answer_one(&retry->request, status, index, mismatch);
        cg_op_free(retry);
    }
}

void cg_op_answer(struct cg_op *op, cg_status status) {
    answer_all(op, status, 0);
}

// ---- Range locks

static bool overlaps(const struct cg_op *a, const struct cg_op *b) {
    return a->first < b->first + b->count && b->first < a->first + a->count;
}

// A retry of a request that is still under way waits for that one's answer.
static bool attach_to(struct cg_list *list, struct cg_op *op) {
    CG_LIST_FOREACH (node, list) {
        struct cg_op *other = CG_CONTAINER_OF(node, struct cg_op, node);
        if (other->request.has_client && !other->answered &&
            other->request.client_id == op->request.client_id &&
            other->request.sequence == op->request.sequence) {
            cg_list_push_back(&other->attached, &op->node);
            return true;
        }
    }
    return false;
}

static void lock_and_start(struct cg_op *op);

static bool must_wait(const struct cg_op *op) {
    const struct cg_chunk *chunk = op->chunk;
    if (chunk->state == CG_CHUNK_LOADING || cg_blockmap_any(chunk->busy, op->first, op->count)) {
        return true;
    }
    CG_LIST_FOREACH (node, &chunk->waiting) {
        if (overlaps(op, CG_CONTAINER_OF(node, struct cg_op, node))) {
            return true;
        }
    }
    return false;
}

// Lets go of an operation that was never logged.
static void drop(struct cg_op *op) {
    struct cg_chunk *chunk = op->chunk;
    cg_op_free(op);
    if (chunk != NULL) {
        cg_chunk_put(chunk);
    }
}

void cg_op_unlock(struct cg_op *op) {
    struct cg_chunk *chunk = op->chunk;
    cg_list_remove(&op->node);
    cg_blockmap_clear(chunk->busy, op->first, op->count);
    cg_ops_pump(chunk);
    op->chunk = NULL;
    cg_chunk_put(chunk);
}

// Ends an operation that holds its range but was not committed.
static void end(struct cg_op *op, cg_status status, uint32_t mismatch) {
    answer_all(op, status, mismatch);
    if (op->chunk != NULL) {
        cg_op_unlock(op);
    }
    cg_op_free(op);
}

void cg_ops_pump(struct cg_chunk *chunk) {
    if (chunk->pumping) {
        chunk->repump = true;
        return;
    }
    if (cg_list_empty(&chunk->waiting) || chunk->state != CG_CHUNK_READY) {
        return;
    }
    chunk->pumping = true;
    chunk->refs++;
    do {
        chunk->repump = false;
        uint8_t taken[CG_BLOCKMAP_BYTES];
        memcpy(taken, chunk->busy, sizeof(taken));
        CG_LIST_FOREACH (node, &chunk->waiting) {
            struct cg_op *op = CG_CONTAINER_OF(node, struct cg_op, node);
            bool free = !cg_blockmap_any(taken, op->first, op->count);
            cg_blockmap_set(taken, op->first, op->count);
            if (free) {
                // Starting may change the list: look again from its front.
                cg_list_remove(&op->node);
                chunk->repump = true;
                lock_and_start(op);
                break;
            }
        }
    } while (chunk->repump && !cg_list_empty(&chunk->waiting));
    chunk->pumping = false;
    cg_chunk_put(chunk);
}

void cg_ops_fail_waiting(struct cg_chunk *chunk, cg_status status) {
    struct cg_list *node;
    chunk->refs++;
    while ((node = cg_list_pop_front(&chunk->waiting)) != NULL) {
        struct cg_op *op = CG_CONTAINER_OF(node, struct cg_op, node);
        answer_all(op, status, 0);
        drop(op);
    }
    cg_chunk_put(chunk);
}

// ---- Into the log

static void fill_entry(struct cg_op *op, enum cg_entry_type type, uint32_t first, uint32_t count) {
    const struct cg_mutation *request = &op->request;
    op->entry.type = type;
    op->entry.flags |= (request->has_epoch ? CG_ENTRY_HAS_EPOCH : 0U) |
                       (request->has_client ? CG_ENTRY_HAS_CLIENT : 0U);
    op->entry.chunk_id = request->chunk_id;
    op->entry.file_id = request->file_id;
    op->entry.epoch = request->epoch;
    op->entry.sn = request->sn;
    op->entry.client_id = request->client_id;
    op->entry.sequence = request->sequence;
    op->entry.settled_below = request->settled_below;
    op->entry.offset = first * CG_BLOCK_SIZE;
    op->entry.length = count * CG_BLOCK_SIZE;
}

static void committed(struct cg_proposal *proposal, int status) {
    struct cg_op *op = CG_CONTAINER_OF(proposal, struct cg_op, proposal);
    struct cg_store *store = op->store;
    store->logging_bytes -= op->logged;
    if (status != 0) {
        cg_store_retire(store, -status, "writing the log");
    }
    if (store->disk_error != 0) {
        end(op, STATUS(DISK_FAIL), 0);
        return;
    }
    cg_op_committed(op);
}

static bool new_blocks(const struct cg_op *op) {
    if (op->request.kind != CG_MUTATE_WRITE && op->request.kind != CG_MUTATE_COMPARE_AND_WRITE &&
        !op->request.no_hole) {
        return false;
    }
    return !op->chunk->exists ||
           cg_blockmap_count(op->chunk->slot->allocated, op->first, op->count) < op->count;
}

// SUCCESS, or why the entry cannot be logged now.
static cg_status admit(struct cg_op *op) {
    struct cg_store *store = op->store;
    if (store->disk_error != 0) {
        return STATUS(DISK_FAIL);
    }
    if (op->chunk != NULL && op->request.sn != 0 && op->request.sn < op->chunk->sn) {
        return STATUS(BACKWARD);
    }
    if (op->chunk != NULL && new_blocks(op) &&
        (store->stalled_count > 0 || store->free_bytes < store->options.reserve_bytes +
                                                             store->logging_bytes +
                                                             (uint64_t)op->count * CG_BLOCK_SIZE)) {
        return STATUS(NOSPACE);
    }
    op->logged = op->payload_length + RECORD_OVERHEAD;
    if (cg_wal_used(store->wal) + store->logging_bytes + op->logged > cg_wal_capacity(store->wal)) {
        op->logged = 0;
        cg_store_checkpoint(store);
        return STATUS(OVERLOAD);
    }
    return STATUS(SUCCESS);
}

// Logs the entry; op->payload and op->crcs are set if there is a payload.
static void propose(struct cg_op *op) {
    struct cg_store *store = op->store;
    cg_status status = admit(op);
    if (status != STATUS(SUCCESS)) {
        end(op, status, 0);
        return;
    }
    store->logging_bytes += op->logged;
    store->proposals++;
    if (op->chunk != NULL && op->request.sn > op->chunk->sn) {
        op->chunk->sn = op->request.sn;
    }
    cg_entry_encode(&op->entry, op->meta);
    op->stage = CG_OP_LOGGING;
    op->proposal.committed = committed;
    op->proposal.append.record = (struct cg_wal_record){
        .type = op->entry.type,
        .meta = op->meta,
        .meta_length = sizeof(op->meta),
        .payload_length = op->payload_length,
        .block_crcs = op->payload_length > 0 ? op->crcs : NULL,
    };
    op->proposal.append.payload = &op->payload;
    op->proposal.append.payload_count = op->payload_length > 0 ? 1 : 0;
    cg_replica_propose(&op->request.copyset->replica, &op->proposal);
}

static void set_payload(struct cg_op *op, uint8_t *data, uint32_t length) {
    op->payload = (struct iovec){data, length};
    op->payload_length = length;
    const struct cg_mutation *request = &op->request;
    if (request->has_crc && length == CG_BLOCK_SIZE && request->size == CG_BLOCK_SIZE &&
        request->offset % CG_BLOCK_SIZE == 0 && request->kind == CG_MUTATE_WRITE) {
        op->own_crcs[0] = request->crc; // the data's CRC is the block's
        return;
    }
    for (uint32_t i = 0; i < length / CG_BLOCK_SIZE; i++) {
        op->own_crcs[i] = cg_crc32c(0, data + (size_t)i * CG_BLOCK_SIZE, CG_BLOCK_SIZE);
    }
}

// ---- Edge blocks

// Bytes of the first block in front of the range, and of the last block behind it.
static uint32_t head_bytes(const struct cg_op *op) {
    return op->request.offset % CG_BLOCK_SIZE;
}

static uint32_t tail_bytes(const struct cg_op *op) {
    uint32_t end_in_block = (op->request.offset + op->request.size) % CG_BLOCK_SIZE;
    return end_in_block == 0 ? 0 : CG_BLOCK_SIZE - end_in_block;
}

static uint8_t *request_data(const struct cg_op *op) {
    return op->buffer->data + op->request.data_offset;
}

static void log_write(struct cg_op *op) {
    fill_entry(op, CG_ENTRY_WRITE, op->first, op->count);
    set_payload(op, request_data(op) - head_bytes(op), op->count * CG_BLOCK_SIZE);
    propose(op);
}

static bool block_is_hole(const struct cg_op *op, uint32_t block) {
    return !op->chunk->exists || !cg_blockmap_test(op->chunk->slot->allocated, block);
}

// The edge blocks of a ZERO are in scratch, the first at 0, the last (if another one) at one block.
static void log_zero_edges(struct cg_op *op) {
    uint8_t *scratch = op->scratch->data;
    uint32_t head = head_bytes(op);
    uint32_t tail = tail_bytes(op);
    bool one = op->count == 1;
    bool keep = op->request.no_hole;
    if (head != 0) {
        uint32_t length = one ? op->request.size : CG_BLOCK_SIZE - head;
        memset(scratch + head, 0, length);
    }
    if (tail != 0 && !(one && head != 0)) {
        memset(scratch + (one ? 0 : CG_BLOCK_SIZE), 0, CG_BLOCK_SIZE - tail);
    }
    // A hole is zeros already.
    bool want_head = head != 0 && (keep || !block_is_hole(op, op->first));
    bool want_tail =
        tail != 0 && !(one && head != 0) && (keep || !block_is_hole(op, op->first + op->count - 1));
    uint32_t first = op->first + (head != 0 ? 1 : 0);
    uint32_t last = op->first + op->count - (tail != 0 ? 1 : 0);
    uint32_t middle = last > first ? last - first : 0;
    uint8_t *tail_data = one ? scratch : scratch + CG_BLOCK_SIZE;
    if (middle == 0 && (want_head || want_tail)) {
        // No whole block inside: what is left is a write of the merged edges.
        uint32_t from = want_head ? op->first : op->first + op->count - 1;
        uint32_t count = (want_head ? 1U : 0U) + (want_tail ? 1U : 0U);
        fill_entry(op, CG_ENTRY_WRITE, from, count);
        set_payload(op, want_head ? scratch : tail_data, count * CG_BLOCK_SIZE);
    } else {
        op->entry.flags |= (keep ? CG_ENTRY_KEEP : 0U) | (want_head ? CG_ENTRY_HEAD : 0U) |
                           (want_tail ? CG_ENTRY_TAIL : 0U);
        fill_entry(op, CG_ENTRY_ZERO, middle > 0 ? first : op->first, middle);
        uint32_t blocks = (want_head ? 1U : 0U) + (want_tail ? 1U : 0U);
        if (blocks > 0) {
            set_payload(op, want_head ? scratch : tail_data, blocks * CG_BLOCK_SIZE);
        }
    }
    propose(op);
}

static void merge_next(struct cg_op *op);

static void merge_read_done(struct cg_block_read *read, cg_status status) {
    struct cg_op *op = CG_CONTAINER_OF(read, struct cg_op, read);
    if (status != STATUS(SUCCESS)) {
        end(op, status, 0);
        return;
    }
    op->merge_step++;
    merge_next(op);
}

static void read_blocks(struct cg_op *op, uint32_t first, uint32_t count, uint8_t *into) {
    op->read.chunk = op->chunk;
    op->read.first = first;
    op->read.count = count;
    op->read.data = into;
    op->read.done = merge_read_done;
    cg_block_read_start(&op->read);
}

// Fills up a write's first and last block from `head_block` and `tail_block`.
static void merge_write(struct cg_op *op, const uint8_t *head_block, const uint8_t *tail_block) {
    uint32_t head = head_bytes(op);
    uint32_t tail = tail_bytes(op);
    uint8_t *data = request_data(op);
    if (head != 0) {
        memcpy(data - head, head_block, head);
    }
    if (tail != 0) {
        memcpy(data + op->request.size, tail_block + CG_BLOCK_SIZE - tail, tail);
    }
}

static void compare_and_log(struct cg_op *op) {
    const uint8_t *stored = op->scratch->data;
    const uint8_t *expected = request_data(op) - op->request.size;
    uint32_t head = head_bytes(op);
    if (memcmp(stored + head, expected, op->request.size) != 0) {
        uint32_t at = 0;
        while (stored[head + at] == expected[at]) {
            at++;
        }
        end(op, STATUS(MISCOMPARE), at);
        return;
    }
    merge_write(op, stored, stored + (size_t)(op->count - 1) * CG_BLOCK_SIZE);
    log_write(op);
}

static void merged(struct cg_op *op) {
    const uint8_t *scratch = op->scratch->data;
    switch (op->request.kind) {
    case CG_MUTATE_WRITE:
        merge_write(op, scratch, op->count == 1 ? scratch : scratch + CG_BLOCK_SIZE);
        log_write(op);
        break;
    case CG_MUTATE_COMPARE_AND_WRITE:
        compare_and_log(op);
        break;
    default:
        log_zero_edges(op);
        break;
    }
}

// Step 0 reads the first block, step 1 the last one; a comparison reads all at step 0.
static void merge_next(struct cg_op *op) {
    if (op->merge_step == 0) {
        if (op->request.kind == CG_MUTATE_COMPARE_AND_WRITE) {
            op->merge_step = 1;
            read_blocks(op, op->first, op->count, op->scratch->data);
            return;
        }
        if (head_bytes(op) != 0 || (op->count == 1 && tail_bytes(op) != 0)) {
            read_blocks(op, op->first, 1, op->scratch->data);
            return;
        }
        op->merge_step = 1;
    }
    if (op->merge_step == 1) {
        if (op->count > 1 && tail_bytes(op) != 0) {
            read_blocks(op, op->first + op->count - 1, 1, op->scratch->data + CG_BLOCK_SIZE);
            return;
        }
    }
    merged(op);
}

static void start_merge(struct cg_op *op) {
    size_t length = 2 * (size_t)CG_BLOCK_SIZE;
    if (op->request.kind == CG_MUTATE_COMPARE_AND_WRITE) {
        length = (size_t)op->count * CG_BLOCK_SIZE;
    }
    op->scratch = cg_buffer_alloc(op->store->pool, length);
    if (op->scratch == NULL) {
        end(op, STATUS(OVERLOAD), 0);
        return;
    }
    op->stage = CG_OP_MERGING;
    merge_next(op);
}

static void start_trim(struct cg_op *op) {
    uint32_t first = op->first + (head_bytes(op) != 0 ? 1 : 0);
    uint32_t last = op->first + op->count - (tail_bytes(op) != 0 ? 1 : 0);
    fill_entry(op, CG_ENTRY_ZERO, last > first ? first : op->first,
               last > first ? last - first : 0);
    propose(op);
}

static void start(struct cg_op *op) {
    bool aligned = head_bytes(op) == 0 && tail_bytes(op) == 0;
    switch (op->request.kind) {
    case CG_MUTATE_WRITE:
        if (aligned) {
            log_write(op);
        } else {
            start_merge(op);
        }
        break;
    case CG_MUTATE_COMPARE_AND_WRITE:
        start_merge(op);
        break;
    case CG_MUTATE_ZERO:
        if (aligned) {
            op->entry.flags |= op->request.no_hole ? CG_ENTRY_KEEP : 0U;
            fill_entry(op, CG_ENTRY_ZERO, op->first, op->count);
            propose(op);
        } else {
            start_merge(op);
        }
        break;
    case CG_MUTATE_TRIM:
        start_trim(op);
        break;
    case CG_MUTATE_DELETE:
        if (!op->chunk->exists && !op->request.has_client) {
            end(op, STATUS(SUCCESS), 0);
            break;
        }
        fill_entry(op, CG_ENTRY_DELETE, 0, 0);
        propose(op);
        break;
    case CG_MUTATE_EPOCH:
        fill_entry(op, CG_ENTRY_EPOCH, 0, 0);
        propose(op);
        break;
    }
}

// ---- The way in

// What the replicated state says of a request already now; it is asked again at commit.
static bool answered_by_window(struct cg_op *op) {
    const struct cg_mutation *request = &op->request;
    if (!request->has_client) {
        return false;
    }
    switch (cg_dedup_check(&request->copyset->dedup, request->client_id, request->sequence)) {
    case CG_DEDUP_NEW:
        return false;
    case CG_DEDUP_DONE:
        cg_op_answer(op, STATUS(SUCCESS));
        break;
    case CG_DEDUP_SETTLED:
        cg_op_answer(op, STATUS(SETTLED));
        break;
    case CG_DEDUP_FULL:
        cg_op_answer(op, STATUS(OVERLOAD));
        break;
    }
    return true;
}

static void lock_and_start(struct cg_op *op) {
    struct cg_chunk *chunk = op->chunk;
    // While it waited, its first copy may have been committed.
    if (answered_by_window(op)) {
        drop(op);
        return;
    }
    cg_blockmap_set(chunk->busy, op->first, op->count);
    cg_list_push_back(&chunk->inflight, &op->node);
    start(op);
}

static void set_range(struct cg_op *op) {
    const struct cg_mutation *request = &op->request;
    if (request->kind == CG_MUTATE_DELETE || request->size == 0) {
        op->first = 0;
        op->count = op->store->format.chunk_size / CG_BLOCK_SIZE;
        return;
    }
    op->first = request->offset / CG_BLOCK_SIZE;
    op->count = (request->offset + request->size - 1) / CG_BLOCK_SIZE - op->first + 1;
}

void cg_store_mutate(struct cg_store *store, const struct cg_mutation *mutation) {
    struct cg_op *op = cg_op_alloc(store);
    if (op == NULL) {
        answer_one(mutation, STATUS(OVERLOAD), cg_copyset_applied(mutation->copyset), 0);
        return;
    }
    op->request = *mutation;
    if (mutation->buffer != NULL) {
        op->buffer = cg_buffer_ref(mutation->buffer);
    }
    if (store->disk_error != 0) {
        answer_all(op, STATUS(DISK_FAIL), 0);
        cg_op_free(op);
        return;
    }
    if (answered_by_window(op)) {
        cg_op_free(op);
        return;
    }
    if (mutation->kind == CG_MUTATE_EPOCH) {
        start(op);
        return;
    }
    set_range(op);
    struct cg_chunk *chunk = cg_chunk_get(mutation->copyset, mutation->chunk_id);
    if (chunk == NULL || chunk->state == CG_CHUNK_BROKEN) {
        answer_all(op, chunk == NULL ? STATUS(OVERLOAD) : chunk->load_status, 0);
        op->chunk = chunk;
        drop(op);
        return;
    }
    op->chunk = chunk;
    if (!must_wait(op)) {
        lock_and_start(op);
        return;
    }
    if (mutation->has_client &&
        (attach_to(&chunk->inflight, op) || attach_to(&chunk->waiting, op))) {
        op->chunk = NULL;
        cg_chunk_put(chunk);
        return;
    }
    if (store->stalled_count > 0) {
        answer_all(op, STATUS(NOSPACE), 0);
        drop(op);
        return;
    }
    cg_list_push_back(&chunk->waiting, &op->node);
}
