// SPDX-License-Identifier: BSD-3-Clause
//
// A cluster that misbehaves: overload, lost connections, new leaders, fencing, the lease.
#include "bench.h"

// ---- Faults

static enum fake_verdict overload_twice(struct fake_seen *seen) {
    static int left = 2;
    if (is(seen, "WriteChunk") && left-- > 0) {
        seen->status = curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_OVERLOAD;
        return FAKE_ANSWER_STATUS;
    }
    return FAKE_SERVE;
}

static void overload_is_waited_out(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench_start(bench, 0, 0);
    set_hook(bench, overload_twice);
    uint8_t data[4096] = {1};
    uint64_t start = cg_now_ns();
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    uint64_t took = cg_now_ns() - start;
    assert_in_range(took, 260 * CG_NS_PER_MS, 1500 * CG_NS_PER_MS); // 100 + 200 +-10 %
    assert_int_equal(STAT(bench, overloads), 2);
    assert_int_equal(STAT(bench, retries), 2);
    bench_end(bench);
}

static enum fake_verdict lose_first_write(struct fake_seen *seen) {
    static int left = 1;
    return is(seen, "WriteChunk") && left-- > 0 ? FAKE_DO_AND_CLOSE : FAKE_SERVE;
}

static void a_lost_connection_repeats_the_same_write(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench_start(bench, 0, 0);
    set_hook(bench, lose_first_write);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    assert_int_equal(fake_count(&bench->fake, "WriteChunk"), 2);
    pthread_mutex_lock(&bench->fake.lock);
    const curve_chunkserver_ChunkRequest *seen[2];
    int found = 0;
    for (unsigned i = 0; i < bench->fake.log_count; i++) {
        if (strcmp(bench->fake.log[i].method, "WriteChunk") == 0) {
            seen[found++] = &bench->fake.log[i].request;
        }
    }
    assert_int_equal(seen[0]->clientId, seen[1]->clientId);
    assert_int_equal(seen[0]->sequence, seen[1]->sequence);
    assert_true(seen[1]->settledBelow <= seen[1]->sequence);
    assert_int_equal(bench->fake.duplicates, 1);
    pthread_mutex_unlock(&bench->fake.lock);
    bench_end(bench);
}

static enum fake_verdict drop_one_read(struct fake_seen *seen) {
    static int left = 1;
    return is(seen, "ReadChunk") && left-- > 0 ? FAKE_DROP : FAKE_SERVE;
}

static void an_unanswered_request_is_sent_again(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench_start(bench, 0, 0);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    set_hook(bench, drop_one_read);
    assert_int_equal(cg_pread(bench->volume, data, sizeof(data), 0), 0);
    assert_int_equal(data[0], 7);
    assert_int_equal(STAT(bench, timeouts), 1);
    bench_end(bench);
}

static enum fake_verdict drop_all_data(struct fake_seen *seen) {
    return seen->chunk != NULL ? FAKE_DROP : FAKE_SERVE;
}

static void an_io_ends_at_its_deadline(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench_start(bench, 0, 700);
    set_hook(bench, drop_all_data);
    uint8_t data[4096] = {7};
    uint64_t start = cg_now_ns();
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), -ETIMEDOUT);
    assert_in_range(cg_now_ns() - start, 690 * CG_NS_PER_MS, 1200 * CG_NS_PER_MS);
    set_hook(bench, NULL);
    // Given up is settled: a late copy of it must not take effect.
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    pthread_mutex_lock(&bench->fake.lock);
    const curve_chunkserver_ChunkRequest *last = NULL;
    for (unsigned i = 0; i < bench->fake.log_count; i++) {
        if (strcmp(bench->fake.log[i].method, "WriteChunk") == 0) {
            last = &bench->fake.log[i].request;
        }
    }
    assert_int_equal(last->settledBelow, last->sequence);
    pthread_mutex_unlock(&bench->fake.lock);
    bench_end(bench);
}

