// SPDX-License-Identifier: BSD-3-Clause
//
// Where a volume's bytes live: volume offset -> chunk and offset in the chunk. Pure functions.
//
// Without stripes chunk i holds the bytes from i * chunk_size on. With stripes the volume is cut
// into units; unit u is in column u % stripe_count, and each column fills its own chunk of a row
// of stripe_count chunks before the next row begins.
#ifndef CG_VOLUME_SPLIT_H
#define CG_VOLUME_SPLIT_H

#include <stdint.h>

struct cg_layout {
    uint64_t chunk_size;   // bytes
    uint64_t stripe_unit;  // bytes, divides chunk_size; 0: no stripes
    uint64_t stripe_count; // at least 2 with stripes
    uint64_t units_per_chunk;
    uint32_t chunk_shift; // log2(chunk_size), or 0 when it is no power of two
};

// A run of bytes that is contiguous in the volume and in one chunk.
struct cg_piece {
    uint64_t chunk_index;
    uint32_t chunk_offset; // bytes
    uint32_t length;       // bytes, at least 1
};

// Stripes are active only when neither is 0 and the count is not 1, as in CurveBS. Returns 0, or
// -EINVAL: chunk_size is 0 or over 1 GiB, the unit does not divide it, the count is over 1024.
int cg_layout_init(struct cg_layout *layout, uint64_t chunk_size, uint64_t stripe_unit,
                   uint64_t stripe_count);

// The first piece of the range, at most `max` bytes. `length` and `max` are not 0.
void cg_split_next(const struct cg_layout *layout, uint64_t offset, uint64_t length, uint32_t max,
                   struct cg_piece *out);

#endif
