// SPDX-License-Identifier: BSD-3-Clause
//
// Where the other chunkservers are, and whether they answer.
#include "chunkserver/peers.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "chunkserver/peers_internal.h"

// A dead chunkserver is noticed after at most their sum, about as fast as by an election timeout.
#define PING_INTERVAL_NS (150 * CG_NS_PER_MS)
#define PING_TIMEOUT_NS  (450 * CG_NS_PER_MS)
// A chunkserver that is heard of but answers no ping: the connection to it must be clogged.
#define SILENT_PINGS_MAX 4U
#define BACKOFF_FIRST_NS (50 * CG_NS_PER_MS)
#define BACKOFF_MAX_NS   (500 * CG_NS_PER_MS)

static const struct cg_rpc_method ping_method = {PEERS_SERVICE, "Ping"};

struct peer *peers_find(const struct cg_peers *peers, uint32_t chunkserver) {
    for (uint32_t i = 0; i < peers->count; i++) {
        if (peers->peer[i]->id == chunkserver) {
            return peers->peer[i];
        }
    }
    return NULL;
}

// ---- Signs of life

static void set_state(struct peer *peer, enum peer_state state, int error) {
    struct cg_peers *peers = peer->peers;
    enum peer_state before = peer->state;
    if (before == state || peers->destroyed) {
        return;
    }
    peer->state = state;
    if (state == PEER_UP) {
        cg_log(CG_LOG_INFO, "chunkserver %u at %s answers", peer->id, peer->address);
    } else {
        cg_log(CG_LOG_WARNING, "chunkserver %u at %s does not answer: %s", peer->id, peer->address,
               strerror(error));
    }
    if (state == PEER_UP || before == PEER_UP) {
        peers->events.connection(peers->events.context, peer->id, state == PEER_UP);
    }
}

void peers_lost(struct peer *peer, int error) {
    uint64_t now = cg_reactor_now(peer->peers->reactor);
    if (peer->peers->destroyed || peer->retry_ns > now) {
        return; // known: all that was under way ends
    }
    peer->backoff_ns = peer->backoff_ns == 0 ? BACKOFF_FIRST_NS : peer->backoff_ns * 2;
    peer->backoff_ns = peer->backoff_ns < BACKOFF_MAX_NS ? peer->backoff_ns : BACKOFF_MAX_NS;
    peer->retry_ns = now + peer->backoff_ns;
    peer->silent_pings = 0;
    peers_drop_open(peer);
    cg_channel_disconnect(peer->channel, -ECONNRESET);
    set_state(peer, PEER_DOWN, error);
}

// Answers to other calls have come while the ping waited.
static bool is_busy(const struct peer *peer) {
    return cg_channel_received(peer->channel) != peer->received;
}

static void ping_done(struct cg_rpc_call *call) {
    struct peer *peer = CG_CONTAINER_OF(call, struct peer, ping);
    uint64_t now = cg_reactor_now(peer->peers->reactor);
    peer->pinging = false;
    // An answer that says "no" (another version of us, that has no pings) is one.
    if (call->status == 0 || call->status == -EREMOTEIO) {
        peer->heard_ns = now;
        peer->backoff_ns = 0;
        peer->silent_pings = 0;
        set_state(peer, PEER_UP, 0);
    } else if (call->status == -ETIMEDOUT && is_busy(peer)) {
        peer->silent_pings = 0;
    } else if (call->status != -ETIMEDOUT || now - peer->heard_ns > PING_TIMEOUT_NS ||
               ++peer->silent_pings == SILENT_PINGS_MAX) {
        peers_lost(peer, -call->status);
    }
}

static void ping(struct peer *peer) {
    if (peer->pinging || peer->channel == NULL ||
        peer->retry_ns > cg_reactor_now(peer->peers->reactor)) {
        return;
    }
    peer->pinging = true;
    peer->received = cg_channel_received(peer->channel);
    peer->ping.method = &ping_method;
    peer->ping.timeout_ns = PING_TIMEOUT_NS;
    peer->ping.done = ping_done;
    cg_channel_call(peer->channel, &peer->ping);
}

static void tick(struct cg_timer *timer) {
    struct cg_peers *peers = CG_CONTAINER_OF(timer, struct cg_peers, tick);
    for (uint32_t i = 0; i < peers->count; i++) {
        ping(peers->peer[i]);
    }
    // Cannot fail: the place in the heap that it has just left is free.
    (void)cg_timer_arm(peers->reactor, timer, cg_reactor_now(peers->reactor) + PING_INTERVAL_NS);
}

void peers_heard(struct cg_peers *peers, uint32_t chunkserver) {
    struct peer *peer = peers_find(peers, chunkserver);
    if (peer == NULL) {
        return;
    }
    uint64_t now = cg_reactor_now(peers->reactor);
    peer->heard_ns = now;
    if (peer->retry_ns > now && peer->backoff_ns > BACKOFF_FIRST_NS && peer->channel != NULL) {
        // It is there again: connected to at once, not when it would be its turn. Unless it was
        // just tried: it may be heard of often, and not be reached all the same.
        peer->retry_ns = now;
        peer->backoff_ns = 0;
        ping(peer);
    }
}

