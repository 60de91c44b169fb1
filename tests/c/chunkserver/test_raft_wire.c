// SPDX-License-Identifier: BSD-3-Clause
//
// The codec of raft's messages: what is written is read back, and what no server of the protocol
// sends is refused with the reason.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/crc32c.h"
#include "chunkserver/bytes.h"
#include "chunkserver/raft_wire.h"

#define BLOCKS_MAX CG_WAL_PAYLOAD_BLOCKS_MAX

// The places of the header's fields, as docs/wire.md has them.
enum { CRC = 4, VERSION = 8, LENGTH = 12, PAYLOAD = 16, MESSAGES = 20, RESERVED = 24 };
enum { TYPE = 0, FLAGS = 2, COUNT = 4 };
enum { ENTRY_TYPE = 8, ENTRY_META = 12, ENTRY_PAYLOAD = 16 };

// ---- A writer

struct writer {
    uint8_t *bytes;
    uint32_t length;
    uint8_t *payload;
    uint32_t payload_length;
    uint32_t messages;
};

static void writer_init(struct writer *w) {
    w->bytes = malloc(CG_RAFT_FRAME_LENGTH_MAX);
    w->payload = malloc(CG_RAFT_FRAME_PAYLOAD_MAX);
    w->length = CG_RAFT_FRAME_HEADER;
    w->payload_length = 0;
    w->messages = 0;
}

static void writer_free(struct writer *w) {
    free(w->bytes);
    free(w->payload);
}

static void put_message(struct writer *w, uint64_t group, const struct cg_raft_message *message) {
    cg_raft_message_encode(group, message, w->bytes + w->length);
    w->length += cg_raft_message_size(message);
    w->messages++;
}

static void put_entry(struct writer *w, uint64_t term, uint32_t type, const void *meta,
                      uint32_t meta_length, uint32_t blocks, uint8_t fill) {
    uint32_t crcs[BLOCKS_MAX];
    for (uint32_t i = 0; i < blocks; i++) {
        uint8_t *block = w->payload + w->payload_length + (size_t)i * CG_WAL_BLOCK;
        memset(block, fill + (int)i, CG_WAL_BLOCK);
        crcs[i] = cg_crc32c(0, block, CG_WAL_BLOCK);
    }
    struct cg_raft_wire_entry entry = {
        .term = term,
        .type = type,
        .meta_length = meta_length,
        .payload_length = blocks * CG_WAL_BLOCK,
        .meta = meta,
        .block_crcs = crcs,
    };
    cg_raft_entry_encode(&entry, w->bytes + w->length);
    w->length += cg_raft_entry_size(&entry);
    w->payload_length += entry.payload_length;
}

static void seal(struct writer *w) {
    cg_raft_frame_seal(w->bytes, w->length, w->payload_length, w->messages);
}

// The checksum, after a test has changed something.
static void reseal(struct writer *w) {
    cg_put_u32(w->bytes + CRC, cg_crc32c(0, w->bytes + VERSION, w->length - VERSION));
}

static int open_frame(const struct writer *w, struct cg_raft_frame *frame, const char **why) {
    *why = NULL;
    return cg_raft_frame_open(w->bytes, w->length, w->payload_length, frame, why);
}

// ---- Everything that the core sends

static uint64_t random_u64(void) {
    return (uint64_t)random() << 42 ^ (uint64_t)random() << 21 ^ (uint64_t)random();
}

