// SPDX-License-Identifier: BSD-3-Clause
#include "logmodel.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/bytes.h"
#include "chunkserver/wal_internal.h"
#include "simreactor.h"
#include "walmodel.h"

#define SEGMENT   (256U << 10)
#define DATA_TYPE 1U

struct letter {
    struct cg_list node;
    uint64_t to;
    struct cg_raft_message message;
    struct cg_log_entry *entry[];
};

struct proposal {
    struct cg_log_proposal base;
    struct logmodel_member *member;
    uint64_t value;
};

struct read {
    struct cg_log_read base;
    struct logmodel *model;
};

static void dump(const struct logmodel *model) {
    fprintf(stderr, "seed %" PRIu64 "\n", model->seed);
    for (unsigned id = 1; id < MODEL_MEMBERS; id++) {
        const struct logmodel_member *member = &model->member[id];
        if (member->up) {
            struct cg_copyset_log_status status;
            cg_copyset_log_status(member->log, &status);
            fprintf(stderr,
                    "member %u: role %d, term %" PRIu64 ", last %" PRIu64 ", durable %" PRIu64
                    ", committed %" PRIu64 ", delivered %" PRIu64 ", disk %d\n",
                    id, (int)status.role, status.term, status.last_index, status.durable_index,
                    status.commit_index, status.delivered_index, member->disk_failure);
        }
    }
}

static void fail(const struct logmodel_member *member, const char *what, uint64_t index) {
    fprintf(stderr, "member %" PRIu64 ": %s (%" PRIu64 ") at %" PRIu64 " ms\n", member->id, what,
            index, member->model->now / CG_NS_PER_MS);
    dump(member->model);
    abort();
}

static uint64_t draw(struct logmodel *model) {
    uint64_t z = model->random += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

uint32_t logmodel_below(struct logmodel *model, uint32_t bound) {
    return (uint32_t)(draw(model) % bound);
}

static uint64_t now(void *context) {
    const struct logmodel *model = context;
    return model->now;
}

// ---- The state machine

static void check_payload(struct logmodel_member *member, const struct cg_log_entry *entry,
                          uint64_t value) {
    for (uint32_t at = 0; at < entry->payload_length; at += CG_WAL_BLOCK) {
        if (cg_get_u64(entry->payload + at) != value) {
            fail(member, "a payload is another entry's", entry->index);
        }
    }
}

static bool committed(void *context, struct cg_log_entry *entry, struct cg_log_proposal *proposal) {
    struct logmodel_member *member = context;
    struct logmodel *model = member->model;
    if (member->refuse) {
        return false;
    }
    if (entry->index != member->delivered + 1) {
        fail(member, "delivered out of order", entry->index);
    }
    if (entry->index >= MODEL_VALUES) {
        fail(member, "the model's log is full", entry->index);
    }
    uint64_t value = entry->type == DATA_TYPE ? cg_get_u64(entry->meta) : 0;
    check_payload(member, entry, value);
    struct logmodel_value *slot = &model->log[entry->index];
    if (slot->term == 0) {
        *slot = (struct logmodel_value){entry->term, value, entry->type, false};
        model->last = entry->index;
    } else if (slot->term != entry->term || slot->value != value || slot->type != entry->type) {
        fail(member, "delivered what others did not", entry->index);
    }
    member->delivered = entry->index;
    if (proposal != NULL) {
        struct proposal *own = CG_CONTAINER_OF(proposal, struct proposal, base);
        if (own->value != value || own->member != member || proposal->index != entry->index) {
            fail(member, "an entry came with another's proposal", entry->index);
        }
        slot->acked = true;
        model->acked++;
        model->pending--;
        free(own);
    }
    if (!member->hold_applied) {
        cg_copyset_log_applied(member->log, entry->index);
    }
    return true;
}

static void failed(struct cg_log_proposal *proposal, int error) {
    struct proposal *own = CG_CONTAINER_OF(proposal, struct proposal, base);
    struct logmodel *model = own->member->model;
    model->failed++;
    model->pending--;
    model->last_failure = error;
    free(own);
}

static void role_changed(void *context) {
    struct logmodel_member *member = context;
    member->role_changes++;
}

static void copy_state(void *context, uint64_t id) {
    struct logmodel_member *member = context;
    member->copies_asked++;
    member->copy_for[id] = true;
}

static void lease(void *context, uint64_t end_ns) {
    struct logmodel_member *member = context;
    member->lease_end = end_ns;
}

static void disk_failed(void *context, int error) {
    struct logmodel_member *member = context;
    member->disk_failure = error;
}

// ---- The network

static void post(void *context, uint64_t group, const struct cg_raft_message *message,
                 struct cg_log_entry *const *entries) {
    struct logmodel_member *member = context;
    struct logmodel *model = member->model;
    if (group != MODEL_GROUP || message->from != member->id) {
        fail(member, "sent for another", message->from);
    }
    model->sent[message->type]++;
    uint32_t count = message->type == CG_RAFT_APPEND ? message->count : 0;
    struct letter *letter = malloc(sizeof(*letter) + count * sizeof(letter->entry[0]));
    letter->to = message->to;
    letter->message = *message;
    for (uint32_t i = 0; i < count; i++) {
        letter->entry[i] = cg_log_entry_ref(entries[i]);
    }
    cg_list_init(&letter->node);
    cg_list_push_back(&model->mail, &letter->node);
}

static void tear(struct letter *letter) {
    for (uint32_t i = 0; letter->message.type == CG_RAFT_APPEND && i < letter->message.count; i++) {
        cg_log_entry_unref(letter->entry[i]);
    }
    free(letter);
}

// As it would come off the wire: entries of its own, in buffers of the receiver.
static void hand_over(struct logmodel_member *member, struct letter *letter) {
    struct cg_log_entry *entries[CG_RAFT_ENTRIES_MAX] = {NULL};
    uint32_t count = letter->message.type == CG_RAFT_APPEND ? letter->message.count : 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct cg_log_entry *sent = letter->entry[i];
        struct cg_buffer *buffer = NULL;
        const uint8_t *payload = NULL;
        if (sent->payload_length > 0) {
            buffer = cg_buffer_alloc(member->pool, sent->payload_length);
            memcpy(buffer->data, sent->payload, sent->payload_length);
            payload = buffer->data;
        }
        entries[i] =
            cg_log_entry_make(sent->type, sent->term, sent->index, sent->meta, sent->meta_length,
                              buffer, payload, sent->payload_length, sent->block_crcs);
        cg_buffer_unref(buffer);
    }
    cg_copyset_log_receive(member->log, &letter->message, entries);
    for (uint32_t i = 0; i < count; i++) {
        cg_log_entry_unref(entries[i]);
    }
}

