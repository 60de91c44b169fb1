// SPDX-License-Identifier: BSD-3-Clause
#include "volume/clone.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "gateway/proto/nameserver2.pb.h"
#include "volume/client.h"
#include "volume/session.h"

// ---- Opening

static struct vol_clone *clone_create(const struct cg_volume *volume,
                                      const struct cg_mds_call *call) {
    uint64_t size = volume->segment_size;
    uint64_t count = call->file.clone_length / size + (call->file.clone_length % size != 0);
    if (count > VOL_SEGMENTS_MAX) {
        count = VOL_SEGMENTS_MAX;
    }
    struct vol_clone *clone =
        calloc(1, sizeof(*clone) + (count + 63) / 64 * sizeof(clone->segments[0]));
    if (clone == NULL) {
        return NULL;
    }
    clone->segment_count = count;
    for (uint32_t i = 0; i < call->source_segment_count; i++) {
        uint64_t index = call->source_segments[i] / size;
        if (call->source_segments[i] % size == 0 && index < count) {
            clone->segments[index / 64] |= UINT64_C(1) << (index % 64);
        }
    }
    return clone;
}

static bool is_empty(const struct vol_clone *clone) {
    for (uint64_t i = 0; i < (clone->segment_count + 63) / 64; i++) {
        if (clone->segments[i] != 0) {
            return false;
        }
    }
    return true;
}

// A source that is no path is a snapshot: then every chunk knows where its data is.
static bool has_volume_as_source(const struct cg_mds_call *call) {
    return call->file.status == (int32_t)curve_mds_FileStatus_kFileCloneMetaInstalled &&
           call->clone_source != NULL && call->clone_source[0] == '/' &&
           call->file.clone_length != 0;
}

int vol_clone_take(struct cg_volume *volume, const struct cg_mds_call *call, char *error,
                   size_t error_size) {
    if (call->file.status == (int32_t)curve_mds_FileStatus_kFileCloning) {
        snprintf(error, error_size, "%s is being made as a clone; open it when that has ended",
                 volume->path);
        return -EBUSY;
    }
    if (!has_volume_as_source(call)) {
        return 0;
    }
    if (volume->native || !call->has_source_segments ||
        call->source_segment_size != volume->segment_size) {
        snprintf(error, error_size,
                 "%s is a clone with data still in %s, and the metadata server does not say which; "
                 "flatten the clone first",
                 volume->path, call->clone_source);
        return -ENOTSUP;
    }
    struct vol_clone *clone = clone_create(volume, call);
    if (clone != NULL && is_empty(clone)) {
        free(clone);
        return 0;
    }
    const struct cg_volume_options options = {.struct_size = sizeof(options),
                                              .path = call->clone_source,
                                              .flags = CG_OPEN_READ_ONLY,
                                              .inflight_max = volume->inflight_max};
    if (clone == NULL || vol_create(volume->client, &options, &clone->source) != 0) {
        free(clone);
        snprintf(error, error_size, "%s: no memory", volume->path);
        return -ENOMEM;
    }
    clone->path_length = (uint32_t)strlen(clone->source->path);
    volume->clone = clone;
    return 1;
}

// CurveBS clones no volume in another state: its own data would be elsewhere in turn.
static bool has_all_its_data(int32_t status) {
    return status == (int32_t)curve_mds_FileStatus_kFileCreated ||
           status == (int32_t)curve_mds_FileStatus_kFileCloned ||
           status == (int32_t)curve_mds_FileStatus_kFileBeingCloned;
}

int vol_clone_take_source(struct cg_volume *volume, const struct cg_mds_call *call, char *error,
                          size_t error_size) {
    struct cg_volume *source = volume->clone->source;
    int result = cg_mds_status_errno(call->status);
    if (result != 0) {
        snprintf(error, error_size,
                 "%s is a clone with data still in %s, which cannot be opened (status %d); let the "
                 "owner \"%s\" read it, or flatten the clone first",
                 volume->path, source->path, call->status, volume->client->mds.owner);
        return result;
    }
    struct cg_mds_file file = call->file;
    file.stripe_unit = 0;
    file.stripe_count = 0;
    if (!file.present || file.type != curve_mds_FileType_INODE_PAGEFILE ||
        !has_all_its_data(file.status) || !vol_take_file(source, &file) || source->native ||
        source->segment_size != volume->segment_size) {
        snprintf(error, error_size,
                 "%s is a clone with data still in %s, which is no volume that it can be read from "
                 "(status %d); flatten the clone first",
                 volume->path, source->path, file.status);
        return -ENOTSUP;
    }
    cg_log(CG_LOG_INFO, "%s is a clone with data still in %s", volume->path, source->path);
    return 0;
}

