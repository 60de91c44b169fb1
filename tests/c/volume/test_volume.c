// SPDX-License-Identifier: BSD-3-Clause
//
// The IO core through its public interface, against a cluster that misbehaves on request.
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

static void log_line(void *context, int level, const char *line) {
    (void)context;
    if (getenv("VERBOSE") != NULL) {
        fprintf(stderr, "  [%d] %s\n", level, line);
    }
}

static void start_client(struct bench *bench, enum cg_client_mode mode) {
    struct cg_client_options options = {.struct_size = sizeof(options),
                                        .mode = mode,
                                        .mds = bench->fake.mds,
                                        .owner = "tester",
                                        .log = log_line};
    assert_int_equal(cg_client_create(&options, &bench->client), 0);
}

static int try_open(struct bench *bench, unsigned flags, uint64_t timeout_ms, char *error,
                    size_t size) {
    struct cg_volume_options options = {.struct_size = sizeof(options),
                                        .path = "/vol1",
                                        .flags = flags,
                                        .io_timeout_ms = timeout_ms,
                                        .open_timeout_ms = 2000};
    return cg_volume_open(bench->client, &options, &bench->volume, error, size);
}

static void open_volume(struct bench *bench, unsigned flags, uint64_t timeout_ms) {
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

static void bench_start(struct bench *bench, unsigned flags, uint64_t timeout_ms) {
    fake_start(&bench->fake);
    start_client(bench, CG_CLIENT_OWN_THREAD);
    open_volume(bench, flags, timeout_ms);
}

static void bench_end(struct bench *bench) {
    cg_volume_close(bench->volume);
    cg_client_destroy(bench->client);
    unsigned violations = bench->fake.violations;
    fake_stop(&bench->fake);
    free(bench);
    assert_int_equal(violations, 0);
}

static void fill(uint8_t *data, size_t length, unsigned seed) {
    for (size_t i = 0; i < length; i++) {
        data[i] = (uint8_t)(seed * 31 + i * 7 + i / 251);
    }
}

static uint64_t stat_of(struct bench *bench, size_t offset) {
    struct cg_volume_stats stats;
    cg_volume_stats(bench->volume, &stats);
    uint64_t value;
    memcpy(&value, (char *)&stats + offset, sizeof(value));
    return value;
}
#define STAT(bench, field) stat_of(bench, offsetof(struct cg_volume_stats, field))

static void set_hook(struct bench *bench, enum fake_verdict (*hook)(struct fake_seen *)) {
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.hook = hook;
    pthread_mutex_unlock(&bench->fake.lock);
}

static bool is(const struct fake_seen *seen, const char *method) {
    return strcmp(seen->method, method) == 0;
}

// ---- Plain IO

static void what_was_written_is_read(bool native, uint64_t stripe_unit) {
    struct bench *bench = bench_new(native);
    bench->fake.stripe_unit = stripe_unit;
    bench->fake.stripe_count = stripe_unit != 0 ? 3 : 0;
    bench_start(bench, 0, 0);
    uint8_t *model = calloc(1, 64 * MIB);
    uint8_t *data = malloc(3 * MIB);
    srand(11);
    for (int round = 0; round < 120; round++) {
        uint64_t length = (uint64_t)rand() % (round % 10 == 0 ? 3 * MIB : 20000) + 1;
        uint64_t offset = (uint64_t)rand() % (16 * MIB - length);
        switch (rand() % 5) {
        case 0:
            assert_int_equal(cg_write_zeroes(bench->volume, length, offset, 0), 0);
            memset(model + offset, 0, length);
            break;
        case 1:
        case 2:
            fill(data, length, (unsigned)round);
            assert_int_equal(cg_pwrite(bench->volume, data, length, offset), 0);
            memcpy(model + offset, data, length);
            break;
        default:
            memset(data, 0xee, length);
            assert_int_equal(cg_pread(bench->volume, data, length, offset), 0);
            assert_memory_equal(data, model + offset, length);
            break;
        }
    }
    for (uint64_t at = 0; at < 64 * MIB; at += 2 * MIB) {
        assert_int_equal(cg_pread(bench->volume, data, 2 * MIB, at), 0);
        assert_memory_equal(data, model + at, 2 * MIB);
    }
    free(model);
    free(data);
    bench_end(bench);
}

static void native_io_of_any_alignment_is_kept(void **state) {
    (void)state;
    what_was_written_is_read(true, 0);
}

static void curvebs_io_of_any_alignment_is_kept(void **state) {
    (void)state;
    what_was_written_is_read(false, 0);
}

static void striped_volumes_work_on_both(void **state) {
    (void)state;
    what_was_written_is_read(true, 64 << 10);
    what_was_written_is_read(false, 64 << 10);
}

static void unallocated_reads_are_zeros_without_a_request(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench_start(bench, 0, 0);
    uint8_t data[8192];
    for (int i = 0; i < 5; i++) {
        memset(data, 1, sizeof(data));
        assert_int_equal(cg_pread(bench->volume, data, sizeof(data), 5000), 0);
        for (size_t k = 0; k < sizeof(data); k++) {
            assert_int_equal(data[k], 0);
        }
    }
    assert_int_equal(STAT(bench, requests), 0);
    assert_int_equal(fake_count(&bench->fake, "GetOrAllocateSegment"), 1);
    assert_int_equal(cg_write_zeroes(bench->volume, MIB, 0, 0), 0);
    assert_int_equal(cg_trim(bench->volume, MIB, 0), 0);
    assert_int_equal(STAT(bench, requests), 0);
    assert_int_equal(bench->fake.segments[0], 0);
    assert_int_equal(cg_write_zeroes(bench->volume, MIB, 0, CG_IO_NO_HOLE), 0);
    assert_int_not_equal(bench->fake.segments[0], 0);
    bench_end(bench);
}

static void a_shared_reader_sees_what_another_allocates(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench_start(bench, CG_OPEN_READ_ONLY, 0);
    assert_int_equal(bench->fake.raises, 0);
    uint8_t data[4096];
    assert_int_equal(cg_pread(bench->volume, data, sizeof(data), 0), 0);
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.segments[0] = 1;
    bench->fake.next_chunk = 5;
    bench->fake.chunks[1].data = calloc(1, MIB);
    bench->fake.chunks[1].allocated = calloc(1, MIB / 4096);
    bench->fake.chunks[1].data[17] = 0x5a;
    pthread_mutex_unlock(&bench->fake.lock);
    assert_int_equal(cg_pread(bench->volume, data, sizeof(data), 0), 0);
    assert_int_equal(data[17], 0x5a);
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), -EROFS);
    assert_int_equal(cg_trim(bench->volume, 4096, 0), -EROFS);
    assert_int_equal(cg_flush(bench->volume), 0);
    bench_end(bench);
}

