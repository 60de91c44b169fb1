// SPDX-License-Identifier: BSD-3-Clause
//
// A cluster of raft cores in virtual time, all from one seed: network, disks, clocks, clients and
// an operator, everything that can go wrong with them, and the checks. One step is one event: a
// message delivered, a timer, a disk write done, a fault, a request.
//
// Two modes. In core mode a node is a core driven by the simulator itself, over a log that is a
// list: millions of steps a second. In log mode (--log) it is the chunkserver's own code for a
// copyset's log, over the chunkserver's own log on a simulated disk (server.h).
//
// Files: sim.c (queue of events, one run), plan.c (what a seed means), network.c, storage.c (a log
// that loses what was not synced), node.c (drives a core as a chunkserver would), server*.c (log
// mode), process.c and memory.h (its memory), machine.c (blocks and request windows), client.c,
// fault.c, check.c (invariants after every step), linear.c (histories), mutations.c, shrink.c,
// main.c.
//
// A run ends by sim_fail (long jump) or when its steps are done. Memory is one struct, reused.
#ifndef CG_TESTS_SIM_H
#define CG_TESTS_SIM_H

#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>

#include "chunkserver/dedup.h"
#include "raft/mutation.h"
#include "raft/raft.h"

#define SIM_NODES    10U // ids are 1 .. SIM_NODES; a removed one never comes back
#define SIM_CLIENTS  3U
#define SIM_BLOCKS   4U
#define SIM_INDEX    2048U // entries of a run
#define SIM_TERMS    2048U
#define SIM_OPS      1024U // operations of a client in a run
#define SIM_FAULTS   1024U
#define SIM_BATCH    256U  // entries of a message
#define SIM_MESSAGES 2048U // on their way at once
#define SIM_EVENTS   8192U
#define SIM_RECORDS  6000U // of a log
#define SIM_READS    32U
#define SIM_US       UINT64_C(1000)
#define SIM_MS       UINT64_C(1000000)

// Defects outside the core, in the code that drives it.
enum sim_mutation {
    SIM_MUTATION_NONE,
    SIM_MUTATION_NO_DEDUP,
    SIM_MUTATION_DURABLE_BEFORE_SYNC,
    SIM_MUTATION_RECYCLE_BEFORE_SYNC,
    SIM_MUTATION_CHECKPOINT_WITHOUT_BLOCKS,
    SIM_MUTATION_WINDOW_NOT_SAVED,
    SIM_MUTATION_ROT_TAKEN_FOR_TORN_TAIL,
    SIM_MUTATION_READ_BEFORE_APPLIED,
    SIM_MUTATION_VOTE_FORGOTTEN_BY_CHECKPOINT,
    SIM_MUTATION_FETCHED_NOT_TOLD,
    SIM_MUTATION_CLOCKS_BEYOND_BOUND,
    SIM_MUTATION_VOTE_NOT_SYNCED,
    SIM_MUTATION_STATE_RECYCLED,
};

// ---- Plan

enum sim_fault_kind {
    SIM_CRASH,
    SIM_CRASH_LEADER,
    SIM_CRASH_ALL, // the power of the rack
    SIM_CUT_ONE_WAY,
    SIM_SPLIT,
    SIM_ISOLATE_LEADER,
    SIM_DEAFEN_LEADER, // it speaks and does not hear
    SIM_HEAL,
    SIM_SLOW_DISK,
    SIM_PAUSE,
    SIM_CLOCKS,
    SIM_TRANSFER,
    SIM_GROW,
    SIM_SHRINK,
    SIM_ROT,
    SIM_DISK_ERROR,
    SIM_FAULT_KINDS,
};

