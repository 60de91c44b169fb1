# SPDX-License-Identifier: BSD-3-Clause
"""The backing store module in Debian's tgtd: what a volume's LUN says of itself, and its bytes."""

import collections
import contextlib
import os
import random
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import iscsi, libiscsi, scsi
from support.iscsi import Lun, Target
from support.libiscsi import Session
from support.process import tail, wait_until
from support.stack import Stack, processes_of
from support.tools import ToolError, same

pytestmark = pytest.mark.skipif(
    (iscsi.missing() or libiscsi.missing()) is not None,
    reason=iscsi.missing() or libiscsi.missing() or "",
)

MIB = 1 << 20
Make = Callable[..., Target]


@pytest.fixture
def make(stack: Stack, tmp_path: Path) -> Iterator[Make]:
    """Starts targets with LUNs of the store; kills them at the end."""
    targets: list[Target] = []

    def start(*luns: Lun, **options: Any) -> Target:
        target = Target(
            tmp_path, luns, mds=stack.mds_address, label=f"tgtd{len(targets)}", **options
        )
        targets.append(target)
        return target.start()

    stack.create_volume("disk", "1G")
    yield start
    for target in targets:
        target.close()


@contextlib.contextmanager
def stopped(stack: Stack) -> Iterator[None]:
    """The store's chunkserver stands still: SIGSTOP, then SIGCONT."""
    pids = processes_of(stack.chunkserver.pid)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def page(session: Session, code: int) -> bytes:
    """A vital product data page."""
    return session.good(scsi.inquiry(code), in_length=255)


def test_identity_is_the_volumes_on_every_gateway(make: Make, stack: Stack) -> None:
    """Two gateways with other target numbers and LUNs tell the same identifiers of one volume."""
    stack.create_volume("other", "1G")
    first = make(Lun("disk", 1), Lun("other", 2), name="iqn.2026-11.net.copygate:a")
    second = make(
        Lun("disk", 7, options={"group": "2", "read-only": "yes"}),
        name="iqn.2026-11.net.copygate:b",
    )
    seen = []
    with first.session(lun=1) as a, first.session(lun=2) as b, second.session(lun=7) as c:
        for session in (a, b, c):
            units = [d for d in scsi.designators_of(page(session, 0x83)) if d.association == 0]
            seen.append((page(session, 0x80), [d.value for d in units]))
            assert units[0].kind == 3
            assert units[0].value[0] >> 4 == 6
            assert session.good(scsi.inquiry(), in_length=96)[8:24] == b"COPYGATEVOLUME  "
        groups = [d for d in scsi.designators_of(page(c, 0x83)) if d.kind == 5]
        assert struct.unpack(">xxH", groups[0].value) == (2,)
    assert seen[0] == seen[2]
    assert seen[0][0] != seen[1][0]
    assert not set(seen[0][1]) & set(seen[1][1])


