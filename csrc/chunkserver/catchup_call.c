// SPDX-License-Identifier: BSD-3-Clause
//
// Asking another replica.
#include <errno.h>
#include <pb_decode.h>

#include "chunkserver/catchup_internal.h"
#include "chunkserver/peers.h"

#define TIMEOUT_NS (10 * CG_NS_PER_S)

static const struct cg_rpc_method methods[] = {
    [CG_COPY_STATE] = {"copygate.RaftService", "CopyState"},
    [CG_COPY_BEGIN] = {"copygate.RaftService", "CopyBegin"},
    [CG_COPY_BYTES] = {"copygate.RaftService", "CopyBytes"},
    [CG_COPY_CHUNKS] = {"copygate.RaftService", "CopyChunks"},
    [CG_COPY_BLOCKS] = {"copygate.RaftService", "CopyBlocks"},
    [CG_COPY_END] = {"copygate.RaftService", "CopyEnd"},
};

static void finish(struct cg_copy_call *call, int status) {
    struct cg_catchup *catchup = call->catchup;
    call->active = false;
    call->status = status;
    call->done(call); // the call may be gone then
    cg_catchup_ended(catchup);
}

static void answered(struct cg_rpc_call *rpc) {
    struct cg_copy_call *call = CG_CONTAINER_OF(rpc, struct cg_copy_call, rpc);
    int status = rpc->status;
    if (status == 0) {
        pb_istream_t stream = pb_istream_from_buffer(rpc->reply, rpc->reply_length);
        call->reply = (copygate_CopyReply)copygate_CopyReply_init_zero;
        status = pb_decode(&stream, copygate_CopyReply_fields, &call->reply) ? 0 : -EBADMSG;
    }
    call->received = rpc->received_length;
    finish(call, status);
}

static void unreachable(struct cg_deferred *deferred) {
    finish(CG_CONTAINER_OF(deferred, struct cg_copy_call, unreachable), -EHOSTUNREACH);
}

void cg_copy_ask(struct cg_catchup *catchup, const struct cg_copyset *copyset, uint64_t to,
                 enum cg_copy_method method, struct cg_copy_call *call) {
    call->catchup = catchup;
    call->active = true;
    call->request.group = copyset->group;
    call->request.from = cg_copyset_member(copyset);
    call->request.to = to;
    call->channel = NULL;
    if (catchup->options.peers != NULL && to != 0) {
        call->channel = cg_peers_channel(catchup->options.peers, (uint32_t)to);
    }
    if (call->channel == NULL) {
        cg_list_init(&call->unreachable.node);
        call->unreachable.run = unreachable;
        cg_reactor_defer(catchup->store->reactor, &call->unreachable);
        return;
    }
    uint32_t capacity = 0;
    for (int i = 0; i < call->iovcnt; i++) {
        capacity += (uint32_t)call->iov[i].iov_len;
    }
    call->rpc.method = &methods[method];
    call->rpc.request_fields = copygate_CopyRequest_fields;
    call->rpc.request = &call->request;
    call->rpc.receive_iov = call->iov;
    call->rpc.receive_iovcnt = call->iovcnt;
    call->rpc.receive_capacity = capacity;
    call->rpc.timeout_ns = TIMEOUT_NS;
    call->rpc.done = answered;
    cg_channel_call(call->channel, &call->rpc);
}

void cg_copy_cancel(struct cg_copy_call *call) {
    if (!call->active) {
        return;
    }
    if (call->channel == NULL) {
        cg_reactor_undefer(&call->unreachable);
        finish(call, -ECANCELED);
    } else {
        cg_channel_cancel(call->channel, &call->rpc);
    }
}
