// SPDX-License-Identifier: BSD-3-Clause
//
// The public C interface of Copygate's IO core: open a volume, submit IO, take completions. Every
// front end (the nbdkit plugins, tgtd's backing store, Python through Cython, tests through cffi)
// uses this and nothing else.
//
// Two ways to run a client:
//  - CG_CLIENT_OWN_THREAD: the client has a reactor thread. cg_submit may be called from any
//  thread;
//    completions run on the reactor's thread; the blocking calls (cg_pread and the like) may be
//    used from any other thread. While nothing was submitted with cg_submit, a blocking caller
//    drives the reactor itself, so that a lone read needs no hop to another thread.
//  - CG_CLIENT_FOREIGN_LOOP: no thread. The owner polls cg_client_fd for input in its own event
//  loop and
//    calls cg_client_progress when it is readable. All calls belong to that one thread; completions
//    run inside cg_client_progress. The blocking calls drive the loop until they are done;
//    cg_volume_open_start and cg_volume_close_start do not block.
//
// Errors are negative errno values:
//   -EINVAL          an argument is out of range (beyond the volume's end, overflow)
//   -EROFS           a write to a volume that was opened read-only
//   -ENOSPC          the store is full
//   -ESTALE          fenced: another client has taken the volume over
//   -ETIMEDOUT       the deadline passed; a write may or may not have taken effect
//   -EILSEQ          compare-and-write found other data; nothing was written
//   -EBADMSG         the stored data fails its checksum
//   -ENOENT          the volume does not exist
//   -EACCES          the owner does not match
//   -EAGAIN          submitted by an older shared state (see cg_state_call): check and submit again
//   -EBUSY           more requests than `inflight_max` (CG_CLIENT_FOREIGN_LOOP only; else they
//   wait) -EIO             the store reported a failure -ESHUTDOWN       the volume is being closed
#ifndef COPYGATE_H
#define COPYGATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CG_API __attribute__((visibility("default")))

struct cg_client;
struct cg_volume;

enum cg_client_mode {
    CG_CLIENT_OWN_THREAD = 0,
    CG_CLIENT_FOREIGN_LOOP = 1,
};

struct cg_client_options {
    uint32_t struct_size; // sizeof(struct cg_client_options): lets later versions add fields
    enum cg_client_mode mode;
    // Comma-separated metadata servers, "host:port" each; tried in turn.
    const char *mds;
    // Who we are to the metadata server. NULL: "copygate". Only the owner may open a volume.
    const char *owner;
    // The password of owner "root" (CurveBS signs root's requests with it); NULL for other owners.
    const char *root_password;
    // Where log lines go; NULL: dropped. See base/log.h for the levels (0 debug to 3 error).
    void (*log)(void *context, int level, const char *line);
    void *log_context;
};

// Creates a client; nothing is contacted yet. Returns 0, -EINVAL (mds missing or unparsable),
// -ENOMEM, -EMFILE. The strings are copied.
CG_API int cg_client_create(const struct cg_client_options *options, struct cg_client **out);

// Closes all volumes (as cg_volume_close does) and frees the client. Not from a completion.
// Openings under way end with -ECANCELED, closings under way are waited for; their `done` run
// inside this call.
CG_API void cg_client_destroy(struct cg_client *client);

// FOREIGN_LOOP: the descriptor to poll for input.
CG_API int cg_client_fd(struct cg_client *client);

// FOREIGN_LOOP: makes progress without blocking. Returns the number of events handled or -errno.
CG_API int cg_client_progress(struct cg_client *client);

// FOREIGN_LOOP: the caller promises to call cg_client_progress before its loop waits again, so that
// what is submitted until then need not make the descriptor readable (a system call and a turn of
// the loop less). Cheap; harmless when repeated.
CG_API void cg_client_will_progress(struct cg_client *client);

enum {
    CG_OPEN_READ_ONLY = 1U << 0, // does not raise the epoch; writes give -EROFS
    // Opens without raising the epoch: several writers share the volume and nobody is fenced, as
    // CurveBS itself does. For tools that know what they give up.
    CG_OPEN_SHARED = 1U << 1,
};

