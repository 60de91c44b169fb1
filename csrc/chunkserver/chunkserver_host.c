// SPDX-License-Identifier: BSD-3-Clause
//
// The host's calls: handed over to the reactor's thread, and waited for.
#include <errno.h>

#include "chunkserver/chunkserver_internal.h"
#include "chunkserver/epoch_raise.h"

void cg_host_finish(struct cg_host_call *call) {
    struct cg_chunkserver *server = call->server;
    pthread_mutex_lock(&server->mutex);
    call->done = true;
    pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->mutex);
}

static void run_call(struct cg_task *task) {
    struct cg_host_call *call = CG_CONTAINER_OF(task, struct cg_host_call, task);
    call->run(call);
}

int cg_host_call(struct cg_chunkserver *server, struct cg_host_call *call) {
    call->server = server;
    call->task.run = run_call;
    cg_reactor_post(server->reactor, &call->task);
    pthread_mutex_lock(&server->mutex);
    while (!call->done) {
        pthread_cond_wait(&server->changed, &server->mutex);
    }
    pthread_mutex_unlock(&server->mutex);
    return call->result;
}

static int errno_of(cg_status status) {
    switch (status) {
    case curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_SUCCESS:
        return 0;
    case curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_OVERLOAD:
        return -EAGAIN;
    case curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_REDIRECTED:
        return -EPERM;
    case curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_NOSPACE:
        return -ENOSPC;
    default:
        return -EIO;
    }
}

static void reclaimed(void *user, const struct cg_mutation_result *result) {
    struct cg_host_call *call = user;
    call->result = errno_of(result->status);
    cg_host_finish(call);
}

static void epoch_raised(void *user, cg_status status) {
    struct cg_host_call *call = user;
    switch (status) {
    case curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_EPOCH_TOO_OLD: // a higher one is known
        break;
    case curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_FAILURE_UNKNOWN:
        call->result = -EAGAIN;
        break;
    default:
        call->result = errno_of(status);
    }
    cg_host_finish(call);
}

static void raise_epoch(struct cg_host_call *call) {
    cg_epoch_raise_all(call->server->store, call->server->reactor, call->id, call->epoch,
                       epoch_raised, call);
}

int cg_chunkserver_raise_epoch(struct cg_chunkserver *server, uint64_t file_id, uint64_t epoch) {
    struct cg_host_call call = {.run = raise_epoch, .id = file_id, .epoch = epoch};
    return cg_host_call(server, &call);
}

static void reclaim(struct cg_host_call *call) {
    struct cg_store *store = call->server->store;
    struct cg_copyset *copyset = cg_store_copyset(store, call->pool, call->copyset);
    if (copyset == NULL) {
        cg_host_finish(call);
        return;
    }
    struct cg_mutation mutation = {
        .kind = CG_MUTATE_DELETE,
        .copyset = copyset,
        .chunk_id = call->id,
        .done = reclaimed,
        .user = call,
    };
    cg_store_mutate(store, &mutation);
}

int cg_chunkserver_reclaim(struct cg_chunkserver *server, uint32_t pool, uint32_t copyset,
                           uint64_t chunk) {
    struct cg_host_call call = {.run = reclaim, .pool = pool, .copyset = copyset, .id = chunk};
    return cg_host_call(server, &call);
}

static void scrub(struct cg_host_call *call) {
    call->result = cg_store_scrub(call->server->store, call->id);
    cg_host_finish(call);
}

int cg_chunkserver_scrub(struct cg_chunkserver *server, uint64_t request) {
    struct cg_host_call call = {.run = scrub, .id = request};
    return cg_host_call(server, &call);
}

static void collect_bad_blocks(struct cg_host_call *call) {
    call->max = cg_store_bad_blocks(call->server->store, 0, call->bad_blocks, call->max);
    cg_host_finish(call);
}

uint32_t cg_chunkserver_bad_blocks(struct cg_chunkserver *server, struct cg_bad_block *out,
                                   uint32_t max) {
    struct cg_host_call call = {.run = collect_bad_blocks, .bad_blocks = out, .max = max};
    cg_host_call(server, &call);
    return call.max;
}

static uint32_t count_leaders(struct cg_store *store) {
    uint32_t leaders = 0;
    for (uint32_t i = 0; i < cg_store_copyset_count(store); i++) {
        leaders += cg_copyset_leads(cg_store_copyset_at(store, i));
    }
    return leaders;
}

void cg_collect_stats(struct cg_chunkserver *server, struct cg_chunkserver_stats *out) {
    struct cg_store_stats store;
    struct cg_server_stats rpc;
    cg_store_stats(server->store, &store);
    cg_server_stats(server->server, &rpc);
    const struct cg_service_stats *service = &server->service.stats;
    *out = (struct cg_chunkserver_stats){
        .reads = service->reads,
        .writes = service->writes,
        .others = service->others,
        .overloads = service->overloads,
        .errors = service->errors,
        .read_bytes = service->read_bytes,
        .written_bytes = service->written_bytes,
        .wal_batches = store.wal.batches,
        .wal_records = store.wal.records,
        .wal_bytes = store.wal.bytes,
        .wal_used = store.wal_used,
        .wal_capacity = store.wal_capacity,
        .checkpoints = store.checkpoints,
        .capacity_bytes = store.capacity_bytes,
        .free_bytes = store.free_bytes,
        .copysets = store.copysets,
        .leaders = count_leaders(server->store),
        .connections = rpc.connections,
        .disk_error = store.disk_error,
        .scrub = store.scrub,
        .log = store.log,
    };
    cg_peers_stats(server->peers, &out->peers);
    cg_catchup_stats(server->catchup, &out->copy);
}

static void collect_stats(struct cg_host_call *call) {
    cg_collect_stats(call->server, call->stats);
    cg_host_finish(call);
}

void cg_chunkserver_stats(struct cg_chunkserver *server, struct cg_chunkserver_stats *out) {
    struct cg_host_call call = {.run = collect_stats, .stats = out};
    cg_host_call(server, &call);
}
