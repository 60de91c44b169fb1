# SPDX-License-Identifier: BSD-3-Clause
from collections.abc import Sequence
from typing import Literal, NamedTuple

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

class Member(NamedTuple):
    id: int
    learner: bool

class Progress(NamedTuple):
    id: int
    learner: bool
    match: int
    heard_ms_ago: int
    copying: bool

class Copyset(NamedTuple):
    pool: int
    copyset: int
    member: int
    role: str
    ready: bool
    term: int
    leader: int
    last_index: int
    durable_index: int
    commit_index: int
    applied_index: int
    members: tuple[Member, ...]
    members_index: int
    members_committed: bool
    progress: tuple[Progress, ...]

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
    leaders: int
    connections: int
    disk_error: int
    scrub: Scrub
    raft_frames_sent: int
    raft_messages_sent: int
    raft_bytes_sent: int
    raft_frames_received: int
    raft_messages_received: int
    raft_bytes_received: int
    raft_messages_dropped: int
    raft_frames_refused: int
    raft_messages_strayed: int
    peers_down: int
    log_entries: int
    log_bytes: int
    log_fetches: int
    copies_receiving: int
    copies_sending: int
    copies_completed: int
    copied_bytes: int
    mended_blocks: int
    mended_chunks: int

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
        copy_rate: int = 0,
        backend: str = "auto",
    ) -> None: ...
    @property
    def uuid(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def event_fd(self) -> int: ...
    def set_peer(self, chunkserver: int, address: str) -> None: ...
    def add_copyset(
        self, pool: int, copyset: int, *, member: int, founders: Sequence[int] = ()
    ) -> None: ...
    def remove_copyset(self, pool: int, copyset: int, *, member: int) -> None: ...
    def change_members(
        self,
        pool: int,
        copyset: int,
        change: Literal["add-learner", "promote", "remove"],
        member: int,
    ) -> None: ...
    def transfer(self, pool: int, copyset: int, member: int) -> None: ...
    def copysets(self) -> list[Copyset]: ...
    def raise_epoch(self, file_id: int, epoch: int) -> None: ...
    def reclaim(self, pool: int, copyset: int, chunk: int) -> None: ...
    def stats(self) -> Stats: ...
    def scrub(self, request: int) -> None: ...
    def bad_blocks(self) -> list[BadBlock]: ...
    def stop(self) -> None: ...
