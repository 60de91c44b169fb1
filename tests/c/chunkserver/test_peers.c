// SPDX-License-Identifier: BSD-3-Clause
//
// Two chunkservers' peers on one reactor, over loopback with real servers. Where one of them has to
// misbehave, a plain socket or a channel with other bytes plays it.
#include <errno.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/crc32c.h"
#include "base/log.h"
#include "chunkserver/peers.h"
#include "chunkserver/raft_wire.h"

#define GROUP    ((UINT64_C(1) << 32) | 7)
#define MESSAGES 4096U

// One chunkserver.
struct side {
    uint32_t id;
    struct cg_buffer_pool *pool;
    struct cg_peers *peers;
    struct cg_server *server;
    struct cg_endpoint endpoint;
    char address[CG_ENDPOINT_TEXT_MAX];
    struct cg_server_method methods[CG_PEERS_METHODS];
    // What came.
    struct cg_raft_message message[MESSAGES];
    uint64_t group[MESSAGES];
    unsigned received;
    struct cg_log_entry *entry[MESSAGES]; // references
    unsigned entries;
    unsigned up, down;
    bool retired;
};

struct fixture {
    struct cg_reactor *reactor;
    struct cg_buffer_pool *pool; // of what is sent
    struct side a, b;
};

static unsigned log_lines;
static char log_last[CG_LOG_LINE_MAX];

static void note_line(void *context, enum cg_log_level level, const char *line) {
    (void)context;
    if (level >= CG_LOG_WARNING) {
        log_lines++;
        snprintf(log_last, sizeof(log_last), "%s", line);
    }
}

// ---- Fixture

static bool note_received(void *context, uint64_t group, const struct cg_raft_message *message,
                          struct cg_log_entry *const *entries) {
    struct side *side = context;
    assert_true(side->received < MESSAGES);
    assert_null(message->entries);
    side->group[side->received] = group;
    side->message[side->received++] = *message;
    for (uint32_t i = 0; i < message->count; i++) {
        assert_int_equal(entries[i]->index, message->prev_index + 1 + i);
        side->entry[side->entries++] = cg_log_entry_ref(entries[i]);
    }
    return group == GROUP;
}

static void note_connection(void *context, uint32_t chunkserver, bool up) {
    struct side *side = context;
    assert_int_equal(chunkserver, 3 - side->id);
    if (up) {
        side->up++;
    } else {
        side->down++;
    }
}

static bool takes_part(void *context) {
    const struct side *side = context;
    return !side->retired;
}

static void start_server(struct fixture *f, struct side *side) {
    cg_peers_methods(side->peers, side->methods);
    struct cg_server_options options = {
        .methods = side->methods, .method_count = CG_PEERS_METHODS, .pool = f->pool};
    assert_int_equal(cg_server_create(f->reactor, &options, &side->server), 0);
    assert_int_equal(cg_server_listen(side->server, &side->endpoint, &side->endpoint), 0);
    cg_endpoint_format(&side->endpoint, side->address, sizeof(side->address));
}

static void start_side(struct fixture *f, struct side *side, uint32_t id, size_t pool_bytes) {
    side->id = id;
    struct cg_peers_events events = {note_received, note_connection, takes_part, side};
    assert_int_equal(cg_buffer_pool_create(pool_bytes, &side->pool), 0);
    assert_int_equal(cg_peers_create(f->reactor, side->pool, &events, &side->peers), 0);
    assert_int_equal(cg_endpoint_parse("127.0.0.1:0", &side->endpoint), 0);
    start_server(f, side);
}

static void forget_received(struct side *side) {
    for (unsigned i = 0; i < side->entries; i++) {
        cg_log_entry_unref(side->entry[i]);
    }
    side->entries = 0;
    side->received = 0;
}

static void introduce(struct side *to, const struct side *who) {
    assert_int_equal(cg_peers_set(to->peers, who->id, who->address, &who->endpoint), 0);
}

static int set_up_with(void **state, size_t pool_bytes) {
    struct fixture *f = calloc(1, sizeof(*f));
    assert_int_equal(cg_reactor_create(NULL, &f->reactor), 0);
    assert_int_equal(cg_buffer_pool_create(256U << 20, &f->pool), 0);
    start_side(f, &f->a, 1, pool_bytes);
    start_side(f, &f->b, 2, pool_bytes);
    introduce(&f->a, &f->b);
    introduce(&f->b, &f->a);
    log_lines = 0;
    cg_log_set_sink(note_line, NULL, CG_LOG_DEBUG);
    *state = f;
    return 0;
}

