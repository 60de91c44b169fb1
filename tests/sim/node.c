// SPDX-License-Identifier: BSD-3-Clause
//
// Drives a core as a chunkserver would: carries out its actions, keeps the entries in memory, moves
// snapshots, answers clients.
#include <string.h>

#include "sim.h"

// ---- Clock

uint64_t sim_node_clock(const struct sim *sim, const struct sim_node *node) {
    uint64_t rate = (uint64_t)(1000000 + node->rate_ppm);
    return node->clock_base + (sim->now - node->clock_true) * rate / 1000000;
}

void sim_node_set_rate(struct sim *sim, struct sim_node *node, int64_t ppm) {
    node->clock_base = sim_node_clock(sim, node);
    node->clock_true = sim->now;
    node->rate_ppm = ppm;
    node->timer_at = 0;
}

void sim_node_arm(struct sim *sim, struct sim_node *node, uint64_t deadline) {
    if (deadline == UINT64_MAX) {
        return;
    }
    uint64_t clock = sim_node_clock(sim, node);
    uint64_t wait = deadline > clock ? deadline - clock : 0;
    uint64_t at = sim->now + wait * 1000000 / (uint64_t)(1000000 + node->rate_ppm) + 1000;
    if (node->timer_at > sim->now && node->timer_at <= at) {
        return;
    }
    node->timer_at = at;
    sim_push(sim, at, SIM_TIMER, node->id, 0);
}

void sim_node_timer(struct sim *sim, struct sim_node *node) {
    node->timer_at = 0;
    if (node->server != NULL) {
        server_timer(sim, node);
        return;
    }
    cg_raft_tick(node->raft, sim_node_clock(sim, node));
    sim_node_drain(sim, node, NULL);
    sim_check_quorum(sim, node);
}

void sim_node_wake(struct sim *sim, struct sim_node *node) {
    if (node->up && node->paused_until <= sim->now && node->server != NULL) {
        server_wake(sim, node);
    } else if (node->up && node->paused_until <= sim->now) {
        cg_raft_wake(node->raft, sim_node_clock(sim, node));
        sim_node_drain(sim, node, NULL);
    }
}

// ---- Life

static bool in_memory(const struct sim_node *node, uint64_t index) {
    uint32_t kept = node->sim->profile.memory_entries;
    return kept == 0 || (index > node->cold_to && index + kept > node->applied) ||
           (index >= node->warm_from && index < node->warm_to);
}

// Entries of 4 KiB. One that is not in memory is read back, and the core asks again.
static uint32_t fit(void *context, uint64_t first, uint64_t last, uint32_t max_bytes,
                    uint64_t *bytes) {
    struct sim_node *node = context;
    struct sim *sim = node->sim;
    uint64_t count = 0;
    uint64_t most = max_bytes / 4096 == 0 ? 1 : max_bytes / 4096;
    while (count < last - first + 1 && count < most && in_memory(node, first + count)) {
        count++;
    }
    if (count == 0 && !node->fetching) {
        node->fetching = true;
        node->fetch_from = first;
        sim_push(sim, sim->now + sim_spread(sim, sim->profile.disk_ns), SIM_FETCHED, node->id, 0);
    }
    *bytes = count * 4096;
    return (uint32_t)count;
}

// For whom they were is not known: everybody is asked about again.
void sim_fetched(struct sim *sim, struct sim_node *node) {
    node->fetching = false;
    node->warm_from = node->fetch_from;
    node->warm_to = node->fetch_from + 1 + sim_below(sim, 8);
    for (uint64_t id = 1; id <= sim->nodes_made; id++) {
        if (sim->options.mutation != SIM_MUTATION_FETCHED_NOT_TOLD) {
            cg_raft_peer_ready(node->raft, id);
        }
    }
    sim_node_drain(sim, node, NULL);
}

struct sim_node *sim_node_make(struct sim *sim, const struct cg_raft_config *config) {
    struct sim_node *node = &sim->node[++sim->nodes_made];
    node->id = sim->nodes_made;
    node->sim = sim;
    node->exists = true;
    node->clock_base = (1 + sim_below(sim, 1000)) * SIM_MS;
    node->clock_true = sim->now;
    cg_dedup_init(&node->window);
    if (config != NULL) {
        node->disk.checkpoint.config = *config;
    }
    sim_node_start(sim, node);
    return node;
}

static void die(struct sim *sim, struct sim_node *node) {
    sim_trace(sim, "node %lu: lost for good", node->id);
    cg_raft_destroy(node->raft);
    node->raft = NULL;
    node->up = false;
    node->dead = true;
    node->incarnation++;
}

