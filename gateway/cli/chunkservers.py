# SPDX-License-Identifier: BSD-3-Clause
"""The chunkservers of `copygate up --replicas N`: one process and one folder each, as children that
are started again when they die."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.app import split_address
from gateway.cli.child import Launch, Supervisor, end_orphan
from gateway.errors import CopygateError, InvalidArgumentError, UnavailableError

if TYPE_CHECKING:
    from gateway.mds.client import MdsClient
    from gateway.proto.cluster_pb2 import ChunkserverStatus

log = logging.getLogger("gateway.up")

STOP_TIMEOUT_S = 120.0  # a checkpoint syncs every chunk file that was written
POLL_S = 0.05
PORT_MAX = 65535


@dataclass(frozen=True)
class Settings:
    """What they have in common. The first listens at ``listen``, the others at the ports behind."""

    folder: Path
    count: int
    listen: str
    mds: str
    mds_grpc: str
    wal_bytes: int
    scrub_rate: int | None
    log_level: str
    allow_remote: bool


def addresses(listen: str, count: int) -> list[str]:
    """Where each listens; port 0 picks one for each. Raises InvalidArgumentError."""
    host, port = split_address(listen, "--chunkserver-listen")
    if port + count - 1 > PORT_MAX:
        raise InvalidArgumentError(
            f"--chunkserver-listen {listen}: {count} chunkservers need as many ports, and the "
            f"last port is {PORT_MAX}",
            hint=f"give {PORT_MAX - count + 1} at most",
        )
    return [f"{host}:{port + n if port else 0}" for n in range(count)]


class Chunkservers:
    """Start them, wait until they are ready, stop them."""

    def __init__(self, settings: Settings, mds: MdsClient) -> None:
        self._settings = settings
        self._mds = mds
        # While we live nothing comes out of it; when we die, however, they see its end.
        self._leash, self._hold = os.pipe()
        self._supervisors = [
            self._supervise(number, address)
            for number, address in enumerate(addresses(settings.listen, settings.count), 1)
        ]

    async def start(self, timeout_s: float) -> list[tuple[str, int | None]]:
        """Starts them, and returns the addresses and pids of those that serve when every copyset
        has a leader: if not all of them start, too, as long as these are few enough. In a new store
        all have to, or there are no copysets. Raises a CopygateError when it cannot come to
        that."""
        deadline = time.monotonic() + timeout_s
        new = not (await self._mds.status()).copysets.copysets
        for number, supervisor in enumerate(self._supervisors, 1):
            end_orphan(self._pidfile(number), supervisor.name)
            supervisor.keep_trying()
            if new:  # so that their ids are in the order of the folders
                with suppress(TimeoutError):
                    async with asyncio.timeout(timeout_s):
                        await supervisor.settled.wait()
                self._check(dispensable=0)
        while True:
            status = await self._mds.status()
            if status.copysets.copysets and not status.copysets.leaderless:
                return self._ours(status.chunkservers)
            made = bool(status.copysets.copysets)
            failures = self._check(dispensable=(self._settings.count - 1) // 2 if made else 0)
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"not every copyset has a leader after {timeout_s:.0f} s",
                    context={
                        "copysets": status.copysets.copysets,
                        "without a leader": status.copysets.leaderless,
                    },
                    hint=failures[0] if failures else "the log above says what they do",
                )
            await asyncio.sleep(POLL_S)

    def _check(self, dispensable: int) -> list[str]:
        """Why some do not start; raises if they are more than ``dispensable``."""
        failures = [s.failure for s in self._supervisors if s.failure and s.settled.is_set()]
        if len(failures) > dispensable:
            raise CopygateError(
                failures[0], hint="the log above says why; what is stored is not changed"
            )
        return failures

    async def stop(self) -> None:
        """Ends them in order, all at once."""
        await asyncio.gather(*(supervisor.stop() for supervisor in self._supervisors))
        for number in range(1, self._settings.count + 1):
            self._pidfile(number).unlink(missing_ok=True)
        os.close(self._leash)
        os.close(self._hold)

    def _data(self, number: int) -> Path:
        return self._settings.folder / f"chunkserver-{number}"

    def _pidfile(self, number: int) -> Path:
        return self._settings.folder / f"chunkserver-{number}.pid"

    def _ours(self, servers: Iterable[ChunkserverStatus]) -> list[tuple[str, int | None]]:
        address = {s.data_directory: s.address for s in servers if s.online}
        return [
            (address[str(self._data(number))], supervisor.pid)
            for number, supervisor in enumerate(self._supervisors, 1)
            if str(self._data(number)) in address
        ]

    def _command(self, number: int, address: str) -> list[str]:
        settings = self._settings
        command = [sys.executable, "-P", "-m", "gateway.cli.main"]
        command += ["--mds", settings.mds, "--mds-grpc", settings.mds_grpc]
        command += ["--log-level", settings.log_level, "chunkserver"]
        command += ["--data", str(self._data(number)), "--listen", address]
        command += ["--zone", f"zone-{number}"]
        if settings.wal_bytes:
            command += ["--wal-size", str(settings.wal_bytes)]
        if settings.scrub_rate is not None:
            command += ["--scrub-rate", str(settings.scrub_rate)]
        if settings.allow_remote:
            command.append("--allow-remote")
        return [*command, "--child", "--pidfile", str(self._pidfile(number))]

    def _supervise(self, number: int, address: str) -> Supervisor:
        name = f"chunkserver {number}"

        async def ready(process: asyncio.subprocess.Process) -> None:
            began = time.monotonic()
            self._pidfile(number).write_text(f"{process.pid}\n", encoding="ascii")
            while True:
                if await self._reports(number, began):
                    return
                await asyncio.sleep(POLL_S)

        return Supervisor(
            name,
            launch=lambda: Launch(
                self._command(number, address), dict(os.environ), stdin=self._leash
            ),
            ready=ready,
            relay=lambda line: _relay(number, line),
            stop_timeout_s=STOP_TIMEOUT_S,
        )

    async def _reports(self, number: int, since: float) -> bool:
        """Whether the MDS has heard of it since then."""
        folder = str(self._data(number))
        with suppress(UnavailableError):
            for server in (await self._mds.status()).chunkservers:
                if server.data_directory == folder and server.HasField("last_heartbeat_ms_ago"):
                    ago_s = server.last_heartbeat_ms_ago / 1000
                    if ago_s < time.monotonic() - since:
                        return True
        return False


# As the child's own log has it, and as the engine does.
_LINE = re.compile(r"(?:\S+Z|copygate:) (DEBUG|INFO|WARNING|ERROR|CRITICAL)(?:: | \S+ )(.*)", re.I)


def _relay(number: int, line: str) -> None:
    """Passes a line of a child's log on; ours says when."""
    found = _LINE.fullmatch(line)
    level, text = found.groups() if found else ("WARNING", line)
    log.log(logging.getLevelNamesMapping()[level.upper()], "chunkserver %d: %s", number, text)
