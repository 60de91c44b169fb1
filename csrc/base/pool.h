// SPDX-License-Identifier: BSD-3-Clause
//
// A few threads that do blocking file operations for one reactor and post the results back to it.
#ifndef CG_BASE_POOL_H
#define CG_BASE_POOL_H

#include "base/reactor.h"

struct cg_pool;

// `threads` is the most that are started; they are started when first needed. 0 or -ENOMEM.
int cg_pool_create(struct cg_reactor *reactor, unsigned threads, struct cg_pool **out);

// Waits for the threads; nothing may be queued. NULL is allowed.
void cg_pool_destroy(struct cg_pool *pool);

// Queues `op`; its `done` runs on the reactor's thread. Reactor's thread.
void cg_pool_submit(struct cg_pool *pool, struct cg_file_op *op);

#endif
