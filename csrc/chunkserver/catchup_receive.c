// SPDX-License-Identifier: BSD-3-Clause
//
// A replica whose state is copied here, from the beginning (the store lets go of it) to the end
// (its log goes on from the copied state). Whatever goes wrong in between, it tries again: from the
// leader there is then. Chunks that an earlier try copied and that have not changed since are not
// copied again.
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "chunkserver/catchup_internal.h"
#include "chunkserver/copyset_log_record.h"

#define STATE_MAX (64U << 20) // bytes: windows and epochs
#define WATCH_NS  (30 * CG_NS_PER_S)

static void fail(struct cg_copy *copy, int status, const char *what);
static void walk(struct cg_copy *copy);

static struct cg_store *store_of(const struct cg_copy *copy) {
    return copy->catchup->store;
}

static void submit(struct cg_copy *copy, void (*call)(struct cg_file_op *op),
                   void (*done)(struct cg_file_op *op)) {
    struct cg_disk *disk = store_of(copy)->disk;
    copy->op = (struct cg_file_op){.opcode = CG_FILE_CALL, .call = call, .done = done};
    disk->ops->submit(disk, &copy->op);
}

static void ask(struct cg_copy *copy, enum cg_copy_method method,
                void (*done)(struct cg_copy_call *call)) {
    copy->call.request.has_copying = true;
    copy->call.request.copying = copy->copying;
    copy->call.done = done;
    cg_copy_ask(copy->catchup, copy->copyset, copy->source, method, &copy->call);
}

// 0, or why the answer is none.
static int status_of(const struct cg_copy_call *call) {
    if (call->status != 0) {
        return call->status;
    }
    switch (call->reply.status) {
    case CG_COPY(OK):
        return 0;
    case CG_COPY(UNKNOWN):
        return -ESTALE;
    case CG_COPY(NOT_LEADER):
        return -EPERM;
    default:
        return -EAGAIN;
    }
}

// ---- The end of a try

static void release(struct cg_copy *copy) {
    struct cg_catchup *catchup = copy->catchup;
    if (copy->working) {
        copy->working = false;
        catchup->working--;
    }
    cg_copyset_state_clear(&copy->state);
    if (copy->pull != NULL) {
        cg_chunk_pull_free(copy->pull);
        free(copy->pull);
        copy->pull = NULL;
    }
    free(copy->page);
    free(copy->records);
    free(copy->ours);
    copy->page = NULL;
    copy->records = NULL;
    copy->ours = NULL;
    copy->our_count = 0;
    copy->our_capacity = 0;
    copy->stage = CG_COPY_IDLE;
}

void cg_copy_free(struct cg_copy *copy) {
    struct cg_catchup *catchup = copy->catchup;
    release(copy);
    free(copy->known);
    free(copy->fresh);
    cg_list_remove(&copy->node);
    free(copy);
    cg_catchup_ended(catchup);
}

// What this try has copied, and what earlier ones had behind the point where it ended.
static void keep_known(struct cg_copy *copy) {
    uint32_t rest = copy->known_count - copy->known_at;
    if (copy->fresh == NULL || copy->fresh_count == 0) {
        copy->fresh_count = 0;
        return;
    }
    uint32_t count = copy->fresh_count + rest;
    struct cg_copy_known *all = realloc(copy->fresh, count * sizeof(*all));
    if (all == NULL) {
        copy->fresh_count = 0; // they are copied again
        return;
    }
    if (rest > 0) {
        memcpy(all + copy->fresh_count, copy->known + copy->known_at, rest * sizeof(*all));
    }
    free(copy->known);
    copy->known = all;
    copy->known_count = count;
    copy->fresh = NULL;
    copy->fresh_count = 0;
}

// The try is over, and the leader knows it. What is half-copied has to go on; what is complete is
// looked at for a while.
static void over(struct cg_copy *copy) {
    if (copy->forgotten || (!copy->paused && !copy->done && !copy->again)) {
        cg_copy_free(copy);
    }
}

static void told_end(struct cg_copy_call *call) {
    struct cg_copy *copy = CG_CONTAINER_OF(call, struct cg_copy, call);
    over(copy);
}

