// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "frontends/tgt/alua.h"

static lun_shared_state shared;
static const struct alua_own EAST = {"east", 1, 1, ALUA_OPTIMIZED};
static const struct alua_own WEST = {"west", 2, 2, ALUA_STANDBY};

static int two_gateways(void **unused) {
    (void)unused;
    memset(&shared, 0, sizeof(shared));
    bool changed;
    assert_int_equal(alua_publish(&shared, &EAST, "10.0.0.1:3260", &changed), 0);
    assert_true(changed);
    assert_int_equal(alua_publish(&shared, &WEST, "10.0.0.2:3260", &changed), 0);
    shared.has_active_gateway = true;
    strcpy(shared.active_gateway, "east");
    return 0;
}

static void both_gateways_report_the_same_groups(void **unused) {
    (void)unused;
    static const uint8_t expected[] = {
        0,    0,    0, 24,                         //
        0x00, 0x85, 0, 1,  0, 1, 0, 1, 0, 0, 0, 1, // group 1 active
        0x02, 0x85, 0, 2,  0, 0, 0, 1, 0, 0, 0, 2, // group 2 standby
    };
    static const uint8_t cdb[12] = {0xa3, 0x0a};
    uint8_t out[ALUA_REPORT_MAX];
    size_t length;
    assert_int_equal(alua_report(&shared, &EAST, cdb, out, &length).status, SAM_GOOD);
    assert_int_equal(length, sizeof(expected));
    assert_memory_equal(out, expected, sizeof(expected));
    memset(out, 0xff, sizeof(out));
    assert_int_equal(alua_report(&shared, &WEST, cdb, out, &length).status, SAM_GOOD);
    assert_int_equal(length, sizeof(expected));
    assert_memory_equal(out, expected, sizeof(expected));
}

static void one_group_is_active_though_the_state_does_not_know_of_a_takeover_yet(void **unused) {
    (void)unused;
    static const uint8_t cdb[12] = {0xa3, 0x0a};
    struct alua_own west = WEST;
    west.state = ALUA_OPTIMIZED;
    uint8_t out[ALUA_REPORT_MAX];
    size_t length;
    assert_int_equal(alua_report(&shared, &west, cdb, out, &length).status, SAM_GOOD);
    assert_int_equal(length, 4 + 2 * 12);
    assert_int_equal(out[4], ALUA_STANDBY);
    assert_int_equal(out[4 + 12], ALUA_OPTIMIZED);
}

static void the_extended_header_comes_first(void **unused) {
    (void)unused;
    static const uint8_t cdb[12] = {0xa3, 0x2a};
    uint8_t out[ALUA_REPORT_MAX];
    size_t length;
    assert_int_equal(alua_report(&shared, &EAST, cdb, out, &length).status, SAM_GOOD);
    assert_int_equal(length, 32);
    assert_int_equal(out[3], 28);
    assert_int_equal(out[4], 0x10);
    assert_int_equal(out[8 + 3], 1);
    static const uint8_t unknown[12] = {0xa3, 0x4a};
    assert_int_equal(alua_report(&shared, &EAST, unknown, out, &length).code,
                     ASC_INVALID_FIELD_IN_CDB);
}

static void a_gateway_that_is_not_listed_yet_reports_itself(void **unused) {
    (void)unused;
    static const uint8_t cdb[12] = {0xa3, 0x0a};
    struct alua_own north = {"north", 7, 9, ALUA_STANDBY};
    uint8_t out[ALUA_REPORT_MAX];
    size_t length;
    assert_int_equal(alua_report(&shared, &north, cdb, out, &length).status, SAM_GOOD);
    assert_int_equal(length, 4 + 3 * 12);
    assert_int_equal(out[4 + 24 + 3], 7);
    assert_int_equal(out[4 + 24 + 11], 9);
}

static struct bs_status set(const struct alua_own *own, const uint8_t *list, size_t length,
                            bool *take_over) {
    uint8_t cdb[12] = {0xa4, 0x0a};
    cdb[9] = (uint8_t)length;
    return alua_parse_set(&shared, own, cdb, list, length, take_over);
}

static void a_standby_that_is_told_takes_over(void **unused) {
    (void)unused;
    bool take;
    static const uint8_t activate[8] = {0, 0, 0, 0, 0x00, 0, 0, 2};
    assert_int_equal(set(&WEST, activate, 8, &take).status, SAM_GOOD);
    assert_true(take);
    static const uint8_t both[12] = {0, 0, 0, 0, 0x02, 0, 0, 1, 0x00, 0, 0, 2};
    assert_int_equal(set(&WEST, both, 12, &take).status, SAM_GOOD);
    assert_true(take);
}

