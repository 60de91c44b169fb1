// SPDX-License-Identifier: BSD-3-Clause
//
// Bits for the blocks of a chunk: which are allocated, which are being written. Bit i % 8 of byte i
// / 8 stands for block i, in memory as on the disk. Pure functions; `first + count` must not pass
// CG_BLOCKMAP_BLOCKS.
#ifndef CG_CHUNKSERVER_BLOCKMAP_H
#define CG_CHUNKSERVER_BLOCKMAP_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define CG_BLOCKMAP_BLOCKS 4096U
#define CG_BLOCKMAP_BYTES  (CG_BLOCKMAP_BLOCKS / 8U)

static inline bool cg_blockmap_test(const uint8_t *map, uint32_t block) {
    return (map[block / 8] >> (block % 8)) & 1U;
}

// Bits `from` to 7 of a byte, of those only the ones below `to`.
static inline uint8_t cg_blockmap_mask(uint32_t from, uint32_t to) {
    return (uint8_t)((0xffU << from) & (0xffU >> (8U - to)));
}

static inline void cg_blockmap_fill(uint8_t *map, uint32_t first, uint32_t count, bool set) {
    uint32_t end = first + count;
    while (first < end) {
        uint32_t from = first % 8;
        if (from == 0 && end - first >= 8) {
            uint32_t bytes = (end - first) / 8;
            memset(map + first / 8, set ? 0xff : 0, bytes);
            first += bytes * 8;
            continue;
        }
        uint32_t to = end - first < 8 - from ? from + (end - first) : 8;
        uint8_t mask = cg_blockmap_mask(from, to);
        map[first / 8] = set ? (uint8_t)(map[first / 8] | mask) : (uint8_t)(map[first / 8] & ~mask);
        first += to - from;
    }
}

static inline void cg_blockmap_set(uint8_t *map, uint32_t first, uint32_t count) {
    cg_blockmap_fill(map, first, count, true);
}

static inline void cg_blockmap_clear(uint8_t *map, uint32_t first, uint32_t count) {
    cg_blockmap_fill(map, first, count, false);
}

// The number of blocks from `first` on, at most `count`, that have the same bit as `first`.
static inline uint32_t cg_blockmap_run(const uint8_t *map, uint32_t first, uint32_t count) {
    bool set = cg_blockmap_test(map, first);
    uint8_t whole = set ? 0xff : 0;
    uint32_t length = 0;
    while (length < count) {
        uint32_t block = first + length;
        if (block % 8 == 0 && count - length >= 8 && map[block / 8] == whole) {
            length += 8;
        } else if (cg_blockmap_test(map, block) == set) {
            length++;
        } else {
            break;
        }
    }
    return length;
}

// True if any of the blocks is set.
static inline bool cg_blockmap_any(const uint8_t *map, uint32_t first, uint32_t count) {
    if (count == 0) {
        return false;
    }
    return cg_blockmap_test(map, first) || cg_blockmap_run(map, first, count) < count;
}

// How many of the blocks are set.
static inline uint32_t cg_blockmap_count(const uint8_t *map, uint32_t first, uint32_t count) {
    uint32_t sum = 0;
    for (uint32_t at = 0; at < count;) {
        uint32_t run = cg_blockmap_run(map, first + at, count - at);
        sum += cg_blockmap_test(map, first + at) ? run : 0;
        at += run;
    }
    return sum;
}

#endif
