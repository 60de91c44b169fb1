# SPDX-License-Identifier: BSD-3-Clause
"""Deleting, recovering and purging volumes."""

import asyncio

import pytest

from gateway.errors import (
    AccessError,
    BusyError,
    ExistsError,
    InvalidArgumentError,
    NotFoundError,
)
from gateway.proto import cluster_pb2 as cl
from gateway.proto import nameserver2_pb2 as ns

GIB = 1 << 30


async def allocate(mds, path, *offsets):
    for offset in offsets:
        request = ns.GetOrAllocateSegmentRequest(
            fileName=path, offset=offset, allocateIfNotExist=True
        )
        response = await mds.call(request, ns.GetOrAllocateSegmentResponse)
        assert response.statusCode == ns.kOK


async def eventually(condition, seconds=5):
    for _ in range(seconds * 100):
        if await condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that")


async def test_deleted_volume_waits_in_the_bin_with_its_data_and_comes_back(mds):
    await mds.add_chunkserver()
    made = await mds.client.create_volume("disk", 4 * GIB)
    await allocate(mds, "/disk", GIB)
    await mds.client.delete("disk")
    with pytest.raises(NotFoundError):
        await mds.client.info("disk")
    [deleted] = await mds.client.list_deleted()
    assert (deleted.id, deleted.original_path, deleted.allocated) == (made.id, "/disk", GIB)
    assert deleted.name.startswith(f"disk-{made.id}-")
    await mds.client.recover("disk")
    back = await mds.client.info("disk")
    assert (back.id, back.allocated, back.original_path, back.uuid) == (made.id, GIB, "", made.uuid)
    assert await mds.client.list_deleted() == []


async def test_of_several_the_last_deleted_is_recovered_or_the_one_with_the_id(mds):
    made = []
    for _ in range(3):
        made.append(await mds.client.create_volume("disk", GIB))
        await mds.client.delete("disk")
    await mds.client.recover("disk")
    assert (await mds.client.info("disk")).id == made[2].id
    with pytest.raises(ExistsError, match="rename it"):
        await mds.client.recover("disk")
    await mds.client.rename("disk", "other")
    await mds.client.recover("disk", volume_id=made[0].id)
    assert (await mds.client.info("disk")).id == made[0].id
    await mds.client.delete("disk")
    await mds.client.recover(f"/RecycleBin/{(await mds.client.list_deleted())[0].name}")
    with pytest.raises(NotFoundError, match="with the id 99"):
        await mds.client.recover("disk", volume_id=99)


async def test_recovery_needs_the_folder_and_the_owner(mds):
    await mds.client.create_folder("a")
    await mds.client.create_volume("a/disk", GIB)
    await mds.client.delete("a/disk")
    async with mds.client_of("bob") as bob:
        assert await bob.list_deleted() == []
        with pytest.raises(AccessError):
            await bob.recover("a/disk")
        with pytest.raises(AccessError):
            await bob.purge((await mds.client.list_deleted())[0].name)
    await mds.client.delete("a")
    with pytest.raises(NotFoundError, match="/a does not exist"):
        await mds.client.recover("a/disk")
    with pytest.raises(NotFoundError, match="no volume was deleted"):
        await mds.client.recover("never")
    with pytest.raises(NotFoundError):
        await mds.client.recover("/RecycleBin/never")
    with pytest.raises(NotFoundError):
        await mds.client.recover("/RecycleBin")


async def test_only_deleted_volumes_are_purged_and_only_with_force(mds):
    await mds.client.create_volume("disk", GIB)
    request = ns.DeleteFileRequest(fileName="/disk", forceDelete=True)
    assert (await mds.call(request, ns.DeleteFileResponse)).statusCode == ns.kNotSupported
    request = ns.DeleteFileRequest(fileName="/disk", fileId=77)
    assert (await mds.call(request, ns.DeleteFileResponse)).statusCode == ns.kFileIdNotMatch
    await mds.client.delete("disk")
    name = (await mds.client.list_deleted())[0].name
    with pytest.raises(InvalidArgumentError, match="deleted already"):
        await mds.client.delete(f"/RecycleBin/{name}")
    await mds.client.purge(name)
    await eventually(lambda: _empty(mds))
    with pytest.raises(NotFoundError):
        await mds.client.recover("disk")
    for path in ("/", "/RecycleBin"):
        with pytest.raises(InvalidArgumentError):
            await mds.client.delete(path)


