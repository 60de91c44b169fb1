// SPDX-License-Identifier: BSD-3-Clause
//
// Power loss, kills and rot against the log, from seeds: `test_wal_power [first seed] [seeds]`.
// Each seed is one disk with its own life of appends, recyclings, crashes and recoveries.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "chunkserver/wal_format.h"
#include "simreactor.h"
#include "walmodel.h"

#define SEEDS_DEFAULT 600U
#define LIVES         6

static uint64_t crashes, kills, dark, refusals, cuts, fetched, recycled;

static uint64_t pick(struct walmodel *model, uint64_t below) {
    return simdisk_random(model->sim) % below;
}

static void must_open(struct walmodel *model, const char *what) {
    size_t before = model->count;
    if (walmodel_open(model) != 0) {
        walmodel_fail(model, what);
    }
    cuts += before != model->count;
}

// Some work, broken off at a random point of it.
static void work(struct walmodel *model) {
    for (uint64_t turns = pick(model, 60); turns > 0; turns--) {
        switch (pick(model, 10)) {
        case 0:
            walmodel_recycle(model, pick(model, 2) == 0);
            break;
        case 1:
            simreactor_advance(model->reactor, pick(model, 3 * CG_NS_PER_S));
            break;
        case 2:
            walmodel_run(model, (unsigned)pick(model, 30));
            break;
        case 3:
            simdisk_delay_writes(model->sim, (unsigned)pick(model, 5));
            break;
        case 4:
        case 5:
            for (uint64_t n = pick(model, 2 * CG_WAL_FETCHES); n > 0; n--) {
                (void)walmodel_fetch(model);
            }
            break;
        default:
            for (uint64_t n = 1 + pick(model, 6); n > 0; n--) {
                if (cg_wal_used(model->wal) + 8 * CG_WAL_BLOCK < cg_wal_capacity(model->wal)) {
                    walmodel_append(model);
                }
            }
            walmodel_run(model, (unsigned)pick(model, 4));
            break;
        }
    }
}

static void end_life(struct walmodel *model) {
    switch (pick(model, 4)) {
    case 0:
        walmodel_kill(model);
        kills++;
        break;
    case 1:
        walmodel_drain(model);
        walmodel_close(model);
        break;
    default:
        walmodel_crash(model, (enum simdisk_crash)pick(model, SIMDISK_CRASH_MODES));
        crashes++;
        break;
    }
}

static void must_refuse(struct walmodel *model, const char *path, uint64_t offset) {
    unsigned bit = (unsigned)pick(model, 8);
    simdisk_flip(model->sim, path, offset, bit);
    if (walmodel_open(model) != -EBADMSG) {
        walmodel_fail(model, "a flipped bit was not noticed");
    }
    simdisk_flip(model->sim, path, offset, bit);
    refusals++;
    must_open(model, "the log does not open after the bit was mended");
}

// A byte of the batch at `lsn`, or of its segment's header: each counts, but for the padding of the
// batch's header region.
static uint64_t pick_byte(struct walmodel *model, uint64_t lsn, char path[64]) {
    uint64_t start, length;
    if (!walmodel_locate(model, lsn, path, &start)) {
        walmodel_fail(model, "a needed record's segment is gone");
    }
    const uint8_t *bytes = simdisk_bytes(model->sim, path, &length);
    struct wal_batch_header header;
    if (!wal_batch_peek(bytes + start, &header)) {
        walmodel_fail(model, "a needed record's batch is gone");
    }
    if (pick(model, 5) == 0) {
        return pick(model, CG_WAL_BLOCK);
    }
    uint64_t at = pick(model, (uint64_t)header.used + header.payload);
    return start + (at < header.used ? at : at - header.used + header.region);
}

// After a recovery everything before is stated durable by the new segment's header; in a log that
// went idle, by the seal.
static void rot(struct walmodel *model) {
    if (pick(model, 2) == 0) {
        work(model);
        walmodel_drain(model);
        for (int i = 0; i < 3; i++) {
            simreactor_advance(model->reactor, 2 * CG_NS_PER_S);
            walmodel_run(model, 20);
        }
    }
    size_t acked = walmodel_acked(model);
    if (acked == 0) {
        return;
    }
    uint64_t lsn = walmodel_lsn(model, pick(model, acked));
    walmodel_crash(model, SIMDISK_ANY_SECTORS);
    char path[64];
    uint64_t offset = pick_byte(model, lsn, path);
    must_refuse(model, path, offset);
}

// The power goes again and again while the log is being opened.
static void open_in_the_dark(struct walmodel *model) {
    for (uint64_t tries = pick(model, 3); tries > 0; tries--) {
        simdisk_power_off(model->sim, (unsigned)pick(model, 12));
        int status = walmodel_open(model);
        enum simdisk_crash mode = (enum simdisk_crash)pick(model, SIMDISK_CRASH_MODES);
        if (status == 0) {
            walmodel_crash(model, mode);
        } else if (status == -EIO) {
            simdisk_crash(model->sim, mode);
        } else {
            walmodel_fail(model, "opening without power gave another error");
        }
        dark++;
    }
}

static void one_seed(uint64_t seed) {
    walmodel_seed = seed;
    struct simdisk_options disk = {.seed = seed, .sector = seed % 2 != 0 ? 512 : 4096};
    disk.fifo = seed % 3 == 0;
    disk.refuse_direct = seed % 7 == 0;
    struct cg_wal_options options = {
        .segment_bytes = (64 + seed % 5 * 32) << 10,
        .batches_in_flight = 1 + (unsigned)(seed % 4),
        .batch_bytes_max = seed % 2 != 0 ? 48 << 10 : 0,
    };
    options.capacity_bytes = 8 * options.segment_bytes;
    struct walmodel model;
    walmodel_init(&model, &disk, &options);
    model.uniform = seed % 4 == 1;
    open_in_the_dark(&model);
    must_open(&model, "a new log does not open");
    for (int life = 0; life < LIVES; life++) {
        work(&model);
        end_life(&model);
        open_in_the_dark(&model);
        must_open(&model, "the log does not open after a crash");
        if (pick(&model, 2) == 0) {
            // At once again: the same records must be there, whatever the recovery wrote.
            walmodel_crash(&model, (enum simdisk_crash)pick(&model, SIMDISK_CRASH_MODES));
            must_open(&model, "the log does not open a second time");
        }
        if (pick(&model, 3) == 0) {
            rot(&model);
        }
    }
    fetched += model.fetched;
    recycled += model.recycled;
    walmodel_destroy(&model);
}

int main(int argc, char **argv) {
    uint64_t first = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    uint64_t seeds = argc > 2 ? strtoull(argv[2], NULL, 10) : SEEDS_DEFAULT;
    for (uint64_t seed = first; seed < first + seeds; seed++) {
        one_seed(seed);
    }
    printf(
        "%llu seeds: %llu power losses, %llu kills, %llu openings cut short, %llu torn tails cut, "
        "%llu flipped bits refused, %llu batches read back, %llu were recycled\n",
        (unsigned long long)seeds, (unsigned long long)crashes, (unsigned long long)kills,
        (unsigned long long)dark, (unsigned long long)cuts, (unsigned long long)refusals,
        (unsigned long long)fetched, (unsigned long long)recycled);
    return cuts != 0 && refusals != 0 && fetched != 0 && recycled != 0 ? 0 : 1;
}
