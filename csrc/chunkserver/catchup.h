// SPDX-License-Identifier: BSD-3-Clause
//
// Replicas help each other out: one that lacks what the log no longer has copies the state of the
// copyset's leader, chunk by chunk, and one that finds its own blocks damaged fetches them from
// another. One for each store, on its reactor's thread.
//
// A copy is fuzzy, as a checkpoint is: the replicated state (windows, epochs, members) is as of an
// index S, the chunks are read later, while writes go on, and may be ahead of it. The entries after
// S are applied again when the copy counts; each writes whole blocks, so that the end is the same.
// Nobody reads from the replica before that: it can lead only when it has applied all that was
// committed.
//
// A half-copied replica never counts. Before the first chunk is touched a durable mark says so, and
// only the complete state takes it away. It can neither be elected meanwhile: copying begins only
// if its log lacks S, which a majority without it has committed.
//
// All of a disk's copying shares one rate, in both directions, and yields to clients.
#ifndef CG_CHUNKSERVER_CATCHUP_H
#define CG_CHUNKSERVER_CATCHUP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "rpc/server.h"

struct cg_catchup;
struct cg_copyset;
struct cg_mend;
struct cg_peers;
struct cg_store;

#define CG_CATCHUP_METHODS 6U

#define CG_CATCHUP_RATE_DEFAULT (UINT64_C(100) << 20) // bytes per second

struct cg_catchup_options {
    struct cg_peers *peers; // NULL: this server is alone
    uint64_t rate;          // bytes per second; 0: CG_CATCHUP_RATE_DEFAULT
};

// Before the store is opened, so that the store can tell of what it finds. Returns 0 or -ENOMEM.
int cg_catchup_create(const struct cg_catchup_options *options, struct cg_catchup **out);

// The store is open: goes on with what was interrupted. Returns 0 or -ENOMEM.
int cg_catchup_start(struct cg_catchup *catchup, struct cg_store *store);

// Begins nothing more, and ends what can be ended; idle when nothing is under way.
void cg_catchup_stop(struct cg_catchup *catchup);
bool cg_catchup_idle(const struct cg_catchup *catchup);

// Stopped and idle, or never started; before the store is closed.
void cg_catchup_destroy(struct cg_catchup *catchup);

// The server's methods: CG_CATCHUP_METHODS of them.
void cg_catchup_methods(struct cg_catchup *catchup, struct cg_server_method *out);

// A copyset is about to be removed: whatever goes on with it here ends. `done` is called once that
// is so, perhaps inside.
struct cg_catchup_forget {
    struct cg_copyset *copyset;
    void (*done)(struct cg_catchup_forget *forget);
    struct cg_list node; // catchup's
};
void cg_catchup_forget(struct cg_catchup *catchup, struct cg_catchup_forget *forget);

// ---- What the store tells (cg_store_events)

// This replica leads, and `member` needs the state.
void cg_catchup_copy_state(struct cg_catchup *catchup, struct cg_copyset *copyset, uint64_t member);

// A block, or CG_BAD_SLOT, is bad: it is mended some time.
void cg_catchup_damaged(struct cg_catchup *catchup, struct cg_copyset *copyset, uint64_t chunk_id,
                        uint32_t block);

// Somebody waits for bad blocks. `mend->done` is called later, with 0 if all are well again.
void cg_catchup_mend(struct cg_catchup *catchup, struct cg_mend *mend);

struct cg_catchup_stats {
    uint32_t receiving;      // copysets that are being copied here, or have to be
    uint32_t sending;        // to other members
    uint64_t received_bytes; // of chunks
    uint64_t received_chunks;
    uint64_t sent_bytes;
    uint64_t completed; // copysets copied here
    uint64_t mended_blocks;
    uint64_t mended_chunks; // whose metadata was bad
};
void cg_catchup_stats(const struct cg_catchup *catchup, struct cg_catchup_stats *out);

#endif
