// SPDX-License-Identifier: BSD-3-Clause
//
// One store, member 1 of a group whose other members, 2 and 3, are the test: it says what is
// committed and who leads, and sees what a store does in between.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "chunkserver/copyset_state.h"
#include "chunkserver/store_internal.h"
#include "simreactor.h"

#define CHUNK       (128U << 10)
#define GROUP       (UINT64_C(1) << 32 | 1)
#define ENTRIES_MAX 16U
#define VOLUME      7U
#define POOL_BYTES  (16U << 20)
#define BUFFERS     (POOL_BYTES / CG_BLOCK_SIZE + 1)

struct answer {
    bool here;
    cg_status status;
    uint64_t leader;
};

struct fixture {
    struct simdisk *sim;
    struct cg_reactor *reactor;
    struct cg_buffer_pool *pool;
    struct cg_store *store;
    uint64_t now_ns;
    bool vote;       // 2 and 3 vote for the store
    bool follow;     // 2 and 3 acknowledge what it sends
    uint64_t logged; // the highest index that it sent
    uint64_t last;   // the log as the test knows it
    uint64_t last_term;
    unsigned epochs; // raised
    uint8_t data[CHUNK];
};

// ---- The others

static struct cg_raft_message reply_to(const struct cg_raft_message *message,
                                       enum cg_raft_message_type type) {
    return (struct cg_raft_message){
        .type = type, .from = message->to, .to = 1, .term = message->term};
}

struct reply {
    struct cg_list node;
    struct cg_raft_message message;
};

static struct cg_list replies; // they come after the store has said what it had to say

static void queue_reply(const struct cg_raft_message *message) {
    struct reply *reply = malloc(sizeof(*reply));
    reply->message = *message;
    cg_list_init(&reply->node);
    cg_list_push_back(&replies, &reply->node);
}

static void heard(void *context, uint64_t group, const struct cg_raft_message *message,
                  struct cg_log_entry *const *entries) {
    struct fixture *f = context;
    (void)entries;
    assert_int_equal(GROUP, group);
    struct cg_raft_message reply;
    switch (message->type) {
    case CG_RAFT_VOTE:
        reply = reply_to(message, CG_RAFT_VOTE_REPLY);
        reply.pre_vote = message->pre_vote;
        reply.granted = true;
        if (f->vote) {
            queue_reply(&reply);
        }
        break;
    case CG_RAFT_APPEND:
        reply = reply_to(message, CG_RAFT_APPEND_REPLY);
        reply.match = message->prev_index + message->count;
        f->logged = reply.match > f->logged ? reply.match : f->logged;
        if (f->follow) {
            f->last = reply.match > f->last ? reply.match : f->last;
            f->last_term = message->term;
            queue_reply(&reply);
        }
        break;
    case CG_RAFT_HEARTBEAT:
        reply = reply_to(message, CG_RAFT_HEARTBEAT_REPLY);
        reply.round = message->round;
        reply.sent_ns = message->sent_ns;
        reply.match = f->last;
        reply.received = f->last;
        if (f->follow) {
            queue_reply(&reply);
        }
        break;
    default:
        break;
    }
}

static uint64_t now_of(void *context) {
    const struct fixture *f = context;
    return f->now_ns;
}

static void epoch_raised(void *context, struct cg_copyset *copyset, uint64_t file_id) {
    struct fixture *f = context;
    (void)copyset;
    assert_int_equal(VOLUME, file_id);
    f->epochs++;
}

// ---- Life

static void begin_on(struct fixture *f, uint64_t seed, uint32_t chunks_max,
                     uint64_t capacity_bytes) {
    char error[256] = "";
    struct simdisk_options disk = {.seed = seed, .capacity_bytes = capacity_bytes};
    memset(f, 0, sizeof(*f));
    cg_list_init(&replies);
    f->now_ns = CG_NS_PER_S;
    f->sim = simdisk_create(&disk);
    f->reactor = simreactor_create(f->sim);
    assert_int_equal(0, cg_buffer_pool_create(POOL_BYTES, &f->pool));
    struct cg_store_options options = {
        .chunk_size = CHUNK,
        .chunks_max = chunks_max,
        .wal_bytes = 8U << 20,
        .wal_segment_bytes = 2U << 20,
        .checkpoint_interval_ns = 1000 * CG_NS_PER_S,
        .reserve_bytes = capacity_bytes / 8,
        .send = heard,
        .send_context = f,
        .now = now_of,
        .now_context = f,
        .events = {.epoch_raised = epoch_raised, .context = f},
    };
    assert_int_equal(0, cg_store_open(simdisk_disk(f->sim), f->reactor, f->pool, &options,
                                      &f->store, error, sizeof(error)));
    uint64_t founders[] = {1, 2, 3};
    struct cg_copyset_spec spec = {
        .pool = 1, .copyset = 1, .self = 1, .founders = founders, .founder_count = 3};
    assert_int_equal(0, cg_store_add_copyset(f->store, &spec));
}

