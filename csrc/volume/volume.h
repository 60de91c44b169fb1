// SPDX-License-Identifier: BSD-3-Clause
//
// The inside of the IO core. What becomes of one cg_io, top to bottom:
//
//   client.c     takes it from any thread to the reactor's (submit.c, blocking.c)
//   io.c         checks it, takes its range lock, chooses the way
//   merge.c      reads, merges and writes where the store takes whole blocks only
//   transfer.c   cuts it into requests, waits for segments, slots and the lease
//   segment.c    which chunks a segment has; allocation on the first write
//   request.c    sends one request, understands the answer, sends it again
//   copyset.c    where a copyset lives
//   leader.c     which of its servers leads it
//   server.c     which servers answer at present
//   shortcut.c   reads without a request, on the chunkserver's own machine (local_read.c)
//   clone.c      data that is still in another volume
//   open.c       opening: session, epoch (open_calls.c: the public calls); close.c
//   events.c     what is told to the program
//   session.c    the lease, and what is learned with it
//   state.c      what all who have the volume open share
//   trim.c       which blocks of a segment are trimmed; giving whole segments back
//
// Everything here belongs to the thread that runs the client's reactor at the moment.
#ifndef CG_VOLUME_VOLUME_H
#define CG_VOLUME_VOLUME_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/clock.h"
#include "base/list.h"
#include "base/reactor.h"
#include "copygate.h"
#include "rpc/channel.h"
#include "rpc/endpoint.h"
#include "volume/mds.h"
#include "volume/range_lock.h"
#include "volume/split.h"

#define VOL_BLOCK            4096U
#define VOL_SEGMENTS_MAX     (1U << 22)
#define VOL_INFLIGHT_DEFAULT 128U
#define VOL_INFLIGHT_MAX     4096U
#define VOL_IO_TIMEOUT_MS    25000U
#define VOL_OPEN_TIMEOUT_MS  10000U
#define VOL_REQUEST_NATIVE   (1U << 20) // longest request, bytes
#define VOL_REQUEST_CURVEBS  (64U << 10)
#define VOL_REQUEST_IOV      4
#define VOL_COMPARE_MAX      (1U << 20) // longest compare-and-write, bytes
#define VOL_SERVERS_MAX      4096U
#define VOL_COPYSET_BUCKETS  256U

struct vol_transfer;
struct vol_request;
struct vol_segment;
struct vol_copyset;
struct vol_trim;
struct vol_clone;
struct vol_more;
struct vol_state_call;
struct cg_waiter;

// ---- Transfers

enum vol_kind {
    VOL_READ,
    VOL_WRITE,
    VOL_WRITE_ZERO_DATA, // a write whose data is zeros: stores without WRITE_ZEROES
    VOL_WRITE_ZEROES,
    VOL_TRIM,
    VOL_COMPARE_AND_WRITE,
    VOL_BLOCK_STATUS,
};

static inline bool vol_kind_changes(enum vol_kind kind) {
    return kind != VOL_READ && kind != VOL_BLOCK_STATUS;
}

// A range of the volume on its way to or from memory, as any number of requests.
struct vol_transfer {
    struct cg_volume *volume;
    struct cg_list node;   // while waiting: the volume's queue or a segment's waiters
    struct cg_timer timer; // armed only while waiting
    uint64_t deadline_ns;
    uint64_t offset;
    uint64_t length;
    uint64_t cursor; // bytes that need no more requests made
    const struct iovec *iov;
    int iovcnt;
    uint32_t pending; // requests in flight, and the call that makes them
    int error;
    uint8_t kind; // enum vol_kind
    bool waiting; // on a list
    bool no_hole;
    uint8_t view; // the volume's when its IO began
    void (*done)(struct vol_transfer *transfer);
    void *owner; // for `done`
};

// Starts a transfer: volume, deadline_ns, offset, length (not 0), iov, kind, done are set, the rest
// is zero. `done` comes once, possibly inside this call; transfer->error says how it ended.
void vol_transfer_start(struct vol_transfer *transfer);

// Goes on after a wait: makes requests until it must wait again.
void vol_transfer_advance(struct vol_transfer *transfer);

// Puts the transfer on `list` until it is advanced, failed, or its deadline passes.
void vol_transfer_wait(struct vol_transfer *transfer, struct cg_list *list, bool first);

// Ends a waiting transfer's wait without going on.
void vol_transfer_unwait(struct vol_transfer *transfer);

// Fails the transfer; it ends when its requests in flight have ended.
void vol_transfer_fail(struct vol_transfer *transfer, int error);

