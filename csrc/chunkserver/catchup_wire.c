// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/catchup_wire.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "chunkserver/bytes.h"

void cg_copy_chunk_encode(const struct cg_copy_chunk *chunk, uint8_t out[CG_COPY_RECORD_SIZE]) {
    cg_put_u64(out, chunk->id);
    cg_put_u64(out + 8, chunk->sn);
    cg_put_u64(out + 16, chunk->file_id);
    cg_put_u64(out + 24, chunk->applied_index);
    memcpy(out + 32, chunk->allocated, sizeof(chunk->allocated));
}

void cg_copy_chunk_decode(const uint8_t in[CG_COPY_RECORD_SIZE], struct cg_copy_chunk *chunk) {
    chunk->id = cg_get_u64(in);
    chunk->sn = cg_get_u64(in + 8);
    chunk->file_id = cg_get_u64(in + 16);
    chunk->applied_index = cg_get_u64(in + 24);
    memcpy(chunk->allocated, in + 32, sizeof(chunk->allocated));
}

uint32_t cg_copy_head_size(uint32_t count) {
    return 8 + (count + 1) / 2 * 8;
}

void cg_copy_head_encode(const struct cg_copy_head *head, uint32_t count, uint8_t *out) {
    assert(count <= CG_COPY_BLOCKS_MAX);
    memset(out, 0, cg_copy_head_size(count));
    cg_put_u64(out, head->mask);
    for (uint32_t i = 0; i < count; i++) {
        cg_put_u32(out + 8 + (size_t)i * 4, head->mask >> i & 1U ? head->crc[i] : 0);
    }
}

int cg_copy_head_decode(const uint8_t *in, uint32_t count, struct cg_copy_head *head) {
    assert(count > 0 && count <= CG_COPY_BLOCKS_MAX);
    head->mask = cg_get_u64(in);
    if ((head->mask & ~(UINT64_MAX >> (CG_COPY_BLOCKS_MAX - count))) != 0) {
        return -EBADMSG;
    }
    for (uint32_t i = 0; i < count; i++) {
        head->crc[i] = cg_get_u32(in + 8 + (size_t)i * 4);
    }
    return 0;
}
