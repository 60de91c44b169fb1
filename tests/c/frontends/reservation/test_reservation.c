// SPDX-License-Identifier: GPL-2.0-only
//
// Reservations case by case: who gets what answer, which bytes, and who is told.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "frontends/tgt/reservation.h"

static const struct reservation_nexus A = {"iqn.2026-01.test:a,i,0x000000000001", 1};
static const struct reservation_nexus A2 = {"iqn.2026-01.test:a,i,0x000000000001", 2};
static const struct reservation_nexus B = {"iqn.2026-01.test:b,i,0x000000000002", 1};
static const struct reservation_nexus C = {"iqn.2026-01.test:c,i,0x000000000003", 2};
static const struct reservation_ports PORTS = {{1, 2, 3}, 3};

static reservation_state state;

static int fresh(void **unused) {
    (void)unused;
    memset(&state, 0, sizeof(state));
    return 0;
}

static struct bs_status out(const struct reservation_nexus *nexus, uint8_t action, uint8_t type,
                            uint64_t key, uint64_t action_key) {
    struct reservation_request request = {
        .action = action, .type = type, .key = key, .action_key = action_key};
    struct bs_status outcome = reservation_out(&state, nexus, &request, &PORTS);
    assert_true(reservation_valid(&state));
    return outcome;
}

static void good(struct bs_status outcome) {
    assert_int_equal(outcome.status, SAM_GOOD);
}

static void conflict(struct bs_status outcome) {
    assert_int_equal(outcome.status, SAM_RESERVATION_CONFLICT);
}

static void illegal(struct bs_status outcome, uint16_t asc) {
    assert_int_equal(outcome.status, SAM_CHECK_CONDITION);
    assert_int_equal(outcome.key, KEY_ILLEGAL_REQUEST);
    assert_int_equal(outcome.code, asc);
}

static void everybody_registers(void) {
    good(out(&A, PR_REGISTER, 0, 0, 0xa));
    good(out(&B, PR_REGISTER, 0, 0, 0xb));
    good(out(&C, PR_REGISTER, 0, 0, 0xc));
}

static bool allows(const struct reservation_nexus *nexus, uint8_t opcode, uint8_t action) {
    uint8_t cdb[16] = {opcode, action};
    return reservation_allows(&state, nexus, cdb);
}

static unsigned told(const reservation_state *before, const struct reservation_nexus *nexus) {
    static struct reservation_notice notices[RESERVATION_REGISTRATIONS_MAX];
    unsigned count = reservation_notices(before, &state, notices);
    for (unsigned i = 0; i < count; i++) {
        if (notices[i].target_port == nexus->target_port &&
            strcmp(notices[i].initiator_port, nexus->initiator_port) == 0)
            return notices[i].code | (notices[i].abort ? 0x10000U : 0);
    }
    return 0;
}

static void the_name_is_initiator_and_isid(void **unused) {
    (void)unused;
    char name[RESERVATION_NAME_SIZE];
    static const uint8_t isid[6] = {0x80, 0x12, 0x34, 0xab, 0, 0x01};
    assert_true(reservation_name(name, "iqn.1993-08.org.debian:01:abc", isid));
    assert_string_equal(name, "iqn.1993-08.org.debian:01:abc,i,0x801234ab0001");
    char longest[RESERVATION_NAME_SIZE];
    memset(longest, 'x', sizeof(longest));
    longest[RESERVATION_NAME_SIZE - 1] = '\0';
    assert_false(reservation_name(name, longest, isid));
    assert_false(reservation_name(name, "", isid));
}

static void registering_needs_the_key_that_is_registered(void **unused) {
    (void)unused;
    conflict(out(&A, PR_REGISTER, 0, 5, 6));
    good(out(&A, PR_REGISTER, 0, 0, 6));
    assert_int_equal(state.generation, 1);
    conflict(out(&A, PR_REGISTER, 0, 0, 7));
    good(out(&A, PR_REGISTER, 0, 6, 7));
    good(out(&A, PR_REGISTER_AND_IGNORE, 0, 99, 8));
    assert_int_equal(state.registrations_count, 1);
    assert_int_equal(state.registrations[0].key, 8);
    assert_int_equal(state.generation, 3);
    good(out(&A, PR_REGISTER, 0, 8, 0));
    assert_int_equal(state.registrations_count, 0);
    good(out(&A, PR_REGISTER, 0, 0, 0));
    assert_int_equal(state.generation, 4);
}

