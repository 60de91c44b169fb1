// SPDX-License-Identifier: GPL-2.0-only
//
// Fields of command descriptor blocks and big-endian numbers. Pure.
#ifndef CG_FRONTENDS_TGT_CDB_H
#define CG_FRONTENDS_TGT_CDB_H

#include <stdbool.h>
#include <stdint.h>

static inline uint16_t cdb_get16(const uint8_t *at) {
    return (uint16_t)(at[0] << 8 | at[1]);
}

static inline uint32_t cdb_get32(const uint8_t *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static inline uint64_t cdb_get64(const uint8_t *at) {
    return (uint64_t)cdb_get32(at) << 32 | cdb_get32(at + 4);
}

static inline void cdb_put16(uint8_t *at, uint16_t value) {
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static inline void cdb_put32(uint8_t *at, uint32_t value) {
    cdb_put16(at, (uint16_t)(value >> 16));
    cdb_put16(at + 2, (uint16_t)value);
}

static inline void cdb_put64(uint8_t *at, uint64_t value) {
    cdb_put32(at, (uint32_t)(value >> 32));
    cdb_put32(at + 4, (uint32_t)value);
}

struct cdb_range {
    uint64_t lba;
    uint64_t blocks;
};

// LBA and number of blocks of a command that addresses the medium, of 6, 10, 12 or 16 bytes; zero
// blocks in 6 bytes are 256. COMPARE AND WRITE has its own field. Other lengths: nothing.
struct cdb_range cdb_range(const uint8_t *cdb);

// Whether the range is within a medium of `capacity` blocks. An empty one begins before its end.
bool cdb_range_fits(struct cdb_range range, uint64_t capacity);

#endif
