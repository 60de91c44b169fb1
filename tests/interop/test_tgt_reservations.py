# SPDX-License-Identifier: BSD-3-Clause
"""Reservations and port groups of tgtd with our backing store, on a real store.

Sessions are libiscsi's; `isid` tells the initiator ports apart. Two gateways are two tgtds with a
target each on the same volume.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from support import conformance, iscsi, libiscsi, scsi
from support.iscsi import Lun, Target, login_again
from support.libiscsi import Session
from support.process import wait_until
from support.stack import Stack

pytestmark = [
    pytest.mark.skipif(iscsi.missing() is not None, reason=str(iscsi.missing())),
    pytest.mark.skipif(libiscsi.missing() is not None, reason=str(libiscsi.missing())),
]

KEY, OTHER_KEY = 0x1234567890ABCDEF, 0xFEDCBA0987654321
BLOCK = b"\xa5" * 512
STANDBY_SENSE, CHANGED_SENSE = 0x040B, 0x2A06


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("reservations")) as running:
        yield running


@pytest.fixture
def volume(stack: Stack, request: pytest.FixtureRequest) -> str:
    """A new volume for each test."""
    name = f"v{abs(hash(request.node.name)) % 10**9}"
    stack.create_volume(name, "1G")
    return name


Gateways = Callable[..., Target]


@pytest.fixture
def gateway(stack: Stack, volume: str, tmp_path: Path) -> Iterator[Gateways]:
    """Starts tgtds on the volume: gateway(1), gateway(2, standby="yes")."""
    with contextlib.ExitStack() as targets:

        def start(number: int, **options: str) -> Target:
            settings: Mapping[str, str] = {
                "gateway": f"gateway{number}",
                "group": str(number),
                **options,
            }
            target = Target(
                tmp_path,
                [Lun(volume, options=settings)],
                mds=stack.mds_address,
                label=f"tgtd{number}",
            )
            return targets.enter_context(target)

        yield start


def register(session: Session, key: int, old: int = 0, **flags: bool) -> libiscsi.Answer:
    return session.execute(
        scsi.persistent_out(scsi.REGISTER), scsi.reserve_parameters(old, key, **flags)
    )


def change(session: Session, action: int, kind: int, key: int, other: int = 0) -> int:
    """PERSISTENT RESERVE OUT; returns the status."""
    return session.execute(
        scsi.persistent_out(action, kind), scsi.reserve_parameters(key, other)
    ).status


def keys(session: Session) -> list[int]:
    data = session.good(scsi.persistent_in(scsi.READ_KEYS), in_length=8192)
    return scsi.keys_of(data)[1]


def reservation(session: Session) -> tuple[int, int] | None:
    data = session.good(scsi.persistent_in(scsi.READ_RESERVATION), in_length=8192)
    return scsi.reservation_of(data)


def hold(session: Session, kind: int, key: int = KEY) -> None:
    assert register(session, key).status == scsi.GOOD
    assert change(session, scsi.RESERVE, kind, key) == scsi.GOOD


def write(session: Session, lba: int = 0, data: bytes = BLOCK) -> libiscsi.Answer:
    return session.execute(scsi.write16(lba, len(data) // 512), data)


def groups(session: Session) -> list[scsi.PortGroup]:
    return scsi.port_groups_of(session.good(scsi.report_target_port_groups(), in_length=4096))


def take_over(session: Session, group: int) -> None:
    parameters = scsi.set_groups_list([(scsi.ACTIVE_OPTIMIZED, group)])
    session.good(scsi.set_target_port_groups(len(parameters)), parameters)


def expect_attention(session: Session, code: int) -> None:
    """The next attention comes by itself when the session's gateway learns of the change."""
    found: list[int] = []

    def came() -> bool:
        found.extend(session.clear_attentions())
        return code in found

    wait_until(came, 10, f"unit attention {code:#x}, not {found}")


# tgtd's iSCSI layer answers these task management functions with "not supported".
NOT_OF_TGTD = {"Reserve6.TargetColdReset", "Reserve6.TargetWarmReset"}
RESERVATION_SUITES = [
    suite
    for suite in (conformance.list_tests() if conformance.missing() is None else {})
    if suite.startswith(("Prin", "Prout", "Reserve6"))
]


