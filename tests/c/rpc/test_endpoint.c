// SPDX-License-Identifier: BSD-3-Clause
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "rpc/endpoint.h"

static void good_endpoints_come_back_as_they_were_written(void **state) {
    (void)state;
    static const char *const texts[] = {"127.0.0.1:6700", "[::1]:6700",  "unix:/run/cg.sock",
                                        "0.0.0.0:65535",  "127.0.0.1:0", "unix:relative"};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct cg_endpoint e, again;
        char text[CG_ENDPOINT_TEXT_MAX];
        assert_int_equal(cg_endpoint_parse(texts[i], &e), 0);
        cg_endpoint_format(&e, text, sizeof(text));
        assert_string_equal(text, texts[i]);
        assert_int_equal(cg_endpoint_parse(text, &again), 0);
        assert_true(cg_endpoint_equal(&e, &again));
    }
}

static void sockets_beside_differ_by_their_servers_address(void **state) {
    (void)state;
    struct cg_endpoint a, b, again;
    char text[CG_ENDPOINT_TEXT_MAX];
    cg_endpoint_beside("127.0.0.1:6710", &a);
    cg_endpoint_beside("127.0.0.1:6711", &b);
    cg_endpoint_beside("127.0.0.1:6710", &again);
    assert_true(cg_endpoint_equal(&a, &again));
    assert_false(cg_endpoint_equal(&a, &b));
    cg_endpoint_format(&a, text, sizeof(text));
    assert_string_equal(text, "unix:@copygate-rpc/127.0.0.1:6710");
}

static void names_are_resolved(void **state) {
    (void)state;
    struct cg_endpoint e;
    char text[CG_ENDPOINT_TEXT_MAX];
    assert_int_equal(cg_endpoint_parse("localhost:80", &e), 0);
    cg_endpoint_format(&e, text, sizeof(text));
    assert_true(strcmp(text, "127.0.0.1:80") == 0 || strcmp(text, "[::1]:80") == 0);
}

static void bad_endpoints_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int result;
    } cases[] = {
        {"", -EINVAL},
        {"127.0.0.1", -EINVAL},
        {"127.0.0.1:", -EINVAL},
        {":80", -EINVAL},
        {"127.0.0.1:65536", -EINVAL},
        {"127.0.0.1:-1", -EINVAL},
        {"127.0.0.1:8o", -EINVAL},
        {"127.0.0.1:080000", -EINVAL},
        {"::1:80", -EINVAL},
        {"[::1]80", -EINVAL},
        {"[::1", -EINVAL},
        {"[]:80", -EINVAL},
        {"unix:", -EINVAL},
        {"[127.0.0.1]:80", -EHOSTUNREACH},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct cg_endpoint e;
        if (cg_endpoint_parse(cases[i].text, &e) != cases[i].result) {
            fail_msg("\"%s\" gives %d", cases[i].text, cg_endpoint_parse(cases[i].text, &e));
        }
    }
    char path[5 + 108 + 1] = "unix:";
    memset(path + 5, 'p', 108);
    path[5 + 108] = '\0';
    struct cg_endpoint e;
    assert_int_equal(cg_endpoint_parse(path, &e), -ENAMETOOLONG);
    path[5 + 107] = '\0';
    assert_int_equal(cg_endpoint_parse(path, &e), 0);
}

static void different_endpoints_differ(void **state) {
    (void)state;
    static const char *const texts[] = {"127.0.0.1:1", "127.0.0.1:2", "127.0.0.2:1",
                                        "[::1]:1",     "unix:/a",     "unix:/b"};
    for (size_t i = 0; i < 6; i++) {
        for (size_t j = 0; j < 6; j++) {
            struct cg_endpoint a, b;
            assert_int_equal(cg_endpoint_parse(texts[i], &a), 0);
            assert_int_equal(cg_endpoint_parse(texts[j], &b), 0);
            assert_int_equal(cg_endpoint_equal(&a, &b), i == j);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_endpoints_come_back_as_they_were_written),
        cmocka_unit_test(sockets_beside_differ_by_their_servers_address),
        cmocka_unit_test(names_are_resolved),
        cmocka_unit_test(bad_endpoints_are_refused),
        cmocka_unit_test(different_endpoints_differ),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
