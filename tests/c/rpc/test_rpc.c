// SPDX-License-Identifier: BSD-3-Clause
//
// Channel and server together, over unix sockets and TCP, on both backends of the reactor; where a
// peer has to misbehave, a plain socket plays it. Everything runs on one thread.
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <pb_decode.h>

#include "base/clock.h"
#include "base/reactor.h"
#include "gateway/proto/chunk.pb.h"
#include "rpc/channel.h"
#include "rpc/frame.h"
#include "rpc/server.h"

#define MIB (1U << 20)

static enum cg_reactor_backend backend_under_test;
static bool over_tcp;

struct fixture {
    struct cg_reactor *reactor;
    struct cg_buffer_pool *pool;
    struct cg_server *server;
    struct cg_channel *channel;
    struct cg_endpoint endpoint;
    char path[64];
    // What the echo method does with the requests it gets.
    bool hold;
    struct cg_list held;
    unsigned handled, prepared, released;
    int32_t refuse;
    bool own_buffer;
    struct cg_buffer_pool *other_pool; // of the method "Step"
    struct cg_buffer_pool *noted;      // that its last attachment came from
};

static struct fixture *current;

// ---- The server's method: sends the attachment back

static void release_buffer(void *argument) {
    current->released++;
    cg_buffer_unref(argument);
}

static void answer(struct cg_server_request *request) {
    curve_chunkserver_ChunkResponse response = {
        .status = request->overloaded ? curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_OVERLOAD
                                      : curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_SUCCESS,
        .has_appliedIndex = true,
        .appliedIndex = request->attachment_length,
    };
    if (request->buffer == NULL) {
        cg_server_reply(request, curve_chunkserver_ChunkResponse_fields, &response, NULL, 0, NULL,
                        NULL);
        return;
    }
    uint8_t *data = request->buffer->data + request->buffer_offset;
    uint32_t half = request->attachment_length / 2;
    struct iovec iov[2] = {{data, half}, {data + half, request->attachment_length - half}};
    cg_server_reply(request, curve_chunkserver_ChunkResponse_fields, &response, iov, 2,
                    release_buffer, cg_buffer_ref(request->buffer));
}

// As large as the request's offset says, and encoded already.
static void answer_encoded(struct cg_server_request *request) {
    curve_chunkserver_ChunkRequest message = {0};
    pb_istream_t stream = pb_istream_from_buffer(request->message, request->message_length);
    assert_true(pb_decode(&stream, curve_chunkserver_ChunkRequest_fields, &message));
    uint32_t padding = message.offset;
    uint8_t *response = malloc(padding + 16);
    memset(response, 0, padding + 16);
    size_t n = 0;
    response[n++] = 0x08; // status SUCCESS
    response[n++] = 0x00;
    response[n++] = 0x18; // appliedIndex 77
    response[n++] = 77;
    if (padding > 0) {
        response[n++] = 0xfa; // an unknown field of `padding` bytes
        response[n++] = 0x7f;
        response[n++] = (uint8_t)(padding | 0x80);
        response[n++] = (uint8_t)(padding >> 7 | 0x80);
        response[n++] = (uint8_t)(padding >> 14);
        n += padding;
    }
    cg_server_reply_encoded(request, response, (uint32_t)n, NULL, 0, NULL, NULL);
    free(response);
}

static int prepare_echo(struct cg_server_request *request) {
    current->prepared++;
    if (current->own_buffer && request->attachment_length > 0) {
        request->buffer = cg_buffer_alloc(current->pool, request->attachment_length + 100);
        request->buffer_offset = 100;
    }
    return current->refuse;
}

static void handle_echo(struct cg_server_request *request) {
    current->handled++;
    if (current->hold) {
        cg_list_push_back(&current->held, &request->node);
    } else {
        answer(request);
    }
}

static void answer_held(bool newest_first) {
    while (!cg_list_empty(&current->held)) {
        struct cg_list *node = newest_first ? current->held.prev : current->held.next;
        cg_list_remove(node);
        answer(CG_CONTAINER_OF(node, struct cg_server_request, node));
    }
}

static void handle_note(struct cg_server_request *request) {
    current->handled++;
    if (request->buffer != NULL) {
        current->noted = request->buffer->pool;
    }
    cg_server_end(request);
}

static struct cg_server_method methods[] = {
    {.service = "curve.chunkserver.ChunkService",
     .name = "WriteChunk",
     .prepare = prepare_echo,
     .handle = handle_echo},
    {.service = "curve.chunkserver.ChunkService", .name = "ReadChunk", .handle = answer_encoded},
    {.service = "copygate.RaftService", .name = "Step", .handle = handle_note},
};

static const struct cg_rpc_method echo = {"curve.chunkserver.ChunkService", "WriteChunk"};
static const struct cg_rpc_method echo_short = {"ChunkService", "WriteChunk"};
static const struct cg_rpc_method note = {"copygate.RaftService", "Step"};
static const struct cg_rpc_method read_chunk = {"curve.chunkserver.ChunkService", "ReadChunk"};
static const struct cg_rpc_method unknown_method = {"curve.chunkserver.ChunkService", "Nothing"};
static const struct cg_rpc_method unknown_service = {"curve.mds.Nobody", "WriteChunk"};

// ---- Fixture

static void start_server(struct fixture *f, const struct cg_server_options *with) {
    struct cg_server_options options = with != NULL ? *with : (struct cg_server_options){0};
    options.methods = methods;
    options.method_count = 3;
    methods[2].pool = f->other_pool;
    options.pool = f->pool;
    assert_int_equal(cg_server_create(f->reactor, &options, &f->server), 0);
    assert_int_equal(cg_server_listen(f->server, &f->endpoint, &f->endpoint), 0);
}

static void restart_server(struct fixture *f, const struct cg_server_options *with) {
    cg_server_destroy(f->server);
    start_server(f, with);
}

