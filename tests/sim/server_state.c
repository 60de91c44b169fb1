// SPDX-License-Identifier: BSD-3-Clause
//
// What a server has on its disk: the log, which is real, on simulated files; and checkpoints and
// copied state, which are whole or not there, as the store's files are by rename.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "chunkserver/wal_format.h"
#include "chunkserver/wal_segments.h"
#include "server.h"

#define POOL_BYTES    (8U << 20)
#define SEGMENT_SLOTS 512U

// ---- Start

static uint64_t clock_of(void *context) {
    const struct sim_server *server = context;
    return cg_reactor_now(server->reactor);
}

static void disk_failed(void *context, int error) {
    struct sim_server *server = context;
    sim_trace(server->sim, "node %lu: its disk has failed: %d", server->node->id, error);
    server->failed = true;
    sim_counts.failed++;
}

static void send_message(void *context, uint64_t group, const struct cg_raft_message *message,
                         struct cg_log_entry *const *entries) {
    struct sim_server *server = context;
    struct sim *sim = server->sim;
    (void)group;
    struct sim_mail *mail = sim_compose(sim);
    mail->kind = SIM_RAFT;
    mail->from = message->from;
    mail->to = message->to;
    mail->raft = *message;
    for (uint32_t i = 0; message->type == CG_RAFT_APPEND && i < message->count; i++) {
        const struct cg_log_entry *entry = entries[i];
        mail->entry[i] = server_entry_of(sim, entry->type, entry->meta, entry->meta_length,
                                         entry->index, entry->term);
    }
    sim_send(sim, mail);
}

static void make_parts(struct sim_server *server) {
    const struct sim_profile *profile = &server->sim->profile;
    int result = cg_buffer_pool_create(POOL_BYTES, &server->pool);
    const struct cg_log_disk_options disk = {
        .reactor = server->reactor,
        .pool = server->pool,
        .send = send_message,
        .send_context = server,
        .failed = disk_failed,
        .failed_context = server,
        .now = clock_of,
        .now_context = server,
        .cache_bytes = profile->memory_entries != 0 ? profile->memory_entries * 700 : 0,
        .election_timeout_ns = profile->election_ns,
        .heartbeat_interval_ns = profile->election_ns / 5,
        .quiesce_after_ns = profile->quiesce_ns,
        .clock_drift_ppm = profile->bound_ppm,
    };
    result = result == 0 ? cg_log_disk_create(&disk, &server->disk) : result;
    const struct cg_copyset_log_options log = {
        .group = SERVER_GROUP,
        .self = server->node->id,
        .disk = server->disk,
        .events =
            {
                .committed = server_committed,
                .role_changed = server_role_changed,
                .copy_state = server_copy_state,
                .lease = server_lease,
                .context = server,
            },
    };
    result = result == 0 ? cg_copyset_log_create(&log, &server->saved, &server->log) : result;
    result = result == 0 ? neighbour_create(server) : result;
    if (result != 0) {
        sim_fail(server->sim, "node %lu: its state is refused: %d", server->node->id, result);
    }
}

// The checks' view: the checkpoint, and then record by record what the replay reports.
static void forget_log(struct sim_server *server) {
    struct sim_disk *disk = &server->node->disk;
    disk->term = server->saved.term;
    disk->vote = server->saved.vote;
    disk->base = disk->checkpoint.index;
    disk->last = disk->base;
    disk->term_at[disk->base] = disk->checkpoint.term;
    disk->installed.index = 0;
}

