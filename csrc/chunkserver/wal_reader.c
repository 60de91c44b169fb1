// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/wal_reader.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

int wal_reader_init(struct wal_reader *reader, const struct wal_segments *set) {
    reader->disk = set->disk;
    reader->uuid = set->uuid;
    reader->segment = NULL;
    reader->buffer = aligned_alloc(CG_WAL_BLOCK, WAL_BATCH_MAX);
    return reader->buffer != NULL ? 0 : -ENOMEM;
}

void wal_reader_destroy(struct wal_reader *reader) {
    free(reader->buffer);
}

void wal_reader_forget(struct wal_reader *reader) {
    reader->segment = NULL;
}

int wal_reader_get(struct wal_reader *reader, const struct wal_segment *segment, uint64_t offset,
                   uint64_t length, const uint8_t **out) {
    *out = NULL;
    assert(length <= WAL_BATCH_MAX);
    if (offset > segment->size || segment->size - offset < length) {
        return 0;
    }
    bool inside = reader->segment == segment && offset >= reader->start &&
                  offset + length <= reader->start + reader->length;
    if (!inside) {
        uint64_t want = segment->size - offset;
        if (want > WAL_BATCH_MAX) {
            want = WAL_BATCH_MAX;
        }
        reader->segment = NULL;
        int64_t n =
            reader->disk->ops->read(reader->disk, segment->handle, reader->buffer, want, offset);
        if (n < 0) {
            return (int)n;
        }
        reader->segment = segment;
        reader->start = offset;
        reader->length = (uint64_t)n;
        if ((uint64_t)n < length) {
            return 0;
        }
    }
    *out = reader->buffer + (offset - reader->start);
    return 0;
}

int wal_region_at(struct wal_reader *reader, const struct wal_segment *segment, uint64_t lsn,
                  struct wal_batch_view *view) {
    uint64_t offset = wal_offset_of(segment, lsn);
    const uint8_t *block;
    int status = wal_reader_get(reader, segment, offset, CG_WAL_BLOCK, &block);
    if (status < 0 || block == NULL) {
        return status;
    }
    struct wal_batch_header *header = &view->header;
    if (!wal_batch_peek(block, header) || header->sequence != segment->header.sequence ||
        header->incarnation != segment->header.incarnation || header->lsn != lsn) {
        return 0;
    }
    status = wal_reader_get(reader, segment, offset, header->region, &view->region);
    if (status < 0 || view->region == NULL) {
        return status;
    }
    return wal_batch_region_valid(header, reader->uuid, view->region) ? 1 : 0;
}

int wal_batch_at(struct wal_reader *reader, const struct wal_segment *segment, uint64_t lsn,
                 struct wal_batch_view *view) {
    int status = wal_region_at(reader, segment, lsn, view);
    if (status <= 0) {
        return status;
    }
    status = wal_reader_get(reader, segment, wal_offset_of(segment, lsn),
                            wal_batch_total(&view->header), &view->region);
    if (status < 0 || view->region == NULL) {
        return status;
    }
    view->payload = view->region + view->header.region;
    return wal_batch_verify(&view->header, view->region, view->payload) == 0 ? 1 : 0;
}
