// SPDX-License-Identifier: BSD-3-Clause
//
// A node's log as a list of records in the order in which they were asked for. What is there when a
// write begins becomes durable when it ends (group commit). A crash keeps what is durable and any
// prefix of the rest: that is what the chunkserver's log
// makes of torn and lost writes (tests/c/chunkserver/test_wal_power.c).
#include <string.h>

#include "sim.h"

// Keeps the checks' view of the medium.
static void note_durable(struct sim *sim, struct sim_node *node, const struct sim_record *record) {
    struct sim_disk *disk = &node->disk;
    (void)sim;
    switch (record->kind) {
    case SIM_RECORD_STATE:
        disk->term = record->term;
        disk->vote = record->vote;
        break;
    case SIM_RECORD_ENTRY:
        disk->term_at[record->index] = record->term;
        disk->last = record->index;
        break;
    case SIM_RECORD_INSTALL:
        disk->checkpoint = disk->install;
        sim_take_newer(disk->value, disk->value_index, &disk->install);
        disk->base = record->index;
        disk->term_at[record->index] = record->term;
        if (record->voids || disk->last < record->index) {
            disk->last = record->index;
        }
        break;
    case SIM_RECORD_COPY:
    case SIM_RECORD_MOVED:
    case SIM_RECORD_OTHER:
        break;
    }
}

// Removes the first `count` records, which are durable, but the last state among them.
static void drop(struct sim_node *node, uint32_t count) {
    struct sim_disk *disk = &node->disk;
    uint32_t kept = 0;
    for (uint32_t i = count; i > 0 && kept == 0; i--) {
        if (disk->record[i - 1].kind == SIM_RECORD_STATE) {
            disk->record[0] = disk->record[i - 1];
            kept = 1;
        }
    }
    memmove(disk->record + kept, disk->record + count,
            (disk->count - count) * sizeof(disk->record[0]));
    disk->count -= count - kept;
    disk->durable -= count - kept;
    disk->writing -= count - kept;
}

void sim_storage_recycle(struct sim *sim, struct sim_node *node, uint64_t index) {
    if (node->disk.base < index) {
        node->disk.base = index;
    }
    if (sim->options.mutation == SIM_MUTATION_VOTE_FORGOTTEN_BY_CHECKPOINT) {
        for (uint32_t i = 0; i < node->disk.durable; i++) {
            if (node->disk.record[i].kind == SIM_RECORD_STATE) {
                node->disk.record[i].vote = 0;
                node->disk.vote = 0;
            }
        }
    }
    // All up to the last one at or below `index`: what lies before it with a higher index is void.
    // A log that others share often keeps more.
    uint32_t end = node->disk.durable;
    while (end > 0 && (node->disk.record[end - 1].kind != SIM_RECORD_ENTRY ||
                       node->disk.record[end - 1].index > index)) {
        end--;
    }
    drop(node, sim_below(sim, 2) || end == 0 ? end : (uint32_t)sim_below(sim, end));
}

static void begin_write(struct sim *sim, struct sim_node *node) {
    struct sim_disk *disk = &node->disk;
    disk->busy = true;
    disk->writing = disk->count;
    uint64_t delay = sim_spread(sim, sim->profile.disk_ns);
    if (disk->slow_until > sim->now) {
        delay += sim_below(sim, 4 * sim->profile.election_ns);
    }
    sim_push(sim, sim->now + delay, SIM_DISK_DONE, node->id, 0);
}

void sim_storage_append(struct sim *sim, struct sim_node *node, const struct sim_record *record) {
    struct sim_disk *disk = &node->disk;
    if (disk->count == SIM_RECORDS) {
        sim_fail(sim, "the simulator's log is full");
    }
    disk->record[disk->count++] = *record;
    if (!disk->busy) {
        begin_write(sim, node);
    }
    if (sim->options.mutation == SIM_MUTATION_DURABLE_BEFORE_SYNC) {
        sim_node_durable(sim, node, record->ticket, record->index);
    }
}

