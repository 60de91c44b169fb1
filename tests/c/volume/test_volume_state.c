// SPDX-License-Identifier: BSD-3-Clause
//
// The shared state of a volume: changes, following, and what becomes of IO when a change may have
// passed us by.
#include "foreign.h"

#define STATE(field) (bench->fake.field)

struct waiting {
    struct cg_state_call call;
    char buffer[FAKE_STATE_MAX];
    int calls;
};

static void on_state(struct cg_state_call *call) {
    ((struct waiting *)call->user)->calls++;
}

static void submit(struct bench *bench, struct waiting *waiting, enum cg_state_op op,
                   uint64_t known) {
    waiting->calls = 0;
    waiting->call.op = op;
    waiting->call.revision_known = known;
    waiting->call.buffer = waiting->buffer;
    if (waiting->call.capacity == 0) {
        waiting->call.capacity = sizeof(waiting->buffer);
    }
    waiting->call.done = on_state;
    waiting->call.user = waiting;
    cg_state_submit(bench->volume, &waiting->call);
    assert_int_equal(waiting->calls, 0); // never inside the call
}

static int run(struct bench *bench, struct waiting *waiting, enum cg_state_op op, uint64_t known) {
    submit(bench, waiting, op, known);
    TURN_UNTIL(bench, waiting->calls > 0);
    assert_int_equal(waiting->calls, 1);
    return waiting->call.result;
}

static int set(struct bench *bench, struct waiting *waiting, uint64_t known, const char *text) {
    waiting->call.data = text;
    waiting->call.length = (uint32_t)strlen(text);
    return run(bench, waiting, CG_STATE_SET, known);
}

static void assert_told(const struct waiting *waiting, uint64_t revision, const char *text) {
    assert_int_equal(waiting->call.revision, revision);
    assert_int_equal(waiting->call.buffer_length, strlen(text));
    assert_memory_equal(waiting->buffer, text, strlen(text));
}

// Somebody else changes it.
static void change(struct bench *bench, const char *text) {
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.state_revision++;
    bench->fake.state_length = (uint32_t)strlen(text);
    memcpy(bench->fake.state, text, strlen(text));
    pthread_mutex_unlock(&bench->fake.lock);
}

static void set_flag(struct bench *bench, bool *flag, bool value) {
    pthread_mutex_lock(&bench->fake.lock);
    *flag = value;
    pthread_mutex_unlock(&bench->fake.lock);
}

static struct fake_log last_of(struct bench *bench, const char *method) {
    struct fake_log found = {.server = -1};
    pthread_mutex_lock(&bench->fake.lock);
    for (unsigned i = 0; i < bench->fake.log_count; i++) {
        if (strcmp(bench->fake.log[i].method, method) == 0) {
            found = bench->fake.log[i];
        }
    }
    pthread_mutex_unlock(&bench->fake.lock);
    assert_int_not_equal(found.server, -1);
    return found;
}

static struct bench *start(uint32_t lease_us) {
    struct bench *bench = bench_new(true);
    bench->fake.lease_us = lease_us;
    foreign_start(bench);
    open_in_loop(bench);
    return bench;
}

// ---- Changes

static void a_state_is_set_at_the_expected_revision_only(void **state) {
    (void)state;
    struct bench *bench = start(0);
    struct waiting waiting = {0};
    assert_int_equal(run(bench, &waiting, CG_STATE_GET, 0), 0);
    assert_told(&waiting, 0, "");
    assert_int_equal(set(bench, &waiting, 0, "first"), 0);
    assert_int_equal(waiting.call.revision, 1);
    assert_int_equal(set(bench, &waiting, 0, "second"), -EAGAIN);
    assert_told(&waiting, 1, "first");
    assert_int_equal(set(bench, &waiting, 1, "second"), 0);
    assert_int_equal(run(bench, &waiting, CG_STATE_GET, 0), 0);
    assert_told(&waiting, 2, "second");
    assert_false(last_of(bench, "GetState").state.follow);
    end(bench);
}

static enum fake_verdict lose_one_set(struct fake_seen *seen) {
    static int left = 1;
    return is(seen, "SetState") && left-- > 0 ? FAKE_DO_AND_CLOSE : FAKE_SERVE;
}

static void a_change_whose_answer_was_lost_is_not_made_twice(void **state) {
    (void)state;
    struct bench *bench = start(0);
    struct waiting waiting = {0};
    set_hook(bench, lose_one_set);
    assert_int_equal(set(bench, &waiting, 0, "once"), 0);
    assert_int_equal(waiting.call.revision, 1);
    assert_int_equal(fake_count(&bench->fake, "SetState"), 2);
    end(bench);
}

