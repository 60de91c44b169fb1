// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/chunk_format.h"

#include <errno.h>
#include <string.h>

#include "base/crc32c.h"
#include "chunkserver/bytes.h"

#define MAGIC          UINT64_C(0x314b4e5548434743) // "CGCHUNK1"
#define FORMAT_VERSION 1U

// Offsets in a slot.
enum {
    AT_MAGIC = 0,
    AT_VERSION = 8,
    AT_CRC = 12,
    AT_SEQUENCE = 16,
    AT_GROUP = 24,
    AT_CHUNK_ID = 32,
    AT_FILE_ID = 40,
    AT_SN = 48,
    AT_APPLIED_INDEX = 56,
    AT_CHUNK_SIZE = 64,
    AT_BLOCK_SIZE = 68,
    AT_BITMAP = 512,
    AT_CRCS = 4096,
};

_Static_assert(AT_BITMAP + CG_BLOCKMAP_BYTES <= AT_CRCS, "the bitmap fits into the header block");
_Static_assert(AT_CRCS + CG_BLOCKMAP_BLOCKS * 4 == CG_CHUNK_SLOT_SIZE, "the CRCs fill the slot");
_Static_assert(CG_CHUNK_SLOT_SIZE <= CG_CHUNK_SLOT_STRIDE &&
                   2 * CG_CHUNK_SLOT_STRIDE <= CG_CHUNK_DATA_OFFSET,
               "two slots fit in front of the data");

static uint32_t slot_crc(const uint8_t *slot) {
    static const uint8_t zero[4];
    uint32_t crc = cg_crc32c(0, slot, AT_CRC);
    crc = cg_crc32c(crc, zero, sizeof(zero));
    return cg_crc32c(crc, slot + AT_CRC + 4, CG_CHUNK_SLOT_SIZE - AT_CRC - 4);
}

void cg_chunk_slot_encode(const struct cg_chunk_header *header, const uint8_t *allocated,
                          const uint32_t *crcs, uint8_t *out) {
    memset(out, 0, AT_CRCS);
    cg_put_u64(out + AT_MAGIC, MAGIC);
    cg_put_u32(out + AT_VERSION, FORMAT_VERSION);
    cg_put_u64(out + AT_SEQUENCE, header->sequence);
    cg_put_u64(out + AT_GROUP, header->group);
    cg_put_u64(out + AT_CHUNK_ID, header->chunk_id);
    cg_put_u64(out + AT_FILE_ID, header->file_id);
    cg_put_u64(out + AT_SN, header->sn);
    cg_put_u64(out + AT_APPLIED_INDEX, header->applied_index);
    cg_put_u32(out + AT_CHUNK_SIZE, header->chunk_size);
    cg_put_u32(out + AT_BLOCK_SIZE, CG_BLOCK_SIZE);
    memcpy(out + AT_BITMAP, allocated, CG_BLOCKMAP_BYTES);
    for (uint32_t i = 0; i < CG_BLOCKMAP_BLOCKS; i++) {
        cg_put_u32(out + AT_CRCS + i * 4, cg_blockmap_test(allocated, i) ? crcs[i] : 0);
    }
    cg_put_u32(out + AT_CRC, slot_crc(out));
}

static bool all_zero(const uint8_t *data, size_t length) {
    return data[0] == 0 && memcmp(data, data + 1, length - 1) == 0;
}

enum cg_chunk_slot_state cg_chunk_slot_decode(const uint8_t *in, struct cg_chunk_header *header) {
    if (all_zero(in, CG_CHUNK_SLOT_SIZE)) {
        return CG_CHUNK_SLOT_EMPTY;
    }
    if (cg_get_u64(in + AT_MAGIC) != MAGIC || cg_get_u32(in + AT_VERSION) != FORMAT_VERSION ||
        cg_get_u32(in + AT_CRC) != slot_crc(in) ||
        cg_get_u32(in + AT_BLOCK_SIZE) != CG_BLOCK_SIZE) {
        return CG_CHUNK_SLOT_BAD;
    }
    *header = (struct cg_chunk_header){
        .sequence = cg_get_u64(in + AT_SEQUENCE),
        .group = cg_get_u64(in + AT_GROUP),
        .chunk_id = cg_get_u64(in + AT_CHUNK_ID),
        .file_id = cg_get_u64(in + AT_FILE_ID),
        .sn = cg_get_u64(in + AT_SN),
        .applied_index = cg_get_u64(in + AT_APPLIED_INDEX),
        .chunk_size = cg_get_u32(in + AT_CHUNK_SIZE),
    };
    return CG_CHUNK_SLOT_VALID;
}

void cg_chunk_slot_blocks(const uint8_t *in, uint8_t *allocated, uint32_t *crcs) {
    memcpy(allocated, in + AT_BITMAP, CG_BLOCKMAP_BYTES);
    for (uint32_t i = 0; i < CG_BLOCKMAP_BLOCKS; i++) {
        crcs[i] = cg_get_u32(in + AT_CRCS + i * 4);
    }
}

int cg_chunk_slots_choose(const uint8_t *in, bool replaying, unsigned *newest,
                          struct cg_chunk_header *header) {
    struct cg_chunk_header found[2];
    enum cg_chunk_slot_state state[2];
    for (unsigned i = 0; i < 2; i++) {
        state[i] = cg_chunk_slot_decode(in + i * CG_CHUNK_SLOT_STRIDE, &found[i]);
    }
    bool bad = state[0] == CG_CHUNK_SLOT_BAD || state[1] == CG_CHUNK_SLOT_BAD;
    bool valid = state[0] == CG_CHUNK_SLOT_VALID || state[1] == CG_CHUNK_SLOT_VALID;
    if (bad && !replaying) {
        return -EBADMSG;
    }
    if (!valid) {
        // The first checkpoint of a new chunk was torn: nothing had been synced before it.
        *newest = 1;
        return -ENODATA;
    }
    if (state[0] == CG_CHUNK_SLOT_VALID && state[1] == CG_CHUNK_SLOT_VALID) {
        *newest = found[1].sequence > found[0].sequence ? 1 : 0;
    } else {
        *newest = state[1] == CG_CHUNK_SLOT_VALID ? 1 : 0;
    }
    *header = found[*newest];
    return 0;
}