// ---- Life

int cg_peers_create(struct cg_reactor *reactor, struct cg_buffer_pool *pool,
                    const struct cg_peers_events *events, struct cg_peers **out) {
    assert(events->received != NULL && events->connection != NULL);
    struct cg_peers *peers = calloc(1, sizeof(*peers));
    if (peers == NULL) {
        return -ENOMEM;
    }
    peers->reactor = reactor;
    peers->pool = pool;
    peers->events = *events;
    peers->tick.fire = tick;
    peers->flush.run = peers_flush;
    cg_list_init(&peers->flush.node);
    cg_list_init(&peers->sending);
    *out = peers;
    return 0;
}

void cg_peers_destroy(struct cg_peers *peers) {
    if (peers == NULL) {
        return;
    }
    peers->destroyed = true;
    cg_timer_disarm(&peers->tick);
    for (uint32_t i = 0; i < peers->count; i++) {
        struct peer *peer = peers->peer[i];
        peers_drop_open(peer);
        cg_channel_destroy(peer->channel);
        free(peer);
    }
    cg_reactor_undefer(&peers->flush);
    peers_free_frames(peers);
    free(peers->peer);
    free(peers);
}

static int add_peer(struct cg_peers *peers, uint32_t chunkserver, struct peer **out) {
    if (peers->count == CG_PEERS_MAX) {
        return -ENOSPC;
    }
    if (peers->count == peers->capacity) {
        uint32_t capacity = peers->capacity == 0 ? 8 : 2 * peers->capacity;
        struct peer **grown = realloc(peers->peer, capacity * sizeof(struct peer *));
        if (grown == NULL) {
            return -ENOMEM;
        }
        peers->peer = grown;
        peers->capacity = capacity;
    }
    struct peer *peer = calloc(1, sizeof(*peer));
    if (peer == NULL) {
        return -ENOMEM;
    }
    peer->peers = peers;
    peer->id = chunkserver;
    cg_list_init(&peer->node);
    peers->peer[peers->count++] = peer;
    *out = peer;
    return 0;
}

// Calls under way end, with them everything that is known of the connection.
static void move(struct peer *peer) {
    struct cg_channel *channel = peer->channel;
    if (channel == NULL) {
        return;
    }
    peers_drop_open(peer);
    peer->channel = NULL;
    peer->retry_ns = UINT64_MAX; // what ends now is not the new address' fault
    cg_channel_destroy(channel);
    peer->retry_ns = 0;
    peer->backoff_ns = 0;
    peer->silent_pings = 0;
}

int cg_peers_set(struct cg_peers *peers, uint32_t chunkserver, const char *address,
                 const struct cg_endpoint *endpoint) {
    if (strlen(address) >= CG_ENDPOINT_TEXT_MAX) {
        return -ENAMETOOLONG;
    }
    struct peer *peer = peers_find(peers, chunkserver);
    if (peer == NULL) {
        int result = add_peer(peers, chunkserver, &peer);
        if (result < 0) {
            return result;
        }
    } else if (strcmp(peer->address, address) == 0 &&
               cg_endpoint_equal(&peer->endpoint, endpoint)) {
        return 0;
    }
    bool used = peer->channel != NULL;
    move(peer);
    strcpy(peer->address, address);
    peer->endpoint = *endpoint;
    if (used && peers_open_channel(peer)) {
        ping(peer);
    }
    return 0;
}

const char *cg_peers_address(const struct cg_peers *peers, uint32_t chunkserver) {
    const struct peer *peer = peers_find(peers, chunkserver);
    return peer != NULL ? peer->address : NULL;
}

bool cg_peers_down(const struct cg_peers *peers, uint32_t chunkserver) {
    const struct peer *peer = peers_find(peers, chunkserver);
    return peer != NULL && peer->state == PEER_DOWN;
}

bool peers_open_channel(struct peer *peer) {
    struct cg_peers *peers = peer->peers;
    if (peer->channel != NULL) {
        return true;
    }
    struct cg_endpoint beside;
    cg_endpoint_beside(peer->address, &beside);
    struct cg_channel_options options = {.beside = &beside};
    if (!cg_timer_armed(&peers->tick) &&
        cg_timer_arm(peers->reactor, &peers->tick, cg_reactor_now(peers->reactor)) < 0) {
        return false;
    }
    return cg_channel_create(peers->reactor, &peer->endpoint, &options, &peer->channel) == 0;
}

struct cg_channel *cg_peers_channel(struct cg_peers *peers, uint32_t chunkserver) {
    struct peer *peer = peers_find(peers, chunkserver);
    return peer != NULL && peers_open_channel(peer) ? peer->channel : NULL;
}

void cg_peers_stats(const struct cg_peers *peers, struct cg_peers_stats *out) {
    *out = peers->stats;
    for (uint32_t i = 0; i < peers->count; i++) {
        out->peers_down += peers->peer[i]->state == PEER_DOWN;
    }
}
