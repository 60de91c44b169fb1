// SPDX-License-Identifier: BSD-3-Clause
//
// What the parts of catchup share: catchup.c (life, the timer) - catchup_call.c (asking another
// replica) - catchup_serve.c (answering) - catchup_lead.c (a leader and the members that need its
// state) - catchup_receive.c (a replica being copied here) - catchup_pull.c (one chunk) -
// catchup_mend.c (damage). Decisions are in catchup_plan.h, bytes in catchup_wire.h.
#ifndef CG_CHUNKSERVER_CATCHUP_INTERNAL_H
#define CG_CHUNKSERVER_CATCHUP_INTERNAL_H

#include "base/clock.h"
#include "chunkserver/catchup.h"
#include "chunkserver/catchup_file.h"
#include "chunkserver/catchup_plan.h"
#include "chunkserver/catchup_wire.h"
#include "chunkserver/copyset_state.h"
#include "chunkserver/store_internal.h"
#include "gateway/proto/catchup.pb.h"
#include "rpc/channel.h"

// Received at once. One after the other: what the log has to keep for each, and what is to be sent
// again after it, is as short as can be.
#define CG_COPIES_MAX       1U
#define CG_COPY_LEADS_MAX   8U // sent at once
#define CG_COPY_PIECES      4U // requests under way for one chunk
#define CG_COPY_RETRY_NS    CG_NS_PER_S
#define CG_COPY_DAMAGED_MAX 3U // retries of a damaged block, for its owner to mend it

#define CG_COPY(name) copygate_CopyStatus_COPY_##name

// ---- catchup_call.c

enum cg_copy_method {
    CG_COPY_STATE,
    CG_COPY_BEGIN,
    CG_COPY_BYTES,
    CG_COPY_CHUNKS,
    CG_COPY_BLOCKS,
    CG_COPY_END,
};

// A question to another replica. Zero it before the first use.
struct cg_copy_call {
    // The caller's: the request's fields but for group, from and to; where the attachment goes.
    copygate_CopyRequest request;
    struct iovec iov[2];
    int iovcnt;
    void (*done)(struct cg_copy_call *call);
    // The result: 0 and a reply, or -errno and none.
    int status;
    copygate_CopyReply reply;
    uint32_t received; // bytes of attachment
    // catchup_call.c's
    struct cg_catchup *catchup;
    bool active;
    struct cg_channel *channel; // NULL: there is none
    struct cg_rpc_call rpc;
    struct cg_deferred unreachable;
};

// Asks member `to` of the copyset; `done` is called later.
void cg_copy_ask(struct cg_catchup *catchup, const struct cg_copyset *copyset, uint64_t to,
                 enum cg_copy_method method, struct cg_copy_call *call);
// `done` is called inside, unless it was before.
void cg_copy_cancel(struct cg_copy_call *call);

// ---- catchup_pull.c

struct cg_chunk_pull;

struct cg_copy_piece {
    struct cg_chunk_pull *pull;
    bool busy;
    uint32_t first; // what it asks for next
    uint32_t count;
    uint32_t end; // behind what it is to fetch
    unsigned damaged;
    bool accept_damaged;
    struct cg_timer timer;
    struct cg_copy_call call;
    uint8_t head[CG_COPY_HEAD_MAX];
    struct cg_copy_head got;
    struct cg_buffer *buffer;
    struct cg_file_op op;
};

// Makes a chunk file anew from another replica's, and puts it in place.
struct cg_chunk_pull {
    // The caller's. The chunk must not be in memory, nor come there until `done`.
    struct cg_catchup *catchup;
    struct cg_copyset *copyset;
    uint64_t source;    // member
    uint64_t copying;   // its number for the copying that the chunk is a part of; 0: none
    uint64_t min_index; // the source must have applied this much
    enum cg_copy_urgency urgency;
    struct cg_copy_chunk info; // as the source tells it, before any block is read
    // 0; -EAGAIN: the source cannot now; -ENOENT: it has no such chunk (any more); -ENOSPC;
    // -ECANCELED; or why it could not be reached. The file is as it was then.
    void (*done)(struct cg_chunk_pull *pull, int status);
    void *user;
    // catchup_pull.c's
    bool active;
    bool stopping;
    int status;
    uint32_t next;
    unsigned busy;
    uint32_t damaged; // blocks that the source's copy has damaged, too
    struct cg_copy_file file;
    struct cg_file_op op;
    struct cg_copy_piece piece[CG_COPY_PIECES];
    uint8_t allocated[CG_BLOCKMAP_BYTES];
    uint8_t bad[CG_BLOCKMAP_BYTES];
    uint32_t crc[CG_BLOCKMAP_BLOCKS];
};