// One of its requests has ended.
void vol_transfer_request_done(struct vol_transfer *transfer, struct vol_request *request,
                               int result);

// Lets queued transfers go on: a slot is free, or the lease was renewed, or the volume is fenced.
void vol_queue_run(struct cg_volume *volume);

// ---- One cg_io

struct vol_io {
    struct vol_transfer transfer;
    struct cg_range range;
    void *more; // what only some operations need
};
_Static_assert(sizeof(struct vol_io) <= sizeof(((struct cg_io *)0)->internal),
               "cg_io has room for the core's state");

static inline struct vol_io *vol_io_of(struct cg_io *io) {
    return (struct vol_io *)(void *)io->internal;
}

static inline struct cg_io *vol_io_public(struct vol_io *io) {
    return CG_CONTAINER_OF(io, struct cg_io, internal);
}

// Begins an IO on the reactor's thread.
void vol_io_begin(struct cg_volume *volume, struct cg_io *io);

// Ends it: gives the range lock back, counts, completes.
void vol_io_end(struct vol_io *io, int result);

// Its `done` has been called.
void vol_io_delivered(struct cg_volume *volume);

// The range lock is held now (merge.c, io.c).
void vol_io_granted(struct vol_io *io);

// Unaligned IO on a store of whole blocks; for writes and zeroes the range lock is held.
void vol_merge_read(struct vol_io *io);
void vol_merge_write(struct vol_io *io);
void vol_merge_zeroes(struct vol_io *io);
// Compare-and-write here rather than at the store; the range lock is held.
void vol_merge_compare(struct vol_io *io);
// What the above keep for an IO; for the volume.
void vol_merge_release(struct vol_io *io);
void vol_merge_free(struct cg_volume *volume);

// BLOCK_STATUS: adds what is known about the next `length` bytes. False when the caller's array is
// full.
bool vol_status_add(struct vol_io *io, uint64_t length, bool allocated);

// ---- Requests

struct vol_request {
    struct cg_rpc_call call;
    struct cg_list node;      // free list; a copyset's waiters; in flight: its server's
    struct cg_list unsettled; // in order of sequence; changing requests of native volumes
    struct cg_timer timer;    // backoff, or the deadline while waiting
    struct cg_volume *volume;
    struct vol_transfer *transfer;
    struct vol_segment *segment;
    struct vol_copyset *copyset;
    struct vol_server *sent_to; // the last try's
    uint64_t chunk_id;
    uint64_t sequence;
    uint64_t segment_offset; // bytes, in the order of the segment's chunks
    uint64_t retry_delay_ns; // if the leader turns out to be the same
    uint64_t sent_ns;        // the last try
    uint32_t chunk_offset;
    uint32_t length;
    uint32_t timeouts;
    uint32_t overloads;
    uint32_t redirects;
    uint32_t failures; // tries that got no answer
    uint8_t kind;      // enum vol_kind
    bool in_flight;
    bool moving;                // taken back from its server, to be sent to another one
    bool waiting;               // for a leader
    bool paused;                // for the lease
    uint32_t mismatch;          // COMPARE_AND_WRITE
    struct cg_local_door *door; // READ: the way around requests at this server, or NULL
    uint64_t generation;        // of its map, when the request left
    int iovcnt;
    struct iovec *iov_heap; // when iov is too small
    struct iovec iov[VOL_REQUEST_IOV];
    const uint8_t *runs; // BLOCK_STATUS, valid while the transfer is told
    uint32_t runs_length;
    bool hole; // READ, BLOCK_STATUS: the chunk does not exist
};

// Allocates the volume's inflight_max requests. 0 or -ENOMEM.
int vol_requests_create(struct cg_volume *volume);

// A free request, or NULL.
struct vol_request *vol_request_get(struct cg_volume *volume);

// Fills the request's slice of its transfer's memory: `length` bytes from `skip` on. 0 or -ENOMEM.
int vol_request_slice(struct vol_request *request, uint64_t skip, uint32_t length);

// Writes the part of `iov` from `skip` on that has `length` bytes to `out` (NULL: only counts it).
// Returns the number of pieces. iov has that many bytes.
int vol_iov_slice(const struct iovec *iov, int iovcnt, uint64_t skip, uint64_t length,
                  struct iovec *out);

// Sends the request, again if need be, until it ends in vol_transfer_request_done.
void vol_request_start(struct vol_request *request);

// Its copyset's leader is known (again).
void vol_request_routed(struct vol_request *request);

// Its copyset is led by another server than the one that owes the answer: asks that one.
void vol_request_move(struct vol_request *request);

// Sends the paused ones on, or fails them if the volume is fenced.
void vol_requests_resume(struct cg_volume *volume);

