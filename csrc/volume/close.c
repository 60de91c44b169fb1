// SPDX-License-Identifier: BSD-3-Clause
#include <errno.h>
#include <stdlib.h>

#include "volume/client.h"
#include "volume/clone.h"
#include "volume/session.h"
#include "volume/volume.h"

#define CLOSE_TIMEOUT_NS (2 * CG_NS_PER_S)

void vol_free(struct cg_volume *volume) {
    vol_segments_free(volume);
    vol_copysets_free(volume);
    vol_merge_free(volume);
    vol_clone_free(volume);
    free(volume->requests);
    free(volume->path);
    free(volume);
}

static void on_closed(struct cg_mds_call *call, int result) {
    // Unanswered: the session runs out by itself.
    (void)result;
    struct cg_volume *volume = CG_CONTAINER_OF(call, struct cg_volume, session_call);
    cg_mds_call_free(call);
    cg_list_remove(&volume->node);
    volume->closed(volume);
}

// No IO is left.
static void on_drained(struct cg_volume *volume) {
    vol_session_end(volume);
    vol_events_stop(volume);
    vol_local_close(volume);
    vol_segments_stop(volume);
    vol_copysets_stop(volume);
    vol_clone_stop(volume);
    struct cg_mds_call *call = &volume->session_call;
    call->mds = &volume->client->mds;
    call->op = CG_MDS_CLOSE;
    call->path = volume->path;
    call->session_id = volume->session;
    call->deadline_ns = cg_reactor_now(volume->reactor) + CLOSE_TIMEOUT_NS;
    call->done = on_closed;
    cg_mds_call_start(call);
}

static void begin(struct cg_task *task) {
    struct cg_volume *volume = CG_CONTAINER_OF(task, struct cg_volume, close_task);
    volume->closing = true;
    vol_state_stop(volume, -ESHUTDOWN);
    if (volume->ios == 0) {
        on_drained(volume);
    } else {
        volume->drained = on_drained;
    }
}

static void start(struct cg_volume *volume, void (*closed)(struct cg_volume *volume)) {
    volume->closed = closed;
    volume->close_task.run = begin;
    cg_client_post(volume->client, &volume->close_task);
}

static void wake_closer(struct cg_volume *volume) {
    cg_waiter_done(volume->client, volume->closer);
}

static void tell_and_free(struct cg_volume *volume) {
    void (*done)(void *user) = volume->close_done;
    void *user = volume->close_user;
    vol_free(volume);
    done(user);
}

void vol_close_and_wait(struct cg_volume *volume) {
    struct cg_client *client = volume->client;
    if (volume->close_done != NULL) {
        // cg_client_destroy: the loop is ours for a moment.
        cg_reactor_wait(client->reactor, UINT64_MAX);
        return;
    }
    struct cg_waiter waiter;
    cg_waiter_init(&waiter);
    volume->closer = &waiter;
    start(volume, wake_closer);
    cg_client_wait(client, &waiter);
    vol_free(volume);
}

CG_API void cg_volume_close(struct cg_volume *volume) {
    if (volume != NULL) {
        vol_close_and_wait(volume);
    }
}

CG_API int cg_volume_close_start(struct cg_volume *volume, void (*done)(void *user), void *user) {
    if (volume->client->mode != CG_CLIENT_FOREIGN_LOOP) {
        return -ENOTSUP;
    }
    // From now on, though it may be called from a completion of the volume's: what closing does
    // waits for the loop.
    volume->closing = true;
    volume->close_done = done;
    volume->close_user = user;
    start(volume, tell_and_free);
    return 0;
}
