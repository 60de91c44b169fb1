// SPDX-License-Identifier: BSD-3-Clause
//
// The messages of cg_mds_call, filled as libcurve fills them: the signature is always there, empty
// for owners other than root; epochs only when they are not 0.
#include <errno.h>
#include <pb_decode.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "gateway/proto/nameserver2.pb.h"
#include "gateway/proto/topology.pb.h"
#include "volume/mds.h"
#include "volume/mds_wire.h"
#include "volume/signature.h"

#include <pb_encode.h>

#define NAMESPACE_SERVICE "curve.mds.CurveFSService"
#define TOPOLOGY_SERVICE  "curve.mds.topology.TopologyService"

static const struct cg_rpc_method methods[] = {
    [CG_MDS_OPEN] = {NAMESPACE_SERVICE, "OpenFile"},
    [CG_MDS_INFO] = {NAMESPACE_SERVICE, "GetFileInfo"},
    [CG_MDS_CLOSE] = {NAMESPACE_SERVICE, "CloseFile"},
    [CG_MDS_REFRESH] = {NAMESPACE_SERVICE, "RefreshSession"},
    [CG_MDS_RAISE_EPOCH] = {NAMESPACE_SERVICE, "IncreaseFileEpoch"},
    [CG_MDS_SEGMENT] = {NAMESPACE_SERVICE, "GetOrAllocateSegment"},
    [CG_MDS_DEALLOCATE] = {NAMESPACE_SERVICE, "DeAllocateSegment"},
    [CG_MDS_PEERS] = {TOPOLOGY_SERVICE, "GetChunkServerListInCopySets"},
};

static const char client_version[] = "copygate " COPYGATE_VERSION;

// ---- Requests

static bool encode_text(pb_ostream_t *stream, const pb_field_t *field, void *const *arg) {
    const char *text = *arg;
    return pb_encode_tag_for_field(stream, field) &&
           pb_encode_string(stream, (const pb_byte_t *)text, strlen(text));
}

pb_callback_t cg_mds_text_field(const char *text) {
    // nanopb's argument is not const, but encode_text only reads.
    return (pb_callback_t){.funcs.encode = encode_text, .arg = (void *)(uintptr_t)text};
}

static bool encode_copysets(pb_ostream_t *stream, const pb_field_t *field, void *const *arg) {
    const struct cg_mds_call *call = *arg;
    for (uint32_t i = 0; i < call->copyset_count; i++) {
        if (!pb_encode_tag_for_field(stream, field) ||
            !pb_encode_varint(stream, call->copysets[i])) {
            return false;
        }
    }
    return true;
}

static int send_message(struct cg_mds_call *call, struct cg_channel *channel,
                        const pb_msgdesc_t *fields, const void *message) {
    call->rpc.method = &methods[call->op];
    call->rpc.request_fields = fields;
    call->rpc.request = message;
    cg_channel_call(channel, &call->rpc);
    return 0;
}

static int send_open(struct cg_mds_call *call, struct cg_channel *channel, uint64_t date,
                     const char *signature) {
    curve_mds_OpenFileRequest m = curve_mds_OpenFileRequest_init_zero;
    m.fileName = cg_mds_text_field(call->path);
    m.owner = cg_mds_text_field(call->mds->owner);
    m.signature = cg_mds_text_field(signature);
    m.date = date;
    m.clientVersion = cg_mds_text_field(client_version);
    return send_message(call, channel, curve_mds_OpenFileRequest_fields, &m);
}

static int send_info(struct cg_mds_call *call, struct cg_channel *channel, uint64_t date,
                     const char *signature) {
    curve_mds_GetFileInfoRequest m = curve_mds_GetFileInfoRequest_init_zero;
    m.fileName = cg_mds_text_field(call->path);
    m.owner = cg_mds_text_field(call->mds->owner);
    m.signature = cg_mds_text_field(signature);
    m.date = date;
    return send_message(call, channel, curve_mds_GetFileInfoRequest_fields, &m);
}

static int send_close(struct cg_mds_call *call, struct cg_channel *channel, uint64_t date,
                      const char *signature) {
    curve_mds_CloseFileRequest m = curve_mds_CloseFileRequest_init_zero;
    m.fileName = cg_mds_text_field(call->path);
    m.sessionID = cg_mds_text_field(call->session_id);
    m.owner = cg_mds_text_field(call->mds->owner);
    m.signature = cg_mds_text_field(signature);
    m.date = date;
    m.clientIP = cg_mds_text_field(call->mds->client_ip);
    m.has_clientPort = true;
    m.clientPort = call->mds->client_port;
    return send_message(call, channel, curve_mds_CloseFileRequest_fields, &m);
}

