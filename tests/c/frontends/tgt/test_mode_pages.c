// SPDX-License-Identifier: GPL-2.0-only
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "frontends/tgt/mode_pages.h"

static struct mode_state disk(void) {
    return (struct mode_state){.blocks = 1000, .block_size = 512};
}

static void caching_page_has_no_write_cache(void **state) {
    (void)state;
    struct mode_state now = disk();
    const uint8_t cdb[6] = {0x1a, 0x08, 0x08, 0, 0xff, 0};
    uint8_t data[MODE_DATA_MAX];
    uint32_t length = 0;
    assert_int_equal(mode_sense(&now, cdb, data, &length).status, SAM_GOOD);
    assert_int_equal(length, 24);
    assert_int_equal(data[0], 23);
    assert_int_equal(data[2], 0x10);
    assert_int_equal(data[4], 0x08);
    assert_int_equal(data[6] & 0x04, 0);
}

static void all_pages_add_up_in_both_forms(void **state) {
    (void)state;
    struct mode_state now = disk();
    now.protected = true;
    const uint8_t six[6] = {0x1a, 0, 0x3f, 0xff, 0xff, 0};
    const uint8_t ten[10] = {0x5a, 0, 0x3f, 0xff, 0, 0, 0, 0xff, 0xff, 0};
    uint8_t data[MODE_DATA_MAX];
    uint32_t length = 0;
    assert_int_equal(mode_sense(&now, six, data, &length).status, SAM_GOOD);
    assert_int_equal(data[0], length - 1);
    assert_int_equal(data[3], 8);
    assert_int_equal(data[2], 0x90);
    assert_int_equal(data[4 + 3] | data[4 + 2] << 8, 1000);
    uint32_t at = 12;
    while (at < length) {
        at += (data[at] & 0x40) != 0 ? 4U + data[at + 3] : 2U + data[at + 1];
    }
    assert_int_equal(at, length);
    assert_int_equal(mode_sense(&now, ten, data, &length).status, SAM_GOOD);
    assert_int_equal(data[0] << 8 | data[1], length - 2);
    assert_int_equal(data[3], 0x90);
}

static void saved_values_and_unknown_pages_are_refused(void **state) {
    (void)state;
    struct mode_state now = disk();
    const uint8_t saved[6] = {0x1a, 0, 0xc8, 0, 0xff, 0};
    const uint8_t unknown[6] = {0x1a, 0, 0x11, 0, 0xff, 0};
    uint8_t data[MODE_DATA_MAX];
    uint32_t length = 0;
    assert_int_equal(mode_sense(&now, saved, data, &length).code, ASC_SAVING_UNSUPPORTED);
    assert_int_equal(mode_sense(&now, unknown, data, &length).code, ASC_INVALID_FIELD_IN_CDB);
}

static void sensed_control_page_can_be_selected_with_write_protection(void **state) {
    (void)state;
    struct mode_state now = disk();
    const uint8_t sense[6] = {0x1a, 0x08, 0x0a, 0, 0xff, 0};
    const uint8_t select[6] = {0x15, 0x10, 0, 0, 0xff, 0};
    uint8_t data[MODE_DATA_MAX];
    uint32_t length = 0;
    mode_sense(&now, sense, data, &length);
    data[0] = 0;
    data[4 + 4] |= 0x08;
    bool protect = false;
    assert_int_equal(mode_select(&now, select, data, length, &protect).status, SAM_GOOD);
    assert_true(protect);
    data[4 + 2] ^= 0x04; // D_SENSE is not changeable
    protect = false;
    assert_int_equal(mode_select(&now, select, data, length, &protect).code,
                     ASC_INVALID_FIELD_IN_PARAMETERS);
    assert_false(protect);
}

static void write_cache_cannot_be_switched_on(void **state) {
    (void)state;
    struct mode_state now = disk();
    const uint8_t select[6] = {0x15, 0x10, 0, 0, 24, 0};
    uint8_t list[24] = {0, 0, 0, 0, 0x08, 18, 0x04};
    bool protect = false;
    assert_int_equal(mode_select(&now, select, list, sizeof(list), &protect).code,
                     ASC_INVALID_FIELD_IN_PARAMETERS);
}

static void lists_cut_anywhere_are_refused(void **state) {
    (void)state;
    struct mode_state now = disk();
    const uint8_t select[10] = {0x55, 0x10, 0, 0, 0, 0, 0, 0, 0, 0};
    const uint8_t full[28] = {0, 0, 0, 0, 0, 0,    0,  8,    0,    0,   0,
                              0, 0, 0, 2, 0, 0x0a, 10, 0x02, 0x10, 0x08};
    for (uint32_t length = 1; length < sizeof(full); length++) {
        bool whole = length == 16;      // header and block descriptor alone
        uint8_t *list = malloc(length); // so that the sanitizer sees a read beyond
        memcpy(list, full, length);
        bool protect = false;
        struct bs_status status = mode_select(&now, select, list, length, &protect);
        assert_int_equal(status.status, whole ? SAM_GOOD : SAM_CHECK_CONDITION);
        assert_false(protect);
        free(list);
    }
    bool protect = false;
    assert_int_equal(mode_select(&now, select, full, sizeof(full), &protect).status, SAM_GOOD);
    assert_true(protect);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(caching_page_has_no_write_cache),
        cmocka_unit_test(all_pages_add_up_in_both_forms),
        cmocka_unit_test(saved_values_and_unknown_pages_are_refused),
        cmocka_unit_test(sensed_control_page_can_be_selected_with_write_protection),
        cmocka_unit_test(write_cache_cannot_be_switched_on),
        cmocka_unit_test(lists_cut_anywhere_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