struct sim_profile {
    uint32_t voters;             // at the beginning
    uint32_t loss_ppm, copy_ppm; // of messages
    uint64_t delay_ns;           // mean
    uint32_t late_ppm;           // messages that take a hundred times as long
    uint64_t disk_ns;
    uint64_t fault_ns; // mean time between faults
    uint64_t think_ns;
    uint64_t patience_ns; // of clients
    uint64_t checkpoint_ns;
    uint64_t quiesce_ns;
    uint32_t drift_ppm; // of clocks
    uint32_t bound_ppm; // what the cores are told
    uint64_t election_ns;
    uint32_t message_entries, message_kib; // caps of the cores
    bool reluctant;          // log mode: the machine does not always take what is committed
    uint32_t memory_entries; // applied ones that are in memory; 0: all
    uint32_t weight[SIM_FAULT_KINDS]; // of the kinds of faults
};

struct sim_options {
    uint64_t seed;
    uint32_t steps;
    bool log; // mode
    bool trace;
    bool no_loss, no_copies, no_late, no_drift; // for shrinking
    bool wild_clocks; // beyond the bound: what reads return is not looked at
    bool drop_fault[SIM_FAULTS];
    bool drop_op[SIM_CLIENTS][SIM_OPS];
    enum sim_mutation mutation;
    enum cg_raft_mutation core_mutation;
};

// ---- What is replicated

struct sim_entry {
    uint64_t index, term, prev_term;
    enum cg_raft_entry_type type;
    struct cg_raft_config config;
    uint32_t client; // DATA
    uint32_t block;
    uint64_t sequence, settled_below, value;
    uint32_t other; // log mode: entry of the pool with the same index, counted from 1; 0: none
};

struct sim_checkpoint {
    bool valid;
    uint64_t index, term;
    struct cg_raft_config config;
    uint64_t value[SIM_BLOCKS], value_index[SIM_BLOCKS];
    uint32_t window_length;
    uint8_t window[SIM_CLIENTS * (24 + 8 * 64) + 4];
};

// ---- Network

enum sim_mail_kind { SIM_RAFT, SIM_SNAPSHOT, SIM_SNAPSHOT_DONE, SIM_REQUEST, SIM_REPLY };

struct sim_request {
    uint32_t client;
    uint32_t op; // of the client; its sequence
    uint32_t attempt;
    bool read;
    uint32_t block;
    uint64_t value, settled_below;
};

struct sim_mail {
    enum sim_mail_kind kind;
    uint64_t from, to; // nodes; 0: a client
    struct cg_raft_message raft;
    const struct sim_entry *entry[SIM_BATCH];
    struct sim_checkpoint snapshot;
    struct sim_request request;
    bool ok;
    uint64_t value;
    uint32_t next_free;
};

// ---- Nodes

enum sim_record_kind {
    SIM_RECORD_STATE,
    SIM_RECORD_ENTRY,
    SIM_RECORD_INSTALL,
    SIM_RECORD_COPY,  // of the chunkserver's own log only (copyset_log_move.c)
    SIM_RECORD_MOVED, // likewise; `vote` is the first index
    SIM_RECORD_OTHER, // likewise; of another group
};

struct sim_record {
    enum sim_record_kind kind;
    bool rotten;
    uint64_t ticket, index, term, vote;
    const struct sim_entry *entry;
    bool voids; // INSTALL: nothing of the log before it counts
};

// What is on the medium, as far as checks and recovery want to know.
struct sim_disk {
    struct sim_record record[SIM_RECORDS];
    uint32_t count, durable, writing; // records; those below `writing` are in the write under way
    bool busy;
    uint64_t slow_until;
    struct sim_checkpoint checkpoint; // durable, whole
    struct sim_checkpoint pending;    // being written
    bool checkpointing;
    struct sim_checkpoint install;
    struct sim_checkpoint installed; // log mode: copied state that counts
    uint64_t install_from;
    bool installing;
    // Blocks as on the medium; the machine holds them as read
    uint64_t value[SIM_BLOCKS], value_index[SIM_BLOCKS];
    // The durable log, for the checks
    uint64_t term, vote, base, last;
    uint64_t term_at[SIM_INDEX];
};

struct sim_wait {
    bool used;
    bool confirmed;
    uint64_t index;
    uint64_t committed; // anywhere, when the read arrived
    struct sim_request request;
};

