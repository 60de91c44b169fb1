// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/copyset_log.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "chunkserver/copyset_log_internal.h"

#define MESSAGE_BYTES_MAX       (1U << 20)
#define MESSAGE_ENTRIES_MAX     256U
#define INFLIGHT_BYTES_MAX      (8U << 20) // to one member
#define UNCOMMITTED_ENTRIES_MAX 4096U
#define READ_ROUNDS_MAX         64U
#define PROMOTE_LAG_MAX         1024U
#define APPLY_LAG_MAX           2048U // a fraction of a second

// The core takes messages with at most so many changes of the members; what is beyond comes again.
#define CONFIGS_OF_MESSAGE 4U

// ---- Life

// Entries [first, last] in memory that fit a message.
static uint32_t fit(void *context, uint64_t first, uint64_t last, uint32_t max_bytes,
                    uint64_t *bytes) {
    struct cg_copyset_log *log = context;
    uint64_t total = 0;
    uint64_t at = first;
    while (at <= last) {
        const struct log_slot *slot = log_index_at(&log->index, at);
        if (slot == NULL || slot->entry == NULL ||
            (total + slot->bytes > max_bytes && at > first)) {
            break;
        }
        total += slot->bytes;
        at++;
    }
    if (at == first && !log->install.discarded) {
        log_fetch_want(log, first);
    }
    *bytes = total;
    return (uint32_t)(at - first);
}

int log_core_create(struct cg_copyset_log *log, const struct cg_raft_restored *restored,
                    struct cg_raft **out) {
    const struct cg_log_disk_options *disk = &log->disk->options;
    const struct cg_raft_options options = {
        .id = log->options.self,
        .election_timeout_ns = disk->election_timeout_ns,
        .heartbeat_interval_ns = disk->heartbeat_interval_ns,
        .clock_drift_ppm = disk->clock_drift_ppm,
        .message_bytes_max = MESSAGE_BYTES_MAX,
        .message_entries_max = MESSAGE_ENTRIES_MAX,
        .inflight_messages_max = CG_RAFT_INFLIGHT_MAX,
        .inflight_bytes_max = INFLIGHT_BYTES_MAX,
        .uncommitted_entries_max = UNCOMMITTED_ENTRIES_MAX,
        .reads_max = READ_ROUNDS_MAX,
        .terms_max = LOG_TERMS_MAX,
        .promote_lag_max = PROMOTE_LAG_MAX,
        .apply_lag_max = APPLY_LAG_MAX,
        .quiesce_after_ns = disk->quiesce_after_ns,
        // Different in every member and at every start.
        .seed = log_now(log) ^ log->options.self * UINT64_C(0x9e3779b97f4a7c15) ^
                log->options.group * UINT64_C(0xc2b2ae3d27d4eb4f),
        .fit = fit,
        .context = log,
    };
    return cg_raft_create(&options, restored, out);
}

static void work(struct cg_deferred *deferred) {
    struct cg_copyset_log *log = CG_CONTAINER_OF(deferred, struct cg_copyset_log, work);
    log_flush(log);
    log_settle(log);
}

static void fire(struct cg_timer *timer) {
    struct cg_copyset_log *log = CG_CONTAINER_OF(timer, struct cg_copyset_log, timer);
    log->timer_for = UINT64_MAX;
    if (log->install.logging) {
        return;
    }
    log_flush(log);
    uint64_t now = log_now(log);
    if (cg_raft_deadline(log->raft) <= now) {
        cg_raft_tick(log->raft, now);
    }
    log_step(log, NULL);
    log_settle(log);
}

static void init_lists(struct cg_copyset_log *log) {
    cg_list_init(&log->bucket);
    cg_list_init(&log->configs);
    cg_list_init(&log->work.node);
    cg_list_init(&log->reads_new);
    cg_list_init(&log->proposals);
    cg_list_init(&log->failed);
    cg_list_init(&log->reads_asked);
    cg_list_init(&log->reads_ready);
    cg_list_init(&log->reads_failed);
    cg_list_init(&log->wanting);
}