static int set_up(void **state) {
    return set_up_with(state, 64U << 20);
}

static int set_up_small(void **state) {
    return set_up_with(state, 64U << 10);
}

static void stop_side(struct side *side) {
    cg_server_destroy(side->server);
    cg_peers_destroy(side->peers);
    forget_received(side);
    assert_int_equal(cg_buffer_pool_in_use(side->pool), 0);
    cg_buffer_pool_destroy(side->pool);
}

static int tear_down(void **state) {
    struct fixture *f = *state;
    stop_side(&f->a);
    stop_side(&f->b);
    assert_int_equal(cg_buffer_pool_in_use(f->pool), 0);
    cg_buffer_pool_destroy(f->pool);
    cg_reactor_destroy(f->reactor);
    cg_log_set_sink(NULL, NULL, CG_LOG_DEBUG);
    free(f);
    return 0;
}

static void run_until(struct fixture *f, const unsigned *counter, unsigned wanted) {
    uint64_t end = cg_now_ns() + 20 * CG_NS_PER_S;
    while (*counter < wanted) {
        assert_true(cg_now_ns() < end);
        assert_true(cg_reactor_wait(f->reactor, 10 * CG_NS_PER_MS) >= 0);
    }
}

// ---- What is sent

static struct cg_log_entry *make_entry(struct fixture *f, uint64_t index, uint32_t blocks) {
    struct cg_buffer *buffer = NULL;
    if (blocks > 0) {
        buffer = cg_buffer_alloc(f->pool, blocks * CG_WAL_BLOCK);
        for (uint32_t i = 0; i < blocks; i++) {
            memset(buffer->data + i * CG_WAL_BLOCK, (int)(index + i), CG_WAL_BLOCK);
        }
    }
    char meta[16];
    int length = snprintf(meta, sizeof(meta), "entry %u", (unsigned)index);
    struct cg_log_entry *entry =
        cg_log_entry_make(1, 5, index, meta, (uint32_t)length, buffer,
                          buffer != NULL ? buffer->data : NULL, blocks * CG_WAL_BLOCK, NULL);
    cg_buffer_unref(buffer);
    return entry;
}

static void assert_entry(const struct cg_log_entry *entry, uint64_t index, uint32_t blocks) {
    char meta[16];
    snprintf(meta, sizeof(meta), "entry %u", (unsigned)index);
    assert_int_equal(entry->index, index);
    assert_int_equal(entry->term, 5);
    assert_int_equal(entry->meta_length, strlen(meta));
    assert_memory_equal(entry->meta, meta, strlen(meta));
    assert_int_equal(entry->payload_length, blocks * CG_WAL_BLOCK);
    for (uint32_t i = 0; i < blocks; i++) {
        const uint8_t *block = entry->payload + (size_t)i * CG_WAL_BLOCK;
        assert_int_equal((uintptr_t)block % CG_WAL_BLOCK, 0);
        assert_int_equal(block[100], (uint8_t)(index + i));
        assert_int_equal(entry->block_crcs[i], cg_crc32c(0, block, CG_WAL_BLOCK));
    }
}

static struct cg_raft_message to_other(const struct side *side, enum cg_raft_message_type type) {
    // The high half of an id is no part of the address.
    return (struct cg_raft_message){.type = type,
                                    .from = side->id | UINT64_C(3) << 32,
                                    .to = (3 - side->id) | UINT64_C(4) << 32,
                                    .term = 5};
}

static void send_heartbeat(struct side *side, uint64_t group, uint64_t round) {
    struct cg_raft_message message = to_other(side, CG_RAFT_HEARTBEAT);
    message.round = round;
    cg_peers_send(side->peers, group, &message, NULL);
}

static void send_append(struct fixture *f, struct side *side, uint64_t prev_index, uint32_t count,
                        uint32_t blocks) {
    struct cg_raft_message message = to_other(side, CG_RAFT_APPEND);
    struct cg_log_entry *entries[64] = {NULL};
    message.prev_index = prev_index;
    message.count = count;
    for (uint32_t i = 0; i < count; i++) {
        entries[i] = make_entry(f, prev_index + 1 + i, blocks);
    }
    cg_peers_send(side->peers, GROUP, &message, entries);
    for (uint32_t i = 0; i < count; i++) {
        cg_log_entry_unref(entries[i]);
    }
}

