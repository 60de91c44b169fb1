// SPDX-License-Identifier: BSD-3-Clause
//
// A cluster in the test's own process: metadata servers and chunkservers that speak baidu_std over
// TCP, keep everything in memory, and misbehave on request. Strict where CurveBS is strict: what it
// would refuse or die of counts as a violation.
#ifndef TESTS_VOLUME_FAKE_H
#define TESTS_VOLUME_FAKE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "gateway/proto/chunk.pb.h"

#define FAKE_SERVERS_MAX 8
#define FAKE_CHUNKS_MAX  512
#define FAKE_LOG_MAX     8192
#define FAKE_PEERS_MAX   3

enum fake_role { FAKE_MDS, FAKE_CHUNKSERVER };

struct fake_chunk {
    uint8_t *data;      // NULL: never written
    uint8_t *allocated; // by block of 4096
};

struct fake_log {
    int server;
    char method[40];
    curve_chunkserver_ChunkRequest request; // of ChunkService's data methods
    uint64_t offset;                        // of GetOrAllocateSegment, DeAllocateSegment
    bool allocate;
    char path[32];         // of calls about a file
    char clone_source[32]; // of data methods
    struct {               // of SharedStateService
        char session[32];
        uint64_t revision; // known, expected or to be known
        uint32_t wait_ms;
        bool follow;
        uint64_t epoch;
        uint64_t token;
    } state;
};

#define FAKE_STATE_MAX 8192

// What a hook decides for one request.
enum fake_verdict {
    FAKE_SERVE,
    FAKE_ANSWER_STATUS, // answer `status` without doing anything
    FAKE_DROP,          // neither do it nor answer
    FAKE_DO_AND_DROP,   // do it, do not answer
    FAKE_CLOSE,         // close the connection without doing it
    FAKE_DO_AND_CLOSE,
};

struct fake;

struct fake_seen {
    struct fake *fake;
    int server;
    const char *method;
    const curve_chunkserver_ChunkRequest *chunk; // NULL for others
    int32_t status;                              // for FAKE_ANSWER_STATUS
    unsigned delay_ms;                           // before it is answered; other connections go on
};

struct fake_server {
    enum fake_role role;
    int listener;
    int port;
    pthread_t thread;
    struct fake *fake;
    int index;
    atomic_bool down;     // refuses connections and closes those it has
    atomic_bool stopped;  // as a stopped process: what it is sent stays in the socket
    atomic_uint accepted; // connections so far
};

struct fake {
    // Set before fake_start.
    bool native;
    uint64_t size;
    uint32_t chunk_size;   // 0: 1 MiB
    uint32_t segment_size; // 0: 4 MiB
    uint64_t stripe_unit, stripe_count;
    uint32_t lease_us; // 0: 5 s
    int mds_count;     // 0: 1
    int peer_count;    // 0: 1
    const char *owner; // NULL: any
    // A lazy clone: chunks without data have the source's.
    const char *clone_source; // NULL: none
    uint64_t clone_length;
    int32_t file_status;   // FileStatus
    int32_t source_status; // FileStatus of the source
    bool hide_source_segments;
    bool source_gone; // GetFileInfo says so

    // Under `lock`, also for tests.
    pthread_mutex_t lock;
    enum fake_verdict (*hook)(struct fake_seen *seen);
    int leader;                // index of the peer
    int named[FAKE_PEERS_MAX]; // whom each peer names as the leader: 0 the one that is, -1 nobody,
                               // else the index + 1
    bool hints;                // redirects have the address of whom the peer names
    uint64_t seq;
    uint64_t epoch;       // of the file
    uint64_t store_epoch; // what chunkservers were told
    uint32_t replicas;    // IncreaseFileEpoch tells it; 0: it does not
    bool session_gone;    // the next refresh says so
    bool refuse_refresh;
    unsigned opens, closes, refreshes, raises, updates;
    uint64_t next_chunk;
    uint64_t segments[FAKE_CHUNKS_MAX];        // first chunk id, 0: not allocated
    uint64_t source_segments[FAKE_CHUNKS_MAX]; // the same, of the clone's source
    struct fake_chunk chunks[FAKE_CHUNKS_MAX];
    struct fake_log *log;
    unsigned log_count;
    unsigned violations;
    // The shared state.
    bool no_state_service; // as CurveBS
    uint64_t state_revision;
    uint8_t state[FAKE_STATE_MAX];
    uint32_t state_length;
    uint64_t state_token;
    bool others_behind;     // a change has to be awaited, until this is false
    uint64_t settled[4096]; // sequences seen, for duplicates
    unsigned duplicates;    // the same sequence again

    struct fake_server servers[FAKE_SERVERS_MAX];
    int server_count;
    atomic_bool stop;
    atomic_int connections;
    char mds[128]; // the addresses, for cg_client_options
};

void fake_start(struct fake *fake);
void fake_stop(struct fake *fake);

// Requests of this method seen so far.
unsigned fake_count(struct fake *fake, const char *method);

// Breaks all connections of a server, and refuses new ones until it is up again.
void fake_down(struct fake *fake, int server, bool down);

// Stops a server; what it was sent meanwhile is done when it goes on.
void fake_stop_server(struct fake *fake, int server, bool stopped);

// The index in `servers` of the i-th chunkserver.
int fake_peer(const struct fake *fake, int index);

// Byte of the volume as stored (no stripes).
uint8_t fake_byte(struct fake *fake, uint64_t offset);

// Makes a segment of the clone's source, the bytes of its chunks `value`, value + 1, ...
void fake_fill_source(struct fake *fake, uint64_t index, uint8_t value);

#endif
