// SPDX-License-Identifier: BSD-3-Clause
#include "base/histogram.h"

#include <string.h>

#define SUB_COUNT (UINT64_C(1) << CG_HISTOGRAM_SUB_BITS)

static unsigned bucket_of(uint64_t value) {
    if (value < SUB_COUNT) {
        return (unsigned)value;
    }
    unsigned shift = 63U - (unsigned)__builtin_clzll(value) - CG_HISTOGRAM_SUB_BITS;
    return (unsigned)(((uint64_t)(shift + 1) << CG_HISTOGRAM_SUB_BITS) +
                      ((value >> shift) & (SUB_COUNT - 1)));
}

// The largest value that falls into the bucket.
static uint64_t bucket_end(unsigned bucket) {
    if (bucket < SUB_COUNT) {
        return bucket;
    }
    unsigned shift = (bucket >> CG_HISTOGRAM_SUB_BITS) - 1U;
    uint64_t base = SUB_COUNT + (bucket & (SUB_COUNT - 1));
    return (base << shift) + ((UINT64_C(1) << shift) - 1);
}

// There is one writer, so that a plain load before a relaxed store loses nothing; the atomics are
// for the reader on another thread.
static void bump(uint64_t *counter, uint64_t by) {
    __atomic_store_n(counter, *counter + by, __ATOMIC_RELAXED);
}

void cg_histogram_reset(struct cg_histogram *h) {
    memset(h, 0, sizeof(*h));
}

void cg_histogram_add(struct cg_histogram *h, uint64_t value) {
    bump(&h->bucket[bucket_of(value)], 1);
    bump(&h->count, 1);
    bump(&h->sum, value);
    if (value > h->max) {
        __atomic_store_n(&h->max, value, __ATOMIC_RELAXED);
    }
}

void cg_histogram_merge(struct cg_histogram *into, const struct cg_histogram *from) {
    for (unsigned i = 0; i < CG_HISTOGRAM_BUCKETS; i++) {
        uint64_t n = __atomic_load_n(&from->bucket[i], __ATOMIC_RELAXED);
        if (n != 0) {
            bump(&into->bucket[i], n);
        }
    }
    bump(&into->count, __atomic_load_n(&from->count, __ATOMIC_RELAXED));
    bump(&into->sum, __atomic_load_n(&from->sum, __ATOMIC_RELAXED));
    uint64_t max = __atomic_load_n(&from->max, __ATOMIC_RELAXED);
    if (max > into->max) {
        __atomic_store_n(&into->max, max, __ATOMIC_RELAXED);
    }
}

uint64_t cg_histogram_percentile(const struct cg_histogram *h, double percent) {
    // Counted here and not taken from h->count, which may be ahead of the buckets for a reader.
    uint64_t total = 0;
    for (unsigned i = 0; i < CG_HISTOGRAM_BUCKETS; i++) {
        total += __atomic_load_n(&h->bucket[i], __ATOMIC_RELAXED);
    }
    if (total == 0) {
        return 0;
    }
    double share = percent <= 0 ? 0 : (percent >= 100 ? 1 : percent / 100);
    double exact = share * (double)total;
    uint64_t rank = (uint64_t)exact;
    if ((double)rank < exact) {
        rank++;
    }
    if (rank == 0) {
        rank = 1;
    }
    uint64_t max = __atomic_load_n(&h->max, __ATOMIC_RELAXED);
    uint64_t seen = 0;
    for (unsigned i = 0; i < CG_HISTOGRAM_BUCKETS; i++) {
        seen += __atomic_load_n(&h->bucket[i], __ATOMIC_RELAXED);
        if (seen >= rank) {
            uint64_t end = bucket_end(i);
            return end < max ? end : max;
        }
    }
    return max;
}
