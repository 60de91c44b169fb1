// SPDX-License-Identifier: BSD-3-Clause
//
// Requests per second and the chunkserver's processor time per request, over a unix socket, with
// one client thread. Random offsets of one volume. With several replicas: as many chunkservers on
// the same disk, whose time counts together; each copyset is led by another one.
//
// Usage: bench_chunkserver FOLDER [read|write|seqwrite|seqread] [DEPTH] [SECONDS] [CHUNKS]
// [uring|epoll] [REPLICAS]
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "base/buffer.h"
#include "base/clock.h"
#include "base/histogram.h"
#include "base/log.h"
#include "base/reactor.h"
#include "chunkserver/chunkserver.h"
#include "gateway/proto/chunk.pb.h"
#include "rpc/channel.h"

#define DEPTH_MAX    256U
#define CHUNK_SIZE   (16U << 20)
#define REPLICAS_MAX 5U
#define COPYSETS     4U

static const struct cg_rpc_method read_method = {"curve.chunkserver.ChunkService", "ReadChunk"};
static const struct cg_rpc_method write_method = {"curve.chunkserver.ChunkService", "WriteChunk"};

struct slot {
    struct cg_rpc_call call;
    struct iovec iov;
    uint64_t started_ns;
};

static struct bench {
    struct cg_reactor *reactor;
    struct cg_chunkserver *server[REPLICAS_MAX];
    struct cg_channel *channel[REPLICAS_MAX];
    unsigned replicas;
    unsigned leader[COPYSETS];
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
    uint32_t copyset = (uint32_t)(request.chunkId % COPYSETS);
    request.copysetId = 1 + copyset;
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
    cg_channel_call(bench.channel[bench.leader[copyset]], &slot->call);
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
    process = cpu(RUSAGE_SELF) - process;
    double everything = (double)bench.done / process;
    process -= client;
    printf("%-9s %7u B depth %3u: %9.0f/s %8.1f MB/s  server %5.2f us/op  client %5.2f us/op  "
           "%6.0f per s of both  p50 %5.0f us p99 %6.0f us max %7.0f us  failed %lu\n",
           name, length, depth, (double)bench.done / took, (double)bench.done * length / took / 1e6,
           process * 1e6 / (double)bench.done, client * 1e6 / (double)bench.done, everything,
           (double)cg_histogram_percentile(&bench.latency, 50) / 1e3,
           (double)cg_histogram_percentile(&bench.latency, 99) / 1e3,
           (double)bench.latency.max / 1e3, (unsigned long)bench.failed);
}

// ---- Servers

static void start_server(unsigned i, const char *folder, int backend) {
    char own[200];
    char listen[256];
    char error[512] = "";
    snprintf(own, sizeof(own), bench.replicas > 1 ? "%s/%u" : "%s", folder, i + 1);
    if (bench.replicas > 1) {
        mkdir(own, 0700);
    }
    snprintf(listen, sizeof(listen), "127.0.0.1:0,unix:%s/bench.sock", own);
    struct cg_chunkserver_options options = {
        .folder = own, .listen = listen, .memory_bytes = 512U << 20, .reactor_backend = backend};
    int result = cg_chunkserver_start(&options, &bench.server[i], error, sizeof(error));
    if (result != 0) {
        fprintf(stderr, "bench_chunkserver: %s\n", error);
        exit(1);
    }
    snprintf(listen, sizeof(listen), "unix:%s/bench.sock", own);
    struct cg_endpoint endpoint;
    if ((result = cg_endpoint_parse(listen, &endpoint)) != 0 ||
        (result = cg_channel_create(bench.reactor, &endpoint, NULL, &bench.channel[i])) != 0) {
        die("client", result);
    }
}

static void add_copysets(void) {
    uint64_t founders[REPLICAS_MAX];
    for (unsigned i = 0; i < bench.replicas; i++) {
        founders[i] = i + 1;
        for (unsigned j = 0; j < bench.replicas; j++) {
            char address[128];
            cg_chunkserver_address(bench.server[j], address, sizeof(address));
            cg_chunkserver_set_peer(bench.server[i], j + 1, address);
        }
    }
    for (unsigned i = 0; i < bench.replicas; i++) {
        for (uint32_t copyset = 1; copyset <= COPYSETS; copyset++) {
            struct cg_copyset_spec spec = {.pool = 1,
                                           .copyset = copyset,
                                           .self = i + 1,
                                           .founders = founders,
                                           .founder_count = bench.replicas};
            int result = cg_chunkserver_add_copyset(bench.server[i], &spec);
            if (result != 0) {
                die("copyset", result);
            }
        }
    }
}

