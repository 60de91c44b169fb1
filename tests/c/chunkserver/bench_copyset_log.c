// SPDX-License-Identifier: BSD-3-Clause
//
// Copyset logs of three members in one thread, over the real disk, without sockets:
// `bench_copyset_log FOLDER [seconds a case]`. What a replicated 4 KiB entry costs in all three
// logs together.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/histogram.h"
#include "base/log.h"
#include "chunkserver/copyset_log.h"

#define MEMBERS   3U
#define GROUP     1U
#define DEPTH_MAX 128U
#define SIZE      4096U
#define META_SIZE 72U

struct letter {
    struct cg_list node;
    struct cg_raft_message message;
    struct cg_log_entry *entry[];
};

struct member {
    uint64_t id;
    struct cg_disk *disk;
    struct cg_wal *wal;
    struct cg_log_disk *log_disk;
    struct cg_copyset_log *log;
    uint64_t applied;
};

struct slot {
    struct cg_log_proposal proposal;
    uint64_t started_ns;
};

static struct cg_reactor *reactor;
static struct cg_buffer_pool *pool;
static struct member members[MEMBERS + 1];
static struct cg_list mail;
static struct cg_deferred post;
static struct slot slots[DEPTH_MAX];
static unsigned busy;
static uint64_t deadline_ns;
static uint64_t operations, messages, entries_sent;
static struct cg_histogram latency;

static void die(const char *what, int status) {
    fprintf(stderr, "bench_copyset_log: %s: %s\n", what, strerror(-status));
    exit(1);
}

static uint64_t cpu_ns(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * CG_NS_PER_S +
           (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1000U;
}

// ---- The wire

static void send(void *context, uint64_t group, const struct cg_raft_message *message,
                 struct cg_log_entry *const *entries) {
    (void)context;
    (void)group;
    uint32_t count = message->type == CG_RAFT_APPEND ? message->count : 0;
    struct letter *letter = malloc(sizeof(*letter) + count * sizeof(letter->entry[0]));
    letter->message = *message;
    for (uint32_t i = 0; i < count; i++) {
        letter->entry[i] = cg_log_entry_ref(entries[i]);
    }
    cg_list_init(&letter->node);
    cg_list_push_back(&mail, &letter->node);
    messages++;
    entries_sent += count;
    cg_reactor_defer(reactor, &post);
}

static void hand_over(struct letter *letter) {
    struct cg_log_entry *entries[CG_RAFT_ENTRIES_MAX] = {NULL};
    uint32_t count = letter->message.type == CG_RAFT_APPEND ? letter->message.count : 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct cg_log_entry *sent = letter->entry[i];
        entries[i] =
            cg_log_entry_make(sent->type, sent->term, sent->index, sent->meta, sent->meta_length,
                              sent->buffer, sent->payload, sent->payload_length, sent->block_crcs);
    }
    cg_copyset_log_receive(members[letter->message.to].log, &letter->message, entries);
    for (uint32_t i = 0; i < count; i++) {
        cg_log_entry_unref(entries[i]);
        cg_log_entry_unref(letter->entry[i]);
    }
    free(letter);
}

static void deliver(struct cg_deferred *deferred) {
    (void)deferred;
    struct cg_list now;
    cg_list_init(&now);
    cg_list_splice_back(&now, &mail);
    struct cg_list *node;
    while ((node = cg_list_pop_front(&now)) != NULL) {
        hand_over(CG_CONTAINER_OF(node, struct letter, node));
    }
}

// ---- The state machine: nothing

static void propose(struct member *member, struct slot *slot);

static void checkpoint(struct member *member) {
    struct cg_copyset_log_saved saved;
    uint64_t tail = cg_wal_tail(member->wal);
    cg_copyset_log_capture(member->log, member->applied, &saved);
    uint64_t need =
        cg_copyset_log_saved(member->log, &saved, tail - cg_wal_capacity(member->wal) / 4);
    cg_wal_recycle(member->wal, need < tail ? need : tail);
}

static bool committed(void *context, struct cg_log_entry *entry, struct cg_log_proposal *proposal) {
    struct member *member = context;
    member->applied = entry->index;
    cg_copyset_log_applied(member->log, entry->index);
    if (cg_wal_used(member->wal) > cg_wal_capacity(member->wal) / 2) {
        checkpoint(member);
    }
    if (proposal != NULL) {
        struct slot *slot = CG_CONTAINER_OF(proposal, struct slot, proposal);
        uint64_t now = cg_now_ns();
        cg_histogram_add(&latency, now - slot->started_ns);
        operations++;
        busy--;
        if (now < deadline_ns) {
            propose(member, slot);
        }
    }
    return true;
}

static void failed(struct cg_log_proposal *proposal, int error) {
    (void)proposal;
    die("a proposal failed", error);
}

static void nothing(void *context) {
    (void)context;
}

static void no_copy(void *context, uint64_t member) {
    (void)context;
    (void)member;
    die("a member lags behind the log", -ENOENT);
}

static void no_lease(void *context, uint64_t end_ns) {
    (void)context;
    (void)end_ns;
}

