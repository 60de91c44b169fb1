// SPDX-License-Identifier: BSD-3-Clause
//
// The network between three stores.
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "chunkserver/store_internal.h"
#include "triomodel.h"

struct sent_entry {
    uint32_t type;
    uint64_t term;
    uint64_t index;
    uint32_t meta_length;
    uint32_t payload_length;
    uint8_t meta[CG_WAL_META_MAX];
    uint8_t *payload;
};

struct sent {
    struct cg_list node;
    uint64_t due_ns;
    unsigned to;
    uint64_t group;
    struct cg_raft_message message;
    struct sent_entry entry[];
};

static void free_sent(struct sent *sent) {
    uint32_t count = sent->message.type == CG_RAFT_APPEND ? sent->message.count : 0;
    for (uint32_t i = 0; i < count; i++) {
        free(sent->entry[i].payload);
    }
    free(sent);
}

static void put_entry(struct sent_entry *out, const struct cg_log_entry *entry) {
    out->type = entry->type;
    out->term = entry->term;
    out->index = entry->index;
    out->meta_length = entry->meta_length;
    out->payload_length = entry->payload_length;
    memcpy(out->meta, entry->meta, entry->meta_length);
    out->payload = NULL;
    if (entry->payload_length > 0) {
        out->payload = malloc(entry->payload_length);
        memcpy(out->payload, entry->payload, entry->payload_length);
    }
}

static void put_message(struct trio *trio, uint64_t group, const struct cg_raft_message *message,
                        struct cg_log_entry *const *entries) {
    uint32_t count = message->type == CG_RAFT_APPEND ? message->count : 0;
    struct sent *sent = calloc(1, sizeof(*sent) + count * sizeof(sent->entry[0]));
    sent->to = (unsigned)(message->to - 1);
    sent->group = group;
    sent->message = *message;
    sent->message.entries = NULL;
    uint64_t most = trio_pick(trio, 50) == 0 ? 400 * CG_NS_PER_MS : trio->delay_ns;
    sent->due_ns = trio->now_ns + 1 + trio_pick(trio, most);
    for (uint32_t i = 0; i < count; i++) {
        put_entry(&sent->entry[i], entries[i]);
    }
    cg_list_init(&sent->node);
    cg_list_push_back(&trio->network, &sent->node);
}

void trio_send(void *context, uint64_t group, const struct cg_raft_message *message,
               struct cg_log_entry *const *entries) {
    struct trio_node *node = context;
    struct trio *trio = node->trio;
    if (trio->cut[node->at][message->to - 1] || trio_pick(trio, 1000) < trio->lose) {
        return;
    }
    put_message(trio, group, message, entries);
    if (trio_pick(trio, 100) == 0) {
        put_message(trio, group, message, entries);
    }
}

// As a receiver gets it: in buffers of its own. False: no memory.
static bool get_entries(struct trio_node *node, const struct sent *sent, uint32_t count,
                        struct cg_log_entry **out) {
    for (uint32_t i = 0; i < count; i++) {
        const struct sent_entry *from = &sent->entry[i];
        struct cg_buffer *buffer = NULL;
        if (from->payload_length > 0) {
            buffer = cg_buffer_alloc(node->pool, from->payload_length);
            if (buffer == NULL) {
                return false;
            }
            memcpy(buffer->data, from->payload, from->payload_length);
        }
        out[i] = cg_log_entry_make(from->type, from->term, from->index, from->meta,
                                   from->meta_length, buffer, buffer != NULL ? buffer->data : NULL,
                                   from->payload_length, NULL);
        cg_buffer_unref(buffer);
    }
    return true;
}

static void deliver(struct trio *trio, struct sent *sent) {
    struct trio_node *node = &trio->node[sent->to];
    if (!node->up) {
        return;
    }
    uint32_t count = sent->message.type == CG_RAFT_APPEND ? sent->message.count : 0;
    struct cg_log_entry **entries = calloc(count + 1, sizeof(struct cg_log_entry *));
    if (get_entries(node, sent, count, entries)) {
        cg_store_receive(node->store, sent->group, &sent->message, entries);
    }
    for (uint32_t i = 0; i < count; i++) {
        cg_log_entry_unref(entries[i]);
    }
    free(entries);
}

void trio_deliver(struct trio *trio) {
    CG_LIST_FOREACH_SAFE (node, following, &trio->network) {
        struct sent *sent = CG_CONTAINER_OF(node, struct sent, node);
        if (sent->due_ns <= trio->now_ns && trio->node[sent->to].stands_until_ns == 0) {
            cg_list_remove(node);
            deliver(trio, sent);
            free_sent(sent);
            return; // what is sent meanwhile may be anywhere in the list
        }
    }
}

uint64_t trio_next_message(const struct trio *trio) {
    uint64_t due = UINT64_MAX;
    CG_LIST_FOREACH (node, &trio->network) {
        const struct sent *sent = CG_CONTAINER_OF(node, struct sent, node);
        if (sent->due_ns < due && trio->node[sent->to].stands_until_ns == 0) {
            due = sent->due_ns;
        }
    }
    return due;
}

void trio_drop_messages(struct trio *trio) {
    struct cg_list *node;
    while ((node = cg_list_pop_front(&trio->network)) != NULL) {
        free_sent(CG_CONTAINER_OF(node, struct sent, node));
    }
}
