# SPDX-License-Identifier: BSD-3-Clause
"""A store that an earlier version made: one replica of everything, members without ids."""

import sqlite3
import struct

import pytest

from gateway.errors import BusyError, ConfigError, NotFoundError
from gateway.mds.store import Space
from gateway.mds.store_sqlite import APPLICATION_ID, SqliteStore
from gateway.proto import cluster_pb2 as cl
from gateway.proto import iscsi_pb2
from gateway.proto import nameserver2_pb2 as ns
from gateway.proto import store_pb2 as st
from gateway.proto import topology_pb2 as topo

GIB = 1 << 30


def write_schema_1(path, copysets=8):
    """Two chunkservers with half of the copysets each, and a chunk that each has to delete."""
    db = sqlite3.connect(path)
    db.execute(
        "CREATE TABLE kv (space INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL,"
        " PRIMARY KEY (space, key)) WITHOUT ROWID"
    )
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute("PRAGMA user_version = 1")

    def put(space, key, value):
        db.execute("INSERT INTO kv VALUES (?, ?, ?)", (int(space), key, value))

    for number in (1, 2) if copysets else ():
        record = st.ChunkserverRecord(
            id=number, uuid=f"00000000-0000-0000-0000-00000000000{number}", ip="127.0.0.1",
            port=8200 + number, data_directory=f"/data/{number}", capacity_bytes=GIB, used_bytes=0,
            registered_us=1,
        )  # fmt: skip
        put(Space.CHUNKSERVERS, struct.pack(">I", number), record.SerializeToString())
        put(Space.CHUNKSERVER_UUIDS, record.uuid.encode(), struct.pack(">I", number))
        chunk = cl.ChunkId(logical_pool_id=1, copyset_id=number, chunk_id=70 + number)
        key = struct.pack(">IQ", number, chunk.chunk_id)
        put(Space.RECLAIM_BEFORE_2, key, chunk.SerializeToString())
    for number in range(1, copysets + 1):
        holder = 1 if number % 2 else 2
        record = st.CopysetRecord(
            logical_pool_id=1, copyset_id=number, chunkserver_ids=[holder], configuration_epoch=1
        )
        put(Space.COPYSETS, struct.pack(">II", 1, number), record.SerializeToString())
    if copysets:
        for name, value in (("chunkserver_id", 3), ("copyset_id", copysets + 1), ("chunk_id", 100)):
            put(Space.COUNTERS, name.encode(), struct.pack(">Q", value))
    db.commit()
    db.close()


@pytest.fixture
async def old(mds):
    """A server on such a store."""
    await mds.stop()
    path = mds.config.store.with_name("old.db")
    write_schema_1(path)
    await mds.start(store=path, copysets_per_chunkserver=4)
    return mds


async def test_copysets_and_chunkservers_are_there_as_before(old, beat):
    status = await old.client.status()
    assert (status.replicas, status.copysets.copysets) == (1, 8)
    assert [(s.id, s.address, s.copysets) for s in status.chunkservers] == [
        (1, "127.0.0.1:8201", 4), (2, "127.0.0.1:8202", 4),
    ]  # fmt: skip
    registered = await old.add_chunkserver(1)
    assert registered.chunkserver_id == 1
    assert [c.copyset_id for c in registered.copysets] == [1, 3, 5, 7]
    for copyset in registered.copysets:
        # The replica has to be taken over: it does not know its member's id yet.
        assert (copyset.member_id, copyset.create, copyset.founders) == (1, True, [1])
    done = beat(assignment_revision=registered.assignment_revision)
    assert not (await old.client.heartbeat(done)).copysets
    again = await old.client.heartbeat(beat())
    assert not any(c.create for c in again.copysets)
    await old.client.create_volume("disk", GIB)
    request = ns.GetOrAllocateSegmentRequest(fileName="/disk", offset=0, allocateIfNotExist=True)
    got = await old.call(request, ns.GetOrAllocateSegmentResponse)
    assert min(c.chunkID for c in got.pageFileSegment.chunks) == 100, "ids go on"
    where = topo.GetChunkServerListInCopySetsRequest(logicalPoolId=1, copysetId=[2])
    response, _ = await old.baidu.call(
        "curve.mds.topology.TopologyService", "GetChunkServerListInCopySets",
        where, topo.GetChunkServerListInCopySetsResponse,
    )  # fmt: skip
    assert [s.port for s in response.csInfo[0].csLocs] == [8202]


async def test_chunks_that_were_to_be_deleted_still_are(old, beat, lead):
    mine = beat(copysets=lead(1, 3, 5, 7))
    assert [c.chunk_id for c in (await old.client.heartbeat(mine)).reclaim] == [71]
    others = beat(2, 2, copysets=lead(2, 4, 6, 8, member_id=2))
    [chunk] = (await old.client.heartbeat(others)).reclaim
    assert chunk.chunk_id == 72
    await old.client.reclaim_done(cl.ReclaimDoneRequest(chunkserver_id=2, chunks=[chunk]))
    assert not (await old.client.heartbeat(others)).reclaim


async def test_it_keeps_its_one_replica(old):
    await old.restart()
    await old.stop()
    with pytest.raises(ConfigError, match="made with 1 replica of"):
        await old.start(replicas=3)
    await old.start(replicas=1)


async def test_a_store_without_copysets_may_still_choose(mds):
    await mds.stop()
    path = mds.config.store.with_name("old.db")
    write_schema_1(path, copysets=0)
    await mds.start(store=path, replicas=3)
    assert (await mds.client.status()).replicas == 3


async def test_it_is_done_once(tmp_path):
    write_schema_1(tmp_path / "db")
    contents = []
    for _ in range(2):
        store = await SqliteStore.open(tmp_path / "db")
        contents.append(await store.run(lambda txn: [list(txn.scan(s)) for s in Space]))
        await store.close()
    assert contents[0] == contents[1]


async def test_exports_follow_their_volumes(mds):
    await mds.client.create_volume("disk", GIB)
    await mds.stop()
    luns = [iscsi_pb2.ExportLun(lun=1, volume="disk"), iscsi_pb2.ExportLun(lun=2, volume="gone")]
    record = iscsi_pb2.ExportRecord(iqn="iqn.a:b", luns=luns)
    stored = st.StoredExport(owner="alice", revision=1, record=record.SerializeToString())
    db = sqlite3.connect(mds.config.store)
    value = (int(Space.EXPORTS), record.iqn.encode(), stored.SerializeToString())
    db.execute("INSERT INTO kv VALUES (?, ?, ?)", value)
    db.execute("PRAGMA user_version = 1")
    db.commit()
    db.close()
    await mds.start()
    assert (await mds.client.get_export(record.iqn)).record == record
    with pytest.raises(BusyError, match=r"exported over iSCSI by iqn\.a:b"):
        await mds.client.delete("disk")
    await mds.client.rename("disk", "moved")
    found = await mds.client.get_export(record.iqn)
    assert [lun.volume for lun in found.record.luns] == ["/moved", "gone"]
    with pytest.raises(NotFoundError, match="/gone does not exist"):
        await mds.client.put_export(found.record, found.revision)
    del found.record.luns[1]
    await mds.client.put_export(found.record, found.revision)
