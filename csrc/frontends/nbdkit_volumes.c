// SPDX-License-Identifier: BSD-3-Clause
#include "frontends/nbdkit_volumes.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define ERROR_TEXT_MAX 512

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const struct nbd_options *settings;
static struct cg_client *client;
static struct nbd_volume *volumes;
static unsigned volume_count;

static void log_line(void *context, int level, const char *line) {
    (void)context;
    if (level >= 3) {
        nbdkit_error("%s", line);
    } else if (level == 2) {
        nbdkit_error("warning: %s", line);
    } else {
        nbdkit_debug("%s", line);
    }
}

static int create_client(const struct nbd_options *options, enum cg_client_mode mode,
                         struct cg_client **out) {
    struct cg_client_options client_options = {
        .struct_size = sizeof(client_options),
        .mode = mode,
        .mds = options->mds,
        .owner = options->owner,
        .root_password = options->password,
        .log = log_line,
    };
    int r = cg_client_create(&client_options, out);
    if (r == -EINVAL) {
        nbdkit_error("mds=%s does not name metadata servers: give HOST:PORT[,HOST:PORT...], for "
                     "example mds=" NBD_DEFAULT_MDS,
                     options->mds);
    } else if (r < 0) {
        nbdkit_error("cannot start the IO core: %s", strerror(-r));
    }
    return r < 0 ? -1 : 0;
}

// Returns 0 or -errno after nbdkit_error.
static int open_volume(struct cg_client *owner, const struct nbd_options *options, const char *name,
                       uint32_t flags, struct cg_volume **out) {
    char error[ERROR_TEXT_MAX] = "";
    struct cg_volume_options volume_options = {
        .struct_size = sizeof(volume_options),
        .path = name,
        .flags = flags,
        .io_timeout_ms = options->timeout_ms,
        // A deadline shorter than the core's default for opening holds for opening too.
        .open_timeout_ms = options->timeout_ms < 10000 ? options->timeout_ms : 0,
    };
    int r = cg_volume_open(owner, &volume_options, out, error, sizeof(error));
    if (r < 0) {
        nbdkit_error("cannot open volume %s (mds=%s): %s", name, options->mds,
                     error[0] != '\0' ? error : strerror(-r));
    }
    return r;
}

int nbd_volumes_check(const struct nbd_options *options) {
    struct cg_client *probe;
    if (create_client(options, CG_CLIENT_FOREIGN_LOOP, &probe) < 0) {
        return -1;
    }
    int r = 0;
    if (options->volume != NULL) {
        struct cg_volume *volume;
        r = open_volume(probe, options, options->volume, CG_OPEN_READ_ONLY, &volume);
        if (r == 0) {
            cg_volume_close(volume);
        }
    }
    cg_client_destroy(probe);
    return r < 0 ? -1 : 0;
}

int nbd_volumes_start(const struct nbd_options *options) {
    settings = options;
    return create_client(options, CG_CLIENT_OWN_THREAD, &client);
}

void nbd_volumes_stop(void) {
    if (client != NULL) {
        cg_client_destroy(client);
        client = NULL;
    }
    while (volumes != NULL) {
        struct nbd_volume *volume = volumes;
        volumes = volume->next;
        free(volume->name);
        free(volume);
    }
    volume_count = 0;
}

static struct nbd_volume *find(const char *name, bool read_only) {
    for (struct nbd_volume *volume = volumes; volume != NULL; volume = volume->next) {
        if (volume->read_only == read_only && strcmp(volume->name, name) == 0) {
            return volume;
        }
    }
    return NULL;
}

