// SPDX-License-Identifier: BSD-3-Clause
//
// Three replicas under load while nodes die, disks forget, and the network does what it likes, from
// seeds: `test_store_trio [first seed] [seeds]`.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "triomodel.h"

#define SEEDS_DEFAULT 40U
#define BATCH         10U // seeds a process: what dies is never freed
#define TURNS         300U

static struct trio_counts *counts; // shared with the children

// ---- Faults

static unsigned count_up(const struct trio *trio) {
    unsigned up = 0;
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        up += trio->node[i].up;
    }
    return up;
}

static void end_node(struct trio *trio, unsigned at) {
    if (trio_pick(trio, 3) == 0) {
        trio_kill(trio, at);
    } else {
        trio_crash(trio, at, (enum simdisk_crash)trio_pick(trio, SIMDISK_CRASH_MODES));
    }
    trio->node[at].up_at_ns = trio->now_ns + trio_pick(trio, 2 * CG_NS_PER_S);
}

// The power of the rack.
static void end_all(struct trio *trio) {
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        if (trio->node[i].up) {
            trio_crash(trio, i, SIMDISK_DROP_ALL);
            trio->node[i].up_at_ns = trio->now_ns + trio_pick(trio, CG_NS_PER_S);
        }
    }
}

static void heal(struct trio *trio) {
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        for (unsigned j = 0; j < TRIO_NODES; j++) {
            trio->cut[i][j] = false;
        }
    }
    trio->lose = 0;
    trio->delay_ns = 2 * CG_NS_PER_MS;
}

static void cut(struct trio *trio) {
    unsigned alone = (unsigned)trio_pick(trio, TRIO_NODES);
    bool in = trio_pick(trio, 3) > 0;
    bool out = !in || trio_pick(trio, 2) == 0;
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        trio->cut[i][alone] = trio->cut[i][alone] || in;
        trio->cut[alone][i] = trio->cut[alone][i] || out;
    }
}

static void transfer(struct trio *trio) {
    uint32_t copyset = (uint32_t)trio_pick(trio, TRIO_COPYSETS);
    struct trio_node *leader = trio_leader(trio, copyset);
    if (leader != NULL) {
        (void)cg_copyset_log_transfer(cg_copyset_raft(trio_copyset(leader, copyset)),
                                      1 + trio_pick(trio, TRIO_NODES));
    }
}

static void fail_disk(struct trio *trio, unsigned at) {
    unsigned nth = (unsigned)trio_pick(trio, 20);
    if (trio_pick(trio, 2) == 0) {
        simdisk_fail_sync(trio->node[at].sim, nth, -EIO);
    } else {
        simdisk_fail_write(trio->node[at].sim, nth, -EIO, true);
    }
}

static bool disk_failed(const struct trio *trio, unsigned at) {
    return trio->node[at].up && cg_store_disk_error(trio->node[at].store) != 0;
}

static void fault(struct trio *trio) {
    unsigned at = (unsigned)trio_pick(trio, TRIO_NODES);
    switch (trio_pick(trio, 15)) {
    case 0:
    case 1:
        if (trio->node[at].up && count_up(trio) > 1) {
            end_node(trio, at);
        }
        break;
    case 2:
        if (trio_pick(trio, 4) == 0) {
            end_all(trio);
        }
        break;
    case 3:
        cut(trio);
        break;
    case 4:
    case 5:
        heal(trio);
        break;
    case 6:
        trio->lose = (unsigned)trio_pick(trio, 200);
        trio->delay_ns = 1 + trio_pick(trio, 30 * CG_NS_PER_MS);
        break;
    case 7:
        transfer(trio);
        break;
    case 8:
        trio_stop(trio, at, trio_pick(trio, 3 * CG_NS_PER_S));
        break;
    case 9:
        if (trio_pick(trio, 3) == 0 && count_up(trio) == TRIO_NODES) {
            fail_disk(trio, at);
        }
        break;
    case 10:
        // Whoever runs the store gives a disk that failed another chance.
        if (disk_failed(trio, at)) {
            end_node(trio, at);
        }
        break;
    case 11:
        simdisk_delay_writes(trio->node[at].sim, (unsigned)trio_pick(trio, 200));
        break;
    default:
        if (trio->node[at].up) {
            cg_store_checkpoint(trio->node[at].store);
        }
        break;
    }
}

