// SPDX-License-Identifier: BSD-3-Clause
//
// RpcMeta by hand, byte for byte what nanopb and brpc write: it is in every message, and a generic
// codec would take longer for it than everything else here together.
#include "rpc/frame.h"

#include <errno.h>
#include <string.h>

static const uint8_t magic[4] = {'P', 'R', 'P', 'C'};

// Tags: field number << 3 | wire type (0 varint, 2 length-delimited).
enum {
    META_REQUEST = 1 << 3 | 2,
    META_RESPONSE = 2 << 3 | 2,
    META_COMPRESS_TYPE = 3 << 3,
    META_CORRELATION_ID = 4 << 3,
    META_ATTACHMENT_SIZE = 5 << 3,
    REQUEST_SERVICE = 1 << 3 | 2,
    REQUEST_METHOD = 2 << 3 | 2,
    REQUEST_LOG_ID = 3 << 3,
    RESPONSE_ERROR_CODE = 1 << 3,
    RESPONSE_ERROR_TEXT = 2 << 3 | 2,
};

static uint32_t load_be32(const uint8_t *in) {
    return (uint32_t)in[0] << 24 | (uint32_t)in[1] << 16 | (uint32_t)in[2] << 8 | in[3];
}

static void store_be32(uint8_t *out, uint32_t value) {
    out[0] = (uint8_t)(value >> 24);
    out[1] = (uint8_t)(value >> 16);
    out[2] = (uint8_t)(value >> 8);
    out[3] = (uint8_t)value;
}

int cg_frame_header_decode(const uint8_t *in, struct cg_frame_header *out) {
    if (memcmp(in, magic, sizeof(magic)) != 0) {
        return -EPROTO;
    }
    out->body_size = load_be32(in + 4);
    out->meta_size = load_be32(in + 8);
    if (out->body_size > CG_FRAME_BODY_MAX || out->meta_size > CG_FRAME_META_MAX ||
        out->meta_size > out->body_size) {
        return -EMSGSIZE;
    }
    return 0;
}

void cg_frame_header_encode(const struct cg_frame_header *header, uint8_t *out) {
    memcpy(out, magic, sizeof(magic));
    store_be32(out + 4, header->body_size);
    store_be32(out + 8, header->meta_size);
}

// ---- Reading

struct reader {
    const uint8_t *at;
    const uint8_t *end;
};

static bool read_varint(struct reader *in, uint64_t *out) {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        if (in->at == in->end) {
            return false;
        }
        uint8_t byte = *in->at++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *out = value;
            return true;
        }
    }
    return false;
}

static bool read_bytes(struct reader *in, struct reader *out) {
    uint64_t length;
    if (!read_varint(in, &length) || length > (uint64_t)(in->end - in->at)) {
        return false;
    }
    out->at = in->at;
    out->end = in->at + length;
    in->at = out->end;
    return true;
}

// Steps over a field that we do not know. Groups are not used in this protocol.
static bool skip_field(struct reader *in, uint64_t tag) {
    uint64_t value;
    struct reader bytes;
    size_t fixed;
    if (tag >> 3 == 0) {
        return false;
    }
    switch (tag & 7) {
    case 0:
        return read_varint(in, &value);
    case 1:
        fixed = 8;
        break;
    case 2:
        return read_bytes(in, &bytes);
    case 5:
        fixed = 4;
        break;
    default:
        return false;
    }
    if ((size_t)(in->end - in->at) < fixed) {
        return false;
    }
    in->at += fixed;
    return true;
}

// A known field number with a wire type that is not the field's.
static bool wrong_type(uint64_t tag, unsigned last_field) {
    return tag >> 3 != 0 && tag >> 3 <= last_field;
}

