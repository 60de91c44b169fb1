# SPDX-License-Identifier: BSD-3-Clause
# cython: language_level=3
"""The IO core as Python sees it: a typed skin over csrc/include/copygate.h.

Buffers go to C as they are (anything with the buffer protocol, contiguous) and the GIL is released
while C works. All methods may be called from any thread. Offsets and lengths are bytes, times are
seconds. Errors are those of :mod:`gateway.errors`.
"""

import errno as _errno
import math
import os
import uuid as _uuid
import weakref
from typing import NamedTuple

from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EILSEQ
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from posix.unistd cimport usleep

from gateway import errors

cdef extern from *:
    """
    #include <stdio.h>
    #include <unistd.h>

    static const char *const cg_level_names[] = {"debug", "info", "warning", "error"};

    // Runs on any thread, without the GIL. `context` is the lowest level that is wanted.
    static void cg_log_to_stderr(void *context, int level, const char *line) {
        char text[1100];
        if (level < (int)(intptr_t)context || level < 0 || level > 3) {
            return;
        }
        int length = snprintf(text, sizeof(text), "copygate: %s: %s\\n", cg_level_names[level], line);
        if (length > (int)sizeof(text) - 1) {
            length = (int)sizeof(text) - 1;
        }
        // A log line that cannot be written has nowhere else to go.
        ssize_t written = write(STDERR_FILENO, text, (size_t)length);
        (void)written;
    }
    """
    void cg_log_to_stderr(void *context, int level, const char *line) noexcept nogil


_LOG_LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}


class Extent(NamedTuple):
    """A range of a volume, from :meth:`Volume.block_status`."""

    offset: int
    length: int
    hole: bool
    """Nothing is allocated for it."""
    zero: bool
    """It reads as zeros."""


class VolumeInfo(NamedTuple):
    """A volume as the core knows it now."""

    size: int
    volume_id: int
    uuid: _uuid.UUID
    epoch: int
    block_size: int
    chunk_size: int
    segment_size: int
    stripe_unit: int
    stripe_count: int
    max_io: int
    read_only: bool
    native: bool
    """Our own store: fast zero, compare-and-write and block status are real."""


class VolumeStats(NamedTuple):
    """Counters of a volume since it was opened."""

    reads: int
    writes: int
    others: int
    read_bytes: int
    written_bytes: int
    errors: int
    requests: int
    retries: int
    redirects: int
    timeouts: int
    overloads: int
    local_reads: int
    """Of ``reads``: without a request, on the store's own machine."""
    inflight: int


def version() -> str:
    """The core's name and version, "copygate 0.1.0"."""
    return cg_version().decode()


_KINDS = {
    _errno.EINVAL: (errors.InvalidArgumentError, "the range or a value is not acceptable", ""),
    _errno.EROFS: (
        errors.AccessError,
        "the volume is open read-only",
        "open it without read_only to write",
    ),
    _errno.ENOSPC: (
        errors.NoSpaceError,
        "the store is full",
        "delete volumes, trim unused space or add disks",
    ),
    _errno.ESTALE: (
        errors.FencedError,
        "another client has taken the volume over",
        "stop the other writer, then open the volume again",
    ),
    _errno.ETIMEDOUT: (
        errors.DeadlineError,
        "the store did not answer before the deadline",
        "see `copygate status`; a write may or may not have taken effect",
    ),
    _errno.EBADMSG: (
        errors.StorageError,
        "the stored data fails its checksum",
        "the disk returned other data than was written: restore the volume from a copy",
    ),
    _errno.ENOENT: (
        errors.NotFoundError,
        "there is no such volume",
        "see `copygate volume list`",
    ),
    _errno.EACCES: (
        errors.AccessError,
        "the volume belongs to another owner",
        "give its owner",
    ),
    _errno.EBUSY: (errors.BusyError, "too many requests are in flight", ""),
    _errno.EIO: (
        errors.StorageError,
        "the store reported a failure",
        "see the chunkserver's log",
    ),
    _errno.ESHUTDOWN: (errors.CopygateError, "the volume is being closed", ""),
    _errno.ENOTSUP: (errors.CopygateError, "the store cannot do this", ""),
    _errno.ECONNREFUSED: (
        errors.UnavailableError,
        "the metadata server refuses connections",
        "start it with `copygate up`, or name its address",
    ),
}


