// SPDX-License-Identifier: BSD-3-Clause
//
// Where copysets live and who leads them. The peers come from the metadata server; the leader is
// asked for at all peers but the one that did not do, in parallel, and the first answer counts.
// After five rounds without one the peers are asked for again. It goes on only while a request
// waits.
#include <assert.h>
#include <errno.h>
#include <pb_decode.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "gateway/proto/cli2.pb.h"
#include "volume/client.h"
#include "volume/volume.h"

// CurveBS's constants (reference: client rules).
#define GET_LEADER_TIMEOUT_NS (500 * CG_NS_PER_MS)
#define GET_LEADER_PAUSE_NS   (100 * CG_NS_PER_MS)
#define GET_LEADER_ROUNDS     5U
#define PEERS_TIMEOUT_NS      (1 * CG_NS_PER_S) // the old ones may come back meanwhile

static const struct cg_rpc_method get_leader = {"curve.chunkserver.CliService2", "GetLeader"};

struct asked_peer {
    struct cg_rpc_call call;
    struct cg_channel *channel;
    struct vol_leader_query *query;
    bool in_flight;
};

// One round of asking.
struct vol_leader_query {
    struct vol_copyset *copyset;
    unsigned pending;
    bool settled; // answered, or given up: what still comes is not heard
    int found;    // the peer's index; -1: none; -2: a leader that is not among the peers
    struct asked_peer asked[CG_MDS_PEERS_MAX];
};

static void look(struct vol_copyset *copyset);
static void fetch_peers(struct vol_copyset *copyset);

// ---- Chunkservers

struct vol_server *vol_server_get(struct cg_client *client, const char *address) {
    CG_LIST_FOREACH (node, &client->servers) {
        struct vol_server *server = CG_CONTAINER_OF(node, struct vol_server, node);
        if (strcmp(server->address, address) == 0) {
            return server;
        }
    }
    struct cg_endpoint endpoint;
    if (client->server_count == VOL_SERVERS_MAX || cg_endpoint_parse(address, &endpoint) != 0) {
        return NULL;
    }
    struct vol_server *server = calloc(1, sizeof(*server));
    if (server == NULL) {
        return NULL;
    }
    struct cg_endpoint beside;
    cg_endpoint_beside(address, &beside);
    struct cg_channel_options options = {.beside = &beside};
    if (cg_channel_create(client->reactor, &endpoint, &options, &server->channel) != 0) {
        free(server);
        return NULL;
    }
    snprintf(server->address, sizeof(server->address), "%s", address);
    cg_list_push_back(&client->servers, &server->node);
    client->server_count++;
    return server;
}

// ---- The table

static struct cg_list *bucket(struct cg_volume *volume, uint32_t pool, uint32_t id) {
    uint32_t hash = (pool * 31 + id) * 2654435761U;
    return &volume->copysets[(hash >> 16) % VOL_COPYSET_BUCKETS];
}

struct vol_copyset *vol_copyset_get(struct cg_volume *volume, uint32_t pool, uint32_t id) {
    struct cg_list *head = bucket(volume, pool, id);
    CG_LIST_FOREACH (node, head) {
        struct vol_copyset *copyset = CG_CONTAINER_OF(node, struct vol_copyset, node);
        if (copyset->pool == pool && copyset->id == id) {
            return copyset;
        }
    }
    struct vol_copyset *copyset = calloc(1, sizeof(*copyset));
    if (copyset == NULL) {
        return NULL;
    }
    cg_list_init(&copyset->waiting);
    copyset->volume = volume;
    copyset->pool = pool;
    copyset->id = id;
    copyset->leader = -1;
    copyset->last_leader = -1;
    cg_list_push_back(head, &copyset->node);
    return copyset;
}

int vol_copyset_take_peers(struct cg_volume *volume, uint32_t pool,
                           const struct cg_mds_server *servers, uint32_t count) {
    uint32_t first = 0;
    while (first < count) {
        uint32_t id = servers[first].copyset_id;
        struct vol_copyset *copyset = vol_copyset_get(volume, pool, id);
        if (copyset == NULL) {
            return -ENOMEM;
        }
        struct vol_peer peers[CG_MDS_PEERS_MAX];
        unsigned peer_count = 0;
        uint32_t next = first;
        for (; next < count && servers[next].copyset_id == id; next++) {
            struct vol_server *server = vol_server_get(volume->client, servers[next].external);
            bool known = false;
            for (unsigned i = 0; i < peer_count; i++) {
                known = known || strcmp(peers[i].internal, servers[next].internal) == 0;
            }
            if (server != NULL && !known && peer_count < CG_MDS_PEERS_MAX) {
                memcpy(peers[peer_count].internal, servers[next].internal,
                       sizeof(peers[peer_count].internal));
                peers[peer_count++].server = server;
            }
        }
        first = next;
        // A leader that was known stays if it is still a peer.
        struct vol_server *leader = vol_copyset_leader(copyset);
        memcpy(copyset->peers, peers, sizeof(peers[0]) * peer_count);
        copyset->peer_count = peer_count;
        copyset->leader = -1;
        copyset->last_leader = -1;
        for (unsigned i = 0; i < peer_count; i++) {
            if (peers[i].server == leader) {
                copyset->leader = (int)i;
            }
        }
    }
    return 0;
}

