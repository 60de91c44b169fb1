// SPDX-License-Identifier: BSD-3-Clause
//
// The methods that only look.
#include <inttypes.h>
#include <pb_decode.h>
#include <pb_encode.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/crc32c.h"
#include "chunkserver/blockmap.h"
#include "chunkserver/service_internal.h"

static void release_buffer(void *argument) {
    cg_buffer_unref(argument);
}

// Answers what is not to be answered with what was read. A read may have waited for the others to
// confirm that this replica leads, and another owner may have come meanwhile.
static bool refused(struct cg_server_request *request, const struct cg_read_result *result) {
    if (result->status == CG_STATUS(REDIRECTED)) {
        cg_service_redirect(request, result->leader);
        return true;
    }
    if (cg_service_fenced(request)) {
        cg_service_answer(request, CG_STATUS(EPOCH_TOO_OLD), result->index);
        return true;
    }
    return false;
}

static void read_done(void *user, const struct cg_read_result *result) {
    struct cg_server_request *request = user;
    const struct cg_chunk_call *call = cg_call_of(request);
    if (refused(request, result)) {
        return;
    }
    if (result->status != CG_STATUS(SUCCESS) || call->request.size == 0) {
        cg_service_answer(request, result->status, result->index);
        return;
    }
    cg_service_end(cg_service_of(request), CG_STATUS(SUCCESS));
    // The bytes are only read from here on.
    struct iovec iov = {(void *)(uintptr_t)result->data, call->request.size};
    cg_service_reply(request, CG_STATUS(SUCCESS), result->index, &iov, release_buffer,
                     cg_buffer_ref(result->buffer));
}

// `local`: as it is here, whoever leads.
static void ask(struct cg_server_request *request, enum cg_read_kind kind, bool local,
                void (*done)(void *user, const struct cg_read_result *result)) {
    const struct cg_chunk_call *call = cg_call_of(request);
    struct cg_query query = {
        .kind = kind,
        .local = local,
        .copyset = call->copyset,
        .chunk_id = call->request.chunk_id,
        .offset = call->request.offset,
        .size = call->request.size,
        .done = done,
        .user = request,
    };
    cg_store_read(cg_service_of(request)->store, &query);
}

void cg_service_read(struct cg_server_request *request) {
    if (cg_service_begin(request, CG_OP_TYPE(READ), false)) {
        struct cg_service *service = cg_service_of(request);
        service->stats.reads++;
        service->stats.read_bytes += cg_call_of(request)->request.size;
        ask(request, CG_READ_DATA, false, read_done);
    }
}

// ---- GetBlockStatus

struct runs {
    const uint8_t *allocated;
    uint32_t first;
    uint32_t count;
};

static bool encode_runs(pb_ostream_t *stream, const struct runs *runs) {
    for (uint32_t at = 0; at < runs->count;) {
        uint32_t length = cg_blockmap_run(runs->allocated, runs->first + at, runs->count - at);
        bool allocated = cg_blockmap_test(runs->allocated, runs->first + at);
        if (!pb_encode_varint(stream, (uint64_t)length << 1 | (allocated ? 1U : 0U))) {
            return false;
        }
        at += length;
    }
    return true;
}

static bool encode_runs_field(pb_ostream_t *stream, const pb_field_t *field, void *const *arg) {
    const struct runs *runs = *arg;
    pb_ostream_t sizing = PB_OSTREAM_SIZING;
    return encode_runs(&sizing, runs) && pb_encode_tag(stream, PB_WT_STRING, field->tag) &&
           pb_encode_varint(stream, sizing.bytes_written) && encode_runs(stream, runs);
}

static void status_done(void *user, const struct cg_read_result *result) {
    static const uint8_t nothing[CG_BLOCKMAP_BYTES];
    struct cg_server_request *request = user;
    const struct cg_chunk_request *r = &cg_call_of(request)->request;
    if (refused(request, result)) {
        return;
    }
    bool hole = result->status == CG_STATUS(CHUNK_NOTEXIST);
    if (!hole && result->status != CG_STATUS(SUCCESS)) {
        cg_service_answer(request, result->status, result->index);
        return;
    }
    struct runs runs = {.allocated = hole ? nothing : result->allocated,
                        .first = r->offset / CG_BLOCK_SIZE};
    if (r->size > 0) {
        runs.count = (r->offset + r->size - 1) / CG_BLOCK_SIZE - runs.first + 1;
    }
    cg_service_end(cg_service_of(request), CG_STATUS(SUCCESS));
    curve_chunkserver_ChunkResponse response = {
        .status = CG_STATUS(SUCCESS), .has_appliedIndex = true, .appliedIndex = result->index};
    if (runs.count > 0) {
        response.blockRuns.funcs.encode = encode_runs_field;
        response.blockRuns.arg = &runs;
    }
    cg_server_reply(request, curve_chunkserver_ChunkResponse_fields, &response, NULL, 0, NULL,
                    NULL);
}

