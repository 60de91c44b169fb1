// SPDX-License-Identifier: BSD-3-Clause
//
// The way of committed entries into the chunk files. What is applied is not synced here: the log
// keeps it until a checkpoint has.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "chunkserver/store_internal.h"

#define STALL_RETRY_NS (100 * CG_NS_PER_MS)

static void apply_next(struct cg_op *op);

// ---- Ending

// Lets go of the operations at the log's front that are applied.
static void advance_applied(struct cg_copyset *copyset) {
    struct cg_store *store = copyset->store;
    uint64_t before = copyset->applied_index;
    while (!cg_list_empty(&copyset->unapplied)) {
        struct cg_op *op = CG_CONTAINER_OF(copyset->unapplied.next, struct cg_op, unapplied);
        if (!op->applied) {
            break;
        }
        cg_list_remove(&op->unapplied);
        copyset->unapplied_count--;
        if (store->disk_error == 0) {
            copyset->applied_index = op->index;
        }
        store->ops_parked--;
        cg_op_free(op);
    }
    if (copyset->applied_index != before) {
        if (copyset->applied_index >= copyset->recovery_end) {
            copyset->recovery_end = 0;
        }
        cg_copyset_log_applied(copyset->log, copyset->applied_index);
    }
    if (store->checkpoint.stage == CG_CHECKPOINT_CAPTURE) {
        cg_checkpoint_advance(store);
    }
}

void cg_op_announce(struct cg_op *op) {
    struct cg_chunk *chunk = op->chunk;
    cg_blockmap_set(chunk->applying, op->first, op->count);
    chunk->applying_count++;
    cg_local_slot_begin(chunk->slot, &chunk->slot_pending);
}

// The file has it, but what else was announced and waits for the same blocks.
static void withdraw(struct cg_op *op) {
    struct cg_chunk *chunk = op->chunk;
    chunk->changes++;
    cg_blockmap_clear(chunk->applying, op->first, op->count);
    chunk->applying_count--;
    if (chunk->decided > 0) {
        CG_LIST_FOREACH (node, &chunk->waiting) {
            const struct cg_op *other = CG_CONTAINER_OF(node, struct cg_op, node);
            if (other->stage == CG_OP_DECIDED) {
                cg_blockmap_set(chunk->applying, other->first, other->count);
            }
        }
    }
    cg_local_slot_end(chunk->slot, &chunk->slot_pending);
    cg_reads_pump(chunk);
}

void cg_op_applied(struct cg_op *op) {
    struct cg_copyset *copyset = op->request.copyset;
    if (op->file != NULL) {
        cg_chunk_file_unref(op->store, op->file);
        op->file = NULL;
    }
    if (op->effect) {
        withdraw(op);
    }
    cg_op_unclaim(op);
    op->applied = true;
    op->store->ops_parked++;
    // The data is not needed any more, even if an earlier operation is still on its way.
    cg_buffer_unref(op->buffer);
    cg_buffer_unref(op->scratch);
    cg_log_entry_unref(op->logged_entry);
    op->buffer = NULL;
    op->scratch = NULL;
    op->logged_entry = NULL;
    if (op->chunk != NULL) {
        cg_op_unlock(op);
    }
    advance_applied(copyset);
}

void cg_stall_arm(struct cg_store *store) {
    if (!cg_timer_armed(&store->stall_timer)) {
        cg_timer_arm(store->reactor, &store->stall_timer,
                     cg_reactor_now(store->reactor) + STALL_RETRY_NS);
    }
}

static void stall(struct cg_op *op, int error) {
    struct cg_store *store = op->store;
    if (!store->stall_told) {
        store->stall_told = true;
        cg_log(CG_LOG_ERROR, "cannot apply a logged write now: %s; new writes are refused",
               strerror(error));
    }
    store->stalled_count++;
    cg_stall_arm(store);
    cg_list_push_back(&store->stalled, &op->stalled);
    cg_ops_fail_waiting(op->chunk, STATUS(NOSPACE));
    cg_reads_fail(op->chunk, STATUS(OVERLOAD));
}

