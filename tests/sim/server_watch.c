// SPDX-License-Identifier: BSD-3-Clause
//
// Looks at the chunkserver's code at work, without its knowing: the linker puts the functions here
// in place of the core's and the log's (--wrap), and they call those. So the checks see every
// action of the core and every record of the log, in the order in which the code does.
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "server.h"

bool __real_cg_raft_next(struct cg_raft *raft, struct cg_raft_action *out);
bool __wrap_cg_raft_next(struct cg_raft *raft, struct cg_raft_action *out);
int __real_cg_raft_receive(struct cg_raft *raft, uint64_t now_ns,
                           const struct cg_raft_message *message);
int __wrap_cg_raft_receive(struct cg_raft *raft, uint64_t now_ns,
                           const struct cg_raft_message *message);
void __real_cg_wal_append(struct cg_wal *wal, struct cg_wal_append *append);
void __wrap_cg_wal_append(struct cg_wal *wal, struct cg_wal_append *append);

static struct sim_server *watched; // whose code runs

void server_watch(struct sim_server *server) {
    watched = server;
}

// ---- The core

static void look_at(struct sim_server *server, const struct cg_raft *raft,
                    const struct cg_raft_action *action) {
    struct sim *sim = server->sim;
    struct sim_node *node = server->node;
    if (server->log == NULL || server->log->raft != raft) {
        return; // one that recovery puts together
    }
    node->raft = server->log->raft;
    switch (action->type) {
    case CG_RAFT_ROLE:
        sim_trace_role(sim, node);
        sim_check_role(sim, node);
        break;
    case CG_RAFT_COMMIT:
        sim_trace(sim, "node %lu: committed to %lu", node->id, action->index);
        sim_check_commit(sim, node, action->index);
        node->commit = action->index;
        break;
    case CG_RAFT_SEND:
        sim_check_send(sim, node, &action->message);
        break;
    default:
        break;
    }
}

bool __wrap_cg_raft_next(struct cg_raft *raft, struct cg_raft_action *out) {
    bool some = __real_cg_raft_next(raft, out);
    if (some && watched != NULL) {
        look_at(watched, raft, out);
    }
    return some;
}

int __wrap_cg_raft_receive(struct cg_raft *raft, uint64_t now_ns,
                           const struct cg_raft_message *message) {
    int result = __real_cg_raft_receive(raft, now_ns, message);
    if (result != 0 && watched != NULL) {
        sim_fail(watched->sim, "node %lu: refused message %d of node %lu in term %lu: %d",
                 watched->node->id, message->type, message->from, message->term, result);
    }
    return result;
}

// ---- Entries: which of the simulator's they are

uint32_t server_payload_length(const struct sim_entry *entry) {
    return entry->type == CG_RAFT_ENTRY_DATA && entry->value % 4 == 1 ? CG_WAL_BLOCK : 0;
}

void server_fill_payload(const struct sim_entry *entry, uint8_t *out) {
    memset(out, (int)(entry->value * 37 % 251), CG_WAL_BLOCK);
    memcpy(out, &entry->value, sizeof(entry->value));
}

static struct sim_entry *find(struct sim *sim, uint64_t index, uint64_t term) {
    for (uint32_t i = sim->entry_at[index]; i != 0; i = sim->pool[i - 1].other) {
        if (sim->pool[i - 1].term == term) {
            return &sim->pool[i - 1];
        }
    }
    return NULL;
}

static struct sim_entry *place(struct sim *sim, struct sim_entry *entry, uint64_t index,
                               uint64_t term) {
    entry->index = index;
    entry->term = term;
    entry->other = sim->entry_at[index];
    sim->entry_at[index] = (uint32_t)(entry - sim->pool) + 1;
    return entry;
}

