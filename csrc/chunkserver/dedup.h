// SPDX-License-Identifier: BSD-3-Clause
//
// Which requests of which clients a copyset has carried out, so that a retry is not a second write.
// Per client: a floor (the client has said that everything below is settled) and the sequences from
// the floor on that took effect. Part of the replicated state: changed only in log order, saved by
// checkpoints. Pure bookkeeping without IO.
//
// Bounded: clients beyond CG_DEDUP_CLIENTS_MAX push out the one that was idle longest; a client
// with CG_DEDUP_SEQUENCES_MAX unsettled sequences is told to wait (forgetting one would let its
// late copy in).
#ifndef CG_CHUNKSERVER_DEDUP_H
#define CG_CHUNKSERVER_DEDUP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/list.h"

#define CG_DEDUP_CLIENTS_MAX   256U
#define CG_DEDUP_SEQUENCES_MAX 16384U

struct cg_dedup {
    struct cg_list lru; // clients, the one used last in front
    struct cg_list bucket[64];
    unsigned clients;
};

enum cg_dedup_answer {
    CG_DEDUP_NEW,
    CG_DEDUP_DONE,    // took effect before
    CG_DEDUP_SETTLED, // below the floor: a late copy
    CG_DEDUP_FULL,    // new, but there is no room to remember it
};

void cg_dedup_init(struct cg_dedup *dedup);
void cg_dedup_clear(struct cg_dedup *dedup);

// What to do with a request; changes nothing.
enum cg_dedup_answer cg_dedup_check(const struct cg_dedup *dedup, uint64_t client_id,
                                    uint64_t sequence);

// Applies an entry: raises the client's floor to `settled_below` and remembers `sequence`. Returns
// what cg_dedup_check said before (only CG_DEDUP_NEW has effects on data), or -ENOMEM.
int cg_dedup_record(struct cg_dedup *dedup, uint64_t client_id, uint64_t sequence,
                    uint64_t settled_below);

// Saving and loading. cg_dedup_size is the length that cg_dedup_encode writes. cg_dedup_decode
// returns the bytes read, -EBADMSG or -ENOMEM; `dedup` must be empty.
size_t cg_dedup_size(const struct cg_dedup *dedup);
size_t cg_dedup_encode(const struct cg_dedup *dedup, uint8_t *out);
int64_t cg_dedup_decode(struct cg_dedup *dedup, const uint8_t *in, size_t length);

#endif
