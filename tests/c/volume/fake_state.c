// SPDX-License-Identifier: BSD-3-Clause
//
// The metadata server's shared state: revisions, waiting, and others who are behind.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake_internal.h"
#include "gateway/proto/shared_state.pb.h"

static bool decode_text(pb_istream_t *stream, const pb_field_t *field, void **arg) {
    (void)field;
    char *text = *arg;
    size_t length = stream->bytes_left;
    if (length >= 32) {
        return false;
    }
    text[length] = '\0';
    return pb_read(stream, (pb_byte_t *)text, length);
}

static pb_callback_t text_field(char text[32]) {
    return (pb_callback_t){.funcs.decode = decode_text, .arg = text};
}

static bool encode_state(pb_ostream_t *stream, const pb_field_t *field, void *const *arg) {
    const struct fake *fake = *arg;
    return pb_encode_tag_for_field(stream, field) &&
           pb_encode_string(stream, fake->state, fake->state_length);
}

static pb_callback_t state_field(struct fake *fake) {
    return (pb_callback_t){.funcs.encode = encode_state, .arg = fake};
}

static bool session_is_known(const struct fake *fake, const struct fake_log *entry) {
    char id[32];
    fake_session(fake, id);
    return !fake->session_gone && strcmp(entry->state.session, id) == 0;
}

static bool look(struct fake *fake, const struct fake_log *entry, struct fake_reply *reply) {
    copygate_GetStateResponse m = copygate_GetStateResponse_init_zero;
    bool wait = false;
    if (!session_is_known(fake, entry)) {
        m.statusCode = curve_mds_StatusCode_kSessionNotExist;
    } else {
        m.has_revision = true;
        m.revision = fake->state_revision;
        wait = entry->state.revision == fake->state_revision;
        if (!wait) {
            m.state = state_field(fake);
        }
    }
    fake_reply_with(reply, copygate_GetStateResponse_fields, &m);
    return wait;
}

static void on_get(struct fake *fake, const struct fake_call *call, struct fake_reply *reply,
                   struct fake_log *entry) {
    copygate_GetStateRequest request = copygate_GetStateRequest_init_zero;
    request.sessionID = text_field(entry->state.session);
    fake_decode(call, copygate_GetStateRequest_fields, &request);
    entry->state.revision = request.known_revision;
    entry->state.wait_ms = request.wait_ms;
    entry->state.follow = request.follow;
    entry->state.epoch = request.epoch;
    if (look(fake, entry, reply)) {
        reply->later = look;
    }
}

struct new_state {
    uint8_t bytes[FAKE_STATE_MAX];
    uint32_t length;
};

static bool decode_state(pb_istream_t *stream, const pb_field_t *field, void **arg) {
    (void)field;
    struct new_state *state = *arg;
    state->length = (uint32_t)stream->bytes_left;
    return state->length <= sizeof(state->bytes) && pb_read(stream, state->bytes, state->length);
}

static void on_set(struct fake *fake, const struct fake_call *call, struct fake_reply *reply,
                   struct fake_log *entry) {
    copygate_SetStateRequest request = copygate_SetStateRequest_init_zero;
    copygate_SetStateResponse m = copygate_SetStateResponse_init_zero;
    struct new_state state = {.length = 0};
    request.sessionID = text_field(entry->state.session);
    request.state = (pb_callback_t){.funcs.decode = decode_state, .arg = &state};
    fake_decode(call, copygate_SetStateRequest_fields, &request);
    entry->state.revision = request.expected_revision;
    entry->state.epoch = request.epoch;
    entry->state.token = request.token;
    bool again = fake->state_revision > 0 && fake->state_token == request.token;
    if (!session_is_known(fake, entry)) {
        m.statusCode = curve_mds_StatusCode_kSessionNotExist;
    } else if (!again && request.has_epoch && request.epoch != fake->epoch) {
        m.statusCode = curve_mds_StatusCode_kEpochTooOld;
    } else if (!again && request.expected_revision != fake->state_revision) {
        m.statusCode = curve_mds_StatusCode_kSharedStateConflict;
        m.state = state_field(fake);
    } else if (!again) {
        fake->state_revision++;
        fake->state_token = request.token;
        fake->state_length = state.length;
        memcpy(fake->state, state.bytes, state.length);
    }
    m.has_revision = true;
    m.revision = fake->state_revision;
    m.has_acknowledged = true;
    m.acknowledged = !fake->others_behind;
    fake_reply_with(reply, copygate_SetStateResponse_fields, &m);
}

static bool await(struct fake *fake, const struct fake_log *entry, struct fake_reply *reply) {
    copygate_AwaitStateResponse m = copygate_AwaitStateResponse_init_zero;
    if (!session_is_known(fake, entry)) {
        m.statusCode = curve_mds_StatusCode_kSessionNotExist;
    }
    m.has_acknowledged = true;
    m.acknowledged = !fake->others_behind;
    fake_reply_with(reply, copygate_AwaitStateResponse_fields, &m);
    return m.statusCode == curve_mds_StatusCode_kOK && fake->others_behind;
}

static void on_await(struct fake *fake, const struct fake_call *call, struct fake_reply *reply,
                     struct fake_log *entry) {
    copygate_AwaitStateRequest request = copygate_AwaitStateRequest_init_zero;
    request.sessionID = text_field(entry->state.session);
    fake_decode(call, copygate_AwaitStateRequest_fields, &request);
    entry->state.revision = request.revision;
    entry->state.wait_ms = request.wait_ms;
    if (await(fake, entry, reply)) {
        reply->later = await;
    }
}

bool fake_state(struct fake *fake, const struct fake_call *call, struct fake_reply *reply,
                struct fake_log *entry) {
    if (strcmp(call->method, "GetState") == 0) {
        on_get(fake, call, reply, entry);
    } else if (strcmp(call->method, "SetState") == 0) {
        on_set(fake, call, reply, entry);
    } else if (strcmp(call->method, "AwaitState") == 0) {
        on_await(fake, call, reply, entry);
    } else {
        return false;
    }
    return true;
}
