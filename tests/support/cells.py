# SPDX-License-Identifier: BSD-3-Clause
"""What every part of a disk may hold while writes race, fail and are lost.

The disk is used in cells. Every operation has a number, and a written cell carries the number of
the operation that wrote it. For each cell the writer keeps the candidates: the operations whose
data a read may return. An acknowledged write removes the candidates that had ended before it was
submitted; a write whose connection died stays a candidate ("maybe") until something newer is
acknowledged or a read shows what became of it. So a lost write, an old write that comes back, and a
torn one are all found.
"""

import dataclasses
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence

_HEADER = struct.Struct("<8sQQI")  # magic, cell, operation, crc of these three
_MAGIC = b"CGCELL01"


class WrongDataError(AssertionError):
    """A cell holds what it must not hold."""


@dataclasses.dataclass(frozen=True)
class Region:
    """`cells` adjacent cells from byte `offset` on."""

    offset: int
    cells: int


class Layout:
    """Where the cells are. Runs of cells stay within one region."""

    def __init__(self, cell_size: int, regions: Sequence[Region]) -> None:
        assert cell_size >= _HEADER.size
        self.cell_size = cell_size
        self.regions = list(regions)
        self.aligned = cell_size % 4096 == 0 and all(r.offset % 4096 == 0 for r in regions)
        self._starts: list[int] = []
        start = 0
        for region in self.regions:
            self._starts.append(start)
            start += region.cells
        self.count = start

    def offset(self, cell: int) -> int:
        """Byte offset of a cell."""
        region, start = self._region(cell)
        return region.offset + (cell - start) * self.cell_size

    def run_limit(self, cell: int) -> int:
        """How many cells follow `cell`, itself included, within its region."""
        region, start = self._region(cell)
        return start + region.cells - cell

    def region_of(self, cell: int) -> int:
        """The number of the region that holds a cell."""
        return self.regions.index(self._region(cell)[0])

    def runs(self, limit: int) -> Iterator[tuple[int, int]]:
        """All cells as (first, count) of at most `limit` cells."""
        for region, start in zip(self.regions, self._starts, strict=True):
            for first in range(start, start + region.cells, limit):
                yield first, min(limit, start + region.cells - first)

    def _region(self, cell: int) -> tuple[Region, int]:
        for region, start in zip(reversed(self.regions), reversed(self._starts), strict=True):
            if cell >= start:
                return region, start
        raise IndexError(cell)


