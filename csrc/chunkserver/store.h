// SPDX-License-Identifier: BSD-3-Clause
//
// The store of one disk: copysets, chunks, the log, checkpoints. It knows no wire: the service
// above turns requests into operations. One reactor thread.
//
// A mutation (struct cg_op) goes: range of the chunk locked -> edge blocks merged, comparison made
// -> logged -> committed: `done` -> applied to the chunk file -> range unlocked. What another
// replica proposed, or was in the log at the start, comes in where it is committed and waits for
// its range like all others. A read (struct cg_read) waits only for committed writes of its range
// that are not in the file yet.
//
// Only the copyset's leader mutates and reads, once it is ready. A request that finds none is held
// for at most CG_HOLD_NS; elsewhere, and for those whose leader stops leading, the answer is
// REDIRECTED with the leader's member id if that is known. What was redirected may have been logged
// and may still take effect: clients repeat it with the same number, which the window recognises.
// That goes for a disk that has failed, too, unless it has the only replica: then it is DISK_FAIL.
#ifndef CG_CHUNKSERVER_STORE_H
#define CG_CHUNKSERVER_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/disk.h"
#include "base/list.h"
#include "base/reactor.h"
#include "chunkserver/bad_blocks.h"
#include "chunkserver/copyset_log.h"
#include "chunkserver/wal.h"
#include "gateway/proto/chunk.pb.h"

struct cg_store;
struct cg_copyset;
struct cg_mutation_result;

#define CG_HOLD_NS (450 * UINT64_C(1000000)) // an election timeout

// How an operation ended: what the wire says (CHUNK_OP_STATUS_*).
typedef curve_chunkserver_CHUNK_OP_STATUS cg_status;

// Bad blocks of a chunk that are to be fetched from another replica, or its metadata with all
// blocks.
struct cg_mend {
    struct cg_copyset *copyset;
    uint64_t chunk_id;
    uint32_t first; // blocks
    uint32_t count;
    bool metadata;
    void (*done)(struct cg_mend *mend, int status); // 0: all are well
    struct cg_list node;                            // the mender's
};

// What goes on in copysets, for those who want to know; each may be NULL. Called on the reactor's
// thread.
struct cg_store_events {
    // Who leads, whether it is ready, the term, or the members have changed.
    void (*role_changed)(void *context, struct cg_copyset *copyset);
    // This replica leads, and `member` needs the state copied: cg_copyset_log_copied tells the end.
    void (*copy_state)(void *context, struct cg_copyset *copyset, uint64_t member);
    // A block, or CG_BAD_SLOT, of a chunk was found bad that was not known to be.
    void (*damaged)(void *context, struct cg_copyset *copyset, uint64_t chunk_id, uint32_t block);
    // Somebody waits for what is bad: `mend->done` is called, perhaps later. NULL: nobody can help.
    void (*mend)(void *context, struct cg_mend *mend);
    // A volume's epoch was raised here.
    void (*epoch_raised)(void *context, struct cg_copyset *copyset, uint64_t file_id);
    void *context;
};

struct cg_store_options {
    uint32_t chunk_size;      // of a new folder, bytes; 0: 16 MiB
    uint32_t chunks_max;      // chunks whose metadata is in memory; 0: 4096
    uint32_t descriptors_max; // chunk files open at once; 0: 512
    uint32_t operations_max;  // mutations known at once, those being applied included; 0: 8192
    uint64_t reserve_bytes; // new blocks are refused when less is free; reserve.h holds most of it
    uint64_t wal_bytes;     // 0: 1 GiB
    uint64_t wal_segment_bytes;      // 0: the log's default
    uint64_t checkpoint_interval_ns; // 0: 30 s
    uint64_t scrub_rate;             // bytes per second that the scrub reads at most; 0: no scrub
    uint64_t scrub_period_s;         // from the begin of one pass to the next; 0: a week
    const char *share_folder; // where the map for local readers goes (local_map.h); NULL: none
    // The way to the other replicas and the clock, see log_disk.h. NULL: there are no others;
    // CLOCK_BOOTTIME.
    void (*send)(void *context, uint64_t group, const struct cg_raft_message *message,
                 struct cg_log_entry *const *entries);
    void *send_context;
    uint64_t (*now)(void *context);
    void *now_context;
    // For entries read back from the log on disk, which requests that wait for them must not be
    // able to exhaust; NULL: the pool of the requests.
    struct cg_buffer_pool *log_pool;
    uint64_t log_cache_bytes; // of log entries kept in memory beyond what is under way; 0: 32 MiB
    struct cg_store_events events;
};