static struct nbd_volume *add(const char *name, bool read_only) {
    if (volume_count >= NBD_VOLUMES_MAX) {
        nbdkit_error("cannot open volume %s: %d volumes are open, which is the limit of one nbdkit "
                     "process",
                     name, NBD_VOLUMES_MAX);
        nbdkit_set_error(ENOMEM);
        return NULL;
    }
    struct nbd_volume *volume = calloc(1, sizeof(*volume));
    char *copy = strdup(name);
    if (volume == NULL || copy == NULL) {
        nbdkit_error("cannot open volume %s: %m", name);
        nbdkit_set_error(ENOMEM);
        free(copy);
        free(volume);
        return NULL;
    }
    uint32_t flags = read_only ? CG_OPEN_READ_ONLY : settings->shared ? CG_OPEN_SHARED : 0;
    int r = open_volume(client, settings, name, flags, &volume->volume);
    if (r < 0) {
        nbdkit_set_error(-r);
        free(copy);
        free(volume);
        return NULL;
    }
    volume->name = copy;
    volume->read_only = read_only;
    volume->next = volumes;
    volumes = volume;
    volume_count++;
    return volume;
}

struct nbd_volume *nbd_volume_acquire(const char *name, bool read_only) {
    while (name[0] == '/') {
        name++;
    }
    pthread_mutex_lock(&lock);
    struct nbd_volume *volume = find(name, read_only);
    if (volume != NULL && atomic_load(&volume->fenced)) {
        // Joining would take the volume back under connections that were told it is lost.
        nbdkit_error(
            "volume %s was taken over by another client: close the connections to it, then "
            "connect anew to take it back",
            name);
        nbdkit_set_error(ESHUTDOWN);
        volume = NULL;
    } else if (volume == NULL) {
        volume = add(name, read_only);
    }
    if (volume != NULL) {
        volume->connections++;
    }
    pthread_mutex_unlock(&lock);
    return volume;
}

void nbd_volume_release(struct nbd_volume *volume) {
    pthread_mutex_lock(&lock);
    if (--volume->connections == 0) {
        struct nbd_volume **link = &volumes;
        while (*link != volume) {
            link = &(*link)->next;
        }
        *link = volume->next;
        volume_count--;
        // Under the lock: a new opening for writing must not start before this one's end.
        cg_volume_close(volume->volume);
        free(volume->name);
        free(volume);
    }
    pthread_mutex_unlock(&lock);
}

// NBD carries EPERM, EIO, ENOMEM, EINVAL, ENOSPC and ESHUTDOWN; nbdkit turns all others into
// EINVAL, which would blame the client.
static int nbd_errno(int error) {
    switch (error) {
    case EINVAL:
    case ENOSPC:
    case ENOMEM:
    case EROFS:
    case ESHUTDOWN:
        return error;
    case EACCES:
        return EPERM;
    case ESTALE:
        return ESHUTDOWN;
    default:
        return EIO;
    }
}

static const char *reason(int error) {
    switch (error) {
    case ESTALE:
        return "another client has taken the volume over; this one is fenced";
    case ETIMEDOUT:
        return "the store did not answer before the deadline (timeout=)";
    case EBADMSG:
        return "the stored data fails its checksum";
    case ENOSPC:
        return "the store is full";
    case EIO:
        return "the store reported a failure";
    case ESHUTDOWN:
        return "the volume is being closed";
    default:
        return strerror(error);
    }
}

int nbd_volume_failed(struct nbd_volume *volume, const char *operation, uint64_t length,
                      uint64_t offset, int result) {
    int error = -result;
    if (error == ESTALE) {
        atomic_store(&volume->fenced, true);
    }
    nbdkit_set_error(nbd_errno(error));

    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t second = (uint64_t)now.tv_sec + 1;
    uint_fast64_t before = atomic_load(&volume->logged_at);
    if (before == second || !atomic_compare_exchange_strong(&volume->logged_at, &before, second)) {
        atomic_fetch_add(&volume->suppressed, 1);
        return -1;
    }
    unsigned suppressed = atomic_exchange(&volume->suppressed, 0);
    nbdkit_error("volume %s: %s of %llu bytes at %llu failed: %s", volume->name, operation,
                 (unsigned long long)length, (unsigned long long)offset, reason(error));
    if (suppressed > 0) {
        nbdkit_error("volume %s: %u more failures since the last line", volume->name, suppressed);
    }
    return -1;
}
