// SPDX-License-Identifier: BSD-3-Clause
//
// Several whole chunkservers in one process, over real sockets and folders, with a copyset that
// they share.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <ftw.h>
#include <inttypes.h>
#include <pb_decode.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/crc32c.h"
#include "base/log.h"
#include "chunkserver/chunkserver.h"
#include "chunkserver/raft_wire.h"
#include "gateway/proto/cli2.pb.h"
#include "wireclient.h"

#define STATUS(name) curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_##name
#define TYPE(name)   curve_chunkserver_CHUNK_OP_TYPE_CHUNK_OP_##name
#define SERVERS      4U // three members and one that may join
#define POOL         1U
#define COPYSET      11U
#define GROUP        ((uint64_t)POOL << 32 | COPYSET)
#define LIMIT_NS     (20 * CG_NS_PER_S)

struct node {
    uint32_t id;
    char folder[96];
    char address[128];
    struct cg_chunkserver *server; // NULL: stopped
    int fd;                        // a client's connection; -1: none
};

struct fixture {
    char folder[64];
    struct node node[SERVERS];
    struct wire_reply reply;
    uint64_t sequence;
};

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *ftw) {
    (void)info;
    (void)type;
    (void)ftw;
    return remove(path);
}

// ---- Servers

static void introduce_all(struct fixture *f) {
    for (unsigned i = 0; i < SERVERS; i++) {
        for (unsigned j = 0; j < SERVERS; j++) {
            if (f->node[i].server != NULL && f->node[j].server != NULL) {
                assert_int_equal(0, cg_chunkserver_set_peer(f->node[i].server, f->node[j].id,
                                                            f->node[j].address));
            }
        }
    }
}

static void start_node(struct fixture *f, unsigned i) {
    struct node *node = &f->node[i];
    char error[512] = "";
    // The same port after a restart.
    struct cg_chunkserver_options options = {
        .folder = node->folder,
        .listen = node->address[0] != '\0' ? node->address : "127.0.0.1:0",
        .wal_bytes = 64U << 20,
    };
    int result = cg_chunkserver_start(&options, &node->server, error, sizeof(error));
    if (result != 0) {
        fail_msg("start: %d %s", result, error);
    }
    cg_chunkserver_address(node->server, node->address, sizeof(node->address));
    node->fd = wire_connect(node->address);
}

static void stop_node(struct fixture *f, unsigned i) {
    close(f->node[i].fd);
    f->node[i].fd = -1;
    cg_chunkserver_stop(f->node[i].server);
    f->node[i].server = NULL;
}

static int add_replica(struct fixture *f, unsigned i, const uint64_t *founders, uint32_t count) {
    struct cg_copyset_spec spec = {.pool = POOL,
                                   .copyset = COPYSET,
                                   .self = f->node[i].id,
                                   .founders = founders,
                                   .founder_count = count};
    return cg_chunkserver_add_copyset(f->node[i].server, &spec);
}

static int set_up(void **state) {
    struct fixture *f = calloc(1, sizeof(*f));
    snprintf(f->folder, sizeof(f->folder), "/var/tmp/copygate-test-XXXXXX");
    if (mkdtemp(f->folder) == NULL) {
        return -1;
    }
    for (unsigned i = 0; i < SERVERS; i++) {
        f->node[i].id = i + 1;
        snprintf(f->node[i].folder, sizeof(f->node[i].folder), "%s/%u", f->folder, i + 1);
        assert_int_equal(0, mkdir(f->node[i].folder, 0700));
        start_node(f, i);
    }
    introduce_all(f);
    const uint64_t founders[] = {1, 2, 3};
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(0, add_replica(f, i, founders, 3));
    }
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    struct fixture *f = *state;
    for (unsigned i = 0; i < SERVERS; i++) {
        if (f->node[i].server != NULL) {
            stop_node(f, i);
        }
    }
    free(f->reply.data);
    nftw(f->folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    free(f);
    return 0;
}

// ---- Looking at them

// The status of the copyset at a server; false: it is stopped, or has no replica.
static bool look(struct fixture *f, unsigned i, struct cg_copyset_log_status *out) {
    struct cg_chunkserver_copyset found;
    memset(out, 0, sizeof(*out));
    if (f->node[i].server == NULL || cg_chunkserver_copysets(f->node[i].server, &found, 1) == 0) {
        return false;
    }
    *out = found.log;
    return true;
}

