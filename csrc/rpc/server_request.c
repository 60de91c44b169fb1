// SPDX-License-Identifier: BSD-3-Clause
//
// Requests from the first byte of their frame to the last byte of their reply.
#include <errno.h>
#include <pb_encode.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "rpc/server_internal.h"

// Larger attachments are not guessed: a head is read first and a buffer taken for what it says.
#define GUESS_ATTACHMENT_MAX (1U << 20)

static struct cg_connection *connection_of(struct cg_receiver *receiver) {
    return CG_CONTAINER_OF(receiver, struct cg_connection, receiver);
}

// ---- Finding the method

static bool same(const char *name, uint32_t name_length, const char *text, uint32_t length) {
    return name_length == length && memcmp(name, text, length) == 0;
}

static const struct cg_server_method *find_method(const struct cg_server *server,
                                                  const struct cg_frame_view *meta) {
    for (unsigned i = 0; i < server->options.method_count; i++) {
        const struct cg_server_method *method = &server->options.methods[i];
        const struct cg_method_name *name = &server->names[i];
        if (same(method->name, name->name_length, meta->method, meta->method_length) &&
            (same(method->service, name->service_length, meta->service, meta->service_length) ||
             same(name->short_service, name->short_service_length, meta->service,
                  meta->service_length))) {
            return method;
        }
    }
    return NULL;
}

// ---- Guessing: a writer goes on as it has begun

void cg_server_release_guesses(struct cg_connection *connection) {
    for (unsigned i = 0; i < connection->guesses_made; i++) {
        cg_buffer_unref(connection->guess_buffers[i]);
        connection->guess_buffers[i] = NULL;
    }
    connection->guesses_made = 0;
}

static unsigned guess_requests(struct cg_receiver *receiver, struct cg_receiver_guess *out,
                               unsigned max) {
    struct cg_connection *connection = connection_of(receiver);
    uint32_t length = connection->last_attachment_length;
    if (length == 0 || length > GUESS_ATTACHMENT_MAX) {
        return 0;
    }
    unsigned count = 0;
    uint32_t bytes = 0;
    while (count < max && count < connection->guess_count && bytes < CG_RECEIVER_GUESS_BYTES) {
        struct cg_buffer *buffer = cg_buffer_alloc(connection->last_pool, length);
        if (buffer == NULL) {
            break;
        }
        connection->guess_buffers[count] = buffer;
        connection->guess_iov[count] = (struct iovec){buffer->data, length};
        out[count] = (struct cg_receiver_guess){
            .cookie = &connection->guess_buffers[count],
            .head_length = connection->last_head_length,
            .attachment_length = length,
            .iov = &connection->guess_iov[count],
            .iovcnt = 1,
        };
        bytes += length;
        count++;
    }
    connection->guesses_made = count;
    connection->guess_count = 1; // counted up again by what comes
    return count;
}

static bool confirm_request(struct cg_receiver *receiver, const struct cg_receiver_frame *frame,
                            const struct cg_receiver_guess *guess) {
    (void)receiver;
    (void)guess;
    return frame->meta.is_request;
}

static void note_attachment(struct cg_connection *connection, const struct cg_receiver_frame *frame,
                            struct cg_buffer_pool *pool) {
    connection->last_attachment_length = frame->attachment_length;
    connection->last_pool = pool;
    connection->last_head_length = frame->head_length;
    // Twice what came at once, so that a growing queue is followed quickly.
    connection->guess_count += 2;
}

// ---- The head is in

static void refuse(struct cg_server_exchange *exchange, int32_t error, const char *text) {
    exchange->refusal = error;
    exchange->refusal_text = text;
}

static struct cg_buffer_pool *pool_of(const struct cg_server_request *request) {
    return request->method->pool != NULL ? request->method->pool : request->server->options.pool;
}

