// SPDX-License-Identifier: BSD-3-Clause
#include <stdlib.h>

#include "volume/client.h"
#include "volume/clone.h"
#include "volume/session.h"
#include "volume/volume.h"

#define CLOSE_TIMEOUT_NS (2 * CG_NS_PER_S)

struct closing {
    struct cg_task task;
    struct cg_waiter waiter;
    struct cg_volume *volume;
};

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
    struct closing *closing = volume->closer;
    cg_mds_call_free(call);
    cg_list_remove(&volume->node);
    cg_waiter_done(volume->client, &closing->waiter);
}

// No IO is left.
static void on_drained(struct cg_volume *volume) {
    vol_session_end(volume);
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
    struct closing *closing = CG_CONTAINER_OF(task, struct closing, task);
    struct cg_volume *volume = closing->volume;
    volume->closer = closing;
    volume->closing = true;
    if (volume->ios == 0) {
        on_drained(volume);
    } else {
        volume->drained = on_drained;
    }
}

void vol_close_and_wait(struct cg_volume *volume) {
    struct closing closing = {.task.run = begin, .volume = volume};
    cg_waiter_init(&closing.waiter);
    cg_client_post(volume->client, &closing.task);
    cg_client_wait(volume->client, &closing.waiter);
    vol_free(volume);
}

CG_API void cg_volume_close(struct cg_volume *volume) {
    if (volume != NULL) {
        vol_close_and_wait(volume);
    }
}
