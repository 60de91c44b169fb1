// SPDX-License-Identifier: GPL-2.0-only
//
// Gateways that share a volume's state: single stories, and random orders of everything.
#include <pb_encode.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fake_gateways.h"

// What the second half of a story begins with: two gateways, the first active.
static int two_gateways(void **unused) {
    (void)unused;
    fake_begin(1, true);
    fake_start(0, false);
    fake_settle();
    fake_start(1, true);
    fake_settle();
    return 0;
}

static int over(void **unused) {
    (void)unused;
    fake_end();
    return 0;
}

// Sends it and lets everything happen; the answer.
static unsigned finish(struct fake_command *command) {
    assert_non_null(command);
    fake_settle();
    assert_true(command->done);
    unsigned answer = command->status == SAM_CHECK_CONDITION ? command->code : command->status;
    fake_forget(command);
    return answer;
}

static void the_first_gateway_is_active_the_second_standby(void **unused) {
    (void)unused;
    assert_int_equal(fake_state(0)->role, ALUA_OPTIMIZED);
    assert_int_equal(fake_state(1)->role, ALUA_STANDBY);
    assert_string_equal(fake_kept()->active_gateway, "gw0");
    assert_int_equal(fake_kept()->groups_count, 2);
    assert_int_equal(finish(fake_io(0, 0, true)), SAM_GOOD);
    assert_int_equal(finish(fake_io(1, 0, true)), ASC_STANDBY);
}

static void nothing_runs_before_the_state_is_told(void **unused) {
    (void)unused;
    fake_start(2, false);
    struct fake_command *io = fake_io(2, 0, true);
    assert_true(io->done);
    assert_int_equal(io->code, ASC_BECOMING_READY);
    fake_forget(io);
    static const uint8_t inquiry[6] = {0x12};
    struct fake_command *command = fake_send(2, 0, inquiry, 6, NULL, 0);
    assert_false(command->done); // it was let through
    (void)finish(command);
}

static void a_registration_by_one_gateway_is_seen_by_the_other(void **unused) {
    (void)unused;
    assert_int_equal(finish(fake_reserve_out(0, 0, PR_REGISTER, 0, 0, 5)), SAM_GOOD);
    assert_int_equal(fake_state(1)->now->reservations.registrations_count, 1);
    // The same initiator by the other gateway's port is another nexus.
    assert_int_equal(finish(fake_reserve_out(1, 0, PR_REGISTER, 0, 5, 6)),
                     SAM_RESERVATION_CONFLICT);
    assert_int_equal(finish(fake_reserve_out(1, 0, PR_REGISTER, 0, 0, 6)), SAM_GOOD);
    assert_int_equal(fake_kept()->reservations.registrations_count, 2);
}

static void changes_by_both_at_once_are_both_kept(void **unused) {
    (void)unused;
    struct fake_command *one = fake_reserve_out(0, 0, PR_REGISTER, 0, 0, 5);
    struct fake_command *two = fake_reserve_out(1, 1, PR_REGISTER, 0, 0, 6);
    assert_int_equal(finish(one), SAM_GOOD);
    assert_int_equal(finish(two), SAM_GOOD);
    assert_int_equal(fake_kept()->reservations.generation, 2);
}

static void a_preempted_nexus_is_told_by_its_own_gateway(void **unused) {
    (void)unused;
    assert_int_equal(finish(fake_reserve_out(0, 0, PR_REGISTER, 0, 0, 5)), SAM_GOOD);
    assert_int_equal(finish(fake_reserve_out(0, 0, PR_RESERVE, 1, 5, 0)), SAM_GOOD);
    assert_int_equal(finish(fake_reserve_out(1, 1, PR_REGISTER, 0, 0, 6)), SAM_GOOD);
    unsigned before = fake_gateways[0].attentions[0];
    assert_int_equal(finish(fake_reserve_out(1, 1, PR_PREEMPT, 1, 6, 5)), SAM_GOOD);
    assert_int_equal(fake_gateways[0].attentions[0], before + 1);
    assert_int_equal(fake_gateways[0].last_attention[0], ASC_REGISTRATIONS_PREEMPTED);
    assert_int_equal(finish(fake_io(0, 0, true)), SAM_RESERVATION_CONFLICT);
}

