// SPDX-License-Identifier: BSD-3-Clause
#include "mutated.h"

#include <string.h>

bool mutated_bytes(uint8_t *chunk, size_t chunk_size, const struct cg_mutation *mutation,
                   const uint8_t *data) {
    const struct cg_mutation *m = mutation;
    uint32_t first = (m->offset + 4095) / 4096 * 4096;
    uint32_t last = (m->offset + m->size) / 4096 * 4096;
    switch (m->kind) {
    case CG_MUTATE_WRITE:
        memcpy(chunk + m->offset, data, m->size);
        break;
    case CG_MUTATE_COMPARE_AND_WRITE:
        memcpy(chunk + m->offset, data + m->size, m->size);
        break;
    case CG_MUTATE_ZERO:
        memset(chunk + m->offset, 0, m->size);
        break;
    case CG_MUTATE_TRIM:
        if (last > first) {
            memset(chunk + first, 0, last - first);
        }
        break;
    case CG_MUTATE_DELETE:
        memset(chunk, 0, chunk_size);
        break;
    case CG_MUTATE_EPOCH:
        return false;
    }
    return true;
}
