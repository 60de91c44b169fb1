// SPDX-License-Identifier: BSD-3-Clause
//
// The shared memory by which a client on the chunkserver's own machine reads chunk files itself,
// without a request (docs/decisions/0005-local-reads.md). The chunkserver writes it, clients map it
// read-only; both sides use only what is here.
//
// The map has two parts. The header is the file "local.map" in the disk's folder, where a successor
// finds it when its predecessor was killed; it is stored to rarely. The rest is anonymous memory
// (memfd): the slots, stored to with every write, and behind them the leases, stored to with every
// round of heartbeats. A slot describes one chunk that the chunkserver has open:
// which blocks are allocated, and the CRC-32C of each. It is a seqlock: `version` is odd while the
// chunk's file and the slot may disagree. The chunkserver makes it odd before it acknowledges a
// write and even again when the write is in the file, so a reader that finds the same even version
// before and after has read what was acknowledged, and nothing older.
//
// A reader must give up (and send a request, which is always right) when
//  - header.closed is set: the chunkserver has ended. The next one to open the folder sets it for a
//    predecessor that was killed, before it serves anything;
//  - header.epoch_generation is odd, or not the one at which the reader last had a request with its
//    epoch accepted: some volume's epoch is being raised or was, maybe its own;
//  - its copyset's lease has ended or ends within CG_LOCAL_LEASE_MARGIN_NS (CLOCK_BOOTTIME): the
//    replica may no longer be the leader. Looked at after the data: what is read while the lease
//    holds is what was acknowledged last, by whomever;
//  - the slot holds another chunk, its version is odd or changed, or a block's CRC does not match.
#ifndef CG_BASE_LOCAL_MAP_H
#define CG_BASE_LOCAL_MAP_H

#include <stdatomic.h>
#include <stdint.h>

#define CG_LOCAL_MAGIC      UINT64_C(0x70616d6c61636f6c) // "localmap"
#define CG_LOCAL_VERSION    2U
#define CG_LOCAL_BLOCK      4096U
#define CG_LOCAL_BLOCKS_MAX 4096U // of a chunk: 16 MiB
#define CG_LOCAL_SLOTS_MAX  65536U
#define CG_LOCAL_LEASES     8192U // a power of two, twice the copysets that a disk may have
#define CG_LOCAL_NEVER_ENDS UINT64_MAX

// Reader and chunkserver have the same clock; this is for the moment between looking at it and
// handing the data over.
#define CG_LOCAL_LEASE_MARGIN_NS UINT64_C(1000000)

struct cg_local_header {
    uint64_t magic;
    uint32_t version;
    uint32_t slot_count;
    uint32_t slot_size;   // sizeof(struct cg_local_slot)
    uint32_t data_offset; // of block 0 in a chunk file, bytes
    _Atomic uint64_t closed;
    _Atomic uint64_t epoch_generation;
    uint64_t lease_count; // CG_LOCAL_LEASES
    uint8_t reserved[4096 - 48];
};

// A copyset's lease. Found by its group from cg_local_lease_place on, in a table without holes
// between that and its place; it stays there for as long as the map exists.
struct cg_local_lease {
    _Atomic uint64_t key;      // group + 1; 0: free
    _Atomic uint64_t until_ns; // 0: none
};

static inline uint32_t cg_local_lease_place(uint64_t group) {
    return (uint32_t)((group * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & (CG_LOCAL_LEASES - 1);
}

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
