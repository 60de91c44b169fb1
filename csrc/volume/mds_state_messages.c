// SPDX-License-Identifier: BSD-3-Clause
//
// The messages about a volume's shared state.
#include <errno.h>
#include <pb_decode.h>
#include <pb_encode.h>

#include "gateway/proto/shared_state.pb.h"
#include "volume/mds_wire.h"

#define SERVICE "copygate.SharedStateService"

static const struct cg_rpc_method get_method = {SERVICE, "GetState"};
static const struct cg_rpc_method set_method = {SERVICE, "SetState"};
static const struct cg_rpc_method await_method = {SERVICE, "AwaitState"};

// ---- Requests

static int send_get(struct cg_mds_call *call, uint64_t date, const char *signature,
                    struct cg_channel *channel) {
    const struct cg_mds_state *state = call->state;
    copygate_GetStateRequest m = copygate_GetStateRequest_init_zero;
    m.fileName = cg_mds_text_field(call->path);
    m.owner = cg_mds_text_field(call->mds->owner);
    m.signature = cg_mds_text_field(signature);
    m.date = date;
    m.sessionID = cg_mds_text_field(call->session_id);
    m.has_known_revision = true;
    m.known_revision = state->revision;
    m.has_wait_ms = true;
    m.wait_ms = state->wait_ms;
    m.has_follow = state->follow;
    m.follow = state->follow;
    m.has_epoch = call->epoch != 0;
    m.epoch = call->epoch;
    call->rpc.method = &get_method;
    call->rpc.request_fields = copygate_GetStateRequest_fields;
    call->rpc.request = &m;
    cg_channel_call(channel, &call->rpc);
    return 0;
}

static bool encode_data(pb_ostream_t *stream, const pb_field_t *field, void *const *arg) {
    const struct cg_mds_state *state = *arg;
    return pb_encode_tag_for_field(stream, field) &&
           pb_encode_string(stream, state->data, state->length);
}

static int send_set(struct cg_mds_call *call, uint64_t date, const char *signature,
                    struct cg_channel *channel) {
    struct cg_mds_state *state = call->state;
    copygate_SetStateRequest m = copygate_SetStateRequest_init_zero;
    m.fileName = cg_mds_text_field(call->path);
    m.owner = cg_mds_text_field(call->mds->owner);
    m.signature = cg_mds_text_field(signature);
    m.date = date;
    m.sessionID = cg_mds_text_field(call->session_id);
    m.expected_revision = state->revision;
    m.state = (pb_callback_t){.funcs.encode = encode_data, .arg = state};
    m.token = state->token;
    m.has_epoch = call->epoch != 0;
    m.epoch = call->epoch;
    call->rpc.method = &set_method;
    call->rpc.request_fields = copygate_SetStateRequest_fields;
    call->rpc.request = &m;
    cg_channel_call(channel, &call->rpc);
    return 0;
}

static int send_await(struct cg_mds_call *call, uint64_t date, const char *signature,
                      struct cg_channel *channel) {
    copygate_AwaitStateRequest m = copygate_AwaitStateRequest_init_zero;
    m.fileName = cg_mds_text_field(call->path);
    m.owner = cg_mds_text_field(call->mds->owner);
    m.signature = cg_mds_text_field(signature);
    m.date = date;
    m.sessionID = cg_mds_text_field(call->session_id);
    m.revision = call->state->revision;
    m.has_wait_ms = true;
    m.wait_ms = call->state->wait_ms;
    call->rpc.method = &await_method;
    call->rpc.request_fields = copygate_AwaitStateRequest_fields;
    call->rpc.request = &m;
    cg_channel_call(channel, &call->rpc);
    return 0;
}

int cg_mds_send_state(struct cg_mds_call *call, struct cg_channel *channel, uint64_t date,
                      const char *signature) {
    switch (call->op) {
    case CG_MDS_STATE_GET:
        return send_get(call, date, signature, channel);
    case CG_MDS_STATE_SET:
        return send_set(call, date, signature, channel);
    case CG_MDS_STATE_AWAIT:
        return send_await(call, date, signature, channel);
    default:
        return -EINVAL;
    }
}

// ---- Replies

static bool decode_state(pb_istream_t *stream, const pb_field_t *field, void **arg) {
    (void)field;
    struct cg_mds_state *state = *arg;
    size_t length = stream->bytes_left;
    state->too_long = length > state->capacity;
    if (state->too_long) {
        return pb_read(stream, NULL, length);
    }
    state->buffer_length = (uint32_t)length;
    return pb_read(stream, state->buffer, length);
}

static pb_callback_t state_field(struct cg_mds_state *state) {
    return (pb_callback_t){.funcs.decode = decode_state, .arg = state};
}

static int decode_get(struct cg_mds_call *call, pb_istream_t *stream) {
    copygate_GetStateResponse m = copygate_GetStateResponse_init_zero;
    m.state = state_field(call->state);
    if (!pb_decode_ex(stream, copygate_GetStateResponse_fields, &m, PB_DECODE_NOINIT)) {
        return -EPROTO;
    }
    call->status = (int32_t)m.statusCode;
    call->state->revision_now = m.revision;
    return 0;
}

static int decode_set(struct cg_mds_call *call, pb_istream_t *stream) {
    copygate_SetStateResponse m = copygate_SetStateResponse_init_zero;
    m.state = state_field(call->state);
    if (!pb_decode_ex(stream, copygate_SetStateResponse_fields, &m, PB_DECODE_NOINIT)) {
        return -EPROTO;
    }
    call->status = (int32_t)m.statusCode;
    call->state->revision_now = m.revision;
    call->state->acknowledged = m.acknowledged;
    return 0;
}

static int decode_await(struct cg_mds_call *call, pb_istream_t *stream) {
    copygate_AwaitStateResponse m = copygate_AwaitStateResponse_init_zero;
    if (!pb_decode(stream, copygate_AwaitStateResponse_fields, &m)) {
        return -EPROTO;
    }
    call->status = (int32_t)m.statusCode;
    call->state->acknowledged = m.acknowledged;
    return 0;
}

int cg_mds_decode_state(struct cg_mds_call *call, pb_istream_t *stream) {
    call->state->buffer_length = 0;
    call->state->too_long = false;
    switch (call->op) {
    case CG_MDS_STATE_GET:
        return decode_get(call, stream);
    case CG_MDS_STATE_SET:
        return decode_set(call, stream);
    case CG_MDS_STATE_AWAIT:
        return decode_await(call, stream);
    default:
        return -EPROTO;
    }
}