// By gateway `from`; what is preempted writes by the first.
static void preempt_while_it_writes(int from) {
    assert_int_equal(finish(fake_reserve_out(0, 0, PR_REGISTER, 0, 0, 5)), SAM_GOOD);
    assert_int_equal(finish(fake_reserve_out(0, 0, PR_RESERVE, 1, 5, 0)), SAM_GOOD);
    assert_int_equal(finish(fake_reserve_out(from, 1, PR_REGISTER, 0, 0, 6)), SAM_GOOD);
    struct fake_command *io = fake_io(0, 0, true);
    assert_false(io->done);
    struct fake_command *preempt = fake_reserve_out(from, 1, PR_PREEMPT_AND_ABORT, 1, 6, 5);
    fake_settle_without_io();
    assert_false(preempt->done);
    assert_int_equal(finish(preempt), SAM_GOOD);
    assert_int_equal(finish(io), SAM_GOOD);
}

static void a_preemption_waits_for_io_of_the_preempted_here(void **unused) {
    (void)unused;
    preempt_while_it_writes(0);
}

static void a_preemption_waits_for_io_of_the_preempted_elsewhere(void **unused) {
    (void)unused;
    preempt_while_it_writes(1);
}

static void reservations_survive_a_restart(void **unused) {
    (void)unused;
    assert_int_equal(finish(fake_reserve_out(0, 0, PR_REGISTER, 0, 0, 5)), SAM_GOOD);
    assert_int_equal(finish(fake_reserve_out(0, 0, PR_RESERVE, 3, 5, 0)), SAM_GOOD);
    fake_stop(0);
    fake_start(0, true);
    fake_settle();
    // Its own, so it took it again by itself.
    assert_int_equal(fake_state(0)->role, ALUA_OPTIMIZED);
    assert_int_equal(finish(fake_io(0, 0, true)), SAM_GOOD);
    assert_int_equal(finish(fake_io(0, 1, false)), SAM_RESERVATION_CONFLICT);
}

static void a_standby_that_is_told_takes_over_and_the_other_steps_back(void **unused) {
    (void)unused;
    struct fake_command *late = fake_io(0, 0, true);
    assert_false(late->done);
    struct fake_command *take = fake_set_groups(1, 0);
    fake_settle_without_io();
    assert_true(take->done);
    assert_int_equal(finish(take), SAM_GOOD);
    assert_int_equal(finish(late), ASC_STANDBY);
    assert_int_equal(fake_state(0)->role, ALUA_STANDBY);
    assert_int_equal(fake_state(1)->role, ALUA_OPTIMIZED);
    assert_string_equal(fake_kept()->active_gateway, "gw1");
    assert_int_equal(fake_kept()->active_epoch, fake_epoch);
    // All of the first, and of the second all but who asked.
    assert_int_equal(fake_gateways[0].last_attention[0], ASC_ACCESS_STATE_CHANGED);
    assert_int_equal(fake_gateways[0].last_attention[1], ASC_ACCESS_STATE_CHANGED);
    assert_int_equal(fake_gateways[1].last_attention[0], 0);
    assert_int_equal(fake_gateways[1].last_attention[1], ASC_ACCESS_STATE_CHANGED);
    assert_int_equal(finish(fake_io(1, 0, true)), SAM_GOOD);
    assert_int_equal(finish(fake_io(0, 0, true)), ASC_STANDBY);
}

// The store takes a change of reservations from whoever has the volume open, and tells the owner
// before with its refusal that there is another: before its FOLLOW does.
static void a_change_that_meets_a_takeover_is_refused(void **unused) {
    (void)unused;
    unsigned refused = 0;
    for (unsigned i = 0; i < 50; i++) {
        int owner = fake_state(0)->role == ALUA_OPTIMIZED ? 0 : 1;
        struct fake_command *take = fake_set_groups(1 - owner, 0);
        struct fake_command *change = NULL;
        while (fake_step()) {
            if (change == NULL)
                change = fake_reserve_out(owner, 0, PR_REGISTER_AND_IGNORE, 0, 0, 5 + i);
        }
        assert_non_null(change);
        assert_true(take->done && change->done);
        assert_int_equal(fake_state(1 - owner)->role, ALUA_OPTIMIZED);
        assert_true(change->status == SAM_GOOD || change->code == ASC_STANDBY ||
                    change->code == ASC_BECOMING_READY);
        refused += change->status != SAM_GOOD;
        fake_forget(take);
        fake_forget(change);
    }
    assert_true(refused > 0);
}