// Tells the leader, and lets go of the copyset unless it is half-copied.
static void end(struct cg_copy *copy, bool complete) {
    bool marked = !complete && cg_copyset_incomplete(copy->copyset);
    keep_known(copy);
    if (copy->begun && !complete && !marked) {
        cg_copyset_log_install_abort(cg_copyset_raft(copy->copyset));
    }
    copy->begun = false;
    uint64_t copying = copy->copying;
    copy->copying = 0;
    if (!marked && copy->paused) {
        copy->paused = false;
        cg_copyset_resume(copy->copyset);
    }
    release(copy);
    uint64_t now = cg_reactor_now(store_of(copy)->reactor);
    copy->due_ns = now + CG_COPY_RETRY_NS;
    if (complete) {
        copy->done = true;
        copy->due_ns = copy->again ? now : now + WATCH_NS;
    }
    if (copying != 0) {
        copy->call.request = (copygate_CopyRequest){
            .has_copying = true, .copying = copying, .has_complete = true, .complete = complete};
        copy->call.iovcnt = 0;
        copy->call.done = told_end;
        cg_copy_ask(copy->catchup, copy->copyset, copy->source, CG_COPY_END, &copy->call);
    } else {
        over(copy);
    }
}

static void fail(struct cg_copy *copy, int status, const char *what) {
    bool passing =
        status == -EAGAIN || status == -EPERM || status == -ESTALE || status == -ECANCELED;
    if (!copy->told && !passing) {
        copy->told = true;
        cg_log(CG_LOG_WARNING,
               "copying the state of copyset %" PRIu32 "-%" PRIu32 " from member %" PRIu64
               ": %s: %s; it is tried again",
               copy->copyset->pool, copy->copyset->id, copy->source, what, strerror(-status));
    }
    end(copy, false);
}

// True if it was told to stop: it has ended then.
static bool stopped(struct cg_copy *copy) {
    if (!copy->forgotten && !copy->catchup->stopped) {
        return false;
    }
    fail(copy, -ECANCELED, "stopped");
    return true;
}

// ---- The last steps

static void installed(void *user, int status) {
    struct cg_copy *copy = user;
    struct cg_catchup *catchup = copy->catchup;
    if (status != 0) {
        fail(copy, status, "installing");
        return;
    }
    uint64_t took = cg_reactor_now(store_of(copy)->reactor) - copy->began_ns;
    catchup->stats.completed++;
    cg_log(CG_LOG_INFO,
           "copyset %" PRIu32 "-%" PRIu32 ": the state up to entry %" PRIu64
           " is copied from member %" PRIu64 ", %" PRIu64 " KiB in %" PRIu64 " ms",
           copy->copyset->pool, copy->copyset->id, copy->state.log.index, copy->source,
           (catchup->stats.received_bytes - copy->bytes_before) / 1024, took / CG_NS_PER_MS);
    end(copy, true);
}

static void sync_call(struct cg_file_op *op) {
    struct cg_copy *copy = CG_CONTAINER_OF(op, struct cg_copy, op);
    struct cg_disk *disk = store_of(copy)->disk;
    char folder[CG_CHUNK_PATH_MAX];
    cg_copyset_folder(copy->copyset, folder);
    op->result = disk->ops->sync_directory(disk, folder);
}

static void synced(struct cg_file_op *op) {
    struct cg_copy *copy = CG_CONTAINER_OF(op, struct cg_copy, op);
    if (op->result != 0) {
        cg_store_retire(store_of(copy), (int)-op->result, "syncing a copyset's folder");
        fail(copy, (int)op->result, "syncing the folder");
        return;
    }
    if (stopped(copy)) {
        return;
    }
    copy->stage = CG_COPY_INSTALLING;
    cg_copyset_install(copy->copyset, &copy->state, installed, copy);
}

static void load(struct cg_copy *copy);

static void loaded(struct cg_copy_call *call) {
    struct cg_copy *copy = CG_CONTAINER_OF(call, struct cg_copy, call);
    int status = status_of(call);
    if (status == 0 && call->received != call->request.count) {
        status = -EBADMSG;
    }
    if (status != 0) {
        fail(copy, status, "reading windows and epochs");
        return;
    }
    copy->state_got += call->received;
    if (!stopped(copy)) {
        load(copy);
    }
}

static void load(struct cg_copy *copy) {
    copy->stage = CG_COPY_LOADING;
    uint32_t rest = copy->state_length - copy->state_got;
    if (rest == 0) {
        copy->stage = CG_COPY_SYNCING;
        submit(copy, sync_call, synced);
        return;
    }
    uint32_t most = CG_COPY_BLOCKS_MAX * CG_BLOCK_SIZE;
    copy->call.request = (copygate_CopyRequest){
        .has_first = true,
        .first = copy->state_got,
        .has_count = true,
        .count = rest < most ? rest : most,
    };
    copy->call.iov[0] =
        (struct iovec){copy->state.bytes + copy->state_got, copy->call.request.count};
    copy->call.iovcnt = 1;
    ask(copy, CG_COPY_BYTES, loaded);
}

