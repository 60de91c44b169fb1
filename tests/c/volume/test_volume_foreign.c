// SPDX-License-Identifier: BSD-3-Clause
//
// A client in a loop that is not its own: opening and closing without blocking it.
#include "foreign.h"
#include "volume/volume.h"

// ---- Opening

static void a_volume_is_opened_and_closed_without_blocking_the_loop(void **state) {
    (void)state;
    struct bench *bench = foreign_start(bench_new(true));
    open_in_loop(bench);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    int closed = 0;
    assert_int_equal(cg_volume_close_start(bench->volume, on_closed, &closed), 0);
    assert_int_equal(closed, 0);
    TURN_UNTIL(bench, closed > 0);
    assert_int_equal(closed, 1);
    assert_int_equal(bench->fake.closes, 1);
    end(bench);
}

static void many_openings_at_once_end_each_on_their_own(void **state) {
    (void)state;
    struct bench *bench = foreign_start(bench_new(true));
    struct opened opened[8];
    for (int i = 0; i < 8; i++) {
        assert_int_equal(start_open(bench, "/vol1", &opened[i]), 0);
    }
    int ended = 0;
    while (ended < 8) {
        turn(bench);
        ended = 0;
        for (int i = 0; i < 8; i++) {
            ended += opened[i].calls;
        }
    }
    int open = 0;
    for (int i = 0; i < 8; i++) {
        assert_int_equal(opened[i].calls, 1);
        open += opened[i].result == 0;
    }
    assert_in_range(open, 1, 8); // a later one may have fenced an earlier one while it opened
    end(bench);                  // closes them
}

static enum fake_verdict drop_open(struct fake_seen *seen) {
    return is(seen, "OpenFile") ? FAKE_DROP : FAKE_SERVE;
}

static void an_opening_that_nobody_answers_ends_at_its_deadline_and_says_why(void **state) {
    (void)state;
    struct bench *bench = foreign_start(bench_new(true));
    set_hook(bench, drop_open);
    struct opened opened;
    uint64_t start = cg_now_ns();
    assert_int_equal(start_open(bench, "/vol1", &opened), 0);
    TURN_UNTIL(bench, opened.calls > 0);
    assert_in_range(cg_now_ns() - start, 1400 * CG_NS_PER_MS, 2500 * CG_NS_PER_MS);
    assert_int_equal(opened.result, -ETIMEDOUT);
    assert_null(opened.volume);
    assert_non_null(strstr(opened.error, "no metadata server answers"));
    set_hook(bench, NULL);
    open_in_loop(bench);
    end(bench);
}

static void options_that_make_no_sense_are_refused_at_once(void **state) {
    (void)state;
    struct bench *bench = foreign_start(bench_new(true));
    struct opened opened;
    assert_int_equal(start_open(bench, "", &opened), -EINVAL);
    turn(bench);
    assert_int_equal(opened.calls, 0);
    end(bench);
}

static void a_client_with_a_thread_refuses_what_is_for_foreign_loops(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench_start(bench, 0, 0);
    struct opened opened;
    int closed = 0;
    assert_int_equal(start_open(bench, "/vol1", &opened), -ENOTSUP);
    assert_int_equal(cg_volume_close_start(bench->volume, on_closed, &closed), -ENOTSUP);
    bench_end(bench);
}

// ---- Cancelling

static void a_cancelled_opening_ends_inside_the_call(void **state) {
    (void)state;
    struct bench *bench = foreign_start(bench_new(true));
    set_hook(bench, drop_open);
    struct opened opened;
    struct opened other;
    assert_int_equal(start_open(bench, "/vol1", &opened), 0);
    assert_int_equal(start_open(bench, "/vol1", &other), 0);
    turn(bench);
    cg_volume_open_cancel(bench->client, &opened);
    assert_int_equal(opened.calls, 1);
    assert_int_equal(opened.result, -ECANCELED);
    assert_null(opened.volume);
    cg_volume_open_cancel(bench->client, &opened); // harmless
    set_hook(bench, NULL);
    TURN_UNTIL(bench, other.calls > 0);
    assert_int_equal(other.result, 0);
    assert_int_equal(opened.calls, 1);
    end(bench);
}

static enum fake_verdict drop_epoch_update(struct fake_seen *seen) {
    return is(seen, "UpdateEpoch") ? FAKE_DROP : FAKE_SERVE;
}

static void an_opening_is_cancelled_while_chunkservers_are_told_the_epoch(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench->fake.peer_count = 3;
    foreign_start(bench);
    set_hook(bench, drop_epoch_update);
    struct opened opened;
    assert_int_equal(start_open(bench, "/vol1", &opened), 0);
    TURN_UNTIL(bench, fake_count(&bench->fake, "UpdateEpoch") == 3);
    cg_volume_open_cancel(bench->client, &opened);
    assert_int_equal(opened.result, -ECANCELED);
    for (int i = 0; i < 5; i++) {
        turn(bench);
    }
    assert_int_equal(opened.calls, 1);
    end(bench);
}

