// SPDX-License-Identifier: BSD-3-Clause
//
// What the host does with this server's replicas: makes and deletes them, tells where the others
// are, changes members and leaders, looks at them.
#include <errno.h>

#include "chunkserver/chunkserver_internal.h"

// ---- Where the others are

static void set_peer(struct cg_host_call *call) {
    call->result =
        cg_peers_set(call->server->peers, (uint32_t)call->id, call->address, call->endpoint);
    cg_host_finish(call);
}

int cg_chunkserver_set_peer(struct cg_chunkserver *server, uint32_t chunkserver,
                            const char *address) {
    struct cg_endpoint endpoint;
    int result = cg_endpoint_parse(address, &endpoint);
    if (result < 0) {
        return result;
    }
    struct cg_host_call call = {
        .run = set_peer, .id = chunkserver, .address = address, .endpoint = &endpoint};
    return cg_host_call(server, &call);
}

// ---- Replicas

static void add_copyset(struct cg_host_call *call) {
    call->result = cg_store_add_copyset(call->server->store, call->spec);
    cg_host_finish(call);
}

int cg_chunkserver_add_copyset(struct cg_chunkserver *server, const struct cg_copyset_spec *spec) {
    struct cg_host_call call = {.run = add_copyset, .spec = spec};
    return cg_host_call(server, &call);
}

static void removed(void *user, int status) {
    struct cg_host_call *call = user;
    call->result = status;
    cg_host_finish(call);
}

// Nothing is copied to it or from it any more.
static void forgotten(struct cg_catchup_forget *forget) {
    struct cg_host_call *call = CG_CONTAINER_OF(forget, struct cg_host_call, forget);
    cg_store_remove_copyset(call->server->store, call->pool, call->copyset, call->member, removed,
                            call);
}

static void remove_copyset(struct cg_host_call *call) {
    struct cg_copyset *copyset = cg_store_copyset(call->server->store, call->pool, call->copyset);
    call->forget = (struct cg_catchup_forget){.copyset = copyset, .done = forgotten};
    if (copyset != NULL && cg_copyset_member(copyset) == call->member) {
        cg_catchup_forget(call->server->catchup, &call->forget);
    } else {
        forgotten(&call->forget);
    }
}

int cg_chunkserver_remove_copyset(struct cg_chunkserver *server, uint32_t pool, uint32_t copyset,
                                  uint64_t member) {
    struct cg_host_call call = {
        .run = remove_copyset, .pool = pool, .copyset = copyset, .member = member};
    return cg_host_call(server, &call);
}

// ---- Members and leaders

static struct cg_copyset_log *log_of(struct cg_host_call *call) {
    struct cg_copyset *copyset = cg_store_copyset(call->server->store, call->pool, call->copyset);
    return copyset != NULL ? cg_copyset_raft(copyset) : NULL;
}

static void change(struct cg_host_call *call) {
    struct cg_copyset_log *log = log_of(call);
    call->result = log != NULL ? cg_copyset_log_change(log, call->change, call->member) : -ENOENT;
    cg_host_finish(call);
}

int cg_chunkserver_change(struct cg_chunkserver *server, uint32_t pool, uint32_t copyset,
                          enum cg_raft_change kind, uint64_t member) {
    struct cg_host_call call = {
        .run = change, .pool = pool, .copyset = copyset, .member = member, .change = kind};
    return cg_host_call(server, &call);
}

static void transfer(struct cg_host_call *call) {
    struct cg_copyset_log *log = log_of(call);
    call->result = log != NULL ? cg_copyset_log_transfer(log, call->member) : -ENOENT;
    cg_host_finish(call);
}

int cg_chunkserver_transfer(struct cg_chunkserver *server, uint32_t pool, uint32_t copyset,
                            uint64_t member) {
    struct cg_host_call call = {
        .run = transfer, .pool = pool, .copyset = copyset, .member = member};
    return cg_host_call(server, &call);
}

// The voter that has most of the log and answers; 0: there is no other one.
static uint64_t successor(const struct cg_chunkserver *server,
                          const struct cg_copyset_log_status *status) {
    const struct cg_copyset_log_peer_status *best = NULL;
    for (uint32_t i = 0; i < status->peer_count; i++) {
        const struct cg_copyset_log_peer_status *peer = &status->peer[i];
        if (!peer->progress.learner && !cg_peers_down(server->peers, (uint32_t)peer->id) &&
            (best == NULL || peer->progress.match > best->progress.match)) {
            best = peer;
        }
    }
    return best != NULL ? best->id : 0;
}

void cg_hand_over_all(struct cg_chunkserver *server) {
    uint32_t count = cg_store_copyset_count(server->store);
    for (uint32_t i = 0; i < count; i++) {
        struct cg_copyset_log *log = cg_copyset_raft(cg_store_copyset_at(server->store, i));
        struct cg_copyset_log_status status;
        if (log == NULL) {
            continue;
        }
        cg_copyset_log_status(log, &status);
        uint64_t member = status.role == CG_RAFT_LEADER ? successor(server, &status) : 0;
        if (member != 0) {
            // Refused, or not taken in time: the others elect one when this server is gone.
            (void)cg_copyset_log_transfer(log, member);
        }
    }
}

bool cg_handing_over(struct cg_chunkserver *server) {
    uint32_t count = cg_store_copyset_count(server->store);
    for (uint32_t i = 0; i < count; i++) {
        struct cg_copyset_log *log = cg_copyset_raft(cg_store_copyset_at(server->store, i));
        struct cg_copyset_log_status status;
        if (log != NULL) {
            cg_copyset_log_status(log, &status);
            if (status.role == CG_RAFT_LEADER && successor(server, &status) != 0) {
                return true;
            }
        }
    }
    return false;
}

// ---- Looking at them

static void collect_copysets(struct cg_host_call *call) {
    struct cg_store *store = call->server->store;
    uint32_t count = cg_store_copyset_count(store);
    for (uint32_t i = 0; i < count && i < call->max; i++) {
        struct cg_copyset *copyset = cg_store_copyset_at(store, i);
        call->copysets[i] = (struct cg_chunkserver_copyset){
            .pool = cg_copyset_pool(copyset),
            .copyset = cg_copyset_id(copyset),
            .member = cg_copyset_member(copyset),
        };
        if (cg_copyset_raft(copyset) != NULL) {
            cg_copyset_log_status(cg_copyset_raft(copyset), &call->copysets[i].log);
        }
    }
    call->max = count;
    cg_host_finish(call);
}

uint32_t cg_chunkserver_copysets(struct cg_chunkserver *server, struct cg_chunkserver_copyset *out,
                                 uint32_t max) {
    struct cg_host_call call = {.run = collect_copysets, .copysets = out, .max = max};
    cg_host_call(server, &call);
    return call.max;
}
