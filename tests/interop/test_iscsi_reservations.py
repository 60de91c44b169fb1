# SPDX-License-Identifier: BSD-3-Clause
"""Reservations belong to the initiator port: over sessions, restarts of tgtd, and gateways.

What each type lets through is tested command by command in tests/c/frontends/reservation; here it
is real sessions and processes.
"""

import pytest
from support import scsi
from support.iscsi import Target, login_again
from support.iscsi_targets import Targets
from support.libiscsi import INITIATOR, Session
from support.process import wait_until

OTHER = f"{INITIATOR}-other"
KEY, OTHER_KEY = 0x1111222233334444, 0xAAAABBBBCCCCDDDD
DATA = b"reserved" * 512


def _out(session: Session, action: int, *, kind: int = 0, **parameters: int | bool) -> int:
    """PERSISTENT RESERVE OUT; returns the status."""
    data = scsi.reserve_parameters(**parameters)  # type: ignore[arg-type]
    return session.execute(scsi.persistent_out(action, kind), data).status


def _register(session: Session, key: int, *, aptpl: bool = False) -> None:
    data = scsi.reserve_parameters(0, key, aptpl=aptpl)
    session.good(scsi.persistent_out(scsi.REGISTER_AND_IGNORE), data)


def _reserve(session: Session, key: int, kind: int) -> None:
    session.good(scsi.persistent_out(scsi.RESERVE, kind), scsi.reserve_parameters(key))


def _keys(session: Session) -> list[int]:
    return sorted(scsi.keys_of(session.good(scsi.persistent_in(scsi.READ_KEYS), in_length=8192))[1])


def _reservation(session: Session) -> tuple[int, int] | None:
    data = session.good(scsi.persistent_in(scsi.READ_RESERVATION), in_length=8192)
    return scsi.reservation_of(data)


def _writes(session: Session) -> int:
    """The status of a write."""
    return session.execute(scsi.write16(0, 8), DATA).status


@pytest.mark.parametrize("aptpl", [False, True], ids=["without APTPL", "APTPL"])
def test_reservation_after_restart_of_tgtd(target: Target, *, aptpl: bool) -> None:
    """kill -9 and a new process: with APTPL (activate persist through power loss) all is kept."""
    with target.session() as holder, target.session(initiator=OTHER, isid=2) as other:
        _register(holder, KEY, aptpl=aptpl)
        _register(other, OTHER_KEY, aptpl=aptpl)
        _reserve(holder, KEY, scsi.WRITE_EXCLUSIVE_RO)
        holder.good(scsi.write16(0, 8), DATA)
        target.kill()
        for session in (holder, other):
            session.drop()
    target.start()
    with (
        login_again(target) as holder,
        target.session(initiator=OTHER, isid=2) as other,
        target.session(initiator=f"{OTHER}-2", isid=3) as stranger,
    ):
        if aptpl:
            assert _keys(holder) == sorted((KEY, OTHER_KEY))
            assert _reservation(holder) == (KEY, scsi.WRITE_EXCLUSIVE_RO)
            assert _writes(stranger) == scsi.RESERVATION_CONFLICT
        assert _writes(holder) == scsi.GOOD
        assert _writes(other) == scsi.GOOD
        assert stranger.good(scsi.read16(0, 8), in_length=4096) == DATA


def test_other_gateway_knows_registrations_and_enforces_the_reservation(targets: Targets) -> None:
    """Registered and reserved at one, seen at the other; preempted there, told to the first."""
    targets.volume()
    first = targets.gateway("a", 1)
    second = targets.gateway("b", 2, standby=True)
    with (
        first.session() as holder,
        second.session(initiator=OTHER, isid=2) as other,
        second.session() as again,
    ):
        _register(holder, KEY)
        _reserve(holder, KEY, scsi.WRITE_EXCLUSIVE_RO)
        wait_until(lambda: _keys(other) == [KEY], 20, "the registration at the other gateway")
        assert _reservation(other) == (KEY, scsi.WRITE_EXCLUSIVE_RO)
        # The same port through the other gateway is another nexus, and registers for itself.
        _register(again, KEY)
        _register(other, OTHER_KEY)
        wait_until(
            lambda: _keys(holder) == sorted((KEY, KEY, OTHER_KEY)), 20, "three registrations"
        )
        # The volume moves; the reservation does not.
        data = scsi.set_groups_list([(scsi.ACTIVE_OPTIMIZED, 2)])
        other.good(scsi.set_target_port_groups(len(data)), data)
        for session in (again, other, holder):
            session.clear_attentions()
        assert _writes(again) == scsi.GOOD
        assert _writes(other) == scsi.GOOD
        with second.session(initiator=f"{OTHER}-2", isid=3) as stranger:
            assert _writes(stranger) == scsi.RESERVATION_CONFLICT
        parameters = scsi.reserve_parameters(OTHER_KEY, KEY)
        other.good(scsi.persistent_out(scsi.PREEMPT, scsi.WRITE_EXCLUSIVE_RO), parameters)
        assert _keys(other) == [OTHER_KEY]
        assert _reservation(other) == (OTHER_KEY, scsi.WRITE_EXCLUSIVE_RO)
        assert 0x2A05 in again.clear_attentions()
        assert _writes(again) == scsi.RESERVATION_CONFLICT
        wait_until(lambda: 0x2A05 in holder.clear_attentions(), 20, "the loser is told")
        assert _keys(holder) == [OTHER_KEY]


def test_preempt_and_abort_ends_what_the_loser_has_in_flight(target: Target) -> None:
    """After it, none of the loser's writes reaches the unit."""
    with target.session(timeout=10) as loser, target.session(initiator=OTHER, isid=2) as winner:
        _register(loser, KEY)
        _register(winner, OTHER_KEY)
        _reserve(loser, KEY, scsi.WRITE_EXCLUSIVE_RO)
        flight = [loser.submit(scsi.write16(n * 8, 8), b"loser..." * 512) for n in range(64)]
        loser.pump(0.001)
        parameters = scsi.reserve_parameters(OTHER_KEY, KEY)
        command = scsi.persistent_out(scsi.PREEMPT_AND_ABORT, scsi.WRITE_EXCLUSIVE_RO)
        winner.good(command, parameters)
        for place in range(64):
            winner.good(scsi.write16(place * 8, 8), b"winner.." * 512)
        loser.pump(1)
        late = loser.submit(scsi.write16(0, 8), b"late...." * 512)
        loser.wait([late])
        assert all(
            c.answer is None
            or c.answer.status in (scsi.GOOD, scsi.TASK_ABORTED, scsi.RESERVATION_CONFLICT)
            or c.answer.key == scsi.UNIT_ATTENTION
            for c in flight
        )
        loser.clear_attentions()
        assert _writes(loser) == scsi.RESERVATION_CONFLICT
        for place in range(64):
            found = winner.good(scsi.read16(place * 8, 8), in_length=4096)
            assert found == b"winner.." * 512, f"place {place}"