// Waits for a change of leaders or members anywhere, or a moment for what is told by none.
static void await_change(struct fixture *f) {
    struct pollfd polled[SERVERS];
    unsigned count = 0;
    for (unsigned i = 0; i < SERVERS; i++) {
        if (f->node[i].server != NULL) {
            int fd = cg_chunkserver_event_fd(f->node[i].server);
            polled[count++] = (struct pollfd){.fd = fd, .events = POLLIN};
        }
    }
    poll(polled, count, 5);
    for (unsigned i = 0; i < count; i++) {
        uint64_t value;
        ssize_t n = polled[i].revents != 0 ? read(polled[i].fd, &value, sizeof(value)) : 0;
        (void)n;
    }
}

// The position of the server that leads and serves.
static unsigned leader(struct fixture *f) {
    for (uint64_t end = cg_now_ns() + LIMIT_NS; cg_now_ns() < end; await_change(f)) {
        for (unsigned i = 0; i < SERVERS; i++) {
            struct cg_copyset_log_status status;
            if (look(f, i, &status) && status.ready) {
                return i;
            }
        }
    }
    fail_msg("nobody leads");
    return 0;
}

// All running replicas have applied as much as the leader has in its log.
static void await_equal(struct fixture *f) {
    for (uint64_t end = cg_now_ns() + LIMIT_NS; cg_now_ns() < end; await_change(f)) {
        struct cg_copyset_log_status lead;
        bool equal = look(f, leader(f), &lead);
        for (unsigned i = 0; i < SERVERS; i++) {
            struct cg_copyset_log_status status;
            if (look(f, i, &status)) {
                equal = equal && status.applied_index == lead.last_index;
            }
        }
        if (equal) {
            return;
        }
    }
    fail_msg("the replicas do not become equal");
}

// ---- Requests

static curve_chunkserver_ChunkRequest request_of(curve_chunkserver_CHUNK_OP_TYPE type,
                                                 uint64_t chunk, uint32_t offset, uint32_t size) {
    curve_chunkserver_ChunkRequest request = curve_chunkserver_ChunkRequest_init_zero;
    request.opType = type;
    request.logicPoolId = POOL;
    request.copysetId = COPYSET;
    request.chunkId = chunk;
    request.has_offset = request.has_size = true;
    request.offset = offset;
    request.size = size;
    return request;
}

static void fill(uint8_t *data, uint32_t length, uint32_t seed) {
    for (uint32_t i = 0; i < length; i++) {
        seed = seed * 1664525 + 1013904223;
        data[i] = (uint8_t)(seed >> 24);
    }
}

// Writes as a client does: with a number, again where it is sent to, or a moment later.
static void write_block(struct fixture *f, uint64_t chunk, uint32_t block, uint32_t seed) {
    uint8_t data[4096];
    fill(data, sizeof(data), seed);
    curve_chunkserver_ChunkRequest request =
        request_of(TYPE(WRITE), chunk, block * 4096, sizeof(data));
    request.has_sn = request.has_fileId = request.has_clientId = request.has_sequence = true;
    request.sn = 1;
    request.fileId = 5;
    request.clientId = 9;
    request.sequence = ++f->sequence;
    for (uint64_t end = cg_now_ns() + LIMIT_NS; cg_now_ns() < end; await_change(f)) {
        curve_chunkserver_CHUNK_OP_STATUS status = wire_chunk(
            f->node[leader(f)].fd, "WriteChunk", &request, data, sizeof(data), &f->reply);
        if (status == STATUS(SUCCESS)) {
            return;
        }
        assert_true(status == STATUS(REDIRECTED) || status == STATUS(OVERLOAD));
    }
    fail_msg("the write is never done");
}

