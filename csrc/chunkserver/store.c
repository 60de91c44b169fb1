// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/store.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/crc32c.h"
#include "base/log.h"
#include "chunkserver/store_internal.h"

#define TICK_NS (1 * CG_NS_PER_S)

static void settle_options(struct cg_store_options *options) {
    options->chunk_size = options->chunk_size ? options->chunk_size : CG_CHUNK_SIZE_DEFAULT;
    options->chunks_max = options->chunks_max ? options->chunks_max : 4096;
    options->descriptors_max = options->descriptors_max ? options->descriptors_max : 512;
    options->operations_max = options->operations_max ? options->operations_max : 8192;
    options->wal_bytes = options->wal_bytes ? options->wal_bytes : UINT64_C(1) << 30;
    if (options->checkpoint_interval_ns == 0) {
        options->checkpoint_interval_ns = 30 * CG_NS_PER_S;
    }
    options->scrub_period_s = options->scrub_period_s ? options->scrub_period_s : 7 * 86400;
}

static void tick(struct cg_timer *timer) {
    struct cg_store *store = CG_CONTAINER_OF(timer, struct cg_store, tick);
    uint64_t now = cg_reactor_now(store->reactor);
    cg_store_tend_space(store);
    cg_deliver_unblock(store);
    // Replay repeats what the log holds, and what was trimmed since would need its space again: on
    // a disk that others fill up that is not to be had.
    if (now - store->last_checkpoint_ns >= store->options.checkpoint_interval_ns ||
        cg_store_short_of_space(store)) {
        cg_store_checkpoint(store);
    }
    cg_timer_arm(store->reactor, &store->tick, now + TICK_NS);
}

void cg_store_retire(struct cg_store *store, int error, const char *what) {
    if (store->disk_error != 0) {
        return;
    }
    store->disk_error = error;
    cg_log(CG_LOG_ERROR, "the disk is retired: %s: %s", what, strerror(error));
    cg_log_disk_failed(store->log_disk, -error);
    cg_checkpoint_cancel(store);
    for (uint32_t i = 0; i < store->chunks_used; i++) {
        if (store->chunks[i].state != CG_CHUNK_FREE) {
            cg_ops_fail_waiting(&store->chunks[i], STATUS(DISK_FAIL));
            cg_reads_fail(&store->chunks[i], STATUS(DISK_FAIL));
            cg_deliver_give_up(&store->chunks[i]);
        }
    }
    for (uint32_t i = 0; i < store->copyset_count; i++) {
        cg_leadership_fail(store->copysets[i], STATUS(DISK_FAIL));
    }
}

static void log_failed(void *context, int error) {
    cg_store_retire(context, -error, "writing the log");
}

static int make_log_disk(struct cg_store *store) {
    struct cg_log_disk_options options = {
        .reactor = store->reactor,
        .pool = store->options.log_pool != NULL ? store->options.log_pool : store->pool,
        .send = store->options.send,
        .send_context = store->options.send_context,
        .failed = log_failed,
        .failed_context = store,
        .now = store->options.now,
        .now_context = store->options.now_context,
        .cache_bytes = store->options.log_cache_bytes,
    };
    return cg_log_disk_create(&options, &store->log_disk);
}

static int make_zeros(struct cg_store *store) {
    store->zeros = aligned_alloc(CG_BLOCK_SIZE, CG_ZERO_PIECE);
    if (store->zeros == NULL) {
        return -ENOMEM;
    }
    memset(store->zeros, 0, CG_ZERO_PIECE);
    store->zero_crc = cg_crc32c(0, store->zeros, CG_BLOCK_SIZE);
    for (unsigned i = 0; i < CG_ZERO_PIECES; i++) {
        store->zero_iov[i] = (struct iovec){store->zeros, CG_ZERO_PIECE};
    }
    return 0;
}

static void init_lists(struct cg_store *store) {
    for (unsigned i = 0; i < CG_COPYSET_BUCKETS; i++) {
        cg_list_init(&store->copyset_bucket[i]);
    }
    cg_list_init(&store->free_ops);
    cg_list_init(&store->free_reads);
    cg_list_init(&store->stalled);
    cg_list_init(&store->unloadable);
    cg_list_init(&store->blocked);
    cg_list_init(&store->resume_work.node);
    store->resume_work.run = cg_deliver_resume;
    cg_list_init(&store->to_apply);
    cg_list_init(&store->apply_work.node);
    store->apply_work.run = cg_apply_work;
    cg_list_init(&store->chunk_lru);
    cg_list_init(&store->free_chunks);
}

static int open_all(struct cg_store *store, char *error, size_t error_size) {
    int result =
        cg_folder_open(store->disk, store->options.chunk_size, &store->format, error, error_size);
    if (result != 0) {
        return result;
    }
    snprintf(error, error_size, "out of memory");
    if (make_zeros(store) != 0 || cg_checkpoint_create(store) != 0 || make_log_disk(store) != 0) {
        return -ENOMEM;
    }
    result = cg_chunk_cache_create(store);
    if (result != 0) {
        snprintf(error, error_size, "cannot make room for the chunks' metadata: %s",
                 strerror(-result));
        return result;
    }
    result = cg_copysets_scan(store, error, error_size);
    if (result != 0) {
        return result;
    }
    cg_store_look_at_space(store);
    result = cg_scrub_create(store);
    if (result != 0) {
        snprintf(error, error_size, "cannot prepare the scrub: %s", strerror(-result));
        return result;
    }
    result = cg_reserve_open(&store->reserve, store->disk, store->options.reserve_bytes);
    if (result != 0) {
        snprintf(error, error_size, "cannot use the reserve: %s", strerror(-result));
        return result;
    }
    uint64_t lsn;
    result = cg_checkpoint_restore(store, &lsn, error, error_size);
    if (result != 0) {
        return result;
    }
    error[0] = '\0';
    result = cg_store_replay(store, lsn, error, error_size);
    if (result == 0) {
        result = cg_store_settle_space(store);
        if (result != 0) {
            snprintf(error, error_size, "cannot settle the disk's space: %s", strerror(-result));
        }
    }
    return result;
}

