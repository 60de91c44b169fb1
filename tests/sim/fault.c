// SPDX-License-Identifier: BSD-3-Clause
//
// What goes wrong, and what the operator does. Fault number k has random numbers of its own, so
// that leaving one out (shrinking) does not change the others.
#include <string.h>

#include "sim.h"

static struct sim_node *any(struct sim *sim) {
    return &sim->node[1 + sim_below(sim, sim->nodes_made)];
}

// The one of the highest term, or any.
static struct sim_node *leader(struct sim *sim) {
    struct sim_node *found = NULL;
    uint64_t term = 0;
    for (uint64_t id = 1; id <= sim->nodes_made; id++) {
        struct sim_node *node = &sim->node[id];
        if (sim_node_leads(node)) {
            struct cg_raft_status status;
            cg_raft_status(node->raft, &status);
            if (status.term > term) {
                term = status.term;
                found = node;
            }
        }
    }
    return found != NULL ? found : any(sim);
}

static void crash(struct sim *sim, struct sim_node *node, uint64_t down_ns) {
    if (!node->up) {
        return;
    }
    sim_node_crash(sim, node);
    if (sim_below(sim, 2) == 0) {
        down_ns /= 64; // back before anybody notices
    }
    sim_push(sim, sim->now + 1 + sim_below(sim, down_ns), SIM_RESTART, node->id, 0);
}

static void cut(struct sim *sim, uint64_t from, uint64_t to) {
    if (from != 0 && to != 0 && from != to) {
        sim->cut[from][to] = true;
    }
}

static void cut_one(struct sim *sim) {
    uint64_t from = any(sim)->id;
    uint64_t to = any(sim)->id;
    sim_trace(sim, "link %lu -> %lu is cut", from, to);
    cut(sim, from, to);
}

static void split(struct sim *sim) {
    uint64_t side = sim_random(sim);
    for (uint64_t a = 1; a <= SIM_NODES; a++) {
        for (uint64_t b = 1; b <= SIM_NODES; b++) {
            if (((side >> a) & 1) != ((side >> b) & 1)) {
                sim->cut[a][b] = true;
            }
        }
    }
    sim_trace(sim, "the network splits: %lx", side & 0x7fe);
}

static void isolate(struct sim *sim, struct sim_node *node, bool both) {
    sim_trace(sim, "node %lu: %s", node->id, both ? "is isolated" : "hears nothing");
    for (uint64_t id = 1; id <= SIM_NODES; id++) {
        cut(sim, id, node->id);
        if (both) {
            cut(sim, node->id, id);
        }
    }
    if (node->up && sim_below(sim, 2) == 0) {
        sim_flood(sim, node, 1 + (uint32_t)sim_below(sim, 20));
    }
}

// Drift within the bound, mostly at its ends; the differences are what matters.
static void set_clocks(struct sim *sim) {
    int64_t drift = sim->profile.drift_ppm;
    for (uint64_t id = 1; id <= sim->nodes_made; id++) {
        struct sim_node *node = &sim->node[id];
        static const int64_t part[] = {-100, 100, -100, 100, 0, 50, -50};
        sim_node_set_rate(sim, node, drift * part[sim_below(sim, 7)] / 100);
    }
}

// A disk may only be lost while the others are enough, and one at a time.
static bool can_lose(struct sim *sim, const struct sim_node *node) {
    const struct sim_node *leading = leader(sim);
    if (!sim_node_leads(leading) || !node->up) {
        return false;
    }
    const struct cg_raft_config *config = cg_raft_config(leading->raft);
    uint32_t voters = 0;
    for (uint32_t i = 0; i < config->count; i++) {
        voters += !config->member[i].learner;
        const struct sim_node *member = &sim->node[config->member[i].id];
        if (member->dead || member->failing) {
            return false;
        }
    }
    return voters >= 3;
}

static void lose_disk(struct sim *sim, struct sim_node *node) {
    sim_trace(sim, "node %lu: its disk fails", node->id);
    if (node->server != NULL) {
        server_lose_disk(sim, node);
        return;
    }
    cg_raft_disk_error(node->raft);
    sim_node_drain(sim, node, NULL);
    cg_raft_destroy(node->raft);
    node->raft = NULL;
    node->up = false;
    node->dead = true;
    node->incarnation++;
}

static void change(struct sim *sim, struct sim_node *node, enum cg_raft_change kind, uint64_t id) {
    int result = node->server != NULL
                     ? server_change(node, kind, id)
                     : cg_raft_change(node->raft, sim_node_clock(sim, node), kind, id);
    static const char *const names[] = {"adds learner", "promotes", "removes"};
    sim_trace(sim, "node %lu: %s %lu: %d", node->id, names[kind], id, result);
    if (node->server == NULL) {
        sim_node_drain(sim, node, NULL);
    }
}

static void grow(struct sim *sim, struct sim_node *node) {
    if (!sim_node_leads(node)) {
        return;
    }
    const struct cg_raft_config *config = cg_raft_config(node->raft);
    for (uint32_t i = 0; i < config->count; i++) {
        if (config->member[i].learner && sim_below(sim, 4) != 0) {
            change(sim, node, CG_RAFT_PROMOTE, config->member[i].id);
            return;
        }
    }
    if (config->count < 6 && sim->nodes_made < SIM_NODES) {
        uint64_t id = sim_node_make(sim, NULL)->id;
        change(sim, node, CG_RAFT_ADD_LEARNER, id);
    }
}

