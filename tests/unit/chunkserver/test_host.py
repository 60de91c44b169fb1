# SPDX-License-Identifier: BSD-3-Clause
"""The chunkserver's host: against a real metadata server, with an engine that only remembers."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from gateway.chunkserver.host import Host, Settings
from gateway.errors import BusyError, CopygateError, InvalidArgumentError, UnavailableError
from gateway.mds.client import MdsClient
from gateway.mds.config import MdsConfig
from gateway.mds.server import MdsServer
from gateway.proto import cluster_pb2


class Scrub(NamedTuple):
    """As the engine's."""

    rate: int = 16 << 20
    running: bool = False
    request: int = 0
    queued: int = 0
    completed: int = 0
    started_s: int = 0
    completed_s: int = 0
    checked: int = 0
    skipped: int = 0
    found: int = 0
    bad_blocks: int = 0
    bad_blocks_more: bool = False


class BadBlock(NamedTuple):
    """As the engine's."""

    pool: int
    copyset: int
    chunk: int
    file_id: int
    offset: int | None


SCRUB = Scrub()


class Stats:
    """What the host reads of the engine's counters."""

    def __init__(self) -> None:
        self.capacity_bytes = 1 << 40
        self.free_bytes = 1 << 39
        self.disk_error = 0
        self.scrub = SCRUB


class Engine:
    """Does what it is told, and remembers it."""

    def __init__(self, address: str = "127.0.0.1:6710") -> None:
        self.uuid = str(uuid.uuid4())
        self.address = address
        self.copysets: set[tuple[int, int]] = set()
        self.epochs: list[tuple[int, int]] = []
        self.reclaimed: list[tuple[int, int, int]] = []
        self.refuses: set[int] = set()
        self.stopped = False
        self.counters = Stats()
        self.scrubs: list[int] = []
        self.bad: list[BadBlock] = []

    def add_copyset(self, pool: int, copyset: int) -> None:
        self.copysets.add((pool, copyset))

    def raise_epoch(self, file_id: int, epoch: int) -> None:
        self.epochs.append((file_id, epoch))

    def reclaim(self, pool: int, copyset: int, chunk: int) -> None:
        if chunk in self.refuses:
            raise OSError(5, "input/output error")
        self.reclaimed.append((pool, copyset, chunk))

    def stats(self) -> Stats:
        return self.counters

    def scrub(self, request: int) -> None:
        self.scrubs.append(request)

    def bad_blocks(self) -> list[BadBlock]:
        return self.bad

    def applied(self, pool: int, copyset: int) -> int:
        return 7 if (pool, copyset) in self.copysets else -2

    def stop(self) -> None:
        self.stopped = True


def config(folder: Path, grpc: str = "127.0.0.1:0") -> MdsConfig:
    return MdsConfig(
        store=folder / "metadata.sqlite",
        listen=("127.0.0.1:0",),
        grpc_listen=(grpc,),
        heartbeat_interval_s=0.02,
    )


@pytest_asyncio.fixture
async def mds(tmp_path: Path) -> AsyncIterator[MdsServer]:
    server = MdsServer(config(tmp_path))
    await server.start()
    yield server
    await server.stop()


def host_of(mds: MdsServer, engine: Engine, folder: Path) -> Host:
    settings = Settings(folder=folder, listen="127.0.0.1:0", mds_grpc=mds.grpc_address)
    return Host(settings, engine)  # type: ignore[arg-type]


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to pass within 5 s")


async def status(mds: MdsServer) -> cluster_pb2.ClusterStatusResponse:
    async with MdsClient(mds.grpc_address) as client:
        return await client.status()


async def test_a_host_registers_and_makes_its_copysets(mds: MdsServer, tmp_path: Path) -> None:
    engine = Engine()
    host = host_of(mds, engine, tmp_path)
    await host.start(timeout_s=5)
    found = (await status(mds)).chunkservers[0]
    assert (found.address, found.online, found.id) == (engine.address, True, host.id)
    assert found.used_bytes == 1 << 39
    assert len(engine.copysets) == found.copysets > 0
    await host.stop()
    assert engine.stopped


async def test_epochs_are_raised_once(mds: MdsServer, tmp_path: Path) -> None:
    engine = Engine()
    host = host_of(mds, engine, tmp_path)
    await host.start(timeout_s=5)
    async with MdsClient(mds.grpc_address) as client:
        await client.create_volume("v", 1 << 30)
        volume = await client.info("v")
        epoch = await client.raise_epoch("v")
        await eventually(lambda: (volume.id, epoch) in engine.epochs)
    await asyncio.sleep(0.1)
    assert engine.epochs.count((volume.id, epoch)) == 1
    await host.stop()


async def test_a_disk_error_is_reported_and_nothing_more_is_done(
    mds: MdsServer, tmp_path: Path
) -> None:
    engine = Engine()
    host = host_of(mds, engine, tmp_path)
    await host.start(timeout_s=5)
    engine.counters.disk_error = 5
    found = None
    for _ in range(200):
        found = (await status(mds)).chunkservers[0]
        if found.disk_error:
            break
        await asyncio.sleep(0.01)
    assert found is not None
    assert found.disk_error == "Input/output error"
    await host.stop()