static enum fake_verdict drop_source(struct fake_seen *seen) {
    return is(seen, "GetFileInfo") ? FAKE_DROP : FAKE_SERVE;
}

static void an_opening_is_cancelled_while_a_clones_source_is_looked_up(void **state) {
    (void)state;
    struct bench *bench = bench_new(false);
    bench->fake.clone_source = "/source";
    bench->fake.clone_length = 64 * MIB;
    bench->fake.file_status = 3; // kFileCloneMetaInstalled
    foreign_start(bench);
    fake_fill_source(&bench->fake, 0, 1);
    set_hook(bench, drop_source);
    struct opened opened;
    assert_int_equal(start_open(bench, "/vol1", &opened), 0);
    TURN_UNTIL(bench, fake_count(&bench->fake, "GetFileInfo") == 1);
    cg_volume_open_cancel(bench->client, &opened);
    assert_int_equal(opened.result, -ECANCELED);
    for (int i = 0; i < 5; i++) {
        turn(bench);
    }
    assert_int_equal(opened.calls, 1);
    end(bench);
}

static void open_again(void *user, int result, struct cg_volume *volume, const char *error) {
    struct opened *opened = user;
    struct opened *second = calloc(1, sizeof(*second));
    on_opened(user, result, volume, error);
    // A client that is being destroyed begins nothing new.
    assert_int_equal(start_open(opened->bench, "/vol1", second), -ESHUTDOWN);
    free(second);
}

static void destroying_the_client_ends_openings(void **state) {
    (void)state;
    struct bench *bench = foreign_start(bench_new(true));
    set_hook(bench, drop_open);
    struct opened opened = {.bench = bench};
    struct cg_volume_options options = {.struct_size = sizeof(options), .path = "/vol1"};
    assert_int_equal(cg_volume_open_start(bench->client, &options, open_again, &opened), 0);
    turn(bench);
    end(bench);
    assert_int_equal(opened.calls, 1);
    assert_int_equal(opened.result, -ECANCELED);
}

// ---- Closing

struct closing_io {
    struct cg_io io;
    struct cg_volume *volume;
    int done;
    int closed;
};

static void close_from_completion(struct cg_io *io) {
    struct closing_io *closing = io->user;
    closing->done++;
    assert_int_equal(cg_volume_close_start(closing->volume, on_closed, &closing->closed), 0);
    assert_int_equal(closing->closed, 0);
}

static enum fake_verdict drop_writes_and_hold_closes(struct fake_seen *seen) {
    seen->delay_ms = is(seen, "CloseFile") ? 300 : 0;
    return is(seen, "WriteChunk") ? FAKE_DROP : FAKE_SERVE;
}

static bool some_server_is_away(struct bench *bench) {
    CG_LIST_FOREACH (node, &bench->client->servers) {
        if (CG_CONTAINER_OF(node, struct vol_server, node)->away) {
            return true;
        }
    }
    return false;
}

// The server that leads its copysets goes away while the last answer for it is on the way.
static void a_volume_that_closes_looks_for_no_leader(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench->fake.peer_count = 3;
    foreign_start(bench);
    uint8_t data[4096] = {7};
    struct iovec iov = {data, sizeof(data)};
    atomic_int done = 0;
    struct cg_io io = {.op = CG_OP_WRITE, .length = sizeof(data), .iov = &iov, .iovcnt = 1};
    io.done = count_done;
    io.user = &done;
    open_in_loop(bench);
    struct cg_volume *closing = bench->volume;
    cg_submit(closing, &io);
    TURN_UNTIL(bench, atomic_load(&done) == 1);
    open_in_loop(bench); // the server is lost by a request of this one
    cg_submit(bench->volume, &io);
    TURN_UNTIL(bench, atomic_load(&done) == 2);
    set_hook(bench, drop_writes_and_hold_closes);
    cg_submit(bench->volume, &io);
    int closed = 0;
    assert_int_equal(cg_volume_close_start(closing, on_closed, &closed), 0);
    turn_for(bench, 50);
    fake_down(&bench->fake, fake_peer(&bench->fake, 0), true);
    TURN_UNTIL(bench, some_server_is_away(bench));
    assert_int_equal(closed, 0);
    usleep(400000); // that answer and whatever is due now are found together
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.hook = NULL;
    bench->fake.leader = 1;
    pthread_mutex_unlock(&bench->fake.lock);
    TURN_UNTIL(bench, closed == 1 && atomic_load(&done) == 3);
    closed = 0;
    assert_int_equal(cg_volume_close_start(bench->volume, on_closed, &closed), 0);
    TURN_UNTIL(bench, closed == 1);
    end(bench);
}

