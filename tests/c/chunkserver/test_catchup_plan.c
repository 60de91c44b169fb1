// SPDX-License-Identifier: BSD-3-Clause
//
// The pure parts of catching up: which chunks, which blocks, how fast, and the bytes.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "chunkserver/catchup_plan.h"

#define BLOCKS CG_BLOCKMAP_BLOCKS

static void the_walk_tells_whose_a_chunk_is(void **state) {
    (void)state;
    const uint64_t ours[] = {1, 3, 4, 9, 12};
    const struct cg_copy_chunk theirs[] = {{.id = 2}, {.id = 3}, {.id = 9}};
    struct cg_copy_walk walk = {
        .ours = ours, .our_count = 5, .theirs = theirs, .their_count = 3, .last_id = 10};
    const struct {
        enum cg_copy_step step;
        uint64_t id;
    } expected[] = {
        {CG_COPY_DELETE, 1}, {CG_COPY_PULL, 2},    {CG_COPY_COMPARE, 3},
        {CG_COPY_DELETE, 4}, {CG_COPY_COMPARE, 9},
    };
    uint64_t id;
    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
        assert_int_equal(expected[i].step, cg_copy_walk_next(&walk, &id));
        assert_int_equal(expected[i].id, id);
    }
    // Chunk 12 belongs to the next page.
    assert_int_equal(CG_COPY_OVER, cg_copy_walk_next(&walk, &id));
    walk.their_count = 0;
    walk.their_at = 0;
    walk.last_id = UINT64_MAX;
    assert_int_equal(CG_COPY_DELETE, cg_copy_walk_next(&walk, &id));
    assert_int_equal(12, id);
    assert_int_equal(CG_COPY_OVER, cg_copy_walk_next(&walk, &id));
}

static void a_walk_visits_each_chunk_once(void **state) {
    (void)state;
    srand(7);
    for (unsigned round = 0; round < 500; round++) {
        uint64_t ours[64];
        struct cg_copy_chunk theirs[64];
        uint32_t our_count = 0;
        uint32_t their_count = 0;
        uint64_t want_delete = 0;
        uint64_t want_pull = 0;
        uint64_t want_compare = 0;
        for (unsigned id = 0; id < 64; id++) {
            bool is_ours = rand() % 2 == 0;
            bool is_theirs = rand() % 2 == 0;
            if (is_ours) {
                ours[our_count++] = id;
            }
            if (is_theirs) {
                theirs[their_count++].id = id;
            }
            want_delete |= (uint64_t)(is_ours && !is_theirs) << id;
            want_pull |= (uint64_t)(!is_ours && is_theirs) << id;
            want_compare |= (uint64_t)(is_ours && is_theirs) << id;
        }
        uint64_t got[4] = {0};
        struct cg_copy_walk walk = {.ours = ours,
                                    .our_count = our_count,
                                    .theirs = theirs,
                                    .their_count = their_count,
                                    .last_id = UINT64_MAX};
        enum cg_copy_step step;
        uint64_t id;
        while ((step = cg_copy_walk_next(&walk, &id)) != CG_COPY_OVER) {
            assert_int_equal(0, got[step] >> id & 1);
            got[step] |= UINT64_C(1) << id;
        }
        assert_int_equal(want_delete, got[CG_COPY_DELETE]);
        assert_int_equal(want_pull, got[CG_COPY_PULL]);
        assert_int_equal(want_compare, got[CG_COPY_COMPARE]);
    }
}

static void a_chunk_ahead_of_its_replica_is_not_taken_for_the_same(void **state) {
    (void)state;
    const struct cg_copy_chunk theirs = {.applied_index = 100};
    assert_true(cg_copy_same(&theirs, 100, 100));
    assert_true(cg_copy_same(&theirs, 100, 120));
    assert_false(cg_copy_same(&theirs, 99, 120));
    assert_false(cg_copy_same(&theirs, 100, 99)); // it may have blocks from before
}

static void windows_without_blocks_are_skipped(void **state) {
    (void)state;
    uint8_t map[CG_BLOCKMAP_BYTES] = {0};
    assert_int_equal(BLOCKS, cg_copy_next_window(map, 0, BLOCKS));
    cg_blockmap_set(map, 130, 1);
    cg_blockmap_set(map, BLOCKS - 1, 1);
    assert_int_equal(128, cg_copy_next_window(map, 0, BLOCKS));
    assert_int_equal(128, cg_copy_next_window(map, 128, BLOCKS));
    assert_int_equal(BLOCKS - 64, cg_copy_next_window(map, 192, BLOCKS));
    assert_int_equal(BLOCKS, cg_copy_next_window(map, BLOCKS, BLOCKS));
    // A chunk that ends inside a window.
    assert_int_equal(128, cg_copy_next_window(map, 0, 136));
    assert_int_equal(130, cg_copy_next_window(map, 64, 130));
}