static void begin(struct fixture *f, uint64_t seed, uint32_t chunks_max) {
    begin_on(f, seed, chunks_max, 0);
}

static struct cg_copyset *copyset(struct fixture *f) {
    return cg_store_copyset(f->store, 1, 1);
}

static void advance(struct fixture *f, uint64_t ns) {
    f->now_ns += ns;
    simreactor_advance(f->reactor, ns);
}

static void turn(struct fixture *f) {
    simreactor_iterate(f->reactor);
    struct cg_list *node = cg_list_pop_front(&replies);
    if (node != NULL) {
        struct reply *reply = CG_CONTAINER_OF(node, struct reply, node);
        cg_store_receive(f->store, GROUP, &reply->message, NULL);
        free(reply);
    } else if (!simdisk_step(f->sim)) {
        advance(f, CG_NS_PER_MS);
    } else {
        advance(f, CG_NS_PER_MS / 50);
    }
}

static void turns(struct fixture *f, unsigned count) {
    while (count-- > 0) {
        turn(f);
    }
}

static void end(struct fixture *f) {
    for (unsigned count = 0; !cg_store_idle(f->store); count++) {
        assert_true(count < 100000);
        turn(f);
    }
    cg_store_close(f->store);
    struct cg_list *node;
    while ((node = cg_list_pop_front(&replies)) != NULL) {
        free(CG_CONTAINER_OF(node, struct reply, node));
    }
    cg_buffer_pool_destroy(f->pool);
    simreactor_destroy(f->reactor);
    simdisk_destroy(f->sim);
}

// ---- Entries of another leader

static struct cg_log_entry *make_entry(struct fixture *f, uint64_t term, uint64_t index,
                                       const struct cg_entry *what, uint8_t value) {
    uint8_t meta[CG_ENTRY_META_SIZE];
    cg_entry_encode(what, meta);
    uint32_t length = cg_entry_payload_length(what);
    struct cg_buffer *buffer = NULL;
    if (length > 0) {
        buffer = cg_buffer_alloc(f->pool, length);
        memset(buffer->data, value, length);
    }
    struct cg_log_entry *entry =
        cg_log_entry_make(what->type, term, index, meta, sizeof(meta), buffer,
                          buffer != NULL ? buffer->data : NULL, length, NULL);
    cg_buffer_unref(buffer);
    return entry;
}

static struct cg_entry a_write(uint64_t chunk, uint32_t first, uint32_t blocks) {
    return (struct cg_entry){
        .type = CG_ENTRY_WRITE,
        .chunk_id = chunk,
        .file_id = VOLUME,
        .sn = 1,
        .offset = first * CG_BLOCK_SIZE,
        .length = blocks * CG_BLOCK_SIZE,
    };
}

// Member 2 leads in `term` and appends; entry i is filled with the byte `value` + i. All is
// committed.
static void append(struct fixture *f, uint64_t term, const struct cg_entry *what, unsigned count,
                   uint8_t value) {
    struct cg_log_entry *entries[ENTRIES_MAX];
    for (unsigned i = 0; i < count; i++) {
        entries[i] = make_entry(f, term, f->last + 1 + i, &what[i], (uint8_t)(value + i));
    }
    struct cg_raft_message message = {
        .type = CG_RAFT_APPEND,
        .from = 2,
        .to = 1,
        .term = term,
        .prev_index = f->last,
        .prev_term = f->last_term,
        .commit = f->last + count,
        .count = count,
    };
    assert_true(cg_store_receive(f->store, GROUP, &message, entries));
    for (unsigned i = 0; i < count; i++) {
        cg_log_entry_unref(entries[i]);
    }
    f->last += count;
    f->last_term = term;
}

