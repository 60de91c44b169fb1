// SPDX-License-Identifier: BSD-3-Clause
//
// The hand-written messages of the hot path, against captured bytes and against nanopb.
#include <errno.h>
#include <pb_decode.h>
#include <pb_encode.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gateway/proto/chunk.pb.h"
#include "volume/clone.h"
#include "volume/signature.h"
#include "volume/volume.h"

static struct cg_volume volume;
static struct vol_copyset copyset = {.pool = 1, .id = 11};
static struct vol_transfer transfer;

static struct vol_request *request_of(enum vol_kind kind) {
    static struct vol_request request;
    request = (struct vol_request){
        .volume = &volume,
        .copyset = &copyset,
        .transfer = &transfer,
        .chunk_id = 1,
        .chunk_offset = 8192,
        .length = 4096,
        .kind = (uint8_t)kind,
        .sequence = 70000,
    };
    cg_list_init(&volume.unsettled);
    cg_list_init(&request.unsettled);
    cg_list_push_back(&volume.unsettled, &request.unsettled);
    return &request;
}

static void on_curvebs_requests_are_what_libcurve_sends(void **state) {
    (void)state;
    // reference: seen on a running CurveBS
    static const uint8_t write[] = {0x08, 0x02, 0x10, 0x01, 0x18, 0x0b, 0x20, 0x01, 0x30, 0x80,
                                    0x40, 0x38, 0x80, 0x20, 0x48, 0x01, 0x90, 0x01, 0x03};
    static const uint8_t read[] = {0x08, 0x01, 0x10, 0x01, 0x18, 0x0b, 0x20,
                                   0x01, 0x30, 0x80, 0x40, 0x38, 0x80, 0x20};
    volume = (struct cg_volume){.seq = 1, .file_id = 3, .send_epoch = true};
    uint8_t out[VOL_MESSAGE_MAX];
    assert_int_equal(vol_request_encode(request_of(VOL_WRITE), out), sizeof(write));
    assert_memory_equal(out, write, sizeof(write));
    assert_int_equal(vol_request_encode(request_of(VOL_WRITE_ZERO_DATA), out), sizeof(write));
    assert_memory_equal(out, write, sizeof(write));
    assert_int_equal(vol_request_encode(request_of(VOL_READ), out), sizeof(read));
    assert_memory_equal(out, read, sizeof(read));
    // With an epoch the write has it, the read does not.
    volume.epoch = 5;
    assert_int_equal(vol_request_encode(request_of(VOL_WRITE), out), sizeof(write) + 3);
    assert_memory_equal(out + sizeof(write), "\x98\x01\x05", 3);
    assert_int_equal(vol_request_encode(request_of(VOL_READ), out), sizeof(read));
}

static bool decode_source(pb_istream_t *stream, const pb_field_t *field, void **arg) {
    (void)field;
    char *out = *arg;
    size_t length = stream->bytes_left;
    assert_true(length <= CG_MDS_PATH_MAX);
    out[length] = '\0';
    return pb_read(stream, (pb_byte_t *)out, length);
}

static void requests_of_a_clone_name_its_source(void **state) {
    (void)state;
    static char path[CG_MDS_PATH_MAX + 1];
    memset(path, 'p', CG_MDS_PATH_MAX);
    path[0] = '/';
    struct cg_volume source = {.path = path};
    struct vol_clone *clone = calloc(1, sizeof(*clone) + sizeof(clone->segments[0]));
    *clone =
        (struct vol_clone){.source = &source, .path_length = CG_MDS_PATH_MAX, .segment_count = 8};
    clone->segments[0] = 1U << 5;
    volume = (struct cg_volume){.seq = UINT64_MAX,
                                .file_id = UINT64_MAX,
                                .epoch = UINT64_MAX,
                                .send_epoch = true,
                                .segment_size = 1U << 30,
                                .clone = clone};
    for (uint64_t index = 4; index <= 5; index++) {
        for (int kind = VOL_READ; kind <= VOL_BLOCK_STATUS; kind++) {
            struct vol_segment segment = {.index = index};
            struct vol_request *request = request_of((enum vol_kind)kind);
            request->chunk_id = UINT64_MAX;
            request->segment = &segment;
            request->segment_offset = 3 * (16U << 20) + request->chunk_offset;
            uint8_t out[VOL_MESSAGE_MAX];
            uint32_t length = vol_request_encode(request, out);
            assert_true(length <= sizeof(out));
            char name[CG_MDS_PATH_MAX + 1] = "";
            curve_chunkserver_ChunkRequest m = curve_chunkserver_ChunkRequest_init_zero;
            m.cloneFileSource = (pb_callback_t){.funcs.decode = decode_source, .arg = name};
            pb_istream_t stream = pb_istream_from_buffer(out, length);
            assert_true(
                pb_decode_ex(&stream, curve_chunkserver_ChunkRequest_fields, &m, PB_DECODE_NOINIT));
            bool named = index == 5 &&
                         (kind == VOL_READ || kind == VOL_WRITE || kind == VOL_WRITE_ZERO_DATA);
            assert_int_equal(m.has_cloneFileOffset, named);
            assert_string_equal(name, named ? path : "");
            if (named) {
                assert_int_equal(m.cloneFileOffset, 5 * (1ULL << 30) + 3 * (16U << 20));
            }
        }
    }
    clone->copied = true;
    struct vol_segment segment = {.index = 5};
    struct vol_request *request = request_of(VOL_READ);
    request->segment = &segment;
    uint8_t out[VOL_MESSAGE_MAX];
    assert_true(vol_request_encode(request, out) < 100);
    free(clone);
}