static int set_up(void **state) {
    static unsigned number;
    struct fixture *f = calloc(1, sizeof(*f));
    struct cg_reactor_options options = {.backend = backend_under_test};
    cg_list_init(&f->held);
    assert_int_equal(cg_reactor_create(&options, &f->reactor), 0);
    assert_int_equal(cg_buffer_pool_create(32 * MIB, &f->pool), 0);
    assert_int_equal(cg_buffer_pool_create(32 * MIB, &f->other_pool), 0);
    snprintf(f->path, sizeof(f->path), "/tmp/copygate-rpc-%d-%u", (int)getpid(), number++);
    char text[80];
    snprintf(text, sizeof(text), "unix:%s", f->path);
    assert_int_equal(cg_endpoint_parse(over_tcp ? "127.0.0.1:0" : text, &f->endpoint), 0);
    start_server(f, NULL);
    assert_int_equal(cg_channel_create(f->reactor, &f->endpoint, NULL, &f->channel), 0);
    current = f;
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    struct fixture *f = *state;
    cg_channel_destroy(f->channel);
    cg_server_destroy(f->server);
    assert_int_equal(cg_buffer_pool_in_use(f->pool), 0);
    assert_int_equal(cg_buffer_pool_in_use(f->other_pool), 0);
    cg_buffer_pool_destroy(f->pool);
    cg_buffer_pool_destroy(f->other_pool);
    cg_reactor_destroy(f->reactor);
    assert_int_not_equal(access(f->path, F_OK), 0);
    free(f);
    return 0;
}

// ---- Calls

struct test_call {
    struct cg_rpc_call call;
    curve_chunkserver_ChunkRequest request;
    curve_chunkserver_ChunkResponse response;
    struct iovec send, receive[2];
    uint8_t *out, *in;
    unsigned done;
    struct test_call *cancels; // in its done
    struct cg_channel *destroys;
};

static void note_done(struct cg_rpc_call *call) {
    struct test_call *c = CG_CONTAINER_OF(call, struct test_call, call);
    c->done++;
    if (call->status == 0 && !call->one_way) {
        pb_istream_t stream = pb_istream_from_buffer(call->reply, call->reply_length);
        assert_true(pb_decode(&stream, curve_chunkserver_ChunkResponse_fields, &c->response));
    }
    if (c->cancels != NULL) {
        struct test_call *victim = c->cancels;
        cg_channel_cancel(current->channel, &victim->call);
        assert_int_equal(victim->done, 1);
        free(victim->in); // ASan sees whoever still writes there
        victim->in = NULL;
    }
    if (c->destroys != NULL) {
        cg_channel_destroy(c->destroys);
        current->channel = NULL;
    }
}

static void fill(uint8_t *data, uint32_t length, unsigned seed) {
    for (uint32_t i = 0; i < length; i++) {
        data[i] = (uint8_t)((i + seed) * 2654435761U >> 13);
    }
}

static struct test_call *make_call(const struct cg_rpc_method *method, uint32_t length) {
    static unsigned seed;
    struct test_call *c = calloc(1, sizeof(*c));
    c->request.logicPoolId = 1;
    c->request.copysetId = 2;
    c->request.chunkId = 3;
    c->out = malloc(length + 1);
    c->in = malloc(length + 1);
    fill(c->out, length, seed++);
    memset(c->in, 0xee, length);
    c->send = (struct iovec){c->out, length};
    c->receive[0] = (struct iovec){c->in, length / 3};
    c->receive[1] = (struct iovec){c->in + length / 3, length - length / 3};
    c->call.method = method;
    c->call.request_fields = curve_chunkserver_ChunkRequest_fields;
    c->call.request = &c->request;
    c->call.send_iov = &c->send;
    c->call.send_iovcnt = 1;
    c->call.send_length = length;
    c->call.receive_iov = c->receive;
    c->call.receive_iovcnt = 2;
    c->call.receive_capacity = length;
    c->call.timeout_ns = 10 * CG_NS_PER_S;
    c->call.done = note_done;
    return c;
}

static void free_call(struct test_call *c) {
    free(c->out);
    free(c->in);
    free(c);
}

static void step(struct fixture *f) {
    assert_true(cg_reactor_wait(f->reactor, CG_NS_PER_MS) >= 0);
}

static void run_until(struct fixture *f, const unsigned *counter, unsigned wanted) {
    uint64_t end = cg_now_ns() + 20 * CG_NS_PER_S;
    while (*counter < wanted) {
        assert_true(cg_now_ns() < end);
        step(f);
    }
}

static void idle(struct fixture *f, uint64_t ns) {
    for (uint64_t end = cg_now_ns() + ns; cg_now_ns() < end;) {
        step(f);
    }
}

static void finish(struct fixture *f, struct test_call *c) {
    run_until(f, &c->done, 1);
    assert_int_equal(c->done, 1);
}

static void assert_echoed(const struct test_call *c) {
    assert_int_equal(c->call.status, 0);
    assert_int_equal(c->response.appliedIndex, c->call.send_length);
    assert_int_equal(c->call.received_length, c->call.send_length);
    assert_memory_equal(c->in, c->out, c->call.send_length);
}

// One echo that must work: the connection is healthy.
static void assert_working(struct fixture *f) {
    struct test_call *c = make_call(&echo, 5000);
    cg_channel_call(f->channel, &c->call);
    finish(f, c);
    assert_echoed(c);
    free_call(c);
}

// ---- What should work

static void attachments_of_every_size_come_back(void **state) {
    struct fixture *f = *state;
    static const uint32_t sizes[] = {0,    1,     2,     511,   4095, 4096,
                                     4097, 65535, 65536, 70000, MIB,  3 * MIB + 1};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        for (int repeat = 0; repeat < 3; repeat++) {
            f->own_buffer = repeat == 2;
            struct test_call *c = make_call(repeat == 1 ? &echo_short : &echo, sizes[i]);
            cg_channel_call(f->channel, &c->call);
            assert_int_equal(c->done, 0); // never from inside the call
            finish(f, c);
            assert_echoed(c);
            free_call(c);
        }
    }
    assert_int_equal(cg_channel_inflight(f->channel), 0);
}

