// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/raft_wire.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/crc32c.h"
#include "chunkserver/bytes.h"

#define FRAME_MAGIC 0x53524743U // "CGRS"

// The frame's header.
enum {
    AT_MAGIC = 0,
    AT_CRC = 4, // of everything behind it
    AT_VERSION = 8,
    AT_LENGTH = 12,
    AT_PAYLOAD = 16,
    AT_MESSAGES = 20,
    AT_RESERVED = 24, // 8 bytes
};

// What every message begins with.
enum {
    AT_TYPE = 0,
    AT_FLAGS = 2,
    AT_COUNT = 4,
    AT_GROUP = 8,
    AT_FROM = 16,
    AT_TO = 24,
    AT_TERM = 32,
    MESSAGE_HEADER = 40,
};

// What every entry begins with.
enum {
    AT_ENTRY_TERM = 0,
    AT_ENTRY_TYPE = 8,
    AT_ENTRY_META = 12,
    AT_ENTRY_PAYLOAD = 16,
    AT_ENTRY_RESERVED = 20,
};

enum {
    FLAG_PRE_VOTE = 1U << 0,
    FLAG_FORCED = 1U << 1,
    FLAG_GRANTED = 1U << 2,
    FLAG_REJECTED = 1U << 3,
    FLAG_QUIESCE = 1U << 4,
};

// The flags that a message of the type may have, and the 8-byte fields behind its header.
struct shape {
    uint16_t flags;
    uint16_t fields;
};

static const struct shape shapes[] = {
    [CG_RAFT_VOTE] = {FLAG_PRE_VOTE | FLAG_FORCED, 2},
    [CG_RAFT_VOTE_REPLY] = {FLAG_PRE_VOTE | FLAG_GRANTED, 0},
    [CG_RAFT_APPEND] = {0, 3},
    [CG_RAFT_APPEND_REPLY] = {FLAG_REJECTED, 4},
    [CG_RAFT_HEARTBEAT] = {FLAG_QUIESCE, 3},
    [CG_RAFT_HEARTBEAT_REPLY] = {0, 4},
    [CG_RAFT_TIMEOUT_NOW] = {0, 1},
};
#define TYPE_MAX   CG_RAFT_TIMEOUT_NOW
#define FIELDS_MAX 4U

_Static_assert(MESSAGE_HEADER + 8U * FIELDS_MAX <= CG_RAFT_MESSAGE_ENCODED_MAX, "the bound holds");

// The fields of a message in the order of the wire; as many as its shape says.
static void list_fields(struct cg_raft_message *message, uint64_t *field[FIELDS_MAX]) {
    switch (message->type) {
    case CG_RAFT_VOTE:
        field[0] = &message->last_index;
        field[1] = &message->last_term;
        break;
    case CG_RAFT_APPEND:
        field[0] = &message->prev_index;
        field[1] = &message->prev_term;
        field[2] = &message->commit;
        break;
    case CG_RAFT_APPEND_REPLY:
        field[0] = &message->match;
        field[1] = &message->prev_index;
        field[2] = &message->hint_index;
        field[3] = &message->hint_term;
        break;
    case CG_RAFT_HEARTBEAT:
        field[0] = &message->round;
        field[1] = &message->sent_ns;
        field[2] = &message->commit;
        break;
    case CG_RAFT_HEARTBEAT_REPLY:
        field[0] = &message->round;
        field[1] = &message->sent_ns;
        field[2] = &message->match;
        field[3] = &message->received;
        break;
    case CG_RAFT_TIMEOUT_NOW:
        field[0] = &message->round;
        break;
    case CG_RAFT_VOTE_REPLY:
        break;
    }
}

// ---- Writing

uint32_t cg_raft_message_size(const struct cg_raft_message *message) {
    return MESSAGE_HEADER + 8U * shapes[message->type].fields;
}

