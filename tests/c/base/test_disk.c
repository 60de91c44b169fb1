// SPDX-License-Identifier: BSD-3-Clause
//
// The real disk, in a folder of its own under the working directory.
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/disk.h"

struct fixture {
    char folder[64];
    struct cg_reactor *reactor;
    struct cg_disk *disk;
};

static int setup(void **state) {
    struct fixture *f = calloc(1, sizeof(*f));
    snprintf(f->folder, sizeof(f->folder), "test-disk-XXXXXX");
    if (mkdtemp(f->folder) == NULL || cg_reactor_create(NULL, &f->reactor) != 0 ||
        cg_disk_open(f->folder, f->reactor, &f->disk) != 0) {
        return -1;
    }
    *state = f;
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;
    cg_disk_close(f->disk);
    cg_reactor_destroy(f->reactor);
    char command[96];
    snprintf(command, sizeof(command), "rm -rf '%s'", f->folder);
    int status = system(command);
    free(f);
    return status;
}

static void a_folder_has_one_owner(void **state) {
    struct fixture *f = *state;
    struct cg_disk *second = NULL;
    assert_int_equal(cg_disk_open(f->folder, f->reactor, &second), -EBUSY);
    assert_null(second);
    cg_disk_close(f->disk);
    assert_int_equal(cg_disk_open(f->folder, f->reactor, &f->disk), 0);
}

static void a_missing_folder_is_enoent(void **state) {
    struct fixture *f = *state;
    struct cg_disk *disk = NULL;
    assert_int_equal(cg_disk_open("no-such-folder", f->reactor, &disk), -ENOENT);
    assert_int_equal(cg_disk_open("/proc/self/exe", f->reactor, &disk), -ENOTDIR);
}

static void what_is_written_is_read(void **state) {
    struct fixture *f = *state;
    const struct cg_disk_ops *ops = f->disk->ops;
    int handle = ops->open(f->disk, "file", O_RDWR | O_CREAT | O_EXCL);
    assert_true(handle >= 0);
    assert_int_equal(ops->open(f->disk, "file", O_RDWR | O_CREAT | O_EXCL), -EEXIST);
    assert_int_equal(ops->write(f->disk, handle, "0123456789", 10, 5), 10);
    assert_int_equal(ops->size(f->disk, handle), 15);
    char out[32] = {0};
    assert_int_equal(ops->read(f->disk, handle, out, sizeof(out), 5), 10);
    assert_string_equal(out, "0123456789");
    assert_int_equal(ops->sync(f->disk, handle), 0);
    assert_int_equal(ops->allocate(f->disk, handle, 0, 8192), 0);
    assert_int_equal(ops->size(f->disk, handle), 8192);
    assert_int_equal(ops->truncate(f->disk, handle, 7), 0);
    assert_int_equal(ops->read(f->disk, handle, out, sizeof(out), 5), 2);
    ops->close(f->disk, handle);
}

static void cached_reads_are_all_or_again(void **state) {
    struct fixture *f = *state;
    const struct cg_disk_ops *ops = f->disk->ops;
    int handle = ops->open(f->disk, "file", O_RDWR | O_CREAT);
    assert_int_equal(ops->write(f->disk, handle, "0123456789", 10, 0), 10);
    char a[4], b[4];
    struct iovec iov[2] = {{a, 4}, {b, 4}};
    int64_t n = ops->read_cached(f->disk, handle, iov, 2, 2);
    assert_true(n == 8 || n == -EAGAIN); // -EAGAIN: a file system without RWF_NOWAIT
    if (n == 8) {
        assert_memory_equal(a, "2345", 4);
        assert_memory_equal(b, "6789", 4);
    }
    assert_int_equal(ops->read_cached(f->disk, handle, iov, 2, 5), -EAGAIN); // ends before
    ops->close(f->disk, handle);
}

static int count(void *context, const char *name) {
    unsigned *n = context;
    assert_int_not_equal(name[0], '.');
    return ++*n == 3 ? -ECANCELED : 0;
}

static void folders_are_made_listed_and_synced(void **state) {
    struct fixture *f = *state;
    const struct cg_disk_ops *ops = f->disk->ops;
    assert_int_equal(ops->mkdir(f->disk, "sub"), 0);
    assert_int_equal(ops->mkdir(f->disk, "sub"), 0);
    assert_int_equal(ops->mkdir(f->disk, "lock"), -ENOTDIR);
    assert_int_equal(ops->mkdir(f->disk, "no/sub"), -ENOENT);
    ops->close(f->disk, ops->open(f->disk, "sub/a", O_RDWR | O_CREAT));
    ops->close(f->disk, ops->open(f->disk, "sub/b", O_RDWR | O_CREAT));
    unsigned n = 0;
    assert_int_equal(ops->list(f->disk, "sub", count, &n), 0);
    assert_int_equal(n, 2);
    assert_int_equal(ops->rename(f->disk, "sub/a", "sub/b"), 0);
    assert_int_equal(ops->unlink(f->disk, "sub/a"), -ENOENT);
    ops->close(f->disk, ops->open(f->disk, "sub/c", O_RDWR | O_CREAT));
    ops->close(f->disk, ops->open(f->disk, "sub/d", O_RDWR | O_CREAT));
    n = 0;
    assert_int_equal(ops->list(f->disk, "sub", count, &n), -ECANCELED);
    assert_int_equal(ops->sync_directory(f->disk, "sub"), 0);
    assert_int_equal(ops->sync_directory(f->disk, ""), 0);
    assert_int_equal(ops->sync_directory(f->disk, "none"), -ENOENT);
    assert_int_equal(ops->list(f->disk, "none", count, &n), -ENOENT);
}

static void space_is_told(void **state) {
    struct fixture *f = *state;
    uint64_t free_bytes = 0, total = 0;
    assert_int_equal(f->disk->ops->space(f->disk, &free_bytes, &total), 0);
    assert_true(total > 0 && free_bytes <= total);
}

static unsigned done_count;

static void done(struct cg_file_op *op) {
    (void)op;
    done_count++;
}

static void submitted_operations_complete_on_the_reactor(void **state) {
    struct fixture *f = *state;
    const struct cg_disk_ops *ops = f->disk->ops;
    int handle = ops->open(f->disk, "file", O_RDWR | O_CREAT);
    char data[] = "asynchronous";
    struct iovec iov = {data, sizeof(data)};
    struct cg_file_op op = {.opcode = CG_FILE_WRITE_BUFFERED, .fd = handle, .iov = &iov};
    op.iovcnt = 1;
    op.done = done;
    done_count = 0;
    ops->submit(f->disk, &op);
    assert_int_equal(done_count, 0);
    while (done_count == 0) {
        assert_true(cg_reactor_wait(f->reactor, UINT64_MAX) >= 0);
    }
    assert_int_equal(op.result, sizeof(data));
    ops->close(f->disk, handle);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_folder_has_one_owner, setup, teardown),
        cmocka_unit_test_setup_teardown(a_missing_folder_is_enoent, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_written_is_read, setup, teardown),
        cmocka_unit_test_setup_teardown(cached_reads_are_all_or_again, setup, teardown),
        cmocka_unit_test_setup_teardown(folders_are_made_listed_and_synced, setup, teardown),
        cmocka_unit_test_setup_teardown(space_is_told, setup, teardown),
        cmocka_unit_test_setup_teardown(submitted_operations_complete_on_the_reactor, setup,
                                        teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
