// SPDX-License-Identifier: BSD-3-Clause
//
// The chunkserver's half of local reads (docs/decisions/0005-local-reads.md): owns the shared map
// and the door through which clients get it. One reactor thread.
#ifndef CG_CHUNKSERVER_LOCAL_SHARE_H
#define CG_CHUNKSERVER_LOCAL_SHARE_H

#include <stdint.h>

#include "base/local_map.h"
#include "base/reactor.h"

struct cg_local_share;

// Finds an open chunk: sets *slot to its slot and returns a new read-only descriptor of its file,
// which the caller closes; -ENOENT if it is not open at present.
typedef int (*cg_local_find)(void *context, uint32_t pool, uint32_t copyset, uint64_t chunk_id,
                             uint32_t *slot);

// Closes the map that a predecessor left in `folder` and makes a new one with `slots` slots whose
// data begins at `data_offset` of a chunk file. Returns 0 or -errno.
int cg_local_share_create(const char *folder, uint32_t slots, uint32_t data_offset,
                          struct cg_local_share **out);

// Opens the door for clients of the server that they reach at `address` ("ip:port", what is
// advertised). Only root and the own user get in. Returns 0 or -errno.
int cg_local_share_listen(struct cg_local_share *share, struct cg_reactor *reactor,
                          const char *address, cg_local_find find, void *context);

// Marks the map closed, shuts the door, unmaps.
void cg_local_share_destroy(struct cg_local_share *share);

struct cg_local_slot *cg_local_share_slot(struct cg_local_share *share, uint32_t index);

// A leader raises an epoch: from before it is proposed until its result is known here, nobody
// reads. In between it may be committed and acknowledged by others. Pairs may overlap.
void cg_local_share_epoch_begin(struct cg_local_share *share);
void cg_local_share_epoch_end(struct cg_local_share *share);

// To be called before an epoch that was raised, by whomever, is acknowledged.
static inline void cg_local_share_epoch_raised(struct cg_local_share *share) {
    cg_local_share_epoch_begin(share);
    cg_local_share_epoch_end(share);
}

// Until when (CLOCK_BOOTTIME) clients may read the chunks of `group` (pool << 32 | copyset)
// by themselves: the end of the lease of its leader, CG_LOCAL_NEVER_ENDS for a copyset's only
// replica. 0, or no call: not at all.
void cg_local_share_lease(struct cg_local_share *share, uint64_t group, uint64_t until_ns);

// Brackets whatever makes a slot and its chunk file disagree. Begin before the write is
// acknowledged, end when file and slot agree again. They nest: `pending` counts per chunk and
// belongs to the caller.
static inline void cg_local_slot_begin(struct cg_local_slot *slot, uint32_t *pending) {
    if ((*pending)++ == 0) {
        uint64_t version = atomic_load_explicit(&slot->version, memory_order_relaxed);
        atomic_store_explicit(&slot->version, version + 1, memory_order_relaxed);
        atomic_thread_fence(memory_order_seq_cst);
    }
}

static inline void cg_local_slot_end(struct cg_local_slot *slot, uint32_t *pending) {
    if (--(*pending) == 0) {
        uint64_t version = atomic_load_explicit(&slot->version, memory_order_relaxed);
        atomic_store_explicit(&slot->version, version + 1, memory_order_release);
    }
}

#endif
