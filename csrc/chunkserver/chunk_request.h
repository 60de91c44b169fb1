// SPDX-License-Identifier: BSD-3-Clause
//
// ChunkRequest decoded by hand: one pass, no descriptors, every byte checked. The tests hold it
// against nanopb's decoder. Pure.
#ifndef CG_CHUNKSERVER_CHUNK_REQUEST_H
#define CG_CHUNKSERVER_CHUNK_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    CG_REQUEST_OP_TYPE = 1U << 0,
    CG_REQUEST_POOL = 1U << 1,
    CG_REQUEST_COPYSET = 1U << 2,
    CG_REQUEST_CHUNK = 1U << 3,
    CG_REQUEST_FILE_ID = 1U << 4,
    CG_REQUEST_EPOCH = 1U << 5,
    CG_REQUEST_CLIENT_ID = 1U << 6,
    CG_REQUEST_SEQUENCE = 1U << 7,
    CG_REQUEST_CRC = 1U << 8,
    CG_REQUEST_CLONE = 1U << 9, // location or cloneFileSource is there
    CG_REQUEST_REQUIRED =
        CG_REQUEST_OP_TYPE | CG_REQUEST_POOL | CG_REQUEST_COPYSET | CG_REQUEST_CHUNK,
};

struct cg_chunk_request {
    uint32_t has; // CG_REQUEST_*
    uint32_t op_type;
    uint32_t pool;
    uint32_t copyset;
    uint32_t offset; // 0 when absent, as all below
    uint32_t size;
    uint32_t attachment_crc;
    bool strict_epoch;
    bool no_hole;
    uint64_t chunk_id;
    uint64_t sn;
    uint64_t file_id;
    uint64_t epoch;
    uint64_t client_id;
    uint64_t sequence;
    uint64_t settled_below;
};

// Returns 0, or -EPROTO: not protobuf, a known field of the wrong wire type, or a required one
// missing.
int cg_chunk_request_decode(const uint8_t *in, size_t length, struct cg_chunk_request *out);

#endif
