// SPDX-License-Identifier: BSD-3-Clause
//
// A client that reads chunk files itself never sees anything but what was acknowledged.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/crc32c.h"
#include "base/reactor.h"
#include "chunkserver/local_share.h"
#include "volume/local_read.h"

#define BLOCK       4096U
#define DATA_OFFSET 65536U
#define BLOCKS      16U
#define POOL        1U
#define COPYSET     7U
#define GROUP       ((uint64_t)POOL << 32 | COPYSET)
#define CHUNK       42U
#define KEY         3U // the chunk's number in the volume

struct store {
    char folder[64];
    char chunk_path[96];
    char address[32];
    int fd;
    uint32_t slot_index;
    uint32_t pending;
    struct cg_reactor *reactor;
    struct cg_local_share *share;
    struct cg_local_reader *reader;
    struct cg_local_door *door;
};

static int find(void *context, uint32_t pool, uint32_t copyset, uint64_t chunk_id, uint32_t *slot) {
    struct store *store = context;
    if (pool != POOL || copyset != COPYSET || chunk_id != CHUNK) {
        return -ENOENT;
    }
    *slot = store->slot_index;
    return open(store->chunk_path, O_RDONLY | O_CLOEXEC);
}

static struct cg_local_slot *slot_of(struct store *store) {
    return cg_local_share_slot(store->share, store->slot_index);
}

static void put(struct store *store, uint32_t block, uint8_t byte) {
    uint8_t data[BLOCK];
    memset(data, byte, sizeof(data));
    struct cg_local_slot *slot = slot_of(store);
    cg_local_slot_begin(slot, &store->pending);
    assert_int_equal(pwrite(store->fd, data, BLOCK, DATA_OFFSET + (off_t)block * BLOCK), BLOCK);
    uint32_t crc = cg_crc32c(0, data, BLOCK);
    __atomic_store_n(&slot->crc[block], crc, __ATOMIC_RELAXED);
    uint8_t bits = (uint8_t)(slot->allocated[block / 8] | 1U << (block % 8));
    __atomic_store_n(&slot->allocated[block / 8], bits, __ATOMIC_RELAXED);
    cg_local_slot_end(slot, &store->pending);
}

static void start_share(struct store *store) {
    assert_int_equal(cg_local_share_create(store->folder, 4, DATA_OFFSET, &store->share), 0);
    assert_int_equal(
        cg_local_share_listen(store->share, store->reactor, store->address, find, store), 0);
    struct cg_local_slot *slot = slot_of(store);
    slot->chunk_id = CHUNK;
    slot->group = GROUP;
    cg_local_share_lease(store->share, GROUP, CG_LOCAL_NEVER_ENDS);
}

static void spin(struct store *store, unsigned milliseconds) {
    uint64_t end = cg_now_ns() + milliseconds * CG_NS_PER_MS;
    while (cg_now_ns() < end) {
        assert_true(cg_reactor_wait(store->reactor, CG_NS_PER_MS) >= 0);
    }
}

// What the volume does around a request that the chunkserver has accepted.
static void after_request(struct store *store) {
    uint64_t generation = cg_local_door_generation(store->door);
    cg_local_door_accepted(store->door, generation);
    cg_local_want(store->door, KEY, POOL, COPYSET, CHUNK);
    spin(store, 5);
}

static int try_read(struct store *store, void *data, uint32_t block, uint32_t count) {
    return cg_local_try(store->reader, KEY, data, block * BLOCK, count * BLOCK);
}

static int setup(void **state) {
    static uint32_t number;
    struct store *store = calloc(1, sizeof(*store));
    snprintf(store->folder, sizeof(store->folder), "/tmp/local-reads-XXXXXX");
    assert_non_null(mkdtemp(store->folder));
    snprintf(store->chunk_path, sizeof(store->chunk_path), "%s/chunk", store->folder);
    snprintf(store->address, sizeof(store->address), "127.0.0.1:%d.%u", getpid(), number++);
    store->slot_index = 1;
    store->fd = open(store->chunk_path, O_RDWR | O_CREAT, 0600);
    assert_true(store->fd >= 0);
    assert_int_equal(ftruncate(store->fd, DATA_OFFSET + BLOCKS * BLOCK), 0);
    assert_int_equal(cg_reactor_create(NULL, &store->reactor), 0);
    start_share(store);
    assert_int_equal(cg_local_reader_create(store->reactor, BLOCKS, 0, &store->reader), 0);
    store->door = cg_local_door_get(store->reader, store->address);
    assert_non_null(store->door);
    spin(store, 5);
    after_request(store);
    *state = store;
    return 0;
}