static struct cg_peers_stats stats_of(const struct side *side) {
    struct cg_peers_stats stats;
    cg_peers_stats(side->peers, &stats);
    return stats;
}

static void assert_working(struct fixture *f) {
    unsigned before = f->b.received;
    send_heartbeat(&f->a, GROUP, 77);
    run_until(f, &f->b.received, before + 1);
    assert_int_equal(f->b.message[before].round, 77);
}

// ---- What should work

static void entries_arrive_aligned_and_in_one_buffer(void **state) {
    struct fixture *f = *state;
    send_append(f, &f->a, 10, 3, 2);
    run_until(f, &f->b.received, 1);
    assert_int_equal(f->b.group[0], GROUP);
    assert_int_equal(f->b.message[0].type, CG_RAFT_APPEND);
    assert_int_equal(f->b.message[0].from, 1 | UINT64_C(3) << 32);
    assert_int_equal(f->b.message[0].to, 2 | UINT64_C(4) << 32);
    assert_int_equal(f->b.entries, 3);
    for (unsigned i = 0; i < 3; i++) {
        assert_entry(f->b.entry[i], 11 + i, 2);
        assert_ptr_equal(f->b.entry[i]->buffer, f->b.entry[0]->buffer);
    }
    assert_ptr_equal(f->b.entry[0]->buffer->pool, f->b.pool);
    // The sender keeps nothing.
    assert_int_equal(cg_buffer_pool_in_use(f->pool), 0);
}

static void what_an_iteration_sends_leaves_in_one_frame(void **state) {
    struct fixture *f = *state;
    for (unsigned i = 0; i < 1000; i++) {
        send_heartbeat(&f->a, i % 2 == 0 ? GROUP : GROUP + i, i);
    }
    send_append(f, &f->a, 0, 5, 1);
    send_append(f, &f->a, 5, 0, 0);
    send_append(f, &f->a, 5, 2, 0);
    run_until(f, &f->b.received, 1003);
    for (unsigned i = 0; i < 1000; i++) {
        assert_int_equal(f->b.message[i].round, i);
    }
    assert_int_equal(f->b.entries, 7);
    assert_entry(f->b.entry[6], 7, 0);
    assert_int_equal(stats_of(&f->a).frames_sent, 1);
    assert_int_equal(stats_of(&f->a).messages_sent, 1003);
    assert_int_equal(stats_of(&f->b).frames_received, 1);
    assert_int_equal(stats_of(&f->b).messages_received, 1003);
    assert_int_equal(stats_of(&f->b).messages_strayed, 500);
    assert_int_equal(log_lines, 1); // all of them in one line
    assert_non_null(strstr(log_last, "which is not here"));
}

static void large_messages_follow_one_another(void **state) {
    struct fixture *f = *state;
    for (unsigned i = 0; i < 12; i++) {
        send_append(f, &f->a, i, 1, CG_WAL_PAYLOAD_BLOCKS_MAX);
    }
    run_until(f, &f->b.received, 12);
    for (unsigned i = 0; i < 12; i++) {
        assert_entry(f->b.entry[i], 1 + i, CG_WAL_PAYLOAD_BLOCKS_MAX);
    }
    assert_int_equal(stats_of(&f->a).messages_dropped, 0);
}

static void both_directions_work_at_once(void **state) {
    struct fixture *f = *state;
    for (unsigned i = 0; i < 500; i++) {
        send_append(f, &f->a, i, 1, 1);
        send_append(f, &f->b, i, 1, i % 3);
        assert_true(cg_reactor_wait(f->reactor, 0) >= 0);
    }
    run_until(f, &f->a.received, 500);
    run_until(f, &f->b.received, 500);
    for (unsigned i = 0; i < 500; i++) {
        assert_entry(f->b.entry[i], 1 + i, 1);
        assert_entry(f->a.entry[i], 1 + i, i % 3);
    }
    run_until(f, &f->a.up, 1);
    run_until(f, &f->b.up, 1);
    assert_int_equal(f->a.down + f->b.down, 0);
}

static void an_unknown_chunkserver_is_no_error(void **state) {
    struct fixture *f = *state;
    struct cg_raft_message message = to_other(&f->a, CG_RAFT_HEARTBEAT);
    message.to = 9;
    cg_peers_send(f->a.peers, GROUP, &message, NULL);
    assert_int_equal(stats_of(&f->a).messages_dropped, 1);
    assert_null(cg_peers_address(f->a.peers, 9));
    assert_null(cg_peers_channel(f->a.peers, 9));
    assert_string_equal(cg_peers_address(f->a.peers, 2), f->b.address);
}

