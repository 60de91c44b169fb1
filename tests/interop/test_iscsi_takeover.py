# SPDX-License-Identifier: BSD-3-Clause
"""Two gateways of one volume: port groups, a takeover, and late writes of the one that lost it."""

import signal
import struct
import time

import pytest
from support import scsi
from support.iscsi import Target, login_again
from support.iscsi_targets import Targets
from support.libiscsi import Command, Session
from support.process import wait_until

STANDBY = 0x040B
STATE_CHANGED = 0x2A06
GROUPS = {"a": 1, "b": 2}


@pytest.fixture
def pair(targets: Targets) -> tuple[Target, Target]:
    """Gateway a has the volume "disk", gateway b stands by."""
    targets.volume()
    return targets.gateway("a", 1), targets.gateway("b", 2, standby=True)


def _read(session: Session, lba: int, blocks: int = 8) -> bytes:
    return session.good(scsi.read16(lba, blocks), in_length=blocks * 512)


def _states(session: Session) -> dict[int, int]:
    data = session.good(scsi.report_target_port_groups(), in_length=4096)
    return {group.group: group.state for group in scsi.port_groups_of(data)}


def _settled(session: Session, active: int) -> bool:
    """Whether `active` is the only group that is active, as this session is told."""
    session.clear_attentions()
    states = _states(session)
    return set(states) == set(GROUPS.values()) and all(
        state == (scsi.ACTIVE_OPTIMIZED if group == active else scsi.STANDBY)
        for group, state in states.items()
    )


def _take_over(session: Session, group: int) -> None:
    """SET TARGET PORT GROUPS: this gateway's group becomes active."""
    data = scsi.set_groups_list([(scsi.ACTIVE_OPTIMIZED, group)])
    deadline = time.monotonic() + 30
    while True:
        answer = session.execute(scsi.set_target_port_groups(len(data)), data)
        if answer.status == scsi.GOOD:
            return
        # A unit attention, or a transition that is under way.
        retry = answer.key in (scsi.UNIT_ATTENTION, scsi.NOT_READY) or answer.status == scsi.BUSY
        assert retry, answer
        assert time.monotonic() < deadline, answer
        time.sleep(0.05)


def _names(session: Session) -> list[bytes]:
    """The unit's own identifiers: not those of a port or of the target."""
    data = session.good(scsi.inquiry(0x83), in_length=255)
    return sorted(d.value for d in scsi.designators_of(data) if d.association == 0)


def _no_longer_mine(command: Command) -> bool:
    """Whether the answer is one that a multipath initiator takes to the other path."""
    answer = command.answer
    assert answer is not None
    if answer.status == scsi.CHECK_CONDITION and answer.key == scsi.NOT_READY:
        return answer.code >> 8 == 0x04
    return answer.status == scsi.CHECK_CONDITION and answer.code == STATE_CHANGED


def test_both_gateways_report_the_same_groups_and_the_same_unit(
    pair: tuple[Target, Target],
) -> None:
    """One owner, one standby; names are equal, ports are not; a standby path moves no data."""
    first, second = pair
    with first.session() as active, second.session() as standby:
        wait_until(lambda: _settled(active, 1) and _settled(standby, 1), 20, "the same groups")
        assert _names(active) == _names(standby)
        naa = [name for name in _names(active) if len(name) == 16 and name[0] >> 4 == 6]
        assert len(naa) == 1
        serials = [s.good(scsi.inquiry(0x80), in_length=255) for s in (active, standby)]
        assert serials[0] == serials[1]
        ports = []
        for session in (active, standby):
            data = session.good(scsi.inquiry(0x83), in_length=255)
            kinds = {d.kind: d.value for d in scsi.designators_of(data) if d.association == 1}
            ports.append(struct.unpack(">xxH", kinds[4])[0])
            assert struct.unpack(">xxH", kinds[5])[0] == len(ports)
        assert ports[0] != ports[1]
        # Implicit and explicit asymmetric access, on both.
        for session in (active, standby):
            assert session.good(scsi.inquiry(), in_length=96)[5] >> 4 & 3 == 3
        active.good(scsi.write16(0, 8), b"active.." * 512)
        for command in (scsi.read16(0, 8), scsi.verify16(0, 8, compare=False)):
            answer = standby.execute(command, in_length=4096 if command[0] == 0x88 else 0)
            assert (answer.key, answer.code) == (scsi.NOT_READY, STANDBY), answer
        answer = standby.execute(scsi.write16(0, 8), b"standby." * 512)
        assert (answer.key, answer.code) == (scsi.NOT_READY, STANDBY), answer
        assert standby.execute(scsi.test_unit_ready()).key == scsi.NOT_READY
        standby.good(scsi.mode_sense10(0x3F), in_length=4096)
        standby.good(scsi.report_luns(), in_length=4096)
        assert _read(active, 0) == b"active.." * 512


