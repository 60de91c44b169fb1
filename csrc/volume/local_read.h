// SPDX-License-Identifier: BSD-3-Clause
//
// The client's half of local reads (docs/decisions/0005-local-reads.md): reads a chunk's file
// without a request where that is provably the same. Whatever it refuses with -EAGAIN goes the
// ordinary way.
//
// One cg_local_reader per volume, one cg_local_door per chunkserver that the volume has met.
// cg_local_try may be called from any thread, also several at once; everything else belongs to the
// reactor's thread.
#ifndef CG_VOLUME_LOCAL_READ_H
#define CG_VOLUME_LOCAL_READ_H

#include <stdbool.h>
#include <stdint.h>

#include "base/reactor.h"

struct cg_local_reader;
struct cg_local_door;

#define CG_LOCAL_NO_GENERATION UINT64_MAX

// `chunk_blocks`: blocks of 4 KiB in a chunk. `chunks_max`: chunk files open at once; 0: a quarter
// of RLIMIT_NOFILE, at most 4096. Returns 0, -EINVAL or -ENOMEM.
int cg_local_reader_create(struct cg_reactor *reactor, uint32_t chunk_blocks, unsigned chunks_max,
                           struct cg_local_reader **out);

// Frees the doors too. Waits for threads inside cg_local_try; none may enter it any more.
void cg_local_reader_destroy(struct cg_local_reader *reader);

// The door of the chunkserver that serves requests at `address` ("ip:port"), knocked at once. That
// nobody opens is no error: then reads go by request. NULL when memory is short.
struct cg_local_door *cg_local_door_get(struct cg_local_reader *reader, const char *address);

// A request to the chunkserver failed or timed out: another process may be in its place. Refuses
// until the door was opened anew. Must be called before another request is sent there.
void cg_local_door_reset(struct cg_local_door *door);

// The map's epoch generation at this moment, or CG_LOCAL_NO_GENERATION: take it before sending a
// request that carries the volume's epoch, and hand it to cg_local_door_accepted when that request
// has succeeded.
uint64_t cg_local_door_generation(const struct cg_local_door *door);
void cg_local_door_accepted(struct cg_local_door *door, uint64_t generation);

// A request has read from this chunk, which the volume knows as its chunk number `key`: asks for
// its file, unless it is there or on its way.
void cg_local_want(struct cg_local_door *door, uint64_t key, uint32_t pool, uint32_t copyset,
                   uint64_t chunk_id);

// The volume's chunk number `key` is about to become another chunk.
void cg_local_forget(struct cg_local_reader *reader, uint64_t key);

// Reads `length` bytes at `offset` of the volume's chunk number `key`; both multiples of 4096.
// Returns 0, or -EAGAIN: send a request. `data` may have been scribbled on then. Does not block:
// what is not in the page cache is left to a request, too.
int cg_local_try(struct cg_local_reader *reader, uint64_t key, void *data, uint32_t offset,
                 uint32_t length);

#endif
