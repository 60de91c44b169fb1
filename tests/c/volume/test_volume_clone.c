// SPDX-License-Identifier: BSD-3-Clause
//
// Lazy clones of CurveBS: data that is still in another volume is never taken for zeros.
#include "bench.h"
#include "gateway/proto/nameserver2.pb.h"

#define CHUNK   ((uint64_t)MIB)
#define SEGMENT (4 * CHUNK)

// The source has the segments 0, 2, 3, and by now 5 and 200; it had the length of 5 segments when
// it was cloned.
static struct bench *clone_bench(uint64_t stripe_unit) {
    struct bench *bench = bench_new(false);
    struct fake *fake = &bench->fake;
    fake->stripe_unit = stripe_unit;
    fake->stripe_count = stripe_unit != 0 ? 3 : 0;
    fake->clone_source = "/origin";
    fake->clone_length = 5 * SEGMENT;
    fake->file_status = curve_mds_FileStatus_kFileCloneMetaInstalled;
    fake->source_status = curve_mds_FileStatus_kFileBeingCloned;
    fake_start(fake);
    fake_fill_source(fake, 0, 0xa0);
    fake_fill_source(fake, 2, 0xb0);
    fake_fill_source(fake, 3, 0xc0);
    fake_fill_source(fake, 5, 0xd0);
    fake_fill_source(fake, 200, 0xe0);
    return bench;
}

static struct bench *clone_open(uint64_t stripe_unit) {
    struct bench *bench = clone_bench(stripe_unit);
    start_client(bench, CG_CLIENT_OWN_THREAD);
    open_volume(bench, 0, 0);
    return bench;
}

// What an untouched byte of the clone is: its chunk's in the source, whatever the stripes.
static uint8_t source_byte(uint64_t offset, uint64_t stripe_unit) {
    static const uint8_t first[] = {0xa0, 0, 0xb0, 0xc0, 0};
    uint64_t chunk = offset / CHUNK;
    if (stripe_unit != 0) {
        uint64_t row = offset / (3 * CHUNK);
        chunk = row * 3 + offset / stripe_unit % 3;
    }
    uint64_t segment = chunk * CHUNK / SEGMENT;
    uint8_t value = segment < 5 ? first[segment] : 0;
    return value != 0 ? (uint8_t)(value + chunk % 4) : 0;
}

static uint8_t *source_model(uint64_t stripe_unit) {
    uint8_t *model = malloc(64 * MIB);
    for (uint64_t at = 0; at < 64 * MIB; at += 4096) {
        memset(model + at, source_byte(at, stripe_unit), 4096);
    }
    return model;
}

static void check_read(struct bench *bench, const uint8_t *model, uint64_t offset,
                       uint64_t length) {
    uint8_t *data = malloc(length);
    memset(data, 0xee, length);
    assert_int_equal(cg_pread(bench->volume, data, length, offset), 0);
    assert_memory_equal(data, model + offset, length);
    free(data);
}

static void untouched_data_is_the_source_s(uint64_t stripe_unit) {
    struct bench *bench = clone_open(stripe_unit);
    uint8_t *model = source_model(stripe_unit);
    check_read(bench, model, 0, 32 * MIB);
    check_read(bench, model, 4095, 4098);
    check_read(bench, model, SEGMENT - 5000, 20000);
    check_read(bench, model, 2 * SEGMENT - 1, 2);
    for (unsigned i = 0; i < 16; i++) {
        assert_int_equal(bench->fake.segments[i], 0); // reading allocates nothing
    }
    free(model);
    bench_end(bench);
}

static void reads_of_what_a_clone_lacks_come_from_its_source(void **state) {
    (void)state;
    untouched_data_is_the_source_s(0);
    untouched_data_is_the_source_s(64 << 10);
}

