// SPDX-License-Identifier: BSD-3-Clause
//
// Power loss, kills, full and failing disks against the whole store, from seeds:
// `test_store_power [first seed] [seeds]`. Each seed is one disk with several lives.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "simreactor.h"
#include "storemodel.h"

#define SEEDS_DEFAULT 150U
#define LIVES         5

#define BATCH 25U // seeds a process: what dies is never freed

struct counts {
    uint64_t acknowledged, refused, reads, uncertain, checkpoints, deaths;
    uint64_t scrubs, scrubbed, scrub_skipped;
};

static struct counts *counts; // shared with the children

static void work(struct storemodel *model, bool failures, bool crowded) {
    for (uint64_t turns = storemodel_pick(model, 150); turns > 0; turns--) {
        switch (storemodel_pick(model, 12)) {
        case 0:
            simreactor_advance(model->reactor, storemodel_pick(model, 2 * CG_NS_PER_S));
            break;
        case 1:
            simdisk_delay_writes(model->sim, (unsigned)storemodel_pick(model, 5));
            break;
        case 2:
            storemodel_repeat(model);
            break;
        case 3:
            cg_store_checkpoint(model->store);
            if (storemodel_pick(model, 4) == 0) {
                cg_store_scrub(model->store, ++counts->scrubs); // -ENOTSUP where it is off
            }
            break;
        case 4:
        case 5:
            storemodel_read(model);
            break;
        case 6:
            if (crowded && storemodel_pick(model, 4) == 0) {
                storemodel_uncrowd(model);
            } else if (crowded) {
                storemodel_crowd(model);
            }
            if (failures && storemodel_pick(model, 20) == 0) {
                if (storemodel_pick(model, 2) == 0) {
                    simdisk_fail_sync(model->sim, (unsigned)storemodel_pick(model, 4), -EIO);
                } else {
                    simdisk_fail_write(model->sim, (unsigned)storemodel_pick(model, 9), -EIO, true);
                }
            }
            break;
        default:
            for (uint64_t n = 1 + storemodel_pick(model, 6); n > 0; n--) {
                storemodel_mutate(model);
            }
            break;
        }
        storemodel_run(model, (unsigned)storemodel_pick(model, 12));
        if (model->options.scrub_rate != 0) {
            simreactor_advance(model->reactor, CG_NS_PER_MS / 2); // its next piece
        }
    }
}

// Whatever it read in the middle of, nothing on this disk is damaged.
static void check_scrub(const struct storemodel *model, const struct cg_scrub_stats *scrub) {
    if (scrub->bad_blocks != 0) {
        storemodel_fail(model, "the scrub calls a good block bad");
    }
    counts->scrubbed += scrub->checked;
    counts->scrub_skipped += scrub->skipped;
}

static void end_life(struct storemodel *model) {
    struct cg_store_stats stats;
    cg_store_stats(model->store, &stats);
    counts->checkpoints += stats.checkpoints;
    check_scrub(model, &stats.scrub);
    switch (storemodel_pick(model, 4)) {
    case 0:
        storemodel_kill(model);
        break;
    case 1:
        if (stats.disk_error == 0 && !model->full_disk) {
            storemodel_close(model);
            break;
        }
        storemodel_kill(model);
        break;
    default:
        storemodel_crash(model, (enum simdisk_crash)storemodel_pick(model, SIMDISK_CRASH_MODES));
        break;
    }
    counts->deaths++;
}

static void must_open(struct storemodel *model) {
    if (storemodel_open(model) != 0) {
        storemodel_fail(model, "the store does not open");
    }
}

// Within some seconds nothing is refused for want of space any more.
static void give_space(struct storemodel *model) {
    storemodel_uncrowd(model);
    for (int i = 0; i < 5; i++) {
        simreactor_advance(model->reactor, CG_NS_PER_S);
        storemodel_run(model, 10000);
    }
    model->full_disk = false;
}

static void write_again(struct storemodel *model) {
    uint64_t before = model->acknowledged;
    for (int i = 0; i < 40; i++) {
        storemodel_mutate(model);
        storemodel_drain(model);
    }
    if (model->acknowledged == before) {
        storemodel_fail(model, "nothing can be written though there is space");
    }
}

