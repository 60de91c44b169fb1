// SPDX-License-Identifier: BSD-3-Clause
//
// A disk that fails, for a process that writes by system calls from libc (--backend epoll): while
// the file named by COPYGATE_TEST_EIO exists, writes to files and their syncs fail with EIO.
// Preloaded. Large-file names are what a build with 64-bit offsets calls.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static bool fails(int fd) {
    const char *trigger = getenv("COPYGATE_TEST_EIO");
    struct stat status;
    if (trigger == NULL || access(trigger, F_OK) != 0 || fstat(fd, &status) != 0 ||
        !S_ISREG(status.st_mode)) {
        return false;
    }
    errno = EIO;
    return true;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pwritev64v2(int fd, const struct iovec *iov, int count, off64_t offset, int flags) {
    return fails(fd) ? -1 : REAL(pwritev64v2)(fd, iov, count, offset, flags);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) {
    return fails(fd) ? -1 : REAL(pwrite64)(fd, data, length, offset);
}

int fdatasync(int fd) {
    return fails(fd) ? -1 : REAL(fdatasync)(fd);
}

int fsync(int fd) {
    return fails(fd) ? -1 : REAL(fsync)(fd);
}
