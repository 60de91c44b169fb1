# SPDX-License-Identifier: BSD-3-Clause
"""What the metadata server needs of a store: ordered keys in key spaces, and transactions.

A transaction is a function of a Transaction. The store runs it, makes what it wrote durable, and
only then returns its result; a function that raises changes nothing. A store whose transactions can
conflict (etcd) runs the function again, so it must not have other effects.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from google.protobuf.message import Message

T = TypeVar("T")
M = TypeVar("M", bound=Message)


class Space(enum.IntEnum):
    """Key spaces. Numbers are on disk: never reuse one."""

    COUNTERS = 1  # name -> u64: the next ids, and totals
    FILES = 2  # parent u64, name -> FileInfo
    SEGMENTS = 3  # file u64, offset u64 -> PageFileSegment
    SESSIONS = 4  # file u64, session id -> SessionRecord
    CHUNKSERVERS = 5  # id u32 -> ChunkserverRecord
    CHUNKSERVER_UUIDS = 6  # uuid -> id u32
    COPYSETS = 7  # pool u32, copyset u32 -> CopysetRecord
    RECLAIM_BEFORE_2 = 8  # of stores before schema 2: chunkserver u32, chunk u64 -> ChunkId
    EPOCHS = 9  # revision u64 -> EpochRecord
    EPOCH_REVISIONS = 10  # file u64 -> revision u64
    ALLOCATED = 11  # file u64, pool u32 -> bytes u64
    PURGES = 12  # file u64 -> its key in FILES: volumes that are being purged
    SHARED_STATES = 13  # file u64 -> SharedStateRecord
    EXPORTS = 14  # target's name -> StoredExport
    EXPORTED_FILES = 15  # file u64, target's name -> nothing
    POOLS = 16  # pool u32 -> PoolRecord
    RECLAIM = 17  # pool u32, copyset u32, chunk u64 -> ChunkId: chunks to delete
    CHANGES = 18  # pool u32, copyset u32 -> ChangeRecord
    REMOVALS = 19  # chunkserver u32, pool u32, copyset u32, member u64 -> RemovalRecord


class Transaction(Protocol):
    def get(self, space: Space, key: bytes) -> bytes | None: ...

    def put(self, space: Space, key: bytes, value: bytes) -> None: ...

    def delete(self, space: Space, key: bytes) -> None: ...

    def scan(
        self, space: Space, prefix: bytes = b"", *, after: bytes | None = None, limit: int = -1
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs whose key has the prefix, in the order of the keys; only keys above ``after``."""
        ...


class Store(Protocol):
    async def run(self, function: Callable[[Transaction], T]) -> T:
        """Runs a transaction; durable when it returns. Raises what the function raises, or
        StorageError."""
        ...

    async def close(self) -> None: ...


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


def get_u64(txn: Transaction, space: Space, key: bytes) -> int:
    """The number at the key; 0 if there is none."""
    value = txn.get(space, key)
    return int.from_bytes(value, "big") if value is not None else 0


def add_u64(txn: Transaction, space: Space, key: bytes, delta: int) -> int:
    """Adds to the number at the key; returns the new one."""
    value = get_u64(txn, space, key) + delta
    txn.put(space, key, u64(value))
    return value


def next_ids(txn: Transaction, counter: str, count: int = 1, first: int = 1) -> range:
    """Takes ``count`` ids that were never taken before; the very first one is ``first``."""
    key = counter.encode()
    start = max(get_u64(txn, Space.COUNTERS, key), first)
    txn.put(Space.COUNTERS, key, u64(start + count))
    return range(start, start + count)


def get_record(txn: Transaction, space: Space, key: bytes, kind: type[M]) -> M | None:
    value = txn.get(space, key)
    return parse(kind, value) if value is not None else None


def parse(kind: type[M], value: bytes) -> M:
    record = kind()
    record.ParseFromString(value)
    return record


def put_record(txn: Transaction, space: Space, key: bytes, record: Message) -> None:
    txn.put(space, key, record.SerializeToString())