// What may happen to an open volume by itself.
enum cg_event {
    CG_EVENT_RESIZED = 0, // cg_volume_info has another size
    CG_EVENT_PAUSED = 1,  // the lease was not renewed in time: IO waits, up to its deadline
    CG_EVENT_RESUMED = 2, // IO goes on
    CG_EVENT_FENCED = 3,  // another client has the volume, or it was deleted: all IO fails from now
                          // on, with -ESTALE or -ENOENT. Nothing comes after it.
};

struct cg_volume_options {
    uint32_t struct_size;     // sizeof(struct cg_volume_options)
    const char *path;         // "/name" or "name"; directories as in "/a/b"
    uint32_t flags;           // CG_OPEN_*
    uint32_t inflight_max;    // requests to chunkservers at once; 0: 128
    uint64_t io_timeout_ms;   // deadline of each IO; 0: 25000
    uint64_t open_timeout_ms; // 0: 10000
    // FOREIGN_LOOP only (else NULL): called after an event, on the loop's thread at the end of the
    // iteration that noticed it, while the volume is open and not being closed. Several of a kind
    // in one iteration are one. It may call anything that a completion may.
    void (*on_event)(void *event_user, struct cg_volume *volume, enum cg_event event);
    void *event_user;
};

// Opens a volume and waits for it. On failure returns -errno and, if `error` is not NULL, a
// sentence of at most `error_size` bytes that says what was wrong and what to do. OWN_THREAD: any
// thread but the reactor's. FOREIGN_LOOP: drives the loop meanwhile.
CG_API int cg_volume_open(struct cg_client *client, const struct cg_volume_options *options,
                          struct cg_volume **out, char *error, size_t error_size);

// Waits for the IO in flight (at most its deadline), ends the session, frees the volume. New IO
// gets -ESHUTDOWN. Not from a completion.
CG_API void cg_volume_close(struct cg_volume *volume);

// How an opening ended. 0: `volume` is open. -errno: `volume` is NULL and `error` is a sentence
// that says what was wrong and what to do; it is valid inside the call only.
typedef void cg_open_done(void *user, int result, struct cg_volume *volume, const char *error);

// FOREIGN_LOOP: opens a volume without blocking; the options are copied. Returns 0, and then `done`
// comes once, inside a later cg_client_progress, at the latest when open_timeout_ms has passed. Or
// returns -EINVAL (the options; the log says what is wrong), -ENOMEM, -ESHUTDOWN (the client is
// being destroyed) or -ENOTSUP (OWN_THREAD); then `done` does not come. Allowed from completions.
CG_API int cg_volume_open_start(struct cg_client *client, const struct cg_volume_options *options,
                                cg_open_done *done, void *user);

// FOREIGN_LOOP: ends the opening that was started with this `user`: its `done` runs inside this
// call, with -ECANCELED. An epoch that was raised already stays raised. Harmless if there is none.
CG_API void cg_volume_open_cancel(struct cg_client *client, const void *user);

// FOREIGN_LOOP: closes the volume as cg_volume_close does, without blocking: `done` comes once,
// inside a later cg_client_progress, and by then the volume is freed. No other call with the volume
// is allowed from now on, but for cg_submit, which gives -ESHUTDOWN. Returns 0, or -ENOTSUP
// (OWN_THREAD). Allowed from completions.
CG_API int cg_volume_close_start(struct cg_volume *volume, void (*done)(void *user), void *user);

struct cg_volume_info {
    uint64_t size;      // bytes
    uint64_t volume_id; // the file's id at the MDS
    uint8_t uuid[16];   // the same on every gateway; derived from the id on a CurveBS cluster
    uint64_t epoch;
    uint32_t block_size;   // what the store merges or the core reads, merges and writes; 4096
    uint32_t chunk_size;   // bytes
    uint64_t segment_size; // bytes; trim of a whole segment returns it to the pool
    uint32_t stripe_unit;  // bytes; 0: none
    uint32_t stripe_count;
    uint32_t max_io; // longest single request to a chunkserver; longer IO is split
    bool read_only;
    bool native; // our own store (fast zero, compare-and-write, block status are real)
};