// A message with random values in the fields of its type, all others zero, as the core sends it.
static struct cg_raft_message random_message(enum cg_raft_message_type type) {
    struct cg_raft_message m = {
        .type = type, .from = random_u64(), .to = random_u64(), .term = random_u64()};
    switch (type) {
    case CG_RAFT_VOTE:
        m.pre_vote = random() & 1;
        m.forced = random() & 1;
        m.last_index = random_u64();
        m.last_term = random_u64();
        break;
    case CG_RAFT_VOTE_REPLY:
        m.pre_vote = random() & 1;
        m.granted = random() & 1;
        break;
    case CG_RAFT_APPEND:
        m.prev_index = random_u64();
        m.prev_term = random_u64();
        m.commit = random_u64();
        m.count = (uint32_t)random() % 5;
        break;
    case CG_RAFT_APPEND_REPLY:
        m.rejected = random() & 1;
        m.match = random_u64();
        m.prev_index = random_u64();
        m.hint_index = random_u64();
        m.hint_term = random_u64();
        break;
    case CG_RAFT_HEARTBEAT:
        m.quiesce = random() & 1;
        m.round = random_u64();
        m.sent_ns = random_u64();
        m.commit = random_u64();
        break;
    case CG_RAFT_HEARTBEAT_REPLY:
        m.round = random_u64();
        m.sent_ns = random_u64();
        m.match = random_u64();
        m.received = random_u64();
        break;
    case CG_RAFT_TIMEOUT_NOW:
        m.round = random_u64();
        break;
    }
    return m;
}

static void assert_same(const struct cg_raft_message *a, const struct cg_raft_message *b) {
    assert_int_equal(a->type, b->type);
    assert_int_equal(a->from, b->from);
    assert_int_equal(a->to, b->to);
    assert_int_equal(a->term, b->term);
    assert_int_equal(a->pre_vote, b->pre_vote);
    assert_int_equal(a->forced, b->forced);
    assert_int_equal(a->granted, b->granted);
    assert_int_equal(a->last_index, b->last_index);
    assert_int_equal(a->last_term, b->last_term);
    assert_int_equal(a->prev_index, b->prev_index);
    assert_int_equal(a->prev_term, b->prev_term);
    assert_int_equal(a->commit, b->commit);
    assert_int_equal(a->count, b->count);
    assert_null(b->entries);
    assert_int_equal(a->rejected, b->rejected);
    assert_int_equal(a->match, b->match);
    assert_int_equal(a->hint_index, b->hint_index);
    assert_int_equal(a->hint_term, b->hint_term);
    assert_int_equal(a->round, b->round);
    assert_int_equal(a->sent_ns, b->sent_ns);
    assert_int_equal(a->quiesce, b->quiesce);
    assert_int_equal(a->received, b->received);
}

#define MANY 40U

struct said {
    uint64_t group;
    struct cg_raft_message message;
    uint32_t meta_length[5];
    uint32_t blocks[5];
    uint8_t fill[5];
    uint64_t term[5];
};

static void say(struct writer *w, struct said *said) {
    static const uint8_t meta[CG_WAL_META_MAX] = "what it says";
    said->group = random_u64();
    said->message = random_message((enum cg_raft_message_type)(1 + random() % 7));
    put_message(w, said->group, &said->message);
    for (uint32_t i = 0; i < said->message.count; i++) {
        said->meta_length[i] = (uint32_t)random() % 100;
        said->blocks[i] = (uint32_t)random() % 4;
        said->fill[i] = (uint8_t)random();
        said->term[i] = random_u64();
        put_entry(w, said->term[i], 1 + i, meta, said->meta_length[i], said->blocks[i],
                  said->fill[i]);
    }
}

static void assert_entries(struct cg_raft_frame *frame, const struct said *said,
                           const uint8_t *payload) {
    for (uint32_t i = 0; i < said->message.count; i++) {
        struct cg_raft_wire_entry entry;
        assert_true(cg_raft_frame_entry(frame, &entry));
        assert_int_equal(entry.term, said->term[i]);
        assert_int_equal(entry.type, 1 + i);
        assert_int_equal(entry.meta_length, said->meta_length[i]);
        assert_int_equal(entry.payload_length, said->blocks[i] * CG_WAL_BLOCK);
        if (entry.meta_length > 12) {
            assert_string_equal(entry.meta, "what it says");
        }
        if (entry.payload_length > 0) {
            assert_int_equal(payload[entry.payload_offset], said->fill[i]);
        }
        assert_true(cg_raft_entry_intact(&entry, payload + entry.payload_offset));
    }
    struct cg_raft_wire_entry none;
    assert_false(cg_raft_frame_entry(frame, &none));
}

