// SPDX-License-Identifier: BSD-3-Clause
//
// Which peer leads a copyset. It is told by a redirect, or asked for: all peers in parallel, and
// the first answer to be believed counts. A server that has just said that it does not lead, or
// that is away, is believed to lead only when it says so itself: the others may not have noticed
// yet. It goes on only while a request waits for it or for an answer.
#include <assert.h>
#include <errno.h>
#include <pb_decode.h>
#include <stdlib.h>
#include <string.h>

#include "gateway/proto/cli2.pb.h"
#include "volume/volume.h"

// CurveBS's constants (reference: client rules).
#define GET_LEADER_TIMEOUT_NS (500 * CG_NS_PER_MS)
#define CURVEBS_ROUND_NS      (100 * CG_NS_PER_MS)
#define CURVEBS_ROUNDS        5U // then the peers are asked for
// Our own elect a leader within a second.
#define ROUND_FIRST_NS (10 * CG_NS_PER_MS)
#define ROUND_MAX_NS   (50 * CG_NS_PER_MS)
#define ROUNDS         20U
#define DOUBT_ROUNDS   4U
#define LONELY_TRIES   5U // of a copyset's only replica, before the peers are asked for

static const struct cg_rpc_method get_leader = {"curve.chunkserver.CliService2", "GetLeader"};

struct asked_peer {
    struct cg_rpc_call call;
    struct vol_leader_query *query;
    struct vol_server *server;
    uint64_t sent_ns;
    bool in_flight;
};

// The questions under way, one for each peer.
struct vol_leader_query {
    struct vol_copyset *copyset;
    bool over; // what still comes is not heard
    struct asked_peer asked[CG_MDS_PEERS_MAX];
};

static void on_time(struct cg_timer *timer);

static uint64_t now_of(const struct vol_copyset *copyset) {
    return cg_reactor_now(copyset->volume->reactor);
}

static void step_at(struct vol_copyset *copyset, uint64_t at) {
    copyset->looking = true;
    copyset->timer.fire = on_time;
    if (cg_timer_arm(copyset->volume->reactor, &copyset->timer, at) != 0) {
        vol_copyset_stop_looking(copyset); // the requests end by their deadlines
    }
}

static void end_query(struct vol_copyset *copyset) {
    struct vol_leader_query *query = copyset->query;
    if (query == NULL) {
        return;
    }
    copyset->query = NULL;
    query->over = true;
    for (unsigned i = 0; i < CG_MDS_PEERS_MAX; i++) {
        struct asked_peer *peer = &query->asked[i];
        if (peer->in_flight) {
            cg_channel_cancel(peer->server->channel, &peer->call);
        }
    }
    free(query);
}

void vol_copyset_stop_looking(struct vol_copyset *copyset) {
    cg_timer_disarm(&copyset->timer);
    end_query(copyset);
    copyset->looking = false;
    copyset->doubting = false;
    copyset->rounds = 0;
}

// ---- Found

// "ip:port" or "ip:port:index" -> which peer that is; -1: none of them.
static int peer_index(const struct vol_copyset *copyset, const char *text, size_t length) {
    size_t short_length = length;
    while (short_length > 0 && text[short_length - 1] != ':') {
        short_length--;
    }
    short_length -= short_length > 0;
    for (unsigned i = 0; i < copyset->peer_count; i++) {
        const char *names[] = {copyset->peers[i].internal, copyset->peers[i].server->address};
        for (unsigned k = 0; k < 2; k++) {
            size_t name = strlen(names[k]);
            if ((name == length || name == short_length) && memcmp(names[k], text, name) == 0) {
                return (int)i;
            }
        }
    }
    return -1;
}

// Requests go there from now on. Those that wait are told in the next step, not from inside: the
// one that brought the news may be in the middle of its own.
static void set_leader(struct vol_copyset *copyset, int index) {
    copyset->leader = index;
    copyset->denied = NULL;
    copyset->doubting = false;
    step_at(copyset, now_of(copyset));
}

