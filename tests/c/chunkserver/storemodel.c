// SPDX-License-Identifier: BSD-3-Clause
#include "storemodel.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "chunkserver/store_internal.h"
#include "mutated.h"
#include "simreactor.h"

#define VOLUME 7U
#define CLIENT 99U

uint64_t storemodel_seed;

void storemodel_fail(const struct storemodel *model, const char *what) {
    fprintf(stderr, "seed %" PRIu64 ": %s (%s)\n", storemodel_seed, what, model->error);
    abort();
}

uint64_t storemodel_pick(struct storemodel *model, uint64_t below) {
    return simdisk_random(model->sim) % below;
}

static void fill(struct storemodel *model, uint8_t *data, size_t length) {
    for (size_t i = 0; i < length; i++) {
        data[i] = (uint8_t)simdisk_random(model->sim);
    }
}

void storemodel_init(struct storemodel *model, const struct simdisk_options *disk,
                     const struct cg_store_options *options) {
    memset(model, 0, sizeof(*model));
    model->sim = simdisk_create(disk);
    model->options = *options;
    model->options.chunk_size = MODEL_CHUNK_SIZE;
    storemodel_seed = disk->seed;
}

static void free_op(struct model_op *op) {
    free(op->data);
    memset(op, 0, sizeof(*op));
}

void storemodel_destroy(struct storemodel *model) {
    for (unsigned i = 0; i < MODEL_PENDING; i++) {
        free_op(&model->pending[i]);
    }
    for (unsigned i = 0; i < MODEL_HISTORY; i++) {
        free_op(&model->history[i]);
    }
    simdisk_destroy(model->sim);
}

// ---- The model's own idea of a mutation

static void apply_to(struct model_chunk *chunk, const struct model_op *op) {
    if (mutated_bytes(chunk->data, sizeof(chunk->data), &op->mutation, op->data)) {
        chunk->version++;
    }
}

static struct model_chunk *chunk_of(struct storemodel *model, const struct model_op *op) {
    return &model->chunks[op->copyset][op->chunk];
}

static bool ranges_meet(const struct cg_mutation *m, uint32_t offset, uint32_t size) {
    if (m->kind == CG_MUTATE_EPOCH) {
        return false;
    }
    if (m->kind == CG_MUTATE_DELETE) {
        return true;
    }
    uint32_t a = m->offset / 4096;
    uint32_t a_end = (m->offset + m->size + 4095) / 4096;
    return a < (offset + size + 4095) / 4096 && offset / 4096 < a_end;
}

static bool anything_pending(const struct storemodel *model, uint32_t copyset, uint32_t chunk,
                             uint32_t offset, uint32_t size) {
    for (unsigned i = 0; i < MODEL_PENDING; i++) {
        const struct model_op *op = &model->pending[i];
        if (op->used && op->copyset == copyset && op->chunk == chunk &&
            ranges_meet(&op->mutation, offset, size)) {
            return true;
        }
    }
    return false;
}

// ---- Mutations

static uint64_t lowest_pending(const struct storemodel *model) {
    uint64_t lowest = model->sequence + 1;
    for (unsigned i = 0; i < MODEL_PENDING; i++) {
        if (model->pending[i].used && model->pending[i].mutation.has_client &&
            model->pending[i].mutation.sequence < lowest) {
            lowest = model->pending[i].mutation.sequence;
        }
    }
    return lowest;
}

static void remember(struct storemodel *model, struct model_op *op) {
    struct model_op *place = &model->history[model->history_count++ % MODEL_HISTORY];
    free_op(place);
    *place = *op;
    memset(op, 0, sizeof(*op));
}