// Where the attachment goes: the method's buffer, the one in which it was guessed to land, or a new
// one.
static void choose_buffer(struct cg_server_exchange *exchange,
                          const struct cg_receiver_frame *frame,
                          struct cg_receiver_target *target) {
    struct cg_server_request *request = &exchange->request;
    struct cg_buffer **guessed = frame->guess;
    if (request->buffer == NULL && guessed != NULL && (*guessed)->pool == pool_of(request)) {
        request->buffer = *guessed;
        *guessed = NULL;
        target->in_place = true;
    } else if (request->buffer == NULL) {
        request->buffer = cg_buffer_alloc(pool_of(request), frame->attachment_length);
    }
    if (request->buffer == NULL) {
        request->overloaded = true;
        return;
    }
    if ((uint64_t)request->buffer_offset + frame->attachment_length > request->buffer->capacity) {
        refuse(exchange, CG_RPC_EINTERNAL, "the buffer is too small for the attachment");
        return;
    }
    exchange->buffer_iov.iov_base = request->buffer->data + request->buffer_offset;
    exchange->buffer_iov.iov_len = frame->attachment_length;
    target->iov = &exchange->buffer_iov;
    target->iovcnt = 1;
}

static int begin_request(struct cg_receiver *receiver, struct cg_receiver_frame *frame,
                         struct cg_receiver_target *target) {
    struct cg_connection *connection = connection_of(receiver);
    struct cg_server *server = connection->server;
    if (!frame->meta.is_request) {
        return -EPROTO;
    }
    struct cg_server_exchange *exchange = cg_server_take_exchange(server);
    if (exchange == NULL) {
        return -ENOMEM;
    }
    struct cg_server_request *request = &exchange->request;
    request->method = find_method(server, &frame->meta);
    request->message = frame->message;
    request->message_length = frame->message_length;
    request->attachment_length = frame->attachment_length;
    request->received_ns = cg_reactor_now(server->reactor);
    request->connection = connection;
    request->correlation_id = frame->meta.correlation_id;
    connection->current = exchange;
    server->stats.requests++;
    if (request->method == NULL) {
        refuse(exchange, CG_RPC_ENOMETHOD, "unknown service or method");
        return 0;
    }
    if (request->method->prepare != NULL) {
        exchange->refusal = request->method->prepare(request);
        if (connection->fd < 0) {
            return 0; // the method has taken the server down, and this request with it
        }
        if (exchange->refusal != 0) {
            exchange->refusal_text = "the request was refused";
            return 0;
        }
    }
    if (frame->attachment_length > 0) {
        note_attachment(connection, frame, pool_of(request));
        choose_buffer(exchange, frame, target);
    }
    return 0;
}

static int end_request(struct cg_receiver *receiver, struct cg_receiver_frame *frame) {
    (void)frame;
    struct cg_connection *connection = connection_of(receiver);
    struct cg_server_exchange *exchange = connection->current;
    const struct cg_server_options *options = &connection->server->options;
    connection->current = NULL;
    connection->inflight++;
    if (exchange->refusal != 0) {
        cg_server_reply_error(&exchange->request, exchange->refusal, exchange->refusal_text);
        return 0;
    }
    if (connection->inflight >= options->inflight_max ||
        connection->sender.queued_bytes > options->send_queue_max) {
        receiver->paused = true;
        connection->read_more = true;
    }
    exchange->request.method->handle(&exchange->request);
    return 0;
}

const struct cg_receiver_ops cg_server_receiver_ops = {
    .begin = begin_request,
    .end = end_request,
    .guess = guess_requests,
    .confirm = confirm_request,
    .other_protocol = cg_server_other_protocol,
};

// ---- The reply

static struct cg_server_exchange *exchange_of(struct cg_server_request *request) {
    return CG_CONTAINER_OF(request, struct cg_server_exchange, request);
}

