# SPDX-License-Identifier: BSD-3-Clause
"""The file in which a client notes what it did and when, and the operations that it tells of.

A record is written (to the page cache, with one `write`) before an operation is submitted and after
it has ended, so what a killed client had under way is known. Times are CLOCK_MONOTONIC in
nanoseconds, which all processes of a machine share. A cell is 512 bytes and holds a value of 64
bits, which no other write of the run has.
"""

import os
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from chaos.linear import FOREVER, Op

CELL = 512
TORN = (1 << 64) - 1  # what a read is said to have seen if a cell holds parts of several writes

OPENED, WRITE, READ, WRITTEN, SEEN, FAILED = range(1, 7)

_RECORD = struct.Struct("<BBHIQQ")  # event, thread, cells, first cell, value or errno, time
_CONTENT = struct.Struct("<QQ")  # value, cell; repeated


class Record(NamedTuple):
    """One line of the file. SEEN is there for each cell of a read; the others once an operation."""

    event: int
    thread: int
    count: int
    cell: int
    value: int
    time: int


def content(cell: int, value: int) -> bytes:
    """What a cell holds after `value` was written to it."""
    return _CONTENT.pack(value, cell) * (CELL // _CONTENT.size)


def value_of(cell: int, data: bytes) -> int:
    """The value that a cell's data stands for: 0 for zeros, TORN for anything but one write's."""
    if not any(data):
        return 0
    value, where = _CONTENT.unpack_from(data)
    return value if where == cell and data == content(cell, value) else TORN


class Notebook:
    """Writes the file; each method may be called by any thread."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file = os.open(path, flags, 0o644)
        self._lock = threading.Lock()

    def _append(self, records: bytes) -> None:
        with self._lock:
            written = os.write(self._file, records)
        assert written == len(records), "the history's disk is full"

    def note(self, event: int, thread: int, cell: int = 0, count: int = 0, value: int = 0) -> None:
        """Notes an event as of now."""
        self._append(_RECORD.pack(event, thread, count, cell, value, time.monotonic_ns()))

    def seen(self, thread: int, cell: int, values: Sequence[int]) -> None:
        """Notes that a read has ended and what it saw."""
        now = time.monotonic_ns()
        self._append(
            b"".join(
                _RECORD.pack(SEEN, thread, len(values), cell + i, value, now)
                for i, value in enumerate(values)
            )
        )


class Follower:
    """Reads a file that is being written; gives what came since the last time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[Record]:
        """The new records, in order; none if there is no file yet."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = len(data) - len(data) % _RECORD.size
        self._offset += whole
        return [Record(*fields) for fields in _RECORD.iter_unpack(data[:whole])]


def _of_client(records: Sequence[Record], settled: int) -> Iterator[tuple[int, Op]]:
    begun: dict[int, Record] = {}  # by thread, which does one thing at a time
    for record in records:
        event, thread, _, cell, value, now = record
        if event in {WRITE, READ}:
            begun[thread] = record
        elif event == SEEN:
            yield cell, Op(False, value, begun[thread].time, now)
        elif event == WRITTEN:
            begin = begun.pop(thread)
            for i in range(begin.cell, begin.cell + begin.count):
                yield i, Op(True, begin.value, begin.time, now)
        elif event == FAILED and begun[thread].event == READ:
            del begun[thread]
        elif event == FAILED:
            yield from _in_doubt(begun.pop(thread), settled)
    for begin in begun.values():
        if begin.event == WRITE:
            yield from _in_doubt(begin, settled)


def _in_doubt(begin: Record, settled: int) -> Iterator[tuple[int, Op]]:
    for cell in range(begin.cell, begin.cell + begin.count):
        yield cell, Op(True, begin.value, begin.time, None, settled)


def operations(clients: Sequence[Sequence[Record]], *, fencing: bool) -> dict[int, list[Op]]:
    """The operations on each cell of a volume, of all its clients.

    `fencing`: the clients with an OPENED record opened it one after the other for writing, each of
    which fences those before: what these had in doubt is settled when the next has opened it.
    """
    found: defaultdict[int, list[Op]] = defaultdict(list)
    opened = sorted(r.time for records in clients for r in records if r.event == OPENED)
    for records in clients:
        settled = FOREVER
        if fencing and (own := [r.time for r in records if r.event == OPENED]):
            settled = next((t for t in opened if t > own[-1]), FOREVER)
        for cell, op in _of_client(records, settled):
            found[cell].append(op)
    return dict(found)