static void what_is_so_already_is_good(void **unused) {
    (void)unused;
    bool take;
    static const uint8_t active[8] = {0, 0, 0, 0, 0x00, 0, 0, 1};
    assert_int_equal(set(&EAST, active, 8, &take).status, SAM_GOOD);
    assert_false(take);
    static const uint8_t standby[8] = {0, 0, 0, 0, 0x02, 0, 0, 2};
    assert_int_equal(set(&WEST, standby, 8, &take).status, SAM_GOOD);
    assert_false(take);
    assert_int_equal(set(&WEST, standby, 0, &take).status, SAM_GOOD);
    assert_false(take);
}

static void what_a_gateway_cannot_do_fails(void **unused) {
    (void)unused;
    bool take;
    static const uint8_t other_active[8] = {0, 0, 0, 0, 0x00, 0, 0, 2};
    assert_int_equal(set(&EAST, other_active, 8, &take).code, ASC_SET_GROUPS_FAILED);
    static const uint8_t step_back[8] = {0, 0, 0, 0, 0x02, 0, 0, 1};
    assert_int_equal(set(&EAST, step_back, 8, &take).code, ASC_SET_GROUPS_FAILED);
    assert_int_equal(set(&WEST, step_back, 8, &take).code, ASC_SET_GROUPS_FAILED);
    static const uint8_t both_active[12] = {0, 0, 0, 0, 0x00, 0, 0, 1, 0x00, 0, 0, 2};
    assert_int_equal(set(&EAST, both_active, 12, &take).code, ASC_SET_GROUPS_FAILED);
    assert_int_equal(set(&WEST, both_active, 12, &take).code, ASC_SET_GROUPS_FAILED);
    assert_false(take);
    static const uint8_t unknown[8] = {0, 0, 0, 0, 0x00, 0, 0, 9};
    assert_int_equal(set(&EAST, unknown, 8, &take).code, ASC_INVALID_FIELD_IN_PARAMETERS);
    static const uint8_t offline[8] = {0, 0, 0, 0, 0x0e, 0, 0, 2};
    assert_int_equal(set(&WEST, offline, 8, &take).code, ASC_INVALID_FIELD_IN_PARAMETERS);
    assert_int_equal(set(&WEST, offline, 6, &take).code, ASC_PARAMETER_LENGTH);
    assert_false(take);
}

static void standby_answers_what_finds_paths_and_no_data(void **unused) {
    (void)unused;
    static const uint8_t answered[][2] = {
        {0x12, 0}, {0xa0, 0}, {0x03, 0},    {0x1a, 0},    {0x5a, 0},    {0x5e, 0},
        {0x5f, 0}, {0x25, 0}, {0xa3, 0x0a}, {0xa4, 0x0a}, {0x9e, 0x10},
    };
    static const uint8_t refused[][2] = {
        {0x00, 0}, {0x28, 0}, {0x88, 0}, {0x2a, 0},    {0x42, 0}, {0x93, 0},
        {0x89, 0}, {0x35, 0}, {0x16, 0}, {0x9e, 0x12}, {0x2f, 0}, {0x1b, 0},
    };
    for (unsigned i = 0; i < sizeof(answered) / 2; i++) {
        assert_int_equal(alua_access(ALUA_STANDBY, answered[i]).status, SAM_GOOD);
        assert_int_equal(alua_access(ALUA_TRANSITIONING, answered[i]).status, SAM_GOOD);
    }
    for (unsigned i = 0; i < sizeof(refused) / 2; i++) {
        struct bs_status outcome = alua_access(ALUA_STANDBY, refused[i]);
        assert_int_equal(outcome.status, SAM_CHECK_CONDITION);
        assert_int_equal(outcome.key, KEY_NOT_READY);
        assert_int_equal(outcome.code, ASC_STANDBY);
        assert_int_equal(alua_access(ALUA_TRANSITIONING, refused[i]).code, ASC_TRANSITION);
        assert_int_equal(alua_access(ALUA_OPTIMIZED, refused[i]).status, SAM_GOOD);
    }
}