static void ranges_beyond_the_end_are_refused(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench_start(bench, 0, 0);
    uint8_t data[4096] = {0};
    assert_int_equal(cg_pread(bench->volume, data, 4096, 64 * MIB - 4095), -EINVAL);
    assert_int_equal(cg_pwrite(bench->volume, data, 4096, UINT64_MAX - 100), -EINVAL);
    assert_int_equal(cg_write_zeroes(bench->volume, UINT64_MAX, 1, 0), -EINVAL);
    assert_int_equal(cg_pread(bench->volume, data, 0, 64 * MIB), 0);
    assert_int_equal(cg_pread(bench->volume, data, 4096, 64 * MIB - 4096), 0);
    struct cg_volume_info info;
    cg_volume_info(bench->volume, &info);
    assert_int_equal(info.size, 64 * MIB);
    assert_int_equal(info.epoch, 1);
    assert_true(info.native && !info.read_only);
    assert_int_equal(info.max_io, MIB);
    bench_end(bench);
}

static void count_done(struct cg_io *io) {
    atomic_fetch_add((atomic_int *)io->user, 1);
}

static void scattered_memory_is_read_and_written(bool native) {
    struct bench *bench = bench_new(native);
    bench_start(bench, 0, 0);
    enum { PARTS = 37 };
    static uint8_t out[PARTS][5000];
    static struct iovec write_iov[PARTS];
    uint64_t total = 0;
    for (int i = 0; i < PARTS; i++) {
        size_t size = (size_t)(i * 131 + 1);
        fill(out[i], size, (unsigned)i);
        write_iov[i] = (struct iovec){out[i], size};
        total += size;
    }
    struct cg_io io = {.op = CG_OP_WRITE,
                       .offset = MIB - 3000,
                       .length = total,
                       .iov = write_iov,
                       .iovcnt = PARTS};
    static atomic_int done;
    atomic_store(&done, 0);
    io.done = count_done;
    io.user = &done;
    cg_submit(bench->volume, &io);
    while (atomic_load(&done) == 0) {
        usleep(100);
    }
    assert_int_equal(io.result, 0);
    uint8_t *flat = malloc(total);
    assert_int_equal(cg_pread(bench->volume, flat, total, MIB - 3000), 0);
    uint64_t at = 0;
    for (int i = 0; i < PARTS; i++) {
        assert_memory_equal(flat + at, out[i], write_iov[i].iov_len);
        at += write_iov[i].iov_len;
    }
    free(flat);
    bench_end(bench);
}

