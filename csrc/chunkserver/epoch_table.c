// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/epoch_table.h"

#include <errno.h>
#include <stdlib.h>

#include "chunkserver/bytes.h"

#define CAPACITY_MIN 64U

void cg_epoch_table_init(struct cg_epoch_table *table) {
    *table = (struct cg_epoch_table){0};
}

void cg_epoch_table_clear(struct cg_epoch_table *table) {
    free(table->place);
    cg_epoch_table_init(table);
}

// The volume's place, or the free one where it would go. There is always a free one.
static struct cg_epoch *place_of(struct cg_epoch *place, uint32_t capacity, uint64_t file_id) {
    uint32_t at = (uint32_t)((file_id * UINT64_C(0x9e3779b97f4a7c15)) >> 32);
    for (;; at++) {
        struct cg_epoch *candidate = &place[at & (capacity - 1)];
        if (candidate->epoch == 0 || candidate->file_id == file_id) {
            return candidate;
        }
    }
}

uint64_t cg_epoch_get(const struct cg_epoch_table *table, uint64_t file_id) {
    if (table->count == 0) {
        return 0;
    }
    return place_of(table->place, table->capacity, file_id)->epoch;
}

static int grow(struct cg_epoch_table *table) {
    uint32_t capacity = table->capacity == 0 ? CAPACITY_MIN : 2 * table->capacity;
    struct cg_epoch *place = calloc(capacity, sizeof(*place));
    if (place == NULL) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < table->capacity; i++) {
        if (table->place[i].epoch != 0) {
            *place_of(place, capacity, table->place[i].file_id) = table->place[i];
        }
    }
    free(table->place);
    table->place = place;
    table->capacity = capacity;
    return 0;
}

int cg_epoch_raise(struct cg_epoch_table *table, uint64_t file_id, uint64_t epoch) {
    if (epoch == 0) {
        return 0;
    }
    if (2 * (table->count + 1) > table->capacity) {
        int result = grow(table);
        if (result != 0) {
            return result;
        }
    }
    struct cg_epoch *place = place_of(table->place, table->capacity, file_id);
    if (place->epoch == 0) {
        if (table->count >= CG_EPOCHS_MAX) {
            return -ENOSPC;
        }
        table->count++;
        place->file_id = file_id;
    }
    if (epoch > place->epoch) {
        place->epoch = epoch;
    }
    return 0;
}

// Saved as u32 count, then count times u64 file id, u64 epoch.

size_t cg_epoch_table_size(const struct cg_epoch_table *table) {
    return 4 + 16 * (size_t)table->count;
}

size_t cg_epoch_table_encode(const struct cg_epoch_table *table, uint8_t *out) {
    uint8_t *at = out;
    cg_put_u32(at, table->count);
    at += 4;
    for (uint32_t i = 0; i < table->capacity; i++) {
        if (table->place[i].epoch != 0) {
            cg_put_u64(at, table->place[i].file_id);
            cg_put_u64(at + 8, table->place[i].epoch);
            at += 16;
        }
    }
    return (size_t)(at - out);
}

int64_t cg_epoch_table_decode(struct cg_epoch_table *table, const uint8_t *in, size_t length) {
    if (length < 4) {
        return -EBADMSG;
    }
    uint32_t count = cg_get_u32(in);
    if (count > CG_EPOCHS_MAX || (length - 4) / 16 < count) {
        return -EBADMSG;
    }
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *at = in + 4 + 16 * (size_t)i;
        if (cg_get_u64(at + 8) == 0) {
            return -EBADMSG;
        }
        int result = cg_epoch_raise(table, cg_get_u64(at), cg_get_u64(at + 8));
        if (result != 0) {
            return result;
        }
    }
    return 4 + 16 * (int64_t)count;
}
