// SPDX-License-Identifier: BSD-3-Clause
//
// Copysets: the folder chunks/<pool>-<copyset> is what says that a copyset is here, and the file
// "member" in it as whom.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "chunkserver/store_internal.h"

static struct cg_list *bucket_of(struct cg_store *store, uint64_t group) {
    return &store
                ->copyset_bucket[(group * UINT64_C(0x9e3779b97f4a7c15) >> 32) % CG_COPYSET_BUCKETS];
}

struct cg_copyset *cg_copyset_of_group(struct cg_store *store, uint64_t group) {
    const struct cg_list *bucket = bucket_of(store, group);
    CG_LIST_FOREACH (node, bucket) {
        struct cg_copyset *copyset = CG_CONTAINER_OF(node, struct cg_copyset, bucket);
        if (copyset->group == group) {
            return copyset;
        }
    }
    return NULL;
}

struct cg_copyset *cg_store_copyset(struct cg_store *store, uint32_t pool, uint32_t copyset) {
    return cg_copyset_of_group(store, (uint64_t)pool << 32 | copyset);
}

uint32_t cg_store_copyset_count(const struct cg_store *store) {
    return store->copyset_count;
}

struct cg_copyset *cg_store_copyset_at(struct cg_store *store, uint32_t position) {
    return store->copysets[position];
}

uint32_t cg_copyset_pool(const struct cg_copyset *copyset) {
    return copyset->pool;
}

uint32_t cg_copyset_id(const struct cg_copyset *copyset) {
    return copyset->id;
}

uint64_t cg_copyset_member(const struct cg_copyset *copyset) {
    return copyset->member.self;
}

struct cg_copyset_log *cg_copyset_raft(struct cg_copyset *copyset) {
    return copyset->log;
}

uint64_t cg_copyset_applied(const struct cg_copyset *copyset) {
    return copyset->applied_index;
}

uint64_t cg_copyset_delivered(const struct cg_copyset *copyset) {
    return copyset->delivered_index;
}

uint64_t cg_copyset_epoch(const struct cg_copyset *copyset, uint64_t file_id) {
    return cg_epoch_get(&copyset->epochs, file_id);
}

bool cg_copyset_leads(const struct cg_copyset *copyset) {
    return copyset->term_led != 0;
}

uint64_t cg_copyset_leader(const struct cg_copyset *copyset) {
    return copyset->log != NULL ? cg_copyset_log_leader(copyset->log) : 0;
}

void cg_copyset_folder(const struct cg_copyset *copyset, char out[CG_CHUNK_PATH_MAX]) {
    snprintf(out, CG_CHUNK_PATH_MAX, "chunks/%" PRIu32 "-%" PRIu32, copyset->pool, copyset->id);
}

int cg_copyset_create(struct cg_store *store, uint32_t pool, uint32_t id, struct cg_copyset **out) {
    if (store->copyset_count >= CG_COPYSETS_MAX) {
        return -ENOSPC;
    }
    struct cg_copyset *copyset = calloc(1, sizeof(*copyset));
    if (copyset == NULL) {
        return -ENOMEM;
    }
    copyset->store = store;
    copyset->pool = pool;
    copyset->id = id;
    copyset->group = (uint64_t)pool << 32 | id;
    copyset->hold_timer.fire = cg_leadership_timer;
    cg_list_init(&copyset->unapplied);
    cg_list_init(&copyset->blocked);
    cg_list_init(&copyset->held);
    cg_list_init(&copyset->held_reads);
    cg_dedup_init(&copyset->dedup);
    cg_epoch_table_init(&copyset->epochs);
    cg_list_push_back(bucket_of(store, copyset->group), &copyset->bucket);
    store->copysets[store->copyset_count++] = copyset;
    *out = copyset;
    return 0;
}

void cg_copyset_destroy(struct cg_copyset *copyset) {
    if (copyset->log != NULL) {
        cg_copyset_log_destroy(copyset->log);
    }
    cg_timer_disarm(&copyset->hold_timer);
    cg_timer_disarm(&copyset->pause.timer);
    cg_copyset_state_clear(&copyset->found);
    cg_replay_forget(copyset);
    cg_dedup_clear(&copyset->dedup);
    cg_epoch_table_clear(&copyset->epochs);
    free(copyset->captured);
    free(copyset);
}

// ---- From the other replicas

// Whether all entries can be applied here: what is in the log once cannot be refused any more.
static bool make_sense(struct cg_store *store, const struct cg_raft_message *message,
                       struct cg_log_entry *const *entries) {
    if (message->type != CG_RAFT_APPEND) {
        return true;
    }
    for (uint32_t i = 0; i < message->count; i++) {
        const struct cg_log_entry *entry = entries[i];
        struct cg_entry decoded;
        if (entry->type != CG_ENTRY_NOOP && entry->type != CG_ENTRY_CONFIG &&
            cg_entry_decode(entry->type, entry->meta, entry->meta_length, entry->payload_length,
                            store->format.chunk_size, &decoded) != 0) {
            return false;
        }
    }
    return true;
}

