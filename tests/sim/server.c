// SPDX-License-Identifier: BSD-3-Clause
#include "server.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/wal_internal.h"

#define ITERATIONS_MAX 10000U

// ---- Life

static struct sim_server *make_server(struct sim *sim, struct sim_node *node) {
    struct sim_server *server = calloc(1, sizeof(*server));
    if (server == NULL) {
        abort();
    }
    const struct simdisk_options options = {
        .seed = sim_random(sim),
        .sector = sim->options.seed % 2 ? 512 : 4096,
        .refuse_direct = sim->options.seed % 7 == 0,
        .ignore_dsync = sim->options.mutation == SIM_MUTATION_DURABLE_BEFORE_SYNC,
    };
    server->sim = sim;
    server->node = node;
    server->medium = simdisk_create(&options);
    server->saved.config = node->disk.checkpoint.config;
    return server;
}

static void count(const struct sim_server *server) {
    if (server->log != NULL && server->wal != NULL) {
        struct cg_log_disk_stats stats;
        cg_log_disk_stats(server->disk, &stats);
        sim_counts.fetches += stats.fetches;
    }
}

// Uses of segments beyond the first of each, in all of its lives.
static void count_recycled(const struct sim_server *server) {
    if (server->log != NULL && server->wal != NULL) {
        const struct wal_segments *segments = &server->wal->segments;
        uint64_t uses =
            CG_CONTAINER_OF(segments->live.prev, struct wal_segment, node)->header.sequence;
        sim_counts.recycled += uses > segments->next_slot ? uses - segments->next_slot : 0;
    }
}

static void end_process(struct sim_server *server) {
    count(server);
    sim_process_enter(NULL);
    server_watch(NULL);
    sim_process_end(&server->process);
    if (server->reactor != NULL) {
        simreactor_destroy(server->reactor);
        server->reactor = NULL;
    }
    server->log = NULL;
    server->node->raft = NULL;
}

void server_free(struct sim_server *server) {
    count_recycled(server);
    simdisk_destroy(server->medium); // its queue is in the process's memory
    server->medium = NULL;
    end_process(server);
    free(server);
}

static void die(struct sim_server *server) {
    struct sim_node *node = server->node;
    sim_trace(server->sim, "node %lu: lost for good", node->id);
    simdisk_crash(server->medium, SIMDISK_DROP_ALL);
    end_process(server);
    node->up = false;
    node->dead = true;
    node->incarnation++;
}

void server_start(struct sim *sim, struct sim_node *node) {
    if (node->server == NULL) {
        node->server = make_server(sim, node);
    }
    struct sim_server *server = node->server;
    if (!server_recover(server)) {
        die(server);
        return;
    }
    node->up = true;
    sim_machine_load(sim, node);
    sim_check_start(sim, node);
    struct cg_raft_status status;
    cg_raft_status(node->raft, &status);
    sim_trace(sim, "node %lu: starts in term %lu, vote %lu, log %lu..%lu", node->id, status.term,
              status.vote, status.base_index, status.last_index);
    if (cg_copyset_log_start(server->log) != 0 ||
        cg_copyset_log_start(server->neighbour.log) != 0) {
        sim_fail(sim, "node %lu: its log has a gap", node->id);
    }
    server_leave(server);
}

void server_crash(struct sim *sim, struct sim_node *node) {
    struct sim_server *server = node->server;
    sim_blocks_crash(sim, node);
    node->disk.checkpointing = false;
    node->disk.installing = false;
    uint64_t mode = sim_below(sim, SIMDISK_CRASH_MODES + 1);
    if (mode == SIMDISK_CRASH_MODES) {
        simdisk_kill(server->medium);
    } else {
        simdisk_crash(server->medium, (enum simdisk_crash)mode);
    }
    end_process(server);
    node->up = false;
    node->incarnation++;
}

// ---- Its code runs between these two

static void settle(struct sim_server *server) {
    for (uint32_t i = 0; server_report_early(server) || !simreactor_idle(server->reactor); i++) {
        if (i == ITERATIONS_MAX) {
            sim_fail(server->sim, "node %lu: it never comes to rest", server->node->id);
        }
        simreactor_iterate(server->reactor);
    }
}

