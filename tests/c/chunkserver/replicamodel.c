// SPDX-License-Identifier: BSD-3-Clause
#include "replicamodel.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pb_decode.h>
#include <pb_encode.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/crc32c.h"
#include "chunkserver/catchup_wire.h"
#include "chunkserver/peers.h"
#include "gateway/proto/catchup.pb.h"
#include "rpc/channel.h"
#include "simreactor.h"

#define TURN_NS   (50 * CG_NS_PER_US)
#define LIMIT     4000000U
#define RETRY_NS  (50 * CG_NS_PER_MS)
#define ANSWER_NS (3 * CG_NS_PER_S)
#define BROKEN_NS (20 * CG_NS_PER_MS) // until a connection is seen to be gone
#define CLIENT    77U
#define VOLUME    5U

// ---- Chance

static uint64_t next_random(struct replicamodel *model) {
    uint64_t x = model->random;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    model->random = x;
    return x * UINT64_C(0x2545f4914f6cdd1d);
}

uint64_t model_pick(struct replicamodel *model, uint64_t below) {
    return (next_random(model) >> 11) % below;
}

static void tell(const struct member *member) {
    struct cg_copyset *copyset = model_copyset(member);
    if (copyset == NULL || cg_copyset_raft(copyset) == NULL) {
        fprintf(stderr, "member %u is down\n", member->at);
        return;
    }
    struct cg_copyset_log_status status;
    cg_copyset_log_status(cg_copyset_raft(copyset), &status);
    fprintf(stderr,
            "member %u (%" PRIx64 "): role %d term %" PRIu64 " leader %" PRIx64 " base %" PRIu64
            " last %" PRIu64 " commit %" PRIu64 " delivered %" PRIu64 " applied %" PRIu64
            "%s%s, operations %" PRIu32 ", bad %" PRIu32 "\n",
            member->at, member->id, (int)status.role, status.term, status.leader, status.base_index,
            status.last_index, status.commit_index, status.delivered_index,
            cg_copyset_applied(copyset), copyset->paused ? " paused" : "",
            copyset->incomplete ? " incomplete" : "", member->store->ops_active,
            member->store->bad.count);
    for (uint32_t i = 0; i < status.peer_count; i++) {
        const struct cg_copyset_log_peer_status *peer = &status.peer[i];
        fprintf(stderr, "  peer %" PRIx64 ": match %" PRIu64 " next %" PRIu64 "%s%s\n", peer->id,
                peer->progress.match, peer->progress.next,
                peer->progress.snapshot ? " snapshot" : "",
                peer->progress.learner ? " learner" : "");
    }
}

_Noreturn void model_fail(const struct replicamodel *model, const char *what) {
    fprintf(stderr, "seed %" PRIu64 ": %s\n", model->seed, what);
    for (unsigned at = 0; at < MEMBERS; at++) {
        tell(&model->member[at]);
    }
    abort();
}

static void require(const struct replicamodel *model, bool condition, const char *what) {
    if (!condition) {
        model_fail(model, what);
    }
}

static void *allocate(size_t size) {
    void *memory = calloc(1, size > 0 ? size : 1);
    if (memory == NULL) {
        abort();
    }
    return memory;
}

// ---- The network

enum packet_kind {
    PACKET_RAFT,
    PACKET_CALL,
    PACKET_REPLY,
    PACKET_BROKEN, // the call fails
};

struct packet_entry {
    uint32_t type;
    uint64_t term;
    uint64_t index;
    uint32_t meta_length;
    uint8_t meta[1024];
    uint32_t payload_length;
    uint8_t *payload;
};

struct packet {
    struct cg_list node;
    enum packet_kind kind;
    unsigned from;
    unsigned to;
    unsigned from_life;
    unsigned to_life;
    uint64_t due_ns;
    // RAFT
    struct cg_raft_message message;
    struct packet_entry *entries;
    // CALL, REPLY
    struct cg_rpc_call *call; // NULL: cancelled
    const char *method;
    uint8_t bytes[1024];
    uint32_t length;
    uint8_t *data;
    uint32_t data_length;
    struct arrived *arrived; // the request that it is to answer
};

// A request at the server's side: what it takes to answer it.
struct arrived {
    struct cg_server_request request;
    struct replicamodel *model;
    unsigned from;
    unsigned to;
    struct packet *waiting; // in the answer's place; NULL: the caller has given up
};

