// SPDX-License-Identifier: BSD-3-Clause
#include "fake.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "fake_internal.h"
#include "gateway/proto/rpc.pb.h"
#include <pb_decode.h>
#include <pb_encode.h>

static void die(const char *what) {
    fprintf(stderr, "fake: %s: %s\n", what, strerror(errno));
    abort();
}

static bool read_all(struct fake_connection *connection, void *data, size_t length) {
    uint8_t *at = data;
    while (length > 0) {
        struct pollfd ready = {.fd = connection->fd, .events = POLLIN};
        poll(&ready, 1, 20);
        if (atomic_load(&connection->server->down) ||
            atomic_load(&connection->server->fake->stop)) {
            return false;
        }
        if (atomic_load(&connection->server->stopped)) {
            usleep(1000);
            continue;
        }
        ssize_t n = recv(connection->fd, at, length, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
            return false;
        }
        if (n > 0) {
            at += n;
            length -= (size_t)n;
        }
    }
    return true;
}

static void write_all(int fd, const void *data, size_t length) {
    const uint8_t *at = data;
    while (length > 0) {
        ssize_t n = send(fd, at, length, MSG_NOSIGNAL);
        if (n < 0) {
            return;
        }
        at += n;
        length -= (size_t)n;
    }
}

static uint32_t big(const uint8_t *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static void put_big(uint8_t *at, uint32_t value) {
    at[0] = (uint8_t)(value >> 24);
    at[1] = (uint8_t)(value >> 16);
    at[2] = (uint8_t)(value >> 8);
    at[3] = (uint8_t)value;
}

static void answer(struct fake_connection *connection, int64_t id, const struct fake_reply *reply) {
    brpc_policy_RpcMeta meta = brpc_policy_RpcMeta_init_zero;
    meta.has_response = true;
    meta.response.has_error_code = true;
    meta.response.error_code = reply->error_code;
    meta.has_correlation_id = true;
    meta.correlation_id = id;
    meta.has_attachment_size = reply->attachment_length > 0;
    meta.attachment_size = (int32_t)reply->attachment_length;
    uint8_t head[256];
    pb_ostream_t stream = pb_ostream_from_buffer(head + 12, sizeof(head) - 12);
    if (!pb_encode(&stream, brpc_policy_RpcMeta_fields, &meta)) {
        die("encode");
    }
    uint32_t meta_length = (uint32_t)stream.bytes_written;
    memcpy(head, "PRPC", 4);
    put_big(head + 4, meta_length + reply->length + reply->attachment_length);
    put_big(head + 8, meta_length);
    pthread_mutex_lock(&connection->write);
    write_all(connection->fd, head, 12 + meta_length);
    write_all(connection->fd, reply->message, reply->length);
    write_all(connection->fd, reply->attachment, reply->attachment_length);
    pthread_mutex_unlock(&connection->write);
}

static void leave(struct fake_connection *connection) {
    if (atomic_fetch_sub(&connection->users, 1) == 1) {
        struct fake *fake = connection->server->fake;
        close(connection->fd);
        pthread_mutex_destroy(&connection->write);
        free(connection);
        atomic_fetch_sub(&fake->connections, 1);
    }
}

// An answer that waits for something.
struct later {
    struct fake_connection *connection;
    int64_t id;
    struct fake_reply *reply;
};

static void *answer_later(void *argument) {
    struct later *later = argument;
    struct fake_connection *connection = later->connection;
    struct fake *fake = connection->server->fake;
    uint64_t end_ns = cg_now_ns() + later->reply->entry.state.wait_ms * CG_NS_PER_MS;
    for (;;) {
        bool over = cg_now_ns() >= end_ns || atomic_load(&fake->stop);
        pthread_mutex_lock(&fake->lock);
        bool wait = later->reply->later(fake, &later->reply->entry, later->reply);
        pthread_mutex_unlock(&fake->lock);
        if (over || !wait) {
            break;
        }
        usleep(5000);
    }
    if (!atomic_load(&connection->server->down)) {
        answer(connection, later->id, later->reply);
    }
    free(later->reply);
    free(later);
    leave(connection);
    return NULL;
}

static void start_later(struct fake_connection *connection, int64_t id, struct fake_reply *reply) {
    struct later *later = malloc(sizeof(*later));
    *later = (struct later){connection, id, reply};
    atomic_fetch_add(&connection->users, 1);
    pthread_t thread;
    if (pthread_create(&thread, NULL, answer_later, later) != 0) {
        die("pthread_create");
    }
    pthread_detach(thread);
}

static bool serve_one(struct fake_connection *connection) {
    uint8_t header[12];
    if (!read_all(connection, header, sizeof(header)) || memcmp(header, "PRPC", 4) != 0) {
        return false;
    }
    uint32_t body = big(header + 4);
    uint32_t meta_length = big(header + 8);
    uint8_t *bytes = malloc(body + 1);
    if (!read_all(connection, bytes, body)) {
        free(bytes);
        return false;
    }
    brpc_policy_RpcMeta meta = brpc_policy_RpcMeta_init_zero;
    pb_istream_t stream = pb_istream_from_buffer(bytes, meta_length);
    if (!pb_decode(&stream, brpc_policy_RpcMeta_fields, &meta)) {
        die("meta");
    }
    uint32_t attachment = meta.has_attachment_size ? (uint32_t)meta.attachment_size : 0;
    struct fake_call call = {
        .connection = connection,
        .method = meta.request.method_name,
        .meta = bytes,
        .meta_length = meta_length,
        .message = bytes + meta_length,
        .length = body - meta_length - attachment,
        .attachment = bytes + body - attachment,
        .attachment_length = attachment,
    };
    struct fake_reply *reply = calloc(1, sizeof(*reply));
    enum fake_verdict verdict = fake_handle(&call, reply);
    bool go_on = verdict != FAKE_CLOSE && verdict != FAKE_DO_AND_CLOSE;
    if (verdict == FAKE_SERVE && reply->later != NULL) {
        start_later(connection, meta.correlation_id, reply);
        free(bytes);
        return true;
    }
    if (verdict == FAKE_SERVE || verdict == FAKE_ANSWER_STATUS) {
        answer(connection, meta.correlation_id, reply);
    }
    free(reply->attachment);
    free(reply);
    free(bytes);
    return go_on;
}

static void *serve_connection(void *argument) {
    struct fake_connection *connection = argument;
    while (serve_one(connection)) {
    }
    // Answers that come later must not keep the other side from seeing the end.
    shutdown(connection->fd, SHUT_RDWR);
    leave(connection);
    return NULL;
}

static void *serve(void *argument) {
    struct fake_server *server = argument;
    while (!atomic_load(&server->fake->stop)) {
        struct pollfd ready = {.fd = server->listener, .events = POLLIN};
        if (poll(&ready, 1, 20) <= 0) {
            continue;
        }
        if (atomic_load(&server->stopped)) {
            usleep(1000);
            continue;
        }
        int fd = accept(server->listener, NULL, NULL);
        if (fd < 0) {
            continue;
        }
        atomic_fetch_add(&server->accepted, 1);
        if (atomic_load(&server->down)) {
            close(fd);
            continue;
        }
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        struct fake_connection *connection = calloc(1, sizeof(*connection));
        connection->fd = fd;
        connection->server = server;
        atomic_init(&connection->users, 1);
        pthread_mutex_init(&connection->write, NULL);
        atomic_fetch_add(&server->fake->connections, 1);
        pthread_t thread;
        if (pthread_create(&thread, NULL, serve_connection, connection) != 0) {
            die("pthread_create");
        }
        pthread_detach(thread);
    }
    return NULL;
}

static void start_server(struct fake *fake, enum fake_role role) {
    struct fake_server *server = &fake->servers[fake->server_count];
    server->fake = fake;
    server->role = role;
    server->index = fake->server_count++;
    server->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    if (server->listener < 0 ||
        bind(server->listener, (struct sockaddr *)&address, sizeof(address)) != 0 ||
        listen(server->listener, 64) != 0 ||
        getsockname(server->listener, (struct sockaddr *)&address, &length) != 0) {
        die("listen");
    }
    server->port = ntohs(address.sin_port);
    if (pthread_create(&server->thread, NULL, serve, server) != 0) {
        die("pthread_create");
    }
}

void fake_start(struct fake *fake) {
    fake->chunk_size = fake->chunk_size != 0 ? fake->chunk_size : 1U << 20;
    fake->segment_size = fake->segment_size != 0 ? fake->segment_size : 4U << 20;
    fake->lease_us = fake->lease_us != 0 ? fake->lease_us : 5000000;
    fake->mds_count = fake->mds_count != 0 ? fake->mds_count : 1;
    fake->peer_count = fake->peer_count != 0 ? fake->peer_count : 1;
    fake->next_chunk = 1;
    fake->seq = 1;
    fake->log = calloc(FAKE_LOG_MAX, sizeof(*fake->log));
    pthread_mutex_init(&fake->lock, NULL);
    for (int i = 0; i < fake->mds_count; i++) {
        start_server(fake, FAKE_MDS);
        size_t used = strlen(fake->mds);
        snprintf(fake->mds + used, sizeof(fake->mds) - used, "%s127.0.0.1:%d", i > 0 ? "," : "",
                 fake->servers[i].port);
    }
    for (int i = 0; i < fake->peer_count; i++) {
        start_server(fake, FAKE_CHUNKSERVER);
    }
}

void fake_stop(struct fake *fake) {
    atomic_store(&fake->stop, true);
    for (int i = 0; i < fake->server_count; i++) {
        pthread_join(fake->servers[i].thread, NULL);
        close(fake->servers[i].listener);
    }
    while (atomic_load(&fake->connections) > 0) {
        usleep(1000);
    }
    for (int i = 0; i < FAKE_CHUNKS_MAX; i++) {
        free(fake->chunks[i].data);
        free(fake->chunks[i].allocated);
    }
    free(fake->log);
    pthread_mutex_destroy(&fake->lock);
}

unsigned fake_count(struct fake *fake, const char *method) {
    unsigned count = 0;
    pthread_mutex_lock(&fake->lock);
    for (unsigned i = 0; i < fake->log_count; i++) {
        count += strcmp(fake->log[i].method, method) == 0;
    }
    pthread_mutex_unlock(&fake->lock);
    return count;
}

void fake_down(struct fake *fake, int server, bool down) {
    atomic_store(&fake->servers[server].down, down);
}

void fake_stop_server(struct fake *fake, int server, bool stopped) {
    atomic_store(&fake->servers[server].stopped, stopped);
}

int fake_peer(const struct fake *fake, int index) {
    return fake->mds_count + index;
}

uint8_t fake_byte(struct fake *fake, uint64_t offset) {
    pthread_mutex_lock(&fake->lock);
    uint64_t first = fake->segments[offset / fake->segment_size];
    uint8_t byte = 0;
    if (first != 0) {
        uint64_t id = first + offset % fake->segment_size / fake->chunk_size;
        const struct fake_chunk *chunk = &fake->chunks[id];
        byte = chunk->data != NULL ? chunk->data[offset % fake->chunk_size] : 0;
    }
    pthread_mutex_unlock(&fake->lock);
    return byte;
}