static void until_delivered(struct fixture *f) {
    for (unsigned count = 0; cg_copyset_delivered(copyset(f)) < f->last; count++) {
        assert_true(count < 100000);
        turn(f);
    }
}

static void until_applied(struct fixture *f) {
    for (unsigned count = 0; cg_copyset_applied(copyset(f)) < f->last; count++) {
        assert_true(count < 100000);
        turn(f);
    }
}

// ---- Requests

static void mutated(void *user, const struct cg_mutation_result *result) {
    struct answer *answer = user;
    *answer = (struct answer){true, result->status, result->leader};
}

static void write_chunk(struct fixture *f, uint64_t chunk, uint32_t offset, uint32_t size,
                        uint8_t value, struct answer *answer) {
    struct cg_buffer *buffer = cg_buffer_alloc(f->pool, CHUNK);
    memset(buffer->data + offset % CG_BLOCK_SIZE, value, size);
    struct cg_mutation mutation = {
        .kind = CG_MUTATE_WRITE,
        .copyset = copyset(f),
        .chunk_id = chunk,
        .file_id = VOLUME,
        .sn = 1,
        .offset = offset,
        .size = size,
        .buffer = buffer,
        .data_offset = offset % CG_BLOCK_SIZE,
        .done = mutated,
        .user = answer,
    };
    *answer = (struct answer){0};
    cg_store_mutate(f->store, &mutation);
    cg_buffer_unref(buffer);
}

static void write_bytes(struct fixture *f, uint32_t offset, uint32_t size, uint8_t value,
                        struct answer *answer) {
    write_chunk(f, 1, offset, size, value, answer);
}

static void until_answered(struct fixture *f, const struct answer *answer) {
    for (unsigned count = 0; !answer->here; count++) {
        assert_true(count < 100000);
        turn(f);
    }
}

struct look {
    struct fixture *f;
    bool here;
    cg_status status;
};

static void looked(void *user, const struct cg_read_result *result) {
    struct look *look = user;
    look->here = true;
    look->status = result->status;
    if (result->status == STATUS(SUCCESS)) {
        memcpy(look->f->data, result->data, CHUNK);
    }
}

static cg_status look_once(struct fixture *f, uint64_t chunk) {
    struct look look = {.f = f};
    struct cg_query query = {
        .kind = CG_READ_DATA,
        .copyset = copyset(f),
        .chunk_id = chunk,
        .size = CHUNK,
        .local = true,
        .done = looked,
        .user = &look,
    };
    cg_store_read(f->store, &query);
    for (unsigned count = 0; !look.here; count++) {
        assert_true(count < 100000);
        turn(f);
    }
    return look.status;
}

// What the store holds of a chunk, whoever leads, once there is room for it in memory.
static cg_status look_at(struct fixture *f, uint64_t chunk) {
    cg_status status = look_once(f, chunk);
    for (unsigned count = 0; status == STATUS(OVERLOAD); count++) {
        assert_true(count < 10000);
        turn(f);
        status = look_once(f, chunk);
    }
    return status;
}

static void until_leader(struct fixture *f) {
    f->vote = true;
    f->follow = true;
    for (unsigned count = 0; !cg_copyset_leads(copyset(f)); count++) {
        assert_true(count < 200000);
        turn(f);
    }
}

// ---- Following

static void
reads_see_every_entry_that_was_decided_in_whatever_order_ranges_come_free(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 300; seed++) {
        struct fixture f;
        begin(&f, seed, 0);
        // Each waits for the one before; long ones are written by a thread.
        struct cg_entry entries[] = {a_write(1, 0, 8), a_write(1, 4, 8), a_write(1, 2, 5),
                                     a_write(1, 8, 12)};
        append(&f, 2, entries, 4, 1);
        until_delivered(&f);
        turns(&f, (unsigned)(seed % 23));
        assert_int_equal(STATUS(SUCCESS), look_at(&f, 1));
        static const uint8_t expected[] = {1, 1, 3, 3, 3, 3, 3, 2, 4, 4, 4,
                                           4, 4, 4, 4, 4, 4, 4, 4, 4, 0};
        for (unsigned block = 0; block < sizeof(expected); block++) {
            assert_int_equal(expected[block], f.data[block * CG_BLOCK_SIZE]);
        }
        until_applied(&f);
        end(&f);
    }
}

