// SPDX-License-Identifier: BSD-3-Clause
//
// The scrub on the simulated disk, with bits that flip.
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
#include "base/log.h"
#include "chunkserver/store_internal.h"
#include "simreactor.h"

#define CHUNK  (512U << 10)
#define BLOCKS (CHUNK / CG_BLOCK_SIZE)
#define VOLUME 7U

struct fixture {
    struct simdisk *sim;
    struct cg_reactor *reactor;
    struct cg_buffer_pool *pool;
    struct cg_store *store;
    struct cg_store_options options;
    uint64_t request;
    int pending;
    cg_status status;
    unsigned bad_lines; // in the log
    char line[256];     // the last of them
};

static void note_line(void *context, enum cg_log_level level, const char *line) {
    struct fixture *f = context;
    (void)level;
    if (strncmp(line, "bad block:", 10) == 0) {
        f->bad_lines++;
        snprintf(f->line, sizeof(f->line), "%s", line);
    }
}

static void open_store(struct fixture *f) {
    char error[256] = "";
    f->reactor = simreactor_create(f->sim);
    assert_int_equal(0, cg_buffer_pool_create(16U << 20, &f->pool));
    int result = cg_store_open(simdisk_disk(f->sim), f->reactor, f->pool, &f->options, &f->store,
                               error, sizeof(error));
    assert_string_equal("", error);
    assert_int_equal(0, result);
    for (uint32_t id = 1; id <= 2; id++) {
        static const uint64_t self = 1;
        struct cg_copyset_spec spec = {
            .pool = 1, .copyset = id, .self = self, .founders = &self, .founder_count = 1};
        assert_int_equal(0, cg_store_add_copyset(f->store, &spec));
    }
}

