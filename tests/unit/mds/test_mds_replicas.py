# SPDX-License-Identifier: BSD-3-Clause
"""Copysets with several replicas: how they are made, and how their members change."""

from collections import Counter

import pytest
from support.groups import Chunkserver

from gateway.errors import BusyError, ConfigError, InvalidArgumentError, NotFoundError
from gateway.proto import cluster_pb2 as cl
from gateway.proto import nameserver2_pb2 as ns
from gateway.proto import topology_pb2 as topo

GIB = 1 << 30
COPYSET = (1, 1)


class World:
    """A metadata server and chunkservers in zones of their own."""

    def __init__(self, mds):
        self.mds = mds
        self.groups = {}
        self.servers = []

    async def add(self, number, zone=""):
        """Registers another one."""
        server = Chunkserver(number, self.groups, zone)
        await server.register(self.mds.client)
        self.servers.append(server)
        return server

    async def beat(self, rounds=1, without=()):
        """Heartbeats of all but some."""
        for _ in range(rounds):
            for server in self.servers:
                if server.number not in without:
                    await server.beat(self.mds.client)

    async def copyset(self, key=COPYSET):
        """How the metadata server describes one."""
        [found] = await self.mds.client.list_copysets(copyset=key)
        return found

    async def members(self, key=COPYSET):
        """The chunkservers of its voters."""
        return {m.chunkserver_id for m in (await self.copyset(key)).members if not m.learner}

    def caught_up(self):
        """All learners have copied everything."""
        for group in self.groups.values():
            group.behind.clear()
            group.behind.update(dict.fromkeys(group.learners, 0))


@pytest.fixture
async def world(mds):
    """Three replicas on three chunkservers, two copysets, all reported."""
    await mds.remake(replicas=3, copysets_per_chunkserver=2)
    made = World(mds)
    for number in (1, 2, 3):
        await made.add(number)
    await made.beat(3)
    return made


async def test_copysets_are_made_once_there_are_enough_zones(mds):
    await mds.remake(replicas=3, copysets_per_chunkserver=4)
    world = World(mds)
    await world.add(1, "a")
    await world.add(2, "a")
    await world.add(3, "b")
    await world.beat()
    assert not world.groups
    status = await mds.client.status()
    assert (status.replicas, status.copysets.copysets, status.zones_missing) == (3, 0, 1)
    await mds.client.create_volume("disk", GIB)
    request = ns.GetOrAllocateSegmentRequest(fileName="/disk", offset=0, allocateIfNotExist=True)
    refused = await mds.call(request, ns.GetOrAllocateSegmentResponse)
    assert refused.statusCode == ns.kSegmentAllocateError
    await world.add(4, "c")
    await world.beat(2)
    for group in world.groups.values():
        assert {3, 4} < group.voters
    counts = Counter(i for group in world.groups.values() for i in group.voters)
    assert min(counts.values()) >= 4
    status = await mds.client.status()
    assert (status.copysets.leaderless, status.copysets.degraded) == (0, 0)
    assert status.zones_missing == 0
    got = await mds.call(request, ns.GetOrAllocateSegmentResponse)
    assert got.statusCode == ns.kOK


async def test_a_zone_that_is_not_given_is_the_host(mds, beat):
    await mds.remake(replicas=2)
    for number in (1, 2):
        await mds.add_chunkserver(number)
        await mds.client.heartbeat(beat(number, number))
    status = await mds.client.status()
    assert (status.zones_missing, status.copysets.copysets) == (1, 0), "both are 127.0.0.1"
    await mds.add_chunkserver(3, ip="127.0.0.2")
    assert (await mds.client.status()).copysets.copysets
    assert {s.zone for s in (await mds.client.status()).chunkservers} == {"127.0.0.1", "127.0.0.2"}


async def test_one_that_is_offline_gets_no_new_copysets_until_it_is_back(mds):
    await mds.remake(replicas=2, copysets_per_chunkserver=2)
    world = World(mds)
    await world.add(1)
    await world.beat()
    mds.clock.move(60)
    await world.add(2)
    assert not world.groups
    await world.beat(2)
    assert len(world.groups) == 2


