// SPDX-License-Identifier: BSD-3-Clause
//
// What the store's parts share. The parts, and who calls whom: store.c (opening) - space.c -
// replay.c (the log at the start) - leadership.c (who may mutate and read) - mutate.c (range locks)
// - merge.c (edge blocks, into the log) - deliver.c (committed entries: decided and answered) -
// apply.c (to chunk files) - read.c - chunk_cache.c (metadata and descriptors in memory) -
// block_read.c (verified reads of blocks) - damage.c (blocks found bad) - copyset.c - member.c -
// checkpoint.c - scrub.c (reads what nobody else reads).
#ifndef CG_CHUNKSERVER_STORE_INTERNAL_H
#define CG_CHUNKSERVER_STORE_INTERNAL_H

#include "base/local_map.h"
#include "chunkserver/bad_blocks.h"
#include "chunkserver/blockmap.h"
#include "chunkserver/chunk_format.h"
#include "chunkserver/copyset_state.h"
#include "chunkserver/dedup.h"
#include "chunkserver/entry.h"
#include "chunkserver/epoch_table.h"
#include "chunkserver/folder.h"
#include "chunkserver/local_share.h"
#include "chunkserver/log_entry.h"
#include "chunkserver/member.h"
#include "chunkserver/reserve.h"
#include "chunkserver/scrub_plan.h"
#include "chunkserver/store.h"

#define CG_COPYSETS_MAX    4096U
#define CG_COPYSET_BUCKETS 1024U
#define CG_CHUNK_BUCKETS   8192U
#define CG_CHUNK_PATH_MAX  64U
#define CG_FLUSHES         2U // chunks that a checkpoint syncs at once
#define CG_ZERO_PIECE      65536U
#define CG_ZERO_PIECES     (CG_CHUNK_SIZE_MAX / CG_ZERO_PIECE)

#define STATUS(name) curve_chunkserver_CHUNK_OP_STATUS_CHUNK_OP_STATUS_##name

// An open chunk file. The chunk holds one reference, every asynchronous operation another, so that
// the descriptor is never closed under an operation.
struct cg_chunk_file {
    int handle;
    uint32_t refs;
};

enum cg_chunk_state {
    CG_CHUNK_FREE,
    CG_CHUNK_LOADING,
    CG_CHUNK_READY,
    CG_CHUNK_BROKEN, // its metadata cannot be read: `load_status` says how requests end
};

struct cg_chunk {
    struct cg_list bucket;
    struct cg_list lru;    // all cached chunks, the one used last in front
    struct cg_list dirty;  // on store->dirty or the checkpoint's list
    struct cg_list opened; // on store->opened while `file` is there
    struct cg_copyset *copyset;
    uint64_t id;
    enum cg_chunk_state state;
    cg_status load_status;
    bool exists;           // the file is there, slot->allocated and slot->crc are valid
    bool recovering;       // loaded for an entry that may have been applied before the start
    bool pumping;          // waiting operations are being looked at
    bool repump;           // and have to be looked at again
    bool flushing;         // a checkpoint is writing its metadata
    uint32_t refs;         // users: while there are any, the chunk stays
    uint32_t generation;   // counts deletions
    uint32_t slot_pending; // see cg_local_slot_begin
    uint32_t changes; // counts applied entries: a read that fails its CRC looks whether it raced
    uint32_t applying_count;
    uint32_t decided;       // of them, wait for their range
    uint64_t sn;            // applied
    uint64_t proposed_sn;   // in the term proposed_term
    uint64_t proposed_term; // of leadership here
    uint64_t file_id;
    uint64_t applied_index;
    uint64_t sequence; // of the newest metadata slot
    unsigned newest;
    bool unsure;       // the newest slot was read, not synced by us: see flush_sure
    uint64_t unsynced; // bytes since writeback was last asked for
    struct cg_chunk_file *file;
    struct cg_local_slot *slot;
    uint32_t slot_index;
    struct cg_list inflight;      // operations that hold ranges
    struct cg_list waiting;       // operations that wait for ranges, first come first served
    struct cg_list unloadable;    // on store->unloadable: its metadata has to be read again
    struct cg_list waiting_reads; // for the metadata, or for committed writes to be applied
    struct cg_file_op load;
    struct iovec load_iov;
    struct cg_buffer *load_buffer;
    struct cg_chunk_file *load_file;
    uint8_t busy[CG_BLOCKMAP_BYTES];     // locked by operations in flight
    uint8_t applying[CG_BLOCKMAP_BYTES]; // committed, not yet in the file
    // Applied, and not known to be on the medium: until the next sync begins, and while it runs.
    uint8_t unsynced_blocks[CG_BLOCKMAP_BYTES];
    uint8_t syncing_blocks[CG_BLOCKMAP_BYTES];
};

