# SPDX-License-Identifier: BSD-3-Clause
"""The metadata server as its host process sees it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from importlib import metadata

from gateway.errors import StorageError
from gateway.mds import pool, tree
from gateway.mds.config import MdsConfig
from gateway.mds.grpc_server import GrpcServer
from gateway.mds.service import MetadataService, monotonic_ms, wall_clock_us
from gateway.mds.store_sqlite import SqliteStore
from gateway.rpc.endpoint import Endpoint
from gateway.rpc.server import BaiduServer, ServerLimits

log = logging.getLogger(__name__)

LIMITS = ServerLimits(body_max=1 << 20, large_bytes_max=64 << 20)
"""A metadata request is small: the longest one is libcurve's list of copysets."""


class MdsServer:
    """A metadata server in this process: ``await start()``, then ``await stop()``.

    ``addresses`` and ``grpc_addresses`` are the endpoints bound, in the order of the configuration;
    ``replicas`` is how many chunkservers have each chunk.
    The clocks are parameters for tests.
    """

    def __init__(
        self,
        config: MdsConfig,
        *,
        now_us: Callable[[], int] = wall_clock_us,
        now_ms: Callable[[], int] = monotonic_ms,
    ) -> None:
        self.config = config
        self.addresses: list[Endpoint] = []
        self.grpc_addresses: list[Endpoint] = []
        self.replicas = 0
        self._now_us = now_us
        self._now_ms = now_ms
        self._cleanup = contextlib.AsyncExitStack()
        self._purge = asyncio.Event()

    @property
    def address(self) -> str:
        """The first baidu_std endpoint: what an IO core's ``mds=`` takes."""
        return str(self.addresses[0])

    @property
    def grpc_address(self) -> str:
        """The first gRPC endpoint: what MdsClient takes."""
        return str(self.grpc_addresses[0])

    async def start(self) -> None:
        """Opens the store and serves. Raises ConfigError, BusyError, StorageError; then nothing is
        left open."""
        baidu_endpoints, grpc_endpoints = self.config.check()
        async with contextlib.AsyncExitStack() as stack:
            store = await SqliteStore.open(self.config.store)
            stack.push_async_callback(store.close)
            now_us = self._now_us()
            await store.run(lambda txn: tree.initialise(txn, now_us))
            wanted = self.config.replicas
            self.replicas = await store.run(lambda txn: pool.settle(txn, wanted))
            service = MetadataService(
                store,
                self.config,
                now_us=self._now_us,
                now_ms=self._now_ms,
                version=f"copygate {_version()}",
            )
            service.purge_wanted = self._purge.set
            methods = service.wire_methods()
            baidu = BaiduServer(methods, LIMITS)
            stack.push_async_callback(baidu.close)
            grpc_server = GrpcServer(methods + service.cluster_methods() + service.export_methods())
            stack.push_async_callback(grpc_server.close)
            self.grpc_addresses = [await grpc_server.listen(e) for e in grpc_endpoints]
            await grpc_server.start()
            self.addresses = [await baidu.listen(e) for e in baidu_endpoints]
            # Who waits there is answered, then closed.
            stack.callback(service.shared_states.close)
            stack.callback(service.exports.close)
            for work in (self._sweep_sessions(service), self._purge_volumes(service)):
                stack.push_async_callback(_cancel, asyncio.create_task(work))
            self._cleanup = stack.pop_all()
        log.info(
            "the metadata server listens on %s and %s; replicas: %d",
            self.address,
            self.grpc_address,
            self.replicas,
        )

    async def stop(self) -> None:
        """Ends what runs, closes the store. May be called more than once."""
        await self._cleanup.aclose()

    async def _sweep_sessions(self, service: MetadataService) -> None:
        while True:
            await asyncio.sleep(self.config.sweep_interval_s)
            try:
                await service.sweep()
            except StorageError as error:
                log.error("cannot mark the sessions that ran out: %s", error)

    async def _purge_volumes(self, service: MetadataService) -> None:
        self._purge.set()  # what an earlier run of the server has begun
        while True:
            await self._purge.wait()
            self._purge.clear()
            try:
                more = True
                while more:
                    more = await service.purge_step()
            except StorageError as error:
                log.error("cannot purge deleted volumes: %s", error)
                await asyncio.sleep(self.config.sweep_interval_s)
                self._purge.set()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _version() -> str:
    try:
        return metadata.version("copygate")
    except metadata.PackageNotFoundError:
        return "unknown"
