// SPDX-License-Identifier: BSD-3-Clause
//
// The lease of an open volume: refreshed every quarter; at three quarters of its length without a
// renewal IO pauses (the metadata server may give the volume to somebody else when it has run out).
// Lengths, sequence numbers and epochs are learned with each refresh.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "gateway/proto/nameserver2.pb.h"
#include "volume/client.h"
#include "volume/clone.h"
#include "volume/session.h"
#include "volume/volume.h"

#define LEASE_DEFAULT_NS (5 * CG_NS_PER_S)
#define RETRY_NS         (100 * CG_NS_PER_MS)

static void refresh(struct cg_volume *volume);

static void on_refresh_time(struct cg_timer *timer) {
    refresh(CG_CONTAINER_OF(timer, struct cg_volume, session_timer));
}

static void refresh_after(struct cg_volume *volume, uint64_t delay_ns) {
    volume->session_timer.fire = on_refresh_time;
    uint64_t at = cg_reactor_now(volume->reactor) + delay_ns;
    if (cg_timer_arm(volume->reactor, &volume->session_timer, at) != 0) {
        cg_log(CG_LOG_ERROR, "%s: no memory for the lease's timer: IO will pause", volume->path);
    }
}

static uint64_t quarter(const struct cg_volume *volume) {
    return volume->lease_ns / 4;
}

void vol_session_take(struct cg_volume *volume, const struct cg_mds_call *call) {
    if (call->lease_us != 0) {
        volume->lease_ns = call->lease_us * CG_NS_PER_US;
        volume->leased = true;
    }
    // Counted from when the request left: the server granted it later than that.
    uint64_t end = call->sent_boot_ns + volume->lease_ns / 4 * 3;
    if (end > volume->lease_end_boot_ns) {
        volume->lease_end_boot_ns = end;
    }
}

void vol_resume(struct cg_volume *volume) {
    vol_events_pausing(volume);
    vol_requests_resume(volume);
    vol_queue_run(volume);
}

void vol_fence(struct cg_volume *volume, int error, const char *why) {
    if (volume->fenced != 0) {
        return;
    }
    volume->fenced = error;
    vol_event(volume, CG_EVENT_FENCED);
    cg_log(CG_LOG_ERROR, "%s: %s; all further IO fails", volume->path, why);
    vol_state_stop(volume, error);
    vol_requests_fail_waiting(volume, error);
    vol_resume(volume);
    vol_segments_wake(volume);
}

// What a refresh or a second opening says of the file. False: fenced.
static bool take_file(struct cg_volume *volume, const struct cg_mds_file *file) {
    if (!file->present) {
        return true;
    }
    if (file->id != volume->file_id) {
        vol_fence(volume, -ENOENT, "the volume was deleted and another one has its name");
        return false;
    }
    if (volume->exclusive && file->epoch != volume->epoch) {
        vol_fence(volume, -ESTALE, "another client has taken it over");
        return false;
    }
    if (file->seq > volume->seq) {
        volume->seq = file->seq;
    }
    if (file->length != volume->size && file->length / volume->segment_size <= VOL_SEGMENTS_MAX) {
        cg_log(CG_LOG_INFO, "%s: %" PRIu64 " bytes now", volume->path, file->length);
        volume->size = file->length;
        vol_event(volume, CG_EVENT_RESIZED);
    }
    vol_clone_update(volume, file->status);
    return true;
}

static void on_session(struct cg_mds_call *call, int result);

static void call_mds(struct cg_volume *volume, enum cg_mds_op op) {
    struct cg_mds_call *call = &volume->session_call;
    cg_mds_call_free(call);
    call->mds = &volume->client->mds;
    call->op = op;
    call->path = volume->path;
    call->session_id = volume->session;
    call->deadline_ns = cg_reactor_now(volume->reactor) + volume->lease_ns;
    call->done = on_session;
    cg_mds_call_start(call);
}

static void refresh(struct cg_volume *volume) {
    volume->refresh_soon = false;
    call_mds(volume, CG_MDS_REFRESH);
}

void vol_session_refresh_now(struct cg_volume *volume) {
    if (volume->session_call.active) {
        volume->refresh_soon = true;
    } else if (!volume->closing) {
        cg_timer_disarm(&volume->session_timer);
        refresh(volume);
    }
}

static void on_session(struct cg_mds_call *call, int result) {
    struct cg_volume *volume = CG_CONTAINER_OF(call, struct cg_volume, session_call);
    bool opening = call->op == CG_MDS_OPEN;
    if (volume->fenced != 0) {
        return; // nothing left to keep
    }
    if (result != 0) {
        cg_log(CG_LOG_WARNING, "%s: no metadata server renews the lease", volume->path);
        refresh_after(volume, RETRY_NS);
        return;
    }
    if (!opening && call->status == curve_mds_StatusCode_kSessionNotExist) {
        cg_log(CG_LOG_WARNING, "%s: the session has ended; opening again", volume->path);
        call_mds(volume, CG_MDS_OPEN);
        return;
    }
    if (call->status == curve_mds_StatusCode_kFileNotExists) {
        vol_fence(volume, -ENOENT, "the volume was deleted");
        return;
    }
    if (call->status != curve_mds_StatusCode_kOK) {
        cg_log(CG_LOG_WARNING, "%s: the metadata server does not renew the lease (status %d)",
               volume->path, call->status);
        refresh_after(volume, RETRY_NS);
        return;
    }
    if (!take_file(volume, &call->file)) {
        return;
    }
    if (opening) {
        memcpy(volume->session, call->session, sizeof(volume->session));
        vol_state_session_replaced(volume);
    }
    vol_session_take(volume, call);
    vol_events_watch_lease(volume);
    refresh_after(volume, volume->refresh_soon ? 0 : quarter(volume));
    vol_resume(volume);
}

void vol_session_begin(struct cg_volume *volume) {
    if (volume->lease_ns == 0) {
        volume->lease_ns = LEASE_DEFAULT_NS;
    }
    vol_events_watch_lease(volume);
    // Opening may have taken a while: part of the lease is gone.
    uint64_t now = cg_boottime_ns();
    uint64_t due = volume->lease_end_boot_ns - volume->lease_ns / 2;
    refresh_after(volume, volume->leased && due <= now ? 0 : quarter(volume));
}

void vol_session_end(struct cg_volume *volume) {
    cg_timer_disarm(&volume->session_timer);
    cg_mds_call_cancel(&volume->session_call);
    cg_mds_call_free(&volume->session_call);
}
