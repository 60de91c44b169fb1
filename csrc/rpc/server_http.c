// SPDX-License-Identifier: BSD-3-Clause
//
// The little of HTTP/1 that libcurve's health probe and collectors of metrics need: GET /health,
// GET /metrics, and then the connection ends.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
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

// "GET /health HTTP/1.1" or with a query; HEAD likewise.
static bool asks_for(const uint8_t *bytes, uint32_t length, const char *path) {
    const uint8_t *space = memchr(bytes, ' ', length);
    size_t n = strlen(path);
    if (space == NULL || (!begins_with(bytes, length, "GET ") && bytes[0] != 'H')) {
        return false;
    }
    uint32_t left = length - (uint32_t)(space + 1 - bytes);
    return left > n && memcmp(space + 1, path, n) == 0 &&
           (space[1 + n] == ' ' || space[1 + n] == '?');
}

// Queues header and `body`. Returns 0 or -ENOMEM.
static int answer(struct cg_connection *connection, const char *status, const char *body,
                  bool with_body) {
    struct cg_server_exchange *exchange = cg_server_take_exchange(connection->server);
    if (exchange == NULL) {
        return -ENOMEM;
    }
    exchange->request.connection = connection;
    char *text = NULL;
    int length = asprintf(&text,
                          "HTTP/1.1 %s\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n"
                          "Connection: close\r\n\r\n%s",
                          status, strlen(body), with_body ? body : "");
    if (length < 0) {
        cg_server_end_exchange(exchange);
        return -ENOMEM;
    }
    exchange->head_allocated = (uint8_t *)text;
    exchange->item = (struct cg_send_item){
        .head = exchange->head_allocated,
        .head_length = (uint32_t)length,
        .length = (uint32_t)length,
    };
    connection->close_when_sent = true;
    cg_connection_queue(connection, exchange);
    return 0;
}

static int answer_health(struct cg_connection *connection, bool with_body) {
    const struct cg_server_options *options = &connection->server->options;
    const char *text = options->health != NULL ? options->health(options->health_context) : "OK\n";
    return text != NULL ? answer(connection, "200 OK", text, with_body)
                        : answer(connection, "503 Service Unavailable", "not ready\n", with_body);
}

static int answer_metrics(struct cg_connection *connection, bool with_body) {
    const struct cg_server_options *options = &connection->server->options;
    char *text = options->metrics(options->metrics_context);
    int result = text != NULL
                     ? answer(connection, "200 OK", text, with_body)
                     : answer(connection, "503 Service Unavailable", "not now\n", with_body);
    free(text);
    return result;
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
    bool with_body = !begins_with(bytes, length, "HEAD");
    if (asks_for(bytes, length, "/health")) {
        return answer_health(connection, with_body);
    }
    if (options->metrics != NULL && asks_for(bytes, length, "/metrics")) {
        return answer_metrics(connection, with_body);
    }
    return answer(connection, "404 Not Found",
                  options->metrics != NULL ? "only /health and /metrics are here\n"
                                           : "only /health is here\n",
                  with_body);
}