def default_layout(volume_size: int, cell_size: int = 4096, cells: int = 512) -> Layout:
    """Regions at the volume's start, over a chunk's and a segment's border, and at its end."""
    chunk, segment = 16 << 20, 1 << 30
    shift = 0 if cell_size % 4096 == 0 else 1000
    half = cells // 2 * cell_size
    offsets = [0, chunk - half, 5 * chunk + chunk // 2]
    if volume_size >= 2 * segment:
        offsets.append(segment - half)
    offsets = [offset + shift for offset in offsets]
    offsets.append(volume_size - cells * cell_size)
    if shift:
        # One atomic request at most: a cell over a chunk's border would be two.
        offsets[1] += (chunk - offsets[1]) % cell_size
        if volume_size >= 2 * segment:
            offsets[3] += (segment - offsets[3]) % cell_size
    return Layout(cell_size, [Region(offset, cells) for offset in offsets])


@dataclasses.dataclass(slots=True)
class Operation:
    number: int
    kind: str  # "write", "zero", "trim"
    submitted: int
    ended: int | None = None


@dataclasses.dataclass(slots=True)
class Read:
    first: int
    count: int
    submitted: int
    admissible: list[set[int]]


class Model:
    """The candidates of every cell. No IO: what the writer learns goes in, verdicts come out."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._clock = 0
        first = Operation(0, "zero", 0, 0)
        self._operations = {0: first}
        self._candidates: list[list[int]] = [[0] for _ in range(layout.count)]
        self._reads: dict[int, list[Read]] = defaultdict(list)
        self._history: dict[int, list[str]] = defaultdict(list)
        self._users = {0: layout.count}
        self._deferred: dict[int, list[int]] = defaultdict(list)

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def content(self, cell: int, number: int) -> bytes:
        """What the cell holds after operation `number`."""
        size = self.layout.cell_size
        if self._operations[number].kind != "write":
            return bytes(size)
        return cell_content(cell, number, size)

    def submit(self, number: int, kind: str, first: int, count: int) -> Operation:
        """An operation on `count` cells is about to be sent."""
        operation = Operation(number, kind, self._tick())
        self._operations[number] = operation
        self._users[number] = count
        for cell in range(first, first + count):
            self._candidates[cell].append(number)
            self._note(cell, f"{kind} {number} submitted at {operation.submitted}")
            for read in self._reads.get(cell, ()):
                read.admissible[cell - read.first].add(number)
        return operation

    def acknowledge(self, operation: Operation, first: int, count: int) -> None:
        """It was answered with success: only it and what raced with it may be read now."""
        operation.ended = self._tick()
        for cell in range(first, first + count):
            self._note(cell, f"{operation.kind} {operation.number} acknowledged at {self._clock}")
            self._forget(
                cell,
                [
                    number
                    for number in self._candidates[cell]
                    if number != operation.number
                    and (ended := self._operations[number].ended) is not None
                    and ended < operation.submitted
                ],
            )

    def maybe(self, operation: Operation, first: int, count: int) -> None:
        """It is not known whether the operation took effect; from now on it no longer will."""
        operation.ended = self._tick()
        for cell in range(first, first + count):
            self._note(cell, f"{operation.kind} {operation.number} lost sight of at {self._clock}")

    def begin_read(self, first: int, count: int) -> Read:
        """A read of `count` cells is about to be sent."""
        read = Read(
            first,
            count,
            self._tick(),
            [set(self._candidates[cell]) for cell in range(first, first + count)],
        )
        for cell in range(first, first + count):
            self._reads[cell].append(read)
        return read

    def end_read(self, read: Read, data: bytes | bytearray | memoryview | None) -> None:
        """The read returned `data` (None: it failed). Raises WrongDataError."""
        for index in range(read.count):
            cell = read.first + index
            self._reads[cell].remove(read)
            last = not self._reads[cell]
            if last:
                del self._reads[cell]
            try:
                if data is not None:
                    self._judge(read, index, data)
            finally:
                if last and cell in self._deferred:
                    self._release(self._deferred.pop(cell))

    def _judge(self, read: Read, index: int, data: bytes | bytearray | memoryview) -> None:
        size = self.layout.cell_size
        cell = read.first + index
        found = bytes(data[index * size : (index + 1) * size])
        matching = [
            number for number in read.admissible[index] if self.content(cell, number) == found
        ]
        if not matching:
            raise WrongDataError(self._explain(cell, found, read))
        if len(matching) == 1 and matching[0] in self._candidates[cell]:
            seen = matching[0]
            # What ended before this read and was not seen by it has been overwritten.
            self._forget(
                cell,
                [
                    number
                    for number in self._candidates[cell]
                    if number != seen
                    and (ended := self._operations[number].ended) is not None
                    and ended < read.submitted
                ],
            )

    def _forget(self, cell: int, numbers: list[int]) -> None:
        if not numbers:
            return
        kept = [number for number in self._candidates[cell] if number not in numbers]
        self._candidates[cell] = kept
        if cell in self._reads:
            self._deferred[cell] += numbers  # a read in flight may still name them
        else:
            self._release(numbers)

    def _release(self, numbers: list[int]) -> None:
        for number in numbers:
            self._users[number] -= 1
            if self._users[number] == 0:
                del self._users[number]
                del self._operations[number]

    def _note(self, cell: int, what: str) -> None:
        history = self._history[cell]
        history.append(what)
        del history[:-16]

    def _explain(self, cell: int, found: bytes, read: Read) -> str:
        allowed = sorted(read.admissible[cell - read.first])
        nonzero = next((i for i, byte in enumerate(found) if byte), None)
        magic, owner, number, crc = _HEADER.unpack_from(found)
        if nonzero is None:
            what = "zeros"
        elif magic != _MAGIC or crc != zlib.crc32(found[: _HEADER.size - 4]):
            what = f"garbage: {found[:48].hex()}, first byte that is not zero at {nonzero}"
        elif (owner, number) != (cell, number) or found != cell_content(owner, number, len(found)):
            what = f"a torn or misplaced cell: header says cell {owner}, operation {number}"
        else:
            what = f"operation {number}"
        return (
            f"cell {cell} at byte {self.layout.offset(cell)} (length {self.layout.cell_size}) "
            f"holds {what}; allowed are the operations {allowed}; read submitted at "
            f"{read.submitted}\n  " + "\n  ".join(self._history[cell])
        )


def cell_content(cell: int, number: int, size: int) -> bytes:
    """A cell as operation `number` writes it: a header, then a pattern that depends on both."""
    head = _HEADER.pack(_MAGIC, cell, number, 0)[:-4]
    head += zlib.crc32(head).to_bytes(4, "little")
    word = (number * 0x9E3779B97F4A7C15 ^ cell * 0xC2B2AE3D27D4EB4F | 1) & (1 << 64) - 1
    return (head + word.to_bytes(8, "little") * (size // 8 + 1))[:size]
