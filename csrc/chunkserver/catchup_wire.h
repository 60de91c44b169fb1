// SPDX-License-Identifier: BSD-3-Clause
//
// The attachments with which replicas copy from each other (gateway/proto/catchup.proto). Pure
// functions. Integers are little-endian.
//
// CopyChunks, and CopyBlocks of no blocks: a record for each chunk: u64 id, u64 sn, u64 volume id,
// u64 applied index, the bitmap of allocated blocks (512 bytes).
// CopyBlocks: u64 mask, bit i for block first + i: allocated; u32 CRC-32C of each of the `count`
// blocks, 0 for those that are not allocated, u32 zero if count is odd; then the allocated blocks.
// Of a damaged block (one alone, COPY_DAMAGED) the blocks are left out.
#ifndef CG_CHUNKSERVER_CATCHUP_WIRE_H
#define CG_CHUNKSERVER_CATCHUP_WIRE_H

#include <stddef.h>
#include <stdint.h>

#include "chunkserver/blockmap.h"

#define CG_COPY_BLOCKS_MAX  64U // in one answer: 256 KiB
#define CG_COPY_RECORD_SIZE (32U + CG_BLOCKMAP_BYTES)
#define CG_COPY_PAGE        64U // chunks in one answer
#define CG_COPY_HEAD_MAX    (8U + 4U * CG_COPY_BLOCKS_MAX)

// What a replica says of a chunk.
struct cg_copy_chunk {
    uint64_t id;
    uint64_t sn;
    uint64_t file_id; // the volume's; 0 if not known
    uint64_t applied_index;
    uint8_t allocated[CG_BLOCKMAP_BYTES];
};

void cg_copy_chunk_encode(const struct cg_copy_chunk *chunk, uint8_t out[CG_COPY_RECORD_SIZE]);
void cg_copy_chunk_decode(const uint8_t in[CG_COPY_RECORD_SIZE], struct cg_copy_chunk *chunk);

// What stands before the blocks of an answer.
struct cg_copy_head {
    uint64_t mask;
    uint32_t crc[CG_COPY_BLOCKS_MAX];
};

// Bytes of the head for `count` blocks, a multiple of 8.
uint32_t cg_copy_head_size(uint32_t count);
void cg_copy_head_encode(const struct cg_copy_head *head, uint32_t count, uint8_t *out);
// 0, or -EBADMSG for a mask with blocks beyond `count`.
int cg_copy_head_decode(const uint8_t *in, uint32_t count, struct cg_copy_head *head);

#endif
