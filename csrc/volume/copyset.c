// SPDX-License-Identifier: BSD-3-Clause
//
// Where copysets live. Their peers come from the metadata server, with a segment or when they are
// asked for because no leader is found among those that are known.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "volume/client.h"
#include "volume/volume.h"

#define PEERS_TIMEOUT_NS (1 * CG_NS_PER_S) // the old ones may come back meanwhile
#define PEERS_PAUSE_NS   (100 * CG_NS_PER_MS)

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
    cg_list_push_back(head, &copyset->node);
    return copyset;
}

// ---- The peers

static bool same_peers(const struct vol_copyset *copyset, const struct vol_peer *peers,
                       unsigned count) {
    if (copyset->peer_count != count) {
        return false;
    }
    for (unsigned i = 0; i < count; i++) {
        if (copyset->peers[i].server != peers[i].server ||
            strcmp(copyset->peers[i].internal, peers[i].internal) != 0) {
            return false;
        }
    }
    return true;
}

static void set_peers(struct vol_copyset *copyset, const struct vol_peer *peers, unsigned count) {
    if (same_peers(copyset, peers, count)) {
        return;
    }
    // A leader that was known stays if it is still a peer.
    const struct vol_server *leader = vol_copyset_leader(copyset);
    memcpy(copyset->peers, peers, sizeof(peers[0]) * count);
    copyset->peer_count = count;
    copyset->leader = -1;
    for (unsigned i = 0; i < count; i++) {
        if (peers[i].server == leader) {
            copyset->leader = (int)i;
        }
    }
    vol_copyset_ask_anew(copyset);
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
        set_peers(copyset, peers, peer_count);
    }
    return 0;
}

static void on_peers(struct cg_mds_call *call, int result) {
    struct vol_copyset *copyset = CG_CONTAINER_OF(call, struct vol_copyset, peers_call);
    if (result == 0 && call->status == 0) {
        // Without memory it is asked for again.
        (void)vol_copyset_take_peers(copyset->volume, copyset->pool, call->servers,
                                     call->server_count);
    } else if (result == 0) {
        cg_log(CG_LOG_WARNING,
               "the metadata server does not know copyset %u of pool %u (status %d)", copyset->id,
               copyset->pool, call->status);
    }
    cg_mds_call_free(call);
}

void vol_copyset_fetch_peers(struct vol_copyset *copyset) {
    struct cg_mds_call *call = &copyset->peers_call;
    uint64_t now = cg_reactor_now(copyset->volume->reactor);
    if (call->active || now - copyset->peers_asked_ns < PEERS_PAUSE_NS) {
        return;
    }
    copyset->peers_asked_ns = now;
    call->mds = &copyset->volume->client->mds;
    call->op = CG_MDS_PEERS;
    call->pool = copyset->pool;
    call->copysets = &copyset->id;
    call->copyset_count = 1;
    call->deadline_ns = now + PEERS_TIMEOUT_NS;
    call->done = on_peers;
    cg_mds_call_start(call);
}

// ---- The end

void vol_copysets_stop(struct cg_volume *volume) {
    for (unsigned i = 0; i < VOL_COPYSET_BUCKETS; i++) {
        CG_LIST_FOREACH (node, &volume->copysets[i]) {
            struct vol_copyset *copyset = CG_CONTAINER_OF(node, struct vol_copyset, node);
            cg_mds_call_cancel(&copyset->peers_call);
            cg_mds_call_free(&copyset->peers_call);
            vol_copyset_stop_looking(copyset);
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