@pytest.mark.skipif(conformance.missing() is not None, reason=str(conformance.missing()))
@pytest.mark.parametrize("suite", RESERVATION_SUITES)
def test_conformance_suite_passes_and_skips_nothing(
    suite: str, gateway: Gateways, tmp_path: Path
) -> None:
    target = gateway(1)
    tests = conformance.list_tests()[suite]
    results = conformance.run_suite(suite, tests, [target.url()], tmp_path / "cu.log", 120)
    bad = [
        f"{result.name}: {result.outcome}\n{result.said}"
        for result in results
        if result.outcome != conformance.PASSED and result.name not in NOT_OF_TGTD
    ]
    assert not bad, "\n".join(bad)


def test_the_holder_that_logs_in_again_holds_still(gateway: Gateways) -> None:
    target = gateway(1)
    with target.session(isid=1) as session:
        hold(session, scsi.EXCLUSIVE_ACCESS)
        session.logout()
    with target.session(isid=1) as again, target.session(isid=2) as other:
        assert write(again).status == scsi.GOOD
        assert reservation(again) == (KEY, scsi.EXCLUSIVE_ACCESS)
        assert write(other).status == scsi.RESERVATION_CONFLICT
        assert change(again, scsi.RELEASE, scsi.EXCLUSIVE_ACCESS, KEY) == scsi.GOOD
        assert write(other).status == scsi.GOOD


def test_reservations_survive_kill_9_of_tgtd(gateway: Gateways) -> None:
    target = gateway(1)
    with target.session(isid=1) as session, target.session(isid=2) as other:
        hold(session, scsi.WRITE_EXCLUSIVE)
        assert register(other, OTHER_KEY).status == scsi.GOOD
    target.kill()
    target.start()
    with login_again(target, isid=1) as session, login_again(target, isid=2) as other:
        assert sorted(keys(other)) == sorted([KEY, OTHER_KEY])
        assert reservation(other) == (KEY, scsi.WRITE_EXCLUSIVE)
        assert write(other).status == scsi.RESERVATION_CONFLICT
        assert write(session).status == scsi.GOOD


def test_full_status_names_initiator_ports_and_target_ports(gateway: Gateways) -> None:
    target = gateway(7)
    with target.session(isid=0x123456) as session:
        hold(session, scsi.WRITE_EXCLUSIVE)
        data = session.good(scsi.persistent_in(scsi.READ_FULL_STATUS), in_length=8192)
    descriptor = data[8:]
    assert descriptor[:8] == KEY.to_bytes(8, "big")
    assert descriptor[12] == 1 and descriptor[13] == scsi.WRITE_EXCLUSIVE
    assert int.from_bytes(descriptor[18:20], "big") == 7
    name = descriptor[28:].split(b"\0")[0].decode()
    assert name.startswith(f"{libiscsi.INITIATOR},i,0x80123456"), name


WRITING = {
    "WRITE (6)": (scsi.write6(0, 1), BLOCK),
    "WRITE (10)": (scsi.write10(0, 1), BLOCK),
    "WRITE (12)": (scsi.write12(0, 1), BLOCK),
    "WRITE (16)": (scsi.write16(0, 1), BLOCK),
    "WRITE AND VERIFY (16)": (scsi.write_verify16(0, 1), BLOCK),
    "ORWRITE (16)": (scsi.orwrite16(0, 1), BLOCK),
    "WRITE SAME (10)": (scsi.write_same10(0, 1), BLOCK),
    "WRITE SAME (16)": (scsi.write_same16(0, 1), BLOCK),
    "WRITE SAME (16) UNMAP": (scsi.write_same16(0, 8, unmap=True, ndob=True), b""),
    "COMPARE AND WRITE": (scsi.compare_and_write(0, 1), 2 * BLOCK),
    "UNMAP": (scsi.unmap(24), scsi.unmap_list([(0, 8)])),
    "SYNCHRONIZE CACHE (10)": (scsi.synchronize_cache10(), b""),
}