static void the_pace_keeps_the_rate_and_yields(void **state) {
    (void)state;
    struct cg_copy_pace pace = {.rate = 100U << 20};
    uint64_t now = 5 * CG_NS_PER_S;
    uint64_t bytes = 0;
    uint64_t end = now + CG_NS_PER_S;
    while (now < end) {
        uint64_t wait = cg_copy_pause(&pace, CG_COPY_YIELDS, now);
        now += wait;
        if (wait == 0) {
            cg_copy_charge(&pace, 256U << 10, CG_COPY_YIELDS, false, now);
            bytes += 256U << 10;
        }
    }
    assert_in_range(bytes, 99U << 20, 101U << 20);
    now = pace.due_ns;
    cg_copy_charge(&pace, 1U << 20, CG_COPY_YIELDS, false, now);
    uint64_t alone = cg_copy_pause(&pace, CG_COPY_YIELDS, now);
    now = pace.due_ns;
    cg_copy_charge(&pace, 1U << 20, CG_COPY_YIELDS, true, now);
    assert_int_equal(CG_COPY_BUSY_SLOWDOWN * alone, cg_copy_pause(&pace, CG_COPY_YIELDS, now));
    now = pace.due_ns;
    cg_copy_charge(&pace, 1U << 20, CG_COPY_KEEPS_RATE, true, now);
    assert_int_equal(alone, cg_copy_pause(&pace, CG_COPY_KEEPS_RATE, now));
    assert_int_equal(0, cg_copy_pause(&pace, CG_COPY_HURRIES, now));
    // Nothing is saved up while nothing is copied.
    now = pace.due_ns + 3600 * CG_NS_PER_S;
    cg_copy_charge(&pace, 1U << 20, CG_COPY_YIELDS, false, now);
    assert_int_equal(alone, cg_copy_pause(&pace, CG_COPY_YIELDS, now));
}

static void records_come_back_as_they_were(void **state) {
    (void)state;
    struct cg_copy_chunk chunk = {
        .id = UINT64_C(0x1122334455667788), .sn = 3, .file_id = 9, .applied_index = 77};
    cg_blockmap_set(chunk.allocated, 5, 1000);
    uint8_t bytes[CG_COPY_RECORD_SIZE];
    cg_copy_chunk_encode(&chunk, bytes);
    struct cg_copy_chunk back;
    memset(&back, 0xee, sizeof(back));
    cg_copy_chunk_decode(bytes, &back);
    assert_memory_equal(&chunk, &back, sizeof(chunk));
}

static void heads_come_back_as_they_were(void **state) {
    (void)state;
    for (uint32_t count = 1; count <= CG_COPY_BLOCKS_MAX; count++) {
        struct cg_copy_head head = {.mask = UINT64_C(0xa5a5a5a5a5a5a5a5) &
                                            (UINT64_MAX >> (CG_COPY_BLOCKS_MAX - count))};
        for (uint32_t i = 0; i < count; i++) {
            head.crc[i] = 1000 + i;
        }
        uint8_t bytes[CG_COPY_HEAD_MAX];
        assert_true(cg_copy_head_size(count) <= sizeof(bytes));
        assert_int_equal(0, cg_copy_head_size(count) % 8);
        cg_copy_head_encode(&head, count, bytes);
        struct cg_copy_head back;
        assert_int_equal(0, cg_copy_head_decode(bytes, count, &back));
        assert_int_equal(head.mask, back.mask);
        for (uint32_t i = 0; i < count; i++) {
            assert_int_equal(head.mask >> i & 1 ? 1000 + i : 0, back.crc[i]);
        }
        if (count < CG_COPY_BLOCKS_MAX) {
            bytes[count / 8] |= (uint8_t)(1U << count % 8);
            assert_int_equal(-EBADMSG, cg_copy_head_decode(bytes, count, &back));
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_walk_tells_whose_a_chunk_is),
        cmocka_unit_test(a_walk_visits_each_chunk_once),
        cmocka_unit_test(a_chunk_ahead_of_its_replica_is_not_taken_for_the_same),
        cmocka_unit_test(windows_without_blocks_are_skipped),
        cmocka_unit_test(the_pace_keeps_the_rate_and_yields),
        cmocka_unit_test(records_come_back_as_they_were),
        cmocka_unit_test(heads_come_back_as_they_were),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
