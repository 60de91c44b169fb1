// SPDX-License-Identifier: BSD-3-Clause
//
// Replicas that come, go and are taken over, on the simulated disk: who they are survives whatever
// the power does.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "chunkserver/store_internal.h"
#include "simreactor.h"

#define CHUNK  (128U << 10)
#define FIRST  UINT64_C(5)
#define SECOND (UINT64_C(1) << 32 | 5)

struct fixture {
    struct simdisk *sim;
    struct cg_reactor *reactor;
    struct cg_buffer_pool *pool;
    struct cg_store *store;
    int pending;
    cg_status status;
    uint8_t first_byte; // read
    int removed;        // 1: not told yet
};

static int try_open(struct fixture *f) {
    char error[256] = "";
    struct cg_store_options options = {
        .chunk_size = CHUNK,
        .wal_bytes = 8U << 20,
        .wal_segment_bytes = 2U << 20,
        .checkpoint_interval_ns = 1000 * CG_NS_PER_S,
    };
    f->reactor = simreactor_create(f->sim);
    assert_int_equal(0, cg_buffer_pool_create(16U << 20, &f->pool));
    return cg_store_open(simdisk_disk(f->sim), f->reactor, f->pool, &options, &f->store, error,
                         sizeof(error));
}

static void open_store(struct fixture *f) {
    assert_int_equal(0, try_open(f));
}

static void begin(struct fixture *f, uint64_t seed) {
    struct simdisk_options disk = {.seed = seed};
    *f = (struct fixture){.sim = simdisk_create(&disk)};
    open_store(f);
}

static void turn(struct fixture *f) {
    simreactor_iterate(f->reactor);
    if (!simdisk_step(f->sim)) {
        simreactor_advance(f->reactor, CG_NS_PER_MS);
    }
}

static void until_idle(struct fixture *f) {
    for (unsigned turns = 0; !cg_store_idle(f->store) || simdisk_pending(f->sim) > 0; turns++) {
        assert_true(turns < 100000);
        turn(f);
    }
}

static void end(struct fixture *f) {
    cg_store_scrub_stop(f->store);
    until_idle(f);
    cg_store_close(f->store);
    cg_buffer_pool_destroy(f->pool);
    simreactor_destroy(f->reactor);
    simdisk_destroy(f->sim);
}

static int add(struct fixture *f, uint64_t self, const uint64_t *founders, uint32_t count) {
    struct cg_copyset_spec spec = {
        .pool = 1, .copyset = 1, .self = self, .founders = founders, .founder_count = count};
    return cg_store_add_copyset(f->store, &spec);
}

static int add_alone(struct fixture *f, uint64_t self) {
    return add(f, self, &self, 1);
}

static struct cg_copyset *copyset(struct fixture *f) {
    return cg_store_copyset(f->store, 1, 1);
}

static void mutated(void *user, const struct cg_mutation_result *result) {
    struct fixture *f = user;
    f->pending--;
    f->status = result->status;
}

static cg_status write_chunk(struct fixture *f, uint64_t chunk, uint8_t value) {
    struct cg_buffer *buffer = cg_buffer_alloc(f->pool, CG_BLOCK_SIZE);
    memset(buffer->data, value, CG_BLOCK_SIZE);
    struct cg_mutation mutation = {
        .kind = CG_MUTATE_WRITE,
        .copyset = copyset(f),
        .chunk_id = chunk,
        .size = CG_BLOCK_SIZE,
        .buffer = buffer,
        .done = mutated,
        .user = f,
    };
    f->pending++;
    cg_store_mutate(f->store, &mutation);
    cg_buffer_unref(buffer);
    while (f->pending > 0) {
        turn(f);
    }
    return f->status;
}

static void has_read(void *user, const struct cg_read_result *result) {
    struct fixture *f = user;
    f->pending--;
    f->status = result->status;
    f->first_byte = result->status == STATUS(SUCCESS) ? result->data[0] : 0;
}

// The chunk's first byte; 0 if there is no such chunk.
static uint8_t read_chunk(struct fixture *f, uint64_t chunk) {
    struct cg_query query = {
        .kind = CG_READ_DATA,
        .copyset = copyset(f),
        .chunk_id = chunk,
        .size = CG_BLOCK_SIZE,
        .done = has_read,
        .user = f,
    };
    f->pending++;
    cg_store_read(f->store, &query);
    while (f->pending > 0) {
        turn(f);
    }
    assert_true(f->status == STATUS(SUCCESS) || f->status == STATUS(CHUNK_NOTEXIST));
    return f->first_byte;
}