static void assert_block(struct fixture *f, uint64_t chunk, uint32_t block, uint32_t seed) {
    uint8_t expected[4096];
    fill(expected, sizeof(expected), seed);
    curve_chunkserver_ChunkRequest request = request_of(TYPE(READ), chunk, block * 4096, 4096);
    for (uint64_t end = cg_now_ns() + LIMIT_NS; cg_now_ns() < end; await_change(f)) {
        curve_chunkserver_CHUNK_OP_STATUS status =
            wire_chunk(f->node[leader(f)].fd, "ReadChunk", &request, NULL, 0, &f->reply);
        if (status == STATUS(SUCCESS)) {
            assert_int_equal(4096, f->reply.data_length);
            assert_memory_equal(expected, f->reply.data, 4096);
            return;
        }
        assert_true(status == STATUS(REDIRECTED) || status == STATUS(OVERLOAD));
    }
    fail_msg("the read is never answered");
}

// ---- Replication

static void what_is_written_is_on_all_three(void **state) {
    struct fixture *f = *state;
    for (uint32_t i = 0; i < 100; i++) {
        write_block(f, 1 + i % 3, i, i);
    }
    await_equal(f);
    // Each of them in turn is the one that answers.
    for (unsigned target = 0; target < 3; target++) {
        unsigned from = leader(f);
        if (from != target) {
            assert_int_equal(0, cg_chunkserver_transfer(f->node[from].server, POOL, COPYSET,
                                                        f->node[target].id));
        }
        while (leader(f) != target) {
            await_change(f);
        }
        for (uint32_t i = 0; i < 100; i++) {
            assert_block(f, 1 + i % 3, i, i);
        }
    }
}

static void one_of_three_may_be_away_and_comes_back(void **state) {
    struct fixture *f = *state;
    write_block(f, 1, 0, 1);
    for (unsigned round = 0; round < 3; round++) {
        unsigned victim = leader(f);
        stop_node(f, victim);
        assert_true(leader(f) != victim);
        for (uint32_t i = 0; i < 20; i++) {
            write_block(f, 1, i, 100 * round + i);
        }
        start_node(f, victim);
        introduce_all(f);
        write_block(f, 2, round, round);
        await_equal(f);
    }
    for (uint32_t i = 0; i < 20; i++) {
        assert_block(f, 1, i, 200 + i);
    }
}

static void all_of_them_restart(void **state) {
    struct fixture *f = *state;
    for (uint32_t i = 0; i < 20; i++) {
        write_block(f, 1, i, i);
    }
    for (unsigned i = 0; i < SERVERS; i++) {
        stop_node(f, i);
    }
    for (unsigned i = 0; i < SERVERS; i++) {
        start_node(f, i);
    }
    introduce_all(f);
    for (uint32_t i = 0; i < 20; i++) {
        assert_block(f, 1, i, i);
    }
    write_block(f, 1, 0, 77);
    await_equal(f);
}

// Whom a server names as the leader, "" if it knows none.
static const char *named_leader(struct fixture *f, unsigned i) {
    static curve_chunkserver_GetLeaderResponse2 response;
    curve_chunkserver_GetLeaderRequest2 request = curve_chunkserver_GetLeaderRequest2_init_zero;
    request.logicPoolId = POOL;
    request.copysetId = COPYSET;
    wire_call(f->node[i].fd, "curve.chunkserver.CliService2", "GetLeader",
              curve_chunkserver_GetLeaderRequest2_fields, &request, NULL, 0, &f->reply);
    if (f->reply.error_code != 0) {
        assert_int_equal(11, f->reply.error_code); // EAGAIN, as CurveBS
        return "";
    }
    pb_istream_t stream = pb_istream_from_buffer(f->reply.message, f->reply.message_length);
    memset(&response, 0, sizeof(response));
    assert_true(pb_decode(&stream, curve_chunkserver_GetLeaderResponse2_fields, &response));
    return response.leader.address;
}

