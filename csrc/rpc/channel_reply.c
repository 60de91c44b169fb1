// SPDX-License-Identifier: BSD-3-Clause
//
// Replies: matched by correlation id, received into the caller's memory.
#include <errno.h>
#include <string.h>

#include "rpc/channel_internal.h"

static struct cg_channel *channel_of(struct cg_receiver *receiver) {
    return CG_CONTAINER_OF(receiver, struct cg_channel, receiver);
}

static struct reply_shape *shape_of(struct cg_channel *channel,
                                    const struct cg_rpc_method *method) {
    return &channel->shapes[((uintptr_t)method >> 4) % SHAPES];
}

static int begin_reply(struct cg_receiver *receiver, struct cg_receiver_frame *frame,
                       struct cg_receiver_target *target) {
    if (frame->meta.is_request) {
        return -EPROTO;
    }
    struct cg_rpc_call *call = cg_channel_find(channel_of(receiver), frame->meta.correlation_id);
    if (call == NULL) {
        return 0; // of a call that timed out or was cancelled: thrown away
    }
    if (call->state != CALL_WAITING) {
        return -EPROTO; // an answer to what has not been asked yet
    }
    if (frame->attachment_length > call->receive_capacity) {
        return 0; // thrown away; the call fails when it is through
    }
    target->iov = call->receive_iov;
    target->iovcnt = call->receive_iovcnt;
    target->in_place = frame->guess == call;
    return 0;
}

static int end_reply(struct cg_receiver *receiver, struct cg_receiver_frame *frame) {
    struct cg_channel *channel = channel_of(receiver);
    struct cg_rpc_call *call = cg_channel_find(channel, frame->meta.correlation_id);
    if (call == NULL) {
        return 0;
    }
    int status = 0;
    if (frame->meta.error_code != 0) {
        status = -EREMOTEIO;
        call->error_code = frame->meta.error_code;
        size_t length = frame->meta.error_text_length;
        length = length < sizeof(call->error_text) ? length : sizeof(call->error_text) - 1;
        if (length > 0) {
            memcpy(call->error_text, frame->meta.error_text, length);
        }
        call->error_text[length] = '\0';
    } else if (frame->attachment_length > call->receive_capacity) {
        status = -EMSGSIZE;
    } else {
        call->reply = frame->message;
        call->reply_length = frame->message_length;
        call->received_length = frame->attachment_length;
        struct reply_shape *shape = shape_of(channel, call->method);
        shape->method = call->method;
        shape->message_length = frame->message_length;
    }
    cg_channel_finish(channel, call, status);
    return 0;
}

// The head of a successful reply as brpc and we write it, with a message as long as the last one.
static uint32_t expected_head(struct cg_channel *channel, const struct cg_rpc_call *call) {
    const struct reply_shape *shape = shape_of(channel, call->method);
    if (shape->method != call->method) {
        return 0;
    }
    uint32_t meta = 4 + 2 + 1 + cg_varint_length(call->correlation_id);
    if (call->receive_capacity > 0) {
        meta += 1 + cg_varint_length(call->receive_capacity);
    }
    return CG_FRAME_HEADER_SIZE + meta + shape->message_length;
}

// That replies come in the order of the requests.
static unsigned guess_replies(struct cg_receiver *receiver, struct cg_receiver_guess *out,
                              unsigned max) {
    struct cg_channel *channel = channel_of(receiver);
    unsigned count = 0;
    if (channel->receiving == 0) {
        return 0;
    }
    CG_LIST_FOREACH (node, &channel->waiting) {
        struct cg_rpc_call *call = CG_CONTAINER_OF(node, struct cg_rpc_call, node);
        if (receiver->in_attachment &&
            (int64_t)call->correlation_id == receiver->frame.meta.correlation_id) {
            continue;
        }
        uint32_t head = expected_head(channel, call);
        if (count == max || head == 0) {
            break;
        }
        out[count++] = (struct cg_receiver_guess){
            .cookie = call,
            .head_length = head,
            .attachment_length = call->receive_capacity,
            .iov = call->receive_iov,
            .iovcnt = call->receive_capacity > 0 ? call->receive_iovcnt : 0,
        };
    }
    return count;
}

static bool confirm_reply(struct cg_receiver *receiver, const struct cg_receiver_frame *frame,
                          const struct cg_receiver_guess *guess) {
    return !frame->meta.is_request &&
           cg_channel_find(channel_of(receiver), frame->meta.correlation_id) == guess->cookie;
}

const struct cg_receiver_ops cg_channel_receiver_ops = {
    .begin = begin_reply,
    .end = end_reply,
    .guess = guess_replies,
    .confirm = confirm_reply,
};
