// SPDX-License-Identifier: BSD-3-Clause
//
// ChunkRequest and ChunkResponse by hand: the two messages of the hot path, whose encoding by
// description would cost more than everything else that the core does for a request. The tests hold
// them against nanopb and against captured bytes.
#include <errno.h>
#include <string.h>

#include "gateway/proto/chunk.pb.h"
#include "volume/clone.h"
#include "volume/volume.h"

#define WIRE_VARINT  0U
#define WIRE_FIXED64 1U
#define WIRE_LENGTH  2U
#define WIRE_FIXED32 5U

static uint8_t *put_varint(uint8_t *at, uint64_t value) {
    while (value >= 0x80) {
        *at++ = (uint8_t)(value | 0x80);
        value >>= 7;
    }
    *at++ = (uint8_t)value;
    return at;
}

static uint8_t *put(uint8_t *at, uint32_t field, uint64_t value) {
    at = put_varint(at, field << 3 | WIRE_VARINT);
    return put_varint(at, value);
}

// Where the chunk's missing data comes from: the chunk of the same index in the clone's source.
static uint8_t *put_source(uint8_t *at, const struct vol_request *request) {
    const struct cg_volume *volume = request->volume;
    const struct vol_clone *clone = volume->clone;
    uint64_t start = request->segment->index * volume->segment_size + request->segment_offset -
                     request->chunk_offset;
    at = put_varint(at, curve_chunkserver_ChunkRequest_cloneFileSource_tag << 3 | WIRE_LENGTH);
    at = put_varint(at, clone->path_length);
    memcpy(at, clone->source->path, clone->path_length);
    at += clone->path_length;
    return put(at, curve_chunkserver_ChunkRequest_cloneFileOffset_tag, start);
}

static uint32_t operation(enum vol_kind kind) {
    switch (kind) {
    case VOL_READ:
        return curve_chunkserver_CHUNK_OP_TYPE_CHUNK_OP_READ;
    case VOL_WRITE:
    case VOL_WRITE_ZERO_DATA:
        return curve_chunkserver_CHUNK_OP_TYPE_CHUNK_OP_WRITE;
    case VOL_WRITE_ZEROES:
        return curve_chunkserver_CHUNK_OP_TYPE_CHUNK_OP_WRITE_ZEROES;
    case VOL_TRIM:
        return curve_chunkserver_CHUNK_OP_TYPE_CHUNK_OP_TRIM;
    case VOL_COMPARE_AND_WRITE:
        return curve_chunkserver_CHUNK_OP_TYPE_CHUNK_OP_COMPARE_AND_WRITE;
    case VOL_BLOCK_STATUS:
        return curve_chunkserver_CHUNK_OP_TYPE_CHUNK_OP_BLOCK_STATUS;
    }
    return curve_chunkserver_CHUNK_OP_TYPE_CHUNK_OP_UNKNOWN;
}

uint32_t vol_request_encode(const struct vol_request *request, uint8_t *out) {
    const struct cg_volume *volume = request->volume;
    bool changes = vol_kind_changes(request->kind);
    uint64_t epoch = atomic_load_explicit(&volume->epoch, memory_order_relaxed);
    bool strict = volume->native && volume->send_epoch;
    uint8_t *at = out;
    at = put(at, curve_chunkserver_ChunkRequest_opType_tag, operation(request->kind));
    at = put(at, curve_chunkserver_ChunkRequest_logicPoolId_tag, request->copyset->pool);
    at = put(at, curve_chunkserver_ChunkRequest_copysetId_tag, request->copyset->id);
    at = put(at, curve_chunkserver_ChunkRequest_chunkId_tag, request->chunk_id);
    at = put(at, curve_chunkserver_ChunkRequest_offset_tag, request->chunk_offset);
    at = put(at, curve_chunkserver_ChunkRequest_size_tag, request->length);
    if (changes) {
        at = put(at, curve_chunkserver_ChunkRequest_sn_tag, volume->seq);
    }
    if (vol_clone_names_source(request)) {
        at = put_source(at, request);
    }
    if (changes || strict) {
        at = put(at, curve_chunkserver_ChunkRequest_fileId_tag, volume->file_id);
    }
    if ((changes || strict) && volume->send_epoch && epoch != 0) {
        at = put(at, curve_chunkserver_ChunkRequest_epoch_tag, epoch);
    }
    if (volume->native && changes) {
        const struct vol_request *oldest =
            CG_CONTAINER_OF(volume->unsettled.next, const struct vol_request, unsettled);
        at = put(at, curve_chunkserver_ChunkRequest_clientId_tag, volume->client_id);
        at = put(at, curve_chunkserver_ChunkRequest_sequence_tag, request->sequence);
        at = put(at, curve_chunkserver_ChunkRequest_settledBelow_tag, oldest->sequence);
    }
    if (strict) {
        at = put(at, curve_chunkserver_ChunkRequest_strictEpoch_tag, 1);
    }
    if (request->kind == VOL_WRITE_ZEROES && request->transfer->no_hole) {
        at = put(at, curve_chunkserver_ChunkRequest_noHole_tag, 1);
    }
    return (uint32_t)(at - out);
}

const uint8_t *vol_varint(const uint8_t *at, const uint8_t *end, uint64_t *out) {
    uint64_t value = 0;
    for (unsigned shift = 0; at < end && shift < 64; shift += 7) {
        uint8_t byte = *at++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *out = value;
            return at;
        }
    }
    return NULL;
}

// Passes over one value of the wire type; for WIRE_LENGTH `bytes` and `value` get its extent.
static const uint8_t *pass(const uint8_t *at, const uint8_t *end, uint32_t wire, uint64_t *value,
                           const uint8_t **bytes) {
    switch (wire) {
    case WIRE_VARINT:
        return vol_varint(at, end, value);
    case WIRE_FIXED64:
        return end - at < 8 ? NULL : at + 8;
    case WIRE_FIXED32:
        return end - at < 4 ? NULL : at + 4;
    case WIRE_LENGTH:
        at = vol_varint(at, end, value);
        if (at == NULL || *value > (uint64_t)(end - at)) {
            return NULL;
        }
        *bytes = at;
        return at + *value;
    default:
        return NULL;
    }
}

int vol_reply_decode(const uint8_t *bytes, uint32_t length, struct vol_reply *out) {
    *out = (struct vol_reply){0};
    bool has_status = false;
    const uint8_t *at = bytes;
    const uint8_t *end = bytes + length;
    while (at < end) {
        uint64_t tag;
        uint64_t value = 0;
        const uint8_t *extent = NULL;
        at = vol_varint(at, end, &tag);
        if (at == NULL || tag > UINT32_MAX) {
            return -EPROTO;
        }
        at = pass(at, end, (uint32_t)tag & 7, &value, &extent);
        if (at == NULL) {
            return -EPROTO;
        }
        switch (tag) {
        case curve_chunkserver_ChunkResponse_status_tag << 3 | WIRE_VARINT:
            out->status = (uint32_t)value;
            has_status = true;
            break;
        case curve_chunkserver_ChunkResponse_redirect_tag << 3 | WIRE_LENGTH:
            out->redirect = extent;
            out->redirect_length = (uint32_t)value;
            break;
        case curve_chunkserver_ChunkResponse_mismatchOffset_tag << 3 | WIRE_VARINT:
            out->mismatch = (uint32_t)value;
            break;
        case curve_chunkserver_ChunkResponse_blockRuns_tag << 3 | WIRE_LENGTH:
            out->runs = extent;
            out->runs_length = (uint32_t)value;
            break;
        default:
            break;
        }
    }
    return has_status ? 0 : -EPROTO;
}