struct sim_node {
    struct sim *sim;
    uint64_t id;
    bool exists, up;
    bool failing, dead;        // its disk will be lost; is
    struct sim_server *server; // log mode
    uint32_t incarnation;
    uint64_t paused_until;
    uint64_t clock_base, clock_true; // the clock showed `base` at true time `true`
    int64_t rate_ppm;
    uint64_t timer_at; // true time of the earliest timer queued
    struct cg_raft *raft;
    const struct sim_entry *log[SIM_INDEX];
    uint64_t log_first; // entries below may be gone
    uint64_t commit;    // reported
    // Entries that are not in memory, for want of room or since a restart, are read back first
    uint64_t cold_to, warm_from, warm_to;
    bool fetching;
    uint64_t fetch_from;
    // What it has promised, for the checks: its last vote, and when (on its clock) it heard the
    // leader whose heartbeat it answered
    uint64_t vote_term, vote_for, heard_clock, promised_clock;
    // What others told it: who would elect it in which term, that it shall campaign, and as leader
    // when it heard of them (on its clock)
    uint64_t would_elect[SIM_NODES + 1], told_term, heard_from[SIM_NODES + 1];
    uint64_t alone_since; // as leader, on its clock; 0: it is not
    // The machine
    uint64_t applied, applied_term;
    struct cg_raft_config applied_config;
    uint64_t value[SIM_BLOCKS], value_index[SIM_BLOCKS];
    struct cg_dedup window;
    struct sim_wait read[SIM_READS];
    struct sim_request proposal[SIM_INDEX]; // answered when applied
    uint64_t proposal_term[SIM_INDEX];
    struct sim_disk disk;
};

// ---- Clients

struct sim_op {
    bool read, done, given_up;
    uint32_t block;
    uint64_t value;
    uint64_t invoked, returned; // steps
};

struct sim_client {
    uint32_t next; // op
    bool busy;
    uint32_t attempt;
    uint64_t target;
    uint64_t deadline;
    struct sim_op op[SIM_OPS];
};

// ---- The whole

enum sim_event_kind {
    SIM_DELIVER,
    SIM_TIMER,
    SIM_DISK_DONE,
    SIM_CHECKPOINT_DUE,
    SIM_CHECKPOINT_DONE,
    SIM_INSTALL_READY,
    SIM_RESTART,
    SIM_SNAPSHOT_TIMEOUT,
    SIM_FETCHED,
    SIM_RESUME,
    SIM_CLIENT_START,
    SIM_CLIENT_RETRY,
    SIM_FAULT,
};

struct sim_event {
    uint64_t at, order;
    enum sim_event_kind kind;
    uint64_t node;
    uint32_t incarnation;
    uint32_t number;
};

struct sim {
    struct sim_options options;
    struct sim_profile profile;
    jmp_buf escape;
    char failure[256];
    const char *failure_kind; // its format
    uint64_t now;
    uint64_t order;
    uint32_t step;
    bool calm;             // the end: faults are over, everything must settle
    uint64_t settled_term; // what leads when it has: nobody disturbs it any more
    uint64_t quiet_at;     // no new operations from then on
    uint32_t faults, messages;
    uint64_t random; // for what needs no number of its own
    struct sim_event event[SIM_EVENTS];
    uint32_t event_count;
    uint32_t mail_free;
    bool cut[SIM_NODES + 1][SIM_NODES + 1]; // from, to
    struct sim_node node[SIM_NODES + 1];    // by id
    uint32_t nodes_made;
    struct sim_client client[SIM_CLIENTS];
    struct sim_entry pool[SIM_INDEX * 2];
    uint32_t pool_used;
    // What is known of the whole, for the checks
    uint64_t leader_of[SIM_TERMS];
    const struct sim_entry *committed[SIM_INDEX];
    uint64_t committed_last, committed_term;
    uint32_t entry_at[SIM_INDEX]; // log mode: entry of the pool by index, counted from 1
    // At the end, and never cleared
    struct sim_mail mail[SIM_MESSAGES];
};

