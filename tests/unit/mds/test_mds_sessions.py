# SPDX-License-Identifier: BSD-3-Clause
"""Sessions of open volumes: leases, what they protect, and what outlives a restart."""

import asyncio

import pytest

from gateway.errors import BusyError
from gateway.mds import leases
from gateway.proto import nameserver2_pb2 as ns

GIB = 1 << 30


async def open_disk(mds):
    response = await mds.call(ns.OpenFileRequest(fileName="/disk"), ns.OpenFileResponse)
    assert response.statusCode == ns.kOK
    return response.protoSession.sessionID


async def refresh(mds, session, **extra):
    request = ns.ReFreshSessionRequest(fileName="/disk", sessionID=session, **extra)
    return await mds.call(request, ns.ReFreshSessionResponse)


async def close(mds, session, **extra):
    request = ns.CloseFileRequest(fileName="/disk", sessionID=session, **extra)
    return (await mds.call(request, ns.CloseFileResponse)).statusCode


async def sessions(mds):
    return list((await mds.client.status()).sessions)


async def test_open_volume_is_neither_deleted_nor_renamed_nor_given_away(mds):
    await mds.client.create_volume("disk", GIB)
    session = await open_disk(mds)
    async with mds.client_of("root", "correct horse") as root:
        for refused in (
            mds.client.delete("disk"),
            mds.client.rename("disk", "other"),
            root.change_owner("disk", "bob"),
        ):
            with pytest.raises(BusyError, match=r"open at 127\.0\.0\.1"):
                await refused
    await mds.client.resize("disk", 2 * GIB)
    assert await close(mds, session) == ns.kOK
    await mds.client.delete("disk")


async def test_lease_that_runs_out_frees_the_volume_and_is_revived_by_a_late_refresh(mds):
    await mds.client.create_volume("disk", GIB)
    session = await open_disk(mds)
    mds.clock.move(19)
    with pytest.raises(BusyError):
        await mds.client.delete("disk")
    mds.clock.move(2)
    assert await sessions(mds) == []
    response = await refresh(mds, session)
    assert (response.statusCode, response.sessionID) == (ns.kOK, session)
    assert response.protoSession.leaseTime == 20_000_000
    with pytest.raises(BusyError):
        await mds.client.delete("disk")
    mds.clock.move(21)
    await mds.client.delete("disk")
    assert (await refresh(mds, session)).statusCode == ns.kFileNotExists


async def test_refresh_tells_the_length_and_epoch_of_now(mds):
    await mds.client.create_volume("disk", GIB)
    session = await open_disk(mds)
    await mds.client.resize("disk", 2 * GIB)
    await mds.client.raise_epoch("disk")
    response = await refresh(mds, session)
    assert (response.fileInfo.length, response.fileInfo.epoch) == (2 * GIB, 1)


async def test_refreshed_session_lives_on(mds):
    await mds.client.create_volume("disk", GIB)
    session = await open_disk(mds)
    for _ in range(5):
        mds.clock.move(15)
        assert (await refresh(mds, session)).statusCode == ns.kOK
    [listed] = await sessions(mds)
    assert (listed.volume, listed.session_id) == ("/disk", session)
    assert 15_000 < listed.expires_in_ms <= 20_000


async def test_unknown_and_closed_sessions_are_refused(mds):
    await mds.client.create_volume("disk", GIB)
    session = await open_disk(mds)
    assert await close(mds, session) == ns.kOK
    for unknown in (session, "made up", "x" * 5000):
        assert await close(mds, unknown) == ns.kSessionNotExist
        response = await refresh(mds, unknown)
        assert (response.statusCode, response.sessionID) == (ns.kSessionNotExist, unknown)


async def test_client_without_a_session_id_has_one_by_its_address(mds):
    await mds.client.create_volume("disk", GIB)
    response = await refresh(mds, "", clientIP="192.0.2.1", clientPort=9000)
    assert (response.statusCode, response.sessionID) == (ns.kOK, "")
    [listed] = await sessions(mds)
    assert listed.client == "192.0.2.1:9000"
    await refresh(mds, "", clientIP="192.0.2.1", clientPort=9000)
    assert len(await sessions(mds)) == 1
    assert await close(mds, "", clientIP="192.0.2.1", clientPort=9000) == ns.kOK
    assert await sessions(mds) == []
    assert await close(mds, "", clientIP="192.0.2.1", clientPort=9000) == ns.kOK


async def test_sessions_outlive_a_restart_and_do_not_run_out_during_it(mds):
    await mds.client.create_volume("disk", GIB)
    session = await open_disk(mds)
    await mds.stop()
    mds.clock.move(3600)
    await mds.start()
    with pytest.raises(BusyError):
        await mds.client.delete("disk")
    assert (await refresh(mds, session)).statusCode == ns.kOK
    mds.clock.move(21)
    await mds.client.delete("disk")


async def test_session_that_ran_out_before_a_restart_holds_nothing_after_it(mds):
    await mds.client.create_volume("disk", GIB)
    session = await open_disk(mds)
    mds.clock.move(21)
    await asyncio.sleep(0.3)  # the sweep marks it
    await mds.restart()
    assert await sessions(mds) == []
    assert (await refresh(mds, session)).statusCode == ns.kOK, "but it is still revived"


async def test_session_long_dead_is_forgotten(mds):
    await mds.client.create_volume("disk", GIB)
    session = await open_disk(mds)
    mds.clock.move(21)
    await asyncio.sleep(0.3)
    mds.clock.move(leases.STALE_KEPT_US / 1e6 + 21)
    await asyncio.sleep(0.3)
    assert (await refresh(mds, session)).statusCode == ns.kSessionNotExist


async def test_lease_of_the_configuration_is_told(mds):
    await mds.restart(lease_s=7.5)
    await mds.client.create_volume("disk", GIB)
    response = await mds.call(ns.OpenFileRequest(fileName="/disk"), ns.OpenFileResponse)
    assert response.protoSession.leaseTime == 7_500_000


async def test_number_of_sessions_is_bounded_and_dead_ones_make_room(mds, monkeypatch):
    monkeypatch.setattr(leases, "SESSIONS_PER_FILE_MAX", 3)
    await mds.client.create_volume("disk", GIB)
    for _ in range(3):
        await open_disk(mds)
    response = await mds.call(ns.OpenFileRequest(fileName="/disk"), ns.OpenFileResponse)
    assert response.statusCode == ns.kFileOccupied
    mds.clock.move(21)
    await open_disk(mds)
    assert len(await sessions(mds)) == 1


async def test_folders_and_missing_volumes_are_not_opened(mds):
    await mds.client.create_folder("a")
    for path, status in (("/a", ns.kNotSupported), ("/no", ns.kFileNotExists)):
        for request, kind in (
            (ns.OpenFileRequest(fileName=path), ns.OpenFileResponse),
            (ns.CloseFileRequest(fileName=path, sessionID="x"), ns.CloseFileResponse),
            (ns.ReFreshSessionRequest(fileName=path, sessionID="x"), ns.ReFreshSessionResponse),
        ):
            assert (await mds.call(request, kind)).statusCode == status


async def test_clock_set_back_makes_no_lease_longer(mds):
    await mds.client.create_volume("disk", GIB)
    await open_disk(mds)
    mds.clock.set_back(3600)
    await asyncio.sleep(0.3)  # the sweep notices
    mds.clock.move(21)
    await mds.client.delete("disk")