static void native_requests_decode_to_all_their_fields(void **state) {
    (void)state;
    volume = (struct cg_volume){.seq = UINT64_MAX,
                                .file_id = UINT64_MAX,
                                .epoch = UINT64_MAX,
                                .client_id = UINT64_MAX,
                                .native = true,
                                .send_epoch = true};
    for (int kind = VOL_READ; kind <= VOL_BLOCK_STATUS; kind++) {
        struct vol_request *request = request_of((enum vol_kind)kind);
        request->chunk_id = UINT64_MAX;
        request->sequence = UINT64_MAX;
        request->chunk_offset = UINT32_MAX;
        request->length = UINT32_MAX;
        transfer.no_hole = true;
        uint8_t out[VOL_MESSAGE_MAX];
        uint32_t length = vol_request_encode(request, out);
        assert_true(length <= sizeof(out));
        curve_chunkserver_ChunkRequest m = curve_chunkserver_ChunkRequest_init_zero;
        pb_istream_t stream = pb_istream_from_buffer(out, length);
        assert_true(pb_decode(&stream, curve_chunkserver_ChunkRequest_fields, &m));
        assert_int_equal(m.chunkId, UINT64_MAX);
        assert_int_equal(m.offset, UINT32_MAX);
        assert_int_equal(m.size, UINT32_MAX);
        assert_int_equal(m.epoch, UINT64_MAX);
        assert_int_equal(m.fileId, UINT64_MAX);
        assert_true(m.has_strictEpoch && m.strictEpoch);
        bool changes = vol_kind_changes((enum vol_kind)kind);
        assert_int_equal(m.has_clientId, changes);
        assert_int_equal(m.has_sequence, changes);
        assert_int_equal(m.has_settledBelow, changes);
        assert_int_equal(m.has_sn, changes);
        assert_int_equal(m.has_noHole, kind == VOL_WRITE_ZEROES);
    }
}

static void the_oldest_unsettled_sequence_is_told(void **state) {
    (void)state;
    volume = (struct cg_volume){.native = true, .client_id = 9, .seq = 1};
    struct vol_request *request = request_of(VOL_WRITE);
    struct vol_request older = {.sequence = 60000};
    cg_list_push_front(&volume.unsettled, &older.unsettled);
    uint8_t out[VOL_MESSAGE_MAX];
    curve_chunkserver_ChunkRequest m = curve_chunkserver_ChunkRequest_init_zero;
    pb_istream_t stream = pb_istream_from_buffer(out, vol_request_encode(request, out));
    assert_true(pb_decode(&stream, curve_chunkserver_ChunkRequest_fields, &m));
    assert_int_equal(m.sequence, 70000);
    assert_int_equal(m.settledBelow, 60000);
}

static void replies_are_understood(void **state) {
    (void)state;
    struct vol_reply reply;
    static const uint8_t captured[] = {0x08, 0x00, 0x18, 0x84, 0x0c};
    assert_int_equal(vol_reply_decode(captured, sizeof(captured), &reply), 0);
    assert_int_equal(reply.status, 0);
    curve_chunkserver_ChunkResponse m = curve_chunkserver_ChunkResponse_init_zero;
    m.status = curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_MISCOMPARE;
    m.has_redirect = true;
    strcpy(m.redirect, "127.0.0.1:18201:0");
    m.has_mismatchOffset = true;
    m.mismatchOffset = 123456;
    m.has_chunkSn = true;
    m.chunkSn = UINT64_MAX;
    uint8_t bytes[256];
    pb_ostream_t stream = pb_ostream_from_buffer(bytes, sizeof(bytes));
    assert_true(pb_encode(&stream, curve_chunkserver_ChunkResponse_fields, &m));
    assert_int_equal(vol_reply_decode(bytes, (uint32_t)stream.bytes_written, &reply), 0);
    assert_int_equal(reply.status, 1000);
    assert_int_equal(reply.mismatch, 123456);
}

static void nonsense_is_refused_and_never_read_past_its_end(void **state) {
    (void)state;
    struct vol_reply reply;
    assert_int_equal(vol_reply_decode((const uint8_t *)"", 0, &reply), -EPROTO);
    assert_int_equal(vol_reply_decode((const uint8_t *)"\x18\x01", 2, &reply), -EPROTO);
    srand(3);
    for (int i = 0; i < 300000; i++) {
        uint32_t length = (uint32_t)(rand() % 24);
        uint8_t *exact = malloc(length > 0 ? length : 1); // exact, for the sanitizer
        for (uint32_t k = 0; k < length; k++) {
            exact[k] = (uint8_t)(rand() % 4 == 0 ? rand() : 0x08 + rand() % 8);
        }
        if (vol_reply_decode(exact, length, &reply) == 0 && reply.runs != NULL) {
            assert_true(reply.runs >= exact && reply.runs + reply.runs_length <= exact + length);
        }
        free(exact);
    }
}

static void the_signature_is_base64_of_hmac_sha256(void **state) {
    (void)state;
    // printf '1690000000000000:root' | openssl dgst -sha256 -hmac root_password -binary | base64
    char out[CG_SIGNATURE_SIZE];
    cg_signature("root_password", 1690000000000000ULL, "root", out);
    assert_string_equal(out, "Oal6DFfGCORgBQwgkK0vnqoUPFnnAnP1Z9JEpQlQ29c=");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(on_curvebs_requests_are_what_libcurve_sends),
        cmocka_unit_test(requests_of_a_clone_name_its_source),
        cmocka_unit_test(native_requests_decode_to_all_their_fields),
        cmocka_unit_test(the_oldest_unsettled_sequence_is_told),
        cmocka_unit_test(replies_are_understood),
        cmocka_unit_test(nonsense_is_refused_and_never_read_past_its_end),
        cmocka_unit_test(the_signature_is_base64_of_hmac_sha256),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