static struct packet *packet_make(struct replicamodel *model, enum packet_kind kind, unsigned from,
                                  unsigned to) {
    struct packet *packet = allocate(sizeof(*packet));
    packet->kind = kind;
    packet->from = from;
    packet->to = to;
    packet->from_life = model->member[from].life;
    packet->to_life = model->member[to].life;
    packet->due_ns = model->now + model_pick(model, 200 * CG_NS_PER_US);
    cg_list_push_back(&model->network, &packet->node);
    model->queued++;
    return packet;
}

static void packet_free(struct replicamodel *model, struct packet *packet) {
    cg_list_remove(&packet->node);
    model->queued--;
    if (packet->entries != NULL) {
        for (uint32_t i = 0; i < packet->message.count; i++) {
            free(packet->entries[i].payload);
        }
    }
    if (packet->arrived != NULL) {
        packet->arrived->waiting = NULL;
    }
    free(packet->entries);
    free(packet->data);
    free(packet);
}

static void send_message(void *context, uint64_t group, const struct cg_raft_message *message,
                         struct cg_log_entry *const *entries) {
    struct member *member = context;
    struct replicamodel *model = member->model;
    (void)group;
    unsigned to = (unsigned)((uint32_t)message->to - 1);
    if (to >= MEMBERS) {
        return;
    }
    struct packet *packet = packet_make(model, PACKET_RAFT, member->at, to);
    packet->message = *message;
    packet->message.entries = NULL;
    if (message->type != CG_RAFT_APPEND) {
        packet->message.count = 0;
        return;
    }
    packet->entries = allocate(message->count * sizeof(*packet->entries));
    for (uint32_t i = 0; i < message->count; i++) {
        struct packet_entry *copy = &packet->entries[i];
        copy->type = entries[i]->type;
        copy->term = entries[i]->term;
        copy->index = entries[i]->index;
        copy->meta_length = entries[i]->meta_length;
        memcpy(copy->meta, entries[i]->meta, copy->meta_length);
        copy->payload_length = entries[i]->payload_length;
        if (copy->payload_length > 0) {
            copy->payload = allocate(copy->payload_length);
            memcpy(copy->payload, entries[i]->payload, copy->payload_length);
        }
    }
}

static void deliver_message(struct member *member, const struct packet *packet) {
    struct cg_log_entry **entries = allocate(packet->message.count * sizeof(struct cg_log_entry *));
    bool whole = true;
    for (uint32_t i = 0; i < packet->message.count; i++) {
        const struct packet_entry *copy = &packet->entries[i];
        struct cg_buffer *buffer = NULL;
        if (copy->payload_length > 0) {
            buffer = cg_buffer_alloc(member->pool, copy->payload_length);
            if (buffer == NULL) {
                whole = false;
                break;
            }
            memcpy(buffer->data, copy->payload, copy->payload_length);
        }
        entries[i] = cg_log_entry_make(
            copy->type, copy->term, copy->index, copy->meta, copy->meta_length, buffer,
            buffer != NULL ? buffer->data : NULL, copy->payload_length, NULL);
        cg_buffer_unref(buffer);
    }
    struct cg_copyset *copyset = model_copyset(member);
    if (whole && copyset != NULL && packet->message.to == member->id) {
        cg_store_receive(member->store, copyset->group, &packet->message, entries);
    }
    for (uint32_t i = 0; i < packet->message.count; i++) {
        cg_log_entry_unref(entries[i]);
    }
    free(entries);
}

// ---- Calls, in place of real sockets

struct cg_peers {
    struct member *member;
};

struct cg_channel {
    struct member *member;
    unsigned to;
};

static struct cg_peers sim_peers[MEMBERS];
static struct cg_channel sim_channel[MEMBERS][MEMBERS];

struct cg_channel *cg_peers_channel(struct cg_peers *peers, uint32_t chunkserver) {
    unsigned to = chunkserver - 1;
    return to < MEMBERS ? &sim_channel[peers->member->at][to] : NULL;
}

void cg_channel_call(struct cg_channel *channel, struct cg_rpc_call *call) {
    struct replicamodel *model = channel->member->model;
    struct packet *packet = packet_make(model, PACKET_CALL, channel->member->at, channel->to);
    packet->call = call;
    packet->method = call->method->name;
    pb_ostream_t stream = pb_ostream_from_buffer(packet->bytes, sizeof(packet->bytes));
    if (!pb_encode(&stream, call->request_fields, call->request)) {
        abort();
    }
    packet->length = (uint32_t)stream.bytes_written;
    call->channel = channel;
}