void server_enter(struct sim_server *server) {
    sim_process_enter(&server->process);
    server_watch(server);
    uint64_t clock = sim_node_clock(server->sim, server->node);
    uint64_t now = cg_reactor_now(server->reactor);
    simreactor_advance(server->reactor, clock > now ? clock - now : 0);
    settle(server);
}

static void schedule_disk(struct sim_server *server) {
    struct sim *sim = server->sim;
    while (server->steps_due < simdisk_pending(server->medium)) {
        uint64_t delay = sim_spread(sim, sim->profile.disk_ns);
        if (server->node->disk.slow_until > sim->now) {
            delay += sim_below(sim, 4 * sim->profile.election_ns);
        }
        server->steps_due++;
        sim_push(sim, sim->now + delay, SIM_DISK_DONE, server->node->id, 0);
    }
}

void server_leave(struct sim_server *server) {
    struct sim *sim = server->sim;
    struct sim_node *node = server->node;
    settle(server);
    node->raft = server->log->raft;
    if (server->failed) {
        die(server);
        return;
    }
    cg_copyset_log_applied(server->log, node->applied);
    cg_copyset_log_applied(server->neighbour.log, server->neighbour.delivered);
    neighbour_ask(server);
    settle(server);
    schedule_disk(server);
    sim_node_arm(sim, node, simreactor_deadline(server->reactor));
    sim_process_enter(NULL);
    server_watch(NULL);
}

// ---- Events

void server_timer(struct sim *sim, struct sim_node *node) {
    server_enter(node->server); // which fires what is due
    server_leave(node->server);
    if (node->up) {
        sim_check_quorum(sim, node);
    }
}

void server_disk_step(struct sim_node *node) {
    struct sim_server *server = node->server;
    server_enter(server);
    server->steps_due--;
    (void)simdisk_step(server->medium);
    server_leave(server);
}

void server_wake(struct sim *sim, struct sim_node *node) {
    struct sim_server *server = node->server;
    server_enter(server);
    cg_copyset_log_peer(server->log, (uint32_t)(1 + sim_below(sim, sim->nodes_made)),
                        sim_below(sim, 2) == 0);
    server_leave(server);
}

void server_resume(struct sim_node *node) {
    struct sim_server *server = node->server;
    server_enter(server);
    server->resume_due = false;
    sim_counts.resumed++;
    cg_copyset_log_resume(server->log);
    server_leave(server);
}

static struct cg_log_entry *make_entry(struct sim_server *server, const struct sim_entry *entry) {
    uint8_t meta[CG_LOG_CONFIG_SIZE_MAX];
    uint32_t type = 1, number = (uint32_t)(entry - server->sim->pool);
    uint32_t meta_length = sizeof(number);
    memcpy(meta, &number, sizeof(number));
    if (entry->type == CG_RAFT_ENTRY_NOOP) {
        type = CG_ENTRY_NOOP;
        meta_length = 0;
    } else if (entry->type == CG_RAFT_ENTRY_CONFIG) {
        type = CG_ENTRY_CONFIG;
        meta_length = (uint32_t)cg_log_config_encode(&entry->config, meta);
    }
    uint32_t length = server_payload_length(entry);
    struct cg_buffer *buffer = NULL;
    if (length != 0) {
        buffer = cg_buffer_alloc(server->pool, length);
        if (buffer == NULL) {
            sim_fail(server->sim, "node %lu: it has no buffers left", server->node->id);
        }
        server_fill_payload(entry, buffer->data);
    }
    struct cg_log_entry *made =
        cg_log_entry_make(type, entry->term, entry->index, meta, meta_length, buffer,
                          buffer != NULL ? buffer->data : NULL, length, NULL);
    cg_buffer_unref(buffer);
    return made;
}

