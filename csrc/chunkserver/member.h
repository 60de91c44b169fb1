// SPDX-License-Identifier: BSD-3-Clause
//
// The file "member" in a copyset's folder: who this replica is in its group. Written before the
// replica says anything to others, and once more when it is removed: then it stays and says so,
// because the log may hold something of it. A folder without it is of an earlier version, or its
// making was cut short. docs/formats.md describes the bytes.
#ifndef CG_CHUNKSERVER_MEMBER_H
#define CG_CHUNKSERVER_MEMBER_H

#include <stdint.h>

#include "base/disk.h"
#include "raft/raft.h"

#define CG_MEMBER_GONE UINT64_MAX

struct cg_member {
    uint64_t self;                  // member id; 0: there is no file
    uint64_t from_lsn;              // the log's records before it are not this replica's
    struct cg_raft_config founders; // of a new group; empty: the replica joins one that is there
};

// Reads the file in `folder`. Returns 0, out->self being 0 if there is none; -EBADMSG or the disk's
// error.
int cg_member_load(struct cg_disk *disk, const char *folder, struct cg_member *out);

// Writes it, durably. Blocking.
int cg_member_save(struct cg_disk *disk, const char *folder, const struct cg_member *member);

#endif