static void deliver_mail(struct logmodel *model) {
    struct cg_list mail;
    cg_list_init(&mail);
    cg_list_splice_back(&mail, &model->mail);
    struct cg_list *node;
    while ((node = cg_list_pop_front(&mail)) != NULL) {
        struct letter *letter = CG_CONTAINER_OF(node, struct letter, node);
        struct logmodel_member *to = &model->member[letter->to];
        if (to->up && !model->cut[letter->message.from][letter->to] &&
            logmodel_below(model, 100) >= model->loss_percent) {
            hand_over(to, letter);
        }
        tear(letter);
    }
}

// ---- Time

static void work(struct logmodel_member *member) {
    for (unsigned i = 0; i < 6; i++) {
        simreactor_iterate(member->reactor);
        simdisk_step(member->sim);
    }
    simreactor_iterate(member->reactor);
}

void logmodel_run(struct logmodel *model, unsigned ms) {
    for (unsigned i = 0; i < ms; i++) {
        for (unsigned round = 0; round < 2; round++) {
            for (unsigned id = 1; id < MODEL_MEMBERS; id++) {
                if (model->member[id].up) {
                    work(&model->member[id]);
                }
            }
            deliver_mail(model);
        }
        model->now += CG_NS_PER_MS;
        for (unsigned id = 1; id < MODEL_MEMBERS; id++) {
            if (model->member[id].up) {
                simreactor_advance(model->member[id].reactor, CG_NS_PER_MS);
            }
        }
    }
}

struct logmodel_member *logmodel_leader(struct logmodel *model) {
    for (unsigned ms = 0; ms < 10000; ms++) {
        struct logmodel_member *leader = NULL;
        uint64_t term = 0;
        for (unsigned id = 1; id < MODEL_MEMBERS; id++) {
            struct logmodel_member *member = &model->member[id];
            struct cg_copyset_log_status status;
            if (member->up && cg_copyset_log_ready(member->log)) {
                cg_copyset_log_status(member->log, &status);
                if (status.term > term) { // one that was deposed may not know it yet
                    leader = member;
                    term = status.term;
                }
            }
        }
        if (leader != NULL) {
            return leader;
        }
        logmodel_run(model, 1);
    }
    dump(model);
    fprintf(stderr, "nobody is ready after ten seconds\n");
    abort();
}