int cg_store_open(struct cg_disk *disk, struct cg_reactor *reactor, struct cg_buffer_pool *pool,
                  const struct cg_store_options *options, struct cg_store **out, char *error,
                  size_t error_size) {
    struct cg_store *store = calloc(1, sizeof(*store));
    if (store == NULL) {
        snprintf(error, error_size, "out of memory");
        return -ENOMEM;
    }
    store->disk = disk;
    store->reactor = reactor;
    store->pool = pool;
    store->options = *options;
    settle_options(&store->options);
    store->stall_timer.fire = cg_stall_timer;
    store->tick.fire = tick;
    init_lists(store);
    int result = open_all(store, error, error_size);
    if (result == 0) {
        store->last_checkpoint_ns = cg_reactor_now(reactor);
        result = cg_timer_arm(reactor, &store->tick, store->last_checkpoint_ns + TICK_NS);
    }
    if (result != 0) {
        // What was started has to end before its memory goes.
        while (!cg_store_idle(store) && cg_reactor_wait(reactor, UINT64_MAX) >= 0) {
        }
        cg_store_close(store);
        return result;
    }
    cg_scrub_start(store);
    *out = store;
    return 0;
}

// A checkpoint that captures waits for operations alone: if those wait for space, so does it.
bool cg_store_idle(const struct cg_store *store) {
    return store->ops_active == store->ops_parked + store->stalled_count + store->ops_decided &&
           store->reads_active == 0 && store->file_ops == 0 && store->checkpoint.flushing == 0 &&
           store->checkpoint.stage <= CG_CHECKPOINT_CAPTURE && !store->scrub.active &&
           store->removals == 0;
}

void cg_store_stop(struct cg_store *store) {
    for (uint32_t i = 0; i < store->copyset_count; i++) {
        if (store->copysets[i]->log != NULL) {
            cg_copyset_log_stop(store->copysets[i]->log);
        }
    }
}

static bool logs_idle(const struct cg_store *store) {
    for (uint32_t i = 0; i < store->copyset_count; i++) {
        if (store->copysets[i]->log != NULL && !cg_copyset_log_idle(store->copysets[i]->log)) {
            return false;
        }
    }
    return true;
}

void cg_store_close(struct cg_store *store) {
    cg_store_stop(store);
    // Nothing new may begin while the logs end.
    cg_timer_disarm(&store->stall_timer);
    cg_timer_disarm(&store->tick);
    while (!logs_idle(store) && cg_reactor_wait(store->reactor, UINT64_MAX) >= 0) {
    }
    cg_scrub_destroy(store);
    cg_reactor_undefer(&store->apply_work);
    cg_ops_destroy(store);
    cg_reads_destroy(store);
    cg_reactor_undefer(&store->resume_work);
    cg_reserve_close(&store->reserve);
    cg_chunk_cache_destroy(store);
    cg_checkpoint_destroy(store);
    for (uint32_t i = 0; i < store->copyset_count; i++) {
        cg_copyset_destroy(store->copysets[i]);
    }
    if (store->wal != NULL) {
        cg_wal_close(store->wal);
    }
    if (store->log_disk != NULL) {
        cg_log_disk_destroy(store->log_disk);
    }
    free(store->gone);
    free(store->zeros);
    free(store);
}

const uint8_t *cg_store_uuid(const struct cg_store *store) {
    return store->format.uuid;
}

uint32_t cg_store_chunk_size(const struct cg_store *store) {
    return store->format.chunk_size;
}

int cg_store_disk_error(const struct cg_store *store) {
    return store->disk_error;
}

static struct cg_scrub_stats scrub_stats(const struct cg_store *store) {
    const struct cg_scrub_record *record = &store->scrub.record;
    return (struct cg_scrub_stats){
        .rate = store->scrub.pace.rate,
        .running = record->running,
        .request = record->request,
        .queued = record->queued,
        .completed = record->completed,
        .started_s = record->started_s,
        .completed_s = record->completed_s,
        .checked = record->checked,
        .skipped = record->skipped,
        .found = record->found,
        .bad_blocks = store->bad.count,
        .bad_blocks_more = store->bad.full,
    };
}

uint32_t cg_store_bad_blocks(const struct cg_store *store, uint32_t from, struct cg_bad_block *out,
                             uint32_t max) {
    uint32_t count = 0;
    while (count < max && from + count < store->bad.count) {
        out[count] = store->bad.item[from + count];
        count++;
    }
    return count;
}

void cg_store_stats(const struct cg_store *store, struct cg_store_stats *out) {
    out->scrub = scrub_stats(store);
    cg_wal_stats(store->wal, &out->wal);
    cg_log_disk_stats(store->log_disk, &out->log);
    out->wal_used = cg_wal_used(store->wal);
    out->wal_capacity = cg_wal_capacity(store->wal);
    out->checkpoints = store->checkpoints;
    out->capacity_bytes = store->total_bytes;
    out->free_bytes = cg_store_available(store);
    out->crc_errors = store->crc_errors;
    out->copysets = store->copyset_count;
    out->dirty_chunks = store->dirty_count;
    out->disk_error = store->disk_error;
}
