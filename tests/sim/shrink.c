// SPDX-License-Identifier: BSD-3-Clause
//
// Makes a failing run small: leaves out stretches of faults and operations, halves of what is left,
// then quarters, and so on (Zeller's ddmin without the complements), as long as the run fails; then
// whole kinds of trouble, and the time after the failure.
#include <stdio.h>
#include <string.h>

#include "sim.h"

static const char *wanted; // the failure that is to stay

static bool fails(struct sim *sim, const struct sim_options *options) {
    sim_run(sim, options);
    return sim->failure[0] != '\0' && (wanted == NULL || sim->failure_kind == wanted);
}

// One line of flags: true is left out.
static void shrink_line(struct sim *sim, struct sim_options *options, bool *drop, uint32_t count) {
    bool before[SIM_OPS > SIM_FAULTS ? SIM_OPS : SIM_FAULTS];
    for (uint32_t piece = count; piece > 0; piece /= 2) {
        for (uint32_t from = 0; from < count; from += piece) {
            uint32_t length = from + piece > count ? count - from : piece;
            memcpy(before, drop, count);
            bool news = false;
            for (uint32_t i = 0; i < length; i++) {
                news = news || !drop[from + i];
                drop[from + i] = true;
            }
            if (news && !fails(sim, options)) {
                memcpy(drop, before, count);
            }
        }
    }
}

static void shrink_flag(struct sim *sim, struct sim_options *options, bool *flag) {
    bool before = *flag;
    *flag = true;
    if (!fails(sim, options)) {
        *flag = before;
    }
}

static void print_line(const char *name, bool *first, const char *prefix, const bool *drop,
                       uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        if (!drop[i]) {
            continue;
        }
        uint32_t last = i;
        while (last + 1 < count && drop[last + 1]) {
            last++;
        }
        printf("%s%s%u-%u", *first ? name : ",", prefix, i, last);
        *first = false;
        i = last;
    }
}

static void print(const struct sim *sim, const struct sim_options *options) {
    uint32_t faults = 0, ops = 0;
    for (uint32_t i = 0; i < sim->faults; i++) {
        faults += !options->drop_fault[i];
    }
    for (uint32_t c = 0; c < SIM_CLIENTS; c++) {
        for (uint32_t i = 0; i < sim->client[c].next; i++) {
            ops += !options->drop_op[c][i];
        }
    }
    printf("%u steps, %u faults, %u operations: %s\n--seeds 1 --seed %lu --steps %u%s%s%s%s",
           sim->step, faults, ops, sim->failure, options->seed, options->steps,
           options->no_loss ? " --no-loss" : "", options->no_copies ? " --no-copies" : "",
           options->no_late ? " --no-late" : "", options->no_drift ? " --no-drift" : "");
    bool first = true;
    print_line(" --drop-faults ", &first, "", options->drop_fault, SIM_FAULTS);
    first = true;
    for (uint32_t c = 0; c < SIM_CLIENTS; c++) {
        char prefix[16];
        snprintf(prefix, sizeof(prefix), "%u:", c);
        print_line(" --drop-ops ", &first, prefix, options->drop_op[c], SIM_OPS);
    }
    printf(" --trace\n");
}

void sim_shrink(struct sim *sim, struct sim_options *options) {
    options->trace = false;
    wanted = NULL;
    if (!fails(sim, options)) {
        printf("it does not fail again\n");
        return;
    }
    wanted = sim->failure_kind;
    if (sim->step < options->steps) {
        options->steps = sim->step;
    }
    uint32_t left = UINT32_MAX;
    for (uint32_t round = 0; round < 8; round++) {
        bool *flags[] = {&options->no_late, &options->no_copies, &options->no_loss,
                         &options->no_drift};
        for (uint32_t i = 0; i < 4; i++) {
            shrink_flag(sim, options, flags[i]);
        }
        shrink_line(sim, options, options->drop_fault, SIM_FAULTS);
        for (uint32_t c = 0; c < SIM_CLIENTS; c++) {
            shrink_line(sim, options, options->drop_op[c], SIM_OPS);
        }
        fails(sim, options);
        if (sim->step < options->steps) {
            options->steps = sim->step;
        }
        if (sim->step >= left) {
            break;
        }
        left = sim->step;
    }
    fails(sim, options);
    print(sim, options);
}
