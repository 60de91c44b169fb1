// SPDX-License-Identifier: BSD-3-Clause
#include "wireclient.h"

#include <assert.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pb_decode.h>
#include <pb_encode.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "rpc/endpoint.h"
#include "rpc/frame.h"

#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

int wire_connect(const char *address) {
    struct cg_endpoint endpoint;
    MUST(cg_endpoint_parse(address, &endpoint) == 0);
    int fd = socket(endpoint.address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    MUST(fd >= 0);
    int on = 1; // a request is sent in pieces
    MUST(endpoint.address.ss_family == AF_UNIX ||
         setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) == 0);
    MUST(connect(fd, (struct sockaddr *)&endpoint.address, endpoint.length) == 0);
    return fd;
}

void wire_send(int fd, const void *data, size_t length) {
    const uint8_t *at = data;
    while (length > 0) {
        ssize_t sent = send(fd, at, length, MSG_NOSIGNAL);
        MUST(sent > 0);
        at += sent;
        length -= (size_t)sent;
    }
}

size_t wire_receive(int fd, void *data, size_t length) {
    size_t got = 0;
    while (got < length) {
        struct pollfd poller = {.fd = fd, .events = POLLIN};
        if (poll(&poller, 1, 300) <= 0) {
            break;
        }
        ssize_t n = recv(fd, (uint8_t *)data + got, length - got, 0);
        if (n <= 0) {
            break;
        }
        got += (size_t)n;
    }
    return got;
}

static void receive_all(int fd, void *data, size_t length) {
    uint8_t *at = data;
    while (length > 0) {
        ssize_t n = recv(fd, at, length, 0);
        MUST(n > 0);
        at += n;
        length -= (size_t)n;
    }
}

static bool collect_runs(pb_istream_t *stream, const pb_field_t *field, void **arg) {
    struct wire_reply *reply = *arg;
    (void)field;
    while (stream->bytes_left > 0) {
        uint64_t value;
        if (!pb_decode_varint(stream, &value) || reply->run_count == 4096) {
            return false;
        }
        reply->runs[reply->run_count++] = (uint32_t)value;
    }
    return true;
}

static void receive_reply(int fd, int64_t correlation, struct wire_reply *reply) {
    uint8_t head[CG_FRAME_HEADER_SIZE];
    receive_all(fd, head, sizeof(head));
    struct cg_frame_header header;
    MUST(cg_frame_header_decode(head, &header) == 0);
    uint8_t *body = malloc(header.body_size + 1);
    receive_all(fd, body, header.body_size);
    struct cg_frame_meta meta;
    MUST(cg_frame_meta_decode(body, header.meta_size, &meta) == 0);
    MUST(!meta.is_request && meta.correlation_id == correlation);
    reply->error_code = meta.error_code;
    reply->message_length = header.body_size - header.meta_size - meta.attachment_size;
    MUST(reply->message_length <= sizeof(reply->message));
    memcpy(reply->message, body + header.meta_size, reply->message_length);
    reply->data_length = meta.attachment_size;
    free(reply->data);
    reply->data = malloc(meta.attachment_size + 1);
    memcpy(reply->data, body + header.body_size - meta.attachment_size, meta.attachment_size);
    free(body);
}

int64_t wire_send_request(int fd, const char *service, const char *method, const void *message,
                          uint32_t message_length, const void *data, uint32_t length) {
    static int64_t correlation;
    struct cg_frame_meta meta = {
        .is_request = true, .correlation_id = ++correlation, .attachment_size = length};
    snprintf(meta.service, sizeof(meta.service), "%s", service);
    snprintf(meta.method, sizeof(meta.method), "%s", method);
    uint8_t meta_bytes[512];
    int meta_length = cg_frame_meta_encode(&meta, meta_bytes, sizeof(meta_bytes));
    MUST(meta_length > 0);
    struct cg_frame_header header = {.body_size = (uint32_t)meta_length + message_length + length,
                                     .meta_size = (uint32_t)meta_length};
    uint8_t head[CG_FRAME_HEADER_SIZE];
    cg_frame_header_encode(&header, head);
    wire_send(fd, head, sizeof(head));
    wire_send(fd, meta_bytes, (size_t)meta_length);
    wire_send(fd, message, message_length);
    wire_send(fd, data, length);
    return correlation;
}

void wire_call(int fd, const char *service, const char *method, const pb_msgdesc_t *fields,
               const void *message, const void *data, uint32_t length, struct wire_reply *reply) {
    uint8_t encoded[1024];
    pb_ostream_t stream = pb_ostream_from_buffer(encoded, sizeof(encoded));
    MUST(pb_encode(&stream, fields, message));
    int64_t correlation = wire_send_request(fd, service, method, encoded,
                                            (uint32_t)stream.bytes_written, data, length);
    receive_reply(fd, correlation, reply);
}

curve_chunkserver_CHUNK_OP_STATUS wire_chunk(int fd, const char *method,
                                             const curve_chunkserver_ChunkRequest *request,
                                             const void *data, uint32_t length,
                                             struct wire_reply *reply) {
    wire_call(fd, "curve.chunkserver.ChunkService", method, curve_chunkserver_ChunkRequest_fields,
              request, data, length, reply);
    memset(&reply->chunk, 0, sizeof(reply->chunk));
    reply->run_count = 0;
    if (reply->error_code != 0) {
        return curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_FAILURE_UNKNOWN;
    }
    reply->chunk.blockRuns.funcs.decode = collect_runs;
    reply->chunk.blockRuns.arg = reply;
    pb_istream_t stream = pb_istream_from_buffer(reply->message, reply->message_length);
    MUST(pb_decode(&stream, curve_chunkserver_ChunkResponse_fields, &reply->chunk));
    return reply->chunk.status;
}