static int teardown(void **state) {
    struct store *store = *state;
    cg_local_reader_destroy(store->reader);
    if (store->share != NULL) {
        cg_local_share_destroy(store->share);
    }
    cg_reactor_destroy(store->reactor);
    close(store->fd);
    char path[128];
    snprintf(path, sizeof(path), "%s/local.map", store->folder);
    unlink(path);
    unlink(store->chunk_path);
    rmdir(store->folder);
    free(store);
    return 0;
}

static void reads_data_and_zeros_for_holes(void **state) {
    struct store *store = *state;
    uint8_t data[3 * BLOCK];
    put(store, 4, 0xaa);
    // Bytes in the file that the bitmap does not know must not show.
    assert_int_equal(pwrite(store->fd, "stale", 5, DATA_OFFSET + 5 * BLOCK), 5);
    assert_int_equal(try_read(store, data, 3, 3), 0);
    assert_int_equal(data[0], 0);
    assert_int_equal(data[BLOCK], 0xaa);
    assert_int_equal(data[2 * BLOCK - 1], 0xaa);
    assert_int_equal(data[2 * BLOCK], 0);
}

static void refuses_what_is_not_whole_blocks_or_outside(void **state) {
    struct store *store = *state;
    uint8_t data[2 * BLOCK];
    assert_int_equal(cg_local_try(store->reader, KEY, data, 512, BLOCK), -EAGAIN);
    assert_int_equal(cg_local_try(store->reader, KEY, data, 0, 512), -EAGAIN);
    assert_int_equal(try_read(store, data, BLOCKS - 1, 2), -EAGAIN);
    assert_int_equal(cg_local_try(store->reader, KEY + 1, data, 0, BLOCK), -EAGAIN);
}

static void refuses_while_a_write_is_not_in_the_file(void **state) {
    struct store *store = *state;
    uint8_t data[BLOCK];
    put(store, 0, 1);
    assert_int_equal(try_read(store, data, 0, 1), 0);
    uint32_t pending = 0;
    cg_local_slot_begin(slot_of(store), &pending);
    assert_int_equal(try_read(store, data, 0, 1), -EAGAIN);
    cg_local_slot_end(slot_of(store), &pending);
    assert_int_equal(try_read(store, data, 0, 1), 0);
}

static void refuses_rotten_data(void **state) {
    struct store *store = *state;
    uint8_t data[BLOCK];
    put(store, 2, 9);
    assert_int_equal(pwrite(store->fd, "x", 1, DATA_OFFSET + 2 * BLOCK + 17), 1);
    assert_int_equal(try_read(store, data, 2, 1), -EAGAIN);
}

static void a_raised_epoch_stops_reads_until_a_request_is_accepted(void **state) {
    struct store *store = *state;
    uint8_t data[BLOCK];
    assert_int_equal(try_read(store, data, 0, 1), 0);
    uint64_t before = cg_local_door_generation(store->door);
    cg_local_share_epoch_raised(store->share);
    assert_int_equal(try_read(store, data, 0, 1), -EAGAIN);
    cg_local_door_accepted(store->door, before); // an answer to a request from before the raise
    assert_int_equal(try_read(store, data, 0, 1), -EAGAIN);
    after_request(store);
    assert_int_equal(try_read(store, data, 0, 1), 0);
}

// A volume's chunks are numbered one after the other: they may not push each other out while half
// of the table is free.
static void neighbours_do_not_push_each_other_out(void **state) {
    enum { CHUNKS_MAX = 256, CHUNKS = CHUNKS_MAX / 2 };
    struct store *store = *state;
    struct cg_local_reader *reader;
    assert_int_equal(cg_local_reader_create(store->reactor, BLOCKS, CHUNKS_MAX, &reader), 0);
    struct cg_local_door *door = cg_local_door_get(reader, store->address);
    assert_non_null(door);
    spin(store, 5);
    cg_local_door_accepted(door, cg_local_door_generation(door));
    uint8_t data[BLOCK];
    put(store, 0, 7);
    for (uint64_t key = 0; key < CHUNKS; key++) {
        cg_local_want(door, key, POOL, COPYSET, CHUNK);
        for (unsigned i = 0; i < 1000 && cg_local_try(reader, key, data, 0, BLOCK) != 0; i++) {
            assert_true(cg_reactor_wait(store->reactor, CG_NS_PER_MS) >= 0);
        }
    }
    for (uint64_t key = 0; key < CHUNKS; key++) {
        assert_int_equal(cg_local_try(reader, key, data, 0, BLOCK), 0);
    }
    cg_local_reader_destroy(reader);
}

