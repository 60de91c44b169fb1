// SPDX-License-Identifier: BSD-3-Clause
//
// A channel's connection: made when there is something to send, watched, taken down.
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/peer.h"
#include "rpc/channel_internal.h"
#include "rpc/socket.h"

// A unix listener whose backlog is full refuses with EAGAIN: try again this much later.
#define BACKLOG_RETRY_NS (2 * CG_NS_PER_MS)

// Receives at once before other descriptors get their turn.
#define READS_AT_ONCE 16

static void on_ready(struct cg_watch *watch, uint32_t events);

static void close_socket(struct cg_channel *channel) {
    cg_timer_disarm(&channel->connect_timer);
    cg_reactor_unwatch(&channel->watch);
    if (channel->fd >= 0) {
        close(channel->fd);
        channel->fd = -1;
    }
    channel->state = CHANNEL_IDLE;
    channel->write_watched = false;
    channel->hung_up = false;
}

static void end_all_queued(struct cg_channel *channel, int status) {
    while (!cg_list_empty(&channel->sender.queue)) {
        struct cg_send_item *item =
            CG_CONTAINER_OF(channel->sender.queue.next, struct cg_send_item, node);
        cg_channel_end_later(channel, CG_CONTAINER_OF(item, struct cg_rpc_call, item), status);
    }
    cg_reactor_defer(channel->reactor, &channel->flush);
}

void cg_channel_break(struct cg_channel *channel, int status) {
    if (channel->state == CHANNEL_IDLE) {
        return;
    }
    close_socket(channel);
    channel->receiver.closed = true;
    while (!cg_list_empty(&channel->waiting)) {
        struct cg_list *node = channel->waiting.next;
        cg_channel_end_later(channel, CG_CONTAINER_OF(node, struct cg_rpc_call, node), status);
    }
    if (!cg_list_empty(&channel->sender.queue)) {
        struct cg_send_item *item =
            CG_CONTAINER_OF(channel->sender.queue.next, struct cg_send_item, node);
        if (item->sent > 0) {
            cg_channel_end_later(channel, CG_CONTAINER_OF(item, struct cg_rpc_call, item), status);
        }
    }
    cg_reactor_defer(channel->reactor, &channel->flush);
}

void cg_channel_disconnect(struct cg_channel *channel, int status) {
    cg_channel_break(channel, status);
    end_all_queued(channel, status);
}

// ---- Connecting

// Nothing was sent, and the status must say so: -ETIMEDOUT would mean "it may have taken effect".
static int connect_status(int error) {
    switch (error) {
    case ETIMEDOUT:
        return -EHOSTUNREACH;
    case ENOENT:
    case EAGAIN:
    case ECONNRESET:
        return -ECONNREFUSED;
    default:
        return -error;
    }
}

static void connect_failed(struct cg_channel *channel, int error) {
    close_socket(channel);
    end_all_queued(channel, connect_status(error));
}

static int start_watching(struct cg_channel *channel, uint32_t events) {
    channel->watch = (struct cg_watch){
        .fd = channel->fd,
        .events = events,
        .ready = on_ready,
    };
    return cg_reactor_watch(channel->reactor, &channel->watch);
}

static void connected(struct cg_channel *channel) {
    cg_timer_disarm(&channel->connect_timer);
    int rc = channel->watch.reactor == NULL
                 ? start_watching(channel, EPOLLIN | EPOLLRDHUP)
                 : cg_reactor_rewatch(&channel->watch, EPOLLIN | EPOLLRDHUP);
    if (rc < 0) {
        connect_failed(channel, -rc);
        return;
    }
    channel->state = CHANNEL_CONNECTED;
    cg_receiver_reset(&channel->receiver);
    cg_channel_flush(channel);
}

// The server's socket on this machine, if there is one: a connection is made or refused at once.
static bool connect_beside(struct cg_channel *channel) {
    if (channel->beside.length == 0) {
        return false;
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return false;
    }
    const struct sockaddr *address = (const struct sockaddr *)&channel->beside.address;
    if (connect(fd, address, channel->beside.length) < 0 || !cg_peer_trusted(fd)) {
        close(fd);
        return false;
    }
    cg_socket_tune(fd, AF_UNIX);
    channel->fd = fd;
    channel->watch = (struct cg_watch){0};
    connected(channel);
    return true;
}

static int open_socket(struct cg_channel *channel) {
    int family = channel->peer.address.ss_family;
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return -errno;
    }
    cg_socket_tune(fd, family);
    channel->fd = fd;
    channel->watch = (struct cg_watch){0};
    return 0;
}

