// SPDX-License-Identifier: BSD-3-Clause
//
// What a chunkserver counts and how far its copysets are, as text that Prometheus and the like
// read.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chunkserver/chunkserver_internal.h"

#define PREFIX "copygate_chunkserver_"

struct metric {
    const char *name; // a counter if it ends with _total
    const char *help;
    uint64_t value;
};

static const char *type_of(const char *name) {
    size_t length = strlen(name);
    return length > 6 && strcmp(name + length - 6, "_total") == 0 ? "counter" : "gauge";
}

static void write_head(FILE *out, const char *name, const char *help) {
    fprintf(out, "# HELP " PREFIX "%s %s\n# TYPE " PREFIX "%s %s\n", name, help, name,
            type_of(name));
}

// ---- The server and its disk

static void write_server(FILE *out, const struct cg_chunkserver_stats *s) {
    const struct metric metrics[] = {
        {"reads_total", "Read requests.", s->reads},
        {"writes_total", "Write requests.", s->writes},
        {"other_requests_total", "Other requests.", s->others},
        {"overloads_total", "Requests that were answered OVERLOAD.", s->overloads},
        {"errors_total", "Requests that ended with an error.", s->errors},
        {"read_bytes_total", "Bytes read by requests.", s->read_bytes},
        {"written_bytes_total", "Bytes written by requests.", s->written_bytes},
        {"connections", "Connections.", s->connections},
        {"copysets", "Replicas here.", s->copysets},
        {"leaders", "Copysets that are led and served here.", s->leaders},
        {"disk_error", "The errno that retired the disk; 0: it works.", (uint64_t)s->disk_error},
        {"capacity_bytes", "Size of the disk's file system.", s->capacity_bytes},
        {"free_bytes", "Free space.", s->free_bytes},
        {"wal_batches_total", "Writes of the log.", s->wal_batches},
        {"wal_records_total", "Records written to the log.", s->wal_records},
        {"wal_bytes_total", "Bytes written to the log.", s->wal_bytes},
        {"wal_used_bytes", "Bytes of the log that are needed.", s->wal_used},
        {"wal_capacity_bytes", "Bytes that the log may take.", s->wal_capacity},
        {"checkpoints_total", "Checkpoints.", s->checkpoints},
        {"bad_blocks", "Blocks that are known to be bad.", s->scrub.bad_blocks},
        {"log_entries", "Durable entries of the logs that are in memory.", s->log.cached_entries},
        {"log_entry_bytes", "Their payload.", s->log.cached_bytes},
        {"log_fetches_total", "Batches read back from the log for entries that were not in memory.",
         s->log.fetches},
        {"raft_frames_sent_total", "Frames sent to other chunkservers.", s->peers.frames_sent},
        {"raft_messages_sent_total", "Messages in them.", s->peers.messages_sent},
        {"raft_bytes_sent_total", "Their bytes.", s->peers.bytes_sent},
        {"raft_frames_received_total", "Frames from other chunkservers.", s->peers.frames_received},
        {"raft_messages_received_total", "Messages in them.", s->peers.messages_received},
        {"raft_bytes_received_total", "Their bytes.", s->peers.bytes_received},
        {"raft_messages_dropped_total", "Messages dropped instead of sent.",
         s->peers.messages_dropped},
        {"raft_frames_refused_total", "Frames that made no sense or were damaged.",
         s->peers.frames_refused},
        {"raft_messages_strayed_total", "Messages for copysets that are not here.",
         s->peers.messages_strayed},
        {"peers_down", "Other chunkservers that do not answer.", s->peers.peers_down},
        {"copies_receiving", "Copysets whose state is being copied here.", s->copy.receiving},
        {"copies_sending", "Members that copy state from here.", s->copy.sending},
        {"copied_bytes_total", "Bytes of chunks copied here.", s->copy.received_bytes},
        {"mended_blocks_total", "Bad blocks mended from other replicas.", s->copy.mended_blocks},
    };
    for (size_t i = 0; i < sizeof(metrics) / sizeof(metrics[0]); i++) {
        write_head(out, metrics[i].name, metrics[i].help);
        fprintf(out, PREFIX "%s %" PRIu64 "\n", metrics[i].name, metrics[i].value);
    }
}

