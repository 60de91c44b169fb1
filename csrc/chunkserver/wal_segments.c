// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/wal_segments.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

// Zeros written by one step of a preparation: short enough that a log in a hurry, and the other
// users of the thread pool, wait for milliseconds.
#define WAL_ZERO_STEP (1U << 20)

static void segment_name(uint32_t slot, char out[WAL_NAME_SIZE]) {
    snprintf(out, WAL_NAME_SIZE, WAL_NAME_FORMAT, slot);
}

// The disk is full: true if it is worth another try.
static bool room_made(struct wal_segments *set, int status) {
    return (status == -ENOSPC || status == -EDQUOT) && set->make_room != NULL &&
           set->make_room(set->room_context);
}

// tmpfs and some network file systems refuse O_DIRECT. O_DSYNC alone is as durable there, but goes
// through the page cache.
int wal_segments_probe(struct wal_segments *set) {
    struct cg_disk *disk = set->disk;
    static const char probe[] = WAL_FOLDER "/probe";
    int handle;
    do {
        handle = disk->ops->open(disk, probe, O_RDWR | O_CREAT | O_DIRECT);
    } while (room_made(set, handle));
    if (handle == -EINVAL || handle == -EOPNOTSUPP) {
        cg_log(CG_LOG_WARNING, "wal: the file system refuses O_DIRECT; writing through the page "
                               "cache with O_DSYNC, which is slower");
        set->open_flags = 0;
        handle = disk->ops->open(disk, probe, O_RDWR | O_CREAT);
    }
    if (handle < 0) {
        return handle;
    }
    disk->ops->close(disk, handle);
    return disk->ops->unlink(disk, probe);
}

int wal_segments_init(struct wal_segments *set, struct cg_disk *disk, uint64_t segment_bytes,
                      uint64_t smallest_bytes, uint64_t capacity_bytes) {
    memset(set, 0, sizeof(*set));
    set->disk = disk;
    set->segment_bytes = segment_bytes;
    set->smallest_bytes = smallest_bytes;
    set->capacity_bytes = capacity_bytes;
    set->open_flags = O_DIRECT;
    set->preparation.segments = set;
    cg_list_init(&set->live);
    cg_list_init(&set->free);
    set->zero_step = segment_bytes < WAL_ZERO_STEP ? segment_bytes : WAL_ZERO_STEP;
    set->zeros = aligned_alloc(CG_WAL_BLOCK, set->zero_step);
    if (set->zeros == NULL) {
        return -ENOMEM;
    }
    memset(set->zeros, 0, set->zero_step);
    int status = disk->ops->mkdir(disk, WAL_FOLDER);
    if (status == 0) {
        status = disk->ops->sync_directory(disk, "");
    }
    return status;
}

static void segment_free(struct wal_segments *set, struct wal_segment *segment) {
    if (segment->handle >= 0) {
        set->disk->ops->close(set->disk, segment->handle);
    }
    free(segment);
}

static void free_list(struct wal_segments *set, struct cg_list *list) {
    struct cg_list *node;
    while ((node = cg_list_pop_front(list)) != NULL) {
        segment_free(set, CG_CONTAINER_OF(node, struct wal_segment, node));
    }
}

void wal_segments_destroy(struct wal_segments *set) {
    assert(!set->preparation.running);
    free_list(set, &set->live);
    free_list(set, &set->free);
    free(set->zeros);
    set->zeros = NULL;
}

static struct wal_segment *segment_alloc(uint32_t slot) {
    struct wal_segment *segment = calloc(1, sizeof(*segment));
    if (segment != NULL) {
        cg_list_init(&segment->node);
        segment->slot = slot;
        segment->handle = -1;
    }
    return segment;
}

static int segment_attach(struct wal_segments *set, struct wal_segment *segment) {
    char name[WAL_NAME_SIZE];
    segment_name(segment->slot, name);
    int handle = set->disk->ops->open(set->disk, name, O_RDWR | O_DSYNC | set->open_flags);
    if (handle < 0) {
        return handle;
    }
    segment->handle = handle;
    int64_t size = set->disk->ops->size(set->disk, handle);
    if (size < 0) {
        return (int)size;
    }
    // A file whose making was cut short may end anywhere; O_DIRECT reads whole blocks.
    segment->size = (uint64_t)size & ~(uint64_t)(CG_WAL_BLOCK - 1);
    return 0;
}

int wal_segment_open(struct wal_segments *set, uint32_t slot, struct wal_segment **out) {
    struct wal_segment *segment = segment_alloc(slot);
    if (segment == NULL) {
        return -ENOMEM;
    }
    int status = segment_attach(set, segment);
    if (status < 0) {
        segment_free(set, segment);
        return status;
    }
    set->held_bytes += segment->size;
    if (slot >= set->next_slot) {
        set->next_slot = slot + 1;
    }
    *out = segment;
    return 0;
}

void wal_segment_remove(struct wal_segments *set, struct wal_segment *segment) {
    char name[WAL_NAME_SIZE];
    segment_name(segment->slot, name);
    int status = set->disk->ops->unlink(set->disk, name);
    if (status < 0) {
        cg_log(CG_LOG_WARNING, "wal: cannot remove %s: %s", name, strerror(-status));
    }
    set->held_bytes -= segment->size;
    segment_free(set, segment);
}