static void who_does_not_lead_says_who_does(void **state) {
    struct fixture *f = *state;
    uint8_t data[4096] = {0};
    write_block(f, 1, 0, 1);
    await_equal(f); // so that the others know the leader
    unsigned lead = leader(f);
    char address[160];
    snprintf(address, sizeof(address), "%s:0", f->node[lead].address);
    curve_chunkserver_ChunkRequest write = request_of(TYPE(WRITE), 1, 0, sizeof(data));
    write.has_sn = true;
    write.sn = 1;
    curve_chunkserver_ChunkRequest read = request_of(TYPE(READ), 1, 0, 4096);
    curve_chunkserver_ChunkRequest look = request_of(TYPE(BLOCK_STATUS), 1, 0, 4096);
    for (unsigned i = 0; i < 3; i++) {
        struct wire_reply *reply = &f->reply;
        int fd = f->node[i].fd;
        assert_string_equal(address, named_leader(f, i));
        curve_chunkserver_CHUNK_OP_STATUS expected =
            i == lead ? STATUS(SUCCESS) : STATUS(REDIRECTED);
        const char *hint = i == lead ? "" : address;
        assert_int_equal(expected, wire_chunk(fd, "WriteChunk", &write, data, sizeof(data), reply));
        assert_string_equal(hint, reply->chunk.redirect);
        assert_int_equal(expected, wire_chunk(fd, "ReadChunk", &read, NULL, 0, reply));
        assert_string_equal(hint, reply->chunk.redirect);
        assert_int_equal(i == lead ? 4096 : 0, reply->data_length);
        assert_int_equal(expected, wire_chunk(fd, "GetBlockStatus", &look, NULL, 0, reply));
        assert_string_equal(hint, reply->chunk.redirect);
        curve_chunkserver_GetChunkInfoRequest info = {POOL, COPYSET, 1};
        wire_call(fd, "curve.chunkserver.ChunkService", "GetChunkInfo",
                  curve_chunkserver_GetChunkInfoRequest_fields, &info, NULL, 0, reply);
        curve_chunkserver_GetChunkInfoResponse told =
            curve_chunkserver_GetChunkInfoResponse_init_zero;
        pb_istream_t stream = pb_istream_from_buffer(reply->message, reply->message_length);
        assert_true(pb_decode(&stream, curve_chunkserver_GetChunkInfoResponse_fields, &told));
        assert_int_equal(expected, told.status);
        assert_string_equal(hint, told.redirect);
    }
}

// It is held until the new leader is known, which is sooner than a client could find it out.
static void a_request_during_a_hand_over_is_redirected_to_the_new_leader(void **state) {
    struct fixture *f = *state;
    uint8_t data[4096] = {0};
    curve_chunkserver_ChunkRequest write = request_of(TYPE(WRITE), 1, 0, sizeof(data));
    write.has_sn = true;
    write.sn = 1;
    for (unsigned round = 0; round < 6; round++) {
        write_block(f, 1, 0, round);
        await_equal(f);
        unsigned from = leader(f);
        unsigned to = (from + 1 + round % 2) % 3;
        char address[160];
        snprintf(address, sizeof(address), "%s:0", f->node[to].address);
        assert_int_equal(
            0, cg_chunkserver_transfer(f->node[from].server, POOL, COPYSET, f->node[to].id));
        assert_int_equal(STATUS(REDIRECTED), wire_chunk(f->node[from].fd, "WriteChunk", &write,
                                                        data, sizeof(data), &f->reply));
        assert_string_equal(address, f->reply.chunk.redirect);
    }
}

static void the_hash_is_of_each_replicas_own(void **state) {
    struct fixture *f = *state;
    char first[32] = "";
    write_block(f, 1, 3, 1);
    await_equal(f);
    for (unsigned i = 0; i < 3; i++) {
        curve_chunkserver_GetChunkHashRequest request = {POOL, COPYSET, 1, 0, 65536};
        wire_call(f->node[i].fd, "curve.chunkserver.ChunkService", "GetChunkHash",
                  curve_chunkserver_GetChunkHashRequest_fields, &request, NULL, 0, &f->reply);
        curve_chunkserver_GetChunkHashResponse told =
            curve_chunkserver_GetChunkHashResponse_init_zero;
        pb_istream_t stream = pb_istream_from_buffer(f->reply.message, f->reply.message_length);
        assert_true(pb_decode(&stream, curve_chunkserver_GetChunkHashResponse_fields, &told));
        assert_int_equal(STATUS(SUCCESS), told.status);
        assert_true(i == 0 || strcmp(first, told.hash) == 0);
        snprintf(first, sizeof(first), "%s", told.hash);
    }
}