static void iovecs_of_many_parts_work(void **state) {
    (void)state;
    scattered_memory_is_read_and_written(true);
    scattered_memory_is_read_and_written(false);
}

// ---- Compare-and-write, block status, trim

static void compare_and_write_compares(bool native, uint64_t offset) {
    struct bench *bench = bench_new(native);
    bench_start(bench, 0, 0);
    uint8_t old[1000], new[1000], read[1000];
    fill(old, sizeof(old), 1);
    fill(new, sizeof(new), 2);
    uint64_t mismatch = 99;
    assert_int_equal(cg_pwrite(bench->volume, old, sizeof(old), offset), 0);
    old[700] ^= 1;
    assert_int_equal(cg_compare_and_write(bench->volume, old, new, 1000, offset, &mismatch),
                     -EILSEQ);
    assert_int_equal(mismatch, 700);
    old[700] ^= 1;
    assert_int_equal(cg_pread(bench->volume, read, sizeof(read), offset), 0);
    assert_memory_equal(read, old, sizeof(read));
    assert_int_equal(cg_compare_and_write(bench->volume, old, new, 1000, offset, &mismatch), 0);
    assert_int_equal(cg_pread(bench->volume, read, sizeof(read), offset), 0);
    assert_memory_equal(read, new, sizeof(read));
    bench_end(bench);
}

static void compare_and_write_works_everywhere(void **state) {
    (void)state;
    compare_and_write_compares(true, 5000);
    compare_and_write_compares(true, MIB - 500); // across chunks
    compare_and_write_compares(false, 5000);
    compare_and_write_compares(false, MIB - 500);
}

static void block_status_tells_what_is_allocated(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench_start(bench, 0, 0);
    uint8_t data[8192] = {1};
    assert_int_equal(cg_pwrite(bench->volume, data, 8192, 4 * MIB + 8192), 0);
    struct cg_extent extents[8];
    assert_int_equal(cg_block_status(bench->volume, 12 * MIB - 10, 10, extents, 8), 3);
    assert_int_equal(extents[0].offset, 10);
    assert_int_equal(extents[0].length, 4 * MIB + 8192 - 10);
    assert_int_equal(extents[0].flags, CG_EXTENT_HOLE | CG_EXTENT_ZERO);
    assert_int_equal(extents[1].length, 8192);
    assert_int_equal(extents[1].flags, CG_EXTENT_DATA);
    assert_int_equal(extents[2].offset + extents[2].length, 12 * MIB);
    // Little room: what fits, from the start.
    assert_int_equal(cg_block_status(bench->volume, 12 * MIB, 0, extents, 1), 1);
    assert_int_equal(extents[0].length, 4 * MIB + 8192);
    // An unaligned beginning inside a block.
    assert_int_equal(cg_block_status(bench->volume, 100, 4 * MIB + 16384 - 50, extents, 8), 2);
    assert_int_equal(extents[0].length, 50);
    assert_int_equal(extents[0].flags, CG_EXTENT_DATA);
    bench_end(bench);
}

