// SPDX-License-Identifier: BSD-3-Clause
//
// Raising a volume's epoch in all copysets of a chunkserver: for clients (UpdateEpoch) and for the
// host. The reactor's thread.
#ifndef CG_CHUNKSERVER_EPOCH_RAISE_H
#define CG_CHUNKSERVER_EPOCH_RAISE_H

#include "base/clock.h"
#include "chunkserver/store.h"

// Followers hear of what was committed with the next entry or heartbeat.
#define CG_EPOCH_WAIT_NS (300 * CG_NS_PER_MS)

// Proposes the epoch where this server leads and waits for the leader to do so elsewhere. `done` is
// called once, perhaps inside this call: SUCCESS if the epoch is applied in every copyset here but
// those that it is still to join; EPOCH_TOO_OLD if one of them knows a higher one; FAILURE_UNKNOWN
// if it is not everywhere in time; OVERLOAD, or what else became of a proposal.
void cg_epoch_raise_all(struct cg_store *store, struct cg_reactor *reactor, uint64_t file_id,
                        uint64_t epoch, void (*done)(void *user, cg_status status), void *user);

// Whether there is any copyset here whose epochs count: not those that it is still to join.
bool cg_epoch_any(struct cg_store *store);

#endif
