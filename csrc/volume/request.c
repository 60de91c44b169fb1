// SPDX-License-Identifier: BSD-3-Clause
//
// One request to a chunkserver, from the first try to its end.
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "gateway/proto/chunk.pb.h"
#include "volume/clone.h"
#include "volume/volume.h"

// CurveBS's constants (reference: client rules).
#define RPC_TIMEOUT_NS     (1 * CG_NS_PER_S)
#define RPC_TIMEOUT_MAX    3U // doublings: 8 s
#define RETRY_DELAY_NS     (100 * CG_NS_PER_MS)
#define REDIRECT_DELAY_NS  (10 * CG_NS_PER_MS)
#define REDIRECTS_AT_ONCE  3U // of one request; those after them are followed after a pause
#define DELAY_DOUBLINGS    3U
#define OVERLOAD_DELAY_NS  (100 * CG_NS_PER_MS)
#define OVERLOAD_MAX_NS    (8 * CG_NS_PER_S)
#define OVERLOAD_DOUBLINGS 7U

#define CHUNK_SERVICE "curve.chunkserver.ChunkService"

static const struct cg_rpc_method methods[] = {
    [VOL_READ] = {CHUNK_SERVICE, "ReadChunk"},
    [VOL_WRITE] = {CHUNK_SERVICE, "WriteChunk"},
    [VOL_WRITE_ZERO_DATA] = {CHUNK_SERVICE, "WriteChunk"},
    [VOL_WRITE_ZEROES] = {CHUNK_SERVICE, "WriteZeroesChunk"},
    [VOL_TRIM] = {CHUNK_SERVICE, "TrimChunk"},
    [VOL_COMPARE_AND_WRITE] = {CHUNK_SERVICE, "CompareAndWriteChunk"},
    [VOL_BLOCK_STATUS] = {CHUNK_SERVICE, "GetBlockStatus"},
};

// The data of VOL_WRITE_ZERO_DATA, whatever its length.
static const uint8_t zeros[VOL_REQUEST_CURVEBS];

static void send_now(struct vol_request *request);
static void on_reply(struct cg_rpc_call *call);
static void on_timer(struct cg_timer *timer);

struct vol_request *vol_request_get(struct cg_volume *volume) {
    struct cg_list *node = cg_list_pop_front(&volume->free_requests);
    return node == NULL ? NULL : CG_CONTAINER_OF(node, struct vol_request, node);
}

int vol_iov_slice(const struct iovec *iov, int iovcnt, uint64_t skip, uint64_t length,
                  struct iovec *out) {
    int count = 0;
    for (int i = 0; length > 0; i++) {
        assert(i < iovcnt);
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        uint64_t run = iov[i].iov_len - skip;
        if (run > length) {
            run = length;
        }
        if (out != NULL) {
            out[count] = (struct iovec){(uint8_t *)iov[i].iov_base + skip, run};
        }
        count++;
        length -= run;
        skip = 0;
    }
    return count;
}

// The part of the transfer's memory from `skip` on, put behind `before` entries already there.
static int slice_into(struct vol_request *request, uint64_t skip, uint64_t length, int before) {
    const struct vol_transfer *transfer = request->transfer;
    int count = vol_iov_slice(transfer->iov, transfer->iovcnt, skip, length, NULL);
    struct iovec *out = request->iov_heap != NULL ? request->iov_heap : request->iov;
    if (before + count > VOL_REQUEST_IOV) {
        struct iovec *heap = malloc((size_t)(before + count) * sizeof(*heap));
        if (heap == NULL) {
            return -ENOMEM;
        }
        memcpy(heap, out, (size_t)before * sizeof(*heap));
        free(request->iov_heap);
        request->iov_heap = heap;
        out = heap;
    }
    vol_iov_slice(transfer->iov, transfer->iovcnt, skip, length, out + before);
    request->iovcnt = before + count;
    return 0;
}

