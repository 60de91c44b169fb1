// SPDX-License-Identifier: BSD-3-Clause
//
// What a copyset's log writes to the log on disk besides entries of data. See docs/formats.md.
#ifndef CG_CHUNKSERVER_COPYSET_LOG_RECORD_H
#define CG_CHUNKSERVER_COPYSET_LOG_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "chunkserver/log_entry.h"
#include "chunkserver/wal.h"
#include "raft/raft.h"

// Records that are no entries, and void none (wal.h) but as said here.
enum {
    CG_RECORD_STATE = CG_WAL_TYPE_STATE, // term, and in the meta the vote; index 0
    CG_RECORD_INSTALL = 0x101, // the state as of index and term was copied here and is durable
    CG_RECORD_COPY = 0x102,    // of an entry; changes nothing without
    CG_RECORD_MOVED = 0x103,   // from here on the log from an index to this one's is the copies
};

// Members of a group, as in CONFIG entries, INSTALL records, checkpoints and member files.
#define CG_LOG_CONFIG_SIZE_MAX (8U + 16U * CG_RAFT_MEMBERS_MAX)

// Returns the bytes written.
size_t cg_log_config_encode(const struct cg_raft_config *config,
                            uint8_t out[CG_LOG_CONFIG_SIZE_MAX]);
// Returns the bytes read, or -EBADMSG.
int64_t cg_log_config_decode(const uint8_t *in, size_t length, struct cg_raft_config *out);

#define CG_RECORD_STATE_SIZE 8U

void cg_record_state_encode(uint64_t vote, uint8_t out[CG_RECORD_STATE_SIZE]);
int cg_record_state_decode(const struct cg_wal_record *record, uint64_t *vote); // 0 or -EBADMSG

struct cg_record_install {
    bool voids; // the group's records before it are void, also above its index
    struct cg_raft_config config;
};

#define CG_RECORD_INSTALL_SIZE_MAX (8U + CG_LOG_CONFIG_SIZE_MAX)

size_t cg_record_install_encode(const struct cg_record_install *install,
                                uint8_t out[CG_RECORD_INSTALL_SIZE_MAX]);
int cg_record_install_decode(const struct cg_wal_record *record,
                             struct cg_record_install *out); // 0 or -EBADMSG

// `out`: CG_WAL_META_MAX bytes, of which the length is returned.
size_t cg_record_copy_encode(const struct cg_log_entry *entry, uint8_t *out);
// The entry's type and meta, which points into the record; 0 or -EBADMSG.
int cg_record_copy_decode(const struct cg_wal_record *record, uint32_t *type, const uint8_t **meta,
                          uint32_t *meta_length);

size_t cg_record_moved_encode(uint64_t first, uint8_t *out);
int cg_record_moved_decode(const struct cg_wal_record *record, uint64_t *first); // 0 or -EBADMSG

#endif
