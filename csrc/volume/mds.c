// SPDX-License-Identifier: BSD-3-Clause
#include "volume/mds.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "gateway/proto/nameserver2.pb.h"
#include "rpc/endpoint.h"
#include "rpc/server.h"

// CurveBS's constants (reference: client rules).
#define RPC_TIMEOUT_NS     (500 * CG_NS_PER_MS)
#define RPC_TIMEOUT_MAX_NS (2 * CG_NS_PER_S)
#define RETRY_PAUSE_NS     (100 * CG_NS_PER_MS)
#define FAILURES_TO_SWITCH 2U

// A local address towards the first server and a port that nobody else has: CurveBS's metadata
// server tells the clients of a volume apart by them, and refuses to delete a volume that has one.
static void choose_identity(struct cg_mds *mds, const struct cg_endpoint *server) {
    snprintf(mds->client_ip, sizeof(mds->client_ip), "127.0.0.1");
    mds->client_port = 0;
    mds->client_socket = -1;
    struct sockaddr_storage local = {0};
    socklen_t length = sizeof(local);
    int family = server->address.ss_family;
    if (family != AF_INET && family != AF_INET6) {
        return;
    }
    int fd = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return;
    }
    if (connect(fd, (const struct sockaddr *)&server->address, server->length) != 0 ||
        getsockname(fd, (struct sockaddr *)&local, &length) != 0) {
        close(fd);
        return;
    }
    const void *ip = family == AF_INET ? (const void *)&((struct sockaddr_in *)&local)->sin_addr
                                       : (const void *)&((struct sockaddr_in6 *)&local)->sin6_addr;
    inet_ntop(family, ip, mds->client_ip, sizeof(mds->client_ip));
    mds->client_port = ntohs(family == AF_INET ? ((struct sockaddr_in *)&local)->sin_port
                                               : ((struct sockaddr_in6 *)&local)->sin6_port);
    mds->client_socket = fd;
}

static int port_of(const struct cg_endpoint *endpoint) {
    const struct sockaddr *address = (const struct sockaddr *)&endpoint->address;
    switch (address->sa_family) {
    case AF_INET:
        return ntohs(((const struct sockaddr_in *)address)->sin_port);
    case AF_INET6:
        return ntohs(((const struct sockaddr_in6 *)address)->sin6_port);
    default:
        return -1; // a unix socket has none
    }
}

static int add_server(struct cg_mds *mds, const char *text) {
    struct cg_endpoint endpoint;
    if (mds->count == CG_MDS_SERVERS_MAX) {
        return -EINVAL;
    }
    int error = cg_endpoint_parse(text, &endpoint);
    if (error != 0) {
        return error;
    }
    if (port_of(&endpoint) == 0) {
        return -EINVAL; // port 0 is for listening
    }
    struct cg_channel_options options = {.connect_timeout_ns = RPC_TIMEOUT_NS};
    error = cg_channel_create(mds->reactor, &endpoint, &options, &mds->channels[mds->count]);
    if (error != 0) {
        return error;
    }
    if (mds->count++ == 0) {
        choose_identity(mds, &endpoint);
    }
    return 0;
}

int cg_mds_create(struct cg_mds *mds, struct cg_reactor *reactor, const char *servers,
                  const char *owner, const char *root_password) {
    *mds = (struct cg_mds){.reactor = reactor, .client_socket = -1};
    char *list = strdup(servers);
    mds->owner = strdup(owner);
    mds->root_password = root_password != NULL ? strdup(root_password) : NULL;
    int error = 0;
    if (list == NULL || mds->owner == NULL ||
        (root_password != NULL && mds->root_password == NULL)) {
        error = -ENOMEM;
    }
    char *rest = list;
    while (error == 0 && rest != NULL) {
        char *one = strsep(&rest, ",");
        one += strspn(one, " ");
        one[strcspn(one, " ")] = '\0';
        error = add_server(mds, one);
    }
    free(list);
    if (error != 0) {
        cg_mds_destroy(mds);
    }
    return error;
}

void cg_mds_destroy(struct cg_mds *mds) {
    for (unsigned i = 0; i < mds->count; i++) {
        cg_channel_destroy(mds->channels[i]);
    }
    mds->count = 0;
    if (mds->client_socket >= 0) {
        close(mds->client_socket);
        mds->client_socket = -1;
    }
    free(mds->owner);
    mds->owner = NULL;
    if (mds->root_password != NULL) {
        explicit_bzero(mds->root_password, strlen(mds->root_password));
        free(mds->root_password);
        mds->root_password = NULL;
    }
}

int cg_mds_status_errno(int32_t status) {
    switch (status) {
    case curve_mds_StatusCode_kOK:
        return 0;
    case curve_mds_StatusCode_kFileNotExists:
    case curve_mds_StatusCode_kDirNotExist:
    case curve_mds_StatusCode_kNotDirectory:
    case curve_mds_StatusCode_kFileUnderDeleting:
        return -ENOENT;
    case curve_mds_StatusCode_kOwnerAuthFail:
        return -EACCES;
    case curve_mds_StatusCode_kSegmentAllocateError:
        return -ENOSPC;
    case curve_mds_StatusCode_kEpochTooOld:
        return -ESTALE;
    case curve_mds_StatusCode_kParaError:
    case curve_mds_StatusCode_kNotSupported:
        return -EINVAL;
    case curve_mds_StatusCode_kFileOccupied:
    case curve_mds_StatusCode_kSharedStateFollowers:
        return -EBUSY;
    case curve_mds_StatusCode_kSharedStateConflict:
        return -EAGAIN;
    default:
        return -EIO;
    }
}

static void try_once(struct cg_mds_call *call);