struct cg_copyset {
    struct cg_list bucket;
    struct cg_store *store;
    uint32_t pool;
    uint32_t id;
    uint64_t group;
    struct cg_member member;          // self 0: a folder of an earlier version
    struct cg_copyset_log *log;       // NULL likewise
    struct cg_copyset_log_saved base; // what the log begins from
    struct cg_kept_record *kept;      // of a folder of an earlier version: the log's records
    uint32_t kept_count;
    uint64_t applied_index;   // everything up to it is in the chunk files
    uint64_t delivered_index; // decided upon: windows and epochs are as of it
    // Entries up to this one may have been applied before the start, in part, and unsynced; 0: all
    // of them have been applied since.
    uint64_t recovery_end;
    struct cg_list unapplied; // committed operations, in log order
    uint32_t unapplied_count;
    struct cg_list blocked; // on store->blocked: an entry could not be taken
    struct cg_dedup dedup;
    struct cg_epoch_table epochs;
    bool folder_dirty; // files came or went since the folder was last synced
    bool gone;         // removed, durably: nothing is applied any more
    // Leadership.
    uint64_t term_led;   // in which this replica leads and is ready; 0: it is not
    struct cg_list held; // operations that wait for a leader, in order of arrival
    struct cg_list held_reads;
    struct cg_timer hold_timer;
    // A state that is being copied here (copyset_state.h).
    bool paused;
    bool incomplete;
    struct cg_copyset_state found; // at the start, not yet the copyset's
    uint64_t copied_index;         // of a state whose file a checkpoint may remove; 0: none
    struct {
        struct cg_timer timer;
        uint64_t until_ns;
        void (*done)(void *user, int status);
        void *user;
    } pause;
    struct {
        struct cg_file_op op;
        const struct cg_copyset_state *state; // NULL: the mark alone
        uint64_t lsn; // from where the log on disk may have its INSTALL record; 0: it has none
        void (*done)(void *user, int status);
        void *user;
    } install;
    // The running checkpoint's.
    uint8_t *captured;
    size_t captured_length;
    struct cg_copyset_log_saved captured_log;
};

// A verified read of whole blocks.
struct cg_block_read {
    // The caller's. It holds a reference to the chunk.
    struct cg_chunk *chunk;
    uint32_t first; // blocks
    uint32_t count;
    uint8_t *data;                                              // count blocks
    void (*done)(struct cg_block_read *read, cg_status status); // maybe inside cg_block_read_start
    // The result, with status OVERLOAD: an entry that is being applied was in the way; read again
    // when it is through.
    bool raced;
    // block_read.c's.
    struct cg_chunk_file *file;
    struct cg_file_op op;
    struct iovec iov;
    uint32_t filled; // bytes
    uint32_t changes;
    unsigned attempts;
};

enum cg_op_stage {
    CG_OP_WAITING, // for a leader, or its range
    CG_OP_MERGING,
    CG_OP_LOGGING,
    CG_OP_DECIDED, // committed, not proposed here: it waits for its range
    CG_OP_APPLYING,
};

