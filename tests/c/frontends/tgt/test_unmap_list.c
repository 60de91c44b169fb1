// SPDX-License-Identifier: GPL-2.0-only
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "frontends/tgt/limits.h"
#include "frontends/tgt/unmap_list.h"

#define CAPACITY 1000

static uint8_t *make(unsigned count, uint32_t *length) {
    *length = 8 + count * 16;
    uint8_t *list = calloc(1, *length);
    cdb_put16(list, (uint16_t)(*length - 2));
    cdb_put16(list + 2, (uint16_t)(count * 16));
    return list;
}

static void describe(uint8_t *list, unsigned index, uint64_t lba, uint32_t blocks) {
    cdb_put64(list + 8 + (size_t)16 * index, lba);
    cdb_put32(list + 8 + (size_t)16 * index + 8, blocks);
}

static void descriptors_are_found(void **state) {
    (void)state;
    uint32_t length = 0;
    uint8_t *list = make(2, &length);
    describe(list, 0, 10, 20);
    describe(list, 1, 999, 1);
    struct unmap_list out;
    assert_int_equal(unmap_list_parse(list, length, CAPACITY, 100, &out).status, SAM_GOOD);
    assert_int_equal(out.count, 2);
    assert_int_equal(out.blocks, 21);
    assert_int_equal(unmap_list_range(&out, 1).lba, 999);
    assert_int_equal(unmap_list_range(&out, 1).blocks, 1);
    free(list);
}

static void nothing_to_do_is_good(void **state) {
    (void)state;
    struct unmap_list out;
    assert_int_equal(unmap_list_parse(NULL, 0, CAPACITY, 100, &out).status, SAM_GOOD);
    assert_int_equal(out.count, 0);
    uint32_t length = 0;
    uint8_t *list = make(0, &length);
    assert_int_equal(unmap_list_parse(list, length, CAPACITY, 100, &out).status, SAM_GOOD);
    free(list);
}

static void a_cut_list_is_refused(void **state) {
    (void)state;
    uint32_t length = 0;
    uint8_t *list = make(1, &length);
    for (uint32_t cut = 1; cut < length; cut++) {
        uint8_t *copy = malloc(cut);
        memcpy(copy, list, cut);
        struct unmap_list out;
        assert_int_equal(unmap_list_parse(copy, cut, CAPACITY, 100, &out).code,
                         ASC_PARAMETER_LENGTH);
        free(copy);
    }
    free(list);
}

static void one_bad_descriptor_refuses_all(void **state) {
    (void)state;
    uint32_t length = 0;
    uint8_t *list = make(2, &length);
    struct unmap_list out;
    describe(list, 0, 0, 1);
    describe(list, 1, 999, 2);
    assert_int_equal(unmap_list_parse(list, length, CAPACITY, 100, &out).code,
                     ASC_LBA_OUT_OF_RANGE);
    describe(list, 1, UINT64_MAX, 2);
    assert_int_equal(unmap_list_parse(list, length, CAPACITY, 100, &out).code,
                     ASC_LBA_OUT_OF_RANGE);
    describe(list, 1, 0, 100);
    assert_int_equal(unmap_list_parse(list, length, CAPACITY, 100, &out).code,
                     ASC_INVALID_FIELD_IN_PARAMETERS);
    free(list);
}

static void too_many_descriptors_are_refused(void **state) {
    (void)state;
    uint32_t length = 0;
    struct unmap_list out;
    uint8_t *list = make(BS_UNMAP_DESCRIPTORS, &length);
    assert_int_equal(unmap_list_parse(list, length, CAPACITY, 100, &out).status, SAM_GOOD);
    free(list);
    list = make(BS_UNMAP_DESCRIPTORS + 1, &length);
    assert_int_equal(unmap_list_parse(list, length, CAPACITY, 100, &out).code,
                     ASC_INVALID_FIELD_IN_PARAMETERS);
    free(list);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(descriptors_are_found),
        cmocka_unit_test(nothing_to_do_is_good),
        cmocka_unit_test(a_cut_list_is_refused),
        cmocka_unit_test(one_bad_descriptor_refuses_all),
        cmocka_unit_test(too_many_descriptors_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