// An entry's index and term say which one it is; what is found elsewhere under them is the same.
const struct sim_entry *server_entry_of(struct sim *sim, uint32_t type, const void *meta,
                                        uint32_t meta_length, uint64_t index, uint64_t term) {
    if (index == 0 || index >= SIM_INDEX) {
        sim_fail(sim, "the simulator has no indexes left: %lu", index);
    }
    struct sim_entry *entry = find(sim, index, term);
    if (type == CG_ENTRY_NOOP || type == CG_ENTRY_CONFIG) {
        bool news = entry == NULL;
        struct cg_raft_config config = {0};
        if (type == CG_ENTRY_CONFIG &&
            cg_log_config_decode(meta, meta_length, &config) != (int64_t)meta_length) {
            sim_fail(sim, "entry %lu of term %lu is no configuration", index, term);
        }
        if (news) {
            entry = place(sim, sim_entry_make(sim), index, term);
            entry->type = type == CG_ENTRY_NOOP ? CG_RAFT_ENTRY_NOOP : CG_RAFT_ENTRY_CONFIG;
            entry->config = config;
            entry->prev_term = UINT64_MAX;
        }
        if (entry->type != (type == CG_ENTRY_NOOP ? CG_RAFT_ENTRY_NOOP : CG_RAFT_ENTRY_CONFIG) ||
            memcmp(&entry->config, &config, sizeof(config)) != 0) {
            sim_fail(sim, "there are two entries %lu of term %lu", index, term);
        }
        return entry;
    }
    uint32_t number;
    if (meta_length != sizeof(number)) {
        sim_fail(sim, "entry %lu of term %lu says something else", index, term);
    }
    memcpy(&number, meta, sizeof(number));
    struct sim_entry *meant = &sim->pool[number];
    if (meant->index == 0 && entry == NULL) {
        meant->prev_term = UINT64_MAX;
        return place(sim, meant, index, term);
    }
    if (meant != entry) {
        sim_fail(sim, "there are two entries %lu of term %lu", index, term);
    }
    return entry;
}

// ---- The log

// Keeps the checks' view of the medium.
static void note_durable(struct sim_server *server, const struct sim_record *record) {
    struct sim_disk *disk = &server->node->disk;
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
        if (record->index <= disk->checkpoint.index) {
            break; // replayed: the checkpoint is newer
        }
        // Of several installations since the checkpoint only the last one's state is still there.
        if (server->staged.index == record->index) {
            server->kept = server->staged;
        }
        if (server->kept.index == record->index) {
            disk->installed = server->kept;
        }
        disk->base = record->index;
        disk->term_at[record->index] = record->term;
        if (record->voids || disk->last < record->index) {
            disk->last = record->index;
        }
        server->node->commit = record->index;
        break;
    case SIM_RECORD_COPY: // the log has that entry, if only the copy is still there
        disk->term_at[record->index] = record->term;
        break;
    case SIM_RECORD_MOVED:
        disk->last = record->index;
        break;
    case SIM_RECORD_OTHER:
        break;
    }
}

static struct sim_record describe(struct sim_server *server, const struct cg_wal_record *record) {
    struct sim *sim = server->sim;
    struct sim_node *node = server->node;
    struct sim_record out = {.index = record->index, .term = record->term};
    if (record->group != SERVER_GROUP) {
        out.kind = SIM_RECORD_OTHER;
    } else if (record->type == CG_RECORD_STATE) {
        out.kind = SIM_RECORD_STATE;
        if (cg_record_state_decode(record, &out.vote) != 0) {
            sim_fail(sim, "node %lu: a vote cannot be read", node->id);
        }
    } else if (record->type == CG_RECORD_INSTALL) {
        struct cg_record_install install;
        out.kind = SIM_RECORD_INSTALL;
        if (cg_record_install_decode(record, &install) != 0) {
            sim_fail(sim, "node %lu: the record of an installation cannot be read", node->id);
        }
        out.voids = install.voids;
    } else if (record->type == CG_RECORD_COPY) {
        uint32_t type;
        const uint8_t *meta;
        uint32_t length;
        out.kind = SIM_RECORD_COPY;
        if (cg_record_copy_decode(record, &type, &meta, &length) != 0) {
            sim_fail(sim, "node %lu: a copy cannot be read", node->id);
        }
        out.entry = server_entry_of(sim, type, meta, length, record->index, record->term);
    } else if (record->type == CG_RECORD_MOVED) {
        out.kind = SIM_RECORD_MOVED;
        if (cg_record_moved_decode(record, &out.vote) != 0) {
            sim_fail(sim, "node %lu: the end of a move cannot be read", node->id);
        }
    } else {
        out.kind = SIM_RECORD_ENTRY;
        out.entry = server_entry_of(sim, record->type, record->meta, record->meta_length,
                                    record->index, record->term);
    }
    return out;
}

