// SPDX-License-Identifier: BSD-3-Clause
//
// The thread around the service. Everything, opening and replay included, happens on the reactor's
// thread.
#include "chunkserver/chunkserver.h"

#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "chunkserver/chunkserver_internal.h"

#define MEMORY_DEFAULT (UINT64_C(64) << 20)
// Of entries in the logs' memory, in the buffers in which they came from clients and peers.
#define LOG_CACHE_MAX (UINT64_C(32) << 20)
// For what comes from peers and what is read back from the log: entries of a frame share a buffer,
// which is as large as the next power of two, so that the cache may hold several times what it
// counts.
#define PEERS_MEMORY    (UINT64_C(160) << 20)
#define RESERVE_DEFAULT (UINT64_C(64) << 20)
#define POOL_THREADS    6U // a checkpoint's two, one for writes, one for the scrub, two for copying
#define LISTENERS_MAX   16U
#define STOP_POLL_NS    (2 * CG_NS_PER_MS)
#define STOP_LIMIT_NS   (20 * CG_NS_PER_S) // then the log keeps what is left
#define HAND_OVER_NS    (500 * CG_NS_PER_MS)

// ---- Listening

// Fills in the address that is reported, and where GetLeader sends clients. Returns the TCP port.
static void note_address(struct cg_chunkserver *server, const struct cg_endpoint *bound,
                         bool *tcp) {
    bool is_tcp = bound->address.ss_family != AF_UNIX;
    if (server->address[0] != '\0' && (*tcp || !is_tcp)) {
        return;
    }
    *tcp = is_tcp;
    cg_endpoint_format(bound, server->address, sizeof(server->address));
}

static int listen_one(struct cg_chunkserver *server, const char *text, bool *tcp) {
    struct cg_endpoint endpoint;
    struct cg_endpoint bound;
    int result = cg_endpoint_parse(text, &endpoint);
    if (result == 0) {
        result = cg_server_listen(server->server, &endpoint, &bound);
    }
    if (result != 0) {
        snprintf(server->error, server->error_size, "cannot listen on %s: %s", text,
                 strerror(-result));
        return result;
    }
    note_address(server, &bound, tcp);
    return 0;
}

static int listen_all(struct cg_chunkserver *server) {
    char *copy = strdup(server->options.listen);
    if (copy == NULL) {
        snprintf(server->error, server->error_size, "out of memory");
        return -ENOMEM;
    }
    int result = 0;
    bool tcp = false;
    unsigned count = 0;
    char *rest = copy;
    char *text;
    while (result == 0 && (text = strsep(&rest, ",")) != NULL) {
        if (++count > LISTENERS_MAX) {
            snprintf(server->error, server->error_size, "more than %u endpoints to listen on",
                     LISTENERS_MAX);
            result = -EINVAL;
        } else {
            result = listen_one(server, text, &tcp);
        }
    }
    free(copy);
    return result;
}

static void set_address(struct cg_chunkserver *server) {
    const char *advertise =
        server->options.advertise != NULL ? server->options.advertise : server->address;
    size_t room = sizeof(server->service.address);
    int length = snprintf(server->service.address, room, "%s:0", advertise);
    if (length < 0 || (size_t)length >= room) {
        // Only a unix path can be that long, and no client asks it for a leader.
        snprintf(server->service.address, room, "0.0.0.0:0:0");
    }
}

// For clients on this machine: a unix socket, which costs less than TCP, and chunk files that they
// may read by themselves. Not vital.
static void open_door(struct cg_chunkserver *server) {
    const char *address =
        server->options.advertise != NULL ? server->options.advertise : server->address;
    struct cg_endpoint beside;
    cg_endpoint_beside(address, &beside);
    int result = cg_server_listen(server->server, &beside, NULL);
    if (result != 0) {
        cg_log(CG_LOG_WARNING, "clients on this machine come by TCP: no unix socket beside it: %s",
               strerror(-result));
    }
    result = cg_store_share(server->store, address);
    if (result != 0 && result != -ENOTSUP) {
        cg_log(CG_LOG_WARNING, "no local reads: cannot open the door for them: %s",
               strerror(-result));
    }
}

// ---- What the store tells, and the peers

static void role_changed(void *context, struct cg_copyset *copyset) {
    struct cg_chunkserver *server = context;
    uint64_t one = 1;
    (void)copyset;
    // It can only fail when the counter is full: then the descriptor has been readable for long.
    ssize_t n = write(server->event_fd, &one, sizeof(one));
    (void)n;
}