static void answered(void *user, const struct cg_mutation_result *result) {
    struct model_op *op = user;
    struct storemodel *model = op->model;
    const struct cg_mutation *m = &op->mutation;
    switch (result->status) {
    case STATUS(SUCCESS):
        if (m->kind == CG_MUTATE_EPOCH) {
            if (m->epoch > model->epoch[op->copyset]) {
                model->epoch[op->copyset] = m->epoch;
            }
            break;
        }
        if (m->has_epoch && m->epoch < op->low_epoch && !op->known_done) {
            storemodel_fail(model, "a fenced mutation was accepted");
        }
        if (!op->known_done) {
            apply_to(chunk_of(model, op), op);
        }
        model->acknowledged++;
        remember(model, op);
        return;
    case STATUS(MISCOMPARE):
        if (m->kind != CG_MUTATE_COMPARE_AND_WRITE) {
            storemodel_fail(model, "a comparison that was none");
        }
        // Only ranges without other mutations are compared: the answer must be exact.
        for (uint32_t i = 0; i <= result->mismatch_offset; i++) {
            bool same = chunk_of(model, op)->data[m->offset + i] == op->data[i];
            if (same != (i < result->mismatch_offset)) {
                storemodel_fail(model, "a wrong offset of the first difference");
            }
        }
        break;
    case STATUS(EPOCH_TOO_OLD):
    case STATUS(OVERLOAD):
        break;
    case STATUS(DISK_FAIL):
        return; // it may have reached the log: as good as no answer
    case STATUS(NOSPACE):
        if (!model->full_disk) {
            storemodel_fail(model, "no space on a disk with space");
        }
        break;
    default:
        storemodel_fail(model, "an unexpected status of a mutation");
    }
    if (op->known_done && result->status != STATUS(DISK_FAIL) &&
        result->status != STATUS(OVERLOAD) && result->status != STATUS(EPOCH_TOO_OLD)) {
        storemodel_fail(model, "a retry of what had taken effect was not recognised");
    }
    model->refused++;
    free_op(op);
}

static void submit(struct storemodel *model, struct model_op *op) {
    struct cg_mutation *m = &op->mutation;
    m->copyset = cg_store_copyset(model->store, 1, op->copyset + 1);
    m->done = answered;
    m->user = op;
    m->settled_below = lowest_pending(model);
    m->buffer = NULL;
    struct cg_buffer *buffer = NULL;
    if (op->data != NULL) {
        uint32_t compare = m->kind == CG_MUTATE_COMPARE_AND_WRITE ? m->size : 0;
        m->data_offset = compare + (m->offset - compare) % 4096;
        buffer = cg_buffer_alloc(model->pool, (size_t)m->data_offset + m->size + 4096);
        if (buffer == NULL) {
            storemodel_fail(model, "the test's pool is too small");
        }
        memset(buffer->data, 0xee, buffer->capacity);
        memcpy(buffer->data + m->data_offset - compare, op->data, (size_t)compare + m->size);
        m->buffer = buffer;
    }
    op->low_epoch = model->epoch[op->copyset];
    chunk_of(model, op)->version++;
    struct cg_mutation copy = *m;
    cg_store_mutate(model->store, &copy); // may end and free `op`
    cg_buffer_unref(buffer);
}

static struct model_op *free_place(struct storemodel *model) {
    for (unsigned i = 0; i < MODEL_PENDING; i++) {
        if (!model->pending[i].used) {
            return &model->pending[i];
        }
    }
    return NULL;
}

static void choose_range(struct storemodel *model, struct cg_mutation *m) {
    bool aligned = storemodel_pick(model, 2) == 0;
    uint32_t longest = storemodel_pick(model, 4) == 0 ? MODEL_CHUNK_SIZE : 20000;
    m->size = 1 + (uint32_t)storemodel_pick(model, longest);
    m->offset = (uint32_t)storemodel_pick(model, MODEL_CHUNK_SIZE);
    if (aligned) {
        m->offset = m->offset / 4096 * 4096;
        m->size = (m->size + 4095) / 4096 * 4096;
    }
    if (m->offset + m->size > MODEL_CHUNK_SIZE) {
        m->size = MODEL_CHUNK_SIZE - m->offset;
    }
}

static void choose_data(struct storemodel *model, struct model_op *op) {
    struct cg_mutation *m = &op->mutation;
    bool compare = m->kind == CG_MUTATE_COMPARE_AND_WRITE;
    if (m->kind != CG_MUTATE_WRITE && !compare) {
        return;
    }
    op->data = malloc(2 * (size_t)m->size);
    fill(model, op->data, 2 * (size_t)m->size);
    if (compare) {
        memcpy(op->data, chunk_of(model, op)->data + m->offset, m->size);
        if (storemodel_pick(model, 3) == 0) {
            op->data[storemodel_pick(model, m->size)] ^= 0x40;
        }
    }
}

