// SPDX-License-Identifier: BSD-3-Clause
//
// Reading batches back from a log in use, case by case, on a simulated disk. Records of the model
// belong to the groups 0, 1, 2 in turn; their serial number is their index, from 1 on.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "chunkserver/wal_internal.h"
#include "simreactor.h"
#include "walmodel.h"

#define SEGMENT     (256U << 10)
#define RECORDS_MAX 512

struct collected {
    struct cg_wal_fetch fetch;
    bool done;
    int status;
    int count;
    uint64_t index[RECORDS_MAX];
    uint32_t first_word[RECORDS_MAX]; // of the payload
};

static void collect(struct cg_wal_fetch *fetch, const struct cg_wal_record *record,
                    struct cg_buffer *buffer, const uint8_t *payload) {
    struct collected *c = CG_CONTAINER_OF(fetch, struct collected, fetch);
    assert_int_equal(record->group, fetch->group);
    assert_true(c->count < RECORDS_MAX);
    assert_true((buffer != NULL) == (record->payload_length != 0));
    if (buffer != NULL) {
        memcpy(&c->first_word[c->count], payload, sizeof(uint32_t));
    }
    c->index[c->count++] = record->index;
}

static void collected(struct cg_wal_fetch *fetch, int status) {
    struct collected *c = CG_CONTAINER_OF(fetch, struct collected, fetch);
    assert_false(c->done);
    c->done = true;
    c->status = status;
}

static void begin(struct walmodel *model, struct collected *c, uint64_t lsn, uint64_t group) {
    memset(c, 0, sizeof(*c));
    c->fetch.lsn = lsn;
    c->fetch.group = group;
    c->fetch.record = collect;
    c->fetch.done = collected;
    cg_wal_fetch(model->wal, model->pool, &c->fetch);
    assert_false(c->done);
}

static int finish(struct walmodel *model, const struct collected *c) {
    for (int i = 0; i < 100 && !c->done; i++) {
        walmodel_run(model, 1);
    }
    assert_true(c->done);
    return c->status;
}

static int fetch(struct walmodel *model, struct collected *c, uint64_t lsn, uint64_t group) {
    begin(model, c, lsn, group);
    return finish(model, c);
}

static void setup(struct walmodel *model) {
    const struct simdisk_options disk = {.seed = 7, .fifo = true};
    const struct cg_wal_options options = {.segment_bytes = SEGMENT, .capacity_bytes = 8 * SEGMENT};
    walmodel_init(model, &disk, &options);
    assert_int_equal(walmodel_open(model), 0);
    while (simdisk_pending(model->sim) != 0) {
        walmodel_run(model, 1);
    }
}

// Appends `count` records as one batch and returns its position.
static uint64_t append(struct walmodel *model, unsigned count, unsigned blocks) {
    uint64_t lsn = cg_wal_tail(model->wal);
    for (unsigned i = 0; i < count; i++) {
        walmodel_append_blocks(model, blocks);
    }
    walmodel_drain(model);
    return lsn;
}

static void a_fetch_gives_the_records_of_its_group_in_order(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model);
    append(&model, 4, 2);
    uint64_t lsn = append(&model, 9, 2); // serials 5 to 13
    append(&model, 4, 2);
    struct collected c;
    assert_int_equal(fetch(&model, &c, lsn, 0), 0);
    assert_int_equal(c.count, 3);
    assert_true(c.index[0] == 6 && c.index[1] == 9 && c.index[2] == 12);
    assert_int_equal(fetch(&model, &c, lsn, 77), 0);
    assert_int_equal(c.count, 0);
    walmodel_destroy(&model);
}

static void a_batch_of_many_records_comes_whole(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model);
    uint64_t lsn = cg_wal_tail(model.wal);
    for (unsigned i = 0; i < 300; i++) { // more of a group than one read takes, a long region
        walmodel_append_blocks(&model, i % 20 == 0 ? 1 : 0);
    }
    walmodel_drain(&model);
    struct cg_wal_stats stats;
    cg_wal_stats(model.wal, &stats);
    assert_int_equal(stats.batches, 1);
    struct collected c;
    assert_int_equal(fetch(&model, &c, lsn, 1), 0);
    assert_int_equal(c.count, 100);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(c.index[i], 1 + 3 * i);
    }
    walmodel_destroy(&model);
}

static void a_batch_can_be_read_back_after_a_restart(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model);
    uint64_t lsn = append(&model, 3, 1);
    walmodel_crash(&model, SIMDISK_DROP_ALL);
    assert_int_equal(walmodel_open(&model), 0);
    struct collected c;
    assert_int_equal(fetch(&model, &c, lsn, 2), 0);
    assert_int_equal(c.count, 1);
    walmodel_destroy(&model);
}

static void what_is_not_durable_is_refused(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model);
    append(&model, 1, 1);
    uint64_t lsn = cg_wal_tail(model.wal);
    walmodel_append_blocks(&model, 1);
    simreactor_iterate(model.reactor); // submitted, not completed
    struct collected c;
    begin(&model, &c, lsn, 2);
    simreactor_iterate(model.reactor);
    assert_true(c.done);
    assert_int_equal(c.status, -EINVAL);
    walmodel_drain(&model);
    assert_int_equal(fetch(&model, &c, lsn, 2), 0);
    assert_int_equal(fetch(&model, &c, lsn + 1, 2), -EINVAL);
    walmodel_destroy(&model);
}

