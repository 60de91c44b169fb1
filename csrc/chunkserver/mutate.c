// SPDX-License-Identifier: BSD-3-Clause
//
// The beginning and the end of a mutation: retries found, the range locked, waiting, answering.
#include <assert.h>
#include <stdlib.h>
#include <string.h>

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
    op->claimed = 0;
    op->freeing = false;
    op->file = NULL;
    op->close_there = false;
    op->entry.flags = 0;
    store->ops_active++;
    return op;
}

void cg_op_unclaim(struct cg_op *op) {
    op->store->claimed_bytes -= op->claimed;
    op->claimed = 0;
    op->store->freeing_count -= op->freeing ? 1 : 0;
    op->freeing = false;
}

void cg_op_free(struct cg_op *op) {
    cg_op_unclaim(op);
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

void cg_op_end(struct cg_op *op, cg_status status, uint32_t mismatch) {
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
    cg_op_start(op);
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
        cg_op_start(op);
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