// With one of three nobody can lead: neither is anybody named for long, nor does a request wait
// long.
static void without_a_majority_requests_are_sent_away(void **state) {
    struct fixture *f = *state;
    write_block(f, 1, 0, 1);
    unsigned last = leader(f);
    stop_node(f, (last + 1) % 3);
    stop_node(f, (last + 2) % 3);
    curve_chunkserver_ChunkRequest read = request_of(TYPE(READ), 1, 0, 4096);
    // The lease holds for a while.
    curve_chunkserver_CHUNK_OP_STATUS status = STATUS(SUCCESS);
    for (uint64_t end = cg_now_ns() + LIMIT_NS; cg_now_ns() < end && status == STATUS(SUCCESS);) {
        status = wire_chunk(f->node[last].fd, "ReadChunk", &read, NULL, 0, &f->reply);
    }
    assert_int_equal(STATUS(REDIRECTED), status);
    uint64_t start = cg_now_ns();
    status = wire_chunk(f->node[last].fd, "ReadChunk", &read, NULL, 0, &f->reply);
    assert_in_range(cg_now_ns() - start, 0, 2 * CG_NS_PER_S);
    assert_int_equal(STATUS(REDIRECTED), status);
    assert_string_equal("", f->reply.chunk.redirect);
    assert_string_equal("", named_leader(f, last));
}

// Those who follow are told of it later.
static void an_epoch_counts_on_all_three(void **state) {
    struct fixture *f = *state;
    write_block(f, 1, 0, 1);
    for (unsigned i = 0; i < 3; i++) {
        // In any order, the leader may be the last one.
        int result = cg_chunkserver_raise_epoch(f->node[(leader(f) + 1 + i) % 3].server, 5, 7);
        assert_int_equal(i == 2 ? 0 : -EAGAIN, result);
    }
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(0, cg_chunkserver_raise_epoch(f->node[i].server, 5, 7));
        assert_int_equal(0, cg_chunkserver_raise_epoch(f->node[i].server, 5, 6));
    }
    // One that is to join has nothing yet that it could be late with.
    assert_int_equal(0, add_replica(f, 3, NULL, 0));
    assert_int_equal(0, cg_chunkserver_raise_epoch(f->node[3].server, 5, 7));
    uint8_t data[4096] = {0};
    curve_chunkserver_ChunkRequest request = request_of(TYPE(WRITE), 1, 0, sizeof(data));
    request.has_sn = request.has_fileId = request.has_epoch = true;
    request.sn = 1;
    request.fileId = 5;
    request.epoch = 6;
    assert_int_equal(STATUS(EPOCH_TOO_OLD), wire_chunk(f->node[leader(f)].fd, "WriteChunk",
                                                       &request, data, sizeof(data), &f->reply));
}

// The value of the first metric that begins like this, at a server; -1: there is none.
static int64_t metric(struct fixture *f, unsigned i, const char *begin) {
    static const char request[] = "GET /metrics HTTP/1.1\r\n\r\n";
    static char text[1 << 16];
    int fd = wire_connect(f->node[i].address);
    wire_send(fd, request, sizeof(request) - 1);
    size_t length = wire_receive(fd, text, sizeof(text) - 1);
    text[length] = '\0';
    close(fd);
    assert_memory_equal("HTTP/1.1 200 OK", text, 15);
    const char *found = strstr(text, begin);
    return found != NULL ? strtoll(strchr(found, ' '), NULL, 10) : -1;
}

static void metrics_tell_of_disks_copysets_and_members(void **state) {
    struct fixture *f = *state;
    for (uint32_t i = 0; i < 10; i++) {
        write_block(f, 1, i, i);
    }
    await_equal(f);
    unsigned lead = leader(f);
    unsigned other = (lead + 1) % 3;
    struct cg_copyset_log_status status;
    assert_true(look(f, lead, &status));
    assert_int_equal(10, metric(f, lead, "\ncopygate_chunkserver_writes_total "));
    assert_int_equal(1, metric(f, lead, "\ncopygate_chunkserver_leaders "));
    assert_int_equal(0, metric(f, other, "\ncopygate_chunkserver_leaders "));
    assert_true(metric(f, lead, "\ncopygate_chunkserver_raft_messages_sent_total ") >= 10);
    assert_true(metric(f, other, "\ncopygate_chunkserver_raft_messages_received_total ") >= 10);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(
            status.last_index,
            metric(f, i,
                   "\ncopygate_chunkserver_copyset_applied_index{pool=\"1\",copyset=\"11\"} "));
        assert_int_equal(
            i == lead ? 3 : 0,
            metric(f, i, "\ncopygate_chunkserver_copyset_role{pool=\"1\",copyset=\"11\"} "));
    }
    assert_int_equal(0, metric(f, lead, "\ncopygate_chunkserver_copyset_member_lag{"));
    assert_int_equal(-1, metric(f, other, "\ncopygate_chunkserver_copyset_member_lag{"));
}

