// SPDX-License-Identifier: BSD-3-Clause
#include "base/buffer.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

// Classes are powers of two from 4 KiB to 64 MiB, the largest attachment that a frame can carry.
#define CLASS_COUNT 15U
#define CLASS_MAX   ((size_t)CG_BUFFER_ALIGNMENT << (CLASS_COUNT - 1))

struct cg_buffer_pool {
    size_t limit_bytes;
    size_t in_use_bytes;
    size_t cached_bytes; // of free buffers; with in_use_bytes never more than limit_bytes
    struct cg_buffer *free[CLASS_COUNT];
};

static unsigned class_of(size_t length) {
    if (length <= CG_BUFFER_ALIGNMENT) {
        return 0;
    }
    return 64U - (unsigned)__builtin_clzll((unsigned long long)(length - 1)) - 12U;
}

static size_t class_size(unsigned class) {
    return (size_t)CG_BUFFER_ALIGNMENT << class;
}

int cg_buffer_pool_create(size_t limit_bytes, struct cg_buffer_pool **out) {
    if (limit_bytes < CG_BUFFER_ALIGNMENT) {
        return -EINVAL;
    }
    struct cg_buffer_pool *pool = calloc(1, sizeof(*pool));
    if (pool == NULL) {
        return -ENOMEM;
    }
    pool->limit_bytes = limit_bytes;
    *out = pool;
    return 0;
}

static void free_cached(struct cg_buffer_pool *pool, unsigned class) {
    struct cg_buffer *buffer = pool->free[class];
    pool->free[class] = buffer->next_free;
    pool->cached_bytes -= buffer->capacity;
    free(buffer->data);
    free(buffer);
}

void cg_buffer_pool_destroy(struct cg_buffer_pool *pool) {
    if (pool == NULL) {
        return;
    }
    assert(pool->in_use_bytes == 0);
    for (unsigned class = 0; class < CLASS_COUNT; class ++) {
        while (pool->free[class] != NULL) {
            free_cached(pool, class);
        }
    }
    free(pool);
}

size_t cg_buffer_pool_in_use(const struct cg_buffer_pool *pool) {
    return pool->in_use_bytes;
}

// Gives cached buffers of other classes back so that `size` more bytes keep within the limit.
static void make_room(struct cg_buffer_pool *pool, size_t size) {
    for (unsigned class = CLASS_COUNT; class -- > 0;) {
        while (pool->in_use_bytes + pool->cached_bytes + size > pool->limit_bytes) {
            if (pool->free[class] == NULL) {
                break;
            }
            free_cached(pool, class);
        }
    }
}

static struct cg_buffer *create_buffer(struct cg_buffer_pool *pool, size_t size) {
    make_room(pool, size);
    struct cg_buffer *buffer = malloc(sizeof(*buffer));
    if (buffer == NULL) {
        return NULL;
    }
    buffer->data = aligned_alloc(CG_BUFFER_ALIGNMENT, size);
    if (buffer->data == NULL) {
        free(buffer);
        return NULL;
    }
    buffer->capacity = (uint32_t)size;
    buffer->pool = pool;
    return buffer;
}

struct cg_buffer *cg_buffer_alloc(struct cg_buffer_pool *pool, size_t length) {
    if (length > CLASS_MAX) {
        return NULL;
    }
    unsigned class = class_of(length);
    size_t size = class_size(class);
    if (size > pool->limit_bytes - pool->in_use_bytes) {
        return NULL;
    }
    struct cg_buffer *buffer = pool->free[class];
    if (buffer != NULL) {
        pool->free[class] = buffer->next_free;
        pool->cached_bytes -= size;
    } else {
        buffer = create_buffer(pool, size);
        if (buffer == NULL) {
            return NULL;
        }
    }
    pool->in_use_bytes += size;
    buffer->refs = 1;
    buffer->next_free = NULL;
    return buffer;
}

struct cg_buffer *cg_buffer_ref(struct cg_buffer *buffer) {
    assert(buffer->refs > 0 && buffer->refs < UINT32_MAX);
    buffer->refs++;
    return buffer;
}

void cg_buffer_unref(struct cg_buffer *buffer) {
    if (buffer == NULL) {
        return;
    }
    assert(buffer->refs > 0);
    if (--buffer->refs > 0) {
        return;
    }
    struct cg_buffer_pool *pool = buffer->pool;
    unsigned class = class_of(buffer->capacity);
    buffer->next_free = pool->free[class];
    pool->free[class] = buffer;
    pool->in_use_bytes -= buffer->capacity;
    pool->cached_bytes += buffer->capacity;
}