static void one_way_calls_end_when_they_are_sent(void **state) {
    struct fixture *f = *state;
    enum { COUNT = 50 };
    struct test_call *calls[COUNT];
    for (int i = 0; i < COUNT; i++) {
        calls[i] = make_call(&note, 4096 * (uint32_t)(i % 3));
        calls[i]->call.one_way = true;
        cg_channel_call(f->channel, &calls[i]->call);
        assert_int_equal(calls[i]->done, 0);
    }
    for (int i = 0; i < COUNT; i++) {
        finish(f, calls[i]);
        assert_int_equal(calls[i]->call.status, 0);
        assert_null(calls[i]->call.reply);
    }
    run_until(f, &f->handled, COUNT);
    assert_int_equal(cg_channel_inflight(f->channel), 0);
    assert_working(f);
    for (int i = 0; i < COUNT; i++) {
        free_call(calls[i]);
    }
}

static void a_method_has_a_pool_of_its_own(void **state) {
    struct fixture *f = *state;
    for (int i = 0; i < 4; i++) { // the second one is guessed
        struct test_call *c = make_call(&note, 8192);
        c->call.one_way = true;
        cg_channel_call(f->channel, &c->call);
        run_until(f, &f->handled, (unsigned)i + 1);
        finish(f, c);
        assert_ptr_equal(f->noted, f->other_pool);
        free_call(c);
    }
    // Guessed for the one method, comes for the other.
    assert_working(f);
    assert_working(f);
}

static void a_disconnected_channel_ends_its_calls_and_connects_again(void **state) {
    struct fixture *f = *state;
    f->hold = true;
    struct test_call *waiting = make_call(&echo, 100);
    cg_channel_call(f->channel, &waiting->call);
    run_until(f, &f->handled, 1);
    struct test_call *queued = make_call(&echo, 100);
    cg_channel_call(f->channel, &queued->call);
    cg_channel_disconnect(f->channel, -ECONNRESET);
    assert_int_equal(waiting->done + queued->done, 0);
    finish(f, waiting);
    finish(f, queued);
    assert_int_equal(waiting->call.status, -ECONNRESET);
    assert_int_equal(queued->call.status, -ECONNRESET);
    answer_held(false);
    f->hold = false;
    assert_working(f);
    free_call(waiting);
    free_call(queued);
}

static void many_calls_of_mixed_sizes_are_pipelined(void **state) {
    struct fixture *f = *state;
    enum { COUNT = 400 };
    static struct test_call *calls[COUNT];
    srand(3);
    for (int round = 0; round < 6; round++) {
        f->own_buffer = round == 5;
        for (int i = 0; i < COUNT; i++) {
            uint32_t size = round < 2 ? 4096 : (uint32_t)rand() % (round == 2 ? 200000U : 9000U);
            calls[i] = make_call(&echo, rand() % 4 == 0 && round > 2 ? 0 : size);
            cg_channel_call(f->channel, &calls[i]->call);
        }
        for (int i = 0; i < COUNT; i++) {
            finish(f, calls[i]);
            assert_echoed(calls[i]);
            free_call(calls[i]);
        }
    }
}

static void replies_may_come_in_any_order(void **state) {
    struct fixture *f = *state;
    enum { COUNT = 100 };
    static struct test_call *calls[COUNT];
    f->hold = true;
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < COUNT; i++) {
            calls[i] = make_call(&echo, 4096 + (round > 1 ? (uint32_t)i * 10 : 0));
            cg_channel_call(f->channel, &calls[i]->call);
        }
        unsigned wanted = (unsigned)(round + 1) * COUNT;
        run_until(f, &f->handled, wanted);
        answer_held(round % 2 == 0);
        for (int i = 0; i < COUNT; i++) {
            finish(f, calls[i]);
            assert_echoed(calls[i]);
            free_call(calls[i]);
        }
    }
    assert_int_equal(f->released, 4 * COUNT);
}

static void an_encoded_request_and_one_too_long_for_the_inline_head(void **state) {
    struct fixture *f = *state;
    struct test_call *c = make_call(&echo, 100);
    static const uint8_t encoded[] = {0x08, 0x02, 0x10, 0x01, 0x18, 0x0b, 0x20, 0x01};
    c->call.request_fields = NULL;
    c->call.request = encoded;
    c->call.request_length = sizeof(encoded);
    cg_channel_call(f->channel, &c->call);
    finish(f, c);
    assert_echoed(c);
    uint8_t *large = calloc(1, 300000);
    c->call.request = large;
    c->call.request_length = 300000;
    c->done = 0;
    cg_channel_call(f->channel, &c->call);
    finish(f, c);
    assert_echoed(c);
    free(large);
    free_call(c);
    assert_working(f);
}

static void a_reply_may_be_encoded_already(void **state) {
    struct fixture *f = *state;
    static const uint32_t paddings[] = {0, 200, 100000, 1500000};
    for (size_t i = 0; i < 4; i++) {
        struct test_call *c = make_call(&read_chunk, 0);
        c->request.has_offset = true;
        c->request.offset = paddings[i];
        cg_channel_call(f->channel, &c->call);
        finish(f, c);
        assert_int_equal(c->call.status, 0);
        assert_int_equal(c->response.appliedIndex, 77);
        assert_true(c->call.reply_length >= paddings[i]);
        free_call(c);
    }
}

// ---- Errors that the server answers

static void unknown_names_get_1002(void **state) {
    struct fixture *f = *state;
    const struct cg_rpc_method *names[] = {&unknown_method, &unknown_service};
    for (int i = 0; i < 2; i++) {
        struct test_call *c = make_call(names[i], 9000);
        cg_channel_call(f->channel, &c->call);
        finish(f, c);
        assert_int_equal(c->call.status, -EREMOTEIO);
        assert_int_equal(c->call.error_code, CG_RPC_ENOMETHOD);
        assert_true(strlen(c->call.error_text) > 0);
        free_call(c);
    }
    assert_int_equal(f->handled, 0);
    assert_working(f);
}