async def test_a_joining_chunkserver_gets_copysets_with_others(world):
    before = set(world.groups)
    await world.add(4)
    await world.beat(2)
    new = [g for key, g in world.groups.items() if key not in before]
    assert len(new) == 2
    assert all(4 in g.voters and len(g.voters) == 3 for g in new)


async def test_a_replica_is_to_be_made_until_it_is_reported_and_never_again(mds):
    await mds.remake(replicas=1, copysets_per_chunkserver=2)
    world = World(mds)
    server = await world.add(1)
    server.revision = None
    await server.beat(mds.client)
    assert all(a.create and list(a.founders) == [1] for a in server.assignments.values())
    await server.beat(mds.client)
    await mds.restart()
    server.revision = None
    response = await server.beat(mds.client)
    assert len(response.copysets) == 2
    assert not any(a.create or a.founders for a in response.copysets)
    assert not (await server.beat(mds.client)).copysets, "nothing has changed"


async def test_the_number_of_replicas_stays(mds):
    await mds.remake(replicas=3)
    await mds.stop()
    with pytest.raises(ConfigError, match="made with 3 replicas"):
        await mds.start(replicas=1)
    await mds.start(replicas=None)
    assert (await mds.client.status()).replicas == 3


@pytest.mark.parametrize("replicas", [0, -1, 8])
async def test_a_number_of_replicas_that_cannot_be_is_refused(mds, replicas):
    await mds.stop()
    with pytest.raises(ConfigError, match="between 1 and 7"):
        await mds.start(replicas=replicas)
    await mds.start(replicas=None)


async def test_clients_are_told_all_members(world):
    request = topo.GetChunkServerListInCopySetsRequest(logicalPoolId=1, copysetId=[1])
    response, _ = await world.mds.baidu.call(
        "curve.mds.topology.TopologyService", "GetChunkServerListInCopySets",
        request, topo.GetChunkServerListInCopySetsResponse,
    )  # fmt: skip
    [info] = response.csInfo
    assert {(s.chunkServerID, s.port) for s in info.csLocs} == {(1, 8201), (2, 8202), (3, 8203)}


async def increase_epoch(world):
    request = ns.IncreaseFileEpochRequest(fileName="/disk")
    return await world.mds.call(request, ns.IncreaseFileEpochResponse)


async def test_an_epoch_needs_all_that_hold_copysets_but_fewer_than_the_replicas(world):
    await world.mds.client.create_volume("disk", GIB)
    raised = await increase_epoch(world)
    assert {s.chunkServerID for s in raised.csLocs} == {1, 2, 3}
    assert raised.replicas == 3
    # Another disk takes the place of chunkserver 1 without its copysets: 1 cannot be asked now.
    world.mds.clock.move(5)
    await world.beat(without=[1])
    wiped = Chunkserver(9, world.groups, "zone1")
    wiped.port = 8201
    await wiped.register(world.mds.client)
    world.servers[0] = wiped
    raised = await increase_epoch(world)
    assert {s.chunkServerID for s in raised.csLocs} == {2, 3}
    assert raised.replicas == 2
    assert (await world.copyset()).members[0].address == ""


async def test_placement_wants_a_majority(world):
    await world.mds.client.create_volume("disk", 10 * GIB)
    await world.add(4)
    await world.beat(2)
    world.mds.clock.move(60)
    await world.beat(without=[3, 4])
    request = ns.GetOrAllocateSegmentRequest(fileName="/disk", offset=0, allocateIfNotExist=True)
    got = await world.mds.call(request, ns.GetOrAllocateSegmentResponse)
    used = {c.copysetID for c in got.pageFileSegment.chunks}
    good = {k[1] for k, g in world.groups.items() if {1, 2} <= g.voters}
    assert used == good
    assert len(good) < len(world.groups)