static void all_target_ports_register_and_unregister_together(void **unused) {
    (void)unused;
    struct reservation_request request = {
        .action = PR_REGISTER, .action_key = 5, .all_target_ports = true};
    good(reservation_out(&state, &A, &request, &PORTS));
    assert_int_equal(state.registrations_count, 3);
    reservation_state before = state;
    request.key = 5;
    request.action_key = 0;
    good(reservation_out(&state, &A, &request, &PORTS));
    assert_int_equal(state.registrations_count, 0);
    // Its own doing: its other ports are not told that somebody preempted them.
    assert_int_equal(told(&before, &A2), 0);
}

static void a_full_table_changes_nothing(void **unused) {
    (void)unused;
    char name[RESERVATION_NAME_SIZE];
    for (uint8_t i = 0; i < RESERVATION_REGISTRATIONS_MAX; i++) {
        uint8_t isid[6] = {0, 0, 0, 0, 1, i};
        assert_true(reservation_name(name, "iqn.2026-01.test:many", isid));
        struct reservation_nexus nexus = {name, 1};
        good(out(&nexus, PR_REGISTER, 0, 0, 1));
    }
    reservation_state before = state;
    illegal(out(&A, PR_REGISTER, 0, 0, 1), ASC_NO_REGISTRATION_RESOURCES);
    assert_memory_equal(&before, &state, sizeof(state));
}

static void one_holder_at_a_time(void **unused) {
    (void)unused;
    everybody_registers();
    conflict(out(&A, PR_RESERVE, PR_WRITE_EXCLUSIVE, 0xb, 0));
    good(out(&A, PR_RESERVE, PR_WRITE_EXCLUSIVE, 0xa, 0));
    good(out(&A, PR_RESERVE, PR_WRITE_EXCLUSIVE, 0xa, 0));
    conflict(out(&A, PR_RESERVE, PR_EXCLUSIVE_ACCESS, 0xa, 0));
    conflict(out(&B, PR_RESERVE, PR_WRITE_EXCLUSIVE, 0xb, 0));
    assert_int_equal(state.generation, 3);
}

static void reserving_checks_type_and_scope(void **unused) {
    (void)unused;
    good(out(&A, PR_REGISTER, 0, 0, 0xa));
    illegal(out(&A, PR_RESERVE, 2, 0xa, 0), ASC_INVALID_FIELD_IN_CDB);
    illegal(out(&A, PR_RESERVE, 0, 0xa, 0), ASC_INVALID_FIELD_IN_CDB);
    illegal(out(&A, PR_RESERVE, 9, 0xa, 0), ASC_INVALID_FIELD_IN_CDB);
    struct reservation_request request = {
        .action = PR_RESERVE, .type = PR_WRITE_EXCLUSIVE, .scope = 1, .key = 0xa};
    illegal(reservation_out(&state, &A, &request, &PORTS), ASC_INVALID_FIELD_IN_CDB);
}

static void release_is_for_the_holder_with_the_same_type(void **unused) {
    (void)unused;
    everybody_registers();
    good(out(&A, PR_RESERVE, PR_EXCLUSIVE_ACCESS_REGISTRANTS, 0xa, 0));
    good(out(&B, PR_RELEASE, PR_EXCLUSIVE_ACCESS_REGISTRANTS, 0xb, 0));
    assert_int_equal(state.type, PR_EXCLUSIVE_ACCESS_REGISTRANTS);
    conflict(out(&A, PR_RELEASE, PR_EXCLUSIVE_ACCESS_REGISTRANTS, 0xb, 0));
    illegal(out(&A, PR_RELEASE, PR_WRITE_EXCLUSIVE, 0xa, 0), ASC_INVALID_RELEASE);
    reservation_state before = state;
    good(out(&A, PR_RELEASE, PR_EXCLUSIVE_ACCESS_REGISTRANTS, 0xa, 0));
    assert_int_equal(state.type, PR_NONE);
    assert_int_equal(state.registrations_count, 3);
    assert_int_equal(told(&before, &A), 0);
    assert_int_equal(told(&before, &B), ASC_RESERVATIONS_RELEASED);
    assert_int_equal(told(&before, &C), ASC_RESERVATIONS_RELEASED);
}

static void a_release_that_gives_nobody_access_is_not_told(void **unused) {
    (void)unused;
    everybody_registers();
    good(out(&A, PR_RESERVE, PR_WRITE_EXCLUSIVE, 0xa, 0));
    reservation_state before = state;
    good(out(&A, PR_RELEASE, PR_WRITE_EXCLUSIVE, 0xa, 0));
    assert_int_equal(told(&before, &B), 0);
}