static void designators_name_port_and_group(void **unused) {
    (void)unused;
    static const uint8_t expected[ALUA_DESCRIPTORS_SIZE] = {
        0x51, 0x94, 0, 4, 0, 0, 0, 9, 0x51, 0x95, 0, 4, 0, 0, 0, 7,
    };
    struct alua_own own = {"north", 7, 9, ALUA_STANDBY};
    uint8_t out[ALUA_DESCRIPTORS_SIZE];
    alua_designators(&own, out);
    assert_memory_equal(out, expected, sizeof(expected));
}

static void publishing_again_changes_nothing(void **unused) {
    (void)unused;
    bool changed;
    assert_int_equal(alua_publish(&shared, &EAST, "10.0.0.1:3260", &changed), 0);
    assert_false(changed);
    struct alua_own second_target = EAST;
    second_target.port = 5;
    assert_int_equal(alua_publish(&shared, &second_target, NULL, &changed), 0);
    assert_true(changed);
    struct reservation_ports ports;
    alua_ports(&shared, &ports);
    assert_int_equal(ports.count, 3);
}

static void numbers_of_another_gateway_are_refused(void **unused) {
    (void)unused;
    bool changed;
    struct alua_own same_group = {"north", 1, 9, ALUA_STANDBY};
    assert_int_equal(alua_publish(&shared, &same_group, NULL, &changed), -EEXIST);
    struct alua_own same_port = {"north", 7, 2, ALUA_STANDBY};
    assert_int_equal(alua_publish(&shared, &same_port, NULL, &changed), -EEXIST);
}

static void publish_more(uint32_t number) {
    char name[] = {'g', (char)('a' + number), '\0'};
    struct alua_own more = {name, number, number, ALUA_STANDBY};
    bool changed;
    assert_int_equal(alua_publish(&shared, &more, NULL, &changed), 0);
    assert_true(changed);
}

static void a_new_gateway_takes_the_place_of_the_oldest_that_is_not_active(void **unused) {
    (void)unused;
    for (uint32_t number = 3; number <= ALUA_GROUPS_MAX + 2; number++)
        publish_more(number);
    // West and the first of the others have made room; east is active.
    assert_int_equal(shared.groups_count, ALUA_GROUPS_MAX);
    assert_string_equal(shared.groups[0].gateway, "east");
    for (uint32_t i = 1; i < ALUA_GROUPS_MAX; i++) {
        assert_int_equal(shared.groups[i].id, i + 3);
        assert_int_equal(shared.groups[i].ports_count, 1);
        assert_int_equal(shared.groups[i].ports[0], i + 3);
    }
    // West is still there, and says so.
    static const uint8_t cdb[12] = {0xa3, 0x0a};
    uint8_t out[ALUA_REPORT_MAX];
    size_t length;
    assert_int_equal(alua_report(&shared, &WEST, cdb, out, &length).status, SAM_GOOD);
    assert_int_equal(length, 4 + (ALUA_GROUPS_MAX + 1) * 12);
    assert_int_equal(out[length - 1], WEST.port);
}

static void a_group_has_as_many_ports_as_it_can_have(void **unused) {
    (void)unused;
    struct alua_own own = EAST;
    bool changed;
    unsigned room = sizeof(shared.groups[0].ports) / sizeof(shared.groups[0].ports[0]);
    for (unsigned i = 1; i < room; i++) {
        own.port = 100 + i;
        assert_int_equal(alua_publish(&shared, &own, NULL, &changed), 0);
    }
    own.port = 99;
    assert_int_equal(alua_publish(&shared, &own, NULL, &changed), -ENOSPC);
    assert_false(changed);
}

#define CASE(name) cmocka_unit_test_setup(name, two_gateways)

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(both_gateways_report_the_same_groups),
        CASE(one_group_is_active_though_the_state_does_not_know_of_a_takeover_yet),
        CASE(the_extended_header_comes_first),
        CASE(a_gateway_that_is_not_listed_yet_reports_itself),
        CASE(a_standby_that_is_told_takes_over),
        CASE(what_is_so_already_is_good),
        CASE(what_a_gateway_cannot_do_fails),
        CASE(standby_answers_what_finds_paths_and_no_data),
        CASE(designators_name_port_and_group),
        CASE(publishing_again_changes_nothing),
        CASE(numbers_of_another_gateway_are_refused),
        CASE(a_new_gateway_takes_the_place_of_the_oldest_that_is_not_active),
        CASE(a_group_has_as_many_ports_as_it_can_have),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
