// SPDX-License-Identifier: BSD-3-Clause
//
// The metadata of a chunk file: two slots, written in turn at checkpoints, so that a torn write
// leaves the other one. Pure functions. docs/formats.md describes the bytes.
#ifndef CG_CHUNKSERVER_CHUNK_FORMAT_H
#define CG_CHUNKSERVER_CHUNK_FORMAT_H

#include <stdbool.h>
#include <stdint.h>

#include "chunkserver/blockmap.h"

#define CG_BLOCK_SIZE         4096U
#define CG_CHUNK_SIZE_DEFAULT (16U << 20)
#define CG_CHUNK_SIZE_MAX     (CG_BLOCKMAP_BLOCKS * CG_BLOCK_SIZE)
#define CG_CHUNK_SLOT_SIZE    20480U // header and bitmap 4 KiB, CRCs 16 KiB
#define CG_CHUNK_SLOT_STRIDE  32768U
#define CG_CHUNK_SLOTS_SIZE   (CG_CHUNK_SLOT_STRIDE + CG_CHUNK_SLOT_SIZE) // from A's begin to B's end
#define CG_CHUNK_DATA_OFFSET  65536U

struct cg_chunk_header {
    uint64_t sequence; // of the slot: the higher one is the newer
    uint64_t group;    // pool << 32 | copyset
    uint64_t chunk_id;
    uint64_t file_id; // the volume's; 0 if no request has told
    uint64_t sn;      // the volume's sequence number at the last write
    uint64_t applied_index;
    uint32_t chunk_size;
};

// Writes a slot: CG_CHUNK_SLOT_SIZE bytes. `allocated` has CG_BLOCKMAP_BYTES bytes, `crcs` has
// CG_BLOCKMAP_BLOCKS values; those of blocks that are not allocated are ignored.
void cg_chunk_slot_encode(const struct cg_chunk_header *header, const uint8_t *allocated,
                          const uint32_t *crcs, uint8_t *out);

enum cg_chunk_slot_state {
    CG_CHUNK_SLOT_EMPTY, // never written: zeros
    CG_CHUNK_SLOT_VALID,
    CG_CHUNK_SLOT_BAD, // torn or rotten
};

// Reads the header of a slot and checks the slot's CRC.
enum cg_chunk_slot_state cg_chunk_slot_decode(const uint8_t *in, struct cg_chunk_header *header);

// The bitmap and the CRCs of a valid slot.
void cg_chunk_slot_blocks(const uint8_t *in, uint8_t *allocated, uint32_t *crcs);

// Chooses between the slots in the first CG_CHUNK_SLOTS_SIZE bytes of a file. Sets *newest to 0 or
// 1 and fills *header; returns 0, -ENODATA if both are empty, or -EBADMSG. A bad slot beside a
// valid one is what a power loss during a checkpoint leaves; then the log holds everything since
// the valid one. `replaying` says that this is the case; at other times a bad slot is damage, and
// since nobody can tell whether it was the newer one, it is refused.
int cg_chunk_slots_choose(const uint8_t *in, bool replaying, unsigned *newest,
                          struct cg_chunk_header *header);

#endif