static int send_refresh(struct cg_mds_call *call, struct cg_channel *channel, uint64_t date,
                        const char *signature) {
    curve_mds_ReFreshSessionRequest m = curve_mds_ReFreshSessionRequest_init_zero;
    m.fileName = cg_mds_text_field(call->path);
    m.sessionID = cg_mds_text_field(call->session_id);
    m.owner = cg_mds_text_field(call->mds->owner);
    m.date = date;
    m.signature = cg_mds_text_field(signature);
    m.clientVersion = cg_mds_text_field(client_version);
    m.clientIP = cg_mds_text_field(call->mds->client_ip);
    m.has_clientPort = true;
    m.clientPort = call->mds->client_port;
    return send_message(call, channel, curve_mds_ReFreshSessionRequest_fields, &m);
}

static int send_raise_epoch(struct cg_mds_call *call, struct cg_channel *channel, uint64_t date,
                            const char *signature) {
    curve_mds_IncreaseFileEpochRequest m = curve_mds_IncreaseFileEpochRequest_init_zero;
    m.fileName = cg_mds_text_field(call->path);
    m.owner = cg_mds_text_field(call->mds->owner);
    m.signature = cg_mds_text_field(signature);
    m.date = date;
    return send_message(call, channel, curve_mds_IncreaseFileEpochRequest_fields, &m);
}

static int send_segment(struct cg_mds_call *call, struct cg_channel *channel, uint64_t date,
                        const char *signature) {
    curve_mds_GetOrAllocateSegmentRequest m = curve_mds_GetOrAllocateSegmentRequest_init_zero;
    m.fileName = cg_mds_text_field(call->path);
    m.owner = cg_mds_text_field(call->mds->owner);
    m.offset = call->offset;
    m.allocateIfNotExist = call->allocate;
    m.signature = cg_mds_text_field(signature);
    m.date = date;
    m.has_epoch = call->epoch != 0;
    m.epoch = call->epoch;
    return send_message(call, channel, curve_mds_GetOrAllocateSegmentRequest_fields, &m);
}

static int send_deallocate(struct cg_mds_call *call, struct cg_channel *channel, uint64_t date,
                           const char *signature) {
    curve_mds_DeAllocateSegmentRequest m = curve_mds_DeAllocateSegmentRequest_init_zero;
    m.fileName = cg_mds_text_field(call->path);
    m.owner = cg_mds_text_field(call->mds->owner);
    m.offset = call->offset;
    m.signature = cg_mds_text_field(signature);
    m.date = date;
    m.has_epoch = call->epoch != 0;
    m.epoch = call->epoch;
    return send_message(call, channel, curve_mds_DeAllocateSegmentRequest_fields, &m);
}

static int send_peers(struct cg_mds_call *call, struct cg_channel *channel) {
    curve_mds_topology_GetChunkServerListInCopySetsRequest m =
        curve_mds_topology_GetChunkServerListInCopySetsRequest_init_zero;
    m.logicalPoolId = call->pool;
    m.copysetId = (pb_callback_t){.funcs.encode = encode_copysets, .arg = call};
    return send_message(call, channel,
                        curve_mds_topology_GetChunkServerListInCopySetsRequest_fields, &m);
}

int cg_mds_send(struct cg_mds_call *call, struct cg_channel *channel) {
    char signature[CG_SIGNATURE_SIZE] = "";
    uint64_t date = cg_wall_us();
    if (call->mds->root_password != NULL && strcmp(call->mds->owner, "root") == 0) {
        cg_signature(call->mds->root_password, date, call->mds->owner, signature);
    }
    switch (call->op) {
    case CG_MDS_OPEN:
        return send_open(call, channel, date, signature);
    case CG_MDS_INFO:
        return send_info(call, channel, date, signature);
    case CG_MDS_CLOSE:
        return send_close(call, channel, date, signature);
    case CG_MDS_REFRESH:
        return send_refresh(call, channel, date, signature);
    case CG_MDS_RAISE_EPOCH:
        return send_raise_epoch(call, channel, date, signature);
    case CG_MDS_SEGMENT:
        return send_segment(call, channel, date, signature);
    case CG_MDS_DEALLOCATE:
        return send_deallocate(call, channel, date, signature);
    case CG_MDS_PEERS:
        return send_peers(call, channel);
    case CG_MDS_STATE_GET:
    case CG_MDS_STATE_SET:
    case CG_MDS_STATE_AWAIT:
        return cg_mds_send_state(call, channel, date, signature);
    }
    return -EINVAL;
}

