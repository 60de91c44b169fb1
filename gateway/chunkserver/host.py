# SPDX-License-Identifier: BSD-3-Clause
"""What Python decides for a chunkserver: it joins the cluster, reports, and does what it is told.

The C engine serves the data path on its own thread. This side registers the disk with the MDS,
makes the replicas that are assigned to it (gateway/chunkserver/replicas.py), raises epochs, deletes
chunks that were given up, and reports in heartbeats: every second, and at once when a copyset has
another leader or other members. An MDS that does not answer stops none of the IO: the host keeps
trying.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from gateway.chunkserver import replicas, reports
from gateway.errors import (
    CopygateError,
    ExistsError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from gateway.mds.client import MdsClient
from gateway.proto import cluster_pb2

if TYPE_CHECKING:
    from gateway.chunkserver.engine import BadBlock, Copyset, Stats

log = logging.getLogger("gateway.chunkserver")

CALL_TIMEOUT_S = 5.0
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 5.0
# Deleting a chunk is a durable write: a few at once keep the log's group commit busy.
RECLAIM_PARALLEL = 4
RECLAIM_BATCH = 256
# An election concerns many copysets: what changes within this time goes into one report.
REPORT_GAP_S = 0.05
# An address or a disk is free for us some heartbeats after another one was silent: for so long a
# chunkserver that was wiped and started again meets itself.
TAKEN_S = 8.0
SCRUB_RATE = 16 << 20
SCRUB_PERIOD_S = 7 * 86400

_T = TypeVar("_T")


class Engine(replicas.Engine, Protocol):
    """The C engine, as gateway.chunkserver.engine has it; tests bring another."""

    @property
    def uuid(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def event_fd(self) -> int: ...
    def raise_epoch(self, file_id: int, epoch: int) -> None: ...
    def reclaim(self, pool: int, copyset: int, chunk: int) -> None: ...
    def stats(self) -> Stats: ...
    def scrub(self, request: int) -> None: ...
    def bad_blocks(self) -> Sequence[BadBlock]: ...
    def stop(self) -> None: ...


@dataclass(frozen=True)
class Settings:
    """A chunkserver's options; sizes in bytes, 0 is the engine's default. `scrub_rate` and
    `copy_rate` are in bytes per second; a `scrub_rate` of 0 turns the scrub off."""

    folder: Path
    listen: str
    mds_grpc: str
    advertise: str | None = None
    zone: str | None = None
    wal_bytes: int = 0
    memory_bytes: int = 0
    inflight_max: int = 0
    reserve_bytes: int = 0
    scrub_rate: int = SCRUB_RATE
    scrub_period_s: int = SCRUB_PERIOD_S
    copy_rate: int = 0
    backend: str = "auto"
    log_level: str = "info"


def open_engine(settings: Settings) -> Engine:
    """Starts the C engine on the folder; blocks while it replays its log."""
    from gateway.chunkserver import engine  # noqa: PLC0415 - the compiled part

    try:
        settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InvalidArgumentError(
            f"cannot make the chunkserver's folder: {error.strerror}",
            context={"folder": settings.folder},
            hint="use a folder that this user may write",
        ) from error
    engine.set_log(settings.log_level)
    return engine.Chunkserver(
        str(settings.folder),
        settings.listen,
        advertise=settings.advertise,
        wal_bytes=settings.wal_bytes,
        memory_bytes=settings.memory_bytes,
        inflight_max=settings.inflight_max,
        reserve_bytes=settings.reserve_bytes,
        scrub_rate=settings.scrub_rate,
        scrub_period_s=settings.scrub_period_s,
        copy_rate=settings.copy_rate,
        backend=settings.backend,
    )


class Host:
    """One chunkserver: `start` it, let it run, `stop` it."""

    def __init__(self, settings: Settings, engine: Engine, mds: MdsClient | None = None) -> None:
        self._settings = settings
        self._engine = engine
        self._mds = (
            mds if mds is not None else MdsClient(settings.mds_grpc, timeout_s=CALL_TIMEOUT_S)
        )
        self._id = 0
        self._interval_s = 1.0
        self._replicas = replicas.Replicas(engine, settings.folder)
        self._epoch_revision: int | None = None
        self._assignment_revision: int | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._chores: asyncio.Task[None] | None = None
        self._reported_error = 0

    @property
    def id(self) -> int:
        """The id that the MDS gave; 0 before it is registered."""
        return self._id

    @property
    def address(self) -> str:
        """Where the data path is served."""
        return self._settings.advertise or self._engine.address

    async def start(self, *, timeout_s: float | None = None) -> None:
        """Serves what it held before, registers with the MDS, begins to send heartbeats.

        Tries for `timeout_s` seconds, without end when that is None.
        """
        await asyncio.to_thread(self._replicas.restore)
        if self._replicas.held:
            log.info("serving %d copysets as they were assigned before", self._replicas.held)
        asyncio.get_running_loop().add_reader(self._engine.event_fd, self._note_change)
        try:
            async with asyncio.timeout(timeout_s):
                await self._register()
        except TimeoutError as error:
            raise UnavailableError(
                "the MDS does not answer",
                context={"mds": self._settings.mds_grpc, "seconds": timeout_s},
            ) from error
        self._task = asyncio.create_task(self._heartbeats(), name="chunkserver heartbeats")

    def _note_change(self) -> None:
        os.read(self._engine.event_fd, 8)
        self._changed.set()

    async def run(self) -> None:
        """Waits until the heartbeats end, which happens only through `stop` or a defect."""
        if self._task is not None:
            await self._task

    async def stop(self) -> None:
        """Ends the heartbeats and the engine, which finishes what is in flight and checkpoints."""
        asyncio.get_running_loop().remove_reader(self._engine.event_fd)
        for task in (self._task, self._chores):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await self._mds.close()
        await asyncio.to_thread(self._engine.stop)

    async def _register(self) -> None:
        stats = self._engine.stats()
        ip, port = _split(self.address)
        request = cluster_pb2.RegisterChunkserverRequest(
            uuid=self._engine.uuid,
            ip=ip,
            port=port,
            data_directory=str(self._settings.folder),
            capacity_bytes=stats.capacity_bytes,
        )
        if self._settings.zone:
            request.zone = self._settings.zone
        response = await self._persist(lambda: self._mds.register_chunkserver(request), TAKEN_S)
        self._id = response.chunkserver_id
        self._interval_s = response.heartbeat_interval_ms / 1000
        self._assignment_revision = None
        if await asyncio.to_thread(self._replicas.assign, self._id, response.copysets):
            self._assignment_revision = response.assignment_revision
        log.info(
            "registered as chunkserver %d, %s, %d copysets",
            self._id,
            self.address,
            len(response.copysets),
        )
        # The MDS hands out epochs and chunks to reclaim in heartbeats: take them before serving.
        await self._persist(self._beat)
        if self._chores is not None:
            await self._chores

    async def _persist(self, call: Callable[[], Awaitable[_T]], patience_s: float = 0) -> _T:
        """Calls the MDS until it answers; what it refuses is raised, but for what another one has:
        that only after ``patience_s``."""
        pause = RETRY_FIRST_S
        told = False
        began = time.monotonic()
        while True:
            try:
                return await call()
            except (ExistsError, UnavailableError) as error:
                if isinstance(error, ExistsError) and time.monotonic() - began > patience_s:
                    raise
                if not told:
                    log.warning("%s: trying again", error)
                    told = True
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - only spreads
            pause = min(pause * 2, RETRY_MAX_S)

    async def _until_due(self) -> None:
        """Waits for the time of the next heartbeat, or for something that the MDS should know. One
        that has no copysets asks for them more often."""
        # Spread, so that a cluster's chunkservers do not all report in the same moment.
        interval_s = self._interval_s if self._replicas.held else self._interval_s / 5
        pause = interval_s * random.uniform(0.9, 1.1)  # noqa: S311
        began = time.monotonic()
        # Not wait_for: that of Python 3.11 loses a cancellation that comes together with the event.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._changed.wait()
        await asyncio.sleep(max(0, min(REPORT_GAP_S, pause) - (time.monotonic() - began)))
        self._changed.clear()

    async def _heartbeats(self) -> None:
        silent = False
        while True:
            await self._until_due()
            try:
                await self._beat()
            except NotFoundError:
                await self._register_again()
                continue
            except UnavailableError as error:
                if not silent:
                    log.warning("no heartbeat: %s", error)
                    silent = True
                continue
            except (OSError, CopygateError) as error:
                log.error("what the MDS asked for failed: %s", error)
                continue
            if silent:
                log.info("the MDS answers again")
                silent = False

    async def _register_again(self) -> None:
        log.warning("the MDS does not know this chunkserver: registering again")
        try:
            await self._register()
        except (OSError, CopygateError) as error:
            log.error("%s", error)

    async def _beat(self) -> None:
        stats, copysets, bad = await asyncio.to_thread(self._look)
        if stats.disk_error and stats.disk_error != self._reported_error:
            log.error("the disk is retired: %s", os.strerror(stats.disk_error))
        self._reported_error = stats.disk_error
        request = cluster_pb2.HeartbeatRequest(
            chunkserver_id=self._id,
            uuid=self._engine.uuid,
            capacity_bytes=stats.capacity_bytes,
            used_bytes=max(0, stats.capacity_bytes - stats.free_bytes),
            copysets=[reports.copyset_report(c) for c in copysets if c.member],
            disk_error=os.strerror(stats.disk_error) if stats.disk_error else "",
            scrub=reports.scrub_report(stats, bad),
            epoch_revision=self._epoch_revision,
            assignment_revision=self._assignment_revision,
        )
        response = await self._mds.heartbeat(request)
        if stats.disk_error:
            return
        await self._obey(response)
        if response.scrub_request and stats.scrub.rate:
            await asyncio.to_thread(self._engine.scrub, response.scrub_request)
        if self._chores is None or self._chores.done():
            self._chores = asyncio.create_task(self._do_chores(response), name="chunkserver chores")

    def _look(self) -> tuple[Stats, list[Copyset], Sequence[BadBlock]]:
        stats = self._engine.stats()
        bad = self._engine.bad_blocks() if stats.scrub.bad_blocks else ()
        return stats, self._engine.copysets(), bad

    async def _obey(self, response: cluster_pb2.HeartbeatResponse) -> None:
        """Does what the MDS says about replicas."""
        # What has to go first: the copyset may be assigned again, to another member.
        await asyncio.to_thread(self._replicas.remove, response.removals)
        news = response.assignment_revision != self._assignment_revision
        if news and await asyncio.to_thread(self._replicas.assign, self._id, response.copysets):
            self._assignment_revision = response.assignment_revision
            self._changed.set()  # others wait for what was made
        if response.steps:
            await asyncio.to_thread(self._replicas.change, response.steps)

    async def _do_chores(self, response: cluster_pb2.HeartbeatResponse) -> None:
        """What may take its time while heartbeats go on. What fails is asked for again."""
        try:
            await self._raise_epochs(response)
            await self._reclaim(list(response.reclaim)[:RECLAIM_BATCH])
        except (OSError, CopygateError) as error:
            log.error("what the MDS asked for failed: %s", error)

    async def _raise_epochs(self, response: cluster_pb2.HeartbeatResponse) -> None:
        for item in response.epochs:
            try:
                await asyncio.to_thread(self._engine.raise_epoch, item.file_id, item.epoch)
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise
                # Some copyset has no leader now, or its leader has not raised it yet.
                log.debug("the epoch of volume %d is not everywhere yet", item.file_id)
                return
        # Only now: the MDS does not send again what it was told is durable here.
        self._epoch_revision = response.epoch_revision

    async def _reclaim(self, chunks: list[cluster_pb2.ChunkId]) -> None:
        if not chunks:
            return
        done: list[cluster_pb2.ChunkId] = []
        slots = asyncio.Semaphore(RECLAIM_PARALLEL)

        async def one(chunk: cluster_pb2.ChunkId) -> None:
            async with slots:
                try:
                    await asyncio.to_thread(
                        self._engine.reclaim,
                        chunk.logical_pool_id,
                        chunk.copyset_id,
                        chunk.chunk_id,
                    )
                except (OSError, CopygateError) as error:
                    # The MDS names it again in a later heartbeat, to whoever leads then.
                    if getattr(error, "errno", None) != errno.EPERM:
                        log.warning("cannot delete chunk %d: %s", chunk.chunk_id, error)
                else:
                    done.append(chunk)

        await asyncio.gather(*(one(chunk) for chunk in chunks))
        if done:
            request = cluster_pb2.ReclaimDoneRequest(chunkserver_id=self._id, chunks=done)
            await self._mds.reclaim_done(request)
            log.info("deleted %d chunks that were given up", len(done))


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InvalidArgumentError(
            "a chunkserver is reached over TCP by its cluster",
            context={"address": address},
            hint="give --listen a HOST:PORT",
        )
    return host, int(port)