int vol_request_slice(struct vol_request *request, uint64_t skip, uint32_t length) {
    const struct vol_transfer *transfer = request->transfer;
    request->iovcnt = 0;
    request->iov_heap = NULL;
    switch (transfer->kind) {
    case VOL_READ:
    case VOL_WRITE:
        // The common case: one piece of memory.
        if (transfer->iovcnt == 1) {
            request->iov[0] = (struct iovec){(uint8_t *)transfer->iov->iov_base + skip, length};
            request->iovcnt = 1;
            return 0;
        }
        return slice_into(request, skip, length, 0);
    case VOL_COMPARE_AND_WRITE: {
        int error = slice_into(request, skip, length, 0);
        return error != 0 ? error
                          : slice_into(request, transfer->length + skip, length, request->iovcnt);
    }
    case VOL_WRITE_ZERO_DATA:
        assert(length <= sizeof(zeros));
        request->iov[0] = (struct iovec){(void *)(uintptr_t)zeros, length};
        request->iovcnt = 1;
        return 0;
    default:
        return 0;
    }
}

static void finish(struct vol_request *request, int result) {
    struct cg_volume *volume = request->volume;
    struct vol_transfer *transfer = request->transfer;
    struct vol_segment *segment = request->segment;
    assert(!request->in_flight);
    if (request->waiting || request->paused) {
        request->waiting = false;
        request->paused = false;
        cg_list_remove(&request->node);
    }
    cg_timer_disarm(&request->timer);
    cg_list_remove(&request->unsettled);
    if (request->iov_heap != NULL) {
        free(request->iov_heap);
        request->iov_heap = NULL;
    }
    segment->requests--;
    if (result == 0 && request->kind == VOL_TRIM) {
        vol_trim_mark(segment, request->segment_offset, request->length);
    }
    if (result == 0 && request->hole && request->kind == VOL_READ) {
        for (int i = 0; i < request->call.receive_iovcnt; i++) {
            memset(request->call.receive_iov[i].iov_base, 0, request->call.receive_iov[i].iov_len);
        }
    }
    if (result == -EILSEQ) {
        struct vol_io *io = CG_CONTAINER_OF(transfer, struct vol_io, transfer);
        vol_io_public(io)->mismatch_offset = request->mismatch;
    }
    // First in, first out: the one just used is warm in the cache.
    cg_list_push_front(&volume->free_requests, &request->node);
    vol_transfer_request_done(transfer, request, result);
    if (!cg_list_empty(&volume->queue)) {
        vol_queue_run(volume);
    }
}

void vol_request_start(struct vol_request *request) {
    struct cg_volume *volume = request->volume;
    request->timeouts = 0;
    request->overloads = 0;
    request->redirects = 0;
    request->failures = 0;
    request->retry_delay_ns = 0;
    request->sent_to = NULL;
    request->hole = false;
    request->runs_length = 0;
    struct cg_rpc_call *call = &request->call;
    call->method = &methods[request->kind];
    if (request->kind == VOL_READ) {
        call->receive_iov = request->iov;
        if (request->iov_heap != NULL) {
            call->receive_iov = request->iov_heap;
        }
        call->receive_iovcnt = request->iovcnt;
        call->receive_capacity = request->length;
        call->send_iovcnt = 0;
        call->send_length = 0;
    } else {
        call->receive_iovcnt = 0;
        call->receive_capacity = 0;
        call->send_iov = request->iov_heap != NULL ? request->iov_heap : request->iov;
        call->send_iovcnt = request->iovcnt;
        call->send_length = request->iovcnt == 0                     ? 0
                            : request->kind == VOL_COMPARE_AND_WRITE ? 2 * request->length
                                                                     : request->length;
    }
    if (vol_kind_changes(request->kind)) {
        request->sequence = volume->next_sequence++;
        cg_list_push_back(&volume->unsettled, &request->unsettled);
        if (request->segment->trim != NULL && request->kind != VOL_TRIM) {
            vol_trim_clear(request->segment, request->segment_offset, request->length);
        }
    }
    send_now(request);
}

static bool arm(struct vol_request *request, uint64_t at) {
    request->timer.fire = on_timer;
    return cg_timer_arm(request->volume->reactor, &request->timer, at) == 0;
}

