// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/catchup.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "chunkserver/catchup_internal.h"

#define TICK_NS (200 * CG_NS_PER_MS)

// ---- The chunks of a folder

int cg_copy_note_chunk(const char *name, uint64_t **ids, uint32_t *count, uint32_t *capacity) {
    uint64_t id;
    int used = 0;
    if (sscanf(name, "chunk_%" SCNu64 "%n", &id, &used) != 1 || name[used] != '\0') {
        return 0;
    }
    if (*count == *capacity) {
        uint32_t room = *capacity != 0 ? *capacity * 2 : 256;
        uint64_t *grown = realloc(*ids, room * sizeof(*grown));
        if (grown == NULL) {
            return -ENOMEM;
        }
        *ids = grown;
        *capacity = room;
    }
    (*ids)[(*count)++] = id;
    return 0;
}

static int compare_ids(const void *a, const void *b) {
    const uint64_t *left = a;
    const uint64_t *right = b;
    return *left < *right ? -1 : *left > *right;
}

void cg_copy_sort_ids(uint64_t *ids, uint32_t count) {
    if (count > 0) {
        qsort(ids, count, sizeof(*ids), compare_ids);
    }
}

// ---- What all parts ask

bool cg_catchup_busy(struct cg_catchup *catchup) {
    const struct cg_store *store = catchup->store;
    return store->reads_active > catchup->reads ||
           store->ops_active > store->ops_parked + store->stalled_count;
}

void cg_catchup_others(struct cg_copyset *copyset, struct cg_raft_config *out) {
    struct cg_copyset_log_status status;
    out->count = 0;
    if (cg_copyset_raft(copyset) == NULL) {
        return;
    }
    cg_copyset_log_status(cg_copyset_raft(copyset), &status);
    for (unsigned learners = 0; learners < 2; learners++) {
        for (uint32_t i = 0; i < status.config.count; i++) {
            const struct cg_raft_member *member = &status.config.member[i];
            if (member->learner == (learners == 1) && member->id != cg_copyset_member(copyset)) {
                out->member[out->count++] = *member;
            }
        }
    }
}

// ---- The end of what goes on with a copyset

static bool uses(const struct cg_catchup *catchup, const struct cg_copyset *copyset) {
    if (cg_copy_of(catchup, copyset) != NULL) {
        return true;
    }
    CG_LIST_FOREACH (node, &catchup->leads) {
        if (CG_CONTAINER_OF(node, struct cg_copy_lead, node)->copyset == copyset) {
            return true;
        }
    }
    CG_LIST_FOREACH (node, &catchup->wants) {
        if (CG_CONTAINER_OF(node, struct cg_copy_want, node)->copyset == copyset) {
            return true;
        }
    }
    CG_LIST_FOREACH (node, &catchup->menders) {
        if (CG_CONTAINER_OF(node, struct cg_mender, node)->copyset == copyset) {
            return true;
        }
    }
    return false;
}

void cg_catchup_ended(struct cg_catchup *catchup) {
    CG_LIST_FOREACH_SAFE (node, next, &catchup->forgets) {
        struct cg_catchup_forget *forget = CG_CONTAINER_OF(node, struct cg_catchup_forget, node);
        if (!uses(catchup, forget->copyset)) {
            cg_list_remove(&forget->node);
            forget->done(forget);
            return; // whatever else ended: its own end comes by here
        }
    }
}

void cg_catchup_forget(struct cg_catchup *catchup, struct cg_catchup_forget *forget) {
    cg_list_push_back(&catchup->forgets, &forget->node);
    struct cg_copy *copy = cg_copy_of(catchup, forget->copyset);
    if (copy != NULL) {
        cg_copy_forget(copy);
    }
    cg_leads_stop(catchup, forget->copyset);
    cg_menders_stop(catchup, forget->copyset);
    cg_catchup_ended(catchup);
}

// ---- Time

static void tick(struct cg_timer *timer) {
    struct cg_catchup *catchup = CG_CONTAINER_OF(timer, struct cg_catchup, tick);
    struct cg_store *store = catchup->store;
    if (catchup->stopped) {
        return;
    }
    if (store->disk_error == 0) {
        cg_copies_tick(catchup);
        cg_leads_tick(catchup);
        cg_menders_tick(catchup);
    }
    cg_serve_pump(catchup);
    // The timer's place in the heap has just become free.
    cg_timer_arm(store->reactor, timer, cg_reactor_now(store->reactor) + TICK_NS);
}

// ---- Life