@pytest.mark.parametrize("command", WRITING)
def test_a_reservation_keeps_out_every_command_that_writes(command: str, gateway: Gateways) -> None:
    cdb, data = WRITING[command]
    target = gateway(1)
    with target.session(isid=1) as holder, target.session(isid=2) as other:
        assert write(holder).status == scsi.GOOD
        hold(holder, scsi.WRITE_EXCLUSIVE)
        assert other.execute(cdb, data).status == scsi.RESERVATION_CONFLICT
        assert holder.execute(cdb, data).status in (scsi.GOOD, scsi.CHECK_CONDITION)
        read = other.execute(scsi.read16(0, 1), in_length=512)
        assert read.status == scsi.GOOD


def test_exclusive_access_keeps_readers_out_too(gateway: Gateways) -> None:
    target = gateway(1)
    with target.session(isid=1) as holder, target.session(isid=2) as other:
        hold(holder, scsi.EXCLUSIVE_ACCESS)
        for cdb, length in (
            (scsi.read10(0, 1), 512),
            (scsi.read16(0, 1), 512),
            (scsi.get_lba_status(0), 4096),
            (scsi.mode_sense6(8), 255),
        ):
            assert other.execute(cdb, in_length=length).status == scsi.RESERVATION_CONFLICT
        assert other.execute(scsi.verify16(0, 1, compare=False)).status == scsi.RESERVATION_CONFLICT
        for cdb, length in (
            (scsi.inquiry(), 255),
            (scsi.read_capacity16(), 32),
            (scsi.report_luns(), 4096),
            (scsi.report_target_port_groups(), 4096),
        ):
            assert other.execute(cdb, in_length=length).status == scsi.GOOD


def test_reserve_6_ends_with_the_session_and_with_a_reset(gateway: Gateways) -> None:
    target = gateway(1)
    with target.session(isid=2) as other:
        with target.session(isid=1) as holder:
            holder.good(scsi.reserve6())
            assert write(other).status == scsi.RESERVATION_CONFLICT
            holder.logout()
        assert write(other).status == scsi.GOOD
        with target.session(isid=1) as holder:
            holder.good(scsi.reserve6())
            assert write(other).status == scsi.RESERVATION_CONFLICT
            assert other.manage(libiscsi.LUN_RESET) == 0
            other.clear_attentions()
            assert write(other).status == scsi.GOOD


def test_both_gateways_report_the_same_groups(gateway: Gateways) -> None:
    first, second = gateway(1), gateway(2, standby="yes")
    with first.session() as one, second.session() as two:
        wait_until(lambda: len(groups(one)) == 2, 10, "the second gateway's group")
        assert groups(one) == groups(two)
        assert [(group.group, group.state, group.ports) for group in groups(one)] == [
            (1, scsi.ACTIVE_OPTIMIZED, (1,)),
            (2, scsi.STANDBY, (2,)),
        ]
        assert one.good(scsi.inquiry(), in_length=255)[5] & 0x30 == 0x30
        for session, number in ((one, 1), (two, 2)):
            page = scsi.designators_of(session.good(scsi.inquiry(0x83), in_length=255))
            of_port = {d.kind: int.from_bytes(d.value[-2:], "big") for d in page if d.association}
            assert (of_port[4], of_port[5]) == (number, number)


def test_a_standby_answers_what_finds_paths_and_refuses_data(gateway: Gateways) -> None:
    gateway(1)
    with gateway(2, standby="yes").session() as session:
        for cdb, length in (
            (scsi.inquiry(), 255),
            (scsi.inquiry(0x83), 255),
            (scsi.report_luns(), 4096),
            (scsi.read_capacity16(), 32),
            (scsi.mode_sense6(8), 255),
            (scsi.report_target_port_groups(), 4096),
            (scsi.persistent_in(scsi.READ_KEYS), 8192),
            (scsi.request_sense(), 252),
        ):
            assert session.execute(cdb, in_length=length).status == scsi.GOOD, cdb.hex()
        for answer in (
            session.execute(scsi.test_unit_ready()),
            session.execute(scsi.read16(0, 1), in_length=512),
            write(session),
        ):
            assert (answer.key, answer.code) == (scsi.NOT_READY, STANDBY_SENSE)


