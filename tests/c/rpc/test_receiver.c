// SPDX-License-Identifier: BSD-3-Clause
//
// The incremental parser under random streams, cut at random places, with guesses right and wrong:
// every frame comes out once, in order, with its bytes.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/list.h"
#include "rpc/receiver.h"

#define FRAMES_MAX  400
#define MESSAGE_MAX (1U << 20)

static uint64_t random_state;

static uint32_t random_below(uint32_t limit) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)((random_state >> 11) % limit);
}

static bool chance(unsigned percent) {
    return random_below(100) < percent;
}

// A block of memory of exactly this size, so that ASan sees every byte too many.
struct place {
    uint8_t *data;
    struct iovec iov[4];
    int iovcnt;
};

static void make_place(struct place *place, uint32_t length) {
    place->data = malloc(length);
    memset(place->data, 0xee, length);
    uint32_t at = 0;
    for (place->iovcnt = 0; place->iovcnt < 3 && chance(50); place->iovcnt++) {
        uint32_t n = random_below(length - at + 1);
        place->iov[place->iovcnt] = (struct iovec){place->data + at, n};
        at += n;
    }
    place->iov[place->iovcnt++] = (struct iovec){place->data + at, length - at};
}

struct expected {
    uint32_t head_offset;
    uint32_t head_length;
    uint32_t message_length;
    uint32_t attachment_length;
};

struct owner {
    struct cg_receiver receiver;
    uint8_t *stream;
    size_t stream_length;
    struct expected frames[FRAMES_MAX];
    int count;
    int begun, ended;
    bool may_discard;
    unsigned guess_percent; // how many guesses are right
    int close_at;           // frame in whose end the receiver is closed
    struct place place;     // where the frame under way is received
    bool placed;
    struct guessed {
        int frame;
        struct place place;
        bool used;
    } guessed[CG_RECEIVER_GUESSES_MAX];
    unsigned guessed_count;
};

static void drop_guesses(struct owner *owner) {
    for (unsigned i = 0; i < owner->guessed_count; i++) {
        if (!owner->guessed[i].used) {
            free(owner->guessed[i].place.data);
        }
    }
    owner->guessed_count = 0;
}

static int on_begin(struct cg_receiver *receiver, struct cg_receiver_frame *frame,
                    struct cg_receiver_target *target) {
    struct owner *owner = CG_CONTAINER_OF(receiver, struct owner, receiver);
    assert_int_equal(owner->begun, owner->ended);
    assert_true(owner->begun < owner->count);
    const struct expected *e = &owner->frames[owner->begun];
    assert_int_equal(frame->meta.correlation_id, owner->begun);
    assert_int_equal(frame->head_length, e->head_length);
    assert_int_equal(frame->message_length, e->message_length);
    assert_int_equal(frame->attachment_length, e->attachment_length);
    owner->begun++;
    owner->placed = false;
    if (owner->may_discard && chance(20)) {
        return 0;
    }
    struct guessed *guessed = frame->guess;
    if (guessed != NULL && chance(80)) {
        assert_int_equal(guessed->frame, owner->begun - 1);
        owner->place = guessed->place;
        guessed->used = true;
        target->in_place = true;
    } else {
        make_place(&owner->place, e->attachment_length);
    }
    target->iov = owner->place.iov;
    target->iovcnt = owner->place.iovcnt;
    owner->placed = true;
    return 0;
}

static int on_end(struct cg_receiver *receiver, struct cg_receiver_frame *frame) {
    struct owner *owner = CG_CONTAINER_OF(receiver, struct owner, receiver);
    const struct expected *e = &owner->frames[owner->ended];
    owner->ended++;
    assert_int_equal(owner->begun, owner->ended);
    const uint8_t *head = owner->stream + e->head_offset;
    assert_memory_equal(frame->message, head + e->head_length - e->message_length,
                        e->message_length);
    if (owner->placed) {
        if (e->attachment_length > 0) {
            assert_memory_equal(owner->place.data, head + e->head_length, e->attachment_length);
        }
        free(owner->place.data);
        owner->placed = false;
    }
    if (owner->ended == owner->close_at) {
        receiver->closed = true;
    }
    return 0;
}