static void a_holder_that_unregisters_ends_the_reservation(void **unused) {
    (void)unused;
    everybody_registers();
    good(out(&A, PR_RESERVE, PR_WRITE_EXCLUSIVE_REGISTRANTS, 0xa, 0));
    reservation_state before = state;
    good(out(&A, PR_REGISTER, 0, 0xa, 0));
    assert_int_equal(state.type, PR_NONE);
    assert_int_equal(told(&before, &B), ASC_RESERVATIONS_RELEASED);
}

static void all_registrants_keep_the_reservation_until_the_last(void **unused) {
    (void)unused;
    everybody_registers();
    good(out(&A, PR_RESERVE, PR_WRITE_EXCLUSIVE_ALL, 0xa, 0));
    good(out(&B, PR_RESERVE, PR_WRITE_EXCLUSIVE_ALL, 0xb, 0));
    good(out(&A, PR_REGISTER, 0, 0xa, 0));
    good(out(&B, PR_REGISTER, 0, 0xb, 0));
    assert_int_equal(state.type, PR_WRITE_EXCLUSIVE_ALL);
    good(out(&C, PR_REGISTER, 0, 0xc, 0));
    assert_int_equal(state.type, PR_NONE);
}

static void clear_removes_all_and_tells_the_others(void **unused) {
    (void)unused;
    everybody_registers();
    good(out(&A, PR_RESERVE, PR_EXCLUSIVE_ACCESS, 0xa, 0));
    reservation_state before = state;
    conflict(out(&B, PR_CLEAR, 0, 0xa, 0));
    good(out(&B, PR_CLEAR, 0, 0xb, 0));
    assert_int_equal(state.registrations_count, 0);
    assert_int_equal(state.type, PR_NONE);
    assert_int_equal(state.generation, 4);
    assert_int_equal(told(&before, &A), ASC_RESERVATIONS_PREEMPTED);
    assert_int_equal(told(&before, &B), 0);
    assert_int_equal(told(&before, &C), ASC_RESERVATIONS_PREEMPTED);
}

static void preempting_the_holder_takes_the_reservation(void **unused) {
    (void)unused;
    everybody_registers();
    good(out(&A, PR_RESERVE, PR_WRITE_EXCLUSIVE, 0xa, 0));
    reservation_state before = state;
    good(out(&B, PR_PREEMPT, PR_EXCLUSIVE_ACCESS, 0xb, 0xa));
    assert_int_equal(state.registrations_count, 2);
    assert_int_equal(state.type, PR_EXCLUSIVE_ACCESS);
    assert_false(allows(&A, 0x28, 0));
    assert_true(allows(&B, 0x2a, 0));
    assert_int_equal(told(&before, &A), ASC_REGISTRATIONS_PREEMPTED);
    assert_int_equal(told(&before, &B), 0);
    // The type changed: who keeps its registration is told too.
    assert_int_equal(told(&before, &C), ASC_RESERVATIONS_RELEASED);
}

static void preempting_with_the_same_type_tells_only_who_lost(void **unused) {
    (void)unused;
    everybody_registers();
    good(out(&A, PR_RESERVE, PR_WRITE_EXCLUSIVE, 0xa, 0));
    reservation_state before = state;
    good(out(&B, PR_PREEMPT_AND_ABORT, PR_WRITE_EXCLUSIVE, 0xb, 0xa));
    assert_int_equal(told(&before, &A), ASC_REGISTRATIONS_PREEMPTED | 0x10000U);
    assert_int_equal(told(&before, &C), 0);
}

static void preempting_registrants_leaves_the_reservation(void **unused) {
    (void)unused;
    everybody_registers();
    good(out(&A, PR_RESERVE, PR_WRITE_EXCLUSIVE, 0xa, 0));
    reservation_state before = state;
    good(out(&B, PR_PREEMPT, PR_EXCLUSIVE_ACCESS, 0xb, 0xc));
    assert_int_equal(state.type, PR_WRITE_EXCLUSIVE);
    assert_true(allows(&A, 0x2a, 0));
    assert_int_equal(told(&before, &C), ASC_REGISTRATIONS_PREEMPTED);
    assert_int_equal(told(&before, &A), 0);
    conflict(out(&B, PR_PREEMPT, PR_EXCLUSIVE_ACCESS, 0xb, 0xdead));
    illegal(out(&B, PR_PREEMPT, PR_EXCLUSIVE_ACCESS, 0xb, 0), ASC_INVALID_FIELD_IN_PARAMETERS);
}

