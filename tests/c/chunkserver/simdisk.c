// SPDX-License-Identifier: BSD-3-Clause
#include "simdisk_internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct simdisk *sim_of(struct cg_disk *disk) {
    return (struct simdisk *)disk;
}

// ---- Operations

enum power { POWER_ON, POWER_GOING, POWER_OFF };

// Asked by every blocking operation that changes something.
static enum power power(struct simdisk *sim) {
    if (sim->off) {
        return POWER_OFF;
    }
    if (!sim->off_armed || sim->off_in-- != 0) {
        return POWER_ON;
    }
    sim->off = true;
    return POWER_GOING;
}

static int sim_open(struct cg_disk *disk, const char *path, int flags) {
    struct simdisk *sim = sim_of(disk);
    assert(strlen(path) < PATH_SIZE);
    if ((flags & O_DIRECT) != 0 && sim->options.refuse_direct) {
        return -EINVAL;
    }
    struct name *name = simdisk_find(&sim->seen, path);
    if (name != NULL && name->folder) {
        return -EISDIR;
    }
    if (name == NULL && (flags & O_CREAT) == 0) {
        return -ENOENT;
    }
    if (name != NULL && (flags & O_EXCL) != 0) {
        return -EEXIST;
    }
    int handle = 0;
    while (handle < HANDLES_MAX && sim->handles[handle].inode != NULL) {
        handle++;
    }
    if (handle == HANDLES_MAX) {
        return -EMFILE;
    }
    if (name == NULL && power(sim) != POWER_ON) {
        return -EIO;
    }
    struct inode *inode;
    if (name != NULL) {
        inode = name->inode;
    } else {
        inode = simdisk_inode_create(sim);
        simdisk_name_add(&sim->seen, path, inode, false);
        simdisk_change_note(sim, CHANGE_ADD, path, NULL, inode, false);
    }
    inode->links++;
    sim->handles[handle].inode = inode;
    sim->handles[handle].flags = sim->options.ignore_dsync ? flags & ~O_DSYNC : flags;
    return handle;
}

struct handle *simdisk_handle(struct simdisk *sim, int handle) {
    assert(handle >= 0 && handle < HANDLES_MAX && sim->handles[handle].inode != NULL);
    return &sim->handles[handle];
}

static void sim_close(struct cg_disk *disk, int handle) {
    struct handle *h = simdisk_handle(sim_of(disk), handle);
    simdisk_inode_unref(h->inode);
    h->inode = NULL;
}

static int sim_rename(struct cg_disk *disk, const char *from, const char *to) {
    struct simdisk *sim = sim_of(disk);
    if (simdisk_find(&sim->seen, from) == NULL) {
        return -ENOENT;
    }
    if (power(sim) != POWER_ON) {
        return -EIO;
    }
    simdisk_names_rename(&sim->seen, from, to);
    simdisk_change_note(sim, CHANGE_RENAME, from, to, NULL, false);
    return 0;
}

static int sim_unlink(struct cg_disk *disk, const char *path) {
    struct simdisk *sim = sim_of(disk);
    struct name *name = simdisk_find(&sim->seen, path);
    if (name == NULL) {
        return -ENOENT;
    }
    if (name->folder) {
        return -EISDIR;
    }
    if (power(sim) != POWER_ON) {
        return -EIO;
    }
    simdisk_name_remove(name);
    simdisk_change_note(sim, CHANGE_REMOVE, path, NULL, NULL, false);
    return 0;
}

static int sim_mkdir(struct cg_disk *disk, const char *path) {
    struct simdisk *sim = sim_of(disk);
    const struct name *name = simdisk_find(&sim->seen, path);
    if (name != NULL) {
        return name->folder ? 0 : -ENOTDIR;
    }
    if (power(sim) != POWER_ON) {
        return -EIO;
    }
    simdisk_name_add(&sim->seen, path, NULL, true);
    simdisk_change_note(sim, CHANGE_ADD, path, NULL, NULL, true);
    return 0;
}

