# SPDX-License-Identifier: BSD-3-Clause
"""Live sessions: a volume that grows, an initiator that stops reading, aborts and resets."""

import random
import time

import pytest
from support import scsi
from support.iscsi import Target
from support.iscsi_targets import Targets
from support.libiscsi import (
    ABORT_TASK,
    INITIATOR,
    LUN_RESET,
    TASK_DOES_NOT_EXIST,
    UNANSWERED,
    Command,
    Session,
)

CAPACITY_CHANGED = 0x2A09
OUT_OF_RANGE = 0x2100
RESETS = (0x2900, 0x2902, 0x2903)


def _blocks(session: Session) -> int:
    return int.from_bytes(session.good(scsi.read_capacity16(), in_length=32)[:8], "big") + 1


def _read(session: Session, lba: int, blocks: int = 8) -> bytes:
    return session.good(scsi.read16(lba, blocks), in_length=blocks * 512)


def test_growing_volume_is_a_unit_attention_for_every_live_session(targets: Targets) -> None:
    """06/2A09 comes once to each session, without a rescan; then the new space is there."""
    targets.volume(size="1G")
    target = targets.target()
    with target.session() as one, target.session(isid=2) as two:
        assert _blocks(one) == (1 << 30) // 512
        targets.stack.copygate("volume", "resize", "disk", "2G")
        deadline = time.monotonic() + 20
        seen: list[int] = []
        while not seen and time.monotonic() < deadline:
            seen = one.clear_attentions()
            time.sleep(0.1)
        assert seen == [CAPACITY_CHANGED]
        assert two.clear_attentions() == [CAPACITY_CHANGED]
        for session in (one, two):
            assert _blocks(session) == (2 << 30) // 512
            assert session.clear_attentions() == []
        last = (2 << 30) // 512 - 8
        one.good(scsi.write16(last, 8), b"new!" * 1024)
        assert _read(two, last) == b"new!" * 1024
        assert one.execute(scsi.read16(last + 8, 1), in_length=512).code == OUT_OF_RANGE


def test_initiator_that_stops_reading_does_not_hold_up_others(target: Target) -> None:
    """64 MiB of answers are waiting for it; another session's commands take under two seconds."""
    with target.session() as other:
        stuck = target.session(initiator=f"{INITIATOR}-stuck", isid=9)
        asked = [stuck.submit(scsi.read16(n * 2048, 2048), in_length=1 << 20) for n in range(64)]
        # Sends the commands, takes at most a few answers, then reads no more.
        stuck.pump()
        slowest = 0.0
        deadline = time.monotonic() + 4
        number = 0
        while time.monotonic() < deadline:
            began = time.monotonic()
            data = number.to_bytes(8, "big") * 512
            other.good(scsi.write16(number % 512 * 8, 8), data)
            assert _read(other, number % 512 * 8) == data
            slowest = max(slowest, time.monotonic() - began)
            number += 1
        assert slowest < 2, f"a write and its read took {slowest:.1f} s ({number} rounds)"
        assert number > 50, f"only {number} rounds in four seconds"
        # It reads on, and gets everything.
        stuck.wait(asked, 60)
        assert [c.answer.status for c in asked if c.answer] == [scsi.GOOD] * 64
        stuck.logout()


def test_session_dropped_with_commands_in_flight_leaves_nothing_behind(target: Target) -> None:
    """Twenty initiators vanish in the middle of writes and reads; the next one works."""
    pick = random.Random(4)
    for number in range(20):
        session = target.session(isid=100 + number)
        for _ in range(32):
            lba = pick.randrange(4096) * 8
            if pick.random() < 0.5:
                session.submit(scsi.write16(lba, 256), pick.randbytes(256 * 512))
            else:
                session.submit(scsi.read16(lba, 256), in_length=256 * 512)
        session.pump(pick.choice((0.0, 0.002, 0.01)))
        session.drop()
    with target.session() as session:
        session.good(scsi.write16(0, 8), b"alive..." * 512)
        assert _read(session, 0) == b"alive..." * 512
        assert session.clear_attentions() == []


class _Load:
    """Writes of one session, each to a place of its own within `places` runs of eight blocks."""

    def __init__(self, session: Session, first: int, places: int) -> None:
        self.session, self.first, self.places = session, first, places
        self.version = 0
        # What each place may hold: the acknowledged data, and that of writes in doubt since.
        self.candidates: list[set[bytes]] = [{bytes(4096)} for _ in range(places)]

    def submit(self) -> list[tuple[int, bytes, Command]]:
        """One write to each place."""
        batch = []
        for place in range(self.places):
            self.version += 1
            data = (self.version << 16 | place).to_bytes(8, "big") * 512
            lba = self.first + place * 8
            batch.append((place, data, self.session.submit(scsi.write16(lba, 8), data)))
        return batch

    def take(self, batch: list[tuple[int, bytes, Command]]) -> int:
        """Notes how the writes of a batch ended; returns how many were acknowledged."""
        good = 0
        for place, data, command in batch:
            answer = command.answer
            if answer is not None and answer.status == scsi.GOOD:
                self.candidates[place] = {data}
                good += 1
            else:
                self.candidates[place].add(data)
        return good

    def check(self, session: Session) -> None:
        """Reads everything back; what a read has shown stays."""
        for place, candidates in enumerate(self.candidates):
            found = _read(session, self.first + place * 8)
            assert found in candidates, f"place {place}: {found[:8].hex()}"
            self.candidates[place] = {found}


