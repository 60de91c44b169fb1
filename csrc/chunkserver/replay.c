// SPDX-License-Identifier: BSD-3-Clause
//
// Start: what the log holds beyond the checkpoint is applied again, by the same code as ever.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "chunkserver/store_internal.h"

struct replay {
    struct cg_store *store;
    char *error;
    size_t error_size;
    uint64_t records;
};

static int refuse(struct replay *replay, int result, const struct cg_wal_record *record,
                  const char *why) {
    snprintf(replay->error, replay->error_size,
             "entry %" PRIu64 " of copyset %" PRIu32 "-%" PRIu32 " in the log: %s", record->index,
             (uint32_t)(record->group >> 32), (uint32_t)record->group, why);
    return result;
}

static void set_request(struct cg_op *op, struct cg_copyset *copyset) {
    op->request = (struct cg_mutation){
        .copyset = copyset,
        .chunk_id = op->entry.chunk_id,
        .file_id = op->entry.file_id,
    };
}

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

// Lets the reactor run until `op`, or the loading of its chunk, is through.
static int drive(struct cg_store *store) {
    if (store->disk_error != 0) {
        return -store->disk_error;
    }
    if (store->stalled_count > 0) {
        return -ENOSPC;
    }
    int result = cg_reactor_wait(store->reactor, UINT64_MAX);
    return result < 0 ? result : 0;
}

static int apply(struct replay *replay, struct cg_op *op, const struct cg_wal_record *record) {
    struct cg_store *store = replay->store;
    struct cg_copyset *copyset = op->request.copyset;
    if (op->entry.type != CG_ENTRY_EPOCH) {
        op->chunk = cg_chunk_get(copyset, op->entry.chunk_id);
        if (op->chunk == NULL) {
            cg_op_free(op);
            return refuse(replay, -ENOMEM, record, "no room for its chunk's metadata");
        }
        int result = 0;
        while (op->chunk->state == CG_CHUNK_LOADING && result == 0) {
            result = drive(store);
        }
        if (result != 0 || op->chunk->state != CG_CHUNK_READY) {
            cg_chunk_put(op->chunk);
            cg_op_free(op);
            if (result == 0) {
                result = store->disk_error != 0 ? -store->disk_error : -EBADMSG;
            }
            return refuse(replay, result, record, "its chunk's metadata cannot be read");
        }
        cg_blockmap_set(op->chunk->busy, op->first, op->count);
        cg_list_push_back(&op->chunk->inflight, &op->node);
    }
    cg_op_committed(op);
    while (copyset->applied_index < record->index) {
        int result = drive(store);
        if (result != 0) {
            return refuse(replay, result, record, strerror(-result));
        }
    }
    return 0;
}

static int replay_record(void *context, uint64_t lsn, const struct cg_wal_record *record,
                         const void *payload) {
    struct replay *replay = context;
    struct cg_store *store = replay->store;
    (void)lsn;
    struct cg_copyset *copyset = cg_copyset_of_group(store, record->group);
    if (copyset == NULL) {
        return refuse(replay, -EBADMSG, record, "its copyset has no folder");
    }
    if (record->index <= copyset->applied_index) {
        return 0; // covered by the checkpoint
    }
    if (record->index != copyset->replica.committed_index + 1) {
        return refuse(replay, -EBADMSG, record, "entries before it are missing");
    }
    struct cg_op *op = cg_op_alloc(store);
    if (op == NULL) {
        return refuse(replay, -ENOMEM, record, "out of memory");
    }
    if (cg_entry_decode(record->type, record->meta, record->meta_length, record->payload_length,
                        store->format.chunk_size, &op->entry) != 0) {
        cg_op_free(op);
        return refuse(replay, -EBADMSG, record, "its header makes no sense");
    }
    set_request(op, copyset);
    set_range(op);
    // Nobody writes to a payload once its entry is made.
    op->payload.iov_base = (void *)(uintptr_t)payload;
    op->payload.iov_len = record->payload_length;
    op->payload_length = record->payload_length;
    op->crcs = record->block_crcs;
    op->proposal.index = record->index;
    // A predecessor that was killed may have made files here and not synced the folder.
    copyset->folder_dirty = true;
    cg_replica_replayed(&copyset->replica, record->term, record->index);
    store->proposals++;
    replay->records++;
    return apply(replay, op, record);
}

static bool make_room(void *context) {
    return cg_store_make_room(context);
}

int cg_store_replay(struct cg_store *store, uint64_t from_lsn, char *error, size_t error_size) {
    struct replay replay = {.store = store, .error = error, .error_size = error_size};
    struct cg_wal_replay callbacks = {
        .record = replay_record, .context = &replay, .from_lsn = from_lsn};
    struct cg_wal_options options = {
        .segment_bytes = store->options.wal_segment_bytes,
        .capacity_bytes = store->options.wal_bytes,
        .keep_free_bytes = cg_reserve_missing(&store->reserve),
        .make_room = make_room,
        .room_context = store,
    };
    store->replaying = true;
    int result = cg_wal_open(store->disk, store->reactor, &options, &callbacks, &store->wal, error,
                             error_size);
    store->replaying = false;
    if (result != 0) {
        if (error[0] == '\0') {
            snprintf(error, error_size, "cannot open the log: %s", strerror(-result));
        }
        return result;
    }
    if (replay.records > 0) {
        cg_log(CG_LOG_INFO, "replayed %" PRIu64 " entries of the log", replay.records);
    }
    for (uint32_t i = 0; i < store->copyset_count; i++) {
        store->copysets[i]->replica.wal = store->wal;
        store->copysets[i]->replica.term++;
    }
    return 0;
}