// The volume as known now; cheap, never blocks. The size follows a resize within a quarter lease.
CG_API void cg_volume_info(const struct cg_volume *volume, struct cg_volume_info *out);

enum cg_op {
    CG_OP_READ = 0,
    CG_OP_WRITE = 1,
    CG_OP_WRITE_ZEROES = 2, // no data; the range reads as zeros afterwards
    CG_OP_TRIM = 3,         // returns space; the range reads as zeros where blocks were whole
    CG_OP_FLUSH = 4,        // succeeds when all writes completed before it are durable: at once
    CG_OP_COMPARE_AND_WRITE = 5, // iov: first half compare, second half write; `length` one half
    CG_OP_BLOCK_STATUS = 6,      // fills `extents`
};

enum {
    CG_IO_FUA = 1U << 0,       // accepted and implied: every completed write is durable
    CG_IO_NO_HOLE = 1U << 1,   // WRITE_ZEROES: keep the range allocated
    CG_IO_FAST_ZERO = 1U << 2, // WRITE_ZEROES: -ENOTSUP rather than writing zero data
};

enum {
    CG_EXTENT_DATA = 0,
    CG_EXTENT_HOLE = 1U << 0, // not allocated
    CG_EXTENT_ZERO = 1U << 1, // reads as zeros
};

struct cg_extent {
    uint64_t offset; // bytes, within the request's range
    uint64_t length;
    uint32_t flags;
};

// One IO. The caller owns the struct and the memory that it points to; both stay valid and
// unchanged until `done`. Set every field of the first block; zero the rest before the first use.
struct cg_io {
    enum cg_op op;
    uint32_t flags;          // CG_IO_*
    uint64_t offset;         // bytes, any alignment
    uint64_t length;         // bytes, any length; 0 completes at once
    const struct iovec *iov; // READ, WRITE: `length` bytes; COMPARE_AND_WRITE: 2 * `length`
    int iovcnt;
    uint64_t timeout_ms;       // 0: the volume's
    struct cg_extent *extents; // BLOCK_STATUS: the caller's array
    uint32_t extent_capacity;  // at least 1
    void (*done)(struct cg_io *io);
    void *user;

    // The result, valid from `done` on.
    int result;            // 0 or -errno
    uint32_t extent_count; // BLOCK_STATUS: extents filled; they cover the range from its start, all
                           // of it unless the capacity ran out
    uint64_t mismatch_offset; // COMPARE_AND_WRITE with -EILSEQ: first differing byte in the range

    uint64_t internal[24]; // the core's
};

// Submits one IO. Always leads to exactly one `done`, never inside this call. Errors come in
// io->result. The order between IOs in flight at once is not defined.
CG_API void cg_submit(struct cg_volume *volume, struct cg_io *io);

// Submits several with one wake-up of the reactor.
CG_API void cg_submit_batch(struct cg_volume *volume, struct cg_io *const *ios, unsigned count);

// FOREIGN_LOOP: reads what needs no request (data on this machine, see decision 5) at once. 0, or
// -EAGAIN when it takes a cg_submit, which then also tells what is wrong, if anything is.
CG_API int cg_read_now(struct cg_volume *volume, void *data, uint64_t length, uint64_t offset);

// Blocking forms: 0 or -errno.
CG_API int cg_pread(struct cg_volume *volume, void *data, uint64_t length, uint64_t offset);
CG_API int cg_pwrite(struct cg_volume *volume, const void *data, uint64_t length, uint64_t offset);
CG_API int cg_write_zeroes(struct cg_volume *volume, uint64_t length, uint64_t offset,
                           uint32_t flags);
CG_API int cg_trim(struct cg_volume *volume, uint64_t length, uint64_t offset);
CG_API int cg_flush(struct cg_volume *volume);
CG_API int cg_compare_and_write(struct cg_volume *volume, const void *compare, const void *write,
                                uint64_t length, uint64_t offset, uint64_t *mismatch_offset);
// Returns the number of extents filled (at least 1) or -errno.
CG_API int cg_block_status(struct cg_volume *volume, uint64_t length, uint64_t offset,
                           struct cg_extent *extents, uint32_t capacity);

// ---- The volume's shared state