def test_takeover_under_load_refuses_late_writes_and_keeps_acknowledged_ones(
    pair: tuple[Target, Target],
) -> None:
    """The first gateway has a full queue when the second takes over."""
    first, second = pair
    places = 64
    acknowledged: list[set[bytes]] = [{bytes(4096)} for _ in range(places)]
    with first.session() as loser, second.session() as winner:
        refused = 0
        version = 0
        for number in range(40):
            batch = []
            for place in range(places):
                version += 1
                data = version.to_bytes(8, "big") * 512
                batch.append((place, data, loser.submit(scsi.write16(place * 8, 8), data)))
            if number == 8:
                loser.pump(0.002)
                _take_over(winner, 2)
            loser.wait(command for _, _, command in batch)
            for place, data, command in batch:
                assert command.answer is not None
                if command.answer.status == scsi.GOOD:
                    assert number <= 8, "acknowledged after the other took over"
                    acknowledged[place] = {data}
                elif number <= 8:
                    acknowledged[place].add(data)
                    refused += 1
                else:
                    assert _no_longer_mine(command), command
                    refused += 1
            if number == 9:
                # All that the loser had in flight has ended: this is final.
                winner.clear_attentions()
                kept = [_read(winner, place * 8) for place in range(places)]
                assert all(data in acknowledged[place] for place, data in enumerate(kept))
        assert refused >= 31 * places
        assert [_read(winner, place * 8) for place in range(places)] == kept


def test_gateway_that_slept_through_the_takeover_changes_nothing(
    pair: tuple[Target, Target],
) -> None:
    """It is stopped (SIGSTOP) with writes in flight; the other writes the same blocks anew."""
    first, second = pair
    sleeper, successor = first.session(timeout=60), second.session()
    for place in range(32):
        sleeper.good(scsi.write16(place * 8, 8), b"old....." * 512)
    first.daemon.send_signal(signal.SIGSTOP)
    try:
        late = [sleeper.submit(scsi.write16(n * 8, 8), b"late...." * 512) for n in range(32)]
        sleeper.pump(0.1)
        _take_over(successor, 2)
        successor.clear_attentions()
        for place in range(32):
            assert _read(successor, place * 8) == b"old....." * 512
            successor.good(scsi.write16(place * 8, 8), b"new....." * 512)
    finally:
        first.daemon.send_signal(signal.SIGCONT)
    sleeper.wait(late, 40)
    assert all(map(_no_longer_mine, late)), late
    for place in range(32):
        assert _read(successor, place * 8) == b"new....." * 512
    wait_until(lambda: _settled(sleeper, 2), 20, "the sleeper knows")
    sleeper.logout()
    successor.logout()


def test_gateway_that_is_gone_is_replaced_by_one_of_another_name(targets: Targets) -> None:
    """The first dies by kill -9 with writes in flight; the second, started later, has them all."""
    targets.volume()
    first = targets.gateway("a", 1)
    session = first.session()
    for place in range(32):
        session.good(scsi.write16(place * 8, 8), place.to_bytes(8, "big") * 512)
    doubt = [session.submit(scsi.write16(n * 8, 8), b"doubtful" * 512) for n in range(32)]
    session.pump(0.001)
    first.kill()
    session.wait(doubt)
    session.drop()
    second = targets.gateway("b", 2)
    with login_again(second) as successor:
        for place in range(32):
            found = _read(successor, place * 8)
            assert found in (place.to_bytes(8, "big") * 512, b"doubtful" * 512)
            answer = doubt[place].answer
            if answer is not None and answer.status == scsi.GOOD:
                assert found == b"doubtful" * 512
