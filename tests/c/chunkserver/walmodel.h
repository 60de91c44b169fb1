// SPDX-License-Identifier: BSD-3-Clause
//
// A log on a simulated disk, together with a model of what it must hold. Every record carries a
// serial number from which its bytes follow. `history` is what the log may hold, in order: a replay
// must report a prefix of it that contains everything acknowledged, and what it leaves out is gone
// for good.
#ifndef CG_TESTS_WALMODEL_H
#define CG_TESTS_WALMODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "chunkserver/wal.h"
#include "simdisk.h"

struct model_record;

struct walmodel {
    struct simdisk *sim;
    struct cg_reactor *reactor;
    struct cg_wal *wal; // NULL while closed
    struct cg_wal_options options;
    struct model_record **history;
    size_t count, capacity;
    size_t replayed;     // records that the replay under way has reported
    uint64_t serial;     // of the last record made
    uint64_t checkpoint; // from_lsn of the next replay
    size_t first;        // history from here on is at or above the checkpoint
    uint64_t last_acked; // serial; acknowledgements must come in order
    int failure;         // first status of an append that was not 0
    bool expect_failures;
    bool uniform;     // walmodel_append makes records that are all alike in size
    unsigned pending; // appends not done
    struct cg_buffer_pool *pool;
    bool tight;             // the pool may run out
    struct cg_list fetches; // not done
    uint64_t fetched;       // fetches that gave all records, ever
    uint64_t recycled;      // fetches that came too late
    char error[256];        // of the last open
};

void walmodel_init(struct walmodel *model, const struct simdisk_options *disk,
                   const struct cg_wal_options *options);
void walmodel_destroy(struct walmodel *model);

// Opens and replays, checking against the history. Returns what cg_wal_open returned.
int walmodel_open(struct walmodel *model);

// Appends one record of random shape, or with `blocks` of payload.
void walmodel_append(struct walmodel *model);
void walmodel_append_blocks(struct walmodel *model, unsigned blocks);

// Ends the iteration, then lets up to `steps` disk operations complete.
void walmodel_run(struct walmodel *model, unsigned steps);

// Reads the batch of an acknowledged record back, checking against the history when it comes.
// Returns false if there is none. Recycled ones are asked for as well; they may be refused.
bool walmodel_fetch(struct walmodel *model);

// Runs until nothing is pending and no fetch is under way.
void walmodel_drain(struct walmodel *model);

// Makes everything acknowledged so far unneeded, or a random part of it.
void walmodel_recycle(struct walmodel *model, bool all);

// Power loss or kill, after which the log is closed.
void walmodel_crash(struct walmodel *model, enum simdisk_crash mode);
void walmodel_kill(struct walmodel *model);
void walmodel_close(struct walmodel *model);

// The files that hold the log position `lsn`, newest segment first; sets the path and offset.
// Returns false if no segment does.
bool walmodel_locate(const struct walmodel *model, uint64_t lsn, char path[64], uint64_t *offset);

// Frees what a dead process's log had in memory; its handles and operations are gone already.
void walmodel_drop(struct cg_wal *wal);

// Position of an acknowledged record of the history; `size` is the number of those.
size_t walmodel_acked(const struct walmodel *model);
uint64_t walmodel_lsn(const struct walmodel *model, size_t i);

// Prints the seed and aborts.
void walmodel_fail(const struct walmodel *model, const char *what) __attribute__((noreturn));
extern uint64_t walmodel_seed;

#endif