static int take_sync_error(struct simdisk *sim) {
    if (sim->sync_error != 0 && sim->sync_error_in-- == 0) {
        int error = sim->sync_error;
        sim->sync_error = 0;
        return error;
    }
    return 0;
}

static int sim_sync_directory(struct cg_disk *disk, const char *path) {
    struct simdisk *sim = sim_of(disk);
    int error = take_sync_error(sim);
    if (error != 0 || power(sim) != POWER_ON) {
        return error != 0 ? error : -EIO;
    }
    CG_LIST_FOREACH_SAFE (node, next, &sim->changes) {
        struct change *change = CG_CONTAINER_OF(node, struct change, node);
        if (simdisk_in_folder(change->path, path) ||
            (change->kind == CHANGE_RENAME && simdisk_in_folder(change->to, path))) {
            simdisk_change_settle(sim, change);
            simdisk_change_free(change);
        }
    }
    return 0;
}

static int sim_list(struct cg_disk *disk, const char *path,
                    int (*each)(void *context, const char *name), void *context) {
    struct simdisk *sim = sim_of(disk);
    if (path[0] != '\0' && simdisk_find(&sim->seen, path) == NULL) {
        return -ENOENT;
    }
    // The callback may change the folder: walk over a copy.
    struct cg_list copy;
    cg_list_init(&copy);
    simdisk_names_copy(&copy, &sim->seen);
    int status = 0;
    CG_LIST_FOREACH (node, &copy) {
        const struct name *name = CG_CONTAINER_OF(node, struct name, node);
        if (simdisk_in_folder(name->path, path)) {
            const char *slash = strrchr(name->path, '/');
            status = each(context, slash != NULL ? slash + 1 : name->path);
            if (status != 0) {
                break;
            }
        }
    }
    simdisk_names_clear(&copy);
    return status;
}

static int64_t sim_size(struct cg_disk *disk, int handle) {
    return (int64_t)simdisk_handle(sim_of(disk), handle)->inode->size;
}

static int sim_truncate(struct cg_disk *disk, int handle, uint64_t length) {
    struct simdisk *sim = sim_of(disk);
    struct inode *inode = simdisk_handle(sim, handle)->inode;
    if (length >= inode->size) {
        return simdisk_inode_extend(sim, inode, length);
    }
    // Shrinking settles at once: that lost truncations come back is not modelled.
    simdisk_inode_sync(sim, inode);
    memset(inode->seen + length, 0, inode->size - length);
    memset(inode->durable + length, 0, inode->size - length);
    inode->size = length;
    inode->durable_size = length;
    return 0;
}

static int sim_allocate(struct cg_disk *disk, int handle, uint64_t offset, uint64_t length) {
    struct simdisk *sim = sim_of(disk);
    return simdisk_inode_extend(sim, simdisk_handle(sim, handle)->inode, offset + length);
}

static void check_alignment(const struct handle *h, const void *data, uint64_t length,
                            uint64_t offset) {
    if ((h->flags & O_DIRECT) != 0) {
        assert((uintptr_t)data % DIRECT_ALIGNMENT == 0);
        assert(length % DIRECT_ALIGNMENT == 0);
        assert(offset % DIRECT_ALIGNMENT == 0);
    }
}

static int64_t read_at(const struct handle *h, void *data, uint64_t length, uint64_t offset) {
    check_alignment(h, data, length, offset);
    if (offset >= h->inode->size) {
        return 0;
    }
    uint64_t n = h->inode->size - offset < length ? h->inode->size - offset : length;
    memcpy(data, h->inode->seen + offset, n);
    return (int64_t)n;
}