static void what_is_written_is_read_back(void **state) {
    (void)state;
    for (unsigned round = 0; round < 200; round++) {
        srandom(round);
        struct writer w;
        writer_init(&w);
        struct said said[MANY];
        unsigned count = 1 + (unsigned)random() % MANY;
        for (unsigned i = 0; i < count; i++) {
            say(&w, &said[i]);
        }
        seal(&w);

        struct cg_raft_frame frame;
        const char *why;
        assert_int_equal(open_frame(&w, &frame, &why), 0);
        assert_int_equal(frame.message_count, count);
        for (unsigned i = 0; i < count; i++) {
            uint64_t group;
            struct cg_raft_message message;
            assert_true(cg_raft_frame_message(&frame, &group, &message));
            assert_int_equal(group, said[i].group);
            assert_same(&said[i].message, &message);
            if (random() % 4 != 0) { // else they are passed over
                assert_entries(&frame, &said[i], w.payload);
            }
        }
        uint64_t group;
        struct cg_raft_message message;
        assert_false(cg_raft_frame_message(&frame, &group, &message));
        writer_free(&w);
    }
}

static void the_largest_entry_fits(void **state) {
    (void)state;
    static const uint8_t meta[CG_WAL_META_MAX];
    struct writer w;
    writer_init(&w);
    struct cg_raft_message m = {.type = CG_RAFT_APPEND, .from = 1, .to = 2, .term = 3, .count = 1};
    put_message(&w, 7, &m);
    uint32_t before = w.length;
    put_entry(&w, 3, 1, meta, sizeof(meta), BLOCKS_MAX, 0);
    assert_int_equal(w.length - before, CG_RAFT_ENTRY_ENCODED_MAX);
    seal(&w);
    struct cg_raft_frame frame;
    const char *why;
    assert_int_equal(open_frame(&w, &frame, &why), 0);
    writer_free(&w);
}

// A heartbeat of every group of a server goes into one frame.
static void heartbeats_are_small(void **state) {
    (void)state;
    struct cg_raft_message m = {.type = CG_RAFT_HEARTBEAT, .from = 1, .to = 2, .term = 3};
    assert_int_equal(cg_raft_message_size(&m), 64);
    m.type = CG_RAFT_HEARTBEAT_REPLY;
    assert_int_equal(cg_raft_message_size(&m), 72);
    assert_true(CG_RAFT_FRAME_HEADER + 10000 * CG_RAFT_MESSAGE_ENCODED_MAX <
                CG_RAFT_FRAME_LENGTH_MAX);
}

// ---- What is refused

// An append with two entries of two blocks each, and a heartbeat.
static void write_sample(struct writer *w) {
    writer_init(w);
    struct cg_raft_message append = {
        .type = CG_RAFT_APPEND, .from = 1, .to = 2, .term = 3, .prev_index = 9, .count = 2};
    struct cg_raft_message heartbeat = {.type = CG_RAFT_HEARTBEAT, .from = 1, .to = 2, .term = 3};
    put_message(w, 7, &append);
    put_entry(w, 3, 1, "abcd", 4, 2, 1);
    put_entry(w, 3, 2, "efgh", 4, 2, 2);
    put_message(w, 8, &heartbeat);
    seal(w);
}

#define FIRST_MESSAGE CG_RAFT_FRAME_HEADER
#define FIRST_ENTRY   (FIRST_MESSAGE + 64U)

struct damage {
    uint32_t at;
    uint32_t value;
    int result;
    const char *why;
};