static bool open_log(struct sim_server *server) {
    struct sim *sim = server->sim;
    const struct sim_node *node = server->node;
    // Without checkpoints nothing is recycled, and the simulated disk has 256 handles.
    unsigned size = (unsigned)(sim->options.seed % 3) + (sim->profile.checkpoint_ns == 0 ? 3 : 0);
    const struct cg_wal_options options = {
        .segment_bytes = UINT64_C(32768) << size,
        .capacity_bytes = 64 << 20,
        .batches_in_flight = 1 + (unsigned)(sim->options.seed / 3 % 3),
        .batch_bytes_max = sim->options.seed % 2 == 0 ? 12 << 10 : 0,
    };
    const struct cg_wal_replay replay = {server_replayed, server, server->from_lsn};
    char error[256];
    server->replayed = 0;
    int result = cg_wal_open(simdisk_disk(server->medium), server->reactor, &options, &replay,
                             &server->wal, error, sizeof(error));
    if (result != 0 && (result != -EBADMSG || !server->rotten)) {
        sim_fail(sim, "node %lu: its log does not open: %s", node->id, error);
    }
    if (result == 0 && server->rotten) {
        sim_fail(sim, "node %lu: damage to its log is not noticed", node->id);
    }
    if (result == 0 && server->replayed < server->durable) {
        sim_fail(sim, "node %lu: %u records that were durable are gone", node->id,
                 server->durable - server->replayed);
    }
    if (result == 0) {
        sim_counts.replays++;
        server->count = server->replayed;
        server->durable = server->replayed;
        cg_log_disk_attach(server->disk, server->wal);
    }
    return result == 0;
}

bool server_recover(struct sim_server *server) {
    struct sim_node *node = server->node;
    server->reactor = simreactor_create(server->medium);
    simreactor_advance(server->reactor, sim_node_clock(server->sim, node));
    server->wal = NULL;
    server->log = NULL;
    server->steps_due = 0;
    server->failed = false;
    server->resume_due = false;
    server->lease_end = 0;
    server->early_count = 0;
    memset(server->proposal, 0, sizeof(server->proposal));
    sim_process_enter(&server->process);
    server_watch(server);
    make_parts(server);
    struct sim_disk *disk = &node->disk;
    uint64_t base = disk->base, last = disk->last;
    uint64_t term_at[SIM_INDEX];
    memcpy(term_at, disk->term_at, sizeof(term_at));
    forget_log(server);
    if (!open_log(server)) {
        disk->base = base; // what it had acknowledged was there
        disk->last = last;
        memcpy(disk->term_at, term_at, sizeof(term_at));
        return false;
    }
    node->raft = server->log->raft;
    struct cg_raft_status status;
    cg_raft_status(node->raft, &status);
    if (status.base_index != sim_disk_base(&node->disk)->index) {
        sim_fail(server->sim, "node %lu: its log begins at %lu, its state at %lu", node->id,
                 status.base_index, sim_disk_base(&node->disk)->index);
    }
    return true;
}

// ---- Checkpoints

