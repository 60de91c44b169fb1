// SPDX-License-Identifier: BSD-3-Clause
//
// Carries out what the core asks for. Nobody above is called here: the core is in the middle of it.
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "chunkserver/copyset_log_internal.h"

// Heartbeats of all groups fall on common times, so that they share frames and iterations.
#define HEARTBEAT_GRID_NS (20 * CG_NS_PER_MS)

// ---- Configurations

bool log_config_push(struct cg_copyset_log *log, uint64_t index,
                     const struct cg_raft_config *config) {
    struct log_config *item = malloc(sizeof(*item));
    if (item == NULL) {
        return false;
    }
    item->index = index;
    item->config = *config;
    cg_list_init(&item->node);
    cg_list_push_back(&log->configs, &item->node);
    return true;
}

static struct log_config *config_at(struct cg_list *node) {
    return CG_CONTAINER_OF(node, struct log_config, node);
}

static void config_drop(struct cg_list *node) {
    cg_list_remove(node);
    free(config_at(node));
}

void log_config_cut(struct cg_copyset_log *log, uint64_t first) {
    while (config_at(log->configs.prev)->index >= first && log->configs.next != log->configs.prev) {
        config_drop(log->configs.prev);
    }
}

void log_config_forget(struct cg_copyset_log *log, uint64_t index) {
    while (log->configs.next != log->configs.prev &&
           config_at(log->configs.next->next)->index <= index) {
        config_drop(log->configs.next);
    }
}

void log_config_reset(struct cg_copyset_log *log, uint64_t index,
                      const struct cg_raft_config *config) {
    log_config_cut(log, 0);
    struct log_config *only = config_at(log->configs.next);
    only->index = index;
    only->config = *config;
}

const struct log_config *log_config_as_of(const struct cg_copyset_log *log, uint64_t index) {
    struct cg_list *node = log->configs.prev;
    while (node->prev != &log->configs && config_at(node)->index > index) {
        node = node->prev;
    }
    return config_at(node);
}

// ---- To the disk

static void entry_logged(struct cg_wal_append *append) {
    struct cg_log_entry *entry = CG_CONTAINER_OF(append, struct cg_log_entry, append);
    struct cg_copyset_log *log = entry->log;
    log->appending--;
    if (append->status != 0) {
        log_disk_broken(log->disk, append->status);
    } else if (!log_retired(log)) {
        struct log_slot *slot = log_index_at(&log->index, entry->index);
        if (slot != NULL && slot->entry == entry) {
            slot->lsn = append->lsn;
            slot->durable = true;
            log_cache_add(log->disk, entry);
        }
        if (log->durable_due && entry->index <= log->durable_index) {
            log_flush(log); // it replaces what came before: that is reported on its own
        }
        log->durable_due = true;
        log->durable_ticket = entry->ticket;
        log->durable_index = entry->index;
        log_defer(log);
    }
    cg_log_entry_unref(entry);
}

static void append_entry(struct cg_copyset_log *log, uint64_t index, uint64_t ticket) {
    struct log_slot *slot = log_index_at(&log->index, index);
    struct cg_log_entry *entry = cg_log_entry_ref(slot->entry);
    slot->lsn = cg_wal_tail(log->disk->wal);
    entry->log = log;
    entry->ticket = ticket;
    entry->piece = (struct iovec){
        // The log on disk reads it only.
        .iov_base = (void *)(uintptr_t)entry->payload,
        .iov_len = entry->payload_length,
    };
    entry->append = (struct cg_wal_append){
        .record =
            {
                .group = log->options.group,
                .term = entry->term,
                .index = index,
                .type = entry->type,
                .meta_length = entry->meta_length,
                .meta = entry->meta,
                .payload_length = entry->payload_length,
                .block_crcs = entry->block_crcs,
            },
        .payload = &entry->piece,
        .payload_count = entry->payload_length > 0 ? 1 : 0,
        .done = entry_logged,
    };
    cg_list_init(&entry->append.node);
    log->appending++;
    cg_wal_append(log->disk->wal, &entry->append);
}