// Waits on a list until somebody wakes it or its IO's deadline passes.
static bool wait_on(struct vol_request *request, struct cg_list *list) {
    if (!arm(request, request->transfer->deadline_ns)) {
        finish(request, -ENOMEM);
        return false;
    }
    cg_list_push_back(list, &request->node);
    return true;
}

static void send_now(struct vol_request *request) {
    struct cg_volume *volume = request->volume;
    uint64_t now = cg_reactor_now(volume->reactor);
    uint64_t deadline = request->transfer->deadline_ns;
    if (volume->fenced != 0) {
        finish(request, volume->fenced);
        return;
    }
    if (now >= deadline) {
        finish(request, -ETIMEDOUT);
        return;
    }
    if (request->transfer->view != volume->view) {
        finish(request, -EAGAIN);
        return;
    }
    if (request->sent_to != NULL && !vol_lease_ok(volume)) {
        request->paused = wait_on(request, &volume->paused);
        return;
    }
    struct vol_server *server = vol_copyset_leader(request->copyset);
    if (server == NULL) {
        request->waiting = wait_on(request, &request->copyset->waiting);
        if (request->waiting) {
            vol_copyset_find_leader(request->copyset, NULL);
        }
        return;
    }
    uint8_t message[VOL_MESSAGE_MAX];
    struct cg_rpc_call *call = &request->call;
    uint64_t timeout = RPC_TIMEOUT_NS << (request->timeouts < RPC_TIMEOUT_MAX ? request->timeouts
                                                                              : RPC_TIMEOUT_MAX);
    call->request = message;
    call->request_length = vol_request_encode(request, message);
    call->timeout_ns = timeout < deadline - now ? timeout : deadline - now;
    vol_count(&volume->counters.requests, 1);
    if (request->sent_to != NULL) {
        vol_count(&volume->counters.retries, 1);
    }
    request->sent_to = server;
    request->in_flight = true;
    request->copyset->outstanding++;
    vol_server_sent(server, request);
    vol_local_sending(request);
    cg_channel_call(server->channel, call);
}

static void retry_after(struct vol_request *request, uint64_t delay_ns) {
    uint64_t at = cg_reactor_now(request->volume->reactor) + delay_ns;
    uint64_t deadline = request->transfer->deadline_ns;
    if (!arm(request, at < deadline ? at : deadline)) {
        finish(request, -ENOMEM);
    }
}

static void on_timer(struct cg_timer *timer) {
    struct vol_request *request = CG_CONTAINER_OF(timer, struct vol_request, timer);
    if (request->waiting || request->paused) {
        finish(request, -ETIMEDOUT);
    } else {
        send_now(request);
    }
}

// Growing from the first to the longest with each time that something has happened before.
static uint64_t growing_delay(uint64_t first, uint32_t times) {
    uint64_t delay = first << (times < DELAY_DOUBLINGS ? times : DELAY_DOUBLINGS);
    return delay < RETRY_DELAY_NS ? delay : RETRY_DELAY_NS;
}

// The pause before the same leader is asked again that gave no answer. Our own may have become the
// leader anew; libcurve's is constant.
static uint64_t failure_delay(struct vol_request *request) {
    return request->volume->native ? growing_delay(REDIRECT_DELAY_NS, request->failures++)
                                   : RETRY_DELAY_NS;
}

// The leader did not do: find out who leads now. If it is another one, it is asked at once.
static void reroute(struct vol_request *request, uint64_t delay_if_same_ns) {
    struct vol_copyset *copyset = request->copyset;
    struct vol_server *leader = vol_copyset_leader(copyset);
    if (leader != NULL && leader != request->sent_to) {
        send_now(request); // another request has found it out already
        return;
    }
    request->retry_delay_ns = delay_if_same_ns;
    request->waiting = wait_on(request, &copyset->waiting);
    if (request->waiting) {
        vol_copyset_find_leader(copyset, request->sent_to);
    }
}

void vol_request_routed(struct vol_request *request) {
    assert(request->waiting);
    request->waiting = false;
    cg_list_remove(&request->node);
    cg_timer_disarm(&request->timer);
    if (vol_copyset_leader(request->copyset) == request->sent_to && request->sent_to != NULL) {
        retry_after(request, request->retry_delay_ns);
    } else {
        send_now(request);
    }
}

