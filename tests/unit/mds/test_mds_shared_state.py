# SPDX-License-Identifier: BSD-3-Clause
"""The state that those who have a volume open share: revisions, followers, and whom a change waits
for."""

import asyncio
import contextlib
import sqlite3
import time

import pytest
import pytest_asyncio

from gateway.errors import AccessError, NotFoundError
from gateway.mds import shared_state
from gateway.mds.store import Space
from gateway.proto import nameserver2_pb2 as ns
from gateway.proto import shared_state_pb2 as ss
from gateway.rpc.client import BaiduClient

GIB = 1 << 30
UNKNOWN = (1 << 64) - 1


class Gateway:
    """One who has /disk open, on a connection of its own."""

    def __init__(self, mds):
        self.mds = mds
        self.tokens = 0

    async def start(self):
        self.rpc = BaiduClient(self.mds.server.addresses[0])
        await self.rpc.connect()
        response = await self.mds.call(ns.OpenFileRequest(fileName="/disk"), ns.OpenFileResponse)
        self.session = response.protoSession.sessionID
        return self

    async def reconnect(self):
        await self.rpc.close()
        self.rpc = BaiduClient(self.mds.server.addresses[0])
        await self.rpc.connect()

    async def call(self, kind, **fields):
        name = kind.DESCRIPTOR.name.removesuffix("Request")
        request = kind(
            **{
                "fileName": "/disk",
                "owner": "alice",
                "date": self.mds.clock.now_us(),
                "sessionID": self.session,
                **fields,
            }
        )
        response, _ = await self.rpc.call(
            "copygate.SharedStateService", name, request, getattr(ss, name + "Response")
        )
        return response

    async def get(self, **fields):
        return await self.call(ss.GetStateRequest, **fields)

    async def follow(self, known, wait_ms=0, **fields):
        return await self.get(known_revision=known, wait_ms=wait_ms, follow=True, **fields)

    async def set(self, expected, state, **fields):
        self.tokens += 1
        return await self.call(
            ss.SetStateRequest,
            **{"expected_revision": expected, "state": state, "token": id(self) + self.tokens}
            | fields,
        )

    async def wait(self, revision, wait_ms=0):
        response = await self.call(ss.AwaitStateRequest, revision=revision, wait_ms=wait_ms)
        assert response.statusCode == ns.kOK
        return response.acknowledged

    async def refresh(self):
        request = ns.ReFreshSessionRequest(fileName="/disk", sessionID=self.session)
        return (await self.mds.call(request, ns.ReFreshSessionResponse)).statusCode

    async def close_session(self):
        request = ns.CloseFileRequest(fileName="/disk", sessionID=self.session)
        return (await self.mds.call(request, ns.CloseFileResponse)).statusCode


@pytest_asyncio.fixture
async def open_gateway(mds):
    """Makes a gateway; /disk exists."""
    await mds.client.create_volume("disk", GIB)
    gateways = []

    async def make():
        gateways.append(await Gateway(mds).start())
        return gateways[-1]

    yield make
    for gateway in gateways:
        await gateway.rpc.close()


# Revisions


async def test_state_never_set_has_revision_0_and_nothing_in_it(open_gateway, mds):
    one = await open_gateway()
    response = await one.get()
    assert (response.statusCode, response.revision, response.state) == (ns.kOK, 0, b"")
    assert await mds.client.shared_state("disk") == (0, b"")


async def test_state_is_replaced_only_at_the_expected_revision(open_gateway, mds):
    one, two = await open_gateway(), await open_gateway()
    response = await one.set(0, b"first")
    assert (response.statusCode, response.revision) == (ns.kOK, 1)
    response = await two.set(0, b"second")
    assert response.statusCode == ns.kSharedStateConflict
    assert (response.revision, response.state) == (1, b"first")
    assert (await two.set(1, b"second")).revision == 2
    assert await mds.client.shared_state("/disk") == (2, b"second")


