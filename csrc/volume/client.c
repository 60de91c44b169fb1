// SPDX-License-Identifier: BSD-3-Clause
#include "volume/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "volume/opening.h"
#include "volume/session.h"
#include "volume/volume.h"

#define OWNER_DEFAULT    "copygate"
#define OWNER_LENGTH_MAX 256U
#define TRIM_DELAY_NS    (60 * CG_NS_PER_S) // as CurveBS's client

// The program's sink has no type of ours in it.
struct log_target {
    void (*log)(void *context, int level, const char *line);
    void *context;
};
static struct log_target log_target;

static void log_line(void *context, enum cg_log_level level, const char *line) {
    const struct log_target *target = context;
    target->log(target->context, (int)level, line);
}

static int check_options(const struct cg_client_options *options) {
    const char *owner = options->owner;
    bool known_mode =
        options->mode == CG_CLIENT_OWN_THREAD || options->mode == CG_CLIENT_FOREIGN_LOOP;
    if (options->struct_size != sizeof(*options) || !known_mode || options->mds == NULL ||
        options->mds[0] == '\0' ||
        (owner != NULL && (owner[0] == '\0' || strlen(owner) > OWNER_LENGTH_MAX))) {
        return -EINVAL;
    }
    return 0;
}

static int start(struct cg_client *client, const struct cg_client_options *options) {
    // Sockets only, and threads take turns at it: see base/reactor.h.
    struct cg_reactor_options reactor_options = {.backend = CG_REACTOR_EPOLL};
    int error = cg_reactor_create(&reactor_options, &client->reactor);
    if (error != 0) {
        return error;
    }
    error = cg_mds_create(&client->mds, client->reactor, options->mds,
                          options->owner != NULL ? options->owner : OWNER_DEFAULT,
                          options->root_password);
    if (error != 0) {
        cg_reactor_destroy(client->reactor);
        return error == -EHOSTUNREACH || error == -ENAMETOOLONG ? -EINVAL : error;
    }
    if (options->mode == CG_CLIENT_FOREIGN_LOOP) {
        client->async_may_complete = true;
        return 0;
    }
    error = cg_client_start_thread(client);
    if (error != 0) {
        cg_mds_destroy(&client->mds);
        cg_reactor_destroy(client->reactor);
    }
    return error;
}

CG_API int cg_client_create(const struct cg_client_options *options, struct cg_client **out) {
    int error = check_options(options);
    if (error != 0) {
        return error;
    }
    struct cg_client *client = aligned_alloc(64, (sizeof(*client) + 63) / 64 * 64);
    if (client == NULL) {
        return -ENOMEM;
    }
    memset(client, 0, sizeof(*client));
    client->mode = options->mode;
    client->trim_delay_ns = TRIM_DELAY_NS;
    cg_list_init(&client->volumes);
    cg_list_init(&client->openings);
    cg_list_init(&client->servers);
    cg_list_init(&client->follower_list);
    vol_submit_init(client);
    if (options->log != NULL) {
        log_target = (struct log_target){options->log, options->log_context};
        cg_log_set_sink(log_line, &log_target, CG_LOG_INFO);
    }
    error = start(client, options);
    if (error != 0) {
        free(client);
        return error;
    }
    *out = client;
    return 0;
}

CG_API void cg_client_destroy(struct cg_client *client) {
    if (client == NULL) {
        return;
    }
    if (client->mode == CG_CLIENT_FOREIGN_LOOP) {
        atomic_store(&client->stop, true); // what ends now must not begin anew
        vol_openings_cancel(client);
    }
    while (!cg_list_empty(&client->volumes)) {
        vol_close_and_wait(CG_CONTAINER_OF(client->volumes.next, struct cg_volume, node));
    }
    if (client->mode == CG_CLIENT_OWN_THREAD) {
        cg_client_stop_thread(client);
    }
    vol_servers_free(client);
    cg_mds_destroy(&client->mds);
    cg_reactor_destroy(client->reactor);
    free(client);
}

CG_API int cg_client_fd(struct cg_client *client) {
    return cg_reactor_fd(client->reactor);
}

CG_API int cg_client_progress(struct cg_client *client) {
    return cg_reactor_progress(client->reactor);
}

CG_API void cg_client_will_progress(struct cg_client *client) {
    cg_reactor_awake(client->reactor);
}

CG_API void cg_volume_info(const struct cg_volume *volume, struct cg_volume_info *out) {
    *out = (struct cg_volume_info){
        .size = atomic_load_explicit(&volume->size, memory_order_relaxed),
        .volume_id = volume->file_id,
        .epoch = atomic_load_explicit(&volume->epoch, memory_order_relaxed),
        .block_size = volume->block_size,
        .chunk_size = (uint32_t)volume->layout.chunk_size,
        .segment_size = volume->segment_size,
        .stripe_unit = (uint32_t)volume->layout.stripe_unit,
        .stripe_count = (uint32_t)volume->layout.stripe_count,
        .max_io = volume->max_request,
        .read_only = (volume->flags & CG_OPEN_READ_ONLY) != 0,
        .native = volume->native,
    };
    memcpy(out->uuid, volume->uuid, sizeof(out->uuid));
}

static uint64_t value(const _Atomic uint64_t *counter) {
    return atomic_load_explicit(counter, memory_order_relaxed);
}

CG_API void cg_volume_stats(const struct cg_volume *volume, struct cg_volume_stats *out) {
    const struct vol_counters *counters = &volume->counters;
    *out = (struct cg_volume_stats){
        .reads = value(&counters->reads) + value(&counters->local_reads),
        .writes = value(&counters->writes),
        .others = value(&counters->others),
        .read_bytes = value(&counters->read_bytes) + value(&counters->local_bytes),
        .local_reads = value(&counters->local_reads),
        .written_bytes = value(&counters->written_bytes),
        .errors = value(&counters->errors),
        .requests = value(&counters->requests),
        .retries = value(&counters->retries),
        .redirects = value(&counters->redirects),
        .timeouts = value(&counters->timeouts),
        .overloads = value(&counters->overloads),
        .inflight = value(&counters->inflight),
    };
}

CG_API const char *cg_version(void) {
    return "copygate " COPYGATE_VERSION;
}
