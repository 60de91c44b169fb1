// SPDX-License-Identifier: BSD-3-Clause
#ifndef CG_BASE_CLOCK_H
#define CG_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

#define CG_NS_PER_US UINT64_C(1000)
#define CG_NS_PER_MS UINT64_C(1000000)
#define CG_NS_PER_S  UINT64_C(1000000000)

// Monotonic time in nanoseconds; stops during suspend. For timeouts and measurement. Any thread.
static inline uint64_t cg_now_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * CG_NS_PER_S + (uint64_t)ts.tv_nsec;
}

// Time since boot in nanoseconds, suspend included. For leases: a machine that slept through its
// lease must notice. Any thread.
static inline uint64_t cg_boottime_ns(void) {
    struct timespec ts;
    clock_gettime(CLOCK_BOOTTIME, &ts);
    return (uint64_t)ts.tv_sec * CG_NS_PER_S + (uint64_t)ts.tv_nsec;
}

// Wall-clock time in microseconds since 1970, as CurveBS dates its requests. Any thread.
static inline uint64_t cg_wall_us(void) {
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (uint64_t)ts.tv_sec * 1000000U + (uint64_t)ts.tv_nsec / 1000U;
}

#endif
