// SPDX-License-Identifier: BSD-3-Clause
#ifndef CG_BASE_PEER_H
#define CG_BASE_PEER_H

#include <stdbool.h>
#include <sys/socket.h>
#include <unistd.h>

// Whether root or our own user is at the other end of a connected unix socket. Names in the
// abstract namespace have no permissions: anybody may take one, and anybody may connect. Any
// thread.
static inline bool cg_peer_trusted(int fd) {
    struct ucred peer;
    socklen_t length = sizeof(peer);
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 &&
           (peer.uid == 0 || peer.uid == geteuid());
}

#endif