static void entries_that_find_no_room_wait_and_come_in_order(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 30; seed++) {
        struct fixture f;
        begin(&f, seed, 2); // chunks in memory
        struct cg_entry entries[12];
        for (unsigned i = 0; i < 12; i++) {
            entries[i] = a_write(1 + i % 6, i / 6, 2);
        }
        append(&f, 2, entries, 12, 1);
        until_applied(&f);
        for (unsigned chunk = 1; chunk <= 6; chunk++) {
            assert_int_equal(STATUS(SUCCESS), look_at(&f, chunk));
            assert_int_equal(chunk, f.data[0]);
            assert_int_equal(chunk + 6, f.data[CG_BLOCK_SIZE]);
            assert_int_equal(chunk + 6, f.data[2 * CG_BLOCK_SIZE]);
        }
        end(&f);
    }
}

static void an_epoch_of_another_leader_counts_from_its_entry_on(void **state) {
    (void)state;
    struct fixture f;
    begin(&f, 1, 0);
    struct cg_entry old = a_write(1, 0, 1);
    old.flags = CG_ENTRY_HAS_EPOCH;
    old.epoch = 4;
    struct cg_entry raise = {.type = CG_ENTRY_EPOCH, .file_id = VOLUME, .epoch = 5};
    struct cg_entry entries[] = {old, raise, old};
    append(&f, 2, entries, 3, 1);
    until_applied(&f);
    assert_int_equal(5, cg_copyset_epoch(copyset(&f), VOLUME));
    assert_int_equal(1, f.epochs);
    assert_int_equal(STATUS(SUCCESS), look_at(&f, 1));
    assert_int_equal(1, f.data[0]); // the third entry came too late
    end(&f);
}

// ---- Leading, or not

static void a_request_waits_for_a_leader_and_is_sent_there(void **state) {
    (void)state;
    struct fixture f;
    begin(&f, 1, 0);
    struct answer answer;
    write_bytes(&f, 0, CG_BLOCK_SIZE, 1, &answer);
    turns(&f, 20);
    assert_false(answer.here);
    append(&f, 2, NULL, 0, 0); // says that member 2 leads
    until_answered(&f, &answer);
    assert_int_equal(STATUS(REDIRECTED), answer.status);
    assert_int_equal(2, answer.leader);
    end(&f);
}

static void a_request_waits_an_election_timeout_at_most(void **state) {
    (void)state;
    struct fixture f;
    begin(&f, 1, 0);
    struct answer answer;
    write_bytes(&f, 0, CG_BLOCK_SIZE, 1, &answer);
    advance(&f, CG_HOLD_NS - 1);
    assert_false(answer.here);
    advance(&f, 1);
    assert_true(answer.here);
    assert_int_equal(STATUS(REDIRECTED), answer.status);
    assert_int_equal(0, answer.leader);
    end(&f);
}

static void a_request_that_waited_is_carried_out_by_a_new_leader(void **state) {
    (void)state;
    struct fixture f;
    begin(&f, 1, 0);
    f.vote = true;
    f.follow = true;
    struct answer answer;
    do {
        write_bytes(&f, 0, CG_BLOCK_SIZE, 6, &answer);
        until_answered(&f, &answer);
    } while (answer.status == STATUS(REDIRECTED));
    assert_int_equal(STATUS(SUCCESS), answer.status);
    assert_int_equal(STATUS(SUCCESS), look_at(&f, 1));
    assert_int_equal(6, f.data[0]);
    end(&f);
}

static void a_leader_that_loses_its_place_redirects_what_it_had_under_way(void **state) {
    (void)state;
    struct fixture f;
    begin(&f, 1, 0);
    until_leader(&f);
    f.follow = false;
    struct answer logged;
    struct answer waiting;
    write_bytes(&f, 0, CG_BLOCK_SIZE, 1, &logged);
    write_bytes(&f, 0, 2 * CG_BLOCK_SIZE, 2, &waiting);
    turns(&f, 10);
    assert_false(logged.here || waiting.here);
    append(&f, 9, NULL, 0, 0);
    until_answered(&f, &logged);
    until_answered(&f, &waiting);
    assert_int_equal(STATUS(REDIRECTED), logged.status);
    assert_int_equal(STATUS(REDIRECTED), waiting.status);
    assert_int_equal(2, waiting.leader);
    end(&f);
}

