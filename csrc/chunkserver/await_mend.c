// SPDX-License-Identifier: BSD-3-Clause
//
// Clients' requests that meet damage wait until it is mended from another replica, and then begin
// anew; once. Where nobody can help they fail.
#include <errno.h>

#include "chunkserver/store_internal.h"

static bool is_mendable(const struct cg_store *store, cg_status status) {
    return status == STATUS(CRC_FAIL) && store->options.events.mend != NULL &&
           store->disk_error == 0;
}

static void start(struct cg_store *store, struct cg_mend *mend) {
    store->options.events.mend(store->options.events.context, mend);
}

static void op_mended(struct cg_mend *mend, int status) {
    struct cg_op *op = CG_CONTAINER_OF(mend, struct cg_op, mend);
    if (status != 0) {
        cg_op_end(op, STATUS(CRC_FAIL), 0);
    } else {
        cg_op_released(op);
    }
}

bool cg_op_await_mend(struct cg_op *op, cg_status status, bool metadata) {
    if (op->mended || !is_mendable(op->store, status)) {
        return false;
    }
    op->mended = true;
    op->mend = (struct cg_mend){
        .copyset = op->request.copyset,
        .chunk_id = op->request.chunk_id,
        .first = op->first,
        .count = op->count,
        .metadata = metadata,
        .done = op_mended,
    };
    // The mender takes the lock of a block; whoever waits behind goes on meanwhile.
    if (op->chunk != NULL) {
        cg_op_unlock(op);
    }
    cg_buffer_unref(op->scratch);
    op->scratch = NULL;
    op->stage = CG_OP_WAITING;
    op->merge_step = 0;
    op->entry.flags = 0;
    start(op->store, &op->mend);
    return true;
}

static void read_mended(struct cg_mend *mend, int status) {
    struct cg_read *read = CG_CONTAINER_OF(mend, struct cg_read, mend);
    if (status != 0) {
        cg_read_end(read, STATUS(CRC_FAIL));
    } else {
        cg_read_again(read);
    }
}

bool cg_read_await_mend(struct cg_read *read, cg_status status, bool metadata) {
    if (read->mended || read->query.local || !is_mendable(read->store, status)) {
        return false;
    }
    read->mended = true;
    read->mend = (struct cg_mend){
        .copyset = read->query.copyset,
        .chunk_id = read->query.chunk_id,
        .first = read->blocks.first,
        .count = read->blocks.count,
        .metadata = metadata,
        .done = read_mended,
    };
    cg_buffer_unref(read->buffer);
    read->buffer = NULL;
    start(read->store, &read->mend);
    return true;
}
