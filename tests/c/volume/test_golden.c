// SPDX-License-Identifier: BSD-3-Clause
//
// The captured conversation of libcurve with a running CurveBS, replayed against the IO core: a
// server that accepts exactly the captured requests and answers with the captured replies. Not
// compared, because they differ from run to run: dates, correlation ids, brpc's log ids, ports, the
// client's version and address. The epoch's calls are not in the capture; a shared opening makes
// none.
#include <pb_decode.h>
#include <pb_encode.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "copygate.h"
#include "fake_internal.h"
#include "gateway/proto/rpc.pb.h"

#define MESSAGES_MAX 32
#define BYTES_MAX    8192
#define FIRST_PORT   18200 // of the captured chunkservers: this one and the next two

struct captured {
    bool request;
    char method[96]; // full
    uint8_t meta[256];
    uint32_t meta_length;
    uint8_t body[BYTES_MAX];
    uint32_t body_length;
};

static struct captured messages[MESSAGES_MAX];
static unsigned message_count;
static unsigned mismatches;
static unsigned asked[MESSAGES_MAX];

static uint32_t from_hex(const char *text, uint8_t *out, uint32_t size) {
    uint32_t length = 0;
    unsigned byte;
    while (sscanf(text + (size_t)2 * length, "%2x", &byte) == 1) {
        assert_true(length < size);
        out[length++] = (uint8_t)byte;
    }
    return length;
}

static void load(const char *path) {
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    static char line[4 * BYTES_MAX];
    struct captured *now = NULL;
    while (fgets(line, sizeof(line), file) != NULL) {
        char kind[8];
        if (line[0] == '#' || sscanf(line, "%7s", kind) != 1) {
            continue;
        }
        if (strcmp(kind, "REQ") == 0 || strcmp(kind, "RSP") == 0) {
            assert_true(message_count < MESSAGES_MAX);
            now = &messages[message_count++];
            now->request = strcmp(kind, "REQ") == 0;
            assert_int_equal(sscanf(line + 4, "%95s", now->method), 1);
        } else if (strcmp(kind, "meta") == 0) {
            now->meta_length = from_hex(line + 5, now->meta, sizeof(now->meta));
        } else if (strcmp(kind, "body") == 0) {
            now->body_length = from_hex(line + 5, now->body, sizeof(now->body));
        }
    }
    fclose(file);
}

static struct captured *find(const char *full_method, bool request) {
    for (unsigned i = 0; i < message_count; i++) {
        if (messages[i].request == request && strcmp(messages[i].method, full_method) == 0) {
            asked[i]++;
            return &messages[i];
        }
    }
    return NULL;
}

static bool decode_meta(const uint8_t *bytes, uint32_t length, brpc_policy_RpcMeta *meta) {
    *meta = (brpc_policy_RpcMeta)brpc_policy_RpcMeta_init_zero;
    pb_istream_t stream = pb_istream_from_buffer(bytes, length);
    return pb_decode(&stream, brpc_policy_RpcMeta_fields, meta);
}

// The captured meta with this run's correlation id and without brpc's log id must be ours to the
// byte.
static bool same_meta(const struct captured *expected, const struct fake_call *call) {
    brpc_policy_RpcMeta theirs;
    brpc_policy_RpcMeta ours;
    if (!decode_meta(expected->meta, expected->meta_length, &theirs) ||
        !decode_meta(call->meta, call->meta_length, &ours)) {
        return false;
    }
    theirs.correlation_id = ours.correlation_id;
    theirs.request.has_log_id = false;
    uint8_t bytes[256];
    pb_ostream_t stream = pb_ostream_from_buffer(bytes, sizeof(bytes));
    return pb_encode(&stream, brpc_policy_RpcMeta_fields, &theirs) &&
           stream.bytes_written == call->meta_length &&
           memcmp(bytes, call->meta, call->meta_length) == 0;
}

// Fields whose values differ from run to run.
static bool varies(const char *method, uint32_t field) {
    return (strcmp(method, "OpenFile") == 0 && (field == 4 || field == 5)) ||
           (strcmp(method, "GetOrAllocateSegment") == 0 && field == 7) ||
           (strcmp(method, "CloseFile") == 0 && (field == 5 || field == 7));
}

struct field {
    uint32_t tag;
    const uint8_t *start;
    size_t length;
};

static bool next_field(pb_istream_t *stream, const uint8_t *end, struct field *out) {
    pb_wire_type_t wire;
    bool eof;
    if (!pb_decode_tag(stream, &wire, &out->tag, &eof)) {
        return false;
    }
    out->start = end - stream->bytes_left;
    if (!pb_skip_field(stream, wire)) {
        return false;
    }
    out->length = (size_t)(end - stream->bytes_left - out->start);
    out->tag = out->tag << 3 | wire;
    return true;
}

static bool same_body(const struct captured *expected, const struct fake_call *call) {
    pb_istream_t theirs = pb_istream_from_buffer(expected->body, expected->body_length);
    pb_istream_t ours = pb_istream_from_buffer(call->message, call->length);
    struct field a;
    struct field b;
    while (theirs.bytes_left > 0 && ours.bytes_left > 0) {
        if (!next_field(&theirs, expected->body + expected->body_length, &a) ||
            !next_field(&ours, call->message + call->length, &b) || a.tag != b.tag) {
            return false;
        }
        if (!varies(call->method, a.tag >> 3) &&
            (a.length != b.length || memcmp(a.start, b.start, a.length) != 0)) {
            return false;
        }
    }
    return theirs.bytes_left == 0 && ours.bytes_left == 0;
}