static void the_lease_of_the_leader_ends_reads(void **state) {
    struct store *store = *state;
    uint8_t data[BLOCK];
    cg_local_share_lease(store->share, GROUP, cg_boottime_ns() + 20 * CG_NS_PER_MS);
    assert_int_equal(try_read(store, data, 0, 1), 0);
    // The others' leases are theirs.
    cg_local_share_lease(store->share, GROUP + 1, CG_LOCAL_NEVER_ENDS);
    spin(store, 25);
    assert_int_equal(try_read(store, data, 0, 1), -EAGAIN);
    cg_local_share_lease(store->share, GROUP, cg_boottime_ns() + CG_NS_PER_S);
    cg_local_share_lease(store->share, GROUP + 1, 0);
    assert_int_equal(try_read(store, data, 0, 1), 0);
    cg_local_share_lease(store->share, GROUP, 0); // it leads no more
    assert_int_equal(try_read(store, data, 0, 1), -EAGAIN);
}

static void as_many_copysets_as_a_disk_may_have_have_a_lease(void **state) {
    struct store *store = *state;
    uint8_t data[BLOCK];
    for (uint64_t group = 1; group < CG_LOCAL_LEASES; group++) {
        if (group != GROUP) {
            cg_local_share_lease(store->share, group, CG_LOCAL_NEVER_ENDS);
        }
    }
    // One too many is read by request; nobody else's is touched.
    assert_int_equal(try_read(store, data, 0, 1), 0);
    cg_local_share_lease(store->share, GROUP, 0);
    assert_int_equal(try_read(store, data, 0, 1), -EAGAIN);
}

static void an_epoch_being_raised_stops_reads_until_its_end(void **state) {
    struct store *store = *state;
    uint8_t data[BLOCK];
    cg_local_share_epoch_begin(store->share);
    assert_int_equal(try_read(store, data, 0, 1), -EAGAIN);
    after_request(store); // it was accepted by a copyset that does not have the epoch yet
    assert_int_equal(try_read(store, data, 0, 1), -EAGAIN);
    cg_local_share_epoch_begin(store->share);
    cg_local_share_epoch_end(store->share);
    after_request(store);
    assert_int_equal(try_read(store, data, 0, 1), -EAGAIN);
    cg_local_share_epoch_end(store->share);
    assert_int_equal(try_read(store, data, 0, 1), -EAGAIN);
    after_request(store);
    assert_int_equal(try_read(store, data, 0, 1), 0);
}

static void a_slot_with_another_chunk_is_noticed_and_asked_for_again(void **state) {
    struct store *store = *state;
    uint8_t data[BLOCK];
    uint32_t pending = 0;
    put(store, 0, 5);
    cg_local_slot_begin(slot_of(store), &pending);
    slot_of(store)->chunk_id = CHUNK + 1;
    cg_local_slot_end(slot_of(store), &pending);
    assert_int_equal(try_read(store, data, 0, 1), -EAGAIN);
    store->slot_index = 2;
    slot_of(store)->chunk_id = CHUNK;
    slot_of(store)->group = GROUP;
    put(store, 0, 6);
    after_request(store);
    assert_int_equal(try_read(store, data, 0, 1), 0);
    assert_int_equal(data[0], 6);
}

static void a_successor_closes_the_map_of_a_killed_chunkserver(void **state) {
    struct store *store = *state;
    uint8_t data[BLOCK];
    put(store, 0, 1);
    assert_int_equal(try_read(store, data, 0, 1), 0);
    // The same folder, another process: the predecessor never said good-bye to its clients.
    struct cg_local_share *successor = NULL;
    assert_int_equal(cg_local_share_create(store->folder, 4, DATA_OFFSET, &successor), 0);
    assert_int_equal(try_read(store, data, 0, 1), -EAGAIN);
    cg_local_share_destroy(successor);
}

