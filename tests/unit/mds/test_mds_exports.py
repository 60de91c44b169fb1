# SPDX-License-Identifier: BSD-3-Clause
"""Records of exports: compare-and-set, who sees what, waiting for a change, a restart."""

import asyncio
import time

import pytest
import pytest_asyncio

from gateway.errors import AccessError, BusyError, InvalidArgumentError, NotFoundError
from gateway.mds import exports
from gateway.proto import iscsi_pb2
from gateway.proto import nameserver2_pb2 as ns

IQN = "iqn.2026-11.io.copygate:v"


def record(iqn: str = IQN, **fields: object) -> iscsi_pb2.ExportRecord:
    made = iscsi_pb2.ExportRecord(iqn=iqn, **fields)
    made.luns.add(lun=1, volume="/v")
    return made


@pytest_asyncio.fixture(autouse=True)
async def volumes(mds):
    """The volumes that records name."""
    for name in ("v", "w"):
        await mds.client.create_volume(name, 1 << 30)


SECRET = {"chap_user": "u", "chap_secret": b"123456789012"}


async def test_an_export_is_kept_over_a_restart_and_listed_without_secrets(mds):
    assert await mds.client.list_exports() == (0, [])
    revision = await mds.client.put_export(record(**SECRET), 0)
    await mds.stop()
    await mds.start()
    found = await mds.client.get_export(IQN)
    assert found.record == record(**SECRET)
    assert (found.owner, found.revision) == ("alice", revision)
    total, listed = await mds.client.list_exports()
    assert total == revision
    assert [e.record.chap_user for e in listed] == ["u"]
    assert not listed[0].record.HasField("chap_secret")


async def test_it_changes_only_from_the_expected_revision(mds):
    first = await mds.client.put_export(record(), 0)
    with pytest.raises(BusyError, match="meanwhile"):
        await mds.client.put_export(record(), 0)
    second = await mds.client.put_export(record(acl=["iqn.a:b"]), first)
    assert second > first
    with pytest.raises(BusyError):
        await mds.client.put_export(record(), first)
    with pytest.raises(BusyError):
        await mds.client.delete_export(IQN, first)
    await mds.client.delete_export(IQN, second)
    with pytest.raises(NotFoundError):
        await mds.client.get_export(IQN)
    with pytest.raises(NotFoundError):
        await mds.client.delete_export(IQN, second)
    with pytest.raises(BusyError):
        await mds.client.put_export(record(), second)


async def test_others_neither_see_nor_change_it_and_root_does(mds):
    revision = await mds.client.put_export(record(**SECRET), 0)
    async with mds.client_of("bob") as bob, mds.client_of("root", "correct horse") as root:
        assert (await bob.list_exports())[1] == []
        for call in (
            bob.get_export(IQN),
            bob.put_export(record(), revision),
            bob.delete_export(IQN, revision),
        ):
            with pytest.raises(AccessError):
                await call
        assert len((await root.list_exports())[1]) == 1
        await root.put_export(record(**SECRET), revision)
    assert (await mds.client.get_export(IQN)).owner == "alice"


async def test_who_waits_sees_a_change_at_once(mds):
    revision, _ = await mds.client.list_exports()
    waiting = asyncio.create_task(mds.client.list_exports(revision, wait_s=10))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    began = time.monotonic()
    await mds.client.put_export(record(), 0)
    changed, listed = await waiting
    assert time.monotonic() - began < 1
    assert changed > revision
    assert [e.record.iqn for e in listed] == [IQN]


async def test_a_wait_ends_without_a_change_and_with_the_server(mds):
    revision, _ = await mds.client.list_exports()
    assert await mds.client.list_exports(revision, wait_s=0.05) == (revision, None)
    waiting = asyncio.create_task(mds.client.list_exports(revision, wait_s=10))
    await asyncio.sleep(0.05)
    began = time.monotonic()
    await mds.server.stop()
    assert await waiting == (revision, None)
    assert time.monotonic() - began < 2


