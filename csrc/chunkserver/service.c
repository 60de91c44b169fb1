// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/service.h"

#include <stdio.h>
#include <string.h>

#include "chunkserver/service_internal.h"

#define INFLIGHT_MAX_DEFAULT 5000U

void cg_service_end(struct cg_service *service, cg_status status) {
    service->inflight--;
    if (status == CG_STATUS(OVERLOAD)) {
        service->stats.overloads++;
    } else if (status != CG_STATUS(SUCCESS) && status != CG_STATUS(CHUNK_NOTEXIST) &&
               status != CG_STATUS(MISCOMPARE) && status != CG_STATUS(REDIRECTED)) {
        service->stats.errors++;
    }
}

static uint8_t *put_varint(uint8_t *out, uint64_t value) {
    while (value >= 0x80) {
        *out++ = (uint8_t)(value | 0x80);
        value >>= 7;
    }
    *out++ = (uint8_t)value;
    return out;
}

// ChunkResponse with status (1) and appliedIndex (3), by hand: it answers every read and write, and
// the bytes are what nanopb makes of it.
void cg_service_reply(struct cg_server_request *request, cg_status status, uint64_t index,
                      const struct iovec *data, void (*release)(void *argument), void *argument) {
    uint8_t response[24];
    uint8_t *end = response;
    *end++ = 1 << 3;
    end = put_varint(end, status);
    if (index != UINT64_MAX) {
        *end++ = 3 << 3;
        end = put_varint(end, index);
    }
    cg_server_reply_encoded(request, response, (uint32_t)(end - response), data, data != NULL,
                            release, argument);
}

void cg_service_answer(struct cg_server_request *request, cg_status status, uint64_t index) {
    cg_service_end(cg_service_of(request), status);
    cg_service_reply(request, status, index, NULL, NULL, NULL);
}

void cg_service_leader(const struct cg_service *service, uint64_t member, char out[64]) {
    const char *address = member != 0 ? cg_peers_address(service->peers, (uint32_t)member) : NULL;
    int length = address != NULL ? snprintf(out, 64, "%s:0", address) : 0;
    if (length <= 0 || length >= 64) {
        out[0] = '\0';
    }
}

void cg_service_redirect(struct cg_server_request *request, uint64_t member) {
    struct cg_service *service = cg_service_of(request);
    curve_chunkserver_ChunkResponse response = {.status = CG_STATUS(REDIRECTED)};
    cg_service_leader(service, member, response.redirect);
    response.has_redirect = response.redirect[0] != '\0';
    cg_service_end(service, CG_STATUS(REDIRECTED));
    cg_server_reply(request, curve_chunkserver_ChunkResponse_fields, &response, NULL, 0, NULL,
                    NULL);
}

bool cg_service_fenced(struct cg_server_request *request) {
    const struct cg_chunk_call *call = cg_call_of(request);
    const struct cg_chunk_request *r = &call->request;
    return r->strict_epoch && r->epoch < cg_copyset_epoch(call->copyset, r->file_id);
}

int cg_service_prepare(struct cg_server_request *request) {
    struct cg_chunk_call *call = cg_call_of(request);
    call->no_buffer = false;
    return cg_chunk_request_decode(request->message, request->message_length, &call->request) == 0
               ? 0
               : CG_RPC_EREQUEST;
}

// Places the attachment so that the data stands in the buffer as it will stand in its blocks.
int cg_service_prepare_data(struct cg_server_request *request) {
    struct cg_chunk_call *call = cg_call_of(request);
    int result = cg_service_prepare(request);
    if (result != 0 || request->attachment_length == 0) {
        return result;
    }
    const struct cg_chunk_request *r = &call->request;
    uint32_t size = r->size;
    uint32_t compare = r->op_type == CG_OP_TYPE(COMPARE_AND_WRITE) ? size : 0;
    if (size > CG_WAL_PAYLOAD_MAX || (uint64_t)size + compare != request->attachment_length) {
        return 0; // will be refused; where it goes does not matter
    }
    // The data to compare with stands in front of the data to write.
    uint32_t data_offset = compare + (r->offset - compare) % CG_BLOCK_SIZE;
    size_t length = (data_offset + size + CG_BLOCK_SIZE - 1) / CG_BLOCK_SIZE * CG_BLOCK_SIZE;
    if (data_offset == 0 && length == request->attachment_length) {
        // As the server lays it out by itself, in the buffer into which it may have come already.
        call->data_offset = 0;
        return 0;
    }
    request->buffer = cg_buffer_alloc(cg_service_of(request)->pool, length);
    if (request->buffer == NULL) {
        call->no_buffer = true;
        return 0;
    }
    request->buffer_offset = data_offset - compare;
    call->data_offset = data_offset;
    return 0;
}