// ---- Replies

struct bytes_target {
    uint8_t *out;
    size_t capacity;
    size_t length;
};

static bool decode_bytes(pb_istream_t *stream, const pb_field_t *field, void **arg) {
    (void)field;
    struct bytes_target *target = *arg;
    size_t length = stream->bytes_left;
    if (length > target->capacity) {
        return false;
    }
    target->length = length;
    return pb_read(stream, target->out, length);
}

static pb_callback_t bytes_field(struct bytes_target *target) {
    return (pb_callback_t){.funcs.decode = decode_bytes, .arg = target};
}

// Grows an array to hold one more; NULL when the limit or memory is exhausted.
static void *append(void *array, uint32_t *count, uint32_t limit, size_t size) {
    if (*count == limit) {
        return NULL;
    }
    if ((*count & (*count - 1)) == 0) {
        size_t capacity = *count == 0 ? 1 : (size_t)*count * 2;
        array = realloc(array, capacity * size);
    }
    return array;
}

static bool decode_chunk(pb_istream_t *stream, const pb_field_t *field, void **arg) {
    (void)field;
    struct cg_mds_call *call = *arg;
    curve_mds_PageFileChunkInfo m = curve_mds_PageFileChunkInfo_init_zero;
    if (!pb_decode(stream, curve_mds_PageFileChunkInfo_fields, &m)) {
        return false;
    }
    void *grown =
        append(call->chunks, &call->chunk_count, CG_MDS_CHUNKS_MAX, sizeof(*call->chunks));
    if (grown == NULL) {
        return false;
    }
    call->chunks = grown;
    call->chunks[call->chunk_count++] =
        (struct cg_mds_chunk){.chunk_id = m.chunkID, .copyset_id = m.copysetID};
    return true;
}

static void format_address(char out[CG_MDS_ADDRESS_MAX], const char *ip, uint32_t port) {
    if (strncmp(ip, "unix:", 5) == 0) {
        snprintf(out, CG_MDS_ADDRESS_MAX, "%s", ip);
    } else {
        snprintf(out, CG_MDS_ADDRESS_MAX, strchr(ip, ':') != NULL ? "[%s]:%u" : "%s:%u", ip, port);
    }
}

struct server_list {
    struct cg_mds_call *call;
    uint32_t first; // of this copyset
};

static bool decode_server(pb_istream_t *stream, const pb_field_t *field, void **arg) {
    (void)field;
    struct server_list *list = *arg;
    struct cg_mds_call *call = list->call;
    curve_mds_topology_ChunkServerLocation m = curve_mds_topology_ChunkServerLocation_init_zero;
    if (!pb_decode(stream, curve_mds_topology_ChunkServerLocation_fields, &m)) {
        return false;
    }
    void *grown =
        append(call->servers, &call->server_count, CG_MDS_SERVERS_TOLD, sizeof(*call->servers));
    if (grown == NULL) {
        return false;
    }
    call->servers = grown;
    struct cg_mds_server *server = &call->servers[call->server_count++];
    server->copyset_id = 0;
    bool has_external = m.has_externalIp && m.externalIp[0] != '\0';
    format_address(server->internal, m.hostIp, m.port);
    format_address(server->external, has_external ? m.externalIp : m.hostIp, m.port);
    return true;
}

static bool decode_copyset(pb_istream_t *stream, const pb_field_t *field, void **arg) {
    (void)field;
    struct server_list list = {.call = *arg, .first = ((struct cg_mds_call *)*arg)->server_count};
    curve_mds_topology_CopySetServerInfo m = curve_mds_topology_CopySetServerInfo_init_zero;
    m.csLocs = (pb_callback_t){.funcs.decode = decode_server, .arg = &list};
    if (!pb_decode(stream, curve_mds_topology_CopySetServerInfo_fields, &m)) {
        return false;
    }
    for (uint32_t i = list.first; i < list.call->server_count; i++) {
        list.call->servers[i].copyset_id = m.copysetId;
    }
    return true;
}

