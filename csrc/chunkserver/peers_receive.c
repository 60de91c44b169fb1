// SPDX-License-Identifier: BSD-3-Clause
//
// copygate.RaftService: Step takes a frame of messages and is not answered, Ping is answered with
// nothing, or not at all. What does not make sense is refused as a whole, with a line in the log
// now and then.
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "chunkserver/peers_internal.h"

#define LOG_INTERVAL_NS CG_NS_PER_S

// Whoever sends rubbish can send much of it.
static void complain(struct cg_peers *peers, const char *text) {
    uint64_t now = cg_reactor_now(peers->reactor);
    if (peers->log_ns != 0 && now - peers->log_ns < LOG_INTERVAL_NS) {
        peers->log_suppressed++;
        return;
    }
    if (peers->log_suppressed > 0) {
        cg_log(CG_LOG_WARNING, "raft port: %s; %" PRIu64 " more lines were left out", text,
               peers->log_suppressed);
    } else {
        cg_log(CG_LOG_WARNING, "raft port: %s", text);
    }
    peers->log_ns = now;
    peers->log_suppressed = 0;
}

static void refuse(struct cg_peers *peers, struct cg_server_request *request, const char *why) {
    char text[160];
    snprintf(text, sizeof(text), "refused %s (%u bytes, %u of payload)", why,
             request->message_length, request->attachment_length);
    complain(peers, text);
    peers->stats.frames_refused++;
    cg_server_reply_error(request, CG_RPC_EREQUEST, why);
}

static bool payloads_intact(struct cg_raft_frame frame, const uint8_t *payload) {
    uint64_t group;
    struct cg_raft_message message;
    while (cg_raft_frame_message(&frame, &group, &message)) {
        struct cg_raft_wire_entry entry;
        while (cg_raft_frame_entry(&frame, &entry)) {
            if (!cg_raft_entry_intact(&entry, payload + entry.payload_offset)) {
                return false;
            }
        }
    }
    return true;
}

// ---- Delivering

// Makes the message's entries in peers->received; returns how many. Fewer than the message has: the
// payload was not received (no buffer), or no memory.
static uint32_t make_entries(struct cg_peers *peers, struct cg_raft_frame *frame,
                             const struct cg_raft_message *message, struct cg_buffer *buffer) {
    struct cg_raft_wire_entry wire;
    uint32_t count = 0;
    while (cg_raft_frame_entry(frame, &wire)) {
        if (wire.payload_length > 0 && buffer == NULL) {
            break;
        }
        const uint8_t *payload = NULL;
        if (wire.payload_length > 0) {
            payload = buffer->data + wire.payload_offset;
            cg_raft_entry_crcs(&wire, peers->crcs);
        }
        struct cg_log_entry *entry = cg_log_entry_make(
            wire.type, wire.term, message->prev_index + 1 + count, wire.meta, wire.meta_length,
            wire.payload_length > 0 ? buffer : NULL, payload, wire.payload_length, peers->crcs);
        if (entry == NULL) {
            break;
        }
        peers->received[count++] = entry;
    }
    return count;
}

static void deliver(struct cg_peers *peers, struct cg_raft_frame *frame, struct cg_buffer *buffer) {
    uint64_t group;
    struct cg_raft_message message;
    while (cg_raft_frame_message(frame, &group, &message)) {
        uint32_t count = make_entries(peers, frame, &message, buffer);
        peers->stats.messages_received++;
        if (count == message.count &&
            !peers->events.received(peers->events.context, group, &message, peers->received)) {
            char text[96];
            snprintf(text, sizeof(text),
                     "a message for copyset %" PRIu64 " of pool %" PRIu64 ", which is not here",
                     group & UINT32_MAX, group >> 32);
            peers->stats.messages_strayed++;
            complain(peers, text);
        }
        for (uint32_t i = 0; i < count; i++) {
            cg_log_entry_unref(peers->received[i]);
        }
    }
}

// Every message of a frame is from the same chunkserver.
static uint32_t sender_of(struct cg_raft_frame frame) {
    uint64_t group;
    struct cg_raft_message message;
    return cg_raft_frame_message(&frame, &group, &message) ? (uint32_t)message.from : 0;
}

static void handle_step(struct cg_server_request *request) {
    struct cg_peers *peers = request->method->context;
    struct cg_raft_frame frame;
    const char *why;
    if (cg_raft_frame_open(request->message, request->message_length, request->attachment_length,
                           &frame, &why) < 0) {
        refuse(peers, request, why);
        return;
    }
    struct cg_buffer *buffer = request->buffer;
    if (buffer != NULL && !payloads_intact(frame, buffer->data)) {
        refuse(peers, request, "a payload that is not what its checksums say");
        return;
    }
    assert(request->buffer_offset == 0);
    peers->stats.frames_received++;
    peers->stats.bytes_received += (uint64_t)frame.length + frame.payload_length;
    peers_heard(peers, sender_of(frame));
    deliver(peers, &frame, buffer);
    cg_server_end(request);
}

static void handle_ping(struct cg_server_request *request) {
    const struct cg_peers *peers = request->method->context;
    if (peers->events.takes_part != NULL && !peers->events.takes_part(peers->events.context)) {
        cg_server_end(request);
        return;
    }
    cg_server_reply_encoded(request, NULL, 0, NULL, 0, NULL, NULL);
}

void cg_peers_methods(struct cg_peers *peers, struct cg_server_method out[CG_PEERS_METHODS]) {
    out[0] = (struct cg_server_method){
        .service = PEERS_SERVICE,
        .name = "Step",
        .handle = handle_step,
        .context = peers,
        .pool = peers->pool,
    };
    out[1] = (struct cg_server_method){
        .service = PEERS_SERVICE,
        .name = "Ping",
        .handle = handle_ping,
        .context = peers,
        .pool = peers->pool,
    };
}
