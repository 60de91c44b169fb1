// SPDX-License-Identifier: BSD-3-Clause
#include "volume/split.h"

#include <assert.h>
#include <errno.h>

#define CHUNK_SIZE_MAX   (UINT64_C(1) << 30)
#define STRIPE_COUNT_MAX 1024U

int cg_layout_init(struct cg_layout *layout, uint64_t chunk_size, uint64_t stripe_unit,
                   uint64_t stripe_count) {
    *layout = (struct cg_layout){.chunk_size = chunk_size};
    if (chunk_size == 0 || chunk_size > CHUNK_SIZE_MAX) {
        return -EINVAL;
    }
    if ((chunk_size & (chunk_size - 1)) == 0) {
        layout->chunk_shift = (uint32_t)__builtin_ctzll(chunk_size);
    }
    if (stripe_unit == 0 || stripe_count <= 1) {
        return 0;
    }
    if (chunk_size % stripe_unit != 0 || stripe_count > STRIPE_COUNT_MAX) {
        return -EINVAL;
    }
    layout->stripe_unit = stripe_unit;
    layout->stripe_count = stripe_count;
    layout->units_per_chunk = chunk_size / stripe_unit;
    return 0;
}

static void split_striped(const struct cg_layout *layout, uint64_t offset, uint64_t *room,
                          struct cg_piece *out) {
    uint64_t unit = offset / layout->stripe_unit;
    uint64_t in_unit = offset % layout->stripe_unit;
    uint64_t column = unit % layout->stripe_count;
    uint64_t stripe = unit / layout->stripe_count;
    uint64_t row = stripe / layout->units_per_chunk;
    out->chunk_index = row * layout->stripe_count + column;
    out->chunk_offset =
        (uint32_t)((stripe % layout->units_per_chunk) * layout->stripe_unit + in_unit);
    *room = layout->stripe_unit - in_unit;
}

void cg_split_next(const struct cg_layout *layout, uint64_t offset, uint64_t length, uint32_t max,
                   struct cg_piece *out) {
    assert(length > 0 && max > 0);
    uint64_t room;
    if (layout->stripe_count != 0) {
        split_striped(layout, offset, &room, out);
    } else if (layout->chunk_shift != 0) {
        out->chunk_index = offset >> layout->chunk_shift;
        out->chunk_offset = (uint32_t)(offset & (layout->chunk_size - 1));
        room = layout->chunk_size - out->chunk_offset;
    } else {
        out->chunk_index = offset / layout->chunk_size;
        out->chunk_offset = (uint32_t)(offset % layout->chunk_size);
        room = layout->chunk_size - out->chunk_offset;
    }
    if (room > length) {
        room = length;
    }
    out->length = room > max ? max : (uint32_t)room;
}