static void a_change_ends_when_everybody_knows_it(void **state) {
    (void)state;
    struct bench *bench = start(0);
    struct waiting waiting = {0};
    set_flag(bench, &STATE(others_behind), true);
    waiting.call.data = "x";
    waiting.call.length = 1;
    submit(bench, &waiting, CG_STATE_SET, 0);
    TURN_UNTIL(bench, fake_count(&bench->fake, "AwaitState") == 1);
    turn_for(bench, 1500);
    assert_int_equal(waiting.calls, 0);
    assert_int_equal(fake_count(&bench->fake, "AwaitState"), 1); // waiting is no failure
    set_flag(bench, &STATE(others_behind), false);
    TURN_UNTIL(bench, waiting.calls > 0);
    assert_int_equal(waiting.call.result, 0);
    assert_int_equal(waiting.call.revision, 1);
    end(bench);
}

static void a_change_that_not_everybody_knows_in_time_says_that_it_is_made(void **state) {
    (void)state;
    struct bench *bench = start(0);
    struct waiting waiting = {.call.timeout_ms = 600};
    set_flag(bench, &STATE(others_behind), true);
    uint64_t begun = cg_now_ns();
    assert_int_equal(set(bench, &waiting, 0, "x"), -ETIMEDOUT);
    assert_in_range(cg_now_ns() - begun, 590 * CG_NS_PER_MS, 1200 * CG_NS_PER_MS);
    assert_int_equal(waiting.call.revision, 1);
    waiting.call.flags = CG_STATE_NO_WAIT;
    assert_int_equal(set(bench, &waiting, 1, "y"), 0);
    assert_int_equal(waiting.call.revision, 2);
    end(bench);
}

static void a_claim_needs_the_epoch_of_now(void **state) {
    (void)state;
    struct bench *bench = start(0);
    struct waiting waiting = {0};
    struct cg_volume_info info;
    cg_volume_info(bench->volume, &info);
    waiting.call.epoch = info.epoch;
    assert_int_equal(set(bench, &waiting, 0, "mine"), 0);
    assert_int_equal(last_of(bench, "SetState").state.epoch, info.epoch);
    waiting.call.epoch = info.epoch + 1;
    assert_int_equal(set(bench, &waiting, 1, "mine"), -ESTALE);
    end(bench);
}

static void calls_end_at_their_deadline_when_nobody_answers(void **state) {
    (void)state;
    struct bench *bench = start(0);
    fake_down(&bench->fake, 0, true);
    struct waiting waiting = {.call.timeout_ms = 400};
    uint64_t begun = cg_now_ns();
    assert_int_equal(run(bench, &waiting, CG_STATE_GET, 0), -ETIMEDOUT);
    assert_int_equal(set(bench, &waiting, 0, "x"), -ETIMEDOUT);
    assert_int_equal(waiting.call.revision, 0);
    assert_int_equal(run(bench, &waiting, CG_STATE_FOLLOW, 0), -ETIMEDOUT);
    assert_in_range(cg_now_ns() - begun, 1190 * CG_NS_PER_MS, 2500 * CG_NS_PER_MS);
    fake_down(&bench->fake, 0, false);
    end(bench);
}

static void what_makes_no_sense_or_does_not_fit_is_refused(void **state) {
    (void)state;
    struct bench *bench = start(0);
    static struct waiting waiting;
    static char large[CG_STATE_MAX + 1];
    waiting.call.data = large;
    waiting.call.length = sizeof(large);
    assert_int_equal(run(bench, &waiting, CG_STATE_SET, 0), -EINVAL);
    waiting.call.length = 1;
    waiting.call.timeout_ms = UINT64_MAX;
    assert_int_equal(run(bench, &waiting, CG_STATE_SET, 0), -EINVAL);
    waiting.call.timeout_ms = 0;
    assert_int_equal(run(bench, &waiting, (enum cg_state_op)7, 0), -EINVAL);
    change(bench, "twelve bytes");
    waiting.call.capacity = 11;
    assert_int_equal(run(bench, &waiting, CG_STATE_GET, 0), -EMSGSIZE);
    assert_int_equal(waiting.call.revision, 1);
    waiting.call.capacity = 12;
    assert_int_equal(run(bench, &waiting, CG_STATE_GET, 0), 0);
    end(bench);
}