static void settle(struct vol_copyset *copyset) {
    const struct vol_server *leader = vol_copyset_leader(copyset);
    struct cg_volume *volume = copyset->volume;
    vol_copyset_stop_looking(copyset);
    // What another server, which does not answer, was asked to do: the new leader knows by client
    // and sequence whether it has been done.
    for (uint32_t i = 0; volume->native && i < volume->inflight_max; i++) {
        struct vol_request *request = &volume->requests[i];
        if (request->in_flight && request->copyset == copyset && request->sent_to != leader &&
            (request->sent_to->away || now_of(copyset) - request->sent_ns >= VOL_DOUBT_NS)) {
            vol_request_move(request);
        }
    }
    struct cg_list ready;
    cg_list_init(&ready);
    cg_list_splice_back(&ready, &copyset->waiting);
    while (!cg_list_empty(&ready)) {
        vol_request_routed(CG_CONTAINER_OF(ready.next, struct vol_request, node));
    }
}

// ---- Asking

static void take_answer(struct vol_copyset *copyset, const struct vol_server *asked,
                        const char *address) {
    int index = peer_index(copyset, address, strlen(address));
    if (index < 0) {
        vol_copyset_fetch_peers(copyset);
        return;
    }
    struct vol_server *named = copyset->peers[index].server;
    if (named == asked || (!named->away && named != copyset->denied)) {
        set_leader(copyset, index);
    } else {
        vol_server_named(named);
    }
}

static void on_answer(struct cg_rpc_call *call) {
    struct asked_peer *peer = CG_CONTAINER_OF(call, struct asked_peer, call);
    struct vol_leader_query *query = peer->query;
    struct vol_server *server = peer->server;
    peer->in_flight = false;
    if (query->over) {
        return;
    }
    curve_chunkserver_GetLeaderResponse2 m = curve_chunkserver_GetLeaderResponse2_init_zero;
    pb_istream_t stream = pb_istream_from_buffer(call->reply, call->reply_length);
    if (call->status == 0 || call->status == -EREMOTEIO) {
        vol_server_heard(server);
    }
    if (call->status == 0 && pb_decode(&stream, curve_chunkserver_GetLeaderResponse2_fields, &m) &&
        m.leader.has_address) {
        take_answer(query->copyset, server, m.leader.address);
    } else if (vol_server_is_loss(call->status) ||
               (call->status == -ETIMEDOUT && vol_server_timed_out(server, peer->sent_ns))) {
        vol_server_unanswered(server);
    }
}

static struct vol_leader_query *query_of(struct vol_copyset *copyset) {
    if (copyset->query == NULL) {
        copyset->query = calloc(1, sizeof(*copyset->query));
        if (copyset->query != NULL) {
            copyset->query->copyset = copyset;
        }
    }
    return copyset->query;
}

// Whether there is a point in asking this peer now.
static bool worth_asking(struct vol_copyset *copyset, struct vol_server *server) {
    if (copyset->doubting && server == vol_copyset_leader(copyset)) {
        return false; // it answers others
    }
    if (copyset->rounds == 0 && server == copyset->denied) {
        return false;
    }
    return vol_server_may_ask(server);
}

static void ask_peers(struct vol_copyset *copyset) {
    struct vol_leader_query *query = query_of(copyset);
    if (query == NULL) {
        return;
    }
    curve_chunkserver_GetLeaderRequest2 m = curve_chunkserver_GetLeaderRequest2_init_zero;
    m.logicPoolId = copyset->pool;
    m.copysetId = copyset->id;
    for (unsigned i = 0; i < copyset->peer_count; i++) {
        struct asked_peer *peer = &query->asked[i];
        struct vol_server *server = copyset->peers[i].server;
        if (peer->in_flight || !worth_asking(copyset, server)) {
            continue;
        }
        peer->query = query;
        peer->server = server;
        peer->sent_ns = now_of(copyset);
        peer->in_flight = true;
        peer->call.method = &get_leader;
        peer->call.request_fields = curve_chunkserver_GetLeaderRequest2_fields;
        peer->call.request = &m;
        peer->call.timeout_ns = GET_LEADER_TIMEOUT_NS;
        peer->call.done = on_answer;
        cg_channel_call(server->channel, &peer->call);
    }
}

// ---- Looking

static uint64_t round_pause(const struct vol_copyset *copyset) {
    if (!copyset->volume->native || copyset->peer_count < 2) {
        return CURVEBS_ROUND_NS;
    }
    uint64_t pause = ROUND_FIRST_NS << (copyset->rounds < 4 ? copyset->rounds : 4);
    return pause < ROUND_MAX_NS ? pause : ROUND_MAX_NS;
}

