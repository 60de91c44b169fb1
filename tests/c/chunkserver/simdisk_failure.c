// SPDX-License-Identifier: BSD-3-Clause
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "simdisk_internal.h"

void simdisk_forget_process(struct simdisk *sim) {
    cg_list_init(&sim->queue);
    sim->queued = 0;
    cg_list_init(&sim->effected);
    sim->effected_count = 0;
    sim->delay = 0;
    sim->hold_reads = false;
    sim->write_error = 0;
    sim->sync_error = 0;
    sim->off_armed = false;
    sim->off = false;
    for (int i = 0; i < HANDLES_MAX; i++) {
        simdisk_inode_unref(sim->handles[i].inode);
        sim->handles[i].inode = NULL;
    }
}

static void queue_becomes_unsynced(struct simdisk *sim, bool whole) {
    CG_LIST_FOREACH (node, &sim->queue) {
        const struct cg_file_op *op = CG_CONTAINER_OF(node, struct cg_file_op, node);
        if (!simdisk_is_write(op)) {
            continue;
        }
        const struct handle *h = simdisk_handle(sim, op->fd);
        if (whole || simdisk_random(sim) % 3 == 0) {
            simdisk_write_at(sim, h, simdisk_gather(sim, h, op->iov, op->iovcnt, op->offset),
                             false);
        } else {
            simdisk_leave_part(sim, op);
        }
    }
}

void simdisk_kill(struct simdisk *sim) {
    queue_becomes_unsynced(sim, false);
    simdisk_forget_process(sim);
}

static void crash_inode(struct simdisk *sim, struct inode *inode, enum simdisk_crash mode) {
    bool grown = inode->size != inode->durable_size;
    if (grown && (mode == SIMDISK_KEEP_ALL || (mode != SIMDISK_DROP_ALL && simdisk_coin(sim)))) {
        inode->durable_size = inode->size;
    }
    struct cg_list *node;
    while ((node = cg_list_pop_front(&inode->unsynced)) != NULL) {
        struct unsynced *write = CG_CONTAINER_OF(node, struct unsynced, node);
        if (mode == SIMDISK_KEEP_ALL || (mode == SIMDISK_ANY_WRITES && simdisk_coin(sim))) {
            simdisk_settle(sim, inode, write, SETTLE_WHOLE);
        } else if (mode == SIMDISK_ANY_SECTORS) {
            simdisk_settle(sim, inode, write, SETTLE_TORN);
        }
        free(write);
    }
    inode->size = inode->durable_size;
    if (inode->capacity != 0) {
        memcpy(inode->seen, inode->durable, inode->capacity);
    }
}

// What lies in a folder that was lost is lost too.
static void drop_orphans(struct cg_list *names) {
    CG_LIST_FOREACH_SAFE (node, next, names) {
        struct name *name = CG_CONTAINER_OF(node, struct name, node);
        char folder[PATH_SIZE];
        snprintf(folder, sizeof(folder), "%s", name->path);
        char *slash = strrchr(folder, '/');
        if (slash == NULL) {
            continue;
        }
        *slash = '\0';
        if (simdisk_find(names, folder) == NULL) {
            simdisk_name_remove(name);
        }
    }
}

void simdisk_crash(struct simdisk *sim, enum simdisk_crash mode) {
    queue_becomes_unsynced(sim, true);
    simdisk_forget_process(sim);
    CG_LIST_FOREACH_SAFE (node, next, &sim->changes) {
        struct change *change = CG_CONTAINER_OF(node, struct change, node);
        if (mode == SIMDISK_KEEP_ALL || (mode != SIMDISK_DROP_ALL && simdisk_coin(sim))) {
            simdisk_change_settle(sim, change);
        }
        simdisk_change_free(change);
    }
    drop_orphans(&sim->durable);
    simdisk_names_clear(&sim->seen);
    simdisk_names_copy(&sim->seen, &sim->durable);
    CG_LIST_FOREACH (node, &sim->inodes) {
        crash_inode(sim, CG_CONTAINER_OF(node, struct inode, node), mode);
    }
}

void simdisk_fail_write(struct simdisk *sim, unsigned nth, int error, bool sticky) {
    sim->write_error = error;
    sim->write_error_in = nth;
    sim->write_error_sticky = sticky;
}

void simdisk_fail_sync(struct simdisk *sim, unsigned nth, int error) {
    sim->sync_error = error;
    sim->sync_error_in = nth;
}

void simdisk_power_off(struct simdisk *sim, unsigned nth) {
    sim->off_armed = true;
    sim->off_in = nth;
}

void simdisk_hold_reads(struct simdisk *sim, bool hold) {
    sim->hold_reads = hold;
}

void simdisk_delay_writes(struct simdisk *sim, unsigned count) {
    sim->delay = count;
}

int simdisk_rot(struct simdisk *sim, const char *path, uint64_t offset, unsigned bit) {
    const struct name *name = simdisk_find(&sim->seen, path);
    if (name == NULL) {
        return -ENOENT;
    }
    if (name->inode == NULL || offset >= name->inode->size || bit > 7) {
        return -EINVAL;
    }
    name->inode->durable[offset] ^= (uint8_t)(1U << bit);
    return 0;
}

int simdisk_flip(struct simdisk *sim, const char *path, uint64_t offset, unsigned bit) {
    int result = simdisk_rot(sim, path, offset, bit);
    if (result == 0) {
        simdisk_find(&sim->seen, path)->inode->seen[offset] ^= (uint8_t)(1U << bit);
    }
    return result;
}

const uint8_t *simdisk_bytes(const struct simdisk *sim, const char *path, uint64_t *length) {
    const struct name *name = simdisk_find(&sim->seen, path);
    if (name == NULL || name->inode == NULL) {
        return NULL;
    }
    *length = name->inode->size;
    return name->inode->seen;
}

uint64_t simdisk_writes(const struct simdisk *sim) {
    return sim->writes;
}

static void abort_reads(struct cg_list *list, unsigned *count) {
    CG_LIST_FOREACH_SAFE (node, following, list) {
        struct cg_file_op *op = CG_CONTAINER_OF(node, struct cg_file_op, node);
        if (op->opcode == CG_FILE_READ) {
            cg_list_remove(node);
            --*count;
            op->result = -EIO;
            op->done(op);
        }
    }
}

void simdisk_abort_reads(struct simdisk *sim) {
    abort_reads(&sim->effected, &sim->effected_count);
    abort_reads(&sim->queue, &sim->queued);
}
