// SPDX-License-Identifier: BSD-3-Clause
//
// A load on one volume through copygate.h, as `copygate bench` runs it: a fixed depth of requests
// that resubmit themselves from their completions, so that nothing but the core is measured.
#ifndef CG_VOLUME_BENCH_LOAD_H
#define CG_VOLUME_BENCH_LOAD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/histogram.h"
#include "copygate.h"

#define CG_BENCH_DEPTH_MAX 1024
#define CG_BENCH_BLOCK_MAX (4U << 20)

enum cg_bench_kind {
    CG_BENCH_READ = 0,
    CG_BENCH_WRITE = 1,
    CG_BENCH_RANDREAD = 2,
    CG_BENCH_RANDWRITE = 3,
    CG_BENCH_RANDRW = 4,
};

struct cg_bench_options {
    enum cg_bench_kind kind;
    uint32_t block_size;   // bytes, 1 to CG_BENCH_BLOCK_MAX
    uint32_t depth;        // requests in flight, 1 to CG_BENCH_DEPTH_MAX
    uint32_t read_percent; // RANDRW: share of reads, 0 to 100
    uint64_t runtime_ms;   // measured time; at least 1
    uint64_t ramp_ms;      // run before it, not measured
    uint64_t span;         // bytes from the volume's start that are used; 0: all of it
    uint64_t seed;
    // Ends the run early when it becomes true; may be NULL.
    const atomic_bool *stop;
};

struct cg_bench_result {
    uint64_t elapsed_ns; // measured time
    uint64_t cpu_ns;     // of the whole process during it
    uint64_t reads, writes;
    uint64_t read_bytes, written_bytes;
    uint64_t errors;
    int first_error; // 0 or the -errno of the first failed request; an error ends the run
    struct cg_histogram read_ns, write_ns;
};

// Runs the load and waits for its end. `volume` belongs to a CG_CLIENT_OWN_THREAD client; call it
// from any thread but its reactor's. Returns 0 (look at first_error too), -EINVAL for options out
// of range or a volume smaller than a block, -ENOMEM. The volume's IO is over when it returns.
int cg_bench_run(struct cg_volume *volume, const struct cg_bench_options *options,
                 struct cg_bench_result *result);

#endif
