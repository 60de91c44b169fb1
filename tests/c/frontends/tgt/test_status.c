// SPDX-License-Identifier: GPL-2.0-only
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>

#include "frontends/tgt/sense.h"

static void transient_trouble_is_repeated_by_the_initiator(void **state) {
    (void)state;
    assert_int_equal(bs_status_of(0, 0).status, SAM_GOOD);
    assert_int_equal(bs_status_of(-ETIMEDOUT, 0).status, SAM_BUSY);
    assert_int_equal(bs_status_of(-ENOMEM, 0).status, SAM_BUSY);
    assert_int_equal(bs_status_of(-ESHUTDOWN, 0).status, SAM_BUSY);
    assert_int_equal(bs_status_of(-EBUSY, 0).status, SAM_TASK_SET_FULL);
}

static void each_error_has_its_sense(void **state) {
    (void)state;
    static const struct {
        int result;
        uint8_t key;
        uint16_t code;
    } cases[] = {
        {-EBADMSG, KEY_MEDIUM_ERROR, ASC_UNRECOVERED_READ},
        {-ENOSPC, KEY_DATA_PROTECT, ASC_SPACE_ALLOCATION_FAILED},
        {-EROFS, KEY_DATA_PROTECT, ASC_WRITE_PROTECTED},
        {-ESTALE, KEY_NOT_READY, ASC_STANDBY},
        {-EINVAL, KEY_ILLEGAL_REQUEST, ASC_LBA_OUT_OF_RANGE},
        {-ENOENT, KEY_HARDWARE_ERROR, ASC_UNIT_FAILURE},
        {-EIO, KEY_HARDWARE_ERROR, ASC_INTERNAL_FAILURE},
        {-EPROTO, KEY_HARDWARE_ERROR, ASC_INTERNAL_FAILURE},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct bs_status status = bs_status_of(cases[i].result, 0);
        assert_int_equal(status.status, SAM_CHECK_CONDITION);
        assert_int_equal(status.key, cases[i].key);
        assert_int_equal(status.code, cases[i].code);
        assert_false(status.has_info);
    }
}

static void only_lost_data_is_a_medium_error(void **state) {
    (void)state;
    for (int error = 1; error < 134; error++) {
        if (error != EBADMSG) {
            assert_int_not_equal(bs_status_of(-error, 0).key, KEY_MEDIUM_ERROR);
        }
    }
}

static void miscompare_tells_where(void **state) {
    (void)state;
    struct bs_status status = bs_status_of(-EILSEQ, 777);
    assert_int_equal(status.key, KEY_MISCOMPARE);
    assert_int_equal(status.code, ASC_MISCOMPARE);
    assert_true(status.has_info);
    assert_int_equal(status.info, 777);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(transient_trouble_is_repeated_by_the_initiator),
        cmocka_unit_test(each_error_has_its_sense),
        cmocka_unit_test(only_lost_data_is_a_medium_error),
        cmocka_unit_test(miscompare_tells_where),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