@pytest.mark.parametrize("block", [512, 4096])
def test_random_bytes_against_a_model(make: Make, block: int) -> None:
    """Reads, writes, zeros and unmaps of any alignment, many at once, tell what a model does."""
    target = make(Lun("disk", options={"block": str(block)}))
    rng = random.Random(block)
    model = bytearray(4 * MIB)
    blocks = len(model) // block
    with target.session() as session:
        capacity = session.good(scsi.read_capacity16(), in_length=32)
        assert struct.unpack_from(">QI", capacity) == ((1 << 30) // block - 1, block)
        for _ in range(400):
            lba = rng.randrange(blocks)
            count = rng.randrange(1, min(65536 // block, blocks - lba) + 1)
            span = slice(lba * block, (lba + count) * block)
            match rng.randrange(5):
                case 0:
                    data = rng.randbytes(count * block)
                    session.good(scsi.write16(lba, count), data)
                    model[span] = data
                case 1:
                    session.good(scsi.unmap(24), scsi.unmap_list([(lba, count)]))
                    model[span] = bytes(count * block)
                case 2:
                    one = rng.choice((bytes(block), rng.randbytes(block)))
                    session.good(scsi.write_same16(lba, count, unmap=rng.random() < 0.5), one)
                    model[span] = one * count
                case 3:
                    data = rng.randbytes(count * block)
                    session.good(scsi.orwrite16(lba, count), data)
                    model[span] = bytes(a | b for a, b in zip(model[span], data, strict=True))
                case _:
                    got = session.good(scsi.read16(lba, count), in_length=count * block)
                    assert same(got, bytes(model[span]))
        assert same(session.good(scsi.read16(0, blocks), in_length=len(model)), bytes(model))


def test_resize_is_a_unit_attention_on_a_live_session(make: Make, stack: Stack) -> None:
    """Within a quarter lease of `volume resize` the session hears 06/2A09 and sees the new size."""
    target = make(Lun("disk"))
    with target.session() as session:
        stack.copygate("volume", "resize", "disk", "2G")
        answers: list[int] = []

        def told() -> bool:
            answers.append(session.execute(scsi.test_unit_ready()).code)
            return answers[-1] == 0x2A09

        wait_until(told, 10, "the unit attention", interval=0.1)
        assert set(answers[:-1]) <= {0}
        last, block = struct.unpack_from(">QI", session.good(scsi.read_capacity16(), in_length=32))
        assert (last + 1) * block == 2 << 30
        session.good(scsi.write16(last, 1), b"x" * block)
        assert session.execute(scsi.write16(last + 1, 1), b"x" * block).code == 0x2100


def test_write_protected_lun_refuses_every_change(make: Make) -> None:
    """read-only=yes: WP bit, and 07/2700 for whatever writes; reads go on."""
    target = make(Lun("disk", options={"read-only": "yes"}))
    with target.session() as session:
        assert session.good(scsi.mode_sense6(0x3F), in_length=255)[2] & 0x80
        data = b"x" * 512
        for cdb, out in (
            (scsi.write10(0, 1), data),
            (scsi.write_same16(0, 1), data),
            (scsi.unmap(24), scsi.unmap_list([(0, 1)])),
            (scsi.compare_and_write(0, 1), data * 2),
            (scsi.orwrite16(0, 1), data),
            (scsi.write_verify16(0, 1), data),
        ):
            answer = session.execute(cdb, out)
            assert (answer.key, answer.code) == (scsi.DATA_PROTECT, 0x2700), cdb.hex()
        assert session.good(scsi.read10(0, 1), in_length=512) == bytes(512)


def test_thick_lun_neither_offers_nor_takes_unmap(make: Make) -> None:
    """thin=no: LBPME clear, no limits, UNMAP an invalid opcode, WRITE SAME without it works."""
    target = make(Lun("disk", options={"thin": "no"}))
    with target.session() as session:
        assert session.good(scsi.read_capacity16(), in_length=32)[14] & 0x80 == 0
        assert scsi.block_limits_of(page(session, 0xB0)).maximum_unmap_blocks == 0
        unmap = session.execute(scsi.unmap(24), scsi.unmap_list([(0, 1)]))
        assert unmap.code == 0x2000
        assert session.execute(scsi.write_same16(0, 8, unmap=True), bytes(512)).code == 0x2400
        session.good(scsi.write_same16(0, 8), bytes(512))


def test_limits_are_kept(make: Make) -> None:
    """One more than a page B0 limit is refused before anything is done."""
    target = make(Lun("disk"))
    with target.session() as session:
        limits = scsi.block_limits_of(page(session, 0xB0))
        session.good(scsi.write10(0, 1), b"k" * 512)
        over = limits.maximum_transfer + 1
        assert session.execute(scsi.read16(0, over), in_length=512).code == 0x2400
        assert session.execute(scsi.verify16(0, over, compare=False)).code == 0x2400
        same16 = scsi.write_same16(0, limits.maximum_write_same + 1)
        assert session.execute(same16, bytes(512)).code == 0x2400
        ranges = [(0, 1)] * (limits.maximum_unmap_ranges + 1)
        many = scsi.unmap_list(ranges)
        assert session.execute(scsi.unmap(len(many)), many).code == 0x2600
        big = scsi.unmap_list([(0, limits.maximum_unmap_blocks + 1)])
        assert session.execute(scsi.unmap(len(big)), big).code == 0x2600
        assert session.good(scsi.read10(0, 1), in_length=512) == b"k" * 512


def test_miscompare_tells_the_offset(make: Make) -> None:
    """COMPARE AND WRITE and VERIFY: 0E/1D00 with the first byte that differs, nothing written."""
    target = make(Lun("disk"))
    with target.session() as session:
        session.good(scsi.write10(0, 2), bytes(1024))
        wrong = bytes(700) + b"\1" + bytes(323)
        answer = session.execute(scsi.compare_and_write(0, 2), wrong + b"n" * 1024)
        assert (answer.key, answer.code, answer.information) == (scsi.MISCOMPARE, 0x1D00, 700)
        answer = session.execute(scsi.verify16(0, 2, compare=True), wrong)
        assert (answer.key, answer.code, answer.information) == (scsi.MISCOMPARE, 0x1D00, 700)
        session.good(scsi.compare_and_write(0, 2), bytes(1024) + b"n" * 1024)
        assert session.good(scsi.read10(0, 2), in_length=1024) == b"n" * 1024


def test_stalled_store_is_busy_before_the_deadline_and_then_goes_on(
    make: Make, stack: Stack
) -> None:
    """More commands than a LUN takes are refused at once, the others end in time, none is lost."""
    target = make(Lun("disk", options={"timeout": "3"}))
    sessions = [target.session(isid=number) for number in range(1, 4)]
    commands = []
    with stopped(stack):
        for session in sessions:
            commands += [
                (session, session.submit(scsi.write16(8 * lba, 8), bytes([lba]) * 4096))
                for lba in range(100)
            ]
        for _ in range(20):  # all of them send before any of them waits
            for session in sessions:
                session.pump(0.01)
        for session in sessions:
            session.wait([command for owner, command in commands if owner is session], 20)
    ends = collections.Counter(c.answer.status for _, c in commands if c.answer is not None)
    assert set(ends) <= {scsi.BUSY, scsi.TASK_SET_FULL, scsi.GOOD}
    assert ends[scsi.TASK_SET_FULL] == 300 - 256
    assert ends[scsi.BUSY] > 0
    for _, command in commands:
        # The deadline is the module's; the initiator sends when the target's window lets it.
        assert command.seconds < 8
    for lba in range(100):
        sessions[0].good(scsi.write16(8 * lba, 8), bytes([lba]) * 4096)
    data = sessions[1].good(scsi.read16(0, 800), in_length=409600)
    assert same(data, b"".join(bytes([lba]) * 4096 for lba in range(100)))
    for session in sessions:
        session.logout()


@pytest.mark.parametrize(
    ("path", "options", "said"),
    [
        ("absent", {}, "absent"),
        ("disk", {"block": "1024"}, "block=1024: logical blocks have 512 or 4096"),
        ("disk", {"colour": "red"}, "unknown option colour="),
        ("disk", {"mds": "nowhere"}, "mds=nowhere"),
        ("disk", {"password-file": "/absent"}, "password-file=/absent"),
    ],
)
def test_what_cannot_be_served_is_refused_with_a_reason(
    make: Make, path: str, options: dict[str, str], said: str
) -> None:
    """tgtadm fails, the log says why, and the other LUN of the target goes on."""
    target = make(Lun("disk", 1, options={"read-only": "yes"}))
    with target.session() as session:
        with pytest.raises(ToolError):
            target.add_lun(Lun(path, 2, options=options))
        assert said in tail(target.log)
        session.good(scsi.read10(0, 1), in_length=512)


def test_lun_can_be_deleted_and_made_again(make: Make) -> None:
    """Destroy closes the volume and leaves tgtd in order; the next LUN finds the data."""
    target = make(Lun("disk"))
    for round_number in range(3):
        with target.session() as session:
            session.good(scsi.write10(round_number, 1), bytes([round_number + 1]) * 512)
        target.tgtadm("--op", "delete", "--mode", "logicalunit", "--tid", "1", "--lun", "1")
        target.add_lun(Lun("disk"))
    with target.session() as session:
        data = session.good(scsi.read10(0, 3), in_length=1536)
    assert data == b"\1" * 512 + b"\2" * 512 + b"\3" * 512