static void preempting_the_own_reservation_changes_its_type(void **unused) {
    (void)unused;
    everybody_registers();
    good(out(&A, PR_RESERVE, PR_WRITE_EXCLUSIVE, 0xa, 0));
    good(out(&A, PR_PREEMPT, PR_EXCLUSIVE_ACCESS_REGISTRANTS, 0xa, 0xa));
    assert_int_equal(state.registrations_count, 3);
    assert_int_equal(state.type, PR_EXCLUSIVE_ACCESS_REGISTRANTS);
}

static void preempting_all_registrants_takes_the_key_zero(void **unused) {
    (void)unused;
    everybody_registers();
    good(out(&A, PR_RESERVE, PR_WRITE_EXCLUSIVE_ALL, 0xa, 0));
    good(out(&B, PR_PREEMPT, PR_WRITE_EXCLUSIVE, 0xb, 0xc));
    assert_int_equal(state.registrations_count, 2);
    assert_int_equal(state.type, PR_WRITE_EXCLUSIVE_ALL);
    reservation_state before = state;
    good(out(&B, PR_PREEMPT, PR_WRITE_EXCLUSIVE, 0xb, 0));
    assert_int_equal(state.registrations_count, 1);
    assert_int_equal(state.type, PR_WRITE_EXCLUSIVE);
    assert_true(state.registrations[0].holder);
    assert_int_equal(told(&before, &A), ASC_REGISTRATIONS_PREEMPTED);
}

// --- The parameter list

static uint8_t cdb[10];
static uint8_t list[512];
static struct reservation_request request;

static void prepare(uint8_t action, uint32_t length) {
    memset(cdb, 0, sizeof(cdb));
    memset(list, 0, sizeof(list));
    cdb[0] = 0x5f;
    cdb[1] = action;
    cdb[7] = (uint8_t)(length >> 8);
    cdb[8] = (uint8_t)length;
}

static uint8_t transport_id(uint8_t *at, const char *name) {
    size_t text = (strlen(name) + 4) / 4 * 4;
    at[0] = 0x45;
    at[3] = (uint8_t)text;
    memcpy(at + 4, name, strlen(name));
    return (uint8_t)(4 + text);
}

static void the_parameter_list_is_24_bytes(void **unused) {
    (void)unused;
    prepare(PR_REGISTER, 24);
    list[7] = 1;
    list[15] = 2;
    list[20] = 0x05;
    good(reservation_parse_out(cdb, list, 24, &request));
    assert_int_equal(request.key, 1);
    assert_int_equal(request.action_key, 2);
    assert_true(request.all_target_ports && request.aptpl && !request.named_initiators);
    illegal(reservation_parse_out(cdb, list, 23, &request), ASC_PARAMETER_LENGTH);
    prepare(PR_REGISTER, 25);
    illegal(reservation_parse_out(cdb, list, 25, &request), ASC_PARAMETER_LENGTH);
    prepare(PR_REGISTER, 0);
    illegal(reservation_parse_out(cdb, list, 0, &request), ASC_PARAMETER_LENGTH);
    prepare(8, 24);
    illegal(reservation_parse_out(cdb, list, 24, &request), ASC_INVALID_FIELD_IN_CDB);
}

static void named_initiators_are_registered_too(void **unused) {
    (void)unused;
    prepare(PR_REGISTER, 0);
    list[15] = 9;
    list[20] = 0x08;
    uint8_t used = transport_id(list + 28, B.initiator_port);
    used = (uint8_t)(used + transport_id(list + 28 + used, C.initiator_port));
    list[27] = used;
    cdb[8] = (uint8_t)(28 + used);
    good(reservation_parse_out(cdb, list, 28U + used, &request));
    good(reservation_out(&state, &A, &request, &PORTS));
    assert_int_equal(state.registrations_count, 3);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(state.registrations[i].key, 9);
    // A registrant may not.
    request.key = 9;
    illegal(reservation_out(&state, &A, &request, &PORTS), ASC_INVALID_FIELD_IN_CDB);
}

