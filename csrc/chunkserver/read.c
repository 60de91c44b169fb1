// SPDX-License-Identifier: BSD-3-Clause
//
// Reads of clients: answered here if this replica leads beyond doubt, else after the others were
// asked.
#include <errno.h>
#include <stdlib.h>

#include "chunkserver/store_internal.h"

static struct cg_read *read_alloc(struct cg_store *store) {
    struct cg_list *node = cg_list_pop_front(&store->free_reads);
    struct cg_read *read;
    if (node != NULL) {
        read = CG_CONTAINER_OF(node, struct cg_read, node);
    } else {
        if (store->reads_made >= store->options.operations_max) {
            return NULL;
        }
        read = malloc(sizeof(*read));
        if (read == NULL) {
            return NULL;
        }
        store->reads_made++;
        cg_list_init(&read->node);
    }
    read->store = store;
    read->chunk = NULL;
    read->buffer = NULL;
    read->mended = false;
    store->reads_active++;
    return read;
}

static void finish(struct cg_read *read, struct cg_read_result *result) {
    struct cg_store *store = read->store;
    result->index = cg_copyset_applied(read->query.copyset);
    result->sn = read->chunk != NULL ? read->chunk->sn : 0;
    if (!read->query.local) {
        result->status = cg_leadership_status(read->query.copyset, result->status);
    }
    if (result->status == STATUS(REDIRECTED)) {
        result->leader = cg_copyset_leader(read->query.copyset);
    }
    read->query.done(read->query.user, result);
    cg_buffer_unref(read->buffer);
    if (read->chunk != NULL) {
        cg_chunk_put(read->chunk);
    }
    store->reads_active--;
    cg_list_push_front(&store->free_reads, &read->node);
}

void cg_read_end(struct cg_read *read, cg_status status) {
    struct cg_read_result result = {.status = status};
    finish(read, &result);
}

static bool try_read(struct cg_read *read);

static void blocks_done(struct cg_block_read *blocks, cg_status status) {
    struct cg_read *read = CG_CONTAINER_OF(blocks, struct cg_read, blocks);
    if (blocks->raced) {
        cg_buffer_unref(read->buffer);
        read->buffer = NULL;
        if (!try_read(read)) {
            cg_list_push_back(&read->chunk->waiting_reads, &read->node);
        }
        return;
    }
    if (cg_read_await_mend(read, status, false)) {
        return;
    }
    struct cg_read_result result = {.status = status};
    if (status == STATUS(SUCCESS)) {
        result.data = read->buffer->data + read->query.offset % CG_BLOCK_SIZE;
        result.buffer = read->buffer;
    }
    finish(read, &result);
}

static void read_data(struct cg_read *read, uint32_t first, uint32_t count) {
    read->buffer = cg_buffer_alloc(read->store->pool, (size_t)count * CG_BLOCK_SIZE);
    if (read->buffer == NULL) {
        cg_read_end(read, STATUS(OVERLOAD));
        return;
    }
    read->blocks.chunk = read->chunk;
    read->blocks.first = first;
    read->blocks.count = count;
    read->blocks.data = read->buffer->data;
    read->blocks.done = blocks_done;
    cg_block_read_start(&read->blocks);
}

// False if the read has to wait; otherwise it is on its way or done.
static bool try_read(struct cg_read *read) {
    struct cg_chunk *chunk = read->chunk;
    if (chunk->state == CG_CHUNK_LOADING) {
        return false;
    }
    if (chunk->state == CG_CHUNK_BROKEN) {
        if (!cg_read_await_mend(read, chunk->load_status, true)) {
            cg_read_end(read, chunk->load_status);
        }
        return true;
    }
    if (read->store->disk_error != 0) {
        cg_read_end(read, STATUS(DISK_FAIL));
        return true;
    }
    uint32_t first = read->query.offset / CG_BLOCK_SIZE;
    uint32_t count = 0;
    if (read->query.size > 0) {
        count = (read->query.offset + read->query.size - 1) / CG_BLOCK_SIZE - first + 1;
    }
    if (chunk->applying_count > 0 &&
        (read->query.kind != CG_READ_DATA || cg_blockmap_any(chunk->applying, first, count))) {
        if (read->store->stalled_count == 0) {
            return false;
        }
        cg_read_end(read,
                    STATUS(OVERLOAD)); // the disk is full: what was committed cannot be applied now
        return true;
    }
    if (!chunk->exists) {
        cg_read_end(read, STATUS(CHUNK_NOTEXIST));
        return true;
    }
    if (read->query.kind == CG_READ_DATA && count > 0) {
        read_data(read, first, count);
        return true;
    }
    struct cg_read_result result = {.status = STATUS(SUCCESS), .allocated = chunk->slot->allocated};
    finish(read, &result);
    return true;
}

