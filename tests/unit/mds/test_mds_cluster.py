# SPDX-License-Identifier: BSD-3-Clause
"""Chunkservers: registration, heartbeats, what they are told; through gRPC."""

import uuid

import pytest

from gateway.errors import BusyError, ExistsError, InvalidArgumentError, NotFoundError
from gateway.proto import cluster_pb2 as cl
from gateway.proto import nameserver2_pb2 as ns

GIB = 1 << 30


async def test_first_chunkserver_gets_the_pool_s_copysets(mds):
    response = await mds.add_chunkserver()
    assert response.chunkserver_id == 1
    assert response.heartbeat_interval_ms == 1000
    assert [c.copyset_id for c in response.copysets] == list(range(1, 9))
    assert {c.logical_pool_id for c in response.copysets} == {1}
    for copyset in response.copysets:
        [member] = copyset.members
        assert (member.chunkserver_id, member.address) == (1, "127.0.0.1:8201")
        assert (copyset.create, copyset.founders, copyset.member_id) == (True, [1], 1)


async def test_registering_again_changes_nothing_but_the_address(mds):
    first = await mds.add_chunkserver()
    assert await mds.add_chunkserver() == first, "and it has not said yet that it made them"
    await mds.restart()
    moved = await mds.add_chunkserver(port=9999)
    assert moved.chunkserver_id == 1
    assert [c.copyset_id for c in moved.copysets] == list(range(1, 9))
    assert moved.copysets[0].members[0].address == "127.0.0.1:9999"
    assert moved.assignment_revision > first.assignment_revision
    [server] = (await mds.client.status()).chunkservers
    assert server.address == "127.0.0.1:9999"


async def test_each_chunkserver_has_an_id_and_copysets_of_its_own(mds):
    await mds.restart(copysets_per_chunkserver=3)
    await mds.add_chunkserver(1)
    second = await mds.add_chunkserver(2)
    assert second.chunkserver_id == 2
    assert [c.copyset_id for c in second.copysets] == [4, 5, 6]


async def test_copy_of_a_disk_that_reports_is_refused(mds, beat):
    await mds.add_chunkserver()
    await mds.client.heartbeat(beat())
    with pytest.raises(ExistsError, match="copy of it"):
        await mds.add_chunkserver(data_directory="/data/copy")
    await mds.add_chunkserver(port=9999), "the same folder after a restart"
    mds.clock.move(60)
    await mds.add_chunkserver(data_directory="/data/moved")


async def test_address_of_another_that_reports_is_refused(mds, beat):
    await mds.add_chunkserver(1)
    await mds.client.heartbeat(beat())
    with pytest.raises(ExistsError, match="another disk reports"):
        await mds.add_chunkserver(2, port=8201)
    mds.clock.move(60)
    await mds.add_chunkserver(2, port=8201)


@pytest.mark.parametrize(
    "changes",
    [
        {"uuid": "no uuid"}, {"uuid": ""}, {"ip": "::1"}, {"ip": "localhost"}, {"ip": ""},
        {"ip": "0.0.0.0"}, {"ip": "224.0.0.1"}, {"port": 0}, {"port": 65536},  # noqa: S104
        {"data_directory": "x" * 5000}, {"zone": "x" * 5000},
    ],
    ids=str,
)  # fmt: skip
async def test_bad_registration_is_refused(mds, changes):
    with pytest.raises(InvalidArgumentError):
        await mds.add_chunkserver(**changes)
    assert not (await mds.client.status()).chunkservers


async def test_uuid_is_one_however_it_is_written(mds):
    await mds.add_chunkserver(uuid="0123ABCD-0123-4567-89AB-0123456789AB")
    again = await mds.add_chunkserver(uuid="0123abcd0123456789ab0123456789ab")
    assert again.chunkserver_id == 1


async def test_heartbeat_of_a_stranger_or_of_another_disk_is_refused(mds, beat):
    with pytest.raises(NotFoundError, match="must register first"):
        await mds.client.heartbeat(beat())
    await mds.add_chunkserver(1)
    with pytest.raises(BusyError, match="has the disk"):
        await mds.client.heartbeat(beat(uuid=str(uuid.UUID(int=2))))
    with pytest.raises(NotFoundError):
        await mds.client.reclaim_done(cl.ReclaimDoneRequest(chunkserver_id=7))