static void is_removed(void *user, int status) {
    struct fixture *f = user;
    f->removed = status;
}

static int remove_replica(struct fixture *f, uint64_t self) {
    f->removed = 1;
    cg_store_remove_copyset(f->store, 1, 1, self, is_removed, f);
    for (unsigned turns = 0; f->removed == 1; turns++) {
        assert_true(turns < 10000);
        turn(f);
    }
    return f->removed;
}

static void lose_power(struct fixture *f, enum simdisk_crash mode) {
    simdisk_crash(f->sim, mode);
    open_store(f);
}

static int count_name(void *context, const char *name) {
    unsigned *others = context;
    *others += strcmp(name, "member") != 0;
    return 0;
}

static unsigned files_beside_member(struct fixture *f) {
    unsigned others = 0;
    struct cg_disk *disk = simdisk_disk(f->sim);
    assert_int_equal(0, disk->ops->list(disk, "chunks/1-1", count_name, &others));
    return others;
}

// ---- Coming

static void a_replica_is_who_its_file_says(void **state) {
    (void)state;
    struct fixture f;
    begin(&f, 1);
    uint64_t others[] = {7, 8};
    assert_int_equal(-EINVAL, add(&f, 0, NULL, 0));
    assert_int_equal(-EINVAL, add(&f, FIRST, others, 2));
    assert_null(copyset(&f));
    assert_int_equal(0, add_alone(&f, FIRST));
    assert_int_equal(0, add_alone(&f, FIRST));
    assert_int_equal(-EEXIST, add_alone(&f, SECOND));
    lose_power(&f, SIMDISK_DROP_ALL);
    assert_int_equal(FIRST, cg_copyset_member(copyset(&f)));
    assert_int_equal(-EEXIST, add_alone(&f, SECOND));
    end(&f);
}

static void a_replica_that_joins_waits_for_its_group_and_redirects(void **state) {
    (void)state;
    struct fixture f;
    begin(&f, 2);
    assert_int_equal(0, add(&f, FIRST, NULL, 0));
    assert_int_equal(STATUS(REDIRECTED), write_chunk(&f, 1, 1));
    assert_false(cg_copyset_leads(copyset(&f)));
    lose_power(&f, SIMDISK_KEEP_ALL);
    assert_int_equal(FIRST, cg_copyset_member(copyset(&f)));
    assert_int_equal(STATUS(REDIRECTED), write_chunk(&f, 1, 1));
    end(&f);
}

static void a_damaged_member_file_is_refused(void **state) {
    (void)state;
    struct fixture f;
    begin(&f, 3);
    assert_int_equal(0, add_alone(&f, FIRST));
    simdisk_crash(f.sim, SIMDISK_KEEP_ALL);
    assert_int_equal(0, simdisk_flip(f.sim, "chunks/1-1/member", 17, 2));
    assert_int_equal(-EBADMSG, try_open(&f));
    assert_int_equal(0, simdisk_flip(f.sim, "chunks/1-1/member", 17, 2));
    open_store(&f);
    end(&f);
}

static void a_member_file_that_got_lost_is_noticed(void **state) {
    (void)state;
    struct fixture f;
    begin(&f, 4);
    assert_int_equal(0, add_alone(&f, FIRST));
    assert_int_equal(STATUS(SUCCESS), write_chunk(&f, 1, 1));
    cg_store_checkpoint(f.store);
    until_idle(&f);
    struct cg_disk *disk = simdisk_disk(f.sim);
    simdisk_crash(f.sim, SIMDISK_KEEP_ALL);
    assert_int_equal(0, disk->ops->unlink(disk, "chunks/1-1/member"));
    assert_int_equal(-EBADMSG, try_open(&f));
}

