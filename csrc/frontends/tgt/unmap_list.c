// SPDX-License-Identifier: GPL-2.0-only
#include "frontends/tgt/unmap_list.h"

#include "frontends/tgt/limits.h"

#define HEADER     8U
#define DESCRIPTOR 16U

struct cdb_range unmap_list_range(const struct unmap_list *list, unsigned index) {
    const uint8_t *at = list->descriptors + index * DESCRIPTOR;
    return (struct cdb_range){cdb_get64(at), cdb_get32(at + 8)};
}

struct bs_status unmap_list_parse(const uint8_t *list, uint32_t length, uint64_t capacity,
                                  uint64_t most, struct unmap_list *out) {
    *out = (struct unmap_list){0};
    if (length == 0) {
        return BS_GOOD;
    }
    if (length < HEADER) {
        return BS_CHECK(KEY_ILLEGAL_REQUEST, ASC_PARAMETER_LENGTH);
    }
    uint32_t described = cdb_get16(list + 2);
    if (described > length - HEADER) {
        return BS_CHECK(KEY_ILLEGAL_REQUEST, ASC_PARAMETER_LENGTH);
    }
    out->descriptors = list + HEADER;
    out->count = described / DESCRIPTOR; // an incomplete last one is to be ignored
    if (out->count > BS_UNMAP_DESCRIPTORS) {
        return BS_CHECK(KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_PARAMETERS);
    }
    uint64_t total = 0;
    for (unsigned i = 0; i < out->count; i++) {
        struct cdb_range range = unmap_list_range(out, i);
        if (!cdb_range_fits(range, capacity) && !(range.blocks == 0 && range.lba == capacity)) {
            return BS_CHECK(KEY_ILLEGAL_REQUEST, ASC_LBA_OUT_OF_RANGE);
        }
        total += range.blocks;
    }
    if (total > most) {
        return BS_CHECK(KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_PARAMETERS);
    }
    out->blocks = total;
    return BS_GOOD;
}
