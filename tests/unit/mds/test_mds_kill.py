# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 of a metadata server at work: every change that was acknowledged is there afterwards."""

import asyncio
import random
import sys

import pytest

from gateway.errors import CopygateError
from gateway.mds.client import MdsClient
from gateway.mds.service import wall_clock_us
from gateway.proto import nameserver2_pb2 as ns
from gateway.rpc.client import BaiduClient
from gateway.rpc.endpoint import parse_endpoint

GIB = 1 << 30
ROUNDS = 6

SERVER = """
import asyncio, pathlib, sys
from gateway.mds.config import MdsConfig
from gateway.mds.server import MdsServer
async def main():
    server = MdsServer(MdsConfig(store=pathlib.Path(sys.argv[1]), listen=("127.0.0.1:0",),
                                 grpc_listen=("127.0.0.1:0",), copysets_per_chunkserver=4))
    await server.start()
    print(server.address, server.grpc_address, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


class Acknowledged:
    """What the server has said is done, and what was under way when it died."""

    def __init__(self):
        self.volumes = {}
        self.uncertain = set()
        self.epochs = {}
        self.chunks = {}
        self.ids = set()


async def work(client, baidu, known, worker, pick):
    for number in range(10_000):
        name = f"w{worker}-{number}-{pick.randrange(10**9)}"
        known.uncertain.add(name)
        volume = await client.create_volume(name, 4 * GIB)
        assert volume.id not in known.ids, "an id came twice"
        known.ids.add(volume.id)
        known.volumes[name] = 4 * GIB
        known.epochs[name] = await client.raise_epoch(name)
        request = ns.GetOrAllocateSegmentRequest(
            fileName=f"/{name}", owner="copygate", date=wall_clock_us(),
            offset=0, allocateIfNotExist=True,
        )  # fmt: skip
        response, _ = await baidu.call(
            "curve.mds.CurveFSService", "GetOrAllocateSegment", request,
            ns.GetOrAllocateSegmentResponse,
        )  # fmt: skip
        if response.statusCode == ns.kOK:
            known.chunks[name] = [c.chunkID for c in response.pageFileSegment.chunks]
        await client.resize(name, 5 * GIB)
        known.volumes[name] = 5 * GIB


async def verify(client, baidu, known):
    there = {v.name: v for v in await client.list()}
    assert set(known.volumes) <= set(there)
    assert set(there) <= set(known.volumes) | known.uncertain
    for name, size in known.volumes.items():
        assert there[name].size >= size, name
        assert there[name].epoch >= known.epochs.get(name, 0), name
        known.volumes[name] = there[name].size
    seen: set[int] = set()
    for name, chunks in known.chunks.items():
        request = ns.GetOrAllocateSegmentRequest(
            fileName=f"/{name}", owner="copygate", date=wall_clock_us(),
            offset=0, allocateIfNotExist=False,
        )  # fmt: skip
        response, _ = await baidu.call(
            "curve.mds.CurveFSService", "GetOrAllocateSegment", request,
            ns.GetOrAllocateSegmentResponse,
        )  # fmt: skip
        assert [c.chunkID for c in response.pageFileSegment.chunks] == chunks, name
        assert not seen.intersection(chunks), "a chunk has two owners"
        seen.update(chunks)


@pytest.mark.timeout(120)
async def test_killed_server_keeps_what_it_acknowledged(tmp_path, register):
    pick = random.Random(7)
    known = Acknowledged()
    for _ in range(ROUNDS):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", SERVER, str(tmp_path / "db"), stdout=asyncio.subprocess.PIPE
        )
        address, grpc_address = (await process.stdout.readline()).decode().split()
        async with (
            MdsClient(grpc_address) as client,
            BaiduClient(parse_endpoint(address)) as baidu,
        ):
            await client.register_chunkserver(register())
            await verify(client, baidu, known)
            workers = [asyncio.create_task(work(client, baidu, known, n, pick)) for n in range(8)]
            await asyncio.sleep(pick.uniform(0.05, 0.5))
            process.kill()
            await process.wait()
            results = await asyncio.gather(*workers, return_exceptions=True)
            for result in results:
                assert isinstance(result, CopygateError), result
    assert len(known.volumes) > 50
