// SPDX-License-Identifier: BSD-3-Clause
//
// What the log promises, case by case, on a simulated disk.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/crc32c.h"
#include "chunkserver/wal_format.h"
#include "chunkserver/wal_internal.h"
#include "simreactor.h"
#include "walmodel.h"

#define SEGMENT (256U << 10)

static void setup(struct walmodel *model, unsigned in_flight) {
    const struct simdisk_options disk = {.seed = 7, .fifo = true};
    const struct cg_wal_options options = {
        .segment_bytes = SEGMENT, .capacity_bytes = 8 * SEGMENT, .batches_in_flight = in_flight};
    walmodel_init(model, &disk, &options);
    assert_int_equal(walmodel_open(model), 0);
}

// Lets the background preparation of segments finish.
static void settle(struct walmodel *model) {
    while (simdisk_pending(model->sim) != 0) {
        walmodel_run(model, 1);
    }
}

// ---- Format

static void record_survives_encoding_and_decoding(void **state) {
    (void)state;
    uint32_t crcs[3] = {1, 2, 0xffffffffU};
    const char meta[] = "thirteen chars";
    struct cg_wal_record in = {.group = 1, .term = 2, .index = 3, .type = 4};
    in.meta = meta;
    in.meta_length = 13;
    in.payload_length = 3 * CG_WAL_BLOCK;
    in.block_crcs = crcs;
    _Alignas(8) uint8_t region[CG_WAL_BLOCK];
    memset(region, 0xaa, sizeof(region));
    wal_record_encode(&in, region);
    uint32_t size = wal_record_encoded_size(&in);
    assert_int_equal(size, WAL_RECORD_HEADER_SIZE + 16 + 16);
    assert_int_equal(region[size], 0xaa);
    uint32_t position = 0;
    struct cg_wal_record out;
    assert_int_equal(wal_record_decode(region, size, &position, &out), 0);
    assert_int_equal(position, size);
    assert_true(out.group == 1 && out.term == 2 && out.index == 3 && out.type == 4);
    assert_int_equal(out.meta_length, 13);
    assert_memory_equal(out.meta, meta, 13);
    assert_int_equal(out.payload_length, in.payload_length);
    assert_memory_equal(out.block_crcs, crcs, sizeof(crcs));
}

static void record_that_does_not_fit_its_region_is_refused(void **state) {
    (void)state;
    uint32_t crc = 9;
    struct cg_wal_record in = {.payload_length = CG_WAL_BLOCK, .block_crcs = &crc};
    _Alignas(8) uint8_t region[256] = {0};
    wal_record_encode(&in, region);
    struct cg_wal_record out;
    for (uint32_t used = 0; used < wal_record_encoded_size(&in); used++) {
        uint32_t position = 0;
        assert_int_equal(wal_record_decode(region, used, &position, &out), -EBADMSG);
    }
    for (unsigned byte = 28; byte < 36; byte++) { // the lengths
        region[byte] ^= 0xff;
        uint32_t position = 0;
        assert_int_equal(wal_record_decode(region, sizeof(region), &position, &out), -EBADMSG);
        region[byte] ^= 0xff;
    }
}

static void segment_header_is_known_by_its_checksum(void **state) {
    (void)state;
    const struct wal_segment_header in = {
        .uuid = {1, 2, 3}, .sequence = 4, .incarnation = 5, .start_lsn = 6, .durable_lsn = 7};
    uint8_t block[CG_WAL_BLOCK];
    struct wal_segment_header out;
    wal_segment_header_encode(&in, block);
    assert_int_equal(wal_segment_header_decode(block, &out), 0);
    assert_memory_equal(&in, &out, sizeof(in));
    for (unsigned byte = 0; byte < CG_WAL_BLOCK; byte += 3) {
        block[byte] ^= 1;
        assert_int_equal(wal_segment_header_decode(block, &out), -EBADMSG);
        block[byte] ^= 1;
    }
    memset(block, 0, sizeof(block));
    assert_int_equal(wal_segment_header_decode(block, &out), -ENODATA);
}

static void batch_of_another_log_is_not_valid(void **state) {
    (void)state;
    uint8_t *region = aligned_alloc(CG_WAL_BLOCK, CG_WAL_BLOCK);
    const uint8_t ours[WAL_UUID_SIZE] = {1}, theirs[WAL_UUID_SIZE] = {2};
    const struct wal_batch_header in = {
        .sequence = 1, .lsn = 4096, .used = WAL_BATCH_HEADER_SIZE, .region = CG_WAL_BLOCK};
    wal_batch_seal(&in, ours, region);
    struct wal_batch_header out;
    assert_true(wal_batch_peek(region, &out));
    assert_true(wal_batch_region_valid(&out, ours, region));
    assert_false(wal_batch_region_valid(&out, theirs, region));
    free(region);
}