static void a_takeover_that_takes_too_long_is_answered_in_time(void **unused) {
    (void)unused;
    fake_gateways[1].lun.options.timeout_s = 0;
    struct fake_command *take = fake_set_groups(1, 0);
    assert_false(take->done);
    lun_state_extension.progress(&fake_gateways[1].lun);
    assert_true(take->done);
    assert_int_equal(take->code, ASC_TRANSITION);
    fake_forget(take);
    // It goes on, and whoever repeats it finds it done.
    fake_settle();
    assert_int_equal(fake_state(1)->role, ALUA_OPTIMIZED);
    assert_int_equal(finish(fake_set_groups(1, 0)), SAM_GOOD);
}

static void a_fenced_gateway_that_restarts_does_not_take_the_volume_back(void **unused) {
    (void)unused;
    assert_int_equal(finish(fake_set_groups(1, 0)), SAM_GOOD);
    fake_stop(0);
    fake_start(0, true);
    fake_settle();
    assert_int_equal(fake_state(0)->role, ALUA_STANDBY);
    assert_int_equal(fake_state(1)->role, ALUA_OPTIMIZED);
    assert_int_equal(finish(fake_set_groups(0, 0)), SAM_GOOD);
    assert_int_equal(fake_state(0)->role, ALUA_OPTIMIZED);
}

static void reserve_ends_with_a_reset_and_is_kept_out_of_the_shared_state(void **unused) {
    (void)unused;
    static const uint8_t reserve[6] = {0x16};
    assert_int_equal(finish(fake_send(0, 0, reserve, 6, NULL, 0)), SAM_GOOD);
    assert_int_equal(fake_gateways[0].lu.reserve_id, 1);
    assert_int_equal(finish(fake_io(0, 1, false)), SAM_RESERVATION_CONFLICT);
    fake_gateways[0].lu.reserve_id = 0;
    assert_int_equal(finish(fake_io(0, 1, false)), SAM_GOOD);
    assert_false(fake_kept()->reservations.has_reserved_by);
}

static void release_gives_the_unit_back(void **unused) {
    (void)unused;
    static const uint8_t reserve[6] = {0x16};
    static const uint8_t release[6] = {0x17};
    assert_int_equal(finish(fake_send(0, 0, reserve, 6, NULL, 0)), SAM_GOOD);
    assert_int_equal(finish(fake_send(0, 1, reserve, 6, NULL, 0)), SAM_RESERVATION_CONFLICT);
    assert_int_equal(finish(fake_send(0, 1, release, 6, NULL, 0)), SAM_GOOD);
    assert_int_equal(finish(fake_io(0, 1, false)), SAM_RESERVATION_CONFLICT);
    assert_int_equal(finish(fake_send(0, 0, release, 6, NULL, 0)), SAM_GOOD);
    assert_int_equal(fake_gateways[0].lu.reserve_id, 0);
    assert_int_equal(finish(fake_send(0, 1, reserve, 6, NULL, 0)), SAM_GOOD);
}

static void without_shared_state_reservations_are_the_process_s(void **unused) {
    (void)unused;
    fake_end();
    fake_begin(1, false);
    fake_start(0, false);
    fake_settle();
    assert_int_equal(finish(fake_reserve_out(0, 0, PR_REGISTER, 0, 0, 5)), SAM_GOOD);
    assert_int_equal(finish(fake_reserve_out(0, 0, PR_RESERVE, 1, 5, 0)), SAM_GOOD);
    assert_int_equal(finish(fake_io(0, 1, true)), SAM_RESERVATION_CONFLICT);
    assert_int_equal(finish(fake_io(0, 0, true)), SAM_GOOD);
}

// --- Random orders

static void forget_done(void) {
    for (unsigned i = 0; i < COMMANDS; i++) {
        if (fake_commands[i].used && fake_commands[i].done)
            fake_forget(&fake_commands[i]);
    }
}

static void random_command(int gateway) {
    static const uint8_t types[] = {1, 3, 5, 6, 7, 8};
    static const uint8_t reserve[6] = {0x16};
    static const uint8_t release[6] = {0x17};
    int session = (int)fake_random(SESSIONS);
    switch (fake_random(12)) {
    case 0:
        (void)fake_set_groups(gateway, session);
        break;
    case 1:
        (void)fake_send(gateway, session, reserve, 6, NULL, 0);
        break;
    case 2:
        (void)fake_send(gateway, session, release, 6, NULL, 0);
        break;
    case 3:
        fake_gateways[gateway].lu.reserve_id = 0; // as a reset does
        break;
    case 4:
    case 5:
    case 6:
    case 7:
        (void)fake_io(gateway, session, fake_random(2) == 0);
        break;
    default:
        // Keys by session and gateway, so that most of them are right.
        (void)fake_reserve_out(
            gateway, session, (uint8_t)fake_random(7), types[fake_random(sizeof(types))],
            fake_random(3) == 0 ? 0 : 1U + (unsigned)session, 1U + fake_random(SESSIONS));
        break;
    }
}