// Opens the folder, reads the log, and starts the copysets. Those with a single replica have
// applied the whole log when it returns (unless the disk is too full for that); others apply what
// their leader says is committed. Blocking; drives the reactor, which the calling thread must own
// from now on. `error` gets a sentence.
int cg_store_open(struct cg_disk *disk, struct cg_reactor *reactor, struct cg_buffer_pool *pool,
                  const struct cg_store_options *options, struct cg_store **out, char *error,
                  size_t error_size);

// Falls silent: proposals that are under way, and all requests from now on, are redirected; nothing
// more is delivered.
void cg_store_stop(struct cg_store *store);

// Frees everything; nothing may be in flight (cg_store_idle). Writes no checkpoint. Blocking, as
// cg_wal_close.
void cg_store_close(struct cg_store *store);

// No operation, read or checkpoint is under way. An operation that waits for space counts as idle,
// the log keeps it; and so does a checkpoint that waits for it.
bool cg_store_idle(const struct cg_store *store);

// Starts a checkpoint, unless one is running or nothing is to be saved. `store->checkpoints`
// counts.
void cg_store_checkpoint(struct cg_store *store);
bool cg_store_checkpointing(const struct cg_store *store);
// True if a checkpoint would have something to save.
bool cg_store_unsaved(const struct cg_store *store);

const uint8_t *cg_store_uuid(const struct cg_store *store);
uint32_t cg_store_chunk_size(const struct cg_store *store);

// 0, or the errno that retired the disk: from then on everything ends with DISK_FAIL.
int cg_store_disk_error(const struct cg_store *store);

// ---- Copysets

// NULL if there is none.
struct cg_copyset *cg_store_copyset(struct cg_store *store, uint32_t pool, uint32_t copyset);

struct cg_copyset_spec {
    uint32_t pool;
    uint32_t copyset;
    uint64_t self;            // this replica's member id, never used before by another one
    const uint64_t *founders; // all members of a new group, `self` included
    uint32_t founder_count;   // 0: the replica joins a group that is there
};

// Makes the replica durably and starts it. A folder of an earlier version, which does not say who
// its member is, is taken over with all it holds if `self` is the only founder. Returns 0 (also if
// it is there), -EEXIST if it is there as another member, -EAGAIN while a replica is being removed,
// -EINVAL, -ENOSPC or the disk's error. Blocking.
int cg_store_add_copyset(struct cg_store *store, const struct cg_copyset_spec *spec);
// Takes away a replica that its group has removed, with all its files. It is not found any more at
// once; done(user, status) follows when that is durable, perhaps inside this call: 0 (also if there
// is no such replica), -EEXIST if it is here as another member, -ENOMEM, or the disk's error: then
// it may be back after a restart.
void cg_store_remove_copyset(struct cg_store *store, uint32_t pool, uint32_t copyset, uint64_t self,
                             void (*done)(void *user, int status), void *user);
uint32_t cg_store_copyset_count(const struct cg_store *store);
// The copysets by position, 0 to cg_store_copyset_count - 1.
struct cg_copyset *cg_store_copyset_at(struct cg_store *store, uint32_t position);

uint32_t cg_copyset_pool(const struct cg_copyset *copyset);
uint32_t cg_copyset_id(const struct cg_copyset *copyset);
// This replica's member id; 0: the folder is of an earlier version and waits for
// cg_store_add_copyset.
uint64_t cg_copyset_member(const struct cg_copyset *copyset);
// Its log, for looking at it and for changes of leader and members; NULL if the member id is 0.
struct cg_copyset_log *cg_copyset_raft(struct cg_copyset *copyset);

// Everything up to this index is in the chunk files.
uint64_t cg_copyset_applied(const struct cg_copyset *copyset);
// As far as has been applied, or is about to be: windows and epochs are as of it.
uint64_t cg_copyset_delivered(const struct cg_copyset *copyset);
uint64_t cg_copyset_epoch(const struct cg_copyset *copyset, uint64_t file_id);
// This replica leads and is ready for mutations.
bool cg_copyset_leads(const struct cg_copyset *copyset);
// The leader's member id, be it this replica's; 0 if it is not known.
uint64_t cg_copyset_leader(const struct cg_copyset *copyset);

// ---- From the other replicas

// A message for `group` (pool << 32 | copyset), see cg_copyset_log_receive. One with entries that
// cannot be applied here is dropped. False: there is no such copyset here.
bool cg_store_receive(struct cg_store *store, uint64_t group, const struct cg_raft_message *message,
                      struct cg_log_entry *const *entries);

// The connection to a chunkserver is lost, or back.
void cg_store_peer(struct cg_store *store, uint32_t chunkserver, bool up);

// ---- Mutations

enum cg_op_kind {
    CG_MUTATE_WRITE,
    CG_MUTATE_COMPARE_AND_WRITE,
    CG_MUTATE_ZERO,
    CG_MUTATE_TRIM,
    CG_MUTATE_DELETE,
    CG_MUTATE_EPOCH,
};

