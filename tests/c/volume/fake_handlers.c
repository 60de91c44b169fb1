// SPDX-License-Identifier: BSD-3-Clause
#include <pb_decode.h>
#include <pb_encode.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fake_internal.h"
#include "gateway/proto/cli2.pb.h"
#include "gateway/proto/nameserver2.pb.h"
#include "gateway/proto/topology.pb.h"

#define BLOCK         4096U
#define COPYSET_COUNT 2U

typedef curve_chunkserver_ChunkRequest chunk_request;

static bool encode_text(pb_ostream_t *stream, const pb_field_t *field, void *const *arg) {
    const char *text = *arg;
    return pb_encode_tag_for_field(stream, field) &&
           pb_encode_string(stream, (const pb_byte_t *)text, strlen(text));
}

void fake_reply_with(struct fake_reply *reply, const pb_msgdesc_t *fields, const void *message) {
    pb_ostream_t stream = pb_ostream_from_buffer(reply->message, sizeof(reply->message));
    if (!pb_encode(&stream, fields, message)) {
        fprintf(stderr, "fake: encode: %s\n", PB_GET_ERROR(&stream));
        abort();
    }
    reply->length = (uint32_t)stream.bytes_written;
}

void fake_decode(const struct fake_call *call, const pb_msgdesc_t *fields, void *message) {
    pb_istream_t stream = pb_istream_from_buffer(call->message, call->length);
    if (!pb_decode(&stream, fields, message)) {
        fprintf(stderr, "fake: decode %s: %s\n", call->method, PB_GET_ERROR(&stream));
        abort();
    }
}

static struct fake_log *log_request(struct fake *fake, const struct fake_call *call) {
    if (fake->log_count == FAKE_LOG_MAX) {
        abort();
    }
    struct fake_log *entry = &fake->log[fake->log_count++];
    memset(entry, 0, sizeof(*entry));
    entry->server = call->connection->server->index;
    snprintf(entry->method, sizeof(entry->method), "%s", call->method);
    return entry;
}

static bool decode_path(pb_istream_t *stream, const pb_field_t *field, void **arg) {
    (void)field;
    char *path = *arg;
    size_t length = stream->bytes_left;
    if (length >= sizeof(((struct fake_log *)0)->path)) {
        return false;
    }
    path[length] = '\0';
    return pb_read(stream, (pb_byte_t *)path, length);
}

// ---- The metadata server

static void fill_file(struct fake *fake, curve_mds_FileInfo *file) {
    file->has_id = true;
    file->id = 77;
    file->has_fileType = true;
    file->fileType = curve_mds_FileType_INODE_PAGEFILE;
    file->has_chunkSize = true;
    file->chunkSize = fake->chunk_size;
    file->has_segmentSize = true;
    file->segmentSize = fake->segment_size;
    file->has_length = true;
    file->length = fake->size;
    file->has_seqNum = true;
    file->seqNum = fake->seq;
    file->has_stripeUnit = true;
    file->stripeUnit = fake->stripe_unit;
    file->has_stripeCount = true;
    file->stripeCount = fake->stripe_count;
    file->has_epoch = fake->epoch != 0;
    file->epoch = fake->epoch;
    file->has_features = fake->native;
    file->features = 1;
    file->has_fileStatus = true;
    file->fileStatus = (curve_mds_FileStatus)fake->file_status;
    if (fake->clone_source != NULL) {
        file->cloneSource = (pb_callback_t){.funcs.encode = encode_text,
                                            .arg = (void *)(uintptr_t)fake->clone_source};
        file->has_cloneLength = true;
        file->cloneLength = fake->clone_length;
    }
}

void fake_session(const struct fake *fake, char id[32]) {
    snprintf(id, 32, "session-%u", fake->opens);
}

// `id` stays valid until the message is encoded.
static void fill_session(struct fake *fake, curve_mds_ProtoSession *session, char id[32]) {
    fake_session(fake, id);
    session->sessionID = (pb_callback_t){.funcs.encode = encode_text, .arg = id};
    session->leaseTime = fake->lease_us;
    session->createTime = 1;
    session->sessionStatus = 0;
}