static void start_core(struct sim *sim, struct sim_node *node) {
    const struct cg_raft_options options = {
        .id = node->id,
        .election_timeout_ns = sim->profile.election_ns,
        .heartbeat_interval_ns = sim->profile.election_ns / 5,
        .clock_drift_ppm = sim->profile.bound_ppm,
        .message_bytes_max = sim->profile.message_kib << 10,
        .message_entries_max = sim->profile.message_entries,
        .inflight_messages_max = 4,
        .inflight_bytes_max = 1 << 17,
        .uncommitted_entries_max = 64,
        .reads_max = SIM_READS,
        .terms_max = 256,
        .promote_lag_max = 16,
        .apply_lag_max = 3,
        .quiesce_after_ns = sim->profile.quiesce_ns,
        .seed = sim_random(sim),
        .fit = fit,
        .context = node,
    };
    if (!sim_storage_recover(sim, node, &options)) {
        die(sim, node);
        return;
    }
    node->up = true;
    sim_machine_load(sim, node);
    if (cg_raft_start(node->raft, sim_node_clock(sim, node)) != 0) {
        sim_fail(sim, "node %lu: its log has a gap", node->id);
    }
    struct cg_raft_status status;
    cg_raft_status(node->raft, &status);
    node->cold_to = status.last_index;
    sim_check_start(sim, node);
    sim_trace(sim, "node %lu: starts in term %lu, vote %lu, log %lu..%lu", node->id, status.term,
              status.vote, status.base_index, status.last_index);
    sim_node_drain(sim, node, NULL);
}

void sim_node_start(struct sim *sim, struct sim_node *node) {
    memset(node->log, 0, sizeof(node->log));
    memset(node->proposal_term, 0, sizeof(node->proposal_term));
    memset(node->read, 0, sizeof(node->read));
    memset(node->would_elect, 0, sizeof(node->would_elect));
    node->told_term = 0;
    node->alone_since = 0;
    node->fetching = false;
    node->warm_to = 0;
    node->paused_until = 0;
    node->timer_at = 0;
    if (sim->options.log) {
        server_start(sim, node);
    } else {
        start_core(sim, node);
    }
    if (node->up && sim->profile.checkpoint_ns != 0) {
        sim_push(sim, sim->now + sim_spread(sim, sim->profile.checkpoint_ns), SIM_CHECKPOINT_DUE,
                 node->id, 0);
    }
}

void sim_node_crash(struct sim *sim, struct sim_node *node) {
    sim_trace(sim, "node %lu: crashes", node->id);
    if (node->server != NULL) {
        server_crash(sim, node);
        return;
    }
    sim_storage_crash(sim, node);
    cg_raft_destroy(node->raft);
    node->raft = NULL;
    node->up = false;
    node->incarnation++;
}

bool sim_node_leads(const struct sim_node *node) {
    if (!node->up) {
        return false;
    }
    struct cg_raft_status status;
    cg_raft_status(node->raft, &status);
    return status.role == CG_RAFT_LEADER;
}

// ---- Actions

struct sim_entry *sim_entry_make(struct sim *sim) {
    if (sim->pool_used == sizeof(sim->pool) / sizeof(sim->pool[0])) {
        sim_fail(sim, "the simulator has no entries left");
    }
    return &sim->pool[sim->pool_used++];
}

static void persist_state(struct sim *sim, struct sim_node *node,
                          const struct cg_raft_action *action) {
    const struct sim_record record = {.kind = SIM_RECORD_STATE,
                                      .ticket = action->ticket,
                                      .term = action->term,
                                      .vote = action->vote};
    sim_storage_append(sim, node, &record);
}

static const struct sim_entry *core_entry(struct sim *sim, struct sim_node *node,
                                          const struct cg_raft_action *action) {
    struct sim_entry *entry = sim_entry_make(sim);
    entry->index = action->first;
    entry->term = action->entry.term;
    entry->prev_term = cg_raft_term_at(node->raft, action->first - 1);
    entry->type = action->entry.type;
    if (entry->type == CG_RAFT_ENTRY_CONFIG) {
        entry->config = *action->entry.config;
    }
    return entry;
}

static void persist_entries(struct sim *sim, struct sim_node *node,
                            const struct cg_raft_action *action, const struct sim_mail *mail) {
    if (action->last >= SIM_INDEX) {
        sim_fail(sim, "the simulator has no indexes left");
    }
    for (uint64_t index = action->first; index <= action->last; index++) {
        if (action->source == CG_RAFT_FROM_CORE) {
            node->log[index] = core_entry(sim, node, action);
        } else if (action->source == CG_RAFT_FROM_MESSAGE) {
            node->log[index] = mail->entry[index - mail->raft.prev_index - 1];
            node->proposal_term[index] = 0;
        } // a proposal's entry is there (sim_serve)
        sim_check_append(sim, node, index);
    }
    for (uint64_t index = action->first; index <= action->last; index++) {
        const struct sim_record record = {.kind = SIM_RECORD_ENTRY,
                                          .ticket = action->ticket,
                                          .index = index,
                                          .term = node->log[index]->term,
                                          .entry = node->log[index]};
        sim_storage_append(sim, node, &record);
    }
}

