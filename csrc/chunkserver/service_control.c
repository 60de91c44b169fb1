// SPDX-License-Identifier: BSD-3-Clause
//
// Epochs, leaders, and what this store does not have.
#include <errno.h>
#include <pb_decode.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "chunkserver/epoch_raise.h"
#include "chunkserver/service_internal.h"
#include "gateway/proto/cli2.pb.h"

// CurveBS's RPC errors.
#define CURVEBS_ENOENT 2  // an unknown group
#define CURVEBS_EAGAIN 11 // no leader is known

static void answer_epoch(void *user, cg_status status) {
    struct cg_server_request *request = user;
    cg_service_end(cg_service_of(request), status);
    curve_chunkserver_UpdateEpochResponse response = {.status = status};
    cg_server_reply(request, curve_chunkserver_UpdateEpochResponse_fields, &response, NULL, 0, NULL,
                    NULL);
}

void cg_service_update_epoch(struct cg_server_request *request) {
    struct cg_service *service = cg_service_of(request);
    curve_chunkserver_UpdateEpochRequest message = curve_chunkserver_UpdateEpochRequest_init_zero;
    pb_istream_t stream = pb_istream_from_buffer(request->message, request->message_length);
    if (!pb_decode(&stream, curve_chunkserver_UpdateEpochRequest_fields, &message)) {
        cg_server_reply_error(request, CG_RPC_EREQUEST, "the request cannot be parsed");
        return;
    }
    service->stats.others++;
    if (++service->inflight > service->inflight_max || service->stopping) {
        answer_epoch(request, CG_STATUS(OVERLOAD));
        return;
    }
    // The metadata server sends clients to those that hold copysets. Without any this may be one
    // whose disk was replaced, which that does not know yet: it can answer for none of them.
    if (!cg_epoch_any(service->store)) {
        answer_epoch(request, CG_STATUS(FAILURE_UNKNOWN));
        return;
    }
    cg_epoch_raise_all(service->store, service->reactor, message.fileId, message.epoch,
                       answer_epoch, request);
}

void cg_service_get_leader(struct cg_server_request *request) {
    struct cg_service *service = cg_service_of(request);
    curve_chunkserver_GetLeaderRequest2 message = curve_chunkserver_GetLeaderRequest2_init_zero;
    pb_istream_t stream = pb_istream_from_buffer(request->message, request->message_length);
    if (!pb_decode(&stream, curve_chunkserver_GetLeaderRequest2_fields, &message)) {
        cg_server_reply_error(request, CG_RPC_EREQUEST, "the request cannot be parsed");
        return;
    }
    const struct cg_copyset *copyset =
        cg_store_copyset(service->store, message.logicPoolId, message.copysetId);
    if (copyset == NULL) {
        cg_server_reply_error(request, CURVEBS_ENOENT, "there is no such copyset here");
        return;
    }
    curve_chunkserver_GetLeaderResponse2 response = curve_chunkserver_GetLeaderResponse2_init_zero;
    _Static_assert(sizeof(response.leader.address) >= sizeof(service->address),
                   "a leader's address fits");
    // A retired disk leads nothing any more, and hears of nobody.
    uint64_t leader = cg_store_disk_error(service->store) == 0 ? cg_copyset_leader(copyset) : 0;
    if (leader != 0 && leader == cg_copyset_member(copyset)) {
        memcpy(response.leader.address, service->address, sizeof(service->address));
    } else {
        cg_service_leader(service, leader, response.leader.address);
    }
    if (response.leader.address[0] == '\0') {
        cg_server_reply_error(request, CURVEBS_EAGAIN, "no leader is known");
        return;
    }
    response.leader.has_address = true;
    cg_server_reply(request, curve_chunkserver_GetLeaderResponse2_fields, &response, NULL, 0, NULL,
                    NULL);
}

void cg_service_snapshot(struct cg_server_request *request) {
    struct cg_service *service = cg_service_of(request);
    uint64_t now = cg_reactor_now(service->reactor);
    if (now - service->snapshot_log_ns > CG_NS_PER_S) {
        service->snapshot_log_ns = now;
        cg_log(CG_LOG_WARNING, "%s is refused: volumes here have no snapshots and no clones",
               request->method->name);
    }
    service->inflight++;
    service->stats.others++;
    cg_service_answer(request, CG_STATUS(INVALID_REQUEST), UINT64_MAX);
}
