// SPDX-License-Identifier: GPL-2.0-only
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "frontends/tgt/cdb.h"

static void range_of_each_length(void **state) {
    (void)state;
    const uint8_t six[6] = {0x08, 0xff, 0x02, 0x03, 0x00, 0};
    struct cdb_range range = cdb_range(six);
    assert_int_equal(range.lba, 0x1f0203); // the upper three bits are not the LBA's
    assert_int_equal(range.blocks, 256);   // zero means 256 in six bytes
    const uint8_t ten[10] = {0x28, 0, 0xff, 0, 0, 1, 0, 0x12, 0x34, 0};
    range = cdb_range(ten);
    assert_int_equal(range.lba, 0xff000001U);
    assert_int_equal(range.blocks, 0x1234);
    const uint8_t twelve[12] = {0xa8, 0, 0, 0, 0, 9, 0xff, 0xff, 0xff, 0xfe, 0, 0};
    range = cdb_range(twelve);
    assert_int_equal(range.lba, 9);
    assert_int_equal(range.blocks, 0xfffffffeU);
    const uint8_t sixteen[16] = {0x88, 0, 0xff, 1, 2, 3, 4, 5, 6, 7, 0, 1, 0, 2, 0, 0};
    range = cdb_range(sixteen);
    assert_true(range.lba == 0xff01020304050607ULL);
    assert_int_equal(range.blocks, 0x10002);
    const uint8_t compare[16] = {0x89, 0, 0, 0, 0, 0, 0, 0, 0, 5, 9, 9, 9, 3, 0, 0};
    range = cdb_range(compare);
    assert_int_equal(range.lba, 5);
    assert_int_equal(range.blocks, 3);
}

static void range_that_wraps_does_not_fit(void **state) {
    (void)state;
    assert_true(cdb_range_fits((struct cdb_range){0, 100}, 100));
    assert_true(cdb_range_fits((struct cdb_range){99, 1}, 100));
    assert_false(cdb_range_fits((struct cdb_range){99, 2}, 100));
    assert_false(cdb_range_fits((struct cdb_range){UINT64_MAX, 2}, 100));
    assert_false(cdb_range_fits((struct cdb_range){1, UINT64_MAX}, 100));
    assert_true(cdb_range_fits((struct cdb_range){99, 0}, 100));
    assert_false(cdb_range_fits((struct cdb_range){100, 0}, 100));
}

static void numbers_are_big_endian(void **state) {
    (void)state;
    uint8_t bytes[8];
    cdb_put64(bytes, 0x0102030405060708ULL);
    const uint8_t wanted[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    assert_memory_equal(bytes, wanted, 8);
    assert_true(cdb_get64(bytes) == 0x0102030405060708ULL);
    assert_int_equal(cdb_get32(bytes + 1), 0x02030405);
    assert_int_equal(cdb_get16(bytes + 6), 0x0708);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(range_of_each_length),
        cmocka_unit_test(range_that_wraps_does_not_fit),
        cmocka_unit_test(numbers_are_big_endian),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
