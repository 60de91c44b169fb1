# SPDX-License-Identifier: BSD-3-Clause
"""A transaction on a dictionary, for tests of what runs inside transactions."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from gateway.mds.store import Space, Transaction

T = TypeVar("T")


class MemoryTransaction:
    """Reads and writes a dictionary."""

    def __init__(self, data: dict[tuple[int, bytes], bytes]) -> None:
        self.data = data

    def get(self, space: Space, key: bytes) -> bytes | None:
        return self.data.get((int(space), key))

    def put(self, space: Space, key: bytes, value: bytes) -> None:
        self.data[(int(space), key)] = value

    def delete(self, space: Space, key: bytes) -> None:
        self.data.pop((int(space), key), None)

    def scan(
        self, space: Space, prefix: bytes = b"", *, after: bytes | None = None, limit: int = -1
    ) -> Iterator[tuple[bytes, bytes]]:
        keys = sorted(
            key
            for number, key in self.data
            if number == int(space) and key.startswith(prefix) and (after is None or key > after)
        )
        return iter(
            [(key, self.data[(int(space), key)]) for key in keys[: None if limit < 0 else limit]]
        )


class MemoryStore:
    """Keeps what a transaction wrote unless it raised."""

    def __init__(self) -> None:
        self.data: dict[tuple[int, bytes], bytes] = {}

    def run(self, function: Callable[[Transaction], T]) -> T:
        trial = dict(self.data)
        result = function(MemoryTransaction(trial))
        self.data = trial
        return result