static void propose(struct member *member, struct slot *slot) {
    static const uint8_t meta[META_SIZE];
    struct cg_buffer *buffer = cg_buffer_alloc(pool, SIZE);
    if (buffer == NULL) {
        die("buffer", -ENOMEM);
    }
    slot->proposal.entry =
        cg_log_entry_make(1, 0, 0, meta, META_SIZE, buffer, buffer->data, SIZE, NULL);
    slot->proposal.failed = failed;
    slot->started_ns = cg_now_ns();
    cg_buffer_unref(buffer);
    int result = cg_copyset_log_propose(member->log, &slot->proposal);
    if (result != 0) {
        die("propose", result);
    }
    busy++;
}

// ---- Life

static int no_record(void *context, uint64_t lsn, const struct cg_wal_record *record,
                     const void *payload) {
    (void)context;
    (void)lsn;
    (void)record;
    (void)payload;
    die("the folder is not empty", -EEXIST);
    return 0;
}

static void begin(struct member *member, const char *folder) {
    char path[4096];
    snprintf(path, sizeof(path), "%s/member-%" PRIu64, folder, member->id);
    mkdir(path, 0700);
    int result = cg_disk_open(path, reactor, &member->disk);
    if (result != 0) {
        die(path, result);
    }
    const struct cg_log_disk_options options = {.reactor = reactor, .pool = pool, .send = send};
    cg_log_disk_create(&options, &member->log_disk);
    const struct cg_copyset_log_options log = {
        .group = GROUP,
        .self = member->id,
        .disk = member->log_disk,
        .events = {committed, nothing, no_copy, no_lease, member},
    };
    const struct cg_copyset_log_saved saved = {
        .config = {.count = MEMBERS, .member = {{1}, {2}, {3}}}};
    cg_copyset_log_create(&log, &saved, &member->log);
    const struct cg_wal_options wal = {.capacity_bytes = 256U << 20, .segment_bytes = 16U << 20};
    const struct cg_wal_replay replay = {.record = no_record};
    char error[256] = "";
    result = cg_wal_open(member->disk, reactor, &wal, &replay, &member->wal, error, sizeof(error));
    if (result != 0) {
        die(error, result);
    }
    cg_log_disk_attach(member->log_disk, member->wal);
    result = cg_copyset_log_start(member->log);
    if (result != 0) {
        die("start", result);
    }
}

static void end(struct member *member) {
    cg_copyset_log_stop(member->log);
    while (!cg_copyset_log_idle(member->log)) {
        cg_reactor_wait(reactor, CG_NS_PER_MS);
    }
    cg_copyset_log_destroy(member->log);
    cg_log_disk_destroy(member->log_disk);
    cg_wal_close(member->wal);
    cg_disk_close(member->disk);
}

static struct member *leader(void) {
    for (;;) {
        for (unsigned i = 1; i <= MEMBERS; i++) {
            if (cg_copyset_log_ready(members[i].log)) {
                return &members[i];
            }
        }
        cg_reactor_wait(reactor, CG_NS_PER_S);
    }
}

static void run(unsigned depth, double seconds) {
    struct member *member = leader();
    memset(&latency, 0, sizeof(latency));
    operations = messages = entries_sent = 0;
    struct cg_wal_stats before, after;
    cg_wal_stats(member->wal, &before);
    uint64_t start = cg_now_ns(), cpu = cpu_ns();
    deadline_ns = start + (uint64_t)(seconds * 1e9);
    for (unsigned i = 0; i < depth; i++) {
        propose(member, &slots[i]);
    }
    while (busy > 0) {
        cg_reactor_wait(reactor, UINT64_MAX);
    }
    double elapsed = (double)(cg_now_ns() - start);
    cpu = cpu_ns() - cpu;
    cg_wal_stats(member->wal, &after);
    double ops = (double)operations;
    printf("depth %3u %8.0f/s  p50 %6.0f us  p99 %6.0f us  cpu %5.2f us/entry  messages %.2f/entry"
           "  entries %.1f/batch\n",
           depth, ops / elapsed * 1e9, (double)cg_histogram_percentile(&latency, 50) / 1e3,
           (double)cg_histogram_percentile(&latency, 99) / 1e3, (double)cpu / 1e3 / ops,
           (double)messages / ops,
           (double)(after.records - before.records) / (double)(after.batches - before.batches));
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "bench_copyset_log FOLDER [seconds a case]\n");
        return 2;
    }
    double seconds = argc > 2 ? atof(argv[2]) : 3;
    cg_list_init(&mail);
    cg_list_init(&post.node);
    post.run = deliver;
    if (cg_reactor_create(NULL, &reactor) != 0 || cg_buffer_pool_create(1U << 30, &pool) != 0) {
        die("reactor", -ENOMEM);
    }
    for (unsigned i = 1; i <= MEMBERS; i++) {
        members[i].id = i;
        begin(&members[i], argv[1]);
    }
    static const unsigned depths[] = {1, 8, 32, 128};
    for (size_t i = 0; i < sizeof(depths) / sizeof(depths[0]); i++) {
        run(depths[i], seconds);
    }
    for (unsigned i = 1; i <= MEMBERS; i++) {
        end(&members[i]);
    }
    deliver(&post);
    cg_buffer_pool_destroy(pool);
    cg_reactor_destroy(reactor);
    return 0;
}
