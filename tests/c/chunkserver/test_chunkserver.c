// SPDX-License-Identifier: BSD-3-Clause
//
// The whole chunkserver over real sockets and a real folder: statuses, quirks, restarts. The first
// argument chooses the reactor: uring or epoll.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pb_decode.h>
#include <pb_encode.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/reactor.h"
#include "chunkserver/chunkserver.h"
#include "gateway/proto/cli2.pb.h"
#include "wireclient.h"

#define STATUS(name) curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_##name
#define TYPE(name)   curve_chunkserver_CHUNK_OP_TYPE_CHUNK_OP_##name
#define CHUNK_SIZE   (16U << 20)

static int backend = CG_REACTOR_AUTO;

struct fixture {
    char folder[64];
    struct cg_chunkserver *server;
    int fd;
    struct wire_reply reply;
};

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *ftw) {
    (void)info;
    (void)type;
    (void)ftw;
    return remove(path);
}

static void start(struct fixture *f) {
    char error[512] = "";
    char listen[160];
    snprintf(listen, sizeof(listen), "127.0.0.1:0,unix:%s.sock", f->folder);
    struct cg_chunkserver_options options = {
        .folder = f->folder,
        .listen = listen,
        .wal_bytes = 64U << 20,
        .reactor_backend = backend,
    };
    int result = cg_chunkserver_start(&options, &f->server, error, sizeof(error));
    if (result != 0) {
        fail_msg("start: %d %s", result, error);
    }
    const uint64_t founder = 1;
    const struct cg_copyset_spec spec = {
        .pool = 1, .copyset = 11, .self = 1, .founders = &founder, .founder_count = 1};
    assert_int_equal(0, cg_chunkserver_add_copyset(f->server, &spec));
    char address[128];
    cg_chunkserver_address(f->server, address, sizeof(address));
    f->fd = wire_connect(address);
}

static void stop(struct fixture *f) {
    close(f->fd);
    cg_chunkserver_stop(f->server);
}

