// SPDX-License-Identifier: BSD-3-Clause
//
// Log-linear histogram of latencies: 64 sub-buckets per power of two, error below 1.6 %, fixed
// size. One writer; a reader on another thread sees counts that may be one event behind.
#ifndef CG_BASE_HISTOGRAM_H
#define CG_BASE_HISTOGRAM_H

#include <stdint.h>

#define CG_HISTOGRAM_SUB_BITS 6
#define CG_HISTOGRAM_BUCKETS  ((64 - CG_HISTOGRAM_SUB_BITS + 1) << CG_HISTOGRAM_SUB_BITS)

struct cg_histogram {
    uint64_t count;
    uint64_t sum; // of all values
    uint64_t max;
    uint64_t bucket[CG_HISTOGRAM_BUCKETS];
};

void cg_histogram_reset(struct cg_histogram *h);
void cg_histogram_add(struct cg_histogram *h, uint64_t value);

// Adds all of `from` to `into`.
void cg_histogram_merge(struct cg_histogram *into, const struct cg_histogram *from);

// The value below which `percent` (0 to 100) of the values lie, rounded up to its bucket's end; 0
// when empty.
uint64_t cg_histogram_percentile(const struct cg_histogram *h, double percent);

#endif
