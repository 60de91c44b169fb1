// SPDX-License-Identifier: BSD-3-Clause
//
// A group of copyset logs in one process: each member has a simulated disk with the real log on it
// and a state machine that is a list of values; the network is a queue that the test may cut, lose
// from and look into. What is delivered is checked all the time: in order, once, everywhere the
// same, and after a restart nothing that was acknowledged is missing. One seed.
#ifndef CG_TESTS_LOGMODEL_H
#define CG_TESTS_LOGMODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/clock.h"
#include "chunkserver/copyset_log.h"
#include "simdisk.h"

#define MODEL_MEMBERS 6U // ids 1...; position 0 is not used
#define MODEL_VALUES  60000U
#define MODEL_GROUP   ((UINT64_C(7) << 32) | 3)

struct logmodel;

struct logmodel_member {
    struct logmodel *model;
    uint64_t id;
    bool exists;
    bool up;
    struct simdisk *sim;
    struct cg_reactor *reactor;
    struct cg_buffer_pool *pool;
    struct cg_wal *wal;
    struct cg_log_disk *disk;
    struct cg_copyset_log *log;
    struct cg_copyset_log_saved saved; // the checkpoint's
    uint64_t saved_lsn;
    uint64_t delivered;
    bool refuse;           // events.committed says no
    bool hold_applied;     // cg_copyset_log_applied is not called
    unsigned role_changes; // events
    unsigned copies_asked;
    bool copy_for[MODEL_MEMBERS];
    uint64_t lease_end;
    int disk_failure;
    int install_status; // 1: not told yet
};

struct logmodel_value {
    uint64_t term; // 0: not delivered anywhere
    uint64_t value;
    uint32_t type;
    bool acked;
};

struct logmodel {
    uint64_t seed;
    uint64_t random;
    uint64_t now;
    uint64_t cache_bytes;
    uint64_t segment_bytes;
    struct logmodel_member member[MODEL_MEMBERS];
    struct logmodel_value log[MODEL_VALUES]; // by index, as delivered first
    uint64_t last;                           // highest index delivered anywhere
    struct cg_list mail;
    uint32_t loss_percent;
    bool cut[MODEL_MEMBERS][MODEL_MEMBERS]; // from, to
    uint64_t sent[CG_RAFT_TIMEOUT_NOW + 1]; // messages by type
    unsigned proposed, acked, failed, refused;
    unsigned pending; // proposals without an end
    int last_failure;
    uint64_t next_value;
    unsigned reads_done;
    int last_read;
};

// `voters` members with ids from 1 on, started.
void logmodel_init(struct logmodel *model, uint64_t seed, unsigned voters, uint64_t cache_bytes);
void logmodel_destroy(struct logmodel *model);

// A blank member that knows no configuration.
void logmodel_add_blank(struct logmodel *model, uint64_t id);

// Lets `ms` of time pass, in steps of a millisecond: disks work, messages arrive.
void logmodel_run(struct logmodel *model, unsigned ms);

// Runs until a member is ready; returns it. Fails after ten seconds.
struct logmodel_member *logmodel_leader(struct logmodel *model);

// Runs until all members that are up have delivered all that is committed anywhere.
void logmodel_settle(struct logmodel *model);

// Proposes an entry with a fresh value and `blocks` of payload made of it. Returns what propose
// did.
int logmodel_propose(struct logmodel *model, struct logmodel_member *at, unsigned blocks);

// Proposes `count` entries at the leader, waiting until they are acknowledged.
void logmodel_write(struct logmodel *model, unsigned count, unsigned blocks);

void logmodel_read(struct logmodel *model, struct logmodel_member *at);

// Power loss; the member is down.
void logmodel_crash(struct logmodel_member *member, enum simdisk_crash mode);
// Comes back with what its disk has.
void logmodel_start(struct logmodel_member *member);

// No messages between the member and anyone else.
void logmodel_isolate(struct logmodel *model, const struct logmodel_member *member, bool isolated);

// A checkpoint that is durable at once. What is at or above keep_from_lsn stays for others.
void logmodel_checkpoint(struct logmodel_member *member, uint64_t keep_from_lsn);

// Appends records of another group to the member's log on disk.
void logmodel_fill(struct logmodel *model, struct logmodel_member *member, unsigned records);

// Copies the leader's state to a member, as SEND_SNAPSHOT asks for.
void logmodel_copy(struct logmodel *model, struct logmodel_member *from,
                   struct logmodel_member *to);

uint32_t logmodel_below(struct logmodel *model, uint32_t bound);

struct cg_raft_progress logmodel_progress(const struct logmodel_member *leader, uint64_t id);

#endif