void sim_storage_done(struct sim *sim, struct sim_node *node) {
    struct sim_disk *disk = &node->disk;
    disk->busy = false;
    // The node appends while it is told.
    while (disk->durable < disk->writing) {
        struct sim_record record = disk->record[disk->durable++];
        note_durable(sim, node, &record);
        if (record.kind == SIM_RECORD_INSTALL) {
            if (record.voids) {
                drop(node, disk->durable);
            }
        }
        if (record.kind == SIM_RECORD_INSTALL) {
            sim_node_installed(sim, node);
        } else if (sim->options.mutation != SIM_MUTATION_DURABLE_BEFORE_SYNC) {
            sim_node_durable(sim, node, record.ticket, record.index);
        }
    }
    if (!disk->busy && disk->durable < disk->count) {
        begin_write(sim, node);
    }
}

const struct sim_checkpoint *sim_disk_base(const struct sim_disk *disk) {
    return disk->installed.index > disk->checkpoint.index ? &disk->installed : &disk->checkpoint;
}

// Blocks: what was not synced survives or does not.
void sim_blocks_crash(struct sim *sim, struct sim_node *node) {
    for (uint32_t i = 0; i < SIM_BLOCKS; i++) {
        if (node->value_index[i] > node->disk.value_index[i] && sim_below(sim, 2) == 0) {
            node->disk.value[i] = node->value[i];
            node->disk.value_index[i] = node->value_index[i];
        }
    }
}

void sim_storage_crash(struct sim *sim, struct sim_node *node) {
    struct sim_disk *disk = &node->disk;
    sim_blocks_crash(sim, node);
    disk->checkpointing = false;
    uint32_t end = disk->durable;
    if (sim_below(sim, 2)) {
        end += (uint32_t)sim_below(sim, disk->count - disk->durable + 1);
    }
    // An installation is lost with what follows: nobody was told of it.
    while (disk->durable < end && disk->record[disk->durable].kind != SIM_RECORD_INSTALL) {
        note_durable(sim, node, &disk->record[disk->durable++]);
    }
    disk->count = disk->durable;
    disk->writing = disk->durable;
    disk->busy = false;
    disk->installing = false;
}

void sim_storage_rot(struct sim *sim, struct sim_node *node) {
    struct sim_disk *disk = &node->disk;
    if (disk->durable > 0) {
        disk->record[sim_below(sim, disk->durable)].rotten = true;
    }
}

static int restore(struct sim_node *node, const struct sim_record *record) {
    if (record->kind == SIM_RECORD_INSTALL) {
        return 0; // in the checkpoint
    }
    if (record->kind == SIM_RECORD_STATE) {
        cg_raft_restore_state(node->raft, record->term, record->vote);
        return 0;
    }
    const struct sim_entry *entry = record->entry;
    const struct cg_raft_entry found = {
        .term = entry->term, .type = entry->type, .config = &entry->config};
    node->log[record->index] = entry;
    return cg_raft_restore_entry(node->raft, record->index, &found);
}

bool sim_storage_recover(struct sim *sim, struct sim_node *node,
                         const struct cg_raft_options *options) {
    struct sim_disk *disk = &node->disk;
    const struct cg_raft_restored restored = {.base_index = disk->checkpoint.index,
                                              .base_term = disk->checkpoint.term,
                                              .config = disk->checkpoint.config,
                                              .term = disk->checkpoint.term};
    if (cg_raft_create(options, &restored, &node->raft) != 0) {
        sim_fail(sim, "node %lu: its state is refused", node->id);
    }
    for (uint32_t i = 0; i < disk->count; i++) {
        const struct sim_record *record = &disk->record[i];
        if (record->rotten) {
            if (sim->options.mutation != SIM_MUTATION_ROT_TAKEN_FOR_TORN_TAIL) {
                return false;
            }
            disk->count = i;
            disk->durable = i;
            disk->writing = i;
            break;
        }
        int result = restore(node, record);
        if (result != 0) {
            sim_fail(sim, "node %lu: record %u of its log does not fit: %d", node->id, i, result);
        }
    }
    return true;
}