struct cg_mutation {
    enum cg_op_kind kind;
    bool no_hole;    // ZERO: keep the blocks allocated
    bool has_epoch;  // check `epoch` of `file_id` when the entry is applied
    bool has_client; // client_id, sequence and settled_below are set
    bool has_crc;    // `crc` is the CRC-32C of the data, checked already
    struct cg_copyset *copyset;
    uint64_t chunk_id;
    uint64_t file_id;
    uint64_t epoch;
    uint64_t sn;
    uint64_t client_id;
    uint64_t sequence;
    uint64_t settled_below;
    uint32_t offset; // bytes, any alignment; offset + size is inside the chunk
    uint32_t size;
    uint32_t crc;
    // WRITE: `size` bytes at buffer->data + data_offset, where data_offset % 4096 == offset % 4096
    // and the last block is whole inside the buffer. COMPARE_AND_WRITE: the data to write is there,
    // the data to compare with in the `size` bytes before. The store takes a reference and fills up
    // the first and the last block in place.
    struct cg_buffer *buffer;
    uint32_t data_offset;
    // Called once, possibly inside cg_store_mutate. `status` is a cg_status.
    void (*done)(void *user, const struct cg_mutation_result *result);
    void *user;
};

struct cg_mutation_result {
    cg_status status;
    uint64_t index;           // of the log entry; else the copyset's applied index
    uint32_t mismatch_offset; // MISCOMPARE: first differing byte, from `offset` on
    uint64_t leader;          // REDIRECTED: its member id; 0 if it is not known
};

// Copies `mutation`.
void cg_store_mutate(struct cg_store *store, const struct cg_mutation *mutation);

// ---- Reads

enum cg_read_kind {
    CG_READ_DATA,
    CG_READ_STATUS, // which blocks are allocated
    CG_READ_INFO,   // the chunk's sn only
};

struct cg_read_result {
    cg_status status;
    uint64_t index;           // applied
    uint64_t sn;              // the chunk's
    uint64_t leader;          // REDIRECTED: its member id; 0 if it is not known
    const uint8_t *data;      // `size` bytes
    struct cg_buffer *buffer; // holds them; take a reference to keep it
    const uint8_t *allocated; // STATUS: the chunk's bitmap
};

struct cg_query {
    enum cg_read_kind kind;
    struct cg_copyset *copyset;
    uint64_t chunk_id;
    uint32_t offset; // bytes, inside the chunk
    uint32_t size;
    bool local; // what is applied here, whoever leads: may be older than what was acknowledged
    // And local: also soon after a start, before all that may have been applied earlier has been
    // applied again. What power loss tore reads as CRC_FAIL, or as it was, until then.
    bool torn;
    // Called once, possibly inside cg_store_read.
    void (*done)(void *user, const struct cg_read_result *result);
    void *user;
};

void cg_store_read(struct cg_store *store, const struct cg_query *query);

// ---- Local readers (local_map.h)

// Opens the door beside the server at `address`. Returns 0, -errno, or -ENOTSUP without a
// share_folder.
int cg_store_share(struct cg_store *store, const char *address);

// ---- The scrub: reads all blocks in the background and checks them

// Begins a pass for `request`, or after the one that serves another. Requests are numbered upwards;
// one that is known changes nothing. -ENOTSUP if the scrub is off.
int cg_store_scrub(struct cg_store *store, uint64_t request);

// Reads nothing more; what it knows is saved once the store is idle.
void cg_store_scrub_stop(struct cg_store *store);

struct cg_scrub_stats {
    uint64_t rate;
    bool running;
    uint64_t request;   // that the pass under way serves; 0: it was due
    uint64_t queued;    // a request whose pass comes next
    uint64_t completed; // the newest request whose pass is complete
    uint64_t started_s; // since 1970; 0: never
    uint64_t completed_s;
    uint64_t checked;     // blocks, of the pass under way or the last one
    uint64_t skipped;     // written meanwhile
    uint64_t found;       // bad ones that were not known
    uint32_t bad_blocks;  // known now
    bool bad_blocks_more; // than can be listed
};

// The known bad blocks from position `from` on, at most `max`; returns how many were copied.
uint32_t cg_store_bad_blocks(const struct cg_store *store, uint32_t from, struct cg_bad_block *out,
                             uint32_t max);

struct cg_store_stats {
    struct cg_scrub_stats scrub;
    struct cg_wal_stats wal;
    struct cg_log_disk_stats log;
    uint64_t wal_used, wal_capacity;
    uint64_t checkpoints;
    uint64_t capacity_bytes, free_bytes; // what is kept back counts as free
    uint64_t crc_errors;
    uint32_t copysets, dirty_chunks;
    int disk_error;
};
void cg_store_stats(const struct cg_store *store, struct cg_store_stats *out);

#endif
