// SPDX-License-Identifier: BSD-3-Clause
#include "chunkserver/reserve.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/log.h"

#define NAME   "reserve"
#define BLOCK  4096U
#define PIECES 16U // in which it is given back

static uint64_t piece_bytes(const struct cg_reserve *reserve) {
    uint64_t piece = reserve->full_bytes / PIECES & ~(uint64_t)(BLOCK - 1);
    return piece > BLOCK ? piece : BLOCK;
}

int cg_reserve_open(struct cg_reserve *reserve, struct cg_disk *disk, uint64_t kept_bytes) {
    reserve->disk = disk;
    reserve->kept_bytes = kept_bytes;
    reserve->full_bytes = (kept_bytes - kept_bytes / 4) & ~(uint64_t)(BLOCK - 1);
    reserve->held_bytes = 0;
    reserve->handle = disk->ops->open(disk, NAME, O_RDWR);
    if (reserve->handle < 0) {
        int result = reserve->handle;
        reserve->handle = -1;
        return result == -ENOENT ? 0 : result;
    }
    cg_reserve_measure(reserve);
    int64_t size = disk->ops->size(disk, reserve->handle);
    if (size < 0 || (uint64_t)size <= reserve->full_bytes) {
        return size < 0 ? (int)size : 0;
    }
    return disk->ops->truncate(disk, reserve->handle, reserve->full_bytes);
}

void cg_reserve_close(struct cg_reserve *reserve) {
    if (reserve->disk != NULL && reserve->handle >= 0) {
        reserve->disk->ops->close(reserve->disk, reserve->handle);
        reserve->handle = -1;
    }
}

int cg_reserve_make(struct cg_reserve *reserve) {
    if (reserve->handle >= 0) {
        return 0;
    }
    struct cg_disk *disk = reserve->disk;
    int handle = disk->ops->open(disk, NAME, O_RDWR | O_CREAT);
    if (handle < 0) {
        return handle;
    }
    reserve->handle = handle;
    return disk->ops->sync_directory(disk, "");
}

bool cg_reserve_give(struct cg_reserve *reserve) {
    if (reserve->held_bytes == 0) {
        return false;
    }
    struct cg_disk *disk = reserve->disk;
    uint64_t piece = piece_bytes(reserve);
    uint64_t rest = reserve->held_bytes > piece ? reserve->held_bytes - piece : 0;
    int result = disk->ops->truncate(disk, reserve->handle, rest);
    if (result < 0) {
        cg_log(CG_LOG_ERROR, "cannot use the reserve: %s", strerror(-result));
        return false;
    }
    reserve->held_bytes = rest;
    return true;
}

uint64_t cg_reserve_target(const struct cg_reserve *reserve, uint64_t free_bytes,
                           uint64_t claimed_bytes) {
    uint64_t left_bytes = reserve->kept_bytes - reserve->full_bytes + claimed_bytes;
    uint64_t wanted = reserve->full_bytes - reserve->held_bytes;
    uint64_t takes = free_bytes > left_bytes ? free_bytes - left_bytes : 0;
    takes = (takes < wanted ? takes : wanted) & ~(uint64_t)(BLOCK - 1);
    // Not block by block: it would be the first taker of whatever becomes free.
    return takes == wanted || takes >= piece_bytes(reserve) ? reserve->held_bytes + takes
                                                            : reserve->held_bytes;
}

int cg_reserve_extend(const struct cg_reserve *reserve, uint64_t length) {
    struct cg_disk *disk = reserve->disk;
    int result = disk->ops->allocate(disk, reserve->handle, 0, length);
    return result < 0 ? result : disk->ops->sync(disk, reserve->handle);
}

void cg_reserve_measure(struct cg_reserve *reserve) {
    int64_t size = reserve->disk->ops->size(reserve->disk, reserve->handle);
    uint64_t held = size > 0 ? (uint64_t)size : 0;
    reserve->held_bytes = held < reserve->full_bytes ? held : reserve->full_bytes;
}
