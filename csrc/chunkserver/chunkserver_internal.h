// SPDX-License-Identifier: BSD-3-Clause
//
// What the parts of the chunkserver share: the thread and its life (chunkserver.c), the host's
// calls (chunkserver_host.c).
#ifndef CG_CHUNKSERVER_CHUNKSERVER_INTERNAL_H
#define CG_CHUNKSERVER_CHUNKSERVER_INTERNAL_H

#include <pthread.h>

#include "base/disk.h"
#include "chunkserver/catchup.h"
#include "chunkserver/chunkserver.h"
#include "chunkserver/peers.h"
#include "chunkserver/service.h"
#include "rpc/server.h"

enum cg_stop_stage {
    STOP_NOT,
    STOP_HAND_OVER,  // others take the lead of what this server leads
    STOP_DRAIN,      // requests in flight end
    STOP_APPLY,      // what was committed is applied; the other replicas go on alone
    STOP_CHECKPOINT, // what was applied is saved
};

struct cg_chunkserver {
    struct cg_chunkserver_options options;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool started; // the thread got through its start, or not: see start_result
    int start_result;
    char *error;
    size_t error_size;
    struct cg_reactor *reactor;
    struct cg_disk *disk;
    struct cg_buffer_pool *pool;
    struct cg_buffer_pool *peers_pool;
    struct cg_peers *peers;
    struct cg_store *store;
    struct cg_server *server;
    struct cg_service service;
    struct cg_catchup *catchup;
    struct cg_server_method methods[CG_SERVICE_METHODS + CG_PEERS_METHODS + CG_CATCHUP_METHODS];
    int event_fd;
    char uuid[37];
    char address[CG_ENDPOINT_TEXT_MAX];
    enum cg_stop_stage stop_stage;
    uint64_t stop_deadline_ns;
    uint64_t hand_over_deadline_ns;
    struct cg_timer stop_timer;
};

// ---- Calls from other threads (chunkserver_host.c)

struct cg_host_call {
    struct cg_task task;
    struct cg_chunkserver *server;
    void (*run)(struct cg_host_call *call);
    bool done;
    int result;
    uint32_t pool;
    uint32_t copyset;
    uint64_t id; // chunk or volume
    uint64_t epoch;
    struct cg_chunkserver_stats *stats;
    struct cg_bad_block *bad_blocks;
    uint32_t max;
    uint64_t member;
    const struct cg_copyset_spec *spec;
    enum cg_raft_change change;
    const char *address;
    const struct cg_endpoint *endpoint;
    struct cg_chunkserver_copyset *copysets;
    struct cg_catchup_forget forget;
};

// Runs call->run on the reactor's thread and waits until cg_host_finish; returns call->result.
int cg_host_call(struct cg_chunkserver *server, struct cg_host_call *call);

// The call is done: on the reactor's thread, in call->run or later.
void cg_host_finish(struct cg_host_call *call);

// The counters now, on the reactor's thread.
void cg_collect_stats(struct cg_chunkserver *server, struct cg_chunkserver_stats *out);

// ---- GET /metrics (chunkserver_metrics.c)

// For cg_server_options.metrics; the context is the chunkserver.
char *cg_chunkserver_metrics(void *context);

// ---- Leadership (chunkserver_replicas.c)

// Asks another member to lead, for each copyset that this server leads and where somebody can.
void cg_hand_over_all(struct cg_chunkserver *server);

// True while somebody is about to take over.
bool cg_handing_over(struct cg_chunkserver *server);

#endif