static void a_segment_trimmed_as_a_whole_is_given_back(bool native) {
    struct bench *bench = bench_new(native);
    fake_start(&bench->fake);
    start_client(bench, CG_CLIENT_OWN_THREAD);
    bench->client->trim_delay_ns = 200 * CG_NS_PER_MS;
    open_volume(bench, 0, 0);
    uint8_t data[4096];
    memset(data, 7, sizeof(data));
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 5 * MIB), 0);
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 9 * MIB), 0);
    // In two parts; a write in between takes part of it back.
    assert_int_equal(cg_trim(bench->volume, 2 * MIB, 4 * MIB), 0);
    assert_int_equal(cg_pwrite(bench->volume, data, 100, 4 * MIB + 50), 0);
    assert_int_equal(cg_trim(bench->volume, 2 * MIB, 6 * MIB), 0);
    usleep(400000);
    assert_int_equal(fake_count(&bench->fake, "DeAllocateSegment"), 0);
    assert_int_equal(cg_trim(bench->volume, MIB, 4 * MIB), 0);
    usleep(100000);
    assert_int_equal(fake_count(&bench->fake, "DeAllocateSegment"), 0);
    usleep(400000);
    assert_int_equal(fake_count(&bench->fake, "DeAllocateSegment"), 1);
    assert_int_equal(cg_pread(bench->volume, data, sizeof(data), 5 * MIB), 0);
    for (size_t i = 0; i < sizeof(data); i++) {
        assert_int_equal(data[i], 0);
    }
    // Its neighbour is there, and it can be written again.
    assert_int_equal(cg_pread(bench->volume, data, sizeof(data), 9 * MIB), 0);
    assert_int_equal(data[0], 7);
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 5 * MIB), 0);
    assert_int_equal(fake_byte(&bench->fake, 5 * MIB), 7);
    bench_end(bench);
}

static void whole_segments_are_given_back_on_both(void **state) {
    (void)state;
    a_segment_trimmed_as_a_whole_is_given_back(true);
    a_segment_trimmed_as_a_whole_is_given_back(false);
}

static void fast_zero_is_refused_where_it_is_not_fast(void **state) {
    (void)state;
    struct bench *bench = bench_new(false);
    bench_start(bench, 0, 0);
    assert_int_equal(cg_write_zeroes(bench->volume, 4096, 0, CG_IO_FAST_ZERO), -ENOTSUP);
    bench_end(bench);
}

// ---- Faults

static enum fake_verdict overload_twice(struct fake_seen *seen) {
    static int left = 2;
    if (is(seen, "WriteChunk") && left-- > 0) {
        seen->status = curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_OVERLOAD;
        return FAKE_ANSWER_STATUS;
    }
    return FAKE_SERVE;
}

static void overload_is_waited_out(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench_start(bench, 0, 0);
    set_hook(bench, overload_twice);
    uint8_t data[4096] = {1};
    uint64_t start = cg_now_ns();
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    uint64_t took = cg_now_ns() - start;
    assert_in_range(took, 260 * CG_NS_PER_MS, 1500 * CG_NS_PER_MS); // 100 + 200 +-10 %
    assert_int_equal(STAT(bench, overloads), 2);
    assert_int_equal(STAT(bench, retries), 2);
    bench_end(bench);
}

static enum fake_verdict lose_first_write(struct fake_seen *seen) {
    static int left = 1;
    return is(seen, "WriteChunk") && left-- > 0 ? FAKE_DO_AND_CLOSE : FAKE_SERVE;
}