// ---- Chunk by chunk

static int note_fresh(struct cg_copy *copy, const struct cg_copy_chunk *chunk) {
    // One that was written while it was copied may be a mixture; its index is above the state's, or
    // will be when it is compared.
    if (chunk->applied_index > copy->state.log.index) {
        return 0;
    }
    if ((copy->fresh_count & (copy->fresh_count - 1)) == 0) { // room for a power of two
        size_t room = copy->fresh_count != 0 ? (size_t)copy->fresh_count * 2 : 1;
        struct cg_copy_known *fresh = realloc(copy->fresh, room * sizeof(*fresh));
        if (fresh == NULL) {
            return -ENOMEM;
        }
        copy->fresh = fresh;
    }
    copy->fresh[copy->fresh_count++] = (struct cg_copy_known){chunk->id, chunk->applied_index};
    return 0;
}

static const struct cg_copy_chunk *target_of(const struct cg_copy *copy) {
    return &copy->walk.theirs[copy->walk.their_at - 1];
}

static void go_on(struct cg_copy *copy) {
    if (!stopped(copy)) {
        walk(copy);
    }
}

static void chunk_same(struct cg_copy *copy) {
    if (note_fresh(copy, target_of(copy)) != 0) {
        fail(copy, -ENOMEM, "remembering a chunk");
        return;
    }
    go_on(copy);
}

static void unlink_call(struct cg_file_op *op) {
    struct cg_copy *copy = CG_CONTAINER_OF(op, struct cg_copy, op);
    struct cg_disk *disk = store_of(copy)->disk;
    char path[CG_CHUNK_PATH_MAX];
    cg_chunk_path(copy->copyset, copy->target, path);
    op->result = disk->ops->unlink(disk, path);
}

static void unlinked(struct cg_file_op *op) {
    struct cg_copy *copy = CG_CONTAINER_OF(op, struct cg_copy, op);
    if (op->result != 0 && op->result != -ENOENT) {
        cg_store_retire(store_of(copy), (int)-op->result, "deleting a chunk");
        fail(copy, (int)op->result, "deleting a chunk");
        return;
    }
    cg_damage_chunk_gone(copy->copyset, copy->target);
    go_on(copy);
}

static void pulled(struct cg_chunk_pull *pull, int status) {
    struct cg_copy *copy = pull->user;
    if (status == -ENOENT) {
        submit(copy, unlink_call, unlinked); // it was deleted meanwhile
        return;
    }
    if (status != 0) {
        fail(copy, status, "copying a chunk");
        return;
    }
    if (pull->damaged == 0) {
        cg_damage_chunk_gone(copy->copyset, copy->target); // what was bad here is replaced
        chunk_same(copy);
    } else {
        go_on(copy); // another try copies it again: it may be well by then
    }
}

static void pull(struct cg_copy *copy) {
    struct cg_chunk_pull *pull = copy->pull;
    pull->copyset = copy->copyset;
    pull->source = copy->source;
    pull->copying = copy->copying;
    pull->min_index = copy->state.log.index;
    pull->urgency = copy->urgency;
    pull->info = *target_of(copy);
    pull->done = pulled;
    pull->user = copy;
    cg_chunk_pull_start(pull);
}

static bool known_same(struct cg_copy *copy) {
    const struct cg_copy_chunk *theirs = target_of(copy);
    while (copy->known_at < copy->known_count && copy->known[copy->known_at].id < theirs->id) {
        copy->known_at++;
    }
    return copy->known_at < copy->known_count && copy->known[copy->known_at].id == theirs->id &&
           copy->known[copy->known_at].applied_index == theirs->applied_index;
}