static void end_call(struct cg_rpc_call *call, int status, const struct packet *packet) {
    call->status = status;
    call->received_length = 0;
    call->reply_length = 0;
    if (status == 0) {
        call->reply = packet->bytes;
        call->reply_length = packet->length;
        uint32_t done = 0;
        if (packet->data_length > call->receive_capacity) {
            abort();
        }
        for (int i = 0; i < call->receive_iovcnt && done < packet->data_length; i++) {
            uint32_t rest = packet->data_length - done;
            uint32_t part =
                rest < call->receive_iov[i].iov_len ? rest : (uint32_t)call->receive_iov[i].iov_len;
            memcpy(call->receive_iov[i].iov_base, packet->data + done, part);
            done += part;
        }
        call->received_length = done;
    }
    call->done(call);
}

void cg_channel_cancel(struct cg_channel *channel, struct cg_rpc_call *call) {
    struct replicamodel *model = channel->member->model;
    CG_LIST_FOREACH (node, &model->network) {
        struct packet *packet = CG_CONTAINER_OF(node, struct packet, node);
        if (packet->call == call) {
            packet->call = NULL;
        }
    }
    end_call(call, -ECANCELED, NULL);
}

static struct packet *answer_of(struct cg_server_request *request) {
    struct arrived *arrived = CG_CONTAINER_OF(request, struct arrived, request);
    struct packet *packet = arrived->waiting;
    if (packet == NULL) {
        packet = packet_make(arrived->model, PACKET_REPLY, arrived->to, arrived->from);
    }
    packet->arrived = NULL;
    packet->due_ns = arrived->model->now + model_pick(arrived->model, 200 * CG_NS_PER_US);
    packet->kind = PACKET_REPLY;
    free(arrived);
    return packet;
}

void cg_server_reply(struct cg_server_request *request, const pb_msgdesc_t *fields,
                     const void *response, const struct iovec *iov, int iovcnt,
                     void (*release)(void *argument), void *argument) {
    struct replicamodel *model = CG_CONTAINER_OF(request, struct arrived, request)->model;
    copygate_CopyReply garbled = *(const copygate_CopyReply *)response;
    if (model->garbled_members > 0 && garbled.members_count > 1) {
        model->garbled_members--;
        garbled.members[1].id = garbled.members[0].id;
        response = &garbled;
    }
    struct packet *packet = answer_of(request);
    pb_ostream_t stream = pb_ostream_from_buffer(packet->bytes, sizeof(packet->bytes));
    if (!pb_encode(&stream, fields, response)) {
        abort();
    }
    packet->length = (uint32_t)stream.bytes_written;
    for (int i = 0; i < iovcnt; i++) {
        packet->data = realloc(packet->data, packet->data_length + iov[i].iov_len + 1);
        if (packet->data == NULL) {
            abort();
        }
        memcpy(packet->data + packet->data_length, iov[i].iov_base, iov[i].iov_len);
        packet->data_length += (uint32_t)iov[i].iov_len;
    }
    if (release != NULL) {
        release(argument);
    }
}

void cg_server_reply_error(struct cg_server_request *request, int32_t code, const char *text) {
    (void)request;
    (void)code;
    fprintf(stderr, "a request was refused: %s\n", text);
    abort();
}

static void deliver_call(struct member *member, struct packet *packet) {
    struct replicamodel *model = member->model;
    struct arrived *arrived = allocate(sizeof(*arrived));
    arrived->model = model;
    arrived->from = packet->from;
    arrived->to = packet->to;
    arrived->waiting = packet_make(model, PACKET_BROKEN, packet->to, packet->from);
    arrived->waiting->due_ns = model->now + ANSWER_NS;
    arrived->waiting->call = packet->call;
    arrived->waiting->arrived = arrived;
    arrived->request.message = packet->bytes;
    arrived->request.message_length = packet->length;
    for (unsigned i = 0; i < CG_CATCHUP_METHODS; i++) {
        if (strcmp(member->methods[i].name, packet->method) == 0) {
            arrived->request.method = &member->methods[i];
            model->calls[i]++;
        }
    }
    arrived->request.method->handle(&arrived->request);
}

// The call's owner may be gone, or have given it up.
static void deliver_end(struct member *member, struct packet *packet) {
    if (packet->call == NULL || packet->to_life != member->life || member->store == NULL) {
        return;
    }
    int status = packet->kind == PACKET_REPLY ? 0 : -ECONNRESET;
    end_call(packet->call, status, packet);
}