async def test_status_tells_leaders_members_that_lag_and_copysets_without_a_majority(world):
    world.groups[COPYSET].leader = 2
    world.groups[COPYSET].behind[3] = 5
    await world.beat()
    found = await world.copyset()
    assert found.state == cl.CopysetStatus.HEALTHY
    assert [(m.chunkserver_id, m.leader, m.behind) for m in found.members] == [
        (1, False, 0), (2, True, 0), (3, False, 5),
    ]  # fmt: skip
    world.groups[COPYSET].last_index += 5000
    world.groups[COPYSET].behind[3] = 5000
    await world.beat()
    status = await world.mds.client.status()
    assert status.copysets.degraded == 1
    assert [s.lagging for s in status.chunkservers] == [0, 0, 1]
    assert [s.leaders for s in status.chunkservers] == [1, 1, 0]
    world.mds.clock.move(60)
    await world.beat(without=[3])
    assert (await world.copyset()).state == cl.CopysetStatus.DEGRADED
    world.mds.clock.move(5)
    await world.beat(without=[2, 3])
    assert (await world.copyset()).state == cl.CopysetStatus.LEADERLESS, "1 does not lead it"
    world.mds.clock.move(60)
    await world.beat(without=[2, 3])
    status = await world.mds.client.status()
    assert status.copysets.without_majority == 2
    assert (await world.copyset()).state == cl.CopysetStatus.NO_MAJORITY


@pytest.mark.parametrize(("old_leader", "new_leader"), [(1, 2), (3, 1)])
async def test_of_two_that_say_they_lead_the_later_term_does(world, old_leader, new_leader):
    old = Chunkserver(old_leader, {}, f"zone{old_leader}")
    old.id, old.revision = old_leader, 1
    old.replicas = dict(world.servers[old_leader - 1].replicas)
    old.groups = {k: type(g)(set(g.voters), leader=old_leader) for k, g in world.groups.items()}
    for group in world.groups.values():
        group.leader, group.term = new_leader, 7
    await world.beat()
    await old.beat(world.mds.client)
    found = await world.copyset()
    assert [m.chunkserver_id for m in found.members if m.leader] == [new_leader]
    assert found.term == 7


async def test_a_replica_moves_step_by_step_and_the_old_one_is_deleted(world):
    client = world.mds.client
    four = await world.add(4)
    await world.beat(2)
    assert COPYSET not in four.replicas
    assert await client.move_replica(COPYSET, 1, 4) is False
    change = (await world.copyset()).change
    assert (change.add, change.remove, change.stage) == (4, 1, cl.ChangeStatus.CREATING)
    await world.beat(3)
    assert not four.assignments[COPYSET].founders, "it is blank, and a learner"
    assert four.replicas[COPYSET] >> 32, "another id than a founder has"
    assert world.groups[COPYSET].learners == {four.replicas[COPYSET]}
    await world.beat(3)
    assert (await world.copyset()).change.stage == cl.ChangeStatus.PROMOTING
    assert 1 in await world.members(), "nobody goes before the new one votes"
    world.caught_up()
    await world.beat(6)
    found = await world.copyset()
    assert {m.chunkserver_id for m in found.members} == {2, 3, 4}
    assert not found.HasField("change")
    assert COPYSET not in world.servers[0].replicas, "its files are deleted"
    assert world.groups[COPYSET].leader in (2, 3, four.replicas[COPYSET]), "1 led: it handed over"
    assert await client.move_replica(COPYSET, 1, 4) is True, "asked again"
    response = await world.servers[0].beat(client)
    assert not response.removals


async def test_a_move_survives_a_restart_of_the_mds_at_every_step(world):
    await world.add(4)
    await world.beat(2)
    await world.mds.client.move_replica(COPYSET, 2, 4)
    for _ in range(12):
        await world.mds.restart()
        await world.beat()
        world.caught_up()
    assert await world.members() == {1, 3, 4}
    assert not (await world.copyset()).HasField("change")


async def test_a_leader_that_refuses_is_asked_again(world):
    await world.add(4)
    await world.beat(2)
    await world.mds.client.move_replica(COPYSET, 2, 4)
    world.groups[COPYSET].refuses = True
    await world.beat(6)
    assert world.servers[0].steps, "it is told again"
    assert await world.members() == {1, 2, 3}
    world.groups[COPYSET].refuses = False
    for _ in range(6):
        await world.beat()
        world.caught_up()
    assert await world.members() == {1, 3, 4}