void storemodel_mutate(struct storemodel *model) {
    static const enum cg_op_kind kinds[] = {
        CG_MUTATE_WRITE,
        CG_MUTATE_WRITE,
        CG_MUTATE_WRITE,
        CG_MUTATE_WRITE,
        CG_MUTATE_WRITE,
        CG_MUTATE_ZERO,
        CG_MUTATE_ZERO,
        CG_MUTATE_TRIM,
        CG_MUTATE_TRIM,
        CG_MUTATE_COMPARE_AND_WRITE,
        CG_MUTATE_COMPARE_AND_WRITE,
        CG_MUTATE_EPOCH,
        CG_MUTATE_DELETE,
    };
    struct model_op *op = free_place(model);
    if (op == NULL || cg_store_disk_error(model->store) != 0) {
        return;
    }
    op->used = true;
    op->model = model;
    op->copyset = (uint32_t)storemodel_pick(model, MODEL_COPYSETS);
    op->chunk = (uint32_t)storemodel_pick(model, MODEL_CHUNKS);
    struct cg_mutation *m = &op->mutation;
    m->kind = kinds[storemodel_pick(model, sizeof(kinds) / sizeof(kinds[0]))];
    m->chunk_id = op->chunk + 1;
    m->file_id = VOLUME;
    if (m->kind == CG_MUTATE_EPOCH) {
        m->epoch = model->epoch[op->copyset] + storemodel_pick(model, 2);
        submit(model, op);
        return;
    }
    m->has_client = true;
    m->client_id = CLIENT;
    m->sn = 1;
    m->no_hole = m->kind == CG_MUTATE_ZERO && storemodel_pick(model, 2) == 0;
    m->has_epoch = storemodel_pick(model, 2) == 0;
    m->epoch = model->epoch[op->copyset];
    if (m->has_epoch && m->epoch > 0 && storemodel_pick(model, 8) == 0) {
        m->epoch--;
    }
    choose_range(model, m);
    bool compare = m->kind == CG_MUTATE_COMPARE_AND_WRITE;
    op->used = false;
    bool alone = !anything_pending(model, op->copyset, op->chunk, m->offset, m->size);
    op->used = true;
    if (compare && !alone) {
        m->kind = CG_MUTATE_WRITE;
    }
    choose_data(model, op);
    m->sequence = ++model->sequence;
    submit(model, op);
}

// ---- Answered ones again: nothing may happen

static void repeated(void *user, const struct cg_mutation_result *result) {
    struct storemodel *model = user;
    switch (result->status) {
    case STATUS(SUCCESS):
    case STATUS(SETTLED):
    case STATUS(OVERLOAD):
    case STATUS(DISK_FAIL):
    case STATUS(EPOCH_TOO_OLD):
        break;
    default:
        storemodel_fail(model, "an unexpected status of a late copy");
    }
}

void storemodel_repeat(struct storemodel *model) {
    unsigned known = model->history_count < MODEL_HISTORY ? model->history_count : MODEL_HISTORY;
    if (known == 0) {
        return;
    }
    struct model_op copy = model->history[storemodel_pick(model, known)];
    struct cg_mutation *m = &copy.mutation;
    struct cg_buffer *buffer = NULL;
    m->copyset = cg_store_copyset(model->store, 1, copy.copyset + 1);
    if (copy.data != NULL) {
        uint32_t compare = m->kind == CG_MUTATE_COMPARE_AND_WRITE ? m->size : 0;
        buffer = cg_buffer_alloc(model->pool, (size_t)m->data_offset + m->size + 4096);
        memcpy(buffer->data + m->data_offset - compare, copy.data, (size_t)compare + m->size);
    }
    m->buffer = buffer;
    m->done = repeated;
    m->user = model;
    cg_store_mutate(model->store, m);
    cg_buffer_unref(buffer);
}

void storemodel_retry(struct storemodel *model) {
    for (unsigned i = 0; i < MODEL_PENDING; i++) {
        if (model->pending[i].used) {
            submit(model, &model->pending[i]);
        }
    }
}

// ---- Reads

struct model_read {
    struct storemodel *model;
    uint32_t copyset, chunk;
    uint32_t offset, size;
    uint64_t version;
    bool exact;
};

