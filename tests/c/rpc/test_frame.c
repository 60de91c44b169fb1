// SPDX-License-Identifier: BSD-3-Clause
//
// Frames: the bytes captured from a running CurveBS (both ways), properties against nanopb, limits.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <pb_decode.h>
#include <pb_encode.h>

#include "gateway/proto/chunk.pb.h"
#include "gateway/proto/rpc.pb.h"
#include "rpc/frame.h"

static size_t from_hex(const char *hex, uint8_t *out) {
    size_t n = 0;
    for (; hex[0] != '\0'; hex += 2) {
        char byte[3] = {hex[0], hex[1], '\0'};
        out[n++] = (uint8_t)strtoul(byte, NULL, 16);
    }
    return n;
}

// Captured messages: a write and a read of 4 KiB at offset 8192 of chunk 1, copyset 11, pool 1.
struct golden {
    const char *header;
    const char *meta;
    const char *message;
    uint32_t frame_length;
    struct cg_frame_meta value;
};

static const struct golden goldens[] = {
    {"505250430000104d0000003a",
     "0a2c0a1e63757276652e6368756e6b7365727665722e4368756e6b53657276696365120a57726974654368756e6b1"
     "8"
     "0020828080809021288020",
     "08021001180b20013080403880204801900103",
     4185,
     {.is_request = true,
      .service = "curve.chunkserver.ChunkService",
      .method = "WriteChunk",
      .correlation_id = 1138166333442,
      .attachment_size = 4096}},
    {"50525043000000120000000d",
     "12020800180020828080809021",
     "080018840c",
     30,
     {.correlation_id = 1138166333442}},
    {"505250430000004400000036",
     "0a2b0a1e63757276652e6368756e6b7365727665722e4368756e6b536572766963651209526561644368756e6b180"
     "0"
     "20828080808040",
     "08011001180b2001308040388020",
     80,
     {.is_request = true,
      .service = "curve.chunkserver.ChunkService",
      .method = "ReadChunk",
      .correlation_id = 2199023255554}},
    {"505250430000101500000010",
     "12020800180020828080808040288020",
     "080018840c",
     4129,
     {.correlation_id = 2199023255554, .attachment_size = 4096}},
    // With a log id, to an mds.
    {"505250430000005000000030",
     "0a260a1863757276652e6d64732e437572766546535365727669636512084f70656e46696c6518011800208280808"
     "0"
     "20",
     "0a052f766f6c31120562656e63681a0020a6aad9d6e09798032a0562656e6368",
     92,
     {.is_request = true,
      .service = "curve.mds.CurveFSService",
      .method = "OpenFile",
      .log_id = 1,
      .correlation_id = 8589934594}},
};
#define GOLDENS (sizeof(goldens) / sizeof(goldens[0]))

static void assert_same_meta(const struct cg_frame_meta *a, const struct cg_frame_meta *b) {
    assert_int_equal(a->is_request, b->is_request);
    assert_string_equal(a->service, b->service);
    assert_string_equal(a->method, b->method);
    assert_true(a->log_id == b->log_id);
    assert_int_equal(a->error_code, b->error_code);
    assert_string_equal(a->error_text, b->error_text);
    assert_true(a->correlation_id == b->correlation_id);
    assert_int_equal(a->attachment_size, b->attachment_size);
}

static void captured_frames_are_understood(void **state) {
    (void)state;
    for (size_t i = 0; i < GOLDENS; i++) {
        uint8_t header[12], meta[256], message[256];
        assert_int_equal(from_hex(goldens[i].header, header), 12);
        size_t meta_length = from_hex(goldens[i].meta, meta);
        size_t message_length = from_hex(goldens[i].message, message);
        struct cg_frame_header h;
        assert_int_equal(cg_frame_header_decode(header, &h), 0);
        assert_int_equal(h.meta_size, meta_length);
        assert_int_equal(h.body_size + 12, goldens[i].frame_length);
        struct cg_frame_meta m;
        assert_int_equal(cg_frame_meta_decode(meta, meta_length, &m), 0);
        assert_same_meta(&m, &goldens[i].value);
        assert_int_equal(h.body_size, meta_length + message_length + m.attachment_size);
    }
}

static void captured_frames_are_written_byte_for_byte(void **state) {
    (void)state;
    for (size_t i = 0; i < GOLDENS; i++) {
        uint8_t header[12], meta[256], message[256], out[256];
        from_hex(goldens[i].header, header);
        size_t meta_length = from_hex(goldens[i].meta, meta);
        size_t message_length = from_hex(goldens[i].message, message);
        int n = cg_frame_meta_encode(&goldens[i].value, out, sizeof(out));
        assert_int_equal(n, meta_length);
        assert_memory_equal(out, meta, meta_length);
        struct cg_frame_header h = {(uint32_t)(meta_length + message_length) +
                                        goldens[i].value.attachment_size,
                                    (uint32_t)meta_length};
        cg_frame_header_encode(&h, out);
        assert_memory_equal(out, header, 12);
    }
}

