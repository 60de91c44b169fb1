// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/copyset_state.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "chunkserver/store_internal.h"

#define LOOK_NS  (5 * CG_NS_PER_MS)
#define PAUSE_NS (60 * CG_NS_PER_S)
#define AGAIN_NS (20 * CG_NS_PER_MS)

// ---- Taking it

int cg_copyset_state_get(struct cg_copyset *copyset, struct cg_copyset_state *out) {
    *out = (struct cg_copyset_state){0};
    if (copyset->log == NULL || copyset->incomplete) {
        return -EAGAIN;
    }
    size_t size = cg_dedup_size(&copyset->dedup) + cg_epoch_table_size(&copyset->epochs);
    out->bytes = malloc(size > 0 ? size : 1);
    if (out->bytes == NULL) {
        return -ENOMEM;
    }
    size_t length = cg_dedup_encode(&copyset->dedup, out->bytes);
    length += cg_epoch_table_encode(&copyset->epochs, out->bytes + length);
    out->length = (uint32_t)length;
    cg_copyset_log_capture(copyset->log, copyset->delivered_index, &out->log);
    return 0;
}

// ---- Pausing

static void pause_end(struct cg_copyset *copyset, int status) {
    cg_timer_disarm(&copyset->pause.timer);
    copyset->pause.done(copyset->pause.user, status);
}

// True if none of the copyset's chunks is used or has to be saved.
static bool chunks_at_rest(const struct cg_copyset *copyset) {
    struct cg_store *store = copyset->store;
    bool dirty = false;
    bool used = false;
    for (uint32_t i = 0; i < store->chunks_used; i++) {
        const struct cg_chunk *chunk = &store->chunks[i];
        if (chunk->state != CG_CHUNK_FREE && chunk->copyset == copyset) {
            used = used || chunk->refs > 0 || chunk->flushing;
            dirty = dirty || cg_list_linked(&chunk->dirty);
        }
    }
    if (dirty && !used) {
        cg_store_checkpoint(store);
    }
    return !used && !dirty;
}

// A checkpoint that is under way may have the copyset's chunks in its list, or its state captured:
// what it saves has to be what is there when it ends.
static void pause_look(struct cg_timer *timer) {
    struct cg_copyset *copyset = CG_CONTAINER_OF(timer, struct cg_copyset, pause.timer);
    struct cg_store *store = copyset->store;
    uint64_t now = cg_reactor_now(store->reactor);
    if (store->disk_error != 0) {
        pause_end(copyset, -EIO);
    } else if (cg_list_empty(&copyset->unapplied) && chunks_at_rest(copyset) &&
               !cg_store_checkpointing(store)) {
        cg_chunks_forget(copyset);
        pause_end(copyset, 0);
    } else if (now >= copyset->pause.until_ns) {
        pause_end(copyset, -EBUSY);
    } else if (cg_timer_arm(store->reactor, timer, now + LOOK_NS) != 0) {
        pause_end(copyset, -ENOMEM);
    }
}

void cg_copyset_pause(struct cg_copyset *copyset, void (*done)(void *user, int status),
                      void *user) {
    assert(copyset->log != NULL && !copyset->paused);
    copyset->paused = true;
    copyset->pause.done = done;
    copyset->pause.user = user;
    copyset->pause.until_ns = cg_reactor_now(copyset->store->reactor) + PAUSE_NS;
    copyset->pause.timer.fire = pause_look;
    pause_look(&copyset->pause.timer);
}

void cg_copyset_resume(struct cg_copyset *copyset) {
    assert(copyset->paused && !copyset->incomplete);
    copyset->paused = false;
    cg_copyset_log_resume(copyset->log);
}

// ---- The file

static void submit(struct cg_copyset *copyset, void (*call)(struct cg_file_op *op),
                   void (*done)(struct cg_file_op *op)) {
    struct cg_disk *disk = copyset->store->disk;
    copyset->install.op = (struct cg_file_op){.opcode = CG_FILE_CALL, .call = call, .done = done};
    copyset->store->file_ops++;
    disk->ops->submit(disk, &copyset->install.op);
}

