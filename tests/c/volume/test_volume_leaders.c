// SPDX-License-Identifier: BSD-3-Clause
//
// Copysets whose leader moves, dies, stops or is not known, under load.
#include "bench.h"

#define DEPTH 32U

// Writes on the way from now on until load_end, DEPTH at a time, to blocks of both copysets.
struct load_io {
    struct cg_io io;
    struct iovec iov;
    struct load *load;
    uint64_t begun_ns;
    uint8_t data[4096];
};

struct load {
    struct bench *bench;
    struct load_io ios[DEPTH];
    atomic_bool ending;
    atomic_uint running;
    atomic_uint done;
    _Atomic uint64_t longest_ns; // until one was done
    atomic_int error;
};

static void write_one(struct load_io *one) {
    one->begun_ns = cg_now_ns();
    cg_submit(one->load->bench->volume, &one->io);
}

static void one_done(struct cg_io *io) {
    struct load_io *one = io->user;
    struct load *load = one->load;
    uint64_t took = cg_now_ns() - one->begun_ns;
    if (took > atomic_load(&load->longest_ns)) {
        atomic_store(&load->longest_ns, took);
    }
    if (io->result != 0) {
        atomic_store(&load->error, io->result);
    }
    atomic_fetch_add(&load->done, 1);
    if (atomic_load(&load->ending) || io->result != 0) {
        atomic_fetch_sub(&load->running, 1);
    } else {
        usleep(1000); // the fake cluster remembers a bounded number of requests
        write_one(one);
    }
}

static void load_begin(struct load *load, struct bench *bench) {
    memset(load, 0, sizeof(*load));
    load->bench = bench;
    atomic_store(&load->running, DEPTH);
    for (unsigned i = 0; i < DEPTH; i++) {
        struct load_io *one = &load->ios[i];
        one->load = load;
        memset(one->data, (int)i + 1, sizeof(one->data));
        one->iov = (struct iovec){one->data, sizeof(one->data)};
        one->io = (struct cg_io){.op = CG_OP_WRITE,
                                 .offset = (uint64_t)i * (MIB / 4),
                                 .length = sizeof(one->data),
                                 .iov = &one->iov,
                                 .iovcnt = 1,
                                 .done = one_done,
                                 .user = one};
        write_one(one);
    }
}

// Waits until `count` more are done.
static void load_wait(struct load *load, unsigned count) {
    unsigned until = atomic_load(&load->done) + count;
    while (atomic_load(&load->error) == 0 && (int)(until - atomic_load(&load->done)) > 0) {
        usleep(1000);
    }
}

// Ends it; the longest time that a write took, in ms.
static unsigned load_end(struct load *load) {
    atomic_store(&load->ending, true);
    while (atomic_load(&load->running) > 0) {
        usleep(1000);
    }
    assert_int_equal(atomic_load(&load->error), 0);
    for (unsigned i = 0; i < DEPTH; i++) {
        assert_int_equal(fake_byte(&load->bench->fake, load->ios[i].io.offset), i + 1);
    }
    return (unsigned)(atomic_load(&load->longest_ns) / CG_NS_PER_MS);
}

static struct bench *three(void) {
    struct bench *bench = bench_new(true);
    bench->fake.peer_count = 3;
    bench->fake.hints = true;
    return bench;
}

// Three chunkservers of which the first leads, with writes going on.
static struct load *under_load(void) {
    struct load *load = malloc(sizeof(*load));
    struct bench *bench = three();
    bench_start(bench, 0, 0);
    load_begin(load, bench);
    load_wait(load, 2 * DEPTH);
    return load;
}

static void name(struct bench *bench, int by_0, int by_1, int by_2) {
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.named[0] = by_0;
    bench->fake.named[1] = by_1;
    bench->fake.named[2] = by_2;
    pthread_mutex_unlock(&bench->fake.lock);
}

static void lead(struct bench *bench, int leader) {
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.leader = leader;
    pthread_mutex_unlock(&bench->fake.lock);
}

static unsigned count_at(struct bench *bench, const char *method, int peer) {
    unsigned count = 0;
    pthread_mutex_lock(&bench->fake.lock);
    for (unsigned i = 0; i < bench->fake.log_count; i++) {
        const struct fake_log *entry = &bench->fake.log[i];
        count +=
            entry->server == fake_peer(&bench->fake, peer) && strcmp(entry->method, method) == 0;
    }
    pthread_mutex_unlock(&bench->fake.lock);
    return count;
}

// ---- Redirects

