// SPDX-License-Identifier: BSD-3-Clause
//
// The log against the same disk written directly, in one run: `bench_wal FOLDER [seconds a case]`.
// Raw is pwritev with O_DIRECT | O_DSYNC into a file that was written before, through the same
// reactor.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/crc32c.h"
#include "base/disk.h"
#include "base/histogram.h"
#include "base/log.h"
#include "chunkserver/wal.h"

#define RAW_FILE_BYTES (UINT64_C(256) << 20)
#define DEPTH_MAX      64U

struct result {
    uint64_t operations;
    uint64_t elapsed_ns;
    uint64_t cpu_ns;
    struct cg_histogram latency;
};

struct slot {
    struct cg_wal_append append;
    struct cg_file_op op;
    struct iovec iov;
    uint32_t *crcs;
    uint64_t started_ns;
    uint64_t serial;
    struct bench *bench;
};

struct bench {
    struct cg_reactor *reactor;
    struct cg_disk *disk;
    struct cg_wal *wal;
    int raw;
    uint64_t raw_offset;
    uint32_t size;
    unsigned depth, busy;
    bool stop;
    uint64_t deadline_ns;
    struct result result;
    struct slot slots[DEPTH_MAX];
};

static void die(const char *what, int status) {
    fprintf(stderr, "bench_wal: %s: %s\n", what, strerror(-status));
    exit(1);
}