def error_from_errno(int number, context=None, str message="", str hint=""):
    """Returns the exception for a negative errno of the core (positive numbers are taken as well).

    ``message`` and ``hint`` replace the general text when they are not empty.
    """
    number = -number if number < 0 else number
    if number == _errno.ENOMEM:
        return MemoryError(message or "out of memory in the IO core")
    kind, text, mend = _KINDS.get(number, (errors.StorageError, os.strerror(number), ""))
    details = dict(context or {})
    details["errno"] = _errno.errorcode.get(number, str(number))
    return kind(message or text, context=details, hint=hint or mend)


cdef uint64_t milliseconds(seconds, str name) except? 0:
    """0, the core's default, for None."""
    if seconds is None:
        return 0
    if not math.isfinite(seconds) or seconds < 0.001 or seconds > 86400:
        raise errors.InvalidArgumentError(
            f"{name} must be between 0.001 and 86400 seconds, not {seconds!r}"
        )
    return <uint64_t> math.ceil(seconds * 1000)


cdef bytes c_text(text, str name):
    """UTF-8 for a C string argument."""
    if not isinstance(text, str):
        raise TypeError(f"{name} must be str, not {type(text).__name__}")
    if not text or "\0" in text:
        raise errors.InvalidArgumentError(f"{name} is empty or contains a NUL character")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise errors.InvalidArgumentError(f"{name} is not text that UTF-8 can hold") from error


cdef class Client:
    """A connection to a store: opens volumes. Owns one reactor thread of the core.

    ``mds`` is a comma-separated list of metadata servers ("host:port"); nothing is contacted before the
    first open. ``log_level`` is the lowest level of the core's log lines that go to stderr ("debug",
    "info", "warning", "error"), or None for none. A client must not be used after a fork.
    """

    def __init__(self, mds, *, owner="copygate", root_password=None, log_level="warning"):
        cdef cg_client_options options
        cdef int result
        if self._client != NULL:
            raise RuntimeError("a Client is initialised once")
        self._volumes = weakref.WeakSet()
        mds_text = c_text(mds, "mds")
        owner_text = c_text(owner, "owner")
        password_text = None if root_password is None else c_text(root_password, "root_password")
        memset(&options, 0, sizeof(options))
        options.struct_size = sizeof(options)
        options.mode = CG_CLIENT_OWN_THREAD
        options.mds = mds_text
        options.owner = owner_text
        if password_text is not None:
            options.root_password = password_text
        if log_level is not None:
            if log_level not in _LOG_LEVELS:
                raise errors.InvalidArgumentError(
                    f"log_level must be one of {', '.join(_LOG_LEVELS)}, not {log_level!r}"
                )
            options.log = cg_log_to_stderr
            options.log_context = <void *> <size_t> _LOG_LEVELS[log_level]
        with nogil:
            result = cg_client_create(&options, &self._client)
        if result < 0:
            self._client = NULL
            if result == -_errno.EINVAL:
                raise errors.ConfigError(
                    f"mds={mds!r} does not name metadata servers",
                    hint="give HOST:PORT, or several with commas between, for example 127.0.0.1:6700",
                )
            raise error_from_errno(result, {"mds": mds})
        self.mds = mds
        self.owner = owner

    def __dealloc__(self):
        # Volumes hold a reference to their client, so none is open here.
        if self._client != NULL:
            with nogil:
                cg_client_destroy(self._client)
            self._client = NULL

    def open_volume(
        self,
        path,
        *,
        read_only=False,
        shared=False,
        inflight_max=0,
        io_timeout=None,
        open_timeout=None,
    ):
        """Opens the volume ``path`` ("name" or "/folder/name") and waits for it.

        Opening for writing raises the volume's epoch: whoever had it open for writing is fenced.
        ``shared`` writes without raising it, and nobody is fenced. ``inflight_max`` bounds the requests
        to chunkservers at once (0: the core's default); ``io_timeout`` and ``open_timeout`` are seconds.
        """
        cdef cg_volume_options options
        cdef cg_volume *opened = NULL
        cdef cg_client *client = self._client
        cdef char text[512]
        cdef int result
        if client == NULL:
            raise errors.CopygateError("the client is closed")
        path_text = c_text(path, "path")
        if not 0 <= inflight_max <= 65536:
            raise errors.InvalidArgumentError(
                f"inflight_max must be between 0 and 65536, not {inflight_max!r}"
            )
        memset(&options, 0, sizeof(options))
        options.struct_size = sizeof(options)
        options.path = path_text
        options.inflight_max = inflight_max
        options.io_timeout_ms = milliseconds(io_timeout, "io_timeout")
        options.open_timeout_ms = milliseconds(open_timeout, "open_timeout")
        if read_only:
            options.flags |= CG_OPEN_READ_ONLY
        if shared:
            options.flags |= CG_OPEN_SHARED
        text[0] = 0
        with nogil:
            result = cg_volume_open(client, &options, &opened, text, sizeof(text))
        if result < 0:
            message = text.decode("utf-8", "replace") if text[0] else ""
            raise error_from_errno(result, {"volume": path, "mds": self.mds}, message)
        cdef Volume volume = Volume.__new__(Volume)
        volume._volume = opened
        volume.client = self
        volume.path = path
        self._volumes.add(volume)
        return volume

    def close(self):
        """Closes all volumes and ends the reactor thread. A second call does nothing."""
        cdef cg_client *client = self._client
        if client == NULL:
            return
        self._client = NULL
        for volume in list(self._volumes):
            volume.close()
        with nogil:
            cg_client_destroy(client)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        self.close()


