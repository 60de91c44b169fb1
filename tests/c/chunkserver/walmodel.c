// SPDX-License-Identifier: BSD-3-Clause
#include "walmodel.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "chunkserver/wal_internal.h"
#include "simreactor.h"

#define PAYLOAD_BLOCKS_MAX 6U
#define PIECES_MAX         2
#define POOL_BYTES         (8U << 20)
#define POOL_BYTES_TIGHT   (48U << 10)

struct model_record {
    struct cg_wal_append append;
    struct walmodel *model;
    uint64_t serial;
    uint64_t lsn;
    bool acked;
    uint8_t meta[CG_WAL_META_MAX];
    uint8_t *payload;
    uint32_t crcs[PAYLOAD_BLOCKS_MAX];
    struct iovec iov[PIECES_MAX];
};

struct model_fetch {
    struct cg_wal_fetch fetch;
    struct walmodel *model;
    struct cg_list node;
    size_t next; // of the history; looked at next
};

uint64_t walmodel_seed;

void walmodel_fail(const struct walmodel *model, const char *what) {
    fprintf(stderr, "seed %llu: %s (serial %llu, last error: %s)\n",
            (unsigned long long)walmodel_seed, what, (unsigned long long)model->serial,
            model->error);
    abort();
}

static void check(const struct walmodel *model, bool condition, const char *what) {
    if (!condition) {
        walmodel_fail(model, what);
    }
}

static uint8_t byte_of(uint64_t serial, size_t i) {
    return (uint8_t)((serial * UINT64_C(0x9e3779b97f4a7c15) + i * 31U) >> 24 ^ i);
}

// ---- Records

static void record_free(struct model_record *record) {
    free(record->payload);
    free(record);
}

static void appended(struct cg_wal_append *append) {
    struct model_record *record = CG_CONTAINER_OF(append, struct model_record, append);
    struct walmodel *model = record->model;
    model->pending--;
    if (append->status != 0) {
        check(model, model->expect_failures, "an append failed");
        model->failure = model->failure != 0 ? model->failure : append->status;
        return;
    }
    check(model, model->failure == 0, "an append succeeded after one failed");
    check(model, record->serial > model->last_acked, "acknowledged out of order");
    check(model, append->lsn >= record->lsn, "an append lies below the tail it was promised");
    model->last_acked = record->serial;
    record->acked = true;
    record->lsn = append->lsn;
}

static struct model_record *record_create(struct walmodel *model, unsigned blocks) {
    struct model_record *record = calloc(1, sizeof(*record));
    uint64_t serial = ++model->serial;
    uint32_t meta_length = model->uniform ? 16 : (uint32_t)(8 + simdisk_random(model->sim) % 120);
    record->model = model;
    record->serial = serial;
    memcpy(record->meta, &serial, sizeof(serial));
    for (uint32_t i = 8; i < meta_length; i++) {
        record->meta[i] = byte_of(serial, i);
    }
    if (blocks != 0) {
        record->payload = aligned_alloc(CG_WAL_BLOCK, (size_t)blocks * CG_WAL_BLOCK);
        for (size_t i = 0; i < (size_t)blocks * CG_WAL_BLOCK; i++) {
            record->payload[i] = byte_of(serial, i);
        }
    }
    for (unsigned b = 0; b < blocks; b++) {
        record->crcs[b] = cg_crc32c(0, record->payload + (size_t)b * CG_WAL_BLOCK, CG_WAL_BLOCK);
    }
    struct cg_wal_append *append = &record->append;
    unsigned split = blocks > 1 ? blocks / 2 : blocks;
    record->iov[0].iov_base = record->payload;
    record->iov[0].iov_len = (size_t)split * CG_WAL_BLOCK;
    append->payload_count = blocks > 1 ? 2 : (int)blocks;
    if (blocks > 1) {
        record->iov[1].iov_base = record->payload + (size_t)split * CG_WAL_BLOCK;
        record->iov[1].iov_len = (size_t)(blocks - split) * CG_WAL_BLOCK;
    }
    append->payload = record->iov;
    append->done = appended;
    append->record.group = serial % 3;
    append->record.term = serial / 100;
    append->record.index = serial;
    append->record.type = (uint32_t)(serial % 5);
    append->record.meta_length = meta_length;
    append->record.meta = record->meta;
    append->record.payload_length = blocks * CG_WAL_BLOCK;
    append->record.block_crcs = record->crcs;
    return record;
}

void walmodel_append_blocks(struct walmodel *model, unsigned blocks) {
    struct model_record *record = record_create(model, blocks);
    if (model->count == model->capacity) {
        model->capacity = model->capacity != 0 ? model->capacity * 2 : 64;
        model->history = realloc(model->history, model->capacity * sizeof(*model->history));
    }
    model->history[model->count++] = record;
    model->pending++;
    record->lsn = cg_wal_tail(model->wal);
    cg_wal_append(model->wal, &record->append);
}

void walmodel_append(struct walmodel *model) {
    unsigned blocks = (unsigned)(simdisk_random(model->sim) % (PAYLOAD_BLOCKS_MAX + 1));
    walmodel_append_blocks(model, model->uniform ? 1 : blocks);
}

