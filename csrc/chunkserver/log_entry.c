// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/log_entry.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"

struct cg_log_entry *cg_log_entry_make(uint32_t type, uint64_t term, uint64_t index,
                                       const void *meta, uint32_t meta_length,
                                       struct cg_buffer *buffer, const uint8_t *payload,
                                       uint32_t payload_length, const uint32_t *block_crcs) {
    assert(meta_length <= CG_WAL_META_MAX && payload_length <= CG_WAL_PAYLOAD_MAX &&
           payload_length % CG_WAL_BLOCK == 0 && (payload_length == 0 || buffer != NULL));
    uint32_t blocks = payload_length / CG_WAL_BLOCK;
    struct cg_log_entry *entry = malloc(sizeof(*entry) + blocks * sizeof(uint32_t) + meta_length);
    if (entry == NULL) {
        return NULL;
    }
    uint32_t *crcs = (uint32_t *)(entry + 1);
    uint8_t *copy = (uint8_t *)(crcs + blocks);
    for (uint32_t i = 0; i < blocks; i++) {
        crcs[i] = block_crcs != NULL
                      ? block_crcs[i]
                      : cg_crc32c(0, payload + (size_t)i * CG_WAL_BLOCK, CG_WAL_BLOCK);
    }
    if (meta_length > 0) {
        memcpy(copy, meta, meta_length);
    }
    *entry = (struct cg_log_entry){
        .refs = 1,
        .type = type,
        .term = term,
        .index = index,
        .meta_length = meta_length,
        .payload_length = payload_length,
        .meta = copy,
        .block_crcs = crcs,
        .payload = payload,
        .buffer = buffer != NULL ? cg_buffer_ref(buffer) : NULL,
    };
    cg_list_init(&entry->cached);
    return entry;
}

void cg_log_entry_unref(struct cg_log_entry *entry) {
    if (entry == NULL || --entry->refs > 0) {
        return;
    }
    cg_buffer_unref(entry->buffer);
    free(entry);
}