int cg_catchup_create(const struct cg_catchup_options *options, struct cg_catchup **out) {
    struct cg_catchup *catchup = calloc(1, sizeof(*catchup));
    if (catchup == NULL) {
        return -ENOMEM;
    }
    catchup->options = *options;
    catchup->pace.rate = options->rate != 0 ? options->rate : CG_CATCHUP_RATE_DEFAULT;
    catchup->tick.fire = tick;
    catchup->serve_timer.fire = cg_serve_timer;
    // Not used before: a member that copied from a predecessor must not be taken for a present one.
    catchup->next_number = cg_wall_us();
    cg_list_init(&catchup->copies);
    cg_list_init(&catchup->wants);
    cg_list_init(&catchup->leads);
    cg_list_init(&catchup->menders);
    cg_list_init(&catchup->serving);
    cg_list_init(&catchup->forgets);
    *out = catchup;
    return 0;
}

struct clearing {
    struct cg_disk *disk;
    const char *folder;
};

static int clear_one(void *context, const char *name) {
    const struct clearing *clearing = context;
    char path[CG_COPY_PATH_MAX];
    if (cg_copy_file_is_temporary(name) &&
        snprintf(path, sizeof(path), "%s/%s", clearing->folder, name) < (int)sizeof(path)) {
        clearing->disk->ops->unlink(clearing->disk, path); // if it stays, it stays
    }
    return 0;
}

// Files that a copy which was cut short has left behind. On a pool thread.
static void clear_call(struct cg_file_op *op) {
    struct cg_catchup *catchup = CG_CONTAINER_OF(op, struct cg_catchup, clear_op);
    struct cg_disk *disk = catchup->store->disk;
    for (uint32_t i = 0; i < catchup->clear_count; i++) {
        struct clearing clearing = {disk, catchup->clear_folders[i]};
        disk->ops->list(disk, clearing.folder, clear_one, &clearing);
    }
    op->result = 0;
}

static void cleared(struct cg_file_op *op) {
    struct cg_catchup *catchup = CG_CONTAINER_OF(op, struct cg_catchup, clear_op);
    free(catchup->clear_folders);
    catchup->clear_folders = NULL;
    catchup->clearing = false;
}

static int clear(struct cg_catchup *catchup) {
    struct cg_store *store = catchup->store;
    catchup->clear_folders = calloc(store->copyset_count + 1, sizeof(*catchup->clear_folders));
    if (catchup->clear_folders == NULL) {
        return -ENOMEM;
    }
    catchup->clear_count = store->copyset_count;
    for (uint32_t i = 0; i < store->copyset_count; i++) {
        cg_copyset_folder(store->copysets[i], catchup->clear_folders[i]);
    }
    catchup->clearing = true;
    catchup->clear_op =
        (struct cg_file_op){.opcode = CG_FILE_CALL, .call = clear_call, .done = cleared};
    store->disk->ops->submit(store->disk, &catchup->clear_op);
    return 0;
}

int cg_catchup_start(struct cg_catchup *catchup, struct cg_store *store) {
    catchup->store = store;
    int result = clear(catchup);
    if (result == 0) {
        result = cg_timer_arm(store->reactor, &catchup->tick, cg_reactor_now(store->reactor));
    }
    return result;
}

void cg_catchup_stop(struct cg_catchup *catchup) {
    if (catchup->store == NULL || catchup->stopped) {
        return;
    }
    catchup->stopped = true;
    cg_timer_disarm(&catchup->tick);
    cg_timer_disarm(&catchup->serve_timer);
    cg_copies_stop(catchup);
    cg_leads_stop(catchup, NULL);
    cg_menders_stop(catchup, NULL);
    cg_serve_pump(catchup);
}

bool cg_catchup_idle(const struct cg_catchup *catchup) {
    return cg_list_empty(&catchup->copies) && cg_list_empty(&catchup->leads) &&
           cg_list_empty(&catchup->wants) && cg_list_empty(&catchup->menders) &&
           cg_list_empty(&catchup->serving) && catchup->reads == 0 && !catchup->clearing;
}

void cg_catchup_destroy(struct cg_catchup *catchup) {
    assert(cg_catchup_idle(catchup));
    free(catchup);
}

void cg_catchup_stats(const struct cg_catchup *catchup, struct cg_catchup_stats *out) {
    *out = catchup->stats;
    out->sending = catchup->lead_count;
    out->receiving = 0;
    CG_LIST_FOREACH (node, &catchup->copies) {
        out->receiving += CG_CONTAINER_OF(node, struct cg_copy, node)->done ? 0 : 1;
    }
}
