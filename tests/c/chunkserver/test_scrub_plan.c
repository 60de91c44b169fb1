// SPDX-License-Identifier: BSD-3-Clause
//
// When the scrub reads and when it waits, what it does about requests, and what it saves.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "chunkserver/scrub_plan.h"

#define MIB  (1U << 20)
#define WEEK UINT64_C(604800)

static struct cg_scrub_decision decide_at(const struct cg_scrub_record *record, uint64_t rate,
                                          uint64_t wall_s) {
    struct cg_scrub_pace pace = {.rate = rate, .period_s = WEEK};
    struct cg_scrub_view view = {.wall_s = wall_s};
    return cg_scrub_decide(record, &pace, &view);
}

static void a_pass_begins_when_the_period_is_over(void **state) {
    (void)state;
    struct cg_scrub_record record = {0};
    assert_int_equal(CG_SCRUB_BEGIN, decide_at(&record, MIB, 1000000).step);
    cg_scrub_begin(&record, 1000000);
    assert_int_equal(CG_SCRUB_CHECK, decide_at(&record, MIB, 1000000).step);
    cg_scrub_complete(&record, 1000500);
    assert_int_equal(1000500, record.completed_s);
    assert_int_equal(CG_SCRUB_REST, decide_at(&record, MIB, 1000000 + WEEK - 1).step);
    assert_int_equal(CG_SCRUB_BEGIN, decide_at(&record, MIB, 1000000 + WEEK).step);
    // A clock that was set back tells nothing about when it was.
    assert_int_equal(CG_SCRUB_BEGIN, decide_at(&record, MIB, 999999).step);
}

static void a_rate_of_zero_is_off(void **state) {
    (void)state;
    struct cg_scrub_record record = {.queued = 5};
    assert_int_equal(CG_SCRUB_REST, decide_at(&record, 0, 1000000).step);
    assert_true(decide_at(&record, 0, 1000000).wait_ns == UINT64_MAX);
    record.running = true;
    assert_int_equal(CG_SCRUB_REST, decide_at(&record, 0, 1000000).step);
}

static void a_request_begins_a_pass_at_once(void **state) {
    (void)state;
    struct cg_scrub_record record = {.started_s = 1000000, .completed_s = 1000001};
    assert_int_equal(CG_SCRUB_REST, decide_at(&record, MIB, 1000002).step);
    cg_scrub_ask(&record, 7);
    assert_int_equal(CG_SCRUB_BEGIN, decide_at(&record, MIB, 1000002).step);
    cg_scrub_begin(&record, 1000002);
    assert_int_equal(7, record.request);
    assert_int_equal(0, record.queued);
    cg_scrub_ask(&record, 7); // the MDS repeats it in every heartbeat
    assert_true(record.running);
    assert_int_equal(0, record.queued);
    cg_scrub_complete(&record, 1000003);
    assert_int_equal(7, record.completed);
    cg_scrub_ask(&record, 7);
    cg_scrub_ask(&record, 6);
    assert_int_equal(CG_SCRUB_REST, decide_at(&record, MIB, 1000003).step);
}

static void a_pass_that_was_due_makes_way_for_a_request(void **state) {
    (void)state;
    struct cg_scrub_record record = {0};
    cg_scrub_begin(&record, 1000000);
    record.position = (struct cg_scrub_position){3, 4, 5};
    cg_scrub_ask(&record, 1);
    assert_int_equal(CG_SCRUB_BEGIN, decide_at(&record, MIB, 1000001).step);
    cg_scrub_begin(&record, 1000001);
    assert_int_equal(0, record.position.group + record.position.chunk_id + record.position.block);
}

