// SPDX-License-Identifier: BSD-3-Clause
//
// The volume's shared state: the calls, and what becomes of IO when we may have missed a change.
//
// Who follows the state lets IO through by it. The metadata server tells whoever changes it that
// the change is done when we know it, or when our lease has run out; then it ends our session. So a
// session that was replaced is the sign that a change may have passed us by: IO that was let
// through before ends, and new IO pauses until a FOLLOW is answered in the new session.
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#include "base/log.h"
#include "gateway/proto/nameserver2.pb.h"
#include "volume/client.h"
#include "volume/volume.h"

#define CALLS_MAX 16U
#define WAIT_MS   5000U // of one try; a metadata server that has gone silent is left after it
#define TRY_NS    (15 * CG_NS_PER_S)
#define PAUSE_NS  (100 * CG_NS_PER_MS)

struct vol_state_call {
    struct cg_list node; // the volume's
    struct cg_mds_call mds;
    struct cg_mds_state wire;
    struct cg_timer timer; // before it is asked again
    struct cg_volume *volume;
    struct cg_state_call *call;
    uint64_t deadline_ns; // UINT64_MAX: none
    uint64_t asked_ns;
    uint32_t session; // the volume's count when it was asked
    bool made;        // SET: durable; others are waited for
};

// An answer that is known at submission, delivered later.
struct early_end {
    struct cg_task task;
};
_Static_assert(sizeof(struct early_end) <= sizeof(((struct cg_state_call *)0)->internal),
               "cg_state_call has room for the core's state");

static void ask(struct vol_state_call *state);

static void end(struct vol_state_call *state, int result) {
    struct cg_volume *volume = state->volume;
    struct cg_state_call *call = state->call;
    cg_list_remove(&state->node);
    volume->state_call_count--;
    if (volume->follower == state) {
        volume->follower = NULL;
    }
    cg_timer_disarm(&state->timer);
    cg_mds_call_cancel(&state->mds);
    cg_mds_call_free(&state->mds);
    free(state);
    call->result = result;
    call->done(call);
}

// Ends it, and takes over what is there now.
static void end_told(struct vol_state_call *state, int result) {
    struct cg_state_call *call = state->call;
    call->revision = state->wire.revision_now;
    call->buffer_length = state->wire.buffer_length;
    end(state, state->wire.too_long ? -EMSGSIZE : result);
}

static void on_pause_over(struct cg_timer *timer) {
    ask(CG_CONTAINER_OF(timer, struct vol_state_call, timer));
}

static void ask_later(struct vol_state_call *state) {
    uint64_t at = cg_reactor_now(state->volume->reactor) + PAUSE_NS;
    state->timer.fire = on_pause_over;
    if (cg_timer_arm(state->volume->reactor, &state->timer,
                     at < state->deadline_ns ? at : state->deadline_ns) != 0) {
        end(state, -ENOMEM);
    }
}

// An answer that says nothing new may come early, from a server that stops: not in a busy loop.
static void wait_on(struct vol_state_call *state) {
    if (cg_reactor_now(state->volume->reactor) - state->asked_ns < PAUSE_NS) {
        ask_later(state);
    } else {
        ask(state);
    }
}

// FOLLOW was answered in the session that we have: IO may go on. True if it had paused.
static bool confirm_view(const struct vol_state_call *state) {
    struct cg_volume *volume = state->volume;
    bool paused = volume->view_unknown && state->session == volume->sessions;
    if (paused) {
        volume->view_unknown = false;
    }
    return paused;
}

static void on_followed(struct vol_state_call *state) {
    struct cg_volume *volume = state->volume;
    if (state->session != volume->sessions) {
        ask(state); // the session was replaced meanwhile
        return;
    }
    bool resume = confirm_view(state);
    if (state->wire.revision_now != state->call->revision_known) {
        end_told(state, 0); // takes the new state over, before IO goes on
    } else {
        wait_on(state);
    }
    if (resume) {
        vol_resume(volume);
    }
}