// Leads here and serves.
static bool ready(unsigned i, uint32_t copyset) {
    struct cg_chunkserver_copyset found[COPYSETS];
    uint32_t count = cg_chunkserver_copysets(bench.server[i], found, COPYSETS);
    for (uint32_t n = 0; n < count; n++) {
        if (found[n].copyset == copyset + 1) {
            return found[n].log.ready;
        }
    }
    return false;
}

// Spreads the leaders.
static void place_leaders(void) {
    for (uint32_t copyset = 0; copyset < COPYSETS; copyset++) {
        unsigned wanted = copyset % bench.replicas;
        while (!ready(wanted, copyset)) {
            for (unsigned i = 0; i < bench.replicas; i++) {
                if (i != wanted && ready(i, copyset)) {
                    cg_chunkserver_transfer(bench.server[i], 1, copyset + 1, wanted + 1);
                }
            }
            cg_reactor_wait(bench.reactor, CG_NS_PER_MS);
        }
        bench.leader[copyset] = wanted;
    }
}

static void print_server(unsigned i) {
    struct cg_chunkserver_stats stats;
    cg_chunkserver_stats(bench.server[i], &stats);
    double writes = (double)(bench.done != 0 ? bench.done : 1);
    printf("log %u: %.1f records a batch, %.1f MB written; checkpoints %lu; frames sent %.2f, "
           "received %.2f, messages sent %.2f per request, dropped %lu; batches read back %lu\n",
           i + 1, (double)stats.wal_records / (double)(stats.wal_batches ? stats.wal_batches : 1),
           (double)stats.wal_bytes / 1e6, (unsigned long)stats.checkpoints,
           (double)stats.peers.frames_sent / writes, (double)stats.peers.frames_received / writes,
           (double)stats.peers.messages_sent / writes, (unsigned long)stats.peers.messages_dropped,
           (unsigned long)stats.log.fetches);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: bench_chunkserver FOLDER [read|write|seqread|seqwrite] [DEPTH] "
                        "[SECONDS] [CHUNKS] [uring|epoll] [REPLICAS]\n");
        return 2;
    }
    const char *mode = argc > 2 ? argv[2] : "write";
    unsigned depth = argc > 3 ? (unsigned)atoi(argv[3]) : 32;
    double seconds = argc > 4 ? atof(argv[4]) : 3;
    bench.chunks = argc > 5 ? (uint32_t)atoi(argv[5]) : 32;
    int backend = argc > 6 && strcmp(argv[6], "epoll") == 0 ? CG_REACTOR_EPOLL : CG_REACTOR_AUTO;
    bench.replicas = argc > 7 ? (unsigned)atoi(argv[7]) : 1;
    depth = depth < 1 || depth > DEPTH_MAX ? DEPTH_MAX : depth;
    if (bench.replicas < 1 || bench.replicas > REPLICAS_MAX) {
        bench.replicas = 1;
    }
    cg_log_set_sink(print_line, NULL, CG_LOG_WARNING);
    struct cg_reactor_options reactor_options = {.backend = (enum cg_reactor_backend)backend};
    int result = cg_reactor_create(&reactor_options, &bench.reactor);
    if (result != 0) {
        die("client", result);
    }
    for (unsigned i = 0; i < bench.replicas; i++) {
        start_server(i, argv[1], backend);
    }
    add_copysets();
    place_leaders();
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
    for (unsigned i = 0; i < bench.replicas; i++) {
        print_server(i);
        cg_channel_destroy(bench.channel[i]);
    }
    uint64_t begin = cg_now_ns();
    for (unsigned i = 0; i < bench.replicas; i++) {
        cg_chunkserver_stop(bench.server[i]);
    }
    printf("stop took %.2f s\n", (double)(cg_now_ns() - begin) / 1e9);
    cg_reactor_destroy(bench.reactor);
    return 0;
}