static void deliver(struct replicamodel *model, struct packet *packet) {
    struct member *to = &model->member[packet->to];
    bool lost = model->cut[packet->from][packet->to] || to->store == NULL;
    if (packet->kind == PACKET_CALL) {
        lost = lost || (model->lose_calls && model_pick(model, 8) == 0);
        if (packet->call != NULL && packet->from_life == model->member[packet->from].life) {
            if (lost) {
                struct packet *broken = packet_make(model, PACKET_BROKEN, packet->to, packet->from);
                broken->due_ns = model->now + BROKEN_NS;
                broken->call = packet->call;
            } else {
                deliver_call(to, packet);
            }
        }
    } else if (packet->kind == PACKET_RAFT) {
        if (!lost) {
            deliver_message(to, packet);
        }
    } else if (lost && packet->kind == PACKET_REPLY) {
        packet->kind = PACKET_BROKEN;
        packet->due_ns = model->now + BROKEN_NS;
        return; // it stays for a while
    } else {
        deliver_end(to, packet);
    }
    packet_free(model, packet);
}

static bool deliver_one(struct replicamodel *model) {
    CG_LIST_FOREACH (node, &model->network) {
        struct packet *packet = CG_CONTAINER_OF(node, struct packet, node);
        if (packet->due_ns <= model->now) {
            deliver(model, packet);
            return true;
        }
    }
    return false;
}

// ---- Members

struct cg_copyset *model_copyset(const struct member *member) {
    return member->store != NULL ? cg_store_copyset(member->store, POOL, COPYSET) : NULL;
}

struct cg_catchup_stats model_stats(const struct member *member) {
    struct cg_catchup_stats stats;
    cg_catchup_stats(member->catchup, &stats);
    return stats;
}

static void copy_state(void *context, struct cg_copyset *copyset, uint64_t to) {
    struct member *member = context;
    cg_catchup_copy_state(member->catchup, copyset, to);
}

static void damaged(void *context, struct cg_copyset *copyset, uint64_t chunk_id, uint32_t block) {
    struct member *member = context;
    cg_catchup_damaged(member->catchup, copyset, chunk_id, block);
}

static void mend(void *context, struct cg_mend *wanted) {
    struct member *member = context;
    cg_catchup_mend(member->catchup, wanted);
}

static uint64_t clock_now(void *context) {
    const struct member *member = context;
    return member->model->now;
}

void model_start(struct replicamodel *model, unsigned at) {
    struct member *member = &model->member[at];
    struct cg_store_options options = model->options;
    char error[256] = "";
    require(model, member->store == NULL, "it is up");
    member->life++;
    member->reactor = simreactor_create(member->sim);
    simreactor_advance(member->reactor, model->now);
    options.send = send_message;
    options.send_context = member;
    options.now = clock_now;
    options.now_context = member;
    options.events = (struct cg_store_events){
        .copy_state = copy_state, .damaged = damaged, .mend = mend, .context = member};
    const struct cg_catchup_options catchup = {.peers = &sim_peers[at], .rate = model->rate};
    if (cg_buffer_pool_create(64U << 20, &member->pool) != 0 ||
        cg_catchup_create(&catchup, &member->catchup) != 0) {
        abort();
    }
    struct cg_store *store;
    int result = cg_store_open(simdisk_disk(member->sim), member->reactor, member->pool, &options,
                               &store, error, sizeof(error));
    if (result != 0) {
        fprintf(stderr, "open: %s\n", error);
        model_fail(model, "a store cannot be opened");
    }
    member->store = store;
    cg_catchup_methods(member->catchup, member->methods);
    require(model, cg_catchup_start(member->catchup, store) == 0, "catchup does not start");
}

static void add(struct replicamodel *model, unsigned at, const uint64_t *founders, uint32_t count) {
    struct member *member = &model->member[at];
    struct cg_copyset_spec spec = {.pool = POOL,
                                   .copyset = COPYSET,
                                   .self = member->id,
                                   .founders = founders,
                                   .founder_count = count};
    require(model, cg_store_add_copyset(member->store, &spec) == 0, "a copyset cannot be added");
}

void model_found(struct replicamodel *model) {
    const uint64_t founders[] = {1, 2, 3};
    for (unsigned at = 0; at < 3; at++) {
        model_start(model, at);
        add(model, at, founders, 3);
    }
}

// What a process that died leaves behind is dropped as it is: its memory, too.
void model_crash(struct replicamodel *model, unsigned at, enum simdisk_crash mode) {
    struct member *member = &model->member[at];
    require(model, member->store != NULL, "it is down");
    simdisk_crash(member->sim, mode);
    member->store = NULL;
    member->catchup = NULL;
    member->life++;
    CG_LIST_FOREACH_SAFE (node, next, &model->network) {
        struct packet *packet = CG_CONTAINER_OF(node, struct packet, node);
        if (packet->kind == PACKET_CALL && packet->from == at) {
            packet_free(model, packet);
        }
    }
    for (unsigned i = 0; i < PENDING; i++) {
        if (model->op[i].used && model->op[i].sent && model->op[i].to == at) {
            model->op[i].sent = false;
            model->op[i].due_ns = model->now + RETRY_NS;
        }
    }
}