static bool settled(struct logmodel *model) {
    struct logmodel_member *leader = logmodel_leader(model);
    struct cg_copyset_log_status status;
    cg_copyset_log_status(leader->log, &status);
    if (status.commit_index != status.last_index) {
        return false;
    }
    for (unsigned id = 1; id < MODEL_MEMBERS; id++) {
        const struct logmodel_member *member = &model->member[id];
        for (uint32_t i = 0; member->up && i < status.config.count; i++) {
            if (status.config.member[i].id == id && member->delivered != status.last_index) {
                return false;
            }
        }
    }
    return true;
}

void logmodel_settle(struct logmodel *model) {
    for (unsigned ms = 0; ms < 20000; ms++) {
        if (settled(model)) {
            return;
        }
        logmodel_run(model, 1);
    }
    fail(logmodel_leader(model), "nothing settles", model->last);
}

// ---- Work

int logmodel_propose(struct logmodel *model, struct logmodel_member *at, unsigned blocks) {
    struct proposal *proposal = calloc(1, sizeof(*proposal));
    proposal->member = at;
    proposal->value = ++model->next_value;
    uint8_t meta[8];
    cg_put_u64(meta, proposal->value);
    struct cg_buffer *buffer = NULL;
    if (blocks > 0) {
        buffer = cg_buffer_alloc(at->pool, (size_t)blocks * CG_WAL_BLOCK);
        memset(buffer->data, 0, (size_t)blocks * CG_WAL_BLOCK);
        for (unsigned i = 0; i < blocks; i++) {
            cg_put_u64(buffer->data + (size_t)i * CG_WAL_BLOCK, proposal->value);
        }
    }
    proposal->base.entry =
        cg_log_entry_make(DATA_TYPE, 0, 0, meta, sizeof(meta), buffer,
                          buffer != NULL ? buffer->data : NULL, blocks * CG_WAL_BLOCK, NULL);
    cg_buffer_unref(buffer);
    proposal->base.failed = failed;
    int result = cg_copyset_log_propose(at->log, &proposal->base);
    if (result != 0) {
        model->refused++;
        cg_log_entry_unref(proposal->base.entry);
        free(proposal);
        return result;
    }
    model->proposed++;
    model->pending++;
    return 0;
}

void logmodel_write(struct logmodel *model, unsigned count, unsigned blocks) {
    unsigned target = model->acked + count;
    for (unsigned ms = 0; model->acked < target; ms++) {
        struct logmodel_member *leader = logmodel_leader(model);
        while (model->acked + model->pending < target && model->pending < 32 &&
               logmodel_propose(model, leader, blocks) == 0) {
        }
        logmodel_run(model, 1);
        if (ms > 60000) {
            fail(leader, "writes do not end", model->acked);
        }
    }
}

static void read_done(struct cg_log_read *base, int status) {
    struct read *read = CG_CONTAINER_OF(base, struct read, base);
    read->model->reads_done++;
    read->model->last_read = status;
    free(read);
}

void logmodel_read(struct logmodel *model, struct logmodel_member *at) {
    struct read *read = calloc(1, sizeof(*read));
    read->model = model;
    read->base.done = read_done;
    cg_copyset_log_read(at->log, &read->base);
}

// ---- Life

static int replay(void *context, uint64_t lsn, const struct cg_wal_record *record,
                  const void *payload) {
    struct logmodel_member *member = context;
    (void)payload;
    return record->group == MODEL_GROUP ? cg_copyset_log_restore(member->log, lsn, record) : 0;
}

static void open_log(struct logmodel_member *member) {
    struct logmodel *model = member->model;
    const struct cg_log_disk_options disk = {
        .reactor = member->reactor,
        .pool = member->pool,
        .send = post,
        .send_context = member,
        .failed = disk_failed,
        .failed_context = member,
        .now = now,
        .now_context = model,
        .cache_bytes = model->cache_bytes,
    };
    const struct cg_copyset_log_options options = {
        .group = MODEL_GROUP,
        .self = member->id,
        .events = {committed, role_changed, copy_state, lease, member},
    };
    const struct cg_wal_options wal = {
        .segment_bytes = model->segment_bytes,
        .capacity_bytes = 1U << 30,
        .batch_bytes_max = 64U << 10,
    };
    const struct cg_wal_replay records = {replay, member, member->saved_lsn};
    char error[256];
    struct cg_copyset_log_options mine = options;
    if (cg_log_disk_create(&disk, &member->disk) != 0) {
        abort();
    }
    mine.disk = member->disk;
    if (cg_copyset_log_create(&mine, &member->saved, &member->log) != 0) {
        fail(member, "its log cannot be made", 0);
    }
    if (cg_wal_open(simdisk_disk(member->sim), member->reactor, &wal, &records, &member->wal, error,
                    sizeof(error)) != 0) {
        fail(member, error, 0);
    }
    cg_log_disk_attach(member->disk, member->wal);
    struct cg_copyset_log_status status;
    cg_copyset_log_status(member->log, &status);
    member->delivered = status.delivered_index;
    if (cg_copyset_log_start(member->log) != 0) {
        fail(member, "its log has a gap", 0);
    }
}