// ---- Group commit

static void appends_of_one_iteration_leave_in_one_write(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model, 2);
    settle(&model);
    for (int i = 0; i < 10; i++) {
        walmodel_append_blocks(&model, 1);
    }
    walmodel_drain(&model);
    struct cg_wal_stats stats;
    cg_wal_stats(model.wal, &stats);
    assert_int_equal(stats.batches, 1);
    assert_int_equal(stats.records, 10);
    walmodel_destroy(&model);
}

static void appends_that_arrive_during_a_write_leave_in_the_next(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model, 1);
    settle(&model);
    walmodel_append_blocks(&model, 1);
    walmodel_run(&model, 0);
    for (int i = 0; i < 5; i++) {
        walmodel_append_blocks(&model, 1);
        walmodel_run(&model, 0);
    }
    assert_int_equal(simdisk_pending(model.sim), 1);
    walmodel_drain(&model);
    struct cg_wal_stats stats;
    cg_wal_stats(model.wal, &stats);
    assert_int_equal(stats.batches, 2);
    walmodel_destroy(&model);
}

static void no_more_batches_are_in_flight_than_allowed(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model, 3);
    settle(&model);
    for (int i = 0; i < 8; i++) {
        walmodel_append_blocks(&model, 1);
        walmodel_run(&model, 0);
        assert_true(simdisk_pending(model.sim) <= 3);
    }
    walmodel_drain(&model);
    walmodel_destroy(&model);
}

static void nothing_is_acknowledged_before_its_write_completes(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model, 2);
    settle(&model);
    walmodel_append_blocks(&model, 1);
    walmodel_run(&model, 0);
    assert_int_equal(model.pending, 1);
    simdisk_crash(model.sim, SIMDISK_DROP_ALL);
    assert_int_equal(model.pending, 1);
    assert_int_equal(walmodel_acked(&model), 0);
    model.pending = 0;
    walmodel_crash(&model, SIMDISK_DROP_ALL);
    assert_int_equal(walmodel_open(&model), 0);
    assert_int_equal(model.count, 0);
    walmodel_destroy(&model);
}

static void tail_is_a_lower_bound_for_what_is_appended_next(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model, 1);
    for (int i = 0; i < 200; i++) { // the model checks each append against the tail before it
        walmodel_append(&model);
        walmodel_run(&model, (unsigned)(i % 3));
        if (i % 20 == 19) {
            walmodel_drain(&model);
            walmodel_recycle(&model, true);
        }
    }
    walmodel_drain(&model);
    assert_int_equal(cg_wal_tail(model.wal) % CG_WAL_BLOCK, 0);
    walmodel_destroy(&model);
}

// ---- Bad input

static void refused(struct cg_wal_append *append) {
    assert_int_equal(append->status, -EINVAL);
    append->done = NULL;
}

static void append_expecting_einval(struct walmodel *model, struct cg_wal_append *append) {
    append->done = refused;
    cg_wal_append(model->wal, append);
    assert_non_null(append->done); // not called inside
    simreactor_iterate(model->reactor);
    assert_null(append->done);
}

static void appends_beyond_the_limits_are_refused_and_harm_nobody(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model, 2);
    uint8_t *block = aligned_alloc(CG_WAL_BLOCK, 2 * CG_WAL_BLOCK);
    memset(block, 0, 2 * CG_WAL_BLOCK);
    uint32_t crcs[2] = {0};
    struct iovec iov = {block, CG_WAL_BLOCK};
    struct cg_wal_append append = {.payload = &iov, .payload_count = 1};
    append.record.block_crcs = crcs;
    append.record.payload_length = 2 * CG_WAL_BLOCK; // more than the iovec holds
    append_expecting_einval(&model, &append);
    append.record.payload_length = CG_WAL_BLOCK;
    iov.iov_base = block + 8; // not aligned
    append_expecting_einval(&model, &append);
    iov.iov_base = block;
    append.record.meta = block;
    append.record.meta_length = CG_WAL_META_MAX + 1;
    append_expecting_einval(&model, &append);
    append.record.meta_length = 0;
    append.record.payload_length = CG_WAL_PAYLOAD_MAX + CG_WAL_BLOCK;
    iov.iov_len = append.record.payload_length;
    append_expecting_einval(&model, &append);
    walmodel_append(&model);
    walmodel_drain(&model);
    free(block);
    walmodel_destroy(&model);
}

