// SPDX-License-Identifier: BSD-3-Clause
//
// Calls and their life: queued, sent, answered, timed out, cancelled.
#include "rpc/channel.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "rpc/channel_internal.h"

#define CONNECT_TIMEOUT_NS CG_NS_PER_S

static void run_flush(struct cg_deferred *deferred) {
    struct cg_channel *channel = CG_CONTAINER_OF(deferred, struct cg_channel, flush);
    cg_channel_enter(channel);
    cg_channel_run_ending(channel);
    if (!channel->destroyed) {
        cg_channel_flush(channel);
    }
    cg_channel_leave(channel);
}

// The socket has the whole request.
static void request_sent(struct cg_sender *sender, struct cg_send_item *item) {
    struct cg_channel *channel = CG_CONTAINER_OF(sender, struct cg_channel, sender);
    struct cg_rpc_call *call = CG_CONTAINER_OF(item, struct cg_rpc_call, item);
    if (call->one_way) {
        cg_channel_end_later(channel, call, 0);
        cg_reactor_defer(channel->reactor, &channel->flush);
        return;
    }
    call->state = CALL_WAITING;
    cg_list_push_back(&channel->waiting, &call->node);
}

int cg_channel_create(struct cg_reactor *reactor, const struct cg_endpoint *peer,
                      const struct cg_channel_options *options, struct cg_channel **out) {
    struct cg_channel *channel = calloc(1, sizeof(*channel));
    if (channel == NULL) {
        return -ENOMEM;
    }
    if (cg_receiver_init(&channel->receiver, &cg_channel_receiver_ops, CG_FRAME_BODY_MAX) < 0) {
        free(channel);
        return -ENOMEM;
    }
    channel->reactor = reactor;
    channel->peer = *peer;
    channel->fd = -1;
    channel->connect_timeout_ns = options != NULL && options->connect_timeout_ns != 0
                                      ? options->connect_timeout_ns
                                      : CONNECT_TIMEOUT_NS;
    if (options != NULL && options->beside != NULL) {
        channel->beside = *options->beside;
    }
    cg_sender_init(&channel->sender, request_sent);
    cg_list_init(&channel->waiting);
    cg_list_init(&channel->ending);
    cg_list_init(&channel->flush.node);
    channel->flush.run = run_flush;
    *out = channel;
    return 0;
}

bool cg_channel_leave(struct cg_channel *channel) {
    channel->busy--;
    if (!channel->destroyed) {
        return true;
    }
    if (channel->busy == 0) {
        cg_receiver_free(&channel->receiver);
        free(channel->slots);
        free(channel);
    }
    return false;
}

void cg_channel_destroy(struct cg_channel *channel) {
    if (channel == NULL) {
        return;
    }
    assert(!channel->destroyed);
    channel->destroyed = true;
    cg_channel_enter(channel);
    cg_channel_disconnect(channel, -ECANCELED);
    CG_LIST_FOREACH (node, &channel->ending) {
        CG_CONTAINER_OF(node, struct cg_rpc_call, node)->status = -ECANCELED;
    }
    cg_channel_run_ending(channel);
    cg_reactor_undefer(&channel->flush);
    cg_channel_leave(channel);
}

uint64_t cg_channel_received(const struct cg_channel *channel) {
    return channel->receiver.bytes;
}

unsigned cg_channel_inflight(const struct cg_channel *channel) {
    return channel->inflight;
}

// ---- Slots

static int grow_slots(struct cg_channel *channel) {
    uint32_t count = channel->slot_count == 0 ? 64 : channel->slot_count * 2;
    if (count > CG_CHANNEL_INFLIGHT_MAX) {
        return -ENOBUFS;
    }
    struct call_slot *slots = realloc(channel->slots, count * sizeof(*slots));
    if (slots == NULL) {
        return -ENOMEM;
    }
    for (uint32_t i = channel->slot_count; i < count; i++) {
        slots[i] = (struct call_slot){.generation = 1, .next_free = i + 1 < count ? i + 2 : 0};
    }
    channel->slots = slots;
    channel->slot_free = channel->slot_count + 1;
    channel->slot_count = count;
    return 0;
}

static int take_slot(struct cg_channel *channel, struct cg_rpc_call *call) {
    if (channel->slot_free == 0) {
        int rc = grow_slots(channel);
        if (rc < 0) {
            return rc;
        }
    }
    uint32_t index = channel->slot_free - 1;
    struct call_slot *slot = &channel->slots[index];
    channel->slot_free = slot->next_free;
    slot->call = call;
    call->correlation_id = slot->generation << SLOT_BITS | index;
    return 0;
}