static void mixed_io(uint64_t stripe_unit) {
    struct bench *bench = clone_open(stripe_unit);
    uint8_t *model = source_model(stripe_unit);
    uint8_t *data = malloc(3 * MIB);
    srand(17);
    for (int round = 0; round < 150; round++) {
        uint64_t length = (uint64_t)rand() % (round % 10 == 0 ? 3 * MIB : 20000) + 1;
        uint64_t offset = (uint64_t)rand() % (28 * MIB - length);
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
            check_read(bench, model, offset, length);
            break;
        }
    }
    check_read(bench, model, 0, 64 * MIB);
    free(model);
    free(data);
    bench_end(bench);
}

static void written_and_fetched_data_mix(void **state) {
    (void)state;
    mixed_io(0);
    mixed_io(64 << 10);
}

static void many_reads_at_once_share_what_there_is(void **state) {
    (void)state;
    struct bench *bench = clone_open(0);
    uint8_t *model = source_model(0);
    atomic_int done = 0;
    struct cg_io io[40] = {0};
    struct iovec iov[40][2];
    for (unsigned i = 0; i < 40; i++) {
        uint64_t offset = i % 18 * (MIB + 4096);
        iov[i][0] = (struct iovec){malloc(5000), 5000};
        iov[i][1] = (struct iovec){malloc(2 * MIB - 5000), 2 * MIB - 5000};
        io[i] = (struct cg_io){.op = CG_OP_READ,
                               .offset = offset,
                               .length = 2 * MIB,
                               .iov = iov[i],
                               .iovcnt = 2,
                               .done = count_done,
                               .user = &done};
        cg_submit(bench->volume, &io[i]);
    }
    while (atomic_load(&done) < 40) {
        usleep(1000);
    }
    for (unsigned i = 0; i < 40; i++) {
        assert_int_equal(io[i].result, 0);
        assert_memory_equal(iov[i][0].iov_base, model + io[i].offset, 5000);
        assert_memory_equal(iov[i][1].iov_base, model + io[i].offset + 5000, 2 * MIB - 5000);
        free(iov[i][0].iov_base);
        free(iov[i][1].iov_base);
    }
    free(model);
    bench_end(bench);
}

static void zeroes_are_written_over_the_source_s_data(void **state) {
    (void)state;
    struct bench *bench = clone_open(0);
    uint8_t *model = source_model(0);
    assert_int_equal(cg_write_zeroes(bench->volume, 2 * MIB, MIB, 0), 0);
    memset(model + MIB, 0, 2 * MIB);
    check_read(bench, model, 0, SEGMENT);
    // Where there is nothing, zeroing allocates nothing.
    assert_int_equal(cg_write_zeroes(bench->volume, MIB, SEGMENT, 0), 0);
    assert_int_equal(bench->fake.segments[1], 0);
    free(model);
    bench_end(bench);
}

static void a_trimmed_segment_with_a_source_is_kept(void **state) {
    (void)state;
    struct bench *bench = clone_open(0);
    bench->client->trim_delay_ns = 50 * CG_NS_PER_MS;
    uint8_t data[4096] = {1};
    assert_int_equal(cg_trim(bench->volume, SEGMENT, 2 * SEGMENT), 0);
    assert_int_equal(bench->fake.segments[2], 0);
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), SEGMENT), 0);
    assert_int_equal(cg_trim(bench->volume, 2 * SEGMENT, 0), 0);
    for (int i = 0; i < 200 && fake_count(&bench->fake, "DeAllocateSegment") == 0; i++) {
        usleep(10000);
    }
    usleep(100000);
    assert_int_equal(fake_count(&bench->fake, "DeAllocateSegment"), 1); // the one without
    assert_int_not_equal(bench->fake.segments[0], 0);
    assert_int_equal(bench->fake.segments[1], 0);
    bench_end(bench);
}

