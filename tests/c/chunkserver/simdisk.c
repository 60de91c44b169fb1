// SPDX-License-Identifier: BSD-3-Clause
#include "simdisk.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HANDLES_MAX      256
#define PATH_SIZE        96U
#define DIRECT_ALIGNMENT 4096U

// A write that is not known to be on the medium.
struct unsynced {
    struct cg_list node;
    uint64_t offset;
    uint64_t length;
    uint64_t order;
    uint8_t data[];
};

struct inode {
    struct cg_list node;
    uint32_t links; // names in either namespace, and open handles
    uint64_t size;  // as seen
    uint64_t durable_size;
    uint64_t capacity; // of the arrays
    uint8_t *seen;
    uint8_t *durable;
    uint64_t *sector_order; // of the write that each durable sector holds
    struct cg_list unsynced;
};

struct name {
    struct cg_list node;
    char path[PATH_SIZE];
    bool folder;
    struct inode *inode; // NULL for a folder
};

enum change_kind { CHANGE_ADD, CHANGE_REMOVE, CHANGE_RENAME };

// A directory operation that is not known to be on the medium.
struct change {
    struct cg_list node;
    enum change_kind kind;
    char path[PATH_SIZE];
    char to[PATH_SIZE];
    bool folder;
    struct inode *inode;
};

struct handle {
    struct inode *inode;
    int flags;
};

struct simdisk {
    struct cg_disk base;
    struct simdisk_options options;
    uint64_t random;
    uint64_t order;
    uint64_t writes;
    struct cg_list inodes;
    struct cg_list seen;    // names
    struct cg_list durable; // names
    struct cg_list changes;
    struct handle handles[HANDLES_MAX];
    struct cg_list queue;
    unsigned queued;
    int write_error, sync_error;
    unsigned write_error_in, sync_error_in;
    bool write_error_sticky;
    unsigned delay;
    bool off_armed, off; // simdisk_power_off
    unsigned off_in;
};

static struct simdisk *sim_of(struct cg_disk *disk) {
    return (struct simdisk *)disk;
}

static void *must(void *memory) {
    if (memory == NULL) {
        abort();
    }
    return memory;
}