// A block is merged by a leader that is deposed, and leads again, before it has read the rest of
// the block: what others wrote there meanwhile must not be undone.
static void what_was_merged_in_an_older_term_is_not_logged(void **state) {
    (void)state;
    unsigned met = 0;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct fixture f;
        begin(&f, seed, 0);
        until_leader(&f);
        struct answer answer;
        write_bytes(&f, 0, CG_BLOCK_SIZE, 1, &answer);
        until_answered(&f, &answer);
        until_applied(&f);
        simdisk_hold_reads(f.sim, true);
        write_bytes(&f, 0, 100, 2, &answer);
        uint64_t before = f.last;
        turns(&f, 50);
        if (f.last == before) { // it is reading
            met++;
            struct cg_entry other = a_write(1, 0, 1);
            uint64_t term = f.last_term + 5;
            append(&f, term, &other, 1, 7);
            until_delivered(&f);
            until_leader(&f);
            simdisk_hold_reads(f.sim, false);
            until_answered(&f, &answer);
            assert_int_equal(STATUS(REDIRECTED), answer.status);
            until_applied(&f);
            assert_int_equal(STATUS(SUCCESS), look_at(&f, 1));
            assert_int_equal(7, f.data[0]);
            assert_int_equal(7, f.data[200]);
        }
        simdisk_hold_reads(f.sim, false);
        end(&f);
    }
    assert_true(met > 0);
}

static void compare(struct fixture *f, uint8_t expected, struct answer *answer) {
    struct cg_buffer *buffer = cg_buffer_alloc(f->pool, 2 * CG_BLOCK_SIZE);
    memset(buffer->data, expected, 2 * CG_BLOCK_SIZE);
    struct cg_mutation mutation = {
        .kind = CG_MUTATE_COMPARE_AND_WRITE,
        .copyset = copyset(f),
        .chunk_id = 1,
        .file_id = VOLUME,
        .sn = 1,
        .size = CG_BLOCK_SIZE,
        .buffer = buffer,
        .data_offset = CG_BLOCK_SIZE,
        .done = mutated,
        .user = answer,
    };
    *answer = (struct answer){0};
    cg_store_mutate(f->store, &mutation);
    cg_buffer_unref(buffer);
}

// A difference is found in what may be old: it is no answer until the others have confirmed that
// nobody else leads.
static void a_leader_that_may_be_deposed_does_not_say_that_data_differs(void **state) {
    (void)state;
    struct fixture f;
    begin(&f, 3, 0);
    until_leader(&f);
    struct answer answer;
    write_bytes(&f, 0, CG_BLOCK_SIZE, 1, &answer);
    until_answered(&f, &answer);
    until_applied(&f);
    compare(&f, 2, &answer);
    until_answered(&f, &answer);
    assert_int_equal(STATUS(MISCOMPARE), answer.status); // under the lease
    f.follow = false;
    while (cg_copyset_log_can_read(cg_copyset_raft(copyset(&f)))) {
        turn(&f);
    }
    assert_true(cg_copyset_leads(copyset(&f)));
    compare(&f, 2, &answer);
    turns(&f, 3);
    assert_false(answer.here);
    append(&f, f.last_term + 5, NULL, 0, 0);
    until_answered(&f, &answer);
    assert_int_equal(STATUS(REDIRECTED), answer.status);
    end(&f);
}

// The free space that the store knows may be some milliseconds old: not when it refuses a write.
static void what_a_deletion_gave_back_counts_at_once(void **state) {
    (void)state;
    struct fixture f;
    begin_on(&f, 4, 0, 24U << 20);
    until_leader(&f);
    struct answer answer = {0};
    uint64_t chunk = 0;
    while (answer.status != STATUS(NOSPACE)) {
        assert_true(++chunk < 10000);
        write_chunk(&f, chunk, 0, CHUNK, 5, &answer);
        until_answered(&f, &answer);
        until_applied(&f);
    }
    for (uint64_t deleted = 1; deleted <= 8; deleted++) {
        struct cg_mutation deletion = {
            .kind = CG_MUTATE_DELETE,
            .copyset = copyset(&f),
            .chunk_id = deleted,
            .file_id = VOLUME,
            .sn = 1,
            .done = mutated,
            .user = &answer,
        };
        answer = (struct answer){0};
        cg_store_mutate(f.store, &deletion);
        until_answered(&f, &answer);
        assert_int_equal(STATUS(SUCCESS), answer.status);
        until_applied(&f);
    }
    write_chunk(&f, chunk, 0, CHUNK, 6, &answer);
    until_answered(&f, &answer);
    assert_int_equal(STATUS(SUCCESS), answer.status);
    until_applied(&f);
    end(&f);
}