int cg_chunk_pull_init(struct cg_chunk_pull *pull, struct cg_catchup *catchup);
void cg_chunk_pull_free(struct cg_chunk_pull *pull);
void cg_chunk_pull_start(struct cg_chunk_pull *pull);
// Ends with -ECANCELED soon, unless it is as good as done.
void cg_chunk_pull_cancel(struct cg_chunk_pull *pull);

// ---- catchup_receive.c

enum cg_copy_stage {
    CG_COPY_IDLE,    // until a place is free, or the time has come to try again
    CG_COPY_PAUSING, // the store lets go of the copyset
    CG_COPY_ASKING,
    CG_COPY_MARKING,
    CG_COPY_LISTING,
    CG_COPY_WALKING, // pages of chunks, and the chunks
    CG_COPY_LOADING, // the replicated state
    CG_COPY_SYNCING,
    CG_COPY_INSTALLING,
};

// A chunk that was copied by an attempt that failed later.
struct cg_copy_known {
    uint64_t id;
    uint64_t applied_index;
};

// A replica whose state is being copied here.
struct cg_copy {
    struct cg_list node; // catchup->copies
    struct cg_catchup *catchup;
    struct cg_copyset *copyset;
    enum cg_copy_stage stage;
    bool working; // has one of the places
    bool paused;
    bool begun; // the log takes no entries, by our doing
    bool forgotten;
    bool done;  // it stays for a while, to see whether it was fast enough
    bool again; // it is wanted once more
    enum cg_copy_urgency urgency;
    uint64_t due_ns;
    uint64_t began_ns;
    uint64_t bytes_before; // catchup->stats.received_bytes when it began
    bool told;             // why it fails
    uint64_t source;
    uint64_t copying; // the leader's number for it
    struct cg_copyset_state state;
    uint32_t state_length;
    uint32_t state_got;
    uint32_t total;    // positions in the leader's list
    uint32_t position; // of the next page
    struct cg_copy_walk walk;
    uint64_t *ours;
    uint32_t our_count;
    uint32_t our_capacity;
    struct cg_copy_chunk *page;  // CG_COPY_PAGE
    uint8_t *records;            // as they arrive
    uint8_t *slots;              // of a chunk here, CG_CHUNK_SLOTS_SIZE
    uint64_t target;             // the chunk being looked at
    struct cg_copy_known *known; // ascending
    uint32_t known_count;
    uint32_t known_at;
    struct cg_copy_known *fresh; // of this attempt
    uint32_t fresh_count;
    struct cg_chunk_pull *pull;
    struct cg_copy_call call;
    struct cg_file_op op;
    int64_t own_applied; // of the chunk being compared; negative: none
};

// The copyset's state is to be copied, unless it is being copied already.
void cg_copy_receive(struct cg_catchup *catchup, struct cg_copyset *copyset);
// Starts what is due.
void cg_copies_tick(struct cg_catchup *catchup);
void cg_copies_stop(struct cg_catchup *catchup);
// Ends it soon; a half-copied state stays marked.
void cg_copy_forget(struct cg_copy *copy);
// Chunks from the names in a copyset's folder: notes the id of one, sorts them.
int cg_copy_note_chunk(const char *name, uint64_t **ids, uint32_t *count, uint32_t *capacity);
void cg_copy_sort_ids(uint64_t *ids, uint32_t count);
struct cg_copy *cg_copy_of(const struct cg_catchup *catchup, const struct cg_copyset *copyset);
void cg_copy_free(struct cg_copy *copy);

// ---- catchup_lead.c

// A member that needs this leader's state, and has not asked for it yet.
struct cg_copy_want {
    struct cg_list node;
    struct cg_catchup *catchup;
    struct cg_copyset *copyset;
    uint64_t member;
    uint64_t due_ns; // when it is given up
    bool over;
    struct cg_copy_call call;
};