static void senseless_options_are_refused(void **state) {
    (void)state;
    struct walmodel model;
    const struct simdisk_options disk = {.seed = 1};
    struct cg_wal_options options = {.capacity_bytes = 4096};
    walmodel_init(&model, &disk, &options);
    assert_int_equal(walmodel_open(&model), -EINVAL);
    assert_true(model.error[0] != '\0');
    model.options.capacity_bytes = 0;
    model.options.batches_in_flight = 1000;
    assert_int_equal(walmodel_open(&model), -EINVAL);
    model.options.batches_in_flight = 0;
    model.checkpoint = 77;
    assert_int_equal(walmodel_open(&model), -EINVAL);
    model.checkpoint = 0;
    walmodel_destroy(&model);
}

// ---- Failing disks

static void a_failed_write_fails_everything_after_it_for_good(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model, 2);
    settle(&model);
    walmodel_append_blocks(&model, 1);
    walmodel_drain(&model);
    model.expect_failures = true;
    simdisk_fail_write(model.sim, 1, -EIO, false); // only one fails; those after it would succeed
    for (int i = 0; i < 6; i++) {
        walmodel_append_blocks(&model, 1);
        walmodel_run(&model, 0);
    }
    walmodel_drain(&model);
    assert_int_equal(model.failure, -EIO);
    assert_int_equal(walmodel_acked(&model), 2); // the one before and the first of the six
    uint64_t writes = simdisk_writes(model.sim);
    walmodel_append_blocks(&model, 1);
    walmodel_drain(&model);
    simreactor_advance(model.reactor, 5 * CG_NS_PER_S);
    assert_int_equal(simdisk_writes(model.sim), writes); // not retried, not sealed
    walmodel_crash(&model, SIMDISK_KEEP_ALL);
    assert_int_equal(walmodel_open(&model), 0);
    walmodel_destroy(&model);
}

static void a_segment_header_that_cannot_be_written_fails_the_log(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model, 1);
    settle(&model);
    while (cg_wal_used(model.wal) + 8 * CG_WAL_BLOCK < SEGMENT) {
        walmodel_append_blocks(&model, 6);
        walmodel_drain(&model);
    }
    model.expect_failures = true;
    simdisk_fail_write(model.sim, 0, -ENOSPC, true);
    walmodel_append_blocks(&model, 6);
    walmodel_append_blocks(&model, 6);
    walmodel_drain(&model);
    assert_int_equal(model.failure, -ENOSPC);
    walmodel_crash(&model, SIMDISK_DROP_ALL);
    assert_int_equal(walmodel_open(&model), 0);
    walmodel_destroy(&model);
}

static void a_full_disk_keeps_the_log_to_the_segments_it_has(void **state) {
    (void)state;
    const struct simdisk_options disk = {.seed = 3, .capacity_bytes = 3 * SEGMENT + 4096};
    const struct cg_wal_options options = {.segment_bytes = SEGMENT, .capacity_bytes = 8 * SEGMENT};
    struct walmodel model;
    walmodel_init(&model, &disk, &options);
    assert_int_equal(walmodel_open(&model), 0);
    for (int i = 0; i < 300; i++) {
        walmodel_append_blocks(&model, 4);
        walmodel_drain(&model);
        if (cg_wal_used(model.wal) > cg_wal_capacity(model.wal) / 2) {
            walmodel_recycle(&model, true);
        }
    }
    assert_true(cg_wal_capacity(model.wal) < 3 * SEGMENT);
    assert_true(cg_wal_capacity(model.wal) > SEGMENT);
    walmodel_crash(&model, SIMDISK_DROP_ALL);
    assert_int_equal(walmodel_open(&model), 0);
    walmodel_destroy(&model);
}

static void a_disk_too_full_for_one_segment_is_enospc(void **state) {
    (void)state;
    const struct simdisk_options disk = {.seed = 3, .capacity_bytes = SEGMENT / 2};
    const struct cg_wal_options options = {.segment_bytes = SEGMENT, .capacity_bytes = 8 * SEGMENT};
    struct walmodel model;
    walmodel_init(&model, &disk, &options);
    assert_int_equal(walmodel_open(&model), -ENOSPC);
    assert_non_null(strstr(model.error, "No space left"));
    walmodel_destroy(&model);
}