static void members_change(void **state) {
    struct fixture *f = *state;
    struct cg_copyset_log_status status;
    for (uint32_t i = 0; i < 50; i++) {
        write_block(f, 1, i, i);
    }
    // The fourth one joins.
    assert_int_equal(0, add_replica(f, 3, NULL, 0));
    unsigned lead = leader(f);
    struct cg_chunkserver *server = f->node[lead].server;
    assert_int_equal(-EPERM, cg_chunkserver_change(f->node[(lead + 1) % 3].server, POOL, COPYSET,
                                                   CG_RAFT_ADD_LEARNER, 4));
    assert_int_equal(0, cg_chunkserver_change(server, POOL, COPYSET, CG_RAFT_ADD_LEARNER, 4));
    int result = -EAGAIN;
    while (result == -EAGAIN) {
        await_change(f);
        result = cg_chunkserver_change(server, POOL, COPYSET, CG_RAFT_PROMOTE, 4);
    }
    assert_int_equal(0, result);
    // One of the old ones leaves.
    unsigned gone = (lead + 1) % 3;
    result = -EAGAIN;
    while (result == -EAGAIN) {
        await_change(f);
        result = cg_chunkserver_change(server, POOL, COPYSET, CG_RAFT_REMOVE, f->node[gone].id);
    }
    assert_int_equal(0, result);
    do {
        await_change(f);
        assert_true(look(f, lead, &status));
    } while (status.config_index > status.commit_index);
    assert_int_equal(3, status.config.count);
    assert_int_equal(-EEXIST,
                     cg_chunkserver_remove_copyset(f->node[gone].server, POOL, COPYSET, 99));
    assert_int_equal(
        0, cg_chunkserver_remove_copyset(f->node[gone].server, POOL, COPYSET, f->node[gone].id));
    assert_false(look(f, gone, &status));
    // Without the old leader the new one is needed.
    stop_node(f, lead);
    for (uint32_t i = 0; i < 50; i++) {
        assert_block(f, 1, i, i);
    }
    write_block(f, 1, 0, 99);
    await_equal(f);
}

// ---- State that the log does not have any more, and damage

#define LARGE (512U << 10)

// Blocks of a chunk, of which each has its own number in it.
static void write_many(struct fixture *f, uint64_t chunk, uint32_t offset, uint32_t seed) {
    static uint8_t data[LARGE];
    for (uint32_t i = 0; i < LARGE / 4096; i++) {
        fill(data + (size_t)i * 4096, 4096, seed + offset / 4096 + i);
    }
    curve_chunkserver_ChunkRequest request = request_of(TYPE(WRITE), chunk, offset, LARGE);
    request.has_sn = request.has_fileId = request.has_clientId = request.has_sequence = true;
    request.sn = 1;
    request.fileId = 5;
    request.clientId = 9;
    request.sequence = ++f->sequence;
    for (uint64_t end = cg_now_ns() + LIMIT_NS; cg_now_ns() < end; await_change(f)) {
        curve_chunkserver_CHUNK_OP_STATUS status =
            wire_chunk(f->node[leader(f)].fd, "WriteChunk", &request, data, LARGE, &f->reply);
        if (status == STATUS(SUCCESS)) {
            return;
        }
        assert_true(status == STATUS(REDIRECTED) || status == STATUS(OVERLOAD));
    }
    fail_msg("the write is never done");
}

// Until the leader's log begins behind `index`.
static void write_until_recycled(struct fixture *f, uint64_t index) {
    struct cg_copyset_log_status status;
    for (uint32_t i = 0;; i++) {
        assert_true(look(f, leader(f), &status));
        if (status.base_index > index) {
            return;
        }
        assert_true(i < 2000);
        write_many(f, 1 + i % 4, i / 4 % 8 * LARGE, 1000 * (1 + i % 4));
    }
}

