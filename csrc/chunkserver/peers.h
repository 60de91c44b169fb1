// SPDX-License-Identifier: BSD-3-Clause
//
// The other chunkservers, as the copysets' logs see them: one channel (rpc/channel.h) to each,
// shared by all copysets, and the methods of copygate.RaftService by which they reach this one.
//
// What is sent to a chunkserver during one iteration of the reactor leaves as one frame
// (raft_wire.h), entries' payloads from the buffers they are in. Nobody answers a frame: raft's
// replies are messages of their own. Unreliable: what cannot be queued within the bounds, and what
// is for a chunkserver that does not answer, is dropped; raft repeats it.
//
// Each chunkserver that something was ever sent to is asked for a sign of life at short intervals,
// since idle copysets are silent and depend on being told of a lost connection.
//
// One reactor thread.
#ifndef CG_CHUNKSERVER_PEERS_H
#define CG_CHUNKSERVER_PEERS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/reactor.h"
#include "chunkserver/log_entry.h"
#include "raft/raft.h"
#include "rpc/channel.h"
#include "rpc/endpoint.h"
#include "rpc/server.h"

#define CG_PEERS_MAX     1024U
#define CG_PEERS_METHODS 2U

struct cg_peers;

// Called from the reactor, never inside a call of cg_peers_*.
struct cg_peers_events {
    // A message for `group`, with message->count entries (APPEND): their CRCs are right, their
    // payloads stand in the buffer in which they came, their indexes follow message->prev_index.
    // Entries are valid inside the call; take references. message->entries is NULL. False: there is
    // no such group here.
    bool (*received)(void *context, uint64_t group, const struct cg_raft_message *message,
                     struct cg_log_entry *const *entries);
    // A chunkserver does not answer any more, or answers (again).
    void (*connection)(void *context, uint32_t chunkserver, bool up);
    // Asked with each ping: false, for a retired disk, lets others take this one for dead. Its idle
    // copysets would otherwise wait for it for ever. NULL: always true. Calls nothing here.
    bool (*takes_part)(void *context);
    void *context;
};

// `pool` is for the payloads that come in: one that clients' requests cannot exhaust, as two
// chunkservers might otherwise each wait for the other's buffers. 0 or -ENOMEM.
int cg_peers_create(struct cg_reactor *reactor, struct cg_buffer_pool *pool,
                    const struct cg_peers_events *events, struct cg_peers **out);

// The server with the methods must be gone. Calls on the channels end with -ECANCELED.
void cg_peers_destroy(struct cg_peers *peers);

// Where `chunkserver` is: `address` is "ip:port" and `endpoint` the same, parsed (which may block,
// so it is the caller's). Another address than before breaks the connection. Own address too, for
// cg_peers_address. 0, -ENAMETOOLONG, -ENOSPC beyond CG_PEERS_MAX, or -ENOMEM.
int cg_peers_set(struct cg_peers *peers, uint32_t chunkserver, const char *address,
                 const struct cg_endpoint *endpoint);

// NULL: unknown. Valid until cg_peers_set.
const char *cg_peers_address(const struct cg_peers *peers, uint32_t chunkserver);

// True if it was found not to answer.
bool cg_peers_down(const struct cg_peers *peers, uint32_t chunkserver);

// The channel for calls of the caller's own; NULL: the address is unknown. To be asked for at each
// call: it changes with the address. Calls end with -ECONNRESET when the chunkserver is found dead.
struct cg_channel *cg_peers_channel(struct cg_peers *peers, uint32_t chunkserver);

// Queues a message to the chunkserver that is in the low 32 bits of message->to. `entries`:
// message->count of them for an APPEND, references are taken. At most CG_RAFT_ENTRIES_MAX entries
// and CG_RAFT_FRAME_PAYLOAD_MAX bytes.
void cg_peers_send(struct cg_peers *peers, uint64_t group, const struct cg_raft_message *message,
                   struct cg_log_entry *const *entries);

// Fills in the methods of copygate.RaftService for a cg_server on the same reactor.
void cg_peers_methods(struct cg_peers *peers, struct cg_server_method out[CG_PEERS_METHODS]);

struct cg_peers_stats {
    uint64_t frames_sent, messages_sent, bytes_sent; // bytes: frames and payloads
    uint64_t frames_received, messages_received, bytes_received;
    uint64_t messages_dropped; // instead of sent
    uint64_t frames_refused;   // no frame of raft messages, or damaged
    uint64_t messages_strayed; // for groups that are not here
    uint32_t peers_down;       // chunkservers that do not answer
};
void cg_peers_stats(const struct cg_peers *peers, struct cg_peers_stats *out);

#endif
