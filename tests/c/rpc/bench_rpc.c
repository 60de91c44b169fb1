// SPDX-License-Identifier: BSD-3-Clause
//
// Calls per second and processor time per call of 4 KiB reads and writes against a server that does
// nothing, over a unix socket: what the transport costs. Client and server have a thread each.
//
// Usage: bench_rpc [SECONDS] [uring|epoll] [DEPTH]
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/buffer.h"
#include "base/clock.h"
#include "base/reactor.h"
#include "gateway/proto/chunk.pb.h"
#include "rpc/channel.h"
#include "rpc/server.h"

#define BLOCK     4096U
#define DEPTH_MAX 128U

static const struct cg_rpc_method read_method = {"curve.chunkserver.ChunkService", "ReadChunk"};
static const struct cg_rpc_method write_method = {"curve.chunkserver.ChunkService", "WriteChunk"};

static void die(const char *what, int rc) {
    fprintf(stderr, "bench_rpc: %s: %s\n", what, strerror(-rc));
    exit(1);
}

// ---- The server

static _Alignas(4096) uint8_t block[BLOCK];

static void handle_read(struct cg_server_request *request) {
    curve_chunkserver_ChunkResponse response = {
        .status = curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_SUCCESS,
        .has_appliedIndex = true,
        .appliedIndex = 1000,
    };
    struct iovec iov = {block, BLOCK};
    cg_server_reply(request, curve_chunkserver_ChunkResponse_fields, &response, &iov, 1, NULL,
                    NULL);
}

static void handle_write(struct cg_server_request *request) {
    curve_chunkserver_ChunkResponse response = {
        .status = curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_SUCCESS,
        .has_appliedIndex = true,
        .appliedIndex = 1000,
    };
    cg_server_reply(request, curve_chunkserver_ChunkResponse_fields, &response, NULL, 0, NULL,
                    NULL);
}

static const struct cg_server_method methods[] = {
    {.service = "curve.chunkserver.ChunkService", .name = "ReadChunk", .handle = handle_read},
    {.service = "curve.chunkserver.ChunkService", .name = "WriteChunk", .handle = handle_write},
};

static void *run_server(void *argument) {
    int rc = cg_reactor_run(argument);
    if (rc < 0) {
        die("server's reactor", rc);
    }
    return NULL;
}

// ---- The client

struct load {
    struct cg_channel *channel;
    struct slot {
        struct cg_rpc_call call;
        struct load *load;
        struct iovec iov;
        uint8_t *data;
    } slots[DEPTH_MAX];
    unsigned inflight;
    uint64_t calls;
    uint64_t end_ns;
    uint64_t seed;
    struct cg_reactor *reactor;
};

static void submit(struct slot *slot) {
    struct load *load = slot->load;
    load->seed = load->seed * 6364136223846793005U + 1442695040888963407U;
    uint32_t offset = (uint32_t)(load->seed >> 40) % 4096U * BLOCK;
    bool writes = slot->call.method == &write_method;
    curve_chunkserver_ChunkRequest request = {
        .opType = writes ? curve_chunkserver_CHUNK_OP_TYPE_CHUNK_OP_WRITE
                         : curve_chunkserver_CHUNK_OP_TYPE_CHUNK_OP_READ,
        .logicPoolId = 1,
        .copysetId = 11,
        .chunkId = 77,
        .has_offset = true,
        .offset = offset,
        .has_size = true,
        .size = BLOCK,
    };
    slot->call.request = &request;
    load->inflight++;
    cg_channel_call(load->channel, &slot->call);
}

static void done(struct cg_rpc_call *call) {
    struct slot *slot = CG_CONTAINER_OF(call, struct slot, call);
    struct load *load = slot->load;
    if (call->status < 0) {
        die("call", call->status);
    }
    load->calls++;
    load->inflight--;
    if (cg_reactor_now(load->reactor) < load->end_ns) {
        submit(slot);
    }
}