static bool read_request(struct reader in, struct cg_frame_view *out) {
    while (in.at < in.end) {
        uint64_t tag, value;
        struct reader text;
        if (!read_varint(&in, &tag)) {
            return false;
        }
        switch (tag) {
        case REQUEST_SERVICE:
            if (!read_bytes(&in, &text)) {
                return false;
            }
            out->service = (const char *)text.at;
            out->service_length = (uint32_t)(text.end - text.at);
            break;
        case REQUEST_METHOD:
            if (!read_bytes(&in, &text)) {
                return false;
            }
            out->method = (const char *)text.at;
            out->method_length = (uint32_t)(text.end - text.at);
            break;
        case REQUEST_LOG_ID:
            if (!read_varint(&in, &value)) {
                return false;
            }
            out->log_id = (int64_t)value;
            break;
        default:
            if (wrong_type(tag, 3) || !skip_field(&in, tag)) {
                return false;
            }
        }
    }
    return true;
}

static bool read_response(struct reader in, struct cg_frame_view *out) {
    while (in.at < in.end) {
        uint64_t tag, value;
        struct reader text;
        if (!read_varint(&in, &tag)) {
            return false;
        }
        switch (tag) {
        case RESPONSE_ERROR_CODE:
            if (!read_varint(&in, &value)) {
                return false;
            }
            out->error_code = (int32_t)value;
            break;
        case RESPONSE_ERROR_TEXT:
            if (!read_bytes(&in, &text)) {
                return false;
            }
            out->error_text = (const char *)text.at;
            out->error_text_length = (uint32_t)(text.end - text.at);
            break;
        default:
            if (wrong_type(tag, 2) || !skip_field(&in, tag)) {
                return false;
            }
        }
    }
    return true;
}

static bool read_number(struct reader *in, uint64_t tag, struct cg_frame_view *out) {
    uint64_t value;
    if (!read_varint(in, &value)) {
        return false;
    }
    if (tag == META_CORRELATION_ID) {
        out->correlation_id = (int64_t)value;
        return true;
    }
    if (tag == META_ATTACHMENT_SIZE) {
        out->attachment_size = (uint32_t)value;
        return (int32_t)value >= 0;
    }
    return (int32_t)value == 0; // the compression: we have none
}

int cg_frame_view_decode(const uint8_t *in, size_t length, struct cg_frame_view *out) {
    struct reader meta = {in, in + length};
    bool is_response = false;
    *out = (struct cg_frame_view){0};
    while (meta.at < meta.end) {
        uint64_t tag;
        struct reader part;
        bool good;
        if (!read_varint(&meta, &tag)) {
            return -EPROTO;
        }
        switch (tag) {
        case META_REQUEST:
            out->is_request = true;
            good = read_bytes(&meta, &part) && read_request(part, out);
            break;
        case META_RESPONSE:
            is_response = true;
            good = read_bytes(&meta, &part) && read_response(part, out);
            break;
        case META_COMPRESS_TYPE:
        case META_CORRELATION_ID:
        case META_ATTACHMENT_SIZE:
            good = read_number(&meta, tag, out);
            break;
        default:
            good = !wrong_type(tag, 5) && skip_field(&meta, tag);
        }
        if (!good) {
            return -EPROTO;
        }
    }
    if (out->is_request) {
        return out->service != NULL && out->method != NULL ? 0 : -EPROTO;
    }
    return is_response ? 0 : -EPROTO;
}

static void copy_text(char *out, size_t size, const char *text, uint32_t length) {
    size_t n = length < size - 1 ? length : size - 1;
    if (n > 0) {
        memcpy(out, text, n);
    }
    out[n] = '\0';
}

int cg_frame_meta_decode(const uint8_t *in, size_t length, struct cg_frame_meta *out) {
    struct cg_frame_view view;
    int rc = cg_frame_view_decode(in, length, &view);
    if (rc < 0) {
        return rc;
    }
    if (view.service_length >= CG_FRAME_NAME_MAX || view.method_length >= CG_FRAME_NAME_MAX) {
        return -EPROTO;
    }
    out->is_request = view.is_request;
    copy_text(out->service, sizeof(out->service), view.service, view.service_length);
    copy_text(out->method, sizeof(out->method), view.method, view.method_length);
    out->log_id = view.log_id;
    out->error_code = view.error_code;
    copy_text(out->error_text, sizeof(out->error_text), view.error_text, view.error_text_length);
    out->correlation_id = view.correlation_id;
    out->attachment_size = view.attachment_size;
    return 0;
}

