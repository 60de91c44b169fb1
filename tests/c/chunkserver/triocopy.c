// SPDX-License-Identifier: BSD-3-Clause
//
// State is copied by the simplest means: chunk after chunk out of the leader's store into the files
// of the other one, with the steps and marks that a real copy takes. Nodes may die at any of them.
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "chunkserver/copyset_state.h"
#include "chunkserver/store_internal.h"
#include "triomodel.h"

#define FILE_SIZE (CG_CHUNK_DATA_OFFSET + TRIO_CHUNK_SIZE)

enum stage {
    STAGE_APPLY,   // the leader's chunk files have to have what its state says
    STAGE_PAUSE,   // callbacks lead on
    STAGE_CHUNK,   // the next chunk
    STAGE_READING, // it is being read
    STAGE_INSTALL,
    STAGE_OVER,
};

struct trio_copy {
    struct trio *trio;
    unsigned from;
    uint64_t from_life;
    unsigned to;
    uint32_t copyset;
    enum stage stage;
    uint32_t chunk;
    bool given_up; // the source died
    struct cg_copyset_state state;
};

static struct cg_copyset *source(const struct trio_copy *copy) {
    return trio_copyset(&copy->trio->node[copy->from], copy->copyset);
}

static struct cg_copyset *target(const struct trio_copy *copy) {
    return trio_copyset(&copy->trio->node[copy->to], copy->copyset);
}

static bool source_lives(const struct trio_copy *copy) {
    const struct trio_node *node = &copy->trio->node[copy->from];
    return node->up && node->life == copy->from_life;
}

static void end(struct trio_copy *copy, bool ok) {
    if (source_lives(copy)) {
        cg_copyset_log_copied(cg_copyset_raft(source(copy)), copy->to + 1, copy->state.log.index,
                              ok);
    }
    copy->trio->counts.copies += ok;
    copy->stage = STAGE_OVER;
}

// ---- Receiving

static void marked(void *user, int status) {
    struct trio_copy *copy = user;
    if (status != 0) {
        end(copy, false); // its disk has failed
        return;
    }
    copy->stage = STAGE_CHUNK;
}

static void paused(void *user, int status) {
    struct trio_copy *copy = user;
    if (status != 0 || copy->given_up) {
        cg_copyset_log_install_abort(cg_copyset_raft(target(copy)));
        cg_copyset_resume(target(copy));
        end(copy, false);
        return;
    }
    cg_copyset_copying(target(copy), marked, copy);
}

static void begin(struct trio_copy *copy) {
    struct cg_copyset_log *log = cg_copyset_raft(target(copy));
    if (cg_copyset_incomplete(target(copy))) {
        copy->stage = STAGE_CHUNK;     // a copy before this one was cut short
    } else if (target(copy)->paused || // a state that it found at its start is being installed
               !cg_copyset_log_wants_state(log, copy->state.log.index,
                                           copy->state.log.index_term)) {
        end(copy, false);
    } else {
        cg_copyset_log_install_begin(log);
        copy->stage = STAGE_PAUSE;
        cg_copyset_pause(target(copy), paused, copy);
    }
}

static void installed(void *user, int status) {
    struct trio_copy *copy = user;
    if (status == 0) {
        cg_copyset_resume(target(copy));
    }
    end(copy, status == 0);
}

// ---- A chunk

// False if the disk fails.
static bool put_file(const struct trio_copy *copy, const char *path, const uint8_t *data) {
    struct cg_disk *disk = simdisk_disk(copy->trio->node[copy->to].sim);
    int handle = disk->ops->open(disk, path, O_RDWR | O_CREAT);
    if (handle < 0) {
        trio_fail(copy->trio, "a chunk cannot be copied");
    }
    bool good = disk->ops->write(disk, handle, data, FILE_SIZE, 0) == FILE_SIZE &&
                disk->ops->sync(disk, handle) == 0;
    disk->ops->close(disk, handle);
    return good;
}

// The chunk as it stands in the leader's memory while it answers: what was read and what is known
// of it belong together.
static bool write_chunk(const struct trio_copy *copy, const uint8_t *data) {
    const struct cg_chunk *chunk = cg_chunk_find(source(copy), copy->chunk + 1);
    static uint8_t file[FILE_SIZE];
    memset(file, 0, sizeof(file));
    struct cg_chunk_header header = {
        .sequence = 1,
        .group = source(copy)->group,
        .chunk_id = chunk->id,
        .file_id = chunk->file_id,
        .sn = chunk->sn,
        .applied_index = chunk->applied_index,
        .chunk_size = TRIO_CHUNK_SIZE,
    };
    cg_chunk_slot_encode(&header, chunk->slot->allocated, chunk->slot->crc, file);
    memcpy(file + CG_CHUNK_DATA_OFFSET, data, TRIO_CHUNK_SIZE);
    char path[CG_CHUNK_PATH_MAX];
    cg_chunk_path(target(copy), chunk->id, path);
    return put_file(copy, path, file);
}

struct reading {
    struct trio_copy *copy; // NULL: nobody waits for it any more
    struct trio *trio;
    unsigned to;
    uint32_t copyset;
};