void logmodel_start(struct logmodel_member *member) {
    member->reactor = simreactor_create(member->sim);
    member->disk_failure = 0;
    member->refuse = false;
    member->hold_applied = false;
    member->lease_end = 0;
    member->up = true;
    open_log(member);
}

static void make(struct logmodel *model, uint64_t id, const struct cg_raft_config *config) {
    struct logmodel_member *member = &model->member[id];
    *member = (struct logmodel_member){.model = model, .id = id, .exists = true};
    const struct simdisk_options disk = {.seed = draw(model)};
    member->sim = simdisk_create(&disk);
    if (cg_buffer_pool_create(256U << 20, &member->pool) != 0) {
        abort();
    }
    if (config != NULL) {
        member->saved.config = *config;
    }
    logmodel_start(member);
}

void logmodel_add_blank(struct logmodel *model, uint64_t id) {
    make(model, id, NULL);
}

void logmodel_init(struct logmodel *model, uint64_t seed, unsigned voters, uint64_t cache_bytes) {
    memset(model, 0, sizeof(*model));
    model->seed = seed;
    model->random = seed;
    model->now = CG_NS_PER_S;
    model->cache_bytes = cache_bytes;
    model->segment_bytes = SEGMENT;
    cg_list_init(&model->mail);
    struct cg_raft_config config = {.count = voters};
    for (unsigned i = 0; i < voters; i++) {
        config.member[i] = (struct cg_raft_member){.id = i + 1};
    }
    for (unsigned i = 0; i < voters; i++) {
        make(model, i + 1, &config);
    }
}

static void end_appends(struct cg_list *appends) {
    struct cg_list *node;
    while ((node = cg_list_pop_front(appends)) != NULL) {
        struct cg_wal_append *append = CG_CONTAINER_OF(node, struct cg_wal_append, node);
        append->status = -EIO;
        append->done(append);
    }
}

static void end_batches(struct cg_list *batches) {
    CG_LIST_FOREACH (node, batches) {
        end_appends(&CG_CONTAINER_OF(node, struct wal_batch, node)->appends);
    }
}

// A dead process's operations end unheard, so that its memory can go.
static void bury(struct logmodel_member *member) {
    struct cg_wal *wal = member->wal;
    end_batches(&wal->in_flight);
    end_batches(&wal->queue);
    end_appends(&wal->refused);
    struct cg_list *node;
    while ((node = cg_list_pop_front(&wal->fetches)) != NULL) {
        struct cg_wal_fetch *fetch = CG_CONTAINER_OF(node, struct cg_wal_fetch, node);
        fetch->done(fetch, -EIO);
    }
    cg_copyset_log_destroy(member->log);
    cg_log_disk_destroy(member->disk);
    walmodel_drop(wal);
    simreactor_destroy(member->reactor);
}

void logmodel_crash(struct logmodel_member *member, enum simdisk_crash mode) {
    cg_copyset_log_stop(member->log);
    simdisk_abort_reads(member->sim);
    simdisk_crash(member->sim, mode);
    bury(member);
    member->up = false;
}

static void close_log(struct logmodel_member *member) {
    cg_copyset_log_stop(member->log);
    for (unsigned i = 0; !cg_copyset_log_idle(member->log); i++) {
        if (i > 10000) {
            fail(member, "does not become idle", 0);
        }
        work(member);
    }
    work(member);
    cg_copyset_log_destroy(member->log);
    cg_log_disk_destroy(member->disk);
    cg_wal_close(member->wal);
    simreactor_destroy(member->reactor);
}

