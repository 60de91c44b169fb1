# SPDX-License-Identifier: BSD-3-Clause
"""The plainest nbdkit plugin in Python: a byte array. What the Python plugin is compared with."""

from typing import Any

import nbdkit

API_VERSION = 2

_disk = bytearray()


def thread_model() -> int:
    """Requests in parallel, on nbdkit's default number of threads."""
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def config(key: str, value: str) -> None:
    """size=BYTES."""
    if key != "size":
        raise RuntimeError(f"unknown parameter {key}")
    _disk.extend(bytes(int(value)))


def open(readonly: bool) -> int:  # noqa: A001 - nbdkit's name for it
    """There is one disk for all."""
    del readonly
    return 1


def get_size(handle: int) -> int:
    """Bytes."""
    del handle
    return len(_disk)


def pread(handle: int, buffer: Any, offset: int, flags: int) -> None:
    """Copies out."""
    del handle, flags
    buffer[:] = memoryview(_disk)[offset : offset + len(buffer)]


def pwrite(handle: int, buffer: Any, offset: int, flags: int) -> None:
    """Copies in."""
    del handle, flags
    _disk[offset : offset + len(buffer)] = buffer


def can_fua(handle: int) -> int:
    """Memory is as durable as it gets."""
    del handle
    return int(nbdkit.FUA_NATIVE)


def flush(handle: int, flags: int) -> None:
    """Nothing to do."""
    del handle, flags
