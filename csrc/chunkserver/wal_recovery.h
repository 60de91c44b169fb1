// SPDX-License-Identifier: BSD-3-Clause
//
// Reading the log at start-up: what is valid, where it ends, and whether a batch that does not
// check out is a torn tail (never acknowledged: cut) or corruption (acknowledged: refused).
//
// The evidence is `durable_lsn`. Every batch and every segment header states below which LSN all
// was durable when it was submitted, and acknowledgements follow that order. So a bad batch at LSN
// b was acknowledged, or is followed by what was, if any later valid batch or header states a
// durable_lsn above b. Without such evidence nobody was told that it is there.
//
// Recovery writes nothing but what wal_segments_* do to unused files, so that it may crash and be
// repeated; the cut takes effect with the header of the next segment, whose start_lsn makes void
// what lies at or above it.
#ifndef CG_CHUNKSERVER_WAL_RECOVERY_H
#define CG_CHUNKSERVER_WAL_RECOVERY_H

#include <stddef.h>
#include <stdint.h>

#include "chunkserver/wal_segments.h"

struct wal_recovered {
    uint64_t end_lsn;       // where the log goes on
    uint64_t next_sequence; // of the next segment
    uint64_t incarnation;   // for this start
};

// Loads the folder into `set` (live and free lists, uuid) and replays. Returns 0 or as cg_wal_open,
// with a sentence in `error`. After a failure `set` is still to be destroyed.
int wal_recover(struct wal_segments *set, const struct cg_wal_replay *replay,
                struct wal_recovered *out, char *error, size_t error_size);

#endif
