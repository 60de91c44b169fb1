// SPDX-License-Identifier: BSD-3-Clause
//
// Reference-counted buffers, aligned to 4 KiB so that O_DIRECT takes them as they are. A buffer
// carries user data from the socket that received it to the log, the peers and the chunk file.
//
// A pool and its buffers belong to one reactor thread: counts are not atomic. Another thread may
// read or fill the bytes while the owner holds a reference for it.
#ifndef CG_BASE_BUFFER_H
#define CG_BASE_BUFFER_H

#include <stddef.h>
#include <stdint.h>

#define CG_BUFFER_ALIGNMENT 4096U

struct cg_buffer_pool;

struct cg_buffer {
    uint8_t *data;     // capacity bytes, aligned to CG_BUFFER_ALIGNMENT
    uint32_t capacity; // bytes, a multiple of CG_BUFFER_ALIGNMENT
    uint32_t refs;     // owner thread only
    struct cg_buffer_pool *pool;
    struct cg_buffer *next_free; // pool's
};

// A pool that hands out at most `limit_bytes` at a time and keeps freed buffers for reuse.
// Returns 0, -EINVAL or -ENOMEM.
int cg_buffer_pool_create(size_t limit_bytes, struct cg_buffer_pool **out);

// All buffers must have been released.
void cg_buffer_pool_destroy(struct cg_buffer_pool *pool);

// Bytes handed out at present.
size_t cg_buffer_pool_in_use(const struct cg_buffer_pool *pool);

// A buffer of at least `length` bytes with one reference, its contents undefined; NULL when the
// pool's limit or memory is exhausted (answer OVERLOAD, do not queue).
struct cg_buffer *cg_buffer_alloc(struct cg_buffer_pool *pool, size_t length);

// Takes another reference; returns `buffer`.
struct cg_buffer *cg_buffer_ref(struct cg_buffer *buffer);

// Drops one reference; the last one returns the buffer to its pool. NULL is allowed.
void cg_buffer_unref(struct cg_buffer *buffer);

#endif
