// SPDX-License-Identifier: BSD-3-Clause
//
// The public calls that open a volume: one waits, the other tells when it is done. open.c has the
// steps.
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/log.h"
#include "volume/client.h"
#include "volume/opening.h"
#include "volume/session.h"
#include "volume/volume.h"

#define PATH_LENGTH_MAX 1024U
#define ERROR_LENGTH    512U

// What a caller of the first version has.
#define OPTIONS_SIZE_FIRST offsetof(struct cg_volume_options, on_event)

static char *normal_path(const char *path) {
    size_t length = path != NULL ? strlen(path) : 0;
    if (length == 0 || length > PATH_LENGTH_MAX || path[length - 1] == '/') {
        return NULL;
    }
    char *out = malloc(length + 2);
    if (out != NULL) {
        snprintf(out, length + 2, "%s%s", path[0] == '/' ? "" : "/", path);
    }
    return out;
}

int vol_create(struct cg_client *client, const struct cg_volume_options *options,
               struct cg_volume **out) {
    struct cg_volume *volume = calloc(1, sizeof(*volume));
    if (volume == NULL) {
        return -ENOMEM;
    }
    volume->client = client;
    volume->reactor = client->reactor;
    volume->flags = options->flags;
    volume->exclusive = (options->flags & (CG_OPEN_READ_ONLY | CG_OPEN_SHARED)) == 0;
    volume->send_epoch = (options->flags & CG_OPEN_READ_ONLY) == 0;
    volume->io_timeout_ns =
        (options->io_timeout_ms != 0 ? options->io_timeout_ms : VOL_IO_TIMEOUT_MS) * CG_NS_PER_MS;
    volume->inflight_max =
        options->inflight_max != 0 ? options->inflight_max : VOL_INFLIGHT_DEFAULT;
    volume->path = normal_path(options->path);
    vol_events_init(volume, options);
    cg_list_init(&volume->node);
    cg_list_init(&volume->unsettled);
    cg_list_init(&volume->free_requests);
    cg_list_init(&volume->queue);
    cg_list_init(&volume->paused);
    cg_list_init(&volume->state_calls);
    cg_range_lock_init(&volume->ranges);
    for (unsigned i = 0; i < VOL_COPYSET_BUCKETS; i++) {
        cg_list_init(&volume->copysets[i]);
    }
    volume->next_sequence = 1;
    bool random = getrandom(&volume->client_id, sizeof(volume->client_id), 0) ==
                  (ssize_t)sizeof(volume->client_id);
    volume->client_id |= 1; // never 0, which reads as absent
    volume->random = (uint32_t)(volume->client_id >> 32);
    if (volume->path == NULL || !random || vol_requests_create(volume) != 0) {
        vol_free(volume);
        return -ENOMEM;
    }
    *out = volume;
    return 0;
}

// Takes options of this version or an earlier one; what that did not have is zero.
static int take_options(const struct cg_volume_options *given, struct cg_volume_options *options,
                        char *error, size_t size) {
    if (given->struct_size < OPTIONS_SIZE_FIRST || given->struct_size > sizeof(*options)) {
        snprintf(error, size, "struct_size of the volume's options is not set");
        return -EINVAL;
    }
    memset(options, 0, sizeof(*options));
    memcpy(options, given, given->struct_size);
    return 0;
}

static int check_options(const struct cg_client *client, const struct cg_volume_options *options,
                         char *error, size_t size) {
    const char *path = options->path;
    size_t length = path != NULL ? strlen(path) : 0;
    if (options->on_event != NULL && client->mode != CG_CLIENT_FOREIGN_LOOP) {
        snprintf(error, size, "events are for a client in a foreign loop");
    } else if (length == 0 || length > PATH_LENGTH_MAX || path[length - 1] == '/') {
        snprintf(error, size, "a volume's name has 1 to %u bytes and does not end in /",
                 PATH_LENGTH_MAX);
    } else if (options->inflight_max > VOL_INFLIGHT_MAX) {
        snprintf(error, size, "inflight_max is %u, the most is %u", options->inflight_max,
                 VOL_INFLIGHT_MAX);
    } else if ((options->flags & ~(unsigned)(CG_OPEN_READ_ONLY | CG_OPEN_SHARED)) != 0 ||
               options->io_timeout_ms > UINT32_MAX || options->open_timeout_ms > UINT32_MAX) {
        snprintf(error, size, "flags or timeouts are out of range");
    } else {
        return 0;
    }
    return -EINVAL;
}

static uint64_t open_timeout_ns(const struct cg_volume_options *options) {
    uint64_t ms = options->open_timeout_ms != 0 ? options->open_timeout_ms : VOL_OPEN_TIMEOUT_MS;
    return ms * CG_NS_PER_MS;
}