void server_receive_raft(struct sim *sim, struct sim_node *node, const struct sim_mail *mail) {
    struct sim_server *server = node->server;
    struct cg_log_entry *entries[SIM_BATCH];
    uint32_t count = mail->raft.type == CG_RAFT_APPEND ? mail->raft.count : 0;
    server_enter(server);
    for (uint32_t i = 0; i < count; i++) {
        entries[i] = make_entry(server, mail->entry[i]);
    }
    struct cg_raft_status before;
    cg_raft_status(node->raft, &before);
    if (!server->log->install.logging) {
        sim_check_heard(sim, node, &mail->raft);
    }
    cg_copyset_log_receive(server->log, &mail->raft, entries);
    node->raft = server->log->raft;
    sim_check_vote(sim, node, &mail->raft, &before);
    for (uint32_t i = 0; i < count; i++) {
        cg_log_entry_unref(entries[i]);
    }
    server_leave(server);
}

// ---- What the log tells

static void answer_proposal(struct sim_server *server, struct cg_log_proposal *base, bool ok) {
    struct server_proposal *proposal = CG_CONTAINER_OF(base, struct server_proposal, base);
    if (proposal->answer) {
        sim_answer(server->sim, server->node, &proposal->request, ok, 0);
    }
    proposal->used = false;
}

static void proposal_failed(struct cg_log_proposal *base, int error) {
    (void)error;
    answer_proposal(CG_CONTAINER_OF(base, struct server_proposal, base)->server, base, false);
}

static void check_delivered(struct sim_server *server, const struct cg_log_entry *entry) {
    struct sim *sim = server->sim;
    const struct sim_node *node = server->node;
    if (entry->index != node->applied + 1) {
        sim_fail(sim, "node %lu: entry %lu is delivered after %lu", node->id, entry->index,
                 node->applied);
    }
    const struct sim_entry *known = node->log[entry->index];
    const struct sim_entry *found = server_entry_of(sim, entry->type, entry->meta,
                                                    entry->meta_length, entry->index, entry->term);
    uint8_t wanted[CG_WAL_BLOCK];
    server_fill_payload(found, wanted);
    if (found != known || entry->payload_length != server_payload_length(found) ||
        memcmp(entry->payload != NULL ? entry->payload : wanted, wanted, entry->payload_length) !=
            0) {
        sim_fail(sim, "node %lu: another entry %lu is delivered than was logged", node->id,
                 entry->index);
    }
    if (entry->index > node->disk.last || node->disk.term_at[entry->index] != entry->term) {
        sim_fail(sim, "node %lu: entry %lu is delivered and not on its disk", node->id,
                 entry->index);
    }
}

bool server_committed(void *context, struct cg_log_entry *entry, struct cg_log_proposal *proposal) {
    struct sim_server *server = context;
    struct sim *sim = server->sim;
    struct sim_node *node = server->node;
    if (sim->profile.reluctant && sim_below(sim, 8) == 0) {
        if (!server->resume_due) {
            server->resume_due = true;
            sim_push(sim, sim->now + sim_spread(sim, sim->profile.disk_ns), SIM_RESUME, node->id,
                     0);
        }
        return false;
    }
    check_delivered(server, entry);
    sim_machine_take(sim, node, entry->index);
    if (proposal != NULL) {
        answer_proposal(server, proposal, true);
    }
    return true;
}

void server_role_changed(void *context) {
    (void)context; // the core's actions are watched
}

void server_lease(void *context, uint64_t end_ns) {
    struct sim_server *server = context;
    server->lease_end = end_ns;
}

void server_copy_state(void *context, uint64_t member) {
    struct sim_server *server = context;
    if (sim_below(server->sim, 2) == 0) {
        cg_copyset_log_copying(server->log, member, server->node->applied);
    }
    sim_send_snapshot(server->sim, server->node, member);
}

void server_copied(struct sim_node *node, uint64_t member, uint64_t index, bool ok) {
    struct sim_server *server = node->server;
    server_enter(server);
    cg_copyset_log_copied(server->log, member, index, ok);
    server_leave(server);
}

// ---- Clients

// Local readers see what is applied, as long as they were told that they may. Somebody else
// commits.
void server_check_local(struct sim *sim, const struct sim_node *node, uint64_t committed) {
    const struct sim_server *server = node->server;
    if (!sim->options.wild_clocks && node->up && server->lease_end > sim_node_clock(sim, node) &&
        node->applied < committed) {
        sim_fail(sim, "node %lu lets local readers see %lu when %lu is committed", node->id,
                 node->applied, committed);
    }
}