static void give_slot(struct cg_channel *channel, struct cg_rpc_call *call) {
    uint32_t index = call->correlation_id & ((1U << SLOT_BITS) - 1);
    struct call_slot *slot = &channel->slots[index];
    assert(slot->call == call);
    slot->call = NULL;
    slot->generation++;
    slot->next_free = channel->slot_free;
    channel->slot_free = index + 1;
}

struct cg_rpc_call *cg_channel_find(struct cg_channel *channel, int64_t correlation_id) {
    uint64_t id = (uint64_t)correlation_id;
    uint32_t index = id & ((1U << SLOT_BITS) - 1);
    if (index >= channel->slot_count || channel->slots[index].generation != id >> SLOT_BITS) {
        return NULL;
    }
    return channel->slots[index].call;
}

// ---- The ends of a call

// Off all lists, with slot and timer given back. The socket is done with it.
static void detach(struct cg_channel *channel, struct cg_rpc_call *call) {
    if (call->state == CALL_QUEUED) {
        cg_sender_remove(&channel->sender, &call->item);
    } else {
        cg_list_remove(&call->node);
    }
    if (call->state != CALL_ENDING) {
        cg_timer_disarm(&call->timer);
        give_slot(channel, call);
        channel->receiving -= call->receive_capacity > 0;
    }
    free(call->head_allocated);
    call->head_allocated = NULL;
}

void cg_channel_finish(struct cg_channel *channel, struct cg_rpc_call *call, int status) {
    detach(channel, call);
    call->state = CALL_IDLE;
    call->status = status;
    channel->inflight--;
    call->done(call);
}

void cg_channel_end_later(struct cg_channel *channel, struct cg_rpc_call *call, int status) {
    detach(channel, call);
    call->state = CALL_ENDING;
    call->status = status;
    cg_list_push_back(&channel->ending, &call->node);
}

void cg_channel_run_ending(struct cg_channel *channel) {
    // Those that are here now: a caller that calls again at once, and fails again, must not keep
    // us.
    unsigned count = 0;
    CG_LIST_FOREACH (node, &channel->ending) {
        count++;
    }
    while (count-- > 0 && !cg_list_empty(&channel->ending)) {
        struct cg_rpc_call *call = CG_CONTAINER_OF(channel->ending.next, struct cg_rpc_call, node);
        cg_channel_finish(channel, call, call->status);
    }
}

// Takes a call back before its reply: what is half sent or half received must not touch it any
// more.
static void withdraw(struct cg_channel *channel, struct cg_rpc_call *call, int status) {
    if (call->state == CALL_QUEUED && call->item.sent > 0) {
        // The peer waits for the rest of this request; only closing ends it. The other calls on
        // this connection end in the deferred flush.
        cg_channel_break(channel, -ECONNRESET);
    } else if (channel->receiver.in_attachment &&
               cg_channel_find(channel, channel->receiver.frame.meta.correlation_id) == call) {
        cg_receiver_discard(&channel->receiver);
    }
    cg_channel_finish(channel, call, status);
}

static void time_is_up(struct cg_timer *timer) {
    struct cg_rpc_call *call = CG_CONTAINER_OF(timer, struct cg_rpc_call, timer);
    withdraw(call->channel, call, -ETIMEDOUT);
}

void cg_channel_cancel(struct cg_channel *channel, struct cg_rpc_call *call) {
    if (call->state != CALL_IDLE) {
        withdraw(channel, call, -ECANCELED);
    }
}

// ---- The beginning

static int prepare(struct cg_channel *channel, struct cg_rpc_call *call) {
    int rc = take_slot(channel, call);
    if (rc < 0) {
        return rc;
    }
    rc = cg_channel_encode(call);
    if (rc == 0) {
        call->timer.fire = time_is_up;
        rc = cg_timer_arm(channel->reactor, &call->timer,
                          cg_reactor_now(channel->reactor) + call->timeout_ns);
    }
    if (rc < 0) {
        free(call->head_allocated);
        call->head_allocated = NULL;
        give_slot(channel, call);
    }
    return rc;
}

void cg_channel_call(struct cg_channel *channel, struct cg_rpc_call *call) {
    assert(call->state == CALL_IDLE && call->timeout_ns > 0 && call->done != NULL);
    call->channel = channel;
    call->error_code = 0;
    call->error_text[0] = '\0';
    call->reply = NULL;
    call->reply_length = 0;
    call->received_length = 0;
    channel->inflight++;
    int rc = channel->destroyed ? -ECANCELED : prepare(channel, call);
    if (rc < 0) {
        call->state = CALL_ENDING;
        call->status = rc;
        cg_list_push_back(&channel->ending, &call->node);
    } else {
        call->state = CALL_QUEUED;
        channel->receiving += call->receive_capacity > 0;
        cg_sender_push(&channel->sender, &call->item);
    }
    cg_reactor_defer(channel->reactor, &channel->flush);
}