static void a_lost_connection_repeats_the_same_write(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench_start(bench, 0, 0);
    set_hook(bench, lose_first_write);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    assert_int_equal(fake_count(&bench->fake, "WriteChunk"), 2);
    pthread_mutex_lock(&bench->fake.lock);
    const curve_chunkserver_ChunkRequest *seen[2];
    int found = 0;
    for (unsigned i = 0; i < bench->fake.log_count; i++) {
        if (strcmp(bench->fake.log[i].method, "WriteChunk") == 0) {
            seen[found++] = &bench->fake.log[i].request;
        }
    }
    assert_int_equal(seen[0]->clientId, seen[1]->clientId);
    assert_int_equal(seen[0]->sequence, seen[1]->sequence);
    assert_true(seen[1]->settledBelow <= seen[1]->sequence);
    assert_int_equal(bench->fake.duplicates, 1);
    pthread_mutex_unlock(&bench->fake.lock);
    bench_end(bench);
}

static enum fake_verdict drop_one_read(struct fake_seen *seen) {
    static int left = 1;
    return is(seen, "ReadChunk") && left-- > 0 ? FAKE_DROP : FAKE_SERVE;
}

static void an_unanswered_request_is_sent_again(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench_start(bench, 0, 0);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    set_hook(bench, drop_one_read);
    assert_int_equal(cg_pread(bench->volume, data, sizeof(data), 0), 0);
    assert_int_equal(data[0], 7);
    assert_int_equal(STAT(bench, timeouts), 1);
    bench_end(bench);
}

static enum fake_verdict drop_all_data(struct fake_seen *seen) {
    return seen->chunk != NULL ? FAKE_DROP : FAKE_SERVE;
}

static void an_io_ends_at_its_deadline(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench_start(bench, 0, 700);
    set_hook(bench, drop_all_data);
    uint8_t data[4096] = {7};
    uint64_t start = cg_now_ns();
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), -ETIMEDOUT);
    assert_in_range(cg_now_ns() - start, 690 * CG_NS_PER_MS, 1200 * CG_NS_PER_MS);
    set_hook(bench, NULL);
    // Given up is settled: a late copy of it must not take effect.
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    pthread_mutex_lock(&bench->fake.lock);
    const curve_chunkserver_ChunkRequest *last = NULL;
    for (unsigned i = 0; i < bench->fake.log_count; i++) {
        if (strcmp(bench->fake.log[i].method, "WriteChunk") == 0) {
            last = &bench->fake.log[i].request;
        }
    }
    assert_int_equal(last->settledBelow, last->sequence);
    pthread_mutex_unlock(&bench->fake.lock);
    bench_end(bench);
}

static void *bring_up(void *argument) {
    struct fake *fake = argument;
    usleep(400000);
    fake_down(fake, fake_peer(fake, 0), false);
    return NULL;
}

static void a_chunkserver_that_comes_back_is_used_again(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench_start(bench, 0, 0);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    fake_down(&bench->fake, fake_peer(&bench->fake, 0), true);
    pthread_t up;
    assert_int_equal(pthread_create(&up, NULL, bring_up, &bench->fake), 0);
    uint64_t start = cg_now_ns();
    memset(data, 0, sizeof(data));
    assert_int_equal(cg_pread(bench->volume, data, sizeof(data), 0), 0);
    assert_int_equal(data[0], 7);
    assert_in_range(cg_now_ns() - start, 300 * CG_NS_PER_MS, 2000 * CG_NS_PER_MS);
    pthread_join(up, NULL);
    bench_end(bench);
}

static void a_new_leader_is_found_in_milliseconds(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench->fake.peer_count = 3;
    bench_start(bench, 0, 0);
    assert_int_equal(bench->fake.updates, 3);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.leader = 2;
    pthread_mutex_unlock(&bench->fake.lock);
    unsigned asked = fake_count(&bench->fake, "GetLeader");
    uint64_t start = cg_now_ns();
    assert_int_equal(cg_pread(bench->volume, data, sizeof(data), 0), 0);
    assert_in_range(cg_now_ns() - start, 0, 80 * CG_NS_PER_MS);
    assert_int_equal(data[0], 7);
    assert_int_equal(STAT(bench, redirects), 1);
    // All but the one that did not do were asked.
    usleep(20000);
    assert_int_equal(fake_count(&bench->fake, "GetLeader"), asked + 2);
    bench_end(bench);
}

