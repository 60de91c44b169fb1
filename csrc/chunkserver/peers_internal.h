// SPDX-License-Identifier: BSD-3-Clause
//
// What the parts of the peers share: addresses, connections and signs of life (peers.c), frames on
// their way out (peers_send.c), the server's methods (peers_receive.c).
#ifndef CG_CHUNKSERVER_PEERS_INTERNAL_H
#define CG_CHUNKSERVER_PEERS_INTERNAL_H

#include "base/clock.h"
#include "chunkserver/peers.h"
#include "chunkserver/raft_wire.h"

#define PEERS_SERVICE "copygate.RaftService"

// Frames that the socket has not taken yet; meanwhile messages gather in the open one.
#define PEERS_FRAMES_IN_FLIGHT 8U
// A frame that holds this much is closed; only a single message may be longer.
#define PEERS_FRAME_GOAL (2U << 20)

struct peers_frame {
    struct cg_rpc_call call;
    struct peer *peer;
    struct peers_frame *next_free;
    uint8_t *bytes;
    uint32_t length;
    uint32_t capacity;
    uint32_t payload_length;
    uint32_t message_count;
    struct cg_log_entry **entries;
    struct iovec *iov; // as many as entries at most
    uint32_t entry_count;
    uint32_t entry_capacity;
    uint32_t iov_count;
};

enum peer_state {
    PEER_UNKNOWN, // nothing was heard of it yet
    PEER_UP,
    PEER_DOWN,
};

struct peer {
    struct cg_peers *peers;
    uint32_t id;
    char address[CG_ENDPOINT_TEXT_MAX];
    struct cg_endpoint endpoint;
    struct cg_channel *channel; // NULL: nothing was sent yet
    enum peer_state state;
    uint64_t heard_ns; // when anything came from it
    uint64_t retry_ns; // nothing is sent before
    uint64_t backoff_ns;
    unsigned silent_pings; // in a row, while something was heard
    uint64_t received;     // bytes that had come by the channel when the last ping was sent
    bool pinging;
    struct cg_rpc_call ping;
    struct peers_frame *open; // of this iteration; NULL: none
    unsigned frames_in_flight;
    struct cg_list node; // of peers->sending, while a frame is open
};

struct cg_peers {
    struct cg_reactor *reactor;
    struct cg_buffer_pool *pool;
    struct cg_peers_events events;
    struct peer **peer;
    uint32_t count;
    uint32_t capacity;
    struct cg_timer tick;
    bool destroyed;
    struct cg_list sending;
    struct cg_deferred flush;
    struct peers_frame *free_frames;
    unsigned free_count;
    struct cg_peers_stats stats;
    uint64_t log_ns;                                    // when something bad was last told
    uint64_t log_suppressed;                            // not told since
    struct cg_log_entry *received[CG_RAFT_ENTRIES_MAX]; // of the message being delivered
    uint32_t crcs[CG_WAL_PAYLOAD_BLOCKS_MAX];
};

// ---- peers.c
struct peer *peers_find(const struct cg_peers *peers, uint32_t chunkserver);
// Makes sure that there is a channel. False: out of memory.
bool peers_open_channel(struct peer *peer);
// The connection is lost, or there is none: `error` is a positive errno.
void peers_lost(struct peer *peer, int error);
// Something has come from the chunkserver.
void peers_heard(struct cg_peers *peers, uint32_t chunkserver);

// ---- peers_send.c
void peers_flush(struct cg_deferred *deferred);
void peers_drop_open(struct peer *peer);
void peers_free_frames(struct cg_peers *peers);

#endif