static void join(struct fixture *f, unsigned i) {
    int result;
    do {
        await_change(f);
        result = cg_chunkserver_change(f->node[leader(f)].server, POOL, COPYSET,
                                       CG_RAFT_ADD_LEARNER, f->node[i].id);
    } while (result == -EAGAIN);
    assert_int_equal(0, result);
    do {
        write_block(f, 9, 0, 9); // there is always something going on
        result = cg_chunkserver_change(f->node[leader(f)].server, POOL, COPYSET, CG_RAFT_PROMOTE,
                                       f->node[i].id);
    } while (result == -EAGAIN);
    assert_int_equal(0, result);
}

static void lead_with(struct fixture *f, unsigned target) {
    while (leader(f) != target) {
        cg_chunkserver_transfer(f->node[leader(f)].server, POOL, COPYSET, f->node[target].id);
        await_change(f);
    }
}

static void a_blank_one_copies_what_the_log_does_not_have(void **state) {
    struct fixture *f = *state;
    write_until_recycled(f, 1);
    assert_int_equal(0, add_replica(f, 3, NULL, 0));
    join(f, 3);
    await_equal(f);
    // All reads are its own.
    lead_with(f, 3);
    for (uint32_t chunk = 1; chunk <= 4; chunk++) {
        for (uint32_t block = 0; block < LARGE / 4096; block += 7) {
            assert_block(f, chunk, block, 1000 * chunk + block);
        }
    }
    struct cg_chunkserver_stats stats;
    cg_chunkserver_stats(f->node[3].server, &stats);
    assert_int_equal(1, stats.copy.completed);
    assert_int_equal(0, stats.copy.receiving);
    assert_true(stats.copy.received_chunks >= 4);
}

static void one_that_was_away_for_long_copies(void **state) {
    struct fixture *f = *state;
    struct cg_copyset_log_status status;
    write_block(f, 1, 0, 1);
    unsigned away = (leader(f) + 1) % 3;
    await_equal(f);
    stop_node(f, away);
    assert_true(look(f, leader(f), &status));
    write_until_recycled(f, status.last_index + 1);
    start_node(f, away);
    introduce_all(f);
    await_equal(f);
    lead_with(f, away);
    for (uint32_t chunk = 1; chunk <= 4; chunk++) {
        assert_block(f, chunk, 100, 1000 * chunk + 100);
    }
}

static void flip(struct fixture *f, unsigned i, uint64_t chunk, long offset) {
    char path[192];
    snprintf(path, sizeof(path), "%s/chunks/%u-%u/chunk_%" PRIu64, f->node[i].folder, POOL, COPYSET,
             chunk);
    FILE *file = fopen(path, "r+");
    assert_non_null(file);
    assert_int_equal(0, fseek(file, offset, SEEK_SET));
    int byte = fgetc(file);
    assert_int_equal(0, fseek(file, offset, SEEK_SET));
    fputc(byte ^ 16, file);
    assert_int_equal(0, fclose(file));
}

static void what_the_leader_finds_damaged_it_gets_from_others(void **state) {
    struct fixture *f = *state;
    for (uint32_t chunk = 1; chunk <= 3; chunk++) {
        for (uint32_t block = 0; block < 4; block++) {
            write_block(f, chunk, block, 10 * chunk + block);
        }
    }
    await_equal(f);
    unsigned victim = leader(f);
    stop_node(f, victim);
    flip(f, victim, 1, 65536 + 4096 + 5); // a block
    flip(f, victim, 2, 600);              // the metadata: one slot, then the other
    flip(f, victim, 3, 32768 + 4096 + 8);
    start_node(f, victim);
    introduce_all(f);
    await_equal(f);
    lead_with(f, victim);
    for (uint32_t chunk = 1; chunk <= 3; chunk++) {
        for (uint32_t block = 0; block < 4; block++) {
            assert_block(f, chunk, block, 10 * chunk + block);
        }
    }
    write_block(f, 2, 0, 77);
    await_equal(f);
    struct cg_chunkserver_stats stats;
    cg_chunkserver_stats(f->node[victim].server, &stats);
    assert_true(stats.copy.mended_blocks >= 1);
    assert_int_equal(0, cg_chunkserver_bad_blocks(f->node[victim].server, NULL, 0));
}

