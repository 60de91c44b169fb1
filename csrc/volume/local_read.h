// SPDX-License-Identifier: BSD-3-Clause
//
// The client's half of local reads (docs/decisions/0005-local-reads.md): reads a chunk's file
// without a request where that is provably the same. Whatever it refuses with -EAGAIN goes the
// ordinary way.
//
// One cg_local_reader per volume and chunkserver address. cg_local_try may be called from any
// thread, also several at once; everything else belongs to the reactor's thread.
#ifndef CG_VOLUME_LOCAL_READ_H
#define CG_VOLUME_LOCAL_READ_H

#include <stdbool.h>
#include <stdint.h>

#include "base/reactor.h"

struct cg_local_reader;

struct cg_local_reader_options {
    const char *ip; // of the chunkserver; whoever serves elsewhere has no door, and that is all
    uint32_t port;
    uint32_t chunk_blocks; // of 4 KiB in a chunk
    unsigned chunks_max;   // chunk files open at once; 0: a quarter of RLIMIT_NOFILE, at most 4096
};

// Knocks at the chunkserver's door; that nobody answers is not an error but means that cg_local_try
// always refuses. Returns 0, -EINVAL or -ENOMEM.
int cg_local_reader_create(struct cg_reactor *reactor,
                           const struct cg_local_reader_options *options,
                           struct cg_local_reader **out);

// No other thread may be inside cg_local_try any more.
void cg_local_reader_destroy(struct cg_local_reader *reader);

// The connection to the chunkserver broke, or its requests time out: it may have been replaced by
// another process. Refuses everything until the door has been opened anew. Must be called before a
// request is sent on a new connection.
void cg_local_reader_reset(struct cg_local_reader *reader);

// The map's epoch generation at this moment: take it before sending a request that carries the
// volume's epoch, and hand it to cg_local_reader_accepted when that request has succeeded.
uint64_t cg_local_reader_generation(const struct cg_local_reader *reader);
void cg_local_reader_accepted(struct cg_local_reader *reader, uint64_t generation);

// A request has read from this chunk: asks for its file, unless it is there or on its way.
void cg_local_reader_want(struct cg_local_reader *reader, uint32_t pool, uint32_t copyset,
                          uint64_t chunk_id);

// Reads `length` bytes at `offset` of the chunk; both multiples of 4096. Returns 0, or -EAGAIN:
// send a request. `data` may have been scribbled on then. Does not block: what is not in the page
// cache is left to a request, too.
int cg_local_try(struct cg_local_reader *reader, uint32_t pool, uint32_t copyset, uint64_t chunk_id,
                 void *data, uint32_t offset, uint32_t length);

#endif