static double processor_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_utime.tv_sec + (double)usage.ru_stime.tv_sec +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void measure(struct load *load, const struct cg_rpc_method *method, unsigned depth,
                    double seconds) {
    load->calls = 0;
    uint64_t begin_ns = cg_now_ns();
    double processor = processor_seconds();
    load->end_ns = begin_ns + (uint64_t)(seconds * 1e9);
    for (unsigned i = 0; i < depth; i++) {
        struct slot *slot = &load->slots[i];
        slot->load = load;
        slot->iov = (struct iovec){slot->data, BLOCK};
        slot->call.method = method;
        slot->call.request_fields = curve_chunkserver_ChunkRequest_fields;
        bool writes = method == &write_method;
        slot->call.send_iov = writes ? &slot->iov : NULL;
        slot->call.send_iovcnt = writes;
        slot->call.send_length = writes ? BLOCK : 0;
        slot->call.receive_iov = writes ? NULL : &slot->iov;
        slot->call.receive_iovcnt = !writes;
        slot->call.receive_capacity = writes ? 0 : BLOCK;
        slot->call.timeout_ns = CG_NS_PER_S;
        slot->call.done = done;
        submit(slot);
    }
    while (load->inflight > 0) {
        int rc = cg_reactor_wait(load->reactor, UINT64_MAX);
        if (rc < 0) {
            die("client's reactor", rc);
        }
    }
    double elapsed = (double)(cg_now_ns() - begin_ns) / 1e9;
    processor = processor_seconds() - processor;
    printf("%-10s depth %3u: %8.0f calls/s, %6.2f us of processor per call (both sides)\n",
           method->name, depth, (double)load->calls / elapsed,
           processor * 1e6 / (double)load->calls);
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 1.0;
    struct cg_reactor_options options = {0};
    if (argc > 2) {
        options.backend = strcmp(argv[2], "epoll") == 0 ? CG_REACTOR_EPOLL : CG_REACTOR_URING;
    }
    struct cg_reactor *server_reactor;
    static struct load load;
    int rc = cg_reactor_create(&options, &server_reactor);
    if (rc == 0) {
        rc = cg_reactor_create(&options, &load.reactor);
    }
    if (rc < 0) {
        die("reactor", rc);
    }
    struct cg_buffer_pool *pool;
    struct cg_server *server;
    char path[64];
    snprintf(path, sizeof(path), "unix:/tmp/bench_rpc.%d", (int)getpid());
    struct cg_endpoint endpoint;
    rc = cg_endpoint_parse(path, &endpoint);
    if (rc == 0) {
        rc = cg_buffer_pool_create(64U << 20, &pool);
    }
    struct cg_server_options server_options = {.methods = methods, .method_count = 2};
    if (rc == 0) {
        server_options.pool = pool;
        rc = cg_server_create(server_reactor, &server_options, &server);
    }
    if (rc == 0) {
        rc = cg_server_listen(server, &endpoint, NULL);
    }
    pthread_t thread;
    if (rc == 0) {
        rc = -pthread_create(&thread, NULL, run_server, server_reactor);
    }
    if (rc == 0) {
        rc = cg_channel_create(load.reactor, &endpoint, NULL, &load.channel);
    }
    if (rc < 0) {
        die("set-up", rc);
    }
    for (unsigned i = 0; i < DEPTH_MAX; i++) {
        load.slots[i].data = aligned_alloc(4096, BLOCK);
    }
    printf("backend: %s\n",
           cg_reactor_backend(load.reactor) == CG_REACTOR_URING ? "io_uring" : "epoll");
    unsigned depths[] = {1, 32, 128};
    unsigned rounds = 3;
    if (argc > 3) {
        depths[0] = (unsigned)atoi(argv[3]);
        depths[0] = depths[0] < 1 ? 1 : depths[0] > DEPTH_MAX ? DEPTH_MAX : depths[0];
        rounds = 1;
    }
    for (unsigned i = 0; i < rounds; i++) {
        measure(&load, &read_method, depths[i], seconds);
        measure(&load, &write_method, depths[i], seconds);
    }
    cg_channel_destroy(load.channel);
    cg_reactor_destroy(load.reactor);
    cg_reactor_stop(server_reactor);
    pthread_join(thread, NULL);
    cg_server_destroy(server);
    cg_reactor_destroy(server_reactor);
    cg_buffer_pool_destroy(pool);
    for (unsigned i = 0; i < DEPTH_MAX; i++) {
        free(load.slots[i].data);
    }
    return 0;
}
