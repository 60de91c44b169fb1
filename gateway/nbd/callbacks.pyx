# SPDX-License-Identifier: BSD-3-Clause
# cython: language_level=3, binding=False
"""The callbacks of nbdkit's Python plugin that run for every request.

nbdkit looks them up by name in plugin.py, which assigns these: no bytecode runs per request. The GIL
is released while the core works. nbdkit's worker threads are not Python's, so each callback would
begin by making a thread state and end by freeing it; `keep_thread_state` makes the first one last as
long as its thread.
"""

import errno as _errno
import time

from cpython.memoryview cimport PyMemoryView_Check, PyMemoryView_GET_BUFFER
from libc.errno cimport EOPNOTSUPP
from libc.stdint cimport uint32_t, uint64_t

from gateway.core cimport (
    CG_EXTENT_HOLE,
    CG_EXTENT_ZERO,
    CG_IO_FAST_ZERO,
    CG_IO_NO_HOLE,
    Volume,
    cg_block_status,
    cg_extent,
    cg_flush,
    cg_pread,
    cg_pwrite,
    cg_trim,
    cg_volume,
    cg_write_zeroes,
)

import nbdkit

from gateway.core import error_from_errno

cdef extern from *:
    """
    #include <pthread.h>

    static __thread int cg_state_kept;
    static pthread_key_t cg_state_key;

    // Runs when a worker thread ends, without the GIL. Python's own thread-specific pointer is gone by
    // then, so the state itself is what the key holds.
    static void cg_drop_thread_state(void *state) {
        PyThreadState *tstate = state;
        if (!Py_IsInitialized()) {
            return;
        }
        PyEval_RestoreThread(tstate);
        PyThreadState_Clear(tstate);
        PyThreadState_DeleteCurrent();
    }

    static int cg_keep_thread_states(void) {
        return pthread_key_create(&cg_state_key, cg_drop_thread_state);
    }

    static inline void cg_keep_thread_state(void) {
        if (__builtin_expect(cg_state_kept, 1)) {
            return;
        }
        cg_state_kept = 1;
        // Where the key cannot be set, the state is left to nbdkit's own calls: slower, not wrong.
        if (pthread_setspecific(cg_state_key, PyThreadState_Get()) == 0) {
            (void)PyGILState_Ensure();
        }
    }
    """
    int cg_keep_thread_states() noexcept
    void cg_keep_thread_state() noexcept

if cg_keep_thread_states() != 0:
    raise MemoryError("no thread-specific key is left")

# nbdkit's flags and extent types, as C integers.
cdef uint32_t MAY_TRIM = nbdkit.FLAG_MAY_TRIM
cdef uint32_t REQ_ONE = nbdkit.FLAG_REQ_ONE
cdef uint32_t FAST_ZERO = nbdkit.FLAG_FAST_ZERO
cdef uint32_t EXTENT_HOLE = nbdkit.EXTENT_HOLE
cdef uint32_t EXTENT_ZERO = nbdkit.EXTENT_ZERO

# A reply with more extents than this would be large, and the client may ask again from its end.
cdef unsigned EXTENTS_PER_REPLY = 16384

# NBD carries EPERM, EIO, ENOMEM, EINVAL, ENOSPC and ESHUTDOWN; nbdkit turns all others into EINVAL, which
# would blame the client.
_NBD_ERRNO = {
    _errno.EINVAL: _errno.EINVAL,
    _errno.ENOSPC: _errno.ENOSPC,
    _errno.ENOMEM: _errno.ENOMEM,
    _errno.EROFS: _errno.EROFS,
    _errno.ESHUTDOWN: _errno.ESHUTDOWN,
    _errno.EACCES: _errno.EPERM,
    _errno.ESTALE: _errno.ESHUTDOWN,
}


class QuietError(Exception):
    """A failure whose log line is suppressed: one has been printed in this second."""