static int create_core(struct cg_copyset_log *log, const struct cg_copyset_log_saved *saved) {
    const struct cg_raft_restored restored = {
        .term = saved->term,
        .vote = saved->vote,
        .base_index = saved->index,
        .base_term = saved->index_term,
        .config = saved->config,
    };
    int result = log_core_create(log, &restored, &log->raft);
    if (result == 0 && !log_config_push(log, saved->index, &saved->config)) {
        return -ENOMEM;
    }
    return result;
}

static void destroy(struct cg_copyset_log *log) {
    struct cg_list *node;
    while ((node = cg_list_pop_front(&log->configs)) != NULL) {
        free(CG_CONTAINER_OF(node, struct log_config, node));
    }
    log_index_destroy(&log->index);
    log_copies_drop(log);
    if (log->raft != NULL) {
        cg_raft_destroy(log->raft);
    }
    free(log);
}

int cg_copyset_log_create(const struct cg_copyset_log_options *options,
                          const struct cg_copyset_log_saved *saved, struct cg_copyset_log **out) {
    if (options->group == 0 || options->self == 0) {
        return -EINVAL;
    }
    if (cg_log_disk_find(options->disk, options->group) != NULL) {
        return -EEXIST;
    }
    struct cg_copyset_log *log = calloc(1, sizeof(*log));
    if (log == NULL) {
        return -ENOMEM;
    }
    log->disk = options->disk;
    log->options = *options;
    log->legacy = true;
    log->work.run = work;
    log->timer.fire = fire;
    log->timer_for = UINT64_MAX;
    log->delivered = saved->index;
    init_lists(log);
    log_index_init(&log->index, saved->index);
    int result = create_core(log, saved);
    if (result != 0) {
        destroy(log);
        return result;
    }
    cg_raft_status(log->raft, &log->status);
    log_disk_add(log->disk, log);
    *out = log;
    return 0;
}

int cg_copyset_log_start(struct cg_copyset_log *log) {
    assert(!log->started && log->disk->wal != NULL);
    int result = log->copies_lack != 0 ? -EBADMSG : cg_raft_start(log->raft, log_now(log));
    if (result != 0) {
        return result;
    }
    log->started = true;
    log_copies_drop(log);
    log_step(log, NULL);
    if (log->disk->error != 0) {
        log_retire(log, -EIO);
    }
    log_defer(log);
    return 0;
}

void cg_copyset_log_stop(struct cg_copyset_log *log) {
    if (log->started && !log->stopped) {
        log->stopped = true;
        log_retire(log, -ESTALE);
        log_settle(log);
    }
}

bool cg_copyset_log_idle(const struct cg_copyset_log *log) {
    return log->appending == 0 && !log->fetching;
}

void cg_copyset_log_destroy(struct cg_copyset_log *log) {
    assert(cg_copyset_log_idle(log) && (!log->started || log_retired(log)));
    log_fetch_forget(log);
    cg_reactor_undefer(&log->work);
    cg_timer_disarm(&log->timer);
    log_disk_remove(log->disk, log);
    destroy(log);
}

// Callbacks follow in log_settle.
void log_retire(struct cg_copyset_log *log, int error) {
    if (log_retired(log)) {
        return;
    }
    if (log->proposed > 0) {
        log_index_cut(&log->index, log->index.last - log->proposed + 1);
        log->proposed = 0;
    }
    log->durable_due = false;
    log->move.next = 0;
    log->failed_error = error;
    cg_list_splice_back(&log->failed, &log->proposals);
    cg_raft_disk_error(log->raft);
    log_step(log, NULL);
    log_reads_fail(log, log->stopped ? -EPERM : -EIO);
    log_install_fail(log, -EIO);
    log_fetch_forget(log);
    log_lease(log, 0);
}

// ---- What is collected

void log_defer(struct cg_copyset_log *log) {
    cg_reactor_defer(log->disk->options.reactor, &log->work);
}