// Some bytes that all who have a volume open share, kept by the metadata server, with a revision
// that grows by one with every change. iSCSI gateways keep reservations in it. FOREIGN_LOOP only.
enum cg_state_op {
    CG_STATE_GET = 0,
    // Replaces the state if its revision is `revision_known`. It ends when the change is durable
    // and everybody who follows the state acts by it (has submitted a FOLLOW that knows it), is
    // fenced, or has lost their lease: from then on nobody does IO by an older state.
    CG_STATE_SET = 1,
    // Waits until the revision is another one than `revision_known`, and tells the metadata server
    // that we act by that one. See below.
    CG_STATE_FOLLOW = 2,
};

enum {
    CG_STATE_NO_WAIT = 1U << 0, // SET: ends when the change is durable
};

#define CG_STATE_MAX     65536U     // bytes of a state
#define CG_STATE_UNKNOWN UINT64_MAX // FOLLOW: tell the state now, whatever its revision

// One call. As with cg_io, the caller owns the struct and the memory that it points to until
// `done`. At most 16 calls of a volume at once, and one FOLLOW; one more gets -EBUSY.
//
// Following. Who acts by the state (lets IO through or not) submits FOLLOW with CG_STATE_UNKNOWN
// after the opening and does no IO before it is answered, and then always has one FOLLOW under way:
// inside `done`, take over the new state, wait for nothing else but the IO that it forbids, and
// submit FOLLOW again with its revision. Whoever set it waits for that. If the lease runs out, the
// metadata server stops waiting for us and ends our session. When the lease is there again, IO
// waits until a FOLLOW is answered, and IO that was submitted before and has not ended yet ends
// with -EAGAIN (a write may have taken effect): check it by the new state and submit it again.
struct cg_state_call {
    enum cg_state_op op;
    uint32_t flags;          // CG_STATE_*
    uint64_t revision_known; // SET, FOLLOW; 0: never set
    const void *data;        // SET: `length` bytes, at most CG_STATE_MAX
    uint32_t length;
    uint32_t capacity; // of `buffer`; a longer state ends the call with -EMSGSIZE
    void *buffer;      // where the state goes that is told; not in `data`
    // SET: fail with -ESTALE unless this is the volume's epoch now; the volume's own epoch (see
    // cg_volume_info) to claim something for its owner. 0: no matter.
    uint64_t epoch;
    uint64_t timeout_ms; // 0: the volume's io_timeout_ms; FOLLOW: no limit
    void (*done)(struct cg_state_call *call);
    void *user;

    // The result, valid from `done` on.
    // 0; -EAGAIN (SET: the revision is another one; it and its state are told), -ESTALE (the epoch;
    // or the volume is fenced: close it), -ENOTSUP (a CurveBS cluster), -ETIMEDOUT, -EBUSY,
    // -EMSGSIZE, -EINVAL, -ENOENT, -EACCES, -EIO, -ENOMEM, -ESHUTDOWN (the volume is being closed).
    int result;
    // GET, FOLLOW, SET with -EAGAIN: what is there. SET: the new one. SET with -ETIMEDOUT: not 0 if
    // the change is durable but somebody who follows did not answer; else it may or may not be
    // made.
    uint64_t revision;
    uint32_t buffer_length; // bytes told

    uint64_t internal[4]; // the core's
};

// Submits one call. Always leads to exactly one `done`, inside a later cg_client_progress (or
// cg_client_destroy). With an OWN_THREAD client it only sets `result` to -ENOTSUP, without `done`.
CG_API void cg_state_submit(struct cg_volume *volume, struct cg_state_call *call);

struct cg_volume_stats {
    uint64_t reads, writes, others; // IOs completed
    uint64_t read_bytes, written_bytes;
    uint64_t errors;
    uint64_t requests; // to chunkservers
    uint64_t retries, redirects, timeouts;
    uint64_t overloads;   // answers OVERLOAD
    uint64_t local_reads; // of `reads`: without a request, on the store's machine
    uint64_t inflight;    // IOs at this moment
};
CG_API void cg_volume_stats(const struct cg_volume *volume, struct cg_volume_stats *out);

// "copygate 0.1.0"
CG_API const char *cg_version(void);

#ifdef __cplusplus
}
#endif

#endif
