// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/chunk_request.h"

#include <errno.h>

#include "chunkserver/bytes.h"

enum wire_type {
    WIRE_VARINT = 0,
    WIRE_FIXED64 = 1,
    WIRE_BYTES = 2,
    WIRE_FIXED32 = 5,
};

struct reader {
    const uint8_t *at;
    const uint8_t *end;
};

static bool read_varint(struct reader *reader, uint64_t *out) {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
        if (reader->at == reader->end) {
            return false;
        }
        uint8_t byte = *reader->at++;
        if (shift == 63 && byte > 1) {
            return false;
        }
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *out = value;
            return true;
        }
    }
    return false;
}

static bool skip(struct reader *reader, unsigned wire) {
    uint64_t length;
    switch (wire) {
    case WIRE_VARINT:
        return read_varint(reader, &length);
    case WIRE_FIXED64:
        length = 8;
        break;
    case WIRE_FIXED32:
        length = 4;
        break;
    case WIRE_BYTES:
        if (!read_varint(reader, &length)) {
            return false;
        }
        break;
    default:
        return false; // groups are not in this protocol
    }
    if ((uint64_t)(reader->end - reader->at) < length) {
        return false;
    }
    reader->at += length;
    return true;
}

// Stores the field if it is one that we use; false if it is not.
static bool store(struct cg_chunk_request *out, uint64_t field, uint64_t value) {
    switch (field) {
    case 1:
        out->op_type = (uint32_t)value;
        out->has |= CG_REQUEST_OP_TYPE;
        return true;
    case 2:
        out->pool = (uint32_t)value;
        out->has |= CG_REQUEST_POOL;
        return true;
    case 3:
        out->copyset = (uint32_t)value;
        out->has |= CG_REQUEST_COPYSET;
        return true;
    case 4:
        out->chunk_id = value;
        out->has |= CG_REQUEST_CHUNK;
        return true;
    case 6:
        out->offset = (uint32_t)value;
        return true;
    case 7:
        out->size = (uint32_t)value;
        return true;
    case 9:
        out->sn = value;
        return true;
    case 18:
        out->file_id = value;
        out->has |= CG_REQUEST_FILE_ID;
        return true;
    case 19:
        out->epoch = value;
        out->has |= CG_REQUEST_EPOCH;
        return true;
    case 1000:
        out->client_id = value;
        out->has |= CG_REQUEST_CLIENT_ID;
        return true;
    case 1001:
        out->sequence = value;
        out->has |= CG_REQUEST_SEQUENCE;
        return true;
    case 1002:
        out->settled_below = value;
        return true;
    case 1003:
        out->strict_epoch = value != 0;
        return true;
    case 1005:
        out->no_hole = value != 0;
        return true;
    default:
        return false;
    }
}

// The wire type that a field of ours must have; -1 for fields that we skip.
static int expected_wire(uint64_t field) {
    switch (field) {
    case 1:
    case 2:
    case 3:
    case 4:
    case 6:
    case 7:
    case 9:
    case 18:
    case 19:
    case 1000:
    case 1001:
    case 1002:
    case 1003:
    case 1005:
        return WIRE_VARINT;
    case 11:
    case 12:
        return WIRE_BYTES;
    case 1004:
        return WIRE_FIXED32;
    default:
        return -1;
    }
}

static bool read_field(struct reader *reader, struct cg_chunk_request *out) {
    uint64_t key;
    if (!read_varint(reader, &key) || key >> 3 == 0 || key > UINT32_MAX) {
        return false;
    }
    uint64_t field = key >> 3;
    unsigned wire = (unsigned)(key & 7);
    int expected = expected_wire(field);
    if (expected >= 0 && (unsigned)expected != wire) {
        return false;
    }
    if (expected == WIRE_VARINT) {
        uint64_t value;
        return read_varint(reader, &value) && store(out, field, value);
    }
    const uint8_t *start = reader->at;
    if (!skip(reader, wire)) {
        return false;
    }
    if (expected == WIRE_FIXED32) {
        out->attachment_crc = cg_get_u32(start);
        out->has |= CG_REQUEST_CRC;
    } else if (expected == WIRE_BYTES && *start != 0) {
        out->has |= CG_REQUEST_CLONE;
    }
    return true;
}

int cg_chunk_request_decode(const uint8_t *in, size_t length, struct cg_chunk_request *out) {
    *out = (struct cg_chunk_request){0};
    struct reader reader = {.at = in, .end = in + length};
    while (reader.at < reader.end) {
        if (!read_field(&reader, out)) {
            return -EPROTO;
        }
    }
    return (out->has & CG_REQUEST_REQUIRED) == CG_REQUEST_REQUIRED ? 0 : -EPROTO;
}