static void lengths_counts_and_types_that_cannot_be_are_refused(void **state) {
    (void)state;
    static const struct damage cases[] = {
        {0, 0, -EBADMSG, "no frame of raft messages"},
        {VERSION, 2, -EPROTONOSUPPORT, "a version of the protocol that is not known here"},
        {VERSION, 0, -EPROTONOSUPPORT, "a version of the protocol that is not known here"},
        {LENGTH, 40, -EBADMSG, "a frame whose lengths do not match"},
        {LENGTH, UINT32_MAX, -EBADMSG, "a frame whose lengths do not match"},
        {PAYLOAD, 3 * 4096, -EBADMSG, "a frame whose lengths do not match"},
        {PAYLOAD, UINT32_MAX, -EBADMSG, "a frame whose lengths do not match"},
        {MESSAGES, 0, -EBADMSG, "a frame with a count that no frame has"},
        {MESSAGES, UINT32_MAX, -EBADMSG, "a frame with a count that no frame has"},
        {MESSAGES, 1, -EBADMSG, "bytes behind the last message"},
        {MESSAGES, 3, -EBADMSG, "a message is cut short"},
        {RESERVED, 1, -EBADMSG, "a frame with a count that no frame has"},
        {FIRST_MESSAGE + TYPE, 0, -EBADMSG, "a message of unknown type"},
        {FIRST_MESSAGE + TYPE, 8, -EBADMSG, "a message of unknown type"},
        {FIRST_MESSAGE + TYPE, 0xffff, -EBADMSG, "a message of unknown type"},
        {FIRST_MESSAGE + TYPE, 3 | 1 << 16, -EBADMSG,
         "a message with flags that its type does not have"},
        {FIRST_MESSAGE + TYPE, CG_RAFT_HEARTBEAT, -EBADMSG, "a message with too many entries"},
        {FIRST_MESSAGE + COUNT, CG_RAFT_ENTRIES_MAX + 1, -EBADMSG,
         "a message with too many entries"},
        {FIRST_MESSAGE + COUNT, UINT32_MAX, -EBADMSG, "a message with too many entries"},
        {FIRST_MESSAGE + COUNT, CG_RAFT_ENTRIES_MAX, -EBADMSG, NULL},
        {FIRST_MESSAGE + COUNT, 0, -EBADMSG, NULL},
        {FIRST_ENTRY + ENTRY_TYPE, 0, -EBADMSG, "an entry with a type or sizes that no entry has"},
        {FIRST_ENTRY + ENTRY_META, CG_WAL_META_MAX + 1, -EBADMSG,
         "an entry with a type or sizes that no entry has"},
        {FIRST_ENTRY + ENTRY_META, CG_WAL_META_MAX, -EBADMSG, "an entry is cut short"},
        {FIRST_ENTRY + ENTRY_PAYLOAD, 8191, -EBADMSG,
         "an entry with a type or sizes that no entry has"},
        {FIRST_ENTRY + ENTRY_PAYLOAD, CG_WAL_PAYLOAD_MAX + 4096, -EBADMSG,
         "an entry with a type or sizes that no entry has"},
        {FIRST_ENTRY + ENTRY_PAYLOAD, UINT32_MAX, -EBADMSG,
         "an entry with a type or sizes that no entry has"},
        {FIRST_ENTRY + ENTRY_PAYLOAD, CG_WAL_PAYLOAD_MAX, -EBADMSG, "an entry is cut short"},
        {FIRST_ENTRY + ENTRY_PAYLOAD, 5 * 4096, -EBADMSG, "an entry's payload is not there"},
        {FIRST_ENTRY + ENTRY_PAYLOAD, 4096, -EBADMSG, NULL},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct writer w;
        struct cg_raft_frame frame;
        const char *why;
        write_sample(&w);
        cg_put_u32(w.bytes + cases[i].at, cases[i].value);
        reseal(&w);
        assert_int_equal(open_frame(&w, &frame, &why), cases[i].result);
        assert_non_null(why);
        if (cases[i].why != NULL) {
            assert_string_equal(why, cases[i].why);
        }
        writer_free(&w);
    }
}