// Fails those that wait for a leader.
void vol_requests_fail_waiting(struct cg_volume *volume, int error);

// Encodes the ChunkRequest; returns its length (at most VOL_MESSAGE_MAX).
#define VOL_MESSAGE_MAX (128U + CG_MDS_PATH_MAX + 16U)
uint32_t vol_request_encode(const struct vol_request *request, uint8_t *out);

struct vol_reply {
    uint32_t status;
    uint32_t mismatch;
    const uint8_t *runs;
    uint32_t runs_length;
    const uint8_t *redirect; // text
    uint32_t redirect_length;
};
// Decodes a ChunkResponse. 0 or -EPROTO.
int vol_reply_decode(const uint8_t *bytes, uint32_t length, struct vol_reply *out);

// Reads one varint; NULL at the end or on nonsense.
const uint8_t *vol_varint(const uint8_t *at, const uint8_t *end, uint64_t *out);

// ---- Chunkservers and copysets

struct vol_server {
    struct cg_list node;
    struct cg_client *client;
    struct cg_channel *channel;
    struct cg_list outstanding; // requests, in the order in which they were sent
    struct cg_timer watch;      // looks after them
    uint64_t heard_ns;          // when it last answered anything
    uint64_t ask_at_ns;         // while away: not to be asked before
    uint64_t pause_ns;          // while away: from one question to the next
    bool away;                  // its connection was lost, or it is silent
    char address[CG_MDS_ADDRESS_MAX];
};

// Without an answer for this long a server of our own store is doubted: its heartbeats would have
// told, and the others may have chosen another leader.
#define VOL_DOUBT_NS (400 * CG_NS_PER_MS)

// The client's connection to a chunkserver. NULL when the address makes no sense or memory is
// short.
struct vol_server *vol_server_get(struct cg_client *client, const char *address);
void vol_servers_free(struct cg_client *client);

// A request has been sent to it.
void vol_server_sent(struct vol_server *server, struct vol_request *request);

// It has answered something.
void vol_server_heard(struct vol_server *server);

// The connection was lost or cannot be made, or it is silent. Until it is heard again it leads
// nothing: the leaders of all copysets that it led are looked for, and it is asked itself ever more
// rarely. Nothing of that happens inside. Harmless when it is known.
void vol_server_lost(struct vol_server *server);

// What a call to a server ended with: whether that means vol_server_lost.
bool vol_server_is_loss(int status);

// A call that left at `sent_ns` was not answered in time. If nothing else came either, the
// connection is given up: after an outage TCP sends again ever more rarely, a new connection does
// not wait for that. True: so it was; its other calls end with -ECONNRESET, later.
bool vol_server_timed_out(struct vol_server *server, uint64_t sent_ns);

// Whether it may be asked which copysets it leads; if it is away, the asker must then call
// vol_server_heard or vol_server_unanswered when the question has ended.
bool vol_server_may_ask(struct vol_server *server);
void vol_server_unanswered(struct vol_server *server);

// Another server says that this one, which is away, leads: it is asked soon.
void vol_server_named(struct vol_server *server);

struct vol_peer {
    char internal[CG_MDS_ADDRESS_MAX]; // as replicas name it
    struct vol_server *server;
};

struct vol_leader_query;

struct vol_copyset {
    struct cg_list node;    // hash chain
    struct cg_list waiting; // requests
    struct cg_volume *volume;
    uint32_t pool;
    uint32_t id;
    struct vol_peer peers[CG_MDS_PEERS_MAX];
    unsigned peer_count;
    int leader;                      // index, or -1
    const struct vol_server *denied; // it said that it does not lead, or went away; or NULL
    unsigned outstanding;            // requests in flight
    unsigned rounds;                 // of asking for the leader, without success
    unsigned suspects;               // times in a row that the leader was doubted
    bool looking;
    bool doubting;                  // looking while the leader is still used
    uint64_t doubted_ns;            // when that last began
    uint64_t peers_asked_ns;        // when the metadata server was last asked
    struct cg_timer timer;          // the next step of looking
    struct vol_leader_query *query; // while looking
    struct cg_mds_call peers_call;
};

// The copyset, made if need be (without peers). NULL when memory is short.
struct vol_copyset *vol_copyset_get(struct cg_volume *volume, uint32_t pool, uint32_t id);
void vol_copysets_stop(struct cg_volume *volume);
void vol_copysets_free(struct cg_volume *volume);

// Takes the peers of copysets of `pool` from an answer.
int vol_copyset_take_peers(struct cg_volume *volume, uint32_t pool,
                           const struct cg_mds_server *servers, uint32_t count);