// ---- Replay

static bool same_payload(const struct model_record *record, const uint8_t *payload) {
    uint32_t length = record->append.record.payload_length;
    return length == 0 || memcmp(record->payload, payload, length) == 0;
}

static void check_same(const struct walmodel *model, const struct model_record *record,
                       const struct cg_wal_record *got, const void *payload) {
    const struct cg_wal_record *want = &record->append.record;
    check(model,
          got->group == want->group && got->term == want->term && got->type == want->type &&
              got->meta_length == want->meta_length &&
              memcmp(got->meta, want->meta, want->meta_length) == 0,
          "a record's header changed");
    check(model, got->payload_length == want->payload_length && same_payload(record, payload),
          "a record's payload changed");
}

static int replayed(void *context, uint64_t lsn, const struct cg_wal_record *got,
                    const void *payload) {
    struct walmodel *model = context;
    size_t i = model->first + model->replayed++;
    check(model, i < model->count, "replayed a record that was never appended, or was cut before");
    struct model_record *record = model->history[i];
    check(model, got->index == record->append.record.index,
          "replayed out of order, or a record is missing");
    check_same(model, record, got, payload);
    check(model, !record->acked || record->lsn == lsn, "a record moved");
    record->lsn = lsn;
    return 0;
}

static void cut_history(struct walmodel *model) {
    size_t kept = model->first + model->replayed;
    for (size_t i = kept; i < model->count; i++) {
        check(model, !model->history[i]->acked, "an acknowledged record is lost");
        record_free(model->history[i]);
    }
    model->count = kept;
    for (size_t i = 0; i < kept; i++) {
        model->history[i]->acked = true; // reported once, it must stay
    }
}

int walmodel_open(struct walmodel *model) {
    const struct cg_wal_replay replay = {replayed, model, model->checkpoint};
    model->replayed = 0;
    model->failure = 0;
    model->pending = 0;
    model->last_acked = 0;
    int status = cg_wal_open(simdisk_disk(model->sim), model->reactor, &model->options, &replay,
                             &model->wal, model->error, sizeof(model->error));
    if (status < 0) {
        model->wal = NULL;
        return status;
    }
    cut_history(model);
    return 0;
}

// ---- Reading back

// Moves to the next record that the fetch has to report; false if there is none.
static bool fetch_more(struct model_fetch *fetch) {
    const struct walmodel *model = fetch->model;
    for (; fetch->next < model->count; fetch->next++) {
        const struct model_record *record = model->history[fetch->next];
        if (!record->acked || record->lsn > fetch->fetch.lsn) {
            return false; // where an unacknowledged one lies is not known, but behind this batch
        }
        if (record->lsn == fetch->fetch.lsn && record->append.record.group == fetch->fetch.group) {
            return true;
        }
    }
    return false;
}

static void fetched_record(struct cg_wal_fetch *base, const struct cg_wal_record *got,
                           struct cg_buffer *buffer, const uint8_t *payload) {
    struct model_fetch *fetch = CG_CONTAINER_OF(base, struct model_fetch, fetch);
    const struct walmodel *model = fetch->model;
    check(model, fetch_more(fetch), "a fetch gave a record too many");
    const struct model_record *record = model->history[fetch->next++];
    check(model,
          (buffer != NULL) == (got->payload_length != 0) && (buffer == NULL) == (payload == NULL),
          "a fetch gave a payload without a buffer");
    check(model, got->index == record->append.record.index, "a fetch gave another record");
    check_same(model, record, got, payload);
}

static void fetch_done(struct cg_wal_fetch *base, int status) {
    struct model_fetch *fetch = CG_CONTAINER_OF(base, struct model_fetch, fetch);
    struct walmodel *model = fetch->model;
    if (status == 0) {
        check(model, !fetch_more(fetch), "a fetch left a record out");
        model->fetched++;
    } else if (status == -ENOENT) {
        check(model, base->lsn < model->checkpoint, "a needed record is gone");
        model->recycled++;
    } else {
        check(model, status == -ENOMEM && model->tight, "a fetch failed");
    }
    cg_list_remove(&fetch->node);
    free(fetch);
}

bool walmodel_fetch(struct walmodel *model) {
    size_t acked = model->first + walmodel_acked(model);
    if (acked == 0) {
        return false;
    }
    // One of the last, so that few are recycled already.
    size_t i = acked - 1 - simdisk_random(model->sim) % (acked < 40 ? acked : 40);
    const struct model_record *record = model->history[i];
    while (i > 0 && model->history[i - 1]->lsn == record->lsn) {
        i--;
    }
    struct model_fetch *fetch = calloc(1, sizeof(*fetch));
    fetch->model = model;
    fetch->next = i;
    fetch->fetch.lsn = record->lsn;
    fetch->fetch.group = record->append.record.group;
    fetch->fetch.record = fetched_record;
    fetch->fetch.done = fetch_done;
    cg_list_push_back(&model->fetches, &fetch->node);
    cg_wal_fetch(model->wal, model->pool, &fetch->fetch);
    return true;
}

// ---- Running

