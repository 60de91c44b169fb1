// SPDX-License-Identifier: BSD-3-Clause
#include "base/crc32c.h"

#include <isa-l/crc.h>

// ISA-L takes an int and neither inverts the seed nor the result.
#define PIECE_MAX ((size_t)1 << 30)

uint32_t cg_crc32c(uint32_t crc, const void *data, size_t length) {
    const unsigned char *at = data;
    uint32_t state = ~crc;
    while (length > PIECE_MAX) {
        state = crc32_iscsi((unsigned char *)(uintptr_t)at, (int)PIECE_MAX, state);
        at += PIECE_MAX;
        length -= PIECE_MAX;
    }
    if (length > 0) {
        state = crc32_iscsi((unsigned char *)(uintptr_t)at, (int)length, state);
    }
    return ~state;
}
