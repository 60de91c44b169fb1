# SPDX-License-Identifier: BSD-3-Clause
"""The chunkserver's host: against a real metadata server, with an engine that only remembers."""

import asyncio
import contextlib
import errno
import logging
import os
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from gateway.chunkserver.host import Host, Settings
from gateway.errors import BusyError, CopygateError, InvalidArgumentError, UnavailableError
from gateway.mds.client import MdsClient
from gateway.mds.config import MdsConfig
from gateway.mds.server import MdsServer
from gateway.proto import cluster_pb2


class Scrub(NamedTuple):
    """As the engine's."""

    rate: int = 16 << 20
    running: bool = False
    request: int = 0
    queued: int = 0
    completed: int = 0
    started_s: int = 0
    completed_s: int = 0
    checked: int = 0
    skipped: int = 0
    found: int = 0
    bad_blocks: int = 0
    bad_blocks_more: bool = False


class BadBlock(NamedTuple):
    """As the engine's."""

    pool: int
    copyset: int
    chunk: int
    file_id: int
    offset: int | None


SCRUB = Scrub()


class Stats:
    """What the host reads of the engine's counters."""

    def __init__(self) -> None:
        self.capacity_bytes = 1 << 40
        self.free_bytes = 1 << 39
        self.disk_error = 0
        self.scrub = SCRUB


class Member(NamedTuple):
    """As the engine's."""

    id: int
    learner: bool = False


class Progress(NamedTuple):
    """As the engine's."""

    id: int
    learner: bool
    match: int
    heard_ms_ago: int
    copying: bool


class Copyset(NamedTuple):
    """As the engine's."""

    pool: int
    copyset: int
    member: int
    role: str = "leader"
    ready: bool = True
    term: int = 3
    leader: int = 0
    last_index: int = 9
    durable_index: int = 9
    commit_index: int = 8
    applied_index: int = 7
    members: tuple[Member, ...] = ()
    members_index: int = 0
    members_committed: bool = True
    progress: tuple[Progress, ...] = ()


class Engine:
    """Does what it is told, and remembers it."""

    def __init__(self, address: str = "127.0.0.1:6710") -> None:
        self.uuid = str(uuid.uuid4())
        self.address = address
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.replicas: dict[tuple[int, int], Copyset] = {}
        self.founders: dict[tuple[int, int], list[int]] = {}
        self.peers: dict[int, str] = {}
        self.calls: list[tuple[object, ...]] = []
        self.fails: dict[str, int] = {}
        self.epochs: list[tuple[int, int]] = []
        self.reclaimed: list[tuple[int, int, int]] = []
        self.refuses: set[int] = set()
        self.stopped = False
        self.counters = Stats()
        self.scrubs: list[int] = []
        self.bad: list[BadBlock] = []

    def _fail(self, what: str) -> None:
        if what in self.fails:
            raise OSError(self.fails[what], os.strerror(self.fails[what]))

    def copysets(self) -> list[Copyset]:
        return list(self.replicas.values())

    def set_peer(self, chunkserver: int, address: str) -> None:
        self.peers[chunkserver] = address

    def add_copyset(
        self, pool: int, copyset: int, *, member: int, founders: Sequence[int] = ()
    ) -> None:
        self._fail("add_copyset")
        self.replicas[pool, copyset] = Copyset(pool, copyset, member)
        self.founders[pool, copyset] = list(founders)

    def remove_copyset(self, pool: int, copyset: int, *, member: int) -> None:
        assert self.replicas[pool, copyset].member == member
        del self.replicas[pool, copyset]

    def change_members(self, pool: int, copyset: int, change: str, member: int) -> None:
        self.calls.append((pool, copyset, change, member))
        self._fail("change_members")

    def transfer(self, pool: int, copyset: int, member: int) -> None:
        self.calls.append((pool, copyset, "transfer", member))

    def raise_epoch(self, file_id: int, epoch: int) -> None:
        self.epochs.append((file_id, epoch))
        self._fail("raise_epoch")

    def reclaim(self, pool: int, copyset: int, chunk: int) -> None:
        if chunk in self.refuses:
            raise OSError(5, "input/output error")
        self.reclaimed.append((pool, copyset, chunk))

    def stats(self) -> Stats:
        return self.counters

    def scrub(self, request: int) -> None:
        self.scrubs.append(request)

    def bad_blocks(self) -> list[BadBlock]:
        return self.bad

    def stop(self) -> None:
        self.stopped = True