static void on_open(struct fake *fake, struct fake_reply *reply) {
    curve_mds_OpenFileResponse m = curve_mds_OpenFileResponse_init_zero;
    char id[32];
    fake->opens++;
    fake->session_gone = false;
    m.statusCode = curve_mds_StatusCode_kOK;
    m.has_protoSession = true;
    fill_session(fake, &m.protoSession, id);
    m.has_fileInfo = true;
    fill_file(fake, &m.fileInfo);
    m.has_cloneSourceSegment = fake->clone_source != NULL && !fake->hide_source_segments;
    m.cloneSourceSegment.segmentSize = fake->segment_size;
    m.cloneSourceSegment.allocatedSegmentOffset =
        (pb_callback_t){.funcs.encode = fake_source_tell, .arg = fake};
    fake_reply_with(reply, curve_mds_OpenFileResponse_fields, &m);
}

static void on_info(struct fake *fake, const struct fake_call *call, struct fake_reply *reply,
                    struct fake_log *entry) {
    curve_mds_GetFileInfoRequest request = curve_mds_GetFileInfoRequest_init_zero;
    curve_mds_GetFileInfoResponse m = curve_mds_GetFileInfoResponse_init_zero;
    request.fileName = (pb_callback_t){.funcs.decode = decode_path, .arg = entry->path};
    fake_decode(call, curve_mds_GetFileInfoRequest_fields, &request);
    m.statusCode = curve_mds_StatusCode_kFileNotExists;
    if (!fake->source_gone && fake->clone_source != NULL &&
        strcmp(entry->path, fake->clone_source) == 0) {
        m.statusCode = curve_mds_StatusCode_kOK;
        m.has_fileInfo = true;
        fill_file(fake, &m.fileInfo);
        m.fileInfo.id = 78;
        m.fileInfo.length = fake->clone_length;
        m.fileInfo.fileStatus = (curve_mds_FileStatus)fake->source_status;
    }
    fake_reply_with(reply, curve_mds_GetFileInfoResponse_fields, &m);
}

static void on_refresh(struct fake *fake, struct fake_reply *reply) {
    curve_mds_ReFreshSessionResponse m = curve_mds_ReFreshSessionResponse_init_zero;
    char id[32];
    fake_session(fake, id);
    fake->refreshes++;
    m.sessionID = (pb_callback_t){.funcs.encode = encode_text, .arg = id};
    if (fake->session_gone) {
        m.statusCode = curve_mds_StatusCode_kSessionNotExist;
    } else if (fake->refuse_refresh) {
        m.statusCode = curve_mds_StatusCode_kStorageError;
    } else {
        m.statusCode = curve_mds_StatusCode_kOK;
        m.has_fileInfo = true;
        fill_file(fake, &m.fileInfo);
        m.has_protoSession = true;
        fill_session(fake, &m.protoSession, id);
    }
    fake_reply_with(reply, curve_mds_ReFreshSessionResponse_fields, &m);
}

static void fill_location(struct fake *fake, int peer,
                          curve_mds_topology_ChunkServerLocation *location) {
    location->chunkServerID = (uint32_t)peer + 1;
    snprintf(location->hostIp, sizeof(location->hostIp), "127.0.0.1");
    location->port = (uint32_t)fake->servers[fake_peer(fake, peer)].port;
    location->has_externalIp = true;
    snprintf(location->externalIp, sizeof(location->externalIp), "127.0.0.1");
}

static bool encode_locations(pb_ostream_t *stream, const pb_field_t *field, void *const *arg) {
    struct fake *fake = *arg;
    for (int i = 0; i < fake->peer_count; i++) {
        curve_mds_topology_ChunkServerLocation location =
            curve_mds_topology_ChunkServerLocation_init_zero;
        fill_location(fake, i, &location);
        if (!pb_encode_tag_for_field(stream, field) ||
            !pb_encode_submessage(stream, curve_mds_topology_ChunkServerLocation_fields,
                                  &location)) {
            return false;
        }
    }
    return true;
}

static void on_raise(struct fake *fake, struct fake_reply *reply) {
    curve_mds_IncreaseFileEpochResponse m = curve_mds_IncreaseFileEpochResponse_init_zero;
    fake->raises++;
    fake->epoch++;
    m.statusCode = curve_mds_StatusCode_kOK;
    m.has_fileInfo = true;
    fill_file(fake, &m.fileInfo);
    m.csLocs = (pb_callback_t){.funcs.encode = encode_locations, .arg = fake};
    m.has_replicas = fake->replicas != 0;
    m.replicas = fake->replicas;
    fake_reply_with(reply, curve_mds_IncreaseFileEpochResponse_fields, &m);
}

struct segment_reply {
    struct fake *fake;
    uint64_t first;
};