async def test_repeated_change_is_made_once(open_gateway, mds):
    one, two = await open_gateway(), await open_gateway()
    assert (await one.set(0, b"x", token=77)).revision == 1
    again = await one.set(0, b"x", token=77)
    assert (again.statusCode, again.revision) == (ns.kOK, 1)
    assert (await two.set(1, b"y")).revision == 2
    again = await one.set(0, b"x", token=77)
    assert (again.statusCode, again.revision) == (ns.kSharedStateConflict, 2)


async def test_state_outlives_a_restart_and_goes_with_the_volume(open_gateway, mds):
    one = await open_gateway()
    await one.set(0, b"kept")
    await mds.restart()
    assert await mds.client.shared_state("disk") == (1, b"kept")
    await one.close_session()
    await mds.client.delete("disk")
    with pytest.raises(NotFoundError):
        await mds.client.shared_state("disk")
    await mds.client.recover("disk")
    assert await mds.client.shared_state("disk") == (1, b"kept")
    await mds.client.delete("disk")
    [deleted] = await mds.client.list_deleted()
    await mds.client.purge(deleted.name)
    with contextlib.closing(sqlite3.connect(mds.config.store)) as db:
        query = "SELECT count(*) FROM kv WHERE space = ?"
        for _ in range(100):
            left = db.execute(query, (int(Space.SHARED_STATES),)).fetchone()[0]
            if left == 0:
                break
            await asyncio.sleep(0.02)
        assert left == 0


async def test_state_of_64_kib_is_taken_and_one_byte_more_refused(open_gateway):
    one = await open_gateway()
    assert (await one.set(0, bytes(shared_state.STATE_MAX))).statusCode == ns.kOK
    assert (await one.set(1, bytes(shared_state.STATE_MAX + 1))).statusCode == ns.kParaError
    assert len((await one.get()).state) == shared_state.STATE_MAX


# Who may


async def test_strangers_and_sessions_of_other_volumes_are_refused(open_gateway, mds):
    one = await open_gateway()
    assert (await one.get(owner="bob")).statusCode == ns.kOwnerAuthFail
    assert (await one.set(0, b"", owner="bob")).statusCode == ns.kOwnerAuthFail
    async with mds.client_of("bob") as bob:
        with pytest.raises(AccessError):
            await bob.shared_state("disk")
    await mds.client.create_volume("other", GIB)
    for refused in (
        one.get(fileName="/other", wait_ms=1),
        one.follow(0, fileName="/other"),
        one.set(0, b"", fileName="/other"),
        one.set(0, b"", sessionID="made up"),
        one.call(ss.AwaitStateRequest, revision=0, fileName="/other"),
    ):
        assert (await refused).statusCode == ns.kSessionNotExist
    assert (await one.get(fileName="/nothing")).statusCode == ns.kFileNotExists


async def test_change_with_an_epoch_is_the_owners_alone(open_gateway, mds):
    one = await open_gateway()
    await mds.client.raise_epoch("disk")
    epoch = await mds.client.raise_epoch("disk")
    for wrong in (epoch - 1, epoch + 1):
        assert (await one.set(0, b"mine", epoch=wrong)).statusCode == ns.kEpochTooOld
    assert (await one.set(0, b"mine", epoch=epoch)).statusCode == ns.kOK


async def test_only_so_many_sessions_follow(open_gateway, monkeypatch):
    monkeypatch.setattr(shared_state, "FOLLOWERS_MAX", 2)
    one, two, three = await open_gateway(), await open_gateway(), await open_gateway()
    for follower in (one, two):
        assert (await follower.follow(UNKNOWN)).statusCode == ns.kOK
    assert (await three.follow(UNKNOWN)).statusCode == ns.kSharedStateFollowers
    assert (await three.get()).statusCode == ns.kOK
    assert (await one.follow(0)).statusCode == ns.kOK
    await one.close_session()
    assert (await three.follow(UNKNOWN)).statusCode == ns.kOK