struct cg_op {
    struct cg_list node;      // free, on the chunk's inflight or waiting, on the copyset's held
    struct cg_list unapplied; // on the copyset's list
    struct cg_list attached;  // retries of the same request that came meanwhile, by `node`
    struct cg_list stalled;   // on store->stalled while there is no space to apply
    struct cg_store *store;
    struct cg_mutation request;
    struct cg_chunk *chunk; // NULL for epochs
    enum cg_op_stage stage;
    uint32_t first; // blocks, locked or to be locked
    uint32_t count;
    bool locked;
    bool answered;
    bool effect; // committed and to be applied
    bool applied;
    bool raising; // an epoch: local readers stand still until it is known
    bool mended;  // it has met damage before
    struct cg_mend mend;
    uint64_t term;       // of leadership, when it got its range
    uint64_t held_until; // ns
    uint64_t index;      // of the log entry, once it is logged
    struct cg_entry entry;
    struct cg_log_entry *logged_entry; // holds the payload, once it is logged
    struct cg_log_proposal proposal;
    struct cg_log_read asked; // an answer without an entry waits for the others' word
    cg_status unlogged;       // that answer
    uint32_t mismatch;
    uint8_t *payload; // to be logged
    uint32_t payload_length;
    struct cg_buffer *buffer;  // holds the payload until it is logged
    struct cg_buffer *scratch; // what is merged, or compared with
    struct cg_block_read read;
    unsigned merge_step;
    unsigned apply_step;
    uint32_t apply_done; // bytes of the present step
    uint32_t logged;     // bytes that it takes in the log
    uint32_t claimed;    // of store->claimed_bytes
    bool freeing;        // counted in store->freeing_count
    struct cg_chunk_file *file;
    bool close_there; // a deletion closes the file on the pool thread: we hold the last reference
    struct cg_file_op file_op;
    struct iovec file_iov;
};

struct cg_read {
    struct cg_list node; // free, on the chunk's waiting_reads, or on the copyset's held_reads
    struct cg_store *store;
    struct cg_query query;
    struct cg_chunk *chunk;
    struct cg_buffer *buffer;
    struct cg_block_read blocks;
    struct cg_log_read asked;
    bool mended; // it has met damage before
    struct cg_mend mend;
    uint64_t held_until; // ns
};

struct cg_flush {
    struct cg_store *store;
    struct cg_chunk *chunk; // NULL: free
    struct cg_chunk_file *file;
    struct cg_file_op op;
    struct iovec iov;
    uint32_t generation; // of the chunk when this began
    unsigned slot;
    bool sure; // the slot that stays is durable
    uint32_t written;
    uint8_t *data; // a metadata slot
};

enum cg_checkpoint_stage {
    CG_CHECKPOINT_NONE,
    CG_CHECKPOINT_CAPTURE, // waiting until what was captured is applied
    CG_CHECKPOINT_FLUSH,   // writing and syncing dirty chunks
    CG_CHECKPOINT_FOLDERS, // syncing folders, then the checkpoint file: on a pool thread
};

struct cg_checkpoint {
    enum cg_checkpoint_stage stage;
    uint64_t tail;      // of the log when it began
    uint64_t lsn;       // from which a start has to read the log
    uint64_t delivered; // store->delivered then
    uint32_t copysets;  // how many there were then
    uint32_t settled;   // of those, from the first on, are captured and applied
    bool advancing;
    bool abandoned;        // something is short for the moment: nothing will be recycled
    struct cg_list chunks; // to be flushed
    unsigned flushing;
    struct cg_flush flush[CG_FLUSHES];
    struct cg_file_op op;
    uint8_t *data;
    size_t length;
    char (*folders)[CG_CHUNK_PATH_MAX]; // to be synced
    uint32_t folder_count;
    char (*copied)[CG_CHUNK_PATH_MAX]; // whose copied state is in this checkpoint
    uint32_t copied_count;
};

#define CG_SCRUB_PIECE_BLOCKS 64U // read at once: 256 KiB
#define CG_SCRUB_LIST         1024U

enum cg_scrub_stage {
    CG_SCRUB_PROBE,    // the metadata on the medium is to be read
    CG_SCRUB_LOAD,     // the metadata is to be in memory
    CG_SCRUB_PIECES,   // blocks are to be read
    CG_SCRUB_SUSPECTS, // blocks that did not match are to be read again, under their lock
};

// One reading of the medium, on a pool thread.
struct cg_scrub_read {
    struct cg_file_op op;
    struct cg_disk *disk;
    char path[CG_CHUNK_PATH_MAX];
    uint8_t *data;                        // CG_SCRUB_PIECE_BLOCKS
    uint32_t first;                       // block
    uint32_t count;                       // 0: the metadata
    uint32_t crcs[CG_SCRUB_PIECE_BLOCKS]; // expected
    bool cached;                          // the file system refuses O_DIRECT
    uint64_t began_ns;
    // What came out; op.result is 0 or -errno.
    uint64_t bad; // bit i: block first + i does not match
    enum cg_chunk_slot_state slot_state[2];
    uint64_t slot_sequence[2];
};