// The operation type of a method has to be the request's: CurveBS answers 2002 otherwise.
bool cg_service_begin(struct cg_server_request *request, uint32_t op_type, bool is_write) {
    struct cg_service *service = cg_service_of(request);
    struct cg_chunk_call *call = cg_call_of(request);
    const struct cg_chunk_request *r = &call->request;
    if (r->op_type != op_type) {
        cg_server_reply_error(request, CG_RPC_ERESPONSE, "the opType is not the method's");
        return false;
    }
    cg_status status = CG_STATUS(SUCCESS);
    service->inflight++;
    if (service->inflight > service->inflight_max || service->stopping || request->overloaded ||
        call->no_buffer) {
        status = CG_STATUS(OVERLOAD);
    } else if ((uint64_t)r->offset + r->size > cg_store_chunk_size(service->store) ||
               (r->has & CG_REQUEST_CLONE)) {
        status = CG_STATUS(INVALID_REQUEST);
    } else {
        call->copyset = cg_store_copyset(service->store, r->pool, r->copyset);
        if (call->copyset == NULL) {
            status = CG_STATUS(COPYSET_NOTEXIST);
        } else if ((r->strict_epoch || (is_write && (r->has & CG_REQUEST_EPOCH))) &&
                   r->epoch < cg_copyset_epoch(call->copyset, r->file_id)) {
            status = CG_STATUS(EPOCH_TOO_OLD);
        }
    }
    if (status == CG_STATUS(SUCCESS)) {
        return true;
    }
    cg_service_answer(request, status, UINT64_MAX);
    return false;
}

const char *cg_service_health(void *context) {
    const struct cg_service *service = context;
    return cg_store_disk_error(service->store) == 0 ? "OK\n" : NULL;
}

void cg_service_init(struct cg_service *service, struct cg_store *store, struct cg_peers *peers,
                     struct cg_buffer_pool *pool, struct cg_reactor *reactor,
                     uint32_t inflight_max) {
    static const char chunk_service[] = "curve.chunkserver.ChunkService";
    const struct cg_server_method methods[] = {
        {chunk_service, "ReadChunk", cg_service_prepare, cg_service_read, service},
        {chunk_service, "WriteChunk", cg_service_prepare_data, cg_service_write, service},
        {chunk_service, "DeleteChunk", cg_service_prepare, cg_service_delete, service},
        {chunk_service, "WriteZeroesChunk", cg_service_prepare, cg_service_write_zeroes, service},
        {chunk_service, "TrimChunk", cg_service_prepare, cg_service_trim, service},
        {chunk_service, "CompareAndWriteChunk", cg_service_prepare_data,
         cg_service_compare_and_write, service},
        {chunk_service, "GetBlockStatus", cg_service_prepare, cg_service_block_status, service},
        {chunk_service, "GetChunkInfo", NULL, cg_service_chunk_info, service},
        {chunk_service, "GetChunkHash", NULL, cg_service_chunk_hash, service},
        {chunk_service, "UpdateEpoch", NULL, cg_service_update_epoch, service},
        {chunk_service, "ReadChunkSnapshot", cg_service_prepare, cg_service_snapshot, service},
        {chunk_service, "DeleteChunkSnapshotOrCorrectSn", cg_service_prepare, cg_service_snapshot,
         service},
        {chunk_service, "CreateCloneChunk", cg_service_prepare, cg_service_snapshot, service},
        {chunk_service, "RecoverChunk", cg_service_prepare, cg_service_snapshot, service},
        {"curve.chunkserver.CliService2", "GetLeader", NULL, cg_service_get_leader, service},
    };
    _Static_assert(sizeof(methods) / sizeof(methods[0]) == CG_SERVICE_METHODS,
                   "CG_SERVICE_METHODS counts the methods");
    *service = (struct cg_service){
        .store = store,
        .peers = peers,
        .pool = pool,
        .reactor = reactor,
        .inflight_max = inflight_max != 0 ? inflight_max : INFLIGHT_MAX_DEFAULT,
    };
    memcpy(service->methods, methods, sizeof(methods));
}