async def test_a_wiped_chunkserver_takes_the_place_of_the_lost_one(world):
    client = world.mds.client
    await world.mds.client.create_volume("disk", GIB)
    for group in world.groups.values():
        group.leader = 2
    world.mds.clock.move(5)
    await world.beat(without=[1])
    wiped = Chunkserver(9, world.groups, "zone1")
    wiped.port = 8201
    await wiped.register(client)
    world.servers.append(wiped)
    await world.beat(2, without=[1])
    assert wiped.id == 4
    assert not wiped.replicas, "it waits for what the other had"
    assert await client.retire_chunkserver(1, target=wiped.id) == 2
    assert await client.retire_chunkserver(1, target=wiped.id) == 2, "asked again"
    for _ in range(8):
        await world.beat(without=[1])
        world.caught_up()
    assert await world.members((1, 1)) == await world.members((1, 2)) == {2, 3, 4}
    assert await client.retire_chunkserver(1) == 0
    status = await client.status()
    lost = status.chunkservers[0]
    assert (lost.retiring, lost.copysets, lost.address) == (True, 0, "")
    raised = await increase_epoch(world)
    assert ({s.chunkServerID for s in raised.csLocs}, raised.replicas) == ({2, 3, 4}, 3)
    # The lost disk comes back, at another address: what it has must go.
    world.servers[0].port = 8299
    await world.servers[0].register(client)
    assert world.servers[0].replicas
    await world.beat(2)
    assert not world.servers[0].replicas


async def test_retire_empties_a_chunkserver_a_few_at_a_time(mds):
    await mds.remake(replicas=1, copysets_per_chunkserver=6)
    world = World(mds)
    await world.add(1)
    two = await world.add(2)
    await world.beat(2)
    assert await mds.client.retire_chunkserver(1) == 6
    await world.beat(4)
    copying = sum(bool(g.learners) for g in world.groups.values())
    assert copying == 2
    stages = Counter(c.change.stage for c in await mds.client.list_copysets(chunkserver_id=1))
    assert stages[cl.ChangeStatus.PROMOTING] == 2
    for _ in range(20):
        await world.beat()
        world.caught_up()
    status = await mds.client.status()
    assert [s.copysets for s in status.chunkservers] == [0, 12]
    assert len(two.replicas) == 12
    assert not world.servers[0].replicas
    await world.servers[0].beat(mds.client)
    assert len(world.groups) == 12, "it gets no new ones"
    await mds.client.retire_chunkserver(1, cancel=True)
    await world.beat(2)
    assert len(world.servers[0].replicas) == 6, "now it does"


async def test_retire_is_all_or_nothing(world):
    with pytest.raises(BusyError, match="cannot be emptied"):
        await world.mds.client.retire_chunkserver(1)
    assert not (await world.mds.client.status()).chunkservers[0].retiring
    await world.add(4, "zone2")
    await world.beat(2)
    with pytest.raises(BusyError, match="cannot be emptied"):
        await world.mds.client.retire_chunkserver(1)
    assert not any(c.HasField("change") for c in await world.mds.client.list_copysets())
    with pytest.raises(NotFoundError, match="no chunkserver 9"):
        await world.mds.client.retire_chunkserver(9)
    with pytest.raises(NotFoundError, match="no chunkserver 9"):
        await world.mds.client.retire_chunkserver(1, target=9)
    with pytest.raises(InvalidArgumentError, match="its own place"):
        await world.mds.client.retire_chunkserver(1, target=1)


@pytest.mark.parametrize(
    ("source", "target", "error", "text"),
    [
        (1, 77, NotFoundError, "no chunkserver 77"),
        (77, 4, NotFoundError, "no chunkserver 77"),
        (1, 1, InvalidArgumentError, "where it is"),
        (4, 5, InvalidArgumentError, "has no replica"),
        (1, 2, InvalidArgumentError, "has a replica"),
        (1, 5, InvalidArgumentError, "zone 'zone2'"),
        (1, 6, BusyError, "offline"),
        (1, 7, BusyError, "disk error"),
        (1, 8, BusyError, "being retired"),
    ],
)
async def test_moves_that_make_no_sense_are_refused(world, source, target, error, text):
    client = world.mds.client
    for number, zone in ((4, ""), (5, "zone2"), (6, ""), (7, ""), (8, "")):
        await Chunkserver(number, {}, zone).register(client)
    world.mds.clock.move(60)
    await world.beat()
    for number in (4, 5, 7, 8):
        await beat_alone(client, number, disk_error="EIO" if number == 7 else "")
    await client.retire_chunkserver(8)
    with pytest.raises(error, match=text):
        await client.move_replica(COPYSET, source, target)
    with pytest.raises(NotFoundError, match="no copyset 1-99"):
        await client.move_replica((1, 99), 1, 4)
    assert await world.members() == {1, 2, 3}


