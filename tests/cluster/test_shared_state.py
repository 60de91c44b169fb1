# SPDX-License-Identifier: BSD-3-Clause
"""The shared state of a volume with real processes: gateways that follow it, one that falls silent,
a metadata server that is killed."""

import time
from collections.abc import Iterator

import pytest
from support.foreigncore import (
    FOLLOW,
    GET,
    READ,
    SET,
    UNKNOWN,
    WRITE,
    Core,
    Pending,
    finish,
    turn_until,
)
from support.stack import Stack

LEASE_S = 20


class Follower:
    """Follows the state as a gateway does: takes a new one over, and says so by following on."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.revision = UNKNOWN
        self.states: list[bytes] = []
        self.ended: str | None = None
        self.told: Pending | None = None
        self._follow()

    def _follow(self) -> None:
        self.core.state(FOLLOW, self.revision, then=self._changed)

    def _changed(self, told: Pending) -> None:
        if told.result != "OK":
            self.ended = told.result
            return
        self.told = told
        self.revision = told.revision
        self.states.append(told.state)
        self._follow()


@pytest.fixture
def cores(stack: Stack) -> Iterator[list[Core]]:
    """Two gateways of the volume "disk": the first has it open for writing, the second for
    reading."""
    stack.create_volume("disk", "1G")
    made = [Core(stack.mds_address), Core(stack.mds_address)]
    for core, read_only in zip(made, (False, True), strict=True):
        assert finish(made, core.open("/disk", read_only=read_only)).result == "OK"
    yield made
    for core in made:
        core.destroy()


def test_a_change_ends_when_the_other_gateway_has_taken_it_over(cores: list[Core]) -> None:
    """And the other one, whose loop does not turn, holds it up."""
    active, standby = cores
    followers = [Follower(active), Follower(standby)]
    turn_until(cores, lambda: all(f.revision == 0 for f in followers), 5)
    change = active.state(SET, 0, b"reserved")
    turn_until([active], lambda: followers[0].revision == 1, 5)
    until = time.monotonic() + 1
    turn_until([active], lambda: time.monotonic() > until, 5)
    assert change.result is None
    began = time.monotonic()
    finish(cores, change)
    assert time.monotonic() - began < 1
    assert (change.result, change.revision) == ("OK", 1)
    assert followers[1].states[-1] == b"reserved"
    # From the other side, and of two at once one is told the other's.
    first, second = standby.state(SET, 1, b"a"), active.state(SET, 1, b"b")
    finish(cores, first)
    finish(cores, second)
    assert sorted((str(first.result), str(second.result))) == ["EAGAIN", "OK"]
    loser = first if first.result == "EAGAIN" else second
    assert (loser.revision, loser.state) == (2, b"b" if loser is first else b"a")
    # The lease is renewed all the while: nothing ends.
    assert [f.ended for f in followers] == [None, None]


def test_state_and_following_outlive_a_kill_of_the_metadata_server(
    cores: list[Core], stack: Stack
) -> None:
    """The followers find it again by themselves, and a change that met the outage is made once."""
    active, standby = cores
    followers = [Follower(active), Follower(standby)]
    assert finish(cores, active.state(SET, 0, b"one")).result == "OK"
    stack.mds.kill()
    change = active.state(SET, 1, b"two")
    until = time.monotonic() + 1
    turn_until(cores, lambda: time.monotonic() > until, 5)
    assert change.result is None
    stack.mds.start()
    finish(cores, change)
    assert (change.result, change.revision) == ("OK", 2)
    turn_until(cores, lambda: all(f.revision == 2 for f in followers), 5)
    assert [f.states[-1] for f in followers] == [b"two", b"two"]
    assert finish(cores, standby.state(GET)).state == b"two"


def test_takeover_claims_the_volume_without_waiting_for_the_old_owner(
    cores: list[Core], stack: Stack
) -> None:
    """The old owner's loop stands still: it was fenced before the claim, so nobody waits for it."""
    old, standby = cores
    followers = [Follower(old), Follower(standby)]
    turn_until(cores, lambda: all(f.revision == 0 for f in followers), 5)
    until = time.monotonic() + 0.2
    turn_until(cores, lambda: time.monotonic() > until, 5)
    new = Core(stack.mds_address)
    try:
        assert finish([new], new.open("/disk")).result == "OK"
        began = time.monotonic()
        claim = finish([new, standby], new.state(SET, 0, b"mine", epoch=new.epoch()))
        assert (claim.result, claim.revision) == ("OK", 1)
        assert time.monotonic() - began < 2
        late = old.io(WRITE, 0, b"late" * 1024)
        finish(cores, late)
        assert late.result == "ESTALE"
        turn_until(cores, lambda: followers[0].ended is not None, 10)
        assert followers[0].ended == "ESTALE"
        assert finish([new], new.state(SET, 1, b"again", epoch=new.epoch() - 1)).result == "ESTALE"
    finally:
        new.destroy()


@pytest.mark.timeout(120)
def test_a_gateway_that_falls_silent_holds_a_change_up_for_a_lease_and_does_no_io_by_the_old_state(
    cores: list[Core],
) -> None:
    """Its loop stands still, as in a process that was stopped. When it turns again, IO of before
    ends with EAGAIN, and new IO waits until it has been told the new state."""
    active, standby = cores
    silent, other = Follower(active), Follower(standby)
    turn_until(cores, lambda: silent.revision == other.revision == 0, 5)
    assert finish(cores, active.io(WRITE, 0, b"data" * 1024)).result == "OK"
    began = time.monotonic()
    change = standby.state(SET, 0, b"reserved")
    finish([standby], change, LEASE_S + 10)
    took = time.monotonic() - began
    assert change.result == "OK"
    assert LEASE_S - 6 < took < LEASE_S + 3, took
    before = active.io(WRITE, 0, b"late" * 1024)
    finish([active, standby], before)
    assert before.result == "EAGAIN"
    after = active.io(READ, 0, length=4096)
    finish([active, standby], after)
    assert (after.result, after.data) == ("OK", b"data" * 1024)
    assert silent.states[-1] == b"reserved"
    assert silent.told is not None
    assert silent.told.ended_at < after.ended_at
    assert silent.ended is None
