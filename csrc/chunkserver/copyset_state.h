// SPDX-License-Identifier: BSD-3-Clause
//
// A copyset's state as something that is handed over: taken from a replica that has it, installed
// in one that lacks it. The state is the replicated bookkeeping (windows, epochs, members) as of an
// index; the chunk files are copied by others (catchup.h), who may replace them while the copyset
// is paused.
//
// That a copyset is half-copied is said by the file "copy" in its folder, which is replaced by the
// state once the chunks are there, and goes when a checkpoint has what it says. One file: which of
// the two is the case is never in doubt.
#ifndef CG_CHUNKSERVER_COPYSET_STATE_H
#define CG_CHUNKSERVER_COPYSET_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/disk.h"
#include "chunkserver/copyset_log.h"

struct cg_copyset;
struct cg_chunk;

struct cg_copyset_state {
    struct cg_copyset_log_saved log; // index, index_term and config count
    uint8_t *bytes;                  // windows, then epochs, as in a checkpoint
    uint32_t length;
};

void cg_copyset_state_clear(struct cg_copyset_state *state);

// What the copyset has, as of what has been delivered to it. The chunk files have all of it once
// cg_copyset_applied() is not below out->log.index. Returns 0, -ENOMEM, or -EAGAIN before its log
// has started.
int cg_copyset_state_get(struct cg_copyset *copyset, struct cg_copyset_state *out);

// ---- A replica that is being copied. One caller at a time; `done` may be called inside

// Nothing more is delivered. done(user, 0): nothing of the copyset is under way, none of its chunks
// is in memory, and what it had applied is saved by a checkpoint. -EBUSY: that did not come about
// in time; -EIO: the disk is retired. It is paused either way.
void cg_copyset_pause(struct cg_copyset *copyset, void (*done)(void *user, int status), void *user);

// Delivering goes on.
void cg_copyset_resume(struct cg_copyset *copyset);

// Paused, and its log has begun an installation: says durably that the chunk files are a mixture
// from now on, and that the entries in the log do not count. Only cg_copyset_install ends that.
// Again for each copying: a state that was saved, and that the log would not have, is not what the
// next one's files belong to. done: 0 or -errno.
void cg_copyset_copying(struct cg_copyset *copyset, void (*done)(void *user, int status),
                        void *user);

// It is so, and there is no state yet that could be installed. Found at a start: the copyset is
// paused, its log has begun an installation.
bool cg_copyset_incomplete(const struct cg_copyset *copyset);

// Incomplete, with chunk files as of state->log.index or later, in place and synced (files and
// folder): makes the state durable, then the log begins behind it. done: 0, and the copyset is
// complete, or an error of the disk or of cg_copyset_log_installed. It stays paused.
void cg_copyset_install(struct cg_copyset *copyset, const struct cg_copyset_state *state,
                        void (*done)(void *user, int status), void *user);

// ---- One chunk

// A BROKEN chunk, of which the caller has a reference, so that its file is to be replaced:
// operations and reads of it wait from now on. The file put in its place has to be as of an index
// not below cg_copyset_delivered() now.
void cg_chunk_hold(struct cg_chunk *chunk);
// It is loaded anew, and the caller's reference dropped.
void cg_chunk_release(struct cg_chunk *chunk);

// ---- The file (copyset_state_file.c). Blocking

enum cg_copy_mark {
    CG_COPY_MARK_NONE,
    CG_COPY_MARK_COPYING,
    CG_COPY_MARK_COMPLETE,
};

// `state` is filled for COMPLETE. 0, -EBADMSG or the disk's error.
int cg_copy_mark_load(struct cg_disk *disk, const char *folder, enum cg_copy_mark *mark,
                      struct cg_copyset_state *state);
// `state` NULL: COPYING. 0 or -errno.
int cg_copy_mark_save(struct cg_disk *disk, const char *folder,
                      const struct cg_copyset_state *state);
int cg_copy_mark_remove(struct cg_disk *disk, const char *folder);

#endif
