// SPDX-License-Identifier: BSD-3-Clause
//
// The server's side: accepts connections, parses requests, receives attachments straight into the
// buffer that the method chooses, and sends replies in whatever order they are ready, several per
// system call. It also answers HTTP GET /health on the same port, which libcurve probes, and GET
// /metrics.
//
// Bounds: connections, requests in flight per connection (reading pauses), bytes waiting to be sent
// per connection (reading pauses until the peer reads), frame sizes. A frame that does not parse
// closes its connection; an unknown service or method gets RPC error 1002, an unparsable request
// 1003.
//
// All functions belong to the reactor's thread.
#ifndef CG_RPC_SERVER_H
#define CG_RPC_SERVER_H

#include <pb.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/buffer.h"
#include "base/list.h"
#include "base/reactor.h"
#include "rpc/endpoint.h"

struct cg_server;
struct cg_server_request;

// brpc's error numbers that peers know.
enum {
    CG_RPC_ENOSERVICE = 1001,
    CG_RPC_ENOMETHOD = 1002,
    CG_RPC_EREQUEST = 1003,
    CG_RPC_EINTERNAL = 2001,
    CG_RPC_ERESPONSE = 2002,
};

struct cg_server_method {
    const char *service; // full name; the name after the last dot is accepted too
    const char *name;
    // Called when meta and message are in, before the attachment is read: may parse the message
    // (keep the result in request->scratch) and set request->buffer (a reference that the request
    // owns) and request->buffer_offset, where attachment_length bytes will be stored. NULL, or
    // leaving request->buffer NULL: the server allocates one from the pool. Returns 0, or a
    // positive RPC error (the attachment is skipped and the error answered; `handle` is not
    // called).
    int (*prepare)(struct cg_server_request *request);
    // The request is whole. Must lead to exactly one cg_server_reply, cg_server_reply_error or
    // cg_server_end, now or later. `message` is valid only inside this call.
    void (*handle)(struct cg_server_request *request);
    void *context;
    struct cg_buffer_pool *pool; // for its attachments; NULL: the server's
};

#define CG_SERVER_SCRATCH 512U

struct cg_server_request {
    const struct cg_server_method *method;
    struct cg_server *server;
    const uint8_t *message;
    uint32_t message_length;
    struct cg_buffer
        *buffer; // the attachment's; NULL if there is none. Take a reference to keep it.
    uint32_t buffer_offset;
    uint32_t attachment_length;
    bool overloaded;      // the pool was exhausted: the attachment was skipped; answer OVERLOAD
    uint64_t received_ns; // monotonic
    void *connection;     // server's
    int64_t correlation_id;
    struct cg_list node; // the handler's while it owns the request, linked by nobody else
    _Alignas(16) uint8_t scratch[CG_SERVER_SCRATCH]; // the method's own
};

struct cg_server_options {
    const struct cg_server_method *methods; // valid while the server lives
    unsigned method_count;
    struct cg_buffer_pool *pool; // for attachments
    unsigned connections_max;    // 0: 1024
    unsigned inflight_max;       // per connection; 0: 512
    uint32_t send_queue_max;     // bytes per connection; 0: 32 MiB
    // Answers GET /health: a line for 200, or NULL for 503. May be NULL: always "OK\n".
    const char *(*health)(void *context);
    void *health_context;
    // Answers GET /metrics: an allocated text, which the server frees, or NULL for 503. May be
    // NULL: there are none.
    char *(*metrics)(void *context);
    void *metrics_context;
};

int cg_server_create(struct cg_reactor *reactor, const struct cg_server_options *options,
                     struct cg_server **out);

// Listens on one more endpoint; a port of 0 picks one. A unix socket file that nobody listens on is
// replaced; one that is in use gives -EADDRINUSE. `bound` (may be NULL) receives the actual
// address.
int cg_server_listen(struct cg_server *server, const struct cg_endpoint *endpoint,
                     struct cg_endpoint *bound);

// Closes listeners and connections and frees the server. Requests that were not answered yet must
// be answered afterwards all the same (the replies go nowhere); the server is freed with the last
// one.
void cg_server_destroy(struct cg_server *server);

// Answers and ends `request`. `response` is encoded inside the call. The attachment (iov may be
// NULL) is sent from where it is; `release(argument)` is called once when it is no longer needed,
// also when the connection is gone (may be NULL). Drops the request's own buffer reference.
void cg_server_reply(struct cg_server_request *request, const pb_msgdesc_t *fields,
                     const void *response, const struct iovec *iov, int iovcnt,
                     void (*release)(void *argument), void *argument);

// As cg_server_reply with a response that is encoded already: `length` bytes, read only inside the
// call.
void cg_server_reply_encoded(struct cg_server_request *request, const void *response,
                             uint32_t length, const struct iovec *iov, int iovcnt,
                             void (*release)(void *argument), void *argument);

// Answers with an RPC error (code > 0) and ends `request`.
void cg_server_reply_error(struct cg_server_request *request, int32_t code, const char *text);

// Ends `request` without an answer: nobody awaits one (cg_rpc_call.one_way).
void cg_server_end(struct cg_server_request *request);

struct cg_server_stats {
    uint64_t requests;
    uint64_t bad_frames;
    uint64_t bytes_in;
    uint64_t bytes_out;
    uint32_t connections;
};
void cg_server_stats(const struct cg_server *server, struct cg_server_stats *out);

#endif
