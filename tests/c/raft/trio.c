// SPDX-License-Identifier: BSD-3-Clause
#include "trio.h"

#include <assert.h>
#include <string.h>

static uint32_t fit_all(void *context, uint64_t first, uint64_t last, uint32_t max_bytes,
                        uint64_t *bytes) {
    (void)context;
    uint64_t count = last - first + 1;
    if (count * 100 > max_bytes) { // entries of 100 bytes
        count = max_bytes / 100 == 0 ? 1 : max_bytes / 100;
    }
    *bytes = count * 100;
    return (uint32_t)count;
}

struct trio_node *trio_node(struct trio *trio, uint64_t id) {
    return &trio->node[id - 1];
}

struct cg_raft_status trio_status(struct trio *trio, uint64_t id) {
    struct cg_raft_status status;
    cg_raft_status(trio_node(trio, id)->raft, &status);
    return status;
}

static void make(struct trio *trio, uint64_t id, const struct cg_raft_restored *restored) {
    struct cg_raft_options options = {
        .id = id,
        .election_timeout_ns = TRIO_TIMEOUT,
        .heartbeat_interval_ns = TRIO_HEARTBEAT,
        .clock_drift_ppm = 100000,
        .message_bytes_max = 1600,
        .message_entries_max = 16,
        .inflight_messages_max = 4,
        .inflight_bytes_max = 100000,
        .uncommitted_entries_max = 100,
        .reads_max = 4,
        .terms_max = 16,
        .promote_lag_max = 8,
        .seed = id,
        .fit = fit_all,
    };
    if (trio->adjust != NULL) {
        trio->adjust(&options);
    }
    int result = cg_raft_create(&options, restored, &trio_node(trio, id)->raft);
    assert(result == 0);
    (void)result;
}

static void start(struct trio *trio, uint64_t id) {
    int result = cg_raft_start(trio_node(trio, id)->raft, trio->now);
    assert(result == 0);
    (void)result;
    trio_drain(trio, id);
}

void trio_init(struct trio *trio, void (*adjust)(struct cg_raft_options *options)) {
    memset(trio, 0, sizeof(*trio));
    trio->now = 1000 * TRIO_MS;
    trio->adjust = adjust;
    for (uint64_t id = 1; id <= TRIO_NODES; id++) {
        struct cg_raft_restored restored = {.term = 0};
        if (id < TRIO_NODES) {
            restored.config = (struct cg_raft_config){.count = 3, .member = {{1}, {2}, {3}}};
        }
        make(trio, id, &restored);
        start(trio, id);
    }
}

void trio_restart(struct trio *trio, uint64_t id, uint64_t base) {
    struct trio_node *node = trio_node(trio, id);
    struct cg_raft_restored restored = {
        .term = node->term,
        .vote = node->vote,
        .base_index = base,
        .base_term = cg_raft_term_at(node->raft, base),
        .config = *cg_raft_config(node->raft),
    };
    uint64_t last = trio_status(trio, id).last_index;
    cg_raft_destroy(node->raft);
    make(trio, id, &restored);
    for (uint64_t i = base + 1; i <= last; i++) {
        const struct trio_entry *entry = &node->log[i];
        const struct cg_raft_entry found = {
            .term = entry->term, .type = entry->type, .config = &entry->config};
        int result = cg_raft_restore_entry(node->raft, i, &found);
        assert(result == 0);
        (void)result;
    }
    node->commit = base;
    start(trio, id);
}

void trio_destroy(struct trio *trio) {
    for (uint64_t id = 1; id <= TRIO_NODES; id++) {
        cg_raft_destroy(trio_node(trio, id)->raft);
    }
}

static void persisted(struct trio *trio, struct trio_node *node, uint64_t ticket, uint64_t index) {
    if (node->held) {
        assert(node->held_count < TRIO_FLIGHT);
        node->held_ticket[node->held_count] = ticket;
        node->held_index[node->held_count++] = index;
        return;
    }
    cg_raft_durable(node->raft, trio->now, ticket, index);
}

static void store(struct trio *trio, struct trio_node *node, const struct cg_raft_action *action,
                  const struct cg_raft_message *received) {
    for (uint64_t i = action->first; i <= action->last; i++) {
        assert(i < TRIO_LOG);
        struct trio_entry *entry = &node->log[i];
        entry->term = action->term;
        entry->type = CG_RAFT_ENTRY_DATA;
        const struct cg_raft_entry *source = NULL;
        if (action->source == CG_RAFT_FROM_CORE) {
            source = &action->entry;
        } else if (action->source == CG_RAFT_FROM_MESSAGE) {
            source = &received->entries[i - received->prev_index - 1];
        }
        if (source != NULL) {
            entry->term = source->term;
            entry->type = source->type;
            if (source->config != NULL) {
                entry->config = *source->config;
            }
        }
    }
    persisted(trio, node, action->ticket, action->last);
}