void vol_request_move(struct vol_request *request) {
    assert(request->in_flight && !request->moving);
    request->moving = true;
    cg_channel_cancel(request->sent_to->channel, &request->call);
    request->moving = false;
    vol_local_failed(request);
    send_now(request);
}

// It is led by another one: by the one that the answer names, or as another request has found out.
static void follow(struct vol_request *request, const struct vol_reply *reply) {
    struct vol_copyset *copyset = request->copyset;
    vol_count(&request->volume->counters.redirects, 1);
    bool at_once = request->redirects < REDIRECTS_AT_ONCE;
    uint64_t delay =
        growing_delay(REDIRECT_DELAY_NS, at_once ? 0 : request->redirects - REDIRECTS_AT_ONCE);
    request->redirects++;
    const struct vol_server *leader = vol_copyset_leader(copyset);
    if ((leader == NULL || leader == request->sent_to) &&
        !vol_copyset_take_hint(copyset, request->sent_to, reply->redirect,
                               reply->redirect_length)) {
        reroute(request, delay);
    } else if (at_once) {
        send_now(request);
    } else {
        retry_after(request, delay); // they send each other's away
    }
}

void vol_requests_resume(struct cg_volume *volume) {
    struct cg_list ready;
    cg_list_init(&ready);
    cg_list_splice_back(&ready, &volume->paused);
    while (!cg_list_empty(&ready)) {
        struct vol_request *request = CG_CONTAINER_OF(ready.next, struct vol_request, node);
        cg_list_remove(&request->node);
        cg_timer_disarm(&request->timer);
        request->paused = false;
        send_now(request);
    }
}

void vol_requests_fail_waiting(struct cg_volume *volume, int error) {
    for (uint32_t i = 0; i < volume->inflight_max; i++) {
        if (volume->requests[i].waiting) {
            finish(&volume->requests[i], error);
        }
    }
}

static void on_overload(struct vol_request *request) {
    struct cg_volume *volume = request->volume;
    vol_count(&volume->counters.overloads, 1);
    uint32_t doublings =
        request->overloads < OVERLOAD_DOUBLINGS ? request->overloads : OVERLOAD_DOUBLINGS;
    request->overloads++;
    uint64_t delay = OVERLOAD_DELAY_NS << doublings;
    if (delay > OVERLOAD_MAX_NS) {
        delay = OVERLOAD_MAX_NS;
    }
    // +-10 %, so that the clients of a busy server do not come back together.
    volume->random = volume->random * 1664525U + 1013904223U;
    delay = delay - delay / 10 + (uint64_t)(volume->random >> 8) % (delay / 5);
    retry_after(request, delay);
}

static void refuse(struct vol_request *request, uint32_t status, int error) {
    cg_log(CG_LOG_ERROR,
           "%s: chunk %" PRIu64 " at %u, %u bytes: the chunkserver %s answers status %u",
           request->volume->path, request->chunk_id, request->chunk_offset, request->length,
           request->sent_to->address, status);
    finish(request, error);
}

static void on_missing_chunk(struct vol_request *request) {
    if (request->kind == VOL_WRITE || request->kind == VOL_WRITE_ZERO_DATA ||
        request->kind == VOL_COMPARE_AND_WRITE || vol_clone_names_source(request)) {
        refuse(request, curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_CHUNK_NOTEXIST, -EIO);
        return;
    }
    request->hole = true; // never written: zeros
    finish(request, 0);
}

static void on_success(struct vol_request *request) {
    if (request->kind == VOL_READ && request->call.received_length != request->length) {
        cg_log(CG_LOG_ERROR, "%s: %s sent %u bytes of %u", request->volume->path,
               request->sent_to->address, request->call.received_length, request->length);
        finish(request, -EIO);
        return;
    }
    vol_local_answered(request);
    finish(request, 0);
}

