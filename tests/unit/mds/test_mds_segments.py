# SPDX-License-Identifier: BSD-3-Clause
"""Segments: allocation, epochs, giving up; through the real server."""

import asyncio
from collections import Counter

import pytest

from gateway.proto import nameserver2_pb2 as ns
from gateway.proto import topology_pb2 as topo

GIB = 1 << 30


async def segment(mds, offset=0, *, path="/disk", allocate=True, **extra):
    request = ns.GetOrAllocateSegmentRequest(
        fileName=path, offset=offset, allocateIfNotExist=allocate, **extra
    )
    return await mds.call(request, ns.GetOrAllocateSegmentResponse)


async def deallocate(mds, offset=0, **extra):
    request = ns.DeAllocateSegmentRequest(fileName="/disk", offset=offset, **extra)
    return (await mds.call(request, ns.DeAllocateSegmentResponse)).statusCode


async def test_segment_has_64_chunks_spread_over_the_copysets(mds):
    await mds.add_chunkserver()
    await mds.client.create_volume("disk", 3 * GIB)
    response = await segment(mds, GIB)
    got = response.pageFileSegment
    assert (got.startOffset, got.segmentSize, got.chunkSize) == (GIB, GIB, 16 << 20)
    assert Counter(c.copysetID for c in got.chunks) == dict.fromkeys(range(1, 9), 8)
    assert (await segment(mds, GIB)).pageFileSegment == got
    other = (await segment(mds, 0)).pageFileSegment
    assert not {c.chunkID for c in other.chunks} & {c.chunkID for c in got.chunks}


async def test_reading_allocates_nothing(mds):
    await mds.add_chunkserver()
    await mds.client.create_volume("disk", GIB)
    assert (await segment(mds, allocate=False)).statusCode == ns.kSegmentNotAllocated
    assert (await mds.client.info("disk")).allocated == 0


async def test_last_segment_may_be_cut_by_the_volume_s_end(mds):
    await mds.add_chunkserver()
    await mds.client.create_volume("disk", 2 * GIB + 4096)
    assert (await segment(mds, 2 * GIB)).statusCode == ns.kOK
    for offset in (3 * GIB, 4096, GIB + 1, (1 << 64) - GIB):
        assert (await segment(mds, offset)).statusCode == ns.kParaError
    await mds.client.create_volume("small", 1 << 20)
    assert (await segment(mds, 0, path="/small")).statusCode == ns.kOK


async def test_without_a_chunkserver_nothing_is_allocated(mds):
    await mds.client.create_volume("disk", GIB)
    assert (await segment(mds)).statusCode == ns.kSegmentAllocateError


async def test_broken_disk_takes_nothing_and_a_silent_chunkserver_only_for_want_of_another(
    mds, beat
):
    for number in (1, 2):
        made = (await mds.add_chunkserver(number)).assignment_revision
        await mds.client.heartbeat(beat(number, number, assignment_revision=made))
    await mds.client.create_volume("disk", 9 * GIB)
    mds.clock.move(60)
    await mds.client.heartbeat(beat(2, 2))
    got = (await segment(mds, 0)).pageFileSegment
    assert {c.copysetID for c in got.chunks} == set(range(9, 17)), "1 is silent, 2 is there"
    await mds.client.heartbeat(beat(2, 2, disk_error="Input/output error"))
    got = (await segment(mds, GIB)).pageFileSegment
    assert {c.copysetID for c in got.chunks} == set(range(1, 9)), "2 is broken"
    await mds.client.heartbeat(beat(1, 1, disk_error="Input/output error"))
    assert (await segment(mds, 2 * GIB)).statusCode == ns.kSegmentAllocateError
    await mds.restart()
    assert (await segment(mds, 2 * GIB)).statusCode == ns.kSegmentAllocateError
    assert (await mds.client.status()).chunkservers[0].disk_error == "Input/output error"
    await mds.client.heartbeat(beat(1, 1))
    assert (await segment(mds, 2 * GIB)).statusCode == ns.kOK


async def test_folder_has_no_segments(mds):
    await mds.client.create_folder("disk")
    assert (await segment(mds)).statusCode == ns.kNotSupported
    assert (await segment(mds, path="/no")).statusCode == ns.kFileNotExists