static void only_so_many_calls_are_taken_and_one_follow(void **state) {
    (void)state;
    struct bench *bench = start(0);
    static struct waiting waiting[18];
    set_flag(bench, &STATE(others_behind), true);
    submit(bench, &waiting[0], CG_STATE_FOLLOW, 0);
    submit(bench, &waiting[1], CG_STATE_FOLLOW, 0);
    for (int i = 2; i < 18; i++) {
        waiting[i].call.data = "x";
        waiting[i].call.length = 1;
        submit(bench, &waiting[i], CG_STATE_SET, (uint64_t)i - 2);
    }
    TURN_UNTIL(bench, waiting[1].calls > 0 && waiting[17].calls > 0);
    assert_int_equal(waiting[1].call.result, -EBUSY);
    assert_int_equal(waiting[17].call.result, -EBUSY);
    end(bench); // ends the others
    assert_int_equal(waiting[16].calls, 1);
    assert_int_equal(waiting[16].call.result, -ESHUTDOWN);
}

static void servers_without_the_service_and_curvebs_give_enotsup(void **state) {
    (void)state;
    struct bench *bench = start(0);
    set_flag(bench, &STATE(no_state_service), true);
    struct waiting waiting = {0};
    assert_int_equal(run(bench, &waiting, CG_STATE_GET, 0), -ENOTSUP);
    assert_int_equal(set(bench, &waiting, 0, "x"), -ENOTSUP);
    assert_int_equal(run(bench, &waiting, CG_STATE_FOLLOW, 0), -ENOTSUP);
    end(bench);
    bench = foreign_start(bench_new(false));
    open_in_loop(bench);
    assert_int_equal(run(bench, &waiting, CG_STATE_GET, 0), -ENOTSUP);
    assert_int_equal(fake_count(&bench->fake, "GetState"), 0);
    end(bench);
    bench = bench_new(true);
    bench_start(bench, 0, 0);
    submit(bench, &waiting, CG_STATE_GET, 0); // a client with a thread: no `done`
    assert_int_equal(waiting.call.result, -ENOTSUP);
    bench_end(bench);
    assert_int_equal(waiting.calls, 0);
}

// ---- Following

static void a_follower_learns_changes_and_the_lease_is_renewed_meanwhile(void **state) {
    (void)state;
    struct bench *bench = start(400000);
    struct waiting waiting = {0};
    assert_int_equal(run(bench, &waiting, CG_STATE_FOLLOW, CG_STATE_UNKNOWN), 0);
    assert_told(&waiting, 0, "");
    unsigned refreshes = fake_count(&bench->fake, "RefreshSession");
    submit(bench, &waiting, CG_STATE_FOLLOW, 0);
    turn_for(bench, 2500); // longer than a try of other calls may take
    assert_int_equal(waiting.calls, 0);
    assert_int_equal(fake_count(&bench->fake, "GetState"), 2);
    assert_in_range(fake_count(&bench->fake, "RefreshSession"), refreshes + 15, refreshes + 26);
    change(bench, "new");
    uint64_t begun = cg_now_ns();
    TURN_UNTIL(bench, waiting.calls > 0);
    assert_in_range(cg_now_ns() - begun, 0, 200 * CG_NS_PER_MS);
    assert_int_equal(waiting.call.result, 0);
    assert_told(&waiting, 1, "new");
    struct fake_log seen = last_of(bench, "GetState");
    struct cg_volume_info info;
    cg_volume_info(bench->volume, &info);
    assert_true(seen.state.follow);
    assert_int_equal(seen.state.epoch, info.epoch);
    end(bench);
}

static void a_follower_outlives_the_end_of_a_wait_and_a_server_that_goes_away(void **state) {
    (void)state;
    struct bench *bench = start(0);
    struct waiting waiting = {0};
    submit(bench, &waiting, CG_STATE_FOLLOW, 0);
    TURN_UNTIL(bench, fake_count(&bench->fake, "GetState") == 1);
    fake_down(&bench->fake, 0, true);
    turn_for(bench, 300);
    fake_down(&bench->fake, 0, false);
    TURN_UNTIL(bench, fake_count(&bench->fake, "GetState") == 2);
    uint64_t begun = cg_now_ns();
    TURN_UNTIL(bench, fake_count(&bench->fake, "GetState") == 3);
    assert_in_range(cg_now_ns() - begun, 4500 * CG_NS_PER_MS, 7000 * CG_NS_PER_MS);
    turn_for(bench, 300);
    assert_int_equal(waiting.calls, 0);
    change(bench, "x");
    TURN_UNTIL(bench, waiting.calls > 0);
    assert_told(&waiting, 1, "x");
    end(bench);
}