# Waiting for a change


async def test_follower_is_told_at_once_what_it_does_not_know_and_later_what_changes(open_gateway):
    one, two = await open_gateway(), await open_gateway()
    assert (await two.follow(UNKNOWN, wait_ms=5000)).revision == 0
    await one.set(0, b"a")
    response = await two.follow(0, wait_ms=5000)
    assert (response.revision, response.state) == (1, b"a")
    look = asyncio.create_task(two.follow(1, wait_ms=5000))
    await asyncio.sleep(0.1)
    assert not look.done()
    start = time.monotonic()
    await one.set(1, b"b")
    response = await look
    assert time.monotonic() - start < 1
    assert (response.revision, response.state) == (2, b"b")


async def test_wait_without_a_change_ends_when_it_was_to_end(open_gateway):
    one = await open_gateway()
    start = time.monotonic()
    response = await one.follow(0, wait_ms=300)
    assert 0.25 < time.monotonic() - start < 2
    assert (response.statusCode, response.revision) == (ns.kOK, 0)
    assert not response.HasField("state")


async def test_second_wait_of_a_session_replaces_the_first(open_gateway):
    one = await open_gateway()
    first = asyncio.create_task(one.follow(0, wait_ms=5000))
    await asyncio.sleep(0.1)
    second = asyncio.create_task(one.follow(0, wait_ms=5000))
    response = await asyncio.wait_for(first, 1)
    assert (response.statusCode, response.revision) == (ns.kOK, 0)
    await one.set(0, b"a")
    assert (await asyncio.wait_for(second, 1)).revision == 1


async def test_waits_do_not_keep_other_requests_of_a_connection_from_being_read(open_gateway, mds):
    one = await open_gateway()
    looks = []
    for _ in range(100):  # a connection has 64 requests that are worked on
        response = await mds.call(ns.OpenFileRequest(fileName="/disk"), ns.OpenFileResponse)
        session = response.protoSession.sessionID
        look = one.get(known_revision=0, wait_ms=10_000, sessionID=session)
        looks.append(asyncio.create_task(look))
    await asyncio.sleep(0.2)
    assert not any(look.done() for look in looks)
    response = await asyncio.wait_for(one.set(0, b"a"), 2)
    assert response.statusCode == ns.kOK
    answers = await asyncio.wait_for(asyncio.gather(*looks), 2)
    assert {answer.revision for answer in answers} == {1}


async def test_stopping_server_does_not_wait_for_those_who_wait(open_gateway, mds):
    one = await open_gateway()
    look = asyncio.create_task(one.follow(0, wait_ms=10_000))
    await asyncio.sleep(0.1)
    start = time.monotonic()
    await mds.server.stop()
    assert time.monotonic() - start < 0.9
    assert (await look).revision == 0
    await mds.server.start()


# Whom a change waits for


async def test_change_is_acknowledged_at_once_if_nobody_else_follows(open_gateway):
    one, two = await open_gateway(), await open_gateway()
    await one.follow(UNKNOWN)
    await two.get()
    assert (await one.set(0, b"a")).acknowledged
    assert await one.wait(1)


async def test_change_waits_until_every_other_follower_knows_it(open_gateway):
    one, two, three = await open_gateway(), await open_gateway(), await open_gateway()
    for follower in (one, two, three):
        await follower.follow(UNKNOWN)
        await follower.follow(0)
    assert not (await one.set(0, b"a")).acknowledged
    waiting = asyncio.create_task(one.wait(1, 10_000))
    assert (await two.follow(0)).revision == 1  # told, but it does not act by it yet
    await two.follow(1)
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await three.follow(1)
    assert await asyncio.wait_for(waiting, 0.8)  # sooner than by looking again