static void the_captured_write_is_what_nanopb_makes_of_chunk_proto(void **state) {
    (void)state;
    curve_chunkserver_ChunkRequest request = {
        .opType = curve_chunkserver_CHUNK_OP_TYPE_CHUNK_OP_WRITE,
        .logicPoolId = 1,
        .copysetId = 11,
        .chunkId = 1,
        .has_offset = true,
        .offset = 8192,
        .has_size = true,
        .size = 4096,
        .has_sn = true,
        .sn = 1,
        .has_fileId = true,
        .fileId = 3,
    };
    uint8_t out[256], expected[256];
    pb_ostream_t stream = pb_ostream_from_buffer(out, sizeof(out));
    assert_true(pb_encode(&stream, curve_chunkserver_ChunkRequest_fields, &request));
    size_t length = from_hex(goldens[0].message, expected);
    assert_int_equal(stream.bytes_written, length);
    assert_memory_equal(out, expected, length);
}

static void bad_headers_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *bytes;
        int result;
    } cases[] = {
        {"505250430000000000000000", 0},
        {"505250440000000000000000", -EPROTO},
        {"474554202f6865616c746820", -EPROTO},
        {"505250430400000000000010", 0},         // 64 MiB exactly
        {"505250430400000100000010", -EMSGSIZE}, // and one more
        {"5052504300100000ffffffff", -EMSGSIZE},
        {"505250430000100000001000", 0},
        {"505250430000200000001001", -EMSGSIZE},
        {"505250430000000f00000010", -EMSGSIZE}, // meta longer than the body
        {"50525043ffffffff00000010", -EMSGSIZE},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint8_t in[12];
        struct cg_frame_header h;
        assert_int_equal(from_hex(cases[i].bytes, in), 12);
        assert_int_equal(cg_frame_header_decode(in, &h), cases[i].result);
    }
}

static void bad_metas_are_refused(void **state) {
    (void)state;
    static const char *const cases[] = {
        "",                                       // neither request nor response
        "18002001",                               // the same
        "12020800180120",                         // cut
        "1202080018012001",                       // compressed
        "120208001800200128ffffffffffffffffff01", // attachment of -1
        "1202080018002001288080808008",           // 2^31
        "0a050a0361626318002001",                 // no method
        "0a0512036162631800",                     // no service
        "1205080018",                             // length past the end
        "120308ff",                               // varint past the end
        "0b0c",                                   // a group
        "12020800ffffffffffffffffffff01",         // a tag of 11 bytes
        "1200"
        "00"
        "00",   // field 0
        "1002", // response with the wrong wire type
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint8_t in[64];
        struct cg_frame_meta m;
        size_t n = from_hex(cases[i], in);
        if (cg_frame_meta_decode(in, n, &m) != -EPROTO) {
            fail_msg("accepted: %s", cases[i]);
        }
    }
}

static void unknown_fields_are_skipped_and_long_error_texts_cut(void **state) {
    (void)state;
    uint8_t in[512];
    struct cg_frame_meta m;
    // error_code 7, an unknown varint, fixed64, bytes and fixed32 inside and outside.
    size_t n = from_hex("120d0807"
                        "980601"
                        "a206026162"
                        "a806ff01"
                        "2005"
                        "a20601ff"
                        "a9061122334455667788"
                        "ad0611223344",
                        in);
    in[1] = 2 + 3 + 5 + 4;
    assert_int_equal(cg_frame_meta_decode(in, n, &m), 0);
    assert_int_equal(m.error_code, 7);
    assert_int_equal(m.correlation_id, 5);
    uint8_t *at = in;
    memcpy(at, "\x12\xb0\x02\x08\x01\x12\xab\x02", 8); // a text of 299 bytes
    memset(at + 8, 'x', 299);
    assert_int_equal(cg_frame_meta_decode(in, 8 + 299, &m), 0);
    assert_int_equal(strlen(m.error_text), sizeof(m.error_text) - 1);
}

static void metas_do_not_overrun_a_short_buffer(void **state) {
    (void)state;
    for (size_t i = 0; i < GOLDENS; i++) {
        uint8_t out[256];
        int whole = cg_frame_meta_encode(&goldens[i].value, out, sizeof(out));
        for (int size = 0; size < whole; size++) {
            uint8_t *tight = malloc((size_t)size + 1);
            assert_int_equal(cg_frame_meta_encode(&goldens[i].value, tight, (size_t)size),
                             -EMSGSIZE);
            free(tight);
        }
    }
}

// ---- Properties against nanopb

static uint64_t random_state = 0x9e3779b97f4a7c15;