// What the metadata of our chunk says.
static void compare_call(struct cg_file_op *op) {
    struct cg_copy *copy = CG_CONTAINER_OF(op, struct cg_copy, op);
    struct cg_disk *disk = store_of(copy)->disk;
    char path[CG_CHUNK_PATH_MAX];
    cg_chunk_path(copy->copyset, copy->target, path);
    copy->own_applied = -1;
    op->result = 0;
    int handle = disk->ops->open(disk, path, O_RDONLY);
    if (handle < 0) {
        return; // it is copied, which shows what is the matter
    }
    int64_t length = disk->ops->read(disk, handle, copy->slots, CG_CHUNK_SLOTS_SIZE, 0);
    disk->ops->close(disk, handle);
    struct cg_chunk_header header;
    unsigned newest;
    if (length == CG_CHUNK_SLOTS_SIZE &&
        cg_chunk_slots_choose(copy->slots, false, &newest, &header) == 0 &&
        header.group == copy->copyset->group && header.chunk_id == copy->target) {
        copy->own_applied = (int64_t)header.applied_index;
    }
}

static void compared(struct cg_file_op *op) {
    struct cg_copy *copy = CG_CONTAINER_OF(op, struct cg_copy, op);
    if (stopped(copy)) {
        return;
    }
    if (copy->own_applied >= 0 && cg_copy_same(target_of(copy), (uint64_t)copy->own_applied,
                                               cg_copyset_applied(copy->copyset))) {
        chunk_same(copy);
    } else {
        pull(copy);
    }
}

static void next_page(struct cg_copy *copy);

static void walk(struct cg_copy *copy) {
    switch (cg_copy_walk_next(&copy->walk, &copy->target)) {
    case CG_COPY_OVER:
        next_page(copy);
        break;
    case CG_COPY_DELETE:
        submit(copy, unlink_call, unlinked);
        break;
    case CG_COPY_COMPARE:
        if (known_same(copy)) {
            chunk_same(copy);
        } else if (target_of(copy)->applied_index <= cg_copyset_applied(copy->copyset)) {
            submit(copy, compare_call, compared);
        } else {
            pull(copy);
        }
        break;
    case CG_COPY_PULL:
        pull(copy);
        break;
    }
}

static void page_came(struct cg_copy_call *call) {
    struct cg_copy *copy = CG_CONTAINER_OF(call, struct cg_copy, call);
    int status = status_of(call);
    uint32_t covered = call->reply.covered;
    uint32_t count = call->received / CG_COPY_RECORD_SIZE;
    if (status == 0 && (covered == 0 || covered > copy->total - copy->position || count > covered ||
                        call->received % CG_COPY_RECORD_SIZE != 0)) {
        status = -EBADMSG;
    }
    uint64_t least = copy->walk.last_id;
    for (uint32_t i = 0; i < count && status == 0; i++) {
        struct cg_copy_chunk *chunk = &copy->page[i];
        cg_copy_chunk_decode(copy->records + (size_t)i * CG_COPY_RECORD_SIZE, chunk);
        bool ascends =
            i > 0 ? chunk->id > copy->page[i - 1].id : copy->position == 0 || chunk->id > least;
        status = ascends && chunk->id <= call->reply.last_id ? 0 : -EBADMSG;
    }
    if (status != 0) {
        fail(copy, status, "listing the leader's chunks");
        return;
    }
    copy->position += covered;
    copy->walk.theirs = copy->page;
    copy->walk.their_count = count;
    copy->walk.their_at = 0;
    // Behind the last page there is nothing of theirs.
    copy->walk.last_id = copy->position == copy->total ? UINT64_MAX : call->reply.last_id;
    go_on(copy);
}

static void next_page(struct cg_copy *copy) {
    if (copy->position == copy->total) {
        if (copy->walk.last_id != UINT64_MAX) { // they have no chunks at all
            copy->walk.last_id = UINT64_MAX;
            walk(copy);
        } else {
            load(copy);
        }
        return;
    }
    copy->call.request = (copygate_CopyRequest){.has_first = true, .first = copy->position};
    copy->call.iov[0] = (struct iovec){copy->records, (size_t)CG_COPY_PAGE * CG_COPY_RECORD_SIZE};
    copy->call.iovcnt = 1;
    ask(copy, CG_COPY_CHUNKS, page_came);
}

// ---- The first steps

static int note_chunk(void *context, const char *name) {
    struct cg_copy *copy = context;
    return cg_copy_note_chunk(name, &copy->ours, &copy->our_count, &copy->our_capacity);
}

static void list_call(struct cg_file_op *op) {
    struct cg_copy *copy = CG_CONTAINER_OF(op, struct cg_copy, op);
    struct cg_disk *disk = store_of(copy)->disk;
    char folder[CG_CHUNK_PATH_MAX];
    cg_copyset_folder(copy->copyset, folder);
    op->result = disk->ops->list(disk, folder, note_chunk, copy);
    cg_copy_sort_ids(copy->ours, copy->our_count);
}

