// SPDX-License-Identifier: BSD-3-Clause
//
// The volumes that an nbdkit process has open. Connections to the same volume share one opening of
// it: the core takes IO from any thread, and a second opening for writing would fence the first.
#ifndef CG_FRONTENDS_NBDKIT_VOLUMES_H
#define CG_FRONTENDS_NBDKIT_VOLUMES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "copygate.h"
#include "frontends/nbdkit_options.h"

#define NBD_VOLUMES_MAX 256

struct nbd_volume {
    struct cg_volume *volume;
    char *name;
    bool read_only;
    unsigned connections;           // under the lock of nbdkit_volumes.c
    atomic_bool fenced;             // an IO was answered with -ESTALE
    atomic_uint_fast64_t logged_at; // CLOCK_MONOTONIC seconds + 1 of the last failure logged
    atomic_uint suppressed;         // failures since then
    struct nbd_volume *next;
};

// Checks the options that only the core can judge, and, where volume= is given, that the volume is
// there and may be opened, without taking it over. Starts no thread, so it may run before nbdkit
// forks. Returns 0, or -1 after nbdkit_error.
int nbd_volumes_check(const struct nbd_options *options);

// Starts the core's thread: after nbdkit has forked. `options` stays in use until nbd_volumes_stop.
int nbd_volumes_start(const struct nbd_options *options);

// Closes everything; no connection is left.
void nbd_volumes_stop(void);

// Opens `name` or joins its connections. Returns NULL after nbdkit_error and nbdkit_set_error.
struct nbd_volume *nbd_volume_acquire(const char *name, bool read_only);

// The last connection that leaves closes the volume, which waits for the IO in flight.
void nbd_volume_release(struct nbd_volume *volume);

// Reports an IO's failure `result` (a negative errno) to nbdkit: sets the errno that NBD can carry,
// logs it (at most a line a second and volume). Returns -1.
int nbd_volume_failed(struct nbd_volume *volume, const char *operation, uint64_t length,
                      uint64_t offset, int result);

#endif
