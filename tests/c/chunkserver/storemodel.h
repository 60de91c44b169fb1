// SPDX-License-Identifier: BSD-3-Clause
//
// A store on a simulated disk, together with a model of what it must hold: an array of bytes per
// chunk, changed when a mutation is answered with SUCCESS. A mutation without an answer when the
// store dies may have taken effect or not; the store's own window says which, and the bytes must
// agree with it.
#ifndef CG_TESTS_STOREMODEL_H
#define CG_TESTS_STOREMODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "chunkserver/store.h"
#include "simdisk.h"

#define MODEL_COPYSETS   2U
#define MODEL_CHUNKS     3U // of each copyset
#define MODEL_CHUNK_SIZE (128U << 10)
#define MODEL_PENDING    24U
#define MODEL_HISTORY    64U

struct model_chunk {
    uint8_t data[MODEL_CHUNK_SIZE];
    uint64_t version; // counts submissions and effects
};

struct model_op {
    bool used;
    bool known_done; // took effect before the store died: a retry must change nothing
    uint32_t copyset;
    uint32_t chunk;
    struct cg_mutation mutation;
    uint8_t *data;      // WRITE: size bytes; COMPARE_AND_WRITE: twice that
    uint64_t low_epoch; // the copyset's acknowledged epoch at submission
    struct storemodel *model;
};

struct storemodel {
    struct simdisk *sim;
    struct cg_reactor *reactor;
    struct cg_buffer_pool *pool;
    struct cg_store *store; // NULL while closed
    struct cg_store_options options;
    struct model_chunk chunks[MODEL_COPYSETS][MODEL_CHUNKS];
    uint64_t epoch[MODEL_COPYSETS]; // acknowledged, of volume 7
    struct model_op pending[MODEL_PENDING];
    struct model_op history[MODEL_HISTORY]; // answered ones, to be sent again
    unsigned history_count;
    uint64_t sequence;
    unsigned reads; // under way
    uint64_t acknowledged, refused, checked_reads, replays_checked;
    bool full_disk; // NOSPACE is no surprise
    char error[512];
};

void storemodel_init(struct storemodel *model, const struct simdisk_options *disk,
                     const struct cg_store_options *options);
void storemodel_destroy(struct storemodel *model);
uint64_t storemodel_pick(struct storemodel *model, uint64_t below);

// Opens the store; after a death settles which pending mutations took effect.
int storemodel_open(struct storemodel *model);

// Submits a random mutation (or a read); does nothing if too many are under way.
void storemodel_mutate(struct storemodel *model);
void storemodel_read(struct storemodel *model);
// Sends an answered mutation once more.
void storemodel_repeat(struct storemodel *model);
// Sends again what was pending when the store died.
void storemodel_retry(struct storemodel *model);

// Lets up to `steps` things happen.
void storemodel_run(struct storemodel *model, unsigned steps);
// Until nothing is pending.
void storemodel_drain(struct storemodel *model);
// Compares every byte; nothing may be under way.
void storemodel_check(struct storemodel *model);

// Another program takes all the space that is free, or gives back what it took.
void storemodel_crowd(struct storemodel *model);
void storemodel_uncrowd(struct storemodel *model);

// Ends the store: power loss, kill, or in order (drained, without a checkpoint).
void storemodel_crash(struct storemodel *model, enum simdisk_crash mode);
void storemodel_kill(struct storemodel *model);
void storemodel_close(struct storemodel *model);

// The seed that a failure names.
extern uint64_t storemodel_seed;

_Noreturn void storemodel_fail(const struct storemodel *model, const char *what);

#endif