void walmodel_run(struct walmodel *model, unsigned steps) {
    simreactor_iterate(model->reactor);
    while (steps-- != 0 && simdisk_step(model->sim)) {
        simreactor_iterate(model->reactor);
    }
}

void walmodel_drain(struct walmodel *model) {
    unsigned idle = 0;
    while (model->pending != 0 || !cg_list_empty(&model->fetches)) {
        walmodel_run(model, 1);
        idle = simdisk_pending(model->sim) == 0 ? idle + 1 : 0;
        check(model, idle < 3, "appends or fetches wait, but the disk has nothing to do");
    }
}

void walmodel_recycle(struct walmodel *model, bool all) {
    size_t i = model->first;
    while (i < model->count && model->history[i]->acked &&
           (all || simdisk_random(model->sim) % 8 != 0)) {
        i++;
    }
    uint64_t lsn;
    if (i < model->count && model->history[i]->acked) {
        lsn = model->history[i]->lsn;
        while (i > model->first && model->history[i - 1]->lsn == lsn) {
            i--;
        }
    } else if (i < model->count || i == model->first) {
        return; // where the first unacknowledged one lies is not known
    } else {
        lsn = cg_wal_tail(model->wal);
    }
    model->checkpoint = lsn;
    model->first = i;
    cg_wal_recycle(model->wal, lsn);
}

// ---- Ends

static void forget_handles(struct cg_list *segments) {
    CG_LIST_FOREACH (node, segments) {
        CG_CONTAINER_OF(node, struct wal_segment, node)->handle = -1;
    }
}

void walmodel_drop(struct cg_wal *wal) {
    struct wal_segments *set = &wal->segments;
    forget_handles(&set->live);
    forget_handles(&set->free);
    if (set->preparation.running) {
        set->preparation.running = false;
        free(set->preparation.segment);
    }
    free(wal->opening);
    wal->opening = NULL;
    cg_list_splice_back(&wal->spare, &wal->in_flight);
    wal->in_flight_count = 0;
    cg_list_init(&wal->refused);
    cg_list_init(&wal->fetches);
    cg_list_splice_back(&wal->readings, &wal->fetching);
    wal->error = -1; // no seal
    cg_wal_close(wal);
}

static void drop_fetches(struct walmodel *model) {
    struct cg_list *node;
    while ((node = cg_list_pop_front(&model->fetches)) != NULL) {
        free(CG_CONTAINER_OF(node, struct model_fetch, node));
    }
}

void walmodel_crash(struct walmodel *model, enum simdisk_crash mode) {
    simdisk_crash(model->sim, mode);
    walmodel_drop(model->wal);
    drop_fetches(model);
    model->wal = NULL;
}

void walmodel_kill(struct walmodel *model) {
    simdisk_kill(model->sim);
    walmodel_drop(model->wal);
    drop_fetches(model);
    model->wal = NULL;
}

void walmodel_close(struct walmodel *model) {
    cg_wal_close(model->wal);
    model->wal = NULL;
}

void walmodel_init(struct walmodel *model, const struct simdisk_options *disk,
                   const struct cg_wal_options *options) {
    memset(model, 0, sizeof(*model));
    model->sim = simdisk_create(disk);
    model->reactor = simreactor_create(model->sim);
    model->options = *options;
    model->tight = disk->seed % 5 == 0;
    cg_list_init(&model->fetches);
    if (cg_buffer_pool_create(model->tight ? POOL_BYTES_TIGHT : POOL_BYTES, &model->pool) != 0) {
        abort();
    }
}

void walmodel_destroy(struct walmodel *model) {
    if (model->wal != NULL) {
        walmodel_close(model);
    }
    for (size_t i = 0; i < model->count; i++) {
        record_free(model->history[i]);
    }
    free(model->history);
    cg_buffer_pool_destroy(model->pool);
    simreactor_destroy(model->reactor);
    simdisk_destroy(model->sim);
}

// ---- Looking at the files

bool walmodel_locate(const struct walmodel *model, uint64_t lsn, char path[64], uint64_t *offset) {
    uint64_t best = 0;
    for (uint32_t slot = 0; slot < 64; slot++) {
        char name[64];
        snprintf(name, sizeof(name), WAL_NAME_FORMAT, slot);
        uint64_t length;
        const uint8_t *bytes = simdisk_bytes(model->sim, name, &length);
        struct wal_segment_header header;
        if (bytes == NULL || length < CG_WAL_BLOCK ||
            wal_segment_header_decode(bytes, &header) != 0 || header.sequence <= best ||
            header.start_lsn > lsn || lsn - header.start_lsn + 2 * CG_WAL_BLOCK > length) {
            continue;
        }
        best = header.sequence;
        *offset = CG_WAL_BLOCK + (lsn - header.start_lsn);
        snprintf(path, 64, "%s", name);
    }
    return best != 0;
}

size_t walmodel_acked(const struct walmodel *model) {
    size_t i = model->first;
    while (i < model->count && model->history[i]->acked) {
        i++;
    }
    return i - model->first;
}

uint64_t walmodel_lsn(const struct walmodel *model, size_t i) {
    return model->history[model->first + i]->lsn;
}
