// SPDX-License-Identifier: BSD-3-Clause
//
// ChunkService and CliService2 on a store: checks requests at the edge, before anything is logged,
// and answers as CurveBS does (docs/wire.md has the table of statuses). Where another replica leads
// the answer is REDIRECTED with its address. The reactor's thread.
#ifndef CG_CHUNKSERVER_SERVICE_H
#define CG_CHUNKSERVER_SERVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "chunkserver/peers.h"
#include "chunkserver/store.h"
#include "rpc/server.h"

#define CG_SERVICE_METHODS 15U

struct cg_service_stats {
    uint64_t reads, writes, others, overloads, errors;
    uint64_t read_bytes, written_bytes;
};

struct cg_service {
    struct cg_store *store;
    struct cg_peers *peers; // tells where those are who lead
    struct cg_buffer_pool *pool;
    struct cg_reactor *reactor;
    uint32_t inflight_max;
    uint32_t inflight;
    bool stopping;            // everything new is answered OVERLOAD
    char address[64];         // "ip:port:0": what GetLeader answers where this server leads
    uint64_t snapshot_log_ns; // when a snapshot request was last logged
    struct cg_service_stats stats;
    struct cg_server_method methods[CG_SERVICE_METHODS];
};

// Fills `service` and its methods. `inflight_max` 0: 5000.
void cg_service_init(struct cg_service *service, struct cg_store *store, struct cg_peers *peers,
                     struct cg_buffer_pool *pool, struct cg_reactor *reactor,
                     uint32_t inflight_max);

// For cg_server_options.health: NULL once the disk is retired.
const char *cg_service_health(void *context);

#endif