static void on_status(struct vol_request *request, const struct vol_reply *reply) {
    struct cg_volume *volume = request->volume;
    uint32_t status = reply->status;
    switch (status) {
    case curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_SUCCESS:
        on_success(request);
        return;
    case curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_REDIRECTED:
        follow(request, reply);
        return;
    case curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_CHUNK_NOTEXIST:
        on_missing_chunk(request);
        return;
    case curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_OVERLOAD:
        on_overload(request);
        return;
    case curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_BACKWARD:
        vol_session_refresh_now(volume);
        retry_after(request, RETRY_DELAY_NS);
        return;
    case curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_EPOCH_TOO_OLD:
        vol_fence(volume, -ESTALE, "another client has taken it over");
        finish(request, volume->fenced);
        return;
    case curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_NOSPACE:
        finish(request, -ENOSPC);
        return;
    case curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_MISCOMPARE:
        finish(request, -EILSEQ);
        return;
    case curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_CRC_FAIL:
        refuse(request, status, -EBADMSG);
        return;
    case curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_COPYSET_NOTEXIST:
        vol_copyset_fetch_peers(request->copyset); // it has moved
        reroute(request, RETRY_DELAY_NS);
        return;
    case curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_FAILURE_UNKNOWN:
        retry_after(request, RETRY_DELAY_NS);
        return;
    case curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_DISK_FAIL:
        if (volume->native && request->copyset->peer_count > 1) {
            reroute(request, failure_delay(request)); // the others choose another leader
            return;
        }
        refuse(request, status, -EIO);
        return;
    default:
        // INVALID_REQUEST, CHUNK_EXIST; SETTLED, which cannot be for one that we wait for.
        refuse(request, status, -EIO);
        return;
    }
}

// No answer to be understood came.
static void on_failure(struct vol_request *request, int status) {
    struct cg_volume *volume = request->volume;
    if (status == -ECANCELED) {
        finish(request, volume->fenced != 0 ? volume->fenced : -ESHUTDOWN);
        return;
    }
    if (status == -EMSGSIZE) {
        refuse(request, 0, -EIO); // more data than was asked for
        return;
    }
    vol_local_failed(request);
    if (status == -ETIMEDOUT) {
        vol_count(&volume->counters.timeouts, 1);
        request->timeouts++;
    }
    if (vol_server_is_loss(status) ||
        (status == -ETIMEDOUT && vol_server_timed_out(request->sent_to, request->sent_ns))) {
        vol_server_lost(request->sent_to);
    }
    reroute(request, failure_delay(request));
}

// Only the leader answers so.
static bool is_leaders(uint32_t status) {
    return status == curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_SUCCESS ||
           status == curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_CHUNK_NOTEXIST ||
           status == curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_MISCOMPARE;
}

static void on_reply(struct cg_rpc_call *call) {
    struct vol_request *request = CG_CONTAINER_OF(call, struct vol_request, call);
    request->in_flight = false;
    request->copyset->outstanding--;
    cg_list_remove(&request->node);
    if (request->moving) {
        return;
    }
    struct vol_reply reply;
    int status = call->status;
    if (status == 0 || status == -EREMOTEIO) {
        vol_server_heard(request->sent_to);
    }
    if (status == 0) {
        status = vol_reply_decode(call->reply, call->reply_length, &reply);
    }
    if (status != 0) {
        on_failure(request, status);
        return;
    }
    if (is_leaders(reply.status)) {
        vol_copyset_confirm(request->copyset, request->sent_to);
    }
    request->mismatch = reply.mismatch;
    request->runs = reply.runs;
    request->runs_length = reply.runs_length;
    on_status(request, &reply);
}

int vol_requests_create(struct cg_volume *volume) {
    volume->requests = calloc(volume->inflight_max, sizeof(*volume->requests));
    if (volume->requests == NULL) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < volume->inflight_max; i++) {
        struct vol_request *request = &volume->requests[i];
        request->volume = volume;
        request->call.done = on_reply;
        cg_list_init(&request->node);
        cg_list_init(&request->unsettled);
        cg_list_init(&request->call.node);
        cg_list_push_back(&volume->free_requests, &request->node);
    }
    return 0;
}
