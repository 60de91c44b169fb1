# SPDX-License-Identifier: BSD-3-Clause
"""Random IO through libnbd against a byte array in memory."""

import random
from typing import Any

from support.libnbd import nbd


class RandomIO:
    """One connection that owns `length` bytes from `start` on, and knows what they hold.

    A trim leaves whole blocks of 4 KiB as zeros and says nothing of the partial ones at its ends;
    the store keeps those, or zeroes them: either is read back once and then must stay.
    """

    def __init__(
        self, handle: Any, start: int, length: int, *, seed: int, longest: int = 300_000
    ) -> None:
        self.handle = handle
        self.reads = self.writes = self.zeroes = self.trims = 0
        self._start = start
        self._random = random.Random(seed)
        self._longest = min(longest, length)
        self._model = bytearray(length)
        self.handle.zero(length, start)

    def _range(self) -> tuple[int, int]:
        pick = self._random
        shape = pick.randrange(4)
        if shape == 0:
            length = pick.randint(1, 5000)
        elif shape == 1:
            length = pick.choice((512, 4096, 8192, 65536, 4095, 4097))
        else:
            length = pick.randint(1, self._longest)
        length = min(length, len(self._model))
        offset = pick.randint(0, len(self._model) - length)
        if shape == 1:
            offset = min(-(-(self._start + offset) // 512) * 512 - self._start, offset)
            offset = max(offset, 0)
        return offset, length

    def step(self) -> None:
        """One random operation; raises AssertionError if a read differs from the model."""
        offset, length = self._range()
        action = self._random.randrange(10)
        where = self._start + offset
        if action < 4:
            data = self._random.randbytes(length)
            flags = nbd.CMD_FLAG_FUA if action == 0 else 0
            self.handle.pwrite(data, where, flags)
            self._model[offset : offset + length] = data
            self.writes += 1
        elif action < 6:
            flags = self._random.choice((0, nbd.CMD_FLAG_NO_HOLE))
            self.handle.zero(length, where, flags)
            self._model[offset : offset + length] = bytes(length)
            self.zeroes += 1
        elif action == 6:
            self._trim(offset, length)
        else:
            self._check(offset, length)

    def _trim(self, offset: int, length: int) -> None:
        where = self._start + offset
        self.handle.trim(length, where)
        self.trims += 1
        first, last = -(-where // 4096) * 4096, (where + length) // 4096 * 4096
        if first >= last:
            edges = [(offset, length)]
        else:
            begin, end = first - self._start, last - self._start
            self._model[begin:end] = bytes(end - begin)
            edges = [(offset, begin - offset), (end, offset + length - end)]
        for begin, size in edges:
            if size == 0:
                continue
            found = self.handle.pread(size, self._start + begin)
            assert found in (bytes(size), bytes(self._model[begin : begin + size])), (
                f"after a trim of {length} bytes at {where}, the partial block of {size} bytes at "
                f"{self._start + begin} is neither unchanged nor zero"
            )
            self._model[begin : begin + size] = found

    def _check(self, offset: int, length: int) -> None:
        found = self.handle.pread(length, self._start + offset)
        self.reads += 1
        expected = self._model[offset : offset + length]
        if found != expected:
            bad = next(i for i in range(length) if found[i] != expected[i])
            raise AssertionError(
                f"read of {length} bytes at {self._start + offset}: first difference at byte "
                f"{self._start + offset + bad}: found {bytes(found[bad : bad + 16]).hex()}, "
                f"expected {bytes(expected[bad : bad + 16]).hex()}"
            )

    def check_all(self) -> None:
        """Reads everything back."""
        for offset in range(0, len(self._model), 1 << 20):
            self._check(offset, min(1 << 20, len(self._model) - offset))