static void adding_survives_a_power_loss_at_any_step(void **state) {
    (void)state;
    for (unsigned step = 0; step < 16; step++) {
        for (unsigned mode = 0; mode < SIMDISK_CRASH_MODES; mode++) {
            struct fixture f;
            begin(&f, 100 + step);
            simdisk_power_off(f.sim, step);
            int result = add_alone(&f, FIRST);
            lose_power(&f, (enum simdisk_crash)mode);
            if (result == 0) {
                assert_int_equal(FIRST, cg_copyset_member(copyset(&f)));
            }
            assert_int_equal(0, add_alone(&f, FIRST));
            assert_int_equal(STATUS(SUCCESS), write_chunk(&f, 1, 9));
            end(&f);
        }
    }
}

// ---- Going

static void a_removed_replica_takes_its_files_along_and_a_successor_begins_blank(void **state) {
    (void)state;
    struct fixture f;
    begin(&f, 5);
    assert_int_equal(0, add_alone(&f, FIRST));
    for (uint64_t chunk = 1; chunk <= 3; chunk++) {
        assert_int_equal(STATUS(SUCCESS), write_chunk(&f, chunk, 1));
    }
    assert_int_equal(-EEXIST, remove_replica(&f, SECOND));
    assert_int_equal(0, remove_replica(&f, FIRST));
    assert_null(copyset(&f));
    assert_int_equal(0, files_beside_member(&f));
    assert_int_equal(0, remove_replica(&f, FIRST)); // nothing to do
    lose_power(&f, SIMDISK_DROP_ALL);
    assert_null(copyset(&f));
    assert_int_equal(0, cg_store_copyset_count(f.store));
    // The log holds the old one's records still.
    assert_int_equal(0, add_alone(&f, SECOND));
    assert_int_equal(0, read_chunk(&f, 1));
    assert_int_equal(STATUS(SUCCESS), write_chunk(&f, 2, 7));
    lose_power(&f, SIMDISK_DROP_ALL);
    assert_int_equal(SECOND, cg_copyset_member(copyset(&f)));
    assert_int_equal(0, read_chunk(&f, 1));
    assert_int_equal(7, read_chunk(&f, 2));
    end(&f);
}

static void the_old_ones_entries_are_not_a_successors(void **state) {
    (void)state;
    struct fixture f;
    begin(&f, 7);
    assert_int_equal(0, add_alone(&f, FIRST));
    assert_int_equal(STATUS(SUCCESS), write_chunk(&f, 1, 1));
    assert_int_equal(0, remove_replica(&f, FIRST));
    assert_int_equal(0, add(&f, SECOND, NULL, 0)); // has no entries of its own yet
    lose_power(&f, SIMDISK_DROP_ALL);
    struct cg_copyset_log_status status;
    cg_copyset_log_status(cg_copyset_raft(copyset(&f)), &status);
    assert_int_equal(0, status.last_index);
    assert_int_equal(0, status.term);
    end(&f);
}

static void a_successor_at_once_does_not_see_the_old_checkpoint(void **state) {
    (void)state;
    struct fixture f;
    begin(&f, 6);
    assert_int_equal(0, add_alone(&f, FIRST));
    assert_int_equal(STATUS(SUCCESS), write_chunk(&f, 1, 1));
    cg_store_checkpoint(f.store);
    until_idle(&f);
    assert_int_equal(0, remove_replica(&f, FIRST)); // its checkpoint has only begun
    assert_int_equal(0, add_alone(&f, SECOND));
    lose_power(&f, SIMDISK_DROP_ALL);
    assert_int_equal(SECOND, cg_copyset_member(copyset(&f)));
    assert_int_equal(0, read_chunk(&f, 1));
    end(&f);
}

static void a_successor_waits_until_the_old_one_is_gone(void **state) {
    (void)state;
    struct fixture f;
    begin(&f, 8);
    assert_int_equal(0, add_alone(&f, FIRST));
    assert_int_equal(STATUS(SUCCESS), write_chunk(&f, 1, 1));
    f.removed = 1;
    cg_store_remove_copyset(f.store, 1, 1, FIRST, is_removed, &f);
    while (f.removed == 1) {
        assert_int_equal(-EAGAIN, add_alone(&f, SECOND));
        turn(&f);
    }
    assert_int_equal(0, f.removed);
    assert_int_equal(0, add_alone(&f, SECOND));
    assert_int_equal(STATUS(SUCCESS), write_chunk(&f, 1, 2));
    lose_power(&f, SIMDISK_DROP_ALL);
    assert_int_equal(SECOND, cg_copyset_member(copyset(&f)));
    assert_int_equal(2, read_chunk(&f, 1));
    end(&f);
}

