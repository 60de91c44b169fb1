// SPDX-License-Identifier: GPL-2.0-only
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "frontends/tgt/zero.h"

// All pieces of a range, as trimmed bytes and zeroed bytes.
static void pieces_of(uint64_t offset, uint64_t length, uint64_t *trimmed, uint64_t *zeroed) {
    *trimmed = 0;
    *zeroed = 0;
    while (length > 0) {
        struct zero_piece piece = zero_first(offset, length, true);
        assert_true(piece.length > 0 && piece.length <= length);
        if (piece.op == CG_OP_TRIM) {
            assert_int_equal(offset % 4096, 0);
            assert_int_equal(piece.length % 4096, 0);
            *trimmed += piece.length;
        } else {
            assert_int_equal(piece.op, CG_OP_WRITE_ZEROES);
            assert_int_equal(piece.flags & CG_IO_NO_HOLE, 0);
            assert_true(piece.length < 4096);
            *zeroed += piece.length;
        }
        offset += piece.length;
        length -= piece.length;
    }
}

static void whole_blocks_are_trimmed_and_edges_zeroed(void **state) {
    (void)state;
    uint64_t trimmed;
    uint64_t zeroed;
    pieces_of(0, 8192, &trimmed, &zeroed);
    assert_int_equal(trimmed, 8192);
    pieces_of(512, 512, &trimmed, &zeroed);
    assert_int_equal(zeroed, 512);
    pieces_of(3584, 1024, &trimmed, &zeroed); // across a boundary, no whole block
    assert_int_equal(trimmed, 0);
    assert_int_equal(zeroed, 1024);
    pieces_of(512, 16384, &trimmed, &zeroed);
    assert_int_equal(trimmed, 12288);
    assert_int_equal(zeroed, 4096);
    pieces_of(4096, UINT64_C(1) << 40, &trimmed, &zeroed);
    assert_true(trimmed == UINT64_C(1) << 40);
}

static void without_deallocation_the_range_stays_allocated(void **state) {
    (void)state;
    struct zero_piece piece = zero_first(512, 1 << 20, false);
    assert_int_equal(piece.op, CG_OP_WRITE_ZEROES);
    assert_int_equal(piece.flags, CG_IO_NO_HOLE);
    assert_int_equal(piece.length, 1 << 20);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_blocks_are_trimmed_and_edges_zeroed),
        cmocka_unit_test(without_deallocation_the_range_stays_allocated),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