async def test_a_scrub_is_asked_for_and_its_findings_are_reported(
    mds: MdsServer, tmp_path: Path
) -> None:
    engine = Engine()
    host = host_of(mds, engine, tmp_path)
    await host.start(timeout_s=5)
    async with MdsClient(mds.grpc_address) as client:
        asked = await client.start_scrub()
        assert list(asked.chunkserver_ids) == [host.id]
        await eventually(lambda: asked.request in engine.scrubs)
        engine.bad = [BadBlock(1, 2, 3, 4, None), BadBlock(1, 2, 3, 4, 8192)]
        engine.counters.scrub = SCRUB._replace(completed=asked.request, bad_blocks=2)
        for _ in range(500):
            scrub = (await client.status()).chunkservers[0].scrub
            if scrub.completed_request == asked.request:
                break
            await asyncio.sleep(0.01)
    assert scrub.bad_blocks == 2
    assert not scrub.bad[0].HasField("offset")
    assert scrub.bad[1].offset == 8192
    await host.stop()


async def test_a_scrub_that_is_off_is_not_asked_for(mds: MdsServer, tmp_path: Path) -> None:
    engine = Engine()
    host = host_of(mds, engine, tmp_path)
    await host.start(timeout_s=5)
    async with MdsClient(mds.grpc_address) as client:
        await client.start_scrub()
        engine.counters.scrub = SCRUB._replace(rate=0)
        await asyncio.sleep(0.1)
        engine.scrubs.clear()
        await asyncio.sleep(0.1)
        with pytest.raises(BusyError, match="is off"):
            await client.start_scrub()
    assert engine.scrubs == []
    await host.stop()


async def is_online(mds: MdsServer) -> bool:
    try:
        return (await status(mds)).chunkservers[0].online
    except UnavailableError:  # gRPC pauses before it connects again
        return False


async def test_an_mds_that_restarts_is_found_again(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        first = MdsServer(config(tmp_path))
        await first.start()
        stack.push_async_callback(first.stop)
        host = host_of(first, Engine(), tmp_path)
        stack.push_async_callback(host.stop)
        await host.start(timeout_s=5)
        await first.stop()
        await asyncio.sleep(0.1)
        second = MdsServer(config(tmp_path, first.grpc_address))
        await second.start()
        stack.push_async_callback(second.stop)
        for _ in range(500):
            if await is_online(second):
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the host did not come back")


async def test_no_mds_within_the_time_is_an_error(tmp_path: Path) -> None:
    settings = Settings(folder=tmp_path, listen="127.0.0.1:0", mds_grpc="127.0.0.1:1")
    host = Host(settings, Engine())  # type: ignore[arg-type]
    with pytest.raises(UnavailableError):
        await host.start(timeout_s=0.3)
    await host.stop()


async def test_what_the_mds_refuses_ends_the_start(mds: MdsServer, tmp_path: Path) -> None:
    first = host_of(mds, Engine(), tmp_path)
    await first.start(timeout_s=5)
    second = host_of(mds, Engine(), tmp_path / "other")  # the same address, another disk
    with pytest.raises(CopygateError, match="another disk"):
        await second.start(timeout_s=5)
    await second.stop()
    await first.stop()


async def test_a_unix_address_cannot_join_a_cluster(mds: MdsServer, tmp_path: Path) -> None:
    host = host_of(mds, Engine("unix:/run/x"), tmp_path)
    with pytest.raises(InvalidArgumentError):
        await host.start(timeout_s=5)
    await host.stop()


class ReclaimingMds:
    """Asks for chunks to be deleted until it is told that they are."""

    def __init__(self, chunks: list[int]) -> None:
        self.chunks = chunks
        self.confirmed: list[int] = []

    async def register_chunkserver(
        self, _request: cluster_pb2.RegisterChunkserverRequest
    ) -> cluster_pb2.RegisterChunkserverResponse:
        return cluster_pb2.RegisterChunkserverResponse(chunkserver_id=1, heartbeat_interval_ms=10)

    async def heartbeat(
        self, _request: cluster_pb2.HeartbeatRequest
    ) -> cluster_pb2.HeartbeatResponse:
        asked = [
            cluster_pb2.ChunkId(logical_pool_id=1, copyset_id=2, chunk_id=chunk)
            for chunk in self.chunks
        ]
        return cluster_pb2.HeartbeatResponse(reclaim=asked, epoch_revision=1)

    async def reclaim_done(self, request: cluster_pb2.ReclaimDoneRequest) -> None:
        done = [chunk.chunk_id for chunk in request.chunks]
        self.confirmed += done
        self.chunks = [chunk for chunk in self.chunks if chunk not in done]

    async def close(self) -> None:
        pass


async def test_chunks_are_deleted_and_only_those_that_are_gone_confirmed(tmp_path: Path) -> None:
    mds = ReclaimingMds([10, 11, 12])
    engine = Engine()
    engine.refuses = {11}
    settings = Settings(folder=tmp_path, listen="127.0.0.1:0", mds_grpc="127.0.0.1:1")
    host = Host(settings, engine, mds)  # type: ignore[arg-type]
    await host.start(timeout_s=5)
    assert sorted(mds.confirmed) == [10, 12]
    engine.refuses = set()
    await eventually(lambda: mds.chunks == [])
    assert (1, 2, 11) in engine.reclaimed
    await host.stop()