static void send_message(void *context, uint64_t group, const struct cg_raft_message *message,
                         struct cg_log_entry *const *entries) {
    struct cg_chunkserver *server = context;
    cg_peers_send(server->peers, group, message, entries);
}

static bool received(void *context, uint64_t group, const struct cg_raft_message *message,
                     struct cg_log_entry *const *entries) {
    struct cg_chunkserver *server = context;
    return cg_store_receive(server->store, group, message, entries);
}

static void connection(void *context, uint32_t chunkserver, bool up) {
    struct cg_chunkserver *server = context;
    if (server->server != NULL) { // else the store is being opened or closed
        cg_store_peer(server->store, chunkserver, up);
    }
}

static bool takes_part(void *context) {
    const struct cg_chunkserver *server = context;
    return server->store == NULL || cg_store_disk_error(server->store) == 0;
}

static void copy_state(void *context, struct cg_copyset *copyset, uint64_t member) {
    const struct cg_chunkserver *server = context;
    cg_catchup_copy_state(server->catchup, copyset, member);
}

static void damaged(void *context, struct cg_copyset *copyset, uint64_t chunk_id, uint32_t block) {
    const struct cg_chunkserver *server = context;
    cg_catchup_damaged(server->catchup, copyset, chunk_id, block);
}

static void mend(void *context, struct cg_mend *wanted) {
    const struct cg_chunkserver *server = context;
    cg_catchup_mend(server->catchup, wanted);
}

// ---- The thread

// What requests in flight may take.
static uint64_t memory_of(const struct cg_chunkserver_options *options) {
    return options->memory_bytes != 0 ? options->memory_bytes : MEMORY_DEFAULT;
}

static uint64_t log_cache_of(const struct cg_chunkserver_options *options) {
    uint64_t half = memory_of(options) / 2;
    return half < LOG_CACHE_MAX ? half : LOG_CACHE_MAX;
}

static int open_pools(struct cg_chunkserver *server) {
    const struct cg_chunkserver_options *options = &server->options;
    int result = cg_buffer_pool_create(memory_of(options) + log_cache_of(options), &server->pool);
    if (result == 0) {
        result = cg_buffer_pool_create(PEERS_MEMORY, &server->peers_pool);
    }
    if (result != 0) {
        snprintf(server->error, server->error_size, "cannot make the buffer pools: %s",
                 strerror(-result));
    }
    return result;
}

static int open_peers(struct cg_chunkserver *server) {
    struct cg_peers_events events = {
        .received = received,
        .connection = connection,
        .takes_part = takes_part,
        .context = server,
    };
    int result = cg_peers_create(server->reactor, server->peers_pool, &events, &server->peers);
    if (result != 0) {
        snprintf(server->error, server->error_size, "cannot make the peers: %s", strerror(-result));
    }
    return result;
}

static int open_store(struct cg_chunkserver *server) {
    const struct cg_chunkserver_options *options = &server->options;
    struct cg_reactor_options reactor_options = {
        .backend = (enum cg_reactor_backend)options->reactor_backend, .pool_threads = POOL_THREADS};
    int result = cg_reactor_create(&reactor_options, &server->reactor);
    if (result != 0) {
        snprintf(server->error, server->error_size, "cannot start the event loop: %s",
                 strerror(-result));
        return result;
    }
    result = cg_disk_open(options->folder, server->reactor, &server->disk);
    if (result != 0) {
        snprintf(server->error, server->error_size, "cannot use the folder %s: %s", options->folder,
                 result == -EBUSY ? "another process uses it" : strerror(-result));
        return result;
    }
    result = open_pools(server);
    if (result == 0) {
        result = open_peers(server);
    }
    if (result == 0) {
        struct cg_catchup_options catchup_options = {.peers = server->peers,
                                                     .rate = options->copy_rate};
        result = cg_catchup_create(&catchup_options, &server->catchup);
    }
    if (result != 0) {
        return result;
    }
    struct cg_store_options store_options = {
        .reserve_bytes = options->reserve_bytes != 0 ? options->reserve_bytes : RESERVE_DEFAULT,
        .wal_bytes = options->wal_bytes,
        .scrub_rate = options->scrub_rate,
        .scrub_period_s = options->scrub_period_s,
        .share_folder = options->folder,
        .send = send_message,
        .send_context = server,
        .log_pool = server->peers_pool,
        .log_cache_bytes = log_cache_of(options),
        .events = {.role_changed = role_changed,
                   .copy_state = copy_state,
                   .damaged = damaged,
                   .mend = mend,
                   .context = server},
    };
    char why[512] = "";
    result = cg_store_open(server->disk, server->reactor, server->pool, &store_options,
                           &server->store, why, sizeof(why));
    if (result != 0) {
        snprintf(server->error, server->error_size, "%s: %s", options->folder, why);
        return result;
    }
    result = cg_catchup_start(server->catchup, server->store);
    if (result != 0) {
        snprintf(server->error, server->error_size, "cannot go on with copying: %s",
                 strerror(-result));
    }
    return result;
}