void wal_segment_release(struct wal_segments *set, struct wal_segment *segment) {
    if (segment->size < set->smallest_bytes || set->held_bytes > set->capacity_bytes) {
        wal_segment_remove(set, segment);
        return;
    }
    cg_list_push_back(&set->free, &segment->node);
    set->free_count++;
}

struct wal_segment *wal_segment_take(struct wal_segments *set) {
    struct cg_list *node = cg_list_pop_front(&set->free);
    if (node == NULL) {
        return NULL;
    }
    set->free_count--;
    return CG_CONTAINER_OF(node, struct wal_segment, node);
}

void wal_segments_push_live(struct wal_segments *set, struct wal_segment *segment) {
    struct wal_segment *before = wal_segments_current(set);
    if (before != NULL) {
        before->end_lsn = segment->header.start_lsn;
        set->sealed_bytes += before->size;
    }
    cg_list_push_back(&set->live, &segment->node);
}

struct wal_segment *wal_segments_find(struct wal_segments *set, uint64_t lsn) {
    struct wal_segment *current = wal_segments_current(set);
    if (lsn < set->needed_lsn) {
        return NULL;
    }
    CG_LIST_FOREACH (node, &set->live) {
        struct wal_segment *segment = CG_CONTAINER_OF(node, struct wal_segment, node);
        if (segment == current || lsn < segment->end_lsn) {
            return lsn >= segment->header.start_lsn ? segment : NULL;
        }
    }
    return NULL;
}

void wal_segments_recycle(struct wal_segments *set, uint64_t lsn) {
    set->needed_lsn = lsn > set->needed_lsn ? lsn : set->needed_lsn;
    const struct wal_segment *current = wal_segments_current(set);
    for (;;) {
        struct wal_segment *oldest = CG_CONTAINER_OF(set->live.next, struct wal_segment, node);
        if (oldest == current || oldest->end_lsn > set->needed_lsn || oldest->readers != 0) {
            break;
        }
        cg_list_remove(&oldest->node);
        set->sealed_bytes -= oldest->size;
        wal_segment_release(set, oldest);
        set->growth_failed = false;
    }
    wal_segments_give_back(set);
}

// ---- Making files. The steps are the same blocking or on the thread pool; only one runs at a
// time, so that they may touch the preparation without locks.

static int step_open(struct wal_preparation *p, struct cg_disk *disk) {
    char name[WAL_NAME_SIZE];
    segment_name(p->segment->slot, name);
    p->raw = disk->ops->open(disk, name, O_RDWR | O_CREAT | O_EXCL | p->segments->open_flags);
    if (p->raw < 0) {
        return p->raw;
    }
    return disk->ops->allocate(disk, p->raw, 0, p->segment->size);
}

// Blocks that were never written are "unwritten extents": the first O_DSYNC write to each would
// have to commit the file system's journal as well.
static int step_zero(struct wal_preparation *p, struct cg_disk *disk) {
    uint64_t length = p->segment->size - p->zeroed;
    if (length > p->segments->zero_step) {
        length = p->segments->zero_step;
    }
    int64_t n = disk->ops->write(disk, p->raw, p->segments->zeros, length, p->zeroed);
    if (n < 0) {
        return (int)n;
    }
    p->zeroed += length;
    return 0;
}

// The header says "prepared" and is written last, so that a file whose making was cut short is
// known by its zeros.
static int step_finish(struct wal_preparation *p, struct cg_disk *disk) {
    uint8_t *block = aligned_alloc(CG_WAL_BLOCK, CG_WAL_BLOCK);
    if (block == NULL) {
        return -ENOMEM;
    }
    memset(&p->segment->header, 0, sizeof(p->segment->header));
    wal_segment_header_encode(&p->segment->header, block);
    int status = disk->ops->sync(disk, p->raw);
    if (status == 0) {
        int64_t n = disk->ops->write(disk, p->raw, block, CG_WAL_BLOCK, 0);
        status = n < 0 ? (int)n : disk->ops->sync(disk, p->raw);
    }
    free(block);
    if (status == 0) {
        status = disk->ops->sync_directory(disk, WAL_FOLDER);
    }
    return status == 0 ? segment_attach(p->segments, p->segment) : status;
}

static int preparation_begin(struct wal_preparation *p, uint64_t size) {
    struct wal_segments *set = p->segments;
    p->segment = segment_alloc(set->next_slot);
    if (p->segment == NULL) {
        return -ENOMEM;
    }
    set->next_slot++;
    p->segment->size = size;
    p->raw = -1;
    p->zeroed = 0;
    p->hurry = false;
    set->held_bytes += size;
    return 0;
}

// Hands the file over, or removes what there is of it.
static void preparation_end(struct wal_preparation *p, int status) {
    struct wal_segments *set = p->segments;
    if (p->raw >= 0) {
        set->disk->ops->close(set->disk, p->raw);
        if (status < 0) {
            wal_segment_remove(set, p->segment);
        }
    } else {
        set->held_bytes -= p->segment->size;
        segment_free(set, p->segment);
    }
    if (status == 0) {
        cg_list_push_back(&set->free, &p->segment->node);
        set->free_count++;
    }
    p->segment = NULL;
}