static bool encode_chunks(pb_ostream_t *stream, const pb_field_t *field, void *const *arg) {
    const struct segment_reply *segment = *arg;
    uint32_t count = segment->fake->segment_size / segment->fake->chunk_size;
    for (uint32_t i = 0; i < count; i++) {
        curve_mds_PageFileChunkInfo chunk = {.chunkID = segment->first + i,
                                             .copysetID = 1 + i % COPYSET_COUNT};
        if (!pb_encode_tag_for_field(stream, field) ||
            !pb_encode_submessage(stream, curve_mds_PageFileChunkInfo_fields, &chunk)) {
            return false;
        }
    }
    return true;
}

static void on_segment(struct fake *fake, const struct fake_call *call, struct fake_reply *reply,
                       struct fake_log *entry) {
    curve_mds_GetOrAllocateSegmentRequest request = curve_mds_GetOrAllocateSegmentRequest_init_zero;
    curve_mds_GetOrAllocateSegmentResponse m = curve_mds_GetOrAllocateSegmentResponse_init_zero;
    request.fileName = (pb_callback_t){.funcs.decode = decode_path, .arg = entry->path};
    fake_decode(call, curve_mds_GetOrAllocateSegmentRequest_fields, &request);
    entry->offset = request.offset;
    entry->allocate = request.allocateIfNotExist;
    bool source = fake->clone_source != NULL && strcmp(entry->path, fake->clone_source) == 0;
    uint64_t index = request.offset / fake->segment_size;
    uint64_t *first = source ? &fake->source_segments[index] : &fake->segments[index];
    if (request.offset % fake->segment_size != 0 || (source && request.allocateIfNotExist)) {
        fake->violations++;
    }
    if (*first == 0 && request.allocateIfNotExist) {
        *first = fake->next_chunk;
        fake->next_chunk += fake->segment_size / fake->chunk_size;
    }
    struct segment_reply segment = {fake, *first};
    m.statusCode =
        *first != 0 ? curve_mds_StatusCode_kOK : curve_mds_StatusCode_kSegmentNotAllocated;
    if (*first != 0) {
        m.has_pageFileSegment = true;
        m.pageFileSegment.logicalPoolID = 1;
        m.pageFileSegment.startOffset = request.offset;
        m.pageFileSegment.segmentSize = fake->segment_size;
        m.pageFileSegment.chunkSize = fake->chunk_size;
        m.pageFileSegment.chunks = (pb_callback_t){.funcs.encode = encode_chunks, .arg = &segment};
    }
    fake_reply_with(reply, curve_mds_GetOrAllocateSegmentResponse_fields, &m);
}

static void on_deallocate(struct fake *fake, const struct fake_call *call, struct fake_reply *reply,
                          struct fake_log *entry) {
    curve_mds_DeAllocateSegmentRequest request = curve_mds_DeAllocateSegmentRequest_init_zero;
    curve_mds_DeAllocateSegmentResponse m = {.statusCode = curve_mds_StatusCode_kOK};
    fake_decode(call, curve_mds_DeAllocateSegmentRequest_fields, &request);
    entry->offset = request.offset;
    fake->segments[request.offset / fake->segment_size] = 0;
    fake_reply_with(reply, curve_mds_DeAllocateSegmentResponse_fields, &m);
}

static bool encode_copysets(pb_ostream_t *stream, const pb_field_t *field, void *const *arg) {
    for (uint32_t id = 1; id <= COPYSET_COUNT; id++) {
        curve_mds_topology_CopySetServerInfo copyset =
            curve_mds_topology_CopySetServerInfo_init_zero;
        copyset.copysetId = id;
        copyset.csLocs = (pb_callback_t){.funcs.encode = encode_locations, .arg = *arg};
        if (!pb_encode_tag_for_field(stream, field) ||
            !pb_encode_submessage(stream, curve_mds_topology_CopySetServerInfo_fields, &copyset)) {
            return false;
        }
    }
    return true;
}

static void on_peers(struct fake *fake, struct fake_reply *reply) {
    curve_mds_topology_GetChunkServerListInCopySetsResponse m =
        curve_mds_topology_GetChunkServerListInCopySetsResponse_init_zero;
    m.csInfo = (pb_callback_t){.funcs.encode = encode_copysets, .arg = fake};
    fake_reply_with(reply, curve_mds_topology_GetChunkServerListInCopySetsResponse_fields, &m);
}