static int64_t sim_read(struct cg_disk *disk, int handle, void *data, uint64_t length,
                        uint64_t offset) {
    const struct handle *h = simdisk_handle(sim_of(disk), handle);
    int64_t n = read_at(h, data, length, offset);
    if (n > 0 && (h->flags & O_DIRECT) != 0 && (h->flags & O_ACCMODE) == O_RDONLY) {
        memcpy(data, h->inode->durable + offset, (size_t)n);
    }
    return n;
}

static uint64_t iov_length(const struct iovec *iov, int iovcnt) {
    uint64_t length = 0;
    for (int i = 0; i < iovcnt; i++) {
        length += iov[i].iov_len;
    }
    return length;
}

struct unsynced *simdisk_gather(struct simdisk *sim, const struct handle *h,
                                const struct iovec *iov, int iovcnt, uint64_t offset) {
    struct unsynced *write = simdisk_unsynced_create(sim, offset, iov_length(iov, iovcnt));
    uint64_t at = 0;
    for (int i = 0; i < iovcnt; i++) {
        check_alignment(h, iov[i].iov_base, iov[i].iov_len, offset);
        memcpy(write->data + at, iov[i].iov_base, iov[i].iov_len);
        at += iov[i].iov_len;
    }
    return write;
}

static int take_write_error(struct simdisk *sim) {
    if (sim->write_error == 0) {
        return 0;
    }
    if (sim->write_error_in != 0) {
        sim->write_error_in--;
        return 0;
    }
    int error = sim->write_error;
    if (!sim->write_error_sticky) {
        sim->write_error = 0;
    }
    return error;
}

// Makes a write visible, whole or in part, and leaves it on the unsynced list.
static void write_visible(struct simdisk *sim, struct inode *inode, struct unsynced *write) {
    memcpy(inode->seen + write->offset, write->data, write->length);
    cg_list_push_back(&inode->unsynced, &write->node);
    (void)sim;
}

// Takes over `write`.
int64_t simdisk_write_at(struct simdisk *sim, const struct handle *h, struct unsynced *write,
                         bool dsync) {
    struct inode *inode = h->inode;
    uint64_t length = write->length;
    int status = length != 0 ? simdisk_inode_extend(sim, inode, write->offset + length) : 0;
    if (status < 0 || length == 0) {
        free(write);
        return status;
    }
    sim->writes++;
    write_visible(sim, inode, write);
    if (dsync) {
        simdisk_settle(sim, inode, write, SETTLE_WHOLE);
        if (inode->durable_size < inode->size) {
            inode->durable_size = inode->size;
        }
        cg_list_remove(&write->node);
        free(write);
    }
    return (int64_t)length;
}

// A part of a write that has not completed: any sectors of it reach the reader's view, unsynced.
void simdisk_leave_part(struct simdisk *sim, const struct cg_file_op *op) {
    const struct handle *h = simdisk_handle(sim, op->fd);
    struct unsynced *whole = simdisk_gather(sim, h, op->iov, op->iovcnt, op->offset);
    if (whole->length == 0 || whole->offset + whole->length > h->inode->size) {
        free(whole);
        return;
    }
    uint64_t first = whole->offset / sim->options.sector;
    uint64_t last = (whole->offset + whole->length - 1) / sim->options.sector;
    unsigned likely = (unsigned)(simdisk_random(sim) % 5); // from none to all of the sectors
    for (uint64_t s = first; s <= last; s++) {
        if (simdisk_random(sim) % 4 >= likely) {
            continue;
        }
        uint64_t from = s * sim->options.sector;
        uint64_t to = from + sim->options.sector;
        from = from > whole->offset ? from : whole->offset;
        to = to < whole->offset + whole->length ? to : whole->offset + whole->length;
        struct unsynced *piece = simdisk_unsynced_create(sim, from, to - from);
        memcpy(piece->data, whole->data + (from - whole->offset), to - from);
        write_visible(sim, h->inode, piece);
    }
    free(whole);
}