void cg_service_block_status(struct cg_server_request *request) {
    if (cg_service_begin(request, CG_OP_TYPE(BLOCK_STATUS), false)) {
        cg_service_of(request)->stats.others++;
        ask(request, CG_READ_STATUS, false, status_done);
    }
}

// ---- GetChunkInfo, GetChunkHash: requests of their own shape

static bool decode(struct cg_server_request *request, const pb_msgdesc_t *fields, void *message) {
    pb_istream_t stream = pb_istream_from_buffer(request->message, request->message_length);
    if (pb_decode(&stream, fields, message)) {
        return true;
    }
    cg_server_reply_error(request, CG_RPC_EREQUEST, "the request cannot be parsed");
    return false;
}

// Counts the request in; false if it has to be refused with *status.
static bool enter(struct cg_server_request *request, uint32_t pool, uint32_t copyset,
                  cg_status *status) {
    struct cg_service *service = cg_service_of(request);
    struct cg_chunk_call *call = cg_call_of(request);
    service->inflight++;
    service->stats.others++;
    *status = CG_STATUS(SUCCESS);
    if (service->inflight > service->inflight_max || service->stopping) {
        *status = CG_STATUS(OVERLOAD);
        return false;
    }
    call->copyset = cg_store_copyset(service->store, pool, copyset);
    if (call->copyset == NULL) {
        *status = CG_STATUS(COPYSET_NOTEXIST);
        return false;
    }
    return true;
}

static void answer_info(struct cg_server_request *request, cg_status status, uint64_t sn,
                        uint64_t leader) {
    cg_service_end(cg_service_of(request), status);
    curve_chunkserver_GetChunkInfoResponse response = {.status = status};
    if (status == CG_STATUS(REDIRECTED)) {
        cg_service_leader(cg_service_of(request), leader, response.redirect);
        response.has_redirect = response.redirect[0] != '\0';
    }
    if (status == CG_STATUS(SUCCESS)) {
        response.chunkSn_count = 1;
        response.chunkSn[0] = sn;
    }
    cg_server_reply(request, curve_chunkserver_GetChunkInfoResponse_fields, &response, NULL, 0,
                    NULL, NULL);
}

static void info_done(void *user, const struct cg_read_result *result) {
    answer_info(user, result->status, result->sn, result->leader);
}

void cg_service_chunk_info(struct cg_server_request *request) {
    curve_chunkserver_GetChunkInfoRequest message = curve_chunkserver_GetChunkInfoRequest_init_zero;
    if (!decode(request, curve_chunkserver_GetChunkInfoRequest_fields, &message)) {
        return;
    }
    cg_status status;
    if (!enter(request, message.logicPoolId, message.copysetId, &status)) {
        answer_info(request, status, 0, 0);
        return;
    }
    struct cg_chunk_call *call = cg_call_of(request);
    call->request = (struct cg_chunk_request){.chunk_id = message.chunkId};
    ask(request, CG_READ_INFO, false, info_done);
}

static void answer_hash(struct cg_server_request *request, cg_status status, uint32_t crc) {
    cg_service_end(cg_service_of(request), status);
    curve_chunkserver_GetChunkHashResponse response = {.status = status};
    if (status == CG_STATUS(SUCCESS)) {
        response.has_hash = true;
        snprintf(response.hash, sizeof(response.hash), "%" PRIu32, crc);
    }
    cg_server_reply(request, curve_chunkserver_GetChunkHashResponse_fields, &response, NULL, 0,
                    NULL, NULL);
}

static void hash_done(void *user, const struct cg_read_result *result) {
    struct cg_server_request *request = user;
    const struct cg_chunk_call *call = cg_call_of(request);
    uint32_t crc = 0;
    if (result->status == CG_STATUS(SUCCESS) && call->request.size > 0) {
        crc = cg_crc32c(0, result->data, call->request.size);
    }
    answer_hash(request, result->status, crc);
}

// The hash of what this replica has: it is there to compare replicas.
void cg_service_chunk_hash(struct cg_server_request *request) {
    curve_chunkserver_GetChunkHashRequest message = curve_chunkserver_GetChunkHashRequest_init_zero;
    if (!decode(request, curve_chunkserver_GetChunkHashRequest_fields, &message)) {
        return;
    }
    cg_status status;
    bool entered = enter(request, message.logicPoolId, message.copysetId, &status);
    if (entered && (uint64_t)message.offset + message.length >
                       cg_store_chunk_size(cg_service_of(request)->store)) {
        status = CG_STATUS(INVALID_REQUEST);
        entered = false;
    }
    if (!entered) {
        answer_hash(request, status, 0);
        return;
    }
    struct cg_chunk_call *call = cg_call_of(request);
    call->request = (struct cg_chunk_request){
        .chunk_id = message.chunkId, .offset = message.offset, .size = message.length};
    ask(request, CG_READ_DATA, true, hash_done);
}
