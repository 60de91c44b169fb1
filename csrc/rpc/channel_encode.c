// SPDX-License-Identifier: BSD-3-Clause
#include <errno.h>
#include <pb_encode.h>
#include <stdlib.h>
#include <string.h>

#include "rpc/channel_internal.h"

// Encodes the message at `out`; -EMSGSIZE if it does not fit.
static int encode_message(const struct cg_rpc_call *call, uint8_t *out, size_t room) {
    if (call->request_fields == NULL) {
        if (call->request_length > room) {
            return -EMSGSIZE;
        }
        if (call->request_length > 0) {
            memcpy(out, call->request, call->request_length);
        }
        return (int)call->request_length;
    }
    pb_ostream_t stream = pb_ostream_from_buffer(out, room);
    return pb_encode(&stream, call->request_fields, call->request) ? (int)stream.bytes_written
                                                                   : -EMSGSIZE;
}

static int encode_at(const struct cg_rpc_call *call, uint8_t *out, size_t size) {
    struct cg_frame_view meta = {
        .is_request = true,
        .service = call->method->service,
        .service_length = (uint32_t)strlen(call->method->service),
        .method = call->method->name,
        .method_length = (uint32_t)strlen(call->method->name),
        .correlation_id = (int64_t)call->correlation_id,
        .attachment_size = call->send_length,
    };
    if (size < CG_FRAME_HEADER_SIZE) {
        return -EMSGSIZE;
    }
    int meta_size =
        cg_frame_view_encode(&meta, out + CG_FRAME_HEADER_SIZE, size - CG_FRAME_HEADER_SIZE);
    if (meta_size < 0) {
        return meta_size;
    }
    size_t at = CG_FRAME_HEADER_SIZE + (size_t)meta_size;
    int message_size = encode_message(call, out + at, size - at);
    if (message_size < 0) {
        return message_size;
    }
    uint64_t body = (uint64_t)meta_size + (uint64_t)message_size + call->send_length;
    if (body > CG_FRAME_BODY_MAX) {
        return -EINVAL;
    }
    struct cg_frame_header header = {(uint32_t)body, (uint32_t)meta_size};
    cg_frame_header_encode(&header, out);
    return (int)at + message_size;
}

// The message does not fit into head_inline, or nanopb refuses it.
static int encode_allocated(struct cg_rpc_call *call) {
    size_t size = call->request_length;
    if (call->request_fields != NULL &&
        !pb_get_encoded_size(&size, call->request_fields, call->request)) {
        return -EINVAL;
    }
    if (size > CG_FRAME_BODY_MAX) {
        return -EINVAL;
    }
    size += CG_FRAME_HEADER_SIZE + strlen(call->method->service) + strlen(call->method->name) + 64;
    call->head_allocated = malloc(size);
    if (call->head_allocated == NULL) {
        return -ENOMEM;
    }
    int length = encode_at(call, call->head_allocated, size);
    if (length < 0) {
        free(call->head_allocated);
        call->head_allocated = NULL;
        return -EINVAL;
    }
    return length;
}

int cg_channel_encode(struct cg_rpc_call *call) {
    call->head_allocated = NULL;
    int length = encode_at(call, call->head_inline, sizeof(call->head_inline));
    if (length == -EMSGSIZE) {
        length = encode_allocated(call);
    }
    if (length < 0) {
        return length;
    }
    call->item.head = call->head_allocated != NULL ? call->head_allocated : call->head_inline;
    call->item.head_length = (uint32_t)length;
    call->item.iov = call->send_iov;
    call->item.iovcnt = call->send_length > 0 ? call->send_iovcnt : 0;
    call->item.length = (uint32_t)length + call->send_length;
    return 0;
}