// ---- Connections that end

static void a_restart_of_the_other_is_told_and_survived(void **state) {
    struct fixture *f = *state;
    assert_working(f);
    run_until(f, &f->a.up, 1);
    cg_server_destroy(f->b.server);
    run_until(f, &f->a.down, 1);
    assert_int_equal(stats_of(&f->a).peers_down, 1);
    start_server(f, &f->b);
    run_until(f, &f->a.up, 2);
    assert_int_equal(stats_of(&f->a).peers_down, 0);
    assert_working(f);
}

static void what_cannot_be_delivered_is_dropped(void **state) {
    struct fixture *f = *state;
    cg_server_destroy(f->b.server);
    send_append(f, &f->a, 0, 4, 4);
    uint64_t end = cg_now_ns() + 20 * CG_NS_PER_S;
    while (stats_of(&f->a).peers_down == 0) {
        assert_true(cg_now_ns() < end);
        assert_true(cg_reactor_wait(f->reactor, 10 * CG_NS_PER_MS) >= 0);
    }
    assert_int_equal(cg_buffer_pool_in_use(f->pool), 0);
    send_append(f, &f->a, 0, 4, 4);
    assert_int_equal(cg_buffer_pool_in_use(f->pool), 0);
    assert_int_equal(stats_of(&f->a).messages_dropped, 1);
    start_server(f, &f->b);
    run_until(f, &f->a.up, 1);
    assert_working(f);
}

// Accepts by itself (the kernel does) and never reads: a process that was stopped.
static int silent_listener(struct cg_endpoint *endpoint, char *address, size_t size) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(cg_endpoint_parse("127.0.0.1:0", endpoint), 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&endpoint->address, endpoint->length), 0);
    assert_int_equal(listen(fd, 16), 0);
    endpoint->length = sizeof(endpoint->address);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&endpoint->address, &endpoint->length), 0);
    cg_endpoint_format(endpoint, address, size);
    return fd;
}

static void a_chunkserver_that_stands_still_is_noticed(void **state) {
    struct fixture *f = *state;
    assert_working(f);
    run_until(f, &f->a.up, 1);
    struct cg_endpoint endpoint;
    char address[CG_ENDPOINT_TEXT_MAX];
    int fd = silent_listener(&endpoint, address, sizeof(address));
    uint64_t begin = cg_now_ns();
    assert_int_equal(cg_peers_set(f->a.peers, 2, address, &endpoint), 0);
    run_until(f, &f->a.down, 1);
    assert_true(cg_now_ns() - begin < 2 * CG_NS_PER_S);
    // Back at the old place.
    introduce(&f->a, &f->b);
    assert_working(f);
    close(fd);
}

// Its idle copysets have to find another leader.
static void one_that_takes_no_part_any_more_is_taken_for_dead(void **state) {
    struct fixture *f = *state;
    assert_working(f);
    f->b.retired = true;
    run_until(f, &f->a.down, 1);
    assert_int_equal(f->b.down, 0);
    f->b.retired = false;
    run_until(f, &f->a.up, 1);
}

// ---- A server that answers calls, but no pings

static unsigned pings, bulks;
static struct cg_server_request *held_pings[64];

static void hold_ping(struct cg_server_request *request) {
    assert_true(pings < 64);
    held_pings[pings++] = request;
}

static void answer_bulk(struct cg_server_request *request) {
    cg_server_reply_encoded(request, "bulk", 4, NULL, 0, NULL, NULL);
}

static void bulk_done(struct cg_rpc_call *call) {
    (void)call;
    bulks++;
}