void cg_read_again(struct cg_read *read) {
    if (!try_read(read)) {
        cg_list_push_back(&read->chunk->waiting_reads, &read->node);
    }
}

static void start(struct cg_read *read) {
    bool recovering = read->query.torn && !cg_copyset_recovered(read->query.copyset);
    read->chunk = cg_chunk_get(read->query.copyset, read->query.chunk_id, recovering);
    if (read->chunk == NULL) {
        cg_read_end(read, STATUS(OVERLOAD));
        return;
    }
    cg_read_again(read);
}

static void others_asked(struct cg_log_read *asked, int status) {
    struct cg_read *read = CG_CONTAINER_OF(asked, struct cg_read, asked);
    switch (status) {
    case 0:
        start(read);
        break;
    case -EPERM:
        cg_read_end(read, STATUS(REDIRECTED));
        break;
    case -EIO:
        cg_read_end(read, STATUS(DISK_FAIL));
        break;
    default:
        cg_read_end(read, STATUS(OVERLOAD));
        break;
    }
}

void cg_read_released(struct cg_read *read) {
    struct cg_copyset *copyset = read->query.copyset;
    if (read->store->disk_error != 0) {
        cg_read_end(read, STATUS(DISK_FAIL));
    } else if (cg_leadership_gate(copyset) != CG_GATE_OPEN) {
        cg_read_end(read, STATUS(REDIRECTED));
    } else if (cg_copyset_log_can_read(copyset->log)) {
        start(read);
    } else {
        read->asked.done = others_asked;
        cg_copyset_log_read(copyset->log, &read->asked);
    }
}

void cg_store_read(struct cg_store *store, const struct cg_query *query) {
    struct cg_read *read = read_alloc(store);
    if (read == NULL) {
        struct cg_read_result result = {.status = STATUS(OVERLOAD)};
        query->done(query->user, &result);
        return;
    }
    read->query = *query;
    if (query->local) {
        if (!query->copyset->paused && (query->torn || cg_copyset_recovered(query->copyset))) {
            start(read);
        } else {
            cg_read_end(read, STATUS(OVERLOAD));
        }
    } else if (store->disk_error == 0 && cg_leadership_gate(query->copyset) == CG_GATE_HOLD) {
        cg_leadership_hold_read(read);
    } else {
        cg_read_released(read);
    }
}

void cg_reads_pump(struct cg_chunk *chunk) {
    if (cg_list_empty(&chunk->waiting_reads)) {
        return;
    }
    struct cg_list again;
    cg_list_init(&again);
    chunk->refs++;
    cg_list_splice_back(&again, &chunk->waiting_reads);
    struct cg_list *node;
    while ((node = cg_list_pop_front(&again)) != NULL) {
        if (!try_read(CG_CONTAINER_OF(node, struct cg_read, node))) {
            cg_list_push_back(&chunk->waiting_reads, node);
        }
    }
    cg_chunk_put(chunk);
}

void cg_reads_fail(struct cg_chunk *chunk, cg_status status) {
    struct cg_list *node;
    chunk->refs++;
    while ((node = cg_list_pop_front(&chunk->waiting_reads)) != NULL) {
        struct cg_read *read = CG_CONTAINER_OF(node, struct cg_read, node);
        if (!cg_read_await_mend(read, status, true)) {
            cg_read_end(read, status);
        }
    }
    cg_chunk_put(chunk);
}

void cg_reads_destroy(struct cg_store *store) {
    struct cg_list *node;
    while ((node = cg_list_pop_front(&store->free_reads)) != NULL) {
        free(CG_CONTAINER_OF(node, struct cg_read, node));
    }
}
