// SPDX-License-Identifier: BSD-3-Clause
//
// Segment -> chunks. A segment is asked for once at a time; those who need it wait. It goes on only
// while somebody waits: every waiter has its own deadline.
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/log.h"
#include "gateway/proto/nameserver2.pb.h"
#include "volume/client.h"
#include "volume/clone.h"
#include "volume/volume.h"

// One attempt at the metadata servers; repeated while somebody waits.
#define FETCH_TIMEOUT_NS (2 * CG_NS_PER_S)

static void fetch(struct vol_segment *segment, bool allocate);

static struct vol_segment *segment_get(struct cg_volume *volume, uint64_t index) {
    assert(index < VOL_SEGMENTS_MAX);
    if (index >= volume->segment_slots) {
        uint64_t slots = volume->segment_slots * 2ULL;
        slots = slots > index ? slots : index + 1;
        slots = slots < 64 ? 64 : slots;
        struct vol_segment **grown = realloc(volume->segments, slots * sizeof(*grown));
        if (grown == NULL) {
            return NULL;
        }
        for (uint64_t i = volume->segment_slots; i < slots; i++) {
            grown[i] = NULL;
        }
        volume->segments = grown;
        volume->segment_slots = (uint32_t)slots;
    }
    if (volume->segments[index] == NULL) {
        struct vol_segment *segment =
            calloc(1, sizeof(*segment) + volume->chunks_per_segment * sizeof(segment->chunks[0]));
        if (segment == NULL) {
            return NULL;
        }
        segment->volume = volume;
        segment->index = index;
        cg_list_init(&segment->waiters);
        volume->segments[index] = segment;
    }
    return volume->segments[index];
}

// Whether the transfer needs the segment to exist.
static bool allocates(const struct vol_transfer *transfer, const struct vol_segment *segment) {
    switch (transfer->kind) {
    case VOL_WRITE:
    case VOL_COMPARE_AND_WRITE:
        return true;
    case VOL_WRITE_ZEROES:
    case VOL_WRITE_ZERO_DATA:
        return transfer->no_hole || vol_clone_has(transfer->volume, segment->index);
    default:
        return false;
    }
}

enum vol_found vol_segment_find(struct vol_transfer *transfer, uint64_t chunk_index,
                                struct vol_segment **segment_out, struct vol_chunk **chunk) {
    struct cg_volume *volume = transfer->volume;
    uint64_t index = chunk_index / volume->chunks_per_segment;
    struct vol_segment *segment = index < volume->segment_slots ? volume->segments[index] : NULL;
    if (segment == NULL) {
        segment = segment_get(volume, index);
        if (segment == NULL) {
            return VOL_FOUND_ERROR;
        }
    }
    if (segment->state == VOL_SEGMENT_READY) {
        *segment_out = segment;
        *chunk = &segment->chunks[chunk_index % volume->chunks_per_segment];
        return VOL_FOUND_CHUNK;
    }
    if (segment->state == VOL_SEGMENT_HOLE && !allocates(transfer, segment)) {
        return VOL_FOUND_HOLE;
    }
    vol_transfer_wait(transfer, &segment->waiters, false);
    if (!transfer->waiting) {
        return VOL_FOUND_ERROR;
    }
    if (segment->call == NULL) {
        fetch(segment, allocates(transfer, segment));
    }
    return VOL_FOUND_WAIT;
}

void vol_segment_wake(struct vol_segment *segment) {
    struct cg_list ready;
    cg_list_init(&ready);
    cg_list_splice_back(&ready, &segment->waiters);
    while (!cg_list_empty(&ready)) {
        vol_transfer_advance(CG_CONTAINER_OF(ready.next, struct vol_transfer, node));
    }
}

static void end_call(struct vol_segment *segment) {
    if (segment->call != NULL) {
        cg_mds_call_cancel(segment->call);
        cg_mds_call_free(segment->call);
        free(segment->call);
        segment->call = NULL;
    }
    free(segment->copyset_ids);
    segment->copyset_ids = NULL;
}

// Those who wait for an allocation fail; the others only wanted to look and try again.
static void fail_allocation(struct vol_segment *segment, int error) {
    struct cg_list ready;
    cg_list_init(&ready);
    cg_list_splice_back(&ready, &segment->waiters);
    while (!cg_list_empty(&ready)) {
        struct vol_transfer *transfer = CG_CONTAINER_OF(ready.next, struct vol_transfer, node);
        if (error != -ENOSPC || allocates(transfer, segment)) {
            vol_transfer_fail(transfer, error);
        } else {
            vol_transfer_advance(transfer);
        }
    }
}

// Nobody could be asked. While somebody waits, ask again.
static void again(struct vol_segment *segment, bool allocate) {
    end_call(segment);
    if (!cg_list_empty(&segment->waiters)) {
        fetch(segment, allocate);
    }
}

static void ready(struct vol_segment *segment) {
    end_call(segment);
    segment->state = VOL_SEGMENT_READY;
    vol_segment_wake(segment);
}

static void on_peers(struct cg_mds_call *call, int result) {
    struct vol_segment *segment = CG_CONTAINER_OF(call, struct vol_segment_call, mds)->segment;
    if (result == 0 && call->status == 0) {
        result =
            vol_copyset_take_peers(segment->volume, call->pool, call->servers, call->server_count);
        if (result != 0) {
            end_call(segment);
            fail_allocation(segment, result);
            return;
        }
    }
    // Peers that are still unknown are asked for when a request needs them.
    ready(segment);
}

