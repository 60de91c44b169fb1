# SPDX-License-Identifier: BSD-3-Clause
from typing import NamedTuple

class Scrub(NamedTuple):
    rate: int
    running: bool
    request: int
    queued: int
    completed: int
    started_s: int
    completed_s: int
    checked: int
    skipped: int
    found: int
    bad_blocks: int
    bad_blocks_more: bool

class BadBlock(NamedTuple):
    pool: int
    copyset: int
    chunk: int
    file_id: int
    offset: int | None

class Stats(NamedTuple):
    reads: int
    writes: int
    others: int
    overloads: int
    errors: int
    read_bytes: int
    written_bytes: int
    wal_batches: int
    wal_records: int
    wal_bytes: int
    wal_used: int
    wal_capacity: int
    checkpoints: int
    capacity_bytes: int
    free_bytes: int
    copysets: int
    connections: int
    disk_error: int
    scrub: Scrub

def set_log(level: str) -> None: ...

class Chunkserver:
    def __init__(
        self,
        folder: str,
        listen: str,
        *,
        advertise: str | None = None,
        wal_bytes: int = 0,
        memory_bytes: int = 0,
        inflight_max: int = 0,
        reserve_bytes: int = 0,
        scrub_rate: int = 0,
        scrub_period_s: int = 0,
        backend: str = "auto",
    ) -> None: ...
    @property
    def uuid(self) -> str: ...
    @property
    def address(self) -> str: ...
    def add_copyset(self, pool: int, copyset: int) -> None: ...
    def raise_epoch(self, file_id: int, epoch: int) -> None: ...
    def reclaim(self, pool: int, copyset: int, chunk: int) -> None: ...
    def stats(self) -> Stats: ...
    def scrub(self, request: int) -> None: ...
    def bad_blocks(self) -> list[BadBlock]: ...
    def applied(self, pool: int, copyset: int) -> int: ...
    def stop(self) -> None: ...