// Consistent in everything else.
static void a_payload_of_an_odd_length_is_refused(void **state) {
    (void)state;
    struct writer w;
    writer_init(&w);
    struct cg_raft_message append = {
        .type = CG_RAFT_APPEND, .from = 1, .to = 2, .term = 3, .count = 1};
    put_message(&w, 7, &append);
    put_entry(&w, 3, 1, "abcd", 4, 1, 1);
    w.payload_length++;
    seal(&w);
    cg_put_u32(w.bytes + FIRST_ENTRY + ENTRY_PAYLOAD, w.payload_length);
    reseal(&w);
    struct cg_raft_frame frame;
    const char *why;
    assert_int_equal(open_frame(&w, &frame, &why), -EBADMSG);
    writer_free(&w);
}

static void a_flipped_bit_is_noticed_wherever_it_is(void **state) {
    (void)state;
    struct writer w;
    struct cg_raft_frame frame;
    const char *why;
    write_sample(&w);
    for (uint32_t bit = 0; bit < 8 * w.length; bit++) {
        w.bytes[bit / 8] ^= (uint8_t)(1U << bit % 8);
        assert_true(open_frame(&w, &frame, &why) < 0);
        assert_non_null(why);
        w.bytes[bit / 8] ^= (uint8_t)(1U << bit % 8);
    }
    assert_int_equal(open_frame(&w, &frame, &why), 0);
    writer_free(&w);
}

static void a_frame_that_is_cut_is_refused(void **state) {
    (void)state;
    struct writer w;
    struct cg_raft_frame frame;
    const char *why;
    write_sample(&w);
    for (uint32_t length = 0; length < w.length; length++) {
        // In memory of its own size, so that a sanitizer sees what reads beyond it.
        uint8_t *cut = malloc(length + 1);
        memcpy(cut, w.bytes, length);
        assert_true(cg_raft_frame_open(cut, length, w.payload_length, &frame, &why) < 0);
        free(cut);
    }
    assert_int_equal(cg_raft_frame_open(w.bytes, w.length, 0, &frame, &why), -EBADMSG);
    assert_int_equal(cg_raft_frame_open(w.bytes, w.length, w.payload_length + 4096, &frame, &why),
                     -EBADMSG);
    writer_free(&w);
}

static void a_damaged_payload_is_not_intact(void **state) {
    (void)state;
    struct writer w;
    struct cg_raft_frame frame;
    const char *why;
    write_sample(&w);
    assert_int_equal(open_frame(&w, &frame, &why), 0);
    uint64_t group;
    struct cg_raft_message message;
    struct cg_raft_wire_entry first, second;
    assert_true(cg_raft_frame_message(&frame, &group, &message));
    assert_true(cg_raft_frame_entry(&frame, &first));
    assert_true(cg_raft_frame_entry(&frame, &second));
    w.payload[2 * 4096 + 5000] ^= 1;
    assert_true(cg_raft_entry_intact(&first, w.payload + first.payload_offset));
    assert_false(cg_raft_entry_intact(&second, w.payload + second.payload_offset));
    uint32_t crcs[2];
    cg_raft_entry_crcs(&first, crcs);
    assert_int_equal(crcs[1], cg_crc32c(0, w.payload + 4096, 4096));
    writer_free(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read_back),
        cmocka_unit_test(the_largest_entry_fits),
        cmocka_unit_test(heartbeats_are_small),
        cmocka_unit_test(lengths_counts_and_types_that_cannot_be_are_refused),
        cmocka_unit_test(a_payload_of_an_odd_length_is_refused),
        cmocka_unit_test(a_flipped_bit_is_noticed_wherever_it_is),
        cmocka_unit_test(a_frame_that_is_cut_is_refused),
        cmocka_unit_test(a_damaged_payload_is_not_intact),
    };
    return cmocka_run_group_tests_name("raft wire", tests, NULL, NULL);
}
