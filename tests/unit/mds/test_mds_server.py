# SPDX-License-Identifier: BSD-3-Clause
"""The server as a whole: configuration, addresses, garbage on both ports, a failing store."""

import asyncio
import random
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace

import grpc
import grpc.aio
import pytest

from gateway.errors import (
    BusyError,
    ConfigError,
    CopygateError,
    DeadlineError,
    StorageError,
    UnavailableError,
)
from gateway.mds.client import MdsClient
from gateway.mds.config import MdsConfig
from gateway.mds.server import MdsServer
from gateway.proto import nameserver2_pb2 as ns
from gateway.rpc.client import BaiduClient
from gateway.rpc.endpoint import parse_endpoint

GIB = 1 << 30


@pytest.mark.parametrize(
    "changes",
    [
        {"listen": ("0.0.0.0:0",)}, {"grpc_listen": ("0.0.0.0:0",)},
        {"listen": ("nonsense",)}, {"listen": ()}, {"grpc_listen": ()}, {"lease_s": 0.5},
        {"lease_s": 5000.0}, {"lease_s": float("nan")}, {"copysets_per_chunkserver": 0},
        {"heartbeat_interval_s": 0.0}, {"offline_after_s": -1.0}, {"root_password": ""},
    ],
    ids=str,
)  # fmt: skip
async def test_bad_configuration_is_refused_before_anything_is_made(config, changes):
    with pytest.raises(ConfigError):
        await MdsServer(replace(config, **changes)).start()
    assert not config.store.exists()


async def test_listening_for_other_machines_has_to_be_allowed(config):
    server = MdsServer(replace(config, listen=("0.0.0.0:0",), allow_remote=True))
    await server.start()
    await server.stop()


def test_password_is_not_shown():
    config = MdsConfig(store="x", root_password="secret")  # noqa: S106
    assert "secret" not in repr(config)


async def test_server_listens_on_unix_sockets_too_and_stops_twice(config, tmp_path):
    config = replace(
        config, listen=(f"unix:{tmp_path}/b", "127.0.0.1:0"), grpc_listen=(f"unix:{tmp_path}/g",)
    )
    server = MdsServer(config)
    await server.start()
    assert server.address == f"unix:{tmp_path}/b"
    async with MdsClient(server.grpc_address) as client:
        await client.create_volume("disk", GIB)
    for endpoint in server.addresses:
        async with BaiduClient(endpoint) as baidu:
            request = ns.OpenFileRequest(
                fileName="/disk", owner="copygate", date=time.time_ns() // 1000
            )
            response, _ = await baidu.call(
                "curve.mds.CurveFSService", "OpenFile", request, ns.OpenFileResponse
            )
            assert response.statusCode == ns.kOK
    await server.stop()
    await server.stop()
    assert not (tmp_path / "b").exists()


async def test_bound_address_or_store_in_use_leaves_nothing_open(config, mds):
    busy = replace(config, store=config.store.with_name("other"))
    for changes in (
        {"listen": (mds.server.address,)},
        {"grpc_listen": (mds.server.grpc_address,)},
    ):
        with pytest.raises(BusyError, match="in use"):
            await MdsServer(replace(busy, **changes)).start()
    with pytest.raises(BusyError, match="another metadata server"):
        await MdsServer(config).start()
    server = MdsServer(busy)
    await server.start()
    await server.stop()


async def test_garbage_on_the_baidu_port_harms_nobody(mds):
    pick = random.Random(1)
    endpoint = mds.server.addresses[0]

    async def one(data):
        _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        writer.write(data)
        await asyncio.sleep(0.02)
        writer.close()

    junk = [pick.randbytes(pick.randrange(1, 3000)) for _ in range(60)]
    junk += [b"PRPC" + pick.randbytes(pick.randrange(200)) for _ in range(60)]
    await asyncio.gather(*map(one, junk))
    assert (await mds.client.create_volume("disk", GIB)).size == GIB
    assert (await mds.call(ns.OpenFileRequest(fileName="/disk"), ns.OpenFileResponse)).fileInfo


