// SPDX-License-Identifier: BSD-3-Clause
//
// Committed entries, as the copyset's log gives them out: each is decided upon in the order of the
// log, which changes the windows and the epochs and answers whoever waits here, and then goes to
// the chunk files in the order that its range allows. The same on leaders, followers and at a
// start.
#include <errno.h>
#include <inttypes.h>

#include "base/log.h"
#include "chunkserver/store_internal.h"

// Entries of others that one copyset may have waiting to be applied: a chunk that cannot be written
// holds up its copyset, not all of them.
#define UNAPPLIED_MAX(store) ((store)->options.operations_max / 8 + 1)

// ---- Deciding

static cg_status raise_epoch(struct cg_op *op) {
    struct cg_copyset *copyset = op->request.copyset;
    struct cg_store *store = copyset->store;
    const struct cg_entry *entry = &op->entry;
    int result = cg_epoch_raise(&copyset->epochs, entry->file_id, entry->epoch);
    if (result == -ENOMEM) {
        cg_store_retire(store, ENOMEM, "raising an epoch");
    }
    if (store->share != NULL && !op->raising) {
        cg_local_share_epoch_raised(store->share);
    }
    cg_op_raise_end(op);
    if (store->options.events.epoch_raised != NULL) {
        store->options.events.epoch_raised(store->options.events.context, copyset, entry->file_id);
    }
    return result == 0 ? STATUS(SUCCESS) : STATUS(FAILURE_UNKNOWN);
}

// The same on every replica: depends on the entry and the replicated state only.
static cg_status decide(struct cg_op *op) {
    struct cg_copyset *copyset = op->request.copyset;
    const struct cg_entry *entry = &op->entry;
    op->effect = false;
    if (entry->type == CG_ENTRY_EPOCH) {
        return raise_epoch(op);
    }
    if ((entry->flags & CG_ENTRY_HAS_EPOCH) &&
        entry->epoch < cg_epoch_get(&copyset->epochs, entry->file_id)) {
        return STATUS(EPOCH_TOO_OLD);
    }
    if (entry->flags & CG_ENTRY_HAS_CLIENT) {
        int answer = cg_dedup_record(&copyset->dedup, entry->client_id, entry->sequence,
                                     entry->settled_below);
        if (answer < 0) {
            cg_store_retire(op->store, -answer, "remembering a request");
            return STATUS(DISK_FAIL);
        }
        if (answer != CG_DEDUP_NEW) {
            return answer == CG_DEDUP_SETTLED ? STATUS(SETTLED) : STATUS(SUCCESS);
        }
    }
    op->effect = true;
    return STATUS(SUCCESS);
}

static void enlist(struct cg_op *op) {
    struct cg_copyset *copyset = op->request.copyset;
    copyset->delivered_index = op->index;
    copyset->store->delivered++;
    cg_list_push_back(&copyset->unapplied, &op->unapplied);
    copyset->unapplied_count++;
}

// ---- Proposed here: the range is locked

static void own(struct cg_op *op) {
    struct cg_store *store = op->store;
    store->logging_bytes -= op->logged;
    op->logged = 0;
    if (store->disk_error != 0) {
        cg_op_end(op, STATUS(DISK_FAIL), 0);
        return;
    }
    enlist(op);
    cg_status status = decide(op);
    op->stage = CG_OP_APPLYING;
    if (op->effect) {
        cg_op_announce(op);
    }
    cg_op_answer(op, status);
    if (op->effect) {
        cg_op_apply(op);
    } else {
        cg_op_applied(op);
    }
}

void cg_proposal_failed(struct cg_log_proposal *proposal, int error) {
    struct cg_op *op = CG_CONTAINER_OF(proposal, struct cg_op, proposal);
    op->store->logging_bytes -= op->logged;
    op->logged = 0;
    op->index = 0;
    cg_op_end(op, error == -ESTALE ? STATUS(REDIRECTED) : STATUS(DISK_FAIL), 0);
}