static void tell_nonsense(struct cg_store *store, const struct cg_copyset *copyset, uint64_t from) {
    uint64_t now = cg_reactor_now(store->reactor);
    if (store->nonsense_told_ns == 0 || now - store->nonsense_told_ns > CG_NS_PER_S) {
        store->nonsense_told_ns = now;
        cg_log(CG_LOG_WARNING,
               "copyset %" PRIu32 "-%" PRIu32 ": member %" PRIx64
               " sent entries that make no sense to this program",
               copyset->pool, copyset->id, from);
    }
}

bool cg_store_receive(struct cg_store *store, uint64_t group, const struct cg_raft_message *message,
                      struct cg_log_entry *const *entries) {
    struct cg_copyset *copyset = cg_copyset_of_group(store, group);
    if (copyset == NULL || copyset->log == NULL) {
        return false;
    }
    if (make_sense(store, message, entries)) {
        cg_copyset_log_receive(copyset->log, message, entries);
    } else {
        tell_nonsense(store, copyset, message->from);
    }
    return true;
}

void cg_store_peer(struct cg_store *store, uint32_t chunkserver, bool up) {
    for (uint32_t i = 0; i < store->copyset_count; i++) {
        if (store->copysets[i]->log != NULL) {
            cg_copyset_log_peer(store->copysets[i]->log, chunkserver, up);
        }
    }
}

// ---- Events of the log

static void role_changed(void *context) {
    struct cg_copyset *copyset = context;
    const struct cg_store_events *events = &copyset->store->options.events;
    cg_leadership_changed(copyset);
    if (events->role_changed != NULL) {
        events->role_changed(events->context, copyset);
    }
}

static void copy_state(void *context, uint64_t member) {
    struct cg_copyset *copyset = context;
    const struct cg_store_events *events = &copyset->store->options.events;
    if (events->copy_state != NULL) {
        events->copy_state(events->context, copyset, member);
    }
}

static void lease(void *context, uint64_t end_ns) {
    struct cg_copyset *copyset = context;
    if (copyset->store->share != NULL) {
        cg_local_share_lease(copyset->store->share, copyset->group, end_ns);
    }
}

int cg_copyset_make_log(struct cg_copyset *copyset) {
    struct cg_copyset_log_options options = {
        .group = copyset->group,
        .self = copyset->member.self,
        .disk = copyset->store->log_disk,
        .events = {.committed = cg_deliver,
                   .role_changed = role_changed,
                   .copy_state = copy_state,
                   .lease = lease,
                   .context = copyset},
    };
    // A checkpoint of an earlier version does not say who the members are.
    if (copyset->base.config.count == 0) {
        copyset->base.config = copyset->member.founders;
    }
    return cg_copyset_log_create(&options, &copyset->base, &copyset->log);
}

// ---- Coming into being

static bool founds(const struct cg_copyset_spec *spec) {
    for (uint32_t i = 0; i < spec->founder_count; i++) {
        if (spec->founders[i] == spec->self) {
            return true;
        }
    }
    return false;
}

static int make_member(const struct cg_copyset_spec *spec, struct cg_member *out) {
    *out = (struct cg_member){.self = spec->self};
    if (spec->self == 0 || spec->founder_count > CG_RAFT_MEMBERS_MAX ||
        (spec->founder_count > 0 && !founds(spec))) {
        return -EINVAL;
    }
    out->founders.count = spec->founder_count;
    for (uint32_t i = 0; i < spec->founder_count; i++) {
        out->founders.member[i].id = spec->founders[i];
    }
    return 0;
}

static int note_chunk(void *context, const char *name) {
    (void)context;
    return strncmp(name, "chunk_", 6) == 0 ? 1 : 0;
}

// Whether a folder without a member may become any replica: nothing is in it. Otherwise its state
// is that of a group with one member.
static int may_become(const struct cg_copyset *copyset, struct cg_member *member) {
    struct cg_store *store = copyset->store;
    char folder[CG_CHUNK_PATH_MAX];
    cg_copyset_folder(copyset, folder);
    int chunks = store->disk->ops->list(store->disk, folder, note_chunk, NULL);
    if (chunks < 0) {
        return chunks;
    }
    bool blank = chunks == 0 && copyset->applied_index == 0 && copyset->kept_count == 0;
    if (blank) {
        member->from_lsn = cg_wal_tail(store->wal);
        return 0;
    }
    return member->founders.count == 1 ? 0 : -EINVAL;
}

// A member file may be written on a full disk: the reserve is for what cannot wait.
static int save_member(struct cg_copyset *copyset, const struct cg_member *member) {
    struct cg_store *store = copyset->store;
    char folder[CG_CHUNK_PATH_MAX];
    cg_copyset_folder(copyset, folder);
    int result;
    do {
        result = cg_member_save(store->disk, folder, member);
    } while ((result == -ENOSPC || result == -EDQUOT) && cg_store_make_room(store));
    return result;
}

