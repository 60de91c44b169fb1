// SPDX-License-Identifier: BSD-3-Clause
//
// Frames on their way out: filled during an iteration of the reactor, sent at its end.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "chunkserver/peers_internal.h"

// A frame that the socket does not take for so long: the connection is dead.
#define SEND_TIMEOUT_NS (2 * CG_NS_PER_S)

#define FREE_FRAMES_MAX     64U
#define FRAME_BYTES_FIRST   4096U
#define FRAME_BYTES_KEPT    (64U << 10)
#define FRAME_ENTRIES_FIRST 32U

static const struct cg_rpc_method step_method = {PEERS_SERVICE, "Step"};

// ---- Frames

static void free_frame(struct peers_frame *frame) {
    free(frame->bytes);
    free(frame->entries);
    free(frame->iov);
    free(frame);
}

void peers_free_frames(struct cg_peers *peers) {
    while (peers->free_frames != NULL) {
        struct peers_frame *frame = peers->free_frames;
        peers->free_frames = frame->next_free;
        free_frame(frame);
    }
    peers->free_count = 0;
}

static struct peers_frame *take_frame(struct peer *peer) {
    struct cg_peers *peers = peer->peers;
    struct peers_frame *frame = peers->free_frames;
    if (frame != NULL) {
        peers->free_frames = frame->next_free;
        peers->free_count--;
    } else {
        frame = calloc(1, sizeof(*frame));
        if (frame == NULL) {
            return NULL;
        }
    }
    frame->peer = peer;
    frame->length = CG_RAFT_FRAME_HEADER;
    frame->payload_length = 0;
    frame->message_count = 0;
    frame->entry_count = 0;
    frame->iov_count = 0;
    return frame;
}

static void give_frame(struct cg_peers *peers, struct peers_frame *frame) {
    for (uint32_t i = 0; i < frame->entry_count; i++) {
        cg_log_entry_unref(frame->entries[i]);
    }
    if (peers->destroyed || peers->free_count == FREE_FRAMES_MAX ||
        frame->capacity > FRAME_BYTES_KEPT) {
        free_frame(frame);
        return;
    }
    frame->next_free = peers->free_frames;
    peers->free_frames = frame;
    peers->free_count++;
}

static bool make_room(struct peers_frame *frame, uint32_t bytes, uint32_t entries) {
    if (frame->length + bytes > frame->capacity) {
        uint32_t capacity = frame->capacity == 0 ? FRAME_BYTES_FIRST : frame->capacity;
        while (capacity < frame->length + bytes) {
            capacity *= 2;
        }
        uint8_t *grown = realloc(frame->bytes, capacity);
        if (grown == NULL) {
            return false;
        }
        frame->bytes = grown;
        frame->capacity = capacity;
    }
    if (frame->entry_count + entries > frame->entry_capacity) {
        uint32_t capacity =
            frame->entry_capacity == 0 ? FRAME_ENTRIES_FIRST : frame->entry_capacity;
        while (capacity < frame->entry_count + entries) {
            capacity *= 2;
        }
        struct cg_log_entry **grown = realloc(frame->entries, capacity * sizeof(*frame->entries));
        if (grown == NULL) {
            return false;
        }
        frame->entries = grown;
        struct iovec *iov = realloc(frame->iov, capacity * sizeof(*frame->iov));
        if (iov == NULL) {
            return false;
        }
        frame->iov = iov;
        frame->entry_capacity = capacity;
    }
    return true;
}

// ---- Sending

static void frame_done(struct cg_rpc_call *call) {
    struct peers_frame *frame = CG_CONTAINER_OF(call, struct peers_frame, call);
    struct peer *peer = frame->peer;
    int status = call->status;
    peer->frames_in_flight--;
    give_frame(peer->peers, frame);
    if (status < 0) {
        peers_lost(peer, -status);
    } else if (peer->open != NULL) {
        cg_reactor_defer(peer->peers->reactor, &peer->peers->flush);
    }
}

static void send_open(struct peer *peer) {
    struct cg_peers *peers = peer->peers;
    struct peers_frame *frame = peer->open;
    peer->open = NULL;
    cg_list_remove(&peer->node);
    cg_raft_frame_seal(frame->bytes, frame->length, frame->payload_length, frame->message_count);
    struct cg_rpc_call *call = &frame->call;
    call->method = &step_method;
    call->request = frame->bytes;
    call->request_length = frame->length;
    call->send_iov = frame->iov;
    call->send_iovcnt = (int)frame->iov_count;
    call->send_length = frame->payload_length;
    call->timeout_ns = SEND_TIMEOUT_NS;
    call->one_way = true;
    call->done = frame_done;
    peers->stats.frames_sent++;
    peers->stats.messages_sent += frame->message_count;
    peers->stats.bytes_sent += (uint64_t)frame->length + frame->payload_length;
    peer->frames_in_flight++;
    cg_channel_call(peer->channel, call);
}