#define MEMBER_FILE CG_BLOCK_SIZE // what one takes on the disk

// Another program takes all the space that is free but for a small file's.
static void crowd(struct fixture *f) {
    struct cg_disk *disk = simdisk_disk(f->sim);
    uint64_t free_bytes;
    uint64_t total_bytes;
    int handle = disk->ops->open(disk, "foreign", O_RDWR | O_CREAT);
    assert_true(handle >= 0);
    int64_t size = disk->ops->size(disk, handle);
    assert_int_equal(0, disk->ops->space(disk, &free_bytes, &total_bytes));
    if (free_bytes > MEMBER_FILE) {
        uint64_t length = (uint64_t)size + free_bytes - MEMBER_FILE;
        assert_int_equal(0, disk->ops->allocate(disk, handle, 0, length));
    }
    disk->ops->close(disk, handle);
}

// The leader goes on while the disk is full, until the reserve is used up.
static void append_until_stalled(struct fixture *f) {
    for (uint64_t chunk = 1; f->store->stalled_count == 0; chunk++) {
        assert_true(chunk < 10000);
        crowd(f);
        struct cg_entry what = a_write(chunk, 0, CHUNK / CG_BLOCK_SIZE);
        append(f, 5, &what, 1, 1);
        until_delivered(f);
        turns(f, 20);
    }
    crowd(f);
    cg_store_checkpoint(f->store);
    assert_true(cg_store_checkpointing(f->store)); // it waits as well
}

static void what_finds_no_room_does_not_hold_up_the_end(void **state) {
    (void)state;
    struct fixture f;
    begin_on(&f, 5, 0, 24U << 20);
    append_until_stalled(&f);
    end(&f);
}

static void is_removed(void *user, int status) {
    int *removed = user;
    *removed = status;
}

static void remove_replica(struct fixture *f) {
    int removed = 1;
    cg_store_remove_copyset(f->store, 1, 1, 1, is_removed, &removed);
    for (unsigned count = 0; removed == 1; count++) {
        assert_true(count < 100000);
        turn(f);
    }
    assert_int_equal(0, removed);
    assert_int_equal(0, cg_store_copyset_count(f->store));
}

static void a_replica_on_a_full_disk_can_be_removed_and_gives_its_space_back(void **state) {
    (void)state;
    struct fixture f;
    begin_on(&f, 6, 0, 24U << 20);
    append_until_stalled(&f);
    uint64_t used = simdisk_used(f.sim);
    remove_replica(&f);
    assert_true(simdisk_used(f.sim) < used);
    end(&f);
}

// Chunk 1 is saved, and its metadata not in memory any more.
static void begin_with_a_cold_chunk(struct fixture *f, uint64_t seed) {
    begin(f, seed, 4);
    for (uint64_t chunk = 1; chunk <= 8; chunk++) {
        struct cg_entry what = a_write(chunk, 0, 1);
        append(f, 5, &what, 1, 1);
        until_applied(f);
        cg_store_checkpoint(f->store);
        while (cg_store_checkpointing(f->store)) {
            turn(f);
        }
    }
    assert_null(cg_chunk_find(copyset(f), 1));
}

static void a_replica_with_a_chunk_that_memory_is_short_for_can_be_removed(void **state) {
    (void)state;
    struct fixture f;
    begin_with_a_cold_chunk(&f, 8);
    struct cg_buffer *taken[BUFFERS];
    unsigned count = 0;
    while (count < BUFFERS && (taken[count] = cg_buffer_alloc(f.pool, CG_BLOCK_SIZE)) != NULL) {
        count++;
    }
    assert_true(count < BUFFERS);
    struct cg_entry what = a_write(1, 0, 1);
    what.type = CG_ENTRY_ZERO;
    append(&f, 5, &what, 1, 0);
    until_delivered(&f);
    assert_false(cg_list_empty(&f.store->unloadable)); // it is tried again, now and then
    remove_replica(&f);
    assert_true(cg_list_empty(&f.store->unloadable));
    while (count > 0) {
        cg_buffer_unref(taken[--count]);
    }
    turns(&f, 500);
    end(&f);
}