static void what_the_source_has_is_told_as_data(void **state) {
    (void)state;
    struct bench *bench = clone_open(0);
    struct cg_extent extents[8];
    assert_int_equal(cg_block_status(bench->volume, 6 * SEGMENT, 0, extents, 8), 4);
    assert_int_equal(extents[0].flags, CG_EXTENT_DATA);
    assert_int_equal(extents[0].length, SEGMENT);
    assert_int_equal(extents[1].flags, CG_EXTENT_HOLE | CG_EXTENT_ZERO);
    assert_int_equal(extents[2].flags, CG_EXTENT_DATA);
    assert_int_equal(extents[2].length, 2 * SEGMENT);
    assert_int_equal(extents[3].flags, CG_EXTENT_HOLE | CG_EXTENT_ZERO);
    bench_end(bench);
}

// As the copying in the background does it.
static void copy_segment(struct bench *bench, uint64_t index, uint8_t value) {
    struct fake *fake = &bench->fake;
    fake_fill_source(fake, 100, value);
    pthread_mutex_lock(&fake->lock);
    fake->segments[index] = fake->source_segments[100];
    fake->source_segments[100] = 0;
    pthread_mutex_unlock(&fake->lock);
}

static void a_segment_copied_meanwhile_is_read_from_the_clone(void **state) {
    (void)state;
    struct bench *bench = clone_open(0);
    uint8_t *model = source_model(0);
    check_read(bench, model, 0, SEGMENT);
    copy_segment(bench, 0, 0x10);
    uint8_t byte;
    assert_int_equal(cg_pread(bench->volume, &byte, 1, MIB), 0);
    assert_int_equal(byte, 0x11);
    free(model);
    bench_end(bench);
}

static void a_clone_that_is_complete_leaves_its_source_alone(void **state) {
    (void)state;
    struct bench *bench = clone_bench(0);
    bench->fake.lease_us = 400000;
    start_client(bench, CG_CLIENT_OWN_THREAD);
    open_volume(bench, 0, 0);
    uint8_t byte;
    assert_int_equal(cg_pread(bench->volume, &byte, 1, 0), 0);
    assert_int_equal(byte, 0xa0);
    copy_segment(bench, 0, 0x10);
    copy_segment(bench, 3, 0x20);
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.file_status = curve_mds_FileStatus_kFileCloned;
    pthread_mutex_unlock(&bench->fake.lock);
    unsigned refreshes = fake_count(&bench->fake, "RefreshSession");
    while (fake_count(&bench->fake, "RefreshSession") < refreshes + 2) {
        usleep(10000);
    }
    assert_int_equal(cg_pread(bench->volume, &byte, 1, 0), 0);
    assert_int_equal(byte, 0x10);
    assert_int_equal(cg_pwrite(bench->volume, &byte, 1, 3 * SEGMENT), 0);
    assert_int_equal(cg_pread(bench->volume, &byte, 1, 3 * SEGMENT + 1), 0);
    assert_int_equal(byte, 0x20);
    assert_int_equal(cg_pread(bench->volume, &byte, 1, 2 * SEGMENT), 0);
    assert_int_equal(byte, 0); // not allocated: zeros, as in other volumes
    bench_end(bench);
}

static enum fake_verdict drop_reads(struct fake_seen *seen) {
    return is(seen, "ReadChunk") ? FAKE_DROP : FAKE_SERVE;
}

static enum fake_verdict ignore_source(struct fake_seen *seen) {
    if (!is(seen, "ReadChunk") || !seen->chunk->has_cloneFileOffset) {
        return FAKE_SERVE;
    }
    seen->status = curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_CHUNK_NOTEXIST;
    return FAKE_ANSWER_STATUS;
}

static void a_source_that_does_not_answer_fails_the_read_in_time(void **state) {
    (void)state;
    struct bench *bench = clone_bench(0);
    start_client(bench, CG_CLIENT_OWN_THREAD);
    open_volume(bench, 0, 300);
    set_hook(bench, drop_reads);
    uint8_t *data = malloc(2 * SEGMENT);
    assert_int_equal(cg_pread(bench->volume, data, 2 * SEGMENT, 0), -ETIMEDOUT);
    set_hook(bench, NULL);
    assert_int_equal(cg_pread(bench->volume, data, 1, 0), 0);
    assert_int_equal(data[0], 0xa0);
    free(data);
    bench_end(bench);
}

