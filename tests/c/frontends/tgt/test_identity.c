// SPDX-License-Identifier: GPL-2.0-only
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "frontends/tgt/cdb.h"
#include "frontends/tgt/identity.h"

static const uint8_t uuid[16] = {0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0x4d, 0xef,
                                 0x80, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07};

static struct identity volume(void) {
    return (struct identity){.uuid = uuid,
                             .target = "iqn.2026-01.io.copygate:t1",
                             .block_size = 512,
                             .group = 7,
                             .port = 9,
                             .tpgs = 0x30,
                             .thin = true,
                             .present = true};
}

static void naa_is_locally_administered_and_uses_every_bit(void **state) {
    (void)state;
    uint8_t plain[16];
    identity_naa(uuid, plain);
    assert_int_equal(plain[0], 0x60);
    assert_int_equal(plain[1], 0x24);
    assert_int_equal(plain[2], 0x34);
    assert_int_equal(plain[3] >> 4, 0x7);
    for (unsigned bit = 0; bit < 128; bit++) {
        uint8_t changed[16];
        uint8_t other[16];
        memcpy(changed, uuid, 16);
        changed[bit / 8] ^= (uint8_t)(1U << bit % 8);
        identity_naa(changed, other);
        assert_memory_not_equal(plain, other, 16);
    }
}

static void every_listed_page_is_there_and_says_its_length(void **state) {
    (void)state;
    struct identity identity = volume();
    uint8_t list[IDENTITY_MAX];
    uint8_t page[IDENTITY_MAX];
    uint32_t length = identity_page(&identity, 0x00, list);
    assert_int_equal(length, 4U + list[3]);
    for (unsigned i = 4; i < length; i++) {
        uint32_t got = identity_page(&identity, list[i], page);
        assert_true(got >= 8);
        assert_int_equal(page[1], list[i]);
        assert_int_equal(got, 4U + cdb_get16(page + 2));
        assert_true(i == 4 || list[i] > list[i - 1]);
    }
    assert_int_equal(identity_page(&identity, 0xb3, page), 0);
}

static void designators_name_unit_port_group_and_target(void **state) {
    (void)state;
    struct identity identity = volume();
    uint8_t page[IDENTITY_MAX];
    uint32_t length = identity_page(&identity, 0x83, page);
    unsigned seen = 0;
    for (uint32_t at = 4; at < length; at += 4U + page[at + 3]) {
        unsigned kind = page[at + 1] & 0x3f;
        seen |= kind == 0x03 ? 1U : 0;
        if (kind == 0x14) {
            assert_int_equal(cdb_get16(page + at + 6), 9);
            seen |= 2U;
        } else if (kind == 0x15) {
            assert_int_equal(cdb_get16(page + at + 6), 7);
            seen |= 4U;
        } else if (kind == 0x28) {
            assert_string_equal((const char *)page + at + 4, identity.target);
            assert_int_equal(page[at + 3] % 4, 0);
            seen |= 8U;
        }
    }
    assert_int_equal(seen, 15);
}

static void longest_target_name_fits(void **state) {
    (void)state;
    struct identity identity = volume();
    char name[300];
    memset(name, 'n', sizeof(name) - 1);
    uint8_t page[IDENTITY_MAX];
    for (size_t length = 1; length < sizeof(name); length++) {
        name[length] = '\0';
        identity.target = name;
        uint32_t got = identity_page(&identity, 0x83, page);
        assert_true(got <= IDENTITY_MAX);
        name[length] = 'n';
    }
}

static void block_limits_are_in_logical_blocks(void **state) {
    (void)state;
    struct identity identity = volume();
    uint8_t page[IDENTITY_MAX];
    identity_page(&identity, 0xb0, page);
    assert_int_equal(cdb_get16(page + 6), 8);
    assert_int_equal(cdb_get32(page + 8), 65536);
    assert_int_equal(cdb_get32(page + 28), 8);
    assert_true(cdb_get64(page + 36) == 65536);
    identity.block_size = 4096;
    identity_page(&identity, 0xb0, page);
    assert_int_equal(cdb_get16(page + 6), 1);
    assert_int_equal(cdb_get32(page + 8), 8192);
    assert_int_equal(cdb_get32(page + 28), 1);
}

static void thick_volumes_offer_no_unmap(void **state) {
    (void)state;
    struct identity identity = volume();
    uint8_t page[IDENTITY_MAX];
    identity_page(&identity, 0xb2, page);
    assert_int_equal(page[5], 0xe4);
    identity.thin = false;
    identity_page(&identity, 0xb2, page);
    assert_int_equal(page[5], 0);
    identity_page(&identity, 0xb0, page);
    assert_int_equal(cdb_get32(page + 20), 0);
    assert_int_equal(cdb_get32(page + 24), 0);
}

static void absent_unit_says_so(void **state) {
    (void)state;
    struct identity identity = volume();
    uint8_t data[IDENTITY_MAX];
    uint32_t length = identity_standard(&identity, data);
    assert_int_equal(length, data[4] + 5U);
    assert_int_equal(data[0], 0);
    assert_memory_equal(data + 8, "COPYGATEVOLUME          ", 24);
    assert_int_equal(data[5], 0x30);
    identity.present = false;
    identity_standard(&identity, data);
    assert_int_equal(data[0], 0x7f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(naa_is_locally_administered_and_uses_every_bit),
        cmocka_unit_test(every_listed_page_is_there_and_says_its_length),
        cmocka_unit_test(designators_name_unit_port_group_and_target),
        cmocka_unit_test(longest_target_name_fits),
        cmocka_unit_test(block_limits_are_in_logical_blocks),
        cmocka_unit_test(thick_volumes_offer_no_unmap),
        cmocka_unit_test(absent_unit_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