static void removing_survives_a_power_loss_at_any_step(void **state) {
    (void)state;
    for (unsigned step = 0; step < 20; step++) {
        for (unsigned mode = 0; mode < SIMDISK_CRASH_MODES; mode++) {
            struct fixture f;
            begin(&f, 200 + step);
            assert_int_equal(0, add_alone(&f, FIRST));
            assert_int_equal(STATUS(SUCCESS), write_chunk(&f, 1, 1));
            if (step % 2 == 0) {
                cg_store_checkpoint(f.store);
                until_idle(&f);
            }
            assert_int_equal(STATUS(SUCCESS), write_chunk(&f, 2, 2));
            simdisk_power_off(f.sim, step);
            bool was_removed = remove_replica(&f, FIRST) == 0;
            lose_power(&f, (enum simdisk_crash)mode);
            if (copyset(&f) != NULL) {
                assert_false(was_removed);
                assert_int_equal(1, read_chunk(&f, 1));
                assert_int_equal(2, read_chunk(&f, 2));
                assert_int_equal(0, remove_replica(&f, FIRST));
            }
            assert_int_equal(0, files_beside_member(&f));
            assert_int_equal(0, add_alone(&f, SECOND));
            assert_int_equal(0, read_chunk(&f, 1));
            end(&f);
        }
    }
}

// ---- Taking over

static void checkpoint_because_of_another(struct fixture *f) {
    uint64_t self = FIRST;
    struct cg_copyset_spec spec = {
        .pool = 1, .copyset = 2, .self = self, .founders = &self, .founder_count = 1};
    assert_int_equal(0, cg_store_add_copyset(f->store, &spec));
    while (!cg_copyset_leads(cg_store_copyset(f->store, 1, 2))) {
        turn(f);
    }
    cg_store_checkpoint(f->store);
    assert_true(cg_store_checkpointing(f->store));
    until_idle(f);
}

static void a_folder_without_a_member_keeps_what_it_holds_whatever_the_power_does(void **state) {
    (void)state;
    for (unsigned step = 0; step < 12; step++) {
        struct fixture f;
        begin(&f, 300 + step);
        assert_int_equal(0, add_alone(&f, FIRST));
        assert_int_equal(STATUS(SUCCESS), write_chunk(&f, 1, 3));
        struct cg_disk *disk = simdisk_disk(f.sim);
        simdisk_crash(f.sim, SIMDISK_KEEP_ALL);
        assert_int_equal(0, disk->ops->unlink(disk, "chunks/1-1/member"));
        open_store(&f);
        assert_int_equal(0, cg_copyset_member(copyset(&f)));
        uint64_t founders[] = {FIRST, 6, 7};
        assert_int_equal(-EINVAL, add(&f, FIRST, founders, 3)); // it holds the data of one
        assert_int_equal(-EINVAL, add(&f, FIRST, NULL, 0));
        checkpoint_because_of_another(&f); // must not make its records dispensable
        simdisk_power_off(f.sim, step);
        (void)add_alone(&f, FIRST);
        lose_power(&f, SIMDISK_DROP_ALL);
        assert_int_equal(0, add_alone(&f, FIRST));
        assert_int_equal(3, read_chunk(&f, 1));
        assert_int_equal(STATUS(SUCCESS), write_chunk(&f, 1, 4));
        end(&f);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_replica_is_who_its_file_says),
        cmocka_unit_test(a_replica_that_joins_waits_for_its_group_and_redirects),
        cmocka_unit_test(a_damaged_member_file_is_refused),
        cmocka_unit_test(a_member_file_that_got_lost_is_noticed),
        cmocka_unit_test(adding_survives_a_power_loss_at_any_step),
        cmocka_unit_test(a_removed_replica_takes_its_files_along_and_a_successor_begins_blank),
        cmocka_unit_test(the_old_ones_entries_are_not_a_successors),
        cmocka_unit_test(a_successor_at_once_does_not_see_the_old_checkpoint),
        cmocka_unit_test(a_successor_waits_until_the_old_one_is_gone),
        cmocka_unit_test(removing_survives_a_power_loss_at_any_step),
        cmocka_unit_test(a_folder_without_a_member_keeps_what_it_holds_whatever_the_power_does),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