static void read_answered(void *user, const struct cg_read_result *result) {
    struct model_read *read = user;
    struct storemodel *model = read->model;
    const struct model_chunk *chunk = &model->chunks[read->copyset][read->chunk];
    model->reads--;
    if (result->status == STATUS(CRC_FAIL)) {
        storemodel_fail(model, "good data fails its checksum");
    }
    if (read->exact && chunk->version == read->version &&
        (result->status == STATUS(SUCCESS) || result->status == STATUS(CHUNK_NOTEXIST))) {
        static const uint8_t zeros[MODEL_CHUNK_SIZE];
        const uint8_t *got = result->status == STATUS(SUCCESS) ? result->data : zeros;
        if (memcmp(got, chunk->data + read->offset, read->size) != 0) {
            uint32_t at = 0;
            while (got[at] == chunk->data[read->offset + at]) {
                at++;
            }
            fprintf(stderr, "chunk %u/%u, byte %u: %u, expected %u\n", read->copyset, read->chunk,
                    read->offset + at, got[at], chunk->data[read->offset + at]);
            storemodel_fail(model, "a read returned other data than was written");
        }
        model->checked_reads++;
    }
    free(read);
}

static void start_read(struct storemodel *model, uint32_t copyset, uint32_t chunk, uint32_t offset,
                       uint32_t size, bool exact) {
    struct model_read *read = malloc(sizeof(*read));
    *read = (struct model_read){
        model, copyset, chunk, offset, size, model->chunks[copyset][chunk].version, exact};
    struct cg_query query = {
        .kind = CG_READ_DATA,
        .copyset = cg_store_copyset(model->store, 1, copyset + 1),
        .chunk_id = chunk + 1,
        .offset = offset,
        .size = size,
        .done = read_answered,
        .user = read,
    };
    model->reads++;
    cg_store_read(model->store, &query);
}

void storemodel_read(struct storemodel *model) {
    uint32_t copyset = (uint32_t)storemodel_pick(model, MODEL_COPYSETS);
    uint32_t chunk = (uint32_t)storemodel_pick(model, MODEL_CHUNKS);
    struct cg_mutation range = {0};
    choose_range(model, &range);
    bool alone = !anything_pending(model, copyset, chunk, range.offset, range.size);
    start_read(model, copyset, chunk, range.offset, range.size, alone);
}

// ---- Life and death

void storemodel_run(struct storemodel *model, unsigned steps) {
    for (unsigned i = 0; i < steps; i++) {
        simreactor_iterate(model->reactor);
        if (!simdisk_step(model->sim)) {
            return;
        }
    }
}

static void step(struct storemodel *model) {
    storemodel_run(model, 100);
    if (simdisk_pending(model->sim) == 0) {
        simreactor_advance(model->reactor, 10 * CG_NS_PER_MS);
    }
}

// One chunk after the other: not all of them fit into memory at once.
void storemodel_check(struct storemodel *model) {
    for (uint32_t copyset = 0; copyset < MODEL_COPYSETS; copyset++) {
        for (uint32_t chunk = 0; chunk < MODEL_CHUNKS; chunk++) {
            uint64_t wanted = model->checked_reads + 1;
            for (unsigned turns = 0; model->checked_reads < wanted; turns++) {
                start_read(model, copyset, chunk, 0, MODEL_CHUNK_SIZE, true);
                do {
                    step(model);
                } while (model->reads > 0);
                if (turns > 3000) {
                    storemodel_fail(model, "a chunk cannot be read");
                }
            }
        }
    }
}

static bool busy(const struct storemodel *model) {
    struct cg_store_stats stats;
    cg_store_stats(model->store, &stats);
    // On a retired disk what had no answer keeps its place until the next life tells.
    for (unsigned i = 0; i < MODEL_PENDING && stats.disk_error == 0; i++) {
        if (model->pending[i].used) {
            return true;
        }
    }
    return model->reads > 0 || !cg_store_idle(model->store);
}

void storemodel_drain(struct storemodel *model) {
    for (unsigned turns = 0; busy(model); turns++) {
        step(model);
        if (turns > 3000) {
            storemodel_fail(model, "the store got stuck");
        }
    }
}

#define FOREIGN "foreign"

