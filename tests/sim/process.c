// SPDX-License-Identifier: BSD-3-Clause
#include "process.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct sim_block {
    struct sim_block *next;
    struct sim_block **link; // what points at this one; NULL: nobody's
    void *base;              // as it was allocated
    size_t size;
};

_Static_assert(sizeof(struct sim_block) % 16 == 0, "memory behind it is aligned as malloc's");

void *sim_malloc(size_t size);
void *sim_calloc(size_t count, size_t size);
void *sim_realloc(void *memory, size_t size);
void *sim_aligned_alloc(size_t alignment, size_t size);
void sim_free(void *memory);

static struct sim_process *running;

void sim_process_enter(struct sim_process *process) {
    running = process;
}

static struct sim_block *block_of(void *memory) {
    return (struct sim_block *)memory - 1;
}

static void link_block(struct sim_block *block) {
    block->next = NULL;
    block->link = NULL;
    if (running != NULL) {
        block->next = running->first;
        block->link = &running->first;
        if (block->next != NULL) {
            block->next->link = &block->next;
        }
        running->first = block;
    }
}

static void unlink_block(const struct sim_block *block) {
    if (block->link != NULL) {
        *block->link = block->next;
        if (block->next != NULL) {
            block->next->link = block->link;
        }
    }
}

// `front` bytes before the memory, at least a block's header.
static void *allocate(void *base, size_t front, size_t size) {
    if (base == NULL) {
        return NULL;
    }
    char *memory = (char *)base + front;
    struct sim_block *block = block_of(memory);
    block->base = base;
    block->size = size;
    link_block(block);
    return memory;
}

void *sim_malloc(size_t size) {
    return allocate(malloc(sizeof(struct sim_block) + size), sizeof(struct sim_block), size);
}

void *sim_calloc(size_t count, size_t size) {
    size_t bytes = sizeof(struct sim_block) + count * size;
    return allocate(calloc(1, bytes), sizeof(struct sim_block), count * size);
}

void *sim_aligned_alloc(size_t alignment, size_t size) {
    size_t front = alignment > sizeof(struct sim_block) ? alignment : sizeof(struct sim_block);
    return allocate(aligned_alloc(alignment, front + size), front, size);
}

void sim_free(void *memory) {
    if (memory != NULL) {
        const struct sim_block *block = block_of(memory);
        unlink_block(block);
        free(block->base);
    }
}

void *sim_realloc(void *memory, size_t size) {
    void *bigger = sim_malloc(size);
    if (bigger != NULL && memory != NULL) {
        size_t before = block_of(memory)->size;
        memcpy(bigger, memory, before < size ? before : size);
        sim_free(memory);
    }
    return bigger;
}

void sim_process_end(struct sim_process *process) {
    while (process->first != NULL) {
        sim_free(process->first + 1);
    }
}
