# SPDX-License-Identifier: BSD-3-Clause
"""The comparison of replicas: what it must find, on chunk files made for it."""

import struct
from pathlib import Path

import pytest
from chaos.replicas import compare, count, read_chunk

BLOCK, SIZE = 4096, 1 << 20
BLOCKS = SIZE // BLOCK


def _slot(sequence: int, blocks: dict[int, bytes], index: int) -> bytes:
    slot = bytearray(20480)
    header = (b"CGCHUNK1", 1, 0, sequence, 1 << 32 | 7, 42, 3, 1, index, SIZE, BLOCK)
    struct.pack_into("<8sIIQQQQQQII", slot, 0, *header)
    for block, data in blocks.items():
        slot[512 + block // 8] |= 1 << block % 8
        struct.pack_into("<I", slot, 4096 + 4 * block, len(data.rstrip(b"\0")) + 1)
    return bytes(slot)


def _chunk(folder: Path, blocks: dict[int, bytes], *, index: int = 9, newest: int = 0) -> None:
    """A chunk file; the older slot says that nothing is allocated."""
    path = folder / "chunks/1-7/chunk_42"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate((64 << 10) + SIZE)
        file.seek(newest * (32 << 10))
        file.write(_slot(5, blocks, index))
        file.seek((1 - newest) * (32 << 10))
        file.write(_slot(4, {}, 1))
        for block, data in blocks.items():
            file.seek((64 << 10) + block * BLOCK)
            file.write(data)


CONTENT = {0: b"a" * BLOCK, 9: b"b" * BLOCK, BLOCKS - 1: b"c" * BLOCK}
MEMBERS = {"1-7": {"one", "two"}}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Two replicas that agree, though their metadata is in different slots and of different age."""
    found = {name: tmp_path / name for name in ("one", "two")}
    _chunk(found["one"], CONTENT)
    _chunk(found["two"], CONTENT, index=12, newest=1)
    return found


def test_replicas_that_agree(folders: dict[str, Path]) -> None:
    """What is not content does not count; what was looked at is counted."""
    with (folders["two"] / "chunks/1-7/chunk_42").open("r+b") as file:
        file.seek((64 << 10) + 5 * BLOCK)
        file.write(b"left over in a block that is not allocated")
    assert compare(folders, MEMBERS) == []
    assert count(folders) == (2, 6)
    assert read_chunk(folders["one"] / "chunks/1-7/chunk_42").blocks() == [0, 9, BLOCKS - 1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({**CONTENT, 9: b"b" * (BLOCK - 1) + b"x"}, "block 9 differs"),
        ({**CONTENT, 10: b"d"}, "blocks [10]"),
        ({0: CONTENT[0], 9: CONTENT[9]}, f"blocks [{BLOCKS - 1}]"),
    ],
)
def test_contents_that_differ(
    folders: dict[str, Path], content: dict[int, bytes], expected: str
) -> None:
    """A byte, a block too many, a block too few."""
    _chunk(folders["two"], content)
    problems = compare(folders, MEMBERS)
    assert len(problems) == 1
    assert expected in problems[0]
    assert "chunk_42" in problems[0]


def test_checksums_that_differ(folders: dict[str, Path]) -> None:
    """The same data under another checksum will be called damaged one day."""
    with (folders["two"] / "chunks/1-7/chunk_42").open("r+b") as file:
        file.seek((32 << 10) + 4096 + 4 * 9)
        file.write(b"\xff")
    assert "checksum of block 9" in compare(folders, MEMBERS)[0]


def test_chunks_and_replicas_that_are_missing(folders: dict[str, Path]) -> None:
    """A chunk at one of them only; a member without the copyset."""
    (folders["two"] / "chunks/1-7/chunk_42").unlink()
    assert "chunk_42 at one of them only" in compare(folders, MEMBERS)[0]
    member = folders["two"] / "chunks/1-7/member"
    member.write_bytes(bytes(88))
    assert "chunk_42 at one of them only" in compare(folders, MEMBERS)[0]
    member.write_bytes(bytes(24) + b"\xff" * 8 + bytes(56))  # it was removed
    assert "no replica at two" in compare(folders, MEMBERS)[0]