// ---- The chunkserver

static void chunk_write(struct fake *fake, struct fake_chunk *chunk, uint32_t offset,
                        const uint8_t *data, uint32_t length) {
    if (chunk->data == NULL) {
        chunk->data = calloc(1, fake->chunk_size);
        chunk->allocated = calloc(1, fake->chunk_size / BLOCK);
    }
    memcpy(chunk->data + offset, data, length);
    for (uint32_t i = offset / BLOCK; i <= (offset + length - 1) / BLOCK; i++) {
        chunk->allocated[i] = 1;
    }
}

static void chunk_zero(struct fake_chunk *chunk, uint32_t offset, uint32_t length, bool trim) {
    if (chunk->data == NULL) {
        return;
    }
    uint32_t end = offset + length;
    if (trim) {
        offset = (offset + BLOCK - 1) / BLOCK * BLOCK;
        end = end / BLOCK * BLOCK;
    }
    for (uint32_t i = offset; i < end; i++) {
        chunk->data[i] = 0;
        if (i % BLOCK == 0 && end - i >= BLOCK) {
            chunk->allocated[i / BLOCK] = 0;
        }
    }
}

// What the protocol forbids. 0, or the status CurveBS would answer.
static int32_t judge(struct fake *fake, const struct fake_call *call, const chunk_request *request,
                     const char *source) {
    bool write = strcmp(call->method, "WriteChunk") == 0;
    bool compare = strcmp(call->method, "CompareAndWriteChunk") == 0;
    bool read = strcmp(call->method, "ReadChunk") == 0;
    uint32_t expected = write ? request->size : compare ? 2 * request->size : 0;
    bool extension = request->has_clientId || request->has_sequence || request->has_strictEpoch;
    if (call->attachment_length != expected || request->size == 0 ||
        request->offset + request->size > fake->chunk_size || request->logicPoolId != 1 ||
        ((write || read) && request->size > (fake->native ? 1U << 20 : 64U << 10)) ||
        (!fake->native && extension) || (!fake->native && !write && !read) ||
        !fake_source_named(fake, request, source, write || read)) {
        fake->violations++;
        return curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_INVALID_REQUEST;
    }
    if (!fake->native && (request->offset % BLOCK != 0 || request->size % BLOCK != 0)) {
        fake->violations++;
        return curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_INVALID_REQUEST;
    }
    if (write && request->sn == 0) {
        fake->violations++;
        return curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_FAILURE_UNKNOWN;
    }
    if (fake->native && !read && strcmp(call->method, "GetBlockStatus") != 0 &&
        (!request->has_clientId || !request->has_sequence ||
         request->settledBelow > request->sequence)) {
        fake->violations++;
    }
    if ((write || request->has_strictEpoch) && request->has_epoch &&
        request->epoch < fake->store_epoch) {
        return curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_EPOCH_TOO_OLD;
    }
    if (write && request->sn < fake->seq) {
        return curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_BACKWARD;
    }
    return 0;
}

// True if this sequence was done before: then it is answered without doing it again.
static bool deduplicate(struct fake *fake, const chunk_request *request) {
    if (!request->has_sequence || request->sequence >= 4096) {
        return false;
    }
    if (fake->settled[request->sequence] != 0) {
        fake->duplicates++;
        return true;
    }
    fake->settled[request->sequence] = 1;
    return false;
}

static bool encode_runs(pb_ostream_t *stream, const pb_field_t *field, void *const *arg) {
    const uint32_t *runs = *arg;
    uint8_t packed[8192];
    pb_ostream_t inner = pb_ostream_from_buffer(packed, sizeof(packed));
    for (uint32_t i = 1; i <= runs[0]; i++) {
        pb_encode_varint(&inner, runs[i]);
    }
    return pb_encode_tag(stream, PB_WT_STRING, field->tag) &&
           pb_encode_string(stream, packed, inner.bytes_written);
}

static uint32_t *block_runs(const struct fake_chunk *chunk, const chunk_request *request) {
    uint32_t first = request->offset / BLOCK;
    uint32_t end = (request->offset + request->size + BLOCK - 1) / BLOCK;
    uint32_t *runs = calloc(end - first + 2, sizeof(*runs));
    for (uint32_t i = first; i < end; i++) {
        uint32_t allocated = chunk->allocated[i];
        if (runs[0] == 0 || (runs[runs[0]] & 1) != allocated) {
            runs[++runs[0]] = allocated;
        }
        runs[runs[0]] += 2;
    }
    return runs;
}