// ---- Proposed elsewhere, or before the start

// The blocks that an entry writes; all of them for a deletion.
static void set_range(struct cg_op *op) {
    const struct cg_entry *entry = &op->entry;
    if (entry->type == CG_ENTRY_DELETE) {
        op->first = 0;
        op->count = op->store->format.chunk_size / CG_BLOCK_SIZE;
        return;
    }
    op->first = entry->offset / CG_BLOCK_SIZE;
    op->count = entry->length / CG_BLOCK_SIZE;
    if (entry->flags & CG_ENTRY_HEAD) {
        op->first--;
        op->count++;
    }
    op->count += (entry->flags & CG_ENTRY_TAIL) ? 1 : 0;
}

static void queue(struct cg_op *op) {
    if (cg_op_must_wait(op)) {
        op->stage = CG_OP_DECIDED;
        op->store->ops_decided++;
        op->chunk->decided++;
        cg_list_push_back(&op->chunk->waiting, &op->node);
        if (op->chunk->state == CG_CHUNK_BROKEN) {
            cg_deliver_unloadable(op->chunk);
        }
        return;
    }
    cg_op_lock(op);
    cg_op_apply(op);
}

// Takes an entry that has been decoded; `chunk` is NULL if it is about none.
static bool take(struct cg_copyset *copyset, struct cg_log_entry *entry,
                 const struct cg_entry *decoded, struct cg_chunk *chunk) {
    struct cg_op *op = cg_op_alloc(copyset->store);
    if (op == NULL) {
        return false;
    }
    op->entry = *decoded;
    op->request = (struct cg_mutation){
        .copyset = copyset, .chunk_id = decoded->chunk_id, .file_id = decoded->file_id};
    op->index = entry->index;
    op->logged_entry = cg_log_entry_ref(entry);
    op->payload_length = entry->payload_length;
    op->chunk = chunk;
    op->answered = true; // nobody waits for it here
    enlist(op);
    (void)decide(op);
    if (op->effect) {
        set_range(op);
        cg_op_announce(op);
        queue(op);
    } else {
        cg_op_applied(op);
    }
    return true;
}

// What the log says to itself counts as an entry and changes nothing.
static bool take_own(struct cg_copyset *copyset, const struct cg_log_entry *entry) {
    struct cg_store *store = copyset->store;
    struct cg_op *op = cg_op_alloc(store);
    if (op == NULL) {
        return false;
    }
    op->request = (struct cg_mutation){.copyset = copyset};
    op->index = entry->index;
    op->answered = true;
    enlist(op);
    cg_op_applied(op);
    if (entry->type == CG_ENTRY_CONFIG && store->options.events.role_changed != NULL) {
        store->options.events.role_changed(store->options.events.context, copyset);
    }
    return true;
}

static bool foreign(struct cg_copyset *copyset, struct cg_log_entry *entry) {
    struct cg_store *store = copyset->store;
    if (copyset->unapplied_count >= UNAPPLIED_MAX(store) || !cg_op_available(store)) {
        return false;
    }
    if (entry->type == CG_ENTRY_NOOP || entry->type == CG_ENTRY_CONFIG) {
        return take_own(copyset, entry);
    }
    struct cg_entry decoded;
    if (cg_entry_decode(entry->type, entry->meta, entry->meta_length, entry->payload_length,
                        store->format.chunk_size, &decoded) != 0) {
        cg_log(CG_LOG_ERROR,
               "entry %" PRIu64 " of copyset %" PRIu32 "-%" PRIu32
               " makes no sense to this program",
               entry->index, copyset->pool, copyset->id);
        cg_store_retire(store, EBADMSG, "reading the log");
        return true;
    }
    struct cg_chunk *chunk = NULL;
    if (decoded.type != CG_ENTRY_EPOCH) {
        bool recovering = entry->index <= copyset->recovery_end;
        // A predecessor that was killed may have made files here and not synced the folder.
        copyset->folder_dirty = copyset->folder_dirty || recovering;
        chunk = cg_chunk_get(copyset, decoded.chunk_id, recovering);
        if (chunk == NULL) {
            return false;
        }
    }
    if (!take(copyset, entry, &decoded, chunk)) {
        if (chunk != NULL) {
            cg_chunk_put(chunk);
        }
        return false;
    }
    return true;
}