static bool peers_known(const struct vol_segment *segment) {
    for (uint32_t i = 0; i < segment->volume->chunks_per_segment; i++) {
        if (segment->chunks[i].copyset->peer_count == 0) {
            return false;
        }
    }
    return true;
}

// As libcurve: one id per chunk, in the chunks' order.
static void fetch_peers(struct vol_segment *segment, uint32_t pool) {
    uint32_t count = segment->volume->chunks_per_segment;
    segment->copyset_ids = malloc(count * sizeof(*segment->copyset_ids));
    if (segment->copyset_ids == NULL) {
        end_call(segment);
        fail_allocation(segment, -ENOMEM);
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        segment->copyset_ids[i] = segment->chunks[i].copyset->id;
    }
    struct cg_mds_call *call = segment->call;
    cg_mds_call_free(call);
    call->op = CG_MDS_PEERS;
    call->pool = pool;
    call->copysets = segment->copyset_ids;
    call->copyset_count = count;
    call->deadline_ns = cg_reactor_now(segment->volume->reactor) + FETCH_TIMEOUT_NS;
    call->done = on_peers;
    cg_mds_call_start(call);
}

static int take_chunks(struct vol_segment *segment, const struct cg_mds_call *call) {
    struct cg_volume *volume = segment->volume;
    if (call->chunk_count != volume->chunks_per_segment ||
        call->segment_chunk_size != volume->layout.chunk_size ||
        call->segment_offset != segment->index * volume->segment_size) {
        cg_log(CG_LOG_ERROR,
               "%s: the metadata server describes segment %" PRIu64 " as %u chunks of %u bytes at "
               "%" PRIu64,
               volume->path, segment->index, call->chunk_count, call->segment_chunk_size,
               call->segment_offset);
        return -EIO;
    }
    for (uint32_t i = 0; i < call->chunk_count; i++) {
        segment->chunks[i].id = call->chunks[i].chunk_id;
        segment->chunks[i].copyset =
            vol_copyset_get(volume, call->segment_pool, call->chunks[i].copyset_id);
        if (segment->chunks[i].copyset == NULL) {
            return -ENOMEM;
        }
    }
    return 0;
}

static void on_hole(struct vol_segment *segment) {
    end_call(segment);
    // Only the exclusive writer may remember it: for others it changes without their knowing, as it
    // does for everybody where a clone is being filled.
    segment->state = VOL_SEGMENT_HOLE;
    vol_segment_wake(segment);
    bool lasting = segment->volume->exclusive && !vol_clone_has(segment->volume, segment->index);
    if (!lasting && segment->state == VOL_SEGMENT_HOLE) {
        segment->state = VOL_SEGMENT_UNKNOWN;
    }
}

static void on_segment(struct cg_mds_call *call, int result) {
    struct vol_segment *segment = CG_CONTAINER_OF(call, struct vol_segment_call, mds)->segment;
    struct cg_volume *volume = segment->volume;
    if (result != 0) {
        again(segment, call->allocate);
        return;
    }
    if (call->status == curve_mds_StatusCode_kSegmentNotAllocated) {
        if (CG_CONTAINER_OF(call, struct vol_segment_call, mds)->had_source &&
            !vol_clone_has(volume, segment->index)) {
            again(segment, call->allocate); // the clone has been filled since it was asked
            return;
        }
        on_hole(segment);
        return;
    }
    int error = cg_mds_status_errno(call->status);
    if (error == 0) {
        error = take_chunks(segment, call);
    } else if (error == -ESTALE) {
        vol_fence(volume, -ESTALE, "another client has taken it over");
    } else {
        cg_log(CG_LOG_ERROR, "%s: the metadata server refuses segment %" PRIu64 " (status %d)",
               volume->path, segment->index, call->status);
    }
    if (error != 0) {
        end_call(segment);
        fail_allocation(segment, error);
    } else if (peers_known(segment)) {
        ready(segment);
    } else {
        fetch_peers(segment, call->segment_pool);
    }
}

static void fetch(struct vol_segment *segment, bool allocate) {
    struct cg_volume *volume = segment->volume;
    struct vol_segment_call *holder = calloc(1, sizeof(*holder));
    if (holder == NULL) {
        fail_allocation(segment, -ENOMEM);
        return;
    }
    holder->segment = segment;
    holder->had_source = vol_clone_has(volume, segment->index);
    struct cg_mds_call *call = &holder->mds;
    segment->call = call;
    call->mds = &volume->client->mds;
    call->op = CG_MDS_SEGMENT;
    call->path = volume->path;
    call->offset = segment->index * volume->segment_size;
    call->allocate = allocate;
    call->epoch = volume->send_epoch ? volume->epoch : 0;
    call->deadline_ns = cg_reactor_now(volume->reactor) + FETCH_TIMEOUT_NS;
    call->done = on_segment;
    cg_mds_call_start(call);
}

void vol_segments_wake(struct cg_volume *volume) {
    for (uint32_t i = 0; i < volume->segment_slots; i++) {
        if (volume->segments[i] != NULL) {
            vol_segment_wake(volume->segments[i]);
        }
    }
}

void vol_segments_stop(struct cg_volume *volume) {
    for (uint32_t i = 0; i < volume->segment_slots; i++) {
        struct vol_segment *segment = volume->segments[i];
        if (segment != NULL) {
            end_call(segment);
            vol_trim_free(segment);
        }
    }
}

void vol_segments_free(struct cg_volume *volume) {
    for (uint32_t i = 0; i < volume->segment_slots; i++) {
        free(volume->segments[i]);
    }
    free(volume->segments);
    volume->segments = NULL;
    volume->segment_slots = 0;
}
