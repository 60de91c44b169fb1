// SPDX-License-Identifier: BSD-3-Clause
#include "rpc/receiver.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define IOV_AT_ONCE       512
#define TARGET_IOV_MAX    128 // of one attachment in one call
#define STAGE_ROOM_MIN    1024U
#define GUESS_PAUSE_FIRST 4U
#define GUESS_PAUSE_MAX   64U

// What one recvmsg scatters over.
struct scatter {
    struct iovec iov[IOV_AT_ONCE];
    int count;
    size_t asked;
    size_t attachment; // bytes for the attachment under way
    struct cg_receiver_guess guesses[CG_RECEIVER_GUESSES_MAX];
    uint32_t slots[CG_RECEIVER_GUESSES_MAX]; // where each guessed head goes in the stage
    int pieces[CG_RECEIVER_GUESSES_MAX];     // and its place in iov
    struct cg_receiver_frame frames[CG_RECEIVER_GUESSES_MAX];
    unsigned guess_count;
    uint32_t tail; // where the rest goes in the stage
    size_t tail_length;
};

int cg_receiver_init(struct cg_receiver *receiver, const struct cg_receiver_ops *ops,
                     uint32_t message_max) {
    *receiver = (struct cg_receiver){
        .ops = ops,
        .message_max = message_max,
        .stage_capacity = CG_RECEIVER_STAGE_SIZE,
    };
    receiver->stage = malloc(CG_RECEIVER_STAGE_SIZE);
    return receiver->stage != NULL ? 0 : -ENOMEM;
}

void cg_receiver_free(struct cg_receiver *receiver) {
    free(receiver->stage);
    receiver->stage = NULL;
}

void cg_receiver_reset(struct cg_receiver *receiver) {
    receiver->closed = false;
    receiver->paused = false;
    receiver->any_frame = false;
    receiver->other_protocol = false;
    receiver->in_attachment = false;
    receiver->begin = 0;
    receiver->end = 0;
    receiver->tail_wish = 0;
    receiver->guess_pause = 0;
    receiver->guess_penalty = 0;
}

void cg_receiver_discard(struct cg_receiver *receiver) {
    receiver->target_iov = NULL;
    receiver->target_iovcnt = 0;
    receiver->target_offset = 0;
}

// ---- The attachment under way

static void skip_target(struct cg_receiver *receiver, size_t length) {
    receiver->attachment_left -= (uint32_t)length;
    if (receiver->target_iov == NULL) {
        return;
    }
    receiver->target_offset += length;
    while (receiver->target_iovcnt > 0 &&
           receiver->target_offset >= receiver->target_iov->iov_len) {
        receiver->target_offset -= receiver->target_iov->iov_len;
        receiver->target_iov++;
        receiver->target_iovcnt--;
    }
}

static void copy_to_target(struct cg_receiver *receiver, const uint8_t *from, size_t length) {
    if (receiver->target_iov == NULL) {
        skip_target(receiver, length);
        return;
    }
    while (length > 0) {
        size_t room = receiver->target_iov->iov_len - receiver->target_offset;
        size_t n = room < length ? room : length;
        memcpy((uint8_t *)receiver->target_iov->iov_base + receiver->target_offset, from, n);
        skip_target(receiver, n);
        from += n;
        length -= n;
    }
}

static void aim(struct cg_receiver *receiver, const struct cg_receiver_target *target,
                uint32_t length) {
    receiver->target_iov = target->iov;
    receiver->target_iovcnt = target->iov != NULL ? target->iovcnt : 0;
    receiver->target_offset = 0;
    receiver->attachment_left = length;
    skip_target(receiver, 0); // over empty pieces
}

// ---- Parsing heads