// Pings stand behind what is copied over a slow network.
static void a_connection_on_which_something_comes_is_not_given_up(void **state) {
    struct fixture *f = *state;
    static const struct cg_server_method methods[] = {
        {.service = "copygate.RaftService", .name = "Ping", .handle = hold_ping},
        {.service = "copygate.RaftService", .name = "Bulk", .handle = answer_bulk},
    };
    static const struct cg_rpc_method bulk = {"copygate.RaftService", "Bulk"};
    struct cg_server_options options = {.methods = methods, .method_count = 2, .pool = f->pool};
    struct cg_server *server;
    struct cg_endpoint endpoint;
    char address[CG_ENDPOINT_TEXT_MAX];
    assert_working(f);
    run_until(f, &f->a.up, 1);
    assert_int_equal(cg_endpoint_parse("127.0.0.1:0", &endpoint), 0);
    assert_int_equal(cg_server_create(f->reactor, &options, &server), 0);
    assert_int_equal(cg_server_listen(server, &endpoint, &endpoint), 0);
    cg_endpoint_format(&endpoint, address, sizeof(address));
    assert_int_equal(cg_peers_set(f->a.peers, 2, address, &endpoint), 0);
    pings = bulks = 0;
    while (pings < 7) {
        struct cg_rpc_call call = {
            .method = &bulk, .request = "", .timeout_ns = 10 * CG_NS_PER_S, .done = bulk_done};
        unsigned before = bulks;
        cg_channel_call(cg_peers_channel(f->a.peers, 2), &call);
        run_until(f, &bulks, before + 1);
        assert_int_equal(call.status, 0);
        assert_true(cg_reactor_wait(f->reactor, 20 * CG_NS_PER_MS) >= 0);
    }
    assert_int_equal(f->a.down, 0);
    // Nothing comes any more.
    run_until(f, &f->a.down, 1);
    cg_server_destroy(server);
    for (unsigned i = 0; i < pings; i++) {
        cg_server_end(held_pings[i]);
    }
}

static void what_is_queued_for_it_is_bounded(void **state) {
    struct fixture *f = *state;
    struct cg_endpoint endpoint;
    char address[CG_ENDPOINT_TEXT_MAX];
    int fd = silent_listener(&endpoint, address, sizeof(address));
    assert_int_equal(cg_peers_set(f->a.peers, 2, address, &endpoint), 0);
    uint64_t most = 0;
    for (unsigned i = 0; i < 300; i++) {
        send_append(f, &f->a, i, 1, CG_WAL_PAYLOAD_BLOCKS_MAX);
        assert_true(cg_reactor_wait(f->reactor, 0) >= 0);
        uint64_t held = cg_buffer_pool_in_use(f->pool);
        most = held > most ? held : most;
    }
    // Frames in flight and one more, of the goal and a message each; buffers are powers of two.
    assert_true(most <= (8 + 1) * UINT64_C(2) * (3U << 20));
    assert_true(stats_of(&f->a).messages_dropped > 200);
    close(fd);
}

// ---- Rubbish

struct rubbish {
    struct cg_rpc_call call;
    unsigned done;
};

static void rubbish_done(struct cg_rpc_call *call) {
    CG_CONTAINER_OF(call, struct rubbish, call)->done++;
}

static const struct cg_rpc_method step = {"copygate.RaftService", "Step"};

// Sends `length` bytes and `payload_length` of attachment to b's Step, and awaits the answer.
static void send_rubbish(struct fixture *f, const void *bytes, uint32_t length, void *payload,
                         uint32_t payload_length, struct rubbish *out) {
    struct cg_channel *channel;
    struct iovec iov = {payload, payload_length};
    assert_int_equal(cg_channel_create(f->reactor, &f->b.endpoint, NULL, &channel), 0);
    memset(out, 0, sizeof(*out));
    out->call.method = &step;
    out->call.request = bytes;
    out->call.request_length = length;
    out->call.send_iov = &iov;
    out->call.send_iovcnt = payload_length > 0;
    out->call.send_length = payload_length;
    out->call.timeout_ns = 10 * CG_NS_PER_S;
    out->call.done = rubbish_done;
    cg_channel_call(channel, &out->call);
    run_until(f, &out->done, 1);
    cg_channel_destroy(channel);
}

static void rubbish_is_refused_and_told_once_a_second(void **state) {
    struct fixture *f = *state;
    static uint8_t payload[64 << 10];
    uint8_t bytes[600];
    for (unsigned round = 0; round < 200; round++) {
        srandom(round);
        for (size_t i = 0; i < sizeof(bytes); i++) {
            bytes[i] = (uint8_t)random();
        }
        struct rubbish r;
        send_rubbish(f, bytes, round * 3, payload, round % 4 * 5000, &r);
        assert_int_equal(r.call.status, -EREMOTEIO);
        assert_int_equal(r.call.error_code, CG_RPC_EREQUEST);
        assert_string_equal(r.call.error_text, "no frame of raft messages");
    }
    assert_int_equal(stats_of(&f->b).frames_refused, 200);
    assert_int_equal(f->b.received, 0);
    assert_in_range(log_lines, 1, 20);
    assert_non_null(strstr(log_last, "raft port: refused no frame of raft messages"));
    assert_working(f);
}