// splitmix64
uint64_t simdisk_random(struct simdisk *sim) {
    uint64_t z = (sim->random += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static bool coin(struct simdisk *sim) {
    return (simdisk_random(sim) >> 40 & 1) != 0;
}

// ---- Inodes

static void inode_unref(struct inode *inode) {
    if (inode == NULL || --inode->links != 0) {
        return;
    }
    struct cg_list *node;
    while ((node = cg_list_pop_front(&inode->unsynced)) != NULL) {
        free(CG_CONTAINER_OF(node, struct unsynced, node));
    }
    cg_list_remove(&inode->node);
    free(inode->seen);
    free(inode->durable);
    free(inode->sector_order);
    free(inode);
}

static struct inode *inode_create(struct simdisk *sim) {
    struct inode *inode = must(calloc(1, sizeof(*inode)));
    cg_list_init(&inode->unsynced);
    cg_list_push_back(&sim->inodes, &inode->node);
    return inode;
}

static void inode_reserve(const struct simdisk *sim, struct inode *inode, uint64_t size) {
    if (size <= inode->capacity) {
        return;
    }
    uint64_t capacity = inode->capacity * 2 > size ? inode->capacity * 2 : size;
    capacity = (capacity + 4095U) & ~UINT64_C(4095);
    uint64_t sectors = capacity / sim->options.sector;
    uint64_t before = inode->capacity / sim->options.sector;
    inode->seen = must(realloc(inode->seen, capacity));
    inode->durable = must(realloc(inode->durable, capacity));
    inode->sector_order = must(realloc(inode->sector_order, sectors * sizeof(uint64_t)));
    memset(inode->seen + inode->capacity, 0, capacity - inode->capacity);
    memset(inode->durable + inode->capacity, 0, capacity - inode->capacity);
    memset(inode->sector_order + before, 0, (sectors - before) * sizeof(uint64_t));
    inode->capacity = capacity;
}

uint64_t simdisk_used(const struct simdisk *sim) {
    uint64_t used = 0;
    CG_LIST_FOREACH (node, &sim->seen) {
        const struct name *name = CG_CONTAINER_OF(node, struct name, node);
        used += name->inode != NULL ? name->inode->size : 0;
    }
    return used;
}

static int inode_extend(struct simdisk *sim, struct inode *inode, uint64_t size) {
    if (size <= inode->size) {
        return 0;
    }
    uint64_t limit = sim->options.capacity_bytes;
    if (limit != 0 && simdisk_used(sim) + (size - inode->size) > limit) {
        return -ENOSPC;
    }
    inode_reserve(sim, inode, size);
    inode->size = size;
    return 0;
}

// Puts one sector of a write on the medium, unless what is there is newer.
static void settle_sector(const struct simdisk *sim, struct inode *inode,
                          const struct unsynced *write, uint64_t sector) {
    uint64_t start = sector * sim->options.sector;
    uint64_t end = start + sim->options.sector;
    uint64_t from = start > write->offset ? start : write->offset;
    uint64_t to = end < write->offset + write->length ? end : write->offset + write->length;
    if (inode->sector_order[sector] > write->order) {
        return;
    }
    memcpy(inode->durable + from, write->data + (from - write->offset), to - from);
    inode->sector_order[sector] = write->order;
}

enum settle { SETTLE_WHOLE, SETTLE_TORN };

static void settle(struct simdisk *sim, struct inode *inode, const struct unsynced *write,
                   enum settle how) {
    uint64_t first = write->offset / sim->options.sector;
    uint64_t last = (write->offset + write->length - 1) / sim->options.sector;
    // Half of the torn writes are a prefix, as most are; the others have any sectors missing.
    bool prefix = how == SETTLE_TORN && coin(sim);
    uint64_t kept = prefix ? first + simdisk_random(sim) % (last - first + 2) : last + 1;
    for (uint64_t s = first; s <= last && s < kept; s++) {
        if (how == SETTLE_WHOLE || prefix || coin(sim)) {
            settle_sector(sim, inode, write, s);
        }
    }
    if (inode->durable_size < write->offset + write->length) {
        inode->durable_size = write->offset + write->length;
    }
}

static void inode_sync(struct simdisk *sim, struct inode *inode) {
    struct cg_list *node;
    while ((node = cg_list_pop_front(&inode->unsynced)) != NULL) {
        struct unsynced *write = CG_CONTAINER_OF(node, struct unsynced, node);
        settle(sim, inode, write, SETTLE_WHOLE);
        free(write);
    }
    inode->durable_size = inode->size;
}

static struct unsynced *unsynced_create(struct simdisk *sim, uint64_t offset, uint64_t length) {
    struct unsynced *write = must(malloc(sizeof(*write) + length));
    write->offset = offset;
    write->length = length;
    write->order = ++sim->order;
    cg_list_init(&write->node);
    return write;
}

// ---- Names

static struct name *find(const struct cg_list *names, const char *path) {
    CG_LIST_FOREACH (node, names) {
        struct name *name = CG_CONTAINER_OF(node, struct name, node);
        if (strcmp(name->path, path) == 0) {
            return name;
        }
    }
    return NULL;
}

static void name_add(struct cg_list *names, const char *path, struct inode *inode, bool folder) {
    struct name *name = must(calloc(1, sizeof(*name)));
    snprintf(name->path, sizeof(name->path), "%s", path);
    name->folder = folder;
    name->inode = inode;
    if (inode != NULL) {
        inode->links++;
    }
    cg_list_push_back(names, &name->node);
}

static void name_remove(struct name *name) {
    cg_list_remove(&name->node);
    inode_unref(name->inode);
    free(name);
}

static void names_clear(struct cg_list *names) {
    while (!cg_list_empty(names)) {
        name_remove(CG_CONTAINER_OF(names->next, struct name, node));
    }
}

static void names_copy(struct cg_list *to, const struct cg_list *from) {
    CG_LIST_FOREACH (node, from) {
        const struct name *name = CG_CONTAINER_OF(node, struct name, node);
        name_add(to, name->path, name->inode, name->folder);
    }
}

static void names_rename(struct cg_list *names, const char *from, const char *to) {
    struct name *name = find(names, from);
    if (name == NULL) {
        return;
    }
    struct name *target = find(names, to);
    if (target != NULL && target != name) {
        name_remove(target);
    }
    snprintf(name->path, sizeof(name->path), "%s", to);
}

static void change_note(struct simdisk *sim, enum change_kind kind, const char *path,
                        const char *to, struct inode *inode, bool folder) {
    struct change *change = must(calloc(1, sizeof(*change)));
    change->kind = kind;
    snprintf(change->path, sizeof(change->path), "%s", path);
    snprintf(change->to, sizeof(change->to), "%s", to != NULL ? to : "");
    change->inode = inode;
    change->folder = folder;
    if (inode != NULL) {
        inode->links++;
    }
    cg_list_push_back(&sim->changes, &change->node);
}

static void change_settle(struct simdisk *sim, const struct change *change) {
    struct name *name = find(&sim->durable, change->path);
    switch (change->kind) {
    case CHANGE_ADD:
        if (name != NULL) {
            name_remove(name);
        }
        name_add(&sim->durable, change->path, change->inode, change->folder);
        break;
    case CHANGE_REMOVE:
        if (name != NULL) {
            name_remove(name);
        }
        break;
    case CHANGE_RENAME:
        names_rename(&sim->durable, change->path, change->to);
        break;
    }
}

static void change_free(struct change *change) {
    cg_list_remove(&change->node);
    inode_unref(change->inode);
    free(change);
}

// The folder of a path: its length up to the last slash.
static bool in_folder(const char *path, const char *folder) {
    const char *slash = strrchr(path, '/');
    size_t length = slash != NULL ? (size_t)(slash - path) : 0;
    return strlen(folder) == length && strncmp(path, folder, length) == 0;
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
    struct name *name = find(&sim->seen, path);
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
        inode = inode_create(sim);
        name_add(&sim->seen, path, inode, false);
        change_note(sim, CHANGE_ADD, path, NULL, inode, false);
    }
    inode->links++;
    sim->handles[handle].inode = inode;
    sim->handles[handle].flags = flags;
    return handle;
}

static struct handle *handle_of(struct simdisk *sim, int handle) {
    assert(handle >= 0 && handle < HANDLES_MAX && sim->handles[handle].inode != NULL);
    return &sim->handles[handle];
}

static void sim_close(struct cg_disk *disk, int handle) {
    struct handle *h = handle_of(sim_of(disk), handle);
    inode_unref(h->inode);
    h->inode = NULL;
}

static int sim_rename(struct cg_disk *disk, const char *from, const char *to) {
    struct simdisk *sim = sim_of(disk);
    if (find(&sim->seen, from) == NULL) {
        return -ENOENT;
    }
    if (power(sim) != POWER_ON) {
        return -EIO;
    }
    names_rename(&sim->seen, from, to);
    change_note(sim, CHANGE_RENAME, from, to, NULL, false);
    return 0;
}

static int sim_unlink(struct cg_disk *disk, const char *path) {
    struct simdisk *sim = sim_of(disk);
    struct name *name = find(&sim->seen, path);
    if (name == NULL) {
        return -ENOENT;
    }
    if (name->folder) {
        return -EISDIR;
    }
    if (power(sim) != POWER_ON) {
        return -EIO;
    }
    name_remove(name);
    change_note(sim, CHANGE_REMOVE, path, NULL, NULL, false);
    return 0;
}

static int sim_mkdir(struct cg_disk *disk, const char *path) {
    struct simdisk *sim = sim_of(disk);
    const struct name *name = find(&sim->seen, path);
    if (name != NULL) {
        return name->folder ? 0 : -ENOTDIR;
    }
    if (power(sim) != POWER_ON) {
        return -EIO;
    }
    name_add(&sim->seen, path, NULL, true);
    change_note(sim, CHANGE_ADD, path, NULL, NULL, true);
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
        if (in_folder(change->path, path) ||
            (change->kind == CHANGE_RENAME && in_folder(change->to, path))) {
            change_settle(sim, change);
            change_free(change);
        }
    }
    return 0;
}

