// SPDX-License-Identifier: BSD-3-Clause
//
// Included ahead of every file of the chunkserver that runs under the simulator: what it allocates
// belongs to its simulated process, so that a crash can take all of it away at any point.
#ifndef CG_TESTS_SIM_MEMORY_H
#define CG_TESTS_SIM_MEMORY_H

#include <stdlib.h>

void *sim_malloc(size_t size);
void *sim_calloc(size_t count, size_t size);
void *sim_realloc(void *memory, size_t size);
void *sim_aligned_alloc(size_t alignment, size_t size);
void sim_free(void *memory);

#define malloc(size)                   sim_malloc(size)
#define calloc(count, size)            sim_calloc(count, size)
#define realloc(memory, size)          sim_realloc(memory, size)
#define aligned_alloc(alignment, size) sim_aligned_alloc(alignment, size)
#define free(memory)                   sim_free(memory)

#endif
