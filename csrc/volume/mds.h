// SPDX-License-Identifier: BSD-3-Clause
//
// Calls to the metadata servers: asynchronous, retried with CurveBS's constants, moved on to the
// next server when one does not answer. All functions belong to the reactor's thread.
#ifndef CG_VOLUME_MDS_H
#define CG_VOLUME_MDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/reactor.h"
#include "rpc/channel.h"

#define CG_MDS_SERVERS_MAX  8U
#define CG_MDS_SESSION_MAX  64U
#define CG_MDS_ADDRESS_MAX  96U
#define CG_MDS_CHUNKS_MAX   16384U     // in a segment
#define CG_MDS_SERVERS_TOLD 4096U      // chunkservers in one reply
#define CG_MDS_PEERS_MAX    8U         // replicas of a copyset
#define CG_MDS_PATH_MAX     1024U      // bytes of a volume's path
#define CG_MDS_SOURCE_MAX   (1U << 22) // segments of a clone's source

// The servers, and who we are to them. One per client.
struct cg_mds {
    struct cg_reactor *reactor;
    struct cg_channel *channels[CG_MDS_SERVERS_MAX];
    uint64_t heard_ns[CG_MDS_SERVERS_MAX]; // when it last answered anything
    unsigned count;
    unsigned current;
    char *owner;
    char *root_password; // NULL: not root
    char client_ip[64];  // how the metadata server tells one client of a volume from another
    uint32_t client_port;
    int client_socket; // keeps that port ours; -1: none
};

// Parses "host:port,host:port". Returns 0, -EINVAL, -EHOSTUNREACH, -ENOMEM or -EMFILE.
int cg_mds_create(struct cg_mds *mds, struct cg_reactor *reactor, const char *servers,
                  const char *owner, const char *root_password);
void cg_mds_destroy(struct cg_mds *mds);

enum cg_mds_op {
    CG_MDS_OPEN,
    CG_MDS_INFO,
    CG_MDS_CLOSE,
    CG_MDS_REFRESH,
    CG_MDS_RAISE_EPOCH,
    CG_MDS_SEGMENT,
    CG_MDS_DEALLOCATE,
    CG_MDS_PEERS,
    CG_MDS_STATE_GET,
    CG_MDS_STATE_SET,
    CG_MDS_STATE_AWAIT,
};

static inline bool cg_mds_is_state(enum cg_mds_op op) {
    return op >= CG_MDS_STATE_GET;
}

// What the calls about the volume's shared state have besides.
struct cg_mds_state {
    uint64_t revision; // GET: the known one; SET: the expected one; AWAIT: the one to be known
    bool follow;       // GET
    uint32_t wait_ms;  // GET, AWAIT: the server may take this long; it counts as no failure
    uint64_t token;    // SET
    const void *data;  // SET
    uint32_t length;
    uint32_t capacity; // of `buffer`: where the state goes that is told
    void *buffer;

    // The answer.
    uint64_t revision_now;
    uint32_t buffer_length;
    bool too_long; // the state did not fit
    bool acknowledged;
};

struct cg_mds_file {
    uint64_t id;
    uint64_t length;
    uint64_t seq;
    uint64_t epoch;
    uint64_t stripe_unit;
    uint64_t stripe_count;
    uint32_t type;
    uint32_t chunk_size;
    uint32_t segment_size;
    uint32_t block_size; // 0: not told
    uint32_t features;
    int32_t status;        // FileStatus; -1: not told
    uint64_t clone_length; // bytes that came from the source; 0: no clone
    bool present;
    bool has_uuid;
    uint8_t uuid[16];
};

struct cg_mds_chunk {
    uint64_t chunk_id;
    uint32_t copyset_id;
};

// A chunkserver: where replicas name it, and where clients reach it ("ip:port" each).
struct cg_mds_server {
    uint32_t copyset_id; // PEERS
    char internal[CG_MDS_ADDRESS_MAX];
    char external[CG_MDS_ADDRESS_MAX];
};

struct cg_mds_call {
    // The caller's, unchanged until `done`. Zero the struct before the first use.
    struct cg_mds *mds;
    enum cg_mds_op op;
    uint64_t deadline_ns;     // monotonic
    const char *path;         // all but PEERS
    const char *session_id;   // CLOSE, REFRESH, STATE_*
    uint64_t offset;          // SEGMENT, DEALLOCATE
    uint64_t epoch;           // SEGMENT, DEALLOCATE, STATE_GET, STATE_SET: sent when not 0
    bool allocate;            // SEGMENT
    uint32_t pool;            // PEERS
    const uint32_t *copysets; // PEERS
    uint32_t copyset_count;
    struct cg_mds_state *state; // STATE_*
    // 0: answered, see `status`. -ETIMEDOUT: see last_error and last_text for what went wrong.
    // -ENOTSUP: STATE_*, and the server has no such service.
    void (*done)(struct cg_mds_call *call, int result);

    // The answer.
    int32_t status; // StatusCode; PEERS: 0 is success
    struct cg_mds_file file;
    char session[CG_MDS_SESSION_MAX];
    uint32_t lease_us;     // 0: none told
    uint64_t sent_boot_ns; // when the request that was answered was sent, CLOCK_BOOTTIME
    uint32_t segment_pool;
    uint64_t segment_offset;
    uint32_t segment_chunk_size;
    // Arrays that cg_mds_call_free releases.
    struct cg_mds_chunk *chunks;
    uint32_t chunk_count;
    struct cg_mds_server *servers;
    uint32_t server_count;
    uint32_t replicas; // RAISE_EPOCH: of the copyset that has the fewest; 0: not told
    // OPEN: what a clone's missing data comes from, and which of its segments exist. NULL, 0: not
    // told. Released by cg_mds_call_free, too.
    char *clone_source;
    bool has_source_segments;
    uint32_t source_segment_size;
    uint64_t *source_segments; // offsets
    uint32_t source_segment_count;

    int last_error;
    char last_text[160];

    // The implementation's.
    struct cg_rpc_call rpc;
    struct cg_timer timer;
    uint64_t timeout_ns;
    uint64_t sent_ns;
    unsigned server;   // index that the try in flight went to
    unsigned failures; // at this server in a row
    unsigned refused;  // servers in a row that could not be reached
    bool active;
    bool in_flight;
    bool cancelled;
    bool bad_reply;
};

// Starts `call`; `done` comes once, later.
void cg_mds_call_start(struct cg_mds_call *call);

// Ends `call` without `done`. Harmless if it is not under way.
void cg_mds_call_cancel(struct cg_mds_call *call);

// Releases the answer's arrays; the call may be started again.
void cg_mds_call_free(struct cg_mds_call *call);

// The errno for a StatusCode: 0, or -ENOENT, -EACCES, -ENOSPC, -ESTALE, -EINVAL, -EBUSY, -EAGAIN,
// -EIO.
int cg_mds_status_errno(int32_t status);

// ---- mds_messages.c: the wire

// Sends one try. 0 or -errno (the message does not fit).
int cg_mds_send(struct cg_mds_call *call, struct cg_channel *channel);

// Decodes the reply into the answer. 0, -EPROTO or -ENOMEM.
int cg_mds_decode(struct cg_mds_call *call, const uint8_t *bytes, size_t length);

#endif