// The chunk that is being looked at.
struct cg_scrub_target {
    bool set;
    bool of_pass; // otherwise a block that is known to be bad is looked at again
    enum cg_scrub_stage stage;
    struct cg_copyset *copyset;
    uint64_t chunk_id;
    uint32_t first; // blocks, to be read yet
    uint32_t end;
    bool brought;        // into memory, by us
    unsigned probes;     // of its metadata, not judged yet
    bool quiet;          // it was in memory when the last one began, and nothing was writing it
    uint64_t sequence;   // of its metadata then
    uint32_t generation; // then
    unsigned patience;
    uint64_t suspects; // bit i: block suspects_first + i
    uint32_t suspects_first;
};

struct cg_scrub {
    struct cg_scrub_record record;
    struct cg_scrub_pace pace;
    struct cg_timer timer;
    bool stopped;
    bool active;     // an operation is under way
    uint32_t round;  // of looking at known bad blocks again
    unsigned settle; // steps of the checkpoint before a pass that are left
    uint64_t settle_until_ns;
    struct cg_scrub_target target;
    struct cg_chunk *chunk; // the target, referenced, while it is being read
    struct cg_scrub_read read;
    bool direct_told;
    uint64_t ids[2 * CG_SCRUB_LIST]; // chunks of a copyset, from one id on
    uint32_t id_count;
    uint32_t id_at;
    bool listed; // ids are those of position.group
    bool list_cut;
    struct cg_file_op op; // listing, saving
    bool moved;           // the record changed since it was saved
    uint64_t saved_change;
    uint64_t saved_ns;
    uint8_t *file;
    size_t file_length;
};

struct cg_store {
    struct cg_reactor *reactor;
    struct cg_disk *disk;
    struct cg_buffer_pool *pool;
    struct cg_wal *wal;
    struct cg_log_disk *log_disk;
    struct cg_store_options options;
    struct cg_folder_format format;
    int disk_error;

    struct cg_copyset *copysets[CG_COPYSETS_MAX];
    uint32_t copyset_count;
    struct cg_list copyset_bucket[CG_COPYSET_BUCKETS];
    uint64_t *gone; // groups of removed replicas, of which the log may hold records
    uint32_t gone_count;
    uint32_t removals; // under way

    struct cg_chunk *chunks;
    uint32_t chunks_used; // of `chunks`, taken at least once
    struct cg_local_slot *slots;
    struct cg_local_share *share; // NULL: `slots` is private memory
    struct cg_list chunk_bucket[CG_CHUNK_BUCKETS];
    struct cg_list chunk_lru;
    struct cg_list free_chunks;
    struct cg_list dirty;
    uint32_t dirty_count;
    struct cg_list opened; // chunks with a descriptor, the one used last in front
    uint32_t opened_count;

    struct cg_list free_ops;
    uint32_t ops_made;
    uint32_t ops_active;
    uint32_t ops_parked;  // applied, waiting for an earlier one
    uint32_t ops_decided; // in stage DECIDED
    struct cg_list free_reads;
    uint32_t reads_made;
    uint32_t reads_active;
    uint32_t file_ops; // writebacks, the reading of metadata
    struct cg_list
        to_apply; // answered: applied at the end of the iteration, after the answers went
    struct cg_deferred apply_work;
    struct cg_list blocked; // copysets whose log waits until an operation or a chunk can be had
    struct cg_deferred resume_work;
    bool delivering;           // what is let go of now is no news to the blocked
    struct cg_list unloadable; // chunks: looked at again with the stalled
    struct cg_list stalled;
    uint32_t stalled_count;
    bool stall_told; // in the log, once until there is space again
    struct cg_timer stall_timer;
    struct cg_timer tick;
    uint64_t slow_until_ns; // writes go to the pool threads until then

    uint64_t nonsense_told_ns;
    uint64_t logging_bytes; // proposed here, not yet committed
    uint64_t claimed_bytes; // new blocks of what was proposed and is not in the chunk files yet
    uint32_t freeing_count; // operations that give space back once they are applied
    uint64_t looked_ns;     // when free_bytes was asked for
    uint64_t delivered;     // entries, of all copysets
    uint64_t free_bytes;    // as of the last look, less what was allocated since
    uint64_t total_bytes;
    struct cg_reserve reserve;
    struct cg_file_op reserve_op; // makes it grow
    uint64_t reserve_target;
    bool reserve_growing;
    bool reserve_told; // in the log, once until it is whole again
    uint64_t last_checkpoint_ns;
    uint64_t checkpoints;
    uint64_t saved_delivered; // covered by the last checkpoint
    uint64_t saved_tail;      // of the log, when it began
    uint64_t crc_errors;
    struct cg_checkpoint checkpoint;
    struct cg_bad_blocks bad;
    struct cg_scrub scrub;