static enum fake_verdict answer_get_at_once(struct fake_seen *seen) {
    if (is(seen, "GetState")) {
        seen->status = 0; // of another message, but an answer without a revision
        return FAKE_ANSWER_STATUS;
    }
    return FAKE_SERVE;
}

static void early_answers_do_not_make_a_busy_loop(void **state) {
    (void)state;
    struct bench *bench = start(0);
    struct waiting waiting = {0};
    set_hook(bench, answer_get_at_once);
    submit(bench, &waiting, CG_STATE_FOLLOW, 0);
    turn_for(bench, 1000);
    assert_int_equal(waiting.calls, 0);
    assert_in_range(fake_count(&bench->fake, "GetState"), 2, 12);
    set_hook(bench, NULL);
    end(bench);
}

static void closing_and_fencing_end_the_following(void **state) {
    (void)state;
    struct bench *bench = start(400000);
    struct waiting waiting = {0};
    submit(bench, &waiting, CG_STATE_FOLLOW, 0);
    turn_for(bench, 50);
    int closed = 0;
    assert_int_equal(cg_volume_close_start(bench->volume, on_closed, &closed), 0);
    TURN_UNTIL(bench, closed > 0);
    assert_int_equal(waiting.calls, 1);
    assert_int_equal(waiting.call.result, -ESHUTDOWN);
    open_in_loop(bench);
    submit(bench, &waiting, CG_STATE_FOLLOW, 0);
    turn_for(bench, 50);
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.epoch++; // another client takes it over
    pthread_mutex_unlock(&bench->fake.lock);
    TURN_UNTIL(bench, waiting.calls > 0);
    assert_int_equal(waiting.call.result, -ESTALE);
    assert_int_equal(run(bench, &waiting, CG_STATE_GET, 0), -ESTALE);
    end(bench);
}

// ---- A session that was replaced

static enum fake_verdict drop_gets(struct fake_seen *seen) {
    return is(seen, "GetState") ? FAKE_DROP : FAKE_SERVE;
}

static enum fake_verdict drop_gets_and_writes(struct fake_seen *seen) {
    return is(seen, "GetState") || is(seen, "WriteChunk") ? FAKE_DROP : FAKE_SERVE;
}

struct one_io {
    struct cg_io io;
    struct iovec iov;
    uint8_t data[4096];
    int calls;
};

static void on_io(struct cg_io *io) {
    ((struct one_io *)io->user)->calls++;
}

static void submit_io(struct bench *bench, struct one_io *one, enum cg_op op) {
    one->calls = 0;
    one->iov = (struct iovec){one->data, sizeof(one->data)};
    one->io = (struct cg_io){.op = op,
                             .length = sizeof(one->data),
                             .iov = &one->iov,
                             .iovcnt = 1,
                             .done = on_io,
                             .user = one};
    cg_submit(bench->volume, &one->io);
}

static void io_of_before_ends_and_new_io_waits_until_the_state_is_known(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    struct told told = {0};
    struct waiting waiting = {0};
    static struct one_io old;
    static struct one_io new;
    bench->fake.lease_us = 1000000;
    open_with_events(foreign_start(bench), &told);
    submit(bench, &waiting, CG_STATE_FOLLOW, 0);
    turn_for(bench, 50);
    set_hook(bench, drop_gets_and_writes);
    submit_io(bench, &old, CG_OP_WRITE); // it will be tried again after a second
    turn_for(bench, 50);
    set_flag(bench, &STATE(session_gone), true);
    TURN_UNTIL(bench, fake_count(&bench->fake, "OpenFile") == 2);
    turn_for(bench, 30);
    set_hook(bench, drop_gets);
    submit_io(bench, &new, CG_OP_WRITE);
    TURN_UNTIL(bench, old.calls > 0);
    assert_int_equal(old.io.result, -EAGAIN);
    turn_for(bench, 100);
    assert_int_equal(new.calls, 0);
    assert_int_equal(waiting.calls, 0);
    assert_int_equal(last_of(bench, "GetState").state.wait_ms, 0); // IO waits for it
    set_hook(bench, NULL);
    TURN_UNTIL(bench, new.calls > 0);
    assert_int_equal(new.io.result, 0);
    assert_int_equal(waiting.calls, 0); // nothing has changed
    assert_int_equal(told.count, 2);
    assert_int_equal(told.order[0], CG_EVENT_PAUSED);
    assert_int_equal(told.order[1], CG_EVENT_RESUMED);
    change(bench, "x");
    TURN_UNTIL(bench, waiting.calls > 0);
    assert_told(&waiting, 1, "x");
    end(bench);
}