static void run_seed(uint64_t seed) {
    struct storemodel *model = malloc(sizeof(*model));
    struct simdisk_options disk = {.seed = seed};
    struct cg_store_options options = {
        .chunks_max = seed % 3 == 0 ? 2 : 4, // fewer than there are: they come and go
        .descriptors_max = 2,
        .wal_bytes = 8U << 20,
        .wal_segment_bytes = 2U << 20,
        .checkpoint_interval_ns = 2 * CG_NS_PER_S,
        .scrub_rate = seed % 2 == 0 ? 0 : 1U << 30,
    };
    bool failures = seed % 4 == 1;
    bool full = seed % 4 == 3;
    if (full) {
        // The log grows as it is used, the chunks take the rest; the reserve is for what was
        // accepted.
        disk.capacity_bytes = (7U << 20) + seed % 16 * (256U << 10);
        options.reserve_bytes = 3U << 20;
    }
    bool crowded = seed % 8 == 6;
    if (crowded) {
        disk.capacity_bytes = (24U << 20) + seed % 16 * (256U << 10);
        options.reserve_bytes = 8U << 20;
    }
    storemodel_init(model, &disk, &options);
    model->full_disk = full || crowded;
    for (int life = 0; life < LIVES; life++) {
        must_open(model);
        storemodel_check(model);
        storemodel_retry(model);
        work(model, failures, crowded);
        end_life(model);
    }
    simdisk_fail_write(model->sim, 1U << 30, -EIO, false);
    must_open(model);
    storemodel_check(model);
    if (crowded) {
        give_space(model);
    }
    storemodel_retry(model);
    storemodel_drain(model);
    if (crowded) {
        write_again(model);
    }
    storemodel_check(model);
    cg_store_checkpoint(model->store);
    cg_store_scrub(model->store, ++counts->scrubs);
    storemodel_drain(model);
    cg_store_scrub_stop(model->store);
    storemodel_close(model);
    must_open(model);
    storemodel_check(model);
    storemodel_close(model);
    counts->acknowledged += model->acknowledged;
    counts->refused += model->refused;
    counts->reads += model->checked_reads;
    counts->uncertain += model->replays_checked;
    storemodel_destroy(model);
    free(model);
}

// Without power when every segment of the log was needed, on a disk that others have filled up
// since. A reserve for one segment and little more is used up before the log is applied.
static void start_without_a_spare_segment(uint64_t reserve_bytes, bool enough) {
    struct storemodel *model = malloc(sizeof(*model));
    struct simdisk_options disk = {.seed = 1, .capacity_bytes = 24U << 20};
    struct cg_store_options options = {
        .wal_bytes = 8U << 20, .wal_segment_bytes = 2U << 20, .reserve_bytes = reserve_bytes};
    storemodel_init(model, &disk, &options);
    must_open(model);
    while (model->acknowledged < 10) {
        storemodel_mutate(model);
        storemodel_run(model, 100);
    }
    storemodel_crash(model, SIMDISK_DROP_ALL);
    const struct cg_disk_ops *ops = simdisk_disk(model->sim)->ops;
    for (unsigned slot = 1; slot < 8; slot++) {
        char name[32];
        snprintf(name, sizeof(name), "wal/segment-%06u", slot);
        (void)ops->unlink(simdisk_disk(model->sim), name); // prepared ahead, if it is there
    }
    storemodel_crowd(model);
    model->full_disk = true;
    must_open(model);
    if (enough) {
        storemodel_check(model);
    }
    storemodel_retry(model);
    storemodel_drain(model);
    give_space(model);
    write_again(model);
    storemodel_check(model);
    storemodel_close(model);
    storemodel_destroy(model);
    free(model);
}

static void print_line(void *context, enum cg_log_level level, const char *line) {
    (void)context;
    fprintf(stderr, "  %d: %s\n", (int)level, line);
}

static bool run_batch(uint64_t from, uint64_t to, bool first) {
    pid_t child = fork();
    if (child == 0) {
        if (first) {
            start_without_a_spare_segment(8U << 20, true);
            start_without_a_spare_segment(3U << 20, false);
        }
        for (uint64_t seed = from; seed < to; seed++) {
            run_seed(seed);
        }
        _exit(0);
    }
    int status = -1;
    return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}

int main(int argc, char **argv) {
    uint64_t first = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    uint64_t seeds = argc > 2 ? strtoull(argv[2], NULL, 10) : SEEDS_DEFAULT;
    if (getenv("STORE_POWER_LOG") != NULL) {
        cg_log_set_sink(print_line, NULL, CG_LOG_DEBUG);
    }
    counts = mmap(NULL, sizeof(*counts), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (counts == MAP_FAILED) {
        abort();
    }
    for (uint64_t seed = first; seed < first + seeds; seed += BATCH) {
        uint64_t end = seed + BATCH < first + seeds ? seed + BATCH : first + seeds;
        if (!run_batch(seed, end, seed == first)) {
            return 1;
        }
    }
    printf("%" PRIu64 " seeds, %" PRIu64 " deaths: %" PRIu64 " mutations acknowledged, %" PRIu64
           " refused, %" PRIu64 " without an answer found applied, %" PRIu64
           " reads checked, %" PRIu64 " checkpoints, %" PRIu64 " blocks scrubbed, %" PRIu64
           " passed over\n",
           seeds, counts->deaths, counts->acknowledged, counts->refused, counts->uncertain,
           counts->reads, counts->checkpoints, counts->scrubbed, counts->scrub_skipped);
    return 0;
}