// The folder is there, durably, and says nothing about the member.
static int become(struct cg_copyset *copyset, struct cg_member *member) {
    int result = may_become(copyset, member);
    if (result == 0) {
        result = save_member(copyset, member);
    }
    if (result != 0) {
        return result;
    }
    copyset->member = *member;
    result = cg_copyset_make_log(copyset);
    if (result == 0) {
        result = cg_replay_kept(copyset);
    }
    return result == 0 ? cg_copyset_log_start(copyset->log) : result;
}

static int make_folder(struct cg_store *store, const struct cg_copyset_spec *spec,
                       struct cg_copyset **out) {
    if (store->copyset_count >= CG_COPYSETS_MAX) {
        return -ENOSPC;
    }
    char path[CG_CHUNK_PATH_MAX];
    snprintf(path, sizeof(path), "chunks/%" PRIu32 "-%" PRIu32, spec->pool, spec->copyset);
    int result = store->disk->ops->mkdir(store->disk, path);
    if (result == 0) {
        result = store->disk->ops->sync_directory(store->disk, "chunks");
    }
    return result == 0 ? cg_copyset_create(store, spec->pool, spec->copyset, out) : result;
}

int cg_store_add_copyset(struct cg_store *store, const struct cg_copyset_spec *spec) {
    struct cg_member member;
    int result = make_member(spec, &member);
    if (result != 0) {
        return result;
    }
    struct cg_copyset *copyset = cg_store_copyset(store, spec->pool, spec->copyset);
    if (copyset != NULL && copyset->member.self != 0) {
        return copyset->member.self == spec->self ? 0 : -EEXIST;
    }
    if (store->disk_error != 0) {
        return -store->disk_error;
    }
    if (copyset == NULL && store->removals > 0) {
        return -EAGAIN; // it may be of the same copyset, whose files are on their way out
    }
    if (copyset == NULL) {
        result = make_folder(store, spec, &copyset);
    }
    return result == 0 ? become(copyset, &member) : result;
}

// ---- At the start

bool cg_copyset_gone(const struct cg_store *store, uint64_t group) {
    for (uint32_t i = 0; i < store->gone_count; i++) {
        if (store->gone[i] == group) {
            return true;
        }
    }
    return false;
}

static int note_gone(struct cg_store *store, uint64_t group) {
    uint64_t *larger = realloc(store->gone, (store->gone_count + 1) * sizeof(*larger));
    if (larger == NULL) {
        return -ENOMEM;
    }
    store->gone = larger;
    store->gone[store->gone_count++] = group;
    return 0;
}

struct scan {
    struct cg_store *store;
    char *error;
    size_t error_size;
};

static int open_folder(struct cg_store *store, uint32_t pool, uint32_t id) {
    char folder[CG_CHUNK_PATH_MAX];
    snprintf(folder, sizeof(folder), "chunks/%" PRIu32 "-%" PRIu32, pool, id);
    struct cg_member member;
    int result = cg_member_load(store->disk, folder, &member);
    if (result == 0 && member.from_lsn == CG_MEMBER_GONE) {
        result = cg_remove_files(store->disk, folder);
        return result == 0 ? note_gone(store, (uint64_t)pool << 32 | id) : result;
    }
    struct cg_copyset *copyset;
    if (result == 0) {
        result = cg_copyset_create(store, pool, id, &copyset);
    }
    if (result == 0) {
        copyset->member = member;
        result = cg_copyset_state_found(copyset);
    }
    return result;
}

static int found_folder(void *context, const char *name) {
    struct scan *scan = context;
    uint32_t pool;
    uint32_t id;
    int used = 0;
    if (sscanf(name, "%" SCNu32 "-%" SCNu32 "%n", &pool, &id, &used) != 2 || name[used] != '\0') {
        snprintf(scan->error, scan->error_size, "chunks/%.100s is no copyset's folder", name);
        return -EBADMSG;
    }
    int result = open_folder(scan->store, pool, id);
    if (result != 0) {
        snprintf(scan->error, scan->error_size, "cannot open copyset %.100s: %s", name,
                 result == -EBADMSG ? "its file \"member\" or \"copy\" is damaged"
                                    : strerror(-result));
    }
    return result;
}

int cg_copysets_scan(struct cg_store *store, char *error, size_t error_size) {
    struct scan scan = {store, error, error_size};
    snprintf(error, error_size, "cannot read the folder \"chunks\"");
    int result = store->disk->ops->mkdir(store->disk, "chunks");
    if (result == 0) {
        result = store->disk->ops->sync_directory(store->disk, "");
    }
    if (result == 0) {
        result = store->disk->ops->list(store->disk, "chunks", found_folder, &scan);
    }
    return result;
}