static void a_dead_leader_is_replaced(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench->fake.peer_count = 3;
    bench_start(bench, 0, 0);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    fake_down(&bench->fake, fake_peer(&bench->fake, 0), true);
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.leader = 1;
    pthread_mutex_unlock(&bench->fake.lock);
    uint64_t start = cg_now_ns();
    assert_int_equal(cg_pread(bench->volume, data, sizeof(data), 0), 0);
    assert_in_range(cg_now_ns() - start, 0, 500 * CG_NS_PER_MS);
    bench_end(bench);
}

static void another_metadata_server_is_used_when_one_is_gone(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench->fake.mds_count = 3;
    fake_start(&bench->fake);
    fake_down(&bench->fake, 0, true);
    fake_down(&bench->fake, 1, true);
    start_client(bench, CG_CLIENT_OWN_THREAD);
    open_volume(bench, 0, 0);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    fake_down(&bench->fake, 2, true);
    fake_down(&bench->fake, 0, false);
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 8 * MIB), 0);
    bench_end(bench);
}

static void a_missing_metadata_server_gives_a_clear_error(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    fake_start(&bench->fake);
    fake_down(&bench->fake, 0, true);
    start_client(bench, CG_CLIENT_OWN_THREAD);
    char error[256];
    assert_int_equal(try_open(bench, 0, 0, error, sizeof(error)), -ETIMEDOUT);
    assert_non_null(strstr(error, "no metadata server answers"));
    cg_client_destroy(bench->client);
    fake_stop(&bench->fake);
    free(bench);
}

static void opening_needs_every_chunkserver_to_know_the_epoch(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench->fake.peer_count = 2;
    fake_start(&bench->fake);
    fake_down(&bench->fake, fake_peer(&bench->fake, 1), true);
    start_client(bench, CG_CLIENT_OWN_THREAD);
    char error[256];
    assert_int_equal(try_open(bench, 0, 0, error, sizeof(error)), -ETIMEDOUT);
    assert_non_null(strstr(error, "did not take the volume's new epoch"));
    fake_down(&bench->fake, fake_peer(&bench->fake, 1), false);
    open_volume(bench, 0, 0);
    bench_end(bench);
}

// ---- Fencing and the lease

static void a_later_owner_fences_the_earlier_one(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench_start(bench, 0, 0);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    struct cg_volume *first = bench->volume;
    open_volume(bench, 0, 0);
    assert_int_equal(cg_pwrite(first, data, sizeof(data), 0), -ESTALE);
    assert_int_equal(cg_pread(first, data, sizeof(data), 0), -ESTALE);
    assert_int_equal(cg_trim(first, 4096, 0), -ESTALE);
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    cg_volume_close(first);
    bench_end(bench);
}

static void a_reader_is_fenced_by_its_epoch_too(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench_start(bench, 0, 0);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.store_epoch++;
    pthread_mutex_unlock(&bench->fake.lock);
    assert_int_equal(cg_pread(bench->volume, data, sizeof(data), 0), -ESTALE);
    bench_end(bench);
}

static void io_pauses_when_the_lease_runs_out_and_goes_on_with_it(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench->fake.lease_us = 400000;
    bench_start(bench, 0, 3000);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    fake_down(&bench->fake, 0, true);
    usleep(500000);
    // The chunkserver is well, but nobody renews the lease.
    struct cg_io io = {.op = CG_OP_READ, .length = 4096, .iovcnt = 1, .timeout_ms = 200};
    struct iovec iov = {data, sizeof(data)};
    atomic_int done = 0;
    io.iov = &iov;
    io.user = &done;
    io.done = count_done;
    unsigned before = fake_count(&bench->fake, "ReadChunk");
    cg_submit(bench->volume, &io);
    while (atomic_load(&done) == 0) {
        usleep(1000);
    }
    assert_int_equal(io.result, -ETIMEDOUT);
    assert_int_equal(fake_count(&bench->fake, "ReadChunk"), before);
    // It waits, and goes on when the server is back.
    atomic_store(&done, 0);
    io.timeout_ms = 3000;
    cg_submit(bench->volume, &io);
    usleep(100000);
    assert_int_equal(atomic_load(&done), 0);
    fake_down(&bench->fake, 0, false);
    while (atomic_load(&done) == 0) {
        usleep(1000);
    }
    assert_int_equal(io.result, 0);
    bench_end(bench);
}