// ---- Copysets: all of one metric stand together

static uint64_t role(const struct cg_copyset_log_status *log) {
    return log->role;
}

static uint64_t serves(const struct cg_copyset_log_status *log) {
    return log->ready;
}

static uint64_t term(const struct cg_copyset_log_status *log) {
    return log->term;
}

static uint64_t last_index(const struct cg_copyset_log_status *log) {
    return log->last_index;
}

static uint64_t durable_index(const struct cg_copyset_log_status *log) {
    return log->durable_index;
}

static uint64_t commit_index(const struct cg_copyset_log_status *log) {
    return log->commit_index;
}

static uint64_t applied_index(const struct cg_copyset_log_status *log) {
    return log->applied_index;
}

static const struct copyset_metric {
    const char *name;
    const char *help;
    uint64_t (*value)(const struct cg_copyset_log_status *log);
} copyset_metrics[] = {
    {"copyset_role", "0 follower, 1 asks for votes, 2 candidate, 3 leader, 4 retired.", role},
    {"copyset_serves", "1: led here, and ready.", serves},
    {"copyset_term", "Raft's term.", term},
    {"copyset_last_index", "Last entry of the log.", last_index},
    {"copyset_durable_index", "Entries that are durable here.", durable_index},
    {"copyset_commit_index", "Entries that are known to be committed.", commit_index},
    {"copyset_applied_index", "Entries that are in the chunk files.", applied_index},
};

// Writes the metric for every copyset, or with NULL the lag of the members where this server leads.
static void write_copysets(FILE *out, struct cg_store *store, const struct copyset_metric *metric) {
    for (uint32_t i = 0; i < cg_store_copyset_count(store); i++) {
        struct cg_copyset *copyset = cg_store_copyset_at(store, i);
        struct cg_copyset_log *log = cg_copyset_raft(copyset);
        struct cg_copyset_log_status status;
        if (log == NULL) {
            continue; // of an earlier version, and not taken over yet
        }
        cg_copyset_log_status(log, &status);
        uint32_t pool = cg_copyset_pool(copyset);
        uint32_t id = cg_copyset_id(copyset);
        if (metric != NULL) {
            fprintf(out, PREFIX "%s{pool=\"%" PRIu32 "\",copyset=\"%" PRIu32 "\"} %" PRIu64 "\n",
                    metric->name, pool, id, metric->value(&status));
            continue;
        }
        for (uint32_t j = 0; j < status.peer_count; j++) {
            uint64_t match = status.peer[j].progress.match;
            fprintf(out,
                    PREFIX "copyset_member_lag{pool=\"%" PRIu32 "\",copyset=\"%" PRIu32
                           "\",member=\"%" PRIu64 "\"} %" PRIu64 "\n",
                    pool, id, status.peer[j].id,
                    match < status.last_index ? status.last_index - match : 0);
        }
    }
}

char *cg_chunkserver_metrics(void *context) {
    struct cg_chunkserver *server = context;
    struct cg_chunkserver_stats stats;
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (out == NULL) {
        return NULL;
    }
    cg_collect_stats(server, &stats);
    write_server(out, &stats);
    for (size_t i = 0; i < sizeof(copyset_metrics) / sizeof(copyset_metrics[0]); i++) {
        write_head(out, copyset_metrics[i].name, copyset_metrics[i].help);
        write_copysets(out, server->store, &copyset_metrics[i]);
    }
    write_head(out, "copyset_member_lag", "Entries that a member of a copyset led here lacks.");
    write_copysets(out, server->store, NULL);
    bool failed = ferror(out) != 0;
    if (fclose(out) != 0 || failed) {
        free(text);
        return NULL;
    }
    return text;
}
