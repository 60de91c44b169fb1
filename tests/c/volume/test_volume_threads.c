// SPDX-License-Identifier: BSD-3-Clause
//
// Many at once, closing under way, both ways to run.
#include "bench.h"

// ---- Many at once

enum { MANY = 600 };

static void a_burst_is_queued_and_never_more_than_allowed_in_flight(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench_start(bench, 0, 0);
    static struct cg_io ios[MANY];
    static struct cg_io *pointers[MANY];
    static uint8_t data[MANY][4096];
    static struct iovec iov[MANY];
    atomic_int done = 0;
    for (int pass = 0; pass < 2; pass++) {
        atomic_store(&done, 0);
        for (int i = 0; i < MANY; i++) {
            fill(data[i], 4096, (unsigned)i);
            if (pass == 1) {
                memset(data[i], 0, 4096);
            }
            iov[i] = (struct iovec){data[i], 4096};
            ios[i] = (struct cg_io){.op = pass == 0 ? CG_OP_WRITE : CG_OP_READ,
                                    .offset = (uint64_t)i * 8192,
                                    .length = 4096,
                                    .iov = &iov[i],
                                    .iovcnt = 1,
                                    .done = count_done,
                                    .user = &done};
            pointers[i] = &ios[i];
        }
        cg_submit_batch(bench->volume, pointers, MANY);
        while (atomic_load(&done) < MANY) {
            usleep(500);
        }
        for (int i = 0; i < MANY; i++) {
            uint8_t expected[4096];
            fill(expected, 4096, (unsigned)i);
            assert_int_equal(ios[i].result, 0);
            assert_memory_equal(data[i], expected, 4096);
        }
    }
    assert_int_equal(STAT(bench, inflight), 0);
    bench_end(bench);
}

struct worker {
    struct bench *bench;
    unsigned index;
    int failures;
};

static void *work(void *argument) {
    struct worker *worker = argument;
    uint8_t out[700], in[700];
    for (unsigned i = 0; i < 150; i++) {
        // Neighbours share blocks: lost updates would show.
        uint64_t offset = (uint64_t)(i % 50) * 8 * 700 + worker->index * 700;
        fill(out, sizeof(out), worker->index * 1000 + i);
        worker->failures += cg_pwrite(worker->bench->volume, out, sizeof(out), offset) != 0;
        worker->failures += cg_pread(worker->bench->volume, in, sizeof(in), offset) != 0;
        worker->failures += memcmp(in, out, sizeof(in)) != 0;
    }
    return NULL;
}