static int sim_list(struct cg_disk *disk, const char *path,
                    int (*each)(void *context, const char *name), void *context) {
    struct simdisk *sim = sim_of(disk);
    if (path[0] != '\0' && find(&sim->seen, path) == NULL) {
        return -ENOENT;
    }
    // The callback may change the folder: walk over a copy.
    struct cg_list copy;
    cg_list_init(&copy);
    names_copy(&copy, &sim->seen);
    int status = 0;
    CG_LIST_FOREACH (node, &copy) {
        const struct name *name = CG_CONTAINER_OF(node, struct name, node);
        if (in_folder(name->path, path)) {
            const char *slash = strrchr(name->path, '/');
            status = each(context, slash != NULL ? slash + 1 : name->path);
            if (status != 0) {
                break;
            }
        }
    }
    names_clear(&copy);
    return status;
}

static int64_t sim_size(struct cg_disk *disk, int handle) {
    return (int64_t)handle_of(sim_of(disk), handle)->inode->size;
}

static int sim_truncate(struct cg_disk *disk, int handle, uint64_t length) {
    struct simdisk *sim = sim_of(disk);
    struct inode *inode = handle_of(sim, handle)->inode;
    if (length >= inode->size) {
        return inode_extend(sim, inode, length);
    }
    // Shrinking settles at once: that lost truncations come back is not modelled.
    inode_sync(sim, inode);
    memset(inode->seen + length, 0, inode->size - length);
    memset(inode->durable + length, 0, inode->size - length);
    inode->size = length;
    inode->durable_size = length;
    return 0;
}