async def beat_alone(client, number, **changes):
    server = Chunkserver(number, {})
    server.id = number
    await client.heartbeat(
        cl.HeartbeatRequest(
            chunkserver_id=number, uuid=server.uuid, capacity_bytes=1, used_bytes=0, **changes
        )
    )


async def test_one_change_at_a_time(world):
    await world.add(4)
    await world.add(5)
    await world.beat(2)
    client = world.mds.client
    await client.move_replica(COPYSET, 1, 4)
    assert await client.move_replica(COPYSET, 1, 4) is False, "asked again"
    with pytest.raises(BusyError, match="moves from chunkserver 1 to 4"):
        await client.move_replica(COPYSET, 1, 5)


@pytest.mark.parametrize("beats", [0, 1, 2, 3])
async def test_a_move_that_is_cancelled_leaves_everything_as_it_was(world, beats):
    client = world.mds.client
    four = await world.add(4)
    await world.beat(2)
    await client.move_replica(COPYSET, 1, 4)
    await world.beat(beats)
    await client.cancel_change(COPYSET)
    await client.cancel_change(COPYSET), "asked again"
    await world.beat(6)
    assert {m.chunkserver_id for m in (await world.copyset()).members} == {1, 2, 3}
    assert COPYSET not in four.replicas
    assert not world.groups[COPYSET].learners
    with pytest.raises(NotFoundError, match="not being changed"):
        await client.cancel_change(COPYSET)


async def test_a_replica_that_may_be_on_its_way_is_removed_until_it_is_known_not_to_be(world):
    client = world.mds.client
    four = await world.add(4)
    await world.beat(2)
    await client.move_replica(COPYSET, 1, 4)
    before = four.revision
    await client.cancel_change(COPYSET)
    await world.beat(without=[4])
    # It may still be doing what it was told before: only what it acknowledges is certain.
    four.revision = before
    response = await four.beat(client)
    assert [r.member_id >> 32 for r in response.removals] == [2]
    assert not (await four.beat(client)).removals


async def test_a_move_whose_new_replica_votes_cannot_be_cancelled(world):
    client = world.mds.client
    await world.add(4)
    await world.beat(2)
    await client.move_replica(COPYSET, 2, 4)
    while len(world.groups[COPYSET].voters) == 3:
        await world.beat()
        world.caught_up()
    world.groups[COPYSET].refuses = True
    await world.beat(2)
    with pytest.raises(BusyError, match="votes already"):
        await client.cancel_change(COPYSET)


async def test_a_learner_that_nobody_asked_for_goes(world):
    four = await world.add(4)
    await world.beat(2)
    group = world.groups[COPYSET]
    four.replicas[COPYSET] = 4 | 99 << 32
    group.learners.add(four.replicas[COPYSET])
    group.behind[four.replicas[COPYSET]] = 3
    group.index = group.last_index = group.last_index + 1
    await world.beat(3)
    assert not group.learners
    assert not (await world.copyset()).HasField("change")
    assert COPYSET not in four.replicas


async def test_the_leadership_is_transferred_on_command(world):
    client = world.mds.client
    assert await client.transfer_leader(COPYSET, 1) is True, "it leads already"
    assert await client.transfer_leader(COPYSET, 3) is False
    await world.beat(2)
    assert world.groups[COPYSET].leader == 3
    assert not any(s.steps for s in world.servers), "told once"
    await world.add(4)
    for target, error in ((4, "no vote"), (9, "no chunkserver 9")):
        with pytest.raises((InvalidArgumentError, NotFoundError), match=error):
            await client.transfer_leader(COPYSET, target)
    world.mds.clock.move(60)
    await world.beat(without=[2])
    with pytest.raises(BusyError, match="offline"):
        await client.transfer_leader(COPYSET, 2)


async def test_a_transfer_that_never_comes_to_be_is_given_up(world):
    world.groups[COPYSET].refuses = True
    await world.mds.client.transfer_leader(COPYSET, 3)
    await world.beat()
    assert sum(len(s.steps) for s in world.servers) == 1
    world.mds.clock.move(11)
    await world.beat()
    assert not any(s.steps for s in world.servers)