static void try_to_connect(struct cg_channel *channel) {
    const struct sockaddr *address = (const struct sockaddr *)&channel->peer.address;
    if (connect(channel->fd, address, channel->peer.length) == 0) {
        connected(channel);
        return;
    }
    int rc = -errno;
    uint64_t retry = channel->connect_deadline_ns;
    if (rc == -EINPROGRESS || rc == -EINTR) {
        rc = start_watching(channel, EPOLLOUT);
    } else if (rc == -EAGAIN) {
        uint64_t soon = cg_reactor_now(channel->reactor) + BACKLOG_RETRY_NS;
        if (soon < retry) {
            retry = soon;
            rc = 0;
        }
    }
    if (rc == 0) {
        rc = cg_timer_arm(channel->reactor, &channel->connect_timer, retry);
    }
    if (rc < 0) {
        connect_failed(channel, -rc);
    }
}

static void connect_timer_fired(struct cg_timer *timer) {
    struct cg_channel *channel = CG_CONTAINER_OF(timer, struct cg_channel, connect_timer);
    if (cg_reactor_now(channel->reactor) >= channel->connect_deadline_ns) {
        connect_failed(channel, ETIMEDOUT);
    } else {
        try_to_connect(channel);
    }
}

void cg_channel_connect(struct cg_channel *channel) {
    channel->state = CHANNEL_CONNECTING;
    if (connect_beside(channel)) {
        return;
    }
    channel->connect_timer.fire = connect_timer_fired;
    channel->connect_deadline_ns = cg_reactor_now(channel->reactor) + channel->connect_timeout_ns;
    int rc = open_socket(channel);
    if (rc < 0) {
        connect_failed(channel, -rc);
        return;
    }
    try_to_connect(channel);
}

static void connect_ready(struct cg_channel *channel) {
    int error = 0;
    socklen_t size = sizeof(error);
    if (getsockopt(channel->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0) {
        error = errno;
    }
    if (error != 0) {
        connect_failed(channel, error);
        return;
    }
    struct sockaddr_storage peer;
    socklen_t length = sizeof(peer);
    if (getpeername(channel->fd, (struct sockaddr *)&peer, &length) == 0) {
        connected(channel);
    }
    // Else a report that came too early: the next one decides, or the timer.
}

// ---- Connected

void cg_channel_flush(struct cg_channel *channel) {
    if (channel->state == CHANNEL_IDLE && !cg_list_empty(&channel->sender.queue)) {
        cg_channel_connect(channel);
        return;
    }
    if (channel->state != CHANNEL_CONNECTED) {
        return;
    }
    int rc = cg_sender_flush(&channel->sender, channel->fd);
    bool blocked = rc == CG_SEND_BLOCKED;
    if (rc >= 0 && blocked != channel->write_watched) {
        channel->write_watched = blocked;
        rc = cg_reactor_rewatch(&channel->watch, EPOLLIN | EPOLLRDHUP | (blocked ? EPOLLOUT : 0U));
    }
    if (rc < 0) {
        cg_channel_break(channel, -ECONNRESET);
    }
}

static void read_replies(struct cg_channel *channel) {
    for (int i = 0; i < READS_AT_ONCE; i++) {
        int rc = cg_receiver_read(&channel->receiver, channel->fd);
        if (channel->receiver.closed) {
            return;
        }
        if (rc < 0) {
            // A reply that made no sense says so; everything else is a lost connection.
            bool nonsense = rc == -EPROTO || rc == -EMSGSIZE;
            cg_channel_break(channel, nonsense ? -EPROTO : -ECONNRESET);
            return;
        }
        if (rc == 0 && !channel->hung_up) {
            return;
        }
    }
    // More is there: after the others had their turn.
    if (cg_reactor_rewatch(&channel->watch, channel->watch.events) < 0) {
        cg_channel_break(channel, -ECONNRESET);
    }
}

static void on_ready(struct cg_watch *watch, uint32_t events) {
    struct cg_channel *channel = CG_CONTAINER_OF(watch, struct cg_channel, watch);
    cg_channel_enter(channel);
    if (channel->state == CHANNEL_CONNECTING) {
        connect_ready(channel);
    } else {
        if ((events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) {
            channel->hung_up = true;
        }
        if ((events & EPOLLOUT) != 0) {
            cg_channel_flush(channel);
        }
        if (channel->state == CHANNEL_CONNECTED && (events & ~(uint32_t)EPOLLOUT) != 0) {
            read_replies(channel);
        }
    }
    cg_channel_leave(channel);
}
