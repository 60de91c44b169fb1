// SPDX-License-Identifier: BSD-3-Clause
//
// Which blocks of a segment are trimmed, and giving back segments that are trimmed as a whole: a
// while after the last bit was set, and only if no request for the segment is in flight and all
// bits are still set. Only the exclusive writer does it, and only under a fresh lease: nobody else
// may write to the segment meanwhile.
//
// The bitmaps are memory only: losing one loses the chance to give a segment back, no data.
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "gateway/proto/nameserver2.pb.h"
#include "volume/client.h"
#include "volume/clone.h"
#include "volume/volume.h"

#define BITMAPS_MAX     256U // 8 MiB with segments of 1 GiB
#define RETURN_LIMIT_NS (2 * CG_NS_PER_S)

struct vol_trim {
    struct vol_segment *segment;
    struct cg_timer timer;
    uint64_t blocks;  // in the segment
    uint64_t trimmed; // bits set
    uint64_t bits[];
};

static void on_return_time(struct cg_timer *timer);

static struct vol_trim *trim_get(struct vol_segment *segment) {
    struct cg_volume *volume = segment->volume;
    if (segment->trim != NULL || volume->trim_count == BITMAPS_MAX) {
        return segment->trim;
    }
    uint64_t blocks = volume->segment_size / VOL_BLOCK;
    struct vol_trim *trim = calloc(1, sizeof(*trim) + (blocks + 63) / 64 * sizeof(trim->bits[0]));
    if (trim != NULL) {
        trim->segment = segment;
        trim->blocks = blocks;
        trim->timer.fire = on_return_time;
        segment->trim = trim;
        volume->trim_count++;
    }
    return trim;
}

void vol_trim_free(struct vol_segment *segment) {
    if (segment->trim != NULL) {
        cg_timer_disarm(&segment->trim->timer);
        free(segment->trim);
        segment->trim = NULL;
        segment->volume->trim_count--;
    }
}

static void arm(struct vol_trim *trim) {
    struct cg_volume *volume = trim->segment->volume;
    uint64_t at = cg_reactor_now(volume->reactor) + volume->client->trim_delay_ns;
    if (cg_timer_arm(volume->reactor, &trim->timer, at) != 0) {
        vol_trim_free(trim->segment);
    }
}

void vol_trim_mark(struct vol_segment *segment, uint64_t offset, uint64_t length) {
    // Given back, a segment of a clone would read as the source's.
    if (!segment->volume->exclusive || vol_clone_has(segment->volume, segment->index)) {
        return;
    }
    uint64_t first = (offset + VOL_BLOCK - 1) / VOL_BLOCK;
    uint64_t end = (offset + length) / VOL_BLOCK; // whole blocks only
    struct vol_trim *trim = first < end ? trim_get(segment) : NULL;
    if (trim == NULL) {
        return;
    }
    for (uint64_t i = first; i < end; i++) {
        uint64_t bit = UINT64_C(1) << (i % 64);
        trim->trimmed += (trim->bits[i / 64] & bit) == 0;
        trim->bits[i / 64] |= bit;
    }
    if (trim->trimmed == trim->blocks && !cg_timer_armed(&trim->timer)) {
        arm(trim);
    }
}

void vol_trim_clear(struct vol_segment *segment, uint64_t offset, uint64_t length) {
    struct vol_trim *trim = segment->trim;
    uint64_t end = (offset + length + VOL_BLOCK - 1) / VOL_BLOCK;
    for (uint64_t i = offset / VOL_BLOCK; i < end; i++) {
        uint64_t bit = UINT64_C(1) << (i % 64);
        trim->trimmed -= (trim->bits[i / 64] & bit) != 0;
        trim->bits[i / 64] &= ~bit;
    }
    cg_timer_disarm(&trim->timer);
    if (trim->trimmed == 0) {
        vol_trim_free(segment);
    }
}

static void on_returned(struct cg_mds_call *call, int result) {
    struct vol_segment *segment = CG_CONTAINER_OF(call, struct vol_segment_call, mds)->segment;
    struct cg_volume *volume = segment->volume;
    int32_t status = call->status;
    cg_mds_call_free(call);
    free(CG_CONTAINER_OF(call, struct vol_segment_call, mds));
    segment->call = NULL;
    vol_trim_free(segment);
    // Whether it took effect is not known without an answer: ask before the next IO.
    segment->state = VOL_SEGMENT_UNKNOWN;
    if (result != 0 || status != curve_mds_StatusCode_kOK) {
        cg_log(CG_LOG_INFO, "%s: segment %" PRIu64 " was not given back (%s %d)", volume->path,
               segment->index, result != 0 ? "error" : "status", result != 0 ? result : status);
    }
    if (result == 0 && status == curve_mds_StatusCode_kOK) {
        segment->state = VOL_SEGMENT_HOLE;
    }
    vol_segment_wake(segment);
}

static void on_return_time(struct cg_timer *timer) {
    struct vol_trim *trim = CG_CONTAINER_OF(timer, struct vol_trim, timer);
    struct vol_segment *segment = trim->segment;
    struct cg_volume *volume = segment->volume;
    uint64_t limit_boot = cg_boottime_ns() + RETURN_LIMIT_NS;
    bool safe = volume->fenced == 0 && !volume->closing && volume->leased &&
                limit_boot < volume->lease_end_boot_ns;
    if (segment->requests > 0 || segment->call != NULL || !safe) {
        arm(trim);
        return;
    }
    struct vol_segment_call *holder = calloc(1, sizeof(*holder));
    if (holder == NULL) {
        arm(trim);
        return;
    }
    holder->segment = segment;
    struct cg_mds_call *call = &holder->mds;
    segment->call = call;
    segment->state = VOL_SEGMENT_RETURNING;
    vol_local_forget(segment);
    call->mds = &volume->client->mds;
    call->op = CG_MDS_DEALLOCATE;
    call->path = volume->path;
    call->offset = segment->index * volume->segment_size;
    call->epoch = volume->native ? volume->epoch : 0;
    call->deadline_ns = cg_reactor_now(volume->reactor) + RETURN_LIMIT_NS;
    call->done = on_returned;
    cg_mds_call_start(call);
}