void cg_server_end_exchange(struct cg_server_exchange *exchange) {
    struct cg_server *server = exchange->request.server;
    free(exchange->iov_allocated);
    free(exchange->head_allocated);
    cg_buffer_unref(exchange->request.buffer);
    exchange->request.buffer = NULL;
    void (*release)(void *argument) = exchange->release;
    void *argument = exchange->release_argument;
    cg_server_give_exchange(server, exchange);
    if (release != NULL) {
        release(argument);
    }
}

// A response: nanopb's struct, or with fields NULL `length` encoded bytes.
struct response {
    const pb_msgdesc_t *fields;
    const void *message;
    size_t length;
};

// The message's length, or -EMSGSIZE: `room` is too small or nanopb refuses it.
static int encode_message(const struct response *response, uint8_t *out, size_t room) {
    if (response->fields != NULL) {
        pb_ostream_t stream = pb_ostream_from_buffer(out, room);
        return pb_encode(&stream, response->fields, response->message) ? (int)stream.bytes_written
                                                                       : -EMSGSIZE;
    }
    if (response->length > room) {
        return -EMSGSIZE;
    }
    if (response->length > 0) {
        memcpy(out, response->message, response->length);
    }
    return (int)response->length;
}

// Encodes header, meta and message.
static int encode_reply(const struct cg_frame_view *meta, const struct response *response,
                        uint8_t *out, size_t size) {
    int meta_size =
        cg_frame_view_encode(meta, out + CG_FRAME_HEADER_SIZE, size - CG_FRAME_HEADER_SIZE);
    if (meta_size < 0) {
        return meta_size;
    }
    size_t at = CG_FRAME_HEADER_SIZE + (size_t)meta_size;
    int message_size = encode_message(response, out + at, size - at);
    if (message_size < 0) {
        return message_size;
    }
    uint64_t body = (uint64_t)meta_size + (uint64_t)message_size + meta->attachment_size;
    if (body > CG_FRAME_BODY_MAX) {
        return -EMSGSIZE;
    }
    struct cg_frame_header header = {(uint32_t)body, (uint32_t)meta_size};
    cg_frame_header_encode(&header, out);
    return (int)at + message_size;
}

static int encode_head(struct cg_server_exchange *exchange, const struct cg_frame_view *meta,
                       const struct response *response) {
    exchange->item.head = exchange->head_inline;
    int length = encode_reply(meta, response, exchange->head_inline, sizeof(exchange->head_inline));
    if (length >= 0) {
        return length;
    }
    size_t size = response->length;
    if (response->fields != NULL &&
        !pb_get_encoded_size(&size, response->fields, response->message)) {
        return -EINVAL;
    }
    size += CG_FRAME_HEADER_SIZE + meta->error_text_length + 64;
    if (size > CG_FRAME_BODY_MAX) {
        return -EMSGSIZE;
    }
    exchange->head_allocated = malloc(size);
    if (exchange->head_allocated == NULL) {
        return -ENOMEM;
    }
    exchange->item.head = exchange->head_allocated;
    return encode_reply(meta, response, exchange->head_allocated, size);
}

static int keep_iov(struct cg_server_exchange *exchange, const struct iovec *iov, int iovcnt) {
    struct iovec *kept = exchange->iov_inline;
    if (iovcnt > CG_REQUEST_IOV_INLINE) {
        kept = malloc((size_t)iovcnt * sizeof(*kept));
        if (kept == NULL) {
            return -ENOMEM;
        }
        exchange->iov_allocated = kept;
    }
    if (iovcnt > 0) {
        memcpy(kept, iov, (size_t)iovcnt * sizeof(*kept));
    }
    exchange->item.iov = kept;
    exchange->item.iovcnt = iovcnt;
    return 0;
}

// The request leaves the handler: its buffer is given back, its connection lets the next one in.
static void leave_handler(struct cg_connection *connection, struct cg_server_exchange *exchange) {
    cg_buffer_unref(exchange->request.buffer);
    exchange->request.buffer = NULL;
    connection->inflight--;
    if (connection->read_more && connection->fd >= 0) {
        cg_reactor_defer(connection->server->reactor, &connection->work);
    }
}