static void a_session_that_ended_is_opened_again_if_the_epoch_is_ours(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench->fake.lease_us = 400000;
    bench_start(bench, 0, 2000);
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.session_gone = true;
    pthread_mutex_unlock(&bench->fake.lock);
    usleep(300000);
    assert_int_equal(fake_count(&bench->fake, "OpenFile"), 2);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.session_gone = true;
    bench->fake.epoch++;
    pthread_mutex_unlock(&bench->fake.lock);
    usleep(300000);
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), -ESTALE);
    bench_end(bench);
}

static void resize_and_sequence_come_with_the_refresh(void **state) {
    (void)state;
    struct bench *bench = bench_new(false);
    bench->fake.lease_us = 400000;
    bench_start(bench, 0, 3000);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.size = 128 * MIB;
    bench->fake.seq = 5; // a snapshot was made: writes with the old one are BACKWARD
    pthread_mutex_unlock(&bench->fake.lock);
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    usleep(250000);
    struct cg_volume_info info;
    cg_volume_info(bench->volume, &info);
    assert_int_equal(info.size, 128 * MIB);
    assert_int_equal(cg_pread(bench->volume, data, sizeof(data), 100 * MIB), 0);
    bench_end(bench);
}

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
        cmocka_unit_test(native_io_of_any_alignment_is_kept),
        cmocka_unit_test(curvebs_io_of_any_alignment_is_kept),
        cmocka_unit_test(striped_volumes_work_on_both),
        cmocka_unit_test(unallocated_reads_are_zeros_without_a_request),
        cmocka_unit_test(a_shared_reader_sees_what_another_allocates),
        cmocka_unit_test(ranges_beyond_the_end_are_refused),
        cmocka_unit_test(iovecs_of_many_parts_work),
        cmocka_unit_test(compare_and_write_works_everywhere),
        cmocka_unit_test(block_status_tells_what_is_allocated),
        cmocka_unit_test(whole_segments_are_given_back_on_both),
        cmocka_unit_test(fast_zero_is_refused_where_it_is_not_fast),
        cmocka_unit_test(overload_is_waited_out),
        cmocka_unit_test(a_lost_connection_repeats_the_same_write),
        cmocka_unit_test(an_unanswered_request_is_sent_again),
        cmocka_unit_test(an_io_ends_at_its_deadline),
        cmocka_unit_test(a_chunkserver_that_comes_back_is_used_again),
        cmocka_unit_test(a_new_leader_is_found_in_milliseconds),
        cmocka_unit_test(a_dead_leader_is_replaced),
        cmocka_unit_test(another_metadata_server_is_used_when_one_is_gone),
        cmocka_unit_test(a_missing_metadata_server_gives_a_clear_error),
        cmocka_unit_test(opening_needs_every_chunkserver_to_know_the_epoch),
        cmocka_unit_test(a_later_owner_fences_the_earlier_one),
        cmocka_unit_test(a_reader_is_fenced_by_its_epoch_too),
        cmocka_unit_test(io_pauses_when_the_lease_runs_out_and_goes_on_with_it),
        cmocka_unit_test(a_session_that_ended_is_opened_again_if_the_epoch_is_ours),
        cmocka_unit_test(resize_and_sequence_come_with_the_refresh),
        cmocka_unit_test(a_burst_is_queued_and_never_more_than_allowed_in_flight),
        cmocka_unit_test(unaligned_neighbours_on_curvebs_lose_nothing),
        cmocka_unit_test(blocking_threads_take_turns_at_the_reactor),
        cmocka_unit_test(closing_waits_for_io_in_flight),
        cmocka_unit_test(a_foreign_loop_drives_everything),
        cmocka_unit_test(options_that_make_no_sense_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
