// SPDX-License-Identifier: BSD-3-Clause
//
// An io_uring for the reads and direct writes of one reactor. Its descriptor is one of those that
// the reactor's epoll watches.
#ifndef CG_BASE_RING_H
#define CG_BASE_RING_H

#include <stdbool.h>

#include "base/reactor.h"

struct cg_ring;

// 0, or the error of io_uring_setup (-EPERM and -ENOSYS where it is refused).
int cg_ring_create(struct cg_reactor *reactor, unsigned depth, struct cg_ring **out);
void cg_ring_destroy(struct cg_ring *ring);

// Readable when cg_ring_reap has something to do.
int cg_ring_descriptor(const struct cg_ring *ring);

// Queues a READ or WRITE; false when there is no room now.
bool cg_ring_file(struct cg_ring *ring, struct cg_file_op *op);

// Hands what is queued to the kernel. 0 or -errno.
int cg_ring_submit(struct cg_ring *ring);

// Has something completed? No system call.
bool cg_ring_ready(const struct cg_ring *ring);

// Reports what has completed to cg_reactor_file_done; returns how many.
unsigned cg_ring_reap(struct cg_ring *ring);

#endif