static int sim_allocate(struct cg_disk *disk, int handle, uint64_t offset, uint64_t length) {
    struct simdisk *sim = sim_of(disk);
    return inode_extend(sim, handle_of(sim, handle)->inode, offset + length);
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
    return read_at(handle_of(sim_of(disk), handle), data, length, offset);
}

static uint64_t iov_length(const struct iovec *iov, int iovcnt) {
    uint64_t length = 0;
    for (int i = 0; i < iovcnt; i++) {
        length += iov[i].iov_len;
    }
    return length;
}

static struct unsynced *gather(struct simdisk *sim, const struct handle *h, const struct iovec *iov,
                               int iovcnt, uint64_t offset) {
    struct unsynced *write = unsynced_create(sim, offset, iov_length(iov, iovcnt));
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
static int64_t write_at(struct simdisk *sim, const struct handle *h, struct unsynced *write,
                        bool dsync) {
    struct inode *inode = h->inode;
    uint64_t length = write->length;
    int status = length != 0 ? inode_extend(sim, inode, write->offset + length) : 0;
    if (status < 0 || length == 0) {
        free(write);
        return status;
    }
    sim->writes++;
    write_visible(sim, inode, write);
    if (dsync) {
        settle(sim, inode, write, SETTLE_WHOLE);
        if (inode->durable_size < inode->size) {
            inode->durable_size = inode->size;
        }
        cg_list_remove(&write->node);
        free(write);
    }
    return (int64_t)length;
}

// A part of a write that has not completed: any sectors of it reach the reader's view, unsynced.
static void leave_part(struct simdisk *sim, const struct cg_file_op *op) {
    const struct handle *h = handle_of(sim, op->fd);
    struct unsynced *whole = gather(sim, h, op->iov, op->iovcnt, op->offset);
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
        struct unsynced *piece = unsynced_create(sim, from, to - from);
        memcpy(piece->data, whole->data + (from - whole->offset), to - from);
        write_visible(sim, h->inode, piece);
    }
    free(whole);
}

