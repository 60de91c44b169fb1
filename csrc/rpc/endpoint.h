// SPDX-License-Identifier: BSD-3-Clause
#ifndef CG_RPC_ENDPOINT_H
#define CG_RPC_ENDPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>

// Where a server listens: "127.0.0.1:6700", "[::1]:6700", "localhost:6700" or "unix:/path". Port 0
// is for listening: the kernel picks one.
struct cg_endpoint {
    struct sockaddr_storage address;
    socklen_t length;
};

#define CG_ENDPOINT_TEXT_MAX 128

// Parses `text`; names are resolved with getaddrinfo (blocking: not on the IO path). Returns 0,
// -EINVAL for bad syntax or a port over 65535, -ENAMETOOLONG for a unix path over 107 bytes,
// -EHOSTUNREACH for a name that does not resolve. Any thread.
int cg_endpoint_parse(const char *text, struct cg_endpoint *out);

// Writes the endpoint in the form that cg_endpoint_parse takes. Any thread.
void cg_endpoint_format(const struct cg_endpoint *endpoint, char *out, size_t size);

// The socket in the abstract unix namespace that a server reached at `address` ("ip:port") listens
// on as well, for clients on its own machine: it costs less than TCP. Network namespaces have one
// each. Any thread.
void cg_endpoint_beside(const char *address, struct cg_endpoint *out);

bool cg_endpoint_equal(const struct cg_endpoint *a, const struct cg_endpoint *b);

#endif