static void a_redirect_that_names_the_leader_needs_no_question(void **state) {
    (void)state;
    struct bench *bench = three();
    bench_start(bench, 0, 0);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    usleep(20000); // the first look for the leader has reached everybody
    lead(bench, 2);
    unsigned asked = fake_count(&bench->fake, "GetLeader");
    uint64_t start = cg_now_ns();
    assert_int_equal(cg_pread(bench->volume, data, sizeof(data), 0), 0);
    assert_in_range(cg_now_ns() - start, 0, 60 * CG_NS_PER_MS);
    assert_int_equal(STAT(bench, redirects), 1);
    assert_int_equal(fake_count(&bench->fake, "GetLeader"), asked);
    bench_end(bench);
}

static void a_redirect_to_a_stranger_is_checked(void **state) {
    (void)state;
    struct bench *bench = three();
    bench_start(bench, 0, 0);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    usleep(20000);
    lead(bench, 2);
    name(bench, FAKE_PEERS_MAX + 1, 0, 0);
    unsigned peers = fake_count(&bench->fake, "GetChunkServerListInCopySets");
    assert_int_equal(cg_pread(bench->volume, data, sizeof(data), 0), 0);
    // It may have moved: the metadata server is asked, and the other peers are.
    assert_int_equal(fake_count(&bench->fake, "GetChunkServerListInCopySets"), peers + 1);
    bench_end(bench);
}

static void peers_that_send_each_others_requests_away_are_asked_with_pauses(void **state) {
    (void)state;
    struct bench *bench = three();
    bench_start(bench, 0, 0);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    name(bench, 2, 1, 1);
    lead(bench, 2); // nobody says so
    struct cg_io io = {.op = CG_OP_READ, .length = sizeof(data), .iovcnt = 1};
    struct iovec iov = {data, sizeof(data)};
    atomic_int done = 0;
    io.iov = &iov;
    io.user = &done;
    io.done = count_done;
    cg_submit(bench->volume, &io);
    usleep(500000);
    assert_int_equal(atomic_load(&done), 0);
    assert_in_range(fake_count(&bench->fake, "ReadChunk"), 5, 25);
    name(bench, 3, 3, 3);
    while (atomic_load(&done) == 0) {
        usleep(1000);
    }
    assert_int_equal(io.result, 0);
    assert_int_equal(data[0], 7);
    bench_end(bench);
}

static void a_leader_that_does_not_know_its_successor_is_not_believed_by_hearsay(void **state) {
    (void)state;
    struct bench *bench = three();
    bench_start(bench, 0, 0);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    name(bench, -1, 1, 1);
    lead(bench, 2);
    struct load *load = malloc(sizeof(*load));
    load_begin(load, bench);
    usleep(300000);
    // Each was sent away once; that the others still name the old one sends nobody back.
    assert_in_range(STAT(bench, redirects), 1, DEPTH + 2);
    name(bench, 0, 0, 0);
    load_wait(load, 2 * DEPTH);
    assert_in_range(load_end(load), 250, 600);
    free(load);
    bench_end(bench);
}

// ---- A leader that is gone

static void the_death_of_a_leader_under_load_is_one_pause(void **state) {
    (void)state;
    struct load *load = under_load();
    struct bench *bench = load->bench;
    name(bench, 1, 1, 1); // nobody has noticed yet
    unsigned accepted = atomic_load(&bench->fake.servers[fake_peer(&bench->fake, 0)].accepted);
    fake_down(&bench->fake, fake_peer(&bench->fake, 0), true);
    usleep(600000);
    // Neither is the dead one asked again and again, nor are the others.
    assert_in_range(
        atomic_load(&bench->fake.servers[fake_peer(&bench->fake, 0)].accepted) - accepted, 1, 10);
    assert_in_range(count_at(bench, "GetLeader", 1), 5, 60);
    lead(bench, 1);
    name(bench, 0, 0, 0);
    load_wait(load, 2 * DEPTH);
    assert_in_range(load_end(load), 590, 800);
    assert_int_equal(count_at(bench, "WriteChunk", 2), 0);
    free(load);
    bench_end(bench);
}

static void a_stopped_leader_is_one_pause(void **state) {
    (void)state;
    struct load *load = under_load();
    struct bench *bench = load->bench;
    name(bench, 1, 1, 1);
    fake_stop_server(&bench->fake, fake_peer(&bench->fake, 0), true);
    usleep(600000);
    lead(bench, 1);
    name(bench, 0, 0, 0);
    load_wait(load, 2 * DEPTH);
    // It goes on, and does what it was sent: nobody waits for that, and a leader would refuse it.
    fake_stop_server(&bench->fake, fake_peer(&bench->fake, 0), false);
    load_wait(load, 2 * DEPTH);
    assert_in_range(load_end(load), 590, 900);
    assert_int_equal(STAT(bench, timeouts), 0);
    free(load);
    bench_end(bench);
}