static void *bring_up(void *argument) {
    struct fake *fake = argument;
    usleep(400000);
    fake_down(fake, fake_peer(fake, 0), false);
    return NULL;
}

static void a_chunkserver_that_comes_back_is_used_again(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench_start(bench, 0, 0);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    fake_down(&bench->fake, fake_peer(&bench->fake, 0), true);
    pthread_t up;
    assert_int_equal(pthread_create(&up, NULL, bring_up, &bench->fake), 0);
    uint64_t start = cg_now_ns();
    memset(data, 0, sizeof(data));
    assert_int_equal(cg_pread(bench->volume, data, sizeof(data), 0), 0);
    assert_int_equal(data[0], 7);
    assert_in_range(cg_now_ns() - start, 300 * CG_NS_PER_MS, 2000 * CG_NS_PER_MS);
    pthread_join(up, NULL);
    bench_end(bench);
}

// As after an outage of the network, when TCP waits long before it sends again.
static void a_connection_on_which_nothing_comes_is_given_up(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench_start(bench, 0, 0);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    int servers[] = {0, fake_peer(&bench->fake, 0)};
    unsigned accepted[2];
    for (unsigned i = 0; i < 2; i++) {
        accepted[i] = atomic_load(&bench->fake.servers[servers[i]].accepted);
        fake_stop_server(&bench->fake, servers[i], true);
    }
    struct cg_io io = {.op = CG_OP_READ, .length = sizeof(data), .iovcnt = 1};
    struct iovec iov = {data, sizeof(data)};
    atomic_int done = 0;
    io.iov = &iov;
    io.user = &done;
    io.done = count_done;
    cg_submit(bench->volume, &io);
    usleep(2500000); // two time-outs, and the lease's next refresh
    for (unsigned i = 0; i < 2; i++) {
        fake_stop_server(&bench->fake, servers[i], false);
    }
    while (atomic_load(&done) == 0) {
        usleep(1000);
    }
    assert_int_equal(io.result, 0);
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 8 * MIB), 0);
    for (unsigned i = 0; i < 2; i++) {
        assert_in_range(atomic_load(&bench->fake.servers[servers[i]].accepted) - accepted[i], 1, 6);
    }
    bench_end(bench);
}

static void a_new_leader_is_found_in_milliseconds(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench->fake.peer_count = 3;
    bench_start(bench, 0, 0);
    assert_int_equal(bench->fake.updates, 3);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.leader = 2;
    pthread_mutex_unlock(&bench->fake.lock);
    usleep(20000); // the first look for the leader has reached everybody
    unsigned asked = fake_count(&bench->fake, "GetLeader");
    uint64_t start = cg_now_ns();
    assert_int_equal(cg_pread(bench->volume, data, sizeof(data), 0), 0);
    assert_in_range(cg_now_ns() - start, 0, 80 * CG_NS_PER_MS);
    assert_int_equal(data[0], 7);
    assert_int_equal(STAT(bench, redirects), 1);
    // All but the one that did not do were asked.
    usleep(20000);
    assert_int_equal(fake_count(&bench->fake, "GetLeader"), asked + 2);
    bench_end(bench);
}

static void a_dead_leader_is_replaced(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench->fake.peer_count = 3;
    bench_start(bench, 0, 0);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    fake_down(&bench->fake, fake_peer(&bench->fake, 0), true);
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.leader = 1;
    pthread_mutex_unlock(&bench->fake.lock);
    uint64_t start = cg_now_ns();
    assert_int_equal(cg_pread(bench->volume, data, sizeof(data), 0), 0);
    assert_in_range(cg_now_ns() - start, 0, 500 * CG_NS_PER_MS);
    bench_end(bench);
}

static void another_metadata_server_is_used_when_one_is_gone(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench->fake.mds_count = 3;
    fake_start(&bench->fake);
    fake_down(&bench->fake, 0, true);
    fake_down(&bench->fake, 1, true);
    start_client(bench, CG_CLIENT_OWN_THREAD);
    open_volume(bench, 0, 0);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    fake_down(&bench->fake, 2, true);
    fake_down(&bench->fake, 0, false);
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 8 * MIB), 0);
    bench_end(bench);
}