static void a_volume_may_be_closed_from_a_completion(void **state) {
    (void)state;
    struct bench *bench = foreign_start(bench_new(true));
    open_in_loop(bench);
    static uint8_t data[4096];
    struct iovec iov = {data, sizeof(data)};
    struct closing_io closing = {.io = {.op = CG_OP_WRITE,
                                        .length = sizeof(data),
                                        .iov = &iov,
                                        .iovcnt = 1,
                                        .done = close_from_completion},
                                 .volume = bench->volume};
    closing.io.user = &closing;
    cg_submit(bench->volume, &closing.io);
    TURN_UNTIL(bench, closing.closed > 0);
    assert_int_equal(closing.done, 1);
    assert_int_equal(closing.io.result, 0);
    end(bench);
}

static enum fake_verdict slow_write(struct fake_seen *seen) {
    seen->delay_ms = is(seen, "WriteChunk") ? 300 : 0;
    return FAKE_SERVE;
}

static void mark(struct cg_io *io) {
    *(int *)io->user = io->result == 0 ? 1 : io->result;
}

static void closing_waits_for_io_in_flight_and_refuses_more(void **state) {
    (void)state;
    struct bench *bench = foreign_start(bench_new(true));
    open_in_loop(bench);
    set_hook(bench, slow_write);
    static uint8_t data[4096];
    struct iovec iov = {data, sizeof(data)};
    int first_result = 0;
    int second_result = 0;
    int closed = 0;
    struct cg_io first = {.op = CG_OP_WRITE,
                          .length = sizeof(data),
                          .iov = &iov,
                          .iovcnt = 1,
                          .done = mark,
                          .user = &first_result};
    struct cg_io second = first;
    second.user = &second_result;
    cg_submit(bench->volume, &first);
    TURN_UNTIL(bench, fake_count(&bench->fake, "WriteChunk") == 1);
    assert_int_equal(cg_volume_close_start(bench->volume, on_closed, &closed), 0);
    cg_submit(bench->volume, &second);
    TURN_UNTIL(bench, second_result != 0);
    assert_int_equal(second_result, -ESHUTDOWN);
    assert_int_equal(closed, 0);
    TURN_UNTIL(bench, closed > 0);
    assert_int_equal(first_result, 1);
    end(bench);
}

static void destroying_the_client_waits_for_closings(void **state) {
    (void)state;
    struct bench *bench = foreign_start(bench_new(true));
    open_in_loop(bench);
    open_in_loop(bench);
    int closed = 0;
    assert_int_equal(cg_volume_close_start(bench->volume, on_closed, &closed), 0);
    end(bench);
    assert_int_equal(closed, 1);
}

static enum fake_verdict drop_close(struct fake_seen *seen) {
    return is(seen, "CloseFile") ? FAKE_DROP : FAKE_SERVE;
}

static void closing_ends_though_no_metadata_server_answers(void **state) {
    (void)state;
    struct bench *bench = foreign_start(bench_new(true));
    open_in_loop(bench);
    set_hook(bench, drop_close);
    int closed = 0;
    assert_int_equal(cg_volume_close_start(bench->volume, on_closed, &closed), 0);
    uint64_t start = cg_now_ns();
    TURN_UNTIL(bench, closed > 0);
    assert_in_range(cg_now_ns() - start, CG_NS_PER_S, 4 * CG_NS_PER_S);
    end(bench);
}

// ---- Events

static void a_resize_is_told_once(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench->fake.lease_us = 400000;
    struct told told = {0};
    open_with_events(foreign_start(bench), &told);
    turn_for(bench, 300);
    assert_int_equal(told.count, 0);
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.size = 128 * MIB;
    pthread_mutex_unlock(&bench->fake.lock);
    TURN_UNTIL(bench, told.count > 0);
    struct cg_volume_info info;
    cg_volume_info(bench->volume, &info);
    assert_int_equal(info.size, 128 * MIB);
    turn_for(bench, 300);
    assert_int_equal(told.count, 1);
    assert_int_equal(told.order[0], CG_EVENT_RESIZED);
    end(bench);
}

static void the_end_of_the_lease_is_told_in_time_and_its_return_too(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench->fake.lease_us = 800000;
    struct told told = {0};
    open_with_events(foreign_start(bench), &told);
    turn_for(bench, 1000);
    assert_int_equal(told.count, 0); // renewed all the while
    fake_down(&bench->fake, 0, true);
    uint64_t begun = cg_now_ns();
    TURN_UNTIL(bench, told.count > 0);
    assert_in_range(cg_now_ns() - begun, 300 * CG_NS_PER_MS, 800 * CG_NS_PER_MS);
    assert_int_equal(told.order[0], CG_EVENT_PAUSED);
    turn_for(bench, 500);
    assert_int_equal(told.count, 1);
    fake_down(&bench->fake, 0, false);
    TURN_UNTIL(bench, told.count > 1);
    assert_int_equal(told.order[1], CG_EVENT_RESUMED);
    uint8_t data[4096];
    assert_int_equal(cg_pread(bench->volume, data, sizeof(data), 0), 0);
    turn_for(bench, 800);
    assert_int_equal(told.count, 2);
    end(bench);
}