static void the_other_copysets_of_a_stopped_leader_do_not_wait_for_it(void **state) {
    (void)state;
    struct bench *bench = three();
    bench_start(bench, 0, 0);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), MIB), 0); // the second copyset
    fake_stop_server(&bench->fake, fake_peer(&bench->fake, 0), true);
    lead(bench, 1);
    uint64_t start = cg_now_ns();
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    assert_in_range(cg_now_ns() - start, 390 * CG_NS_PER_MS, 700 * CG_NS_PER_MS);
    start = cg_now_ns();
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), MIB), 0);
    assert_in_range(cg_now_ns() - start, 0, 100 * CG_NS_PER_MS);
    bench_end(bench);
}

static enum fake_verdict slow_write(struct fake_seen *seen) {
    static int left = 1;
    if (is(seen, "WriteChunk") && left-- > 0) {
        seen->delay_ms = 700;
    }
    return FAKE_SERVE;
}

static void a_slow_leader_is_asked_once(void **state) {
    (void)state;
    struct bench *bench = three();
    bench_start(bench, 0, 0);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    unsigned writes = fake_count(&bench->fake, "WriteChunk");
    set_hook(bench, slow_write);
    uint64_t start = cg_now_ns();
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    assert_in_range(cg_now_ns() - start, 700 * CG_NS_PER_MS, 900 * CG_NS_PER_MS);
    assert_int_equal(fake_count(&bench->fake, "WriteChunk"), writes + 1);
    bench_end(bench);
}

static enum fake_verdict broken_disk(struct fake_seen *seen) {
    if (seen->chunk != NULL && seen->server == fake_peer(seen->fake, 0)) {
        seen->status = curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_DISK_FAIL;
        return FAKE_ANSWER_STATUS;
    }
    return FAKE_SERVE;
}

static void a_leader_whose_disk_fails_is_one_pause(void **state) {
    (void)state;
    struct load *load = under_load();
    struct bench *bench = load->bench;
    name(bench, -1, 1, 1); // it knows, the others do not yet
    set_hook(bench, broken_disk);
    usleep(500000);
    lead(bench, 2);
    name(bench, -1, 0, 0);
    load_wait(load, 2 * DEPTH);
    assert_in_range(load_end(load), 490, 700);
    free(load);
    bench_end(bench);
}

static void leaders_that_change_all_the_time_cost_no_error(void **state) {
    (void)state;
    struct bench *bench = three();
    bench_start(bench, 0, 0);
    struct load *load = malloc(sizeof(*load));
    load_begin(load, bench);
    for (int i = 0; i < 30; i++) {
        int leader = (i * 7 + 1) % 3;
        lead(bench, leader);
        if (i % 5 == 4) { // one that leads dies and comes back as a follower
            fake_down(&bench->fake, fake_peer(&bench->fake, leader), true);
            lead(bench, (leader + 1) % 3);
            load_wait(load, DEPTH / 2);
            fake_down(&bench->fake, fake_peer(&bench->fake, leader), false);
        }
        load_wait(load, DEPTH / 2);
    }
    assert_in_range(load_end(load), 0, 1000);
    free(load);
    bench_end(bench);
}

static void without_any_peer_io_ends_at_its_deadline_and_goes_on_later(void **state) {
    (void)state;
    struct bench *bench = three();
    bench_start(bench, 0, 1500);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    for (int i = 0; i < 3; i++) {
        fake_down(&bench->fake, fake_peer(&bench->fake, i), true);
    }
    uint64_t start = cg_now_ns();
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), -ETIMEDOUT);
    assert_in_range(cg_now_ns() - start, 1490 * CG_NS_PER_MS, 1800 * CG_NS_PER_MS);
    for (int i = 0; i < 3; i++) {
        assert_in_range(atomic_load(&bench->fake.servers[fake_peer(&bench->fake, i)].accepted), 2,
                        12);
    }
    for (int i = 0; i < 3; i++) {
        fake_down(&bench->fake, fake_peer(&bench->fake, i), false);
    }
    start = cg_now_ns();
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    assert_in_range(cg_now_ns() - start, 0, 1000 * CG_NS_PER_MS);
    bench_end(bench);
}

int main(int argc, char **argv) {
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_redirect_that_names_the_leader_needs_no_question),
        cmocka_unit_test(a_redirect_to_a_stranger_is_checked),
        cmocka_unit_test(peers_that_send_each_others_requests_away_are_asked_with_pauses),
        cmocka_unit_test(a_leader_that_does_not_know_its_successor_is_not_believed_by_hearsay),
        cmocka_unit_test(the_death_of_a_leader_under_load_is_one_pause),
        cmocka_unit_test(a_stopped_leader_is_one_pause),
        cmocka_unit_test(the_other_copysets_of_a_stopped_leader_do_not_wait_for_it),
        cmocka_unit_test(a_slow_leader_is_asked_once),
        cmocka_unit_test(a_leader_whose_disk_fails_is_one_pause),
        cmocka_unit_test(leaders_that_change_all_the_time_cost_no_error),
        cmocka_unit_test(without_any_peer_io_ends_at_its_deadline_and_goes_on_later),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