static void a_missing_metadata_server_gives_a_clear_error(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    fake_start(&bench->fake);
    fake_down(&bench->fake, 0, true);
    start_client(bench, CG_CLIENT_OWN_THREAD);
    char error[256];
    assert_int_equal(try_open(bench, 0, 0, error, sizeof(error)), -ETIMEDOUT);
    assert_non_null(strstr(error, "no metadata server answers"));
    cg_client_destroy(bench->client);
    fake_stop(&bench->fake);
    free(bench);
}

static void opening_needs_every_chunkserver_to_know_the_epoch(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench->fake.peer_count = 2;
    fake_start(&bench->fake);
    fake_down(&bench->fake, fake_peer(&bench->fake, 1), true);
    start_client(bench, CG_CLIENT_OWN_THREAD);
    char error[256];
    assert_int_equal(try_open(bench, 0, 0, error, sizeof(error)), -ETIMEDOUT);
    assert_non_null(strstr(error, "did not take the volume's new epoch"));
    fake_down(&bench->fake, fake_peer(&bench->fake, 1), false);
    open_volume(bench, 0, 0);
    bench_end(bench);
}

// Whether an opening succeeds with three chunkservers of which `missing` do not answer.
static bool opens_without(unsigned missing, uint32_t replicas) {
    struct bench *bench = bench_new(true);
    bench->fake.peer_count = 3;
    bench->fake.replicas = replicas;
    fake_start(&bench->fake);
    for (unsigned i = 0; i < missing; i++) {
        // One is dead, one is stopped.
        int server = fake_peer(&bench->fake, (int)i);
        fake_down(&bench->fake, server, i == 0);
        fake_stop_server(&bench->fake, server, i != 0);
    }
    start_client(bench, CG_CLIENT_OWN_THREAD);
    char error[256];
    int result = try_open(bench, 0, 0, error, sizeof(error));
    if (result == 0) {
        cg_volume_close(bench->volume);
    } else {
        assert_int_equal(result, -ETIMEDOUT);
        assert_non_null(strstr(error, "did not take the volume's new epoch"));
    }
    cg_client_destroy(bench->client);
    fake_stop(&bench->fake);
    free(bench);
    return result == 0;
}

static void opening_needs_a_replica_of_every_copyset_to_know_the_epoch(void **state) {
    (void)state;
    assert_true(opens_without(1, 2));
    assert_true(opens_without(2, 3));
    assert_false(opens_without(2, 2));
    assert_false(opens_without(1, 1));
    assert_false(opens_without(3, 3));
    assert_false(opens_without(3, 9));
}

// ---- Fencing and the lease

static void a_later_owner_fences_the_earlier_one(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench_start(bench, 0, 0);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    struct cg_volume *first = bench->volume;
    open_volume(bench, 0, 0);
    assert_int_equal(cg_pwrite(first, data, sizeof(data), 0), -ESTALE);
    assert_int_equal(cg_pread(first, data, sizeof(data), 0), -ESTALE);
    assert_int_equal(cg_trim(first, 4096, 0), -ESTALE);
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    cg_volume_close(first);
    bench_end(bench);
}

static void a_reader_is_fenced_by_its_epoch_too(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench_start(bench, 0, 0);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.store_epoch++;
    pthread_mutex_unlock(&bench->fake.lock);
    assert_int_equal(cg_pread(bench->volume, data, sizeof(data), 0), -ESTALE);
    bench_end(bench);
}