static void a_sync_that_fails_at_recovery_refuses_the_log(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model, 2);
    walmodel_append(&model);
    walmodel_drain(&model);
    walmodel_kill(&model);
    simdisk_fail_sync(model.sim, 1, -EIO); // 0: the folder's
    assert_int_equal(walmodel_open(&model), -EIO);
    assert_non_null(strstr(model.error, "cannot sync"));
    assert_int_equal(walmodel_open(&model), 0);
    walmodel_destroy(&model);
}

// ---- Capacity and recycling

static void a_log_past_its_capacity_waits_for_a_recycling(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model, 2);
    for (int i = 0; i < 400; i++) { // four times what fits
        walmodel_append_blocks(&model, 5);
    }
    for (int i = 0; i < 2000; i++) {
        walmodel_run(&model, 1);
    }
    assert_true(model.pending > 0);
    assert_true(cg_wal_used(model.wal) > cg_wal_capacity(model.wal));
    assert_true(simdisk_used(model.sim) <= 8 * SEGMENT);
    for (int i = 0; i < 2000 && model.pending != 0; i++) {
        walmodel_run(&model, 50);
        // Up to the last acknowledged one: the tail is not durable yet.
        size_t acked = walmodel_acked(&model);
        uint64_t lsn = acked != 0 ? walmodel_lsn(&model, acked - 1) : 0;
        cg_wal_recycle(model.wal, lsn);
    }
    assert_int_equal(model.pending, 0);
    assert_true(simdisk_used(model.sim) <= 8 * SEGMENT);
    walmodel_destroy(&model);
}

static void restarts_without_appends_use_no_space(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model, 2);
    walmodel_append(&model);
    walmodel_drain(&model);
    uint64_t used = 0;
    for (int i = 0; i < 50; i++) {
        settle(&model);
        walmodel_kill(&model);
        assert_int_equal(walmodel_open(&model), 0);
        settle(&model);
        if (i == 2) {
            used = simdisk_used(model.sim);
        }
    }
    assert_int_equal(simdisk_used(model.sim), used);
    assert_int_equal(walmodel_acked(&model), 1);
    walmodel_destroy(&model);
}

static void restarts_past_the_capacity_still_start(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model, 2);
    for (int i = 0; i < 20; i++) {
        walmodel_append(&model);
        walmodel_drain(&model);
        walmodel_kill(&model);
        assert_int_equal(walmodel_open(&model), 0);
    }
    assert_true(cg_wal_used(model.wal) > cg_wal_capacity(model.wal));
    walmodel_recycle(&model, true);
    assert_true(cg_wal_used(model.wal) < cg_wal_capacity(model.wal));
    settle(&model);
    assert_true(simdisk_used(model.sim) <= 8 * SEGMENT);
    walmodel_append(&model);
    walmodel_drain(&model);
    walmodel_destroy(&model);
}

static void smaller_options_at_a_restart_give_space_back(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model, 2);
    while (cg_wal_used(model.wal) < 6 * SEGMENT) {
        walmodel_append_blocks(&model, 6);
        walmodel_drain(&model);
    }
    walmodel_close(&model);
    model.options.capacity_bytes = 4 * SEGMENT;
    assert_int_equal(walmodel_open(&model), 0);
    walmodel_recycle(&model, true);
    settle(&model);
    assert_true(simdisk_used(model.sim) <= 4 * SEGMENT);
    walmodel_append(&model);
    walmodel_drain(&model);
    walmodel_destroy(&model);
}

// ---- Recovery

static void a_log_that_lost_its_files_is_refused(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model, 2);
    for (int i = 0; i < 300; i++) {
        walmodel_append_blocks(&model, 4);
        walmodel_drain(&model);
        if (cg_wal_used(model.wal) > 3 * SEGMENT) {
            walmodel_recycle(&model, false);
        }
    }
    char path[64];
    uint64_t offset;
    assert_true(model.checkpoint > 0);
    assert_true(walmodel_locate(&model, model.checkpoint, path, &offset));
    walmodel_close(&model);
    struct cg_disk *disk = simdisk_disk(model.sim);
    assert_int_equal(disk->ops->unlink(disk, path), 0);
    assert_int_equal(walmodel_open(&model), -EBADMSG);
    assert_non_null(strstr(model.error, "missing"));
    walmodel_destroy(&model);
}