static unsigned on_guess(struct cg_receiver *receiver, struct cg_receiver_guess *out,
                         unsigned max) {
    struct owner *owner = CG_CONTAINER_OF(receiver, struct owner, receiver);
    drop_guesses(owner);
    unsigned wanted = random_below(chance(10) ? max + 1 : 4);
    uint32_t bytes = 0;
    for (unsigned i = 0; i < wanted && bytes < 100000 && owner->begun + (int)i < owner->count;
         i++) {
        const struct expected *e = &owner->frames[owner->begun + (int)i];
        struct guessed *guessed = &owner->guessed[i];
        bool right = chance(owner->guess_percent);
        uint32_t attachment =
            right || chance(50) ? e->attachment_length : random_below(e->attachment_length + 5000);
        guessed->frame = right || chance(80) ? owner->begun + (int)i : -1;
        guessed->used = false;
        bytes += attachment;
        make_place(&guessed->place, attachment);
        out[i] = (struct cg_receiver_guess){
            .cookie = guessed,
            .head_length = right ? e->head_length : e->head_length + random_below(3),
            .attachment_length = attachment,
            .iov = guessed->place.iov,
            .iovcnt = attachment > 0 ? guessed->place.iovcnt : 0,
        };
        owner->guessed_count++;
    }
    return owner->guessed_count;
}

static bool on_confirm(struct cg_receiver *receiver, const struct cg_receiver_frame *frame,
                       const struct cg_receiver_guess *guess) {
    (void)receiver;
    const struct guessed *guessed = guess->cookie;
    return frame->meta.correlation_id == guessed->frame;
}

static const struct cg_receiver_ops ops = {on_begin, on_end, on_guess, on_confirm, NULL};
static const struct cg_receiver_ops ops_without_guesses = {on_begin, on_end, NULL, NULL, NULL};

static uint32_t random_size(uint32_t usual, uint32_t rare) {
    static const uint32_t special[] = {0, 1, 4095, 4096, 4097, 16384, 65536, 65537};
    switch (random_below(8)) {
    case 0:
        return special[random_below(8)] % (rare + 1);
    case 1:
        return random_below(rare);
    default:
        return random_below(usual + 1);
    }
}

static void add_frame(struct owner *owner, size_t *capacity, uint32_t message,
                      uint32_t attachment) {
    struct expected *e = &owner->frames[owner->count];
    struct cg_frame_meta meta = {.correlation_id = owner->count, .attachment_size = attachment};
    uint8_t encoded[CG_FRAME_META_MAX];
    int meta_length = cg_frame_meta_encode(&meta, encoded, sizeof(encoded));
    size_t needed =
        owner->stream_length + CG_FRAME_HEADER_SIZE + (size_t)meta_length + message + attachment;
    if (needed > *capacity) {
        *capacity = needed * 2;
        owner->stream = realloc(owner->stream, *capacity);
    }
    uint8_t *at = owner->stream + owner->stream_length;
    struct cg_frame_header header = {(uint32_t)meta_length + message + attachment,
                                     (uint32_t)meta_length};
    cg_frame_header_encode(&header, at);
    memcpy(at + CG_FRAME_HEADER_SIZE, encoded, (size_t)meta_length);
    for (size_t i = CG_FRAME_HEADER_SIZE + (size_t)meta_length; i < needed - owner->stream_length;
         i++) {
        at[i] = (uint8_t)(i * 31 + (unsigned)owner->count * 7);
    }
    *e = (struct expected){(uint32_t)owner->stream_length,
                           CG_FRAME_HEADER_SIZE + (uint32_t)meta_length + message, message,
                           attachment};
    owner->stream_length = needed;
    owner->count++;
}

static void end_owner(struct owner *owner) {
    if (owner->placed) {
        free(owner->place.data);
    }
    drop_guesses(owner);
    cg_receiver_free(&owner->receiver);
    free(owner->stream);
}