static void io_pauses_when_the_lease_runs_out_and_goes_on_with_it(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench->fake.lease_us = 400000;
    bench_start(bench, 0, 3000);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    fake_down(&bench->fake, 0, true);
    usleep(500000);
    // The chunkserver is well, but nobody renews the lease.
    struct cg_io io = {.op = CG_OP_READ, .length = 4096, .iovcnt = 1, .timeout_ms = 200};
    struct iovec iov = {data, sizeof(data)};
    atomic_int done = 0;
    io.iov = &iov;
    io.user = &done;
    io.done = count_done;
    unsigned before = fake_count(&bench->fake, "ReadChunk");
    cg_submit(bench->volume, &io);
    while (atomic_load(&done) == 0) {
        usleep(1000);
    }
    assert_int_equal(io.result, -ETIMEDOUT);
    assert_int_equal(fake_count(&bench->fake, "ReadChunk"), before);
    // It waits, and goes on when the server is back.
    atomic_store(&done, 0);
    io.timeout_ms = 3000;
    cg_submit(bench->volume, &io);
    usleep(100000);
    assert_int_equal(atomic_load(&done), 0);
    fake_down(&bench->fake, 0, false);
    while (atomic_load(&done) == 0) {
        usleep(1000);
    }
    assert_int_equal(io.result, 0);
    bench_end(bench);
}

static void a_session_that_ended_is_opened_again_if_the_epoch_is_ours(void **state) {
    (void)state;
    struct bench *bench = bench_new(true);
    bench->fake.lease_us = 400000;
    bench_start(bench, 0, 2000);
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.session_gone = true;
    pthread_mutex_unlock(&bench->fake.lock);
    usleep(300000);
    assert_int_equal(fake_count(&bench->fake, "OpenFile"), 2);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.session_gone = true;
    bench->fake.epoch++;
    pthread_mutex_unlock(&bench->fake.lock);
    usleep(300000);
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), -ESTALE);
    bench_end(bench);
}

static void resize_and_sequence_come_with_the_refresh(void **state) {
    (void)state;
    struct bench *bench = bench_new(false);
    bench->fake.lease_us = 400000;
    bench_start(bench, 0, 3000);
    uint8_t data[4096] = {7};
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    pthread_mutex_lock(&bench->fake.lock);
    bench->fake.size = 128 * MIB;
    bench->fake.seq = 5; // a snapshot was made: writes with the old one are BACKWARD
    pthread_mutex_unlock(&bench->fake.lock);
    assert_int_equal(cg_pwrite(bench->volume, data, sizeof(data), 0), 0);
    usleep(250000);
    struct cg_volume_info info;
    cg_volume_info(bench->volume, &info);
    assert_int_equal(info.size, 128 * MIB);
    assert_int_equal(cg_pread(bench->volume, data, sizeof(data), 100 * MIB), 0);
    bench_end(bench);
}

int main(int argc, char **argv) {
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(overload_is_waited_out),
        cmocka_unit_test(a_lost_connection_repeats_the_same_write),
        cmocka_unit_test(an_unanswered_request_is_sent_again),
        cmocka_unit_test(an_io_ends_at_its_deadline),
        cmocka_unit_test(a_chunkserver_that_comes_back_is_used_again),
        cmocka_unit_test(a_connection_on_which_nothing_comes_is_given_up),
        cmocka_unit_test(a_new_leader_is_found_in_milliseconds),
        cmocka_unit_test(a_dead_leader_is_replaced),
        cmocka_unit_test(another_metadata_server_is_used_when_one_is_gone),
        cmocka_unit_test(a_missing_metadata_server_gives_a_clear_error),
        cmocka_unit_test(opening_needs_every_chunkserver_to_know_the_epoch),
        cmocka_unit_test(opening_needs_a_replica_of_every_copyset_to_know_the_epoch),
        cmocka_unit_test(a_later_owner_fences_the_earlier_one),
        cmocka_unit_test(a_reader_is_fenced_by_its_epoch_too),
        cmocka_unit_test(io_pauses_when_the_lease_runs_out_and_goes_on_with_it),
        cmocka_unit_test(a_session_that_ended_is_opened_again_if_the_epoch_is_ours),
        cmocka_unit_test(resize_and_sequence_come_with_the_refresh),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