async def test_wait_that_is_over_says_that_not_everybody_knows(open_gateway):
    one, two = await open_gateway(), await open_gateway()
    await two.follow(UNKNOWN)
    await one.set(0, b"a")
    assert not await one.wait(1, 100)
    response = await one.call(ss.AwaitStateRequest, revision=2)
    assert response.statusCode == ns.kParaError


async def test_closing_a_session_ends_the_wait_for_it(open_gateway):
    one, two = await open_gateway(), await open_gateway()
    await two.follow(UNKNOWN)
    await one.set(0, b"a")
    waiting = asyncio.create_task(one.wait(1, 10_000))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await two.close_session()
    assert await asyncio.wait_for(waiting, 0.8)


async def test_session_whose_lease_ran_out_is_ended_and_not_revived(open_gateway, mds):
    one, two = await open_gateway(), await open_gateway()
    await two.follow(UNKNOWN)
    await one.set(0, b"a")
    waiting = asyncio.create_task(one.wait(1, 10_000))
    mds.clock.move(15)
    await asyncio.sleep(1.2)
    assert not waiting.done()
    await one.refresh()
    mds.clock.move(6)
    assert await asyncio.wait_for(waiting, 3)
    assert await one.refresh() == ns.kOK
    assert await two.refresh() == ns.kSessionNotExist


async def test_session_that_ran_out_but_missed_nothing_is_revived(open_gateway, mds):
    one, two = await open_gateway(), await open_gateway()
    await two.follow(UNKNOWN)
    await one.set(0, b"a")
    await two.follow(1)
    mds.clock.move(25)
    assert await one.wait(1)
    assert await two.refresh() == ns.kOK


async def test_restarted_server_waits_for_followers_of_before(open_gateway, mds):
    one, two = await open_gateway(), await open_gateway()
    await two.follow(UNKNOWN)
    await two.follow(0)
    await mds.restart()
    await one.reconnect()
    await two.reconnect()
    assert not (await one.set(0, b"a")).acknowledged
    await mds.restart()
    await one.reconnect()
    await two.reconnect()
    assert not await one.wait(1, 100)
    await two.follow(1)
    assert await one.wait(1)
    # What it knew is in memory: it has to say it again to the next server.
    await mds.restart()
    await one.reconnect()
    await two.reconnect()
    assert not await one.wait(1, 100)
    await two.follow(1)
    assert await one.wait(1)


async def test_restarted_server_gives_followers_a_whole_lease(open_gateway, mds):
    one, two = await open_gateway(), await open_gateway()
    await two.follow(UNKNOWN)
    mds.clock.move(30)
    await mds.restart()
    await one.reconnect()
    await one.set(0, b"a")
    mds.clock.move(15)
    assert not await one.wait(1, 50)
    mds.clock.move(6)
    assert await one.wait(1, 50)


async def test_follower_fenced_by_the_claim_of_a_later_owner_is_not_waited_for(open_gateway, mds):
    one, two, three = await open_gateway(), await open_gateway(), await open_gateway()
    old = await mds.client.raise_epoch("disk")
    await one.follow(UNKNOWN, epoch=old)
    new = await mds.client.raise_epoch("disk")
    await two.follow(UNKNOWN, epoch=new)
    # The epoch is raised, but its owner has not said yet that every chunkserver knows it.
    assert not (await three.set(0, b"a")).acknowledged
    await two.follow(1, epoch=new)
    assert not await three.wait(1)
    assert (await two.set(1, b"mine", epoch=new)).acknowledged
    assert await three.wait(1)
    assert not (await three.set(2, b"b")).acknowledged  # the owner itself is waited for
    await two.follow(3, epoch=new)
    assert await three.wait(3)


async def test_revision_that_never_was_acknowledges_nothing(open_gateway):
    one, two = await open_gateway(), await open_gateway()
    await two.follow(UNKNOWN)
    await two.follow(5)
    assert not (await one.set(0, b"a")).acknowledged
