# SPDX-License-Identifier: BSD-3-Clause
"""The chunkserver's engine as its host uses it: replicas, members and leaders of copysets."""

import errno
import os
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.chunkserver.engine import Chunkserver, Copyset, Member
from gateway.errors import InvalidArgumentError

pytestmark = pytest.mark.timeout(60)

POOL, COPYSET = 1, 7


class Trio:
    """Four chunkservers; the copyset's members are the first three."""

    def __init__(self, folder: Path) -> None:
        self.servers: list[Chunkserver] = []
        for number in range(1, 5):
            own = folder / str(number)
            own.mkdir()
            self.servers.append(Chunkserver(str(own), "127.0.0.1:0", wal_bytes=64 << 20))
        for server in self.servers:
            for number, other in enumerate(self.servers, 1):
                server.set_peer(number, other.address)
        for number, server in enumerate(self.servers[:3], 1):
            server.add_copyset(POOL, COPYSET, member=number, founders=[1, 2, 3])

    def status(self, number: int) -> Copyset:
        """The replica of chunkserver `number`."""
        (found,) = self.servers[number - 1].copysets()
        return found

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Waits for events of any of them until the condition holds."""
        poller = select.poll()
        for server in self.servers:
            poller.register(server.event_fd, select.POLLIN)
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            for descriptor, _ in poller.poll(20):
                os.read(descriptor, 8)

    def leader(self) -> int:
        """The number of the chunkserver that leads and serves."""
        self.wait_for(lambda: any(self.status(number).ready for number in (1, 2, 3)))
        return next(number for number in (1, 2, 3) if self.status(number).ready)


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[Trio]:
    made = Trio(tmp_path)
    yield made
    for server in made.servers:
        server.stop()


def test_one_of_three_leads_and_says_how_far_the_others_are(trio: Trio) -> None:
    lead = trio.leader()
    trio.wait_for(
        lambda: all(
            item.match == trio.status(lead).last_index for item in trio.status(lead).progress
        )
    )
    found = trio.status(lead)
    assert (found.pool, found.copyset, found.member) == (POOL, COPYSET, lead)
    assert found.role == "leader"
    assert found.leader == lead
    assert found.term >= 1
    assert found.members == (Member(1, False), Member(2, False), Member(3, False))
    assert found.members_committed
    assert {item.id for item in found.progress} == {1, 2, 3} - {lead}
    assert all(0 <= item.heard_ms_ago < 20_000 and not item.copying for item in found.progress)
    others = [trio.status(number) for number in (1, 2, 3) if number != lead]
    assert [item.role for item in others] == ["follower"] * 2
    assert all(item.progress == () for item in others)
    assert trio.servers[lead - 1].stats().leaders == 1
    stats = trio.servers[lead - 1].stats()
    assert stats.raft_frames_sent > 0
    assert stats.raft_messages_received > 0
    assert stats.raft_frames_refused == 0


def test_leadership_is_handed_over_and_told_by_the_event_descriptor(trio: Trio) -> None:
    lead = trio.leader()
    target = lead % 3 + 1
    trio.servers[lead - 1].transfer(POOL, COPYSET, target)
    begin = time.monotonic()
    trio.wait_for(lambda: trio.status(target).ready)
    assert time.monotonic() - begin < 10
    assert trio.leader() == target
    with pytest.raises(OSError, check=lambda error: error.errno == errno.EPERM):
        trio.servers[lead - 1].transfer(POOL, COPYSET, lead)
    with pytest.raises(OSError, check=lambda error: error.errno == errno.EINVAL):
        trio.servers[target - 1].transfer(POOL, COPYSET, 99)
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOENT):
        trio.servers[target - 1].transfer(POOL, 99, lead)


def _until_taken(trio: Trio, call: Callable[[], None]) -> None:
    """Calls again while the answer is: later."""

    def taken() -> bool:
        try:
            call()
        except BlockingIOError:
            return False
        return True

    trio.wait_for(taken)


def test_a_member_joins_and_another_leaves(trio: Trio) -> None:
    lead = trio.leader()
    server = trio.servers[lead - 1]
    trio.servers[3].add_copyset(POOL, COPYSET, member=4 | 1 << 32)
    assert trio.status(4).members == ()
    _until_taken(trio, lambda: server.change_members(POOL, COPYSET, "add-learner", 4 | 1 << 32))
    _until_taken(trio, lambda: server.change_members(POOL, COPYSET, "promote", 4 | 1 << 32))
    gone = lead % 3 + 1
    _until_taken(trio, lambda: server.change_members(POOL, COPYSET, "remove", gone))
    wanted = {lead, 6 - lead - gone, 4 | 1 << 32}
    trio.wait_for(
        lambda: (
            trio.status(lead).members_committed
            and {member.id for member in trio.status(lead).members} == wanted
        )
    )
    with pytest.raises(OSError, check=lambda error: error.errno == errno.EEXIST):
        trio.servers[gone - 1].remove_copyset(POOL, COPYSET, member=99)
    trio.servers[gone - 1].remove_copyset(POOL, COPYSET, member=gone)
    assert trio.servers[gone - 1].copysets() == []
    trio.servers[gone - 1].remove_copyset(POOL, COPYSET, member=gone)  # again: no error


def test_what_cannot_be_is_refused(trio: Trio) -> None:
    server = trio.servers[0]
    server.add_copyset(POOL, COPYSET, member=1, founders=[1, 2, 3])  # again: no error
    with pytest.raises(OSError, check=lambda error: error.errno == errno.EEXIST):
        server.add_copyset(POOL, COPYSET, member=5, founders=[5, 2, 3])
    with pytest.raises(OSError, check=lambda error: error.errno == errno.EINVAL):
        server.add_copyset(POOL, 8, member=1, founders=[2, 3])
    with pytest.raises(InvalidArgumentError):
        server.add_copyset(POOL, 8, member=1, founders=range(1, 11))
    with pytest.raises(InvalidArgumentError):
        server.add_copyset(POOL, 8, member=-1)
    with pytest.raises(InvalidArgumentError):
        server.change_members(POOL, COPYSET, "rename", 1)  # type: ignore[arg-type]
    for address in ("", "nonsense", "127.0.0.1", "127.0.0.1:99999"):
        with pytest.raises(OSError):
            server.set_peer(2, address)