async def test_heartbeat_tells_the_epochs_raised_since_the_one_acknowledged(mds, beat):
    await mds.add_chunkserver()
    ids = [(await mds.client.create_volume(f"disk{n}", GIB)).id for n in range(3)]
    await mds.client.raise_epoch("disk0")
    await mds.client.raise_epoch("disk1")
    await mds.client.raise_epoch("disk0")
    first = await mds.client.heartbeat(beat())
    assert {(e.file_id, e.epoch) for e in first.epochs} == {(ids[0], 2), (ids[1], 1)}
    assert (await mds.client.heartbeat(beat())).epochs == first.epochs, "not acknowledged"
    acknowledged = {"epoch_revision": first.epoch_revision}
    assert not (await mds.client.heartbeat(beat(**acknowledged))).epochs
    await mds.client.raise_epoch("disk2")
    second = await mds.client.heartbeat(beat(**acknowledged))
    assert [(e.file_id, e.epoch) for e in second.epochs] == [(ids[2], 1)]
    await mds.restart()
    assert len((await mds.client.heartbeat(beat())).epochs) == 3, "a start learns all"
    ahead = await mds.client.heartbeat(beat(epoch_revision=10**9))
    assert len(ahead.epochs) == 3, "a store made anew is told in full"


async def test_status_shows_who_reports_and_what_is_used(mds, beat):
    await mds.add_chunkserver(1)
    await mds.add_chunkserver(2)
    reports = [
        cl.CopysetReport(
            logical_pool_id=1, copyset_id=n, leader=n < 4, applied_index=1, member_id=1, term=1
        )
        for n in range(1, 9)
    ]
    await mds.client.heartbeat(beat(used_bytes=77, copysets=reports))
    one, two = (await mds.client.status()).chunkservers
    assert (one.online, one.used_bytes, one.leaders, one.copysets) == (True, 77, 3, 8)
    assert one.last_heartbeat_ms_ago < 5000
    assert not two.online
    assert not two.HasField("last_heartbeat_ms_ago")
    mds.clock.move(40)
    assert not (await mds.client.status()).chunkservers[0].online


async def test_volumes_are_counted_without_the_deleted_ones(mds):
    for name in ("a", "b", "c"):
        await mds.client.create_volume(name, GIB)
    await mds.client.create_folder("folder")
    await mds.client.delete("a")
    assert (await mds.client.status()).volumes == 2
    await mds.client.recover("a")
    status = await mds.client.status()
    assert status.volumes == 3
    assert status.version.startswith("copygate ")


def report(**changes):
    """A chunkserver's report of its scrub."""
    names = cl.ScrubReport.DESCRIPTOR.fields_by_name
    fields = {name: 0 for name in names if name != "bad"} | {"rate": 1 << 24}
    return cl.ScrubReport(**(fields | changes))


async def test_scrub_is_asked_of_those_that_are_there_and_repeated(mds, beat):
    await mds.add_chunkserver(1)
    await mds.add_chunkserver(2)
    with pytest.raises(BusyError, match="offline"):
        await mds.client.start_scrub()
    assert not (await mds.client.heartbeat(beat(1, scrub=report()))).HasField("scrub_request")
    asked = await mds.client.start_scrub()
    assert list(asked.chunkserver_ids) == [1]
    await mds.restart()
    for _ in range(2):
        answer = await mds.client.heartbeat(beat(1, scrub=report()))
        assert answer.scrub_request == asked.request
    assert not (await mds.client.heartbeat(beat(2, 2, scrub=report()))).HasField("scrub_request")
    mds.clock.set_back(60)
    again = await mds.client.start_scrub([2])
    assert again.request > asked.request, "even if the clock is set back"
    with pytest.raises(NotFoundError, match="no chunkserver 9"):
        await mds.client.start_scrub([1, 9])
    await mds.client.heartbeat(beat(1, scrub=report(rate=0)))
    with pytest.raises(BusyError, match="chunkserver 1 is off"):
        await mds.client.start_scrub([1])


async def test_bad_blocks_are_named_by_volume_and_offset(mds, beat):
    await mds.add_chunkserver()
    await mds.client.heartbeat(beat())
    await mds.client.create_folder("/f")
    await mds.client.create_volume("/f/v", 2 * GIB)
    volume = await mds.client.info("/f/v")
    request = ns.GetOrAllocateSegmentRequest(fileName="/f/v", offset=GIB, allocateIfNotExist=True)
    segment = await mds.call(request, ns.GetOrAllocateSegmentResponse)
    chunks = segment.pageFileSegment.chunks
    where = {"logical_pool_id": 1, "copyset_id": chunks[5].copysetID, "chunk_id": chunks[5].chunkID}
    bad = [
        cl.BadBlock(**where, file_id=volume.id, offset=8192),
        cl.BadBlock(**where, file_id=volume.id),
        cl.BadBlock(**(where | {"chunk_id": 99999}), file_id=99999, offset=0),
    ]
    await mds.client.heartbeat(beat(scrub=report(bad_blocks=3, bad=bad)))
    [server] = (await mds.client.status()).chunkservers
    first, second, third = server.scrub.bad
    assert (first.volume, first.volume_offset) == ("/f/v", GIB + 5 * (16 << 20) + 8192)
    assert second.volume == "/f/v"
    assert not second.HasField("volume_offset")
    assert not third.HasField("volume")
    assert not third.HasField("volume_offset")
