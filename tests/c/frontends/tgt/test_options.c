// SPDX-License-Identifier: GPL-2.0-only
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "frontends/tgt/options.h"

static void defaults(void **state) {
    (void)state;
    struct bs_options options;
    char error[256] = "";
    assert_int_equal(bs_options_parse(NULL, &options, error, sizeof(error)), 0);
    assert_string_equal(options.mds, BS_DEFAULT_MDS);
    assert_string_equal(options.owner, "copygate");
    assert_null(options.password_file);
    assert_true(options.gateway[0] != '\0');
    assert_int_equal(options.timeout_s, 25);
    assert_int_equal(options.block_size, 512);
    assert_int_equal(options.group, 1);
    assert_int_equal(options.port, 1);
    assert_true(options.thin);
    assert_false(options.read_only);
    assert_false(options.standby);
    bs_options_free(&options);
}

static void everything_given(void **state) {
    (void)state;
    struct bs_options options;
    char error[256] = "";
    const char *text = "mds=a:1|b:2;owner=root;password-file=/p;timeout=3;block=4096;thin=no;"
                       "gateway=g1;group=2;port=65535;standby=yes;";
    assert_int_equal(bs_options_parse(text, &options, error, sizeof(error)), 0);
    assert_string_equal(options.mds, "a:1,b:2");
    assert_string_equal(options.owner, "root");
    assert_string_equal(options.password_file, "/p");
    assert_string_equal(options.gateway, "g1");
    assert_int_equal(options.timeout_s, 3);
    assert_int_equal(options.block_size, 4096);
    assert_int_equal(options.group, 2);
    assert_int_equal(options.port, 65535);
    assert_false(options.thin);
    assert_true(options.standby);
    bs_options_free(&options);
    assert_int_equal(bs_options_parse("group=5", &options, error, sizeof(error)), 0);
    assert_int_equal(options.port, 5); // follows the group
    bs_options_free(&options);
}

static void bad_options_are_named(void **state) {
    (void)state;
    static const struct {
        const char *text;
        const char *said;
    } cases[] = {
        {"mds", "\"mds\" is no option"},
        {"colour=red", "unknown option colour="},
        {"mds=", "mds= must have"},
        {"mds=a:1;mds=b:1", "mds= is given twice"},
        {"timeout=0", "timeout=0: give a number from 1 to 3600"},
        {"timeout=99999999999", "give a number"},
        {"timeout=1s", "give a number"},
        {"block=1024", "block=1024: logical blocks have 512 or 4096"},
        {"group=65536", "from 1 to 65535"},
        {"read-only=true", "read-only=yes or read-only=no"},
        {"standby=yes;read-only=yes", "never takes its volume"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct bs_options options;
        char error[256] = "";
        assert_true(bs_options_parse(cases[i].text, &options, error, sizeof(error)) < 0);
        assert_non_null(strstr(error, cases[i].said));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),
        cmocka_unit_test(everything_given),
        cmocka_unit_test(bad_options_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
