# SPDX-License-Identifier: BSD-3-Clause
"""What the clients of the chaos tests note, and what is made of it."""

from pathlib import Path

from chaos.history import (
    CELL,
    FAILED,
    OPENED,
    READ,
    SEEN,
    TORN,
    WRITE,
    WRITTEN,
    Follower,
    Notebook,
    Record,
    content,
    operations,
    value_of,
)
from chaos.linear import FOREVER, Op


def test_a_cell_tells_its_value_and_its_place() -> None:
    """Zeros, another cell's content and a mixture of two writes are told apart from a write."""
    data = content(7, 99)
    assert len(data) == CELL
    assert value_of(7, data) == 99
    assert value_of(8, data) == TORN
    assert value_of(7, bytes(CELL)) == 0
    assert value_of(7, data[:256] + content(7, 98)[256:]) == TORN
    assert value_of(7, data[:256] + bytes(256)) == TORN


def test_a_follower_reads_what_is_written_meanwhile(tmp_path: Path) -> None:
    """Each record once, in order; half a record waits for its other half."""
    path = tmp_path / "history"
    follower = Follower(path)
    assert follower.read() == []
    notes = Notebook(path)
    notes.note(WRITE, 3, cell=5, count=2, value=77)
    assert [r[:5] for r in follower.read()] == [(WRITE, 3, 2, 5, 77)]
    notes.note(READ, 3, cell=5, count=2)
    notes.seen(3, 5, [77, 0])
    found = follower.read()
    assert [(r.event, r.cell, r.value) for r in found] == [
        (READ, 5, 0),
        (SEEN, 5, 77),
        (SEEN, 6, 0),
    ]
    assert found[0].time <= found[1].time == found[2].time
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:10])
    assert follower.read() == []
    path.write_bytes(whole + whole[:24])
    assert len(follower.read()) == 1


def test_operations_of_a_client_that_was_killed() -> None:
    """What it had under way is in doubt, until the next has opened the volume for writing."""
    first = [
        Record(OPENED, 0, 0, 0, 0, 10),
        Record(WRITE, 1, 2, 4, 100, 11),
        Record(WRITTEN, 1, 2, 4, 100, 15),
        Record(WRITE, 1, 1, 4, 101, 16),
        Record(READ, 2, 1, 4, 0, 17),
    ]
    second = [Record(OPENED, 0, 0, 0, 0, 30), Record(READ, 1, 1, 4, 0, 31)]
    second.append(Record(SEEN, 1, 1, 4, 101, 33))
    found = operations([first, second], fencing=True)
    assert found == {
        4: [Op(True, 100, 11, 15), Op(True, 101, 16, None, 30), Op(False, 101, 31, 33)],
        5: [Op(True, 100, 11, 15)],
    }
    assert operations([first, second], fencing=False)[4][1].settled == FOREVER


def test_operations_that_failed() -> None:
    """A write that failed is in doubt, a read that failed is nothing; the thread goes on."""
    records = [
        Record(WRITE, 1, 1, 4, 100, 11),
        Record(FAILED, 1, 1, 4, 0, 12),
        Record(READ, 1, 1, 4, 0, 13),
        Record(FAILED, 1, 1, 4, 0, 14),
        Record(READ, 1, 1, 4, 0, 15),
        Record(SEEN, 1, 1, 4, 0, 16),
    ]
    assert operations([records], fencing=False) == {
        4: [Op(True, 100, 11, None), Op(False, 0, 15, 16)]
    }
