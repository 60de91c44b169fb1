// SPDX-License-Identifier: BSD-3-Clause
//
// What the parts of the server share: its life (server.c), listeners (server_listen.c), connections
// (server_connection.c), requests and replies (server_request.c), GET /health (server_http.c).
#ifndef CG_RPC_SERVER_INTERNAL_H
#define CG_RPC_SERVER_INTERNAL_H

#include "rpc/receiver.h"
#include "rpc/sender.h"
#include "rpc/server.h"

#define CG_SERVER_MESSAGE_MAX  (1U << 20)
#define CG_REQUEST_HEAD_INLINE 256U
#define CG_REQUEST_IOV_INLINE  4

// A request, which becomes its own reply.
struct cg_server_exchange {
    struct cg_server_request request;
    struct iovec buffer_iov; // where the request's attachment is received
    int32_t refusal;         // RPC error to answer with when the frame is through; 0: none
    const char *refusal_text;

    struct cg_send_item item;
    void (*release)(void *argument);
    void *release_argument;
    struct iovec iov_inline[CG_REQUEST_IOV_INLINE];
    struct iovec *iov_allocated;
    uint8_t *head_allocated;
    uint8_t head_inline[CG_REQUEST_HEAD_INLINE];
};

struct cg_connection {
    struct cg_server *server;
    int fd; // -1: closed
    struct cg_watch watch;
    struct cg_list node; // of server->connections
    struct cg_receiver receiver;
    struct cg_sender sender;
    struct cg_deferred work;            // send, go on reading, close
    struct cg_server_exchange *current; // the request that is being received
    unsigned inflight;                  // requests with the handlers
    unsigned busy;                      // callers on the stack that still need the memory
    int error;                          // close at the next opportunity
    bool write_watched;
    bool hung_up;
    bool read_more; // there may be unread bytes that no event will report
    bool close_when_sent;

    uint32_t last_head_length; // of the last request with an attachment
    uint32_t last_attachment_length;
    struct cg_buffer_pool *last_pool; // that its buffer came from
    unsigned guess_count;             // how many to expect at once
    unsigned guesses_made;
    struct cg_buffer *guess_buffers[CG_RECEIVER_GUESSES_MAX];
    struct iovec guess_iov[CG_RECEIVER_GUESSES_MAX];
};

struct cg_listener {
    struct cg_server *server;
    int fd;
    struct cg_watch watch;
    struct cg_timer retry; // after running out of descriptors
    struct cg_list node;
    struct cg_endpoint endpoint;
    uint64_t device; // of a unix socket's file, to remove only our own
    uint64_t inode;
};

struct cg_method_name {
    uint32_t service_length;
    uint32_t name_length;
    const char *short_service;
    uint32_t short_service_length;
};

struct cg_server {
    struct cg_reactor *reactor;
    struct cg_server_options options;
    struct cg_method_name *names; // of options.methods
    struct cg_list listeners;
    struct cg_list connections;
    unsigned exchanges; // requests that exist
    bool destroyed;
    struct cg_server_exchange *spare; // freed ones, linked by request.connection
    unsigned spare_count;
    struct cg_server_stats stats;
};

// ---- server.c
struct cg_server_exchange *cg_server_take_exchange(struct cg_server *server);
void cg_server_give_exchange(struct cg_server *server, struct cg_server_exchange *exchange);
void cg_server_free_if_done(struct cg_server *server);

// ---- server_listen.c
void cg_listener_close(struct cg_listener *listener);

// ---- server_connection.c
// Takes over `fd`, also when it fails.
int cg_connection_create(struct cg_server *server, int fd, int family);
void cg_connection_close(struct cg_connection *connection);
// Frees it when it is closed and nobody needs it any more.
void cg_connection_put(struct cg_connection *connection);
void cg_connection_queue(struct cg_connection *connection, struct cg_server_exchange *exchange);

// ---- server_request.c
extern const struct cg_receiver_ops cg_server_receiver_ops;
// The reply is sent, or will never be.
void cg_server_end_exchange(struct cg_server_exchange *exchange);
void cg_server_release_guesses(struct cg_connection *connection);

// ---- server_http.c
int cg_server_other_protocol(struct cg_receiver *receiver, const uint8_t *bytes, uint32_t length);

#endif
