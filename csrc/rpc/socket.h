// SPDX-License-Identifier: BSD-3-Clause
//
// The options that all our stream sockets have.
#ifndef CG_RPC_SOCKET_H
#define CG_RPC_SOCKET_H

// TCP: no delay, keep-alive, an end for sends that nobody acknowledges. Unix: large buffers.
// Failure to set one is not an error: the connection works without.
void cg_socket_tune(int fd, int family);

#endif