static void flush_proposals(struct cg_copyset_log *log) {
    uint32_t count = log->proposed;
    uint64_t first = 0;
    log->proposed = 0;
    int result = cg_raft_propose(log->raft, log_now(log), count, &first);
    if (result == 0) {
        assert(first + count - 1 == log->index.last);
        log_step(log, NULL);
        return;
    }
    // The terms of the log have no room: a checkpoint will make some.
    log_index_cut(&log->index, log->index.last - count + 1);
    log->failed_error = -ESTALE;
    while (count-- > 0) {
        struct cg_list *node = log->proposals.prev;
        cg_list_remove(node);
        cg_list_push_front(&log->failed, node);
    }
}

void log_flush(struct cg_copyset_log *log) {
    if (log->proposed > 0) {
        flush_proposals(log);
    }
    if (log->durable_due) {
        log->durable_due = false;
        cg_raft_durable(log->raft, log_now(log), log->durable_ticket, log->durable_index);
        log_step(log, NULL);
    }
    log_reads_flush(log);
}

// ---- Entries

bool cg_copyset_log_ready(const struct cg_copyset_log *log) {
    return log_leads(log) && log->delivered >= log->term_start;
}

uint64_t cg_copyset_log_leader(const struct cg_copyset_log *log) {
    return log->status.leader;
}

int cg_copyset_log_propose(struct cg_copyset_log *log, struct cg_log_proposal *proposal) {
    if (log->disk->error != 0) {
        return -EIO;
    }
    if (!cg_copyset_log_ready(log)) {
        return -EPERM;
    }
    if (log->status.transferee != 0 ||
        log->index.last - log->status.commit_index >= UNCOMMITTED_ENTRIES_MAX ||
        log_index_reserve(&log->index, 1) != 0) {
        return -EAGAIN;
    }
    struct cg_log_entry *entry = proposal->entry;
    struct log_slot *slot = log_index_push(&log->index);
    slot->entry = entry;
    slot->lsn = cg_wal_tail(log->disk->wal);
    slot->bytes = entry->meta_length + entry->payload_length;
    entry->term = log->status.term;
    entry->index = log->index.last;
    proposal->index = log->index.last;
    cg_list_push_back(&log->proposals, &proposal->node);
    log->proposed++;
    log_defer(log);
    return 0;
}

// ---- Messages

static enum cg_raft_entry_type core_type(uint32_t type) {
    switch (type) {
    case CG_ENTRY_NOOP:
        return CG_RAFT_ENTRY_NOOP;
    case CG_ENTRY_CONFIG:
        return CG_RAFT_ENTRY_CONFIG;
    default:
        return CG_RAFT_ENTRY_DATA;
    }
}

// Gives the message's entries the form that the core wants; false if it makes no sense.
static bool translate(struct cg_copyset_log *log, struct cg_raft_message *message,
                      struct cg_log_entry *const *entries, struct cg_raft_config *configs) {
    if (message->count > CG_RAFT_ENTRIES_MAX) {
        return false;
    }
    uint32_t config_count = 0;
    for (uint32_t i = 0; i < message->count; i++) {
        const struct cg_log_entry *entry = entries[i];
        if (entry->index != message->prev_index + 1 + i || entry->type >= CG_WAL_TYPE_STATE) {
            return false;
        }
        struct cg_raft_entry *out = &log->disk->incoming[i];
        *out = (struct cg_raft_entry){.term = entry->term, .type = core_type(entry->type)};
        if (out->type != CG_RAFT_ENTRY_CONFIG) {
            continue;
        }
        if (config_count == CONFIGS_OF_MESSAGE) {
            message->count = i;
            break;
        }
        struct cg_raft_config *config = &configs[config_count++];
        if (cg_log_config_decode(entry->meta, entry->meta_length, config) !=
                (int64_t)entry->meta_length ||
            config->count == 0) {
            return false;
        }
        out->config = config;
    }
    message->entries = log->disk->incoming;
    return true;
}