    uint32_t zero_crc; // of a block of zeros
    uint8_t *zeros;    // CG_ZERO_PIECE bytes
    struct iovec zero_iov[CG_ZERO_PIECES];
};

// ---- store.c
void cg_store_retire(struct cg_store *store, int error, const char *what);

// ---- space.c
void cg_store_look_at_space(struct cg_store *store);
// Bytes that are free or ours, as of the last look.
uint64_t cg_store_available(const struct cg_store *store);
// Less is free than the operator wants to be kept, or others took it.
bool cg_store_short_of_space(const struct cg_store *store);
// The disk has no space for what cannot wait: true if a piece of the reserve was given back, so
// that it is worth another try.
bool cg_store_make_room(struct cg_store *store);
// Looks at the space and lets the reserve and the log grow or give back accordingly.
void cg_store_tend_space(struct cg_store *store);
// At the end of a start: a spare segment for the log, then the reserve. Drives the reactor. Returns
// 0 or -errno; a full disk is no failure.
int cg_store_settle_space(struct cg_store *store);

// ---- chunk_cache.c
int cg_chunk_cache_create(struct cg_store *store);
void cg_chunk_cache_destroy(struct cg_store *store);
// The chunk, with a reference; NULL if there is no room. It may be LOADING. `recovering`: for an
// entry that may have been applied before the start, in part. So it may be in the file already, and
// a metadata slot may have been torn.
struct cg_chunk *cg_chunk_get(struct cg_copyset *copyset, uint64_t id, bool recovering);
// Reads the metadata of a BROKEN chunk that is in use once more.
void cg_chunk_reload(struct cg_chunk *chunk);
// Drops all chunks of a copyset from memory, as they are. False if some are in use.
bool cg_chunks_forget(struct cg_copyset *copyset);
// The chunk if it is in memory, without a reference.
struct cg_chunk *cg_chunk_find(const struct cg_copyset *copyset, uint64_t id);
void cg_chunk_put(struct cg_chunk *chunk);
// Nobody is expected to need the chunk soon: it leaves before all others, its descriptor now.
void cg_chunk_cool(struct cg_chunk *chunk);
void cg_chunk_path(const struct cg_copyset *copyset, uint64_t id, char out[CG_CHUNK_PATH_MAX]);
// Opens the file if need be; 0 or -errno.
int cg_chunk_open(struct cg_chunk *chunk, bool create);
void cg_chunk_close(struct cg_chunk *chunk);
// Takes the open file away from the chunk, with its reference; NULL if there is none.
struct cg_chunk_file *cg_chunk_detach(struct cg_chunk *chunk);
struct cg_chunk_file *cg_chunk_file_ref(struct cg_chunk *chunk);
void cg_chunk_file_unref(struct cg_store *store, struct cg_chunk_file *file);
void cg_chunk_mark_clean(struct cg_chunk *chunk);
void cg_chunk_mark_dirty(struct cg_chunk *chunk);
// The file is new: empty metadata. The file is gone.
void cg_chunk_created(struct cg_chunk *chunk);
void cg_chunk_deleted(struct cg_chunk *chunk);

// ---- damage.c
// A block, or CG_BAD_SLOT, is bad: `why` is told once. `file_id` 0: not known.
void cg_damage_found(struct cg_copyset *copyset, uint64_t chunk_id, uint64_t file_id,
                     uint32_t block, const char *why);
// The metadata that was read, CG_CHUNK_SLOTS_SIZE bytes, cannot be used.
void cg_damage_slots_found(struct cg_chunk *chunk, const uint8_t *slots);
// Blocks, or a CG_BAD_SLOT, were written or trimmed, or found well.
void cg_damage_mended(struct cg_chunk *chunk, uint32_t first, uint32_t count);
void cg_damage_chunk_gone(struct cg_copyset *copyset, uint64_t chunk_id);

