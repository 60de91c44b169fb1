// SPDX-License-Identifier: BSD-3-Clause
//
// One connection of the server: reads until a bound is reached, sends what is queued at the end of
// the iteration, and lives until the last request that came by it is answered.
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "rpc/server_internal.h"
#include "rpc/socket.h"

// Receives at once before other descriptors get their turn.
#define READS_AT_ONCE 8

// So much waiting to be sent goes out at once, so that the peer has work while we go on.
#define SEND_EARLY_BYTES (512U << 10)

static bool over_bounds(const struct cg_connection *connection) {
    const struct cg_server_options *options = &connection->server->options;
    return connection->inflight >= options->inflight_max ||
           connection->sender.queued_bytes > options->send_queue_max;
}

// Errors are not acted on here, under callers that still use the connection, but noted for
// run_work.
static void send_queued(struct cg_connection *connection) {
    int rc = cg_sender_flush(&connection->sender, connection->fd);
    bool blocked = rc == CG_SEND_BLOCKED;
    if (rc >= 0 && blocked != connection->write_watched) {
        connection->write_watched = blocked;
        rc = cg_reactor_rewatch(&connection->watch,
                                EPOLLIN | EPOLLRDHUP | (blocked ? EPOLLOUT : 0U));
    }
    if (rc < 0) {
        connection->error = rc;
    } else if (!blocked && connection->close_when_sent) {
        connection->error = -ENODATA;
    }
}

static void note_read_error(struct cg_connection *connection, int rc) {
    connection->error = rc;
    if (rc == -EPROTO || rc == -EMSGSIZE) {
        connection->server->stats.bad_frames++;
    }
}

static void read_requests(struct cg_connection *connection) {
    connection->read_more = false;
    for (int i = 0; i < READS_AT_ONCE; i++) {
        connection->receiver.paused = over_bounds(connection);
        if (connection->receiver.paused) {
            connection->read_more = true;
            return;
        }
        int rc = cg_receiver_resume(&connection->receiver);
        if (rc == 0 && !connection->receiver.paused && connection->fd >= 0) {
            uint64_t before = connection->receiver.bytes;
            rc = cg_receiver_read(&connection->receiver, connection->fd);
            cg_server_release_guesses(connection);
            connection->server->stats.bytes_in += connection->receiver.bytes - before;
        }
        if (connection->fd < 0) {
            return;
        }
        if (rc < 0) {
            note_read_error(connection, rc);
            return;
        }
        if (rc == 0 && !connection->hung_up && !connection->receiver.paused) {
            return;
        }
    }
    connection->read_more = true;
    cg_reactor_defer(connection->server->reactor, &connection->work);
}

static void run_work(struct cg_deferred *deferred) {
    struct cg_connection *connection = CG_CONTAINER_OF(deferred, struct cg_connection, work);
    connection->busy++;
    if (connection->fd >= 0 && connection->error == 0 && connection->read_more &&
        !over_bounds(connection)) {
        read_requests(connection);
    }
    if (connection->fd >= 0 && connection->error == 0 && !connection->write_watched) {
        send_queued(connection);
    }
    if (connection->fd >= 0 && connection->error != 0) {
        cg_connection_close(connection);
    }
    connection->busy--;
    cg_connection_put(connection);
}

static void on_ready(struct cg_watch *watch, uint32_t events) {
    struct cg_connection *connection = CG_CONTAINER_OF(watch, struct cg_connection, watch);
    connection->busy++;
    if ((events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) {
        connection->hung_up = true;
    }
    if ((events & EPOLLOUT) != 0) {
        send_queued(connection);
    }
    if (connection->fd >= 0 && connection->error == 0 &&
        ((events & ~(uint32_t)EPOLLOUT) != 0 || connection->read_more)) {
        read_requests(connection);
    }
    if (connection->error != 0) {
        cg_reactor_defer(connection->server->reactor, &connection->work);
    }
    connection->busy--;
    cg_connection_put(connection);
}

static void reply_sent(struct cg_sender *sender, struct cg_send_item *item) {
    struct cg_connection *connection = CG_CONTAINER_OF(sender, struct cg_connection, sender);
    connection->server->stats.bytes_out += item->length;
    cg_server_end_exchange(CG_CONTAINER_OF(item, struct cg_server_exchange, item));
}

void cg_connection_queue(struct cg_connection *connection, struct cg_server_exchange *exchange) {
    cg_sender_push(&connection->sender, &exchange->item);
    if (connection->sender.queued_bytes > SEND_EARLY_BYTES && !connection->write_watched &&
        connection->error == 0) {
        send_queued(connection);
    }
    cg_reactor_defer(connection->server->reactor, &connection->work);
}

int cg_connection_create(struct cg_server *server, int fd, int family) {
    struct cg_connection *connection = calloc(1, sizeof(*connection));
    if (connection == NULL) {
        close(fd);
        return -ENOMEM;
    }
    connection->server = server;
    connection->fd = fd;
    connection->guess_count = 1;
    connection->work.run = run_work;
    cg_list_init(&connection->work.node);
    cg_list_init(&connection->node);
    cg_sender_init(&connection->sender, reply_sent);
    cg_socket_tune(fd, family);
    connection->watch.fd = fd;
    connection->watch.events = EPOLLIN | EPOLLRDHUP;
    connection->watch.ready = on_ready;
    int rc =
        cg_receiver_init(&connection->receiver, &cg_server_receiver_ops, CG_SERVER_MESSAGE_MAX);
    if (rc == 0) {
        rc = cg_reactor_watch(server->reactor, &connection->watch);
    }
    if (rc < 0) {
        cg_receiver_free(&connection->receiver);
        close(fd);
        free(connection);
        return rc;
    }
    cg_list_push_back(&server->connections, &connection->node);
    server->stats.connections++;
    return 0;
}

void cg_connection_close(struct cg_connection *connection) {
    if (connection->fd < 0) {
        return;
    }
    connection->busy++;
    cg_reactor_unwatch(&connection->watch);
    cg_reactor_undefer(&connection->work);
    close(connection->fd);
    connection->fd = -1;
    connection->receiver.closed = true;
    cg_list_remove(&connection->node);
    if (connection->current != NULL) {
        struct cg_server_exchange *exchange = connection->current;
        connection->current = NULL;
        cg_server_end_exchange(exchange);
    }
    while (!cg_list_empty(&connection->sender.queue)) {
        struct cg_send_item *item =
            CG_CONTAINER_OF(connection->sender.queue.next, struct cg_send_item, node);
        cg_sender_remove(&connection->sender, item);
        cg_server_end_exchange(CG_CONTAINER_OF(item, struct cg_server_exchange, item));
    }
    connection->busy--;
    cg_connection_put(connection);
}

void cg_connection_put(struct cg_connection *connection) {
    if (connection->fd >= 0 || connection->busy > 0 || connection->inflight > 0) {
        return;
    }
    struct cg_server *server = connection->server;
    cg_reactor_undefer(&connection->work);
    cg_receiver_free(&connection->receiver);
    free(connection);
    server->stats.connections--;
    cg_server_free_if_done(server);
}