static void serve_chunk(struct fake *fake, const struct fake_call *call,
                        const chunk_request *request, struct fake_reply *reply) {
    curve_chunkserver_ChunkResponse m = curve_chunkserver_ChunkResponse_init_zero;
    struct fake_chunk *chunk = &fake->chunks[request->chunkId % FAKE_CHUNKS_MAX];
    uint32_t *runs = NULL;
    if (strcmp(call->method, "ReadChunk") == 0) {
        if (chunk->data == NULL) {
            m.status = curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_CHUNK_NOTEXIST;
        } else {
            reply->attachment = malloc(request->size);
            memcpy(reply->attachment, chunk->data + request->offset, request->size);
            reply->attachment_length = request->size;
        }
    } else if (strcmp(call->method, "GetBlockStatus") == 0) {
        if (chunk->data == NULL) {
            m.status = curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_CHUNK_NOTEXIST;
        } else {
            runs = block_runs(chunk, request);
            m.blockRuns = (pb_callback_t){.funcs.encode = encode_runs, .arg = runs};
        }
    } else if (deduplicate(fake, request)) {
        m.status = curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_SUCCESS;
    } else if (strcmp(call->method, "WriteChunk") == 0) {
        chunk_write(fake, chunk, request->offset, call->attachment, request->size);
    } else if (strcmp(call->method, "CompareAndWriteChunk") == 0) {
        uint32_t same = 0;
        while (same < request->size &&
               call->attachment[same] ==
                   (chunk->data != NULL ? chunk->data[request->offset + same] : 0)) {
            same++;
        }
        if (same == request->size) {
            chunk_write(fake, chunk, request->offset, call->attachment + request->size,
                        request->size);
        } else {
            m.status = curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_MISCOMPARE;
            m.has_mismatchOffset = true;
            m.mismatchOffset = same;
        }
    } else {
        chunk_zero(chunk, request->offset, request->size, strcmp(call->method, "TrimChunk") == 0);
    }
    m.has_appliedIndex = true;
    m.appliedIndex = 1540;
    fake_reply_with(reply, curve_chunkserver_ChunkResponse_fields, &m);
    free(runs);
}

// The peer that a chunkserver names as the leader; -1: none.
static int named_by(const struct fake *fake, int server) {
    int named = fake->named[server - fake->mds_count];
    return named > 0 ? named - 1 : named == 0 ? fake->leader : -1;
}

static void redirect(struct fake *fake, int server, struct fake_reply *reply) {
    curve_chunkserver_ChunkResponse m = curve_chunkserver_ChunkResponse_init_zero;
    int leader = named_by(fake, server);
    m.status = curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_REDIRECTED;
    m.has_redirect = fake->hints && leader >= 0;
    snprintf(m.redirect, sizeof(m.redirect), "127.0.0.1:%d",
             leader >= FAKE_PEERS_MAX
                 ? 1
                 : fake->servers[fake_peer(fake, leader < 0 ? 0 : leader)].port);
    fake_reply_with(reply, curve_chunkserver_ChunkResponse_fields, &m);
}

static void answer_status(struct fake_reply *reply, int32_t status) {
    curve_chunkserver_ChunkResponse m = curve_chunkserver_ChunkResponse_init_zero;
    m.status = (curve_chunkserver_CHUNK_OP_STATUS)status;
    fake_reply_with(reply, curve_chunkserver_ChunkResponse_fields, &m);
}

static void on_chunk(struct fake *fake, const struct fake_call *call, const chunk_request *request,
                     const char *source, struct fake_reply *reply) {
    if (call->connection->server->index != fake_peer(fake, fake->leader)) {
        redirect(fake, call->connection->server->index, reply);
        return;
    }
    int32_t status = judge(fake, call, request, source);
    if (status != 0) {
        answer_status(reply, status);
        return;
    }
    fake_source_fetch(fake, request);
    serve_chunk(fake, call, request, reply);
}

static void on_leader(struct fake *fake, int server, struct fake_reply *reply) {
    int leader = named_by(fake, server);
    if (leader < 0) {
        reply->error_code = 2;
        return;
    }
    curve_chunkserver_GetLeaderResponse2 m = curve_chunkserver_GetLeaderResponse2_init_zero;
    m.leader.has_address = true;
    snprintf(m.leader.address, sizeof(m.leader.address), "127.0.0.1:%d:0",
             fake->servers[fake_peer(fake, leader)].port);
    fake_reply_with(reply, curve_chunkserver_GetLeaderResponse2_fields, &m);
}