def test_a_reservation_is_the_same_by_both_gateways(gateway: Gateways) -> None:
    first, second = gateway(1), gateway(2, standby="yes")
    with (
        first.session(isid=1) as holder,
        first.session(isid=2) as other,
        second.session(isid=2) as elsewhere,
    ):
        hold(holder, scsi.WRITE_EXCLUSIVE)
        assert reservation(elsewhere) == (KEY, scsi.WRITE_EXCLUSIVE)
        # A standby path registers and preempts: that is how a cluster takes a dead node's disk.
        assert register(elsewhere, OTHER_KEY).status == scsi.GOOD
        assert sorted(keys(holder)) == sorted([KEY, OTHER_KEY])
        assert (
            change(elsewhere, scsi.PREEMPT_AND_ABORT, scsi.WRITE_EXCLUSIVE, OTHER_KEY, KEY)
            == scsi.GOOD
        )
        # Acknowledged: so the first gateway acts by it already.
        attention = write(holder)
        assert (attention.key, attention.code) == (scsi.UNIT_ATTENTION, 0x2A05)
        assert write(holder).status == scsi.RESERVATION_CONFLICT
        assert write(other).status == scsi.RESERVATION_CONFLICT  # another port: another nexus
        assert reservation(holder) == (OTHER_KEY, scsi.WRITE_EXCLUSIVE)


def test_a_gateway_that_was_stopped_does_not_write_by_the_old_reservation(
    gateway: Gateways,
) -> None:
    first, second = gateway(1), gateway(2, standby="yes")
    with first.session(isid=1) as holder, second.session(isid=2) as elsewhere:
        assert write(holder, 0, b"\x01" * 512).status == scsi.GOOD
        hold(holder, scsi.WRITE_EXCLUSIVE)
        assert register(elsewhere, OTHER_KEY).status == scsi.GOOD
        first.daemon.send_signal(signal.SIGSTOP)
        try:
            late = holder.submit(scsi.write16(0, 1), b"\xee" * 512)
            holder.pump(0.1)
            # It cannot say that it acts by the new state: its lease is waited for.
            assert (
                change(elsewhere, scsi.PREEMPT_AND_ABORT, scsi.WRITE_EXCLUSIVE, OTHER_KEY, KEY)
                == scsi.GOOD
            )
        finally:
            first.daemon.send_signal(signal.SIGCONT)
        holder.wait([late])
        assert late.answer is not None and late.answer.status != scsi.GOOD, late
        wait_until(
            lambda: write(holder, 0, b"\xee" * 512).status == scsi.RESERVATION_CONFLICT,
            30,
            "the first gateway to know the new state",
        )
        holder.clear_attentions()
        read = holder.execute(scsi.read16(0, 1), in_length=512)
        assert read.status == scsi.GOOD and read.data == b"\x01" * 512


def test_all_target_ports_are_registered_at_once(gateway: Gateways) -> None:
    first, second = gateway(1), gateway(2, standby="yes")
    with first.session(isid=1) as one, second.session(isid=1) as two:
        wait_until(lambda: len(groups(one)) == 2, 10, "the second gateway's group")
        assert register(one, KEY, all_ports=True).status == scsi.GOOD
        assert keys(two) == [KEY, KEY]
        assert change(two, scsi.RESERVE, scsi.WRITE_EXCLUSIVE_RO, KEY) == scsi.GOOD
        assert write(one).status == scsi.GOOD


def test_registrations_made_by_both_gateways_at_once_are_all_kept(gateway: Gateways) -> None:
    first, second = gateway(1), gateway(2, standby="yes")
    with contextlib.ExitStack() as opened:
        sessions = [
            opened.enter_context((first, second)[number % 2].session(isid=number + 1))
            for number in range(16)
        ]
        commands = [
            session.submit(
                scsi.persistent_out(scsi.REGISTER), scsi.reserve_parameters(0, number + 1)
            )
            for number, session in enumerate(sessions)
        ]
        for session, command in zip(sessions, commands, strict=True):
            session.wait([command])
            assert command.answer is not None and command.answer.status == scsi.GOOD
        assert sorted(keys(sessions[0])) == list(range(1, 17))