static void state_logged(struct cg_wal_append *append) {
    struct log_record_append *record = CG_CONTAINER_OF(append, struct log_record_append, append);
    struct cg_copyset_log *log = record->log;
    uint64_t ticket = record->ticket;
    int status = append->status;
    free(record);
    log->appending--;
    if (status != 0) {
        log_disk_broken(log->disk, status);
        return;
    }
    if (log_retired(log)) {
        return;
    }
    log_flush(log);
    cg_raft_durable(log->raft, log_now(log), ticket, 0);
    log_step(log, NULL);
    log_settle(log);
}

static int persist_state(struct cg_copyset_log *log, const struct cg_raft_action *action) {
    struct log_record_append *record = calloc(1, sizeof(*record));
    if (record == NULL) {
        return -ENOMEM;
    }
    record->log = log;
    record->ticket = action->ticket;
    cg_record_state_encode(action->vote, record->meta);
    record->append.record = (struct cg_wal_record){
        .group = log->options.group,
        .term = action->term,
        .type = CG_RECORD_STATE,
        .meta = record->meta,
        .meta_length = CG_RECORD_STATE_SIZE,
    };
    record->append.done = state_logged;
    cg_list_init(&record->append.node);
    log->state_lsn = cg_wal_tail(log->disk->wal);
    log->appending++;
    cg_wal_append(log->disk->wal, &record->append);
    return 0;
}

static void push(struct cg_copyset_log *log, struct cg_log_entry *entry) {
    struct log_slot *slot = log_index_push(&log->index);
    slot->entry = entry;
    slot->bytes = entry->meta_length + entry->payload_length;
}

// An entry that the core makes: a no-op or a configuration.
static int push_own(struct cg_copyset_log *log, const struct cg_raft_action *action) {
    uint8_t meta[CG_LOG_CONFIG_SIZE_MAX];
    size_t length = 0;
    bool config = action->entry.type == CG_RAFT_ENTRY_CONFIG;
    if (config) {
        length = cg_log_config_encode(action->entry.config, meta);
        if (!log_config_push(log, action->first, action->entry.config)) {
            return -ENOMEM;
        }
    } else {
        log->term_start = action->first;
    }
    struct cg_log_entry *entry =
        cg_log_entry_make(config ? CG_ENTRY_CONFIG : CG_ENTRY_NOOP, action->term, action->first,
                          meta, (uint32_t)length, NULL, NULL, 0, NULL);
    if (entry == NULL || log_index_reserve(&log->index, 1) != 0) {
        cg_log_entry_unref(entry);
        return -ENOMEM;
    }
    push(log, entry);
    return 0;
}

static int push_received(struct cg_copyset_log *log, const struct cg_raft_action *action,
                         const struct log_incoming *incoming) {
    if (action->first <= log->index.last) {
        log_move_cancel(log);
        log_index_cut(&log->index, action->first);
        log_config_cut(log, action->first);
    }
    for (uint64_t at = action->first; at <= action->last; at++) {
        struct cg_log_entry *entry = incoming->entries[at - incoming->prev_index - 1];
        assert(entry->log == NULL);
        push(log, cg_log_entry_ref(entry));
        if (entry->type == CG_ENTRY_CONFIG) {
            struct cg_raft_config config;
            cg_log_config_decode(entry->meta, entry->meta_length, &config);
            if (!log_config_push(log, at, &config)) {
                return -ENOMEM;
            }
        }
    }
    return 0;
}

static int persist_entries(struct cg_copyset_log *log, const struct cg_raft_action *action,
                           const struct log_incoming *incoming) {
    int result = 0;
    if (action->source == CG_RAFT_FROM_MESSAGE) {
        result = push_received(log, action, incoming);
    } else if (action->source == CG_RAFT_FROM_CORE) {
        result = push_own(log, action);
    } // a proposal's entries are there
    for (uint64_t at = action->first; result == 0 && at <= action->last; at++) {
        append_entry(log, at, action->ticket);
    }
    return result;
}

// ---- To the other members

static void send(struct cg_copyset_log *log, const struct cg_raft_message *message) {
    struct cg_log_disk *disk = log->disk;
    uint32_t count = message->type == CG_RAFT_APPEND ? message->count : 0;
    for (uint32_t i = 0; i < count; i++) {
        disk->outgoing[i] = log_index_at(&log->index, message->prev_index + 1 + i)->entry;
        assert(disk->outgoing[i] != NULL);
    }
    if (message->type == CG_RAFT_TIMEOUT_NOW) {
        log_lease(log, 0); // whoever gets this may be elected at once
    }
    if (disk->options.send != NULL) {
        disk->options.send(disk->options.send_context, log->options.group, message, disk->outgoing);
    }
}