def config(folder: Path, grpc: str = "127.0.0.1:0") -> MdsConfig:
    return MdsConfig(
        store=folder / "metadata.sqlite",
        listen=("127.0.0.1:0",),
        grpc_listen=(grpc,),
        heartbeat_interval_s=0.02,
    )


@pytest_asyncio.fixture
async def mds(tmp_path: Path) -> AsyncIterator[MdsServer]:
    server = MdsServer(config(tmp_path))
    await server.start()
    yield server
    await server.stop()


def host_of(mds: MdsServer, engine: Engine, folder: Path) -> Host:
    settings = Settings(folder=folder, listen="127.0.0.1:0", mds_grpc=mds.grpc_address)
    return Host(settings, engine)  # type: ignore[arg-type]


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to pass within 5 s")


async def status(mds: MdsServer) -> cluster_pb2.ClusterStatusResponse:
    async with MdsClient(mds.grpc_address) as client:
        return await client.status()


async def test_a_host_registers_and_makes_its_copysets(mds: MdsServer, tmp_path: Path) -> None:
    engine = Engine()
    host = host_of(mds, engine, tmp_path)
    await host.start(timeout_s=5)
    found = (await status(mds)).chunkservers[0]
    assert (found.address, found.online, found.id) == (engine.address, True, host.id)
    assert found.used_bytes == 1 << 39
    assert len(engine.replicas) == found.copysets > 0
    assert all(engine.founders[key] == [host.id] for key in engine.replicas)
    assert engine.peers == {host.id: engine.address}
    await host.stop()
    assert engine.stopped


async def test_epochs_are_raised_once(mds: MdsServer, tmp_path: Path) -> None:
    engine = Engine()
    host = host_of(mds, engine, tmp_path)
    await host.start(timeout_s=5)
    async with MdsClient(mds.grpc_address) as client:
        await client.create_volume("v", 1 << 30)
        volume = await client.info("v")
        epoch = await client.raise_epoch("v")
        await eventually(lambda: (volume.id, epoch) in engine.epochs)
    await asyncio.sleep(0.1)
    assert engine.epochs.count((volume.id, epoch)) == 1
    await host.stop()


async def test_a_disk_error_is_reported_and_nothing_more_is_done(
    mds: MdsServer, tmp_path: Path
) -> None:
    engine = Engine()
    host = host_of(mds, engine, tmp_path)
    await host.start(timeout_s=5)
    engine.counters.disk_error = 5
    found = None
    for _ in range(200):
        found = (await status(mds)).chunkservers[0]
        if found.disk_error:
            break
        await asyncio.sleep(0.01)
    assert found is not None
    assert found.disk_error == "Input/output error"
    await host.stop()


async def test_a_scrub_is_asked_for_and_its_findings_are_reported(
    mds: MdsServer, tmp_path: Path
) -> None:
    engine = Engine()
    host = host_of(mds, engine, tmp_path)
    await host.start(timeout_s=5)
    async with MdsClient(mds.grpc_address) as client:
        asked = await client.start_scrub()
        assert list(asked.chunkserver_ids) == [host.id]
        await eventually(lambda: asked.request in engine.scrubs)
        engine.bad = [BadBlock(1, 2, 3, 4, None), BadBlock(1, 2, 3, 4, 8192)]
        engine.counters.scrub = SCRUB._replace(completed=asked.request, bad_blocks=2)
        for _ in range(500):
            scrub = (await client.status()).chunkservers[0].scrub
            if scrub.completed_request == asked.request:
                break
            await asyncio.sleep(0.01)
    assert scrub.bad_blocks == 2
    assert not scrub.bad[0].HasField("offset")
    assert scrub.bad[1].offset == 8192
    await host.stop()


async def test_a_scrub_that_is_off_is_not_asked_for(mds: MdsServer, tmp_path: Path) -> None:
    engine = Engine()
    host = host_of(mds, engine, tmp_path)
    await host.start(timeout_s=5)
    async with MdsClient(mds.grpc_address) as client:
        await client.start_scrub()
        engine.counters.scrub = SCRUB._replace(rate=0)
        for _ in range(500):
            if not (await client.status()).chunkservers[0].scrub.rate:
                break
            await asyncio.sleep(0.01)
        engine.scrubs.clear()
        await asyncio.sleep(0.1)
        with pytest.raises(BusyError, match="is off"):
            await client.start_scrub()
    assert engine.scrubs == []
    await host.stop()


async def is_online(mds: MdsServer) -> bool:
    try:
        return (await status(mds)).chunkservers[0].online
    except UnavailableError:  # gRPC pauses before it connects again
        return False


