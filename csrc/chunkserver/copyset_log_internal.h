// SPDX-License-Identifier: BSD-3-Clause
//
// A copyset's log as its parts see it: copyset_log.c (life, events) - copyset_log_step.c (what the
// core asks for is carried out) - copyset_log_settle.c (what the user above is told) -
// copyset_log_read.c - copyset_log_restore.c (start) - copyset_log_state.c (checkpoints, copied
// state) - copyset_log_index.c (where entries are).
//
// Every event goes: log_flush (what was collected comes first) -> a call of the core -> log_step
// (its actions; calls nobody above) -> log_settle (calls them).
#ifndef CG_CHUNKSERVER_COPYSET_LOG_INTERNAL_H
#define CG_CHUNKSERVER_COPYSET_LOG_INTERNAL_H

#include "chunkserver/copyset_log.h"
#include "chunkserver/copyset_log_index.h"
#include "chunkserver/copyset_log_record.h"
#include "chunkserver/log_disk_internal.h"

#define LOG_TERMS_MAX 256U // runs of equal terms in the core's memory

// A configuration and the index of the entry that brought it.
struct log_config {
    struct cg_list node;
    uint64_t index;
    struct cg_raft_config config;
};

// A state record on its way to the disk, or the record of an installation.
struct log_record_append {
    struct cg_wal_append append;
    struct cg_copyset_log *log;
    uint64_t ticket;
    uint8_t meta[CG_RECORD_INSTALL_SIZE_MAX];
};

// A member that copies the state: what is above `index` is kept for it.
struct log_pin {
    uint64_t member;
    uint64_t index;
};

// See copyset_log_move.c.
struct log_move {
    uint64_t next; // entry to be copied; 0: nothing is moved
    uint64_t first;
    uint64_t round; // tells copies of a move that was given up
    unsigned in_flight;
    bool ended; // the MOVED record is on its way
};

// Copies that a replay has found, until the record that makes them count.
struct log_copy {
    uint64_t lsn;
    uint64_t index;
    uint64_t term;
    uint32_t type;
    uint32_t bytes;
    struct cg_raft_config config; // CONFIG
};

struct log_copies {
    struct log_copy *copy;
    size_t count;
    size_t size;
};

struct log_install {
    bool under_way; // entries are not taken
    bool discarded; // nor kept
    bool logging;   // the record is on its way: the log stands still
    int status;     // of an end that is to be told
    bool told_due;
    struct cg_copyset_log_saved state;
    void (*done)(void *user, int status);
    void *user;
    uint64_t lsn; // of the record
};

struct cg_copyset_log {
    struct cg_list bucket; // of the disk's table
    struct cg_log_disk *disk;
    struct cg_copyset_log_options options;
    struct cg_raft *raft;
    struct cg_raft_status status; // of the core after its last event
    bool started;
    bool stopped;
    bool legacy; // no STATE record has been seen in the replay

    struct log_index index;
    struct cg_list configs; // struct log_config, by index; the first is as of the base or before
    unsigned appending;     // records under way in the log on disk

    // Collected during an iteration of the reactor.
    struct cg_deferred work;
    uint32_t proposed; // the last ones of `proposals`: the core does not know them yet
    bool durable_due;  // entries up to durable_index, as of durable_ticket
    uint64_t durable_ticket;
    uint64_t durable_index;
    struct cg_list reads_new;

    struct cg_list proposals; // by index, not delivered
    struct cg_list failed;    // proposals to be told -ESTALE, or why the log ended
    int failed_error;

    // Reads
    uint64_t read_round;         // id of the core's read
    struct cg_list reads_asked;  // by round
    struct cg_list reads_ready;  // by the index that has to be delivered
    struct cg_list reads_failed; // with `index` as -errno

    // Delivery
    uint64_t delivered;
    uint64_t term_start; // the no-op of this server's term as leader
    bool blocked;        // until cg_copyset_log_resume
    bool settling;
    bool settle_again;
    bool role_due; // events.role_changed
    uint64_t lease_end;
    uint64_t copy_due[CG_RAFT_MEMBERS_MAX]; // members for events.copy_state
    uint32_t copy_due_count;

