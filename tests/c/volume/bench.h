// SPDX-License-Identifier: BSD-3-Clause
//
// A client and a volume on a fake cluster, for the tests of the IO core.
#ifndef TESTS_VOLUME_BENCH_H
#define TESTS_VOLUME_BENCH_H

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "copygate.h"
#include "fake.h"
#include "volume/client.h"

#define MIB (1U << 20)

struct bench {
    struct fake fake;
    struct cg_client *client;
    struct cg_volume *volume;
};

static inline void log_line(void *context, int level, const char *line) {
    (void)context;
    if (getenv("VERBOSE") != NULL) {
        fprintf(stderr, "  [%d] %s\n", level, line);
    }
}

static inline void start_client(struct bench *bench, enum cg_client_mode mode) {
    struct cg_client_options options = {.struct_size = sizeof(options),
                                        .mode = mode,
                                        .mds = bench->fake.mds,
                                        .owner = "tester",
                                        .log = log_line};
    assert_int_equal(cg_client_create(&options, &bench->client), 0);
}

static inline int try_open(struct bench *bench, unsigned flags, uint64_t timeout_ms, char *error,
                           size_t size) {
    struct cg_volume_options options = {.struct_size = sizeof(options),
                                        .path = "/vol1",
                                        .flags = flags,
                                        .io_timeout_ms = timeout_ms,
                                        .open_timeout_ms = 2000};
    return cg_volume_open(bench->client, &options, &bench->volume, error, size);
}

static inline void open_volume(struct bench *bench, unsigned flags, uint64_t timeout_ms) {
    char error[256];
    int rc = try_open(bench, flags, timeout_ms, error, sizeof(error));
    if (rc != 0) {
        fail_msg("open: %d %s", rc, error);
    }
}

static struct bench *bench_new(bool native) {
    struct bench *bench = calloc(1, sizeof(*bench));
    bench->fake.native = native;
    bench->fake.size = 64 * MIB;
    return bench;
}

static inline void bench_start(struct bench *bench, unsigned flags, uint64_t timeout_ms) {
    fake_start(&bench->fake);
    start_client(bench, CG_CLIENT_OWN_THREAD);
    open_volume(bench, flags, timeout_ms);
}

static inline void bench_end(struct bench *bench) {
    cg_volume_close(bench->volume);
    cg_client_destroy(bench->client);
    unsigned violations = bench->fake.violations;
    fake_stop(&bench->fake);
    free(bench);
    assert_int_equal(violations, 0);
}

static inline void fill(uint8_t *data, size_t length, unsigned seed) {
    for (size_t i = 0; i < length; i++) {
        data[i] = (uint8_t)(seed * 31 + i * 7 + i / 251);
    }
}

static inline uint64_t stat_of(struct bench *bench, size_t offset) {
    struct cg_volume_stats stats;
    cg_volume_stats(bench->volume, &stats);
    uint64_t value;
    memcpy(&value, (char *)&stats + offset, sizeof(value));
    return value;
}
#define STAT(bench, field) stat_of(bench, offsetof(struct cg_volume_stats, field))

static inline void set_hook(struct bench *bench, enum fake_verdict (*hook)(struct fake_seen *)) {
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.hook = hook;
    pthread_mutex_unlock(&bench->fake.lock);
}

static inline bool is(const struct fake_seen *seen, const char *method) {
    return strcmp(seen->method, method) == 0;
}

static inline void count_done(struct cg_io *io) {
    atomic_fetch_add((atomic_int *)io->user, 1);
}

#endif
