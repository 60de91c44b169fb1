// SPDX-License-Identifier: BSD-3-Clause
//
// The beginning and the end of a mutation: retries found, the range locked, waiting, answering.
// Ranges are given first come first served, to mutations from here and to committed entries alike.
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/store_internal.h"

bool cg_op_available(const struct cg_store *store) {
    return !cg_list_empty(&store->free_ops) || store->ops_made < store->options.operations_max;
}

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
    op->locked = false;
    op->answered = false;
    op->effect = false;
    op->applied = false;
    op->raising = false;
    op->mended = false;
    op->index = 0;
    op->logged_entry = NULL;
    op->payload = NULL;
    op->payload_length = 0;
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
    if (op->freeing) {
        op->freeing = false;
        op->store->freeing_count--;
        op->store->looked_ns = 0; // what it gave back counts for the next write
    }
}

void cg_op_free(struct cg_op *op) {
    cg_op_unclaim(op);
    assert(cg_list_empty(&op->attached) && !op->locked && !op->raising);
    cg_buffer_unref(op->buffer);
    cg_buffer_unref(op->scratch);
    cg_log_entry_unref(op->logged_entry);
    op->buffer = NULL;
    op->scratch = NULL;
    op->logged_entry = NULL;
    op->store->ops_active--;
    cg_list_push_front(&op->store->free_ops, &op->node);
    cg_deliver_unblock(op->store);
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
            op->locked = false;
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
            .status = cg_leadership_status(request->copyset, status),
            .index = index,
            .mismatch_offset = mismatch,
        };
        if (result.status == STATUS(REDIRECTED)) {
            result.leader = cg_copyset_leader(request->copyset);
        }
        request->done(request->user, &result);
    }
}

static void answer_all(struct cg_op *op, cg_status status, uint32_t mismatch) {
    assert(!op->answered);
    op->answered = true;
    uint64_t index = op->index != 0 ? op->index : cg_copyset_applied(op->request.copyset);
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

static void start(struct cg_op *op);

bool cg_op_must_wait(const struct cg_op *op) {
    const struct cg_chunk *chunk = op->chunk;
    if (chunk->state != CG_CHUNK_READY || cg_blockmap_any(chunk->busy, op->first, op->count)) {
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

void cg_op_lock(struct cg_op *op) {
    op->locked = true;
    cg_blockmap_set(op->chunk->busy, op->first, op->count);
    cg_list_push_back(&op->chunk->inflight, &op->node);
}

void cg_op_unlock(struct cg_op *op) {
    struct cg_chunk *chunk = op->chunk;
    if (op->locked) {
        op->locked = false;
        cg_list_remove(&op->node);
        cg_blockmap_clear(chunk->busy, op->first, op->count);
        cg_ops_pump(chunk);
    }
    op->chunk = NULL;
    cg_chunk_put(chunk);
}

void cg_op_raise_begin(struct cg_op *op) {
    if (op->store->share != NULL) {
        op->raising = true;
        cg_local_share_epoch_begin(op->store->share);
    }
}

void cg_op_raise_end(struct cg_op *op) {
    if (op->raising) {
        op->raising = false;
        cg_local_share_epoch_end(op->store->share);
    }
}

void cg_op_end(struct cg_op *op, cg_status status, uint32_t mismatch) {
    cg_op_raise_end(op);
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
                start(op);
                break;
            }
        }
    } while (chunk->repump && !cg_list_empty(&chunk->waiting));
    chunk->pumping = false;
    cg_chunk_put(chunk);
}

void cg_ops_fail_waiting(struct cg_chunk *chunk, cg_status status) {
    struct cg_list failed;
    cg_list_init(&failed);
    CG_LIST_FOREACH_SAFE (node, following, &chunk->waiting) {
        if (CG_CONTAINER_OF(node, struct cg_op, node)->stage == CG_OP_WAITING) {
            cg_list_remove(node);
            cg_list_push_back(&failed, node);
        }
    }
    chunk->refs++;
    struct cg_list *node;
    while ((node = cg_list_pop_front(&failed)) != NULL) {
        struct cg_op *op = CG_CONTAINER_OF(node, struct cg_op, node);
        if (!cg_op_await_mend(op, status, true)) {
            answer_all(op, status, 0);
            drop(op);
        }
    }
    cg_ops_pump(chunk);
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

// The range is free.
static void start(struct cg_op *op) {
    if (op->stage == CG_OP_DECIDED) {
        op->store->ops_decided--;
        op->chunk->decided--;
        cg_op_lock(op);
        cg_op_apply(op);
        return;
    }
    // While it waited, leadership may have been lost, or its first copy committed.
    op->term = op->request.copyset->term_led;
    if (op->term == 0) {
        cg_op_answer(op, op->store->disk_error != 0 ? STATUS(DISK_FAIL) : STATUS(REDIRECTED));
        drop(op);
    } else if (answered_by_window(op)) {
        drop(op);
    } else {
        cg_op_lock(op);
        cg_op_start(op);
    }
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

// This replica leads.
static void enter(struct cg_op *op) {
    struct cg_store *store = op->store;
    const struct cg_mutation *mutation = &op->request;
    if (answered_by_window(op)) {
        cg_op_free(op);
        return;
    }
    if (mutation->kind == CG_MUTATE_EPOCH) {
        op->term = mutation->copyset->term_led;
        cg_op_start(op);
        return;
    }
    set_range(op);
    struct cg_chunk *chunk = cg_chunk_get(mutation->copyset, mutation->chunk_id, false);
    if (chunk != NULL && chunk->state == CG_CHUNK_BROKEN) {
        op->chunk = chunk;
        if (cg_op_await_mend(op, chunk->load_status, true)) {
            return;
        }
    }
    if (chunk == NULL || chunk->state == CG_CHUNK_BROKEN) {
        answer_all(op, chunk == NULL ? STATUS(OVERLOAD) : chunk->load_status, 0);
        op->chunk = chunk;
        drop(op);
        return;
    }
    op->chunk = chunk;
    if (!cg_op_must_wait(op)) {
        start(op);
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

static void refuse(struct cg_op *op, cg_status status) {
    answer_all(op, status, 0);
    cg_op_free(op);
}

void cg_op_released(struct cg_op *op) {
    if (op->store->disk_error != 0) {
        refuse(op, STATUS(DISK_FAIL));
    } else if (cg_leadership_gate(op->request.copyset) == CG_GATE_OPEN) {
        enter(op);
    } else {
        refuse(op, STATUS(REDIRECTED));
    }
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
    if (store->disk_error == 0 && cg_leadership_gate(mutation->copyset) == CG_GATE_HOLD) {
        cg_leadership_hold(op);
    } else {
        cg_op_released(op);
    }
}
