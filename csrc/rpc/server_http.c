// SPDX-License-Identifier: BSD-3-Clause
//
// The little of HTTP/1 that libcurve's health probe needs: GET /health, and then the connection
// ends.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "rpc/server_internal.h"

#define REQUEST_MAX 8192U

static bool begins_with(const uint8_t *bytes, uint32_t length, const char *text) {
    size_t n = strlen(text);
    return length >= n && memcmp(bytes, text, n) == 0;
}

static bool is_http(const uint8_t *bytes, uint32_t length) {
    return begins_with(bytes, length, "GET ") || begins_with(bytes, length, "HEAD") ||
           begins_with(bytes, length, "POST") || begins_with(bytes, length, "PUT ");
}

// "GET /health HTTP/1.1" or with a query.
static bool asks_for_health(const uint8_t *bytes, uint32_t length) {
    return begins_with(bytes, length, "GET /health ") ||
           begins_with(bytes, length, "GET /health?") ||
           begins_with(bytes, length, "HEAD /health ");
}

static void answer(struct cg_connection *connection, struct cg_server_exchange *exchange,
                   const char *status, const char *body, bool with_body) {
    int length = snprintf((char *)exchange->head_inline, sizeof(exchange->head_inline),
                          "HTTP/1.1 %s\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n"
                          "Connection: close\r\n\r\n%.64s\n",
                          status, strnlen(body, 64) + 1, body);
    if (!with_body) {
        length -= (int)strnlen(body, 64) + 1;
    }
    exchange->request.connection = connection;
    exchange->item = (struct cg_send_item){
        .head = exchange->head_inline,
        .head_length = (uint32_t)length,
        .length = (uint32_t)length,
    };
    connection->close_when_sent = true;
    cg_connection_queue(connection, exchange);
}

int cg_server_other_protocol(struct cg_receiver *receiver, const uint8_t *bytes, uint32_t length) {
    struct cg_connection *connection = CG_CONTAINER_OF(receiver, struct cg_connection, receiver);
    const struct cg_server_options *options = &connection->server->options;
    if (connection->close_when_sent) {
        return length > REQUEST_MAX ? -EMSGSIZE : 0;
    }
    if (!is_http(bytes, length)) {
        return -EPROTO;
    }
    if (memmem(bytes, length, "\r\n\r\n", 4) == NULL) {
        return length > REQUEST_MAX ? -EMSGSIZE : 0;
    }
    struct cg_server_exchange *exchange = cg_server_take_exchange(connection->server);
    if (exchange == NULL) {
        return -ENOMEM;
    }
    bool head_only = begins_with(bytes, length, "HEAD");
    if (!asks_for_health(bytes, length)) {
        answer(connection, exchange, "404 Not Found", "only /health is here", !head_only);
        return 0;
    }
    const char *text = options->health != NULL ? options->health(options->health_context) : "OK";
    if (text != NULL) {
        answer(connection, exchange, "200 OK", text, !head_only);
    } else {
        answer(connection, exchange, "503 Service Unavailable", "not ready", !head_only);
    }
    return 0;
}