// What log mode has done, over all runs.
struct sim_counts {
    uint64_t records, replays, fetches, recycled, installed, resumed, damaged, failed;
};
extern struct sim_counts sim_counts;

void sim_run(struct sim *sim,
             const struct sim_options *options); // `failure` is empty if it is well
void sim_fail(struct sim *sim, const char *format, ...)
    __attribute__((noreturn, format(printf, 2, 3)));
void sim_trace(struct sim *sim, const char *format, ...) __attribute__((format(printf, 2, 3)));
void sim_push(struct sim *sim, uint64_t at, enum sim_event_kind kind, uint64_t node,
              uint32_t number);
uint64_t sim_random(struct sim *sim);
uint64_t sim_below(struct sim *sim, uint64_t bound); // 0 .. bound - 1
uint64_t sim_spread(struct sim *sim, uint64_t mean); // now and then much longer
uint64_t sim_mix(uint64_t a, uint64_t b);

// plan.c
void sim_plan(struct sim *sim);

// network.c
struct sim_mail *sim_compose(struct sim *sim);
void sim_send(struct sim *sim, struct sim_mail *mail); // takes it over
void sim_deliver(struct sim *sim, uint32_t number);

// node.c
struct sim_node *sim_node_make(struct sim *sim, const struct cg_raft_config *config);
void sim_node_start(struct sim *sim, struct sim_node *node);
void sim_node_crash(struct sim *sim, struct sim_node *node);
void sim_node_timer(struct sim *sim, struct sim_node *node);
void sim_node_drain(struct sim *sim, struct sim_node *node, const struct sim_mail *mail);
void sim_node_receive(struct sim *sim, struct sim_node *node, const struct sim_mail *mail);
void sim_node_durable(struct sim *sim, struct sim_node *node, uint64_t ticket, uint64_t index);
void sim_node_installed(struct sim *sim, struct sim_node *node);
void sim_node_arm(struct sim *sim, struct sim_node *node, uint64_t deadline); // on its clock
void sim_send_snapshot(struct sim *sim, struct sim_node *node, uint64_t peer);
void sim_trace_role(struct sim *sim, const struct sim_node *node);
uint64_t sim_node_clock(const struct sim *sim, const struct sim_node *node);
void sim_node_set_rate(struct sim *sim, struct sim_node *node, int64_t ppm);
void sim_node_settle_reads(struct sim *sim, struct sim_node *node);
void sim_snapshot_timeout(struct sim *sim, struct sim_node *node, uint64_t peer);
void sim_fetched(struct sim *sim, struct sim_node *node);
void sim_node_wake(struct sim *sim, struct sim_node *node);
void sim_install_ready(struct sim *sim, struct sim_node *node);
struct sim_entry *sim_entry_make(struct sim *sim);
bool sim_node_leads(const struct sim_node *node);

// storage.c
void sim_storage_append(struct sim *sim, struct sim_node *node, const struct sim_record *record);
void sim_storage_done(struct sim *sim, struct sim_node *node);
void sim_storage_crash(struct sim *sim, struct sim_node *node);
// Creates the node's core from what survived. False: the disk is damaged.
bool sim_storage_recover(struct sim *sim, struct sim_node *node,
                         const struct cg_raft_options *options);
void sim_blocks_crash(struct sim *sim, struct sim_node *node);
// What the log begins with: the checkpoint or copied state.
const struct sim_checkpoint *sim_disk_base(const struct sim_disk *disk);
void sim_storage_rot(struct sim *sim, struct sim_node *node);
void sim_storage_recycle(struct sim *sim, struct sim_node *node, uint64_t index);

// machine.c
void sim_machine_load(struct sim *sim, struct sim_node *node);
void sim_machine_take(struct sim *sim, struct sim_node *node, uint64_t index); // the next one
void sim_machine_apply(struct sim *sim, struct sim_node *node);
void sim_machine_capture(struct sim *sim, struct sim_node *node, struct sim_checkpoint *out);
void sim_take_newer(uint64_t *value, uint64_t *value_index, const struct sim_checkpoint *from);
void sim_checkpoint_start(struct sim *sim, struct sim_node *node);
void sim_checkpoint_done(struct sim *sim, struct sim_node *node);