static void on_ok(struct vol_state_call *state) {
    switch (state->call->op) {
    case CG_STATE_GET:
        end_told(state, 0);
        break;
    case CG_STATE_FOLLOW:
        on_followed(state);
        break;
    case CG_STATE_SET:
        if (!state->made) {
            state->made = true;
            state->call->revision = state->wire.revision_now;
        }
        if (state->wire.acknowledged || (state->call->flags & CG_STATE_NO_WAIT) != 0) {
            end(state, 0);
        } else if (state->mds.op == CG_MDS_STATE_SET) {
            ask(state);
        } else {
            wait_on(state);
        }
        break;
    }
}

static void on_answer(struct cg_mds_call *mds, int result) {
    struct vol_state_call *state = CG_CONTAINER_OF(mds, struct vol_state_call, mds);
    struct cg_volume *volume = state->volume;
    bool follow = state->call->op == CG_STATE_FOLLOW;
    if (result == -ETIMEDOUT && cg_reactor_now(volume->reactor) < state->deadline_ns) {
        ask(state); // FOLLOW has more time than one call
        return;
    }
    if (result != 0) {
        end(state, result == -ECANCELED ? -ESHUTDOWN : result);
        return;
    }
    if (mds->status == curve_mds_StatusCode_kOK) {
        on_ok(state);
    } else if (mds->status == curve_mds_StatusCode_kSessionNotExist) {
        vol_session_refresh_now(volume); // opens again
        ask_later(state);
    } else if (mds->status == curve_mds_StatusCode_kSharedStateConflict) {
        end_told(state, -EAGAIN);
    } else if (cg_mds_status_errno(mds->status) == -EIO && follow) {
        ask_later(state); // the server's trouble: it must not end the following
    } else {
        end(state, cg_mds_status_errno(mds->status));
    }
}

static void choose_message(struct vol_state_call *state) {
    const struct cg_volume *volume = state->volume;
    const struct cg_state_call *call = state->call;
    struct cg_mds_call *mds = &state->mds;
    struct cg_mds_state *wire = &state->wire;
    mds->epoch = 0;
    wire->wait_ms = 0;
    wire->revision = call->revision_known;
    switch (call->op) {
    case CG_STATE_GET:
        mds->op = CG_MDS_STATE_GET;
        wire->revision = CG_STATE_UNKNOWN;
        break;
    case CG_STATE_FOLLOW:
        mds->op = CG_MDS_STATE_GET;
        mds->epoch = volume->exclusive ? volume->epoch : 0;
        wire->follow = true;
        // IO waits for the answer: then it must come at once.
        wire->wait_ms = volume->view_unknown ? 0 : WAIT_MS;
        break;
    case CG_STATE_SET:
        if (state->made) {
            mds->op = CG_MDS_STATE_AWAIT;
            wire->revision = call->revision;
            wire->wait_ms = WAIT_MS;
        } else {
            mds->op = CG_MDS_STATE_SET;
            mds->epoch = call->epoch;
        }
        break;
    }
}

static void ask(struct vol_state_call *state) {
    struct cg_volume *volume = state->volume;
    uint64_t now = cg_reactor_now(volume->reactor);
    if (now >= state->deadline_ns) {
        end(state, -ETIMEDOUT);
        return;
    }
    choose_message(state);
    struct cg_mds_call *mds = &state->mds;
    mds->mds = &volume->client->mds;
    mds->state = &state->wire;
    mds->path = volume->path;
    mds->session_id = volume->session;
    mds->deadline_ns = state->deadline_ns == UINT64_MAX ? now + TRY_NS : state->deadline_ns;
    mds->done = on_answer;
    state->session = volume->sessions;
    state->asked_ns = now;
    cg_mds_call_start(mds);
}

void vol_state_stop(struct cg_volume *volume, int error) {
    while (!cg_list_empty(&volume->state_calls)) {
        end(CG_CONTAINER_OF(volume->state_calls.next, struct vol_state_call, node), error);
    }
}