// ---- The leader

static void found_leader(struct vol_copyset *copyset, int index) {
    copyset->looking = false;
    copyset->rounds = 0;
    copyset->leader = index;
    copyset->last_leader = index;
    struct cg_list ready;
    cg_list_init(&ready);
    cg_list_splice_back(&ready, &copyset->waiting);
    while (!cg_list_empty(&ready)) {
        vol_request_routed(CG_CONTAINER_OF(ready.next, struct vol_request, node));
    }
}

static void on_round_timer(struct cg_timer *timer) {
    look(CG_CONTAINER_OF(timer, struct vol_copyset, timer));
}

static void pause_round(struct vol_copyset *copyset) {
    copyset->timer.fire = on_round_timer;
    uint64_t at = cg_reactor_now(copyset->volume->reactor) + GET_LEADER_PAUSE_NS;
    if (cg_timer_arm(copyset->volume->reactor, &copyset->timer, at) != 0) {
        copyset->looking = false; // the requests end by their deadlines
    }
}

static void end_query(struct vol_leader_query *query) {
    struct vol_copyset *copyset = query->copyset;
    query->settled = true;
    for (unsigned i = 0; i < CG_MDS_PEERS_MAX; i++) {
        if (query->asked[i].in_flight) {
            cg_channel_cancel(query->asked[i].channel, &query->asked[i].call);
        }
    }
    assert(query->pending == 0);
    int found = query->found;
    free(query);
    copyset->query = NULL;
    if (found >= 0) {
        found_leader(copyset, found);
        return;
    }
    copyset->last_leader = -1; // ask all of them the next time
    if (found == -2 || ++copyset->rounds >= GET_LEADER_ROUNDS) {
        fetch_peers(copyset);
    } else {
        pause_round(copyset);
    }
}

// "ip:port:index" -> which peer that is; -2: none of them.
static int peer_index(const struct vol_copyset *copyset, const char *text) {
    const char *colon = strrchr(text, ':');
    size_t length = colon != NULL ? (size_t)(colon - text) : strlen(text);
    for (unsigned i = 0; i < copyset->peer_count; i++) {
        const struct vol_peer *peer = &copyset->peers[i];
        if ((strlen(peer->internal) == length && strncmp(peer->internal, text, length) == 0) ||
            (strlen(peer->server->address) == length &&
             strncmp(peer->server->address, text, length) == 0)) {
            return (int)i;
        }
    }
    return -2;
}

static void on_leader_reply(struct cg_rpc_call *call) {
    struct asked_peer *peer = CG_CONTAINER_OF(call, struct asked_peer, call);
    struct vol_leader_query *query = peer->query;
    peer->in_flight = false;
    query->pending--;
    if (query->settled) {
        return;
    }
    curve_chunkserver_GetLeaderResponse2 m = curve_chunkserver_GetLeaderResponse2_init_zero;
    if (call->status == 0) {
        pb_istream_t stream = pb_istream_from_buffer(call->reply, call->reply_length);
        if (pb_decode(&stream, curve_chunkserver_GetLeaderResponse2_fields, &m) &&
            m.leader.has_address) {
            query->found = peer_index(query->copyset, m.leader.address);
            end_query(query);
            return;
        }
    }
    if (query->pending == 0) {
        end_query(query);
    }
}