void storemodel_crowd(struct storemodel *model) {
    struct cg_disk *disk = simdisk_disk(model->sim);
    int handle = disk->ops->open(disk, FOREIGN, O_RDWR | O_CREAT);
    uint64_t free_bytes;
    uint64_t total_bytes;
    int64_t size = disk->ops->size(disk, handle);
    if (size < 0 || disk->ops->space(disk, &free_bytes, &total_bytes) != 0 ||
        disk->ops->allocate(disk, handle, 0, (uint64_t)size + free_bytes) != 0) {
        storemodel_fail(model, "the other program cannot fill the disk");
    }
    disk->ops->close(disk, handle);
}

void storemodel_uncrowd(struct storemodel *model) {
    struct cg_disk *disk = simdisk_disk(model->sim);
    int result = disk->ops->unlink(disk, FOREIGN);
    if (result != 0 && result != -ENOENT) {
        storemodel_fail(model, "the other program cannot free the disk");
    }
}

// Which of the mutations without an answer took effect.
static void settle(struct storemodel *model) {
    for (unsigned i = 0; i < MODEL_PENDING; i++) {
        struct model_op *op = &model->pending[i];
        if (!op->used) {
            continue;
        }
        struct cg_copyset *copyset = cg_store_copyset(model->store, 1, op->copyset + 1);
        if (op->mutation.kind == CG_MUTATE_EPOCH) {
            if (cg_copyset_epoch(copyset, VOLUME) >= op->mutation.epoch) {
                model->epoch[op->copyset] = cg_copyset_epoch(copyset, VOLUME);
            }
        } else if (!op->known_done && cg_dedup_check(&copyset->dedup, CLIENT,
                                                     op->mutation.sequence) == CG_DEDUP_DONE) {
            op->known_done = true;
            apply_to(chunk_of(model, op), op);
            model->replays_checked++;
        }
    }
    for (uint32_t i = 0; i < MODEL_COPYSETS; i++) {
        struct cg_copyset *copyset = cg_store_copyset(model->store, 1, i + 1);
        if (cg_copyset_epoch(copyset, VOLUME) < model->epoch[i]) {
            storemodel_fail(model, "an acknowledged epoch is lost");
        }
    }
}

// New replicas find out that they are alone, old ones have applied what they hold.
static void until_led(struct storemodel *model) {
    for (uint32_t i = 0; i < MODEL_COPYSETS; i++) {
        struct cg_copyset *copyset = cg_store_copyset(model->store, 1, i + 1);
        for (unsigned turns = 0; !cg_copyset_leads(copyset); turns++) {
            step(model);
            if (turns > 3000) {
                storemodel_fail(model, "a replica that is alone does not lead");
            }
        }
    }
}

int storemodel_open(struct storemodel *model) {
    model->reactor = simreactor_create(model->sim);
    if (cg_buffer_pool_create(64U << 20, &model->pool) != 0) {
        abort();
    }
    int result = cg_store_open(simdisk_disk(model->sim), model->reactor, model->pool,
                               &model->options, &model->store, model->error, sizeof(model->error));
    if (result != 0) {
        cg_buffer_pool_destroy(model->pool);
        simreactor_destroy(model->reactor);
        model->store = NULL;
        return result;
    }
    for (uint32_t i = 0; i < MODEL_COPYSETS; i++) {
        static const uint64_t self = 1;
        struct cg_copyset_spec spec = {
            .pool = 1, .copyset = i + 1, .self = self, .founders = &self, .founder_count = 1};
        int added = cg_store_add_copyset(model->store, &spec);
        if (added != 0) {
            snprintf(model->error, sizeof(model->error), "%s", strerror(-added));
            storemodel_fail(model, "cannot add a copyset");
        }
    }
    until_led(model);
    settle(model);
    return 0;
}

// The objects of a dead process are dropped as they are.
static void forget(struct storemodel *model) {
    model->store = NULL;
    model->reads = 0;
}

void storemodel_crash(struct storemodel *model, enum simdisk_crash mode) {
    simdisk_crash(model->sim, mode);
    forget(model);
}

void storemodel_kill(struct storemodel *model) {
    simdisk_kill(model->sim);
    forget(model);
}

void storemodel_close(struct storemodel *model) {
    storemodel_drain(model);
    cg_store_close(model->store);
    cg_buffer_pool_destroy(model->pool);
    simreactor_destroy(model->reactor);
    model->store = NULL;
    // A failure that did not come is not the next life's.
    simdisk_fail_sync(model->sim, 0, 0);
    simdisk_fail_write(model->sim, 0, 0, false);
}
