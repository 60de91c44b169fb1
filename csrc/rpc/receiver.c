// SPDX-License-Identifier: BSD-3-Clause
//
// The parser: what is in the staging area becomes frames.
#include "rpc/receiver.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "rpc/receiver_internal.h"

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

void cg_receiver_skip_target(struct cg_receiver *receiver, size_t length) {
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

void cg_receiver_copy_to_target(struct cg_receiver *receiver, const uint8_t *from, size_t length) {
    if (receiver->target_iov == NULL) {
        cg_receiver_skip_target(receiver, length);
        return;
    }
    while (length > 0) {
        size_t room = receiver->target_iov->iov_len - receiver->target_offset;
        size_t n = room < length ? room : length;
        memcpy((uint8_t *)receiver->target_iov->iov_base + receiver->target_offset, from, n);
        cg_receiver_skip_target(receiver, n);
        from += n;
        length -= n;
    }
}

void cg_receiver_aim(struct cg_receiver *receiver, const struct cg_receiver_target *target,
                     uint32_t length) {
    receiver->target_iov = target->iov;
    receiver->target_iovcnt = target->iov != NULL ? target->iovcnt : 0;
    receiver->target_offset = 0;
    receiver->attachment_left = length;
    cg_receiver_skip_target(receiver, 0); // over empty pieces
}

// ---- Parsing heads

int cg_receiver_decode_head(const struct cg_receiver *receiver, const uint8_t *in, uint32_t length,
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

int cg_receiver_finish_frame(struct cg_receiver *receiver) {
    receiver->in_attachment = false;
    receiver->frames++;
    return receiver->ops->end(receiver, &receiver->frame);
}

void cg_receiver_note_shape(struct cg_receiver *receiver) {
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
    int rc = cg_receiver_decode_head(receiver, receiver->stage + receiver->begin, staged,
                                     &receiver->frame, &needed);
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
        if (receiver->stage_capacity - needed < CG_RECEIVER_ROOM_MIN) {
            rc = grow(receiver);
            return rc < 0 ? rc : 1;
        }
    }
    receiver->any_frame = true;
    cg_receiver_note_shape(receiver);
    struct cg_receiver_target target = {0};
    rc = receiver->ops->begin(receiver, frame, &target);
    if (rc < 0 || receiver->closed) {
        return rc;
    }
    cg_receiver_aim(receiver, &target, frame->attachment_length);
    uint32_t ready = whole ? frame->attachment_length : staged - needed;
    cg_receiver_copy_to_target(receiver, receiver->stage + receiver->begin + needed, ready);
    if (!whole) {
        receiver->in_attachment = true;
        receiver->end = receiver->begin + needed;
        return 0;
    }
    receiver->begin += needed + frame->attachment_length;
    rc = cg_receiver_finish_frame(receiver);
    return rc < 0 ? rc : 1;
}

int cg_receiver_parse(struct cg_receiver *receiver) {
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
    return cg_receiver_parse(receiver);
}