static void a_pass_that_serves_a_request_is_finished_before_the_next(void **state) {
    (void)state;
    struct cg_scrub_record record = {0};
    cg_scrub_ask(&record, 1);
    cg_scrub_begin(&record, 1000000);
    cg_scrub_ask(&record, 2);
    cg_scrub_ask(&record, 3);
    assert_int_equal(CG_SCRUB_CHECK, decide_at(&record, MIB, 1000001).step);
    cg_scrub_complete(&record, 1000002);
    assert_int_equal(1, record.completed);
    assert_int_equal(CG_SCRUB_BEGIN, decide_at(&record, MIB, 1000002).step);
    cg_scrub_begin(&record, 1000002);
    cg_scrub_complete(&record, 1000003);
    assert_int_equal(3, record.completed);
}

// Reads pieces for `seconds`; each keeps the disk for `took_ns`. Returns the bytes.
static uint64_t bytes_in(uint64_t seconds, uint64_t rate, uint64_t took_ns, bool busy,
                         uint64_t *longest_wait_ns) {
    struct cg_scrub_record record = {.running = true};
    struct cg_scrub_pace pace = {.rate = rate, .period_s = WEEK};
    struct cg_scrub_view view = {.now_ns = CG_NS_PER_S, .busy = busy};
    uint64_t bytes = 0;
    uint64_t last = view.now_ns;
    *longest_wait_ns = 0;
    while (view.now_ns < (seconds + 1) * CG_NS_PER_S) {
        struct cg_scrub_decision decision = cg_scrub_decide(&record, &pace, &view);
        if (decision.step == CG_SCRUB_REST) {
            assert_true(decision.wait_ns > 0);
            view.now_ns += decision.wait_ns;
            continue;
        }
        assert_int_equal(CG_SCRUB_CHECK, decision.step);
        uint64_t waited = view.now_ns - last;
        *longest_wait_ns = waited > *longest_wait_ns ? waited : *longest_wait_ns;
        cg_scrub_charge(&pace, 256U << 10, view.now_ns, view.now_ns + took_ns);
        view.now_ns += took_ns;
        last = view.now_ns;
        bytes += 256U << 10;
    }
    return bytes;
}

static void the_rate_is_kept(void **state) {
    (void)state;
    uint64_t wait;
    uint64_t bytes = bytes_in(100, 16 * MIB, CG_NS_PER_MS, false, &wait);
    assert_in_range(bytes, 1599U * MIB, 1601U * MIB);
    bytes = bytes_in(100, 100000, CG_NS_PER_MS, false, &wait); // less than a piece a second
    assert_in_range(bytes, 9500000, 10500000);
}

static void a_slow_disk_has_half_of_its_time_for_others(void **state) {
    (void)state;
    uint64_t wait;
    // 100 ms a piece: at 16 MiB/s the next one would be due long before the last one is through.
    uint64_t bytes = bytes_in(100, 16 * MIB, 100 * CG_NS_PER_MS, false, &wait);
    assert_in_range(bytes / (256U << 10), 499, 501);
}

static void under_load_it_goes_on_at_an_eighth(void **state) {
    (void)state;
    uint64_t wait;
    uint64_t bytes = bytes_in(100, 16 * MIB, CG_NS_PER_MS, true, &wait);
    assert_in_range(bytes, 199U * MIB, 201U * MIB);
    assert_true(wait < 126 * CG_NS_PER_MS);
}

static void what_is_saved_comes_back(void **state) {
    (void)state;
    static uint8_t file[CG_SCRUB_FILE_MAX];
    static struct cg_bad_blocks bad;
    static struct cg_bad_blocks bad_again;
    struct cg_scrub_record record = {
        .running = true,
        .request = 3,
        .queued = 4,
        .completed = 2,
        .position = {UINT64_C(1) << 32 | 7, 99, 4095},
        .started_s = 1700000000,
        .completed_s = 1600000000,
        .checked = 11,
        .skipped = 12,
        .found = 13,
    };
    for (uint32_t i = 0; i < CG_BAD_BLOCKS_MAX + 3; i++) {
        struct cg_bad_block block = {.group = 1, .chunk_id = i / 4, .file_id = 8, .block = i % 4};
        int result = cg_bad_blocks_add(&bad, &block);
        assert_int_equal(i < CG_BAD_BLOCKS_MAX ? 0 : -ENOSPC, result);
    }
    size_t length = cg_scrub_encode(&record, &bad, file);
    assert_in_range(length, 1, CG_SCRUB_FILE_MAX);
    struct cg_scrub_record again = {0};
    assert_int_equal(0, cg_scrub_decode(file, length, &again, &bad_again));
    assert_memory_equal(&record, &again, sizeof(record));
    assert_int_equal(bad.count, bad_again.count);
    assert_true(bad_again.full);
    assert_memory_equal(bad.item, bad_again.item, sizeof(bad.item));
}

