// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/entry.h"

#include <errno.h>

#include "chunkserver/bytes.h"
#include "chunkserver/chunk_format.h"

enum {
    AT_CHUNK_ID = 0,
    AT_FILE_ID = 8,
    AT_EPOCH = 16,
    AT_SN = 24,
    AT_CLIENT_ID = 32,
    AT_SEQUENCE = 40,
    AT_SETTLED_BELOW = 48,
    AT_OFFSET = 56,
    AT_LENGTH = 60,
    AT_FLAGS = 64,
    AT_RESERVED = 68,
};

#define FLAGS_KNOWN                                                                                \
    (CG_ENTRY_KEEP | CG_ENTRY_HEAD | CG_ENTRY_TAIL | CG_ENTRY_HAS_EPOCH | CG_ENTRY_HAS_CLIENT)

void cg_entry_encode(const struct cg_entry *entry, uint8_t *out) {
    cg_put_u64(out + AT_CHUNK_ID, entry->chunk_id);
    cg_put_u64(out + AT_FILE_ID, entry->file_id);
    cg_put_u64(out + AT_EPOCH, entry->epoch);
    cg_put_u64(out + AT_SN, entry->sn);
    cg_put_u64(out + AT_CLIENT_ID, entry->client_id);
    cg_put_u64(out + AT_SEQUENCE, entry->sequence);
    cg_put_u64(out + AT_SETTLED_BELOW, entry->settled_below);
    cg_put_u32(out + AT_OFFSET, entry->offset);
    cg_put_u32(out + AT_LENGTH, entry->length);
    cg_put_u32(out + AT_FLAGS, entry->flags);
    cg_put_u32(out + AT_RESERVED, 0);
}

uint32_t cg_entry_payload_length(const struct cg_entry *entry) {
    switch (entry->type) {
    case CG_ENTRY_WRITE:
        return entry->length;
    case CG_ENTRY_ZERO:
        return ((entry->flags & CG_ENTRY_HEAD) ? CG_BLOCK_SIZE : 0) +
               ((entry->flags & CG_ENTRY_TAIL) ? CG_BLOCK_SIZE : 0);
    case CG_ENTRY_DELETE:
    case CG_ENTRY_EPOCH:
        break;
    }
    return 0;
}

static bool range_is_good(const struct cg_entry *entry, uint32_t chunk_size) {
    uint64_t end = (uint64_t)entry->offset + entry->length;
    if (entry->offset % CG_BLOCK_SIZE != 0 || entry->length % CG_BLOCK_SIZE != 0 ||
        end > chunk_size) {
        return false;
    }
    if ((entry->flags & CG_ENTRY_HEAD) && entry->offset == 0) {
        return false;
    }
    return !((entry->flags & CG_ENTRY_TAIL) && end == chunk_size);
}

int cg_entry_decode(uint32_t type, const uint8_t *meta, size_t meta_length, uint32_t payload_length,
                    uint32_t chunk_size, struct cg_entry *out) {
    if (meta_length != CG_ENTRY_META_SIZE || type < CG_ENTRY_WRITE || type > CG_ENTRY_EPOCH) {
        return -EBADMSG;
    }
    *out = (struct cg_entry){
        .type = (enum cg_entry_type)type,
        .flags = cg_get_u32(meta + AT_FLAGS),
        .chunk_id = cg_get_u64(meta + AT_CHUNK_ID),
        .file_id = cg_get_u64(meta + AT_FILE_ID),
        .epoch = cg_get_u64(meta + AT_EPOCH),
        .sn = cg_get_u64(meta + AT_SN),
        .client_id = cg_get_u64(meta + AT_CLIENT_ID),
        .sequence = cg_get_u64(meta + AT_SEQUENCE),
        .settled_below = cg_get_u64(meta + AT_SETTLED_BELOW),
        .offset = cg_get_u32(meta + AT_OFFSET),
        .length = cg_get_u32(meta + AT_LENGTH),
    };
    if ((out->flags & ~(uint32_t)FLAGS_KNOWN) != 0 || !range_is_good(out, chunk_size) ||
        payload_length != cg_entry_payload_length(out)) {
        return -EBADMSG;
    }
    return 0;
}