static void a_refused_request_is_skipped_and_answered(void **state) {
    struct fixture *f = *state;
    f->refuse = CG_RPC_EREQUEST;
    for (int i = 0; i < 2; i++) {
        struct test_call *c = make_call(&echo, i == 0 ? MIB : 10);
        cg_channel_call(f->channel, &c->call);
        finish(f, c);
        assert_int_equal(c->call.status, -EREMOTEIO);
        assert_int_equal(c->call.error_code, CG_RPC_EREQUEST);
        free_call(c);
    }
    assert_int_equal(f->handled, 0);
    f->refuse = 0;
    assert_working(f);
}

static void an_exhausted_pool_is_overload_and_passes(void **state) {
    struct fixture *f = *state;
    struct cg_buffer *all = cg_buffer_alloc(f->pool, 32 * MIB);
    assert_non_null(all);
    struct test_call *c = make_call(&echo, 70000);
    cg_channel_call(f->channel, &c->call);
    finish(f, c);
    assert_int_equal(c->call.status, 0);
    assert_int_equal(c->response.status,
                     curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_OVERLOAD);
    free_call(c);
    cg_buffer_unref(all);
    assert_working(f);
}

static void a_reply_longer_than_the_callers_memory_fails_that_call_only(void **state) {
    struct fixture *f = *state;
    struct test_call *c = make_call(&echo, 8192);
    struct test_call *other = make_call(&echo, 8192);
    c->call.receive_capacity = 4096;
    cg_channel_call(f->channel, &c->call);
    cg_channel_call(f->channel, &other->call);
    finish(f, c);
    finish(f, other);
    assert_int_equal(c->call.status, -EMSGSIZE);
    assert_echoed(other);
    free_call(c);
    free_call(other);
}

// ---- Time, cancellation, loss

static void a_call_ends_when_its_time_is_up_and_a_late_reply_is_dropped(void **state) {
    struct fixture *f = *state;
    f->hold = true;
    struct test_call *c = make_call(&echo, 4096);
    struct test_call *patient = make_call(&echo, 4096);
    c->call.timeout_ns = 30 * CG_NS_PER_MS;
    uint64_t begin = cg_now_ns();
    cg_channel_call(f->channel, &c->call);
    cg_channel_call(f->channel, &patient->call);
    finish(f, c);
    assert_int_equal(c->call.status, -ETIMEDOUT);
    assert_in_range(cg_now_ns() - begin, 30 * CG_NS_PER_MS, 5 * CG_NS_PER_S);
    free_call(c);
    answer_held(false);
    finish(f, patient);
    assert_echoed(patient);
    free_call(patient);
    f->hold = false;
    assert_working(f);
}

static void cancelling_ends_a_call_in_any_state(void **state) {
    struct fixture *f = *state;
    f->hold = true;
    struct test_call *queued = make_call(&echo, 100);
    struct test_call *sent = make_call(&echo, 100);
    cg_channel_call(f->channel, &sent->call);
    run_until(f, &f->handled, 1);
    cg_channel_call(f->channel, &queued->call);
    cg_channel_cancel(f->channel, &queued->call);
    cg_channel_cancel(f->channel, &sent->call);
    assert_int_equal(queued->done, 1);
    assert_int_equal(sent->done, 1);
    assert_int_equal(queued->call.status, -ECANCELED);
    assert_int_equal(sent->call.status, -ECANCELED);
    cg_channel_cancel(f->channel, &sent->call); // harmless
    free_call(queued);
    free_call(sent);
    assert_int_equal(cg_channel_inflight(f->channel), 0);
    answer_held(false);
    f->hold = false;
    assert_working(f);
    assert_int_equal(f->handled, 2);
}

// The replies to all arrive at once, into the places that were guessed; the first `done` takes back
// a call whose memory has been received into already.
static void a_call_may_be_cancelled_inside_the_done_of_another(void **state) {
    struct fixture *f = *state;
    assert_working(f);
    f->hold = true;
    enum { COUNT = 10 };
    for (int round = 0; round < 20; round++) {
        struct test_call *calls[COUNT];
        for (int i = 0; i < COUNT; i++) {
            calls[i] = make_call(&echo, 5000);
            cg_channel_call(f->channel, &calls[i]->call);
        }
        calls[0]->cancels = calls[1 + round % (COUNT - 1)];
        run_until(f, &f->handled, 1 + (unsigned)(round + 1) * COUNT);
        answer_held(false);
        for (int i = 0; i < COUNT; i++) {
            finish(f, calls[i]);
            if (calls[i] == calls[0]->cancels) {
                assert_int_equal(calls[i]->call.status, -ECANCELED);
            } else {
                assert_echoed(calls[i]);
            }
        }
        for (int i = 0; i < COUNT; i++) {
            free_call(calls[i]);
        }
    }
}

static void a_channel_may_be_destroyed_inside_a_done(void **state) {
    struct fixture *f = *state;
    struct test_call *calls[10];
    for (int i = 0; i < 10; i++) {
        calls[i] = make_call(&echo, 5000);
        cg_channel_call(f->channel, &calls[i]->call);
    }
    calls[3]->destroys = f->channel;
    for (int i = 0; i < 10; i++) {
        finish(f, calls[i]);
        if (i <= 3) {
            assert_echoed(calls[i]);
        } else {
            assert_int_equal(calls[i]->call.status, -ECANCELED);
        }
        free_call(calls[i]);
    }
    f->channel = NULL;
}

static void destroying_the_channel_ends_all_calls(void **state) {
    struct fixture *f = *state;
    f->hold = true;
    struct test_call *sent = make_call(&echo, 100), *queued = make_call(&echo, 100);
    cg_channel_call(f->channel, &sent->call);
    run_until(f, &f->handled, 1);
    cg_channel_call(f->channel, &queued->call);
    cg_channel_destroy(f->channel);
    f->channel = NULL;
    assert_int_equal(sent->call.status, -ECANCELED);
    assert_int_equal(queued->call.status, -ECANCELED);
    assert_int_equal(sent->done + queued->done, 2);
    free_call(sent);
    free_call(queued);
    idle(f, 5 * CG_NS_PER_MS);
    answer_held(false); // the replies go nowhere
}