static void restart_due(struct trio *trio, bool all) {
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        if (!trio->node[i].up && (all || trio->node[i].up_at_ns <= trio->now_ns)) {
            trio_start(trio, i);
        }
    }
}

// Faults that were planned and did not come are called off.
static void mend_all(struct trio *trio) {
    for (unsigned i = 0; i < TRIO_NODES; i++) {
        simdisk_fail_sync(trio->node[i].sim, 0, 0);
        simdisk_fail_write(trio->node[i].sim, 0, 0, false);
        if (disk_failed(trio, i)) {
            end_node(trio, i);
        }
    }
}

static void run_seed(uint64_t seed) {
    struct trio *trio = malloc(sizeof(*trio));
    struct cg_store_options options = {
        .chunks_max = seed % 3 == 0 ? 3 : 8,
        .descriptors_max = 2,
        .wal_bytes = 8U << 20,
        .wal_segment_bytes = 2U << 20,
        .log_cache_bytes = seed % 2 == 0 ? 256U << 10 : 0,
        .checkpoint_interval_ns = 2 * CG_NS_PER_S,
    };
    trio_init(trio, seed, &options);
    restart_due(trio, true);
    for (unsigned turn = 0; turn < TURNS; turn++) {
        switch (trio_pick(trio, 8)) {
        case 0:
            fault(trio);
            break;
        case 1:
            trio_repeat(trio);
            break;
        case 2:
        case 3:
            trio_read(trio);
            break;
        default:
            for (uint64_t n = 1 + trio_pick(trio, 4); n > 0; n--) {
                trio_mutate(trio);
            }
            break;
        }
        for (uint64_t n = trio_pick(trio, 200); n > 0; n--) {
            trio_step(trio);
        }
        restart_due(trio, false);
    }
    heal(trio);
    mend_all(trio);
    restart_due(trio, true);
    trio_settle(trio);
    trio_compare(trio);
    end_all(trio);
    restart_due(trio, true);
    trio_settle(trio);
    trio_compare(trio);
    counts->acknowledged += trio->counts.acknowledged;
    counts->refused += trio->counts.refused;
    counts->redirected += trio->counts.redirected;
    counts->retried += trio->counts.retried;
    counts->reads += trio->counts.reads;
    counts->deaths += trio->counts.deaths;
    counts->leaders += trio->counts.leaders;
    counts->checkpoints += trio->counts.checkpoints;
    counts->copies += trio->counts.copies;
    trio_destroy(trio);
    free(trio);
}

static void print_line(void *context, enum cg_log_level level, const char *line) {
    (void)context;
    fprintf(stderr, "  %d: %s\n", (int)level, line);
}

static bool run_batch(uint64_t from, uint64_t to) {
    pid_t child = fork();
    if (child == 0) {
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
    if (getenv("STORE_TRIO_LOG") != NULL) {
        cg_log_set_sink(print_line, NULL, CG_LOG_DEBUG);
    }
    counts = mmap(NULL, sizeof(*counts), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (counts == MAP_FAILED) {
        abort();
    }
    for (uint64_t seed = first; seed < first + seeds; seed += BATCH) {
        uint64_t end = seed + BATCH < first + seeds ? seed + BATCH : first + seeds;
        if (!run_batch(seed, end)) {
            return 1;
        }
    }
    printf("%" PRIu64 " seeds, %" PRIu64 " deaths, %" PRIu64 " leaders: %" PRIu64
           " mutations acknowledged, %" PRIu64 " refused, %" PRIu64 " sent, %" PRIu64
           " redirected; %" PRIu64 " reads checked, %" PRIu64 " checkpoints, %" PRIu64
           " states copied\n",
           seeds, counts->deaths, counts->leaders, counts->acknowledged, counts->refused,
           counts->retried, counts->redirected, counts->reads, counts->checkpoints, counts->copies);
    return 0;
}
