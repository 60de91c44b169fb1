// SPDX-License-Identifier: BSD-3-Clause
//
// The end of a replica that its group has removed: (1) its log falls silent, and requests end; (2)
// its member file says that it is gone, durably: from then on the log's and the checkpoint's
// records of it are ignored; (3) what is under way ends, applied or not: on a full disk, or with a
// chunk that cannot be loaded, it would never be applied; (4) it leaves memory, and its files go;
// (5) a checkpoint is written that does not know it. A crash before (2) leaves it as it was.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "chunkserver/store_internal.h"

#define QUIET_POLL_NS (5 * CG_NS_PER_MS)
#define NAMES_MAX     256U // files that are removed between two looks into the folder

struct removal {
    struct cg_copyset *copyset;
    struct cg_store *store;
    struct cg_timer timer;
    struct cg_file_op op;
    char folder[CG_CHUNK_PATH_MAX];
    struct cg_member member;
    void (*done)(void *user, int status);
    void *user;
};

// ---- Files

struct names {
    const char *folder;
    uint32_t count;
    char name[NAMES_MAX][CG_CHUNK_PATH_MAX];
};

static int note_name(void *context, const char *name) {
    struct names *names = context;
    if (strcmp(name, "member") == 0) {
        return 0;
    }
    if (names->count == NAMES_MAX) {
        return 1;
    }
    snprintf(names->name[names->count++], CG_CHUNK_PATH_MAX, "%s", name);
    return 0;
}

static int remove_some(struct cg_disk *disk, const struct names *names) {
    for (uint32_t i = 0; i < names->count; i++) {
        char path[2 * CG_CHUNK_PATH_MAX];
        snprintf(path, sizeof(path), "%s/%s", names->folder, names->name[i]);
        int result = disk->ops->unlink(disk, path);
        if (result != 0 && result != -ENOENT) {
            return result;
        }
    }
    return 0;
}

int cg_remove_files(struct cg_disk *disk, const char *folder) {
    struct names *names = malloc(sizeof(*names));
    if (names == NULL) {
        return -ENOMEM;
    }
    names->folder = folder;
    int result;
    bool any = false;
    do {
        names->count = 0;
        result = disk->ops->list(disk, folder, note_name, names);
        if (result >= 0) {
            any = any || names->count > 0;
            result = remove_some(disk, names);
        }
    } while (result == 0 && names->count > 0);
    free(names);
    return result == 0 && any ? disk->ops->sync_directory(disk, folder) : result;
}

// ---- Steps

static void end(struct removal *removal, int status) {
    struct cg_store *store = removal->store;
    void (*done)(void *user, int status) = removal->done;
    void *user = removal->user;
    free(removal);
    store->removals--;
    if (status == 0) {
        store->delivered++; // the checkpoint is not up to date
        cg_store_checkpoint(store);
    } else if (status != -ENOSPC && status != -EDQUOT && status != -ENOMEM) {
        cg_store_retire(store, -status, "removing a copyset");
    }
    done(user, status);
}

static void submit(struct removal *removal, void (*call)(struct cg_file_op *op),
                   void (*done)(struct cg_file_op *op)) {
    removal->op = (struct cg_file_op){.opcode = CG_FILE_CALL, .fd = -1, .call = call, .done = done};
    removal->store->disk->ops->submit(removal->store->disk, &removal->op);
}

static struct removal *removal_of(struct cg_file_op *op) {
    return CG_CONTAINER_OF(op, struct removal, op);
}

// On a pool thread.
static void files_call(struct cg_file_op *op) {
    struct removal *removal = removal_of(op);
    op->result = cg_remove_files(removal->store->disk, removal->folder);
}

static void files_done(struct cg_file_op *op) {
    end(removal_of(op), (int)op->result);
}