static uint64_t lower(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

void server_checkpoint_due(struct sim *sim, struct sim_node *node) {
    struct sim_server *server = node->server;
    struct sim_disk *disk = &node->disk;
    if (disk->checkpointing || disk->installing || server->failed ||
        node->applied < sim_disk_base(disk)->index) {
        return;
    }
    server_enter(server);
    disk->checkpointing = true;
    sim_machine_capture(sim, node, &disk->pending);
    cg_copyset_log_capture(server->log, node->applied, &server->pending);
    struct server_neighbour *n = &server->neighbour;
    cg_copyset_log_capture(n->log, n->delivered, &n->pending);
    n->pending_serial = n->serial;
    server->pending_from =
        lower(cg_wal_tail(server->wal), lower(server->pending.replay_lsn, n->pending.replay_lsn));
    server->pending_after = server->dropped + server->count;
    uint64_t wait = sim_spread(sim, 4 * sim->profile.disk_ns);
    if (sim->options.mutation == SIM_MUTATION_RECYCLE_BEFORE_SYNC) {
        cg_wal_recycle(server->wal, server->pending_from);
        wait *= 8; // segments are used again one by one
    }
    sim_push(sim, sim->now + wait, SIM_CHECKPOINT_DONE, node->id, 0);
    server_leave(server);
}

// The first record that a checkpoint does not contain, if states are forgotten.
static uint64_t without_states(const struct sim_server *server, uint64_t tail) {
    uint64_t from = tail;
    for (uint32_t i = 0; i < server->durable; i++) {
        const struct server_record *record = &server->record[i];
        uint64_t index = record->record.kind == SIM_RECORD_OTHER ? server->neighbour.pending.index
                                                                 : server->pending.index;
        if (record->record.kind != SIM_RECORD_STATE && record->record.index > index &&
            record->lsn < from) {
            from = record->lsn;
        }
    }
    return from;
}

static void forget_records(struct sim_server *server) {
    uint32_t gone = 0;
    while (gone < server->durable && server->record[gone].lsn < server->from_lsn) {
        gone++;
    }
    memmove(server->record, server->record + gone,
            (server->count - gone) * sizeof(server->record[0]));
    server->count -= gone;
    server->durable -= gone;
    server->dropped += gone;
}

void server_checkpoint_done(struct sim *sim, struct sim_node *node) {
    struct sim_server *server = node->server;
    struct sim_disk *disk = &node->disk;
    if (!disk->checkpointing) {
        return;
    }
    if (server->dropped + server->durable < server->pending_after) {
        sim_push(sim, sim->now + sim_spread(sim, sim->profile.disk_ns), SIM_CHECKPOINT_DONE,
                 node->id, 0);
        return;
    }
    server_enter(server);
    disk->checkpointing = false;
    if (sim->options.mutation != SIM_MUTATION_CHECKPOINT_WITHOUT_BLOCKS) {
        sim_take_newer(disk->value, disk->value_index, &disk->pending);
    }
    disk->checkpoint = disk->pending;
    server->saved = server->pending;
    server->neighbour.saved = server->neighbour.pending;
    server->neighbour.saved_serial = server->neighbour.pending_serial;
    server->from_lsn = server->pending_from;
    uint64_t tail = cg_wal_tail(server->wal);
    if (sim->options.mutation == SIM_MUTATION_STATE_RECYCLED && server->durable == server->count) {
        server->from_lsn = without_states(server, tail);
    }
    if (sim->options.mutation == SIM_MUTATION_VOTE_FORGOTTEN_BY_CHECKPOINT) {
        server->saved.vote = 0;
    }
    if (disk->base < disk->checkpoint.index) {
        disk->base = disk->checkpoint.index;
    }
    uint64_t kept = sim_below(sim, 2) ? 0 : sim_below(sim, 256 << 10);
    uint64_t keep_from = tail > kept ? tail - kept : 0;
    uint64_t needed = cg_copyset_log_saved(server->log, &server->saved, keep_from);
    uint64_t also =
        cg_copyset_log_saved(server->neighbour.log, &server->neighbour.saved, keep_from);
    cg_wal_recycle(server->wal, lower(server->from_lsn, lower(needed, also)));
    forget_records(server);
    sim_trace(sim, "node %lu: checkpoint at %lu, the log from %lu on", node->id,
              disk->checkpoint.index, server->from_lsn);
    server_leave(server);
}

// ---- State from a leader

void server_receive_snapshot(struct sim *sim, struct sim_node *node, const struct sim_mail *mail) {
    struct sim_server *server = node->server;
    struct sim_disk *disk = &node->disk;
    server_enter(server);
    bool again =
        disk->installing && server->log->install.discarded && !server->log->install.logging;
    if ((again || !disk->installing) && !server->failed &&
        cg_copyset_log_wants_state(server->log, mail->snapshot.index, mail->snapshot.term)) {
        if (!again) {
            cg_copyset_log_install_begin(server->log);
        }
        disk->installing = true;
        disk->checkpointing = false;
        disk->install = mail->snapshot;
        disk->install_from = mail->from;
        sim_push(sim, sim->now + sim_spread(sim, 4 * sim->profile.disk_ns), SIM_INSTALL_READY,
                 node->id, 0);
    }
    server_leave(server);
}

static void installed(void *user, int status) {
    struct sim_server *server = user;
    struct sim *sim = server->sim;
    struct sim_node *node = server->node;
    sim_trace(sim, "node %lu: snapshot at %lu: %d", node->id, node->disk.install.index, status);
    if (status == -EAGAIN) {
        sim_push(sim, sim->now + sim_spread(sim, sim->profile.disk_ns), SIM_INSTALL_READY, node->id,
                 0);
        return;
    }
    if (status != 0 && server->log->install.discarded) {
        return; // there is no way back; the leader sends another one
    }
    node->disk.installing = false;
    if (status != 0) {
        cg_copyset_log_install_abort(server->log);
        return;
    }
    sim_counts.installed++;
    sim_machine_load(sim, node);
    struct sim_mail *done = sim_compose(sim);
    done->kind = SIM_SNAPSHOT_DONE;
    done->from = node->id;
    done->to = node->disk.install_from;
    done->value = node->applied;
    sim_send(sim, done);
}

// Chunks are replaced one by one, and may be newer than the log then; what else there is counts
// when the log says so.
void server_install_ready(struct sim *sim, struct sim_node *node) {
    struct sim_server *server = node->server;
    struct sim_disk *disk = &node->disk;
    if (!disk->installing || server->log->install.logging) {
        return;
    }
    server_enter(server);
    if (sim_below(sim, 16) == 0 && !server->log->install.discarded) {
        disk->installing = false;
        cg_copyset_log_install_abort(server->log);
    } else {
        if (sim_below(sim, 2) == 0 && !server->log->install.discarded) {
            cg_copyset_log_install_discard(server->log);
        }
        sim_take_newer(disk->value, disk->value_index, &disk->install);
        server->staged = disk->install;
        const struct cg_copyset_log_saved state = {.index = disk->install.index,
                                                   .index_term = disk->install.term,
                                                   .config = disk->install.config};
        cg_copyset_log_installed(server->log, &state, installed, server);
    }
    server_leave(server);
}

// ---- Damage

static bool locate(const struct sim_server *server, uint64_t lsn, char *path, uint64_t *offset) {
    uint64_t best = 0;
    for (uint32_t slot = 0; slot < SEGMENT_SLOTS; slot++) {
        char name[WAL_NAME_SIZE];
        snprintf(name, sizeof(name), WAL_NAME_FORMAT, slot);
        uint64_t length;
        const uint8_t *bytes = simdisk_bytes(server->medium, name, &length);
        struct wal_segment_header header;
        if (bytes == NULL || length < CG_WAL_BLOCK ||
            wal_segment_header_decode(bytes, &header) != 0 || header.sequence <= best ||
            header.start_lsn > lsn || lsn - header.start_lsn + 2 * CG_WAL_BLOCK > length) {
            continue;
        }
        best = header.sequence;
        *offset = CG_WAL_BLOCK + (lsn - header.start_lsn);
        memcpy(path, name, sizeof(name));
    }
    return best != 0;
}

// One bit of a batch that later ones say was durable: what nothing vouches for would pass for torn.
bool server_rot(struct sim *sim, struct sim_node *node) {
    struct sim_server *server = node->server;
    uint32_t later = 0, end = server->durable;
    while (end > 1 && later < 4) {
        end--;
        later += server->record[end].lsn != server->record[end - 1].lsn;
    }
    if (later < 4) {
        return false;
    }
    const struct server_record *victim = &server->record[sim_below(sim, end)];
    char path[WAL_NAME_SIZE];
    uint64_t offset, length;
    if (victim->lsn < server->from_lsn || !locate(server, victim->lsn, path, &offset)) {
        sim_fail(sim, "node %lu: a record that is needed is nowhere", node->id);
    }
    struct wal_batch_header header;
    if (!wal_batch_peek(simdisk_bytes(server->medium, path, &length) + offset, &header)) {
        sim_fail(sim, "node %lu: a batch that is needed is gone", node->id);
    }
    uint64_t at = sim_below(sim, header.used + header.payload);
    at = at < header.used ? at : at - header.used + header.region;
    sim_trace(sim, "node %lu: %s rots at %lu", node->id, path, offset + at);
    simdisk_flip(server->medium, path, offset + at, (unsigned)sim_below(sim, 8));
    server->rotten = true;
    sim_counts.damaged++;
    return true;
}

// The next write fails, and every later one, or somebody else has noticed.
void server_lose_disk(struct sim *sim, struct sim_node *node) {
    struct sim_server *server = node->server;
    node->failing = true;
    server_enter(server);
    if (sim_below(sim, 2)) {
        cg_log_disk_failed(server->disk, -EIO);
        server->failed = true;
    } else {
        simdisk_fail_write(server->medium, 0, -EIO, true);
    }
    server_leave(server);
}