static int64_t sim_write(struct cg_disk *disk, int handle, const void *data, uint64_t length,
                         uint64_t offset) {
    struct simdisk *sim = sim_of(disk);
    struct handle *h = handle_of(sim, handle);
    struct iovec iov = {.iov_len = length};
    memcpy(&iov.iov_base, &data, sizeof(data)); // a const pointer into an iovec
    enum power state = power(sim);
    if (state != POWER_ON) {
        const struct cg_file_op op = {.fd = handle, .iov = &iov, .iovcnt = 1, .offset = offset};
        if (state == POWER_GOING) {
            leave_part(sim, &op);
        }
        return -EIO;
    }
    return write_at(sim, h, gather(sim, h, &iov, 1, offset), (h->flags & O_DSYNC) != 0);
}

static int sim_sync(struct cg_disk *disk, int handle) {
    struct simdisk *sim = sim_of(disk);
    int error = take_sync_error(sim);
    if (error == 0 && power(sim) != POWER_ON) {
        error = -EIO;
    }
    if (error == 0) {
        inode_sync(sim, handle_of(sim, handle)->inode);
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
    int64_t n = read_iov(handle_of(sim, handle), iov, iovcnt, offset);
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

static bool is_write(const struct cg_file_op *op) {
    return op->opcode == CG_FILE_WRITE || op->opcode == CG_FILE_WRITE_BUFFERED;
}

static int64_t perform_write(struct simdisk *sim, struct cg_file_op *op) {
    int error = take_write_error(sim);
    if (error != 0) {
        leave_part(sim, op);
        return error;
    }
    const struct handle *h = handle_of(sim, op->fd);
    bool dsync = (h->flags & O_DSYNC) != 0 || (op->rw_flags & RWF_DSYNC) != 0;
    return write_at(sim, h, gather(sim, h, op->iov, op->iovcnt, op->offset), dsync);
}

static void perform(struct simdisk *sim, struct cg_file_op *op) {
    switch (op->opcode) {
    case CG_FILE_READ:
        op->result = read_iov(handle_of(sim, op->fd), op->iov, op->iovcnt, op->offset);
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
            const struct handle *h = handle_of(sim, op->fd);
            struct unsynced *zeros = unsynced_create(sim, op->offset, op->length);
            memset(zeros->data, 0, op->length);
            int64_t n = write_at(sim, h, zeros, false);
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
    return sim->queued;
}

bool simdisk_step(struct simdisk *sim) {
    if (sim->queued == 0) {
        return false;
    }
    uint64_t skip = sim->options.fifo ? 0 : simdisk_random(sim) % sim->queued;
    struct cg_list *node = sim->queue.next;
    while (skip-- != 0) {
        node = node->next;
    }
    struct cg_file_op *op = CG_CONTAINER_OF(node, struct cg_file_op, node);
    if (sim->delay != 0) {
        sim->delay--;
        if (is_write(op)) {
            return true;
        }
    }
    cg_list_remove(node);
    sim->queued--;
    perform(sim, op);
    op->done(op);
    return true;
}

// ---- Failures

static void forget_process(struct simdisk *sim) {
    cg_list_init(&sim->queue);
    sim->queued = 0;
    sim->delay = 0;
    sim->write_error = 0;
    sim->sync_error = 0;
    sim->off_armed = false;
    sim->off = false;
    for (int i = 0; i < HANDLES_MAX; i++) {
        inode_unref(sim->handles[i].inode);
        sim->handles[i].inode = NULL;
    }
}

static void queue_becomes_unsynced(struct simdisk *sim, bool whole) {
    CG_LIST_FOREACH (node, &sim->queue) {
        const struct cg_file_op *op = CG_CONTAINER_OF(node, struct cg_file_op, node);
        if (!is_write(op)) {
            continue;
        }
        const struct handle *h = handle_of(sim, op->fd);
        if (whole || simdisk_random(sim) % 3 == 0) {
            write_at(sim, h, gather(sim, h, op->iov, op->iovcnt, op->offset), false);
        } else {
            leave_part(sim, op);
        }
    }
}

void simdisk_kill(struct simdisk *sim) {
    queue_becomes_unsynced(sim, false);
    forget_process(sim);
}

static void crash_inode(struct simdisk *sim, struct inode *inode, enum simdisk_crash mode) {
    bool grown = inode->size != inode->durable_size;
    if (grown && (mode == SIMDISK_KEEP_ALL || (mode != SIMDISK_DROP_ALL && coin(sim)))) {
        inode->durable_size = inode->size;
    }
    struct cg_list *node;
    while ((node = cg_list_pop_front(&inode->unsynced)) != NULL) {
        struct unsynced *write = CG_CONTAINER_OF(node, struct unsynced, node);
        if (mode == SIMDISK_KEEP_ALL || (mode == SIMDISK_ANY_WRITES && coin(sim))) {
            settle(sim, inode, write, SETTLE_WHOLE);
        } else if (mode == SIMDISK_ANY_SECTORS) {
            settle(sim, inode, write, SETTLE_TORN);
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
        if (find(names, folder) == NULL) {
            name_remove(name);
        }
    }
}

void simdisk_crash(struct simdisk *sim, enum simdisk_crash mode) {
    queue_becomes_unsynced(sim, true);
    forget_process(sim);
    CG_LIST_FOREACH_SAFE (node, next, &sim->changes) {
        struct change *change = CG_CONTAINER_OF(node, struct change, node);
        if (mode == SIMDISK_KEEP_ALL || (mode != SIMDISK_DROP_ALL && coin(sim))) {
            change_settle(sim, change);
        }
        change_free(change);
    }
    drop_orphans(&sim->durable);
    names_clear(&sim->seen);
    names_copy(&sim->seen, &sim->durable);
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

void simdisk_delay_writes(struct simdisk *sim, unsigned count) {
    sim->delay = count;
}

int simdisk_flip(struct simdisk *sim, const char *path, uint64_t offset, unsigned bit) {
    const struct name *name = find(&sim->seen, path);
    if (name == NULL) {
        return -ENOENT;
    }
    if (name->inode == NULL || offset >= name->inode->size || bit > 7) {
        return -EINVAL;
    }
    name->inode->seen[offset] ^= (uint8_t)(1U << bit);
    name->inode->durable[offset] ^= (uint8_t)(1U << bit);
    return 0;
}

const uint8_t *simdisk_bytes(const struct simdisk *sim, const char *path, uint64_t *length) {
    const struct name *name = find(&sim->seen, path);
    if (name == NULL || name->inode == NULL) {
        return NULL;
    }
    *length = name->inode->size;
    return name->inode->seen;
}

uint64_t simdisk_writes(const struct simdisk *sim) {
    return sim->writes;
}

// ---- Life cycle

struct simdisk *simdisk_create(const struct simdisk_options *options) {
    struct simdisk *sim = must(calloc(1, sizeof(*sim)));
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
    return sim;
}

void simdisk_destroy(struct simdisk *sim) {
    forget_process(sim);
    while (!cg_list_empty(&sim->changes)) {
        change_free(CG_CONTAINER_OF(sim->changes.next, struct change, node));
    }
    names_clear(&sim->seen);
    names_clear(&sim->durable);
    assert(cg_list_empty(&sim->inodes));
    free(sim);
}

struct cg_disk *simdisk_disk(struct simdisk *sim) {
    return &sim->base;
}