static void what_is_recycled_is_not_found_even_where_its_segment_is_still_there(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model);
    uint64_t first = append(&model, 3, 1);
    uint64_t second = append(&model, 3, 1);
    cg_wal_recycle(model.wal, second);
    struct collected c;
    assert_int_equal(fetch(&model, &c, first, 1), -ENOENT);
    assert_int_equal(fetch(&model, &c, second, 1), 0);
    walmodel_destroy(&model);
}

// What recycling would do to the segment under the read: another use, other bytes.
static void a_recycling_waits_for_the_reads_of_its_segment(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model);
    uint64_t lsn = append(&model, 3, 4);
    for (int i = 0; i < 8; i++) {
        append(&model, 6, 6);
    }
    struct wal_segments *set = &model.wal->segments;
    const struct wal_segment *oldest = CG_CONTAINER_OF(set->live.next, struct wal_segment, node);
    struct collected c;
    begin(&model, &c, lsn, 1);
    simreactor_iterate(model.reactor); // the read is under way
    cg_wal_recycle(model.wal, cg_wal_tail(model.wal));
    assert_ptr_equal(set->live.next, &oldest->node);
    assert_int_equal(finish(&model, &c), 0);
    assert_int_equal(c.count, 1);
    assert_ptr_not_equal(set->live.next, &oldest->node);
    assert_true(wal_segments_current(set) ==
                CG_CONTAINER_OF(set->live.next, struct wal_segment, node));
    walmodel_destroy(&model);
}

static void rot_is_reported_where_it_concerns_the_group(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model);
    uint64_t lsn = append(&model, 3, 2); // groups 1, 2, 0
    char path[64];
    uint64_t offset;
    assert_true(walmodel_locate(&model, lsn, path, &offset));
    struct collected c;
    for (uint64_t at = offset; at < offset + 256; at += 7) {
        assert_int_equal(simdisk_flip(model.sim, path, at, 3), 0); // in the region
        assert_int_equal(fetch(&model, &c, lsn, 2), -EBADMSG);
        assert_int_equal(c.count, 0);
        assert_int_equal(simdisk_flip(model.sim, path, at, 3), 0);
    }
    uint64_t payload = offset + CG_WAL_BLOCK;
    assert_int_equal(simdisk_flip(model.sim, path, payload + 3 * CG_WAL_BLOCK, 0), 0); // group 2
    assert_int_equal(fetch(&model, &c, lsn, 2), -EBADMSG);
    assert_int_equal(c.count, 0);
    assert_int_equal(fetch(&model, &c, lsn, 1), 0);
    assert_int_equal(fetch(&model, &c, lsn, 0), 0);
    walmodel_destroy(&model);
}

static void a_pool_that_is_exhausted_fails_one_fetch_and_no_other(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model);
    uint64_t lsn = append(&model, 3, 2);
    struct cg_buffer_pool *pool = model.pool;
    assert_int_equal(cg_buffer_pool_create(CG_WAL_BLOCK, &model.pool), 0);
    struct collected c;
    assert_int_equal(fetch(&model, &c, lsn, 1), -ENOMEM);
    assert_int_equal(cg_buffer_pool_in_use(model.pool), 0);
    cg_buffer_pool_destroy(model.pool);
    model.pool = pool;
    assert_int_equal(fetch(&model, &c, lsn, 1), 0);
    walmodel_destroy(&model);
}

static void no_more_are_read_at_once_than_allowed(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model);
    uint64_t lsn = append(&model, 3, 1);
    struct collected many[3 * CG_WAL_FETCHES];
    for (unsigned i = 0; i < 3 * CG_WAL_FETCHES; i++) {
        begin(&model, &many[i], lsn, i % 3);
    }
    simreactor_iterate(model.reactor);
    for (unsigned i = 0; i < 3 * CG_WAL_FETCHES; i++) {
        assert_true(simdisk_pending(model.sim) <= CG_WAL_FETCHES);
        assert_int_equal(finish(&model, &many[i]), 0);
        assert_int_equal(many[i].count, 1);
    }
    walmodel_destroy(&model);
}

// A log that failed takes no appends, but what it acknowledged can still be had.
static void a_failed_log_still_gives_what_was_durable(void **state) {
    (void)state;
    struct walmodel model;
    setup(&model);
    uint64_t lsn = append(&model, 3, 1);
    model.expect_failures = true;
    simdisk_fail_write(model.sim, 0, -EIO, true);
    uint64_t lost = append(&model, 1, 1);
    struct collected c;
    assert_int_equal(fetch(&model, &c, lsn, 1), 0);
    assert_int_equal(fetch(&model, &c, lost, 1), -EINVAL);
    walmodel_destroy(&model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_fetch_gives_the_records_of_its_group_in_order),
        cmocka_unit_test(a_batch_of_many_records_comes_whole),
        cmocka_unit_test(a_batch_can_be_read_back_after_a_restart),
        cmocka_unit_test(what_is_not_durable_is_refused),
        cmocka_unit_test(what_is_recycled_is_not_found_even_where_its_segment_is_still_there),
        cmocka_unit_test(a_recycling_waits_for_the_reads_of_its_segment),
        cmocka_unit_test(rot_is_reported_where_it_concerns_the_group),
        cmocka_unit_test(a_pool_that_is_exhausted_fails_one_fetch_and_no_other),
        cmocka_unit_test(no_more_are_read_at_once_than_allowed),
        cmocka_unit_test(a_failed_log_still_gives_what_was_durable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