// Once a second: whoever sends nonsense can send much of it.
static void refuse(const struct cg_copyset_log *log, const struct cg_raft_message *message) {
    uint64_t now = log_now(log);
    if (log->disk->refusal_told_ns != 0 && now - log->disk->refusal_told_ns < CG_NS_PER_S) {
        return;
    }
    log->disk->refusal_told_ns = now;
    cg_log(CG_LOG_WARNING,
           "copyset %" PRIu32 "-%" PRIu32 ": member %" PRIx64 " sent a message of type %d in term "
           "%" PRIu64 " that makes no sense",
           (uint32_t)(log->options.group >> 32), (uint32_t)log->options.group, message->from,
           (int)message->type, message->term);
}

void cg_copyset_log_receive(struct cg_copyset_log *log, const struct cg_raft_message *message,
                            struct cg_log_entry *const *entries) {
    bool append = message->type == CG_RAFT_APPEND;
    if (!log->started || log_retired(log) || log->install.logging ||
        (append && log->install.under_way)) {
        return;
    }
    log_flush(log);
    struct cg_raft_message copy = *message;
    struct cg_raft_config configs[CONFIGS_OF_MESSAGE];
    if (append && !translate(log, &copy, entries, configs)) {
        refuse(log, message);
        return;
    }
    if (append && log_index_reserve(&log->index, copy.count) != 0) {
        return; // as if it were lost
    }
    if (cg_raft_receive(log->raft, log_now(log), &copy) != 0) {
        refuse(log, message);
    }
    const struct log_incoming incoming = {.prev_index = copy.prev_index, .entries = entries};
    log_step(log, &incoming);
    log_settle(log);
}

void cg_copyset_log_peer(struct cg_copyset_log *log, uint32_t chunkserver, bool up) {
    (void)up; // either way whoever is quiet has to look
    if (!log->started || log_retired(log) || log->install.logging) {
        return;
    }
    const struct cg_raft_config *config = cg_raft_config(log->raft);
    for (uint32_t i = 0; i < config->count; i++) {
        if ((uint32_t)config->member[i].id == chunkserver) {
            log_flush(log);
            cg_raft_wake(log->raft, log_now(log));
            log_step(log, NULL);
            log_settle(log);
            return;
        }
    }
}

// ---- Members

static int refusal(const struct cg_copyset_log *log) {
    if (log->disk->error != 0) {
        return -EIO;
    }
    return log_leads(log) ? 0 : -EPERM;
}

int cg_copyset_log_change(struct cg_copyset_log *log, enum cg_raft_change kind, uint64_t member) {
    int result = refusal(log);
    if (result != 0) {
        return result;
    }
    log_flush(log);
    result = cg_raft_change(log->raft, log_now(log), kind, member);
    log_step(log, NULL);
    log_settle(log);
    return result;
}

bool cg_copyset_log_transferring(const struct cg_copyset_log *log) {
    return log->status.transferee != 0;
}

int cg_copyset_log_transfer(struct cg_copyset_log *log, uint64_t member) {
    int result = refusal(log);
    if (result != 0) {
        return result;
    }
    log_flush(log);
    result = cg_raft_transfer(log->raft, log_now(log), member);
    log_step(log, NULL);
    log_settle(log);
    return result;
}

void cg_copyset_log_status(const struct cg_copyset_log *log, struct cg_copyset_log_status *out) {
    const struct cg_raft_status *status = &log->status;
    *out = (struct cg_copyset_log_status){
        .role = status->role,
        .ready = cg_copyset_log_ready(log),
        .quiet = status->quiet,
        .term = status->term,
        .leader = status->leader,
        .base_index = status->base_index,
        .last_index = log->index.last,
        .durable_index = status->durable_index,
        .commit_index = status->commit_index,
        .delivered_index = log->delivered,
        .applied_index = status->applied_index,
        .config = *cg_raft_config(log->raft),
        .config_index = log_config_as_of(log, UINT64_MAX)->index,
        .now_ns = log_now(log),
    };
    for (uint32_t i = 0; log_leads(log) && i < out->config.count; i++) {
        struct cg_copyset_log_peer_status *peer = &out->peer[out->peer_count];
        peer->id = out->config.member[i].id;
        out->peer_count += cg_raft_progress(log->raft, peer->id, &peer->progress);
    }
}