// Nobody is there to be answered. Frees the connection, and with it the server, if this was the
// last.
static void drop(struct cg_connection *connection, struct cg_server_exchange *exchange) {
    cg_server_end_exchange(exchange);
    cg_connection_put(connection);
}

// The head is encoded in `length` bytes, or could not be: length < 0.
static void send_reply(struct cg_connection *connection, struct cg_server_exchange *exchange,
                       int length, uint32_t attachment) {
    if (length < 0) {
        // No reply can be made. The peer would wait for one: it loses the connection instead.
        cg_log(CG_LOG_ERROR, "a reply could not be encoded: %s", strerrorname_np(-length));
        connection->error = length;
        cg_reactor_defer(connection->server->reactor, &connection->work);
        drop(connection, exchange);
        return;
    }
    exchange->item.head_length = (uint32_t)length;
    exchange->item.length = (uint32_t)length + attachment;
    cg_connection_queue(connection, exchange);
}

static void reply(struct cg_server_request *request, const struct response *response,
                  const struct iovec *iov, int iovcnt, void (*release)(void *argument),
                  void *argument) {
    struct cg_server_exchange *exchange = exchange_of(request);
    struct cg_connection *connection = request->connection;
    uint64_t attachment = 0;
    for (int i = 0; i < iovcnt; i++) {
        attachment += iov[i].iov_len;
    }
    exchange->release = release;
    exchange->release_argument = argument;
    leave_handler(connection, exchange);
    if (connection->fd < 0) {
        drop(connection, exchange);
        return;
    }
    // Too long is cut to what encode_reply refuses.
    uint32_t attachment_size =
        attachment <= CG_FRAME_BODY_MAX ? (uint32_t)attachment : CG_FRAME_BODY_MAX + 1;
    struct cg_frame_view meta = {
        .correlation_id = request->correlation_id,
        .attachment_size = attachment_size,
    };
    int length = keep_iov(exchange, iov, iovcnt);
    if (length == 0) {
        length = encode_head(exchange, &meta, response);
    }
    send_reply(connection, exchange, length, attachment_size);
}

void cg_server_reply(struct cg_server_request *request, const pb_msgdesc_t *fields,
                     const void *response, const struct iovec *iov, int iovcnt,
                     void (*release)(void *argument), void *argument) {
    struct response r = {.fields = fields, .message = response};
    reply(request, &r, iov, iovcnt, release, argument);
}

void cg_server_reply_encoded(struct cg_server_request *request, const void *response,
                             uint32_t length, const struct iovec *iov, int iovcnt,
                             void (*release)(void *argument), void *argument) {
    struct response r = {.message = response, .length = length};
    reply(request, &r, iov, iovcnt, release, argument);
}

void cg_server_end(struct cg_server_request *request) {
    struct cg_connection *connection = request->connection;
    leave_handler(connection, exchange_of(request));
    drop(connection, exchange_of(request));
}

void cg_server_reply_error(struct cg_server_request *request, int32_t code, const char *text) {
    struct cg_server_exchange *exchange = exchange_of(request);
    struct cg_connection *connection = request->connection;
    leave_handler(connection, exchange);
    if (connection->fd < 0) {
        drop(connection, exchange);
        return;
    }
    size_t text_length = text != NULL ? strlen(text) : 0;
    struct cg_frame_view meta = {
        .error_code = code,
        .error_text = text,
        .error_text_length = (uint32_t)(text_length < 255 ? text_length : 255),
        .correlation_id = request->correlation_id,
    };
    struct response none = {0};
    exchange->item.iov = NULL;
    exchange->item.iovcnt = 0;
    send_reply(connection, exchange, encode_head(exchange, &meta, &none), 0);
}
