// SPDX-License-Identifier: BSD-3-Clause
#ifndef CG_CHUNKSERVER_SERVICE_INTERNAL_H
#define CG_CHUNKSERVER_SERVICE_INTERNAL_H

#include "chunkserver/chunk_format.h"
#include "chunkserver/chunk_request.h"
#include "chunkserver/service.h"

#define CG_STATUS(name)  curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_##name
#define CG_OP_TYPE(name) curve_chunkserver_CHUNK_OP_TYPE_CHUNK_OP_##name

// What a request on a chunk keeps in its scratch space.
struct cg_chunk_call {
    struct cg_chunk_request request;
    struct cg_copyset *copyset;
    uint32_t data_offset; // of the data to write, in the request's buffer
    bool no_buffer;       // the pool was exhausted when the attachment was to be received
};

_Static_assert(sizeof(struct cg_chunk_call) <= CG_SERVER_SCRATCH, "a call fits into the scratch");

static inline struct cg_service *cg_service_of(const struct cg_server_request *request) {
    return request->method->context;
}

static inline struct cg_chunk_call *cg_call_of(struct cg_server_request *request) {
    return (struct cg_chunk_call *)(void *)request->scratch;
}

// Answers with a ChunkResponse and, unless `data` is NULL, with an attachment; see cg_server_reply.
// cg_service_end must have been called. `index` UINT64_MAX: none.
void cg_service_reply(struct cg_server_request *request, cg_status status, uint64_t index,
                      const struct iovec *data, void (*release)(void *argument), void *argument);

// The address of the chunkserver with this member's replica, "ip:port:0" as CurveBS writes it;
// empty if it is not known.
void cg_service_leader(const struct cg_service *service, uint64_t member, char out[64]);

// Answers a ChunkRequest with REDIRECTED to that member and ends it.
void cg_service_redirect(struct cg_server_request *request, uint64_t member);

// Whether the request's epoch has become too old while it waited.
bool cg_service_fenced(struct cg_server_request *request);

// Answers a ChunkRequest without data and ends it. `index` UINT64_MAX: none. cg_service_begin must
// have been called for it.
void cg_service_answer(struct cg_server_request *request, cg_status status, uint64_t index);

// Counts the request in, decodes it unless `prepare` did, checks what all requests on chunks have
// in common. False if it has been answered.
bool cg_service_begin(struct cg_server_request *request, uint32_t op_type, bool is_write);

// Counts a request out before it is answered.
void cg_service_end(struct cg_service *service, cg_status status);

int cg_service_prepare(struct cg_server_request *request);
int cg_service_prepare_data(struct cg_server_request *request);

// ---- service_write.c
void cg_service_write(struct cg_server_request *request);
void cg_service_write_zeroes(struct cg_server_request *request);
void cg_service_trim(struct cg_server_request *request);
void cg_service_compare_and_write(struct cg_server_request *request);
void cg_service_delete(struct cg_server_request *request);

// ---- service_read.c
void cg_service_read(struct cg_server_request *request);
void cg_service_block_status(struct cg_server_request *request);
void cg_service_chunk_info(struct cg_server_request *request);
void cg_service_chunk_hash(struct cg_server_request *request);

// ---- service_control.c
void cg_service_update_epoch(struct cg_server_request *request);
void cg_service_get_leader(struct cg_server_request *request);
void cg_service_snapshot(struct cg_server_request *request);

#endif
