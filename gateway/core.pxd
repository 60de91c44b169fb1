# SPDX-License-Identifier: BSD-3-Clause
"""C declarations of csrc/include/copygate.h, and the classes that other extensions may cimport."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from posix.uio cimport iovec

cdef extern from "copygate.h" nogil:
    struct cg_client:
        pass
    struct cg_volume:
        pass

    enum cg_client_mode:
        CG_CLIENT_OWN_THREAD
        CG_CLIENT_FOREIGN_LOOP

    struct cg_client_options:
        uint32_t struct_size
        cg_client_mode mode
        const char *mds
        const char *owner
        const char *root_password
        void (*log)(void *context, int level, const char *line) noexcept
        void *log_context

    int cg_client_create(const cg_client_options *options, cg_client **out)
    void cg_client_destroy(cg_client *client)

    enum:
        CG_OPEN_READ_ONLY
        CG_OPEN_SHARED

    struct cg_volume_options:
        uint32_t struct_size
        const char *path
        uint32_t flags
        uint32_t inflight_max
        uint64_t io_timeout_ms
        uint64_t open_timeout_ms

    int cg_volume_open(cg_client *client, const cg_volume_options *options, cg_volume **out,
                       char *error, size_t error_size)
    void cg_volume_close(cg_volume *volume)

    # In C the structs share their names with the functions.
    struct cg_volume_info_s "cg_volume_info":
        uint64_t size
        uint64_t volume_id
        uint8_t uuid[16]
        uint64_t epoch
        uint32_t block_size
        uint32_t chunk_size
        uint64_t segment_size
        uint32_t stripe_unit
        uint32_t stripe_count
        uint32_t max_io
        bint read_only
        bint native
    void cg_volume_info(const cg_volume *volume, cg_volume_info_s *out)

    enum cg_op:
        CG_OP_READ
        CG_OP_WRITE
        CG_OP_WRITE_ZEROES
        CG_OP_TRIM
        CG_OP_FLUSH
        CG_OP_COMPARE_AND_WRITE
        CG_OP_BLOCK_STATUS

    enum:
        CG_IO_FUA
        CG_IO_NO_HOLE
        CG_IO_FAST_ZERO

    enum:
        CG_EXTENT_DATA
        CG_EXTENT_HOLE
        CG_EXTENT_ZERO

    struct cg_extent:
        uint64_t offset
        uint64_t length
        uint32_t flags

    struct cg_io:
        cg_op op
        uint32_t flags
        uint64_t offset
        uint64_t length
        const iovec *iov
        int iovcnt
        uint64_t timeout_ms
        cg_extent *extents
        uint32_t extent_capacity
        void (*done)(cg_io *io) noexcept
        void *user
        int result
        uint32_t extent_count
        uint64_t mismatch_offset

    void cg_submit(cg_volume *volume, cg_io *io)
    void cg_submit_batch(cg_volume *volume, cg_io *const *ios, unsigned count)

    int cg_pread(cg_volume *volume, void *data, uint64_t length, uint64_t offset)
    int cg_pwrite(cg_volume *volume, const void *data, uint64_t length, uint64_t offset)
    int cg_write_zeroes(cg_volume *volume, uint64_t length, uint64_t offset, uint32_t flags)
    int cg_trim(cg_volume *volume, uint64_t length, uint64_t offset)
    int cg_flush(cg_volume *volume)
    int cg_compare_and_write(cg_volume *volume, const void *compare, const void *write,
                             uint64_t length, uint64_t offset, uint64_t *mismatch_offset)
    int cg_block_status(cg_volume *volume, uint64_t length, uint64_t offset,
                        cg_extent *extents, uint32_t capacity)

    struct cg_volume_stats_s "cg_volume_stats":
        uint64_t reads
        uint64_t writes
        uint64_t others
        uint64_t read_bytes
        uint64_t written_bytes
        uint64_t errors
        uint64_t requests
        uint64_t retries
        uint64_t redirects
        uint64_t timeouts
        uint64_t overloads
        uint64_t local_reads
        uint64_t inflight
    void cg_volume_stats(const cg_volume *volume, cg_volume_stats_s *out)

    const char *cg_version()


cdef class Client:
    cdef cg_client *_client
    cdef object _volumes
    cdef readonly str mds
    cdef readonly str owner
    cdef object __weakref__


cdef class Volume:
    cdef cg_volume *_volume
    # Calls that are inside the core at this moment; kept under the GIL.
    cdef unsigned _calls
    cdef bint _closing
    cdef readonly Client client
    cdef readonly str path
    cdef object __weakref__

    cdef cg_volume *enter(self) except NULL
    cdef void leave(self) noexcept
    cdef object failure(self, int result, str operation, object offset, object length)