// Decodes the head in `length` bytes at `in`. 1: it is whole; 0: more is needed (*needed bytes, as
// far as can be told); -errno.
static int decode_head(const struct cg_receiver *receiver, const uint8_t *in, uint32_t length,
                       struct cg_receiver_frame *out, uint32_t *needed) {
    struct cg_frame_header header;
    *needed = CG_FRAME_HEADER_SIZE;
    if (length < CG_FRAME_HEADER_SIZE) {
        return length >= 4 && memcmp(in, "PRPC", 4) != 0 ? -EPROTO : 0;
    }
    int rc = cg_frame_header_decode(in, &header);
    if (rc < 0) {
        return rc;
    }
    *needed = CG_FRAME_HEADER_SIZE + header.meta_size;
    if (length < *needed) {
        return 0;
    }
    rc = cg_frame_view_decode(in + CG_FRAME_HEADER_SIZE, header.meta_size, &out->meta);
    if (rc < 0) {
        return rc;
    }
    uint32_t rest = header.body_size - header.meta_size;
    if (out->meta.attachment_size > rest) {
        return -EPROTO;
    }
    out->attachment_length = out->meta.attachment_size;
    out->message_length = rest - out->attachment_length;
    if (out->message_length > receiver->message_max) {
        return -EMSGSIZE;
    }
    *needed += out->message_length;
    out->message = in + CG_FRAME_HEADER_SIZE + header.meta_size;
    out->head_length = *needed;
    out->guess = NULL;
    return length >= *needed;
}

static void compact(struct cg_receiver *receiver) {
    if (receiver->begin > 0) {
        memmove(receiver->stage, receiver->stage + receiver->begin,
                receiver->end - receiver->begin);
        receiver->end -= receiver->begin;
        receiver->begin = 0;
    }
}

static int grow(struct cg_receiver *receiver) {
    uint32_t capacity = receiver->stage_capacity * 2;
    uint8_t *stage = realloc(receiver->stage, capacity);
    if (stage == NULL) {
        return -ENOMEM;
    }
    receiver->stage = stage;
    receiver->stage_capacity = capacity;
    return 0;
}

// Room for a head of `needed` bytes that begins at `begin`. The area grows only as bytes arrive, so
// that a header alone costs no memory.
static int make_room(struct cg_receiver *receiver, uint32_t needed) {
    if (receiver->begin + needed <= receiver->stage_capacity) {
        return 0;
    }
    compact(receiver);
    if (needed <= receiver->stage_capacity || receiver->end < receiver->stage_capacity) {
        return 0;
    }
    return grow(receiver);
}

// After a message of unusual length the area goes back to its size.
static void shrink(struct cg_receiver *receiver) {
    if (receiver->stage_capacity > CG_RECEIVER_STAGE_SIZE) {
        uint8_t *stage = realloc(receiver->stage, CG_RECEIVER_STAGE_SIZE);
        if (stage != NULL) {
            receiver->stage = stage;
            receiver->stage_capacity = CG_RECEIVER_STAGE_SIZE;
        }
    }
}

static int finish_frame(struct cg_receiver *receiver) {
    receiver->in_attachment = false;
    receiver->frames++;
    return receiver->ops->end(receiver, &receiver->frame);
}

// With attachments that are worth it, only heads are staged; the rest goes straight to its place.
static void note_shape(struct cg_receiver *receiver) {
    receiver->tail_wish = receiver->frame.attachment_length > CG_RECEIVER_STAGE_SIZE / 4
                              ? receiver->frame.head_length
                              : 0;
}

static int parse_other(struct cg_receiver *receiver) {
    receiver->other_protocol = true;
    if (receiver->ops->other_protocol == NULL) {
        return -EPROTO;
    }
    return receiver->ops->other_protocol(receiver, receiver->stage + receiver->begin,
                                         receiver->end - receiver->begin);
}

static bool is_other(const struct cg_receiver *receiver) {
    return receiver->other_protocol ||
           (!receiver->any_frame && receiver->end - receiver->begin >= 4 &&
            memcmp(receiver->stage + receiver->begin, "PRPC", 4) != 0);
}

