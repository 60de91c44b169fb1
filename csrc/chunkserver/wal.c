// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/wal.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/wal_internal.h"
#include "chunkserver/wal_recovery.h"

#define SEGMENT_BYTES_DEFAULT     (UINT64_C(64) << 20)
#define CAPACITY_BYTES_DEFAULT    (UINT64_C(1) << 30)
#define BATCHES_IN_FLIGHT_DEFAULT 2U
#define BATCHES_IN_FLIGHT_MAX     64U
#define BATCH_BYTES_DEFAULT       (4U << 20)
#define CAPACITY_SEGMENTS_MIN                                                                      \
    4U // of which one is written, one is next, two may wait for a checkpoint

static uint64_t block_floor(uint64_t bytes) {
    return bytes & ~(uint64_t)(CG_WAL_BLOCK - 1);
}

// The options with defaults filled in and made to agree with each other.
static int settle_options(const struct cg_wal_options *given, struct cg_wal_options *out) {
    static const struct cg_wal_options none;
    *out = given != NULL ? *given : none;
    if (out->capacity_bytes == 0) {
        out->capacity_bytes = CAPACITY_BYTES_DEFAULT;
    }
    if (out->segment_bytes == 0) {
        out->segment_bytes = SEGMENT_BYTES_DEFAULT;
    }
    if (out->segment_bytes > out->capacity_bytes / CAPACITY_SEGMENTS_MIN) {
        out->segment_bytes = out->capacity_bytes / CAPACITY_SEGMENTS_MIN;
    }
    out->segment_bytes = block_floor(out->segment_bytes);
    if (out->batches_in_flight == 0) {
        out->batches_in_flight = BATCHES_IN_FLIGHT_DEFAULT;
    }
    if (out->batch_bytes_max == 0) {
        out->batch_bytes_max = BATCH_BYTES_DEFAULT;
    }
    if (out->batch_bytes_max > WAL_BATCH_MAX) {
        out->batch_bytes_max = WAL_BATCH_MAX;
    }
    if (out->batch_bytes_max > out->segment_bytes / 2) {
        out->batch_bytes_max = (uint32_t)(out->segment_bytes / 2);
    }
    out->batch_bytes_max = (uint32_t)block_floor(out->batch_bytes_max);
    return out->segment_bytes < WAL_SEGMENT_MIN || out->batch_bytes_max < 2 * CG_WAL_BLOCK ||
                   out->batches_in_flight > BATCHES_IN_FLIGHT_MAX
               ? -EINVAL
               : 0;
}

// Beyond the capacity if need be: better than a server that cannot start to free some.
int cg_wal_make_spare(struct cg_wal *wal) {
    return wal_segment_create(&wal->segments, wal->segments.smallest_bytes);
}

// The segment that this start begins with: a fresh one always, so that stale bytes behind a cut are
// never in the way of new ones.
static int first_segment(struct cg_wal *wal, struct wal_segment **out) {
    if (wal->segments.free_count == 0) {
        int status = cg_wal_make_spare(wal);
        if (status < 0) {
            return status;
        }
    }
    *out = wal_segment_take(&wal->segments);
    return 0;
}

static int begin(struct cg_wal *wal, const struct wal_recovered *recovered) {
    struct wal_segment *segment = NULL;
    int status = first_segment(wal, &segment);
    if (status < 0) {
        return status;
    }
    wal->incarnation = recovered->incarnation;
    wal->next_lsn = recovered->end_lsn;
    wal->durable_lsn = recovered->end_lsn;
    wal_fill_header(wal, recovered->next_sequence, &segment->header);
    wal_segment_header_encode(&segment->header, wal->header_block);
    wal_segments_push_live(&wal->segments, segment);
    int64_t n =
        wal->disk->ops->write(wal->disk, segment->handle, wal->header_block, CG_WAL_BLOCK, 0);
    return n < 0 ? (int)n : 0;
}

static int open_log(struct cg_wal *wal, const struct cg_wal_options *options,
                    const struct cg_wal_replay *replay, char *error, size_t error_size) {
    // A file holds at least two of the largest batches, so that little is lost at its end.
    uint64_t smallest = 2 * (uint64_t)options->batch_bytes_max;
    int status = wal_segments_init(&wal->segments, wal->disk, options->segment_bytes, smallest,
                                   options->capacity_bytes);
    wal->segments.keep_free_bytes = options->keep_free_bytes;
    wal->segments.make_room = options->make_room;
    wal->segments.room_context = options->room_context;
    wal->segments.needed_lsn = replay->from_lsn;
    if (status == 0) {
        status = wal_segments_probe(&wal->segments);
    }
    if (status < 0) {
        snprintf(error, error_size, "cannot use the folder %s: %s", WAL_FOLDER, strerror(-status));
        return status;
    }
    struct wal_recovered recovered;
    status = wal_recover(&wal->segments, replay, &recovered, error, error_size);
    if (status < 0) {
        return status;
    }
    status = wal_writer_init(wal);
    if (status < 0) {
        snprintf(error, error_size, "out of memory");
        return status;
    }
    status = begin(wal, &recovered);
    if (status < 0) {
        snprintf(error, error_size, "cannot begin a log segment: %s", strerror(-status));
    }
    return status;
}