// The captured ports, as varints and in text, become this run's: both take the same room.
static void put_ports(struct fake *fake, struct fake_reply *reply) {
    for (unsigned i = 0; i < 3; i++) {
        unsigned old = FIRST_PORT + i;
        unsigned new = (unsigned)fake->servers[fake_peer(fake, (int)i)].port;
        assert_in_range(new, 16384, 65535);
        uint8_t old_varint[] = {0x18, (uint8_t)(old | 0x80), (uint8_t)(old >> 7 | 0x80),
                                (uint8_t)(old >> 14)};
        uint8_t new_varint[] = {0x18, (uint8_t)(new | 0x80), (uint8_t)(new >> 7 | 0x80),
                                (uint8_t)(new >> 14)};
        char old_text[8];
        char new_text[8];
        snprintf(old_text, sizeof(old_text), ":%u:", old);
        snprintf(new_text, sizeof(new_text), ":%u:", new);
        for (uint32_t k = 0; k + 7 <= reply->length; k++) {
            if (memcmp(reply->message + k, old_varint, 4) == 0) {
                memcpy(reply->message + k, new_varint, 4);
            } else if (memcmp(reply->message + k, old_text, 7) == 0) {
                memcpy(reply->message + k, new_text, 7);
            }
        }
    }
}

static bool is_pattern(const uint8_t *data, uint32_t length) {
    for (uint32_t i = 0; i < length; i++) {
        if (data[i] != (uint8_t) "CURVEBS!"[i % 8]) {
            return false;
        }
    }
    return true;
}

enum fake_verdict fake_handle(struct fake_call *call, struct fake_reply *reply) {
    struct fake *fake = call->connection->server->fake;
    brpc_policy_RpcMeta meta;
    char full[200] = "";
    if (decode_meta(call->meta, call->meta_length, &meta)) {
        snprintf(full, sizeof(full), "%s.%s", meta.request.service_name, meta.request.method_name);
    }
    pthread_mutex_lock(&fake->lock);
    const struct captured *expected = find(full, true);
    const struct captured *answer = find(full, false);
    bool write = strcmp(call->method, "WriteChunk") == 0;
    bool good = expected != NULL && answer != NULL && same_meta(expected, call) &&
                same_body(expected, call) && call->attachment_length == (write ? 4096 : 0) &&
                is_pattern(call->attachment, call->attachment_length);
    if (!good) {
        fprintf(stderr, "not what was captured: %s, %u bytes:", full, call->length);
        for (uint32_t i = 0; i < call->length; i++) {
            fprintf(stderr, "%02x", call->message[i]);
        }
        fprintf(stderr, "\n");
        mismatches++;
        pthread_mutex_unlock(&fake->lock);
        return FAKE_CLOSE;
    }
    memcpy(reply->message, answer->body, answer->body_length);
    reply->length = answer->body_length;
    put_ports(fake, reply);
    if (strcmp(call->method, "ReadChunk") == 0) {
        reply->attachment_length = 4096;
        reply->attachment = malloc(4096);
        for (uint32_t i = 0; i < 4096; i++) {
            reply->attachment[i] = (uint8_t) "CURVEBS!"[i % 8];
        }
    }
    pthread_mutex_unlock(&fake->lock);
    return FAKE_SERVE;
}

static void libcurves_conversation_is_ours(void **state) {
    (void)state;
    load(GOLDEN "/curvebs-mds.txt");
    load(GOLDEN "/curvebs-chunk.txt");
    assert_int_equal(message_count, 18);
    static struct fake fake = {.peer_count = 3};
    fake_start(&fake);
    struct cg_client *client;
    struct cg_client_options options = {
        .struct_size = sizeof(options), .mds = fake.mds, .owner = "bench"};
    assert_int_equal(cg_client_create(&options, &client), 0);
    struct cg_volume_options volume_options = {.struct_size = sizeof(volume_options),
                                               .path = "/vol1",
                                               .flags = CG_OPEN_SHARED,
                                               .io_timeout_ms = 3000};
    struct cg_volume *volume;
    char error[256] = "";
    if (cg_volume_open(client, &volume_options, &volume, error, sizeof(error)) != 0) {
        fail_msg("%s", error);
    }
    struct cg_volume_info info;
    cg_volume_info(volume, &info);
    assert_false(info.native);
    assert_int_equal(info.chunk_size, 16U << 20);
    assert_int_equal(info.segment_size, 1U << 30);
    uint8_t data[4096];
    for (size_t i = 0; i < sizeof(data); i++) {
        data[i] = (uint8_t) "CURVEBS!"[i % 8];
    }
    assert_int_equal(cg_pwrite(volume, data, sizeof(data), 8192), 0);
    memset(data, 0, sizeof(data));
    assert_int_equal(cg_pread(volume, data, sizeof(data), 8192), 0);
    assert_true(is_pattern(data, sizeof(data)));
    cg_volume_close(volume);
    cg_client_destroy(client);
    fake_stop(&fake);
    assert_int_equal(mismatches, 0);
    static const char *const needed[] = {
        "curve.mds.CurveFSService.OpenFile",
        "curve.mds.CurveFSService.GetOrAllocateSegment",
        "curve.mds.topology.TopologyService.GetChunkServerListInCopySets",
        "curve.chunkserver.CliService2.GetLeader",
        "curve.chunkserver.ChunkService.WriteChunk",
        "curve.chunkserver.ChunkService.ReadChunk",
        "curve.mds.CurveFSService.CloseFile",
    };
    for (unsigned k = 0; k < sizeof(needed) / sizeof(needed[0]); k++) {
        unsigned seen = 0;
        for (unsigned i = 0; i < message_count; i++) {
            seen +=
                messages[i].request && strcmp(messages[i].method, needed[k]) == 0 ? asked[i] : 0;
        }
        assert_true(seen > 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(libcurves_conversation_is_ours)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