static void one_round(struct vol_copyset *copyset) {
    uint64_t next = now_of(copyset) + round_pause(copyset);
    unsigned rounds = copyset->volume->native ? ROUNDS : CURVEBS_ROUNDS;
    if (copyset->peer_count > 1) {
        ask_peers(copyset);
    }
    if (++copyset->rounds % rounds == 0 || copyset->peer_count == 0) {
        vol_copyset_fetch_peers(copyset);
    }
    step_at(copyset, next);
}

static void on_time(struct cg_timer *timer) {
    struct vol_copyset *copyset = CG_CONTAINER_OF(timer, struct vol_copyset, timer);
    if (copyset->leader >= 0 && !copyset->doubting) {
        settle(copyset);
    } else if (cg_list_empty(&copyset->waiting) && copyset->outstanding == 0) {
        vol_copyset_stop_looking(copyset);
    } else if (copyset->doubting && copyset->rounds == DOUBT_ROUNDS) {
        vol_copyset_stop_looking(copyset);
    } else if (copyset->peer_count == 1 && copyset->suspects < LONELY_TRIES) {
        copyset->leader = 0; // the only replica: nobody else to ask
        settle(copyset);
    } else {
        if (copyset->peer_count == 1) {
            copyset->suspects = 0;
            vol_copyset_fetch_peers(copyset);
        }
        one_round(copyset);
    }
}

void vol_copyset_find_leader(struct vol_copyset *copyset, const struct vol_server *suspect) {
    if (suspect != NULL) {
        copyset->suspects++;
        copyset->denied = suspect;
    }
    bool began = copyset->looking && copyset->leader < 0;
    copyset->leader = -1;
    copyset->doubting = false;
    if (!began) {
        copyset->rounds = 0;
        step_at(copyset, now_of(copyset));
    }
}

void vol_copyset_doubt(struct vol_copyset *copyset) {
    uint64_t now = now_of(copyset);
    if (copyset->looking || copyset->peer_count < 2 || now - copyset->doubted_ns < VOL_DOUBT_NS) {
        return;
    }
    copyset->doubted_ns = now;
    copyset->doubting = copyset->leader >= 0;
    step_at(copyset, now);
}

void vol_leaders_forget(struct cg_volume *volume, const struct vol_server *server) {
    for (unsigned i = 0; i < VOL_COPYSET_BUCKETS; i++) {
        CG_LIST_FOREACH (node, &volume->copysets[i]) {
            struct vol_copyset *copyset = CG_CONTAINER_OF(node, struct vol_copyset, node);
            if (copyset->peer_count < 2 || vol_copyset_leader(copyset) != server) {
                continue;
            }
            if (copyset->outstanding > 0 || copyset->looking) {
                vol_copyset_find_leader(copyset, NULL);
            } else {
                copyset->leader = -1; // the next request looks; a volume that closes has none
            }
        }
    }
}

bool vol_copyset_take_hint(struct vol_copyset *copyset, const struct vol_server *from,
                           const uint8_t *text, uint32_t length) {
    if (length == 0) {
        return false;
    }
    int index = peer_index(copyset, (const char *)text, length);
    if (index < 0) {
        vol_copyset_fetch_peers(copyset);
        return false;
    }
    struct vol_server *named = copyset->peers[index].server;
    if (named == from || named->away) {
        vol_server_named(named);
        return false;
    }
    set_leader(copyset, index);
    return true;
}

void vol_copyset_ask_anew(struct vol_copyset *copyset) {
    end_query(copyset);
    if (copyset->looking) {
        copyset->rounds = 0;
        step_at(copyset, now_of(copyset));
    }
}

void vol_copyset_confirm(struct vol_copyset *copyset, const struct vol_server *server) {
    copyset->suspects = 0;
    if (!copyset->looking || (copyset->leader >= 0 && !copyset->doubting)) {
        return;
    }
    for (unsigned i = 0; i < copyset->peer_count; i++) {
        if (copyset->peers[i].server == server && copyset->leader < 0) {
            set_leader(copyset, (int)i);
            return;
        }
    }
}