static void a_bad_transport_id_registers_nobody(void **unused) {
    (void)unused;
    prepare(PR_REGISTER, 0);
    list[15] = 9;
    list[20] = 0x08;
    uint8_t used = transport_id(list + 28, B.initiator_port);
    list[28 + used] = 0x05; // a name without ISID
    list[28 + used + 3] = 16;
    list[27] = (uint8_t)(used + 20);
    cdb[8] = (uint8_t)(28 + used + 20);
    good(reservation_parse_out(cdb, list, 28U + used + 20U, &request));
    illegal(reservation_out(&state, &A, &request, &PORTS), ASC_INVALID_FIELD_IN_PARAMETERS);
    assert_int_equal(state.registrations_count, 0);
    cdb[1] = PR_REGISTER_AND_IGNORE;
    illegal(reservation_parse_out(cdb, list, 28U + used + 20U, &request),
            ASC_INVALID_FIELD_IN_PARAMETERS);
}

static void garbled_transport_ids_are_refused(void **unused) {
    (void)unused;
    good(out(&A, PR_REGISTER, 0, 0, 0xa));
    good(out(&A, PR_RESERVE, PR_WRITE_EXCLUSIVE, 0xa, 0));
    uint64_t seed = 88172645463325252ULL;
    for (unsigned round = 0; round < 200000; round++) {
        prepare(PR_REGISTER_AND_MOVE, 0);
        uint8_t used = transport_id(list + 24, B.initiator_port);
        list[7] = 0xa;
        list[15] = 9;
        list[19] = 2;
        list[23] = used;
        cdb[8] = (uint8_t)(24 + used);
        for (unsigned i = 0; i < 3; i++) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            list[16 + seed % 64] = (uint8_t)(seed >> 32);
        }
        // In memory of just this size, so that a sanitizer sees what reads beyond it.
        size_t length = 24U + used;
        uint8_t *exact = malloc(length);
        assert_non_null(exact);
        memcpy(exact, list, length);
        if (reservation_parse_out(cdb, exact, length, &request).status == SAM_GOOD) {
            reservation_state copy = state;
            (void)reservation_out(&copy, &A, &request, &PORTS);
            assert_true(reservation_valid(&copy));
        }
        free(exact);
    }
}

static struct bs_status move_to(const struct reservation_nexus *to, bool unregister) {
    prepare(PR_REGISTER_AND_MOVE, 0);
    list[7] = 0xa;
    list[15] = 9;
    list[17] = unregister ? 0x02 : 0;
    list[19] = (uint8_t)to->target_port;
    list[23] = transport_id(list + 24, to->initiator_port);
    cdb[8] = (uint8_t)(24 + list[23]);
    good(reservation_parse_out(cdb, list, 24U + list[23], &request));
    struct bs_status outcome = reservation_out(&state, &A, &request, &PORTS);
    assert_true(reservation_valid(&state));
    return outcome;
}

static void the_reservation_moves_to_another_nexus(void **unused) {
    (void)unused;
    conflict(move_to(&B, false));
    good(out(&A, PR_REGISTER, 0, 0, 0xa));
    illegal(move_to(&B, false), ASC_INVALID_FIELD_IN_CDB);
    good(out(&A, PR_RESERVE, PR_WRITE_EXCLUSIVE, 0xa, 0));
    illegal(move_to(&A, false), ASC_INVALID_FIELD_IN_PARAMETERS);
    struct reservation_nexus nowhere = {B.initiator_port, 77};
    illegal(move_to(&nowhere, false), ASC_INVALID_FIELD_IN_PARAMETERS);
    good(move_to(&B, false));
    assert_int_equal(state.registrations_count, 2);
    assert_true(allows(&B, 0x2a, 0));
    assert_false(allows(&A, 0x2a, 0));
    conflict(move_to(&C, false));
}

static void a_move_can_unregister_the_mover(void **unused) {
    (void)unused;
    good(out(&A, PR_REGISTER, 0, 0, 0xa));
    good(out(&A, PR_RESERVE, PR_EXCLUSIVE_ACCESS_REGISTRANTS, 0xa, 0));
    good(move_to(&C, true));
    assert_int_equal(state.registrations_count, 1);
    assert_string_equal(state.registrations[0].initiator_port, C.initiator_port);
    assert_int_equal(state.type, PR_EXCLUSIVE_ACCESS_REGISTRANTS);
}

// --- PERSISTENT RESERVE IN

static uint8_t answer[RESERVATION_IN_MAX];

static size_t in(uint8_t action) {
    uint8_t in_cdb[10] = {0x5e, action};
    size_t length;
    good(reservation_in(&state, in_cdb, answer, &length));
    return length;
}

