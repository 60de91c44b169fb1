// SPDX-License-Identifier: BSD-3-Clause
//
// Little-endian numbers at any alignment: how everything on the disk is written.
#ifndef CG_CHUNKSERVER_BYTES_H
#define CG_CHUNKSERVER_BYTES_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

static inline void cg_put_u32(uint8_t *out, uint32_t value) {
    value = htole32(value);
    memcpy(out, &value, sizeof(value));
}

static inline void cg_put_u64(uint8_t *out, uint64_t value) {
    value = htole64(value);
    memcpy(out, &value, sizeof(value));
}

static inline uint32_t cg_get_u32(const uint8_t *in) {
    uint32_t value;
    memcpy(&value, in, sizeof(value));
    return le32toh(value);
}

static inline uint64_t cg_get_u64(const uint8_t *in) {
    uint64_t value;
    memcpy(&value, in, sizeof(value));
    return le64toh(value);
}

#endif