void cg_stall_timer(struct cg_timer *timer) {
    struct cg_store *store = CG_CONTAINER_OF(timer, struct cg_store, stall_timer);
    struct cg_list again;
    cg_list_init(&again);
    cg_list_splice_back(&again, &store->stalled);
    store->stalled_count = 0;
    struct cg_list chunks;
    cg_list_init(&chunks);
    cg_list_splice_back(&chunks, &store->unloadable);
    struct cg_list *node;
    while ((node = cg_list_pop_front(&chunks)) != NULL) {
        cg_chunk_reload(CG_CONTAINER_OF(node, struct cg_chunk, unloadable));
    }
    while ((node = cg_list_pop_front(&again)) != NULL) {
        apply_next(CG_CONTAINER_OF(node, struct cg_op, stalled));
    }
    if (store->stall_told && store->stalled_count == 0 && store->disk_error == 0) {
        store->stall_told = false;
        cg_log(CG_LOG_INFO, "there is space again: what was logged is applied");
    }
}

// A step failed: either there will be space later (the log keeps the entry), or the disk is done
// for.
void cg_step_failed(struct cg_op *op, int error, const char *what) {
    switch (error) {
    case ENOSPC:
    case EDQUOT:
        if (cg_store_make_room(op->store)) {
            apply_next(op);
        } else {
            stall(op, error);
        }
        break;
    case EMFILE:
    case ENFILE:
    case ENOMEM:
        stall(op, error);
        break;
    default:
        cg_store_retire(op->store, error, what);
        cg_op_applied(op);
        break;
    }
}

// ---- One step after the other

void cg_step_done(struct cg_op *op) {
    op->apply_step++;
    op->apply_done = 0;
    apply_next(op);
}

static void zero_next(struct cg_op *op) {
    const struct cg_entry *entry = &op->entry;
    if (op->apply_step == 0 && entry->length > 0) {
        if (entry->flags & CG_ENTRY_KEEP) {
            cg_step_write(op);
        } else {
            cg_step_punch(op);
        }
        return;
    }
    if (op->apply_step <= 1 && (entry->flags & CG_ENTRY_HEAD)) {
        op->apply_step = 1;
        cg_step_write(op);
        return;
    }
    if (op->apply_step <= 2 && (entry->flags & CG_ENTRY_TAIL)) {
        op->apply_step = 2;
        cg_step_write(op);
        return;
    }
    if (op->chunk->exists) {
        cg_step_note(op);
    }
    cg_op_applied(op);
}

static void apply_next(struct cg_op *op) {
    if (op->store->disk_error != 0 || op->request.copyset->gone) {
        cg_op_applied(op);
        return;
    }
    switch (op->entry.type) {
    case CG_ENTRY_WRITE:
        if (op->apply_step == 0) {
            cg_step_write(op);
            return;
        }
        cg_step_note(op);
        break;
    case CG_ENTRY_ZERO:
        zero_next(op);
        return;
    case CG_ENTRY_DELETE:
        if (op->apply_step == 0) {
            cg_step_delete(op);
            return;
        }
        break;
    case CG_ENTRY_EPOCH:
        break;
    }
    cg_op_applied(op);
}

void cg_op_apply(struct cg_op *op) {
    op->stage = CG_OP_APPLYING;
    cg_list_push_back(&op->store->to_apply, &op->stalled);
    cg_reactor_defer(op->store->reactor, &op->store->apply_work);
}

void cg_apply_work(struct cg_deferred *deferred) {
    struct cg_store *store = CG_CONTAINER_OF(deferred, struct cg_store, apply_work);
    struct cg_list *node;
    while ((node = cg_list_pop_front(&store->to_apply)) != NULL) {
        apply_next(CG_CONTAINER_OF(node, struct cg_op, stalled));
    }
}
