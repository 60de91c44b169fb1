// SPDX-License-Identifier: BSD-3-Clause
//
// The chunkservers that a client knows, and which of them answer. One that owes an answer for long
// and says nothing at all, or whose connection is lost, is away: it is not waited for. CurveBS's
// client counts ten timeouts in a row and then probes /health; here the question for the leader,
// which goes to the same port, is the probe.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "volume/client.h"
#include "volume/clone.h"
#include "volume/volume.h"

#define WATCH_NS (100 * CG_NS_PER_MS) // how often outstanding requests are looked at

// From one question to a server that is away to the next.
#define PAUSE_FIRST_NS (50 * CG_NS_PER_MS)
#define PAUSE_MAX_NS   (800 * CG_NS_PER_MS)
#define PAUSE_NAMED_NS (100 * CG_NS_PER_MS)
#define QUESTION_NS    (1 * CG_NS_PER_S) // longer than one takes
#define CONNECT_NS     (500 * CG_NS_PER_MS)

static void on_watch(struct cg_timer *timer);

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
    struct cg_channel_options options = {.connect_timeout_ns = CONNECT_NS, .beside = &beside};
    if (cg_channel_create(client->reactor, &endpoint, &options, &server->channel) != 0) {
        free(server);
        return NULL;
    }
    server->client = client;
    server->watch.fire = on_watch;
    cg_list_init(&server->outstanding);
    snprintf(server->address, sizeof(server->address), "%s", address);
    cg_list_push_back(&client->servers, &server->node);
    client->server_count++;
    return server;
}

void vol_servers_free(struct cg_client *client) {
    struct cg_list *node;
    while ((node = cg_list_pop_front(&client->servers)) != NULL) {
        struct vol_server *server = CG_CONTAINER_OF(node, struct vol_server, node);
        cg_timer_disarm(&server->watch);
        cg_channel_destroy(server->channel);
        free(server);
    }
}

static uint64_t now_of(const struct vol_server *server) {
    return cg_reactor_now(server->client->reactor);
}

void vol_server_heard(struct vol_server *server) {
    server->heard_ns = now_of(server);
    if (server->away) {
        server->away = false;
        cg_log(CG_LOG_INFO, "the chunkserver at %s answers again", server->address);
    }
}

bool vol_server_is_loss(int status) {
    switch (status) {
    case 0:
    case -EREMOTEIO: // an answer
    case -ECANCELED:
    case -EPROTO: // an answer that makes no sense
    case -EMSGSIZE:
    case -ETIMEDOUT: // one answer is missing: others may have come
    case -ENOBUFS:   // ours
    case -ENOMEM:
    case -EINVAL:
        return false;
    default:
        return true;
    }
}

void vol_server_lost(struct vol_server *server) {
    if (server->away) {
        return;
    }
    cg_log(CG_LOG_INFO, "the chunkserver at %s does not answer", server->address);
    server->away = true;
    server->pause_ns = PAUSE_FIRST_NS;
    server->ask_at_ns = now_of(server) + server->pause_ns;
    CG_LIST_FOREACH (node, &server->client->volumes) {
        struct cg_volume *volume = CG_CONTAINER_OF(node, struct cg_volume, node);
        vol_leaders_forget(volume, server);
        if (volume->clone != NULL) {
            vol_leaders_forget(volume->clone->source, server);
        }
    }
}

bool vol_server_timed_out(struct vol_server *server, uint64_t sent_ns) {
    if (server->heard_ns >= sent_ns) {
        return false;
    }
    cg_channel_disconnect(server->channel, -ECONNRESET);
    return true;
}

bool vol_server_may_ask(struct vol_server *server) {
    if (!server->away) {
        return true;
    }
    uint64_t now = now_of(server);
    if (now < server->ask_at_ns) {
        return false;
    }
    server->ask_at_ns = now + QUESTION_NS; // one at a time is enough
    return true;
}

void vol_server_unanswered(struct vol_server *server) {
    if (!server->away) {
        vol_server_lost(server);
        return;
    }
    server->pause_ns = server->pause_ns * 2 < PAUSE_MAX_NS ? server->pause_ns * 2 : PAUSE_MAX_NS;
    server->ask_at_ns = now_of(server) + server->pause_ns;
}

void vol_server_named(struct vol_server *server) {
    uint64_t soon = now_of(server) + PAUSE_NAMED_NS;
    if (server->away && server->ask_at_ns > soon) {
        server->ask_at_ns = soon;
    }
}

// ---- Requests without an answer

void vol_server_sent(struct vol_server *server, struct vol_request *request) {
    request->sent_ns = now_of(server);
    cg_list_push_back(&server->outstanding, &request->node);
    if (!cg_timer_armed(&server->watch)) {
        // Without memory for it the time-outs of the calls remain.
        (void)cg_timer_arm(server->client->reactor, &server->watch, request->sent_ns + WATCH_NS);
    }
}

static void on_watch(struct cg_timer *timer) {
    struct vol_server *server = CG_CONTAINER_OF(timer, struct vol_server, watch);
    if (cg_list_empty(&server->outstanding)) {
        return;
    }
    uint64_t now = now_of(server);
    (void)cg_timer_arm(server->client->reactor, timer, now + WATCH_NS);
    bool silent = now - server->heard_ns >= VOL_DOUBT_NS;
    CG_LIST_FOREACH (node, &server->outstanding) {
        const struct vol_request *request = CG_CONTAINER_OF(node, struct vol_request, node);
        if (now - request->sent_ns < VOL_DOUBT_NS) {
            return;
        }
        // On CurveBS a repeated write may be done twice: there it is waited for as libcurve does.
        if (!request->volume->native) {
            continue;
        }
        if (silent && !server->away) {
            vol_server_lost(server);
            server->ask_at_ns = now; // it may only be slow: it is asked at once, with the others
        }
        vol_copyset_doubt(request->copyset);
    }
}
