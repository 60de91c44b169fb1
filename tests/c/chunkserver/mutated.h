// SPDX-License-Identifier: BSD-3-Clause
//
// What a model that checks a store's chunks takes a mutation to do.
#ifndef CG_TESTS_MUTATED_H
#define CG_TESTS_MUTATED_H

#include "chunkserver/store.h"

// Does it to the chunk's bytes; `data` as mutation->buffer would have it from its first byte on.
// False: it is about no chunk.
bool mutated_bytes(uint8_t *chunk, size_t chunk_size, const struct cg_mutation *mutation,
                   const uint8_t *data);

#endif