// Nothing of the replica is under way, no list of copysets is being gone through.
static bool is_quiet(const struct removal *removal) {
    const struct cg_copyset *copyset = removal->copyset;
    struct cg_scrub *scrub = &removal->store->scrub;
    if (scrub->active || removal->store->checkpoint.stage > CG_CHECKPOINT_CAPTURE ||
        !cg_list_empty(&copyset->unapplied) || !cg_copyset_log_idle(copyset->log)) {
        return false;
    }
    // One that captures may wait for others, whose entries find no space; the files may give it.
    cg_checkpoint_cancel(removal->store);
    if (scrub->target.set && scrub->target.copyset == copyset) {
        scrub->target.set = false;
    }
    scrub->listed = false;
    return true;
}

static void leave(struct removal *removal) {
    struct cg_copyset *copyset = removal->copyset;
    struct cg_store *store = removal->store;
    for (uint32_t i = 0; i < store->copyset_count; i++) {
        if (store->copysets[i] == copyset) {
            store->copysets[i] = store->copysets[--store->copyset_count];
            break;
        }
    }
    cg_list_remove(&copyset->blocked);
    cg_copyset_destroy(copyset);
    removal->copyset = NULL;
    submit(removal, files_call, files_done);
}

// On a pool thread.
static void mark_call(struct cg_file_op *op) {
    struct removal *removal = removal_of(op);
    op->result = cg_member_save(removal->store->disk, removal->folder, &removal->member);
}

// What waits in `stalled` ends when it is tried again.
static void give_up(struct cg_copyset *copyset) {
    struct cg_store *store = copyset->store;
    copyset->gone = true;
    for (uint32_t i = 0; i < store->chunks_used; i++) {
        if (store->chunks[i].state != CG_CHUNK_FREE && store->chunks[i].copyset == copyset) {
            cg_deliver_give_up(&store->chunks[i]);
        }
    }
}

static void look(struct cg_timer *timer);

static void mark_done(struct cg_file_op *op) {
    struct removal *removal = removal_of(op);
    bool full = op->result == -ENOSPC || op->result == -EDQUOT;
    if (full && cg_store_make_room(removal->store)) {
        submit(removal, mark_call, mark_done);
    } else if (op->result != 0) {
        end(removal, (int)op->result);
    } else {
        give_up(removal->copyset);
        look(&removal->timer);
    }
}

static void look(struct cg_timer *timer) {
    struct removal *removal = CG_CONTAINER_OF(timer, struct removal, timer);
    struct cg_store *store = removal->store;
    if (is_quiet(removal) && cg_chunks_forget(removal->copyset)) {
        leave(removal);
    } else if (cg_timer_arm(store->reactor, &removal->timer,
                            cg_reactor_now(store->reactor) + QUIET_POLL_NS) != 0) {
        end(removal, -ENOMEM);
    }
}

void cg_store_remove_copyset(struct cg_store *store, uint32_t pool, uint32_t id, uint64_t self,
                             void (*done)(void *user, int status), void *user) {
    struct cg_copyset *copyset = cg_store_copyset(store, pool, id);
    if (copyset == NULL) {
        done(user, 0);
        return;
    }
    if (copyset->member.self != self || self == 0) {
        done(user, -EEXIST);
        return;
    }
    struct removal *removal = calloc(1, sizeof(*removal));
    if (removal == NULL || store->disk_error != 0) {
        free(removal);
        done(user, store->disk_error != 0 ? -store->disk_error : -ENOMEM);
        return;
    }
    removal->copyset = copyset;
    removal->store = store;
    removal->timer.fire = look;
    removal->member = copyset->member;
    removal->member.from_lsn = CG_MEMBER_GONE;
    removal->done = done;
    removal->user = user;
    cg_copyset_folder(copyset, removal->folder);
    store->removals++;
    cg_list_remove(&copyset->bucket); // not to be found any more
    cg_log(CG_LOG_INFO, "%s is removed", removal->folder);
    cg_copyset_log_stop(copyset->log);
    cg_leadership_fail(copyset, STATUS(COPYSET_NOTEXIST));
    submit(removal, mark_call, mark_done);
}
