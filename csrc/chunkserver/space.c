// SPDX-License-Identifier: BSD-3-Clause
//
// The disk's free space: what may be promised to new blocks, and what happens when there is none.
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "chunkserver/store_internal.h"

void cg_store_look_at_space(struct cg_store *store) {
    uint64_t free_bytes;
    uint64_t total_bytes;
    int result = store->disk->ops->space(store->disk, &free_bytes, &total_bytes);
    if (result != 0) {
        cg_log(CG_LOG_WARNING, "cannot ask for the disk's free space: %s", strerror(-result));
        return;
    }
    store->looked_ns = cg_reactor_now(store->reactor);
    store->free_bytes = free_bytes;
    store->total_bytes = total_bytes;
}

uint64_t cg_store_available(const struct cg_store *store) {
    return store->free_bytes + store->reserve.held_bytes;
}

static bool is_whole(const struct cg_store *store) {
    return store->reserve.held_bytes == store->reserve.full_bytes;
}

bool cg_store_short_of_space(const struct cg_store *store) {
    return !is_whole(store) || cg_store_available(store) < store->options.reserve_bytes;
}

bool cg_store_make_room(struct cg_store *store) {
    if (!cg_reserve_give(&store->reserve)) {
        return false;
    }
    if (!store->reserve_told) {
        store->reserve_told = true;
        cg_log(CG_LOG_WARNING, "the disk is full: using the reserve for what cannot wait");
    }
    return true;
}

static void note_reserve(struct cg_store *store, int result) {
    cg_reserve_measure(&store->reserve);
    cg_store_look_at_space(store);
    if (is_whole(store) && store->reserve_told) {
        store->reserve_told = false;
        cg_log(CG_LOG_INFO, "there is space again: the reserve is whole");
    }
    if (result == -EOPNOTSUPP || result == -ENOSYS) {
        cg_log(CG_LOG_WARNING, "the file system cannot allocate files: no reserve is kept");
        store->reserve.full_bytes = store->reserve.held_bytes;
    } else if (result < 0 && result != -ENOSPC && result != -EDQUOT) {
        cg_store_retire(store, -result, "allocating the reserve");
    }
}

static void extend_call(struct cg_file_op *op) {
    struct cg_store *store = CG_CONTAINER_OF(op, struct cg_store, reserve_op);
    op->result = cg_reserve_extend(&store->reserve, store->reserve_target);
}

static void extend_done(struct cg_file_op *op) {
    struct cg_store *store = CG_CONTAINER_OF(op, struct cg_store, reserve_op);
    store->file_ops--;
    store->reserve_growing = false;
    note_reserve(store, (int)op->result);
}

// True if the file may grow now, to store->reserve_target.
static bool may_grow(struct cg_store *store) {
    store->reserve_target =
        cg_reserve_target(&store->reserve, store->free_bytes, store->claimed_bytes);
    return store->reserve_target > store->reserve.held_bytes;
}

static void tend_log(struct cg_store *store) {
    cg_wal_tend(store->wal, cg_reserve_missing(&store->reserve), cg_reserve_low(&store->reserve));
}

void cg_store_tend_space(struct cg_store *store) {
    cg_store_look_at_space(store);
    tend_log(store);
    if (store->disk_error != 0 || store->reserve_growing || !may_grow(store)) {
        return;
    }
    int result = cg_reserve_make(&store->reserve);
    if (result < 0) {
        note_reserve(store, result);
        return;
    }
    store->reserve_growing = true;
    store->file_ops++;
    store->reserve_op = (struct cg_file_op){
        .opcode = CG_FILE_CALL, .fd = -1, .call = extend_call, .done = extend_done};
    store->disk->ops->submit(store->disk, &store->reserve_op);
}

// A log without a spare segment could not log the trims and deletions that free some space, nor
// begin at the next start. What was replayed is saved, so that its segments can be used again.
static int find_spare(struct cg_store *store) {
    if (cg_wal_has_spare(store->wal)) {
        return 0;
    }
    cg_store_checkpoint(store);
    // Idle and not through: it waits for entries that cannot be applied now.
    while (cg_store_checkpointing(store) && !cg_store_idle(store)) {
        int result = cg_reactor_wait(store->reactor, UINT64_MAX);
        if (result < 0) {
            return result;
        }
    }
    if (store->disk_error != 0) {
        return -store->disk_error;
    }
    int result = cg_wal_has_spare(store->wal) ? 0 : cg_wal_make_spare(store->wal);
    if (result == -ENOSPC || result == -EDQUOT) {
        cg_log(CG_LOG_ERROR, "the disk is full: no space for a second segment of the log; "
                             "nothing can be written or freed until there is");
        return 0;
    }
    return result;
}

int cg_store_settle_space(struct cg_store *store) {
    int result = find_spare(store);
    if (result < 0) {
        return result;
    }
    tend_log(store);
    cg_store_look_at_space(store);
    if (may_grow(store)) {
        result = cg_reserve_make(&store->reserve);
        note_reserve(store, result < 0 ? result
                                       : cg_reserve_extend(&store->reserve, store->reserve_target));
        tend_log(store);
    }
    return store->disk_error != 0 ? -store->disk_error : 0;
}