static void a_damaged_file_changes_nothing(void **state) {
    (void)state;
    static uint8_t file[CG_SCRUB_FILE_MAX];
    static struct cg_bad_blocks bad;
    struct cg_scrub_record record = {.running = true, .request = 3};
    struct cg_bad_block block = {.group = 1, .chunk_id = 2, .block = 3};
    cg_bad_blocks_add(&bad, &block);
    size_t length = cg_scrub_encode(&record, &bad, file);
    struct cg_scrub_record found = {.request = 42};
    static struct cg_bad_blocks found_bad;
    for (size_t cut = 0; cut < length; cut++) {
        assert_int_equal(-EBADMSG, cg_scrub_decode(file, cut, &found, &found_bad));
    }
    for (size_t i = 0; i < length * 8; i++) {
        file[i / 8] ^= (uint8_t)(1U << i % 8);
        assert_int_equal(-EBADMSG, cg_scrub_decode(file, length, &found, &found_bad));
        file[i / 8] ^= (uint8_t)(1U << i % 8);
    }
    assert_int_equal(42, found.request);
    assert_int_equal(0, found_bad.count);
}

static void bad_blocks_are_known_once_and_cleared_by_range(void **state) {
    (void)state;
    static struct cg_bad_blocks bad;
    for (uint32_t i = 0; i < 10; i++) {
        struct cg_bad_block block = {.group = 1, .chunk_id = 1 + i / 5, .block = i};
        assert_int_equal(0, cg_bad_blocks_add(&bad, &block));
        assert_int_equal(-EEXIST, cg_bad_blocks_add(&bad, &block));
    }
    struct cg_bad_block slot = {.group = 1, .chunk_id = 1, .block = CG_BAD_SLOT(0)};
    assert_int_equal(0, cg_bad_blocks_add(&bad, &slot));
    uint64_t change = bad.change;
    assert_int_equal(0, cg_bad_blocks_clear(&bad, 2, 1, 0, 100));
    assert_int_equal(0, cg_bad_blocks_clear(&bad, 1, 1, 5, 4096));
    assert_true(change == bad.change);
    assert_int_equal(2, cg_bad_blocks_clear(&bad, 1, 1, 3, 2));
    assert_true(change != bad.change);
    assert_int_equal(9, bad.count);
    for (uint32_t i = 0; i < 9; i++) {
        assert_non_null(cg_bad_blocks_unseen(&bad, 1));
    }
    assert_null(cg_bad_blocks_unseen(&bad, 1));
    assert_int_equal(4, cg_bad_blocks_clear_chunk(&bad, 1, 1));
    assert_int_equal(5, bad.count);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_pass_begins_when_the_period_is_over),
        cmocka_unit_test(a_rate_of_zero_is_off),
        cmocka_unit_test(a_request_begins_a_pass_at_once),
        cmocka_unit_test(a_pass_that_was_due_makes_way_for_a_request),
        cmocka_unit_test(a_pass_that_serves_a_request_is_finished_before_the_next),
        cmocka_unit_test(the_rate_is_kept),
        cmocka_unit_test(a_slow_disk_has_half_of_its_time_for_others),
        cmocka_unit_test(under_load_it_goes_on_at_an_eighth),
        cmocka_unit_test(what_is_saved_comes_back),
        cmocka_unit_test(a_damaged_file_changes_nothing),
        cmocka_unit_test(bad_blocks_are_known_once_and_cleared_by_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
