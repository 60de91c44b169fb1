// SPDX-License-Identifier: BSD-3-Clause
//
// The splitter against a model that places one byte at a time.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "volume/split.h"

static uint64_t random_state = 88172645463325252ULL;

static uint64_t random_below(uint64_t limit) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % limit;
}

// The reference's formula for one byte.
static void model(uint64_t chunk, uint64_t su, uint64_t sc, uint64_t offset, uint64_t *index,
                  uint64_t *in_chunk) {
    if (su == 0 || sc == 0 || sc == 1) {
        *index = offset / chunk;
        *in_chunk = offset % chunk;
        return;
    }
    uint64_t block = offset / su;
    uint64_t pos = block % sc;
    uint64_t stripe = block / sc;
    uint64_t spc = chunk / su;
    *index = stripe / spc * sc + pos;
    *in_chunk = stripe % spc * su + offset % su;
}

static void check_range(const struct cg_layout *layout, uint64_t chunk, uint64_t su, uint64_t sc,
                        uint64_t offset, uint64_t length, uint32_t max) {
    uint64_t done = 0;
    while (done < length) {
        struct cg_piece piece;
        cg_split_next(layout, offset + done, length - done, max, &piece);
        assert_in_range(piece.length, 1, max);
        assert_true(piece.length <= length - done);
        assert_true(piece.chunk_offset + (uint64_t)piece.length <= chunk);
        for (uint32_t i = 0; i < piece.length; i++) {
            uint64_t index;
            uint64_t in_chunk;
            model(chunk, su, sc, offset + done + i, &index, &in_chunk);
            assert_int_equal(index, piece.chunk_index);
            assert_int_equal(in_chunk, piece.chunk_offset + i);
        }
        done += piece.length;
        if (done < length && piece.length < max) {
            // Cut only where it must be.
            uint64_t index;
            uint64_t in_chunk;
            model(chunk, su, sc, offset + done, &index, &in_chunk);
            assert_true(index != piece.chunk_index ||
                        in_chunk != piece.chunk_offset + (uint64_t)piece.length || sc > 1);
        }
    }
    assert_int_equal(done, length);
}

static void pieces_place_every_byte_as_the_model_does(void **state) {
    (void)state;
    static const uint64_t chunks[] = {64, 96, 128, 4096};
    for (unsigned round = 0; round < 20000; round++) {
        uint64_t chunk = chunks[random_below(4)];
        uint64_t su = random_below(3) == 0 ? 0 : chunk >> random_below(5);
        uint64_t sc = random_below(6);
        struct cg_layout layout;
        assert_int_equal(cg_layout_init(&layout, chunk, su, sc), 0);
        check_range(&layout, chunk, su, sc, random_below(20000), 1 + random_below(700),
                    (uint32_t)(1 + random_below(300)));
    }
}

static void striping_is_a_bijection(void **state) {
    (void)state;
    struct cg_layout layout;
    assert_int_equal(cg_layout_init(&layout, 64, 16, 3), 0);
    uint8_t seen[64 * 12] = {0};
    for (uint64_t offset = 0; offset < sizeof(seen); offset++) {
        struct cg_piece piece;
        cg_split_next(&layout, offset, 1, 1, &piece);
        uint64_t place = piece.chunk_index * 64 + piece.chunk_offset;
        assert_true(place < sizeof(seen));
        assert_int_equal(seen[place]++, 0);
    }
}

static void the_far_end_of_a_large_volume_is_reached(void **state) {
    (void)state;
    struct cg_layout layout;
    assert_int_equal(cg_layout_init(&layout, 16U << 20, 0, 0), 0);
    struct cg_piece piece;
    cg_split_next(&layout, UINT64_MAX - 4095, 4096, UINT32_MAX, &piece);
    assert_int_equal(piece.chunk_index, UINT64_MAX >> 24);
    assert_int_equal(piece.length, 4096);
}

static void shapes_that_make_no_sense_are_refused(void **state) {
    (void)state;
    struct cg_layout layout;
    assert_int_equal(cg_layout_init(&layout, 0, 0, 0), -EINVAL);
    assert_int_equal(cg_layout_init(&layout, UINT64_MAX, 0, 0), -EINVAL);
    assert_int_equal(cg_layout_init(&layout, 64, 24, 2), -EINVAL);
    assert_int_equal(cg_layout_init(&layout, 64, 128, 2), -EINVAL);
    assert_int_equal(cg_layout_init(&layout, 64, 16, 1U << 30), -EINVAL);
    assert_int_equal(cg_layout_init(&layout, 64, 24, 1), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_place_every_byte_as_the_model_does),
        cmocka_unit_test(striping_is_a_bijection),
        cmocka_unit_test(the_far_end_of_a_large_volume_is_reached),
        cmocka_unit_test(shapes_that_make_no_sense_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
