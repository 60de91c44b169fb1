// SPDX-License-Identifier: BSD-3-Clause
//
// Is each block's history one of a register? All values written are different, so it is known which
// write a read has seen, and that decides it without a search (Gibbons and Korach, "Testing shared
// memories", 1997, section 4): take for each value the earliest response f and the latest
// invocation s among its write and reads. If f < s the value was surely there from f to s (a
// forward zone), else it was there at some moment between s and f (a backward zone). A history is
// linearizable if no read ends before its write begins, no two forward zones overlap, and no
// backward zone lies inside a forward one.
//
// A write that nobody saw and whose end is unknown need not have taken place. What is there at the
// end counts as read after everything else.
#include <stdlib.h>

#include "sim.h"

struct zone {
    uint64_t value;
    uint64_t written; // invocation of the write
    uint64_t first_end;
    uint64_t last_start;
    bool seen, exists;
};

static struct zone zones[SIM_CLIENTS * SIM_OPS + 1]; // by value

static void add(struct sim *sim, const struct sim_op *op) {
    if (op->invoked == 0 || (op->read && !op->done)) {
        return;
    }
    if (op->value > SIM_CLIENTS * SIM_OPS) {
        sim_fail(sim, "a read of block %u returns a value that nobody wrote", op->block);
    }
    struct zone *zone = &zones[op->value];
    zone->seen = zone->seen || op->done;
    uint64_t end = op->done ? op->returned : UINT64_MAX;
    if (end < zone->first_end) {
        zone->first_end = end;
    }
    if (op->invoked > zone->last_start) {
        zone->last_start = op->invoked;
    }
    if (!op->read) {
        zone->exists = true;
        zone->written = op->invoked;
    }
}

static int by_start(const void *a, const void *b) {
    const struct zone *x = a;
    const struct zone *y = b;
    return x->first_end < y->first_end ? -1 : x->first_end > y->first_end;
}

static void check_block(struct sim *sim, uint32_t block) {
    static struct zone forward[SIM_CLIENTS * SIM_OPS + 1];
    uint32_t count = 0;
    const uint32_t all = SIM_CLIENTS * SIM_OPS + 1;
    for (uint32_t i = 0; i < all; i++) {
        const struct zone *zone = &zones[i];
        if (!zone->seen) {
            continue;
        }
        if (!zone->exists) {
            sim_fail(sim, "block %u: value %u was read and never written there", block, i);
        }
        if (zone->first_end < zone->written) {
            sim_fail(sim, "block %u: value %u was read before it was written", block, i);
        }
        if (zone->first_end < zone->last_start) {
            forward[count++] = *zone;
        }
    }
    qsort(forward, count, sizeof(forward[0]), by_start);
    for (uint32_t i = 1; i < count; i++) {
        if (forward[i].first_end < forward[i - 1].last_start) {
            sim_fail(sim, "block %u: values %lu and %lu were both there at step %lu", block,
                     forward[i - 1].value, forward[i].value, forward[i].first_end);
        }
    }
    for (uint32_t i = 0; i < all; i++) {
        const struct zone *zone = &zones[i];
        if (!zone->seen || zone->first_end < zone->last_start) {
            continue;
        }
        for (uint32_t j = 0; j < count; j++) {
            if (forward[j].first_end < zone->last_start &&
                zone->first_end < forward[j].last_start) {
                sim_fail(sim, "block %u: value %lu had to be there while %lu was", block,
                         zone->value, forward[j].value);
            }
        }
    }
}

void sim_check_histories(struct sim *sim, const struct sim_node *last) {
    for (uint32_t block = 0; block < SIM_BLOCKS; block++) {
        for (uint32_t i = 0; i < SIM_CLIENTS * SIM_OPS + 1; i++) {
            zones[i] = (struct zone){.value = i, .first_end = UINT64_MAX};
        }
        // Value 0 is there at the beginning.
        zones[0].exists = true;
        zones[0].first_end = 0;
        for (uint32_t c = 0; c < SIM_CLIENTS; c++) {
            for (uint32_t i = 0; i < sim->client[c].next; i++) {
                const struct sim_op *op = &sim->client[c].op[i];
                if (op->block == block && !(op->read && sim->options.wild_clocks)) {
                    add(sim, op);
                }
            }
        }
        if (last != NULL) {
            const struct sim_op final = {.read = true,
                                         .done = true,
                                         .block = block,
                                         .value = last->value[block],
                                         .invoked = sim->step + 1,
                                         .returned = sim->step + 1};
            add(sim, &final);
        }
        check_block(sim, block);
    }
}