static uint32_t flags_of(const struct cg_raft_message *message) {
    uint32_t flags = (message->pre_vote ? FLAG_PRE_VOTE : 0U) |
                     (message->forced ? FLAG_FORCED : 0U) | (message->granted ? FLAG_GRANTED : 0U) |
                     (message->rejected ? FLAG_REJECTED : 0U) |
                     (message->quiesce ? FLAG_QUIESCE : 0U);
    return flags & shapes[message->type].flags;
}

void cg_raft_message_encode(uint64_t group, const struct cg_raft_message *message, uint8_t *out) {
    assert(message->type >= CG_RAFT_VOTE && message->type <= TYPE_MAX);
    struct cg_raft_message copy = *message;
    uint64_t *field[FIELDS_MAX];
    list_fields(&copy, field);
    cg_put_u32(out + AT_TYPE, (uint32_t)message->type | flags_of(message) << 16);
    cg_put_u32(out + AT_COUNT, message->type == CG_RAFT_APPEND ? message->count : 0);
    cg_put_u64(out + AT_GROUP, group);
    cg_put_u64(out + AT_FROM, message->from);
    cg_put_u64(out + AT_TO, message->to);
    cg_put_u64(out + AT_TERM, message->term);
    for (unsigned i = 0; i < shapes[message->type].fields; i++) {
        cg_put_u64(out + MESSAGE_HEADER + 8U * i, *field[i]);
    }
}

uint32_t cg_raft_entry_size(const struct cg_raft_wire_entry *entry) {
    return CG_RAFT_ENTRY_HEADER + entry->meta_length + 4U * (entry->payload_length / CG_WAL_BLOCK);
}

void cg_raft_entry_encode(const struct cg_raft_wire_entry *entry, uint8_t *out) {
    assert(entry->type != 0 && entry->meta_length <= CG_WAL_META_MAX);
    assert(entry->payload_length <= CG_WAL_PAYLOAD_MAX &&
           entry->payload_length % CG_WAL_BLOCK == 0);
    cg_put_u64(out + AT_ENTRY_TERM, entry->term);
    cg_put_u32(out + AT_ENTRY_TYPE, entry->type);
    cg_put_u32(out + AT_ENTRY_META, entry->meta_length);
    cg_put_u32(out + AT_ENTRY_PAYLOAD, entry->payload_length);
    cg_put_u32(out + AT_ENTRY_RESERVED, 0);
    out += CG_RAFT_ENTRY_HEADER;
    if (entry->meta_length > 0) {
        memcpy(out, entry->meta, entry->meta_length);
    }
    out += entry->meta_length;
    for (uint32_t i = 0; i < entry->payload_length / CG_WAL_BLOCK; i++) {
        cg_put_u32(out + 4U * i, entry->block_crcs[i]);
    }
}

void cg_raft_frame_seal(uint8_t *frame, uint32_t length, uint32_t payload_length,
                        uint32_t message_count) {
    assert(length >= CG_RAFT_FRAME_HEADER && length <= CG_RAFT_FRAME_LENGTH_MAX);
    assert(payload_length <= CG_RAFT_FRAME_PAYLOAD_MAX);
    assert(message_count > 0 && message_count <= CG_RAFT_FRAME_MESSAGES_MAX);
    cg_put_u32(frame + AT_MAGIC, FRAME_MAGIC);
    cg_put_u32(frame + AT_VERSION, CG_RAFT_FRAME_VERSION);
    cg_put_u32(frame + AT_LENGTH, length);
    cg_put_u32(frame + AT_PAYLOAD, payload_length);
    cg_put_u32(frame + AT_MESSAGES, message_count);
    cg_put_u64(frame + AT_RESERVED, 0);
    cg_put_u32(frame + AT_CRC, cg_crc32c(0, frame + AT_VERSION, length - AT_VERSION));
}

// ---- Reading