async def test_garbage_on_the_grpc_port_harms_nobody(mds):
    pick = random.Random(2)
    endpoint = parse_endpoint(mds.server.grpc_address)
    for size in (1, 100, 5000):
        _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        writer.write(pick.randbytes(size))
        writer.close()
    async with grpc.aio.insecure_channel(mds.server.grpc_address) as channel:

        async def raw(method, data):
            call = channel.unary_unary(method)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(data, timeout=5)
            return caught.value.code()

        name = "/curve.mds.CurveFSService/"
        assert await raw(name + "Nothing", b"") == grpc.StatusCode.UNIMPLEMENTED
        assert await raw("/no.Service/OpenFile", b"") == grpc.StatusCode.UNIMPLEMENTED
        bad = grpc.StatusCode.INVALID_ARGUMENT
        for data in (b"", b"\xff\xff", b"\x0a\x02\xff\xfe\x12\x01a\x20\x01", pick.randbytes(500)):
            assert await raw(name + "OpenFile", data) == bad
        too_long = await raw(name + "OpenFile", bytes(5 << 20))
        assert too_long == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await mds.client.create_volume("disk", GIB)).size == GIB


async def test_store_that_fails_is_reported_on_both_transports(mds):
    await mds.client.create_volume("disk", GIB)

    async def fail(function):
        raise StorageError("the metadata store failed", context={"reason": "EIO"})

    [store] = [o for o in _objects(mds.server) if type(o).__name__ == "SqliteStore"]
    store.run = fail
    with pytest.raises(StorageError, match="EIO"):
        await mds.client.info("disk")
    response = await mds.call(ns.OpenFileRequest(fileName="/disk"), ns.OpenFileResponse)
    assert response.statusCode == ns.kStorageError
    with pytest.raises(UnavailableError, match="EIO"):
        await mds.client.status()
    with pytest.raises(UnavailableError):
        await mds.add_chunkserver()


def _objects(server):
    for _, callback in server._cleanup._exit_callbacks:
        bound = getattr(callback, "__wrapped__", callback)
        yield getattr(bound, "__self__", None)


async def test_absent_and_silent_servers_are_told_apart(tmp_path):
    async with MdsClient("127.0.0.1:1", timeout_s=2) as client:
        with pytest.raises(UnavailableError, match="cannot be reached") as caught:
            await client.list()
        assert caught.value.hint
        with pytest.raises(UnavailableError, match="does not answer"):
            await client.wait_ready(0.1)
    silent = await asyncio.start_server(lambda r, w: asyncio.sleep(9), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with MdsClient(f"127.0.0.1:{port}", timeout_s=0.3) as client:
        with pytest.raises((DeadlineError, UnavailableError)):
            await client.list()
    silent.close()


async def test_client_finds_a_restarted_server_again(config):
    server = MdsServer(config)
    await server.start()
    fixed = replace(config, grpc_listen=(server.grpc_address,))
    async with MdsClient(server.grpc_address, timeout_s=5) as client:
        await client.create_volume("disk", GIB)
        await server.stop()
        with pytest.raises(CopygateError):
            await client.list()
        server = MdsServer(fixed)
        await server.start()
        await client.wait_ready(5)
        assert [v.name for v in await client.list()] == ["disk"]
    await server.stop()


def test_root_without_a_password_is_refused_at_once():
    with pytest.raises(ConfigError, match="root password"):
        MdsClient("127.0.0.1:1", owner="root")


def test_server_is_imported_quickly():
    script = "import gateway.mds.server, time; print(time.process_time())"
    spent = min(
        float(subprocess.check_output([sys.executable, "-P", "-c", script])) for _ in range(3)
    )
    assert spent < 1.0, "copygate up has two seconds in all"


async def test_store_can_be_backed_up_while_the_server_works(mds, tmp_path):
    async def create():
        for number in range(200):
            await mds.client.create_volume(f"disk{number}", GIB)

    def backup():
        source = sqlite3.connect(f"file:{mds.config.store}?mode=ro", uri=True)
        target = sqlite3.connect(tmp_path / "copy.db")
        source.backup(target, pages=5)
        for db in (source, target):
            db.close()

    await mds.client.create_volume("first", GIB)
    await asyncio.gather(create(), asyncio.to_thread(backup))
    await mds.restart(store=tmp_path / "copy.db")
    names = {v.name for v in await mds.client.list()}
    assert "first" in names
    assert (await mds.client.status()).volumes == len(names)
