// SPDX-License-Identifier: BSD-3-Clause
//
// Epochs, leaders, and what this store does not have.
#include <errno.h>
#include <pb_decode.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "chunkserver/service_internal.h"
#include "gateway/proto/cli2.pb.h"

#define CURVEBS_ENOENT 2 // the RPC error for an unknown group

struct epoch_update {
    struct cg_server_request *request;
    uint32_t waiting;
    cg_status status;
};

static void answer_epoch(struct cg_server_request *request, cg_status status) {
    cg_service_end(cg_service_of(request), status);
    curve_chunkserver_UpdateEpochResponse response = {.status = status};
    cg_server_reply(request, curve_chunkserver_UpdateEpochResponse_fields, &response, NULL, 0, NULL,
                    NULL);
}

static void epoch_done(void *user, const struct cg_mutation_result *result) {
    struct epoch_update *update = user;
    if (result->status != CG_STATUS(SUCCESS)) {
        update->status = result->status;
    }
    if (--update->waiting == 0) {
        answer_epoch(update->request, update->status);
        free(update);
    }
}

// Proposes the epoch to every copyset that does not know it yet.
static void propose_epoch(struct cg_server_request *request, uint64_t file_id, uint64_t epoch) {
    struct cg_store *store = cg_service_of(request)->store;
    struct epoch_update *update = malloc(sizeof(*update));
    if (update == NULL) {
        answer_epoch(request, CG_STATUS(OVERLOAD));
        return;
    }
    // One more than there are, so that the last answer comes from below.
    *update = (struct epoch_update){request, 1, CG_STATUS(SUCCESS)};
    uint32_t count = cg_store_copyset_count(store);
    for (uint32_t i = 0; i < count; i++) {
        struct cg_copyset *copyset = cg_store_copyset_at(store, i);
        uint64_t known = cg_copyset_epoch(copyset, file_id);
        if (known > epoch) {
            update->status = CG_STATUS(EPOCH_TOO_OLD);
        } else if (known < epoch) {
            update->waiting++;
            struct cg_mutation mutation = {
                .kind = CG_MUTATE_EPOCH,
                .copyset = copyset,
                .file_id = file_id,
                .epoch = epoch,
                .done = epoch_done,
                .user = update,
            };
            cg_store_mutate(store, &mutation);
        }
    }
    struct cg_mutation_result end = {.status = update->status};
    epoch_done(update, &end);
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
    propose_epoch(request, message.fileId, message.epoch);
}

void cg_service_get_leader(struct cg_server_request *request) {
    struct cg_service *service = cg_service_of(request);
    curve_chunkserver_GetLeaderRequest2 message = curve_chunkserver_GetLeaderRequest2_init_zero;
    pb_istream_t stream = pb_istream_from_buffer(request->message, request->message_length);
    if (!pb_decode(&stream, curve_chunkserver_GetLeaderRequest2_fields, &message)) {
        cg_server_reply_error(request, CG_RPC_EREQUEST, "the request cannot be parsed");
        return;
    }
    if (cg_store_copyset(service->store, message.logicPoolId, message.copysetId) == NULL) {
        cg_server_reply_error(request, CURVEBS_ENOENT, "there is no such copyset here");
        return;
    }
    curve_chunkserver_GetLeaderResponse2 response = curve_chunkserver_GetLeaderResponse2_init_zero;
    response.leader.has_address = true;
    _Static_assert(sizeof(response.leader.address) >= sizeof(service->leader),
                   "a leader's address fits");
    memcpy(response.leader.address, service->leader, sizeof(service->leader));
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