static struct simdisk *make_disk(struct replicamodel *model) {
    struct simdisk_options options = {.seed = next_random(model),
                                      .capacity_bytes = model->disk_bytes};
    return simdisk_create(&options);
}

void model_wipe(struct replicamodel *model, unsigned at) {
    struct member *member = &model->member[at];
    require(model, member->store == NULL, "it is up");
    simdisk_destroy(member->sim);
    member->sim = make_disk(model);
    member->id += UINT64_C(1) << 32;
    model_start(model, at);
    add(model, at, NULL, 0);
}

void model_isolate(struct replicamodel *model, unsigned at, bool cut) {
    for (unsigned i = 0; i < MEMBERS; i++) {
        model->cut[at][i] = model->cut[i][at] = cut && i != at;
    }
}

unsigned model_leader(const struct replicamodel *model) {
    unsigned leader = MEMBERS;
    uint64_t term = 0;
    for (unsigned at = 0; at < MEMBERS; at++) {
        struct cg_copyset *copyset = model_copyset(&model->member[at]);
        if (copyset == NULL || !cg_copyset_leads(copyset)) {
            continue;
        }
        struct cg_copyset_log_status status;
        cg_copyset_log_status(cg_copyset_raft(copyset), &status);
        if (status.term > term) {
            leader = at;
            term = status.term;
        }
    }
    return leader;
}

void model_create(struct replicamodel *model, uint64_t seed) {
    memset(model, 0, sizeof(*model));
    model->seed = seed;
    model->random = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    model->now = CG_NS_PER_S;
    model->options = (struct cg_store_options){
        .chunk_size = CHUNK_SIZE,
        .wal_bytes = 8U << 20,
        .wal_segment_bytes = 1U << 20,
        .log_cache_bytes = 1U << 20,
        .chunks_max = 64,
        .operations_max = 1024,
        .checkpoint_interval_ns = 200 * CG_NS_PER_MS,
    };
    cg_list_init(&model->network);
    for (unsigned at = 0; at < MEMBERS; at++) {
        model->member[at] = (struct member){.model = model, .at = at, .id = at + 1};
        model->member[at].sim = make_disk(model);
        sim_peers[at].member = &model->member[at];
        for (unsigned to = 0; to < MEMBERS; to++) {
            sim_channel[at][to] = (struct cg_channel){&model->member[at], to};
        }
    }
}

static void close_member(struct replicamodel *model, struct member *member) {
    cg_catchup_stop(member->catchup);
    cg_store_scrub_stop(member->store);
    for (unsigned i = 0; !cg_catchup_idle(member->catchup); i++) {
        require(model, i < LIMIT, "catchup does not end");
        model_turn(model);
    }
    cg_store_stop(member->store);
    for (unsigned i = 0; !cg_store_idle(member->store) || simdisk_pending(member->sim) > 0; i++) {
        require(model, i < LIMIT, "the store does not end");
        model_turn(model);
    }
    cg_store_close(member->store);
    cg_catchup_destroy(member->catchup);
    require(model, cg_buffer_pool_in_use(member->pool) == 0, "buffers are left");
    cg_buffer_pool_destroy(member->pool);
    simreactor_destroy(member->reactor);
    member->store = NULL;
    member->life++;
}

void model_destroy(struct replicamodel *model) {
    for (unsigned at = 0; at < MEMBERS; at++) {
        if (model->member[at].store != NULL) {
            close_member(model, &model->member[at]);
        }
    }
    while (!cg_list_empty(&model->network)) {
        packet_free(model, CG_CONTAINER_OF(model->network.next, struct packet, node));
    }
    for (unsigned at = 0; at < MEMBERS; at++) {
        simdisk_destroy(model->member[at].sim);
    }
}

// ---- Time

static void resend(struct replicamodel *model);

void model_turn(struct replicamodel *model) {
    unsigned at = (unsigned)model_pick(model, MEMBERS);
    struct member *member = &model->member[at];
    bool moved = deliver_one(model);
    if (member->store != NULL) {
        moved = simdisk_step(member->sim) || moved;
        simreactor_iterate(member->reactor);
    }
    if (!moved || model_pick(model, 4) == 0) {
        model->now += TURN_NS;
        for (unsigned i = 0; i < MEMBERS; i++) {
            if (model->member[i].store != NULL) {
                simreactor_advance(model->member[i].reactor, TURN_NS);
            }
        }
        resend(model);
    }
}