static void copy_file(struct cg_mds_file *out, const curve_mds_FileInfo *m, bool has_uuid) {
    out->present = true;
    out->id = m->id;
    out->length = m->length;
    out->seq = m->has_seqNum ? m->seqNum : 0;
    out->epoch = m->has_epoch ? m->epoch : 0;
    out->stripe_unit = m->has_stripeUnit ? m->stripeUnit : 0;
    out->stripe_count = m->has_stripeCount ? m->stripeCount : 0;
    out->type = m->fileType;
    out->chunk_size = m->chunkSize;
    out->segment_size = m->segmentSize;
    out->block_size = m->has_blocksize ? m->blocksize : 0;
    out->features = m->has_features ? m->features : 0;
    out->status = m->has_fileStatus ? (int32_t)m->fileStatus : -1;
    out->clone_length = m->has_cloneLength ? m->cloneLength : 0;
    out->has_uuid = has_uuid;
}

static void copy_session(struct cg_mds_call *call, const curve_mds_ProtoSession *m) {
    call->lease_us = m->leaseTime;
}

// Called once per value, packed or not.
static bool decode_source_segment(pb_istream_t *stream, const pb_field_t *field, void **arg) {
    (void)field;
    struct cg_mds_call *call = *arg;
    uint64_t offset;
    if (!pb_decode_varint(stream, &offset)) {
        return false;
    }
    void *grown = append(call->source_segments, &call->source_segment_count, CG_MDS_SOURCE_MAX,
                         sizeof(*call->source_segments));
    if (grown == NULL) {
        return false;
    }
    call->source_segments = grown;
    call->source_segments[call->source_segment_count++] = offset;
    return true;
}

static int decode_open(struct cg_mds_call *call, pb_istream_t *stream) {
    curve_mds_OpenFileResponse m = curve_mds_OpenFileResponse_init_zero;
    struct bytes_target uuid = {.out = call->file.uuid, .capacity = sizeof(call->file.uuid)};
    struct bytes_target session = {.out = (uint8_t *)call->session,
                                   .capacity = sizeof(call->session) - 1};
    m.fileInfo.uuid = bytes_field(&uuid);
    m.protoSession.sessionID = bytes_field(&session);
    char path[CG_MDS_PATH_MAX + 1];
    struct bytes_target source = {.out = (uint8_t *)path, .capacity = CG_MDS_PATH_MAX};
    m.fileInfo.cloneSource = bytes_field(&source);
    m.cloneSourceSegment.allocatedSegmentOffset =
        (pb_callback_t){.funcs.decode = decode_source_segment, .arg = call};
    if (!pb_decode_ex(stream, curve_mds_OpenFileResponse_fields, &m, PB_DECODE_NOINIT)) {
        return -EPROTO;
    }
    call->status = m.statusCode;
    if (m.has_fileInfo) {
        copy_file(&call->file, &m.fileInfo, uuid.length == sizeof(call->file.uuid));
    }
    call->has_source_segments = m.has_cloneSourceSegment;
    call->source_segment_size = m.cloneSourceSegment.segmentSize;
    if (source.length > 0) {
        call->clone_source = strndup(path, source.length);
        if (call->clone_source == NULL) {
            return -ENOMEM;
        }
    }
    if (m.has_protoSession) {
        call->session[session.length] = '\0';
        copy_session(call, &m.protoSession);
    }
    return 0;
}

static int decode_info(struct cg_mds_call *call, pb_istream_t *stream) {
    curve_mds_GetFileInfoResponse m = curve_mds_GetFileInfoResponse_init_zero;
    if (!pb_decode_ex(stream, curve_mds_GetFileInfoResponse_fields, &m, PB_DECODE_NOINIT)) {
        return -EPROTO;
    }
    call->status = m.statusCode;
    if (m.has_fileInfo) {
        copy_file(&call->file, &m.fileInfo, false);
    }
    return 0;
}