// ---- Waiting for it

struct blocking_open {
    struct cg_task task;
    struct cg_waiter waiter;
    struct vol_opening opening;
};

static void begin_blocking(struct cg_task *task) {
    vol_opening_begin(&CG_CONTAINER_OF(task, struct blocking_open, task)->opening);
}

static void blocking_ended(struct vol_opening *opening) {
    struct blocking_open *open = CG_CONTAINER_OF(opening, struct blocking_open, opening);
    cg_waiter_done(opening->volume->client, &open->waiter);
}

CG_API int cg_volume_open(struct cg_client *client, const struct cg_volume_options *given,
                          struct cg_volume **out, char *error, size_t error_size) {
    struct cg_volume_options options;
    char nothing[1];
    if (error == NULL || error_size == 0) {
        error = nothing;
        error_size = sizeof(nothing);
    }
    error[0] = '\0';
    int result = take_options(given, &options, error, error_size);
    if (result == 0) {
        result = check_options(client, &options, error, error_size);
    }
    if (result != 0) {
        return result;
    }
    struct cg_volume *volume;
    result = vol_create(client, &options, &volume);
    if (result != 0) {
        snprintf(error, error_size, "%s: no memory", options.path);
        return result;
    }
    struct blocking_open open = {
        .task.run = begin_blocking,
        .opening =
            {
                .volume = volume,
                .timeout_ns = open_timeout_ns(&options),
                .error = error,
                .error_size = error_size,
                .ended = blocking_ended,
            },
    };
    cg_waiter_init(&open.waiter);
    cg_client_post(client, &open.task);
    cg_client_wait(client, &open.waiter);
    if (open.opening.result != 0) {
        // A session that was begun runs out by itself; it fences nobody.
        vol_free(volume);
        return open.opening.result;
    }
    *out = volume;
    return 0;
}

// ---- Not waiting

struct started_open {
    struct cg_list node; // the client's openings
    struct vol_opening opening;
    cg_open_done *done;
    void *user;
    char error[ERROR_LENGTH];
};

static void started_ended(struct vol_opening *opening) {
    struct started_open *open = CG_CONTAINER_OF(opening, struct started_open, opening);
    struct cg_volume *volume = opening->volume;
    cg_list_remove(&open->node);
    if (opening->result != 0) {
        vol_free(volume);
        volume = NULL;
    }
    open->done(open->user, opening->result, volume, open->error);
    free(open);
}

CG_API int cg_volume_open_start(struct cg_client *client, const struct cg_volume_options *given,
                                cg_open_done *done, void *user) {
    struct cg_volume_options options;
    if (client->mode != CG_CLIENT_FOREIGN_LOOP) {
        return -ENOTSUP;
    }
    if (atomic_load_explicit(&client->stop, memory_order_relaxed)) {
        return -ESHUTDOWN;
    }
    struct started_open *open = calloc(1, sizeof(*open));
    if (open == NULL) {
        return -ENOMEM;
    }
    int result = take_options(given, &options, open->error, sizeof(open->error));
    if (result == 0) {
        result = check_options(client, &options, open->error, sizeof(open->error));
    }
    if (result == 0) {
        result = vol_create(client, &options, &open->opening.volume);
    }
    if (result != 0) {
        cg_log(CG_LOG_ERROR, "%s", open->error[0] != '\0' ? open->error : strerror(-result));
        free(open);
        return result;
    }
    open->opening.timeout_ns = open_timeout_ns(&options);
    open->opening.error = open->error;
    open->opening.error_size = sizeof(open->error);
    open->opening.ended = started_ended;
    open->done = done;
    open->user = user;
    cg_list_push_back(&client->openings, &open->node);
    vol_opening_begin(&open->opening);
    return 0;
}

// The one that was started with `user`, or NULL.
static struct started_open *find_started(struct cg_client *client, const void *user) {
    CG_LIST_FOREACH (node, &client->openings) {
        struct started_open *open = CG_CONTAINER_OF(node, struct started_open, node);
        if (open->user == user) {
            return open;
        }
    }
    return NULL;
}

CG_API void cg_volume_open_cancel(struct cg_client *client, const void *user) {
    struct started_open *open = find_started(client, user);
    if (open != NULL) {
        vol_opening_cancel(&open->opening);
    }
}

void vol_openings_cancel(struct cg_client *client) {
    while (!cg_list_empty(&client->openings)) {
        vol_opening_cancel(
            &CG_CONTAINER_OF(client->openings.next, struct started_open, node)->opening);
    }
}