// ---- scrub.c
// Loads what the last process saved, before the log is replayed: replay forgets what it mends.
int cg_scrub_create(struct cg_store *store);
void cg_scrub_start(struct cg_store *store);
void cg_scrub_destroy(struct cg_store *store);

// ---- block_read.c
void cg_block_read_start(struct cg_block_read *read);

// ---- read.c
// Looks again at reads that waited.
void cg_reads_pump(struct cg_chunk *chunk);
void cg_reads_fail(struct cg_chunk *chunk, cg_status status);
void cg_reads_destroy(struct cg_store *store);
// Answers it without data.
void cg_read_end(struct cg_read *read, cg_status status);
// A leader was found: starts the read, or redirects it.
void cg_read_released(struct cg_read *read);

// ---- leadership.c
enum cg_gate {
    CG_GATE_OPEN,     // this replica leads and is ready
    CG_GATE_HOLD,     // there is no leader that is ready, or it is not known
    CG_GATE_REDIRECT, // another one leads
};
enum cg_gate cg_leadership_gate(const struct cg_copyset *copyset);
// Keeps it until there is a leader, or CG_HOLD_NS have passed.
void cg_leadership_hold(struct cg_op *op);
void cg_leadership_hold_read(struct cg_read *read);
void cg_leadership_changed(struct cg_copyset *copyset);
// What a client is told: this disk may have failed, those of the other members have not.
cg_status cg_leadership_status(const struct cg_copyset *copyset, cg_status status);
// Ends what is held.
void cg_leadership_fail(struct cg_copyset *copyset, cg_status status);
void cg_leadership_timer(struct cg_timer *timer);

// Begins anew: damage was mended.
void cg_read_again(struct cg_read *read);

// ---- await_mend.c
// The request has met damage: of blocks, or of the chunk's metadata. True if it waits now until
// that is mended, without its range or chunk; false: it has to end with `status`.
bool cg_op_await_mend(struct cg_op *op, cg_status status, bool metadata);
bool cg_read_await_mend(struct cg_read *read, cg_status status, bool metadata);

// ---- mutate.c
// Whether cg_op_alloc has one without asking for memory, or may ask.
bool cg_op_available(const struct cg_store *store);
struct cg_op *cg_op_alloc(struct cg_store *store);
void cg_op_free(struct cg_op *op);
// Its new blocks are in the chunk file, or will never be; the space it gives back is back.
void cg_op_unclaim(struct cg_op *op);
// Calls `done` of the operation and of those attached to it.
void cg_op_answer(struct cg_op *op, cg_status status);
// A leader was found: goes on with an operation that was held, or redirects it.
void cg_op_released(struct cg_op *op);
// The range is locked, by others or those that came before it.
bool cg_op_must_wait(const struct cg_op *op);
void cg_op_lock(struct cg_op *op);
// Unlocks the range if it is locked and lets go of the chunk.
void cg_op_unlock(struct cg_op *op);
// Starts waiting operations whose range is free now.
void cg_ops_pump(struct cg_chunk *chunk);
// Ends those that are not committed.
void cg_ops_fail_waiting(struct cg_chunk *chunk, cg_status status);
// Local readers stand still while a leader raises an epoch; nothing for other operations.
void cg_op_raise_begin(struct cg_op *op);
void cg_op_raise_end(struct cg_op *op);
// Ends an operation that was not committed; unlocks its range if it holds one.
void cg_op_end(struct cg_op *op, cg_status status, uint32_t mismatch);
void cg_ops_destroy(struct cg_store *store);

// ---- merge.c
// The range is locked: takes the operation up to the log, or ends it.
void cg_op_start(struct cg_op *op);

// ---- deliver.c
// Events of the copyset's log.
bool cg_deliver(void *context, struct cg_log_entry *entry, struct cg_log_proposal *proposal);
void cg_proposal_failed(struct cg_log_proposal *proposal, int error);
void cg_deliver_resume(struct cg_deferred *deferred);
// Something was let go of: copysets whose log waits for that may go on.
void cg_deliver_unblock(struct cg_store *store);
// The chunk's metadata cannot be had now: what is committed waits.
void cg_deliver_unloadable(struct cg_chunk *chunk);
// The disk is retired, or the copyset gone: lets go of what waits for its range.
void cg_deliver_give_up(struct cg_chunk *chunk);
// All that may have been applied before the start has been applied since.
bool cg_copyset_recovered(struct cg_copyset *copyset);

