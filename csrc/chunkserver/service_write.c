// SPDX-License-Identifier: BSD-3-Clause
//
// The methods that change a chunk.
#include "base/crc32c.h"
#include "chunkserver/service_internal.h"

static void mutated(void *user, const struct cg_mutation_result *result) {
    struct cg_server_request *request = user;
    if (result->status == CG_STATUS(REDIRECTED)) {
        cg_service_redirect(request, result->leader);
        return;
    }
    if (result->status == CG_STATUS(MISCOMPARE)) {
        cg_service_end(cg_service_of(request), result->status);
        curve_chunkserver_ChunkResponse response = {
            .status = result->status,
            .has_appliedIndex = true,
            .appliedIndex = result->index,
            .has_mismatchOffset = true,
            .mismatchOffset = result->mismatch_offset,
        };
        cg_server_reply(request, curve_chunkserver_ChunkResponse_fields, &response, NULL, 0, NULL,
                        NULL);
        return;
    }
    cg_service_answer(request, result->status, result->index);
}

static void mutate(struct cg_server_request *request, enum cg_op_kind kind) {
    struct cg_service *service = cg_service_of(request);
    const struct cg_chunk_call *call = cg_call_of(request);
    const struct cg_chunk_request *r = &call->request;
    bool has_client = (r->has & CG_REQUEST_CLIENT_ID) && (r->has & CG_REQUEST_SEQUENCE);
    struct cg_mutation mutation = {
        .kind = kind,
        .no_hole = r->no_hole,
        .has_epoch =
            r->strict_epoch || (kind == CG_MUTATE_WRITE && (r->has & CG_REQUEST_EPOCH) != 0),
        .has_client = has_client,
        .has_crc = kind == CG_MUTATE_WRITE && (r->has & CG_REQUEST_CRC),
        .copyset = call->copyset,
        .chunk_id = r->chunk_id,
        .file_id = r->file_id,
        .epoch = r->epoch,
        .sn = r->sn,
        .client_id = r->client_id,
        .sequence = r->sequence,
        .settled_below = r->settled_below,
        .offset = r->offset,
        .size = r->size,
        .crc = r->attachment_crc,
        .buffer = request->buffer,
        .data_offset = call->data_offset,
        .done = mutated,
        .user = request,
    };
    cg_store_mutate(service->store, &mutation);
}

// SUCCESS, or why the data that came with the request cannot be taken.
static cg_status check_data(struct cg_server_request *request, uint32_t parts) {
    const struct cg_chunk_call *call = cg_call_of(request);
    const struct cg_chunk_request *r = &call->request;
    // A short or long attachment in the log would be poison to every replica that applies it.
    if ((uint64_t)r->size * parts != request->attachment_length ||
        (uint64_t)r->offset % CG_BLOCK_SIZE + r->size > CG_WAL_PAYLOAD_MAX) {
        return CG_STATUS(INVALID_REQUEST);
    }
    // As CurveBS does; a client that numbers its requests need not know about snapshots.
    if (r->sn == 0 && !(r->has & CG_REQUEST_CLIENT_ID)) {
        return CG_STATUS(FAILURE_UNKNOWN);
    }
    if (request->attachment_length > 0 && (r->has & CG_REQUEST_CRC)) {
        const uint8_t *data = request->buffer->data + request->buffer_offset;
        if (cg_crc32c(0, data, request->attachment_length) != r->attachment_crc) {
            return CG_STATUS(CRC_FAIL);
        }
    }
    return CG_STATUS(SUCCESS);
}

static void take_data(struct cg_server_request *request, enum cg_op_kind kind, uint32_t parts) {
    struct cg_service *service = cg_service_of(request);
    const struct cg_chunk_call *call = cg_call_of(request);
    cg_status status = check_data(request, parts);
    if (status != CG_STATUS(SUCCESS) || call->request.size == 0) {
        cg_service_answer(request, status, cg_copyset_applied(call->copyset));
        return;
    }
    service->stats.writes++;
    service->stats.written_bytes += call->request.size;
    mutate(request, kind);
}

void cg_service_write(struct cg_server_request *request) {
    if (cg_service_begin(request, CG_OP_TYPE(WRITE), true)) {
        take_data(request, CG_MUTATE_WRITE, 1);
    }
}

void cg_service_compare_and_write(struct cg_server_request *request) {
    if (cg_service_begin(request, CG_OP_TYPE(COMPARE_AND_WRITE), false)) {
        take_data(request, CG_MUTATE_COMPARE_AND_WRITE, 2);
    }
}

// The methods without data.
static void change(struct cg_server_request *request, enum cg_op_kind kind) {
    const struct cg_chunk_call *call = cg_call_of(request);
    if (request->attachment_length != 0) {
        cg_service_answer(request, CG_STATUS(INVALID_REQUEST), UINT64_MAX);
        return;
    }
    cg_service_of(request)->stats.others++;
    if (call->request.size == 0 && kind != CG_MUTATE_DELETE) {
        cg_service_answer(request, CG_STATUS(SUCCESS), cg_copyset_applied(call->copyset));
        return;
    }
    mutate(request, kind);
}

void cg_service_write_zeroes(struct cg_server_request *request) {
    if (cg_service_begin(request, CG_OP_TYPE(WRITE_ZEROES), false)) {
        change(request, CG_MUTATE_ZERO);
    }
}

void cg_service_trim(struct cg_server_request *request) {
    if (cg_service_begin(request, CG_OP_TYPE(TRIM), false)) {
        change(request, CG_MUTATE_TRIM);
    }
}

void cg_service_delete(struct cg_server_request *request) {
    if (cg_service_begin(request, CG_OP_TYPE(DELETE), false)) {
        change(request, CG_MUTATE_DELETE);
    }
}
