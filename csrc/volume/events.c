// SPDX-License-Identifier: BSD-3-Clause
//
// What is told to the program that owns the loop: it need not look at the volume with each IO.
#include "base/log.h"
#include "volume/volume.h"

static void tell(struct cg_deferred *work) {
    struct cg_volume *volume = CG_CONTAINER_OF(work, struct cg_volume, event_work);
    uint32_t events = volume->events;
    volume->events = 0;
    for (unsigned event = 0; events >> event != 0; event++) {
        // The program may begin to close it in between.
        if ((events >> event & 1) != 0 && !volume->closing) {
            volume->on_event(volume->event_user, volume, (enum cg_event)event);
        }
    }
}

void vol_events_init(struct cg_volume *volume, const struct cg_volume_options *options) {
    volume->on_event = options->on_event;
    volume->event_user = options->event_user;
    volume->event_work.run = tell;
    cg_list_init(&volume->event_work.node);
}

void vol_event(struct cg_volume *volume, enum cg_event event) {
    if (volume->on_event != NULL && !volume->closing) {
        volume->events |= 1U << event;
        cg_reactor_defer(volume->reactor, &volume->event_work);
    }
}

void vol_events_pausing(struct cg_volume *volume) {
    bool paused = !vol_lease_ok(volume);
    if (volume->fenced != 0 || paused == volume->told_paused) {
        return;
    }
    volume->told_paused = paused;
    // What is not told yet and has passed again is no news.
    uint32_t opposite = 1U << (paused ? CG_EVENT_RESUMED : CG_EVENT_PAUSED);
    if ((volume->events & opposite) != 0) {
        volume->events &= ~opposite;
    } else {
        vol_event(volume, paused ? CG_EVENT_PAUSED : CG_EVENT_RESUMED);
    }
}

static void on_lease_time(struct cg_timer *timer) {
    struct cg_volume *volume = CG_CONTAINER_OF(timer, struct cg_volume, lease_timer);
    vol_events_watch_lease(volume);
    vol_events_pausing(volume);
}

void vol_events_watch_lease(struct cg_volume *volume) {
    if (volume->on_event == NULL || !volume->leased) {
        return;
    }
    uint64_t now = cg_boottime_ns();
    if (now >= volume->lease_end_boot_ns) {
        return; // the next renewal watches again
    }
    volume->lease_timer.fire = on_lease_time;
    uint64_t at = cg_reactor_now(volume->reactor) + (volume->lease_end_boot_ns - now);
    if (cg_timer_arm(volume->reactor, &volume->lease_timer, at) != 0) {
        cg_log(CG_LOG_ERROR, "%s: no memory: the end of the lease will not be told", volume->path);
    }
}

void vol_events_stop(struct cg_volume *volume) {
    cg_timer_disarm(&volume->lease_timer);
    cg_reactor_undefer(&volume->event_work);
}