static void send_message(struct sim *sim, struct sim_node *node,
                         const struct cg_raft_message *message) {
    sim_check_send(sim, node, message);
    struct sim_mail *mail = sim_compose(sim);
    mail->kind = SIM_RAFT;
    mail->from = message->from;
    mail->to = message->to;
    mail->raft = *message;
    for (uint32_t i = 0; message->type == CG_RAFT_APPEND && i < message->count; i++) {
        mail->entry[i] = node->log[message->prev_index + 1 + i];
    }
    sim_send(sim, mail);
}

void sim_send_snapshot(struct sim *sim, struct sim_node *node, uint64_t peer) {
    struct sim_mail *mail = sim_compose(sim);
    mail->kind = SIM_SNAPSHOT;
    mail->from = node->id;
    mail->to = peer;
    sim_machine_capture(sim, node, &mail->snapshot);
    sim_trace(sim, "node %lu: snapshot at %lu to %lu", node->id, mail->snapshot.index, peer);
    sim_send(sim, mail);
    sim_push(sim, sim->now + 2 * sim->profile.election_ns, SIM_SNAPSHOT_TIMEOUT, node->id,
             (uint32_t)peer);
}

void sim_snapshot_timeout(struct sim *sim, struct sim_node *node, uint64_t peer) {
    if (node->server != NULL) {
        server_copied(node, peer, 0, false);
        return;
    }
    cg_raft_snapshot_sent(node->raft, peer, 0, false);
    sim_node_drain(sim, node, NULL);
}

void sim_trace_role(struct sim *sim, const struct sim_node *node) {
    struct cg_raft_status status;
    cg_raft_status(node->raft, &status);
    static const char *const names[] = {"follower", "pre-candidate", "candidate", "leader",
                                        "retired"};
    sim_trace(sim, "node %lu: %s in term %lu, leader %lu", node->id, names[status.role],
              status.term, status.leader);
}

static void committed(struct sim *sim, struct sim_node *node, uint64_t index) {
    sim_trace(sim, "node %lu: committed to %lu", node->id, index);
    sim_check_commit(sim, node, index);
    node->commit = index;
    sim_machine_apply(sim, node);
}

static void read_ready(struct sim *sim, struct sim_node *node,
                       const struct cg_raft_action *action) {
    struct sim_wait *wait = &node->read[action->id];
    wait->confirmed = true;
    wait->index = action->index;
    sim_check_read(sim, node, wait);
    sim_node_settle_reads(sim, node);
}

static void carry_out(struct sim *sim, struct sim_node *node, const struct cg_raft_action *action,
                      const struct sim_mail *mail) {
    switch (action->type) {
    case CG_RAFT_PERSIST_STATE:
        persist_state(sim, node, action);
        break;
    case CG_RAFT_PERSIST_ENTRIES:
        persist_entries(sim, node, action, mail);
        break;
    case CG_RAFT_ROLE:
        sim_trace_role(sim, node);
        sim_check_role(sim, node);
        break;
    case CG_RAFT_COMMIT:
        committed(sim, node, action->index);
        break;
    case CG_RAFT_READ_READY:
        read_ready(sim, node, action);
        break;
    case CG_RAFT_READ_FAILED:
        sim_answer(sim, node, &node->read[action->id].request, false, 0);
        node->read[action->id].used = false;
        break;
    case CG_RAFT_SEND:
        send_message(sim, node, &action->message);
        break;
    case CG_RAFT_SEND_SNAPSHOT:
        sim_send_snapshot(sim, node, action->peer);
        break;
    }
}

void sim_node_drain(struct sim *sim, struct sim_node *node, const struct sim_mail *mail) {
    struct cg_raft_action action;
    while (cg_raft_next(node->raft, &action)) {
        carry_out(sim, node, &action, mail);
    }
    sim_node_arm(sim, node, cg_raft_deadline(node->raft));
}

void sim_node_durable(struct sim *sim, struct sim_node *node, uint64_t ticket, uint64_t index) {
    cg_raft_durable(node->raft, sim_node_clock(sim, node), ticket, index);
    sim_node_drain(sim, node, NULL);
    sim_machine_apply(sim, node);
}