    struct log_pin pin[CG_RAFT_MEMBERS_MAX];
    uint32_t pin_count;
    struct log_move move;
    struct log_copies copies;
    uint64_t copies_lack; // first entry of a move whose copies the replay has not met, and which
                          // must turn out to be void; 0: none
    struct log_install install;
    uint64_t install_index; // of the last INSTALL record
    uint64_t install_lsn;   // 0: a checkpoint contains it
    uint64_t state_lsn;     // of the last STATE record, at least

    // Reading back
    uint64_t want; // the lowest entry that is wanted; 0: none
    bool fetching;
    bool fetch_short;       // of memory
    bool fetch_found;       // the entry that the fetch under way is for
    uint64_t fetch_for;     // its index
    uint64_t fetched_bytes; // by the fetch under way
    struct cg_wal_fetch fetch;
    struct cg_list wanting; // on the disk's list: waits for memory

    struct cg_timer timer;
    uint64_t timer_for; // deadline on the log's clock that it is armed for; UINT64_MAX: none
};

// A message's entries, while the core is stepped with it.
struct log_incoming {
    uint64_t prev_index;
    struct cg_log_entry *const *entries;
};

static inline uint64_t log_now(const struct cg_copyset_log *log) {
    return log_disk_now(log->disk);
}

static inline bool log_leads(const struct cg_copyset_log *log) {
    return log->status.role == CG_RAFT_LEADER;
}

static inline bool log_retired(const struct cg_copyset_log *log) {
    return log->status.role == CG_RAFT_RETIRED;
}

// copyset_log.c
void log_flush(struct cg_copyset_log *log);
void log_defer(struct cg_copyset_log *log);
// Silence, for good; what waits fails with `error`.
void log_retire(struct cg_copyset_log *log, int error);
// Options for the core.
int log_core_create(struct cg_copyset_log *log, const struct cg_raft_restored *restored,
                    struct cg_raft **out);

// copyset_log_step.c
void log_step(struct cg_copyset_log *log, const struct log_incoming *incoming);
// Entries that were wanted are in memory.
void log_fetched(struct cg_copyset_log *log);
// Remembers a configuration; false: out of memory.
bool log_config_push(struct cg_copyset_log *log, uint64_t index,
                     const struct cg_raft_config *config);
void log_config_cut(struct cg_copyset_log *log, uint64_t first);
void log_config_forget(struct cg_copyset_log *log, uint64_t index); // what counted before `index`
// Forgets all; `config` counts from `index` on.
void log_config_reset(struct cg_copyset_log *log, uint64_t index,
                      const struct cg_raft_config *config);
const struct log_config *log_config_as_of(const struct cg_copyset_log *log, uint64_t index);

// copyset_log_settle.c
void log_settle(struct cg_copyset_log *log);
void log_lease(struct cg_copyset_log *log, uint64_t end_ns);

// copyset_log_read.c
void log_reads_flush(struct cg_copyset_log *log);
void log_read_ready(struct cg_copyset_log *log, uint64_t round, uint64_t index);
void log_read_failed(struct cg_copyset_log *log, uint64_t round);
void log_reads_fail(struct cg_copyset_log *log, int error); // all
void log_reads_settle(struct cg_copyset_log *log);

// copyset_log_move.c
// Moves what is not delivered, if it begins before `before_lsn`.
void log_move_from(struct cg_copyset_log *log, uint64_t before_lsn);
void log_move_go_on(struct cg_copyset_log *log);
void log_move_cancel(struct cg_copyset_log *log);

// copyset_log_copies.c
int log_restore_copy(struct cg_copyset_log *log, uint64_t lsn, const struct cg_wal_record *record);
int log_restore_moved(struct cg_copyset_log *log, const struct cg_wal_record *record);
void log_copies_drop(struct cg_copyset_log *log);

// copyset_log_restore.c
// An entry of the log, found at `lsn`.
int log_restore_entry(struct cg_copyset_log *log, uint64_t lsn, uint64_t index, uint32_t bytes,
                      const struct cg_raft_entry *entry);

// copyset_log_state.c
void log_forget(struct cg_copyset_log *log, uint64_t index); // entries up to it are not needed
void log_install_settle(struct cg_copyset_log *log);
void log_install_fail(struct cg_copyset_log *log, int error);

#endif