void model_run(struct replicamodel *model, unsigned turns) {
    for (unsigned i = 0; i < turns; i++) {
        model_turn(model);
    }
}

void model_until(struct replicamodel *model, bool (*ready)(struct replicamodel *model),
                 const char *what) {
    for (unsigned i = 0; i < LIMIT; i++) {
        if (ready(model)) {
            return;
        }
        model_turn(model);
    }
    model_fail(model, what);
}

static bool has_leader(struct replicamodel *model) {
    return model_leader(model) < MEMBERS;
}

void model_await_leader(struct replicamodel *model) {
    model_until(model, has_leader, "nobody leads");
}

// ---- The client

static void fill(uint8_t *block, uint64_t stamp, unsigned chunk, unsigned at) {
    for (unsigned i = 0; i < CG_BLOCK_SIZE; i += 16) {
        uint64_t head = stamp ^ i;
        uint64_t place = ((uint64_t)chunk << 32) | at;
        memcpy(block + i, &head, 8);
        memcpy(block + i + 8, &place, 8);
    }
}

static bool holds(const uint8_t *block, uint64_t stamp, unsigned chunk, unsigned at) {
    uint8_t expected[CG_BLOCK_SIZE] = {0};
    if (stamp != 0) {
        fill(expected, stamp, chunk, at);
    }
    return memcmp(block, expected, CG_BLOCK_SIZE) == 0;
}

static void set_range(struct replicamodel *model, const struct cg_mutation *mutation, bool locked) {
    unsigned first = mutation->offset / CG_BLOCK_SIZE;
    unsigned count = mutation->size / CG_BLOCK_SIZE;
    if (mutation->kind == CG_MUTATE_DELETE) {
        first = 0;
        count = CHUNK_BLOCKS;
    }
    for (unsigned i = first; i < first + count; i++) {
        model->locked[mutation->chunk_id][i] = locked;
    }
}

static void take_effect(struct client_op *op) {
    struct replicamodel *model = op->model;
    const struct cg_mutation *mutation = &op->mutation;
    unsigned first = mutation->offset / CG_BLOCK_SIZE;
    unsigned count = mutation->size / CG_BLOCK_SIZE;
    if (mutation->kind == CG_MUTATE_DELETE) {
        first = 0;
        count = CHUNK_BLOCKS;
    }
    for (unsigned i = first; i < first + count; i++) {
        model->expected[mutation->chunk_id][i] = mutation->kind == CG_MUTATE_WRITE ? op->stamp : 0;
    }
    set_range(model, mutation, false);
    op->used = false;
    model->done++;
}

static void answered(void *user, const struct cg_mutation_result *result) {
    struct client_op *op = user;
    struct replicamodel *model = op->model;
    if (!op->used || !op->sent) {
        return; // from a life that is over
    }
    op->sent = false;
    if (result->status == STATUS(SUCCESS)) {
        take_effect(op);
    } else if (result->status == STATUS(REDIRECTED) || result->status == STATUS(OVERLOAD) ||
               result->status == STATUS(NOSPACE)) {
        op->due_ns = model->now + RETRY_NS;
    } else {
        fprintf(stderr, "status %d\n", (int)result->status);
        model_fail(model, "an operation failed");
    }
}

static void send_op(struct client_op *op) {
    struct replicamodel *model = op->model;
    unsigned leader = model_leader(model);
    if (leader == MEMBERS) {
        op->due_ns = model->now + RETRY_NS;
        return;
    }
    struct member *member = &model->member[leader];
    struct cg_mutation mutation = op->mutation;
    mutation.copyset = model_copyset(member);
    if (mutation.kind == CG_MUTATE_WRITE) {
        mutation.buffer = cg_buffer_alloc(member->pool, mutation.size);
        if (mutation.buffer == NULL) {
            op->due_ns = model->now + RETRY_NS;
            return;
        }
        for (unsigned i = 0; i < mutation.size / CG_BLOCK_SIZE; i++) {
            fill(mutation.buffer->data + (size_t)i * CG_BLOCK_SIZE, op->stamp,
                 (unsigned)mutation.chunk_id, mutation.offset / CG_BLOCK_SIZE + i);
        }
    }
    op->sent = true;
    op->to = leader;
    op->life = member->life;
    cg_store_mutate(member->store, &mutation);
    cg_buffer_unref(mutation.buffer);
}

static void resend(struct replicamodel *model) {
    for (unsigned i = 0; i < PENDING; i++) {
        struct client_op *op = &model->op[i];
        if (op->used && !op->sent && op->due_ns <= model->now) {
            send_op(op);
        }
    }
}