static uint64_t random_bits(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static uint64_t random_value(void) {
    return random_bits() >> (random_bits() % 64); // all lengths of varint
}

static void random_name(char *out, size_t limit) {
    size_t n = random_bits() % limit;
    for (size_t i = 0; i < n; i++) {
        out[i] = (char)('a' + random_bits() % 26);
    }
    out[n] = '\0';
}

static void random_meta(struct cg_frame_meta *m, brpc_policy_RpcMeta *pb) {
    memset(m, 0, sizeof(*m));
    *pb = (brpc_policy_RpcMeta)brpc_policy_RpcMeta_init_zero;
    m->is_request = random_bits() & 1;
    m->correlation_id = (int64_t)random_value();
    m->attachment_size = (uint32_t)(random_value() & INT32_MAX);
    pb->has_compress_type = true;
    pb->has_correlation_id = true;
    pb->correlation_id = m->correlation_id;
    pb->has_attachment_size = m->attachment_size != 0;
    pb->attachment_size = (int32_t)m->attachment_size;
    if (m->is_request) {
        random_name(m->service, sizeof(m->service));
        random_name(m->method, sizeof(m->method));
        m->log_id = random_bits() & 1 ? (int64_t)random_value() : 0;
        pb->has_request = true;
        strcpy(pb->request.service_name, m->service);
        strcpy(pb->request.method_name, m->method);
        pb->request.has_log_id = m->log_id != 0;
        pb->request.log_id = m->log_id;
    } else {
        m->error_code = random_bits() & 1 ? (int32_t)random_value() : 0;
        random_name(m->error_text, random_bits() & 1 ? sizeof(m->error_text) : 1);
        pb->has_response = true;
        pb->response.has_error_code = true;
        pb->response.error_code = m->error_code;
        pb->response.has_error_text = m->error_text[0] != '\0';
        strcpy(pb->response.error_text, m->error_text);
    }
}

static void encoding_is_nanopbs_and_decoding_gives_it_back(void **state) {
    (void)state;
    for (int i = 0; i < 200000; i++) {
        struct cg_frame_meta m, back;
        brpc_policy_RpcMeta pb;
        random_meta(&m, &pb);
        uint8_t ours[512], theirs[512];
        int n = cg_frame_meta_encode(&m, ours, sizeof(ours));
        pb_ostream_t stream = pb_ostream_from_buffer(theirs, sizeof(theirs));
        assert_true(pb_encode(&stream, brpc_policy_RpcMeta_fields, &pb));
        assert_int_equal(n, stream.bytes_written);
        assert_memory_equal(ours, theirs, (size_t)n);
        assert_int_equal(cg_frame_meta_decode(ours, (size_t)n, &back), 0);
        assert_same_meta(&back, &m);
    }
}

// Where both accept damaged bytes, they agree on what these say.
static void decoding_agrees_with_nanopb_on_damaged_metas(void **state) {
    (void)state;
    int both = 0;
    for (int i = 0; i < 300000; i++) {
        struct cg_frame_meta m, ours;
        brpc_policy_RpcMeta theirs;
        random_meta(&m, &theirs);
        uint8_t bytes[512];
        size_t n = (size_t)cg_frame_meta_encode(&m, bytes, sizeof(bytes));
        for (uint64_t hits = random_bits() % 4; hits > 0; hits--) {
            bytes[random_bits() % n] = (uint8_t)random_bits();
        }
        n -= random_bits() % 4 == 0 ? random_bits() % n : 0;
        uint8_t *tight = malloc(n); // so that ASan sees a read past the end
        memcpy(tight, bytes, n);
        theirs = (brpc_policy_RpcMeta)brpc_policy_RpcMeta_init_zero;
        pb_istream_t stream = pb_istream_from_buffer(tight, n);
        bool good = pb_decode(&stream, brpc_policy_RpcMeta_fields, &theirs);
        int rc = cg_frame_meta_decode(tight, n, &ours);
        free(tight);
        if (rc != 0 || !good) {
            continue;
        }
        both++;
        assert_int_equal(ours.is_request, theirs.has_request);
        assert_true(ours.correlation_id == theirs.correlation_id);
        assert_int_equal(ours.attachment_size, theirs.attachment_size);
        if (ours.is_request) {
            assert_string_equal(ours.service, theirs.request.service_name);
            assert_string_equal(ours.method, theirs.request.method_name);
            assert_true(ours.log_id == theirs.request.log_id);
        } else {
            assert_int_equal(ours.error_code, theirs.response.error_code);
            assert_string_equal(ours.error_text, theirs.response.error_text);
        }
    }
    assert_true(both > 10000);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(captured_frames_are_understood),
        cmocka_unit_test(captured_frames_are_written_byte_for_byte),
        cmocka_unit_test(the_captured_write_is_what_nanopb_makes_of_chunk_proto),
        cmocka_unit_test(bad_headers_are_refused),
        cmocka_unit_test(bad_metas_are_refused),
        cmocka_unit_test(unknown_fields_are_skipped_and_long_error_texts_cut),
        cmocka_unit_test(metas_do_not_overrun_a_short_buffer),
        cmocka_unit_test(encoding_is_nanopbs_and_decoding_gives_it_back),
        cmocka_unit_test(decoding_agrees_with_nanopb_on_damaged_metas),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
