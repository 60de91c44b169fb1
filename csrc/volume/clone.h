// SPDX-License-Identifier: BSD-3-Clause
//
// Lazy clones, which CurveBS makes: a volume whose data is, until it has been copied in the
// background, partly in another volume, its source. What libcurve does for them (splitor,
// source_reader, request_sender):
//
// - Reads and writes of a chunk whose segment exists in the source name the source's path and the
//   chunk's place in it (chunk index * chunk size, whatever the stripes), and the chunkserver
//   fetches what the chunk does not have yet.
// - Reads of a segment that the clone does not have and the source has go to the source, whose
//   chunks are taken in their order, without stripes.
//
// Beyond libcurve: a missing segment is asked for again with every read, because the background
// copy allocates it; zeroing one writes zeros; a trimmed one is not given back, which would bring
// the source's data back. See docs/wire.md.
#ifndef CG_VOLUME_CLONE_H
#define CG_VOLUME_CLONE_H

#include "volume/volume.h"

struct vol_clone {
    struct cg_volume *source; // for reading: no stripes, no session, no lease
    uint32_t path_length;     // of source->path
    bool copied;              // the source is not needed any more
    uint64_t segment_count;
    uint64_t segments[]; // bits: what the source has, up to where it was cloned
};

// What OpenFile says of the volume, whose shape has been taken. 0: it has all its data; 1: it is a
// lazy clone, volume->clone is set, and GetFileInfo of its source is to follow; or -errno, with the
// reason in `error`.
int vol_clone_take(struct cg_volume *volume, const struct cg_mds_call *call, char *error,
                   size_t error_size);

// What GetFileInfo says of the source. 0, or -errno with the reason in `error`.
int vol_clone_take_source(struct cg_volume *volume, const struct cg_mds_call *call, char *error,
                          size_t error_size);

// The file's status by a refresh: the copying may have ended.
void vol_clone_update(struct cg_volume *volume, int32_t file_status);

// No IO is left; frees it.
void vol_clone_stop(struct cg_volume *volume);
void vol_clone_free(struct cg_volume *volume);

// Whether data of this segment may have to come from the source.
static inline bool vol_clone_has(const struct cg_volume *volume, uint64_t segment_index) {
    const struct vol_clone *clone = volume->clone;
    return clone != NULL && !clone->copied && segment_index < clone->segment_count &&
           (clone->segments[segment_index / 64] >> (segment_index % 64) & 1) != 0;
}

// Whether the request names the source.
static inline bool vol_clone_names_source(const struct vol_request *request) {
    return request->volume->clone != NULL &&
           (request->kind == VOL_READ || request->kind == VOL_WRITE ||
            request->kind == VOL_WRITE_ZERO_DATA) &&
           vol_clone_has(request->volume, request->segment->index);
}

// The transfer's next bytes are in a segment that only the source has; it does not need the
// segment in the clone. True: they are seen to, go on. False: it goes on by itself, or has failed.
bool vol_clone_pass(struct vol_transfer *transfer);

#endif
