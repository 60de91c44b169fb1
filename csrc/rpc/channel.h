// SPDX-License-Identifier: BSD-3-Clause
//
// The client's side of a connection: requests are pipelined, replies matched by correlation id in
// any order, user data sent from and received into the caller's own memory. Connects on the first
// call and again after a loss; a call is never sent twice (the caller decides what a retry means).
//
// All functions belong to the reactor's thread.
#ifndef CG_RPC_CHANNEL_H
#define CG_RPC_CHANNEL_H

#include <pb.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/list.h"
#include "base/reactor.h"
#include "rpc/endpoint.h"
#include "rpc/sender.h"

struct cg_channel;

struct cg_rpc_method {
    const char *service; // "curve.chunkserver.ChunkService"
    const char *name;    // "ReadChunk"
};

#define CG_RPC_HEAD_INLINE 448U

struct cg_rpc_call {
    // The caller's, set before cg_channel_call, unchanged until `done`.
    const struct cg_rpc_method *method;
    const pb_msgdesc_t *request_fields; // nanopb description and struct of the request; NULL:
    const void *request;                // `request` is `request_length` encoded bytes. Read only
    uint32_t request_length;            // inside cg_channel_call.
    const struct iovec *send_iov;       // the request's attachment
    int send_iovcnt;
    uint32_t send_length;
    const struct iovec *receive_iov; // where the reply's attachment goes
    int receive_iovcnt;
    uint32_t receive_capacity; // a longer attachment fails the call with -EMSGSIZE
    uint64_t timeout_ns;       // from cg_channel_call to `done`; never 0
    bool one_way;              // no reply is awaited: status 0 once the socket has the request
    void (*done)(struct cg_rpc_call *call);

    // The result, valid from `done` on.
    // 0: a reply came. -EREMOTEIO: the server answered with error_code. -ETIMEDOUT: no reply in
    // time; it may still take effect. -ECONNREFUSED, -EHOSTUNREACH and the like: not connected,
    // nothing was sent. -ECONNRESET: the connection broke after sending began; it may have taken
    // effect. -EPROTO: the reply made no sense (the connection is closed). -ECANCELED: cancelled or
    // channel destroyed. -ENOBUFS: CG_CHANNEL_INFLIGHT_MAX calls are under way. -EINVAL: the
    // request could not be encoded.
    int status;
    int32_t error_code;
    char error_text[160];
    const uint8_t *reply; // the response message's bytes, valid only inside `done`
    uint32_t reply_length;
    uint32_t received_length; // bytes of attachment stored

    // The channel's.
    struct cg_send_item item;
    struct cg_list node;
    struct cg_timer timer;
    struct cg_channel *channel;
    uint64_t correlation_id;
    uint32_t state;
    uint8_t *head_allocated; // when head_inline is too small
    uint8_t head_inline[CG_RPC_HEAD_INLINE];
};

#define CG_CHANNEL_INFLIGHT_MAX 65536U

struct cg_channel_options {
    uint64_t connect_timeout_ns; // 0: 1 s
    // The same server's socket for clients on its own machine (cg_endpoint_beside), tried first;
    // NULL: none. Used only if a process of root's or our own user listens there, else `peer` is.
    const struct cg_endpoint *beside;
};

int cg_channel_create(struct cg_reactor *reactor, const struct cg_endpoint *peer,
                      const struct cg_channel_options *options, struct cg_channel **out);

// Ends every call with -ECANCELED (their `done` run inside this call) and frees the channel.
// Allowed from inside a `done`.
void cg_channel_destroy(struct cg_channel *channel);

// Encodes and queues `call`; it is sent at the end of this iteration together with the others that
// were queued. `done` is always called exactly once, later (never inside this call), and only when
// the channel no longer touches the caller's buffers: a half-sent request whose time is up closes
// the connection; a half-received reply's rest is thrown away. Zero the struct before the first
// use.
void cg_channel_call(struct cg_channel *channel, struct cg_rpc_call *call);

// Ends `call` with -ECANCELED; `done` runs inside this call.
void cg_channel_cancel(struct cg_channel *channel, struct cg_rpc_call *call);

// Closes the connection if there is one and ends every call with `status` (their `done` run later):
// what was sent may have taken effect. The next call connects again.
void cg_channel_disconnect(struct cg_channel *channel, int status);

// Bytes that have ever come by this channel: whether they grow tells a busy connection from a dead
// one.
uint64_t cg_channel_received(const struct cg_channel *channel);

// Calls that are queued or wait for a reply.
unsigned cg_channel_inflight(const struct cg_channel *channel);

#endif