// Takes the frame whose head begins at `begin`. 1: goes on; 0: more bytes are needed; -errno.
static int parse_one(struct cg_receiver *receiver) {
    uint32_t staged = receiver->end - receiver->begin;
    uint32_t needed;
    int rc =
        decode_head(receiver, receiver->stage + receiver->begin, staged, &receiver->frame, &needed);
    if (rc <= 0) {
        return rc < 0 ? rc : make_room(receiver, needed);
    }
    struct cg_receiver_frame *frame = &receiver->frame;
    bool whole = staged - needed >= frame->attachment_length;
    if (!whole && receiver->begin + needed > receiver->stage_capacity / 2) {
        // The head stays where it is while the attachment comes in: leave room behind it.
        if (receiver->begin > 0) {
            compact(receiver);
            return 1;
        }
        if (receiver->stage_capacity - needed < STAGE_ROOM_MIN) {
            rc = grow(receiver);
            return rc < 0 ? rc : 1;
        }
    }
    receiver->any_frame = true;
    note_shape(receiver);
    struct cg_receiver_target target = {0};
    rc = receiver->ops->begin(receiver, frame, &target);
    if (rc < 0 || receiver->closed) {
        return rc;
    }
    aim(receiver, &target, frame->attachment_length);
    uint32_t ready = whole ? frame->attachment_length : staged - needed;
    copy_to_target(receiver, receiver->stage + receiver->begin + needed, ready);
    if (!whole) {
        receiver->in_attachment = true;
        receiver->end = receiver->begin + needed;
        return 0;
    }
    receiver->begin += needed + frame->attachment_length;
    rc = finish_frame(receiver);
    return rc < 0 ? rc : 1;
}

static int parse(struct cg_receiver *receiver) {
    while (!receiver->closed && !receiver->paused && !receiver->in_attachment &&
           receiver->begin < receiver->end) {
        int rc = is_other(receiver) ? parse_other(receiver) : parse_one(receiver);
        if (rc <= 0) {
            return rc;
        }
    }
    if (receiver->begin == receiver->end && !receiver->closed) {
        receiver->begin = 0;
        receiver->end = 0;
        shrink(receiver);
    }
    return 0;
}

int cg_receiver_resume(struct cg_receiver *receiver) {
    return parse(receiver);
}

// ---- What to ask the socket for

static void add_piece(struct scatter *s, void *base, size_t length) {
    s->iov[s->count].iov_base = base;
    s->iov[s->count].iov_len = length;
    s->count++;
    s->asked += length;
}

static void add_attachment(struct cg_receiver *receiver, struct scatter *s) {
    size_t left = receiver->attachment_left;
    if (receiver->target_iov == NULL) {
        // Thrown away: the free part of the stage takes it, several times over.
        size_t room = receiver->stage_capacity - receiver->end;
        while (left > 0 && s->count < TARGET_IOV_MAX) {
            size_t n = left < room ? left : room;
            add_piece(s, receiver->stage + receiver->end, n);
            left -= n;
        }
    }
    size_t offset = receiver->target_offset;
    for (int i = 0; i < receiver->target_iovcnt && left > 0 && s->count < TARGET_IOV_MAX; i++) {
        size_t n = receiver->target_iov[i].iov_len - offset;
        n = left < n ? left : n;
        if (n > 0) {
            add_piece(s, (uint8_t *)receiver->target_iov[i].iov_base + offset, n);
        }
        left -= n;
        offset = 0;
    }
    s->attachment = s->asked;
}

static void add_guesses(struct cg_receiver *receiver, struct scatter *s) {
    if (receiver->guess_pause > 0) {
        receiver->guess_pause--;
        return;
    }
    unsigned offered = receiver->ops->guess(receiver, s->guesses, CG_RECEIVER_GUESSES_MAX);
    size_t bytes = 0;
    for (unsigned i = 0; i < offered; i++) {
        const struct cg_receiver_guess *guess = &s->guesses[i];
        if (s->count + 2 + guess->iovcnt > IOV_AT_ONCE || bytes >= CG_RECEIVER_GUESS_BYTES ||
            guess->head_length + STAGE_ROOM_MIN > receiver->stage_capacity - s->tail) {
            break;
        }
        s->slots[i] = s->tail;
        s->pieces[i] = s->count;
        add_piece(s, receiver->stage + s->tail, guess->head_length);
        s->tail += guess->head_length;
        for (int j = 0; j < guess->iovcnt; j++) {
            add_piece(s, guess->iov[j].iov_base, guess->iov[j].iov_len);
        }
        bytes += guess->attachment_length;
        s->guess_count++;
    }
}