// ---- Afterwards

void vol_clone_update(struct cg_volume *volume, int32_t file_status) {
    struct vol_clone *clone = volume->clone;
    if (clone != NULL && !clone->copied && file_status >= 0 &&
        file_status != (int32_t)curve_mds_FileStatus_kFileCloneMetaInstalled) {
        cg_log(CG_LOG_INFO, "%s has all its data now", volume->path);
        clone->copied = true;
    }
}

void vol_clone_stop(struct cg_volume *volume) {
    if (volume->clone != NULL) {
        struct cg_volume *source = volume->clone->source;
        vol_session_end(source);
        vol_segments_stop(source);
        vol_copysets_stop(source);
    }
}

void vol_clone_free(struct cg_volume *volume) {
    if (volume->clone != NULL) {
        vol_free(volume->clone->source);
        free(volume->clone);
        volume->clone = NULL;
    }
}

// ---- Reading from the source

// A transfer of the source's on behalf of one of the clone's. One at a time for each.
struct source_read {
    struct vol_transfer transfer; // `owner` is the clone's
    bool starting;
    bool ended;
    struct iovec iov[];
};

static void on_source_read(struct vol_transfer *transfer) {
    struct source_read *read = CG_CONTAINER_OF(transfer, struct source_read, transfer);
    struct vol_transfer *parent = transfer->owner;
    int error = transfer->error != 0 ? transfer->error : parent->volume->fenced;
    parent->pending--;
    if (read->starting) {
        read->ended = true;
        parent->error = parent->error != 0 ? parent->error : error;
        return;
    }
    free(read);
    if (error != 0) {
        vol_transfer_fail(parent, error);
    } else {
        vol_transfer_advance(parent);
    }
}

static bool read_source(struct vol_transfer *parent, const struct cg_piece *piece) {
    const struct cg_volume *volume = parent->volume;
    int count = vol_iov_slice(parent->iov, parent->iovcnt, parent->cursor, piece->length, NULL);
    struct source_read *read = calloc(1, sizeof(*read) + (size_t)count * sizeof(read->iov[0]));
    if (read == NULL) {
        parent->error = -ENOMEM;
        return false;
    }
    vol_iov_slice(parent->iov, parent->iovcnt, parent->cursor, piece->length, read->iov);
    read->transfer = (struct vol_transfer){
        .volume = volume->clone->source,
        .deadline_ns = parent->deadline_ns,
        .offset = piece->chunk_index * volume->layout.chunk_size + piece->chunk_offset,
        .length = piece->length,
        .iov = read->iov,
        .iovcnt = count,
        .kind = VOL_READ,
        .done = on_source_read,
        .owner = parent,
    };
    parent->cursor += piece->length;
    parent->pending++;
    read->starting = true;
    vol_transfer_start(&read->transfer);
    read->starting = false;
    if (!read->ended) {
        return false;
    }
    free(read);
    return true;
}

bool vol_clone_pass(struct vol_transfer *transfer) {
    struct cg_piece piece;
    // Up to the chunk's or the stripe's end: the source's transfer makes requests of it.
    cg_split_next(&transfer->volume->layout, transfer->offset + transfer->cursor,
                  transfer->length - transfer->cursor, UINT32_MAX, &piece);
    if (transfer->kind == VOL_READ) {
        return read_source(transfer, &piece);
    }
    assert(transfer->kind == VOL_TRIM || transfer->kind == VOL_BLOCK_STATUS);
    transfer->cursor += piece.length; // TRIM: nothing to give back
    if (transfer->kind == VOL_BLOCK_STATUS) {
        struct vol_io *io = CG_CONTAINER_OF(transfer, struct vol_io, transfer);
        if (!vol_status_add(io, piece.length, true)) {
            transfer->cursor = transfer->length;
        }
    }
    return true;
}