static bool outstanding(int gateway) {
    for (unsigned i = 0; i < COMMANDS; i++) {
        if (fake_commands[i].used && !fake_commands[i].done && fake_commands[i].gateway == gateway)
            return true;
    }
    return false;
}

static size_t encoded(const lun_shared_state *state, uint8_t out[CG_STATE_MAX]) {
    pb_ostream_t stream = pb_ostream_from_buffer(out, CG_STATE_MAX);
    assert_true(pb_encode(&stream, copygate_iscsi_LunState_fields, state));
    return stream.bytes_written;
}

static void same_state(const lun_shared_state *one, const lun_shared_state *other) {
    static uint8_t a[CG_STATE_MAX];
    static uint8_t b[CG_STATE_MAX];
    size_t length = encoded(one, a);
    assert_int_equal(length, encoded(other, b));
    assert_memory_equal(a, b, length);
}

// When nothing happens any more all copies are the MDS's, and one gateway at most is active.
static void check_rest(void) {
    unsigned active = 0;
    for (int i = 0; i < GATEWAYS; i++) {
        assert_false(outstanding(i));
        if (!fake_runs(i))
            continue;
        const struct lun_state *state = fake_state(i);
        assert_true(state->known);
        assert_int_equal(state->revision, fake_revision);
        same_state(state->now, fake_kept());
        assert_true(state->role == ALUA_OPTIMIZED || state->role == ALUA_STANDBY);
        if (state->role == ALUA_OPTIMIZED) {
            active++;
            assert_int_equal(state->lun->info.epoch, fake_epoch);
            assert_string_equal(fake_kept()->active_gateway, fake_gateways[i].name);
            assert_int_equal(fake_kept()->active_epoch, fake_epoch);
        }
    }
    assert_true(active <= 1);
}

static void one_run(uint64_t seed, unsigned *taken) {
    fake_begin(seed, true);
    fake_start(0, fake_random(2) == 0);
    fake_start(1, true);
    for (unsigned i = 0; i < 300; i++) {
        int gateway = (int)fake_random(GATEWAYS);
        if (fake_random(3) != 0) {
            (void)fake_step();
        } else if (!fake_runs(gateway)) {
            fake_start(gateway, fake_random(3) != 0);
        } else if (fake_random(20) == 0 && !outstanding(gateway)) {
            fake_stop(gateway);
        } else {
            random_command(gateway);
        }
        forget_done();
        if (fake_random(60) == 0) {
            fake_settle();
            forget_done();
            check_rest();
        }
    }
    fake_settle();
    check_rest();
    forget_done();
    *taken += (unsigned)fake_epoch;
    fake_end();
}

static void gateways_agree_in_every_order(void **unused) {
    (void)unused;
    const char *only = getenv("SEED");
    unsigned taken = 0;
    if (only != NULL) {
        one_run(strtoull(only, NULL, 10), &taken);
        return;
    }
    for (uint64_t seed = 1; seed <= 1500; seed++) {
        // A failure names it: SEED=n runs it alone.
        fprintf(stderr, "\rseed %llu ", (unsigned long long)seed);
        one_run(seed, &taken);
    }
    fprintf(stderr, "\n");
    assert_true(taken > 3000); // takeovers did happen
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, two_gateways, over)

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(the_first_gateway_is_active_the_second_standby),
        CASE(nothing_runs_before_the_state_is_told),
        CASE(a_registration_by_one_gateway_is_seen_by_the_other),
        CASE(changes_by_both_at_once_are_both_kept),
        CASE(a_preempted_nexus_is_told_by_its_own_gateway),
        CASE(a_preemption_waits_for_io_of_the_preempted_here),
        CASE(a_preemption_waits_for_io_of_the_preempted_elsewhere),
        CASE(reservations_survive_a_restart),
        CASE(a_standby_that_is_told_takes_over_and_the_other_steps_back),
        CASE(a_change_that_meets_a_takeover_is_refused),
        CASE(a_takeover_that_takes_too_long_is_answered_in_time),
        CASE(a_fenced_gateway_that_restarts_does_not_take_the_volume_back),
        CASE(reserve_ends_with_a_reset_and_is_kept_out_of_the_shared_state),
        CASE(release_gives_the_unit_back),
        CASE(without_shared_state_reservations_are_the_process_s),
        cmocka_unit_test(gateways_agree_in_every_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