static int ask(struct cg_receiver *receiver, struct scatter *s) {
    s->count = 0;
    s->asked = 0;
    s->attachment = 0;
    s->guess_count = 0;
    s->tail = receiver->end;
    if (receiver->in_attachment) {
        add_attachment(receiver, s);
    }
    bool rest_fits = s->attachment == (receiver->in_attachment ? receiver->attachment_left : 0);
    uint32_t head = receiver->in_attachment ? receiver->frame.head_length : 0;
    if (rest_fits && receiver->ops->guess != NULL && receiver->end == receiver->begin + head &&
        !receiver->other_protocol) {
        add_guesses(receiver, s);
    }
    s->tail_length = 0;
    if (rest_fits) {
        size_t room = receiver->stage_capacity - s->tail;
        size_t wish = s->guess_count > 0 ? STAGE_ROOM_MIN : receiver->tail_wish;
        s->tail_length = wish != 0 && wish < room ? wish : room;
        if (s->tail_length > 0) {
            add_piece(s, receiver->stage + s->tail, s->tail_length);
        }
    }
    return s->count > 0 ? 0 : -EMSGSIZE;
}

// ---- What came

// Gathers the received bytes from guess `first` on (its head included) into a stage of their own.
static int gather_rest(const struct scatter *s, unsigned first, size_t length, uint8_t **out,
                       uint32_t *capacity) {
    size_t size = CG_RECEIVER_STAGE_SIZE;
    while (size < length) {
        size *= 2;
    }
    uint8_t *stage = malloc(size);
    if (stage == NULL) {
        return -ENOMEM;
    }
    size_t done = 0;
    for (int at = s->pieces[first]; done < length; at++) {
        size_t n = length - done < s->iov[at].iov_len ? length - done : s->iov[at].iov_len;
        memcpy(stage + done, s->iov[at].iov_base, n);
        done += n;
    }
    *out = stage;
    *capacity = (uint32_t)size;
    return 0;
}

// Is the frame in slot `i` the one that was guessed?
static bool confirmed(struct cg_receiver *receiver, struct scatter *s, unsigned i) {
    const struct cg_receiver_guess *guess = &s->guesses[i];
    struct cg_receiver_frame *frame = &s->frames[i];
    uint32_t needed;
    return decode_head(receiver, receiver->stage + s->slots[i], guess->head_length, frame,
                       &needed) == 1 &&
           needed == guess->head_length && frame->attachment_length == guess->attachment_length &&
           receiver->ops->confirm(receiver, frame, guess);
}

static void move_to_target(struct cg_receiver *receiver, const struct cg_receiver_guess *guess,
                           size_t length) {
    for (int i = 0; i < guess->iovcnt && length > 0; i++) {
        size_t n = guess->iov[i].iov_len < length ? guess->iov[i].iov_len : length;
        copy_to_target(receiver, guess->iov[i].iov_base, n);
        length -= n;
    }
}

// Begins the guessed frame in slot `i`, of whose attachment `have` bytes are in, and ends it if
// that is all.
static int take_guessed(struct cg_receiver *receiver, struct scatter *s, unsigned i, size_t have) {
    const struct cg_receiver_guess *guess = &s->guesses[i];
    receiver->frame = s->frames[i];
    receiver->frame.guess = guess->cookie;
    receiver->any_frame = true;
    receiver->begin = s->slots[i];
    receiver->end = receiver->begin + guess->head_length;
    note_shape(receiver);
    struct cg_receiver_target target = {0};
    int rc = receiver->ops->begin(receiver, &receiver->frame, &target);
    if (rc < 0 || receiver->closed) {
        return rc;
    }
    aim(receiver, &target, guess->attachment_length);
    if (target.in_place || target.iov == NULL) {
        skip_target(receiver, have);
    } else {
        move_to_target(receiver, guess, have);
    }
    if (have < guess->attachment_length) {
        receiver->in_attachment = true;
        return 0;
    }
    receiver->begin = receiver->end;
    return finish_frame(receiver);
}

static void score_guesses(struct cg_receiver *receiver, bool wrong) {
    if (!wrong) {
        receiver->guess_penalty = 0;
        return;
    }
    unsigned penalty = receiver->guess_penalty * 2;
    penalty = penalty < GUESS_PAUSE_FIRST ? GUESS_PAUSE_FIRST : penalty;
    receiver->guess_penalty = penalty > GUESS_PAUSE_MAX ? GUESS_PAUSE_MAX : penalty;
    receiver->guess_pause = receiver->guess_penalty;
}

struct verdict {
    unsigned good;    // guesses that are right and whose heads are in
    size_t last_have; // bytes of the last good one's attachment
    size_t rest;      // bytes behind the good ones
    bool wrong;       // they begin at a guess that is wrong
};

