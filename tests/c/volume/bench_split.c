// SPDX-License-Identifier: BSD-3-Clause
//
// What the IO core itself costs per 4 KiB request, without a network: from cg_submit_batch through
// splitting, lookup, encoding and tracking to the completion. The channel is a stub that answers at
// once. Fails when it is over a microsecond of processor time.
//
// Usage: bench_split [REQUESTS]
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "volume/client.h"
#include "volume/volume.h"

#define BATCH    32U
#define CHUNK    (16U << 20)
#define SEGMENT  (1U << 30)
#define LIMIT_NS 1000.0

// ---- The stub

static struct cg_list called;

int cg_channel_create(struct cg_reactor *reactor, const struct cg_endpoint *peer,
                      const struct cg_channel_options *options, struct cg_channel **out) {
    (void)reactor;
    (void)peer;
    (void)options;
    *out = NULL;
    return 0;
}

void cg_channel_destroy(struct cg_channel *channel) {
    (void)channel;
}

void cg_channel_call(struct cg_channel *channel, struct cg_rpc_call *call) {
    (void)channel;
    cg_list_push_back(&called, &call->node);
}

void cg_channel_cancel(struct cg_channel *channel, struct cg_rpc_call *call) {
    (void)channel;
    (void)call;
}

void cg_channel_disconnect(struct cg_channel *channel, int status) {
    (void)channel;
    (void)status;
}

static void answer_all(void) {
    static const uint8_t reply[] = {0x08, 0x00, 0x18, 0x84, 0x0c};
    struct cg_list *node;
    while ((node = cg_list_pop_front(&called)) != NULL) {
        struct cg_rpc_call *call = CG_CONTAINER_OF(node, struct cg_rpc_call, node);
        call->status = 0;
        call->reply = reply;
        call->reply_length = sizeof(reply);
        call->received_length = call->receive_capacity;
        call->done(call);
    }
}

// ---- A volume without a cluster

static struct cg_client client;
static struct vol_server *server;

static void make_segment(struct cg_volume *volume, uint64_t index) {
    struct vol_segment *segment =
        calloc(1, sizeof(*segment) + volume->chunks_per_segment * sizeof(segment->chunks[0]));
    segment->volume = volume;
    segment->index = index;
    segment->state = VOL_SEGMENT_READY;
    cg_list_init(&segment->waiters);
    for (uint32_t i = 0; i < volume->chunks_per_segment; i++) {
        struct vol_copyset *copyset = vol_copyset_get(volume, 1, i % 12);
        copyset->peers[0].server = server;
        copyset->peer_count = 1;
        copyset->leader = 0;
        segment->chunks[i] = (struct vol_chunk){index * 64 + i + 1, copyset};
    }
    volume->segments[index] = segment;
}

static struct cg_volume *make_volume(void) {
    struct cg_volume *volume = calloc(1, sizeof(*volume));
    volume->client = &client;
    volume->reactor = client.reactor;
    volume->path = strdup("/bench");
    volume->size = 16ULL * SEGMENT;
    volume->io_timeout_ns = 25 * CG_NS_PER_S;
    volume->inflight_max = 128;
    volume->file_id = 1000;
    volume->epoch = 3;
    volume->seq = 1;
    volume->client_id = UINT64_MAX;
    volume->next_sequence = 1000000;
    volume->native = true;
    volume->exclusive = true;
    volume->send_epoch = true;
    volume->leased = true;
    volume->lease_end_boot_ns = UINT64_MAX;
    volume->max_request = VOL_REQUEST_NATIVE;
    volume->segment_size = SEGMENT;
    volume->chunks_per_segment = SEGMENT / CHUNK;
    cg_layout_init(&volume->layout, CHUNK, 0, 0);
    cg_list_init(&volume->unsettled);
    cg_list_init(&volume->free_requests);
    cg_list_init(&volume->queue);
    cg_list_init(&volume->paused);
    cg_range_lock_init(&volume->ranges);
    for (unsigned i = 0; i < VOL_COPYSET_BUCKETS; i++) {
        cg_list_init(&volume->copysets[i]);
    }
    if (vol_requests_create(volume) != 0) {
        abort();
    }
    cg_list_init(&client.servers);
    cg_list_init(&client.volumes);
    server = vol_server_get(&client, "127.0.0.1:1");
    volume->segment_slots = 16;
    volume->segments = calloc(16, sizeof(struct vol_segment *));
    for (uint64_t i = 0; i < 16; i++) {
        make_segment(volume, i);
    }
    return volume;
}

static unsigned completed;

static void on_done(struct cg_io *io) {
    if (io->result != 0) {
        abort();
    }
    completed++;
}

static double cpu_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

static double run(struct cg_volume *volume, enum cg_op op, unsigned total) {
    static uint8_t data[4096];
    struct iovec iov = {data, sizeof(data)};
    static struct cg_io ios[BATCH];
    struct cg_io *pointers[BATCH];
    uint64_t random = 88172645463325252ULL;
    completed = 0;
    double start = cpu_ns();
    while (completed < total) {
        for (unsigned i = 0; i < BATCH; i++) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            ios[i].op = op;
            ios[i].offset = random % (volume->size / 4096) * 4096;
            ios[i].length = 4096;
            ios[i].iov = &iov;
            ios[i].iovcnt = 1;
            ios[i].done = on_done;
            pointers[i] = &ios[i];
        }
        cg_submit_batch(volume, pointers, BATCH);
        cg_reactor_progress(client.reactor);
        answer_all();
    }
    return (cpu_ns() - start) / completed;
}

int main(int argc, char **argv) {
    unsigned total = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 2000000;
    struct cg_reactor_options options = {.backend = CG_REACTOR_EPOLL};
    if (cg_reactor_create(&options, &client.reactor) != 0) {
        return 1;
    }
    client.mode = CG_CLIENT_OWN_THREAD;
    client.async_may_complete = true;
    atomic_store(&client.driven, true);
    vol_submit_init(&client);
    cg_list_init(&called);
    struct cg_volume *volume = make_volume();
    double read_ns = run(volume, CG_OP_READ, total);
    double write_ns = run(volume, CG_OP_WRITE, total);
    printf("per 4 KiB request without network: read %.0f ns, write %.0f ns\n", read_ns, write_ns);
    for (uint64_t i = 0; i < 16; i++) {
        free(volume->segments[i]);
    }
    free(volume->segments);
    vol_copysets_free(volume);
    free(volume->requests);
    free(volume->path);
    free(volume);
    vol_servers_free(&client);
    cg_reactor_destroy(client.reactor);
    return read_ns < LIMIT_NS && write_ns < LIMIT_NS ? 0 : 1;
}