cdef class Export:
    """An open volume as nbdkit's handle."""

    cdef cg_volume *pointer
    cdef readonly Volume volume
    cdef readonly str name
    cdef readonly bint read_only
    cdef readonly bint fenced
    cdef double logged_at

    def __init__(self, Volume volume, str name, bint read_only):
        self.volume = volume
        self.pointer = volume._volume
        self.name = name
        self.read_only = read_only

    cdef object failure(self, int result, str operation, uint64_t length, uint64_t offset):
        """Tells nbdkit the errno and returns the exception for its log."""
        if result == -_errno.ESTALE:
            self.fenced = True
        nbdkit.set_error(_NBD_ERRNO.get(-result, _errno.EIO))
        now = time.monotonic()
        if now - self.logged_at < 1.0:
            return QuietError(f"{operation}: {_errno.errorcode.get(-result, result)}")
        self.logged_at = now
        return error_from_errno(
            result,
            {"volume": self.name, "operation": operation, "offset": offset, "length": length},
        )


def pread(Export h not None, buf, uint64_t offset, uint32_t flags):
    """Reads into nbdkit's buffer."""
    cdef int result
    cdef void *data
    cdef uint64_t length
    if not PyMemoryView_Check(buf):
        raise TypeError("nbdkit gives memory views with API_VERSION 2")
    cg_keep_thread_state()
    data = PyMemoryView_GET_BUFFER(buf).buf
    length = <uint64_t> PyMemoryView_GET_BUFFER(buf).len
    with nogil:
        result = cg_pread(h.pointer, data, length, offset)
    if result < 0:
        raise h.failure(result, "read", length, offset)


def pwrite(Export h not None, buf, uint64_t offset, uint32_t flags):
    """Writes nbdkit's buffer. FUA needs no code: every write that the core completes is durable."""
    cdef int result
    cdef void *data
    cdef uint64_t length
    if not PyMemoryView_Check(buf):
        raise TypeError("nbdkit gives memory views with API_VERSION 2")
    cg_keep_thread_state()
    data = PyMemoryView_GET_BUFFER(buf).buf
    length = <uint64_t> PyMemoryView_GET_BUFFER(buf).len
    with nogil:
        result = cg_pwrite(h.pointer, data, length, offset)
    if result < 0:
        raise h.failure(result, "write", length, offset)


def flush(Export h not None, uint32_t flags):
    """Completed writes are durable already; the core still reports a volume that is lost."""
    cdef int result
    cg_keep_thread_state()
    with nogil:
        result = cg_flush(h.pointer)
    if result < 0:
        raise h.failure(result, "flush", 0, 0)


def trim(Export h not None, uint32_t count, uint64_t offset, uint32_t flags):
    """Returns the range's space to the store."""
    cdef int result
    cg_keep_thread_state()
    with nogil:
        result = cg_trim(h.pointer, count, offset)
    if result < 0:
        raise h.failure(result, "trim", count, offset)


def zero(Export h not None, uint32_t count, uint64_t offset, uint32_t flags):
    """Makes the range read as zeros; keeps it allocated without MAY_TRIM."""
    cdef int result
    cdef uint32_t zero_flags = 0
    cg_keep_thread_state()
    if not flags & MAY_TRIM:
        zero_flags |= CG_IO_NO_HOLE
    if flags & FAST_ZERO:
        zero_flags |= CG_IO_FAST_ZERO
    with nogil:
        result = cg_write_zeroes(h.pointer, count, offset, zero_flags)
    if result == -EOPNOTSUPP:
        # ENOTSUP has the same number on Linux. It is no failure: nbdkit tells the client, or writes
        # zeros where it did not ask to be fast.
        nbdkit.set_error(_errno.EOPNOTSUPP)
        return
    if result < 0:
        raise h.failure(result, "write zeroes", count, offset)


def extents(Export h not None, uint32_t count, uint64_t offset, uint32_t flags):
    """Returns what is allocated, as (offset, length, type) in order."""
    cdef cg_extent found[512]
    cdef uint64_t end = offset + count
    cdef uint32_t kind
    cdef int n
    cdef int i
    cg_keep_thread_state()
    result = []
    while offset < end and len(result) < EXTENTS_PER_REPLY:
        with nogil:
            n = cg_block_status(h.pointer, end - offset, offset, found, 512)
        if n < 0:
            raise h.failure(n, "block status", end - offset, offset)
        for i in range(n):
            kind = 0
            if found[i].flags & CG_EXTENT_HOLE:
                kind |= EXTENT_HOLE
            if found[i].flags & CG_EXTENT_ZERO:
                kind |= EXTENT_ZERO
            result.append((found[i].offset, found[i].length, kind))
            offset = found[i].offset + found[i].length
        if n == 0 or flags & REQ_ONE:
            break
    return result