static int create_once(struct wal_segments *set, uint64_t size) {
    struct wal_preparation *p = &set->preparation;
    assert(!p->running);
    int status = preparation_begin(p, size);
    if (status < 0) {
        return status;
    }
    status = step_open(p, set->disk);
    while (status == 0 && p->zeroed < size) {
        status = step_zero(p, set->disk);
    }
    if (status == 0) {
        status = step_finish(p, set->disk);
    }
    preparation_end(p, status);
    return status;
}

int wal_segment_create(struct wal_segments *set, uint64_t size) {
    int status;
    do {
        status = create_once(set, size);
    } while (room_made(set, status));
    return status;
}

enum { STEP_MORE = 1 };

static bool is_alone(const struct wal_segments *set) {
    return set->free_count == 0 && set->live.next == set->live.prev;
}

// On the thread pool.
static void preparation_step(struct cg_file_op *op) {
    struct wal_preparation *p = CG_CONTAINER_OF(op, struct wal_preparation, op);
    struct cg_disk *disk = p->segments->disk;
    int status;
    if (p->raw < 0) {
        status = step_open(p, disk);
    } else if (p->zeroed < p->segment->size && !__atomic_load_n(&p->hurry, __ATOMIC_RELAXED)) {
        status = step_zero(p, disk);
    } else {
        status = step_finish(p, disk);
        op->result = status;
        return;
    }
    op->result = status < 0 ? status : STEP_MORE;
}

static void preparation_done(struct cg_file_op *op) {
    struct wal_preparation *p = CG_CONTAINER_OF(op, struct wal_preparation, op);
    struct wal_segments *set = p->segments;
    if (op->result == STEP_MORE) {
        set->disk->ops->submit(set->disk, op);
        return;
    }
    p->running = false;
    int status = (int)op->result;
    preparation_end(p, status);
    if (status < 0 && is_alone(set) && room_made(set, status)) {
        wal_segments_grow(set, true);
        return;
    }
    set->growth_failed = status < 0;
    if (status < 0 && !set->limited) {
        cg_log(CG_LOG_WARNING,
               "wal: cannot make another segment file: %s; keeping to the %llu MiB "
               "that are there",
               strerror(-status), (unsigned long long)(set->held_bytes >> 20));
    }
    set->limited = status < 0;
    set->prepared(set->context);
}

// Files grow with the log, so that a small store stays small: each as big as all before it
// together, up to the full size.
static uint64_t next_size(const struct wal_segments *set) {
    uint64_t size = set->held_bytes;
    if (size < set->smallest_bytes) {
        size = set->smallest_bytes;
    }
    if (size > set->segment_bytes) {
        size = set->segment_bytes;
    }
    if (set->held_bytes + size > set->capacity_bytes) {
        size = set->capacity_bytes > set->held_bytes ? set->capacity_bytes - set->held_bytes : 0;
    }
    size &= ~(uint64_t)(CG_WAL_BLOCK - 1);
    return size >= set->smallest_bytes ? size : 0;
}

// What was accepted already has to find space in the chunk files, or the log could never be
// recycled.
static bool leaves_enough(const struct wal_segments *set, uint64_t size) {
    uint64_t free_bytes;
    uint64_t total_bytes;
    return set->keep_free_bytes == 0 ||
           set->disk->ops->space(set->disk, &free_bytes, &total_bytes) != 0 ||
           free_bytes >= size + set->keep_free_bytes;
}

void wal_segments_give_back(struct wal_segments *set) {
    while (set->give_back && set->free_count > 1 && !leaves_enough(set, 0)) {
        wal_segment_remove(set, wal_segment_take(set));
    }
}

void wal_segments_try_again(struct wal_segments *set) {
    if (set->growth_failed && (is_alone(set) || leaves_enough(set, set->smallest_bytes))) {
        set->growth_failed = false;
        wal_segments_grow(set, false);
    }
}

void wal_segments_grow(struct wal_segments *set, bool hurry) {
    struct wal_preparation *p = &set->preparation;
    if (p->running) {
        // Read by the step on the thread pool, which may see it one step later.
        __atomic_store_n(&p->hurry, p->hurry || hurry, __ATOMIC_RELAXED);
        return;
    }
    uint64_t size = next_size(set);
    if (set->growth_failed || set->free_count >= WAL_FREE_TARGET || size == 0) {
        return;
    }
    if (is_alone(set)) {
        size = set->smallest_bytes;
    } else if (!leaves_enough(set, size)) {
        set->growth_failed = true; // until something is recycled
        set->limited = true;
        return;
    }
    if (preparation_begin(p, size) < 0) {
        return;
    }
    p->hurry = hurry;
    p->running = true;
    p->op.opcode = CG_FILE_CALL;
    p->op.fd = -1;
    p->op.call = preparation_step;
    p->op.done = preparation_done;
    set->disk->ops->submit(set->disk, &p->op);
}