static void ask_peers(struct vol_copyset *copyset) {
    struct vol_leader_query *query = calloc(1, sizeof(*query));
    if (query == NULL) {
        pause_round(copyset);
        return;
    }
    query->copyset = copyset;
    query->found = -1;
    copyset->query = query;
    if (copyset->last_leader >= (int)copyset->peer_count) {
        copyset->last_leader = -1;
    }
    curve_chunkserver_GetLeaderRequest2 m = curve_chunkserver_GetLeaderRequest2_init_zero;
    m.logicPoolId = copyset->pool;
    m.copysetId = copyset->id;
    for (unsigned i = 0; i < copyset->peer_count; i++) {
        if ((int)i == copyset->last_leader) {
            continue;
        }
        struct cg_rpc_call *call = &query->asked[i].call;
        call->method = &get_leader;
        call->request_fields = curve_chunkserver_GetLeaderRequest2_fields;
        call->request = &m;
        call->timeout_ns = GET_LEADER_TIMEOUT_NS;
        call->done = on_leader_reply;
        query->asked[i].query = query;
        query->asked[i].channel = copyset->peers[i].server->channel;
        query->asked[i].in_flight = true;
        query->pending++;
        cg_channel_call(query->asked[i].channel, call);
    }
    assert(query->pending > 0);
}

static void look(struct vol_copyset *copyset) {
    assert(copyset->looking && copyset->query == NULL);
    if (cg_list_empty(&copyset->waiting)) {
        copyset->looking = false;
        return;
    }
    if (copyset->peer_count == 0) {
        fetch_peers(copyset);
    } else if (copyset->peer_count > 1) {
        ask_peers(copyset);
    } else if (copyset->suspects >= GET_LEADER_ROUNDS) {
        copyset->suspects = 0;
        fetch_peers(copyset);
    } else {
        found_leader(copyset, 0); // the only replica: nobody else to ask
    }
}

void vol_copyset_find_leader(struct vol_copyset *copyset, const struct vol_server *suspect) {
    if (suspect != NULL) {
        copyset->suspects++;
    }
    if (copyset->looking) {
        return;
    }
    copyset->looking = true;
    copyset->leader = -1;
    // Not from inside: the request that asks may be in the middle of its own step.
    copyset->timer.fire = on_round_timer;
    if (cg_timer_arm(copyset->volume->reactor, &copyset->timer,
                     cg_reactor_now(copyset->volume->reactor)) != 0) {
        copyset->looking = false;
    }
}

// ---- The peers

static void on_peers(struct cg_mds_call *call, int result) {
    struct vol_copyset *copyset = CG_CONTAINER_OF(call, struct vol_copyset, peers_call);
    copyset->rounds = 0;
    if (result == 0 && call->status == 0) {
        result = vol_copyset_take_peers(copyset->volume, copyset->pool, call->servers,
                                        call->server_count);
    } else if (result == 0) {
        cg_log(CG_LOG_WARNING,
               "the metadata server does not know copyset %u of pool %u (status %d)", copyset->id,
               copyset->pool, call->status);
    }
    cg_mds_call_free(call);
    pause_round(copyset);
}

static void fetch_peers(struct vol_copyset *copyset) {
    if (cg_list_empty(&copyset->waiting)) {
        copyset->looking = false;
        return;
    }
    struct cg_mds_call *call = &copyset->peers_call;
    call->mds = &copyset->volume->client->mds;
    call->op = CG_MDS_PEERS;
    call->pool = copyset->pool;
    call->copysets = &copyset->id;
    call->copyset_count = 1;
    call->deadline_ns = cg_reactor_now(copyset->volume->reactor) + PEERS_TIMEOUT_NS;
    call->done = on_peers;
    cg_mds_call_start(call);
}

// ---- The end

static void stop_one(struct vol_copyset *copyset) {
    cg_timer_disarm(&copyset->timer);
    cg_mds_call_cancel(&copyset->peers_call);
    cg_mds_call_free(&copyset->peers_call);
    struct vol_leader_query *query = copyset->query;
    if (query != NULL) {
        query->settled = true;
        for (unsigned i = 0; i < CG_MDS_PEERS_MAX; i++) {
            if (query->asked[i].in_flight) {
                cg_channel_cancel(query->asked[i].channel, &query->asked[i].call);
            }
        }
        free(query);
        copyset->query = NULL;
    }
    copyset->looking = false;
}

void vol_copysets_stop(struct cg_volume *volume) {
    for (unsigned i = 0; i < VOL_COPYSET_BUCKETS; i++) {
        CG_LIST_FOREACH (node, &volume->copysets[i]) {
            stop_one(CG_CONTAINER_OF(node, struct vol_copyset, node));
        }
    }
}

void vol_copysets_free(struct cg_volume *volume) {
    for (unsigned i = 0; i < VOL_COPYSET_BUCKETS; i++) {
        struct cg_list *node;
        while ((node = cg_list_pop_front(&volume->copysets[i])) != NULL) {
            free(CG_CONTAINER_OF(node, struct vol_copyset, node));
        }
    }
}