static void fencing_is_told_and_nothing_after_it(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench->fake.lease_us = 400000;
    struct told told = {0};
    open_with_events(foreign_start(bench), &told);
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.epoch++;
    pthread_mutex_unlock(&bench->fake.lock);
    TURN_UNTIL(bench, told.count > 0);
    turn_for(bench, 1000); // the lease runs out
    assert_int_equal(told.count, 1);
    assert_int_equal(told.order[0], CG_EVENT_FENCED);
    int closed = 0;
    assert_int_equal(cg_volume_close_start(bench->volume, on_closed, &closed), 0);
    TURN_UNTIL(bench, closed > 0);
    // A handler may close the volume.
    told = (struct told){.close_on_fenced = &closed};
    open_with_events(bench, &told);
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.epoch++;
    bench->fake.size = 256 * MIB;
    pthread_mutex_unlock(&bench->fake.lock);
    TURN_UNTIL(bench, closed > 1);
    assert_int_equal(told.counts[CG_EVENT_FENCED], 1);
    end(bench);
}

static void nothing_is_told_of_a_volume_that_is_being_closed(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench->fake.lease_us = 400000;
    struct told told = {0};
    open_with_events(foreign_start(bench), &told);
    set_hook(bench, drop_close);
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.size = 128 * MIB;
    pthread_mutex_unlock(&bench->fake.lock);
    int closed = 0;
    assert_int_equal(cg_volume_close_start(bench->volume, on_closed, &closed), 0);
    TURN_UNTIL(bench, closed > 0);
    assert_int_equal(told.count, 0);
    end(bench);
}

static void options_of_the_first_version_are_taken(void **state) {
    (void)state;
    struct bench *bench = foreign_start(bench_new(true));
    struct told told = {0};
    struct cg_volume_options options = {.struct_size =
                                            (uint32_t)offsetof(struct cg_volume_options, on_event),
                                        .path = "/vol1",
                                        .on_event = on_event, // behind the end: not looked at
                                        .event_user = &told};
    assert_int_equal(cg_volume_open(bench->client, &options, &bench->volume, NULL, 0), 0);
    assert_null(bench->volume->on_event);
    options.struct_size--;
    struct cg_volume *volume;
    assert_int_equal(cg_volume_open(bench->client, &options, &volume, NULL, 0), -EINVAL);
    options.struct_size = sizeof(options) + 8;
    assert_int_equal(cg_volume_open(bench->client, &options, &volume, NULL, 0), -EINVAL);
    end(bench);
    bench = bench_new(true);
    bench_start(bench, 0, 0);
    options.struct_size = sizeof(options); // a client with a thread has no loop to tell it on
    assert_int_equal(cg_volume_open(bench->client, &options, &volume, NULL, 0), -EINVAL);
    bench_end(bench);
}

int main(int argc, char **argv) {
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_volume_is_opened_and_closed_without_blocking_the_loop),
        cmocka_unit_test(many_openings_at_once_end_each_on_their_own),
        cmocka_unit_test(an_opening_that_nobody_answers_ends_at_its_deadline_and_says_why),
        cmocka_unit_test(options_that_make_no_sense_are_refused_at_once),
        cmocka_unit_test(a_client_with_a_thread_refuses_what_is_for_foreign_loops),
        cmocka_unit_test(a_cancelled_opening_ends_inside_the_call),
        cmocka_unit_test(an_opening_is_cancelled_while_chunkservers_are_told_the_epoch),
        cmocka_unit_test(an_opening_is_cancelled_while_a_clones_source_is_looked_up),
        cmocka_unit_test(destroying_the_client_ends_openings),
        cmocka_unit_test(a_volume_that_closes_looks_for_no_leader),
        cmocka_unit_test(a_volume_may_be_closed_from_a_completion),
        cmocka_unit_test(closing_waits_for_io_in_flight_and_refuses_more),
        cmocka_unit_test(destroying_the_client_waits_for_closings),
        cmocka_unit_test(closing_ends_though_no_metadata_server_answers),
        cmocka_unit_test(a_resize_is_told_once),
        cmocka_unit_test(the_end_of_the_lease_is_told_in_time_and_its_return_too),
        cmocka_unit_test(fencing_is_told_and_nothing_after_it),
        cmocka_unit_test(nothing_is_told_of_a_volume_that_is_being_closed),
        cmocka_unit_test(options_of_the_first_version_are_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
