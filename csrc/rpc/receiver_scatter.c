// SPDX-License-Identifier: BSD-3-Clause
//
// What one recvmsg asks for, and where what it brought belongs: the rest of the attachment under
// way, guessed frames, and the staging area behind them.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "rpc/receiver_internal.h"

#define IOV_AT_ONCE       512
#define TARGET_IOV_MAX    128 // of one attachment in one call
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
            guess->head_length + CG_RECEIVER_ROOM_MIN > receiver->stage_capacity - s->tail) {
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
        size_t wish = s->guess_count > 0 ? CG_RECEIVER_ROOM_MIN : receiver->tail_wish;
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
    return cg_receiver_decode_head(receiver, receiver->stage + s->slots[i], guess->head_length,
                                   frame, &needed) == 1 &&
           needed == guess->head_length && frame->attachment_length == guess->attachment_length &&
           receiver->ops->confirm(receiver, frame, guess);
}

static void move_to_target(struct cg_receiver *receiver, const struct cg_receiver_guess *guess,
                           size_t length) {
    for (int i = 0; i < guess->iovcnt && length > 0; i++) {
        size_t n = guess->iov[i].iov_len < length ? guess->iov[i].iov_len : length;
        cg_receiver_copy_to_target(receiver, guess->iov[i].iov_base, n);
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
    cg_receiver_note_shape(receiver);
    struct cg_receiver_target target = {0};
    int rc = receiver->ops->begin(receiver, &receiver->frame, &target);
    if (rc < 0 || receiver->closed) {
        return rc;
    }
    cg_receiver_aim(receiver, &target, guess->attachment_length);
    if (target.in_place || target.iov == NULL) {
        cg_receiver_skip_target(receiver, have);
    } else {
        move_to_target(receiver, guess, have);
    }
    if (have < guess->attachment_length) {
        receiver->in_attachment = true;
        return 0;
    }
    receiver->begin = receiver->end;
    return cg_receiver_finish_frame(receiver);
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
        cg_receiver_skip_target(receiver, of_attachment);
        if (receiver->attachment_left == 0) {
            receiver->begin = receiver->end;
            rc = cg_receiver_finish_frame(receiver);
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
    return cg_receiver_parse(receiver);
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