static void listed(struct cg_file_op *op) {
    struct cg_copy *copy = CG_CONTAINER_OF(op, struct cg_copy, op);
    if (op->result != 0) {
        fail(copy, (int)op->result, "listing the chunks here");
        return;
    }
    copy->stage = CG_COPY_WALKING;
    copy->position = 0;
    copy->known_at = 0;
    copy->walk = (struct cg_copy_walk){.ours = copy->ours, .our_count = copy->our_count};
    if (!stopped(copy)) {
        next_page(copy);
    }
}

static void list(struct cg_copy *copy) {
    copy->stage = CG_COPY_LISTING;
    submit(copy, list_call, listed);
}

static void marked(void *user, int status) {
    struct cg_copy *copy = user;
    if (status != 0) {
        fail(copy, status, "marking the copyset as incomplete");
    } else if (!stopped(copy)) {
        list(copy);
    }
}

// What the record of it would be refused for when it is read again.
static bool members_valid(const struct cg_raft_config *members) {
    uint8_t bytes[CG_LOG_CONFIG_SIZE_MAX];
    struct cg_raft_config decoded;
    size_t length = cg_log_config_encode(members, bytes);
    return cg_log_config_decode(bytes, length, &decoded) == (int64_t)length;
}

static int take_begin(struct cg_copy *copy, const copygate_CopyReply *reply) {
    if (!reply->has_copying || reply->copying == 0 || !reply->has_index || reply->index == 0 ||
        reply->bytes > STATE_MAX || reply->members_count == 0) {
        return -EBADMSG;
    }
    copy->copying = reply->copying;
    copy->total = reply->chunks;
    copy->state_length = reply->bytes;
    copy->state_got = 0;
    copy->state.log = (struct cg_copyset_log_saved){
        .term = reply->term, .index = reply->index, .index_term = reply->index_term};
    copy->state.log.config.count = reply->members_count;
    for (uint32_t i = 0; i < reply->members_count; i++) {
        copy->state.log.config.member[i] =
            (struct cg_raft_member){reply->members[i].id, reply->members[i].learner};
    }
    if (!members_valid(&copy->state.log.config)) {
        return -EBADMSG;
    }
    copy->state.length = reply->bytes;
    copy->state.bytes = malloc(reply->bytes > 0 ? reply->bytes : 1);
    return copy->state.bytes != NULL ? 0 : -ENOMEM;
}

static void begun(struct cg_copy_call *call) {
    struct cg_copy *copy = CG_CONTAINER_OF(call, struct cg_copy, call);
    struct cg_copyset_log *log = cg_copyset_raft(copy->copyset);
    int status = status_of(call);
    if (status == 0) {
        status = take_begin(copy, &call->reply);
    }
    // Only a log that lacks the entry: see catchup.h about elections. A half-copied one lacks it.
    bool incomplete = cg_copyset_incomplete(copy->copyset);
    if (status == 0 && !incomplete &&
        !cg_copyset_log_wants_state(log, copy->state.log.index, copy->state.log.index_term)) {
        end(copy, true); // the log has it
        return;
    }
    if (status != 0) {
        fail(copy, status, "asking for it");
        return;
    }
    if (stopped(copy)) {
        return;
    }
    if (!incomplete) {
        cg_copyset_log_install_begin(log);
        copy->begun = true;
    }
    copy->stage = CG_COPY_MARKING;
    cg_copyset_copying(copy->copyset, marked, copy);
}

static void ask_leader(struct cg_copy *copy) {
    copy->source = cg_copyset_leader(copy->copyset);
    copy->stage = CG_COPY_ASKING;
    copy->call.request = (copygate_CopyRequest)copygate_CopyRequest_init_zero;
    copy->call.iovcnt = 0;
    copy->call.done = begun;
    cg_copy_ask(copy->catchup, copy->copyset, copy->source, CG_COPY_BEGIN, &copy->call);
}

static void paused(void *user, int status) {
    struct cg_copy *copy = user;
    copy->paused = true;
    if (status != 0) {
        fail(copy, status, "pausing the copyset");
    } else if (!stopped(copy)) {
        ask_leader(copy);
    }
}