// Asks the metadata server where the copyset lives, unless that is under way or was done just now.
void vol_copyset_fetch_peers(struct vol_copyset *copyset);

static inline struct vol_server *vol_copyset_leader(const struct vol_copyset *copyset) {
    return copyset->leader < 0 ? NULL : copyset->peers[copyset->leader].server;
}

// ---- Leaders

// Looks for the leader unless that is under way; vol_request_routed is called, later, for each
// request on copyset->waiting. `suspect` (may be NULL): the server that did not do.
void vol_copyset_find_leader(struct vol_copyset *copyset, const struct vol_server *suspect);

// The leader owes an answer for long: asks the others, while it is used on.
void vol_copyset_doubt(struct vol_copyset *copyset);

// `server` is away: it leads none of the volume's copysets any more.
void vol_leaders_forget(struct cg_volume *volume, const struct vol_server *server);

// `from` says that the server with this address leads ("ip:port", as clients or as replicas name
// it, with or without ":index"). True: another peer that is not away; it is the leader from now on.
bool vol_copyset_take_hint(struct vol_copyset *copyset, const struct vol_server *from,
                           const uint8_t *text, uint32_t length);

// Ends looking, and what waits for it stays where it is.
void vol_copyset_stop_looking(struct vol_copyset *copyset);

// The peers have become others.
void vol_copyset_ask_anew(struct vol_copyset *copyset);

// `server` has done what only a leader does.
void vol_copyset_confirm(struct vol_copyset *copyset, const struct vol_server *server);

// ---- Segments

enum vol_segment_state {
    VOL_SEGMENT_UNKNOWN,
    VOL_SEGMENT_HOLE, // cached only by the exclusive writer
    VOL_SEGMENT_READY,
    VOL_SEGMENT_RETURNING, // being deallocated: IO waits
};

struct vol_chunk {
    uint64_t id;
    struct vol_copyset *copyset;
};

struct vol_segment {
    struct cg_volume *volume;
    uint64_t index;
    enum vol_segment_state state;
    uint32_t requests;        // in flight
    struct cg_list waiters;   // transfers
    struct cg_mds_call *call; // under way, or NULL; part of a vol_segment_call
    uint32_t *copyset_ids;    // of `call`
    struct vol_trim *trim;    // NULL: nothing trimmed
    struct vol_chunk chunks[];
};

struct vol_segment_call {
    struct cg_mds_call mds;
    struct vol_segment *segment;
    bool had_source; // when it was sent: a clone's source has the segment
};

enum vol_found {
    VOL_FOUND_CHUNK,
    VOL_FOUND_HOLE,
    VOL_FOUND_WAIT,  // the transfer waits
    VOL_FOUND_ERROR, // memory is short
};

// Looks the chunk up; on VOL_FOUND_CHUNK `segment` and `chunk` are set.
enum vol_found vol_segment_find(struct vol_transfer *transfer, uint64_t chunk_index,
                                struct vol_segment **segment, struct vol_chunk **chunk);

// Wakes those who waited for the segment.
void vol_segment_wake(struct vol_segment *segment);
void vol_segments_wake(struct cg_volume *volume);
void vol_segments_stop(struct cg_volume *volume);
void vol_segments_free(struct cg_volume *volume);

// ---- Trim

// These bytes of the segment (in the order of its chunks) were trimmed; are about to be written.
void vol_trim_mark(struct vol_segment *segment, uint64_t offset, uint64_t length);
void vol_trim_clear(struct vol_segment *segment, uint64_t offset, uint64_t length);
void vol_trim_free(struct vol_segment *segment);

// ---- The volume

// Counters with one writer at a time; other threads read them.
struct vol_counters {
    _Atomic uint64_t reads, writes, others, read_bytes, written_bytes, errors;
    _Atomic uint64_t local_reads, local_bytes; // without a request; any thread counts
    _Atomic uint64_t requests, retries, redirects, timeouts, overloads, inflight;
};

static inline void vol_count(_Atomic uint64_t *counter, uint64_t by) {
    uint64_t old = atomic_load_explicit(counter, memory_order_relaxed);
    atomic_store_explicit(counter, old + by, memory_order_relaxed);
}

struct vol_opening;

struct cg_volume {
    struct cg_client *client;
    struct cg_reactor *reactor;
    struct cg_list node; // the client's volumes
    char *path;
    uint32_t flags;
    uint64_t io_timeout_ns;

