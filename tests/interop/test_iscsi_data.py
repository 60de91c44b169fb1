# SPDX-License-Identifier: BSD-3-Clause
"""Data through every command that writes, against a model; writes that race within 4 KiB."""

import random

import pytest
from support import scsi
from support.iscsi import Lun, Target
from support.iscsi_targets import Targets
from support.libiscsi import Answer, Command, Session

BLOCK = 512
GRANULE = 8  # blocks of a 4 KiB unit of the store


class _Model:
    """Random commands on `blocks` blocks from `first` on, and what the blocks hold."""

    def __init__(  # noqa: PLR0917
        self, session: Session, first: int, blocks: int, seed: int, block: int, thin: bool
    ) -> None:
        self.session, self.first, self.blocks, self.block = session, first, blocks, block
        self.granule = max(1, 4096 // block)
        self.thin = thin
        self.pick = random.Random(seed)
        self.data = bytearray(blocks * block)
        self.done: dict[str, int] = {}
        session.good(scsi.write_same16(first, blocks, unmap=False), bytes(block))

    def run(self, steps: int) -> None:
        """That many commands, then everything is read back."""
        for _ in range(steps):
            operation = self.pick.choice(self._operations())
            operation()
            name = operation.__name__.strip("_")
            self.done[name] = self.done.get(name, 0) + 1
        for start in range(0, self.blocks, 1024):
            self._compare(start, min(1024, self.blocks - start))

    def _operations(self):  # type: ignore[no-untyped-def]
        return (
            *(self._write, self._write, self._write, self._read, self._read, self._write_same),
            *(self._unmap, self._compare_and_write, self._miscompare, self._orwrite),
            *(self._verify, self._write_verify, self._sync, self._lba_status),
        )

    def _range(self, most: int = 300) -> tuple[int, int]:
        count = self.pick.choice((1, 1, 2, 7, 8, 8, 9, 16, self.pick.randint(1, most)))
        count = min(count, most, self.blocks)
        start = self.pick.randrange(self.blocks - count + 1)
        if self.pick.random() < 0.4:
            start = start // self.granule * self.granule
        return start, count

    def _bytes(self, start: int, count: int) -> slice:
        return slice(start * self.block, (start + count) * self.block)

    def _compare(self, start: int, count: int) -> None:
        found = self.session.good(
            scsi.read16(self.first + start, count), in_length=count * self.block
        )
        expected = bytes(self.data[self._bytes(start, count)])
        if found != expected:
            bad = next(i for i in range(len(found)) if found[i] != expected[i])
            raise AssertionError(
                f"block {self.first + start + bad // self.block} differs at byte "
                f"{bad % self.block}: {found[bad : bad + 8].hex()} is not "
                f"{expected[bad : bad + 8].hex()}"
            )

    def _read(self) -> None:
        self._compare(*self._range())

    def _write(self) -> None:
        start, count = self._range(255)
        data = self.pick.randbytes(count * self.block)
        lba, fua = self.first + start, self.pick.random() < 0.3
        command = self.pick.choice(
            (
                # Its address has 21 bits.
                scsi.write6(lba, count) if lba < 1 << 21 else scsi.write10(lba, count),
                scsi.write10(lba, count, fua=fua, dpo=not fua),
                scsi.write12(lba, count, fua=fua),
                scsi.write16(lba, count, fua=fua),
            )
        )
        self.session.good(command, data)
        self.data[self._bytes(start, count)] = data

    def _write_same(self) -> None:
        start, count = self._range(2000)
        block = self.pick.choice((bytes(self.block), self.pick.randbytes(self.block)))
        lba = self.first + start
        kind = self.pick.randrange(4)
        if kind == 0:
            self.session.good(scsi.write_same10(lba, count), block)
        elif kind == 1:
            self.session.good(scsi.write_same16(lba, count), block)
        elif kind == 2:
            # Unmapped or not: a read returns the block that was sent.
            block = bytes(self.block)
            self.session.good(scsi.write_same16(lba, count, unmap=self.thin), block)
        else:
            block = bytes(self.block)
            self.session.good(scsi.write_same16(lba, count, ndob=True))
        self.data[self._bytes(start, count)] = block * count

    def _unmap(self) -> None:
        ranges = [self._range(500) for _ in range(self.pick.randint(1, 4))]
        absolute = [(self.first + start, count) for start, count in ranges]
        data = scsi.unmap_list(absolute)
        if not self.thin:
            answer = self.session.execute(scsi.unmap(len(data)), data)
            assert (answer.key, answer.code) == (scsi.ILLEGAL_REQUEST, 0x2000), answer
            return
        self.session.good(scsi.unmap(len(data)), data)
        for start, count in ranges:
            self._unmapped(start, count)

    def _unmapped(self, start: int, count: int) -> None:
        """Whole units are zero; the rest of a range is zero or as it was, and stays so."""
        for block in range(start, start + count):
            unit = block // self.granule * self.granule
            whole = start <= unit and unit + self.granule <= start + count
            if whole:
                self.data[self._bytes(block, 1)] = bytes(self.block)
                continue
            found = self.session.good(scsi.read16(self.first + block, 1), in_length=self.block)
            before = bytes(self.data[self._bytes(block, 1)])
            assert found in (before, bytes(self.block)), f"block {block} after UNMAP"
            self.data[self._bytes(block, 1)] = found

    def _compare_and_write(self) -> None:
        start, count = self._range(16)
        part = self._bytes(start, count)
        data = self.pick.randbytes(count * self.block)
        self.session.good(
            scsi.compare_and_write(self.first + start, count), bytes(self.data[part]) + data
        )
        self.data[part] = data

    def _miscompare(self) -> None:
        start, count = self._range(16)
        part = self._bytes(start, count)
        wrong = bytearray(self.data[part])
        where = self.pick.randrange(len(wrong))
        wrong[where] ^= 0x80
        answer = self.session.execute(
            scsi.compare_and_write(self.first + start, count),
            bytes(wrong) + self.pick.randbytes(len(wrong)),
        )
        assert (answer.status, answer.key, answer.code) == (
            *(scsi.CHECK_CONDITION, scsi.MISCOMPARE, 0x1D00),
        ), answer
        assert answer.information == where
        self._compare(start, count)

    def _orwrite(self) -> None:
        start, count = self._range(64)
        part = self._bytes(start, count)
        mask = self.pick.randbytes(count * self.block)
        self.session.good(scsi.orwrite16(self.first + start, count), mask)
        self.data[part] = bytes(a | b for a, b in zip(self.data[part], mask, strict=True))

    def _verify(self) -> None:
        start, count = self._range(64)
        part = self._bytes(start, count)
        lba = self.first + start
        self.session.good(scsi.verify16(lba, count, compare=True), bytes(self.data[part]))
        self.session.good(scsi.verify16(lba, count, compare=False))
        wrong = bytearray(self.data[part])
        wrong[self.pick.randrange(len(wrong))] ^= 1
        answer = self.session.execute(scsi.verify16(lba, count, compare=True), bytes(wrong))
        assert (answer.key, answer.code) == (scsi.MISCOMPARE, 0x1D00), answer

    def _write_verify(self) -> None:
        start, count = self._range(64)
        data = self.pick.randbytes(count * self.block)
        compare = self.pick.random() < 0.5
        self.session.good(scsi.write_verify16(self.first + start, count, compare=compare), data)
        self.data[self._bytes(start, count)] = data

    def _sync(self) -> None:
        self.session.good(scsi.synchronize_cache10())

    def _lba_status(self) -> None:
        """Descriptors without gaps from the asked block on; what is not mapped reads as zeros."""
        start = self.pick.randrange(self.blocks)
        data = self.session.good(scsi.get_lba_status(self.first + start), in_length=4096)
        at = 8
        expected = self.first + start
        while at + 16 <= 4 + int.from_bytes(data[:4], "big"):
            lba = int.from_bytes(data[at : at + 8], "big")
            count = int.from_bytes(data[at + 8 : at + 12], "big")
            assert lba == expected
            assert count > 0
            if data[at + 12] & 0x0F:
                begin, end = lba - self.first, min(lba - self.first + count, self.blocks)
                if begin < end:
                    part = self.data[self._bytes(begin, end - begin)]
                    assert not any(part), f"block {lba}: not mapped, but it was written"
            expected = lba + count
            at += 16
        assert at > 8


@pytest.mark.parametrize("kind", ["512e thin", "512e thick", "4Kn"])
def test_all_writing_commands_leave_what_the_model_holds(targets: Targets, kind: str) -> None:
    """Ranges at the start, over the border of two chunks and of two segments."""
    block = 4096 if kind == "4Kn" else 512
    options = {"512e thin": {}, "512e thick": {"thin": "no"}, "4Kn": {"block": "4096"}}[kind]
    targets.volume(size="3G")
    target = targets.target([Lun("disk", options=options)])
    with target.session() as session:
        for number, offset in enumerate((0, (16 << 20) - (1 << 19), (1 << 30) - (1 << 19))):
            blocks = (1 << 20) // block
            thin = kind != "512e thick"
            model = _Model(session, offset // block, blocks, number, block, thin)
            model.run(150)
            assert len(model.done) == 11, model.done


def _fill(tag: int, sectors: int) -> bytes:
    return tag.to_bytes(8, "big") * (64 * sectors)


def test_sector_writes_within_one_block_never_lose_each_other(target: Target) -> None:
    """Eight 512-byte writes to each 4 KiB from two sessions at once, while others write 4 KiB."""
    with target.session() as one, target.session(isid=2) as two, target.session(isid=3) as big:
        tag = 0
        for _ in range(12):
            expected: dict[int, bytes] = {}
            small: list[tuple[Session, Command]] = []
            for unit in range(24):
                # Sectors of the even units, whole units between them.
                for sector in range(8):
                    tag += 1
                    lba = unit * 16 + sector
                    session = (one, two)[sector % 2]
                    expected[lba] = _fill(tag, 1)
                    small.append((session, session.submit(scsi.write10(lba, 1), expected[lba])))
                tag += 1
                lba = unit * 16 + 8
                expected[lba] = _fill(tag, 8)
                small.append((big, big.submit(scsi.write10(lba, 8), expected[lba])))
            _end(small)
            for lba, data in expected.items():
                found = one.good(scsi.read10(lba, len(data) // 512), in_length=len(data))
                assert found == data, f"the write to block {lba} was lost"


def test_sector_writes_that_race_a_whole_block_leave_each_sector_whole(target: Target) -> None:
    """A sector holds what one of its writers sent; the others hold the whole block's data."""
    pick = random.Random(6)
    with target.session() as one, target.session(isid=2) as two:
        tag = 0
        for _ in range(25):
            sent: list[tuple[Session, Command]] = []
            rivals: dict[int, set[bytes]] = {}
            for unit in range(16):
                tag += 1
                whole = _fill(tag, 8)
                sectors = pick.sample(range(8), 3)
                orders = [(two, unit * 8, whole)]
                for sector in range(8):
                    rivals[unit * 8 + sector] = {whole[:512]}
                for sector in sectors:
                    tag += 1
                    rivals[unit * 8 + sector].add(_fill(tag, 1))
                    orders.append((one, unit * 8 + sector, _fill(tag, 1)))
                pick.shuffle(orders)
                for session, lba, data in orders:
                    command = session.submit(scsi.write10(lba, len(data) // 512), data)
                    sent.append((session, command))
            _end(sent)
            found = one.good(scsi.read10(0, 128), in_length=128 * 512)
            for lba, allowed in rivals.items():
                sector_data = found[lba * 512 : lba * 512 + 512]
                assert sector_data in allowed, f"block {lba}: {sector_data[:8].hex()}"


def _end(sent: list[tuple[Session, Command]]) -> None:
    """All sessions in turn, so that none's commands wait for another's."""
    sessions = list(dict.fromkeys(session for session, _ in sent))
    while any(command.answer is None for _, command in sent):
        for session in sessions:
            assert session.pump(), session.error()
    answers: list[Answer] = [command.answer for _, command in sent if command.answer]
    assert all(answer.status == scsi.GOOD for answer in answers), answers