void vol_state_session_replaced(struct cg_volume *volume) {
    volume->sessions++;
    if (!volume->follows) {
        return;
    }
    cg_log(CG_LOG_WARNING, "%s: the shared state may have changed: IO waits until it is known",
           volume->path);
    volume->view_unknown = true;
    volume->view++;
    vol_events_pausing(volume);
    vol_requests_fail_waiting(volume, -EAGAIN);
    vol_requests_resume(volume);
    while (!cg_list_empty(&volume->queue)) {
        vol_transfer_fail(CG_CONTAINER_OF(volume->queue.next, struct vol_transfer, node), -EAGAIN);
    }
    struct vol_state_call *follower = volume->follower;
    if (follower != NULL) {
        cg_timer_disarm(&follower->timer);
        cg_mds_call_cancel(&follower->mds);
        ask(follower);
    }
}

// ---- The public call

static void deliver_early(struct cg_task *task) {
    struct early_end *early = CG_CONTAINER_OF(task, struct early_end, task);
    struct cg_state_call *call = CG_CONTAINER_OF(early, struct cg_state_call, internal);
    call->done(call);
}

static int check(const struct cg_volume *volume, const struct cg_state_call *call) {
    if (volume->closing) {
        return -ESHUTDOWN;
    }
    if (volume->fenced != 0) {
        return volume->fenced;
    }
    if (!volume->native) {
        return -ENOTSUP;
    }
    switch (call->op) {
    case CG_STATE_FOLLOW:
        if (volume->follower != NULL) {
            return -EBUSY;
        }
        break;
    case CG_STATE_SET:
        if (call->length > CG_STATE_MAX || (call->data == NULL && call->length > 0)) {
            return -EINVAL;
        }
        break;
    case CG_STATE_GET:
        break;
    default:
        return -EINVAL;
    }
    if ((call->buffer == NULL && call->capacity > 0) || call->timeout_ms > UINT32_MAX) {
        return -EINVAL;
    }
    return volume->state_call_count < CALLS_MAX ? 0 : -EBUSY;
}

static int start(struct cg_volume *volume, struct cg_state_call *call) {
    struct vol_state_call *state = calloc(1, sizeof(*state));
    if (state == NULL) {
        return -ENOMEM;
    }
    if (call->op == CG_STATE_SET && getrandom(&state->wire.token, sizeof(state->wire.token), 0) !=
                                        (ssize_t)sizeof(state->wire.token)) {
        free(state);
        return -EIO;
    }
    state->volume = volume;
    state->call = call;
    state->wire.data = call->data;
    state->wire.length = call->length;
    state->wire.buffer = call->buffer;
    state->wire.capacity = call->capacity;
    uint64_t timeout_ns =
        call->timeout_ms != 0 ? call->timeout_ms * CG_NS_PER_MS : volume->io_timeout_ns;
    bool no_limit = call->op == CG_STATE_FOLLOW && call->timeout_ms == 0;
    state->deadline_ns = no_limit ? UINT64_MAX : cg_reactor_now(volume->reactor) + timeout_ns;
    cg_list_push_back(&volume->state_calls, &state->node);
    volume->state_call_count++;
    if (call->op == CG_STATE_FOLLOW) {
        volume->follower = state;
        volume->follows = true;
    }
    ask(state);
    return 0;
}

CG_API void cg_state_submit(struct cg_volume *volume, struct cg_state_call *call) {
    call->revision = 0;
    call->buffer_length = 0;
    if (volume->client->mode != CG_CLIENT_FOREIGN_LOOP) {
        call->result = -ENOTSUP;
        return;
    }
    int error = check(volume, call);
    if (error == 0) {
        error = start(volume, call);
    }
    if (error != 0) {
        struct early_end *early = (struct early_end *)(void *)call->internal;
        early->task.run = deliver_early;
        call->result = error;
        cg_client_post(volume->client, &early->task);
    }
}