static void corruption_names_the_file_and_the_offset(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model, 2);
    walmodel_append_blocks(&model, 1);
    walmodel_drain(&model);
    walmodel_close(&model); // seals
    char path[64], offset_text[32];
    uint64_t offset;
    assert_true(walmodel_locate(&model, walmodel_lsn(&model, 0), path, &offset));
    snprintf(offset_text, sizeof(offset_text), "offset %llu", (unsigned long long)offset);
    simdisk_flip(model.sim, path, offset + CG_WAL_BLOCK + 99, 3);
    assert_int_equal(walmodel_open(&model), -EBADMSG);
    assert_non_null(strstr(model.error, path));
    assert_non_null(strstr(model.error, offset_text));
    walmodel_destroy(&model);
}

static void the_idle_seal_is_written_once(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model, 2);
    walmodel_append_blocks(&model, 1);
    walmodel_drain(&model);
    settle(&model);
    for (int i = 0; i < 10; i++) {
        simreactor_advance(model.reactor, 2 * CG_NS_PER_S);
        settle(&model);
    }
    struct cg_wal_stats stats;
    cg_wal_stats(model.wal, &stats);
    assert_int_equal(stats.batches, 2);
    assert_int_equal(stats.records, 1);
    walmodel_destroy(&model);
}

static void foreign_files_in_the_folder_are_left_alone(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model, 2);
    walmodel_close(&model);
    struct cg_disk *disk = simdisk_disk(model.sim);
    int handle = disk->ops->open(disk, "wal/segment-notes.txt", 0102); // O_RDWR | O_CREAT
    assert_true(handle >= 0);
    disk->ops->close(disk, handle);
    assert_int_equal(walmodel_open(&model), 0);
    uint64_t length;
    walmodel_append(&model);
    walmodel_drain(&model);
    walmodel_close(&model);
    assert_int_equal(disk->ops->size(disk, disk->ops->open(disk, "wal/segment-notes.txt", 2)), 0);
    (void)length;
    walmodel_destroy(&model);
}

// A batch that was torn away at the beginning of a segment, and the next one that was not: the
// segment is used again, and a new batch as long as the lost one ends where the stale one begins.
static void stale_batches_of_a_reused_segment_stay_dead(void **state) {
    (void)state;
    unsigned reached = 0;
    for (uint64_t seed = 1; seed <= 64; seed++) {
        const struct simdisk_options disk = {.seed = seed};
        const struct cg_wal_options options = {.segment_bytes = SEGMENT,
                                               .capacity_bytes = 8 * SEGMENT};
        struct walmodel model;
        walmodel_seed = seed;
        walmodel_init(&model, &disk, &options);
        model.uniform = true;
        assert_int_equal(walmodel_open(&model), 0);
        settle(&model);
        for (int i = 0; i < 2; i++) {
            walmodel_append(&model);
            walmodel_run(&model, 0);
        }
        walmodel_crash(&model, SIMDISK_ANY_WRITES);
        assert_int_equal(walmodel_open(&model), 0);
        if (model.count == 0) {
            reached++;
            walmodel_append(&model);
            walmodel_drain(&model);
            walmodel_crash(&model, SIMDISK_DROP_ALL);
            assert_int_equal(walmodel_open(&model), 0); // the model knows only the new one
            assert_int_equal(model.count, 1);
        }
        walmodel_destroy(&model);
    }
    assert_true(reached > 10);
}

#define SMALL_SEGMENT (16 * CG_WAL_BLOCK)

// Leaves a log whose last segment begins with a batch that is void, because the last batch of the
// segment before was lost. Returns false if the seed's crash kept it.
static bool void_batch_in_new_segment(struct walmodel *model, uint64_t seed) {
    // A header's fields fit into one sector; this medium tears even those.
    const struct simdisk_options disk = {.seed = seed, .sector = 16};
    const struct cg_wal_options options = {.segment_bytes = SMALL_SEGMENT,
                                           .capacity_bytes = 8 * SMALL_SEGMENT};
    walmodel_seed = seed;
    walmodel_init(model, &disk, &options);
    assert_int_equal(walmodel_open(model), 0);
    settle(model);
    for (int i = 0; i < 4; i++) {
        walmodel_append_blocks(model, 2);
        walmodel_drain(model);
    }
    walmodel_append_blocks(model, 2); // fills the segment
    walmodel_run(model, 0);
    walmodel_append_blocks(model, 2); // waits for the next one's header
    walmodel_run(model, 1);
    walmodel_crash(model, SIMDISK_ANY_WRITES);
    char path[64];
    uint64_t offset, length;
    struct wal_batch_header header;
    bool located = walmodel_locate(model, 4 * 3 * CG_WAL_BLOCK, path, &offset);
    assert_true(located);
    bool lost = !wal_batch_peek(simdisk_bytes(model->sim, path, &length) + offset, &header);
    located = walmodel_locate(model, 5 * 3 * CG_WAL_BLOCK, path, &offset);
    return lost && located && offset == CG_WAL_BLOCK &&
           wal_batch_peek(simdisk_bytes(model->sim, path, &length) + offset, &header);
}