static void keys_and_reservation_are_reported(void **unused) {
    (void)unused;
    assert_int_equal(in(0), 8);
    everybody_registers();
    assert_int_equal(in(0), 8 + 3 * 8);
    assert_int_equal(answer[3], 3);
    assert_int_equal(answer[7], 24);
    assert_int_equal(answer[15], 0xa);
    assert_int_equal(in(1), 8);
    good(out(&B, PR_RESERVE, PR_WRITE_EXCLUSIVE_REGISTRANTS, 0xb, 0));
    assert_int_equal(in(1), 24);
    assert_int_equal(answer[7], 16);
    assert_int_equal(answer[15], 0xb);
    assert_int_equal(answer[21], 5);
}

static void all_registrants_hold_without_a_key(void **unused) {
    (void)unused;
    everybody_registers();
    good(out(&B, PR_RESERVE, PR_EXCLUSIVE_ACCESS_ALL, 0xb, 0));
    assert_int_equal(in(1), 24);
    assert_int_equal(answer[15], 0);
    assert_int_equal(answer[21], 8);
    in(3);
    assert_int_equal(answer[8 + 12], 0x01);
}

static void full_status_names_the_nexuses(void **unused) {
    (void)unused;
    good(out(&C, PR_REGISTER, 0, 0, 0xc));
    good(out(&C, PR_RESERVE, PR_EXCLUSIVE_ACCESS, 0xc, 0));
    size_t length = in(3);
    const uint8_t *one = answer + 8;
    assert_int_equal(one[7], 0xc);
    assert_int_equal(one[12], 0x01);
    assert_int_equal(one[13], 3);
    assert_int_equal(one[19], 2);
    assert_int_equal(one[23] + 8 + 24, length);
    assert_int_equal(one[24], 0x45);
    assert_int_equal(one[27], one[23] - 4);
    assert_string_equal((const char *)one + 28, C.initiator_port);
    assert_int_equal(length % 4, 0);
}

static void capabilities_name_the_types(void **unused) {
    (void)unused;
    struct reservation_request aptpl = {.action = PR_REGISTER, .action_key = 1, .aptpl = true};
    good(reservation_out(&state, &A, &aptpl, &PORTS));
    static const uint8_t expected[8] = {0, 8, 0x1d, 0x81, 0xea, 0x01, 0, 0};
    assert_int_equal(in(2), 8);
    assert_memory_equal(answer, expected, 8);
    uint8_t in_cdb[10] = {0x5e, 4};
    size_t length;
    illegal(reservation_in(&state, in_cdb, answer, &length), ASC_INVALID_FIELD_IN_CDB);
}

static void the_longest_answer_fits(void **unused) {
    (void)unused;
    state.registrations_count = RESERVATION_REGISTRATIONS_MAX;
    for (unsigned i = 0; i < RESERVATION_REGISTRATIONS_MAX; i++) {
        memset(state.registrations[i].initiator_port, 'x', RESERVATION_NAME_SIZE - 1);
        state.registrations[i].target_port = i + 1;
        state.registrations[i].key = 1;
    }
    assert_int_equal(in(3), 8 + RESERVATION_REGISTRATIONS_MAX * (24 + 4 + RESERVATION_NAME_SIZE));
}

// --- RESERVE and RELEASE

static const uint8_t RESERVE6[10] = {0x16};
static const uint8_t RELEASE6[10] = {0x17};

static void reserve_keeps_others_out(void **unused) {
    (void)unused;
    good(reservation_reserve(&state, &A, RESERVE6));
    good(reservation_reserve(&state, &A, RESERVE6));
    conflict(reservation_reserve(&state, &B, RESERVE6));
    assert_true(allows(&A, 0x2a, 0));
    assert_false(allows(&B, 0x28, 0));
    assert_false(allows(&B, 0x00, 0));
    assert_false(allows(&A2, 0x28, 0));
    assert_true(allows(&B, 0x12, 0));
    good(reservation_release(&state, &B, RELEASE6));
    assert_false(allows(&B, 0x28, 0));
    good(reservation_release(&state, &A, RELEASE6));
    assert_true(allows(&B, 0x28, 0));
}