void peers_flush(struct cg_deferred *deferred) {
    struct cg_peers *peers = CG_CONTAINER_OF(deferred, struct cg_peers, flush);
    CG_LIST_FOREACH_SAFE (node, next, &peers->sending) {
        struct peer *peer = CG_CONTAINER_OF(node, struct peer, node);
        if (peer->frames_in_flight < PEERS_FRAMES_IN_FLIGHT) {
            send_open(peer);
        } // else frame_done comes back to it
    }
}

void peers_drop_open(struct peer *peer) {
    struct peers_frame *frame = peer->open;
    if (frame == NULL) {
        return;
    }
    peer->open = NULL;
    cg_list_remove(&peer->node);
    peer->peers->stats.messages_dropped += frame->message_count;
    give_frame(peer->peers, frame);
}

// ---- Filling

static struct cg_raft_wire_entry on_the_wire(const struct cg_log_entry *entry) {
    return (struct cg_raft_wire_entry){
        .term = entry->term,
        .type = entry->type,
        .meta_length = entry->meta_length,
        .payload_length = entry->payload_length,
        .meta = entry->meta,
        .block_crcs = entry->block_crcs,
    };
}

static void add_payload(struct peers_frame *frame, const struct cg_log_entry *entry) {
    struct iovec *last = frame->iov_count > 0 ? &frame->iov[frame->iov_count - 1] : NULL;
    if (entry->payload_length == 0) {
        return;
    }
    frame->payload_length += entry->payload_length;
    if (last != NULL && (uint8_t *)last->iov_base + last->iov_len == entry->payload) {
        last->iov_len += entry->payload_length;
        return;
    }
    frame->iov[frame->iov_count++] =
        (struct iovec){(void *)(uintptr_t)entry->payload, entry->payload_length};
}

// The frame that has room for so much; NULL: the message is to be dropped.
static struct peers_frame *frame_for(struct peer *peer, uint32_t bytes, uint32_t payload_length,
                                     uint32_t entries) {
    struct peers_frame *frame = peer->open;
    if (frame != NULL && (frame->length + bytes > CG_RAFT_FRAME_LENGTH_MAX ||
                          frame->payload_length + payload_length > CG_RAFT_FRAME_PAYLOAD_MAX ||
                          frame->message_count == CG_RAFT_FRAME_MESSAGES_MAX ||
                          (payload_length > 0 && frame->payload_length >= PEERS_FRAME_GOAL))) {
        if (peer->frames_in_flight >= PEERS_FRAMES_IN_FLIGHT) {
            return NULL;
        }
        send_open(peer);
        frame = NULL;
    }
    bool is_new = frame == NULL;
    if (is_new) {
        frame = take_frame(peer);
    }
    if (frame == NULL) {
        return NULL;
    }
    if (!make_room(frame, bytes, entries)) {
        if (is_new) {
            give_frame(peer->peers, frame);
        }
        return NULL;
    }
    if (is_new) {
        peer->open = frame;
        cg_list_push_back(&peer->peers->sending, &peer->node);
        cg_reactor_defer(peer->peers->reactor, &peer->peers->flush);
    }
    return frame;
}

static bool queue(struct peer *peer, uint64_t group, const struct cg_raft_message *message,
                  struct cg_log_entry *const *entries) {
    uint32_t count = message->type == CG_RAFT_APPEND ? message->count : 0;
    uint64_t bytes = cg_raft_message_size(message);
    uint64_t payload_length = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct cg_raft_wire_entry entry = on_the_wire(entries[i]);
        bytes += cg_raft_entry_size(&entry);
        payload_length += entry.payload_length;
    }
    if (bytes > CG_RAFT_FRAME_LENGTH_MAX - CG_RAFT_FRAME_HEADER ||
        payload_length > CG_RAFT_FRAME_PAYLOAD_MAX) {
        cg_log(CG_LOG_ERROR, "a message with %u entries is too long to be sent", count);
        return false;
    }
    struct peers_frame *frame = frame_for(peer, (uint32_t)bytes, (uint32_t)payload_length, count);
    if (frame == NULL) {
        return false;
    }
    cg_raft_message_encode(group, message, frame->bytes + frame->length);
    frame->length += cg_raft_message_size(message);
    for (uint32_t i = 0; i < count; i++) {
        struct cg_raft_wire_entry entry = on_the_wire(entries[i]);
        cg_raft_entry_encode(&entry, frame->bytes + frame->length);
        frame->length += cg_raft_entry_size(&entry);
        add_payload(frame, entries[i]);
        frame->entries[frame->entry_count++] = cg_log_entry_ref(entries[i]);
    }
    frame->message_count++;
    return true;
}

void cg_peers_send(struct cg_peers *peers, uint64_t group, const struct cg_raft_message *message,
                   struct cg_log_entry *const *entries) {
    struct peer *peer = peers_find(peers, (uint32_t)message->to);
    if (peer == NULL || peer->retry_ns > cg_reactor_now(peers->reactor) ||
        !peers_open_channel(peer) || !queue(peer, group, message, entries)) {
        peers->stats.messages_dropped++;
    }
}