static void a_torn_header_over_a_void_batch_is_no_corruption(void **state) {
    (void)state;
    unsigned reached = 0;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        struct walmodel model;
        if (void_batch_in_new_segment(&model, seed)) {
            reached++;
            for (unsigned nth = 0; nth < 12; nth++) {
                simdisk_power_off(model.sim, nth);
                if (walmodel_open(&model) == 0) {
                    walmodel_crash(&model, SIMDISK_DROP_ALL);
                    break;
                }
                simdisk_crash(model.sim, SIMDISK_KEEP_ALL);
            }
            if (walmodel_open(&model) != 0) {
                walmodel_fail(&model, "a log that was only cut does not open");
            }
            assert_int_equal(model.count, 4);
        }
        walmodel_destroy(&model);
    }
    assert_true(reached > 10);
}

static int stop_replay(void *context, uint64_t lsn, const struct cg_wal_record *record,
                       const void *payload) {
    (void)context;
    (void)lsn;
    (void)record;
    (void)payload;
    return -EUCLEAN;
}

static void an_error_of_the_replayer_ends_the_opening(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model, 2);
    walmodel_append(&model);
    walmodel_drain(&model);
    walmodel_close(&model);
    const struct cg_wal_replay replay = {.record = stop_replay};
    struct cg_wal *wal = NULL;
    char error[128];
    assert_int_equal(cg_wal_open(simdisk_disk(model.sim), model.reactor, &model.options, &replay,
                                 &wal, error, sizeof(error)),
                     -EUCLEAN);
    assert_null(wal);
    assert_int_equal(walmodel_open(&model), 0);
    walmodel_destroy(&model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(record_survives_encoding_and_decoding),
        cmocka_unit_test(record_that_does_not_fit_its_region_is_refused),
        cmocka_unit_test(segment_header_is_known_by_its_checksum),
        cmocka_unit_test(batch_of_another_log_is_not_valid),
        cmocka_unit_test(appends_of_one_iteration_leave_in_one_write),
        cmocka_unit_test(appends_that_arrive_during_a_write_leave_in_the_next),
        cmocka_unit_test(no_more_batches_are_in_flight_than_allowed),
        cmocka_unit_test(nothing_is_acknowledged_before_its_write_completes),
        cmocka_unit_test(tail_is_a_lower_bound_for_what_is_appended_next),
        cmocka_unit_test(appends_beyond_the_limits_are_refused_and_harm_nobody),
        cmocka_unit_test(senseless_options_are_refused),
        cmocka_unit_test(a_failed_write_fails_everything_after_it_for_good),
        cmocka_unit_test(a_segment_header_that_cannot_be_written_fails_the_log),
        cmocka_unit_test(a_full_disk_keeps_the_log_to_the_segments_it_has),
        cmocka_unit_test(a_disk_too_full_for_one_segment_is_enospc),
        cmocka_unit_test(a_sync_that_fails_at_recovery_refuses_the_log),
        cmocka_unit_test(a_log_past_its_capacity_waits_for_a_recycling),
        cmocka_unit_test(restarts_without_appends_use_no_space),
        cmocka_unit_test(restarts_past_the_capacity_still_start),
        cmocka_unit_test(smaller_options_at_a_restart_give_space_back),
        cmocka_unit_test(a_log_that_lost_its_files_is_refused),
        cmocka_unit_test(corruption_names_the_file_and_the_offset),
        cmocka_unit_test(the_idle_seal_is_written_once),
        cmocka_unit_test(foreign_files_in_the_folder_are_left_alone),
        cmocka_unit_test(stale_batches_of_a_reused_segment_stay_dead),
        cmocka_unit_test(a_torn_header_over_a_void_batch_is_no_corruption),
        cmocka_unit_test(an_error_of_the_replayer_ends_the_opening),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