async def test_old_epoch_allocates_and_gives_up_nothing(mds):
    await mds.add_chunkserver()
    await mds.client.create_volume("disk", 4 * GIB)
    assert await mds.client.raise_epoch("disk") == 1
    assert (await segment(mds, epoch=1)).statusCode == ns.kOK
    assert await mds.client.raise_epoch("disk") == 2
    assert (await segment(mds, GIB, epoch=1)).statusCode == ns.kEpochTooOld
    assert (await segment(mds, 0, epoch=1)).statusCode == ns.kEpochTooOld
    assert (await segment(mds, 0, epoch=1, allocate=False)).statusCode == ns.kOK
    assert (await segment(mds, GIB)).statusCode == ns.kOK, "a client without epochs, as libcurve"
    for epoch in (1, 3):
        assert await deallocate(mds, epoch=epoch) == ns.kEpochTooOld
    assert await deallocate(mds, epoch=2) == ns.kOK


async def test_raised_epoch_is_answered_with_all_chunkservers(mds):
    await mds.add_chunkserver(1)
    await mds.add_chunkserver(2, ip="192.0.2.7")
    await mds.client.create_volume("disk", GIB)
    request = ns.IncreaseFileEpochRequest(fileName="/disk")
    response = await mds.call(request, ns.IncreaseFileEpochResponse)
    assert response.fileInfo.epoch == 1
    assert [(c.chunkServerID, c.hostIp, c.port, c.externalIp) for c in response.csLocs] == [
        (1, "127.0.0.1", 8201, "127.0.0.1"),
        (2, "192.0.2.7", 8202, "192.0.2.7"),
    ]
    await mds.restart()
    assert (await mds.client.info("disk")).epoch == 1
    opened = await mds.call(ns.OpenFileRequest(fileName="/disk"), ns.OpenFileResponse)
    assert opened.fileInfo.epoch == 1


async def test_segment_given_up_is_gone_and_its_chunks_are_never_used_again(mds, beat, lead):
    await mds.add_chunkserver()
    await mds.client.create_volume("disk", 2 * GIB)
    seen: set[int] = set()
    for _ in range(3):
        got = (await segment(mds)).pageFileSegment
        chunks = {c.chunkID for c in got.chunks}
        assert not seen & chunks
        seen |= chunks
        assert await deallocate(mds) == ns.kOK
        assert await deallocate(mds) == ns.kSegmentNotAllocated
        assert (await segment(mds, allocate=False)).statusCode == ns.kSegmentNotAllocated
    assert (await mds.client.info("disk")).allocated == 0
    leader = beat(copysets=lead(*range(1, 9)))
    reclaim = (await mds.client.heartbeat(leader)).reclaim
    assert {c.chunk_id for c in reclaim} == seen
    assert {c.copyset_id for c in reclaim} == set(range(1, 9))
    for offset in (4096, 2 * GIB):
        assert await deallocate(mds, offset) == ns.kParaError


async def test_concurrent_allocations_give_one_segment_an_offset(mds):
    await mds.add_chunkserver()
    await mds.client.create_volume("disk", 20 * GIB)
    got = await asyncio.gather(*(segment(mds, (n % 10) * GIB) for n in range(60)))
    by_offset = {}
    for response in got:
        found = response.pageFileSegment
        assert by_offset.setdefault(found.startOffset, found) == found
    ids = [c.chunkID for found in by_offset.values() for c in found.chunks]
    assert len(ids) == len(set(ids)) == 640
    assert (await mds.client.info("disk")).allocated == 10 * GIB


@pytest.mark.parametrize(("pool", "copysets"), [(1, [1, 99]), (2, [1])])
async def test_unknown_copyset_is_answered_as_curvebs_does(mds, pool, copysets):
    await mds.add_chunkserver()
    request = topo.GetChunkServerListInCopySetsRequest(logicalPoolId=pool, copysetId=copysets)
    response, _ = await mds.baidu.call(
        "curve.mds.topology.TopologyService",
        "GetChunkServerListInCopySets",
        request,
        topo.GetChunkServerListInCopySetsResponse,
    )
    assert response.statusCode == -11
