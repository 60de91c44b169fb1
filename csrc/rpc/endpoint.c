// SPDX-License-Identifier: BSD-3-Clause
#include "rpc/endpoint.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#define UNIX_PREFIX "unix:"
#define HOST_MAX    255U

static int parse_unix(const char *path, struct cg_endpoint *out) {
    struct sockaddr_un *address = (struct sockaddr_un *)(void *)&out->address;
    size_t length = strlen(path);
    if (length == 0) {
        return -EINVAL;
    }
    if (length >= sizeof(address->sun_path)) {
        return -ENAMETOOLONG;
    }
    memset(out, 0, sizeof(*out));
    address->sun_family = AF_UNIX;
    memcpy(address->sun_path, path, length + 1);
    out->length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + 1);
    return 0;
}

static int parse_port(const char *text) {
    size_t length = strlen(text);
    if (length == 0 || length > 5 || strspn(text, "0123456789") != length) {
        return -EINVAL;
    }
    int port = atoi(text);
    return port <= 65535 ? port : -EINVAL;
}

// "[::1]" or "host" before the last colon; the port goes to *port.
static int split_host(const char *text, char *host, int *port) {
    const char *begin = text;
    const char *end;
    const char *colon;
    if (text[0] == '[') {
        begin = text + 1;
        end = strchr(begin, ']');
        if (end == NULL || end[1] != ':') {
            return -EINVAL;
        }
        colon = end + 1;
    } else {
        colon = strrchr(text, ':');
        if (colon == NULL || memchr(text, ':', (size_t)(colon - text)) != NULL) {
            return -EINVAL;
        }
        end = colon;
    }
    size_t length = (size_t)(end - begin);
    if (length == 0 || length > HOST_MAX) {
        return -EINVAL;
    }
    memcpy(host, begin, length);
    host[length] = '\0';
    *port = parse_port(colon + 1);
    return *port < 0 ? *port : 0;
}

int cg_endpoint_parse(const char *text, struct cg_endpoint *out) {
    if (strncmp(text, UNIX_PREFIX, strlen(UNIX_PREFIX)) == 0) {
        return parse_unix(text + strlen(UNIX_PREFIX), out);
    }
    char host[HOST_MAX + 1];
    int port;
    int rc = split_host(text, host, &port);
    if (rc < 0) {
        return rc;
    }
    char service[8];
    snprintf(service, sizeof(service), "%d", port);
    struct addrinfo hints = {
        .ai_family = text[0] == '[' ? AF_INET6 : AF_UNSPEC,
        .ai_socktype = SOCK_STREAM,
        .ai_flags = AI_NUMERICSERV,
    };
    struct addrinfo *found = NULL;
    if (getaddrinfo(host, service, &hints, &found) != 0 || found == NULL) {
        return -EHOSTUNREACH;
    }
    memset(out, 0, sizeof(*out));
    memcpy(&out->address, found->ai_addr, found->ai_addrlen);
    out->length = found->ai_addrlen;
    freeaddrinfo(found);
    return 0;
}

void cg_endpoint_beside(const char *address, struct cg_endpoint *out) {
    struct sockaddr_un *name = (struct sockaddr_un *)(void *)&out->address;
    memset(out, 0, sizeof(*out));
    name->sun_family = AF_UNIX;
    size_t room = sizeof(name->sun_path) - 1;
    int length = snprintf(name->sun_path + 1, room, "copygate-rpc/%s", address);
    size_t used = (size_t)length < room ? (size_t)length : room - 1;
    out->length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + used);
}

void cg_endpoint_format(const struct cg_endpoint *endpoint, char *out, size_t size) {
    char host[INET6_ADDRSTRLEN];
    switch (endpoint->address.ss_family) {
    case AF_UNIX: {
        const struct sockaddr_un *address = (const void *)&endpoint->address;
        bool abstract = address->sun_path[0] == '\0' && endpoint->length > sizeof(sa_family_t);
        snprintf(out, size, UNIX_PREFIX "%s%s", abstract ? "@" : "",
                 address->sun_path + (abstract ? 1 : 0));
        return;
    }
    case AF_INET: {
        const struct sockaddr_in *address = (const void *)&endpoint->address;
        inet_ntop(AF_INET, &address->sin_addr, host, sizeof(host));
        snprintf(out, size, "%s:%u", host, ntohs(address->sin_port));
        return;
    }
    case AF_INET6: {
        const struct sockaddr_in6 *address = (const void *)&endpoint->address;
        inet_ntop(AF_INET6, &address->sin6_addr, host, sizeof(host));
        snprintf(out, size, "[%s]:%u", host, ntohs(address->sin6_port));
        return;
    }
    default:
        snprintf(out, size, "?");
    }
}

bool cg_endpoint_equal(const struct cg_endpoint *a, const struct cg_endpoint *b) {
    if (a->address.ss_family != b->address.ss_family) {
        return false;
    }
    switch (a->address.ss_family) {
    case AF_UNIX: {
        const struct sockaddr_un *x = (const void *)&a->address;
        const struct sockaddr_un *y = (const void *)&b->address;
        if (x->sun_path[0] == '\0' || y->sun_path[0] == '\0') {
            return a->length == b->length && memcmp(x, y, a->length) == 0;
        }
        return strcmp(x->sun_path, y->sun_path) == 0;
    }
    case AF_INET: {
        const struct sockaddr_in *x = (const void *)&a->address;
        const struct sockaddr_in *y = (const void *)&b->address;
        return x->sin_port == y->sin_port && x->sin_addr.s_addr == y->sin_addr.s_addr;
    }
    case AF_INET6: {
        const struct sockaddr_in6 *x = (const void *)&a->address;
        const struct sockaddr_in6 *y = (const void *)&b->address;
        return x->sin6_port == y->sin6_port && x->sin6_scope_id == y->sin6_scope_id &&
               memcmp(&x->sin6_addr, &y->sin6_addr, sizeof(x->sin6_addr)) == 0;
    }
    default:
        return false;
    }
}
