// SPDX-License-Identifier: BSD-3-Clause
//
// What goes through the public interface arrives, whatever its shape.
#include "bench.h"

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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