static void observed(struct cg_wal_append *append) {
    struct sim_server *server = watched;
    assert(server != NULL);
    uint32_t i = server->durable;
    while (i < server->count && server->record[i].append != append) {
        i++;
    }
    assert(i < server->count);
    struct server_record *found = &server->record[i];
    append->done = found->done;
    found->append = NULL;
    if (append->status == 0) {
        if (i != server->durable) {
            sim_fail(server->sim, "node %lu: records become durable out of order",
                     server->node->id);
        }
        found->lsn = append->lsn;
        server->durable++;
        sim_counts.records++;
        struct sim_record record = found->record;
        note_durable(server, &record);
    }
    append->done(append);
}

// A defect's: the record is written, and nobody waits for it.
struct server_copy {
    struct cg_wal_append append;
    uint8_t meta[CG_RECORD_STATE_SIZE];
};

static void copy_done(struct cg_wal_append *append) {
    (void)append; // the memory is the process's
}

bool server_report_early(struct sim_server *server) {
    bool some = server->early_count > 0;
    for (uint32_t i = 0; i < server->early_count; i++) {
        server->early[i]->status = 0;
        server->early[i]->done(server->early[i]);
    }
    server->early_count = 0;
    return some;
}

void *sim_calloc(size_t count, size_t size);

static void append_state_unawaited(struct sim_server *server, struct cg_wal *wal,
                                   struct cg_wal_append *append) {
    struct server_copy *copy = sim_calloc(1, sizeof(*copy));
    copy->append.record = append->record;
    memcpy(copy->meta, append->record.meta, sizeof(copy->meta));
    copy->append.record.meta = copy->meta;
    copy->append.done = copy_done;
    cg_list_init(&copy->append.node);
    server->early[server->early_count++] = append;
    struct server_record *last = &server->record[server->count - 1];
    last->append = &copy->append;
    last->done = copy_done;
    copy->append.done = observed;
    __real_cg_wal_append(wal, &copy->append);
}

void __wrap_cg_wal_append(struct cg_wal *wal, struct cg_wal_append *append) {
    struct sim_server *server = watched;
    assert(server != NULL && server->wal == wal);
    struct sim *sim = server->sim;
    struct sim_node *node = server->node;
    if (server->count == SIM_RECORDS) {
        sim_fail(sim, "the simulator's log is full");
    }
    struct server_record *record = &server->record[server->count++];
    *record = (struct server_record){
        .record = describe(server, &append->record), .append = append, .done = append->done};
    if (record->record.kind == SIM_RECORD_ENTRY) {
        uint64_t index = append->record.index;
        struct sim_entry *entry = &sim->pool[record->record.entry - sim->pool];
        if (entry->prev_term == UINT64_MAX) {
            entry->prev_term = cg_raft_term_at(server->log->raft, index - 1);
        }
        node->log[index] = entry;
        node->raft = server->log->raft;
        sim_check_append(sim, node, index);
    }
    if (record->record.kind == SIM_RECORD_STATE &&
        sim->options.mutation == SIM_MUTATION_VOTE_NOT_SYNCED) {
        append_state_unawaited(server, wal, append);
        return;
    }
    append->done = observed;
    __real_cg_wal_append(wal, append);
}

// ---- What a replay reports

int server_replayed(void *context, uint64_t lsn, const struct cg_wal_record *found,
                    const void *payload) {
    struct sim_server *server = context;
    struct sim *sim = server->sim;
    struct sim_node *node = server->node;
    uint32_t i = server->replayed++;
    struct sim_record record = describe(server, found);
    if (i >= server->count) {
        sim_fail(sim, "node %lu: its log has a record that was never asked for", node->id);
    }
    const struct sim_record *asked = &server->record[i].record;
    if (record.kind != asked->kind || record.index != asked->index || record.term != asked->term ||
        record.vote != asked->vote || record.entry != asked->entry ||
        record.voids != asked->voids) {
        sim_fail(sim, "node %lu: its log has another record %lu", node->id, server->dropped + i);
    }
    server->record[i].lsn = lsn;
    if (record.kind == SIM_RECORD_OTHER) {
        return cg_copyset_log_restore(server->neighbour.log, lsn, found);
    }
    if (record.kind == SIM_RECORD_ENTRY || record.kind == SIM_RECORD_COPY) {
        uint8_t wanted[CG_WAL_BLOCK];
        uint32_t length = server_payload_length(record.entry);
        server_fill_payload(record.entry, wanted);
        if (found->payload_length != length || memcmp(payload, wanted, length) != 0) {
            sim_fail(sim, "node %lu: entry %lu has another payload", node->id, record.index);
        }
        node->log[record.index] = record.entry;
    }
    note_durable(server, &record);
    return cg_copyset_log_restore(server->log, lsn, found);
}