async def test_an_mds_that_restarts_is_found_again(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        first = MdsServer(config(tmp_path))
        await first.start()
        stack.push_async_callback(first.stop)
        host = host_of(first, Engine(), tmp_path)
        stack.push_async_callback(host.stop)
        await host.start(timeout_s=5)
        await first.stop()
        await asyncio.sleep(0.1)
        second = MdsServer(config(tmp_path, first.grpc_address))
        await second.start()
        stack.push_async_callback(second.stop)
        for _ in range(500):
            if await is_online(second):
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the host did not come back")


async def test_no_mds_within_the_time_is_an_error(tmp_path: Path) -> None:
    settings = Settings(folder=tmp_path, listen="127.0.0.1:0", mds_grpc="127.0.0.1:1")
    host = Host(settings, Engine())  # type: ignore[arg-type]
    with pytest.raises(UnavailableError):
        await host.start(timeout_s=0.3)
    await host.stop()


async def test_what_the_mds_refuses_ends_the_start(
    mds: MdsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.chunkserver.host.TAKEN_S", 0.2)
    first = host_of(mds, Engine(), tmp_path)
    await first.start(timeout_s=5)
    second = host_of(mds, Engine(), tmp_path / "other")  # the same address, another disk
    with pytest.raises(CopygateError, match="another disk"):
        await second.start(timeout_s=5)
    await second.stop()
    await first.stop()


async def test_a_wiped_chunkserver_waits_until_its_old_self_is_gone(
    mds: MdsServer, tmp_path: Path
) -> None:
    first = host_of(mds, Engine(), tmp_path)
    await first.start(timeout_s=5)
    await first.stop()
    second = host_of(mds, Engine(), tmp_path)  # the same address, another disk
    await second.start(timeout_s=10)
    assert second.id != first.id
    await second.stop()


async def test_a_unix_address_cannot_join_a_cluster(mds: MdsServer, tmp_path: Path) -> None:
    host = host_of(mds, Engine("unix:/run/x"), tmp_path)
    with pytest.raises(InvalidArgumentError):
        await host.start(timeout_s=5)
    await host.stop()


class ScriptedMds:
    """Answers what the test says, and remembers what it was told."""

    def __init__(self) -> None:
        self.assigned: list[cluster_pb2.CopysetAssignment] = []
        self.revision = 1
        self.steps: list[cluster_pb2.ConfigurationStep] = []
        self.removals: list[cluster_pb2.ReplicaRemoval] = []
        self.epochs: list[cluster_pb2.FileEpoch] = []
        self.chunks: list[int] = []
        self.confirmed: list[int] = []
        self.heard: list[cluster_pb2.HeartbeatRequest] = []
        self.interval_ms = 10

    @property
    def last(self) -> cluster_pb2.HeartbeatRequest:
        return self.heard[-1]

    def assign(self, member: int = 1, **changes: Any) -> None:
        """Copyset 1-2, with two members at these addresses."""
        members = [
            cluster_pb2.CopysetMember(
                member_id=m, chunkserver_id=m, address=f"127.0.0.1:{7000 + m}", learner=False
            )
            for m in (1, 5)
        ]
        fields = {"create": True, "founders": [1, 5]} | changes
        self.assigned = [
            cluster_pb2.CopysetAssignment(
                logical_pool_id=1, copyset_id=2, configuration_epoch=1, members=members,
                member_id=member, **fields,
            )
        ]  # fmt: skip
        self.revision += 1

    async def register_chunkserver(
        self, _request: cluster_pb2.RegisterChunkserverRequest
    ) -> cluster_pb2.RegisterChunkserverResponse:
        return cluster_pb2.RegisterChunkserverResponse(
            chunkserver_id=1,
            heartbeat_interval_ms=self.interval_ms,
            copysets=self.assigned,
            assignment_revision=self.revision,
        )

    async def heartbeat(
        self, request: cluster_pb2.HeartbeatRequest
    ) -> cluster_pb2.HeartbeatResponse:
        self.heard.append(request)
        asked = [
            cluster_pb2.ChunkId(logical_pool_id=1, copyset_id=2, chunk_id=chunk)
            for chunk in self.chunks
        ]
        known = request.assignment_revision == self.revision
        return cluster_pb2.HeartbeatResponse(
            reclaim=asked,
            epoch_revision=4,
            epochs=self.epochs if request.epoch_revision != 4 else (),
            copysets=() if known else self.assigned,
            assignment_revision=self.revision,
            steps=self.steps,
            removals=self.removals,
        )

    async def reclaim_done(self, request: cluster_pb2.ReclaimDoneRequest) -> None:
        done = [chunk.chunk_id for chunk in request.chunks]
        self.confirmed += done
        self.chunks = [chunk for chunk in self.chunks if chunk not in done]

    async def close(self) -> None:
        pass


@contextlib.asynccontextmanager
async def running(mds: ScriptedMds, engine: Engine, folder: Path) -> AsyncIterator[Host]:
    settings = Settings(folder=folder, listen="127.0.0.1:0", mds_grpc="127.0.0.1:1")
    host = Host(settings, engine, mds)  # type: ignore[arg-type]
    await host.start(timeout_s=5)
    try:
        yield host
    finally:
        await host.stop()


async def test_chunks_are_deleted_and_only_those_that_are_gone_confirmed(tmp_path: Path) -> None:
    mds, engine = ScriptedMds(), Engine()
    mds.chunks = [10, 11, 12]
    engine.refuses = {11}
    async with running(mds, engine, tmp_path):
        assert sorted(mds.confirmed) == [10, 12]
        engine.refuses = set()
        await eventually(lambda: mds.chunks == [])
        assert (1, 2, 11) in engine.reclaimed


async def test_an_epoch_that_is_not_everywhere_yet_is_not_reported(tmp_path: Path) -> None:
    mds, engine = ScriptedMds(), Engine()
    mds.epochs = [cluster_pb2.FileEpoch(file_id=7, epoch=2)]
    engine.fails["raise_epoch"] = errno.EAGAIN
    async with running(mds, engine, tmp_path):
        await eventually(lambda: engine.epochs.count((7, 2)) > 3)
        assert not any(request.HasField("epoch_revision") for request in mds.heard)
        del engine.fails["raise_epoch"]
        await eventually(lambda: mds.last.epoch_revision == 4)
        tried = len(engine.epochs)
        heard = len(mds.heard)
        await eventually(lambda: len(mds.heard) > heard + 3)
        assert len(engine.epochs) == tried


async def test_a_replica_is_made_where_it_has_to_be_and_reported(tmp_path: Path) -> None:
    mds, engine = ScriptedMds(), Engine()
    async with running(mds, engine, tmp_path):
        mds.assign(member=1 | 3 << 32, founders=[])
        await eventually(lambda: mds.last.assignment_revision == mds.revision)
        assert engine.replicas[1, 2].member == 1 | 3 << 32
        assert engine.founders[1, 2] == [], "it is blank: the leader tells it the rest"
        assert engine.peers == {1: "127.0.0.1:7001", 5: "127.0.0.1:7005"}
        [report] = mds.last.copysets
        assert (report.member_id, report.leader, report.term) == (1 | 3 << 32, True, 3)


async def test_what_fails_is_not_acknowledged_and_tried_again(tmp_path: Path) -> None:
    mds, engine = ScriptedMds(), Engine()
    async with running(mds, engine, tmp_path):
        await eventually(lambda: mds.last.assignment_revision == mds.revision)
        engine.fails["add_copyset"] = errno.ENOSPC
        before = mds.revision
        mds.assign()
        heard = len(mds.heard)
        await eventually(lambda: len(mds.heard) > heard + 3)
        assert mds.last.assignment_revision == before
        del engine.fails["add_copyset"]
        await eventually(lambda: mds.last.assignment_revision == mds.revision)


async def test_a_replica_that_is_lost_is_never_made_blank_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mds, engine = ScriptedMds(), Engine()
    mds.assign(create=False, founders=[])
    async with running(mds, engine, tmp_path):
        await eventually(lambda: len(mds.heard) > 3)
        assert not engine.replicas
        lost = [r for r in caplog.records if "is gone" in r.message]
        assert [r.levelno for r in lost] == [logging.ERROR], "said once"


async def test_another_member_s_replica_is_left_alone(tmp_path: Path) -> None:
    mds, engine = ScriptedMds(), Engine()
    engine.replicas[1, 2] = Copyset(1, 2, 77)
    mds.assign()
    async with running(mds, engine, tmp_path):
        await eventually(lambda: len(mds.heard) > 3)
        assert engine.replicas[1, 2].member == 77
        assert mds.last.assignment_revision != mds.revision
        # Only when it is to be deleted under its own name may the new one come.
        mds.removals = [cluster_pb2.ReplicaRemoval(logical_pool_id=1, copyset_id=2, member_id=77)]
        await eventually(lambda: engine.replicas[1, 2].member == 1)
        heard = len(mds.heard)
        await eventually(lambda: len(mds.heard) > heard + 3)
        assert engine.replicas[1, 2].member == 1, "the removal names the old one"


async def test_a_replica_of_an_earlier_version_gets_its_member(tmp_path: Path) -> None:
    mds, engine = ScriptedMds(), Engine()
    engine.replicas[1, 2] = Copyset(1, 2, 0)
    async with running(mds, engine, tmp_path):
        assert not mds.last.copysets, "nobody can say whose it is"
        mds.assign(founders=[1])
        await eventually(lambda: mds.last.assignment_revision == mds.revision)
        assert engine.founders[1, 2] == [1]


async def test_a_start_without_the_mds_knows_where_the_others_are(tmp_path: Path) -> None:
    mds, engine = ScriptedMds(), Engine()
    mds.assign()
    async with running(mds, engine, tmp_path):
        pass
    again = Engine()
    again.replicas = engine.replicas
    settings = Settings(folder=tmp_path, listen="127.0.0.1:0", mds_grpc="127.0.0.1:1")
    host = Host(settings, again)  # type: ignore[arg-type]
    with pytest.raises(UnavailableError):
        await host.start(timeout_s=0.1)
    assert again.peers == {1: "127.0.0.1:7001", 5: "127.0.0.1:7005"}
    await host.stop()


async def test_a_damaged_file_of_assignments_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "assignments").write_bytes(b"\xff" * 100)
    mds, engine = ScriptedMds(), Engine()
    mds.assign()
    async with running(mds, engine, tmp_path):
        assert engine.peers == {1: "127.0.0.1:7001", 5: "127.0.0.1:7005"}


async def test_a_new_leader_is_reported_at_once(tmp_path: Path) -> None:
    mds, engine = ScriptedMds(), Engine()
    mds.interval_ms = 60_000
    mds.assign()
    async with running(mds, engine, tmp_path):
        await eventually(lambda: mds.last.assignment_revision == mds.revision)
        heard = len(mds.heard)
        others = (Progress(5, learner=False, match=4, heard_ms_ago=20, copying=True),)
        engine.replicas[1, 2] = Copyset(
            1, 2, 1, term=8, members=(Member(1), Member(5, learner=True)), members_index=6,
            members_committed=False, progress=others,
        )  # fmt: skip
        os.eventfd_write(engine.event_fd, 1)
        await eventually(lambda: len(mds.heard) > heard)
        [report] = mds.last.copysets
        assert (report.term, report.last_index, report.members_index) == (8, 9, 6)
        assert not report.members_committed
        assert [(m.member_id, m.learner) for m in report.members] == [(1, False), (5, True)]
        [progress] = report.progress
        assert (progress.match_index, progress.heard_ms_ago, progress.copying) == (4, 20, True)


async def test_a_stop_is_not_lost_to_a_change_in_the_same_moment(tmp_path: Path) -> None:
    mds = ScriptedMds()
    mds.interval_ms = 60_000
    settings = Settings(folder=tmp_path, listen="127.0.0.1:0", mds_grpc="127.0.0.1:1")
    host = Host(settings, Engine(), mds)  # type: ignore[arg-type]
    await host.start(timeout_s=5)
    await asyncio.sleep(0.1)  # now it waits for a change, or a minute
    host._changed.set()
    done, _ = await asyncio.wait({asyncio.create_task(host.stop())}, timeout=5)
    assert done


@pytest.mark.parametrize(("role", "ready"), [("follower", False), ("leader", False)])
async def test_who_does_not_serve_is_no_leader(tmp_path: Path, role: str, ready: bool) -> None:
    mds, engine = ScriptedMds(), Engine()
    engine.replicas[1, 2] = Copyset(1, 2, 1, role=role, ready=ready, members=(Member(1),))
    async with running(mds, engine, tmp_path):
        [report] = mds.last.copysets
        assert not report.leader
        assert not report.members


async def test_steps_go_to_the_engine_until_they_are_taken(tmp_path: Path) -> None:
    mds, engine = ScriptedMds(), Engine()
    kinds = cluster_pb2.ConfigurationStep
    engine.fails["change_members"] = errno.EAGAIN
    async with running(mds, engine, tmp_path):
        for kind, call in (
            (kinds.ADD_LEARNER, "add-learner"), (kinds.PROMOTE, "promote"),
            (kinds.REMOVE, "remove"), (kinds.TRANSFER, "transfer"),
        ):  # fmt: skip
            mds.steps = [kinds(logical_pool_id=1, copyset_id=2, kind=kind, member_id=5 | 1 << 32)]
            wanted = (1, 2, call, 5 | 1 << 32)
            await eventually(lambda wanted=wanted: engine.calls.count(wanted) > 1)  # type: ignore[misc]