// A frame with one entry, as a would send it.
static uint32_t write_frame(uint8_t *bytes, const uint8_t *payload, uint32_t blocks) {
    uint32_t crcs[4];
    for (uint32_t i = 0; i < blocks; i++) {
        crcs[i] = cg_crc32c(0, payload + (size_t)i * CG_WAL_BLOCK, CG_WAL_BLOCK);
    }
    struct cg_raft_message message = {
        .type = CG_RAFT_APPEND, .from = 1, .to = 2, .term = 5, .prev_index = 3, .count = 1};
    struct cg_raft_wire_entry entry = {
        .term = 5, .type = 1, .payload_length = blocks * CG_WAL_BLOCK, .block_crcs = crcs};
    uint32_t length = CG_RAFT_FRAME_HEADER;
    cg_raft_message_encode(GROUP, &message, bytes + length);
    length += cg_raft_message_size(&message);
    cg_raft_entry_encode(&entry, bytes + length);
    length += cg_raft_entry_size(&entry);
    cg_raft_frame_seal(bytes, length, entry.payload_length, 1);
    return length;
}

static void payload_that_was_damaged_on_its_way_is_refused(void **state) {
    struct fixture *f = *state;
    static uint8_t payload[2 * CG_WAL_BLOCK];
    uint8_t bytes[256];
    uint32_t length = write_frame(bytes, payload, 2);
    payload[5000] ^= 0x10;
    struct rubbish r;
    send_rubbish(f, bytes, length, payload, sizeof(payload), &r);
    assert_int_equal(r.call.status, -EREMOTEIO);
    assert_string_equal(r.call.error_text, "a payload that is not what its checksums say");
    assert_int_equal(f->b.received, 0);
    assert_int_equal(cg_buffer_pool_in_use(f->b.pool), 0);
}

static void another_length_of_payload_is_refused(void **state) {
    struct fixture *f = *state;
    static uint8_t payload[3 * CG_WAL_BLOCK];
    uint8_t bytes[256];
    uint32_t length = write_frame(bytes, payload, 2);
    static const uint32_t wrong[] = {0, CG_WAL_BLOCK, 2 * CG_WAL_BLOCK - 1, 3 * CG_WAL_BLOCK};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        struct rubbish r;
        send_rubbish(f, bytes, length, payload, wrong[i], &r);
        assert_int_equal(r.call.status, -EREMOTEIO);
        assert_string_equal(r.call.error_text, "a frame whose lengths do not match");
    }
    assert_int_equal(f->b.received, 0);
}

// What has no payload is delivered all the same: a follower without buffers is not dead.
static void without_buffers_only_what_needs_them_is_lost(void **state) {
    struct fixture *f = *state;
    send_append(f, &f->a, 0, 4, 1);
    run_until(f, &f->b.received, 1);
    assert_int_equal(f->b.entries, 4); // which hold some of the pool's 64 KiB
    send_append(f, &f->a, 4, 16, 1);
    send_heartbeat(&f->a, GROUP, 9);
    run_until(f, &f->b.received, 2);
    assert_int_equal(f->b.message[1].type, CG_RAFT_HEARTBEAT);
    forget_received(&f->b);
    send_append(f, &f->a, 4, 16, 1);
    run_until(f, &f->b.received, 1);
    assert_int_equal(f->b.entries, 16);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(entries_arrive_aligned_and_in_one_buffer),
        WITH(what_an_iteration_sends_leaves_in_one_frame),
        WITH(large_messages_follow_one_another),
        WITH(both_directions_work_at_once),
        WITH(an_unknown_chunkserver_is_no_error),
        WITH(a_restart_of_the_other_is_told_and_survived),
        WITH(what_cannot_be_delivered_is_dropped),
        WITH(a_chunkserver_that_stands_still_is_noticed),
        WITH(one_that_takes_no_part_any_more_is_taken_for_dead),
        WITH(a_connection_on_which_something_comes_is_not_given_up),
        WITH(what_is_queued_for_it_is_bounded),
        WITH(rubbish_is_refused_and_told_once_a_second),
        WITH(payload_that_was_damaged_on_its_way_is_refused),
        WITH(another_length_of_payload_is_refused),
        cmocka_unit_test_setup_teardown(without_buffers_only_what_needs_them_is_lost, set_up_small,
                                        tear_down),
    };
    return cmocka_run_group_tests_name("peers", tests, NULL, NULL);
}