static void a_replica_with_a_chunk_that_cannot_be_loaded_can_be_removed(void **state) {
    (void)state;
    struct fixture f;
    begin_with_a_cold_chunk(&f, 7);
    for (uint64_t slot = 0; slot < 2; slot++) {
        assert_int_equal(
            0, simdisk_flip(f.sim, "chunks/1-1/chunk_1", slot * CG_CHUNK_SLOT_STRIDE + 40, 1));
    }
    struct cg_entry what = a_write(1, 0, 1);
    append(&f, 5, &what, 1, 2);
    until_delivered(&f);
    turns(&f, 50);
    assert_int_equal(1, f.store->ops_decided); // it waits for a file that is well
    remove_replica(&f);
    end(&f);
}

struct wait {
    bool here;
    int status;
};

static void waited(void *user, int status) {
    *(struct wait *)user = (struct wait){true, status};
}

static int until_done(struct fixture *f, struct wait *wait) {
    for (unsigned count = 0; !wait->here; count++) {
        assert_true(count < 100000);
        turn(f);
    }
    wait->here = false;
    return wait->status;
}

static enum cg_copy_mark mark_of(struct fixture *f) {
    enum cg_copy_mark mark;
    struct cg_copyset_state state = {0};
    assert_int_equal(0, cg_copy_mark_load(simdisk_disk(f->sim), "chunks/1-1", &mark, &state));
    cg_copyset_state_clear(&state);
    return mark;
}

// The next copying puts other files in place: the state that was refused may not count for them.
static void a_state_that_the_log_refused_does_not_count_for_the_next_copying(void **state) {
    (void)state;
    struct fixture f;
    begin(&f, 5, 0);
    struct cg_entry entry = a_write(1, 0, 1);
    append(&f, 3, &entry, 1, 7);
    until_applied(&f);
    struct cg_copyset_state copied;
    assert_int_equal(0, cg_copyset_state_get(copyset(&f), &copied));
    struct wait wait = {0};
    cg_copyset_pause(copyset(&f), waited, &wait);
    assert_int_equal(0, until_done(&f, &wait));
    cg_copyset_log_install_begin(cg_copyset_raft(copyset(&f)));
    cg_copyset_copying(copyset(&f), waited, &wait);
    assert_int_equal(0, until_done(&f, &wait));
    assert_int_equal(CG_COPY_MARK_COPYING, mark_of(&f));
    copied.log.index += 10;
    copied.log.index_term = 1000; // of a term that this server does not know
    cg_copyset_install(copyset(&f), &copied, waited, &wait);
    assert_int_equal(-EINVAL, until_done(&f, &wait));
    assert_true(cg_copyset_incomplete(copyset(&f)));
    assert_int_equal(CG_COPY_MARK_COMPLETE, mark_of(&f));
    cg_copyset_copying(copyset(&f), waited, &wait);
    assert_int_equal(0, until_done(&f, &wait));
    assert_true(cg_copyset_incomplete(copyset(&f)));
    assert_int_equal(CG_COPY_MARK_COPYING, mark_of(&f));
    cg_copyset_state_clear(&copied);
    end(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_see_every_entry_that_was_decided_in_whatever_order_ranges_come_free),
        cmocka_unit_test(entries_that_find_no_room_wait_and_come_in_order),
        cmocka_unit_test(an_epoch_of_another_leader_counts_from_its_entry_on),
        cmocka_unit_test(a_request_waits_for_a_leader_and_is_sent_there),
        cmocka_unit_test(a_request_waits_an_election_timeout_at_most),
        cmocka_unit_test(a_request_that_waited_is_carried_out_by_a_new_leader),
        cmocka_unit_test(a_leader_that_loses_its_place_redirects_what_it_had_under_way),
        cmocka_unit_test(a_leader_that_may_be_deposed_does_not_say_that_data_differs),
        cmocka_unit_test(what_was_merged_in_an_older_term_is_not_logged),
        cmocka_unit_test(what_a_deletion_gave_back_counts_at_once),
        cmocka_unit_test(a_state_that_the_log_refused_does_not_count_for_the_next_copying),
        cmocka_unit_test(what_finds_no_room_does_not_hold_up_the_end),
        cmocka_unit_test(a_replica_on_a_full_disk_can_be_removed_and_gives_its_space_back),
        cmocka_unit_test(a_replica_with_a_chunk_that_memory_is_short_for_can_be_removed),
        cmocka_unit_test(a_replica_with_a_chunk_that_cannot_be_loaded_can_be_removed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