struct unaligned {
    struct replicamodel *model;
    bool done;
    cg_status status;
};

static void unaligned_done(void *user, const struct cg_mutation_result *result) {
    struct unaligned *unaligned = user;
    unaligned->done = true;
    unaligned->status = result->status;
}

static bool range_free(const struct replicamodel *model, unsigned chunk, unsigned first,
                       unsigned count) {
    for (unsigned i = first; i < first + count; i++) {
        if (model->locked[chunk][i]) {
            return false;
        }
    }
    return true;
}

static void begin(struct replicamodel *model, enum cg_op_kind kind, unsigned chunk, unsigned first,
                  unsigned count) {
    for (unsigned i = 0; i < PENDING; i++) {
        struct client_op *op = &model->op[i];
        if (op->used) {
            continue;
        }
        *op = (struct client_op){.used = true, .model = model};
        op->stamp = ++model->sequence;
        op->mutation = (struct cg_mutation){
            .kind = kind,
            .has_client = true,
            .chunk_id = chunk,
            .file_id = VOLUME,
            .sn = 1,
            .client_id = CLIENT + i,
            .sequence = op->stamp,
            .settled_below = op->stamp,
            .offset = kind == CG_MUTATE_DELETE ? 0 : first * CG_BLOCK_SIZE,
            .size = kind == CG_MUTATE_DELETE ? 0 : count * CG_BLOCK_SIZE,
            .done = answered,
            .user = op,
        };
        set_range(model, &op->mutation, true);
        send_op(op);
        return;
    }
}

bool model_unaligned(struct replicamodel *model, unsigned chunk, unsigned block) {
    struct member *member = &model->member[model_leader(model)];
    struct unaligned unaligned = {.model = model};
    struct cg_buffer *buffer = cg_buffer_alloc(member->pool, CG_BLOCK_SIZE);
    if (buffer == NULL) {
        abort();
    }
    // The bytes that are there already.
    fill(buffer->data, model->expected[chunk][block], chunk, block);
    struct cg_mutation mutation = {
        .kind = CG_MUTATE_WRITE,
        .copyset = model_copyset(member),
        .chunk_id = chunk,
        .file_id = VOLUME,
        .sn = 1,
        .offset = block * CG_BLOCK_SIZE + 512,
        .size = 1024,
        .buffer = buffer,
        .data_offset = 512,
        .done = unaligned_done,
        .user = &unaligned,
    };
    memset(buffer->data, 0, 512);
    memset(buffer->data + 1536, 0, CG_BLOCK_SIZE - 1536);
    cg_store_mutate(member->store, &mutation);
    cg_buffer_unref(buffer);
    for (unsigned i = 0; i < LIMIT && !unaligned.done; i++) {
        model_turn(model);
    }
    require(model, unaligned.done, "an unaligned write is not answered");
    return unaligned.status == STATUS(SUCCESS);
}

void model_write(struct replicamodel *model, unsigned chunk, unsigned block) {
    model_drain(model);
    begin(model, CG_MUTATE_WRITE, chunk, block, 1);
}

void model_mutate(struct replicamodel *model) {
    unsigned chunk = (unsigned)model_pick(model, model->focus != 0 ? model->focus : CHUNKS);
    unsigned first = (unsigned)model_pick(model, CHUNK_BLOCKS);
    unsigned count = 1 + (unsigned)model_pick(model, model_pick(model, 4) == 0 ? 32 : 2);
    count = count < CHUNK_BLOCKS - first ? count : CHUNK_BLOCKS - first;
    uint64_t dice = model_pick(model, 100);
    if (dice < 1 && range_free(model, chunk, 0, CHUNK_BLOCKS)) {
        begin(model, CG_MUTATE_DELETE, chunk, 0, CHUNK_BLOCKS);
    } else if (range_free(model, chunk, first, count)) {
        begin(model, dice < 15 ? CG_MUTATE_TRIM : CG_MUTATE_WRITE, chunk, first, count);
    }
}

static bool drained(struct replicamodel *model) {
    for (unsigned i = 0; i < PENDING; i++) {
        if (model->op[i].used) {
            return false;
        }
    }
    return true;
}

void model_drain(struct replicamodel *model) {
    model_until(model, drained, "operations are not answered");
}

struct reading {
    struct replicamodel *model;
    struct cg_copyset *copyset;
    unsigned chunk;
    unsigned block;
    bool done;
    cg_status status;
    bool right;
    struct cg_copy_chunk metadata; // all zeros: no such chunk
};