static void on_update_epoch(struct fake *fake, const struct fake_call *call,
                            struct fake_reply *reply) {
    curve_chunkserver_UpdateEpochRequest request = curve_chunkserver_UpdateEpochRequest_init_zero;
    curve_chunkserver_UpdateEpochResponse m = curve_chunkserver_UpdateEpochResponse_init_zero;
    fake_decode(call, curve_chunkserver_UpdateEpochRequest_fields, &request);
    fake->updates++;
    if (request.epoch < fake->store_epoch) {
        m.status = curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_EPOCH_TOO_OLD;
    } else {
        fake->store_epoch = request.epoch;
    }
    fake_reply_with(reply, curve_chunkserver_UpdateEpochResponse_fields, &m);
}

// ---- Both

static void dispatch(struct fake *fake, struct fake_call *call, const chunk_request *request,
                     struct fake_log *entry, struct fake_reply *reply) {
    const char *method = call->method;
    if (request != NULL) {
        on_chunk(fake, call, request, entry->clone_source, reply);
    } else if (strcmp(method, "OpenFile") == 0) {
        on_open(fake, reply);
    } else if (strcmp(method, "GetFileInfo") == 0) {
        on_info(fake, call, reply, entry);
    } else if (strcmp(method, "RefreshSession") == 0) {
        on_refresh(fake, reply);
    } else if (strcmp(method, "IncreaseFileEpoch") == 0) {
        on_raise(fake, reply);
    } else if (strcmp(method, "CloseFile") == 0) {
        curve_mds_CloseFileResponse m = {.statusCode = curve_mds_StatusCode_kOK};
        fake->closes++;
        fake_reply_with(reply, curve_mds_CloseFileResponse_fields, &m);
    } else if (strcmp(method, "GetOrAllocateSegment") == 0) {
        on_segment(fake, call, reply, entry);
    } else if (strcmp(method, "DeAllocateSegment") == 0) {
        on_deallocate(fake, call, reply, entry);
    } else if (strcmp(method, "GetChunkServerListInCopySets") == 0) {
        on_peers(fake, reply);
    } else if (strcmp(method, "GetLeader") == 0) {
        on_leader(fake, call->connection->server->index, reply);
    } else if (strcmp(method, "UpdateEpoch") == 0) {
        on_update_epoch(fake, call, reply);
    } else if (fake->no_state_service || !fake_state(fake, call, reply, entry)) {
        reply->error_code = 1002;
    }
}

static bool is_data_method(const char *method) {
    static const char *const names[] = {"ReadChunk", "WriteChunk",           "WriteZeroesChunk",
                                        "TrimChunk", "CompareAndWriteChunk", "GetBlockStatus"};
    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(method, names[i]) == 0) {
            return true;
        }
    }
    return false;
}

enum fake_verdict fake_handle(struct fake_call *call, struct fake_reply *reply) {
    struct fake *fake = call->connection->server->fake;
    chunk_request request = curve_chunkserver_ChunkRequest_init_zero;
    bool data = is_data_method(call->method);
    struct fake_source_name source = {""};
    if (data) {
        fake_source_decode(&request, &source);
        fake_decode(call, curve_chunkserver_ChunkRequest_fields, &request);
    }
    pthread_mutex_lock(&fake->lock);
    struct fake_log *entry = log_request(fake, call);
    entry->request = request;
    memcpy(entry->clone_source, source.text, sizeof(entry->clone_source));
    struct fake_seen seen = {.fake = fake,
                             .server = entry->server,
                             .method = call->method,
                             .chunk = data ? &request : NULL};
    enum fake_verdict verdict = fake->hook != NULL ? fake->hook(&seen) : FAKE_SERVE;
    if (verdict == FAKE_SERVE || verdict == FAKE_DO_AND_DROP || verdict == FAKE_DO_AND_CLOSE) {
        dispatch(fake, call, data ? &request : NULL, entry, reply);
        reply->entry = *entry;
    } else if (verdict == FAKE_ANSWER_STATUS) {
        answer_status(reply, seen.status);
    }
    pthread_mutex_unlock(&fake->lock);
    if (seen.delay_ms > 0) {
        usleep(seen.delay_ms * 1000);
    }
    return verdict;
}