static void reserve_ends_with_its_nexus_or_a_reset(void **unused) {
    (void)unused;
    good(reservation_reserve(&state, &A, RESERVE6));
    assert_false(reservation_drop(&state, &B));
    assert_true(reservation_drop(&state, &A));
    assert_false(reservation_drop(&state, NULL));
    good(reservation_reserve(&state, &B, RESERVE6));
    assert_true(reservation_drop(&state, NULL));
}

static void reserve_and_persistent_reservations_exclude_each_other(void **unused) {
    (void)unused;
    good(reservation_reserve(&state, &A, RESERVE6));
    conflict(out(&A, PR_REGISTER, 0, 0, 1));
    uint8_t in_cdb[10] = {0x5e, 0};
    size_t length;
    conflict(reservation_in(&state, in_cdb, answer, &length));
    good(reservation_release(&state, &A, RELEASE6));
    good(out(&A, PR_REGISTER, 0, 0, 1));
    conflict(reservation_reserve(&state, &A, RESERVE6));
    conflict(reservation_release(&state, &B, RELEASE6));
}

// CRH of REPORT CAPABILITIES.
static void holders_and_registrants_may_reserve_without_effect(void **unused) {
    (void)unused;
    everybody_registers();
    good(out(&A, PR_RESERVE, PR_WRITE_EXCLUSIVE, 0xa, 0));
    good(reservation_reserve(&state, &A, RESERVE6));
    conflict(reservation_reserve(&state, &B, RESERVE6));
    good(out(&A, PR_PREEMPT, PR_WRITE_EXCLUSIVE_REGISTRANTS, 0xa, 0xa));
    good(reservation_reserve(&state, &B, RESERVE6));
    good(reservation_release(&state, &B, RELEASE6));
    assert_false(state.has_reserved_by);
    assert_int_equal(state.type, PR_WRITE_EXCLUSIVE_REGISTRANTS);
}

static void third_parties_are_refused(void **unused) {
    (void)unused;
    static const uint8_t third[10] = {0x56, 0x10};
    illegal(reservation_reserve(&state, &A, third), ASC_INVALID_FIELD_IN_CDB);
}

// --- Which commands conflict

struct row {
    uint8_t opcode, action;
    bool write_exclusive, exclusive; // for who is neither holder nor registrant of that type
};

static const struct row TABLE[] = {
    {0x00, 0, true, true},      // TEST UNIT READY
    {0x03, 0, true, true},      // REQUEST SENSE
    {0x12, 0, true, true},      // INQUIRY
    {0xa0, 0, true, true},      // REPORT LUNS
    {0x25, 0, true, true},      // READ CAPACITY(10)
    {0x9e, 0x10, true, true},   // READ CAPACITY(16)
    {0xa3, 0x0a, true, true},   // REPORT TARGET PORT GROUPS
    {0xa3, 0x0c, true, true},   // REPORT SUPPORTED OPERATION CODES
    {0x5e, 0, true, true},      // PERSISTENT RESERVE IN
    {0x4d, 0, true, true},      // LOG SENSE
    {0x08, 0, true, false},     // READ(6)
    {0x28, 0, true, false},     // READ(10)
    {0xa8, 0, true, false},     // READ(12)
    {0x88, 0, true, false},     // READ(16)
    {0x1a, 0, true, false},     // MODE SENSE(6)
    {0x5a, 0, true, false},     // MODE SENSE(10)
    {0x2f, 0, true, false},     // VERIFY(10)
    {0x8f, 0, true, false},     // VERIFY(16)
    {0x34, 0, true, false},     // PRE-FETCH(10)
    {0x9e, 0x12, true, false},  // GET LBA STATUS
    {0x0a, 0, false, false},    // WRITE(6)
    {0x2a, 0, false, false},    // WRITE(10)
    {0xaa, 0, false, false},    // WRITE(12)
    {0x8a, 0, false, false},    // WRITE(16)
    {0x2e, 0, false, false},    // WRITE AND VERIFY(10)
    {0x8e, 0, false, false},    // WRITE AND VERIFY(16)
    {0x41, 0, false, false},    // WRITE SAME(10)
    {0x93, 0, false, false},    // WRITE SAME(16)
    {0x42, 0, false, false},    // UNMAP
    {0x89, 0, false, false},    // COMPARE AND WRITE
    {0x8b, 0, false, false},    // ORWRITE
    {0x83, 0, false, false},    // EXTENDED COPY
    {0x35, 0, false, false},    // SYNCHRONIZE CACHE(10)
    {0x91, 0, false, false},    // SYNCHRONIZE CACHE(16)
    {0x15, 0, false, false},    // MODE SELECT(6)
    {0x55, 0, false, false},    // MODE SELECT(10)
    {0x04, 0, false, false},    // FORMAT UNIT
    {0x48, 0, false, false},    // SANITIZE
    {0x1b, 0, false, false},    // START STOP UNIT, to stop
    {0xa4, 0x0a, false, false}, // SET TARGET PORT GROUPS
    {0x3b, 0, false, false},    // WRITE BUFFER
    {0xd0, 0, false, false},    // unknown
};