// Reads the message at frame->at. NULL, or why it is none.
static const char *read_message(struct cg_raft_frame *frame, uint64_t *group,
                                struct cg_raft_message *out) {
    const uint8_t *in = frame->bytes + frame->at;
    uint32_t left = frame->length - frame->at;
    if (left < MESSAGE_HEADER) {
        return "a message is cut short";
    }
    uint32_t word = cg_get_u32(in + AT_TYPE);
    uint32_t type = word & 0xffff;
    uint32_t flags = word >> 16;
    if (type < CG_RAFT_VOTE || type > TYPE_MAX) {
        return "a message of unknown type";
    }
    const struct shape *shape = &shapes[type];
    if ((flags & ~(uint32_t)shape->flags) != 0) {
        return "a message with flags that its type does not have";
    }
    if (left < MESSAGE_HEADER + 8U * shape->fields) {
        return "a message is cut short";
    }
    *group = cg_get_u64(in + AT_GROUP);
    *out = (struct cg_raft_message){
        .type = (enum cg_raft_message_type)type,
        .from = cg_get_u64(in + AT_FROM),
        .to = cg_get_u64(in + AT_TO),
        .term = cg_get_u64(in + AT_TERM),
        .count = cg_get_u32(in + AT_COUNT),
        .pre_vote = (flags & FLAG_PRE_VOTE) != 0,
        .forced = (flags & FLAG_FORCED) != 0,
        .granted = (flags & FLAG_GRANTED) != 0,
        .rejected = (flags & FLAG_REJECTED) != 0,
        .quiesce = (flags & FLAG_QUIESCE) != 0,
    };
    if (out->count > (type == CG_RAFT_APPEND ? CG_RAFT_ENTRIES_MAX : 0)) {
        return "a message with too many entries";
    }
    uint64_t *field[FIELDS_MAX];
    list_fields(out, field);
    for (unsigned i = 0; i < shape->fields; i++) {
        *field[i] = cg_get_u64(in + MESSAGE_HEADER + 8U * i);
    }
    frame->at += MESSAGE_HEADER + 8U * shape->fields;
    frame->entries_left = out->count;
    return NULL;
}

// Reads the entry at frame->at. NULL, or why it is none.
static const char *read_entry(struct cg_raft_frame *frame, struct cg_raft_wire_entry *out) {
    const uint8_t *in = frame->bytes + frame->at;
    uint32_t left = frame->length - frame->at;
    if (left < CG_RAFT_ENTRY_HEADER) {
        return "an entry is cut short";
    }
    *out = (struct cg_raft_wire_entry){
        .term = cg_get_u64(in + AT_ENTRY_TERM),
        .type = cg_get_u32(in + AT_ENTRY_TYPE),
        .meta_length = cg_get_u32(in + AT_ENTRY_META),
        .payload_length = cg_get_u32(in + AT_ENTRY_PAYLOAD),
        .meta = in + CG_RAFT_ENTRY_HEADER,
        .payload_offset = frame->payload_at,
    };
    if (out->type == 0 || cg_get_u32(in + AT_ENTRY_RESERVED) != 0 ||
        out->meta_length > CG_WAL_META_MAX || out->payload_length > CG_WAL_PAYLOAD_MAX ||
        out->payload_length % CG_WAL_BLOCK != 0) {
        return "an entry with a type or sizes that no entry has";
    }
    if (left < cg_raft_entry_size(out)) {
        return "an entry is cut short";
    }
    if (frame->payload_length - frame->payload_at < out->payload_length) {
        return "an entry's payload is not there";
    }
    out->encoded_crcs = in + CG_RAFT_ENTRY_HEADER + out->meta_length;
    frame->at += cg_raft_entry_size(out);
    frame->payload_at += out->payload_length;
    frame->entries_left--;
    return NULL;
}