void logmodel_destroy(struct logmodel *model) {
    for (unsigned id = 1; id < MODEL_MEMBERS; id++) {
        if (model->member[id].up) {
            cg_copyset_log_stop(model->member[id].log);
        }
    }
    struct cg_list *node;
    while ((node = cg_list_pop_front(&model->mail)) != NULL) {
        tear(CG_CONTAINER_OF(node, struct letter, node));
    }
    for (unsigned id = 1; id < MODEL_MEMBERS; id++) {
        struct logmodel_member *member = &model->member[id];
        if (member->up) {
            close_log(member);
        }
    }
    for (unsigned id = 1; id < MODEL_MEMBERS; id++) {
        struct logmodel_member *member = &model->member[id];
        if (member->exists) {
            cg_buffer_pool_destroy(member->pool);
            simdisk_destroy(member->sim);
        }
    }
}

void logmodel_isolate(struct logmodel *model, const struct logmodel_member *member, bool isolated) {
    for (unsigned id = 1; id < MODEL_MEMBERS; id++) {
        model->cut[member->id][id] = isolated;
        model->cut[id][member->id] = isolated;
    }
}

// ---- Checkpoints and copies

void logmodel_checkpoint(struct logmodel_member *member, uint64_t keep_from_lsn) {
    struct cg_copyset_log_saved saved;
    struct cg_copyset_log_status status;
    cg_copyset_log_status(member->log, &status);
    uint64_t lsn = cg_wal_tail(member->wal);
    cg_copyset_log_capture(member->log, status.applied_index, &saved);
    lsn = saved.replay_lsn < lsn ? saved.replay_lsn : lsn;
    member->saved = saved;
    member->saved_lsn = lsn;
    uint64_t need = cg_copyset_log_saved(member->log, &saved, keep_from_lsn);
    cg_wal_recycle(member->wal, need < lsn ? need : lsn);
}

static void filled(struct cg_wal_append *append) {
    append->record.group = 0; // done
}

void logmodel_fill(struct logmodel *model, struct logmodel_member *member, unsigned records) {
    static uint64_t index;
    static _Alignas(CG_WAL_BLOCK) uint8_t block[CG_WAL_BLOCK];
    static const uint32_t crc = 0x98f94189; // of a block of zeros
    const struct iovec payload = {block, sizeof(block)};
    for (unsigned i = 0; i < records; i++) {
        struct cg_wal_append append = {
            .record = {.group = MODEL_GROUP + 1,
                       .term = 1,
                       .index = ++index,
                       .type = DATA_TYPE,
                       .payload_length = sizeof(block),
                       .block_crcs = &crc},
            .payload = &payload,
            .payload_count = 1,
            .done = filled,
        };
        cg_list_init(&append.node);
        cg_wal_append(member->wal, &append);
        while (append.record.group != 0) {
            logmodel_run(model, 1);
        }
    }
}

static void install_done(void *user, int status) {
    struct logmodel_member *member = user;
    member->install_status = status;
    if (status == 0) {
        member->delivered = member->saved.index; // see logmodel_copy
    }
}

void logmodel_copy(struct logmodel *model, struct logmodel_member *from,
                   struct logmodel_member *to) {
    struct cg_copyset_log_saved state;
    struct cg_copyset_log_status status;
    cg_copyset_log_status(from->log, &status);
    cg_copyset_log_capture(from->log, status.applied_index, &state);
    if (!cg_copyset_log_wants_state(to->log, state.index, state.index_term)) {
        cg_copyset_log_copied(from->log, to->id, state.index, true); // it has all of it
        return;
    }
    cg_copyset_log_copying(from->log, to->id, state.index);
    cg_copyset_log_install_begin(to->log);
    logmodel_run(model, 20);
    if (logmodel_below(model, 2)) {
        cg_copyset_log_install_discard(to->log);
        logmodel_run(model, 20);
    }
    // The state goes where a checkpoint would have it. It counts once the record does.
    struct cg_copyset_log_saved before = to->saved;
    to->saved.index = state.index;
    do {
        to->install_status = 1;
        cg_copyset_log_installed(to->log, &state, install_done, to);
        while (to->install_status == 1) {
            logmodel_run(model, 1);
        }
    } while (to->install_status == -EAGAIN); // it campaigns
    if (to->install_status != 0) {
        fail(to, "does not take the state", state.index);
    }
    to->saved = before;
    cg_copyset_log_copied(from->log, to->id, state.index, to->install_status == 0);
}

struct cg_raft_progress logmodel_progress(const struct logmodel_member *leader, uint64_t id) {
    struct cg_copyset_log_status status;
    cg_copyset_log_status(leader->log, &status);
    for (uint32_t i = 0; i < status.peer_count; i++) {
        if (status.peer[i].id == id) {
            return status.peer[i].progress;
        }
    }
    return (struct cg_raft_progress){0};
}
