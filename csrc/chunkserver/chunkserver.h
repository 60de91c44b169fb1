// SPDX-License-Identifier: BSD-3-Clause
//
// A chunkserver as its host process sees it: one disk folder, one reactor thread that serves
// ChunkService, CliService2 and RaftService over baidu_std. The calls below may come from any
// thread; they hand the work to the reactor and wait for it, so they may block for as long as a
// durable write takes.
#ifndef CG_CHUNKSERVER_CHUNKSERVER_H
#define CG_CHUNKSERVER_CHUNKSERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "chunkserver/catchup.h"
#include "chunkserver/copyset_log.h"
#include "chunkserver/peers.h"
#include "chunkserver/store.h"

struct cg_chunkserver;

struct cg_chunkserver_options {
    const char *folder;    // exists; empty or formatted before
    const char *listen;    // comma-separated endpoints, see rpc/endpoint.h; a port of 0 picks one
    const char *advertise; // "ip:port" that GetLeader answers; NULL: the first TCP endpoint bound
    uint64_t wal_bytes;    // 0: 1 GiB
    // Buffers of requests in flight; 0: 64 MiB. Beyond it: OVERLOAD. Besides, entries of the logs
    // stay in memory for members that lag, up to half as much or 32 MiB.
    uint64_t memory_bytes;
    uint32_t inflight_max; // requests in flight; 0: 5000. Beyond it: OVERLOAD
    uint64_t
        reserve_bytes;   // free space kept back: new blocks are refused (NOSPACE) below; 0: 64 MiB
    uint64_t scrub_rate; // bytes per second that the scrub reads at most; 0: no scrub
    uint64_t scrub_period_s; // from the begin of one pass to the next; 0: a week
    uint64_t copy_rate;      // bytes per second that replicas are copied with; 0: 100 MiB
    int reactor_backend;     // enum cg_reactor_backend
};

// Opens the folder, replays the log and starts serving. Returns 0 or -errno with a sentence in
// `error`.
int cg_chunkserver_start(const struct cg_chunkserver_options *options, struct cg_chunkserver **out,
                         char *error, size_t error_size);

// Stops accepting, finishes what is in flight, writes a checkpoint, frees everything.
void cg_chunkserver_stop(struct cg_chunkserver *server);

// The disk's uuid (36 characters and NUL), made when the folder was first used.
void cg_chunkserver_uuid(const struct cg_chunkserver *server, char out[37]);

// The endpoint that was bound, "ip:port" (the first TCP one; else the unix path).
void cg_chunkserver_address(const struct cg_chunkserver *server, char *out, size_t size);

// An eventfd that becomes readable when who leads, the term or the members of any copyset have
// changed. Open until cg_chunkserver_stop.
int cg_chunkserver_event_fd(const struct cg_chunkserver *server);

// Where a chunkserver of the cluster is, this one included: "ip:port". May block to resolve a name.
// 0, -EINVAL, -EHOSTUNREACH, or as cg_peers_set.
int cg_chunkserver_set_peer(struct cg_chunkserver *server, uint32_t chunkserver,
                            const char *address);

// ---- Copysets

// As cg_store_add_copyset: makes the replica durably if it is not there.
int cg_chunkserver_add_copyset(struct cg_chunkserver *server, const struct cg_copyset_spec *spec);

// Deletes the replica, which the copyset has removed as a member. 0 (also if it is not there),
// -EEXIST if it is there as another member than `member`, or the disk's error.
int cg_chunkserver_remove_copyset(struct cg_chunkserver *server, uint32_t pool, uint32_t copyset,
                                  uint64_t member);

// Begins a change of the members, or hands leadership over: as cg_copyset_log_change and
// cg_copyset_log_transfer; -ENOENT if the copyset is not here.
int cg_chunkserver_change(struct cg_chunkserver *server, uint32_t pool, uint32_t copyset,
                          enum cg_raft_change kind, uint64_t member);
int cg_chunkserver_transfer(struct cg_chunkserver *server, uint32_t pool, uint32_t copyset,
                            uint64_t member);

struct cg_chunkserver_copyset {
    uint32_t pool;
    uint32_t copyset;
    uint64_t member; // 0: of an earlier version, waits for cg_chunkserver_add_copyset
    struct cg_copyset_log_status log; // zeros if `member` is 0
};

// The replicas here, at most `max`; returns how many there are.
uint32_t cg_chunkserver_copysets(struct cg_chunkserver *server, struct cg_chunkserver_copyset *out,
                                 uint32_t max);

// Raises a volume's epoch in every copyset through the log; a lower one than known changes nothing.
// -EAGAIN: not everywhere yet.
int cg_chunkserver_raise_epoch(struct cg_chunkserver *server, uint64_t file_id, uint64_t epoch);

// Deletes a chunk that the MDS has given up (its id is never used again). 0 also if it is not
// there. -EPERM: this replica does not lead.
int cg_chunkserver_reclaim(struct cg_chunkserver *server, uint32_t pool, uint32_t copyset,
                           uint64_t chunk);

// Begins a pass of the scrub for `request`, see cg_store_scrub. 0, or -ENOTSUP if it is off.
int cg_chunkserver_scrub(struct cg_chunkserver *server, uint64_t request);

// The known bad blocks, at most `max`; returns how many were copied.
uint32_t cg_chunkserver_bad_blocks(struct cg_chunkserver *server, struct cg_bad_block *out,
                                   uint32_t max);

struct cg_chunkserver_stats {
    uint64_t reads, writes, others, overloads, errors;
    uint64_t read_bytes, written_bytes;
    uint64_t wal_batches, wal_records, wal_bytes, wal_used, wal_capacity;
    uint64_t checkpoints;
    uint64_t capacity_bytes, free_bytes;
    uint32_t copysets, leaders, connections;
    int disk_error; // 0, or the errno that retired the disk
    struct cg_scrub_stats scrub;
    struct cg_peers_stats peers;
    struct cg_log_disk_stats log;
    struct cg_catchup_stats copy;
};
void cg_chunkserver_stats(struct cg_chunkserver *server, struct cg_chunkserver_stats *out);

#endif