// ---- Writing

static uint8_t *write_varint(uint8_t *out, uint64_t value) {
    while (value >= 0x80) {
        *out++ = (uint8_t)(value | 0x80);
        value >>= 7;
    }
    *out++ = (uint8_t)value;
    return out;
}

static uint8_t *write_text(uint8_t *out, uint8_t tag, const char *text, uint32_t length) {
    *out++ = tag;
    out = write_varint(out, length);
    if (length > 0) {
        memcpy(out, text, length);
    }
    return out + length;
}

static size_t text_size(uint32_t length) {
    return 1 + cg_varint_length(length) + (size_t)length;
}

static size_t request_size(const struct cg_frame_view *view) {
    size_t size = text_size(view->service_length) + text_size(view->method_length);
    if (view->log_id != 0) {
        size += 1 + cg_varint_length((uint64_t)view->log_id);
    }
    return size;
}

static size_t response_size(const struct cg_frame_view *view) {
    size_t size = 1 + cg_varint_length((uint64_t)(int64_t)view->error_code);
    if (view->error_text_length > 0) {
        size += text_size(view->error_text_length);
    }
    return size;
}

int cg_frame_view_encode(const struct cg_frame_view *view, uint8_t *out, size_t size) {
    size_t part = view->is_request ? request_size(view) : response_size(view);
    size_t total = 1 + cg_varint_length(part) + part + 2 + 1 +
                   cg_varint_length((uint64_t)view->correlation_id);
    if (view->attachment_size != 0) {
        total += 1 + cg_varint_length(view->attachment_size);
    }
    if (total > size) {
        return -EMSGSIZE;
    }
    uint8_t *at = out;
    *at++ = view->is_request ? META_REQUEST : META_RESPONSE;
    at = write_varint(at, part);
    if (view->is_request) {
        at = write_text(at, REQUEST_SERVICE, view->service, view->service_length);
        at = write_text(at, REQUEST_METHOD, view->method, view->method_length);
        if (view->log_id != 0) {
            *at++ = REQUEST_LOG_ID;
            at = write_varint(at, (uint64_t)view->log_id);
        }
    } else {
        *at++ = RESPONSE_ERROR_CODE;
        at = write_varint(at, (uint64_t)(int64_t)view->error_code);
        if (view->error_text_length > 0) {
            at = write_text(at, RESPONSE_ERROR_TEXT, view->error_text, view->error_text_length);
        }
    }
    *at++ = META_COMPRESS_TYPE;
    *at++ = 0;
    *at++ = META_CORRELATION_ID;
    at = write_varint(at, (uint64_t)view->correlation_id);
    if (view->attachment_size != 0) {
        *at++ = META_ATTACHMENT_SIZE;
        write_varint(at, view->attachment_size);
    }
    return (int)total;
}

int cg_frame_meta_encode(const struct cg_frame_meta *meta, uint8_t *out, size_t size) {
    struct cg_frame_view view = {
        .is_request = meta->is_request,
        .service = meta->service,
        .service_length = (uint32_t)strnlen(meta->service, sizeof(meta->service)),
        .method = meta->method,
        .method_length = (uint32_t)strnlen(meta->method, sizeof(meta->method)),
        .log_id = meta->log_id,
        .error_code = meta->error_code,
        .error_text = meta->error_text,
        .error_text_length = (uint32_t)strnlen(meta->error_text, sizeof(meta->error_text)),
        .correlation_id = meta->correlation_id,
        .attachment_size = meta->attachment_size,
    };
    return cg_frame_view_encode(&view, out, size);
}