static void each_command_conflicts_as_the_standard_says(void **unused) {
    static const uint8_t types[] = {1, 3, 5, 6, 7, 8};
    for (unsigned t = 0; t < sizeof(types); t++) {
        fresh(unused);
        good(out(&A, PR_REGISTER, 0, 0, 0xa));
        good(out(&B, PR_REGISTER, 0, 0, 0xb));
        good(out(&A, PR_RESERVE, types[t], 0xa, 0));
        bool registrants = types[t] >= 5;
        bool exclusive = types[t] == 3 || types[t] == 6 || types[t] == 8;
        for (unsigned i = 0; i < sizeof(TABLE) / sizeof(TABLE[0]); i++) {
            const struct row *row = &TABLE[i];
            bool other = exclusive ? row->exclusive : row->write_exclusive;
            assert_true(allows(&A, row->opcode, row->action));
            assert_int_equal(allows(&B, row->opcode, row->action), registrants || other);
            assert_int_equal(allows(&C, row->opcode, row->action), other);
            assert_int_equal(allows(NULL, row->opcode, row->action), other);
            // The holder's initiator by another port is another nexus.
            assert_int_equal(allows(&A2, row->opcode, row->action), other);
        }
    }
}

static void starting_is_allowed_and_stopping_is_not(void **unused) {
    (void)unused;
    good(out(&A, PR_REGISTER, 0, 0, 0xa));
    good(out(&A, PR_RESERVE, PR_EXCLUSIVE_ACCESS, 0xa, 0));
    uint8_t start[10] = {0x1b, 0, 0, 0, 0x01};
    assert_true(reservation_allows(&state, &B, start));
    start[4] = 0x03;
    assert_false(reservation_allows(&state, &B, start));
    uint8_t prevent[10] = {0x1e, 0, 0, 0, 0};
    assert_true(reservation_allows(&state, &B, prevent));
    prevent[4] = 1;
    assert_false(reservation_allows(&state, &B, prevent));
}

#define CASE(name) cmocka_unit_test_setup(name, fresh)

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(the_name_is_initiator_and_isid),
        CASE(registering_needs_the_key_that_is_registered),
        CASE(all_target_ports_register_and_unregister_together),
        CASE(a_full_table_changes_nothing),
        CASE(one_holder_at_a_time),
        CASE(reserving_checks_type_and_scope),
        CASE(release_is_for_the_holder_with_the_same_type),
        CASE(a_release_that_gives_nobody_access_is_not_told),
        CASE(a_holder_that_unregisters_ends_the_reservation),
        CASE(all_registrants_keep_the_reservation_until_the_last),
        CASE(clear_removes_all_and_tells_the_others),
        CASE(preempting_the_holder_takes_the_reservation),
        CASE(preempting_with_the_same_type_tells_only_who_lost),
        CASE(preempting_registrants_leaves_the_reservation),
        CASE(preempting_the_own_reservation_changes_its_type),
        CASE(preempting_all_registrants_takes_the_key_zero),
        CASE(the_parameter_list_is_24_bytes),
        CASE(named_initiators_are_registered_too),
        CASE(a_bad_transport_id_registers_nobody),
        CASE(garbled_transport_ids_are_refused),
        CASE(the_reservation_moves_to_another_nexus),
        CASE(a_move_can_unregister_the_mover),
        CASE(keys_and_reservation_are_reported),
        CASE(all_registrants_hold_without_a_key),
        CASE(full_status_names_the_nexuses),
        CASE(capabilities_name_the_types),
        CASE(the_longest_answer_fits),
        CASE(reserve_keeps_others_out),
        CASE(reserve_ends_with_its_nexus_or_a_reset),
        CASE(reserve_and_persistent_reservations_exclude_each_other),
        CASE(holders_and_registrants_may_reserve_without_effect),
        CASE(third_parties_are_refused),
        CASE(each_command_conflicts_as_the_standard_says),
        CASE(starting_is_allowed_and_stopping_is_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