// ---- Rubbish on the port where the others' messages come in

static void send_frame(struct fixture *f, unsigned i, const struct cg_raft_message *message,
                       uint64_t group, uint32_t entry_type) {
    uint8_t bytes[512];
    uint32_t length = CG_RAFT_FRAME_HEADER;
    cg_raft_message_encode(group, message, bytes + length);
    length += cg_raft_message_size(message);
    for (uint32_t n = 0; n < message->count; n++) {
        struct cg_raft_wire_entry entry = {
            .term = message->term, .type = entry_type, .meta_length = 5, .meta = "wrong"};
        cg_raft_entry_encode(&entry, bytes + length);
        length += cg_raft_entry_size(&entry);
    }
    cg_raft_frame_seal(bytes, length, 0, 1);
    wire_send_request(f->node[i].fd, "copygate.RaftService", "Step", bytes, length, NULL, 0);
}

// Well-formed frames that say what no member would: they change nothing.
static void strangers_messages_do_no_harm(void **state) {
    struct fixture *f = *state;
    for (uint32_t i = 0; i < 20; i++) {
        write_block(f, 1, i, i);
    }
    await_equal(f);
    unsigned lead = leader(f);
    for (unsigned i = 0; i < 3; i++) {
        struct cg_copyset_log_status before, after;
        assert_true(look(f, i, &before));
        for (int type = CG_RAFT_VOTE; type <= CG_RAFT_TIMEOUT_NOW; type++) {
            struct cg_raft_message m = {.type = (enum cg_raft_message_type)type, .term = 1};
            m.from = 77; // a stranger
            m.to = f->node[i].id;
            send_frame(f, i, &m, GROUP, 1);
            send_frame(f, i, &m, GROUP + 5, 1);       // no such copyset
            m.to = f->node[i].id | UINT64_C(7) << 32; // another incarnation
            m.term = UINT64_MAX;
            send_frame(f, i, &m, GROUP, 1);
            m.from = 0;
            m.to = f->node[i].id;
            send_frame(f, i, &m, GROUP, 1);
            m.from = f->node[i].id; // itself
            send_frame(f, i, &m, GROUP, 1);
        }
        // Entries of an older term, whose types and sizes mean nothing.
        static const uint32_t types[] = {1, 4, 16, 17, 99, 0x101, UINT32_MAX};
        for (size_t n = 0; n < sizeof(types) / sizeof(types[0]); n++) {
            struct cg_raft_message m = {.type = CG_RAFT_APPEND,
                                        .from = f->node[lead].id,
                                        .to = f->node[i].id | UINT64_C(7) << 32,
                                        .term = before.term,
                                        .prev_index = before.last_index,
                                        .prev_term = before.term,
                                        .count = 1};
            send_frame(f, i, &m, GROUP, types[n]);
        }
        write_block(f, 1, 0, 0); // which comes after it on the same connection, where i leads
        assert_true(look(f, i, &after));
        assert_int_equal(before.term, after.term);
        assert_int_equal(before.leader, after.leader);
    }
    assert_int_equal(lead, leader(f));
    for (uint32_t i = 0; i < 20; i++) {
        assert_block(f, 1, i, i);
    }
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(what_is_written_is_on_all_three),
        WITH(one_of_three_may_be_away_and_comes_back),
        WITH(all_of_them_restart),
        WITH(who_does_not_lead_says_who_does),
        WITH(a_request_during_a_hand_over_is_redirected_to_the_new_leader),
        WITH(the_hash_is_of_each_replicas_own),
        WITH(without_a_majority_requests_are_sent_away),
        WITH(an_epoch_counts_on_all_three),
        WITH(metrics_tell_of_disks_copysets_and_members),
        WITH(members_change),
        WITH(a_blank_one_copies_what_the_log_does_not_have),
        WITH(one_that_was_away_for_long_copies),
        WITH(what_the_leader_finds_damaged_it_gets_from_others),
        WITH(strangers_messages_do_no_harm),
    };
    return cmocka_run_group_tests_name("replicas", tests, NULL, NULL);
}