    uint64_t file_id;
    _Atomic uint64_t size;
    _Atomic uint64_t epoch;
    uint64_t seq;
    uint32_t block_size;
    uint32_t max_request;
    uint64_t segment_size;
    uint32_t chunks_per_segment;
    struct cg_layout layout;
    uint8_t uuid[16];
    bool native;
    bool exclusive;  // neither READ_ONLY nor SHARED
    bool send_epoch; // requests carry it to be checked

    uint64_t client_id;
    uint64_t next_sequence;
    struct cg_list unsettled; // requests, oldest first

    struct vol_request *requests;
    uint32_t inflight_max;
    struct cg_list free_requests;
    struct cg_list queue;  // transfers that wait for a request or the lease
    struct cg_list paused; // requests that wait for the lease
    struct cg_range_lock ranges;
    bool granting; // ranges are being handed out
    struct vol_more *more_free;
    unsigned more_kept;
    struct vol_segment **segments;
    uint32_t segment_slots;
    struct cg_list copysets[VOL_COPYSET_BUCKETS];
    unsigned trim_count;

    int fenced; // 0, or the errno of all IO from now on
    bool closing;
    atomic_bool leased; // a lease was ever granted
    uint64_t lease_ns;
    _Atomic uint64_t lease_end_boot_ns; // IO pauses from here on, CLOCK_BOOTTIME
    char session[CG_MDS_SESSION_MAX];
    struct cg_mds_call session_call;
    struct cg_timer session_timer;
    bool refresh_soon; // asked for while one was under way
    struct vol_opening *opening;

    // The shared state (state.c).
    struct cg_list state_calls;
    unsigned state_call_count;
    struct vol_state_call *follower; // the FOLLOW under way, or NULL
    bool follows;                    // somebody acts by the state
    atomic_bool view_unknown;        // the session is a new one: IO pauses until FOLLOW is answered
    uint8_t view;                    // counts that; IO that began with an older one ends
    uint32_t sessions;               // counts sessions

    // What is told to the program (events.c).
    void (*on_event)(void *event_user, struct cg_volume *volume, enum cg_event event);
    void *event_user;
    struct cg_deferred event_work;
    struct cg_timer lease_timer; // the lease's three quarters
    uint32_t events;             // bits: to be told
    bool told_paused;

    struct cg_task close_task;
    void (*closed)(struct cg_volume *volume); // the session is closed; may free the volume
    struct cg_waiter *closer;                 // in cg_volume_close
    void (*close_done)(void *user);           // of cg_volume_close_start
    void *close_user;
    uint64_t ios; // begun and not completed
    void (*drained)(struct cg_volume *volume);

    struct vol_clone *clone;       // NULL: all the volume's data is its own
    struct cg_local_reader *local; // NULL: all reads go by request
    struct vol_counters counters;
    uint32_t random; // jitter
};

// Whether IO may go on: the lease has not run to its three quarters, and what we act by is known.
static inline bool vol_lease_ok(const struct cg_volume *volume) {
    return !volume->view_unknown &&
           (!volume->leased || cg_boottime_ns() < volume->lease_end_boot_ns);
}

// ---- The shared state

// The lease was not renewed in time, and the session is a new one: what is done by the state as it
// was ends, and IO pauses until the state is known again.
void vol_state_session_replaced(struct cg_volume *volume);

// Ends all calls.
void vol_state_stop(struct cg_volume *volume, int error);

// ---- Reads without a request

void vol_local_open(struct cg_volume *volume);
void vol_local_close(struct cg_volume *volume);

// Any thread: 0, or -EAGAIN when it takes a request.
int vol_local_read(struct cg_volume *volume, void *data, uint64_t length, uint64_t offset);

// A request leaves, has succeeded, has failed without an answer.
void vol_local_sending(struct vol_request *request);
void vol_local_answered(struct vol_request *request);
void vol_local_failed(struct vol_request *request);

// The segment's chunks are about to become others.
void vol_local_forget(const struct vol_segment *segment);

// ---- Events

void vol_events_init(struct cg_volume *volume, const struct cg_volume_options *options);
// To be told at the end of this iteration.
void vol_event(struct cg_volume *volume, enum cg_event event);
// The lease has a new end.
void vol_events_watch_lease(struct cg_volume *volume);
// IO pauses, or goes on: told if it is news.
void vol_events_pausing(struct cg_volume *volume);
void vol_events_stop(struct cg_volume *volume);

// All IO fails from now on.
void vol_fence(struct cg_volume *volume, int error, const char *why);

// IO goes on, if it may.
void vol_resume(struct cg_volume *volume);

// Refreshes the session now (the sequence number is behind, the session is gone).
void vol_session_refresh_now(struct cg_volume *volume);

#endif