static struct server_proposal *free_proposal(struct sim_server *server) {
    for (uint32_t i = 0; i < SERVER_PROPOSALS; i++) {
        if (!server->proposal[i].used) {
            return &server->proposal[i];
        }
    }
    return NULL;
}

static bool propose(struct sim_server *server, struct sim_entry *entry,
                    const struct sim_request *request) {
    struct server_proposal *proposal = free_proposal(server);
    if (proposal == NULL) {
        return false;
    }
    *proposal = (struct server_proposal){
        .server = server, .used = true, .base.failed = proposal_failed, .answer = request != NULL};
    if (request != NULL) {
        proposal->request = *request;
    }
    cg_list_init(&proposal->base.node);
    proposal->base.entry = make_entry(server, entry);
    if (cg_copyset_log_propose(server->log, &proposal->base) != 0) {
        cg_log_entry_unref(proposal->base.entry);
        proposal->used = false;
        return false;
    }
    return true;
}

void server_write(struct sim *sim, struct sim_node *node, const struct sim_request *request) {
    struct sim_server *server = node->server;
    server_enter(server);
    struct sim_entry *entry = sim_entry_make(sim);
    *entry = (struct sim_entry){
        .client = request->client,
        .sequence = request->op + 1,
        .settled_below = request->settled_below,
        .block = request->block,
        .value = request->value,
    };
    if (!propose(server, entry, request)) {
        sim->pool_used--;
        sim_answer(sim, node, request, false, 0);
    }
    server_leave(server);
}

void server_flood(struct sim *sim, struct sim_node *node, uint32_t count) {
    struct sim_server *server = node->server;
    server_enter(server);
    while (count-- > 0 && sim->pool_used + 256 < SIM_INDEX) {
        struct sim_entry *entry = sim_entry_make(sim);
        *entry = (struct sim_entry){.client = SIM_CLIENTS};
        if (!propose(server, entry, NULL)) {
            sim->pool_used--;
            break;
        }
    }
    server_leave(server);
}

static void answer_read(struct sim_server *server, uint32_t slot, bool ok) {
    struct sim *sim = server->sim;
    struct sim_node *node = server->node;
    struct sim_wait *wait = &node->read[slot];
    wait->used = false;
    wait->index = node->applied;
    if (ok) {
        sim_check_read(sim, node, wait);
    }
    sim_answer(sim, node, &wait->request, ok, ok ? node->value[wait->request.block] : 0);
}

static void read_done(struct cg_log_read *base, int status) {
    struct server_read *read = CG_CONTAINER_OF(base, struct server_read, base);
    answer_read(read->server, (uint32_t)(read - read->server->read), status == 0);
}

void server_read(struct sim *sim, struct sim_node *node, const struct sim_request *request) {
    struct sim_server *server = node->server;
    server_enter(server);
    uint32_t slot = 0;
    while (slot < SIM_READS && node->read[slot].used) {
        slot++;
    }
    if (slot == SIM_READS) {
        sim_answer(sim, node, request, false, 0);
        server_leave(server);
        return;
    }
    node->read[slot] =
        (struct sim_wait){.used = true, .request = *request, .committed = sim->committed_last};
    if (cg_copyset_log_can_read(server->log)) {
        answer_read(server, slot, true);
    } else {
        server->read[slot] = (struct server_read){.base.done = read_done, .server = server};
        cg_copyset_log_read(server->log, &server->read[slot].base);
    }
    server_leave(server);
}

// ---- The operator

int server_change(struct sim_node *node, enum cg_raft_change kind, uint64_t id) {
    struct sim_server *server = node->server;
    server_enter(server);
    int result = cg_copyset_log_change(server->log, kind, id);
    server_leave(server);
    return result;
}

int server_transfer(struct sim_node *node, uint64_t id) {
    struct sim_server *server = node->server;
    server_enter(server);
    int result = cg_copyset_log_transfer(server->log, id);
    server_leave(server);
    return result;
}