static int allocate(struct cg_copy *copy) {
    copy->page = malloc(CG_COPY_PAGE * sizeof(*copy->page));
    copy->records = malloc((size_t)CG_COPY_PAGE * CG_COPY_RECORD_SIZE + CG_CHUNK_SLOTS_SIZE);
    copy->pull = malloc(sizeof(*copy->pull));
    if (copy->pull != NULL && cg_chunk_pull_init(copy->pull, copy->catchup) != 0) {
        free(copy->pull);
        copy->pull = NULL;
    }
    return copy->page != NULL && copy->records != NULL && copy->pull != NULL ? 0 : -ENOMEM;
}

static void start(struct cg_copy *copy) {
    if (copy->done && copy->urgency < CG_COPY_HURRIES) {
        copy->urgency++; // the last one was in vain
    }
    copy->working = true;
    copy->done = false;
    copy->again = false;
    copy->catchup->working++;
    copy->began_ns = cg_reactor_now(store_of(copy)->reactor);
    copy->bytes_before = copy->catchup->stats.received_bytes;
    if (allocate(copy) != 0) {
        fail(copy, -ENOMEM, "beginning");
        return;
    }
    copy->slots = copy->records + (size_t)CG_COPY_PAGE * CG_COPY_RECORD_SIZE;
    if (copy->paused) {
        ask_leader(copy);
        return;
    }
    copy->stage = CG_COPY_PAUSING;
    cg_copyset_pause(copy->copyset, paused, copy);
}

// ---- All copies

struct cg_copy *cg_copy_of(const struct cg_catchup *catchup, const struct cg_copyset *copyset) {
    CG_LIST_FOREACH (node, &catchup->copies) {
        struct cg_copy *copy = CG_CONTAINER_OF(node, struct cg_copy, node);
        if (copy->copyset == copyset) {
            return copy;
        }
    }
    return NULL;
}

static bool led_by_other(const struct cg_copy *copy) {
    uint64_t leader = cg_copyset_leader(copy->copyset);
    return leader != 0 && leader != cg_copyset_member(copy->copyset);
}

static void start_due(struct cg_catchup *catchup) {
    uint64_t now = cg_reactor_now(catchup->store->reactor);
    CG_LIST_FOREACH_SAFE (node, next, &catchup->copies) {
        struct cg_copy *copy = CG_CONTAINER_OF(node, struct cg_copy, node);
        if (copy->stage != CG_COPY_IDLE || copy->call.active || now < copy->due_ns) {
            continue;
        }
        if (copy->done && !copy->again) {
            cg_copy_free(copy);
        } else if (catchup->working < CG_COPIES_MAX && !catchup->clearing && led_by_other(copy)) {
            start(copy);
        }
    }
}

void cg_copy_receive(struct cg_catchup *catchup, struct cg_copyset *copyset) {
    struct cg_copy *copy = cg_copy_of(catchup, copyset);
    if (copy != NULL) {
        copy->again = true; // should it be over
        if (copy->done) {
            copy->due_ns = 0;
            start_due(catchup);
        }
        return;
    }
    copy = calloc(1, sizeof(*copy));
    if (copy == NULL) {
        cg_log(CG_LOG_ERROR,
               "out of memory: the state of copyset %" PRIu32 "-%" PRIu32 " is not copied now",
               copyset->pool, copyset->id);
        return;
    }
    copy->catchup = catchup;
    copy->copyset = copyset;
    copy->paused = cg_copyset_incomplete(copyset); // from the start on
    cg_list_push_back(&catchup->copies, &copy->node);
    start_due(catchup);
}

// Found half-copied at the start.
static void find_incomplete(struct cg_catchup *catchup) {
    for (uint32_t i = 0; i < catchup->store->copyset_count; i++) {
        struct cg_copyset *copyset = catchup->store->copysets[i];
        if (cg_copyset_incomplete(copyset) && cg_copy_of(catchup, copyset) == NULL) {
            cg_copy_receive(catchup, copyset);
        }
    }
}

void cg_copies_tick(struct cg_catchup *catchup) {
    find_incomplete(catchup);
    start_due(catchup);
}

void cg_copy_forget(struct cg_copy *copy) {
    copy->forgotten = true;
    if (copy->call.active) {
        cg_copy_cancel(&copy->call); // and all that follows from it
    } else if (copy->stage == CG_COPY_IDLE) {
        cg_copy_free(copy);
    } else if (copy->pull != NULL) {
        cg_chunk_pull_cancel(copy->pull);
    }
}

void cg_copies_stop(struct cg_catchup *catchup) {
    CG_LIST_FOREACH_SAFE (node, next, &catchup->copies) {
        cg_copy_forget(CG_CONTAINER_OF(node, struct cg_copy, node));
    }
}
