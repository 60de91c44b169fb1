// SPDX-License-Identifier: BSD-3-Clause
//
// A client in a loop that is not its own, for the tests of the IO core.
#ifndef TESTS_VOLUME_FOREIGN_H
#define TESTS_VOLUME_FOREIGN_H

#include "bench.h"

struct opened {
    struct bench *bench;
    int calls;
    int result;
    struct cg_volume *volume;
    char error[256];
};

static inline void on_opened(void *user, int result, struct cg_volume *volume, const char *error) {
    struct opened *opened = user;
    opened->calls++;
    opened->result = result;
    opened->volume = volume;
    snprintf(opened->error, sizeof(opened->error), "%s", error);
}

static inline void on_closed(void *user) {
    (*(int *)user)++;
}

static inline struct bench *foreign_start(struct bench *bench) {
    fake_start(&bench->fake);
    start_client(bench, CG_CLIENT_FOREIGN_LOOP);
    return bench;
}

// Turns the loop as a foreign one does: poll, then progress, which must not wait for anything.
static inline void turn(struct bench *bench) {
    struct pollfd ready = {.fd = cg_client_fd(bench->client), .events = POLLIN};
    if (poll(&ready, 1, 20) > 0) {
        uint64_t start = cg_now_ns();
        assert_true(cg_client_progress(bench->client) >= 0);
        assert_in_range(cg_now_ns() - start, 0, 200 * CG_NS_PER_MS);
    }
}

#define TURN_UNTIL(bench, condition)                                                               \
    do {                                                                                           \
        uint64_t give_up = cg_now_ns() + 10 * CG_NS_PER_S;                                         \
        while (!(condition)) {                                                                     \
            assert_true(cg_now_ns() < give_up);                                                    \
            turn(bench);                                                                           \
        }                                                                                          \
    } while (0)

static inline int start_open(struct bench *bench, const char *path, struct opened *opened) {
    struct cg_volume_options options = {
        .struct_size = sizeof(options), .path = path, .open_timeout_ms = 1500};
    *opened = (struct opened){.bench = bench};
    return cg_volume_open_start(bench->client, &options, on_opened, opened);
}

static inline void open_in_loop(struct bench *bench) {
    struct opened opened;
    assert_int_equal(start_open(bench, "/vol1", &opened), 0);
    assert_int_equal(opened.calls, 0); // never inside the call
    TURN_UNTIL(bench, opened.calls > 0);
    assert_int_equal(opened.result, 0);
    assert_string_equal(opened.error, "");
    bench->volume = opened.volume;
}

static inline void end(struct bench *bench) {
    cg_client_destroy(bench->client);
    unsigned violations = bench->fake.violations;
    fake_stop(&bench->fake);
    free(bench);
    assert_int_equal(violations, 0);
}

// ---- Events

struct told {
    int counts[4];
    int order[32];
    int count;
    int *close_on_fenced; // counts when closed
};

static inline void on_event(void *user, struct cg_volume *volume, enum cg_event event) {
    struct told *told = user;
    told->counts[event]++;
    told->order[told->count++] = event;
    if (event == CG_EVENT_FENCED && told->close_on_fenced != NULL) {
        assert_int_equal(cg_volume_close_start(volume, on_closed, told->close_on_fenced), 0);
    }
}

static inline void open_with_events(struct bench *bench, struct told *told) {
    struct opened opened = {.bench = bench};
    struct cg_volume_options options = {
        .struct_size = sizeof(options), .path = "/vol1", .on_event = on_event, .event_user = told};
    assert_int_equal(cg_volume_open_start(bench->client, &options, on_opened, &opened), 0);
    TURN_UNTIL(bench, opened.calls > 0);
    assert_int_equal(opened.result, 0);
    bench->volume = opened.volume;
}

static inline void turn_for(struct bench *bench, uint64_t ms) {
    uint64_t until = cg_now_ns() + ms * CG_NS_PER_MS;
    while (cg_now_ns() < until) {
        turn(bench);
    }
}

#endif