static int set_up(void **state) {
    struct fixture *f = calloc(1, sizeof(*f));
    snprintf(f->folder, sizeof(f->folder), "/var/tmp/copygate-test-XXXXXX");
    if (mkdtemp(f->folder) == NULL) {
        return -1;
    }
    start(f);
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    struct fixture *f = *state;
    stop(f);
    free(f->reply.data);
    nftw(f->folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    free(f);
    return 0;
}

static curve_chunkserver_ChunkRequest request_of(curve_chunkserver_CHUNK_OP_TYPE type,
                                                 uint64_t chunk, uint32_t offset, uint32_t size) {
    curve_chunkserver_ChunkRequest request = curve_chunkserver_ChunkRequest_init_zero;
    request.opType = type;
    request.logicPoolId = 1;
    request.copysetId = 11;
    request.chunkId = chunk;
    request.has_offset = true;
    request.offset = offset;
    request.has_size = true;
    request.size = size;
    request.has_sn = type == TYPE(WRITE);
    request.sn = 1;
    return request;
}

static void pattern(uint8_t *data, uint32_t length, uint32_t seed) {
    for (uint32_t i = 0; i < length; i++) {
        seed = seed * 1664525 + 1013904223;
        data[i] = (uint8_t)(seed >> 24);
    }
}

static int write_at(struct fixture *f, uint64_t chunk, uint32_t offset, const void *data,
                    uint32_t length) {
    curve_chunkserver_ChunkRequest request = request_of(TYPE(WRITE), chunk, offset, length);
    return (int)wire_chunk(f->fd, "WriteChunk", &request, data, length, &f->reply);
}

static int read_at(struct fixture *f, uint64_t chunk, uint32_t offset, uint32_t length) {
    curve_chunkserver_ChunkRequest request = request_of(TYPE(READ), chunk, offset, length);
    return (int)wire_chunk(f->fd, "ReadChunk", &request, NULL, 0, &f->reply);
}

static int plain(struct fixture *f, const char *method, curve_chunkserver_CHUNK_OP_TYPE type,
                 uint64_t chunk, uint32_t offset, uint32_t length) {
    curve_chunkserver_ChunkRequest request = request_of(type, chunk, offset, length);
    return (int)wire_chunk(f->fd, method, &request, NULL, 0, &f->reply);
}

static void assert_reads(struct fixture *f, uint64_t chunk, uint32_t offset,
                         const uint8_t *expected, uint32_t length) {
    assert_int_equal(STATUS(SUCCESS), read_at(f, chunk, offset, length));
    assert_int_equal(length, f->reply.data_length);
    assert_memory_equal(expected, f->reply.data, length);
}

// ---- Statuses as the reference lists them

static void unknown_copyset_is_answered_6(void **state) {
    struct fixture *f = *state;
    curve_chunkserver_ChunkRequest request = request_of(TYPE(READ), 1, 0, 4096);
    request.copysetId = 99;
    assert_int_equal(STATUS(COPYSET_NOTEXIST),
                     wire_chunk(f->fd, "ReadChunk", &request, NULL, 0, &f->reply));
}

static void a_chunk_never_written_is_answered_7_with_the_applied_index(void **state) {
    struct fixture *f = *state;
    assert_int_equal(STATUS(CHUNK_NOTEXIST), read_at(f, 1, 0, 4096));
    assert_true(f->reply.chunk.has_appliedIndex);
}

static void a_range_past_the_chunk_is_answered_4(void **state) {
    struct fixture *f = *state;
    assert_int_equal(STATUS(INVALID_REQUEST), read_at(f, 1, CHUNK_SIZE - 4096, 8192));
    assert_int_equal(STATUS(INVALID_REQUEST), read_at(f, 1, UINT32_MAX, 4096));
}

static void a_write_without_sn_is_answered_8(void **state) {
    struct fixture *f = *state;
    uint8_t data[4096] = {1};
    curve_chunkserver_ChunkRequest request = request_of(TYPE(WRITE), 1, 0, 4096);
    request.sn = 0;
    assert_int_equal(STATUS(FAILURE_UNKNOWN),
                     wire_chunk(f->fd, "WriteChunk", &request, data, 4096, &f->reply));
    assert_int_equal(0, f->reply.error_code);
}

static void an_older_sn_is_answered_backward(void **state) {
    struct fixture *f = *state;
    uint8_t data[4096] = {1};
    curve_chunkserver_ChunkRequest request = request_of(TYPE(WRITE), 1, 0, 4096);
    request.sn = 3;
    assert_int_equal(STATUS(SUCCESS),
                     wire_chunk(f->fd, "WriteChunk", &request, data, 4096, &f->reply));
    request.sn = 2;
    assert_int_equal(STATUS(BACKWARD),
                     wire_chunk(f->fd, "WriteChunk", &request, data, 4096, &f->reply));
}

static void an_attachment_of_another_size_is_refused_at_the_edge(void **state) {
    struct fixture *f = *state;
    static uint8_t data[16384];
    curve_chunkserver_ChunkRequest request = request_of(TYPE(WRITE), 1, 0, 8192);
    for (uint32_t length = 0; length <= 16384; length += 4096) {
        bool fits = length == 8192;
        assert_int_equal(fits ? STATUS(SUCCESS) : STATUS(INVALID_REQUEST),
                         wire_chunk(f->fd, "WriteChunk", &request, data, length, &f->reply));
    }
    request.size = CHUNK_SIZE;
    assert_int_equal(STATUS(INVALID_REQUEST),
                     wire_chunk(f->fd, "WriteChunk", &request, data, 4096, &f->reply));
}

static void a_wrong_checksum_of_the_attachment_is_refused(void **state) {
    struct fixture *f = *state;
    uint8_t data[8192];
    pattern(data, sizeof(data), 5);
    curve_chunkserver_ChunkRequest request = request_of(TYPE(WRITE), 1, 100, 5000);
    request.has_attachmentCrc = true;
    request.attachmentCrc = cg_crc32c(0, data, 5000) ^ 1;
    assert_int_equal(STATUS(CRC_FAIL),
                     wire_chunk(f->fd, "WriteChunk", &request, data, 5000, &f->reply));
    request.attachmentCrc ^= 1;
    assert_int_equal(STATUS(SUCCESS),
                     wire_chunk(f->fd, "WriteChunk", &request, data, 5000, &f->reply));
    request = request_of(TYPE(WRITE), 1, 4096, 4096);
    request.has_attachmentCrc = true;
    request.attachmentCrc = cg_crc32c(0, data, 4096);
    assert_int_equal(STATUS(SUCCESS),
                     wire_chunk(f->fd, "WriteChunk", &request, data, 4096, &f->reply));
    assert_reads(f, 1, 4096, data, 4096);
}

static void size_0_of_an_existing_chunk_is_answered_0(void **state) {
    struct fixture *f = *state;
    uint8_t data[4096] = {1};
    assert_int_equal(STATUS(SUCCESS), write_at(f, 1, 0, data, sizeof(data)));
    assert_int_equal(STATUS(SUCCESS), read_at(f, 1, 0, 0));
    assert_int_equal(STATUS(SUCCESS), write_at(f, 1, 0, data, 0));
}

static void a_wrong_op_type_is_rpc_error_2002(void **state) {
    struct fixture *f = *state;
    plain(f, "ReadChunk", TYPE(WRITE), 1, 0, 4096);
    assert_int_equal(2002, f->reply.error_code);
}

static void unknown_methods_and_groups_are_rpc_errors(void **state) {
    struct fixture *f = *state;
    plain(f, "NoSuchMethod", TYPE(READ), 1, 0, 4096);
    assert_int_equal(1002, f->reply.error_code);
    curve_chunkserver_GetLeaderRequest2 leader = curve_chunkserver_GetLeaderRequest2_init_zero;
    leader.logicPoolId = 1;
    leader.copysetId = 77;
    wire_call(f->fd, "curve.chunkserver.CliService2", "GetLeader",
              curve_chunkserver_GetLeaderRequest2_fields, &leader, NULL, 0, &f->reply);
    assert_int_equal(2, f->reply.error_code);
}

static void snapshot_requests_are_refused(void **state) {
    struct fixture *f = *state;
    assert_int_equal(STATUS(INVALID_REQUEST),
                     plain(f, "ReadChunkSnapshot", TYPE(READ_SNAP), 1, 0, 4096));
    assert_int_equal(STATUS(INVALID_REQUEST),
                     plain(f, "CreateCloneChunk", TYPE(CREATE_CLONE), 1, 0, 4096));
}

static bool encode_source(pb_ostream_t *stream, const pb_field_t *field, void *const *arg) {
    static const char path[] = "/origin";
    (void)arg;
    return pb_encode_tag_for_field(stream, field) &&
           pb_encode_string(stream, (const pb_byte_t *)path, sizeof(path) - 1);
}

// A chunk whose missing data is elsewhere: taken for an ordinary one, it would read as zeros.
static void requests_that_name_a_clone_source_are_refused(void **state) {
    struct fixture *f = *state;
    uint8_t data[4096] = {1};
    curve_chunkserver_ChunkRequest request = request_of(TYPE(READ), 1, 0, 4096);
    request.cloneFileSource.funcs.encode = encode_source;
    request.has_cloneFileOffset = true;
    assert_int_equal(STATUS(INVALID_REQUEST),
                     wire_chunk(f->fd, "ReadChunk", &request, NULL, 0, &f->reply));
    request.opType = TYPE(WRITE);
    request.has_sn = true;
    request.sn = 1;
    assert_int_equal(STATUS(INVALID_REQUEST),
                     wire_chunk(f->fd, "WriteChunk", &request, data, sizeof(data), &f->reply));
    assert_int_equal(STATUS(CHUNK_NOTEXIST), read_at(f, 1, 0, 4096)); // nothing was written
    assert_int_equal(STATUS(SUCCESS), write_at(f, 1, 0, data, sizeof(data)));
    request.opType = TYPE(READ);
    assert_int_equal(STATUS(INVALID_REQUEST),
                     wire_chunk(f->fd, "ReadChunk", &request, NULL, 0, &f->reply));
}

static void deleting_is_answered_0_whether_there_is_a_chunk_or_not(void **state) {
    struct fixture *f = *state;
    uint8_t data[4096] = {1};
    assert_int_equal(STATUS(SUCCESS), plain(f, "DeleteChunk", TYPE(DELETE), 1, 0, 0));
    assert_int_equal(STATUS(SUCCESS), write_at(f, 1, 0, data, sizeof(data)));
    assert_int_equal(STATUS(SUCCESS), plain(f, "DeleteChunk", TYPE(DELETE), 1, 0, 0));
    assert_int_equal(STATUS(CHUNK_NOTEXIST), read_at(f, 1, 0, 4096));
    char path[160];
    snprintf(path, sizeof(path), "%s/chunks/1-11/chunk_1", f->folder);
    assert_int_equal(-1, access(path, F_OK));
}

// ---- The captured conversation

static size_t from_hex(const char *hex, uint8_t *out) {
    size_t length = strlen(hex) / 2;
    for (size_t i = 0; i < length; i++) {
        unsigned value;
        sscanf(hex + 2 * i, "%2x", &value);
        out[i] = (uint8_t)value;
    }
    return length;
}

static void libcurves_captured_messages_are_answered_in_its_form(void **state) {
    struct fixture *f = *state;
    uint8_t frame[8192];
    uint8_t reply[8192];
    size_t head = from_hex(
        "505250430000104d0000003a0a2c0a1e63757276652e6368756e6b7365727665722e4368756e6b536572"
        "76696365120a57726974654368756e6b18002082808080902128802008021001180b200130804038802048"
        "01900103",
        frame);
    for (size_t i = 0; i < 4096; i++) {
        frame[head + i] = (uint8_t) "CURVEBS!"[i % 8];
    }
    wire_send(f->fd, frame, head + 4096);
    uint8_t expected[64];
    // Only the applied index is our own: it is 2 here, behind the leader's first entry, and 1540
    // (840c) there.
    size_t length =
        from_hex("50525043000000110000000d1202080018002082808080902108001802", expected);
    assert_int_equal(length, wire_receive(f->fd, reply, length));
    assert_memory_equal(expected, reply, length);

    head = from_hex("5052504300000044000000360a2b0a1e63757276652e6368756e6b7365727665722e4368756e"
                    "6b536572766963651209526561644368756e6b18002080808080804008011001180b2001308040"
                    "388020",
                    frame);
    wire_send(f->fd, frame, head);
    length = from_hex("5052504300001014000000101202080018002080808080804028802008001802", expected);
    assert_int_equal(length + 4096, wire_receive(f->fd, reply, length + 4096));
    assert_memory_equal(expected, reply, length);
    for (size_t i = 0; i < 4096; i++) {
        assert_int_equal("CURVEBS!"[i % 8], reply[length + i]);
    }

    head = from_hex("5052504300000039000000350a2a0a1d63757276652e6368756e6b7365727665722e436c6953"
                    "6572766963653212094765744c65616465721800208280808090200801100b",
                    frame);
    wire_send(f->fd, frame, head);
    size_t got = wire_receive(f->fd, reply, 12 + 13);
    assert_int_equal(25, got);
    got = wire_receive(f->fd, reply, reply[7] - 13U);
    assert_int_equal(0x0a, reply[0]); // field 1, the leader
    assert_int_equal(0x1a, reply[2]); // its field 3, the address
    assert_memory_equal("127.0.0.1:", reply + 4, 10);
    assert_memory_equal(":0", reply + got - 2, 2);
}

// ---- Data

static void unaligned_writes_are_merged(void **state) {
    struct fixture *f = *state;
    static uint8_t model[65536];
    static uint8_t data[40000];
    uint32_t seed = 7;
    for (int i = 0; i < 200; i++) {
        seed = seed * 1664525 + 1013904223;
        uint32_t offset = (seed >> 8) % 25000;
        seed = seed * 1664525 + 1013904223;
        uint32_t length = 1 + (seed >> 8) % (i % 4 == 0 ? 40000 : 600);
        pattern(data, length, seed);
        memcpy(model + offset, data, length);
        assert_int_equal(STATUS(SUCCESS), write_at(f, 3, offset, data, length));
        if (i % 20 == 0) {
            assert_reads(f, 3, 0, model, sizeof(model));
            stop(f);
            start(f);
        }
    }
    assert_reads(f, 3, 0, model, sizeof(model));
    assert_reads(f, 3, 513, model + 513, 12345);
}

static void a_mebibyte_that_begins_inside_a_block_is_one_request(void **state) {
    struct fixture *f = *state;
    uint8_t *data = malloc(2U << 20);
    pattern(data, 2U << 20, 3);
    assert_int_equal(STATUS(SUCCESS), write_at(f, 1, 12345, data, 1U << 20));
    assert_reads(f, 1, 12345, data, 1U << 20);
    assert_int_equal(STATUS(INVALID_REQUEST), write_at(f, 1, 0, data, (1U << 20) + 8192));
    free(data);
}

static uint64_t blocks_used(struct fixture *f, uint64_t chunk) {
    char path[160];
    snprintf(path, sizeof(path), "%s/chunks/1-11/chunk_%lu", f->folder, (unsigned long)chunk);
    struct stat info;
    assert_int_equal(0, stat(path, &info));
    return (uint64_t)info.st_blocks * 512;
}

static void trim_returns_space_and_block_status_tells(void **state) {
    struct fixture *f = *state;
    uint8_t *data = malloc(1U << 20);
    pattern(data, 1U << 20, 3);
    assert_int_equal(STATUS(SUCCESS), write_at(f, 1, 0, data, 1U << 20));
    stop(f); // the checkpoint writes the blocks, so that they count
    start(f);
    uint64_t before = blocks_used(f, 1);
    assert_int_equal(STATUS(SUCCESS),
                     plain(f, "TrimChunk", TYPE(TRIM), 1, 4000, (512U << 10) + 200));
    memset(data + 4096, 0, 512U << 10);
    // An operation on the same blocks waits for the trim.
    assert_reads(f, 1, 0, data, 1U << 20);
    assert_true(before - blocks_used(f, 1) >= 512U << 10);
    assert_int_equal(STATUS(SUCCESS),
                     plain(f, "GetBlockStatus", TYPE(BLOCK_STATUS), 1, 0, 2U << 20));
    uint32_t runs[] = {1U << 1 | 1U, 128U << 1, 127U << 1 | 1U, 256U << 1};
    assert_int_equal(4, f->reply.run_count);
    assert_memory_equal(runs, f->reply.runs, sizeof(runs));
    free(data);
}

static void write_zeroes_makes_holes_or_keeps_blocks(void **state) {
    struct fixture *f = *state;
    static uint8_t data[65536];
    pattern(data, sizeof(data), 9);
    assert_int_equal(STATUS(SUCCESS), write_at(f, 1, 0, data, sizeof(data)));
    assert_int_equal(STATUS(SUCCESS),
                     plain(f, "WriteZeroesChunk", TYPE(WRITE_ZEROES), 1, 1000, 20000));
    memset(data + 1000, 0, 20000);
    assert_reads(f, 1, 0, data, sizeof(data));
    curve_chunkserver_ChunkRequest request = request_of(TYPE(WRITE_ZEROES), 1, 30000, 1U << 20);
    request.has_noHole = true;
    request.noHole = true;
    assert_int_equal(STATUS(SUCCESS),
                     wire_chunk(f->fd, "WriteZeroesChunk", &request, NULL, 0, &f->reply));
    memset(data + 30000, 0, sizeof(data) - 30000);
    assert_reads(f, 1, 0, data, sizeof(data));
    assert_int_equal(STATUS(SUCCESS),
                     plain(f, "GetBlockStatus", TYPE(BLOCK_STATUS), 1, 0, 1U << 20));
    uint32_t runs[] = {1U << 1 | 1U, 4U << 1, 251U << 1 | 1U};
    assert_int_equal(3, f->reply.run_count);
    assert_memory_equal(runs, f->reply.runs, sizeof(runs));
}

static void compare_and_write_writes_only_if_equal(void **state) {
    struct fixture *f = *state;
    static uint8_t data[2 * 5000];
    static uint8_t stored[65536];
    pattern(stored, sizeof(stored), 1);
    assert_int_equal(STATUS(SUCCESS), write_at(f, 1, 0, stored, sizeof(stored)));
    pattern(data + 5000, 5000, 2);
    memcpy(data, stored + 777, 5000);
    data[4321] ^= 1;
    curve_chunkserver_ChunkRequest request = request_of(TYPE(COMPARE_AND_WRITE), 1, 777, 5000);
    request.has_sn = true;
    assert_int_equal(STATUS(MISCOMPARE), wire_chunk(f->fd, "CompareAndWriteChunk", &request, data,
                                                    sizeof(data), &f->reply));
    assert_int_equal(4321, f->reply.chunk.mismatchOffset);
    assert_reads(f, 1, 0, stored, sizeof(stored));
    data[4321] ^= 1;
    assert_int_equal(STATUS(SUCCESS), wire_chunk(f->fd, "CompareAndWriteChunk", &request, data,
                                                 sizeof(data), &f->reply));
    memcpy(stored + 777, data + 5000, 5000);
    assert_reads(f, 1, 0, stored, sizeof(stored));
}

static void a_retry_takes_effect_once_also_after_a_restart(void **state) {
    struct fixture *f = *state;
    uint8_t a[4096];
    uint8_t b[4096];
    pattern(a, sizeof(a), 1);
    pattern(b, sizeof(b), 2);
    curve_chunkserver_ChunkRequest request = request_of(TYPE(WRITE), 1, 0, 4096);
    request.has_clientId = true;
    request.clientId = 5;
    request.has_sequence = true;
    request.sequence = 10;
    curve_chunkserver_ChunkRequest second = request;
    second.sequence = 11;
    assert_int_equal(STATUS(SUCCESS),
                     wire_chunk(f->fd, "WriteChunk", &request, a, 4096, &f->reply));
    assert_int_equal(STATUS(SUCCESS), wire_chunk(f->fd, "WriteChunk", &second, b, 4096, &f->reply));
    for (int i = 0; i < 2; i++) {
        assert_int_equal(STATUS(SUCCESS),
                         wire_chunk(f->fd, "WriteChunk", &request, a, 4096, &f->reply));
        assert_reads(f, 1, 0, b, 4096);
        stop(f);
        start(f);
    }
    second.sequence = 12;
    second.has_settledBelow = true;
    second.settledBelow = 12;
    assert_int_equal(STATUS(SUCCESS), wire_chunk(f->fd, "WriteChunk", &second, b, 4096, &f->reply));
    assert_int_equal(STATUS(SETTLED),
                     wire_chunk(f->fd, "WriteChunk", &request, a, 4096, &f->reply));
    assert_reads(f, 1, 0, b, 4096);
}

static int update_epoch(struct fixture *f, uint64_t file, uint64_t epoch) {
    curve_chunkserver_UpdateEpochRequest request = {.fileId = file, .epoch = epoch};
    curve_chunkserver_UpdateEpochResponse response = {0};
    wire_call(f->fd, "curve.chunkserver.ChunkService", "UpdateEpoch",
              curve_chunkserver_UpdateEpochRequest_fields, &request, NULL, 0, &f->reply);
    pb_istream_t stream = pb_istream_from_buffer(f->reply.message, f->reply.message_length);
    assert_true(pb_decode(&stream, curve_chunkserver_UpdateEpochResponse_fields, &response));
    return (int)response.status;
}

// It would count as one of a copyset's members that has the epoch.
static void a_chunkserver_without_copysets_knows_of_no_epoch(void **state) {
    struct fixture *f = *state;
    uint8_t data[4096] = {1};
    curve_chunkserver_ChunkRequest write = request_of(TYPE(WRITE), 1, 0, 4096);
    assert_int_equal(STATUS(SUCCESS),
                     wire_chunk(f->fd, "WriteChunk", &write, data, 4096, &f->reply)); // it leads
    assert_int_equal(STATUS(SUCCESS), update_epoch(f, 3, 5));
    struct cg_chunkserver_copyset copyset;
    assert_int_equal(1, cg_chunkserver_copysets(f->server, &copyset, 1));
    assert_int_equal(
        0, cg_chunkserver_remove_copyset(f->server, copyset.pool, copyset.copyset, copyset.member));
    assert_int_equal(STATUS(FAILURE_UNKNOWN), update_epoch(f, 3, 5));
    // The host has nothing to wait for.
    assert_int_equal(0, cg_chunkserver_raise_epoch(f->server, 3, 5));
}

static void an_older_epoch_is_fenced_also_after_a_restart(void **state) {
    struct fixture *f = *state;
    uint8_t data[4096] = {1};
    curve_chunkserver_ChunkRequest write = request_of(TYPE(WRITE), 1, 0, 4096);
    write.has_fileId = write.has_epoch = true;
    write.fileId = 3;
    write.epoch = 4;
    // A file that nobody has announced passes, as on CurveBS.
    assert_int_equal(STATUS(SUCCESS),
                     wire_chunk(f->fd, "WriteChunk", &write, data, 4096, &f->reply));
    assert_int_equal(STATUS(SUCCESS), update_epoch(f, 3, 5));
    assert_int_equal(STATUS(EPOCH_TOO_OLD), update_epoch(f, 3, 4));
    for (int i = 0; i < 2; i++) {
        assert_int_equal(STATUS(EPOCH_TOO_OLD),
                         wire_chunk(f->fd, "WriteChunk", &write, data, 4096, &f->reply));
        curve_chunkserver_ChunkRequest read = request_of(TYPE(READ), 1, 0, 4096);
        read.has_fileId = read.has_epoch = true;
        read.fileId = 3;
        read.epoch = 4;
        assert_int_equal(STATUS(SUCCESS),
                         wire_chunk(f->fd, "ReadChunk", &read, NULL, 0, &f->reply));
        read.has_strictEpoch = read.strictEpoch = true;
        assert_int_equal(STATUS(EPOCH_TOO_OLD),
                         wire_chunk(f->fd, "ReadChunk", &read, NULL, 0, &f->reply));
        read.epoch = 5;
        assert_int_equal(STATUS(SUCCESS),
                         wire_chunk(f->fd, "ReadChunk", &read, NULL, 0, &f->reply));
        stop(f);
        start(f);
    }
}

static void chunk_info_and_hash_answer(void **state) {
    struct fixture *f = *state;
    uint8_t data[8192];
    pattern(data, sizeof(data), 4);
    curve_chunkserver_GetChunkInfoRequest info = {1, 11, 1};
    curve_chunkserver_GetChunkInfoResponse info_reply =
        curve_chunkserver_GetChunkInfoResponse_init_zero;
    assert_int_equal(STATUS(SUCCESS), write_at(f, 1, 0, data, sizeof(data)));
    wire_call(f->fd, "curve.chunkserver.ChunkService", "GetChunkInfo",
              curve_chunkserver_GetChunkInfoRequest_fields, &info, NULL, 0, &f->reply);
    pb_istream_t stream = pb_istream_from_buffer(f->reply.message, f->reply.message_length);
    assert_true(pb_decode(&stream, curve_chunkserver_GetChunkInfoResponse_fields, &info_reply));
    assert_int_equal(1, info_reply.chunkSn_count);
    assert_int_equal(1, info_reply.chunkSn[0]);

    curve_chunkserver_GetChunkHashRequest hash = {1, 11, 1, 4096, 4096};
    curve_chunkserver_GetChunkHashResponse hash_reply =
        curve_chunkserver_GetChunkHashResponse_init_zero;
    wire_call(f->fd, "curve.chunkserver.ChunkService", "GetChunkHash",
              curve_chunkserver_GetChunkHashRequest_fields, &hash, NULL, 0, &f->reply);
    stream = pb_istream_from_buffer(f->reply.message, f->reply.message_length);
    assert_true(pb_decode(&stream, curve_chunkserver_GetChunkHashResponse_fields, &hash_reply));
    char expected[32];
    snprintf(expected, sizeof(expected), "%u", cg_crc32c(0, data + 4096, 4096));
    assert_string_equal(expected, hash_reply.hash);
}

// ---- Damage and garbage

static void rotten_data_is_never_returned(void **state) {
    struct fixture *f = *state;
    uint8_t data[8192];
    pattern(data, sizeof(data), 4);
    assert_int_equal(STATUS(SUCCESS), write_at(f, 1, 0, data, sizeof(data)));
    stop(f);
    char path[160];
    snprintf(path, sizeof(path), "%s/chunks/1-11/chunk_1", f->folder);
    int fd = open(path, O_RDWR);
    uint8_t byte = (uint8_t)(data[4100] ^ 4);
    assert_int_equal(1, pwrite(fd, &byte, 1, 65536 + 4100));
    close(fd);
    start(f);
    assert_reads(f, 1, 0, data, 4096);
    assert_int_equal(STATUS(CRC_FAIL), read_at(f, 1, 4000, 200));
    assert_int_equal(0, f->reply.data_length);
    // A whole new block mends it; merging into it does not.
    assert_int_equal(STATUS(CRC_FAIL), write_at(f, 1, 5000, data, 10));
    assert_int_equal(STATUS(SUCCESS), write_at(f, 1, 4096, data + 4096, 4096));
    assert_reads(f, 1, 0, data, sizeof(data));
}

static void damaged_metadata_is_refused_not_guessed(void **state) {
    struct fixture *f = *state;
    uint8_t data[4096] = {1};
    assert_int_equal(STATUS(SUCCESS), write_at(f, 1, 0, data, sizeof(data)));
    stop(f);
    char path[160];
    snprintf(path, sizeof(path), "%s/chunks/1-11/chunk_1", f->folder);
    int fd = open(path, O_RDWR);
    uint8_t byte = 0xa5;
    assert_int_equal(1, pwrite(fd, &byte, 1, 600));
    close(fd);
    start(f);
    assert_int_equal(STATUS(CRC_FAIL), read_at(f, 1, 0, 4096));
    assert_int_equal(STATUS(CRC_FAIL), write_at(f, 1, 0, data, sizeof(data)));
    assert_int_equal(STATUS(SUCCESS), write_at(f, 2, 0, data, sizeof(data)));
}

static void garbage_harms_nobody(void **state) {
    struct fixture *f = *state;
    char address[128];
    cg_chunkserver_address(f->server, address, sizeof(address));
    uint8_t data[4096];
    for (uint32_t seed = 1; seed <= 40; seed++) {
        int fd = wire_connect(address);
        pattern(data, sizeof(data), seed);
        if (seed % 2 == 0) {
            memcpy(data, "PRPC\0\0\0\x80\0\0\0\x20", 12);
        }
        send(fd, data, 12 + seed * 7, MSG_NOSIGNAL);
        close(fd);
    }
    assert_int_equal(STATUS(SUCCESS), write_at(f, 1, 0, data, sizeof(data)));
    assert_reads(f, 1, 0, data, sizeof(data));
}

static void a_second_server_on_the_folder_and_foreign_folders_are_refused(void **state) {
    struct fixture *f = *state;
    struct cg_chunkserver *other;
    char error[512];
    struct cg_chunkserver_options options = {.folder = f->folder, .listen = "127.0.0.1:0"};
    assert_int_equal(-EBUSY, cg_chunkserver_start(&options, &other, error, sizeof(error)));
    options.folder = "/nonexistent";
    assert_int_equal(-ENOENT, cg_chunkserver_start(&options, &other, error, sizeof(error)));
    char foreign[] = "/var/tmp/copygate-test-XXXXXX";
    assert_non_null(mkdtemp(foreign));
    char path[64];
    snprintf(path, sizeof(path), "%s/photos", foreign);
    assert_int_equal(0, mkdir(path, 0700));
    options.folder = foreign;
    assert_int_equal(-ENOTEMPTY, cg_chunkserver_start(&options, &other, error, sizeof(error)));
    assert_non_null(strstr(error, "neither empty nor a chunkserver's"));
    nftw(foreign, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void the_host_reclaims_chunks_and_reads_counters(void **state) {
    struct fixture *f = *state;
    uint8_t data[4096] = {1};
    assert_int_equal(STATUS(SUCCESS), write_at(f, 1, 0, data, sizeof(data)));
    struct cg_chunkserver_copyset copyset;
    assert_int_equal(1, cg_chunkserver_copysets(f->server, &copyset, 1));
    assert_int_equal(11, copyset.copyset);
    assert_int_equal(2, copyset.log.applied_index); // the leader's first, and ours
    assert_int_equal(0, cg_chunkserver_reclaim(f->server, 1, 11, 1));
    assert_int_equal(STATUS(CHUNK_NOTEXIST), read_at(f, 1, 0, 4096));
    struct cg_chunkserver_stats stats;
    cg_chunkserver_stats(f->server, &stats);
    assert_int_equal(1, stats.writes);
    assert_int_equal(4096, stats.written_bytes);
    assert_int_equal(1, stats.reads);
    assert_int_equal(1, stats.copysets);
    assert_int_equal(0, stats.disk_error);
    assert_true(stats.capacity_bytes > stats.free_bytes);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(int argc, char **argv) {
    if (argc > 1) {
        backend = strcmp(argv[1], "epoll") == 0 ? CG_REACTOR_EPOLL : CG_REACTOR_URING;
    }
    const struct CMUnitTest tests[] = {
        CASE(unknown_copyset_is_answered_6),
        CASE(a_chunk_never_written_is_answered_7_with_the_applied_index),
        CASE(a_range_past_the_chunk_is_answered_4),
        CASE(a_write_without_sn_is_answered_8),
        CASE(an_older_sn_is_answered_backward),
        CASE(an_attachment_of_another_size_is_refused_at_the_edge),
        CASE(a_wrong_checksum_of_the_attachment_is_refused),
        CASE(size_0_of_an_existing_chunk_is_answered_0),
        CASE(a_wrong_op_type_is_rpc_error_2002),
        CASE(unknown_methods_and_groups_are_rpc_errors),
        CASE(snapshot_requests_are_refused),
        CASE(requests_that_name_a_clone_source_are_refused),
        CASE(deleting_is_answered_0_whether_there_is_a_chunk_or_not),
        CASE(libcurves_captured_messages_are_answered_in_its_form),
        CASE(unaligned_writes_are_merged),
        CASE(a_mebibyte_that_begins_inside_a_block_is_one_request),
        CASE(trim_returns_space_and_block_status_tells),
        CASE(write_zeroes_makes_holes_or_keeps_blocks),
        CASE(compare_and_write_writes_only_if_equal),
        CASE(a_retry_takes_effect_once_also_after_a_restart),
        CASE(a_chunkserver_without_copysets_knows_of_no_epoch),
        CASE(an_older_epoch_is_fenced_also_after_a_restart),
        CASE(chunk_info_and_hash_answer),
        CASE(rotten_data_is_never_returned),
        CASE(damaged_metadata_is_refused_not_guessed),
        CASE(garbage_harms_nobody),
        CASE(a_second_server_on_the_folder_and_foreign_folders_are_refused),
        CASE(the_host_reclaims_chunks_and_reads_counters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