// Looks at all guessed heads before the first callback: what a callback frees may hold bytes of
// another frame.
static struct verdict judge(struct cg_receiver *receiver, struct scatter *s, size_t length) {
    struct verdict v = {.rest = length};
    while (v.good < s->guess_count && v.rest >= s->guesses[v.good].head_length) {
        if (!confirmed(receiver, s, v.good)) {
            v.wrong = true;
            return v;
        }
        v.rest -= s->guesses[v.good].head_length;
        size_t attachment = s->guesses[v.good].attachment_length;
        v.last_have = v.rest < attachment ? v.rest : attachment;
        v.rest -= v.last_have;
        v.good++;
    }
    return v;
}

static int take_guesses(struct cg_receiver *receiver, struct scatter *s, unsigned count,
                        size_t last_have) {
    int rc = 0;
    for (unsigned i = 0; i < count && rc == 0 && !receiver->closed; i++) {
        bool last = i + 1 == count;
        rc = take_guessed(receiver, s, i, last ? last_have : s->guesses[i].attachment_length);
    }
    return rc;
}

static int take(struct cg_receiver *receiver, struct scatter *s, size_t length) {
    receiver->bytes += length;
    size_t of_attachment = length < s->attachment ? length : s->attachment;
    length -= of_attachment;
    struct verdict v = judge(receiver, s, length);
    uint8_t *gathered = NULL;
    uint32_t gathered_capacity = 0;
    if (v.wrong) {
        int rc = gather_rest(s, v.good, v.rest, &gathered, &gathered_capacity);
        if (rc < 0) {
            return rc;
        }
    }
    if (s->guess_count > 0 && (v.good > 0 || v.wrong)) {
        score_guesses(receiver, v.wrong);
    }

    int rc = 0;
    if (receiver->in_attachment) {
        skip_target(receiver, of_attachment);
        if (receiver->attachment_left == 0) {
            receiver->begin = receiver->end;
            rc = finish_frame(receiver);
        }
    }
    if (rc == 0 && !receiver->closed) {
        rc = take_guesses(receiver, s, v.good, v.last_have);
    }
    if (rc < 0 || receiver->closed) {
        free(gathered);
        return rc;
    }
    if (v.wrong) {
        free(receiver->stage);
        receiver->stage = gathered;
        receiver->stage_capacity = gathered_capacity;
        receiver->begin = 0;
        receiver->end = (uint32_t)v.rest;
    } else if (v.rest > 0) {
        // The next guessed head in part, or the tail behind all of them.
        uint32_t at = v.good < s->guess_count ? s->slots[v.good] : s->tail;
        if (receiver->begin == receiver->end) {
            receiver->begin = at;
        }
        receiver->end = at + (uint32_t)v.rest;
    }
    return parse(receiver);
}

int cg_receiver_read(struct cg_receiver *receiver, int fd) {
    struct scatter s;
    int rc = ask(receiver, &s);
    if (rc < 0) {
        return rc;
    }
    struct msghdr message = {.msg_iov = s.iov, .msg_iovlen = (size_t)s.count};
    ssize_t n;
    do {
        n = recvmsg(fd, &message, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
        return errno == EAGAIN ? 0 : -errno;
    }
    if (n == 0) {
        return -ENODATA;
    }
    bool drained = (size_t)n < s.asked;
    rc = take(receiver, &s, (size_t)n);
    if (rc < 0) {
        return rc;
    }
    return drained ? 0 : 1;
}

int cg_receiver_feed(struct cg_receiver *receiver, const uint8_t *bytes, size_t length) {
    while (length > 0 && !receiver->closed) {
        struct scatter s;
        int rc = ask(receiver, &s);
        if (rc < 0) {
            return rc;
        }
        size_t n = length < s.asked ? length : s.asked;
        size_t done = 0;
        for (int i = 0; done < n; i++) {
            size_t piece = n - done < s.iov[i].iov_len ? n - done : s.iov[i].iov_len;
            memcpy(s.iov[i].iov_base, bytes + done, piece);
            done += piece;
        }
        rc = take(receiver, &s, n);
        if (rc < 0) {
            return rc;
        }
        bytes += n;
        length -= n;
    }
    return 0;
}
