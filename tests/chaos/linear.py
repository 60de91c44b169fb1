# SPDX-License-Identifier: BSD-3-Clause
"""Is the history of a block one of a register? Pure: operations in, what is wrong out.

All values written to a block are different, so it is known which write a read has seen, and that
decides it without a search (Gibbons and Korach, "Testing shared memories", 1997, section 4). Take
for each value the earliest response f and the latest invocation s among its write and its reads. If
f < s the value was surely there from f to s (a forward zone), else at some moment between s and f
(a backward zone). A history is linearizable if and only if every read has seen a value that was
written or the first one, none ended before that write began, no two forward zones overlap, and no
backward zone lies inside a forward one. Sorting is all that it costs.

A write whose outcome is unknown and whose value nobody has seen need not have taken place.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

FOREVER = 1 << 63
_ALWAYS = -1


class Op(NamedTuple):
    """One operation on one block, times in nanoseconds of one clock.

    Of a write, `returned` None says that nobody was told that it took place: it may have, or may
    yet, but not after `settled`. A read that failed is no operation.
    """

    write: bool
    value: int
    invoked: int
    returned: int | None
    settled: int = FOREVER


class _Zone:
    """What the operations with one value say about when it was there."""

    __slots__ = ("first_end", "last_start", "seen", "value", "written")

    def __init__(self, value: int) -> None:
        self.value = value
        self.written: int | None = None
        self.first_end = FOREVER
        self.last_start = _ALWAYS
        self.seen = False

    def add(self, op: Op) -> None:
        end = op.returned
        if op.write:
            assert self.written is None, f"value {self.value:#x} was written twice"
            self.written = op.invoked
            self.seen = self.seen or end is not None
            end = op.settled if end is None else end
        else:
            assert end is not None, "a read without an end is no operation"
            self.seen = True
        self.first_end = min(self.first_end, end)
        self.last_start = max(self.last_start, op.invoked)

    @property
    def forward(self) -> bool:
        return self.first_end < self.last_start

    def __str__(self) -> str:
        kind = "from" if self.forward else "once between"
        begin, end = sorted((self.first_end, self.last_start))
        return f"{self.value:#x} (there {kind} {begin} to {end})"


def _zones(ops: Iterable[Op], initial: int) -> dict[int, _Zone]:
    first = _Zone(initial)
    first.written = first.first_end = _ALWAYS
    zones = {initial: first}
    for op in ops:
        assert op.returned is None or op.returned >= op.invoked, f"ends before it begins: {op}"
        zone = zones.get(op.value)
        if zone is None:
            zone = zones[op.value] = _Zone(op.value)
        zone.add(op)
    return zones


def check_block(ops: Iterable[Op], initial: int = 0) -> str | None:
    """Returns None if the operations on one block are linearizable, else why they are not."""
    zones = [zone for zone in _zones(ops, initial).values() if zone.seen or zone.value == initial]
    for zone in zones:
        if zone.written is None:
            return f"value {zone.value:#x} was read and never written"
        if zone.first_end < zone.written:
            return f"value {zone.value:#x} was read by {zone.first_end}, before it was written"
    return _overlap(zones)


def _overlap(zones: Sequence[_Zone]) -> str | None:
    # One sweep in the order of beginnings. As long as no forward zones overlap, the last of them to
    # have begun is the only one that what begins next can touch.
    inside: _Zone | None = None
    for zone in sorted(zones, key=lambda z: (min(z.first_end, z.last_start), not z.forward)):
        begin, end = sorted((zone.first_end, zone.last_start))
        if inside is not None and begin < inside.last_start:
            if zone.forward:
                return f"values were there at once: {inside} and {zone}"
            if inside.first_end < begin and end < inside.last_start:
                return f"a value had to be there while another was: {zone} inside {inside}"
        if zone.forward:
            inside = zone
    return None


def check(
    history: Mapping[int, Iterable[Op]], initial: Mapping[int, int] | None = None
) -> list[str]:
    """Checks each block for itself (linearizability is local); returns what is wrong, by block.

    `initial`: what blocks held before; 0 where it says nothing.
    """
    found = []
    for block, ops in sorted(history.items()):
        if problem := check_block(ops, (initial or {}).get(block, 0)):
            found.append(f"block {block}: {problem}")
    return found


def still_in_doubt(ops: Sequence[Op]) -> list[Op]:
    """The writes that may yet take place: nobody was told that they did, and nobody saw it."""
    seen = {op.value for op in ops if not op.write}
    return [op for op in ops if op.write and op.returned is None and op.value not in seen]