static int decode_refresh(struct cg_mds_call *call, pb_istream_t *stream) {
    curve_mds_ReFreshSessionResponse m = curve_mds_ReFreshSessionResponse_init_zero;
    if (!pb_decode_ex(stream, curve_mds_ReFreshSessionResponse_fields, &m, PB_DECODE_NOINIT)) {
        return -EPROTO;
    }
    call->status = m.statusCode;
    if (m.has_fileInfo) {
        copy_file(&call->file, &m.fileInfo, false);
    }
    if (m.has_protoSession) {
        copy_session(call, &m.protoSession);
    }
    return 0;
}

static int decode_raise_epoch(struct cg_mds_call *call, pb_istream_t *stream) {
    curve_mds_IncreaseFileEpochResponse m = curve_mds_IncreaseFileEpochResponse_init_zero;
    struct server_list list = {.call = call};
    m.csLocs = (pb_callback_t){.funcs.decode = decode_server, .arg = &list};
    if (!pb_decode_ex(stream, curve_mds_IncreaseFileEpochResponse_fields, &m, PB_DECODE_NOINIT)) {
        return -EPROTO;
    }
    call->status = m.statusCode;
    call->replicas = m.has_replicas ? m.replicas : 0;
    if (m.has_fileInfo) {
        copy_file(&call->file, &m.fileInfo, false);
    }
    return 0;
}

static int decode_segment(struct cg_mds_call *call, pb_istream_t *stream) {
    curve_mds_GetOrAllocateSegmentResponse m = curve_mds_GetOrAllocateSegmentResponse_init_zero;
    m.pageFileSegment.chunks = (pb_callback_t){.funcs.decode = decode_chunk, .arg = call};
    if (!pb_decode_ex(stream, curve_mds_GetOrAllocateSegmentResponse_fields, &m,
                      PB_DECODE_NOINIT)) {
        return -EPROTO;
    }
    call->status = m.statusCode;
    call->segment_pool = m.pageFileSegment.logicalPoolID;
    call->segment_offset = m.pageFileSegment.startOffset;
    call->segment_chunk_size = m.pageFileSegment.chunkSize;
    return 0;
}

static int decode_peers(struct cg_mds_call *call, pb_istream_t *stream) {
    curve_mds_topology_GetChunkServerListInCopySetsResponse m =
        curve_mds_topology_GetChunkServerListInCopySetsResponse_init_zero;
    m.csInfo = (pb_callback_t){.funcs.decode = decode_copyset, .arg = call};
    if (!pb_decode_ex(stream, curve_mds_topology_GetChunkServerListInCopySetsResponse_fields, &m,
                      PB_DECODE_NOINIT)) {
        return -EPROTO;
    }
    call->status = m.statusCode;
    return 0;
}

static int decode_close(struct cg_mds_call *call, pb_istream_t *stream) {
    curve_mds_CloseFileResponse m = curve_mds_CloseFileResponse_init_zero;
    if (!pb_decode(stream, curve_mds_CloseFileResponse_fields, &m)) {
        return -EPROTO;
    }
    call->status = m.statusCode;
    return 0;
}

static int decode_deallocate(struct cg_mds_call *call, pb_istream_t *stream) {
    curve_mds_DeAllocateSegmentResponse m = curve_mds_DeAllocateSegmentResponse_init_zero;
    if (!pb_decode(stream, curve_mds_DeAllocateSegmentResponse_fields, &m)) {
        return -EPROTO;
    }
    call->status = m.statusCode;
    return 0;
}

int cg_mds_decode(struct cg_mds_call *call, const uint8_t *bytes, size_t length) {
    pb_istream_t stream = pb_istream_from_buffer(bytes, length);
    switch (call->op) {
    case CG_MDS_OPEN:
        return decode_open(call, &stream);
    case CG_MDS_INFO:
        return decode_info(call, &stream);
    case CG_MDS_CLOSE:
        return decode_close(call, &stream);
    case CG_MDS_REFRESH:
        return decode_refresh(call, &stream);
    case CG_MDS_RAISE_EPOCH:
        return decode_raise_epoch(call, &stream);
    case CG_MDS_SEGMENT:
        return decode_segment(call, &stream);
    case CG_MDS_DEALLOCATE:
        return decode_deallocate(call, &stream);
    case CG_MDS_PEERS:
        return decode_peers(call, &stream);
    case CG_MDS_STATE_GET:
    case CG_MDS_STATE_SET:
    case CG_MDS_STATE_AWAIT:
        return cg_mds_decode_state(call, &stream);
    }
    return -EPROTO;
}