static void play(uint64_t seed, uint32_t piece_max) {
    static struct owner owner;
    random_state = seed * 2654435761U + 88172645463325252U;
    memset(&owner, 0, sizeof(owner));
    bool guessing = chance(70);
    assert_int_equal(
        cg_receiver_init(&owner.receiver, guessing ? &ops : &ops_without_guesses, MESSAGE_MAX), 0);
    owner.may_discard = chance(50);
    owner.guess_percent = chance(50) ? 100 : random_below(101);
    size_t capacity = 0;
    int frames = 1 + (int)random_below(piece_max < 10 ? 6 : 40);
    // Streams of one kind, as in life, and mixed ones.
    uint32_t fixed = chance(50) ? random_size(5000, 100000) : UINT32_MAX;
    for (int i = 0; i < frames; i++) {
        add_frame(&owner, &capacity, chance(95) ? random_below(40) : random_size(300, 200000),
                  fixed != UINT32_MAX ? fixed : random_size(5000, 300000));
    }
    if (chance(20)) {
        owner.close_at = 1 + (int)random_below((uint32_t)frames);
    }
    size_t at = 0;
    while (at < owner.stream_length && !owner.receiver.closed) {
        size_t n = 1 + random_below(piece_max);
        n = n < owner.stream_length - at ? n : owner.stream_length - at;
        uint8_t *piece = malloc(n);
        memcpy(piece, owner.stream + at, n);
        assert_int_equal(cg_receiver_feed(&owner.receiver, piece, n), 0);
        free(piece);
        at += n;
        if (chance(3) && owner.receiver.in_attachment && owner.may_discard) {
            cg_receiver_discard(&owner.receiver);
            if (owner.placed) {
                free(owner.place.data);
                owner.placed = false;
            }
        }
    }
    assert_int_equal(owner.ended, owner.close_at != 0 ? owner.close_at : owner.count);
    end_owner(&owner);
}

static void random_streams_come_out_whole(void **state) {
    (void)state;
    static const uint32_t pieces[] = {1, 3, 500, 4000, 70000, 3000000};
    for (uint64_t seed = 1; seed <= 800; seed++) {
        play(seed, pieces[2 + seed % 4]);
    }
    for (uint64_t seed = 2000; seed < 2010; seed++) {
        play(seed, pieces[seed % 2]);
    }
}

static void a_megabyte_message_grows_the_stage_and_it_shrinks_again(void **state) {
    (void)state;
    static struct owner owner;
    memset(&owner, 0, sizeof(owner));
    random_state = 7;
    size_t capacity = 0;
    assert_int_equal(cg_receiver_init(&owner.receiver, &ops_without_guesses, MESSAGE_MAX), 0);
    add_frame(&owner, &capacity, MESSAGE_MAX, 5000);
    add_frame(&owner, &capacity, 65536 - 12 - 17, 5000); // the head fills the stage exactly
    add_frame(&owner, &capacity, 10, 10);
    assert_int_equal(cg_receiver_feed(&owner.receiver, owner.stream, owner.stream_length), 0);
    assert_int_equal(owner.ended, 3);
    assert_int_equal(owner.receiver.stage_capacity, CG_RECEIVER_STAGE_SIZE);
    end_owner(&owner);
}

static int feed_hex(const char *hex) {
    static struct owner owner;
    memset(&owner, 0, sizeof(owner));
    random_state = 7;
    assert_int_equal(cg_receiver_init(&owner.receiver, &ops, 1000), 0);
    uint8_t bytes[256];
    size_t n = 0;
    for (; hex[0] != '\0'; hex += 2) {
        char byte[3] = {hex[0], hex[1], '\0'};
        bytes[n++] = (uint8_t)strtoul(byte, NULL, 16);
    }
    int rc = cg_receiver_feed(&owner.receiver, bytes, n);
    end_owner(&owner);
    return rc;
}

static void nonsense_is_refused(void **state) {
    (void)state;
    assert_int_equal(feed_hex("505250"), 0);
    assert_int_equal(feed_hex("50525041"), -EPROTO);
    assert_int_equal(feed_hex("000000000000000000000000"), -EPROTO);
    assert_int_equal(feed_hex("505250437fffffff00000010"), -EMSGSIZE);
    // The attachment is larger than the body.
    assert_int_equal(feed_hex("50525043000000090000000912020800180020002805"), -EPROTO);
    assert_int_equal(feed_hex("505250430000000a0000000a12020800180020002805"), -EPROTO);
    // A message over the limit, known from the meta alone.
    assert_int_equal(feed_hex("50525043000003f1000000081202080018002000"), -EMSGSIZE);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_streams_come_out_whole),
        cmocka_unit_test(a_megabyte_message_grows_the_stage_and_it_shrinks_again),
        cmocka_unit_test(nonsense_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