static void a_chunkserver_that_ignores_the_source_is_not_believed(void **state) {
    (void)state;
    struct bench *bench = clone_open(0);
    uint8_t byte = 1;
    copy_segment(bench, 0, 0x10);
    set_hook(bench, ignore_source);
    assert_int_equal(cg_pread(bench->volume, &byte, 1, 0), -EIO);
    bench_end(bench);
}

static void expect_refusal(struct bench *bench, int result, const char *text) {
    char error[256] = "";
    start_client(bench, CG_CLIENT_OWN_THREAD);
    assert_int_equal(try_open(bench, 0, 0, error, sizeof(error)), result);
    if (strstr(error, text) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", error, text);
    }
    assert_int_equal(bench->fake.raises, 0);
    cg_client_destroy(bench->client);
    fake_stop(&bench->fake);
    free(bench);
}

static void what_cannot_be_read_rightly_is_not_opened(void **state) {
    (void)state;
    struct bench *bench = clone_bench(0);
    bench->fake.hide_source_segments = true;
    expect_refusal(bench, -ENOTSUP, "flatten the clone first");
    bench = clone_bench(0);
    bench->fake.native = true;
    expect_refusal(bench, -ENOTSUP, "flatten the clone first");
    bench = clone_bench(0);
    bench->fake.source_status = curve_mds_FileStatus_kFileCloneMetaInstalled;
    expect_refusal(bench, -ENOTSUP, "flatten the clone first");
    bench = clone_bench(0);
    bench->fake.source_gone = true;
    expect_refusal(bench, -ENOENT, "/origin");
    bench = clone_bench(0);
    bench->fake.file_status = curve_mds_FileStatus_kFileCloning;
    expect_refusal(bench, -EBUSY, "being made as a clone");
}

static void clones_that_need_no_source_are_volumes_as_others(void **state) {
    (void)state;
    static const struct {
        const char *source;
        int32_t status;
        uint64_t length;
    } cases[] = {
        {"/origin", curve_mds_FileStatus_kFileCloned, 5 * SEGMENT},
        // A snapshot: the chunks themselves know where their data is.
        {"0c9f-11ee", curve_mds_FileStatus_kFileCloneMetaInstalled, 5 * SEGMENT},
        {"/origin", curve_mds_FileStatus_kFileCloneMetaInstalled, 0},
    };
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct bench *bench = clone_bench(0);
        bench->fake.clone_source = cases[i].source;
        bench->fake.hide_source_segments = i == 1;
        bench->fake.file_status = cases[i].status;
        bench->fake.clone_length = cases[i].length;
        start_client(bench, CG_CLIENT_OWN_THREAD);
        open_volume(bench, 0, 0);
        uint8_t byte = 1;
        assert_int_equal(cg_pread(bench->volume, &byte, 1, 0), 0);
        assert_int_equal(byte, 0);
        assert_int_equal(fake_count(&bench->fake, "GetFileInfo"), 0);
        assert_int_equal(STAT(bench, requests), 0);
        bench_end(bench);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_of_what_a_clone_lacks_come_from_its_source),
        cmocka_unit_test(written_and_fetched_data_mix),
        cmocka_unit_test(many_reads_at_once_share_what_there_is),
        cmocka_unit_test(zeroes_are_written_over_the_source_s_data),
        cmocka_unit_test(a_trimmed_segment_with_a_source_is_kept),
        cmocka_unit_test(what_the_source_has_is_told_as_data),
        cmocka_unit_test(a_segment_copied_meanwhile_is_read_from_the_clone),
        cmocka_unit_test(a_clone_that_is_complete_leaves_its_source_alone),
        cmocka_unit_test(a_source_that_does_not_answer_fails_the_read_in_time),
        cmocka_unit_test(a_chunkserver_that_ignores_the_source_is_not_believed),
        cmocka_unit_test(what_cannot_be_read_rightly_is_not_opened),
        cmocka_unit_test(clones_that_need_no_source_are_volumes_as_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
