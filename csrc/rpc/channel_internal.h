// SPDX-License-Identifier: BSD-3-Clause
//
// What the parts of the channel share: calls and their life (channel.c), the encoding of requests
// (channel_encode.c), the connection (channel_connection.c), replies (channel_reply.c).
#ifndef CG_RPC_CHANNEL_INTERNAL_H
#define CG_RPC_CHANNEL_INTERNAL_H

#include "rpc/channel.h"
#include "rpc/receiver.h"
#include "rpc/sender.h"

// cg_rpc_call.state
enum {
    CALL_IDLE = 0,
    CALL_QUEUED,  // in sender.queue; item.sent bytes are with the socket
    CALL_WAITING, // sent; in `waiting` in the order of sending
    CALL_ENDING,  // in `ending` with its status; `done` is due
};

enum channel_state {
    CHANNEL_IDLE = 0,
    CHANNEL_CONNECTING,
    CHANNEL_CONNECTED,
};

// A correlation id is a slot's generation << SLOT_BITS | slot.
#define SLOT_BITS 16U

struct call_slot {
    struct cg_rpc_call *call; // NULL: free
    uint64_t generation;
    uint32_t next_free; // index + 1
};

// The length of the last reply message of a method, to guess the next one's head.
#define SHAPES 16U
struct reply_shape {
    const struct cg_rpc_method *method;
    uint32_t message_length;
};

struct cg_channel {
    struct cg_reactor *reactor;
    struct cg_endpoint peer;
    struct cg_endpoint beside; // length 0: none
    uint64_t connect_timeout_ns;
    uint64_t connect_deadline_ns;

    enum channel_state state;
    int fd;
    bool write_watched;
    bool hung_up; // the peer has closed its side: read to the end
    bool destroyed;
    unsigned busy; // callers on the stack that still need the memory
    struct cg_watch watch;
    struct cg_timer connect_timer;
    struct cg_deferred flush;

    struct cg_sender sender;
    struct cg_receiver receiver;
    struct cg_list waiting;
    struct cg_list ending;
    unsigned inflight;
    unsigned receiving; // calls under way that expect an attachment

    struct call_slot *slots;
    uint32_t slot_count;
    uint32_t slot_free;

    struct reply_shape shapes[SHAPES];
};

extern const struct cg_receiver_ops cg_channel_receiver_ops;

// Encodes the head and sets up the item. 0, -EINVAL, -EMSGSIZE or -ENOMEM.
int cg_channel_encode(struct cg_rpc_call *call);

// The call with this id, or NULL.
struct cg_rpc_call *cg_channel_find(struct cg_channel *channel, int64_t correlation_id);

// Takes the call out of the channel and calls `done`.
void cg_channel_finish(struct cg_channel *channel, struct cg_rpc_call *call, int status);

// Moves the call to `ending`; cg_channel_run_ending calls `done`.
void cg_channel_end_later(struct cg_channel *channel, struct cg_rpc_call *call, int status);
void cg_channel_run_ending(struct cg_channel *channel);

// Begins to connect. Failure ends the queued calls.
void cg_channel_connect(struct cg_channel *channel);

// Closes the connection and moves the calls of which something was sent to `ending`, with `status`;
// a flush is deferred that ends them. The others stay queued for the next connection.
void cg_channel_break(struct cg_channel *channel, int status);

// Sends what is queued.
void cg_channel_flush(struct cg_channel *channel);

// Brackets around code that runs callbacks: keep frees the channel if it was destroyed meanwhile,
// and tells so by returning false.
static inline void cg_channel_enter(struct cg_channel *channel) {
    channel->busy++;
}
bool cg_channel_leave(struct cg_channel *channel);

#endif