struct seen_first {
    struct waiting waiting;
    const struct one_io *io;
    int io_calls_at_change;
};

static void on_change(struct cg_state_call *call) {
    struct seen_first *seen = call->user;
    seen->waiting.calls++;
    seen->io_calls_at_change = seen->io->calls;
}

static void a_missed_change_is_told_before_io_goes_on(void **state) {
    (void)state;
    struct bench *bench = start(400000);
    static struct one_io io;
    static struct seen_first seen;
    seen.io = &io;
    seen.waiting.call = (struct cg_state_call){.op = CG_STATE_FOLLOW,
                                               .buffer = seen.waiting.buffer,
                                               .capacity = sizeof(seen.waiting.buffer),
                                               .done = on_change,
                                               .user = &seen};
    cg_state_submit(bench->volume, &seen.waiting.call);
    turn_for(bench, 50);
    set_hook(bench, drop_gets);
    set_flag(bench, &STATE(session_gone), true);
    TURN_UNTIL(bench, fake_count(&bench->fake, "OpenFile") == 2);
    turn_for(bench, 30);
    submit_io(bench, &io, CG_OP_READ);
    turn_for(bench, 50);
    assert_int_equal(io.calls, 0);
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.state_revision = 7;
    bench->fake.hook = NULL;
    pthread_mutex_unlock(&bench->fake.lock);
    TURN_UNTIL(bench, io.calls > 0);
    assert_int_equal(io.io.result, 0);
    assert_int_equal(seen.waiting.calls, 1);
    assert_int_equal(seen.waiting.call.revision, 7);
    assert_int_equal(seen.io_calls_at_change, 0);
    end(bench);
}

static void who_does_not_follow_is_not_stopped_by_a_new_session(void **state) {
    (void)state;
    struct bench *bench = start(400000);
    static struct one_io io;
    struct waiting waiting = {0};
    assert_int_equal(run(bench, &waiting, CG_STATE_GET, 0), 0);
    set_flag(bench, &STATE(session_gone), true);
    TURN_UNTIL(bench, fake_count(&bench->fake, "OpenFile") == 2);
    submit_io(bench, &io, CG_OP_READ);
    TURN_UNTIL(bench, io.calls > 0);
    assert_int_equal(io.io.result, 0);
    end(bench);
}

static void a_call_that_meets_an_ended_session_opens_again(void **state) {
    (void)state;
    struct bench *bench = start(0); // no refresh for more than a second
    struct waiting waiting = {0};
    set_flag(bench, &STATE(session_gone), true);
    uint64_t begun = cg_now_ns();
    assert_int_equal(set(bench, &waiting, 0, "x"), 0);
    assert_in_range(cg_now_ns() - begun, 0, CG_NS_PER_S);
    assert_int_equal(fake_count(&bench->fake, "OpenFile"), 2);
    end(bench);
}

int main(int argc, char **argv) {
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_state_is_set_at_the_expected_revision_only),
        cmocka_unit_test(a_change_whose_answer_was_lost_is_not_made_twice),
        cmocka_unit_test(a_change_ends_when_everybody_knows_it),
        cmocka_unit_test(a_change_that_not_everybody_knows_in_time_says_that_it_is_made),
        cmocka_unit_test(a_claim_needs_the_epoch_of_now),
        cmocka_unit_test(calls_end_at_their_deadline_when_nobody_answers),
        cmocka_unit_test(what_makes_no_sense_or_does_not_fit_is_refused),
        cmocka_unit_test(only_so_many_calls_are_taken_and_one_follow),
        cmocka_unit_test(servers_without_the_service_and_curvebs_give_enotsup),
        cmocka_unit_test(a_follower_learns_changes_and_the_lease_is_renewed_meanwhile),
        cmocka_unit_test(a_follower_outlives_the_end_of_a_wait_and_a_server_that_goes_away),
        cmocka_unit_test(early_answers_do_not_make_a_busy_loop),
        cmocka_unit_test(closing_and_fencing_end_the_following),
        cmocka_unit_test(io_of_before_ends_and_new_io_waits_until_the_state_is_known),
        cmocka_unit_test(a_missed_change_is_told_before_io_goes_on),
        cmocka_unit_test(who_does_not_follow_is_not_stopped_by_a_new_session),
        cmocka_unit_test(a_call_that_meets_an_ended_session_opens_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