static int open_service(struct cg_chunkserver *server) {
    cg_service_init(&server->service, server->store, server->peers, server->pool, server->reactor,
                    server->options.inflight_max);
    memcpy(server->methods, server->service.methods, sizeof(server->service.methods));
    cg_peers_methods(server->peers, &server->methods[CG_SERVICE_METHODS]);
    cg_catchup_methods(server->catchup, &server->methods[CG_SERVICE_METHODS + CG_PEERS_METHODS]);
    struct cg_server_options options = {
        .methods = server->methods,
        .method_count = CG_SERVICE_METHODS + CG_PEERS_METHODS + CG_CATCHUP_METHODS,
        .pool = server->pool,
        .health = cg_service_health,
        .health_context = &server->service,
        .metrics = cg_chunkserver_metrics,
        .metrics_context = server,
    };
    int result = cg_server_create(server->reactor, &options, &server->server);
    if (result != 0) {
        snprintf(server->error, server->error_size, "cannot make the server: %s",
                 strerror(-result));
        return result;
    }
    result = listen_all(server);
    if (result == 0) {
        set_address(server);
        open_door(server);
    }
    return result;
}

static void format_uuid(const uint8_t *in, char out[37]) {
    static const char digits[] = "0123456789abcdef";
    unsigned at = 0;
    for (unsigned i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10) {
            out[at++] = '-';
        }
        out[at++] = digits[in[i] >> 4];
        out[at++] = digits[in[i] & 15];
    }
    out[at] = '\0';
}

static void close_all(struct cg_chunkserver *server) {
    if (server->server != NULL) {
        cg_server_destroy(server->server);
        server->server = NULL;
    }
    if (server->catchup != NULL) {
        cg_catchup_stop(server->catchup);
        while (!cg_catchup_idle(server->catchup)) {
            if (cg_reactor_wait(server->reactor, CG_NS_PER_S) < 0) {
                break;
            }
        }
    }
    if (server->store != NULL) {
        // Requests without a connection still have to end.
        while (!cg_store_idle(server->store)) {
            if (cg_reactor_wait(server->reactor, CG_NS_PER_S) < 0) {
                break;
            }
        }
        cg_store_close(server->store);
    }
    if (server->catchup != NULL && cg_catchup_idle(server->catchup)) {
        cg_catchup_destroy(server->catchup);
    }
    cg_peers_destroy(server->peers);
    cg_buffer_pool_destroy(server->peers_pool);
    cg_buffer_pool_destroy(server->pool);
    if (server->disk != NULL) {
        cg_disk_close(server->disk);
    }
}

static void report_start(struct cg_chunkserver *server, int result) {
    pthread_mutex_lock(&server->mutex);
    server->start_result = result;
    server->started = true;
    pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->mutex);
}

static void *thread_main(void *argument) {
    struct cg_chunkserver *server = argument;
    int result = open_store(server);
    if (result == 0) {
        format_uuid(cg_store_uuid(server->store), server->uuid);
        result = open_service(server);
    }
    if (result != 0) {
        close_all(server);
        report_start(server, result);
        return NULL;
    }
    report_start(server, 0);
    result = cg_reactor_run(server->reactor);
    if (result != 0) {
        cg_log(CG_LOG_ERROR, "the chunkserver's event loop failed: %s", strerror(-result));
    }
    close_all(server);
    return NULL;
}

// ---- Starting and stopping

static void free_server(struct cg_chunkserver *server) {
    if (server->event_fd >= 0) {
        close(server->event_fd);
    }
    if (server->reactor != NULL) {
        cg_reactor_destroy(server->reactor);
    }
    pthread_cond_destroy(&server->changed);
    pthread_mutex_destroy(&server->mutex);
    free((void *)(uintptr_t)server->options.folder);
    free((void *)(uintptr_t)server->options.listen);
    free((void *)(uintptr_t)server->options.advertise);
    free(server);
}

