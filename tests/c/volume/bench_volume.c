// SPDX-License-Identifier: BSD-3-Clause
//
// IO through the core against a running cluster: requests per second, this process's processor time
// and context switches per request. For choosing between ways to run.
//
// Usage: bench_volume MDS VOLUME read|write threads|depth COUNT [SECONDS]
//   threads: COUNT threads in blocking calls; depth: COUNT IOs in flight with cg_submit
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "copygate.h"

#define BLOCK 4096U
#define SPAN  (256U << 20)

static struct cg_volume *volume;
static enum cg_op op;
static atomic_bool stop;
static atomic_ulong total;

struct slot {
    struct cg_io io;
    struct iovec iov;
    uint64_t random;
    uint8_t *data;
};

static uint64_t next_offset(uint64_t *random) {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    return *random % (SPAN / BLOCK) * BLOCK;
}

static void check(int result, const char *what) {
    if (result != 0) {
        fprintf(stderr, "bench_volume: %s: %s\n", what, strerror(-result));
        exit(1);
    }
}

static void *blocking(void *argument) {
    struct slot *slot = argument;
    unsigned long count = 0;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        uint64_t offset = next_offset(&slot->random);
        check(op == CG_OP_READ ? cg_pread(volume, slot->data, BLOCK, offset)
                               : cg_pwrite(volume, slot->data, BLOCK, offset),
              "IO");
        count++;
    }
    atomic_fetch_add(&total, count);
    return NULL;
}

static atomic_uint running;

static void on_done(struct cg_io *io) {
    struct slot *slot = io->user;
    check(io->result, "IO");
    atomic_fetch_add_explicit(&total, 1, memory_order_relaxed);
    if (atomic_load_explicit(&stop, memory_order_relaxed)) {
        atomic_fetch_sub(&running, 1);
        return;
    }
    io->offset = next_offset(&slot->random);
    cg_submit(volume, io);
}

static void log_line(void *context, int level, const char *line) {
    (void)context;
    fprintf(stderr, "[%d] %s\n", level, line);
}

static void prefill(void) {
    uint8_t *data = calloc(1, 1U << 20);
    for (uint64_t at = 0; at < SPAN; at += 1U << 20) {
        memset(data, (int)(at >> 20) + 1, 1U << 20);
        check(cg_pwrite(volume, data, 1U << 20, at), "prefill");
    }
    free(data);
}

int main(int argc, char **argv) {
    if (argc < 6) {
        fprintf(stderr,
                "usage: bench_volume MDS VOLUME read|write threads|depth COUNT [SECONDS]\n");
        return 2;
    }
    struct cg_client *client;
    struct cg_client_options options = {
        .struct_size = sizeof(options), .mds = argv[1], .log = log_line};
    check(cg_client_create(&options, &client), "client");
    struct cg_volume_options volume_options = {.struct_size = sizeof(volume_options),
                                               .path = argv[2]};
    char error[256];
    int result = cg_volume_open(client, &volume_options, &volume, error, sizeof(error));
    check(result, error);
    op = strcmp(argv[3], "read") == 0 ? CG_OP_READ : CG_OP_WRITE;
    unsigned count = (unsigned)strtoul(argv[5], NULL, 10);
    unsigned seconds = argc > 6 ? (unsigned)strtoul(argv[6], NULL, 10) : 3;
    struct slot *slots = calloc(count, sizeof(*slots));
    pthread_t *threads = calloc(count, sizeof(*threads));
    if (op == CG_OP_READ) {
        prefill();
    }
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    uint64_t start = cg_now_ns();
    bool with_threads = strcmp(argv[4], "threads") == 0;
    for (unsigned i = 0; i < count; i++) {
        struct slot *slot = &slots[i];
        slot->random = 88172645463325252ULL + i * 7919;
        slot->data = aligned_alloc(BLOCK, BLOCK);
        memset(slot->data, (int)i, BLOCK);
        slot->iov = (struct iovec){slot->data, BLOCK};
        slot->io = (struct cg_io){.op = op,
                                  .length = BLOCK,
                                  .iov = &slot->iov,
                                  .iovcnt = 1,
                                  .done = on_done,
                                  .user = slot};
        if (with_threads) {
            pthread_create(&threads[i], NULL, blocking, slot);
        } else {
            atomic_fetch_add(&running, 1);
            cg_submit(volume, &slot->io);
        }
    }
    sleep(seconds);
    atomic_store(&stop, true);
    for (unsigned i = 0; i < count && with_threads; i++) {
        pthread_join(threads[i], NULL);
    }
    while (atomic_load(&running) > 0) {
        usleep(100);
    }
    double took = (double)(cg_now_ns() - start) / 1e9;
    getrusage(RUSAGE_SELF, &after);
    unsigned long ios = atomic_load(&total);
    double cpu_us = (double)(after.ru_utime.tv_sec - before.ru_utime.tv_sec +
                             after.ru_stime.tv_sec - before.ru_stime.tv_sec) *
                        1e6 +
                    (double)(after.ru_utime.tv_usec - before.ru_utime.tv_usec +
                             after.ru_stime.tv_usec - before.ru_stime.tv_usec);
    long switches = after.ru_nvcsw - before.ru_nvcsw + after.ru_nivcsw - before.ru_nivcsw;
    printf("%s %s %u: %.0f/s, %.1f us CPU and %.2f switches per request\n", argv[3], argv[4], count,
           (double)ios / took, cpu_us / (double)ios, (double)switches / (double)ios);
    cg_volume_close(volume);
    cg_client_destroy(client);
    return 0;
}