cdef class Volume:
    """An open volume, from :meth:`Client.open_volume`."""

    def __init__(self):
        raise TypeError("volumes come from Client.open_volume")

    def __dealloc__(self):
        if self._volume != NULL:
            with nogil:
                cg_volume_close(self._volume)
            self._volume = NULL

    cdef cg_volume *enter(self) except NULL:
        """Every call into C is between enter and leave, so that close frees nothing in use."""
        if self._volume == NULL or self._closing:
            raise errors.CopygateError("the volume is closed", context={"volume": self.path})
        self._calls += 1
        return self._volume

    cdef void leave(self) noexcept:
        self._calls -= 1

    cdef object failure(self, int result, str operation, object offset, object length):
        context = {"volume": self.path, "operation": operation}
        if length is not None:
            context["offset"] = offset
            context["length"] = length
        return error_from_errno(result, context)

    def close(self):
        """Waits for the calls in flight (at most their deadline) and closes. Twice does no harm."""
        cdef cg_volume *volume = self._volume
        if volume == NULL or self._closing:
            return
        self._closing = True
        while self._calls > 0:
            with nogil:
                usleep(200)
        self._volume = NULL
        with nogil:
            cg_volume_close(volume)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        self.close()

    def info(self):
        """Returns a :class:`VolumeInfo`; cheap, never blocks."""
        cdef cg_volume_info_s info
        cdef cg_volume *volume = self.enter()
        memset(&info, 0, sizeof(info))
        cg_volume_info(volume, &info)
        self.leave()
        return VolumeInfo(
            size=info.size,
            volume_id=info.volume_id,
            uuid=_uuid.UUID(bytes=(<char *> &info.uuid[0])[:16]),
            epoch=info.epoch,
            block_size=info.block_size,
            chunk_size=info.chunk_size,
            segment_size=info.segment_size,
            stripe_unit=info.stripe_unit,
            stripe_count=info.stripe_count,
            max_io=info.max_io,
            read_only=info.read_only,
            native=info.native,
        )

    def stats(self):
        """Returns a :class:`VolumeStats`."""
        cdef cg_volume_stats_s stats
        cdef cg_volume *volume = self.enter()
        memset(&stats, 0, sizeof(stats))
        cg_volume_stats(volume, &stats)
        self.leave()
        return VolumeStats(
            reads=stats.reads,
            writes=stats.writes,
            others=stats.others,
            read_bytes=stats.read_bytes,
            written_bytes=stats.written_bytes,
            errors=stats.errors,
            requests=stats.requests,
            retries=stats.retries,
            redirects=stats.redirects,
            timeouts=stats.timeouts,
            overloads=stats.overloads,
            local_reads=stats.local_reads,
            inflight=stats.inflight,
        )

    def pread(self, uint64_t length, uint64_t offset):
        """Reads ``length`` bytes at ``offset``; returns bytes."""
        cdef int result
        cdef cg_volume *volume
        if length > <uint64_t> 0x7FFFFFFF:
            raise errors.InvalidArgumentError("one pread takes at most 2 GiB")
        data = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> length)
        cdef char *target = PyBytes_AS_STRING(data)
        volume = self.enter()
        with nogil:
            result = cg_pread(volume, target, length, offset)
        self.leave()
        if result < 0:
            raise self.failure(result, "read", offset, length)
        return data

    def readinto(self, buffer, uint64_t offset):
        """Fills a writable buffer from ``offset``; returns its length."""
        cdef Py_buffer view
        cdef int result
        cdef cg_volume *volume
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            volume = self.enter()
            with nogil:
                result = cg_pread(volume, view.buf, <uint64_t> view.len, offset)
            self.leave()
            if result < 0:
                raise self.failure(result, "read", offset, view.len)
            return view.len
        finally:
            PyBuffer_Release(&view)

    def pwrite(self, data, uint64_t offset):
        """Writes a buffer at ``offset``; durable when it returns. Returns the number of bytes."""
        cdef Py_buffer view
        cdef int result
        cdef cg_volume *volume
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            volume = self.enter()
            with nogil:
                result = cg_pwrite(volume, view.buf, <uint64_t> view.len, offset)
            self.leave()
            if result < 0:
                raise self.failure(result, "write", offset, view.len)
            return view.len
        finally:
            PyBuffer_Release(&view)

    def write_zeroes(self, uint64_t length, uint64_t offset, *, no_hole=False, fast=False):
        """Makes the range read as zeros. ``no_hole`` keeps it allocated; ``fast`` fails rather than
        sending zero data."""
        cdef int result
        cdef uint32_t flags = 0
        if no_hole:
            flags |= CG_IO_NO_HOLE
        if fast:
            flags |= CG_IO_FAST_ZERO
        cdef cg_volume *volume = self.enter()
        with nogil:
            result = cg_write_zeroes(volume, length, offset, flags)
        self.leave()
        if result < 0:
            raise self.failure(result, "write zeroes", offset, length)

    def trim(self, uint64_t length, uint64_t offset):
        """Returns the range's space to the store; whole blocks of it read as zeros afterwards."""
        cdef int result
        cdef cg_volume *volume = self.enter()
        with nogil:
            result = cg_trim(volume, length, offset)
        self.leave()
        if result < 0:
            raise self.failure(result, "trim", offset, length)

    def flush(self):
        """Completed writes are durable already; this fails where the volume no longer is ours."""
        cdef int result
        cdef cg_volume *volume = self.enter()
        with nogil:
            result = cg_flush(volume)
        self.leave()
        if result < 0:
            raise self.failure(result, "flush", None, None)

    def compare_and_write(self, compare, data, uint64_t offset):
        """Writes ``data`` if the volume holds ``compare`` (of the same length) at ``offset``, atomically.

        Returns None when it was written, else the offset within the range of the first byte that
        differs.
        """
        cdef Py_buffer expected
        cdef Py_buffer replacement
        cdef int result
        cdef uint64_t mismatch = 0
        cdef cg_volume *volume
        PyObject_GetBuffer(compare, &expected, PyBUF_SIMPLE)
        try:
            PyObject_GetBuffer(data, &replacement, PyBUF_SIMPLE)
            try:
                if expected.len != replacement.len:
                    raise errors.InvalidArgumentError(
                        f"compare has {expected.len} bytes and data {replacement.len}: "
                        "they must be equally long"
                    )
                volume = self.enter()
                with nogil:
                    result = cg_compare_and_write(
                        volume, expected.buf, replacement.buf, <uint64_t> expected.len, offset,
                        &mismatch)
                self.leave()
                if result == -EILSEQ:
                    return mismatch
                if result < 0:
                    raise self.failure(result, "compare and write", offset, expected.len)
                return None
            finally:
                PyBuffer_Release(&replacement)
        finally:
            PyBuffer_Release(&expected)

    def block_status(self, uint64_t length, uint64_t offset):
        """Returns the :class:`Extent` list that covers the range, in order."""
        cdef cg_extent extents[512]
        cdef int count
        cdef int i
        cdef cg_volume *volume
        cdef uint64_t end = offset + length
        if end < offset:
            raise errors.InvalidArgumentError("the range goes past 2**64 bytes")
        found = []
        while offset < end:
            volume = self.enter()
            with nogil:
                count = cg_block_status(volume, end - offset, offset, extents, 512)
            self.leave()
            if count < 0:
                raise self.failure(count, "block status", offset, end - offset)
            for i in range(count):
                if extents[i].offset != offset or extents[i].length == 0:
                    raise errors.ProtocolError(
                        "the core returned extents with a gap", context={"volume": self.path}
                    )
                found.append(
                    Extent(
                        offset,
                        extents[i].length,
                        bool(extents[i].flags & CG_EXTENT_HOLE),
                        bool(extents[i].flags & CG_EXTENT_ZERO),
                    )
                )
                offset += extents[i].length
        return found
