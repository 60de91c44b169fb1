# SPDX-License-Identifier: BSD-3-Clause
"""Records of exports: compare-and-set, who sees what, waiting for a change, a restart."""

import asyncio
import time

import pytest

from gateway.errors import AccessError, BusyError, InvalidArgumentError, NotFoundError
from gateway.mds import exports
from gateway.proto import iscsi_pb2

IQN = "iqn.2026-11.io.copygate:v"


def record(iqn: str = IQN, **fields: object) -> iscsi_pb2.ExportRecord:
    made = iscsi_pb2.ExportRecord(iqn=iqn, **fields)
    made.luns.add(lun=1, volume="/v")
    return made


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