static int64_t sim_write(struct cg_disk *disk, int handle, const void *data, uint64_t length,
                         uint64_t offset) {
    struct simdisk *sim = sim_of(disk);
    struct handle *h = simdisk_handle(sim, handle);
    struct iovec iov = {.iov_len = length};
    memcpy(&iov.iov_base, &data, sizeof(data)); // a const pointer into an iovec
    enum power state = power(sim);
    if (state != POWER_ON) {
        const struct cg_file_op op = {.fd = handle, .iov = &iov, .iovcnt = 1, .offset = offset};
        if (state == POWER_GOING) {
            simdisk_leave_part(sim, &op);
        }
        return -EIO;
    }
    return simdisk_write_at(sim, h, simdisk_gather(sim, h, &iov, 1, offset),
                            (h->flags & O_DSYNC) != 0);
}

static int sim_sync(struct cg_disk *disk, int handle) {
    struct simdisk *sim = sim_of(disk);
    int error = take_sync_error(sim);
    if (error == 0 && power(sim) != POWER_ON) {
        error = -EIO;
    }
    if (error == 0) {
        simdisk_inode_sync(sim, simdisk_handle(sim, handle)->inode);
    }
    return error;
}

static int64_t read_iov(const struct handle *h, const struct iovec *iov, int iovcnt,
                        uint64_t offset) {
    int64_t done = 0;
    for (int i = 0; i < iovcnt; i++) {
        int64_t n = read_at(h, iov[i].iov_base, iov[i].iov_len, offset + (uint64_t)done);
        done += n;
        if ((uint64_t)n < iov[i].iov_len) {
            break;
        }
    }
    return done;
}

static int64_t sim_read_cached(struct cg_disk *disk, int handle, const struct iovec *iov,
                               int iovcnt, uint64_t offset) {
    struct simdisk *sim = sim_of(disk);
    if (simdisk_random(sim) % 4 == 0) {
        return -EAGAIN;
    }
    int64_t n = read_iov(simdisk_handle(sim, handle), iov, iovcnt, offset);
    return (uint64_t)n == iov_length(iov, iovcnt) ? n : -EAGAIN;
}

static void sim_submit(struct cg_disk *disk, struct cg_file_op *op) {
    struct simdisk *sim = sim_of(disk);
    cg_list_push_back(&sim->queue, &op->node);
    sim->queued++;
}

static int sim_space(struct cg_disk *disk, uint64_t *free_bytes, uint64_t *total_bytes) {
    struct simdisk *sim = sim_of(disk);
    uint64_t total =
        sim->options.capacity_bytes != 0 ? sim->options.capacity_bytes : UINT64_C(1) << 40;
    uint64_t used = simdisk_used(sim);
    *total_bytes = total;
    *free_bytes = used < total ? total - used : 0;
    return 0;
}

static const struct cg_disk_ops sim_ops = {
    .open = sim_open,
    .close = sim_close,
    .rename = sim_rename,
    .unlink = sim_unlink,
    .mkdir = sim_mkdir,
    .sync_directory = sim_sync_directory,
    .list = sim_list,
    .size = sim_size,
    .truncate = sim_truncate,
    .allocate = sim_allocate,
    .read = sim_read,
    .write = sim_write,
    .sync = sim_sync,
    .read_cached = sim_read_cached,
    .submit = sim_submit,
    .space = sim_space,
};

// ---- The queue

bool simdisk_is_write(const struct cg_file_op *op) {
    return op->opcode == CG_FILE_WRITE || op->opcode == CG_FILE_WRITE_BUFFERED;
}

static int64_t perform_write(struct simdisk *sim, struct cg_file_op *op) {
    int error = take_write_error(sim);
    if (error != 0) {
        simdisk_leave_part(sim, op);
        return error;
    }
    const struct handle *h = simdisk_handle(sim, op->fd);
    bool dsync = (h->flags & O_DSYNC) != 0 || (op->rw_flags & RWF_DSYNC) != 0;
    return simdisk_write_at(sim, h, simdisk_gather(sim, h, op->iov, op->iovcnt, op->offset), dsync);
}