static void shrink(struct sim *sim, struct sim_node *node) {
    if (!sim_node_leads(node)) {
        return;
    }
    const struct cg_raft_config *config = cg_raft_config(node->raft);
    uint64_t victim = config->member[sim_below(sim, config->count)].id;
    for (uint32_t i = 0; i < config->count; i++) {
        if (sim->node[config->member[i].id].dead) {
            victim = config->member[i].id;
        }
    }
    if (config->count >= 3 || sim->node[victim].dead) {
        change(sim, node, CG_RAFT_REMOVE, victim);
    }
}

static void transfer(struct sim *sim, struct sim_node *node) {
    if (sim_node_leads(node)) {
        uint64_t target = any(sim)->id;
        int result = node->server != NULL
                         ? server_transfer(node, target)
                         : cg_raft_transfer(node->raft, sim_node_clock(sim, node), target);
        sim_trace(sim, "node %lu: hands over to %lu: %d", node->id, target, result);
        if (node->server == NULL) {
            sim_node_drain(sim, node, NULL);
        }
    }
}

static enum sim_fault_kind draw(struct sim *sim) {
    uint32_t total = 0;
    for (uint32_t i = 0; i < SIM_FAULT_KINDS; i++) {
        total += sim->profile.weight[i];
    }
    uint64_t dice = sim_below(sim, total);
    enum sim_fault_kind fault = 0;
    while (dice >= sim->profile.weight[fault]) {
        dice -= sim->profile.weight[fault++];
    }
    return fault;
}

static void carry_out(struct sim *sim, enum sim_fault_kind fault) {
    uint64_t election = sim->profile.election_ns;
    struct sim_node *node;
    switch (fault) {
    case SIM_CRASH:
        crash(sim, any(sim), 4 * election);
        break;
    case SIM_CRASH_LEADER:
        crash(sim, leader(sim), sim_below(sim, 2) ? election / 10 : 4 * election);
        break;
    case SIM_CRASH_ALL:
        for (uint64_t id = 1; id <= sim->nodes_made; id++) {
            crash(sim, &sim->node[id], election);
        }
        break;
    case SIM_CUT_ONE_WAY:
        cut_one(sim);
        break;
    case SIM_SPLIT:
        split(sim);
        break;
    case SIM_ISOLATE_LEADER:
        isolate(sim, leader(sim), true);
        break;
    case SIM_DEAFEN_LEADER:
        isolate(sim, leader(sim), false);
        break;
    case SIM_HEAL:
        sim_trace(sim, "the network heals");
        memset(sim->cut, 0, sizeof(sim->cut));
        break;
    case SIM_SLOW_DISK:
        any(sim)->disk.slow_until = sim->now + sim_below(sim, 8 * election);
        break;
    case SIM_PAUSE:
        node = sim_below(sim, 2) ? leader(sim) : any(sim);
        node->paused_until = sim->now + sim_below(sim, 5 * election);
        sim_trace(sim, "node %lu: stands still", node->id);
        break;
    case SIM_CLOCKS:
        set_clocks(sim);
        break;
    case SIM_TRANSFER:
        transfer(sim, leader(sim));
        break;
    case SIM_GROW:
        grow(sim, leader(sim));
        break;
    case SIM_SHRINK:
        shrink(sim, leader(sim));
        break;
    case SIM_ROT:
        node = any(sim);
        if (can_lose(sim, node)) {
            if (node->server != NULL && !server_rot(sim, node)) {
                break;
            }
            if (node->server == NULL) {
                sim_storage_rot(sim, node);
            }
            crash(sim, node, election);
        }
        break;
    case SIM_DISK_ERROR:
        node = any(sim);
        if (can_lose(sim, node)) {
            lose_disk(sim, node);
        }
        break;
    case SIM_FAULT_KINDS:
        break;
    }
}

// Connections tell everybody that something is wrong, sooner or later.
static void wake_all(struct sim *sim) {
    for (uint64_t id = 1; id <= sim->nodes_made; id++) {
        sim_node_wake(sim, &sim->node[id]);
    }
}

void sim_fault(struct sim *sim, uint32_t number) {
    if (sim->calm || number == SIM_FAULTS) {
        return;
    }
    uint64_t others = sim->random;
    sim->random = sim_mix(sim->options.seed, 2000000 + number);
    uint64_t next = sim->now + sim_spread(sim, sim->profile.fault_ns);
    sim_push(sim, next, SIM_FAULT, 0, number + 1);
    sim->faults = number + 1;
    if (!sim->options.drop_fault[number]) {
        carry_out(sim, draw(sim));
        if (sim_below(sim, 4) == 0) {
            wake_all(sim);
        }
    }
    sim->random = others;
}

void sim_heal(struct sim *sim) {
    sim_trace(sim, "all faults are over");
    sim->calm = true;
    // Either may hide what the other shows: work to do, and none.
    sim->quiet_at = sim->now + (sim_below(sim, 2) ? 10 * sim->profile.election_ns : 0);
    memset(sim->cut, 0, sizeof(sim->cut));
    for (uint64_t id = 1; id <= sim->nodes_made; id++) {
        struct sim_node *node = &sim->node[id];
        node->disk.slow_until = 0;
        if (node->paused_until > sim->now) {
            node->paused_until = sim->now;
        }
        sim_node_set_rate(sim, node, 0);
    }
    wake_all(sim);
}
