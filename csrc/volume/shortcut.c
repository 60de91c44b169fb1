// SPDX-License-Identifier: BSD-3-Clause
//
// Ties local reads (local_read.c) to a volume: which chunk an offset is in, when a chunkserver's
// door may be trusted, when a mapping ends. See docs/decisions/0005-local-reads.md.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "volume/local_read.h"
#include "volume/volume.h"

// For measurements of the request path, and for whoever distrusts the shortcut.
#define SWITCH "COPYGATE_LOCAL_READS"

// Unaligned reads of up to this many bytes of blocks; longer ones go by request.
#define ASIDE_MAX (8 * VOL_BLOCK)

void vol_local_open(struct cg_volume *volume) {
    const char *setting = getenv(SWITCH);
    if (!volume->native || (setting != NULL && strcmp(setting, "off") == 0)) {
        return;
    }
    uint32_t blocks = (uint32_t)(volume->layout.chunk_size / VOL_BLOCK);
    int error = cg_local_reader_create(volume->reactor, blocks, 0, &volume->local);
    if (error != 0) {
        volume->local = NULL;
        cg_log(CG_LOG_INFO, "%s: all reads go by request: %s", volume->path, strerror(-error));
    }
}

void vol_local_close(struct cg_volume *volume) {
    if (volume->local != NULL) {
        cg_local_reader_destroy(volume->local);
        volume->local = NULL;
    }
}

// Checksums are of whole blocks: the blocks around an unaligned range are read aside.
static int read_around(struct cg_volume *volume, const struct cg_piece *piece, void *data) {
    uint8_t aside[ASIDE_MAX];
    uint32_t skip = (uint32_t)(piece->chunk_offset % VOL_BLOCK);
    uint64_t span = (skip + piece->length + VOL_BLOCK - 1) / VOL_BLOCK * VOL_BLOCK;
    // The blocks belong together as far as a stripe goes.
    if (span > sizeof(aside) || volume->layout.stripe_unit % VOL_BLOCK != 0 ||
        cg_local_try(volume->local, piece->chunk_index, aside, (uint32_t)piece->chunk_offset - skip,
                     (uint32_t)span) != 0) {
        return -EAGAIN;
    }
    memcpy(data, aside + skip, piece->length);
    return 0;
}

int vol_local_read(struct cg_volume *volume, void *data, uint64_t length, uint64_t offset) {
    uint64_t size = atomic_load_explicit(&volume->size, memory_order_relaxed);
    if (volume->local == NULL || length == 0 || offset > size || length > size - offset ||
        !vol_lease_ok(volume)) {
        return -EAGAIN;
    }
    struct cg_piece piece;
    cg_split_next(&volume->layout, offset, length, VOL_REQUEST_NATIVE, &piece);
    if (piece.length != length) {
        return -EAGAIN;
    }
    bool aligned = (piece.chunk_offset | length) % VOL_BLOCK == 0;
    int result = aligned ? cg_local_try(volume->local, piece.chunk_index, data, piece.chunk_offset,
                                        piece.length)
                         : read_around(volume, &piece, data);
    if (result != 0) {
        return -EAGAIN;
    }
    atomic_fetch_add_explicit(&volume->counters.local_reads, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&volume->counters.local_bytes, length, memory_order_relaxed);
    return 0;
}

void vol_local_sending(struct vol_request *request) {
    struct cg_volume *volume = request->volume;
    request->door = NULL;
    if (volume->local != NULL && request->kind == VOL_READ) {
        request->door = cg_local_door_get(volume->local, request->sent_to->address);
        if (request->door != NULL) {
            request->generation = cg_local_door_generation(request->door);
        }
    }
}

void vol_local_answered(struct vol_request *request) {
    if (request->door == NULL) {
        return;
    }
    const struct cg_volume *volume = request->volume;
    uint64_t key = request->segment->index * volume->chunks_per_segment +
                   request->segment_offset / volume->layout.chunk_size;
    cg_local_door_accepted(request->door, request->generation);
    cg_local_want(request->door, key, request->copyset->pool, request->copyset->id,
                  request->chunk_id);
}

void vol_local_failed(struct vol_request *request) {
    if (request->door != NULL) {
        cg_local_door_reset(request->door);
    }
}

void vol_local_forget(const struct vol_segment *segment) {
    const struct cg_volume *volume = segment->volume;
    if (volume->local == NULL) {
        return;
    }
    for (uint32_t i = 0; i < volume->chunks_per_segment; i++) {
        cg_local_forget(volume->local, segment->index * volume->chunks_per_segment + i);
    }
}