static void save_call(struct cg_file_op *op) {
    struct cg_copyset *copyset = CG_CONTAINER_OF(op, struct cg_copyset, install.op);
    char folder[CG_CHUNK_PATH_MAX];
    cg_copyset_folder(copyset, folder);
    op->result = cg_copy_mark_save(copyset->store->disk, folder, copyset->install.state);
}

// True if the file is saved; otherwise `done` was told, or it is tried once more.
static bool saved(struct cg_copyset *copyset, const char *what) {
    struct cg_store *store = copyset->store;
    struct cg_file_op *op = &copyset->install.op;
    store->file_ops--;
    if (op->result == 0) {
        return true;
    }
    bool full = op->result == -ENOSPC || op->result == -EDQUOT;
    if (full && cg_store_make_room(store)) {
        submit(copyset, op->call, op->done);
        return false;
    }
    if (!full && op->result != -ENOMEM) {
        cg_store_retire(store, (int)-op->result, what);
    }
    copyset->install.done(copyset->install.user, (int)op->result);
    return false;
}

static void mark_saved(struct cg_file_op *op) {
    struct cg_copyset *copyset = CG_CONTAINER_OF(op, struct cg_copyset, install.op);
    if (saved(copyset, "marking a copyset as incomplete")) {
        if (!copyset->incomplete) {
            copyset->incomplete = true;
            cg_copyset_log_capture(copyset->log, copyset->delivered_index, &copyset->base);
            cg_copyset_log_install_discard(copyset->log);
        }
        copyset->install.done(copyset->install.user, 0);
    }
}

void cg_copyset_copying(struct cg_copyset *copyset, void (*done)(void *user, int status),
                        void *user) {
    assert(copyset->paused);
    // A state that was installed before and is in no checkpoint yet ends here, too.
    copyset->copied_index = 0;
    copyset->install.lsn = 0;
    copyset->install.state = NULL;
    copyset->install.done = done;
    copyset->install.user = user;
    submit(copyset, save_call, mark_saved);
}

bool cg_copyset_incomplete(const struct cg_copyset *copyset) {
    return copyset->incomplete && copyset->found.bytes == NULL;
}

// ---- Installing

static int adopt(struct cg_copyset *copyset, const struct cg_copyset_state *state) {
    cg_dedup_clear(&copyset->dedup);
    cg_epoch_table_clear(&copyset->epochs);
    cg_dedup_init(&copyset->dedup);
    cg_epoch_table_init(&copyset->epochs);
    int result = cg_copyset_decode(copyset, state->bytes, state->length);
    if (result != 0) {
        return result;
    }
    copyset->base = state->log;
    copyset->applied_index = state->log.index;
    copyset->delivered_index = state->log.index;
    copyset->copied_index = state->log.index;
    return 0;
}

static void log_installed(void *user, int status);

static void install(struct cg_copyset *copyset) {
    copyset->install.lsn = cg_wal_tail(copyset->store->wal);
    cg_copyset_log_installed(copyset->log, &copyset->install.state->log, log_installed, copyset);
}

static void install_again(struct cg_timer *timer) {
    install(CG_CONTAINER_OF(timer, struct cg_copyset, pause.timer));
}

// What the log makes of it is the last word.
static void log_installed(void *user, int status) {
    struct cg_copyset *copyset = user;
    struct cg_store *store = copyset->store;
    copyset->pause.timer.fire = install_again;
    if (status == -EAGAIN && cg_timer_arm(store->reactor, &copyset->pause.timer,
                                          cg_reactor_now(store->reactor) + AGAIN_NS) == 0) {
        return; // it asks for votes at the moment
    }
    if (status == 0) {
        copyset->recovery_end = 0;
        copyset->incomplete = false;
        store->delivered++; // there is something to be saved
        int result = adopt(copyset, copyset->install.state);
        if (result != 0) {
            cg_store_retire(store, -result, "reading a copied state");
            status = -EIO;
        } else if (store->share != NULL) {
            cg_local_share_epoch_raised(store->share);
        }
        cg_store_checkpoint(store);
    }
    copyset->install.done(copyset->install.user, status);
}