static int setup(void **state) {
    struct fixture *f = calloc(1, sizeof(*f));
    struct simdisk_options disk = {.seed = 42};
    f->sim = simdisk_create(&disk);
    f->options = (struct cg_store_options){
        .chunk_size = CHUNK,
        .wal_bytes = 8U << 20,
        .wal_segment_bytes = 2U << 20,
        .checkpoint_interval_ns = 1000 * CG_NS_PER_S, // only those that the test or the scrub wants
        .scrub_rate = 16U << 20,
    };
    cg_log_set_sink(note_line, f, CG_LOG_INFO);
    *state = f;
    open_store(f);
    return 0;
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

static void close_store(struct fixture *f) {
    cg_store_scrub_stop(f->store);
    until_idle(f);
    cg_store_close(f->store);
    cg_buffer_pool_destroy(f->pool);
    simreactor_destroy(f->reactor);
}

static int teardown(void **state) {
    struct fixture *f = *state;
    close_store(f);
    simdisk_destroy(f->sim);
    cg_log_set_sink(NULL, NULL, CG_LOG_INFO);
    free(f);
    return 0;
}

static void mutated(void *user, const struct cg_mutation_result *result) {
    struct fixture *f = user;
    f->pending--;
    f->status = result->status;
}

static void start_mutation(struct fixture *f, enum cg_op_kind kind, uint64_t chunk, uint32_t block,
                           uint32_t count, uint8_t fill) {
    struct cg_buffer *buffer = NULL;
    if (kind == CG_MUTATE_WRITE) {
        buffer = cg_buffer_alloc(f->pool, (size_t)count * CG_BLOCK_SIZE);
        assert_non_null(buffer);
        memset(buffer->data, fill, (size_t)count * CG_BLOCK_SIZE);
    }
    struct cg_mutation mutation = {
        .kind = kind,
        .copyset = cg_store_copyset(f->store, 1, 1 + chunk % 2),
        .chunk_id = chunk,
        .file_id = VOLUME,
        .sn = 1,
        .offset = block * CG_BLOCK_SIZE,
        .size = count * CG_BLOCK_SIZE,
        .buffer = buffer,
        .done = mutated,
        .user = f,
    };
    f->pending++;
    cg_store_mutate(f->store, &mutation);
    cg_buffer_unref(buffer);
}

static void wait_pending(struct fixture *f) {
    for (unsigned turns = 0; f->pending > 0; turns++) {
        assert_true(turns < 100000);
        turn(f);
    }
}

static void mutate(struct fixture *f, enum cg_op_kind kind, uint64_t chunk, uint32_t block,
                   uint32_t count, uint8_t fill) {
    start_mutation(f, kind, chunk, block, count, fill);
    wait_pending(f);
    assert_int_equal(STATUS(SUCCESS), f->status);
    // Applied, too.
    struct cg_copyset *copyset = cg_store_copyset(f->store, 1, 1 + chunk % 2);
    while (!cg_list_empty(&copyset->unapplied)) {
        turn(f);
    }
}

static void write_blocks(struct fixture *f, uint64_t chunk, uint32_t block, uint32_t count,
                         uint8_t fill) {
    mutate(f, CG_MUTATE_WRITE, chunk, block, count, fill);
}

static void was_read(void *user, const struct cg_read_result *result) {
    struct fixture *f = user;
    f->pending--;
    f->status = result->status;
}

static cg_status read_block(struct fixture *f, uint64_t chunk, uint32_t block) {
    struct cg_query query = {
        .kind = CG_READ_DATA,
        .copyset = cg_store_copyset(f->store, 1, 1 + chunk % 2),
        .chunk_id = chunk,
        .offset = block * CG_BLOCK_SIZE,
        .size = CG_BLOCK_SIZE,
        .done = was_read,
        .user = f,
    };
    f->pending++;
    cg_store_read(f->store, &query);
    wait_pending(f);
    return f->status;
}

static struct cg_scrub_stats stats(const struct fixture *f) {
    struct cg_store_stats all;
    cg_store_stats(f->store, &all);
    return all.scrub;
}

static void checkpoint(struct fixture *f) {
    while (cg_store_checkpointing(f->store)) {
        turn(f); // one that began before the last writes
    }
    cg_store_checkpoint(f->store);
    while (cg_store_checkpointing(f->store)) {
        turn(f);
    }
}

// Asks for a pass and waits until it is complete.
static struct cg_scrub_stats scrub(struct fixture *f) {
    assert_int_equal(0, cg_store_scrub(f->store, ++f->request));
    for (unsigned turns = 0; stats(f).completed < f->request; turns++) {
        assert_true(turns < 1000000);
        turn(f);
    }
    return stats(f);
}

static void path_of(uint64_t chunk, char out[64]) {
    snprintf(out, 64, "chunks/1-%u/chunk_%u", (unsigned)(1 + chunk % 2), (unsigned)chunk);
}

static void flip(struct fixture *f, uint64_t chunk, uint32_t block) {
    char path[64];
    path_of(chunk, path);
    uint64_t offset = CG_CHUNK_DATA_OFFSET + (uint64_t)block * CG_BLOCK_SIZE + 99;
    assert_int_equal(0, simdisk_flip(f->sim, path, offset, 3));
}

static void rot(struct fixture *f, uint64_t chunk, uint64_t offset) {
    char path[64];
    path_of(chunk, path);
    assert_int_equal(0, simdisk_rot(f->sim, path, offset, 3));
}

static struct cg_bad_block only_bad(const struct fixture *f) {
    struct cg_bad_block bad[2];
    assert_int_equal(1, cg_store_bad_blocks(f->store, 0, bad, 2));
    return bad[0];
}

static void a_pass_checks_every_block_that_holds_data(void **state) {
    struct fixture *f = *state;
    uint64_t blocks = 0;
    for (uint64_t chunk = 1; chunk <= 5; chunk++) {
        write_blocks(f, chunk, (uint32_t)chunk, 70, (uint8_t)chunk);
        write_blocks(f, chunk, 100, 3, 9);
        blocks += 73;
    }
    mutate(f, CG_MUTATE_TRIM, 2, 10, 20, 0);
    struct cg_scrub_stats result = scrub(f);
    assert_int_equal(blocks - 20, result.checked);
    assert_int_equal(0, result.skipped);
    assert_int_equal(0, result.bad_blocks);
    assert_false(result.running);
    assert_true(result.completed_s >= result.started_s && result.started_s > 0);
}

static void a_flipped_bit_is_found_named_and_logged_once(void **state) {
    struct fixture *f = *state;
    write_blocks(f, 3, 0, BLOCKS, 1);
    checkpoint(f);
    flip(f, 3, 77);
    struct cg_scrub_stats result = scrub(f);
    assert_int_equal(1, result.bad_blocks);
    assert_int_equal(1, result.found);
    assert_int_equal(BLOCKS, result.checked);
    struct cg_bad_block bad = only_bad(f);
    assert_int_equal(3, bad.chunk_id);
    assert_int_equal(77, bad.block);
    assert_int_equal(VOLUME, bad.file_id);
    assert_true(bad.group == (UINT64_C(1) << 32 | 2));
    assert_string_equal("bad block: volume 7, chunk 3 of copyset 1-2, offset 315392 of the chunk: "
                        "its checksum does not match",
                        f->line);
    assert_int_equal(0, scrub(f).found);
    assert_int_equal(STATUS(CRC_FAIL), read_block(f, 3, 77));
    assert_int_equal(STATUS(SUCCESS), read_block(f, 3, 76));
    assert_int_equal(1, f->bad_lines);
    assert_int_equal(1, stats(f).bad_blocks);
}

static void the_medium_is_checked_not_the_page_cache(void **state) {
    struct fixture *f = *state;
    write_blocks(f, 1, 0, 8, 1);
    checkpoint(f);
    rot(f, 1, CG_CHUNK_DATA_OFFSET + 5 * CG_BLOCK_SIZE);
    assert_int_equal(STATUS(SUCCESS), read_block(f, 1, 5));
    assert_int_equal(1, scrub(f).bad_blocks);
    assert_int_equal(5, only_bad(f).block);
}

static void several_in_one_piece_are_told_apart(void **state) {
    struct fixture *f = *state;
    write_blocks(f, 1, 0, BLOCKS, 1);
    checkpoint(f);
    flip(f, 1, 0);
    flip(f, 1, 62);
    flip(f, 1, 63);
    flip(f, 1, 64);
    flip(f, 1, BLOCKS - 1);
    struct cg_scrub_stats result = scrub(f);
    assert_int_equal(5, result.bad_blocks);
    assert_int_equal(BLOCKS, result.checked);
}

static void a_read_that_finds_damage_is_counted_too(void **state) {
    struct fixture *f = *state;
    write_blocks(f, 1, 0, 8, 1);
    flip(f, 1, 2);
    assert_int_equal(STATUS(CRC_FAIL), read_block(f, 1, 2));
    assert_int_equal(1, stats(f).bad_blocks);
    assert_int_equal(2, only_bad(f).block);
}

static void overwriting_trimming_deleting_clear(void **state) {
    struct fixture *f = *state;
    for (uint64_t chunk = 1; chunk <= 4; chunk++) {
        write_blocks(f, chunk, 0, 16, 1);
    }
    checkpoint(f);
    for (uint64_t chunk = 1; chunk <= 4; chunk++) {
        flip(f, chunk, 5);
    }
    assert_int_equal(4, scrub(f).bad_blocks);
    write_blocks(f, 1, 0, 5, 2); // its neighbours
    write_blocks(f, 1, 6, 5, 2);
    assert_int_equal(4, stats(f).bad_blocks);
    write_blocks(f, 1, 5, 1, 2);
    assert_int_equal(3, stats(f).bad_blocks);
    mutate(f, CG_MUTATE_TRIM, 2, 4, 4, 0);
    assert_int_equal(2, stats(f).bad_blocks);
    mutate(f, CG_MUTATE_ZERO, 3, 5, 1, 0);
    assert_int_equal(1, stats(f).bad_blocks);
    mutate(f, CG_MUTATE_DELETE, 4, 0, 0, 0);
    assert_int_equal(0, stats(f).bad_blocks);
    assert_int_equal(0, scrub(f).bad_blocks);
    assert_int_equal(STATUS(SUCCESS), read_block(f, 1, 5));
}

static void what_is_not_on_the_medium_yet_is_not_compared(void **state) {
    struct fixture *f = *state;
    write_blocks(f, 1, 0, 32, 1);
    checkpoint(f);
    assert_int_equal(0, cg_store_scrub(f->store, ++f->request));
    while (stats(f).request != f->request || f->store->scrub.settle > 0) {
        turn(f); // its checkpoint is over
    }
    write_blocks(f, 1, 10, 4, 2);
    while (stats(f).completed < f->request) {
        turn(f);
    }
    assert_int_equal(28, stats(f).checked);
    assert_int_equal(4, stats(f).skipped);
    assert_int_equal(0, stats(f).bad_blocks);
    assert_int_equal(32, scrub(f).checked);
}

static void writes_all_the_time_are_no_damage_and_wait_for_nothing(void **state) {
    struct fixture *f = *state;
    for (uint64_t chunk = 1; chunk <= 3; chunk++) {
        write_blocks(f, chunk, 0, BLOCKS, 1);
    }
    for (unsigned round = 0; round < 6; round++) {
        assert_int_equal(0, cg_store_scrub(f->store, ++f->request));
        for (unsigned turns = 0; stats(f).completed < f->request; turns++) {
            assert_true(turns < 1000000);
            if (turns % 3 == 0 && f->pending < 8) {
                start_mutation(f, turns % 9 == 0 ? CG_MUTATE_TRIM : CG_MUTATE_WRITE,
                               1 + simdisk_random(f->sim) % 3,
                               (uint32_t)(simdisk_random(f->sim) % (BLOCKS - 8)), 8,
                               (uint8_t)turns);
            }
            if (turns % 500 == 0) {
                cg_store_checkpoint(f->store);
            }
            turn(f);
        }
    }
    wait_pending(f);
    assert_int_equal(0, stats(f).bad_blocks);
    assert_int_equal(0, f->bad_lines);
}

static void damage_is_found_among_writes(void **state) {
    struct fixture *f = *state;
    write_blocks(f, 1, 0, BLOCKS, 1);
    checkpoint(f);
    flip(f, 1, 40);
    assert_int_equal(0, cg_store_scrub(f->store, ++f->request));
    for (unsigned turns = 0; stats(f).completed < f->request; turns++) {
        assert_true(turns < 1000000);
        if (f->pending < 4) { // all around it
            start_mutation(f, CG_MUTATE_WRITE, 1, turns % 2 == 0 ? 30 : 41, 10, (uint8_t)turns);
        }
        simreactor_advance(f->reactor, CG_NS_PER_MS / 10);
        turn(f);
    }
    wait_pending(f);
    assert_int_equal(1, stats(f).bad_blocks);
    assert_int_equal(40, only_bad(f).block);
}

static void damaged_metadata_is_found_while_the_chunk_is_in_memory(void **state) {
    struct fixture *f = *state;
    write_blocks(f, 1, 0, 8, 1);
    checkpoint(f);
    unsigned newest = cg_chunk_find(cg_store_copyset(f->store, 1, 2), 1)->newest;
    rot(f, 1, newest * CG_CHUNK_SLOT_STRIDE + 700);
    assert_int_equal(1, scrub(f).bad_blocks);
    assert_true(only_bad(f).block == CG_BAD_SLOT(newest));
    assert_int_equal(STATUS(SUCCESS), read_block(f, 1, 3)); // memory still knows
    // A checkpoint writes the other slot, the next one this.
    write_blocks(f, 1, 0, 1, 2);
    checkpoint(f);
    assert_int_equal(1, stats(f).bad_blocks);
    write_blocks(f, 1, 0, 1, 3);
    checkpoint(f);
    assert_int_equal(0, stats(f).bad_blocks);
    assert_int_equal(0, scrub(f).bad_blocks);
}

static void damaged_metadata_is_found_when_the_chunk_is_not_in_memory(void **state) {
    struct fixture *f = *state;
    write_blocks(f, 1, 0, 8, 1);
    write_blocks(f, 2, 0, 8, 1);
    checkpoint(f);
    unsigned newest = cg_chunk_find(cg_store_copyset(f->store, 1, 2), 1)->newest;
    close_store(f);
    char path[64];
    path_of(1, path);
    assert_int_equal(0, simdisk_flip(f->sim, path, newest * CG_CHUNK_SLOT_STRIDE + 700, 1));
    open_store(f);
    struct cg_scrub_stats result = scrub(f);
    assert_int_equal(1, result.bad_blocks);
    assert_int_equal(1, only_bad(f).chunk_id);
    assert_int_equal(8, result.checked); // of the other one
    assert_int_equal(STATUS(CRC_FAIL), read_block(f, 1, 0));
}

static void a_pass_goes_on_after_a_restart(void **state) {
    struct fixture *f = *state;
    for (uint64_t chunk = 1; chunk <= 6; chunk++) {
        write_blocks(f, chunk, 0, BLOCKS, 1);
    }
    checkpoint(f);
    assert_int_equal(0, cg_store_scrub(f->store, ++f->request));
    while (stats(f).checked < 3U * BLOCKS + 10) {
        turn(f);
    }
    uint64_t checked = stats(f).checked;
    close_store(f);
    open_store(f);
    assert_true(stats(f).running);
    assert_true(stats(f).checked >= checked);
    assert_int_equal(f->request, stats(f).request);
    while (stats(f).running) {
        turn(f);
    }
    assert_int_equal(f->request, stats(f).completed);
    assert_int_equal(6 * BLOCKS, stats(f).checked); // none of them twice
}

static void after_a_kill_what_was_saved_last_counts(void **state) {
    struct fixture *f = *state;
    for (uint64_t chunk = 1; chunk <= 6; chunk++) {
        write_blocks(f, chunk, 0, BLOCKS, 1);
    }
    checkpoint(f);
    flip(f, 2, 1);
    f->options.scrub_rate = 256U << 10; // so that it is saved on the way
    close_store(f);
    open_store(f);
    assert_int_equal(0, cg_store_scrub(f->store, ++f->request));
    while (stats(f).checked < 3U * BLOCKS + 10) {
        turn(f);
    }
    simdisk_kill(f->sim);
    open_store(f);
    assert_true(stats(f).running);
    assert_in_range(stats(f).checked, BLOCKS, 4U * BLOCKS);
    assert_int_equal(1, stats(f).bad_blocks);
    while (stats(f).running) {
        turn(f);
    }
    assert_int_equal(f->request, stats(f).completed);
    assert_int_equal(1, stats(f).bad_blocks);
    assert_int_equal(1, f->bad_lines);
}

static void what_is_known_is_looked_at_again_after_a_start(void **state) {
    struct fixture *f = *state;
    write_blocks(f, 1, 0, 16, 1);
    checkpoint(f);
    flip(f, 1, 3);
    flip(f, 1, 9);
    assert_int_equal(2, scrub(f).bad_blocks);
    close_store(f);
    flip(f, 1, 3); // well again: as if the table were older than the disk
    open_store(f);
    assert_int_equal(2, stats(f).bad_blocks);
    for (unsigned turns = 0; turns < 2000; turns++) {
        turn(f);
    }
    assert_int_equal(9, only_bad(f).block);
    assert_int_equal(f->request, stats(f).completed); // no pass was needed for that
    assert_int_equal(2, f->bad_lines);
}

static void replay_clears_what_it_writes(void **state) {
    struct fixture *f = *state;
    write_blocks(f, 1, 0, 16, 1);
    checkpoint(f);
    flip(f, 1, 3);
    assert_int_equal(1, scrub(f).bad_blocks);
    for (unsigned turns = 0; turns < 2000; turns++) {
        turn(f); // saved
    }
    write_blocks(f, 1, 3, 1, 2);
    simdisk_kill(f->sim);
    open_store(f);
    assert_int_equal(0, stats(f).bad_blocks);
}

static void a_file_system_without_direct_reads_is_scrubbed_too(void **state) {
    struct fixture *f = *state;
    close_store(f);
    simdisk_destroy(f->sim);
    struct simdisk_options disk = {.seed = 5, .refuse_direct = true};
    f->sim = simdisk_create(&disk);
    open_store(f);
    f->request = 0;
    write_blocks(f, 1, 0, 16, 1);
    checkpoint(f);
    flip(f, 1, 3);
    assert_int_equal(1, scrub(f).bad_blocks);
}

static void chunks_that_only_the_scrub_wants_leave_first(void **state) {
    struct fixture *f = *state;
    close_store(f);
    f->options.chunks_max = 4;
    open_store(f);
    for (uint64_t chunk = 1; chunk <= 12; chunk++) {
        write_blocks(f, chunk, 0, 8, 1);
        checkpoint(f);
    }
    struct cg_copyset *copyset = cg_store_copyset(f->store, 1, 2);
    read_block(f, 1, 0);
    assert_non_null(cg_chunk_find(copyset, 1));
    assert_int_equal(12 * 8, scrub(f).checked);
    assert_non_null(cg_chunk_find(copyset, 1));
}

static void a_scrub_that_is_off_refuses_and_reads_nothing(void **state) {
    struct fixture *f = *state;
    close_store(f);
    f->options.scrub_rate = 0;
    open_store(f);
    write_blocks(f, 1, 0, 8, 1);
    assert_int_equal(-ENOTSUP, cg_store_scrub(f->store, 99));
    for (unsigned turns = 0; turns < 20000; turns++) {
        turn(f);
    }
    assert_int_equal(0, stats(f).checked);
}

static void more_chunks_than_one_list_holds(void **state) {
    struct fixture *f = *state;
    f->options.scrub_rate = 1U << 30;
    f->options.descriptors_max = 100;
    close_store(f);
    open_store(f);
    unsigned chunks = 2 * CG_SCRUB_LIST + 100;
    for (uint64_t i = 1; i <= chunks; i++) {
        // All in one copyset, in no order.
        write_blocks(f, 2 * (1 + i * 1009 % chunks), 0, 1, 1);
    }
    assert_int_equal(chunks, scrub(f).checked);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(a_pass_checks_every_block_that_holds_data),
        CASE(a_flipped_bit_is_found_named_and_logged_once),
        CASE(the_medium_is_checked_not_the_page_cache),
        CASE(several_in_one_piece_are_told_apart),
        CASE(a_read_that_finds_damage_is_counted_too),
        CASE(overwriting_trimming_deleting_clear),
        CASE(what_is_not_on_the_medium_yet_is_not_compared),
        CASE(writes_all_the_time_are_no_damage_and_wait_for_nothing),
        CASE(damage_is_found_among_writes),
        CASE(damaged_metadata_is_found_while_the_chunk_is_in_memory),
        CASE(damaged_metadata_is_found_when_the_chunk_is_not_in_memory),
        CASE(a_pass_goes_on_after_a_restart),
        CASE(after_a_kill_what_was_saved_last_counts),
        CASE(what_is_known_is_looked_at_again_after_a_start),
        CASE(replay_clears_what_it_writes),
        CASE(a_file_system_without_direct_reads_is_scrubbed_too),
        CASE(chunks_that_only_the_scrub_wants_leave_first),
        CASE(a_scrub_that_is_off_refuses_and_reads_nothing),
        CASE(more_chunks_than_one_list_holds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