static void wal_free(struct cg_wal *wal) {
    if (wal->flush.run != NULL) {
        wal_writer_destroy(wal);
    }
    wal_fetch_destroy(wal);
    wal_segments_destroy(&wal->segments);
    free(wal);
}

int cg_wal_open(struct cg_disk *disk, struct cg_reactor *reactor,
                const struct cg_wal_options *options, const struct cg_wal_replay *replay,
                struct cg_wal **out, char *error, size_t error_size) {
    char discarded[1];
    if (error == NULL || error_size == 0) {
        error = discarded;
        error_size = sizeof(discarded);
    }
    error[0] = '\0';
    struct cg_wal_options settled;
    if (settle_options(options, &settled) < 0 || replay->from_lsn % CG_WAL_BLOCK != 0) {
        snprintf(error, error_size,
                 "the log's options make no sense: at least %u bytes a segment, "
                 "at most %u batches in flight, positions in whole blocks",
                 WAL_SEGMENT_MIN, BATCHES_IN_FLIGHT_MAX);
        return -EINVAL;
    }
    struct cg_wal *wal = calloc(1, sizeof(*wal));
    if (wal == NULL) {
        snprintf(error, error_size, "out of memory");
        return -ENOMEM;
    }
    wal->disk = disk;
    wal->reactor = reactor;
    wal->batches_in_flight = settled.batches_in_flight;
    wal->batch_bytes_max = settled.batch_bytes_max;
    wal_fetch_init(wal);
    int status = open_log(wal, &settled, replay, error, error_size);
    if (status < 0) {
        wal_free(wal);
        return status;
    }
    wal_segments_grow(&wal->segments, false);
    *out = wal;
    return 0;
}

void cg_wal_close(struct cg_wal *wal) {
    assert(cg_list_empty(&wal->refused));
    assert(cg_list_empty(&wal->fetches) && cg_list_empty(&wal->fetching));
    // What may be under way without any append: a seal, a segment's header, a file being made.
    wal->segments.capacity_bytes = 0;
    while (wal->in_flight_count != 0 || wal->opening != NULL || wal->segments.preparation.running) {
        wal_segments_grow(&wal->segments, true);
        if (cg_reactor_wait(wal->reactor, UINT64_MAX) < 0) {
            break;
        }
    }
    wal_seal_blocking(wal);
    wal_free(wal);
}

uint64_t cg_wal_tail(const struct cg_wal *wal) {
    return wal->next_lsn + wal->queued_bytes - wal->open_bytes;
}

void cg_wal_recycle(struct cg_wal *wal, uint64_t lsn) {
    wal_segments_recycle(&wal->segments, lsn < wal->durable_lsn ? lsn : wal->durable_lsn);
    wal_segments_grow(&wal->segments, false);
    wal_resume(wal);
}

void cg_wal_tend(struct cg_wal *wal, uint64_t keep_free_bytes, bool give_back) {
    struct wal_segments *set = &wal->segments;
    set->keep_free_bytes = keep_free_bytes;
    set->give_back = give_back;
    wal_segments_give_back(set);
    wal_segments_try_again(set);
}

bool cg_wal_has_spare(const struct cg_wal *wal) {
    return wal->segments.free_count > 0 || wal->segments.preparation.running;
}

// Sealed segments count whole. What is queued counts with the share of a segment that its end may
// lose to a batch that does not fit.
uint64_t cg_wal_used(const struct cg_wal *wal) {
    const struct wal_segments *set = &wal->segments;
    const struct wal_segment *current = CG_CONTAINER_OF(set->live.prev, struct wal_segment, node);
    uint64_t written = CG_WAL_BLOCK + (wal->next_lsn - current->header.start_lsn);
    uint64_t lost =
        wal->queued_bytes * wal->batch_bytes_max / (set->segment_bytes - wal->batch_bytes_max);
    return set->sealed_bytes + written + wal->queued_bytes + lost;
}

uint64_t cg_wal_keep_from(const struct cg_wal *wal, uint64_t bytes) {
    const struct wal_segments *set = &wal->segments;
    const struct wal_segment *segment = CG_CONTAINER_OF(set->live.prev, struct wal_segment, node);
    uint64_t used = CG_WAL_BLOCK + (wal->next_lsn - segment->header.start_lsn);
    uint64_t from = wal->next_lsn;
    while (used <= bytes) {
        from = segment->header.start_lsn;
        if (segment->node.prev == &set->live) {
            break;
        }
        segment = CG_CONTAINER_OF(segment->node.prev, struct wal_segment, node);
        used += segment->size;
    }
    return from;
}

// One segment is kept back for the end that the segment being written may lose.
uint64_t cg_wal_capacity(const struct cg_wal *wal) {
    const struct wal_segments *set = &wal->segments;
    uint64_t bytes = set->limited ? set->held_bytes : set->capacity_bytes;
    uint64_t kept = set->segment_bytes < bytes / CAPACITY_SEGMENTS_MIN
                        ? set->segment_bytes
                        : bytes / CAPACITY_SEGMENTS_MIN;
    return bytes - kept;
}

void cg_wal_stats(const struct cg_wal *wal, struct cg_wal_stats *out) {
    *out = wal->stats;
}
