# SPDX-License-Identifier: BSD-3-Clause
# cython: language_level=3
"""Runs csrc/volume/bench_load.c on a volume: the load never enters Python."""

import os

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from gateway import errors

cdef extern from "<stdatomic.h>" nogil:
    ctypedef bint atomic_bool

cdef extern from "copygate.h" nogil:
    struct cg_client:
        pass
    struct cg_volume:
        pass
    enum cg_client_mode:
        CG_CLIENT_OWN_THREAD
    struct cg_client_options:
        uint32_t struct_size
        cg_client_mode mode
        const char *mds
        const char *owner
        const char *root_password
    enum:
        CG_OPEN_READ_ONLY
    struct cg_volume_options:
        uint32_t struct_size
        const char *path
        uint32_t flags
        uint32_t inflight_max
    struct cg_volume_stats:
        uint64_t requests
        uint64_t retries
        uint64_t timeouts
        uint64_t overloads
    int cg_client_create(const cg_client_options *options, cg_client **out)
    void cg_client_destroy(cg_client *client)
    int cg_volume_open(cg_client *client, const cg_volume_options *options, cg_volume **out,
                       char *error, size_t error_size)
    void cg_volume_close(cg_volume *volume)

cdef extern from "base/histogram.h" nogil:
    struct cg_histogram:
        uint64_t count
        uint64_t sum
        uint64_t max
    uint64_t cg_histogram_percentile(const cg_histogram *h, double percent)

cdef extern from "volume/bench_load.h" nogil:
    enum cg_bench_kind:
        CG_BENCH_READ
    struct cg_bench_options:
        cg_bench_kind kind
        uint32_t block_size
        uint32_t depth
        uint32_t read_percent
        uint64_t runtime_ms
        uint64_t ramp_ms
        uint64_t span
        uint64_t seed
        const atomic_bool *stop
    struct cg_bench_result:
        uint64_t elapsed_ns
        uint64_t cpu_ns
        uint64_t reads
        uint64_t writes
        uint64_t read_bytes
        uint64_t written_bytes
        uint64_t errors
        int first_error
        cg_histogram read_ns
        cg_histogram write_ns
    int cg_bench_run(cg_volume *volume, const cg_bench_options *options, cg_bench_result *result)

cdef extern from *:
    """
    #include <signal.h>
    #include <stdatomic.h>

    static atomic_bool cg_load_stop;

    // Python's own handler would run only after the load, which it should end.
    static void cg_load_on_signal(int number) {
        (void)number;
        atomic_store(&cg_load_stop, true);
    }

    static void cg_load_catch(struct sigaction *old) {
        struct sigaction action = {.sa_handler = cg_load_on_signal};
        atomic_store(&cg_load_stop, false);
        sigaction(SIGINT, &action, old);
    }

    static void cg_load_restore(const struct sigaction *old) {
        sigaction(SIGINT, old, NULL);
    }

    static void cg_volume_stats_read(const struct cg_volume *volume, struct cg_volume_stats *out) {
        cg_volume_stats(volume, out);
    }
    """
    struct sigaction_t "sigaction":
        pass
    atomic_bool cg_load_stop
    void cg_load_catch(sigaction_t *old) nogil
    void cg_load_restore(const sigaction_t *old) nogil
    void cg_volume_stats_read(const cg_volume *volume, cg_volume_stats *out) nogil

KINDS = {"read": 0, "write": 1, "randread": 2, "randwrite": 3, "randrw": 4}
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9, 99.99)


cdef dict _latency(const cg_histogram *h):
    if h.count == 0:
        return {}
    found = {f"p{p:g}": cg_histogram_percentile(h, p) for p in PERCENTILES}
    return {"mean": h.sum // h.count, **found, "max": h.max}


def _raise(int result, str what, str path):
    kinds = {2: errors.NotFoundError, 13: errors.AccessError, 22: errors.InvalidArgumentError,
             28: errors.NoSpaceError, 110: errors.UnavailableError, 116: errors.FencedError}
    raise kinds.get(-result, errors.CopygateError)(what or os.strerror(-result),
                                                   context={"volume": path})


def run(str mds, str path, *, str owner, password=None, str kind, int block_size, int depth,
        int read_percent=50, double runtime_s=5.0, double ramp_s=0.0, span=0, seed=1):
    """Opens the volume, runs the load, closes; returns the figures (times in nanoseconds).

    Ctrl-C ends it early, with the figures so far. Raises the errors of gateway.errors.
    """
    cdef cg_client *client = NULL
    cdef cg_volume *volume = NULL
    cdef cg_client_options client_options
    cdef cg_volume_options volume_options
    cdef cg_bench_options options
    cdef cg_bench_result *result = NULL
    cdef cg_volume_stats stats
    cdef sigaction_t old
    cdef char text[512]
    cdef int status
    cdef bytes mds_bytes = mds.encode()
    cdef bytes owner_bytes = owner.encode()
    cdef bytes path_bytes = path.encode()
    cdef bytes password_bytes = password.encode() if password is not None else b""

    memset(&client_options, 0, sizeof(client_options))
    memset(&volume_options, 0, sizeof(volume_options))
    memset(&options, 0, sizeof(options))
    text[0] = 0
    client_options.struct_size = sizeof(client_options)
    client_options.mode = CG_CLIENT_OWN_THREAD
    client_options.mds = mds_bytes
    client_options.owner = owner_bytes
    if password is not None:
        client_options.root_password = password_bytes
    volume_options.struct_size = sizeof(volume_options)
    volume_options.path = path_bytes
    volume_options.inflight_max = max(128, depth)
    if kind in ("read", "randread"):
        volume_options.flags = CG_OPEN_READ_ONLY
    options.kind = <cg_bench_kind><int>KINDS[kind]
    options.block_size = block_size
    options.depth = depth
    options.read_percent = read_percent
    options.runtime_ms = <uint64_t>max(1, runtime_s * 1000)
    options.ramp_ms = <uint64_t>(ramp_s * 1000)
    options.span = span
    options.seed = seed
    options.stop = &cg_load_stop

    result = <cg_bench_result *>calloc(1, sizeof(cg_bench_result))
    if result == NULL:
        raise MemoryError
    try:
        status = cg_client_create(&client_options, &client)
        if status < 0:
            _raise(status, f"cannot use the metadata servers {mds}", path)
        with nogil:
            status = cg_volume_open(client, &volume_options, &volume, text, sizeof(text))
        if status < 0:
            _raise(status, text.decode(errors="replace"), path)
        with nogil:
            cg_load_catch(&old)
            status = cg_bench_run(volume, &options, result)
            cg_load_restore(&old)
            cg_volume_stats_read(volume, &stats)
        if status < 0:
            _raise(status, "the volume is smaller than a block, or an option is out of range", path)
        if result.first_error < 0:
            _raise(result.first_error, f"the load ended with: {os.strerror(-result.first_error)}",
                   path)
        return {
            "elapsed_ns": result.elapsed_ns, "cpu_ns": result.cpu_ns,
            "reads": result.reads, "writes": result.writes,
            "read_bytes": result.read_bytes, "written_bytes": result.written_bytes,
            "read_latency_ns": _latency(&result.read_ns),
            "write_latency_ns": _latency(&result.write_ns),
            "requests": stats.requests, "retries": stats.retries,
            "timeouts": stats.timeouts, "overloads": stats.overloads,
        }
    finally:
        with nogil:
            if volume != NULL:
                cg_volume_close(volume)
            if client != NULL:
                cg_client_destroy(client)
        free(result)