static void state_saved(struct cg_file_op *op) {
    struct cg_copyset *copyset = CG_CONTAINER_OF(op, struct cg_copyset, install.op);
    if (saved(copyset, "saving a copied state")) {
        install(copyset);
    }
}

// Does the state make sense? It is asked before anything is changed.
static int check(const struct cg_copyset_state *state) {
    struct cg_dedup dedup;
    struct cg_epoch_table epochs;
    cg_dedup_init(&dedup);
    cg_epoch_table_init(&epochs);
    int64_t used = cg_dedup_decode(&dedup, state->bytes, state->length);
    int64_t rest = -EBADMSG;
    if (used >= 0) {
        rest = cg_epoch_table_decode(&epochs, state->bytes + used, state->length - (size_t)used);
    }
    cg_dedup_clear(&dedup);
    cg_epoch_table_clear(&epochs);
    if (used < 0 || rest < 0) {
        return (int)(used < 0 ? used : rest);
    }
    return (size_t)(used + rest) == state->length ? 0 : -EBADMSG;
}

void cg_copyset_install(struct cg_copyset *copyset, const struct cg_copyset_state *state,
                        void (*done)(void *user, int status), void *user) {
    assert(copyset->paused && copyset->incomplete);
    int result = check(state);
    if (result != 0) {
        done(user, result);
        return;
    }
    copyset->install.state = state;
    copyset->install.done = done;
    copyset->install.user = user;
    submit(copyset, save_call, state_saved);
}

void cg_copyset_capture_incomplete(struct cg_copyset *copyset, struct cg_copyset_log_saved *out) {
    // The log may have the new state a moment earlier than the copyset.
    struct cg_copyset_log_status status;
    struct cg_copyset_log_saved now;
    cg_copyset_log_status(copyset->log, &status);
    cg_copyset_log_capture(copyset->log, status.delivered_index, &now);
    *out = copyset->base;
    out->term = now.term;
    out->vote = now.vote;
    // No entry counts, but for those that follow an INSTALL record which is there already.
    out->replay_lsn = copyset->install.lsn != 0 ? copyset->install.lsn : UINT64_MAX;
}

// ---- At a start

int cg_copyset_state_found(struct cg_copyset *copyset) {
    char folder[CG_CHUNK_PATH_MAX];
    cg_copyset_folder(copyset, folder);
    enum cg_copy_mark mark;
    int result = cg_copy_mark_load(copyset->store->disk, folder, &mark, &copyset->found);
    if (result == 0 && mark != CG_COPY_MARK_NONE) {
        copyset->incomplete = true;
        copyset->paused = true;
    }
    return result;
}

void cg_copyset_state_restored(struct cg_copyset *copyset) {
    struct cg_copyset_state *found = &copyset->found;
    if (found->bytes != NULL && copyset->base.index >= found->log.index) {
        copyset->copied_index = found->log.index; // a checkpoint has it: the next one removes it
        copyset->incomplete = false;
        copyset->paused = false;
        cg_copyset_state_clear(found);
    }
}

int cg_copyset_state_seen(struct cg_copyset *copyset, uint64_t index) {
    struct cg_copyset_state *found = &copyset->found;
    if (found->bytes == NULL || found->log.index != index) {
        return 0;
    }
    int result = adopt(copyset, found);
    copyset->incomplete = false;
    copyset->paused = false;
    cg_copyset_state_clear(found);
    return result;
}

static void found_installed(void *user, int status) {
    struct cg_copyset *copyset = user;
    cg_copyset_state_clear(&copyset->found);
    if (status == 0) {
        cg_copyset_resume(copyset);
    }
}

void cg_copyset_state_started(struct cg_copyset *copyset) {
    if (!copyset->incomplete) {
        return;
    }
    cg_copyset_log_install_begin(copyset->log);
    cg_copyset_log_install_discard(copyset->log);
    if (copyset->found.bytes != NULL) {
        copyset->install.state = &copyset->found;
        copyset->install.done = found_installed;
        copyset->install.user = copyset;
        install(copyset);
    }
}
