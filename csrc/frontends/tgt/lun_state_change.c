// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <pb_encode.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "frontends/tgt/client.h"
#include "frontends/tgt/lun_state.h"

static void end(struct lun_state *state, struct bs_status status) {
    struct lun_state_change *change = state->making;
    state->making = NULL;
    state->made = false;
    change->end(change, status);
}

// What the initiator is told of a change that the MDS did not make, or not for sure.
static struct bs_status failure(struct lun_state *state, int result) {
    if (result == -ESTALE || result == -ESHUTDOWN)
        return BS_CHECK(KEY_NOT_READY, ASC_STANDBY);
    bs_lun_log(state->lun, true, "the shared state cannot be changed: %s", strerror(-result));
    return (struct bs_status){.status = SAM_BUSY};
}

static void make(struct lun_state *state);

static void told_newer(struct lun_state *state, const struct cg_state_call *call) {
    if (!lun_state_decode(state->set_buffer, call->buffer_length, state->next)) {
        end(state, failure(state, -EBADMSG));
        return;
    }
    lun_state_take(state, state->next, call->revision);
    if (state->making == NULL)
        return;
    // What is newer may be that another gateway has the volume.
    if (state->lun->volume == NULL)
        end(state, failure(state, -ESTALE));
    else
        make(state);
}

static void on_set(struct cg_state_call *call) {
    struct lun_state *state = call->user;
    state->setting = false;
    if (state->stopping) {
        end(state, (struct bs_status){.status = SAM_BUSY});
        return;
    }
    if (call->result == 0) {
        state->made = true;
        lun_state_take(state, state->next, call->revision);
    } else if (call->result == -EAGAIN) {
        told_newer(state, call);
    } else {
        // With a revision it is kept, but somebody may still act by the older state.
        if (call->result == -ETIMEDOUT && call->revision != 0)
            lun_state_take(state, state->next, call->revision);
        end(state, failure(state, call->result));
    }
    lun_state_advance(state);
}

static bool submit_set(struct lun_state *state) {
    pb_ostream_t stream = pb_ostream_from_buffer(state->set_buffer, CG_STATE_MAX);
    if (!pb_encode(&stream, copygate_iscsi_LunState_fields, state->next))
        return false;
    const struct lun_state_change *change = state->making;
    state->setting = true;
    state->set = (struct cg_state_call){
        .op = CG_STATE_SET,
        .flags = change->forbids_nothing ? CG_STATE_NO_WAIT : 0,
        .revision_known = state->revision,
        .data = state->set_buffer,
        .length = (uint32_t)stream.bytes_written,
        .buffer = state->set_buffer,
        .capacity = CG_STATE_MAX,
        .epoch = change->epoch,
        .timeout_ms = change->command != NULL ? bs_command_remaining_ms(change->command) : 0,
        .done = on_set,
        .user = state,
    };
    cg_state_submit(state->lun->volume, &state->set);
    bs_client_kick(state->lun->client);
    return true;
}

// Applies the change to the newest state and hands it to the MDS.
static void make(struct lun_state *state) {
    bool changed = false;
    memcpy(state->next, state->now, sizeof(*state->next));
    state->next->has_reservations = true;
    struct bs_status status = state->making->apply(state->making, state->next, &changed);
    if (status.status != SAM_GOOD) {
        end(state, status);
    } else if (!changed || state->local) {
        state->made = true;
        if (changed)
            lun_state_take(state, state->next, state->revision + 1);
    } else if (!submit_set(state)) {
        end(state, failure(state, -EMSGSIZE));
    }
}

static bool too_late(const struct lun_state_change *change) {
    return change->command != NULL && change->command->deadline_ns <= cg_now_ns();
}

void lun_state_change_advance(struct lun_state *state) {
    for (;;) {
        if (state->making != NULL) {
            if (!state->made || lun_state_draining(state))
                return;
            end(state, BS_GOOD);
        }
        if (cg_list_empty(&state->changes))
            return;
        struct lun_state_change *first =
            CG_CONTAINER_OF(state->changes.next, struct lun_state_change, node);
        bool ready = state->known && state->lun->volume != NULL && state->arrived == NULL;
        if (!ready && !too_late(first))
            return;
        cg_list_remove(&first->node);
        state->making = first;
        if (ready)
            make(state);
        else
            end(state, (struct bs_status){.status = SAM_BUSY});
        if (state->setting)
            return;
    }
}

void lun_state_submit(struct lun_state *state, struct lun_state_change *change) {
    change->state = state;
    cg_list_push_back(&state->changes, &change->node);
    lun_state_advance(state);
}
