// SPDX-License-Identifier: BSD-3-Clause
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "rpc/server_internal.h"

#define BACKLOG         1024
#define ACCEPT_RETRY_NS (100 * CG_NS_PER_MS)

static const char *unix_path(const struct cg_endpoint *endpoint) {
    return ((const struct sockaddr_un *)(const void *)&endpoint->address)->sun_path;
}

static void accept_all(struct cg_listener *listener) {
    struct cg_server *server = listener->server;
    for (;;) {
        int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0 && (errno == EINTR || errno == ECONNABORTED)) {
            continue;
        }
        if (fd < 0 && errno == EAGAIN) {
            return;
        }
        if (fd < 0) {
            // Out of descriptors or memory. No event will tell when that is over.
            cg_log(CG_LOG_WARNING, "accept: %s; trying again", strerrorname_np(errno));
            if (cg_timer_arm(server->reactor, &listener->retry,
                             cg_reactor_now(server->reactor) + ACCEPT_RETRY_NS) < 0) {
                cg_log(CG_LOG_ERROR, "no memory for a timer: a listener stops accepting");
            }
            return;
        }
        if (server->stats.connections >= server->options.connections_max) {
            close(fd);
            continue;
        }
        int rc = cg_connection_create(server, fd, listener->endpoint.address.ss_family);
        if (rc < 0) {
            cg_log(CG_LOG_WARNING, "a connection was dropped: %s", strerrorname_np(-rc));
        }
    }
}

static void on_ready(struct cg_watch *watch, uint32_t events) {
    (void)events;
    accept_all(CG_CONTAINER_OF(watch, struct cg_listener, watch));
}

static void on_retry(struct cg_timer *timer) {
    accept_all(CG_CONTAINER_OF(timer, struct cg_listener, retry));
}

// Removes the file of a unix socket on which nobody listens. 0, or -EADDRINUSE when somebody does
// or it is no socket.
static int remove_stale(const struct cg_endpoint *endpoint) {
    struct stat st;
    if (lstat(unix_path(endpoint), &st) < 0) {
        return errno == ENOENT ? 0 : -errno;
    }
    if (!S_ISSOCK(st.st_mode)) {
        return -EADDRINUSE;
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return -errno;
    }
    const struct sockaddr *address = (const struct sockaddr *)&endpoint->address;
    int rc = connect(fd, address, endpoint->length) < 0 ? errno : 0;
    close(fd);
    if (rc != ECONNREFUSED) {
        return -EADDRINUSE;
    }
    return unlink(unix_path(endpoint)) < 0 && errno != ENOENT ? -errno : 0;
}

static int bind_endpoint(int fd, const struct cg_endpoint *endpoint) {
    const struct sockaddr *address = (const struct sockaddr *)&endpoint->address;
    if (endpoint->address.ss_family != AF_UNIX) {
        int on = 1;
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        return bind(fd, address, endpoint->length) < 0 ? -errno : 0;
    }
    if (bind(fd, address, endpoint->length) == 0) {
        return 0;
    }
    if (errno != EADDRINUSE) {
        return -errno;
    }
    int rc = remove_stale(endpoint);
    if (rc < 0) {
        return rc;
    }
    return bind(fd, address, endpoint->length) < 0 ? -errno : 0;
}

static void remember_file(struct cg_listener *listener) {
    struct stat st;
    if (listener->endpoint.address.ss_family == AF_UNIX &&
        lstat(unix_path(&listener->endpoint), &st) == 0) {
        listener->device = st.st_dev;
        listener->inode = st.st_ino;
    }
}

static int open_listener(struct cg_listener *listener) {
    int family = listener->endpoint.address.ss_family;
    listener->fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener->fd < 0) {
        return -errno;
    }
    int rc = bind_endpoint(listener->fd, &listener->endpoint);
    if (rc < 0) {
        return rc;
    }
    remember_file(listener);
    if (listen(listener->fd, BACKLOG) < 0) {
        return -errno;
    }
    listener->endpoint.length = sizeof(listener->endpoint.address);
    if (getsockname(listener->fd, (struct sockaddr *)&listener->endpoint.address,
                    &listener->endpoint.length) < 0) {
        return -errno;
    }
    listener->watch.fd = listener->fd;
    listener->watch.events = EPOLLIN;
    listener->watch.ready = on_ready;
    listener->retry.fire = on_retry;
    return cg_reactor_watch(listener->server->reactor, &listener->watch);
}

int cg_server_listen(struct cg_server *server, const struct cg_endpoint *endpoint,
                     struct cg_endpoint *bound) {
    struct cg_listener *listener = calloc(1, sizeof(*listener));
    if (listener == NULL) {
        return -ENOMEM;
    }
    listener->server = server;
    listener->endpoint = *endpoint;
    cg_list_init(&listener->node);
    int rc = open_listener(listener);
    if (rc < 0) {
        cg_listener_close(listener);
        return rc;
    }
    cg_list_push_back(&server->listeners, &listener->node);
    if (bound != NULL) {
        *bound = listener->endpoint;
    }
    return 0;
}

void cg_listener_close(struct cg_listener *listener) {
    struct stat st;
    cg_list_remove(&listener->node);
    cg_timer_disarm(&listener->retry);
    cg_reactor_unwatch(&listener->watch);
    if (listener->inode != 0 && lstat(unix_path(&listener->endpoint), &st) == 0 &&
        st.st_dev == listener->device && st.st_ino == listener->inode) {
        unlink(unix_path(&listener->endpoint));
    }
    if (listener->fd >= 0) {
        close(listener->fd);
    }
    free(listener);
}