static void finish(struct cg_mds_call *call, int result) {
    assert(call->active && !call->in_flight);
    call->active = false;
    cg_timer_disarm(&call->timer);
    call->done(call, result);
}

static void next_server(struct cg_mds_call *call) {
    struct cg_mds *mds = call->mds;
    call->failures = 0;
    // Unless another call has moved on already.
    if (mds->current == call->server) {
        mds->current = (mds->current + 1) % mds->count;
    }
}

static void pause_before_retry(struct cg_mds_call *call) {
    uint64_t at = cg_reactor_now(call->mds->reactor) + RETRY_PAUSE_NS;
    if (at > call->deadline_ns) {
        at = call->deadline_ns;
    }
    if (cg_timer_arm(call->mds->reactor, &call->timer, at) != 0) {
        finish(call, -ETIMEDOUT);
    }
}

static void on_pause_over(struct cg_timer *timer) {
    try_once(CG_CONTAINER_OF(timer, struct cg_mds_call, timer));
}

// Decides what a failed try means: another server at once, the same one, or a pause.
static void after_failure(struct cg_mds_call *call, int status) {
    struct cg_mds *mds = call->mds;
    call->last_error = status;
    if (status == -ETIMEDOUT && mds->heard_ns[call->server] < call->sent_ns) {
        // After an outage TCP sends again ever more rarely; a new connection does not wait for it.
        cg_channel_disconnect(mds->channels[call->server], -ECONNRESET);
    }
    if (status == -EREMOTEIO) {
        snprintf(call->last_text, sizeof(call->last_text), "%s", call->rpc.error_text);
    } else {
        call->last_text[0] = '\0';
    }
    if (status == -ETIMEDOUT || status == -EPROTO) {
        call->refused = 0;
        call->timeout_ns *= 2;
        if (call->timeout_ns > RPC_TIMEOUT_MAX_NS) {
            call->timeout_ns = RPC_TIMEOUT_MAX_NS;
        }
        if (++call->failures >= FAILURES_TO_SWITCH) {
            next_server(call);
        }
        if (status == -EPROTO) {
            pause_before_retry(call);
        } else {
            try_once(call);
        }
        return;
    }
    // It refuses, went away, or answers with an error of the RPC layer: not the leader.
    next_server(call);
    if (++call->refused % mds->count == 0) {
        pause_before_retry(call);
    } else {
        try_once(call);
    }
}

static void on_reply(struct cg_rpc_call *rpc) {
    struct cg_mds_call *call = CG_CONTAINER_OF(rpc, struct cg_mds_call, rpc);
    call->in_flight = false;
    if (call->cancelled) {
        return;
    }
    int status = rpc->status;
    if (status == -ECANCELED) {
        finish(call, -ECANCELED);
        return;
    }
    if (status == 0 || status == -EREMOTEIO) {
        call->mds->heard_ns[call->server] = cg_reactor_now(call->mds->reactor);
    }
    if (status == -EREMOTEIO && cg_mds_is_state(call->op) &&
        (rpc->error_code == CG_RPC_ENOMETHOD || rpc->error_code == CG_RPC_ENOSERVICE)) {
        finish(call, -ENOTSUP);
        return;
    }
    if (status == 0) {
        cg_mds_call_free(call);
        status = cg_mds_decode(call, rpc->reply, rpc->reply_length);
        if (status == 0) {
            finish(call, 0);
            return;
        }
    }
    after_failure(call, status);
}

static void try_once(struct cg_mds_call *call) {
    uint64_t now = cg_reactor_now(call->mds->reactor);
    if (now >= call->deadline_ns) {
        finish(call, -ETIMEDOUT);
        return;
    }
    uint64_t left = call->deadline_ns - now;
    call->server = call->mds->current;
    uint64_t timeout = call->timeout_ns;
    if (cg_mds_is_state(call->op)) {
        timeout += call->state->wait_ms * CG_NS_PER_MS;
    }
    call->rpc.timeout_ns = timeout < left ? timeout : left;
    call->rpc.done = on_reply;
    call->in_flight = true;
    call->sent_boot_ns = cg_boottime_ns();
    call->sent_ns = now;
    int error = cg_mds_send(call, call->mds->channels[call->server]);
    if (error != 0) {
        // Only a message that cannot be encoded: no server will take it.
        call->in_flight = false;
        call->last_error = error;
        call->deadline_ns = now;
        pause_before_retry(call);
    }
}

void cg_mds_call_start(struct cg_mds_call *call) {
    assert(!call->active && call->mds->count > 0);
    call->active = true;
    call->cancelled = false;
    call->timeout_ns = RPC_TIMEOUT_NS;
    call->failures = 0;
    call->refused = 0;
    call->last_error = -ETIMEDOUT;
    call->last_text[0] = '\0';
    call->timer.fire = on_pause_over;
    if (cg_reactor_now(call->mds->reactor) >= call->deadline_ns) {
        pause_before_retry(call); // `done` is never called from inside
        return;
    }
    try_once(call);
}

void cg_mds_call_cancel(struct cg_mds_call *call) {
    if (!call->active) {
        return;
    }
    call->cancelled = true;
    cg_timer_disarm(&call->timer);
    if (call->in_flight) {
        cg_channel_cancel(call->mds->channels[call->server], &call->rpc);
    }
    call->active = false;
}

void cg_mds_call_free(struct cg_mds_call *call) {
    free(call->chunks);
    free(call->servers);
    free(call->clone_source);
    free(call->source_segments);
    call->chunks = NULL;
    call->servers = NULL;
    call->clone_source = NULL;
    call->source_segments = NULL;
    call->source_segment_count = 0;
    call->chunk_count = 0;
    call->server_count = 0;
    call->file.present = false;
    call->lease_us = 0;
}
