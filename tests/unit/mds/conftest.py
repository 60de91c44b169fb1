# SPDX-License-Identifier: BSD-3-Clause
"""A metadata server in the test's own process, with a clock that the test moves."""

import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from gateway.mds.client import MdsClient
from gateway.mds.config import MdsConfig
from gateway.mds.server import MdsServer
from gateway.proto import cluster_pb2 as cl
from gateway.rpc.client import BaiduClient

GIB = 1 << 30
ROOT_PASSWORD = "correct horse"  # noqa: S105


class Clock:
    """Real time, moved by what the test says."""

    def __init__(self) -> None:
        self.ahead_us = 0
        self.set_back_us = 0

    def now_us(self) -> int:
        return time.time_ns() // 1000 + self.ahead_us - self.set_back_us

    def now_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000 + self.ahead_us // 1000

    def set_back(self, seconds: float) -> None:
        """The wall clock alone."""
        self.set_back_us += int(seconds * 1e6)

    def move(self, seconds: float) -> None:
        self.ahead_us += int(seconds * 1e6)


@pytest.fixture
def clock() -> Clock:
    """The server's clocks."""
    return Clock()


@pytest.fixture
def config(tmp_path: Path) -> MdsConfig:
    """A configuration with free ports."""
    return MdsConfig(
        store=tmp_path / "mds.db",
        listen=("127.0.0.1:0",),
        grpc_listen=("127.0.0.1:0",),
        root_password=ROOT_PASSWORD,
        sweep_interval_s=0.05,
    )


class Mds(SimpleNamespace):
    """A server, a gRPC client of owner "alice", and one for baidu_std."""

    def __init__(self, config: MdsConfig, clock: Clock) -> None:
        super().__init__(config=config, clock=clock)

    async def start(self, **changes: Any) -> None:
        self.config = replace(self.config, **changes)
        self.server = MdsServer(self.config, now_us=self.clock.now_us, now_ms=self.clock.now_ms)
        await self.server.start()
        self.client = self.client_of("alice")
        self.baidu = BaiduClient(self.server.addresses[0])
        await self.baidu.connect()

    async def stop(self) -> None:
        await self.baidu.close()
        await self.client.close()
        await self.server.stop()

    async def restart(self, **changes: Any) -> None:
        await self.stop()
        await self.start(**changes)

    async def remake(self, **changes: Any) -> None:
        """Another server with an empty store."""
        await self.stop()
        await self.start(store=self.config.store.with_name("another.db"), **changes)

    def client_of(self, owner: str, password: str | None = None) -> MdsClient:
        return MdsClient(
            self.server.grpc_address,
            owner=owner,
            root_password=password,
            now_us=self.clock.now_us,
        )

    async def call(self, request: Any, kind: Any, *, owner: str = "alice") -> Any:
        """A call on baidu_std; owner and date are filled in. `kind` is the response's class."""
        names = request.DESCRIPTOR.fields_by_name
        if "owner" in names and not request.HasField("owner"):
            request.owner = owner
        if "date" in names and not request.HasField("date"):
            request.date = self.clock.now_us()
        method = request.DESCRIPTOR.name.removesuffix("Request").replace("ReFresh", "Refresh")
        response, _ = await self.baidu.call("curve.mds.CurveFSService", method, request, kind)
        return response

    async def add_chunkserver(self, number: int = 1, **changes: Any) -> Any:
        return await self.client.register_chunkserver(registration(number, **changes))


def registration(number: int = 1, **changes: Any) -> cl.RegisterChunkserverRequest:
    """What chunkserver `number` says of itself."""
    fields: dict[str, Any] = {
        "uuid": str(uuid.UUID(int=number)),
        "ip": "127.0.0.1",
        "port": 8200 + number,
        "data_directory": f"/data/{number}",
        "capacity_bytes": 100 * GIB,
    }
    return cl.RegisterChunkserverRequest(**(fields | changes))


def leading(*copyset_ids: int, member_id: int = 1) -> list[cl.CopysetReport]:
    """Reports of copysets that one chunkserver leads alone."""
    return [
        cl.CopysetReport(
            logical_pool_id=1, copyset_id=copyset_id, leader=True, applied_index=1, term=1,
            member_id=member_id,
        )
        for copyset_id in copyset_ids
    ]  # fmt: skip


def heartbeat(number: int = 1, chunkserver_id: int = 1, **changes: Any) -> cl.HeartbeatRequest:
    """A heartbeat of chunkserver `number`."""
    fields: dict[str, Any] = {
        "chunkserver_id": chunkserver_id,
        "uuid": str(uuid.UUID(int=number)),
        "capacity_bytes": 100 * GIB,
        "used_bytes": 5,
    }
    return cl.HeartbeatRequest(**(fields | changes))


@pytest.fixture
def register() -> Callable[..., cl.RegisterChunkserverRequest]:
    """registration()"""
    return registration


@pytest.fixture
def lead() -> Callable[..., list[cl.CopysetReport]]:
    """leading()"""
    return leading


@pytest.fixture
def beat() -> Callable[..., cl.HeartbeatRequest]:
    """heartbeat()"""
    return heartbeat


@pytest_asyncio.fixture
async def mds(config: MdsConfig, clock: Clock) -> AsyncIterator[Mds]:
    """A running server."""
    running = Mds(config, clock)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()