def test_takeover_refuses_late_writes_of_the_first_gateway(gateway: Gateways) -> None:
    first, second = gateway(1), gateway(2, standby="yes")
    blocks, ours = 64, b"\x11" * 4096
    with first.session() as old, second.session() as new:
        late = [old.submit(scsi.write16(8 * n, 8), b"\xee" * 4096) for n in range(blocks)]
        take_over(new, 2)
        for number in range(blocks):
            assert write(new, 8 * number, ours).status == scsi.GOOD
        # Sent before the takeover, but read from its socket and executed whenever.
        old.wait(late)
        late += [old.submit(scsi.write16(8 * n, 8), b"\xee" * 4096) for n in range(blocks)]
        old.wait(late)
        for command in late[blocks:]:
            assert command.answer is not None and command.answer.status == scsi.CHECK_CONDITION
        for number in range(blocks):
            read = new.good(scsi.read16(8 * number, 8), in_length=4096)
            assert read == ours, f"block {number}"
        assert {group.group: group.state for group in groups(old)} == {
            1: scsi.STANDBY,
            2: scsi.ACTIVE_OPTIMIZED,
        }
        assert groups(old) == groups(new)
        answer = write(old)
        assert (answer.key, answer.code) == (scsi.NOT_READY, STANDBY_SENSE)


def test_takeover_is_told_to_all_but_who_asked_for_it(gateway: Gateways) -> None:
    first, second = gateway(1), gateway(2, standby="yes")
    with (
        first.session() as old,
        second.session(isid=1) as asks,
        second.session(isid=2) as bystander,
    ):
        take_over(asks, 2)
        expect_attention(old, CHANGED_SENSE)
        expect_attention(bystander, CHANGED_SENSE)
        assert asks.clear_attentions() == []


def test_the_volume_goes_back_and_forth(gateway: Gateways) -> None:
    first, second = gateway(1), gateway(2, standby="yes")
    with first.session() as one, second.session() as two:
        for number in range(6):
            session, group = ((two, 2), (one, 1))[number % 2]
            session.clear_attentions()
            take_over(session, group)
            assert write(session, number, bytes([number]) * 512).status == scsi.GOOD
            expect_attention((one, two)[number % 2], CHANGED_SENSE)
        one.clear_attentions()
        for number in range(6):
            read = one.good(scsi.read16(number, 1), in_length=512)
            assert read == bytes([number]) * 512


def test_a_restarted_active_gateway_serves_again_and_a_fenced_one_waits(
    gateway: Gateways,
) -> None:
    first, second = gateway(1, standby="yes"), gateway(2, standby="yes")
    with first.session() as session:
        wait_until(lambda: session.execute(bytes(6)).status == scsi.GOOD, 10, "gateway 1 to serve")
    first.kill()
    first.start()
    with login_again(first) as session:
        wait_until(lambda: session.execute(bytes(6)).status == scsi.GOOD, 10, "gateway 1 to serve")
    with second.session() as session:
        take_over(session, 2)
        first.kill()
        first.start()
        with login_again(first) as back:
            answer = write(back)
            assert (answer.key, answer.code) == (scsi.NOT_READY, STANDBY_SENSE)
        assert write(session).status == scsi.GOOD


def test_a_reservation_goes_with_the_volume(gateway: Gateways) -> None:
    first, second = gateway(1), gateway(2, standby="yes")
    with (
        first.session(isid=1) as one,
        second.session(isid=1) as two,
        second.session(isid=2) as other,
    ):
        wait_until(lambda: len(groups(one)) == 2, 10, "the second gateway's group")
        assert register(one, KEY, all_ports=True).status == scsi.GOOD
        assert change(one, scsi.RESERVE, scsi.EXCLUSIVE_ACCESS_RO, KEY) == scsi.GOOD
        take_over(two, 2)
        assert write(two).status == scsi.GOOD
        other.clear_attentions()
        assert write(other).status == scsi.RESERVATION_CONFLICT


def test_a_group_of_another_gateway_cannot_be_made_active_here(gateway: Gateways) -> None:
    first, second = gateway(1), gateway(2, standby="yes")
    with first.session() as one, second.session():
        wait_until(lambda: len(groups(one)) == 2, 10, "the second gateway's group")
        parameters = scsi.set_groups_list([(scsi.ACTIVE_OPTIMIZED, 2)])
        answer = one.execute(scsi.set_target_port_groups(len(parameters)), parameters)
        assert (answer.key, answer.code) == (scsi.HARDWARE_ERROR, 0x670A)
        assert write(one).status == scsi.GOOD
