// SPDX-License-Identifier: BSD-3-Clause
//
// A disk in memory that forgets like a real one. Every file has its bytes as a reader sees them
// and, apart from those, as they are on the medium; what was written and not synced is a list of
// writes. A power loss keeps any subset of that list, torn at sector borders, and any subset of the
// directory operations that were not synced. Asynchronous operations wait in a queue until the test
// steps them, in any order. All from one seed.
//
// One thread. Handles are small integers. After a crash all handles are closed and queued
// operations are gone (their `done` is never called): drop whatever object used them without
// closing it.
#ifndef CG_TESTS_SIMDISK_H
#define CG_TESTS_SIMDISK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/disk.h"

struct simdisk;

// A handle opened for direct reading alone (O_RDONLY | O_DIRECT) reads what is on the medium, even
// if something newer was written and not synced: the worst that a file system may do.
struct simdisk_options {
    uint64_t seed;
    uint32_t sector;         // bytes that are written whole or not at all; 0: 512
    uint64_t capacity_bytes; // allocated file bytes beyond it give -ENOSPC; 0: no limit
    bool refuse_direct;      // open(O_DIRECT) gives -EINVAL, as tmpfs does
    bool fifo;               // operations complete in the order of submission
    bool ignore_dsync;       // O_DSYNC is taken and not heeded: a disk that lies
};

struct simdisk *simdisk_create(const struct simdisk_options *options);
void simdisk_destroy(struct simdisk *sim);
struct cg_disk *simdisk_disk(struct simdisk *sim);

// Asynchronous operations that wait.
unsigned simdisk_pending(const struct simdisk *sim);

// Performs one of them, and calls its `done`. False if there is none.
bool simdisk_step(struct simdisk *sim);

enum simdisk_crash {
    SIMDISK_DROP_ALL,    // nothing unsynced survives
    SIMDISK_KEEP_ALL,    // all of it does
    SIMDISK_ANY_WRITES,  // each write survives whole or not at all
    SIMDISK_ANY_SECTORS, // each sector of each write survives or not
    SIMDISK_CRASH_MODES,
};

// Power loss. Operations in the queue count as unsynced writes.
void simdisk_crash(struct simdisk *sim, enum simdisk_crash mode);

// kill -9 of the process: operations in the queue take effect or do not, in part or whole; what was
// written stays readable, synced or not, and may be lost by a later power loss.
void simdisk_kill(struct simdisk *sim);

// The nth (0: the next) asynchronous write from now on, and every later one if `sticky`, ends with
// `error` (negative errno) and leaves any part of its bytes behind.
void simdisk_fail_write(struct simdisk *sim, unsigned nth, int error, bool sticky);

// As simdisk_fail_write for sync and sync_directory.
void simdisk_fail_sync(struct simdisk *sim, unsigned nth, int error);

// Every read that waits ends with -EIO: before a crash after which its submitter's memory is freed.
void simdisk_abort_reads(struct simdisk *sim);

// The power goes during the nth (0: the next) blocking operation that changes anything from now on:
// it takes effect in part, and it and everything after it give -EIO until simdisk_crash or
// simdisk_kill.
void simdisk_power_off(struct simdisk *sim, unsigned nth);

// The next `count` steps complete nothing that is a write: a slow disk.
void simdisk_delay_writes(struct simdisk *sim, unsigned count);

// Asynchronous reads complete no more, until that is taken back.
void simdisk_hold_reads(struct simdisk *sim, bool hold);

// Inverts one bit on the medium and in what readers see. Returns 0 or -ENOENT, -EINVAL.
int simdisk_flip(struct simdisk *sim, const char *path, uint64_t offset, unsigned bit);

// The same on the medium alone: who reads through the page cache does not notice.
int simdisk_rot(struct simdisk *sim, const char *path, uint64_t offset, unsigned bit);

// The bytes of a file as a reader sees them (valid until the next call that changes it), or NULL.
const uint8_t *simdisk_bytes(const struct simdisk *sim, const char *path, uint64_t *length);

// Bytes allocated to files, and write operations done so far.
uint64_t simdisk_used(const struct simdisk *sim);
uint64_t simdisk_writes(const struct simdisk *sim);

// The simulator's random numbers, for tests that want everything from one seed.
uint64_t simdisk_random(struct simdisk *sim);

#endif