bool cg_deliver(void *context, struct cg_log_entry *entry, struct cg_log_proposal *proposal) {
    struct cg_copyset *copyset = context;
    struct cg_store *store = copyset->store;
    if (proposal != NULL) {
        own(CG_CONTAINER_OF(proposal, struct cg_op, proposal));
    } else if (copyset->paused) {
        return false; // until cg_copyset_resume
    } else if (store->disk_error == 0) {
        store->delivering = true;
        bool taken = foreign(copyset, entry);
        store->delivering = false;
        if (!taken) {
            if (!cg_list_linked(&copyset->blocked)) {
                cg_list_push_back(&store->blocked, &copyset->blocked);
            }
            return false;
        }
    }
    cg_checkpoint_delivered(store);
    return true;
}

// ---- Waiting

void cg_deliver_unblock(struct cg_store *store) {
    if (!store->delivering && !cg_list_empty(&store->blocked)) {
        cg_reactor_defer(store->reactor, &store->resume_work);
    }
}

void cg_deliver_resume(struct cg_deferred *deferred) {
    struct cg_store *store = CG_CONTAINER_OF(deferred, struct cg_store, resume_work);
    struct cg_list again;
    cg_list_init(&again);
    cg_list_splice_back(&again, &store->blocked);
    struct cg_list *node;
    while ((node = cg_list_pop_front(&again)) != NULL) {
        cg_copyset_log_resume(CG_CONTAINER_OF(node, struct cg_copyset, blocked)->log);
    }
}

// Damaged metadata stays as it is until somebody replaces the file; other reasons pass.
void cg_deliver_unloadable(struct cg_chunk *chunk) {
    struct cg_store *store = chunk->copyset->store;
    if (store->disk_error != 0) {
        cg_deliver_give_up(chunk);
    } else if (chunk->load_status != STATUS(CRC_FAIL) && !cg_list_linked(&chunk->unloadable)) {
        cg_list_push_back(&store->unloadable, &chunk->unloadable);
        cg_stall_arm(store);
    }
}

void cg_deliver_give_up(struct cg_chunk *chunk) {
    struct cg_list ended;
    cg_list_init(&ended);
    CG_LIST_FOREACH_SAFE (node, following, &chunk->waiting) {
        if (CG_CONTAINER_OF(node, struct cg_op, node)->stage == CG_OP_DECIDED) {
            cg_list_remove(node);
            cg_list_push_back(&ended, node);
        }
    }
    chunk->refs++;
    struct cg_list *node;
    while ((node = cg_list_pop_front(&ended)) != NULL) {
        struct cg_op *op = CG_CONTAINER_OF(node, struct cg_op, node);
        op->store->ops_decided--;
        chunk->decided--;
        op->stage = CG_OP_APPLYING;
        cg_op_applied(op);
    }
    cg_chunk_put(chunk);
}

bool cg_copyset_recovered(struct cg_copyset *copyset) {
    if (copyset->recovery_end == 0) {
        return true;
    }
    if (copyset->log == NULL) {
        return false;
    }
    struct cg_copyset_log_status status;
    cg_copyset_log_status(copyset->log, &status);
    // What another leader made void since was never committed, and so never applied.
    if (status.last_index < copyset->recovery_end) {
        copyset->recovery_end = status.last_index;
    }
    if (copyset->applied_index >= copyset->recovery_end) {
        copyset->recovery_end = 0;
    }
    return copyset->recovery_end == 0;
}