static void was_read(void *user, const struct cg_read_result *result) {
    struct reading *reading = user;
    reading->done = true;
    reading->status = result->status;
    uint64_t stamp = reading->model->expected[reading->chunk][reading->block];
    if (result->status == STATUS(SUCCESS)) {
        reading->right = holds(result->data, stamp, reading->chunk, reading->block);
        const struct cg_chunk *chunk = cg_chunk_find(reading->copyset, reading->chunk);
        reading->metadata = (struct cg_copy_chunk){.id = chunk->id,
                                                   .sn = chunk->sn,
                                                   .file_id = chunk->file_id,
                                                   .applied_index = chunk->applied_index};
        memcpy(reading->metadata.allocated, chunk->slot->allocated,
               sizeof(reading->metadata.allocated));
    } else {
        reading->right = result->status == STATUS(CHUNK_NOTEXIST) && stamp == 0;
    }
}

static bool read_at(struct replicamodel *model, struct member *member, bool local, unsigned chunk,
                    unsigned block, struct reading *out) {
    struct reading reading = {
        .model = model, .copyset = model_copyset(member), .chunk = chunk, .block = block};
    struct cg_query query = {
        .kind = CG_READ_DATA,
        .copyset = model_copyset(member),
        .chunk_id = chunk,
        .offset = block * CG_BLOCK_SIZE,
        .size = CG_BLOCK_SIZE,
        .local = local,
        .done = was_read,
        .user = &reading,
    };
    cg_store_read(member->store, &query);
    for (unsigned i = 0; i < LIMIT && !reading.done; i++) {
        model_turn(model);
    }
    require(model, reading.done, "a read is not answered");
    *out = reading;
    return reading.right;
}

void model_read(struct replicamodel *model, unsigned chunk, unsigned block) {
    for (unsigned tries = 0; tries < 100; tries++) {
        model_await_leader(model);
        struct reading reading;
        if (read_at(model, &model->member[model_leader(model)], false, chunk, block, &reading)) {
            return;
        }
        if (reading.status != STATUS(REDIRECTED) && reading.status != STATUS(OVERLOAD)) {
            fprintf(stderr, "status %d\n", (int)reading.status);
            model_fail(model, "a read at the leader is wrong");
        }
        model_run(model, 1000);
    }
    model_fail(model, "the leader does not read");
}

cg_status model_look(struct replicamodel *model, unsigned at, unsigned chunk, unsigned block) {
    struct reading reading;
    bool right = read_at(model, &model->member[at], true, chunk, block, &reading);
    require(model, right || reading.status != STATUS(SUCCESS), "wrong data are read");
    return reading.status;
}

// ---- Checks

static bool all_applied(struct replicamodel *model) {
    unsigned leader = model_leader(model);
    if (leader == MEMBERS) {
        return false;
    }
    struct cg_copyset_log_status lead;
    cg_copyset_log_status(cg_copyset_raft(model_copyset(&model->member[leader])), &lead);
    for (unsigned at = 0; at < MEMBERS; at++) {
        struct cg_copyset *copyset = model_copyset(&model->member[at]);
        if (copyset != NULL &&
            (cg_copyset_applied(copyset) != lead.last_index || cg_copyset_incomplete(copyset))) {
            return false;
        }
    }
    return true;
}

static void read_again_later(struct replicamodel *model) {
    model_run(model, 1000);
}

// Every block, and the metadata, of a chunk at one of them.
static struct cg_copy_chunk check_chunk(struct replicamodel *model, struct member *member,
                                        unsigned chunk) {
    struct reading reading;
    for (unsigned block = 0; block < CHUNK_BLOCKS; block++) {
        while (!read_at(model, member, true, chunk, block, &reading)) {
            if (reading.status != STATUS(OVERLOAD)) {
                fprintf(stderr, "member %u, chunk %u, block %u, status %d\n", member->at, chunk,
                        block, (int)reading.status);
                model_fail(model, "a replica has something else");
            }
            read_again_later(model); // it looks whether it needs a copy
        }
    }
    return reading.metadata;
}

void model_check_equal(struct replicamodel *model) {
    model_until(model, all_applied, "the replicas do not become equal");
    for (unsigned chunk = 0; chunk < CHUNKS; chunk++) {
        struct cg_copy_chunk first = {.id = UINT64_MAX};
        for (unsigned at = 0; at < MEMBERS; at++) {
            struct member *member = &model->member[at];
            if (member->store == NULL) {
                continue;
            }
            struct cg_copy_chunk here = check_chunk(model, member, chunk);
            first = first.id == UINT64_MAX ? here : first;
            require(model, memcmp(&here, &first, sizeof(here)) == 0,
                    "the metadata of a chunk differ");
        }
    }
}