static void perform(struct simdisk *sim, struct cg_file_op *op) {
    switch (op->opcode) {
    case CG_FILE_READ:
        op->result = read_iov(simdisk_handle(sim, op->fd), op->iov, op->iovcnt, op->offset);
        break;
    case CG_FILE_WRITE:
    case CG_FILE_WRITE_BUFFERED:
        op->result = perform_write(sim, op);
        break;
    case CG_FILE_FDATASYNC:
    case CG_FILE_FSYNC:
        op->result = sim_sync(&sim->base, op->fd);
        break;
    case CG_FILE_FALLOCATE:
        if (op->mode == 0) {
            op->result = sim_allocate(&sim->base, op->fd, op->offset, op->length);
        } else {
            // Punching and zeroing read as zeros afterwards.
            const struct handle *h = simdisk_handle(sim, op->fd);
            struct unsynced *zeros = simdisk_unsynced_create(sim, op->offset, op->length);
            memset(zeros->data, 0, op->length);
            int64_t n = simdisk_write_at(sim, h, zeros, false);
            op->result = n < 0 ? n : 0;
        }
        break;
    case CG_FILE_SYNC_RANGE:
        op->result = 0;
        break;
    case CG_FILE_CALL:
        op->call(op);
        break;
    }
}

unsigned simdisk_pending(const struct simdisk *sim) {
    return sim->queued + sim->effected_count;
}

bool simdisk_step(struct simdisk *sim) {
    if (sim->effected_count > 0 && (sim->queued == 0 || simdisk_random(sim) % 2 == 0)) {
        struct cg_list *first = cg_list_pop_front(&sim->effected);
        sim->effected_count--;
        struct cg_file_op *known = CG_CONTAINER_OF(first, struct cg_file_op, node);
        known->done(known);
        return true;
    }
    if (sim->queued == 0) {
        return false;
    }
    uint64_t skip = sim->options.fifo ? 0 : simdisk_random(sim) % sim->queued;
    struct cg_list *node = sim->queue.next;
    while (skip-- != 0) {
        node = node->next;
    }
    struct cg_file_op *op = CG_CONTAINER_OF(node, struct cg_file_op, node);
    if (sim->hold_reads && op->opcode == CG_FILE_READ) {
        return true;
    }
    if (sim->delay != 0) {
        sim->delay--;
        if (simdisk_is_write(op)) {
            return true;
        }
    }
    cg_list_remove(node);
    sim->queued--;
    perform(sim, op);
    if (!sim->options.fifo && simdisk_random(sim) % 3 == 0) {
        // What another operation sees of it, before its submitter hears that it is done.
        cg_list_push_back(&sim->effected, &op->node);
        sim->effected_count++;
        return true;
    }
    op->done(op);
    return true;
}

// ---- Life cycle

struct simdisk *simdisk_create(const struct simdisk_options *options) {
    struct simdisk *sim = simdisk_must(calloc(1, sizeof(*sim)));
    sim->base.ops = &sim_ops;
    sim->options = *options;
    if (sim->options.sector == 0) {
        sim->options.sector = 512;
    }
    sim->random = options->seed;
    cg_list_init(&sim->inodes);
    cg_list_init(&sim->seen);
    cg_list_init(&sim->durable);
    cg_list_init(&sim->changes);
    cg_list_init(&sim->queue);
    cg_list_init(&sim->effected);
    return sim;
}

void simdisk_destroy(struct simdisk *sim) {
    simdisk_forget_process(sim);
    while (!cg_list_empty(&sim->changes)) {
        simdisk_change_free(CG_CONTAINER_OF(sim->changes.next, struct change, node));
    }
    simdisk_names_clear(&sim->seen);
    simdisk_names_clear(&sim->durable);
    assert(cg_list_empty(&sim->inodes));
    free(sim);
}

struct cg_disk *simdisk_disk(struct simdisk *sim) {
    return &sim->base;
}