async def test_what_cannot_be_a_record_is_refused(mds, monkeypatch):
    twice = record()
    twice.luns.add(lun=1, volume="/w")
    long = record(acl=["iqn.a:" + "x" * 200] * 200)
    for bad in (twice, long, record(iqn=""), record(iqn="i" * 224)):
        with pytest.raises(InvalidArgumentError):
            await mds.client.put_export(bad, 0)
    monkeypatch.setattr(exports, "EXPORTS_MAX", 1)
    revision = await mds.client.put_export(record(), 0)
    with pytest.raises(InvalidArgumentError, match="exports already"):
        await mds.client.put_export(record(iqn=f"{IQN}2"), 0)
    await mds.client.put_export(record(), revision)


# The volumes of a record


async def test_a_volume_that_is_not_there_or_somebody_elses_is_not_exported(mds):
    async with mds.client_of("bob") as bob, mds.client_of("root", "correct horse") as root:
        with pytest.raises(AccessError, match="belongs to 'alice'"):
            await bob.put_export(record(), 0)
        gone = record()
        gone.luns.add(lun=2, volume="/gone")
        with pytest.raises(NotFoundError, match="/gone does not exist"):
            await mds.client.put_export(gone, 0)
        assert await mds.client.list_exports() == (0, [])
        await root.put_export(record(), 0)


async def test_a_volume_has_one_target_and_one_lun(mds):
    twice = record()
    twice.luns.add(lun=2, volume="v")
    with pytest.raises(BusyError, match="already"):
        await mds.client.put_export(twice, 0)
    revision = await mds.client.put_export(record(), 0)
    other = record(f"{IQN}2")
    with pytest.raises(BusyError, match=f"exported by {IQN} already"):
        await mds.client.put_export(other, 0)
    moved = iscsi_pb2.ExportRecord(iqn=IQN)
    moved.luns.add(lun=1, volume="/w")
    revision = await mds.client.put_export(moved, revision)
    await mds.client.put_export(other, 0)
    with pytest.raises(BusyError, match=f"exported by {IQN}2 already"):
        await mds.client.put_export(record(), revision)


async def test_an_exported_volume_is_neither_deleted_nor_replaced_nor_given_away(mds):
    revision = await mds.client.put_export(record(), 0)
    replace = ns.RenameFileRequest(
        oldFileName="/w",
        newFileName="/v",
        oldFileID=(await mds.client.info("w")).id,
        newFileID=(await mds.client.info("v")).id,
    )
    async with mds.client_of("root", "correct horse") as root:
        for refused in (mds.client.delete("v"), root.change_owner("v", "bob")):
            with pytest.raises(BusyError, match="unexport it first"):
                await refused
        assert (await mds.call(replace, ns.RenameFileResponse)).statusCode == ns.kFileOccupied
        await mds.client.delete_export(IQN, revision)
        await root.change_owner("v", "bob")
        await root.delete("v")


async def test_a_record_follows_the_rename_of_its_volume(mds):
    two = record(**SECRET)
    two.luns.add(lun=2, volume="w")
    revision = await mds.client.put_export(two, 0)
    waiting = asyncio.create_task(mds.client.list_exports(revision, wait_s=10))
    await asyncio.sleep(0.05)
    await mds.client.rename("v", "new")
    changed, listed = await asyncio.wait_for(waiting, 2)
    assert changed > revision
    assert [lun.volume for lun in listed[0].record.luns] == ["/new", "w"]
    found = await mds.client.get_export(IQN)
    assert (found.revision, found.record.chap_secret) == (changed, SECRET["chap_secret"])
    with pytest.raises(BusyError, match="meanwhile"):
        await mds.client.put_export(two, revision)
    await mds.client.create_volume("v", 1 << 30)
    await mds.client.delete("v")  # another one, which is not exported
    with pytest.raises(BusyError, match="unexport it first"):
        await mds.client.delete("new")
    await mds.restart()
    with pytest.raises(BusyError, match="unexport it first"):
        await mds.client.delete("new")