// ---- apply.c
// The range of an operation with effect is locked: it is applied at the end of the iteration, after
// the answers went.
void cg_op_apply(struct cg_op *op);
// Its effect is promised: reads wait from now on.
void cg_op_announce(struct cg_op *op);
// It is applied, or has no effect.
void cg_op_applied(struct cg_op *op);
void cg_apply_work(struct cg_deferred *deferred);
// A step of an operation is through; or it failed: there will be space later, or the disk is done
// for.
void cg_step_done(struct cg_op *op);
void cg_step_failed(struct cg_op *op, int error, const char *what);
void cg_stall_timer(struct cg_timer *timer);
void cg_stall_arm(struct cg_store *store);

// ---- apply_steps.c
void cg_step_write(struct cg_op *op); // the piece of the present step
void cg_step_punch(struct cg_op *op);
void cg_step_delete(struct cg_op *op);
// All its steps are through: the chunk's metadata says so.
void cg_step_note(struct cg_op *op);

// ---- copyset.c
int cg_copyset_create(struct cg_store *store, uint32_t pool, uint32_t id, struct cg_copyset **out);
void cg_copyset_destroy(struct cg_copyset *copyset);
void cg_copyset_folder(const struct cg_copyset *copyset, char out[CG_CHUNK_PATH_MAX]);
int cg_copysets_scan(struct cg_store *store, char *error, size_t error_size);
struct cg_copyset *cg_copyset_of_group(struct cg_store *store, uint64_t group);
// Makes the log of a copyset whose member is known, from `base`.
int cg_copyset_make_log(struct cg_copyset *copyset);
// There was a replica of this group, which was removed.
bool cg_copyset_gone(const struct cg_store *store, uint64_t group);

// ---- remove.c
// A folder that says that its replica was removed: what is left of its files goes.
int cg_remove_files(struct cg_disk *disk, const char *folder);

// ---- copyset_state.c
// At the start, in this order: the folder was found; the checkpoint restored; an INSTALL record
// seen in the log; the log started. The first and the third return 0 or -errno.
int cg_copyset_state_found(struct cg_copyset *copyset);
void cg_copyset_state_restored(struct cg_copyset *copyset);
int cg_copyset_state_seen(struct cg_copyset *copyset, uint64_t index);
void cg_copyset_state_started(struct cg_copyset *copyset);
// What a checkpoint saves of the log while the copyset is incomplete.
void cg_copyset_capture_incomplete(struct cg_copyset *copyset, struct cg_copyset_log_saved *out);

// ---- checkpoint.c
// Windows and epochs, as a checkpoint has them, into a copyset without any. 0, -EBADMSG, -ENOMEM.
int cg_copyset_decode(struct cg_copyset *copyset, const uint8_t *state, size_t length);
int cg_checkpoint_create(struct cg_store *store);
void cg_checkpoint_destroy(struct cg_store *store);
// An entry was delivered: is it time for one?
void cg_checkpoint_delivered(struct cg_store *store);
// Ends one that has written nothing yet.
void cg_checkpoint_cancel(struct cg_store *store);
void cg_checkpoint_advance(struct cg_store *store);

// ---- checkpoint_flush.c
// Takes `chunk` off the dirty list. False if it cannot be opened now.
bool cg_flush_start(struct cg_flush *flush, struct cg_chunk *chunk);

// ---- checkpoint_file.c
// Encodes what was captured into checkpoint.data. 0 or -ENOMEM.
int cg_checkpoint_build(struct cg_store *store);
int cg_checkpoint_restore(struct cg_store *store, uint64_t *lsn, char *error, size_t error_size);

// ---- replay.c
// Opens the log and gives each copyset's its records.
int cg_store_replay(struct cg_store *store, uint64_t from_lsn, char *error, size_t error_size);
// Gives the log what replay kept, for a folder that has a member now.
int cg_replay_kept(struct cg_copyset *copyset);
// Where the log has to be kept from for it; UINT64_MAX: nowhere.
uint64_t cg_replay_kept_lsn(const struct cg_copyset *copyset);
void cg_replay_forget(struct cg_copyset *copyset);

#endif
