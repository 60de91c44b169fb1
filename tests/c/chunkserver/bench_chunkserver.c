// SPDX-License-Identifier: BSD-3-Clause
//
// Requests per second and the chunkserver's processor time per request, over a unix socket, with
// one client thread. Random offsets of one volume.
//
// Usage: bench_chunkserver FOLDER [read|write|seqwrite|seqread] [DEPTH] [SECONDS] [CHUNKS]
// [uring|epoll]
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/buffer.h"
#include "base/clock.h"
#include "base/histogram.h"
#include "base/log.h"
#include "base/reactor.h"
#include "chunkserver/chunkserver.h"
#include "gateway/proto/chunk.pb.h"
#include "rpc/channel.h"

#define DEPTH_MAX  256U
#define CHUNK_SIZE (16U << 20)

static const struct cg_rpc_method read_method = {"curve.chunkserver.ChunkService", "ReadChunk"};
static const struct cg_rpc_method write_method = {"curve.chunkserver.ChunkService", "WriteChunk"};

struct slot {
    struct cg_rpc_call call;
    struct iovec iov;
    uint64_t started_ns;
};

static struct bench {
    struct cg_reactor *reactor;
    struct cg_channel *channel;
    bool write;
    bool sequential;
    uint32_t length;
    uint32_t chunks;
    uint64_t position;
    uint64_t sequence;
    uint64_t done;
    uint64_t failed;
    uint64_t client_id;
    uint64_t end_ns;
    unsigned inflight;
    uint64_t random;
    struct cg_histogram latency;
    struct slot slots[DEPTH_MAX];
} bench;

static void die(const char *what, int rc) {
    fprintf(stderr, "bench_chunkserver: %s: %s\n", what, strerror(-rc));
    exit(1);
}

static void print_line(void *context, enum cg_log_level level, const char *line) {
    (void)context;
    fprintf(stderr, "%d: %s\n", (int)level, line);
}

static uint64_t next_position(void) {
    uint64_t places = (uint64_t)bench.chunks * CHUNK_SIZE / bench.length;
    if (bench.sequential) {
        return bench.position++ % places * bench.length;
    }
    bench.random ^= bench.random << 13;
    bench.random ^= bench.random >> 7;
    bench.random ^= bench.random << 17;
    return bench.random % places * bench.length;
}

static void done(struct cg_rpc_call *call);

static void start(struct slot *slot) {
    uint64_t position = next_position();
    curve_chunkserver_ChunkRequest request = curve_chunkserver_ChunkRequest_init_zero;
    request.opType = bench.write ? curve_chunkserver_CHUNK_OP_TYPE_CHUNK_OP_WRITE
                                 : curve_chunkserver_CHUNK_OP_TYPE_CHUNK_OP_READ;
    request.logicPoolId = 1;
    request.chunkId = position / CHUNK_SIZE + 1;
    request.copysetId = 1 + (uint32_t)(request.chunkId % 4);
    request.has_offset = request.has_size = true;
    request.offset = (uint32_t)(position % CHUNK_SIZE);
    request.size = bench.length;
    if (bench.write) {
        request.has_sn = request.has_fileId = request.has_clientId = request.has_sequence = true;
        request.sn = 1;
        request.fileId = 5;
        request.clientId = bench.client_id;
        request.sequence = ++bench.sequence;
        request.has_settledBelow = true;
        request.settledBelow = bench.sequence > DEPTH_MAX ? bench.sequence - DEPTH_MAX : 0;
        slot->call.send_iov = &slot->iov;
        slot->call.send_iovcnt = 1;
        slot->call.send_length = bench.length;
    } else {
        slot->call.receive_iov = &slot->iov;
        slot->call.receive_iovcnt = 1;
        slot->call.receive_capacity = bench.length;
    }
    slot->call.method = bench.write ? &write_method : &read_method;
    slot->call.request_fields = curve_chunkserver_ChunkRequest_fields;
    slot->call.request = &request;
    slot->call.timeout_ns = 30 * CG_NS_PER_S;
    slot->call.done = done;
    slot->started_ns = cg_now_ns();
    bench.inflight++;
    cg_channel_call(bench.channel, &slot->call);
}

static void done(struct cg_rpc_call *call) {
    struct slot *slot = CG_CONTAINER_OF(call, struct slot, call);
    uint64_t now = cg_now_ns();
    bench.inflight--;
    bench.done++;
    // status 0 is the message's first field: 08 00
    bench.failed += call->status != 0 || call->reply_length < 2 || call->reply[1] != 0;
    cg_histogram_add(&bench.latency, now - slot->started_ns);
    if (now < bench.end_ns) {
        start(slot);
    }
}

static double seconds_of(const struct timeval *value) {
    return (double)value->tv_sec + (double)value->tv_usec / 1e6;
}

static double cpu(int who) {
    struct rusage usage;
    getrusage(who, &usage);
    return seconds_of(&usage.ru_utime) + seconds_of(&usage.ru_stime);
}

