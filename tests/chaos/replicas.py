# SPDX-License-Identifier: BSD-3-Clause
"""Do the replicas of each copyset hold the same bytes? Reads the folders of stopped chunkservers.

A chunk's content is what a reader would get: the data of the blocks that its newest metadata calls
allocated, zeros elsewhere. docs/formats.md describes the files.
"""

import struct
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"CGCHUNK1"
_SLOTS = (0, 32 << 10)
_DATA = 64 << 10
_BITMAP, _CRCS, _SLOT_LENGTH = 512, 4096, 20480
_MEMBER_LSN = 24  # in the file "member"; all ones: the replica was removed
_HEADER = struct.Struct("<8sIIQQQQQQII")


@dataclass(frozen=True)
class Chunk:
    """One chunk file: newest metadata slot, and where the data is."""

    path: Path
    sequence: int
    group: int
    chunk: int
    volume: int
    index: int
    block_size: int
    bitmap: bytes
    crcs: bytes

    def offset(self, block: int) -> int:
        """Where a block is in the file."""
        return _DATA + block * self.block_size

    def allocated(self, block: int) -> bool:
        """Whether the block holds data."""
        return bool(self.bitmap[block // 8] >> block % 8 & 1)

    def blocks(self) -> list[int]:
        """The allocated blocks."""
        return [block for block in range(len(self.bitmap) * 8) if self.allocated(block)]


def read_chunk(path: Path) -> Chunk:
    """Reads a chunk file's metadata. AssertionError if it has none that is whole."""
    newest: Chunk | None = None
    with path.open("rb") as file:
        for offset in _SLOTS:
            file.seek(offset)
            slot = file.read(_SLOT_LENGTH)
            if len(slot) < _SLOT_LENGTH:
                continue
            magic, _, _, sequence, group, chunk, volume, _, index, size, block = (
                _HEADER.unpack_from(slot)
            )
            if magic != _MAGIC or (newest is not None and newest.sequence > sequence):
                continue
            blocks = size // block
            newest = Chunk(
                path, sequence, group, chunk, volume, index, block,
                slot[_BITMAP : _BITMAP + blocks // 8], slot[_CRCS : _CRCS + 4 * blocks],
            )  # fmt: skip
    assert newest is not None, f"{path} has no metadata"
    return newest


def _difference(one: Chunk, other: Chunk) -> str | None:
    if one.bitmap != other.bitmap:
        blocks = sorted(set(one.blocks()) ^ set(other.blocks()))
        return f"blocks {blocks[:8]} are allocated in one of them only"
    with one.path.open("rb") as a, other.path.open("rb") as b:
        for block in one.blocks():
            a.seek(one.offset(block))
            b.seek(other.offset(block))
            if a.read(one.block_size) != b.read(one.block_size):
                return f"block {block} differs"
    crcs = next((i for i in one.blocks() if one.crcs[4 * i :][:4] != other.crcs[4 * i :][:4]), None)
    return None if crcs is None else f"the checksum of block {crcs} differs"


def folders(chunkserver: Path) -> dict[str, Path]:
    """The copysets of a chunkserver's folder, by "POOL-COPYSET"; not those that were removed."""
    chunks = chunkserver / "chunks"
    return {path.name: path for path in chunks.iterdir() if path.is_dir() and not _removed(path)}


def _removed(folder: Path) -> bool:
    member = folder / "member"
    return member.exists() and member.read_bytes()[_MEMBER_LSN:][:8] == b"\xff" * 8


def compare(chunkservers: Mapping[str, Path], expected: Mapping[str, set[str]]) -> list[str]:
    """What differs between the replicas; `expected` says by copyset who has one.

    `chunkservers`: the folder of each, stopped after everything was applied everywhere.
    """
    problems = []
    replicas: defaultdict[str, dict[str, dict[str, Chunk]]] = defaultdict(dict)
    for name, folder in chunkservers.items():
        for copyset, path in folders(folder).items():
            files = path.glob("chunk_*")
            replicas[copyset][name] = {file.name: read_chunk(file) for file in files}
    for copyset, members in expected.items():
        held = replicas.get(copyset, {})
        if missing := members - set(held):
            problems.append(f"copyset {copyset}: no replica at {', '.join(sorted(missing))}")
            continue
        (first, chunks), *others = sorted((m, held[m]) for m in members)
        for name, theirs in others:
            where = f"copyset {copyset}, {first} and {name}"
            if set(chunks) != set(theirs):
                lonely = sorted(set(chunks) ^ set(theirs))
                problems.append(f"{where}: {', '.join(lonely[:5])} at one of them only")
            for chunk in sorted(set(chunks) & set(theirs)):
                if difference := _difference(chunks[chunk], theirs[chunk]):
                    problems.append(f"{where}: {chunk}: {difference}")
    return problems


def count(chunkservers: Mapping[str, Path]) -> tuple[int, int]:
    """How many chunk files there are, and how many blocks they hold: what compare() looked at."""
    chunks = [
        read_chunk(file)
        for folder in chunkservers.values()
        for path in folders(folder).values()
        for file in path.glob("chunk_*")
    ]
    return len(chunks), sum(len(chunk.blocks()) for chunk in chunks)