def _settle(session: Session, batch: list[tuple[int, bytes, Command]], seconds: float) -> None:
    """Lets what will be answered be answered; aborted commands are not."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(c.answer is None for _, _, c in batch):
        assert session.pump(0.02)


def test_aborted_writes_end_and_no_acknowledged_write_is_lost(target: Target) -> None:
    """Every other write of a full queue is aborted, again and again; another session goes on."""
    with target.session() as session, target.session(isid=2) as other:
        load = _Load(session, 0, 64)
        acknowledged = 0
        for number in range(15):
            batch = load.submit()
            session.pump(0.001 * (number % 4))
            for _, _, command in batch[::2]:
                assert session.manage(ABORT_TASK, command) in (0, TASK_DOES_NOT_EXIST)
            _settle(session, batch, 3)
            unanswered = [c for _, _, c in batch[1::2] if c.answer is None]
            assert not unanswered, f"{len(unanswered)} commands that nobody aborted have no answer"
            assert all(c.answer.status == scsi.GOOD for _, _, c in batch[1::2] if c.answer)
            acknowledged += load.take(batch)
            other.good(scsi.write16(8192, 8), bytes([number]) * 4096)
            assert _read(other, 8192) == bytes([number]) * 4096
            load.check(other)
        assert acknowledged >= 15 * 32
        assert other.clear_attentions() == []


def test_lun_reset_under_load_is_told_to_everybody_and_loses_nothing(target: Target) -> None:
    """Both sessions have writes in flight; each sees the reset once and works on."""
    with target.session() as session, target.session(isid=2) as other:
        loads = (_Load(session, 0, 48), _Load(other, 1024, 48))
        for number in range(8):
            batches = [load.submit() for load in loads]
            session.pump(0.001 * (number % 3))
            other.pump(0.001 * (number % 3))
            assert session.manage(LUN_RESET) == 0
            for load, batch in zip(loads, batches, strict=True):
                _settle(load.session, batch, 3)
                answers = [c.answer for _, _, c in batch if c.answer is not None]
                assert all(
                    a.status in (scsi.GOOD, scsi.TASK_ABORTED)
                    or (a.key == scsi.UNIT_ATTENTION and a.code in RESETS)
                    for a in answers
                ), [str(a) for a in answers]
                load.take(batch)
            for load in loads:
                assert all(code in RESETS for code in load.session.clear_attentions())
            for load in loads:
                load.check(other)
        # With nothing in flight, the other session hears of it by its next command.
        assert session.manage(LUN_RESET) == 0
        heard = other.clear_attentions()
        assert len(heard) == 1
        assert heard[0] in RESETS


def test_same_initiator_port_logs_in_again_and_takes_its_session_over(targets: Targets) -> None:
    """Name and ISID are those of a session that is still there: that one ends (RFC 7143, 6.3.5).

    With CHAP: tgtd looks for the old session only in a login that has a security stage, which
    libiscsi leaves out without CHAP.
    """
    targets.volume()
    chap = ("initiator", "one-way-secret")
    target = targets.target(chap=chap)
    first = target.session(chap=chap)
    first.good(scsi.write16(0, 8), b"first..." * 512)
    with target.session(chap=chap) as second:
        assert _read(second, 0) == b"first..." * 512
        assert first.execute(scsi.test_unit_ready()).status == UNANSWERED
        assert target.sessions().count("I_T nexus: ") == 1
    first.drop()


@pytest.mark.parametrize("digest", [False, True], ids=["plain", "header digest"])
@pytest.mark.parametrize("immediate", [False, True], ids=["r2t", "immediate data"])
def test_transfers_of_all_sizes_by_negotiated_parameters(
    target: Target, *, digest: bool, immediate: bool
) -> None:
    """From one block to 2 MiB, several in flight, read back as they were written."""
    pick = random.Random(5)
    with target.session(
        header_digest=digest, immediate_data=immediate, initial_r2t=not immediate
    ) as session:
        sizes = [1, 7, 8, 16, 127, 128, 129, 512, 513, 2048, 4096]
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        datas = [pick.randbytes(size * 512) for size in sizes]
        writes = [
            session.submit(scsi.write16(lba, size), data)
            for lba, size, data in zip(starts, sizes, datas, strict=True)
        ]
        session.wait(writes)
        assert all(c.answer.status == scsi.GOOD for c in writes if c.answer), writes
        reads = [
            session.submit(scsi.read16(lba, size), in_length=size * 512)
            for lba, size in zip(starts, sizes, strict=True)
        ]
        session.wait(reads)
        for command, data in zip(reads, datas, strict=True):
            assert command.answer is not None
            assert command.answer.data == data