static void a_lost_connection_ends_calls_and_the_next_one_reconnects(void **state) {
    struct fixture *f = *state;
    assert_working(f);
    f->hold = true;
    struct test_call *c = make_call(&echo, 100);
    cg_channel_call(f->channel, &c->call);
    run_until(f, &f->handled, 2);
    restart_server(f, NULL);
    finish(f, c);
    assert_int_equal(c->call.status, -ECONNRESET);
    free_call(c);
    answer_held(false); // requests of the server that is gone
    f->hold = false;
    assert_working(f);
}

static void nobody_there_is_told_at_once(void **state) {
    struct fixture *f = *state;
    cg_server_destroy(f->server);
    for (int i = 0; i < 3; i++) {
        struct test_call *c = make_call(&echo, 100);
        cg_channel_call(f->channel, &c->call);
        assert_int_equal(c->done, 0);
        finish(f, c);
        assert_int_equal(c->call.status, -ECONNREFUSED);
        free_call(c);
    }
    start_server(f, NULL);
    assert_working(f);
}

// ---- Bounds

static void reading_pauses_at_the_bound_of_requests_in_flight(void **state) {
    struct fixture *f = *state;
    struct cg_server_options options = {.inflight_max = 4};
    restart_server(f, &options);
    f->hold = true;
    enum { COUNT = 50 };
    struct test_call *calls[COUNT];
    for (int i = 0; i < COUNT; i++) {
        calls[i] = make_call(&echo, i % 2 ? 4096 : 0);
        cg_channel_call(f->channel, &calls[i]->call);
    }
    run_until(f, &f->handled, 4);
    idle(f, 20 * CG_NS_PER_MS);
    assert_in_range(f->handled, 4, 40); // guessed ones may overshoot by what one read brings
    while (f->handled < COUNT) {
        answer_held(false);
        step(f);
    }
    answer_held(false);
    for (int i = 0; i < COUNT; i++) {
        finish(f, calls[i]);
        assert_echoed(calls[i]);
        free_call(calls[i]);
    }
}

static int connect_plainly(const struct fixture *f) {
    int fd = socket(f->endpoint.address.ss_family, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&f->endpoint.address, f->endpoint.length),
                     0);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); // fails for a unix socket
    return fd;
}

// The bytes of a WriteChunk request with an attachment.
static size_t encode_request(uint8_t *out, int64_t id, uint32_t attachment) {
    struct cg_frame_meta meta = {.is_request = true,
                                 .service = "curve.chunkserver.ChunkService",
                                 .method = "WriteChunk",
                                 .correlation_id = id,
                                 .attachment_size = attachment};
    static const uint8_t message[] = {0x08, 0x02, 0x10, 0x01, 0x18, 0x0b, 0x20, 0x01};
    int n = cg_frame_meta_encode(&meta, out + 12, CG_FRAME_META_MAX);
    struct cg_frame_header header = {(uint32_t)n + sizeof(message) + attachment, (uint32_t)n};
    cg_frame_header_encode(&header, out);
    memcpy(out + 12 + n, message, sizeof(message));
    fill(out + 12 + n + sizeof(message), attachment, (unsigned)id);
    return 12 + (size_t)n + sizeof(message) + attachment;
}

static void a_peer_that_does_not_read_its_replies_is_not_read_from(void **state) {
    struct fixture *f = *state;
    struct cg_server_options options = {.send_queue_max = 2 * MIB};
    restart_server(f, &options);
    int fd = connect_plainly(f);
    uint8_t *frame = malloc(MIB + 1000);
    size_t length = encode_request(frame, 1, MIB), at = 0;
    size_t sent = 0;
    // 200 MiB are offered; the server must stop taking them.
    for (int stalled = 0; stalled < 50 && sent < 200 * length;) {
        ssize_t n = send(fd, frame + at, length - at, MSG_DONTWAIT | MSG_NOSIGNAL);
        stalled = n <= 0 ? stalled + 1 : 0;
        if (n > 0) {
            sent += (size_t)n;
            at = (at + (size_t)n) % length;
        }
        step(f);
    }
    assert_true(sent < 100 * length);
    assert_true(cg_buffer_pool_in_use(f->pool) < 20 * (size_t)MIB);
    // Once it reads, everything comes, and reading goes on.
    uint8_t *sink = malloc(MIB);
    size_t received = 0, whole = (sent / length) * MIB;
    for (int i = 0; i < 20000 && received < whole; i++) {
        ssize_t n = recv(fd, sink, MIB, MSG_DONTWAIT);
        if (n > 0) {
            received += (size_t)n;
        }
        step(f);
    }
    assert_true(received >= whole);
    close(fd);
    idle(f, 5 * CG_NS_PER_MS);
    assert_int_equal(cg_buffer_pool_in_use(f->pool), 0);
    free(sink);
    free(frame);
    assert_working(f);
}

static void connections_are_bounded(void **state) {
    struct fixture *f = *state;
    struct cg_server_options options = {.connections_max = 3};
    restart_server(f, &options);
    int fd[5];
    for (int i = 0; i < 5; i++) {
        fd[i] = connect_plainly(f);
        idle(f, 5 * CG_NS_PER_MS);
    }
    struct cg_server_stats stats;
    cg_server_stats(f->server, &stats);
    assert_int_equal(stats.connections, 3);
    char byte;
    for (int i = 0; i < 5; i++) {
        ssize_t n = recv(fd[i], &byte, 1, MSG_DONTWAIT);
        assert_int_equal(n, i < 3 ? -1 : 0);
        close(fd[i]);
    }
    idle(f, 5 * CG_NS_PER_MS);
    assert_working(f);
}