// client.c
void sim_client_start(struct sim *sim, uint32_t client);
void sim_client_retry(struct sim *sim, uint32_t client, uint32_t attempt);
void sim_client_reply(struct sim *sim, const struct sim_mail *mail);
void sim_flood(struct sim *sim, struct sim_node *node, uint32_t count);
void sim_serve(struct sim *sim, struct sim_node *node, const struct sim_request *request);
void sim_answer(struct sim *sim, struct sim_node *node, const struct sim_request *request, bool ok,
                uint64_t value);

// fault.c
void sim_fault(struct sim *sim, uint32_t number);
void sim_heal(struct sim *sim);

// check.c
void sim_check_start(struct sim *sim, const struct sim_node *node);
// After a message; `before`: it came.
void sim_check_vote(struct sim *sim, const struct sim_node *node,
                    const struct cg_raft_message *message, const struct cg_raft_status *before);
void sim_check_send(struct sim *sim, struct sim_node *node, const struct cg_raft_message *message);
void sim_check_role(struct sim *sim, struct sim_node *node);
void sim_check_heard(struct sim *sim, struct sim_node *node, const struct cg_raft_message *message);
void sim_check_quorum(struct sim *sim, struct sim_node *node);
void sim_check_append(struct sim *sim, const struct sim_node *node, uint64_t index);
void sim_check_commit(struct sim *sim, const struct sim_node *node, uint64_t index);
void sim_check_apply(struct sim *sim, const struct sim_node *node, uint64_t index);
void sim_check_read(struct sim *sim, const struct sim_node *node, const struct sim_wait *wait);
void sim_check_settling(struct sim *sim); // some time before the end
// Returns who leads at the end; NULL: nobody can.
const struct sim_node *sim_check_settled(struct sim *sim);

// linear.c
void sim_check_histories(struct sim *sim, const struct sim_node *last);

// server*.c: what log mode does instead
void server_start(struct sim *sim, struct sim_node *node);
void server_free(struct sim_server *server);
void server_crash(struct sim *sim, struct sim_node *node);
void server_timer(struct sim *sim, struct sim_node *node);
void server_disk_step(struct sim_node *node);
void server_wake(struct sim *sim, struct sim_node *node);
void server_resume(struct sim_node *node);
void server_receive_raft(struct sim *sim, struct sim_node *node, const struct sim_mail *mail);
void server_copied(struct sim_node *node, uint64_t member, uint64_t index, bool ok);
void server_check_local(struct sim *sim, const struct sim_node *node, uint64_t committed);
void server_check_neighbour(struct sim *sim, const struct sim_node *node); // at the end
void server_write(struct sim *sim, struct sim_node *node, const struct sim_request *request);
void server_flood(struct sim *sim, struct sim_node *node, uint32_t count);
void server_read(struct sim *sim, struct sim_node *node, const struct sim_request *request);
int server_change(struct sim_node *node, enum cg_raft_change kind, uint64_t id);
int server_transfer(struct sim_node *node, uint64_t id);
void server_checkpoint_due(struct sim *sim, struct sim_node *node);
void server_checkpoint_done(struct sim *sim, struct sim_node *node);
void server_receive_snapshot(struct sim *sim, struct sim_node *node, const struct sim_mail *mail);
void server_install_ready(struct sim *sim, struct sim_node *node);
bool server_rot(struct sim *sim,
                struct sim_node *node); // false: nothing there that must be noticed
void server_lose_disk(struct sim *sim, struct sim_node *node);

// mutations.c
struct sim_defect {
    const char *name;
    const char *what;
    enum cg_raft_mutation core;
    enum sim_mutation sim;
    bool in_core, in_log; // modes that can find it
};
extern const struct sim_defect sim_defects[];
extern const uint32_t sim_defect_count;

// shrink.c: makes `options`, which fail, as small as it can, and prints how to run them.
void sim_shrink(struct sim *sim, struct sim_options *options);

#endif