static uint64_t cpu_ns(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * CG_NS_PER_S +
           (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1000U;
}

static bool finished(struct slot *slot) {
    struct bench *b = slot->bench;
    uint64_t now = cg_now_ns();
    cg_histogram_add(&b->result.latency, now - slot->started_ns);
    b->result.operations++;
    slot->started_ns = now;
    b->busy--;
    return now >= b->deadline_ns;
}

// ---- Raw

static void raw_start(struct slot *slot);

static void raw_done(struct cg_file_op *op) {
    struct slot *slot = CG_CONTAINER_OF(op, struct slot, op);
    if (op->result != (int64_t)slot->bench->size) {
        die("raw write", op->result < 0 ? (int)op->result : -EIO);
    }
    if (!finished(slot)) {
        raw_start(slot);
    }
}

static void raw_start(struct slot *slot) {
    struct bench *b = slot->bench;
    slot->op.opcode = CG_FILE_WRITE;
    slot->op.fd = b->raw;
    slot->op.iov = &slot->iov;
    slot->op.iovcnt = 1;
    slot->op.offset = b->raw_offset;
    slot->op.done = raw_done;
    b->raw_offset = (b->raw_offset + b->size) % RAW_FILE_BYTES;
    b->busy++;
    b->disk->ops->submit(b->disk, &slot->op);
}

static void raw_prepare(struct bench *b) {
    int fd = b->disk->ops->open(b->disk, "raw", O_RDWR | O_CREAT | O_DIRECT);
    if (fd < 0) {
        die("open raw file", fd);
    }
    void *zeros = aligned_alloc(4096, 1U << 20);
    memset(zeros, 0, 1U << 20);
    for (uint64_t at = 0; at < RAW_FILE_BYTES; at += 1U << 20) {
        b->disk->ops->write(b->disk, fd, zeros, 1U << 20, at);
    }
    free(zeros);
    b->disk->ops->sync(b->disk, fd);
    b->disk->ops->close(b->disk, fd);
    b->raw = b->disk->ops->open(b->disk, "raw", O_RDWR | O_DIRECT | O_DSYNC);
}

// ---- Log

static void append_start(struct slot *slot);

static void append_done(struct cg_wal_append *append) {
    struct slot *slot = CG_CONTAINER_OF(append, struct slot, append);
    if (append->status != 0) {
        die("append", append->status);
    }
    struct bench *b = slot->bench;
    if (cg_wal_used(b->wal) > cg_wal_capacity(b->wal) / 2) {
        cg_wal_recycle(b->wal, append->lsn);
    }
    if (!finished(slot)) {
        append_start(slot);
    }
}

static void append_start(struct slot *slot) {
    static uint64_t serial;
    static const char meta[64];
    struct cg_wal_append *append = &slot->append;
    append->record.group = 1;
    append->record.term = 1;
    append->record.index = ++serial;
    append->record.type = 1;
    append->record.meta = meta;
    append->record.meta_length = sizeof(meta);
    append->record.payload_length = slot->bench->size;
    append->record.block_crcs = slot->crcs;
    append->payload = &slot->iov;
    append->payload_count = 1;
    append->done = append_done;
    slot->bench->busy++;
    cg_wal_append(slot->bench->wal, append);
}

// ---- Cases

static void run(struct bench *b, uint32_t size, unsigned depth, double seconds, bool raw) {
    memset(&b->result, 0, sizeof(b->result));
    b->size = size;
    b->depth = depth;
    uint64_t start = cg_now_ns(), cpu = cpu_ns();
    b->deadline_ns = start + (uint64_t)(seconds * 1e9);
    for (unsigned i = 0; i < depth; i++) {
        struct slot *slot = &b->slots[i];
        slot->iov.iov_len = size;
        slot->started_ns = start;
        if (raw) {
            raw_start(slot);
        } else {
            append_start(slot);
        }
    }
    while (b->busy != 0) {
        cg_reactor_wait(b->reactor, UINT64_MAX);
    }
    b->result.elapsed_ns = cg_now_ns() - start;
    b->result.cpu_ns = cpu_ns() - cpu;
}

static double print(const char *name, const struct result *r, uint32_t size) {
    double seconds = (double)r->elapsed_ns / 1e9;
    double rate = (double)r->operations / seconds;
    printf(
        "  %-4s %9.0f/s %8.1f MiB/s  p50 %7.1f us  p99 %8.1f us  max %8.1f us  cpu %6.2f us/op\n",
        name, rate, rate * size / 1048576.0, (double)cg_histogram_percentile(&r->latency, 50) / 1e3,
        (double)cg_histogram_percentile(&r->latency, 99) / 1e3, (double)r->latency.max / 1e3,
        (double)r->cpu_ns / 1e3 / (double)r->operations);
    return rate;
}

static void compare(struct bench *b, uint32_t size, unsigned depth, double seconds) {
    printf("%u KiB, depth %u\n", size >> 10, depth);
    run(b, size, depth, seconds, true);
    double raw = print("raw", &b->result, size);
    struct cg_wal_stats before, after;
    cg_wal_stats(b->wal, &before);
    run(b, size, depth, seconds, false);
    cg_wal_stats(b->wal, &after);
    double log = print("log", &b->result, size);
    printf("  ratio %.2f, %.1f records a batch\n", log / raw,
           (double)(after.records - before.records) / (double)(after.batches - before.batches));
}

static int ignore_record(void *context, uint64_t lsn, const struct cg_wal_record *record,
                         const void *payload) {
    (void)context;
    (void)lsn;
    (void)record;
    (void)payload;
    return 0;
}

static void print_log(void *context, enum cg_log_level level, const char *line) {
    (void)context;
    (void)level;
    fprintf(stderr, "%s\n", line);
}

static void slots_init(struct bench *b) {
    for (unsigned i = 0; i < DEPTH_MAX; i++) {
        struct slot *slot = &b->slots[i];
        slot->bench = b;
        slot->iov.iov_base = aligned_alloc(4096, 1U << 20);
        memset(slot->iov.iov_base, (int)i + 1, 1U << 20);
        slot->crcs = calloc(256, sizeof(uint32_t));
        for (unsigned c = 0; c < 256; c++) {
            slot->crcs[c] = cg_crc32c(0, (const char *)slot->iov.iov_base + (size_t)c * 4096, 4096);
        }
    }
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: bench_wal FOLDER [SECONDS] [BATCHES IN FLIGHT]\n");
        return 2;
    }
    double seconds = argc > 2 ? atof(argv[2]) : 2.0;
    struct cg_wal_options options = {.batches_in_flight = argc > 3 ? (unsigned)atoi(argv[3]) : 0};
    static struct bench b;
    cg_log_set_sink(print_log, NULL, CG_LOG_INFO);
    int status = cg_reactor_create(NULL, &b.reactor);
    if (status < 0) {
        die("reactor", status);
    }
    status = cg_disk_open(argv[1], b.reactor, &b.disk);
    if (status < 0) {
        die(argv[1], status);
    }
    slots_init(&b);
    raw_prepare(&b);
    uint64_t start = cg_now_ns();
    char error[256];
    const struct cg_wal_replay replay = {.record = ignore_record};
    status = cg_wal_open(b.disk, b.reactor, &options, &replay, &b.wal, error, sizeof(error));
    if (status < 0) {
        die(error, status);
    }
    printf("open: %.1f ms\n", (double)(cg_now_ns() - start) / 1e6);
    compare(&b, 1U << 20, 8, seconds);
    compare(&b, 4096, 1, seconds);
    compare(&b, 4096, 8, seconds);
    compare(&b, 4096, 32, seconds);
    compare(&b, 1U << 20, 8, seconds);
    cg_wal_close(b.wal);
    b.disk->ops->unlink(b.disk, "raw");
    cg_disk_close(b.disk);
    cg_reactor_destroy(b.reactor);
    for (unsigned i = 0; i < DEPTH_MAX; i++) {
        free(b.slots[i].iov.iov_base);
        free(b.slots[i].crcs);
    }
    return 0;
}