static void send(struct trio *trio, struct trio_node *node, const struct cg_raft_message *message) {
    node->sent[message->type]++;
    if (node->cut || trio_node(trio, message->to)->cut) {
        return;
    }
    assert(trio->flight_count < TRIO_FLIGHT);
    uint32_t at = (trio->flight_first + trio->flight_count++) % TRIO_FLIGHT;
    struct cg_raft_message *copy = &trio->flight[at];
    *copy = *message;
    copy->entries = trio->entries[at];
    for (uint32_t i = 0; i < message->count; i++) {
        const struct trio_entry *entry = &node->log[message->prev_index + 1 + i];
        trio->entries[at][i] = (struct cg_raft_entry){
            .term = entry->term, .type = entry->type, .config = &entry->config};
    }
}

static void drain(struct trio *trio, uint64_t id, const struct cg_raft_message *received) {
    struct trio_node *node = trio_node(trio, id);
    struct cg_raft_action action;
    while (cg_raft_next(node->raft, &action)) {
        switch (action.type) {
        case CG_RAFT_PERSIST_STATE:
            node->term = action.term;
            node->vote = action.vote;
            persisted(trio, node, action.ticket, 0);
            break;
        case CG_RAFT_PERSIST_ENTRIES:
            store(trio, node, &action, received);
            break;
        case CG_RAFT_ROLE:
            break;
        case CG_RAFT_COMMIT:
            node->commit = action.index;
            if (!node->late) {
                cg_raft_applied(node->raft, action.index);
            }
            break;
        case CG_RAFT_READ_READY:
            node->read_ready = action.id;
            break;
        case CG_RAFT_READ_FAILED:
            node->read_failed = action.id;
            break;
        case CG_RAFT_SEND:
            send(trio, node, &action.message);
            break;
        case CG_RAFT_SEND_SNAPSHOT:
            node->snapshot_for = action.peer;
            break;
        }
    }
}

void trio_drain(struct trio *trio, uint64_t id) {
    drain(trio, id, NULL);
}

int trio_receive(struct trio *trio, const struct cg_raft_message *message) {
    int result = cg_raft_receive(trio_node(trio, message->to)->raft, trio->now, message);
    drain(trio, message->to, message);
    return result;
}

void trio_settle(struct trio *trio) {
    while (trio->flight_count > 0) {
        uint32_t at = trio->flight_first;
        struct cg_raft_message message = trio->flight[at];
        struct cg_raft_entry entries[16];
        memcpy(entries, trio->entries[at], sizeof(entries));
        message.entries = entries;
        trio->flight_first = (at + 1) % TRIO_FLIGHT;
        trio->flight_count--;
        int result = trio_receive(trio, &message);
        assert(result == 0);
        (void)result;
    }
}

void trio_run(struct trio *trio, uint64_t ms) {
    while (ms-- > 0) {
        trio->now += TRIO_MS;
        for (uint64_t id = 1; id <= TRIO_NODES; id++) {
            cg_raft_tick(trio_node(trio, id)->raft, trio->now);
            trio_drain(trio, id);
        }
        trio_settle(trio);
    }
}

void trio_elect(struct trio *trio, uint64_t id) {
    trio->now += 2 * TRIO_TIMEOUT; // nobody has heard a leader for long
    cg_raft_tick(trio_node(trio, id)->raft, trio->now);
    trio_drain(trio, id);
    trio_settle(trio);
    assert(trio_status(trio, id).role == CG_RAFT_LEADER);
}

void trio_release(struct trio *trio, uint64_t id) {
    struct trio_node *node = trio_node(trio, id);
    node->held = false;
    uint32_t count = node->held_count;
    node->held_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        cg_raft_durable(node->raft, trio->now, node->held_ticket[i], node->held_index[i]);
        trio_drain(trio, id);
    }
}

int trio_propose(struct trio *trio, uint64_t id, uint32_t count) {
    uint64_t first;
    int result = cg_raft_propose(trio_node(trio, id)->raft, trio->now, count, &first);
    trio_drain(trio, id);
    return result;
}
