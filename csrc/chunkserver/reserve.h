// SPDX-License-Identifier: BSD-3-Clause
//
// Space of the disk that is ours whatever others write: an allocated file, "reserve", from which
// pieces are given back to the file system when what cannot be put off finds no space. That is:
// applying what was acknowledged, saving a checkpoint, beginning the log at a start. Without it a
// disk that others filled up could not even log the trim that would free some. It grows again when
// there is space.
//
// Of the bytes that the operator wants kept back, three quarters are in the file; the rest stays
// free, for other programs on the same file system (the metadata server's database may be one).
#ifndef CG_CHUNKSERVER_RESERVE_H
#define CG_CHUNKSERVER_RESERVE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/disk.h"

struct cg_reserve {
    struct cg_disk *disk;
    int handle;          // -1: there is no file
    uint64_t kept_bytes; // to be kept back in all
    uint64_t full_bytes; // of the file when it is whole
    uint64_t held_bytes; // of the file now
};

// Looks for the file and takes it as it is; shortens it where `kept_bytes` has become less. Returns
// 0 or -errno; cg_reserve_close in any case.
int cg_reserve_open(struct cg_reserve *reserve, struct cg_disk *disk, uint64_t kept_bytes);
void cg_reserve_close(struct cg_reserve *reserve);

// Gives a piece back. False if there is nothing left to give. Blocking, but rare.
bool cg_reserve_give(struct cg_reserve *reserve);

// The length to which the file may grow while `free_bytes` are free of which `claimed_bytes` are
// promised; held_bytes if it may not.
uint64_t cg_reserve_target(const struct cg_reserve *reserve, uint64_t free_bytes,
                           uint64_t claimed_bytes);

// Makes the file at least `length` bytes long, durably. Blocking, for a pool thread too; changes
// nothing in `reserve`, so that the owner may give meanwhile. Returns 0 or -errno;
// cg_reserve_measure afterwards.
int cg_reserve_extend(const struct cg_reserve *reserve, uint64_t length);

// Makes the file if there is none. Returns 0 or -errno.
int cg_reserve_make(struct cg_reserve *reserve);

// Sets held_bytes to what the file has.
void cg_reserve_measure(struct cg_reserve *reserve);

// Bytes that are still to be left free on the disk for the operator's wish to be kept.
static inline uint64_t cg_reserve_missing(const struct cg_reserve *reserve) {
    return reserve->kept_bytes - reserve->held_bytes;
}

// So much is gone that others have to give space back for it.
static inline bool cg_reserve_low(const struct cg_reserve *reserve) {
    return reserve->held_bytes < reserve->full_bytes / 2;
}

#endif
