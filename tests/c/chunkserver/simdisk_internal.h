// SPDX-License-Identifier: BSD-3-Clause
//
// Shared by simdisk.c (operations and their queue), simdisk_failure.c (crashes, errors, rot) and
// simdisk_medium.c (what is seen and what is on the medium: files and names).
#ifndef CG_TESTS_SIMDISK_INTERNAL_H
#define CG_TESTS_SIMDISK_INTERNAL_H

#include "simdisk.h"

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
    struct cg_list effected; // took effect, the submitter does not know yet
    unsigned effected_count;
    int write_error, sync_error;
    unsigned write_error_in, sync_error_in;
    bool write_error_sticky;
    unsigned delay;
    bool hold_reads;
    bool off_armed, off; // simdisk_power_off
    unsigned off_in;
};

enum settle { SETTLE_WHOLE, SETTLE_TORN };

// `memory`, or the end of the test.
void *simdisk_must(void *memory);

// True half of the time.
bool simdisk_coin(struct simdisk *sim);

// Drops a name's or a handle's hold.
void simdisk_inode_unref(struct inode *inode);
struct inode *simdisk_inode_create(struct simdisk *sim);

// Grows the file as seen. -ENOSPC beyond the disk's capacity.
int simdisk_inode_extend(struct simdisk *sim, struct inode *inode, uint64_t size);

// Puts a write, or a random part of it, on the medium.
void simdisk_settle(struct simdisk *sim, struct inode *inode, const struct unsynced *write,
                    enum settle how);

// Puts everything on the medium.
void simdisk_inode_sync(struct simdisk *sim, struct inode *inode);

// A write, its data not filled in, on no list.
struct unsynced *simdisk_unsynced_create(struct simdisk *sim, uint64_t offset, uint64_t length);
struct name *simdisk_find(const struct cg_list *names, const char *path);
void simdisk_name_add(struct cg_list *names, const char *path, struct inode *inode, bool folder);
void simdisk_name_remove(struct name *name);
void simdisk_names_clear(struct cg_list *names);
void simdisk_names_copy(struct cg_list *to, const struct cg_list *from);
void simdisk_names_rename(struct cg_list *names, const char *from, const char *to);

// Puts a directory operation on the list of those not synced.
void simdisk_change_note(struct simdisk *sim, enum change_kind kind, const char *path,
                         const char *to, struct inode *inode, bool folder);

// Performs it on the medium.
void simdisk_change_settle(struct simdisk *sim, const struct change *change);
void simdisk_change_free(struct change *change);

// True if `path` is an entry of `folder` itself.
bool simdisk_in_folder(const char *path, const char *folder);

// The open handle; the test ends if it is not one.
struct handle *simdisk_handle(struct simdisk *sim, int handle);

// A write with the data of `iov`.
struct unsynced *simdisk_gather(struct simdisk *sim, const struct handle *h,
                                const struct iovec *iov, int iovcnt, uint64_t offset);

// Makes a write visible, and durable if `dsync`. Takes it over. Returns its length or -ENOSPC.
int64_t simdisk_write_at(struct simdisk *sim, const struct handle *h, struct unsynced *write,
                         bool dsync);

// A part of a write that has not completed: any sectors of it become visible, unsynced.
void simdisk_leave_part(struct simdisk *sim, const struct cg_file_op *op);

bool simdisk_is_write(const struct cg_file_op *op);

// Ends the process: handles are closed, operations and planned failures forgotten.
void simdisk_forget_process(struct simdisk *sim);

#endif