static void a_reset_reader_opens_the_door_anew(void **state) {
    struct store *store = *state;
    uint8_t data[BLOCK];
    uint64_t generation = cg_local_door_generation(store->door);
    cg_local_share_destroy(store->share);
    store->share = NULL;
    cg_local_door_reset(store->door);
    assert_int_equal(try_read(store, data, 0, 1), -EAGAIN);
    start_share(store);
    put(store, 0, 3);
    spin(store, 1200);
    // What the predecessor accepted says nothing here.
    cg_local_door_accepted(store->door, generation);
    cg_local_want(store->door, KEY, POOL, COPYSET, CHUNK);
    spin(store, 5);
    assert_int_equal(try_read(store, data, 0, 1), -EAGAIN);
    after_request(store);
    assert_int_equal(try_read(store, data, 0, 1), 0);
    assert_int_equal(data[0], 3);
}

static void a_forgotten_chunk_is_not_read_and_a_late_answer_not_believed(void **state) {
    struct store *store = *state;
    uint8_t data[BLOCK];
    assert_int_equal(try_read(store, data, 0, 1), 0);
    cg_local_forget(store->reader, KEY);
    assert_int_equal(try_read(store, data, 0, 1), -EAGAIN);
    cg_local_want(store->door, KEY, POOL, COPYSET, CHUNK);
    cg_local_forget(store->reader, KEY);
    spin(store, 5);
    assert_int_equal(try_read(store, data, 0, 1), -EAGAIN);
    after_request(store);
    assert_int_equal(try_read(store, data, 0, 1), 0);
}

struct racer {
    struct store *store;
    atomic_bool stop;
    _Atomic uint64_t acknowledged; // the value in block 0, modulo 256, never older
    uint64_t served;
    bool wrong;
};

static void *race_reader(void *argument) {
    struct racer *racer = argument;
    uint8_t data[2 * BLOCK];
    while (!atomic_load(&racer->stop)) {
        uint64_t before = atomic_load(&racer->acknowledged);
        if (try_read(racer->store, data, 0, 2) != 0) {
            continue;
        }
        uint64_t after = atomic_load(&racer->acknowledged) + 1;
        racer->served++;
        uint8_t age = (uint8_t)(data[0] - (uint8_t)before);
        bool torn = memcmp(data, data + 1, BLOCK - 1) != 0;
        if (torn || (after - before < 200 && age > after - before)) {
            racer->wrong = true;
        }
    }
    return NULL;
}

static void readers_racing_a_writer_see_no_torn_and_no_old_data(void **state) {
    struct store *store = *state;
    struct racer racer = {.store = store};
    put(store, 0, 0);
    pthread_t threads[2];
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, race_reader, &racer), 0);
    }
    uint64_t end = cg_now_ns() + 700 * CG_NS_PER_MS;
    for (uint64_t value = 1; cg_now_ns() < end; value++) {
        put(store, 0, (uint8_t)value);
        atomic_store(&racer.acknowledged, value);
        if (value % 64 == 0) {
            usleep(200);
        }
        if (value % 4096 == 0) {
            cg_local_door_reset(store->door); // while readers are inside
            spin(store, 1100);
            after_request(store);
            end += 1100 * CG_NS_PER_MS;
            if (value > 8192) {
                break;
            }
        }
    }
    atomic_store(&racer.stop, true);
    for (unsigned i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_true(racer.served > 100);
    assert_false(racer.wrong);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(reads_data_and_zeros_for_holes, setup, teardown),
        cmocka_unit_test_setup_teardown(refuses_what_is_not_whole_blocks_or_outside, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(refuses_while_a_write_is_not_in_the_file, setup, teardown),
        cmocka_unit_test_setup_teardown(refuses_rotten_data, setup, teardown),
        cmocka_unit_test_setup_teardown(a_raised_epoch_stops_reads_until_a_request_is_accepted,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(neighbours_do_not_push_each_other_out, setup, teardown),
        cmocka_unit_test_setup_teardown(the_lease_of_the_leader_ends_reads, setup, teardown),
        cmocka_unit_test_setup_teardown(as_many_copysets_as_a_disk_may_have_have_a_lease, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(an_epoch_being_raised_stops_reads_until_its_end, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_slot_with_another_chunk_is_noticed_and_asked_for_again,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(a_successor_closes_the_map_of_a_killed_chunkserver, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_reset_reader_opens_the_door_anew, setup, teardown),
        cmocka_unit_test_setup_teardown(
            a_forgotten_chunk_is_not_read_and_a_late_answer_not_believed, setup, teardown),
        cmocka_unit_test_setup_teardown(readers_racing_a_writer_see_no_torn_and_no_old_data, setup,
                                        teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