void sim_node_settle_reads(struct sim *sim, struct sim_node *node) {
    for (uint32_t i = 0; i < SIM_READS; i++) {
        struct sim_wait *wait = &node->read[i];
        if (wait->used && wait->confirmed &&
            (wait->index <= node->applied ||
             sim->options.mutation == SIM_MUTATION_READ_BEFORE_APPLIED)) {
            wait->used = false;
            sim_answer(sim, node, &wait->request, true, node->value[wait->request.block]);
        }
    }
}

// ---- Messages

static void receive_raft(struct sim *sim, struct sim_node *node, const struct sim_mail *mail) {
    struct cg_raft_message message = mail->raft;
    if (message.type == CG_RAFT_APPEND && node->disk.installing) {
        return; // the log is about to be replaced
    }
    struct cg_raft_entry entries[SIM_BATCH];
    for (uint32_t i = 0; message.type == CG_RAFT_APPEND && i < message.count; i++) {
        entries[i] = (struct cg_raft_entry){.term = mail->entry[i]->term,
                                            .type = mail->entry[i]->type,
                                            .config = &mail->entry[i]->config};
    }
    message.entries = entries;
    struct cg_raft_status before;
    cg_raft_status(node->raft, &before);
    sim_check_heard(sim, node, &message);
    int result = cg_raft_receive(node->raft, sim_node_clock(sim, node), &message);
    sim_check_vote(sim, node, &message, &before);
    if (result != 0) {
        sim_fail(sim, "node %lu: refused message %d of node %lu in term %lu: %d", node->id,
                 message.type, message.from, message.term, result);
    }
    sim_node_drain(sim, node, mail);
}

// ---- Snapshots: blocks are copied and synced, then a record in the log makes them count

static void receive_snapshot(struct sim *sim, struct sim_node *node, const struct sim_mail *mail) {
    struct sim_disk *disk = &node->disk;
    struct cg_raft_status status;
    cg_raft_status(node->raft, &status);
    if (disk->installing || mail->snapshot.term > status.term ||
        !cg_raft_snapshot_wanted(node->raft, mail->snapshot.index)) {
        return;
    }
    disk->installing = true;
    disk->checkpointing = false;
    disk->install = mail->snapshot;
    disk->install_from = mail->from;
    sim_push(sim, sim->now + sim_spread(sim, 4 * sim->profile.disk_ns), SIM_INSTALL_READY, node->id,
             0);
}

void sim_install_ready(struct sim *sim, struct sim_node *node) {
    if (node->server != NULL) {
        server_install_ready(sim, node);
        return;
    }
    struct sim_disk *disk = &node->disk;
    if (!disk->installing) {
        return;
    }
    if (!cg_raft_snapshot_wanted(node->raft, disk->install.index)) {
        disk->installing = false;
        return;
    }
    const struct sim_record record = {
        .kind = SIM_RECORD_INSTALL,
        .index = disk->install.index,
        .term = disk->install.term,
        .voids = cg_raft_term_at(node->raft, disk->install.index) != disk->install.term,
    };
    sim_storage_append(sim, node, &record);
}

void sim_node_installed(struct sim *sim, struct sim_node *node) {
    struct sim_disk *disk = &node->disk;
    const struct sim_checkpoint *install = &disk->install;
    disk->installing = false;
    if (!cg_raft_snapshot_wanted(node->raft, install->index)) {
        return;
    }
    sim_trace(sim, "node %lu: snapshot at %lu installed", node->id, install->index);
    sim_machine_load(sim, node); // what was applied since the last sync is older than the snapshot
    int result = cg_raft_snapshot_installed(node->raft, sim_node_clock(sim, node), install->index,
                                            install->term, &install->config);
    if (result != 0) {
        sim_fail(sim, "node %lu: snapshot refused: %d", node->id, result);
    }
    sim_node_drain(sim, node, NULL);
    struct sim_mail *done = sim_compose(sim);
    done->kind = SIM_SNAPSHOT_DONE;
    done->from = node->id;
    done->to = disk->install_from;
    done->value = install->index;
    sim_send(sim, done);
}

void sim_node_receive(struct sim *sim, struct sim_node *node, const struct sim_mail *mail) {
    bool server = node->server != NULL;
    switch (mail->kind) {
    case SIM_RAFT:
        (server ? server_receive_raft : receive_raft)(sim, node, mail);
        break;
    case SIM_SNAPSHOT:
        (server ? server_receive_snapshot : receive_snapshot)(sim, node, mail);
        break;
    case SIM_SNAPSHOT_DONE:
        if (server) {
            server_copied(node, mail->from, mail->value, true);
            break;
        }
        cg_raft_snapshot_sent(node->raft, mail->from, mail->value, true);
        sim_node_drain(sim, node, NULL);
        break;
    case SIM_REQUEST:
        sim_serve(sim, node, &mail->request);
        break;
    case SIM_REPLY:
        break;
    }
}
