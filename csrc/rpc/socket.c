// SPDX-License-Identifier: BSD-3-Clause
#include "rpc/socket.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

// A unix socket holds what its peer has not read yet in the sender's buffer: room for a full queue
// of small requests, or several of a MiB.
#define UNIX_BUFFER_BYTES (4 << 20)

#define KEEPALIVE_IDLE_S     30
#define KEEPALIVE_INTERVAL_S 10
#define KEEPALIVE_PROBES     3
#define UNACKNOWLEDGED_MS    30000U

static void set_int(int fd, int level, int option, int value) {
    (void)setsockopt(fd, level, option, &value, sizeof(value));
}

void cg_socket_tune(int fd, int family) {
    if (family == AF_UNIX) {
        int bytes = UNIX_BUFFER_BYTES;
        if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes)) < 0) {
            set_int(fd, SOL_SOCKET, SO_SNDBUF, bytes);
        }
        return;
    }
    set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
    set_int(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
    set_int(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES);
    unsigned limit = UNACKNOWLEDGED_MS;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &limit, sizeof(limit));
}