static void run(const char *name, bool write, bool sequential, uint32_t length, unsigned depth,
                double seconds) {
    bench.write = write;
    bench.sequential = sequential;
    bench.length = length;
    bench.done = bench.failed = bench.position = 0;
    bench.client_id = cg_wall_us();
    bench.random = bench.client_id | 1;
    cg_histogram_reset(&bench.latency);
    double process = cpu(RUSAGE_SELF);
    double client = cpu(RUSAGE_THREAD);
    uint64_t begin = cg_now_ns();
    bench.end_ns = begin + (uint64_t)(seconds * 1e9);
    for (unsigned i = 0; i < depth; i++) {
        start(&bench.slots[i]);
    }
    while (bench.inflight > 0) {
        cg_reactor_wait(bench.reactor, CG_NS_PER_S);
    }
    double took = (double)(cg_now_ns() - begin) / 1e9;
    client = cpu(RUSAGE_THREAD) - client;
    process = cpu(RUSAGE_SELF) - process - client;
    printf("%-9s %7u B depth %3u: %9.0f/s %8.1f MB/s  server %5.2f us/op  client %5.2f us/op  "
           "p50 %5.0f us p99 %6.0f us max %7.0f us  failed %lu\n",
           name, length, depth, (double)bench.done / took, (double)bench.done * length / took / 1e6,
           process * 1e6 / (double)bench.done, client * 1e6 / (double)bench.done,
           (double)cg_histogram_percentile(&bench.latency, 50) / 1e3,
           (double)cg_histogram_percentile(&bench.latency, 99) / 1e3,
           (double)bench.latency.max / 1e3, (unsigned long)bench.failed);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: bench_chunkserver FOLDER [read|write|seqread|seqwrite] [DEPTH] "
                        "[SECONDS] [CHUNKS] [uring|epoll]\n");
        return 2;
    }
    const char *mode = argc > 2 ? argv[2] : "write";
    unsigned depth = argc > 3 ? (unsigned)atoi(argv[3]) : 32;
    double seconds = argc > 4 ? atof(argv[4]) : 3;
    bench.chunks = argc > 5 ? (uint32_t)atoi(argv[5]) : 32;
    depth = depth < 1 || depth > DEPTH_MAX ? DEPTH_MAX : depth;
    cg_log_set_sink(print_line, NULL, CG_LOG_WARNING);
    char error[512] = "";
    char listen[256];
    snprintf(listen, sizeof(listen), "unix:%s/bench.sock", argv[1]);
    struct cg_chunkserver_options options = {
        .folder = argv[1],
        .listen = listen,
        .memory_bytes = 512U << 20,
        .reactor_backend = argc > 6 && strcmp(argv[6], "epoll") == 0 ? CG_REACTOR_EPOLL : 0,
    };
    struct cg_chunkserver *server;
    int result = cg_chunkserver_start(&options, &server, error, sizeof(error));
    if (result != 0) {
        fprintf(stderr, "bench_chunkserver: %s\n", error);
        return 1;
    }
    for (uint32_t i = 1; i <= 4; i++) {
        cg_chunkserver_add_copyset(server, 1, i);
    }
    struct cg_endpoint endpoint;
    struct cg_reactor_options reactor_options = {.backend = options.reactor_backend};
    if ((result = cg_endpoint_parse(listen, &endpoint)) != 0 ||
        (result = cg_reactor_create(&reactor_options, &bench.reactor)) != 0 ||
        (result = cg_channel_create(bench.reactor, &endpoint, NULL, &bench.channel)) != 0) {
        die("client", result);
    }
    for (unsigned i = 0; i < DEPTH_MAX; i++) {
        void *memory = NULL;
        if (posix_memalign(&memory, 4096, 1U << 20) != 0) {
            die("memory", -12);
        }
        memset(memory, (int)i, 1U << 20);
        bench.slots[i].iov = (struct iovec){memory, 1U << 20};
    }
    bool is_write = strstr(mode, "write") != NULL;
    bool sequential = strncmp(mode, "seq", 3) == 0;
    uint32_t length = sequential ? 1U << 20 : 4096;
    for (unsigned i = 0; i < DEPTH_MAX; i++) {
        bench.slots[i].iov.iov_len = length;
    }
    run(mode, is_write, sequential, length, depth, seconds);
    struct cg_chunkserver_stats stats;
    cg_chunkserver_stats(server, &stats);
    printf("log: %.1f records a batch, %.1f MB written; checkpoints %lu\n",
           (double)stats.wal_records / (double)(stats.wal_batches ? stats.wal_batches : 1),
           (double)stats.wal_bytes / 1e6, (unsigned long)stats.checkpoints);
    cg_channel_destroy(bench.channel);
    uint64_t begin = cg_now_ns();
    cg_chunkserver_stop(server);
    printf("stop took %.2f s\n", (double)(cg_now_ns() - begin) / 1e9);
    cg_reactor_destroy(bench.reactor);
    return 0;
}
