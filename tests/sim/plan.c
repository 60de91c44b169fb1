// SPDX-License-Identifier: BSD-3-Clause
//
// What a seed means: how big the cluster is, how bad its world. Each seed leaves some kinds of
// trouble out, so that they do not always hide one another.
#include <string.h>

#include "sim.h"

// Half of the seeds look closely at one thing: other trouble only hides it.
static void plan_focus(struct sim *sim, struct sim_profile *p) {
    uint64_t focus = sim_below(sim, 8);
    if (focus >= 4) {
        return;
    }
    uint32_t *weight = p->weight;
    memset(weight, 0, sizeof(p->weight));
    weight[SIM_HEAL] = 4;
    weight[SIM_ISOLATE_LEADER] = 4;
    p->voters = 3;
    switch (focus) {
    case 0: // leases: clocks, deaf leaders, quick restarts
        weight[SIM_CLOCKS] = 3;
        weight[SIM_DEAFEN_LEADER] = 2;
        weight[SIM_CUT_ONE_WAY] = 3;
        weight[SIM_CRASH] = 3;
        weight[SIM_TRANSFER] = (uint32_t)sim_below(sim, 3);
        p->bound_ppm = 200000;
        p->drift_ppm = p->bound_ppm;
        p->delay_ns = 200 * SIM_US;
        p->disk_ns = 100 * SIM_US;
        p->loss_ppm = 0;
        p->late_ppm = 0;
        p->think_ns = 2 * SIM_MS;
        p->quiesce_ns = 0;
        p->fault_ns = 40 * SIM_MS;
        break;
    case 1: // logs that differ: many short leaderships, entries one by one
        weight[SIM_CRASH_LEADER] = 4;
        weight[SIM_CRASH] = 2;
        weight[SIM_SPLIT] = 3;
        weight[SIM_CUT_ONE_WAY] = 3;
        p->voters = sim_below(sim, 2) ? 3 : 5;
        p->message_entries = 1;
        p->fault_ns = 25 * SIM_MS;
        p->delay_ns = (UINT64_C(1) << sim_below(sim, 6)) * 200 * SIM_US;
        break;
    case 2: // members
        weight[SIM_GROW] = 6;
        weight[SIM_SHRINK] = 6;
        weight[SIM_TRANSFER] = 2;
        weight[SIM_CRASH_LEADER] = 2;
        weight[SIM_SPLIT] = 2;
        p->fault_ns = 30 * SIM_MS;
        break;
    default: // disks
        weight[SIM_CRASH_ALL] = 3;
        weight[SIM_CRASH] = 4;
        weight[SIM_CRASH_LEADER] = 3;
        weight[SIM_SLOW_DISK] = 2;
        p->checkpoint_ns = 10 * SIM_MS;
        p->fault_ns = 25 * SIM_MS;
        break;
    }
}

static void plan_profile(struct sim *sim) {
    struct sim_profile *p = &sim->profile;
    static const uint32_t sizes[] = {3, 3, 3, 3, 4, 5, 5, 2, 1};
    p->voters = sizes[sim_below(sim, 9)];
    p->loss_ppm = sim_below(sim, 2) ? 0 : (uint32_t)sim_below(sim, 200000);
    p->copy_ppm = sim_below(sim, 2) ? 0 : (uint32_t)sim_below(sim, 200000);
    p->late_ppm = sim_below(sim, 2) ? 0 : (uint32_t)sim_below(sim, 100000);
    p->delay_ns = (UINT64_C(1) << sim_below(sim, 6)) * 100 * SIM_US;
    p->disk_ns = (UINT64_C(1) << sim_below(sim, 8)) * 50 * SIM_US;
    p->fault_ns = (UINT64_C(1) << sim_below(sim, 4)) * 20 * SIM_MS;
    p->think_ns = (UINT64_C(1) << sim_below(sim, 5)) * SIM_MS;
    p->checkpoint_ns =
        sim_below(sim, 3) == 0 ? 0 : (UINT64_C(1) << sim_below(sim, 4)) * 50 * SIM_MS;
    p->quiesce_ns = sim_below(sim, 4) == 0 ? 60 * SIM_MS : 0;
    p->election_ns = 50 * SIM_MS;
    p->message_entries = sim_below(sim, 2) ? 16 : (uint32_t)(1 + sim_below(sim, 3));
    p->message_kib = sim_below(sim, 2) ? 64 : 12;
    p->bound_ppm = sim_below(sim, 2) ? 1000 : 200000;
    p->drift_ppm = p->bound_ppm; // within the bound, mostly at its ends
    p->memory_entries = sim_below(sim, 2) ? 0 : (uint32_t)(1 + sim_below(sim, 16));
    for (uint32_t i = 0; i < SIM_FAULT_KINDS; i++) {
        p->weight[i] = sim_below(sim, 3) == 0 ? 0 : (uint32_t)(1 + sim_below(sim, 8));
    }
    p->weight[SIM_HEAL] = 4;
    p->reluctant = sim_below(sim, 4) == 0;
    plan_focus(sim, p);
    if (sim->options.log) { // which sends heartbeats on a grid of 20 ms
        p->election_ns *= 2;
        p->fault_ns *= 2;
    }
    p->patience_ns = sim_below(sim, 4) == 0 ? p->election_ns / 8 : p->election_ns;
    if (sim->options.no_loss) {
        p->loss_ppm = 0;
    }
    if (sim->options.no_copies) {
        p->copy_ppm = 0;
    }
    if (sim->options.no_late) {
        p->late_ppm = 0;
    }
    if (sim->options.mutation == SIM_MUTATION_CLOCKS_BEYOND_BOUND || sim->options.wild_clocks) {
        p->bound_ppm = p->bound_ppm < 100000 ? p->bound_ppm : 100000;
        p->drift_ppm = 500000;
    }
    if (sim->options.no_drift) {
        p->drift_ppm = 0;
    }
}

void sim_plan(struct sim *sim) {
    sim->now = SIM_MS;
    for (uint32_t i = 0; i < SIM_MESSAGES; i++) {
        sim->mail[i].next_free = i + 1;
    }
    plan_profile(sim);
    struct cg_raft_config config = {.count = sim->profile.voters};
    for (uint32_t i = 0; i < config.count; i++) {
        config.member[i].id = i + 1;
    }
    for (uint32_t i = 0; i < config.count; i++) {
        sim_node_make(sim, &config);
    }
    for (uint32_t i = 0; i < SIM_CLIENTS; i++) {
        sim_push(sim, sim->now + i * SIM_MS, SIM_CLIENT_START, 0, i);
    }
    sim_push(sim, sim->now + sim->profile.fault_ns, SIM_FAULT, 0, 0);
}
