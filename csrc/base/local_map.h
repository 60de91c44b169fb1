// SPDX-License-Identifier: BSD-3-Clause
//
// The shared memory by which a client on the chunkserver's own machine reads chunk files itself,
// without a request (docs/decisions/0005-local-reads.md). The chunkserver writes it, clients map it
// read-only; both sides use only what is here.
//
// The map has two parts. The header is the file "local.map" in the disk's folder, where a successor
// finds it when its predecessor was killed; it is stored to rarely. The slots are anonymous memory
// (memfd), stored to with every write. A slot describes one chunk that the chunkserver has open:
// which blocks are allocated, and the CRC-32C of each. It is a seqlock: `version` is odd while the
// chunk's file and the slot may disagree. The chunkserver makes it odd before it acknowledges a
// write and even again when the write is in the file, so a reader that finds the same even version
// before and after has read what was acknowledged, and nothing older.
//
// A reader must give up (and send a request, which is always right) when
//  - header.closed is set: the chunkserver has ended. The next one to open the folder sets it for a
//    predecessor that was killed, before it serves anything;
//  - header.epoch_generation is not the one at which the reader last had a request with its epoch
//    accepted: some volume's epoch was raised, maybe its own;
//  - header.lease_until_ns has passed (CLOCK_BOOTTIME): the replica may no longer be the leader;
//  - the slot holds another chunk, its version is odd or changed, or a block's CRC does not match.
#ifndef CG_BASE_LOCAL_MAP_H
#define CG_BASE_LOCAL_MAP_H

#include <stdatomic.h>
#include <stdint.h>

#define CG_LOCAL_MAGIC      UINT64_C(0x70616d6c61636f6c) // "localmap"
#define CG_LOCAL_VERSION    1U
#define CG_LOCAL_BLOCK      4096U
#define CG_LOCAL_BLOCKS_MAX 4096U // of a chunk: 16 MiB
#define CG_LOCAL_SLOTS_MAX  65536U
#define CG_LOCAL_NEVER_ENDS UINT64_MAX

struct cg_local_header {
    uint64_t magic;
    uint32_t version;
    uint32_t slot_count;
    uint32_t slot_size;   // sizeof(struct cg_local_slot)
    uint32_t data_offset; // of block 0 in a chunk file, bytes
    _Atomic uint64_t closed;
    _Atomic uint64_t epoch_generation;
    _Atomic uint64_t lease_until_ns;
    uint8_t reserved[4096 - 48];
};

struct cg_local_slot {
    _Atomic uint64_t version;
    _Atomic uint64_t chunk_id; // 0: free
    _Atomic uint64_t group;    // pool << 32 | copyset
    _Atomic uint64_t file_id;  // the volume's; 0 if not known
    uint8_t reserved[4096 - 32 - CG_LOCAL_BLOCKS_MAX / 8];
    uint8_t allocated[CG_LOCAL_BLOCKS_MAX / 8]; // bit i % 8 of byte i / 8: block i holds data
    uint32_t crc[CG_LOCAL_BLOCKS_MAX];
};

_Static_assert(sizeof(struct cg_local_header) == 4096, "the slots begin on a page");
_Static_assert(sizeof(struct cg_local_slot) == 20480, "a slot is five pages");

#endif
