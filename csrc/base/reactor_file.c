// SPDX-License-Identifier: BSD-3-Clause
//
// File operations: reads and direct writes go to the ring, at most file_depth at a time, what
// blocks goes to the thread pool.
#include "base/reactor_internal.h"

static bool start(struct cg_reactor *reactor, struct cg_file_op *op) {
    if (reactor->files_running >= reactor->file_depth || !cg_ring_file(reactor->ring, op)) {
        return false;
    }
    reactor->files_running++;
    return true;
}

void cg_reactor_file(struct cg_reactor *reactor, struct cg_file_op *op) {
    bool direct = op->opcode == CG_FILE_READ || op->opcode == CG_FILE_WRITE;
    if (!direct || reactor->ring == NULL) {
        cg_pool_submit(reactor->pool, op);
        return;
    }
    if (!cg_list_empty(&reactor->files_waiting) || !start(reactor, op)) {
        cg_list_push_back(&reactor->files_waiting, &op->node);
    }
    cg_reactor_work_added(reactor);
}

void cg_reactor_start_files(struct cg_reactor *reactor) {
    while (!cg_list_empty(&reactor->files_waiting)) {
        struct cg_list *first = reactor->files_waiting.next;
        struct cg_list *following = first->next;
        // Off the list first: from start() on, the operation may not be touched here.
        cg_list_remove(first);
        if (!start(reactor, CG_CONTAINER_OF(first, struct cg_file_op, node))) {
            cg_list_insert_before(first, following);
            return;
        }
    }
}

void cg_reactor_file_done(struct cg_reactor *reactor, struct cg_file_op *op, int64_t result) {
    reactor->files_running--;
    op->result = result;
    op->done(op);
    cg_reactor_start_files(reactor);
}