// ---- Bytes one at a time, cut anywhere

static void receive_exactly(struct fixture *f, int fd, uint8_t *out, size_t length) {
    size_t have = 0;
    for (uint64_t end = cg_now_ns() + 10 * CG_NS_PER_S; have < length;) {
        assert_true(cg_now_ns() < end);
        ssize_t n = recv(fd, out + have, length - have, MSG_DONTWAIT);
        if (n > 0) {
            have += (size_t)n;
        }
        cg_reactor_progress(f->reactor);
    }
}

static void a_request_may_be_split_at_every_byte(void **state) {
    struct fixture *f = *state;
    uint8_t frame[400], reply[400];
    int fd = connect_plainly(f);
    size_t length = encode_request(frame, 77, 200);
    for (size_t cut = 0; cut <= length; cut++) {
        size_t step_length = cut == 0 ? 1 : cut; // 0: byte by byte; else in two pieces
        for (size_t at = 0; at < length;) {
            size_t n = cut != 0 && at > 0 ? length - at : step_length;
            n = n < length - at ? n : length - at;
            assert_int_equal(send(fd, frame + at, n, 0), n);
            at += n;
            cg_reactor_progress(f->reactor);
            cg_reactor_progress(f->reactor);
        }
        receive_exactly(f, fd, reply, 12);
        struct cg_frame_header header;
        assert_int_equal(cg_frame_header_decode(reply, &header), 0);
        receive_exactly(f, fd, reply + 12, header.body_size);
        struct cg_frame_meta meta;
        assert_int_equal(cg_frame_meta_decode(reply + 12, header.meta_size, &meta), 0);
        assert_int_equal(meta.correlation_id, 77);
        assert_int_equal(meta.attachment_size, 200);
        assert_memory_equal(reply + 12 + header.body_size - 200, frame + length - 200, 200);
    }
    close(fd);
}

// ---- A peer that talks nonsense to the server

static void assert_closed_by_server(struct fixture *f, int fd) {
    char data[256];
    for (uint64_t end = cg_now_ns() + 5 * CG_NS_PER_S;;) {
        assert_true(cg_now_ns() < end);
        ssize_t n = recv(fd, data, sizeof(data), MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno == ECONNRESET)) {
            break;
        }
        step(f);
    }
    close(fd);
}

static void nonsense_closes_the_connection_and_only_it(void **state) {
    struct fixture *f = *state;
    uint8_t good[400];
    size_t good_length = encode_request(good, 1, 100);
    static const struct {
        const char *bytes;
        size_t length;
    } cases[] = {
        {"\0\0\0\0", 4},
        {"SSH-2.0-x\r\n", 11},
        {"PRPC\x7f\xff\xff\xff\0\0\0\x10", 12},
        {"PRPC\0\0\0\x10\0\0\0\x20", 12},
        {"PRPC\0\0\x20\0\0\0\x10\x01", 12},
        {"PRPC\0\0\0\x04\0\0\0\x04\xff\xff\xff\xff", 16},
        {"PRPC\0\0\0\x04\0\0\0\x04\x12\x02\x08\x00", 16}, // a response
        {"PRPC\x03\0\0\0\0\0\0\x04\x0a\x00\x18\x00", 16}, // no names
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        for (int after_good = 0; after_good < 2; after_good++) {
            int fd = connect_plainly(f);
            if (after_good) {
                assert_int_equal(send(fd, good, good_length, 0), good_length);
            }
            assert_int_equal(send(fd, cases[i].bytes, cases[i].length, 0), cases[i].length);
            assert_closed_by_server(f, fd);
        }
    }
    struct cg_server_stats stats;
    cg_server_stats(f->server, &stats);
    assert_int_equal(stats.bad_frames, 2 * sizeof(cases) / sizeof(cases[0]));
    assert_working(f);
}

static void a_request_that_ends_in_the_middle_leaves_nothing(void **state) {
    struct fixture *f = *state;
    uint8_t frame[9000];
    size_t length = encode_request(frame, 1, 8000);
    for (size_t cut = 1; cut < length; cut += cut < 120 ? 7 : 1000) {
        int fd = connect_plainly(f);
        assert_int_equal(send(fd, frame, cut, 0), cut);
        idle(f, CG_NS_PER_MS);
        close(fd);
        idle(f, CG_NS_PER_MS);
    }
    assert_int_equal(f->handled, 0);
    assert_int_equal(cg_buffer_pool_in_use(f->pool), 0);
    struct cg_server_stats stats;
    cg_server_stats(f->server, &stats);
    assert_int_equal(stats.connections, 0);
    assert_working(f);
}

// ---- GET /health

static const char *not_healthy(void *context) {
    (void)context;
    return NULL;
}

static void ask_http(struct fixture *f, const char *request, const char *status, const char *body) {
    int fd = connect_plainly(f);
    // In two pieces, the first without anything that tells HTTP.
    assert_int_equal(send(fd, request, 2, 0), 2);
    idle(f, CG_NS_PER_MS);
    size_t length = strlen(request) - 2;
    assert_int_equal(send(fd, request + 2, length, 0), length);
    static char reply[9 * MIB];
    size_t have = 0;
    for (uint64_t end = cg_now_ns() + 5 * CG_NS_PER_S;;) {
        assert_true(cg_now_ns() < end);
        ssize_t n = recv(fd, reply + have, sizeof(reply) - 1 - have, MSG_DONTWAIT);
        if (n == 0) {
            break;
        }
        have += n > 0 ? (size_t)n : 0;
        step(f);
    }
    reply[have] = '\0';
    close(fd);
    assert_memory_equal(reply, status, strlen(status));
    assert_true(have >= strlen(body));
    assert_string_equal(reply + have - strlen(body), body);
}

static char *some_metrics(void *context) {
    // More than a socket takes at once.
    size_t length = 8 * MIB;
    char *text = malloc(length + 1);
    memset(text, 'm', length);
    text[length - 1] = '\n';
    text[length] = '\0';
    (*(unsigned *)context)++;
    return text;
}

