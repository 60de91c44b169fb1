# SPDX-License-Identifier: BSD-3-Clause
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple, Self
from uuid import UUID

from typing_extensions import Buffer

class Extent(NamedTuple):
    offset: int
    length: int
    hole: bool
    zero: bool

class VolumeInfo(NamedTuple):
    size: int
    volume_id: int
    uuid: UUID
    epoch: int
    block_size: int
    chunk_size: int
    segment_size: int
    stripe_unit: int
    stripe_count: int
    max_io: int
    read_only: bool
    native: bool

class VolumeStats(NamedTuple):
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
    inflight: int

def version() -> str: ...
def error_from_errno(
    number: int, context: Mapping[str, object] | None = None, message: str = "", hint: str = ""
) -> Exception: ...

class Client:
    @property
    def mds(self) -> str: ...
    @property
    def owner(self) -> str: ...
    def __init__(
        self,
        mds: str,
        *,
        owner: str = "copygate",
        root_password: str | None = None,
        log_level: str | None = "warning",
    ) -> None: ...
    def open_volume(
        self,
        path: str,
        *,
        read_only: bool = False,
        shared: bool = False,
        inflight_max: int = 0,
        io_timeout: float | None = None,
        open_timeout: float | None = None,
    ) -> Volume: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

class Volume:
    @property
    def client(self) -> Client: ...
    @property
    def path(self) -> str: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    def info(self) -> VolumeInfo: ...
    def stats(self) -> VolumeStats: ...
    def pread(self, length: int, offset: int) -> bytes: ...
    def readinto(self, buffer: Buffer, offset: int) -> int: ...
    def pwrite(self, data: Buffer, offset: int) -> int: ...
    def write_zeroes(
        self, length: int, offset: int, *, no_hole: bool = False, fast: bool = False
    ) -> None: ...
    def trim(self, length: int, offset: int) -> None: ...
    def flush(self) -> None: ...
    def compare_and_write(self, compare: Buffer, data: Buffer, offset: int) -> int | None: ...
    def block_status(self, length: int, offset: int) -> list[Extent]: ...
