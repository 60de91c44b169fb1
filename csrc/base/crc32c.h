// SPDX-License-Identifier: BSD-3-Clause
#ifndef CG_BASE_CRC32C_H
#define CG_BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

// CRC-32C (Castagnoli, RFC 3720 appendix B.4) of `length` bytes. `crc` is 0 for the first piece and
// the previous result for the following ones: crc32c(crc32c(0, a), b) == crc32c(0, ab).
// Any thread; reentrant.
uint32_t cg_crc32c(uint32_t crc, const void *data, size_t length);

#endif
