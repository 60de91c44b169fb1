// SPDX-License-Identifier: GPL-2.0-only
//
// The canary against a logical unit as tgtd makes it, and against one that differs in each place.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "frontends/tgt/canary.h"

#define DATA_SIZE 100

static int mode_page; // what tgtd's list would have
static void *found_mode_page;

// tgtd's, for the canary to meet.
int spc_illegal_op(int host, struct scsi_cmd *cmd) {
    (void)host;
    (void)cmd;
    return 0;
}

void *find_mode_page(struct scsi_lu *lu, uint8_t page, uint8_t subpage) {
    (void)lu;
    return page == 0x08 && subpage == 0 ? found_mode_page : NULL;
}

static int another_op(int host, struct scsi_cmd *cmd) {
    (void)host;
    (void)cmd;
    return 0;
}

static struct backingstore_template store = {.name = "copygate", .data_size = DATA_SIZE};

static struct scsi_lu *made_by_tgtd(size_t more) {
    struct scsi_lu *lu = calloc(1, sizeof(*lu) + DATA_SIZE + more);
    assert_non_null(lu);
    lu->store = &store;
    memcpy(lu->attributes.vendor, "IET", 4);
    memcpy(lu->attributes.serial, "beaf11", 7);
    lu->device.operations[0x89].perform = spc_illegal_op;
    found_mode_page = &mode_page;
    return lu;
}

static void a_known_tgtd_is_accepted(void **state) {
    (void)state;
    struct scsi_lu *lu = made_by_tgtd(0);
    assert_null(bs_canary(lu, &store));
    free(lu);
}

static void another_size_is_refused(void **state) {
    (void)state;
    struct scsi_lu *lu = made_by_tgtd(4096);
    assert_non_null(strstr(bs_canary(lu, &store), "size"));
    free(lu);
}

static void every_other_difference_is_refused(void **state) {
    (void)state;
    struct scsi_lu *lu = made_by_tgtd(0);
    lu->store = NULL;
    assert_non_null(strstr(bs_canary(lu, &store), "backing store"));
    lu->store = &store;
    lu->device.type = 1;
    assert_non_null(strstr(bs_canary(lu, &store), "device type"));
    lu->device.type = 0;
    lu->attributes.vendor[0] = 'X';
    assert_non_null(strstr(bs_canary(lu, &store), "vendor"));
    lu->attributes.vendor[0] = 'I';
    lu->attributes.serial[0] = 'X';
    assert_non_null(strstr(bs_canary(lu, &store), "serial"));
    lu->attributes.serial[0] = 'b';
    lu->device.operations[0x89].perform = another_op;
    assert_non_null(strstr(bs_canary(lu, &store), "opcodes"));
    lu->device.operations[0x89].perform = spc_illegal_op;
    found_mode_page = NULL;
    assert_non_null(strstr(bs_canary(lu, &store), "mode pages"));
    free(lu);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_known_tgtd_is_accepted),
        cmocka_unit_test(another_size_is_refused),
        cmocka_unit_test(every_other_difference_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