// A member that copies this leader's state.
struct cg_copy_lead {
    struct cg_list node;
    struct cg_catchup *catchup;
    struct cg_copyset *copyset;
    uint64_t member;
    uint64_t number;
    uint64_t heard_ns;
    struct cg_copyset_state state;
    uint64_t *ids; // all chunks, ascending
    uint32_t id_count;
    uint32_t id_capacity;
    bool over;
    unsigned uses;                       // it is freed when it is over and nobody uses it
    struct cg_server_request *beginning; // not answered yet
    struct cg_timer timer;
    uint64_t began_ns;
    struct cg_file_op op;
};

void cg_leads_tick(struct cg_catchup *catchup);
// Ends what goes on with a copyset; NULL: with all.
void cg_leads_stop(struct cg_catchup *catchup, const struct cg_copyset *copyset);
// The copying with this number; NULL if it is not there or over.
struct cg_copy_lead *cg_copy_lead_of(const struct cg_catchup *catchup,
                                     const struct cg_copyset *copyset, uint64_t number,
                                     uint64_t member);
// Answers a CopyBegin.
void cg_copy_lead_begin(struct cg_catchup *catchup, struct cg_copyset *copyset,
                        struct cg_server_request *request, uint64_t member);
void cg_copy_lead_end(struct cg_copy_lead *lead, bool complete);
// Drops a use.
void cg_copy_lead_release(struct cg_copy_lead *lead);

// ---- catchup_mend.c

// A bad block that is being fetched.
struct cg_mender {
    struct cg_list node; // catchup->menders
    struct cg_catchup *catchup;
    struct cg_copyset *copyset;
    uint64_t chunk_id;
    uint32_t block;        // or CG_BAD_SLOT
    bool whole;            // the chunk cannot be loaded: all of it is copied
    bool gone;             // and the others have no such chunk any more
    bool locked;           // block
    struct cg_chunk *held; // the chunk, while its file is replaced
    bool forgotten;
    int status;
    uint64_t began_ns;
    struct cg_chunk *chunk;
    struct cg_list waiting; // cg_mend, by node
    struct cg_raft_config members;
    uint32_t member_at; // whose turn it is
    uint64_t index;     // what they must have applied
    struct cg_timer timer;
    struct cg_copy_call call;
    uint8_t head[8 + 8];
    uint8_t record[CG_COPY_RECORD_SIZE];
    struct cg_buffer *buffer;
    struct iovec iov;
    struct cg_chunk_file *file;
    struct cg_file_op op;
    struct cg_chunk_pull *pull;
};

void cg_menders_tick(struct cg_catchup *catchup);
void cg_menders_stop(struct cg_catchup *catchup, const struct cg_copyset *copyset);

// ---- catchup_serve.c

// Looks at requests for blocks that wait for their turn.
void cg_serve_pump(struct cg_catchup *catchup);
void cg_serve_timer(struct cg_timer *timer);

// ---- catchup.c

struct cg_catchup {
    struct cg_catchup_options options;
    struct cg_store *store; // NULL: not started
    struct cg_copy_pace pace;
    bool stopped;
    bool clearing; // what unfinished copies have left is being removed
    struct cg_file_op clear_op;
    char (*clear_folders)[CG_CHUNK_PATH_MAX];
    uint32_t clear_count;
    struct cg_timer tick;
    struct cg_list copies;
    uint32_t working;
    struct cg_list wants;
    struct cg_list leads;
    uint32_t lead_count;
    uint64_t next_number;
    struct cg_list menders;
    uint32_t mender_count;
    uint32_t mend_at;       // position in the table of bad blocks
    struct cg_list serving; // requests for blocks that wait for the pace
    uint32_t serving_count;
    uint32_t reads; // for others, under way
    struct cg_timer serve_timer;
    struct cg_list forgets;
    struct cg_catchup_stats stats;
};

// Clients want the disk, too.
bool cg_catchup_busy(struct cg_catchup *catchup);
// The other members of a copyset, voters first.
void cg_catchup_others(struct cg_copyset *copyset, struct cg_raft_config *out);
// Something has ended: perhaps nothing of a copyset is left.
void cg_catchup_ended(struct cg_catchup *catchup);

#endif
