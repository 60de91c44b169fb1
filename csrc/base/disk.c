// SPDX-License-Identifier: BSD-3-Clause
#include "base/disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILE_MODE   0640
#define FOLDER_MODE 0750

struct real_disk {
    struct cg_disk base;
    struct cg_reactor *reactor;
    int folder;
    int lock;
};

static struct real_disk *real(struct cg_disk *disk) {
    return (struct real_disk *)disk;
}

static const char *path_or_self(const char *path) {
    return path[0] != '\0' ? path : ".";
}

static int disk_open(struct cg_disk *disk, const char *path, int flags) {
    int fd;
    do {
        fd = openat(real(disk)->folder, path, flags | O_CLOEXEC, FILE_MODE);
    } while (fd < 0 && errno == EINTR);
    return fd < 0 ? -errno : fd;
}

static void disk_close(struct cg_disk *disk, int handle) {
    (void)disk;
    close(handle);
}

static int disk_rename(struct cg_disk *disk, const char *from, const char *to) {
    int folder = real(disk)->folder;
    return renameat(folder, from, folder, to) < 0 ? -errno : 0;
}

static int disk_unlink(struct cg_disk *disk, const char *path) {
    return unlinkat(real(disk)->folder, path, 0) < 0 ? -errno : 0;
}

static int disk_mkdir(struct cg_disk *disk, const char *path) {
    if (mkdirat(real(disk)->folder, path, FOLDER_MODE) == 0) {
        return 0;
    }
    int error = errno;
    struct stat st;
    if (error == EEXIST && fstatat(real(disk)->folder, path, &st, 0) == 0) {
        return S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
    }
    return -error;
}

static int open_folder(struct cg_disk *disk, const char *path) {
    int fd = openat(real(disk)->folder, path_or_self(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

static int disk_sync_directory(struct cg_disk *disk, const char *path) {
    int fd = open_folder(disk, path);
    if (fd < 0) {
        return fd;
    }
    int status = fsync(fd) < 0 ? -errno : 0;
    close(fd);
    return status;
}

static int disk_list(struct cg_disk *disk, const char *path,
                     int (*each)(void *context, const char *name), void *context) {
    int fd = open_folder(disk, path);
    if (fd < 0) {
        return fd;
    }
    DIR *dir = fdopendir(fd);
    if (dir == NULL) {
        int error = errno;
        close(fd);
        return -error;
    }
    int status = 0;
    while (status == 0) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (entry == NULL) {
            status = -errno;
            break;
        }
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            status = each(context, entry->d_name);
        }
    }
    closedir(dir);
    return status;
}

static int64_t disk_size(struct cg_disk *disk, int handle) {
    (void)disk;
    struct stat st;
    return fstat(handle, &st) < 0 ? -errno : (int64_t)st.st_size;
}

static int disk_truncate(struct cg_disk *disk, int handle, uint64_t length) {
    (void)disk;
    int status;
    do {
        status = ftruncate(handle, (off_t)length);
    } while (status < 0 && errno == EINTR);
    return status < 0 ? -errno : 0;
}

static int disk_allocate(struct cg_disk *disk, int handle, uint64_t offset, uint64_t length) {
    (void)disk;
    int status;
    do {
        status = fallocate(handle, 0, (off_t)offset, (off_t)length);
    } while (status < 0 && errno == EINTR);
    return status < 0 ? -errno : 0;
}

static int64_t disk_read(struct cg_disk *disk, int handle, void *data, uint64_t length,
                         uint64_t offset) {
    (void)disk;
    uint64_t done = 0;
    while (done < length) {
        ssize_t n = pread(handle, (char *)data + done, length - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return -errno;
        }
        if (n == 0) {
            break;
        }
        done += (uint64_t)n;
    }
    return (int64_t)done;
}

static int64_t disk_write(struct cg_disk *disk, int handle, const void *data, uint64_t length,
                          uint64_t offset) {
    (void)disk;
    uint64_t done = 0;
    while (done < length) {
        ssize_t n =
            pwrite(handle, (const char *)data + done, length - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? -errno : -EIO;
        }
        done += (uint64_t)n;
    }
    return (int64_t)done;
}

// Not repeated on EINTR or any other failure: the kernel may have dropped the dirty state, so that
// a second call would succeed without the data being on the medium.
static int disk_sync(struct cg_disk *disk, int handle) {
    (void)disk;
    return fdatasync(handle) < 0 ? -errno : 0;
}

static int64_t disk_read_cached(struct cg_disk *disk, int handle, const struct iovec *iov,
                                int iovcnt, uint64_t offset) {
    (void)disk;
    ssize_t n = preadv2(handle, iov, iovcnt, (off_t)offset, RWF_NOWAIT);
    if (n < 0) {
        return errno == EOPNOTSUPP || errno == EINTR ? -EAGAIN : -errno;
    }
    uint64_t wanted = 0;
    for (int i = 0; i < iovcnt; i++) {
        wanted += iov[i].iov_len;
    }
    // A short count is either the end of the file or the end of what is cached; the asynchronous
    // read tells them apart.
    return (uint64_t)n == wanted ? (int64_t)n : -EAGAIN;
}

static void disk_submit(struct cg_disk *disk, struct cg_file_op *op) {
    cg_reactor_file(real(disk)->reactor, op);
}

static int disk_space(struct cg_disk *disk, uint64_t *free_bytes, uint64_t *total_bytes) {
    struct statvfs vfs;
    if (fstatvfs(real(disk)->folder, &vfs) < 0) {
        return -errno;
    }
    *free_bytes = (uint64_t)vfs.f_bavail * vfs.f_frsize;
    *total_bytes = (uint64_t)vfs.f_blocks * vfs.f_frsize;
    return 0;
}

static const struct cg_disk_ops real_disk_ops = {
    .open = disk_open,
    .close = disk_close,
    .rename = disk_rename,
    .unlink = disk_unlink,
    .mkdir = disk_mkdir,
    .sync_directory = disk_sync_directory,
    .list = disk_list,
    .size = disk_size,
    .truncate = disk_truncate,
    .allocate = disk_allocate,
    .read = disk_read,
    .write = disk_write,
    .sync = disk_sync,
    .read_cached = disk_read_cached,
    .submit = disk_submit,
    .space = disk_space,
};

// The lock goes with the descriptor, so that it ends with the process, however it ends.
static int take_lock(struct real_disk *disk) {
    disk->lock = openat(disk->folder, "lock", O_RDWR | O_CREAT | O_CLOEXEC, FILE_MODE);
    if (disk->lock < 0) {
        return -errno;
    }
    if (flock(disk->lock, LOCK_EX | LOCK_NB) < 0) {
        return errno == EWOULDBLOCK ? -EBUSY : -errno;
    }
    return 0;
}

int cg_disk_open(const char *folder, struct cg_reactor *reactor, struct cg_disk **out) {
    struct real_disk *disk = calloc(1, sizeof(*disk));
    if (disk == NULL) {
        return -ENOMEM;
    }
    disk->base.ops = &real_disk_ops;
    disk->reactor = reactor;
    disk->lock = -1;
    disk->folder = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int status = disk->folder < 0 ? -errno : take_lock(disk);
    if (status < 0) {
        cg_disk_close(&disk->base);
        return status;
    }
    *out = &disk->base;
    return 0;
}

void cg_disk_close(struct cg_disk *disk) {
    struct real_disk *r = real(disk);
    if (r->lock >= 0) {
        close(r->lock);
    }
    if (r->folder >= 0) {
        close(r->folder);
    }
    free(r);
}
