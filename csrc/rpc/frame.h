// SPDX-License-Identifier: BSD-3-Clause
//
// baidu_std framing, pure functions. A frame is a 12-byte header ("PRPC", u32 big-endian body size,
// u32 big-endian meta size), the RpcMeta message, the request or response message, and the
// attachment last; the body size counts meta, message and attachment (brpc baidu_rpc_protocol.cpp).
#ifndef CG_RPC_FRAME_H
#define CG_RPC_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CG_FRAME_HEADER_SIZE 12U
#define CG_FRAME_BODY_MAX    (64U << 20) // brpc's max_body_size
#define CG_FRAME_META_MAX    4096U
#define CG_FRAME_NAME_MAX    96U

struct cg_frame_header {
    uint32_t body_size; // meta + message + attachment
    uint32_t meta_size;
};

// Reads the 12 bytes at `in`. Returns 0; -EPROTO if the magic is wrong; -EMSGSIZE if body_size is
// over CG_FRAME_BODY_MAX or meta_size is over CG_FRAME_META_MAX or body_size.
int cg_frame_header_decode(const uint8_t *in, struct cg_frame_header *out);
void cg_frame_header_encode(const struct cg_frame_header *header, uint8_t *out);

// What we use of RpcMeta.
struct cg_frame_meta {
    bool is_request;
    char service[CG_FRAME_NAME_MAX]; // requests: "curve.chunkserver.ChunkService"
    char method[CG_FRAME_NAME_MAX];
    int64_t log_id;     // requests; written when not 0
    int32_t error_code; // responses
    char error_text[256];
    int64_t correlation_id;
    uint32_t attachment_size;
};

// Decodes `length` bytes. Returns 0 or -EPROTO (not protobuf, neither request nor response, a
// compressed message, a negative attachment size).
int cg_frame_meta_decode(const uint8_t *in, size_t length, struct cg_frame_meta *out);

// The same without copies: the strings point into the bytes that were decoded.
struct cg_frame_view {
    bool is_request;
    const char *service; // requests
    uint32_t service_length;
    const char *method;
    uint32_t method_length;
    int64_t log_id;
    int32_t error_code; // responses
    const char *error_text;
    uint32_t error_text_length;
    int64_t correlation_id;
    uint32_t attachment_size;
};

// As cg_frame_meta_decode; names and texts may have any length.
int cg_frame_view_decode(const uint8_t *in, size_t length, struct cg_frame_view *out);
int cg_frame_view_encode(const struct cg_frame_view *view, uint8_t *out, size_t size);

// Bytes that `value` takes as a varint.
static inline unsigned cg_varint_length(uint64_t value) {
    return (unsigned)(70 - __builtin_clzll(value | 1)) / 7;
}

// Encodes as brpc does: compress_type 0 and error_code 0 are written out, attachment_size only if
// there is one. Returns the length or -EMSGSIZE.
int cg_frame_meta_encode(const struct cg_frame_meta *meta, uint8_t *out, size_t size);

#endif