// Walks through all messages and entries.
static const char *check_messages(struct cg_raft_frame frame) {
    while (frame.messages_left-- > 0) {
        uint64_t group;
        struct cg_raft_message message;
        const char *why = read_message(&frame, &group, &message);
        while (why == NULL && frame.entries_left > 0) {
            struct cg_raft_wire_entry entry;
            why = read_entry(&frame, &entry);
        }
        if (why != NULL) {
            return why;
        }
    }
    if (frame.at != frame.length) {
        return "bytes behind the last message";
    }
    return frame.payload_at != frame.payload_length ? "payload that belongs to no entry" : NULL;
}

static int refuse(int result, const char *text, const char **why) {
    *why = text;
    return result;
}

int cg_raft_frame_open(const uint8_t *bytes, uint32_t length, uint32_t attachment_length,
                       struct cg_raft_frame *out, const char **why) {
    if (length < CG_RAFT_FRAME_HEADER || cg_get_u32(bytes + AT_MAGIC) != FRAME_MAGIC) {
        return refuse(-EBADMSG, "no frame of raft messages", why);
    }
    // Before anything that another version may have elsewhere.
    if (cg_get_u32(bytes + AT_VERSION) != CG_RAFT_FRAME_VERSION) {
        return refuse(-EPROTONOSUPPORT, "a version of the protocol that is not known here", why);
    }
    *out = (struct cg_raft_frame){
        .bytes = bytes,
        .length = length,
        .payload_length = attachment_length,
        .message_count = cg_get_u32(bytes + AT_MESSAGES),
        .at = CG_RAFT_FRAME_HEADER,
    };
    if (length > CG_RAFT_FRAME_LENGTH_MAX || cg_get_u32(bytes + AT_LENGTH) != length ||
        attachment_length > CG_RAFT_FRAME_PAYLOAD_MAX ||
        cg_get_u32(bytes + AT_PAYLOAD) != attachment_length) {
        return refuse(-EBADMSG, "a frame whose lengths do not match", why);
    }
    if (out->message_count == 0 || out->message_count > CG_RAFT_FRAME_MESSAGES_MAX ||
        cg_get_u64(bytes + AT_RESERVED) != 0) {
        return refuse(-EBADMSG, "a frame with a count that no frame has", why);
    }
    if (cg_get_u32(bytes + AT_CRC) != cg_crc32c(0, bytes + AT_VERSION, length - AT_VERSION)) {
        return refuse(-EBADMSG, "a frame with a wrong checksum", why);
    }
    out->messages_left = out->message_count;
    const char *text = check_messages(*out);
    return text == NULL ? 0 : refuse(-EBADMSG, text, why);
}

bool cg_raft_frame_message(struct cg_raft_frame *frame, uint64_t *group,
                           struct cg_raft_message *out) {
    struct cg_raft_wire_entry entry;
    while (cg_raft_frame_entry(frame, &entry)) {
    }
    if (frame->messages_left == 0) {
        return false;
    }
    frame->messages_left--;
    const char *why = read_message(frame, group, out);
    assert(why == NULL); // it was checked when the frame was opened
    return why == NULL;
}

bool cg_raft_frame_entry(struct cg_raft_frame *frame, struct cg_raft_wire_entry *out) {
    if (frame->entries_left == 0) {
        return false;
    }
    const char *why = read_entry(frame, out);
    assert(why == NULL);
    return why == NULL;
}

void cg_raft_entry_crcs(const struct cg_raft_wire_entry *entry, uint32_t *out) {
    for (uint32_t i = 0; i < entry->payload_length / CG_WAL_BLOCK; i++) {
        out[i] = cg_get_u32(entry->encoded_crcs + 4U * i);
    }
}

bool cg_raft_entry_intact(const struct cg_raft_wire_entry *entry, const uint8_t *payload) {
    for (uint32_t i = 0; i < entry->payload_length / CG_WAL_BLOCK; i++) {
        if (cg_get_u32(entry->encoded_crcs + 4U * i) !=
            cg_crc32c(0, payload + (size_t)i * CG_WAL_BLOCK, CG_WAL_BLOCK)) {
            return false;
        }
    }
    return true;
}