static struct cg_chunkserver *make_server(const struct cg_chunkserver_options *options) {
    struct cg_chunkserver *server = calloc(1, sizeof(*server));
    if (server == NULL) {
        return NULL;
    }
    pthread_mutex_init(&server->mutex, NULL);
    pthread_cond_init(&server->changed, NULL);
    server->options = *options;
    server->options.folder = strdup(options->folder);
    server->options.listen = strdup(options->listen);
    server->options.advertise = options->advertise != NULL ? strdup(options->advertise) : NULL;
    server->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (server->options.folder == NULL || server->options.listen == NULL || server->event_fd < 0 ||
        (options->advertise != NULL && server->options.advertise == NULL)) {
        free_server(server);
        return NULL;
    }
    return server;
}

int cg_chunkserver_start(const struct cg_chunkserver_options *options, struct cg_chunkserver **out,
                         char *error, size_t error_size) {
    if (options->folder == NULL || options->listen == NULL) {
        snprintf(error, error_size, "a folder and an endpoint to listen on are needed");
        return -EINVAL;
    }
    struct cg_chunkserver *server = make_server(options);
    if (server == NULL) {
        snprintf(error, error_size, "out of memory");
        return -ENOMEM;
    }
    server->error = error;
    server->error_size = error_size;
    int result = -pthread_create(&server->thread, NULL, thread_main, server);
    if (result != 0) {
        snprintf(error, error_size, "cannot start a thread: %s", strerror(-result));
        free_server(server);
        return result;
    }
    pthread_mutex_lock(&server->mutex);
    while (!server->started) {
        pthread_cond_wait(&server->changed, &server->mutex);
    }
    result = server->start_result;
    pthread_mutex_unlock(&server->mutex);
    if (result != 0) {
        pthread_join(server->thread, NULL);
        free_server(server);
        return result;
    }
    *out = server;
    return 0;
}

static void stop_step(struct cg_timer *timer) {
    struct cg_chunkserver *server = CG_CONTAINER_OF(timer, struct cg_chunkserver, stop_timer);
    struct cg_store *store = server->store;
    uint64_t now = cg_reactor_now(server->reactor);
    bool late = now > server->stop_deadline_ns;
    if (server->stop_stage == STOP_HAND_OVER &&
        (now > server->hand_over_deadline_ns || !cg_handing_over(server))) {
        server->stop_stage = STOP_DRAIN;
        server->service.stopping = true;
    }
    if (server->stop_stage == STOP_DRAIN &&
        (late || (server->service.inflight == 0 && cg_catchup_idle(server->catchup)))) {
        server->stop_stage = STOP_APPLY;
        cg_store_stop(store);
    }
    if (server->stop_stage == STOP_APPLY && (late || cg_store_idle(store))) {
        server->stop_stage = STOP_CHECKPOINT;
        cg_store_checkpoint(store);
    }
    if (server->stop_stage == STOP_CHECKPOINT && (late || !cg_store_checkpointing(store))) {
        cg_reactor_stop(server->reactor);
        return;
    }
    cg_timer_arm(server->reactor, &server->stop_timer, now + STOP_POLL_NS);
}

static void begin_stop(struct cg_host_call *call) {
    struct cg_chunkserver *server = call->server;
    cg_store_scrub_stop(server->store);
    cg_catchup_stop(server->catchup);
    cg_hand_over_all(server);
    server->stop_stage = STOP_HAND_OVER;
    server->hand_over_deadline_ns = cg_reactor_now(server->reactor) + HAND_OVER_NS;
    server->stop_deadline_ns = cg_reactor_now(server->reactor) + STOP_LIMIT_NS;
    server->stop_timer.fire = stop_step;
    stop_step(&server->stop_timer);
    cg_host_finish(call);
}

void cg_chunkserver_stop(struct cg_chunkserver *server) {
    struct cg_host_call call = {.run = begin_stop};
    cg_host_call(server, &call);
    pthread_join(server->thread, NULL);
    free_server(server);
}

int cg_chunkserver_event_fd(const struct cg_chunkserver *server) {
    return server->event_fd;
}

void cg_chunkserver_uuid(const struct cg_chunkserver *server, char out[37]) {
    memcpy(out, server->uuid, sizeof(server->uuid));
}

void cg_chunkserver_address(const struct cg_chunkserver *server, char *out, size_t size) {
    snprintf(out, size, "%s", server->address);
}