static void threads_that_share_blocks_lose_nothing(bool native) {
    struct bench *bench = bench_new(native);
    bench_start(bench, 0, 0);
    struct worker workers[8];
    pthread_t threads[8];
    static struct cg_io io;
    static uint8_t data[4096];
    static struct iovec iov = {data, sizeof(data)};
    atomic_int done = 0;
    for (unsigned i = 0; i < 8; i++) {
        workers[i] = (struct worker){bench, i, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    // Both kinds of submission at once: the thread that drives changes all the time.
    for (int i = 0; i < 100; i++) {
        io = (struct cg_io){.op = CG_OP_WRITE,
                            .offset = 8 * MIB,
                            .length = 4096,
                            .iov = &iov,
                            .iovcnt = 1,
                            .done = count_done,
                            .user = &done};
        cg_submit(bench->volume, &io);
        while (atomic_load(&done) <= i) {
            usleep(100);
        }
        assert_int_equal(io.result, 0);
    }
    for (unsigned i = 0; i < 8; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(workers[i].failures, 0);
    }
    bench_end(bench);
}

static void unaligned_neighbours_on_curvebs_lose_nothing(void **state) {
    (void)state;
    threads_that_share_blocks_lose_nothing(false);
}

static void blocking_threads_take_turns_at_the_reactor(void **state) {
    (void)state;
    threads_that_share_blocks_lose_nothing(true);
}

static enum fake_verdict slow_write(struct fake_seen *seen) {
    if (is(seen, "WriteChunk")) {
        seen->delay_ms = 300;
    }
    return FAKE_SERVE;
}

static void closing_waits_for_io_in_flight(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench_start(bench, 0, 0);
    set_hook(bench, slow_write);
    uint8_t data[4096] = {7};
    struct iovec iov = {data, sizeof(data)};
    atomic_int done = 0;
    struct cg_io io = {.op = CG_OP_WRITE,
                       .length = 4096,
                       .iov = &iov,
                       .iovcnt = 1,
                       .done = count_done,
                       .user = &done};
    cg_submit(bench->volume, &io);
    usleep(50000);
    cg_volume_close(bench->volume);
    assert_int_equal(atomic_load(&done), 1);
    assert_int_equal(io.result, 0);
    assert_int_equal(bench->fake.closes, 1);
    open_volume(bench, 0, 0);
    set_hook(bench, NULL);
    bench_end(bench);
}

static void a_foreign_loop_drives_everything(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    fake_start(&bench->fake);
    start_client(bench, CG_CLIENT_FOREIGN_LOOP);
    int fd = cg_client_fd(bench->client);
    assert_true(fd >= 0);
    open_volume(bench, 0, 0);
    enum { DEPTH = 100, ROUNDS = 5 };
    static struct cg_io ios[DEPTH];
    static uint8_t data[DEPTH][4096];
    static struct iovec iov[DEPTH];
    for (int round = 0; round < ROUNDS; round++) {
        atomic_int done = 0;
        for (int i = 0; i < DEPTH; i++) {
            fill(data[i], 4096, (unsigned)i);
            iov[i] = (struct iovec){data[i], 4096};
            ios[i] = (struct cg_io){.op = round % 2 == 0 ? CG_OP_WRITE : CG_OP_READ,
                                    .offset = (uint64_t)i * 4096,
                                    .length = 4096,
                                    .iov = &iov[i],
                                    .iovcnt = 1,
                                    .done = count_done,
                                    .user = &done};
            cg_submit(bench->volume, &ios[i]);
            assert_int_equal(atomic_load(&done), 0); // never inside the call
        }
        while (atomic_load(&done) < DEPTH) {
            struct pollfd ready = {.fd = fd, .events = POLLIN};
            assert_int_equal(poll(&ready, 1, 5000), 1);
            assert_true(cg_client_progress(bench->client) >= 0);
        }
        for (int i = 0; i < DEPTH; i++) {
            assert_int_equal(ios[i].result, 0);
        }
    }
    // More than inflight_max at once is refused here.
    static struct cg_io more[200];
    atomic_int done = 0;
    for (int i = 0; i < 200; i++) {
        more[i] = (struct cg_io){.op = CG_OP_READ,
                                 .length = 4096,
                                 .iov = &iov[0],
                                 .iovcnt = 1,
                                 .done = count_done,
                                 .user = &done};
        cg_submit(bench->volume, &more[i]);
    }
    while (atomic_load(&done) < 200) {
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        assert_int_equal(poll(&ready, 1, 5000), 1);
        cg_client_progress(bench->client);
    }
    int busy = 0;
    for (int i = 0; i < 200; i++) {
        busy += more[i].result == -EBUSY;
    }
    assert_int_equal(busy, 200 - 128);
    // The blocking calls drive the loop themselves.
    assert_int_equal(cg_pread(bench->volume, data[0], 4096, 0), 0);
    bench_end(bench);
}

static void options_that_make_no_sense_are_refused(void **state) {
    (void)state;
    struct cg_client *client;
    struct cg_client_options options = {.struct_size = sizeof(options)};
    assert_int_equal(cg_client_create(&options, &client), -EINVAL);
    options.mds = "nonsense";
    assert_int_equal(cg_client_create(&options, &client), -EINVAL);
    options.mds = "127.0.0.1:1,,127.0.0.1:2";
    assert_int_equal(cg_client_create(&options, &client), -EINVAL);
    options.mds = "127.0.0.1:1";
    options.owner = "";
    assert_int_equal(cg_client_create(&options, &client), -EINVAL);
    options.owner = NULL;
    assert_int_equal(cg_client_create(&options, &client), 0);
    struct cg_volume *volume;
    char error[128];
    struct cg_volume_options bad = {.struct_size = sizeof(bad), .path = ""};
    assert_int_equal(cg_volume_open(client, &bad, &volume, error, sizeof(error)), -EINVAL);
    assert_true(strlen(error) > 10);
    bad.path = "/a/";
    assert_int_equal(cg_volume_open(client, &bad, &volume, NULL, 0), -EINVAL);
    bad.path = "a";
    bad.inflight_max = 1U << 20;
    assert_int_equal(cg_volume_open(client, &bad, &volume, error, sizeof(error)), -EINVAL);
    cg_client_destroy(client);
}

int main(int argc, char **argv) {
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_burst_is_queued_and_never_more_than_allowed_in_flight),
        cmocka_unit_test(unaligned_neighbours_on_curvebs_lose_nothing),
        cmocka_unit_test(blocking_threads_take_turns_at_the_reactor),
        cmocka_unit_test(closing_waits_for_io_in_flight),
        cmocka_unit_test(a_foreign_loop_drives_everything),
        cmocka_unit_test(options_that_make_no_sense_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