static void ask_copy(struct cg_copyset_log *log, uint64_t member) {
    for (uint32_t i = 0; i < log->copy_due_count; i++) {
        if (log->copy_due[i] == member) {
            return;
        }
    }
    if (log->copy_due_count < CG_RAFT_MEMBERS_MAX) {
        log->copy_due[log->copy_due_count++] = member;
    }
}

// ---- All of it

// Proposals that are committed are still going to be delivered as such.
static void role_changed(struct cg_copyset_log *log) {
    cg_raft_status(log->raft, &log->status);
    log->role_due = true;
    if (log_leads(log)) {
        return;
    }
    log->copy_due_count = 0;
    log->pin_count = 0;
    while (!cg_list_empty(&log->proposals)) {
        struct cg_list *node = log->proposals.prev;
        if (CG_CONTAINER_OF(node, struct cg_log_proposal, node)->index <=
            log->status.commit_index) {
            break;
        }
        cg_list_remove(node);
        cg_list_push_front(&log->failed, node);
        log->failed_error = -ESTALE;
    }
}

static int carry_out(struct cg_copyset_log *log, const struct cg_raft_action *action,
                     const struct log_incoming *incoming) {
    switch (action->type) {
    case CG_RAFT_PERSIST_STATE:
        return persist_state(log, action);
    case CG_RAFT_PERSIST_ENTRIES:
        return persist_entries(log, action, incoming);
    case CG_RAFT_ROLE:
        role_changed(log);
        break;
    case CG_RAFT_COMMIT: // log_settle looks at the core's status
        break;
    case CG_RAFT_READ_READY:
        log_read_ready(log, action->id, action->index);
        break;
    case CG_RAFT_READ_FAILED:
        log_read_failed(log, action->id);
        break;
    case CG_RAFT_SEND:
        send(log, &action->message);
        break;
    case CG_RAFT_SEND_SNAPSHOT:
        ask_copy(log, action->peer);
        break;
    }
    return 0;
}

// The timer is not moved when its deadline is: that would be with every message. When it fires too
// early it is armed again.
static void arm(struct cg_copyset_log *log) {
    uint64_t deadline = cg_raft_deadline(log->raft);
    if (deadline >= log->timer_for) {
        return;
    }
    if (log_leads(log)) {
        deadline = (deadline + HEARTBEAT_GRID_NS - 1) / HEARTBEAT_GRID_NS * HEARTBEAT_GRID_NS;
        if (deadline >= log->timer_for) {
            return;
        }
    }
    struct cg_reactor *reactor = log->disk->options.reactor;
    uint64_t now = log_now(log);
    uint64_t wait = deadline > now ? deadline - now : 0;
    // Without memory for the timer the next event tries again.
    if (cg_timer_arm(reactor, &log->timer, cg_reactor_now(reactor) + wait) == 0) {
        log->timer_for = deadline;
    }
}

void log_step(struct cg_copyset_log *log, const struct log_incoming *incoming) {
    struct cg_raft_action action;
    int fault = 0;
    while (cg_raft_next(log->raft, &action)) {
        int result = carry_out(log, &action, incoming);
        fault = fault == 0 ? result : fault;
    }
    cg_raft_status(log->raft, &log->status);
    if (fault != 0) {
        // What the core believes to be on its way to the disk is not.
        cg_log(CG_LOG_ERROR,
               "copyset %" PRIu32 "-%" PRIu32
               ": no memory for its log; it is silent here until the "
               "chunkserver starts again",
               (uint32_t)(log->options.group >> 32), (uint32_t)log->options.group);
        log_retire(log, fault);
        return;
    }
    arm(log);
}

void log_fetched(struct cg_copyset_log *log) {
    if (log_retired(log)) {
        return;
    }
    log_flush(log);
    const struct cg_raft_config *config = cg_raft_config(log->raft);
    for (uint32_t i = 0; i < config->count; i++) {
        cg_raft_peer_ready(log->raft, config->member[i].id);
    }
    log_step(log, NULL);
    log_settle(log);
    log_move_go_on(log);
}