static char *no_metrics(void *context) {
    (void)context;
    return NULL;
}

static void metrics_are_answered_over_http(void **state) {
    struct fixture *f = *state;
    unsigned asked = 0;
    struct cg_server_options options = {.metrics = some_metrics, .metrics_context = &asked};
    restart_server(f, &options);
    ask_http(f, "GET /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\n", "mmmmmmmm\n");
    assert_int_equal(asked, 1);
    ask_http(f, "HEAD /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\n", "close\r\n\r\n");
    ask_http(f, "GET /metricsandmore HTTP/1.1\r\n\r\n", "HTTP/1.1 404 ", "/metrics are here\n");
    assert_int_equal(asked, 2);
    options.metrics = no_metrics;
    restart_server(f, &options);
    ask_http(f, "GET /metrics?x=1 HTTP/1.1\r\n\r\n", "HTTP/1.1 503 ", "not now\n");
    assert_working(f);
}

static void health_is_answered_over_http(void **state) {
    struct fixture *f = *state;
    ask_http(f, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK\r\n", "\r\n\r\nOK\n");
    ask_http(f, "GET /vars HTTP/1.1\r\n\r\n", "HTTP/1.1 404 ", "only /health is here\n");
    ask_http(f, "POST /ChunkService/ReadChunk HTTP/1.1\r\n\r\n", "HTTP/1.1 404 ", "here\n");
    struct cg_server_options options = {.health = not_healthy};
    restart_server(f, &options);
    ask_http(f, "GET /health HTTP/1.1\r\n\r\n", "HTTP/1.1 503 ", "not ready\n");
    assert_working(f);
}

// ---- A peer that talks nonsense to the channel

static int listen_plainly(struct fixture *f) {
    cg_server_destroy(f->server);
    f->server = NULL;
    int fd = socket(f->endpoint.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    assert_int_equal(bind(fd, (const struct sockaddr *)&f->endpoint.address, f->endpoint.length),
                     0);
    assert_int_equal(listen(fd, 4), 0);
    return fd;
}

static int accept_plainly(struct fixture *f, int listener) {
    for (uint64_t end = cg_now_ns() + 5 * CG_NS_PER_S;;) {
        assert_true(cg_now_ns() < end);
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
        if (fd >= 0) {
            return fd;
        }
        step(f);
    }
}

static void stop_listening(struct fixture *f, int fd) {
    close(fd);
    unlink(f->path);
}

static void a_reply_that_makes_no_sense_ends_the_call(void **state) {
    struct fixture *f = *state;
    int listener = listen_plainly(f);
    static const char *const replies[] = {
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "PRPC\x7f\xff\xff\xff\x01\x01\x01\x01",
    };
    for (size_t i = 0; i < 2; i++) {
        struct test_call *c = make_call(&echo, 100);
        cg_channel_call(f->channel, &c->call);
        int fd = accept_plainly(f, listener);
        idle(f, 2 * CG_NS_PER_MS);
        assert_true(send(fd, replies[i], strlen(replies[i]), MSG_NOSIGNAL) > 0);
        finish(f, c);
        assert_int_equal(c->call.status, -EPROTO);
        free_call(c);
        close(fd);
    }
    stop_listening(f, listener);
}

static size_t encode_reply(uint8_t *out, int64_t id, uint32_t attachment) {
    struct cg_frame_meta meta = {.correlation_id = id, .attachment_size = attachment};
    int n = cg_frame_meta_encode(&meta, out + 12, CG_FRAME_META_MAX);
    struct cg_frame_header header = {(uint32_t)n + 2 + attachment, (uint32_t)n};
    cg_frame_header_encode(&header, out);
    memcpy(out + 12 + n, "\x08\x00", 2);
    fill(out + 12 + n + 2, attachment, 5);
    return 14 + (size_t)n + attachment;
}

static void a_half_received_reply_can_be_taken_back(void **state) {
    struct fixture *f = *state;
    int listener = listen_plainly(f);
    struct test_call *first = make_call(&echo, 9000), *second = make_call(&echo, 9000);
    cg_channel_call(f->channel, &first->call);
    cg_channel_call(f->channel, &second->call);
    int fd = accept_plainly(f, listener);
    idle(f, 2 * CG_NS_PER_MS);
    uint8_t *reply = malloc(10000);
    size_t length = encode_reply(reply, (int64_t)first->call.correlation_id, 9000);
    assert_int_equal(send(fd, reply, 5000, 0), 5000);
    idle(f, 2 * CG_NS_PER_MS);
    cg_channel_cancel(f->channel, &first->call);
    assert_int_equal(first->done, 1);
    free_call(first); // nothing may be written there any more
    assert_int_equal(send(fd, reply + 5000, length - 5000, 0), length - 5000);
    length = encode_reply(reply, (int64_t)second->call.correlation_id, 9000);
    assert_int_equal(send(fd, reply, length, 0), length);
    finish(f, second);
    assert_int_equal(second->call.status, 0);
    assert_memory_equal(second->in, reply + length - 9000, 9000);
    free_call(second);
    free(reply);
    close(fd);
    stop_listening(f, listener);
}

static void a_reader_that_stops_makes_half_sent_requests_time_out(void **state) {
    struct fixture *f = *state;
    int listener = listen_plainly(f);
    enum { COUNT = 40 };
    struct test_call *calls[COUNT];
    for (int i = 0; i < COUNT; i++) {
        calls[i] = make_call(&echo, MIB);
        calls[i]->call.timeout_ns = 50 * CG_NS_PER_MS;
        cg_channel_call(f->channel, &calls[i]->call);
    }
    int fd = accept_plainly(f, listener);
    int timed_out = 0, reset = 0;
    for (int i = 0; i < COUNT; i++) {
        finish(f, calls[i]);
        timed_out += calls[i]->call.status == -ETIMEDOUT;
        reset += calls[i]->call.status == -ECONNRESET;
        free_call(calls[i]);
    }
    assert_int_equal(timed_out + reset, COUNT);
    assert_true(timed_out > 0);
    assert_int_equal(cg_channel_inflight(f->channel), 0);
    close(fd);
    stop_listening(f, listener);
}

// ---- Listening

static void a_stale_socket_file_is_replaced_and_one_in_use_is_not(void **state) {
    struct fixture *f = *state;
    if (over_tcp) {
        assert_int_equal(cg_server_listen(f->server, &f->endpoint, NULL), -EADDRINUSE);
        return;
    }
    assert_int_equal(cg_server_listen(f->server, &f->endpoint, NULL), -EADDRINUSE);
    cg_server_destroy(f->server);
    int stale = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(stale, (const struct sockaddr *)&f->endpoint.address, f->endpoint.length),
                     0);
    close(stale);
    start_server(f, NULL);
    assert_working(f);
    cg_server_destroy(f->server);
    // What is no socket is left alone.
    int fd = open(f->path, O_CREAT | O_EXCL | O_WRONLY, 0600);
    assert_int_equal(write(fd, "precious", 8), 8);
    close(fd);
    struct cg_server_options options = {.methods = methods, .method_count = 2, .pool = f->pool};
    assert_int_equal(cg_server_create(f->reactor, &options, &f->server), 0);
    assert_int_equal(cg_server_listen(f->server, &f->endpoint, NULL), -EADDRINUSE);
    struct stat st;
    assert_int_equal(stat(f->path, &st), 0);
    assert_int_equal(st.st_size, 8);
    unlink(f->path);
}

static struct cg_channel *channel_with_beside(struct fixture *f, const char *address) {
    struct cg_endpoint beside;
    struct cg_channel_options options = {.beside = &beside};
    struct cg_channel *channel;
    cg_endpoint_beside(address, &beside);
    assert_int_equal(cg_channel_create(f->reactor, &f->endpoint, &options, &channel), 0);
    return channel;
}

static void the_socket_beside_is_preferred_and_missed_by_nobody(void **state) {
    struct fixture *f = *state;
    char address[64];
    struct cg_endpoint beside;
    snprintf(address, sizeof(address), "127.0.0.1:%d.%d", (int)getpid(), over_tcp);
    cg_channel_destroy(f->channel);
    f->channel = channel_with_beside(f, address);
    assert_working(f); // nobody listens there: the ordinary way
    cg_channel_destroy(f->channel);
    // Now only the socket beside is there.
    cg_server_destroy(f->server);
    struct cg_server_options options = {.methods = methods, .method_count = 2, .pool = f->pool};
    assert_int_equal(cg_server_create(f->reactor, &options, &f->server), 0);
    cg_endpoint_beside(address, &beside);
    assert_int_equal(cg_server_listen(f->server, &beside, NULL), 0);
    assert_int_equal(cg_server_listen(f->server, &beside, NULL), -EADDRINUSE);
    f->channel = channel_with_beside(f, address);
    assert_working(f);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

static int run_suite(const char *name) {
    const struct CMUnitTest tests[] = {
        WITH(attachments_of_every_size_come_back),
        WITH(one_way_calls_end_when_they_are_sent),
        WITH(a_method_has_a_pool_of_its_own),
        WITH(a_disconnected_channel_ends_its_calls_and_connects_again),
        WITH(many_calls_of_mixed_sizes_are_pipelined),
        WITH(replies_may_come_in_any_order),
        WITH(an_encoded_request_and_one_too_long_for_the_inline_head),
        WITH(a_reply_may_be_encoded_already),
        WITH(unknown_names_get_1002),
        WITH(a_refused_request_is_skipped_and_answered),
        WITH(an_exhausted_pool_is_overload_and_passes),
        WITH(a_reply_longer_than_the_callers_memory_fails_that_call_only),
        WITH(a_call_ends_when_its_time_is_up_and_a_late_reply_is_dropped),
        WITH(cancelling_ends_a_call_in_any_state),
        WITH(a_call_may_be_cancelled_inside_the_done_of_another),
        WITH(a_channel_may_be_destroyed_inside_a_done),
        WITH(destroying_the_channel_ends_all_calls),
        WITH(a_lost_connection_ends_calls_and_the_next_one_reconnects),
        WITH(nobody_there_is_told_at_once),
        WITH(reading_pauses_at_the_bound_of_requests_in_flight),
        WITH(a_peer_that_does_not_read_its_replies_is_not_read_from),
        WITH(connections_are_bounded),
        WITH(a_request_may_be_split_at_every_byte),
        WITH(nonsense_closes_the_connection_and_only_it),
        WITH(a_request_that_ends_in_the_middle_leaves_nothing),
        WITH(health_is_answered_over_http),
        WITH(metrics_are_answered_over_http),
        WITH(a_reply_that_makes_no_sense_ends_the_call),
        WITH(a_half_received_reply_can_be_taken_back),
        WITH(a_reader_that_stops_makes_half_sent_requests_time_out),
        WITH(a_stale_socket_file_is_replaced_and_one_in_use_is_not),
        WITH(the_socket_beside_is_preferred_and_missed_by_nobody),
    };
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

// Usage: test_rpc uring|epoll unix|tcp. Where io_uring is refused its run is skipped.
int main(int argc, char **argv) {
    backend_under_test =
        argc > 1 && strcmp(argv[1], "epoll") == 0 ? CG_REACTOR_EPOLL : CG_REACTOR_URING;
    over_tcp = argc > 2 && strcmp(argv[2], "tcp") == 0;
    struct cg_reactor_options options = {.backend = backend_under_test};
    struct cg_reactor *probe;
    int rc = cg_reactor_create(&options, &probe);
    if (rc == -EPERM || rc == -ENOSYS) {
        print_message("io_uring is refused here: skipped\n");
        return 77;
    }
    if (rc == 0) {
        cg_reactor_destroy(probe);
    }
    return run_suite(over_tcp ? "rpc over TCP" : "rpc over a unix socket");
}
