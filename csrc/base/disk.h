// SPDX-License-Identifier: BSD-3-Clause
//
// The file interface of everything durable. The real one goes to the kernel; the simulated one
// (tests/c) keeps what was synced apart from what was not, so that power loss can be played at any
// point. Code that writes durable data uses nothing but this.
//
// Handles are small integers, descriptors for the real disk. Paths are relative to the disk's
// folder. All functions return 0 or a count, or a negative errno.
#ifndef CG_BASE_DISK_H
#define CG_BASE_DISK_H

#include <stdint.h>
#include <sys/types.h>

#include "base/reactor.h"

struct cg_disk;

struct cg_disk_ops {
    // flags as open(2): O_RDWR, O_CREAT, O_EXCL, O_DIRECT, O_DSYNC. Returns a handle.
    int (*open)(struct cg_disk *disk, const char *path, int flags);
    void (*close)(struct cg_disk *disk, int handle);
    int (*rename)(struct cg_disk *disk, const char *from, const char *to);
    int (*unlink)(struct cg_disk *disk, const char *path);
    int (*mkdir)(struct cg_disk *disk, const char *path); // 0 also when it is there already
    // Makes creations, renames and removals in the folder durable. "" is the disk's own folder.
    int (*sync_directory)(struct cg_disk *disk, const char *path);
    // Calls `each` for every entry but "." and ".."; stops at the first non-zero return and returns
    // it.
    int (*list)(struct cg_disk *disk, const char *path,
                int (*each)(void *context, const char *name), void *context);
    int64_t (*size)(struct cg_disk *disk, int handle);
    int (*truncate)(struct cg_disk *disk, int handle, uint64_t length);
    int (*allocate)(struct cg_disk *disk, int handle, uint64_t offset, uint64_t length);
    // Blocking, for start-up and rare work. A short read means the end of the file.
    int64_t (*read)(struct cg_disk *disk, int handle, void *data, uint64_t length, uint64_t offset);
    int64_t (*write)(struct cg_disk *disk, int handle, const void *data, uint64_t length,
                     uint64_t offset);
    int (*sync)(struct cg_disk *disk, int handle); // fdatasync
    // Reads what is in the page cache without blocking: bytes, or -EAGAIN when it is not all there.
    int64_t (*read_cached)(struct cg_disk *disk, int handle, const struct iovec *iov, int iovcnt,
                           uint64_t offset);
    // Asynchronous; op->fd is the handle. See cg_reactor_file.
    void (*submit)(struct cg_disk *disk, struct cg_file_op *op);
    // Bytes free for ordinary use and in all.
    int (*space)(struct cg_disk *disk, uint64_t *free_bytes, uint64_t *total_bytes);
};

struct cg_disk {
    const struct cg_disk_ops *ops;
};

// The real disk at `folder` (must exist). An exclusive lock on the file "lock" inside it is held
// until cg_disk_close: -EBUSY if another process holds it. `reactor` runs the asynchronous
// operations.
int cg_disk_open(const char *folder, struct cg_reactor *reactor, struct cg_disk **out);
void cg_disk_close(struct cg_disk *disk);

#endif