static void chunk_read(void *user, const struct cg_read_result *result) {
    struct reading *reading = user;
    struct trio_copy *copy = reading->trio->copy[reading->to][reading->copyset];
    bool waits = copy != NULL && copy == reading->copy && copy->stage == STAGE_READING;
    free(reading);
    if (!waits) {
        return;
    }
    copy->stage = STAGE_CHUNK;
    if (result->status == STATUS(SUCCESS)) {
        if (write_chunk(copy, result->data)) {
            copy->chunk++;
        } else {
            end(copy, false);
        }
    } else if (result->status == STATUS(CHUNK_NOTEXIST)) {
        struct cg_disk *disk = simdisk_disk(copy->trio->node[copy->to].sim);
        char path[CG_CHUNK_PATH_MAX];
        cg_chunk_path(target(copy), copy->chunk + 1, path);
        (void)disk->ops->unlink(disk, path); // it may not be there
        copy->chunk++;
    } else if (result->status == STATUS(DISK_FAIL)) {
        end(copy, false);
    } else if (result->status != STATUS(OVERLOAD)) {
        trio_fail(copy->trio, "a chunk cannot be read to be copied");
    }
}

static void next_chunk(struct trio_copy *copy) {
    if (copy->chunk == TRIO_CHUNKS) {
        char folder[CG_CHUNK_PATH_MAX];
        cg_copyset_folder(target(copy), folder);
        struct cg_disk *disk = simdisk_disk(copy->trio->node[copy->to].sim);
        if (disk->ops->sync_directory(disk, folder) != 0) {
            end(copy, false);
            return;
        }
        copy->stage = STAGE_INSTALL;
        cg_copyset_install(target(copy), &copy->state, installed, copy);
        return;
    }
    struct reading *reading = malloc(sizeof(*reading));
    *reading = (struct reading){copy, copy->trio, copy->to, copy->copyset};
    struct cg_query query = {
        .kind = CG_READ_DATA,
        .copyset = source(copy),
        .chunk_id = copy->chunk + 1,
        .size = TRIO_CHUNK_SIZE,
        .local = true,
        .done = chunk_read,
        .user = reading,
    };
    copy->stage = STAGE_READING;
    cg_store_read(copy->trio->node[copy->from].store, &query);
}

// ---- Life

void trio_copy_wanted(struct trio *trio, struct trio_node *leader, uint32_t copyset,
                      uint64_t member) {
    unsigned to = (unsigned)(member - 1);
    struct trio_copy *copy = calloc(1, sizeof(*copy));
    *copy = (struct trio_copy){
        .trio = trio, .from = leader->at, .from_life = leader->life, .to = to, .copyset = copyset};
    struct cg_copyset_log *log = cg_copyset_raft(trio_copyset(leader, copyset));
    if (!trio->node[to].up || trio->copy[to][copyset] != NULL ||
        cg_copyset_state_get(trio_copyset(leader, copyset), &copy->state) != 0) {
        free(copy);
        cg_copyset_log_copied(log, member, 0, false);
        return;
    }
    cg_copyset_log_copying(log, member, copy->state.log.index);
    trio->copy[to][copyset] = copy;
}

static void free_copy(struct trio_copy *copy) {
    copy->trio->copy[copy->to][copy->copyset] = NULL;
    cg_copyset_state_clear(&copy->state);
    free(copy);
}

static void give_up(struct trio_copy *copy) {
    copy->given_up = true;
    if (copy->stage == STAGE_APPLY || copy->stage == STAGE_CHUNK || copy->stage == STAGE_READING) {
        end(copy, false); // if chunks were copied it stays incomplete until the next one
    }
}

void trio_copy_forget(struct trio *trio, unsigned at) {
    for (uint32_t copyset = 0; copyset < TRIO_COPYSETS; copyset++) {
        struct trio_copy *own = trio->copy[at][copyset];
        if (own != NULL) {
            free_copy(own);
        }
        for (unsigned to = 0; to < TRIO_NODES; to++) {
            struct trio_copy *copy = trio->copy[to][copyset];
            if (copy != NULL && copy->from == at) {
                give_up(copy);
            }
        }
    }
}

static void step(struct trio_copy *copy) {
    switch (copy->stage) {
    case STAGE_APPLY:
        if (cg_copyset_applied(source(copy)) >= copy->state.log.index) {
            begin(copy);
        }
        break;
    case STAGE_CHUNK:
        next_chunk(copy);
        break;
    case STAGE_OVER:
        free_copy(copy);
        break;
    case STAGE_PAUSE:
    case STAGE_READING:
    case STAGE_INSTALL:
        break;
    }
}

void trio_copy_step(struct trio *trio) {
    unsigned to = (unsigned)trio_pick(trio, TRIO_NODES);
    uint32_t copyset = (uint32_t)trio_pick(trio, TRIO_COPYSETS);
    struct trio_node *node = &trio->node[to];
    if (trio->copy[to][copyset] != NULL) {
        step(trio->copy[to][copyset]);
        return;
    }
    struct trio_node *leader = trio_leader(trio, copyset);
    if (node->up && leader != NULL && leader != node &&
        cg_copyset_incomplete(trio_copyset(node, copyset))) {
        trio_copy_wanted(trio, leader, copyset, to + 1);
    }
}
