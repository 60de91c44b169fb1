// SPDX-License-Identifier: BSD-3-Clause
//
// What the entries do: blocks that hold values, behind the chunkserver's own request windows.
// Blocks are written to files without a sync, as chunks are: after a crash each is as of its last
// sync or as of any later moment, and replay must cope (it skips what a block has seen). A
// checkpoint syncs the blocks, then saves index, configuration and windows, and only then lets the
// log go.
#include <string.h>

#include "sim.h"

// Blocks of a checkpoint or snapshot, where they are newer.
void sim_take_newer(uint64_t *value, uint64_t *value_index, const struct sim_checkpoint *from) {
    for (uint32_t i = 0; i < SIM_BLOCKS; i++) {
        if (from->value_index[i] > value_index[i]) {
            value[i] = from->value[i];
            value_index[i] = from->value_index[i];
        }
    }
}

static void apply_data(struct sim *sim, struct sim_node *node, uint64_t index,
                       const struct sim_entry *entry) {
    if (entry->client == SIM_CLIENTS) {
        return; // sim_flood
    }
    int answer =
        cg_dedup_record(&node->window, entry->client + 1, entry->sequence, entry->settled_below);
    if (answer < 0) {
        sim_fail(sim, "out of memory");
    }
    if (answer != CG_DEDUP_NEW && sim->options.mutation != SIM_MUTATION_NO_DEDUP) {
        return;
    }
    if (index > node->value_index[entry->block]) {
        node->value[entry->block] = entry->value;
        node->value_index[entry->block] = index;
    }
}

void sim_machine_take(struct sim *sim, struct sim_node *node, uint64_t index) {
    const struct sim_entry *entry = node->log[index];
    node->applied = index;
    sim_check_apply(sim, node, index);
    node->applied_term = entry->term;
    if (entry->type == CG_RAFT_ENTRY_DATA) {
        apply_data(sim, node, index, entry);
    }
    if (entry->type == CG_RAFT_ENTRY_CONFIG) {
        node->applied_config = entry->config;
    }
}

// Applies what is committed and in this disk's log.
void sim_machine_apply(struct sim *sim, struct sim_node *node) {
    struct cg_raft_status status;
    cg_raft_status(node->raft, &status);
    uint64_t bound = status.durable_index < node->commit ? status.durable_index : node->commit;
    while (node->applied < bound) {
        uint64_t index = node->applied + 1;
        sim_machine_take(sim, node, index);
        const struct sim_entry *entry = node->log[index];
        if (node->proposal_term[index] != 0) {
            if (node->proposal_term[index] == entry->term && entry->type == CG_RAFT_ENTRY_DATA) {
                sim_answer(sim, node, &node->proposal[index], true, 0);
            }
            node->proposal_term[index] = 0;
        }
    }
    cg_raft_applied(node->raft, node->applied);
    sim_node_settle_reads(sim, node);
}

// At a start: blocks from the medium, windows from the checkpoint.
void sim_machine_load(struct sim *sim, struct sim_node *node) {
    const struct sim_checkpoint *checkpoint = sim_disk_base(&node->disk);
    memcpy(node->value, node->disk.value, sizeof(node->value));
    memcpy(node->value_index, node->disk.value_index, sizeof(node->value_index));
    cg_dedup_clear(&node->window);
    node->applied = checkpoint->index;
    node->applied_term = checkpoint->term;
    node->applied_config = checkpoint->config;
    node->commit = checkpoint->index;
    if (checkpoint->valid && sim->options.mutation != SIM_MUTATION_WINDOW_NOT_SAVED &&
        cg_dedup_decode(&node->window, checkpoint->window, checkpoint->window_length) !=
            (int64_t)checkpoint->window_length) {
        sim_fail(sim, "a saved window cannot be read");
    }
}

void sim_machine_capture(struct sim *sim, struct sim_node *node, struct sim_checkpoint *out) {
    out->valid = true;
    out->index = node->applied;
    out->term = node->applied_term;
    out->config = node->applied_config;
    memcpy(out->value, node->value, sizeof(out->value));
    memcpy(out->value_index, node->value_index, sizeof(out->value_index));
    out->window_length = (uint32_t)cg_dedup_size(&node->window);
    if (out->window_length > sizeof(out->window)) {
        sim_fail(sim, "a window is too long: %u", out->window_length);
    }
    cg_dedup_encode(&node->window, out->window);
}

void sim_checkpoint_start(struct sim *sim, struct sim_node *node) {
    sim_push(sim, sim->now + sim_spread(sim, sim->profile.checkpoint_ns), SIM_CHECKPOINT_DUE,
             node->id, 0);
    if (node->server != NULL) {
        server_checkpoint_due(sim, node);
        return;
    }
    struct sim_disk *disk = &node->disk;
    if (disk->checkpointing || disk->installing || node->applied <= disk->checkpoint.index) {
        return;
    }
    disk->checkpointing = true;
    sim_machine_capture(sim, node, &disk->pending);
    sim_push(sim, sim->now + sim_spread(sim, 4 * sim->profile.disk_ns), SIM_CHECKPOINT_DONE,
             node->id, 0);
    if (sim->options.mutation == SIM_MUTATION_RECYCLE_BEFORE_SYNC) {
        sim_storage_recycle(sim, node, disk->pending.index);
    }
}

void sim_checkpoint_done(struct sim *sim, struct sim_node *node) {
    if (node->server != NULL) {
        server_checkpoint_done(sim, node);
        return;
    }
    struct sim_disk *disk = &node->disk;
    if (!disk->checkpointing) {
        return;
    }
    disk->checkpointing = false;
    const struct sim_checkpoint *pending = &disk->pending;
    if (sim->options.mutation != SIM_MUTATION_CHECKPOINT_WITHOUT_BLOCKS) {
        sim_take_newer(disk->value, disk->value_index, pending);
    }
    disk->checkpoint = *pending;
    sim_storage_recycle(sim, node, pending->index);
    uint64_t keep =
        sim_below(sim, 2) ? 0 : sim_below(sim, 24); // entries for peers that are a little behind
    if (pending->index > keep) {
        cg_raft_compact(node->raft, pending->index - keep);
    }
    sim_trace(sim, "node %lu: checkpoint at %lu", node->id, pending->index);
}