async def _empty(mds):
    return await mds.client.list_deleted() == []


async def test_deleted_volume_serves_no_io(mds):
    await mds.add_chunkserver()
    await mds.client.create_volume("disk", GIB)
    await mds.client.delete("disk")
    path = f"/RecycleBin/{(await mds.client.list_deleted())[0].name}"
    for request, kind in (
        (ns.OpenFileRequest(fileName=path), ns.OpenFileResponse),
        (ns.IncreaseFileEpochRequest(fileName=path), ns.IncreaseFileEpochResponse),
        (ns.ReFreshSessionRequest(fileName=path, sessionID=""), ns.ReFreshSessionResponse),
        (
            ns.GetOrAllocateSegmentRequest(fileName=path, offset=0, allocateIfNotExist=True),
            ns.GetOrAllocateSegmentResponse,
        ),
        (ns.DeAllocateSegmentRequest(fileName=path, offset=0), ns.DeAllocateSegmentResponse),
        (ns.ExtendFileRequest(fileName=path, newSize=2 * GIB), ns.ExtendFileResponse),
    ):
        assert (await mds.call(request, kind)).statusCode == ns.kFileUnderDeleting


async def test_purge_gives_every_chunk_to_the_leader_until_that_is_done(mds, beat, lead):
    await mds.add_chunkserver()
    await mds.client.create_volume("disk", 200 * GIB)
    await allocate(mds, "/disk", *(n * GIB for n in range(130)))
    await mds.client.delete("disk")
    leader = beat(copysets=lead(*range(1, 9)))
    assert not (await mds.client.heartbeat(leader)).reclaim
    await mds.client.purge((await mds.client.list_deleted())[0].name)
    await eventually(lambda: _empty(mds))
    assert (await mds.client.status()).allocated_bytes == 0
    seen: set[int] = set()
    assert not (await mds.client.heartbeat(beat())).reclaim, "who does not lead is not asked"
    first = (await mds.client.heartbeat(leader)).reclaim
    assert (await mds.client.heartbeat(leader)).reclaim == first, "told again until done"
    only = (await mds.client.heartbeat(beat(copysets=lead(3)))).reclaim
    assert {c.copyset_id for c in only} == {3}
    while chunks := (await mds.client.heartbeat(leader)).reclaim:
        assert not seen.intersection(c.chunk_id for c in chunks)
        seen.update(c.chunk_id for c in chunks)
        done = cl.ReclaimDoneRequest(chunkserver_id=1, chunks=chunks)
        await mds.client.reclaim_done(done)
    assert seen == set(range(1, 130 * 64 + 1))
    await mds.client.create_volume("disk", GIB)
    await allocate(mds, "/disk", 0)
    request = ns.GetOrAllocateSegmentRequest(fileName="/disk", offset=0, allocateIfNotExist=False)
    response = await mds.call(request, ns.GetOrAllocateSegmentResponse)
    assert not seen.intersection(c.chunkID for c in response.pageFileSegment.chunks)


async def test_purge_goes_on_after_a_restart(mds, beat):
    await mds.add_chunkserver()
    await mds.client.create_volume("disk", 400 * GIB)
    await allocate(mds, "/disk", *(n * GIB for n in range(300)))
    await mds.client.delete("disk")
    name = (await mds.client.list_deleted())[0].name
    await mds.client.purge(name)
    await mds.restart()
    try:
        with pytest.raises((BusyError, NotFoundError)):
            await mds.client.recover(f"/RecycleBin/{name}")
        await eventually(lambda: _empty(mds))
    finally:
        assert (await mds.client.status()).allocated_bytes == 0
