// SPDX-License-Identifier: BSD-3-Clause
#include "rpc/server.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "rpc/server_internal.h"

#define CONNECTIONS_MAX 1024U
#define INFLIGHT_MAX    512U
#define SEND_QUEUE_MAX  (32U << 20)
#define SPARE_MAX       1024U

static void prepare_names(struct cg_server *server) {
    for (unsigned i = 0; i < server->options.method_count; i++) {
        const struct cg_server_method *method = &server->options.methods[i];
        struct cg_method_name *name = &server->names[i];
        const char *dot = strrchr(method->service, '.');
        name->service_length = (uint32_t)strlen(method->service);
        name->name_length = (uint32_t)strlen(method->name);
        name->short_service = dot != NULL ? dot + 1 : method->service;
        name->short_service_length = (uint32_t)strlen(name->short_service);
    }
}

int cg_server_create(struct cg_reactor *reactor, const struct cg_server_options *options,
                     struct cg_server **out) {
    if (options->pool == NULL || (options->method_count > 0 && options->methods == NULL)) {
        return -EINVAL;
    }
    struct cg_server *server = calloc(1, sizeof(*server));
    if (server == NULL) {
        return -ENOMEM;
    }
    server->names = calloc(options->method_count + 1, sizeof(*server->names));
    if (server->names == NULL) {
        free(server);
        return -ENOMEM;
    }
    server->reactor = reactor;
    server->options = *options;
    if (server->options.connections_max == 0) {
        server->options.connections_max = CONNECTIONS_MAX;
    }
    if (server->options.inflight_max == 0) {
        server->options.inflight_max = INFLIGHT_MAX;
    }
    if (server->options.send_queue_max == 0) {
        server->options.send_queue_max = SEND_QUEUE_MAX;
    }
    prepare_names(server);
    cg_list_init(&server->listeners);
    cg_list_init(&server->connections);
    *out = server;
    return 0;
}

void cg_server_destroy(struct cg_server *server) {
    if (server == NULL) {
        return;
    }
    while (!cg_list_empty(&server->listeners)) {
        cg_listener_close(CG_CONTAINER_OF(server->listeners.next, struct cg_listener, node));
    }
    while (!cg_list_empty(&server->connections)) {
        struct cg_list *node = server->connections.next;
        cg_connection_close(CG_CONTAINER_OF(node, struct cg_connection, node));
    }
    server->destroyed = true;
    cg_server_free_if_done(server);
}

void cg_server_free_if_done(struct cg_server *server) {
    if (!server->destroyed || server->exchanges > 0 || server->stats.connections > 0) {
        return;
    }
    while (server->spare != NULL) {
        struct cg_server_exchange *exchange = server->spare;
        server->spare = exchange->request.connection;
        free(exchange);
    }
    free(server->names);
    free(server);
}

struct cg_server_exchange *cg_server_take_exchange(struct cg_server *server) {
    struct cg_server_exchange *exchange = server->spare;
    if (exchange != NULL) {
        server->spare = exchange->request.connection;
        server->spare_count--;
    } else {
        exchange = aligned_alloc(64, (sizeof(*exchange) + 63) / 64 * 64);
        if (exchange == NULL) {
            return NULL;
        }
    }
    server->exchanges++;
    // The scratch and the inline arrays need no clearing: they are filled before they are read.
    struct cg_server_request *request = &exchange->request;
    request->server = server;
    request->buffer = NULL;
    request->buffer_offset = 0;
    request->overloaded = false;
    cg_list_init(&request->node);
    exchange->refusal = 0;
    exchange->refusal_text = NULL;
    exchange->release = NULL;
    exchange->iov_allocated = NULL;
    exchange->head_allocated = NULL;
    return exchange;
}

void cg_server_give_exchange(struct cg_server *server, struct cg_server_exchange *exchange) {
    server->exchanges--;
    if (server->spare_count < SPARE_MAX && !server->destroyed) {
        exchange->request.connection = server->spare;
        server->spare = exchange;
        server->spare_count++;
    } else {
        free(exchange);
    }
}

void cg_server_stats(const struct cg_server *server, struct cg_server_stats *out) {
    *out = server->stats;
}
