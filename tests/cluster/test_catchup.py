# SPDX-License-Identifier: BSD-3-Clause
"""Replicas copy what the others' logs do not have any more, and mend each other's damage, while a
verified load goes on. Afterwards they are the same, byte for byte."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chaos import replicas
from support.cells import default_layout
from support.libnbd import close, connect
from support.process import wait_until
from support.stack import Stack
from support.writer import Writer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SIZE = 1 << 30
MIB = 1 << 20
CHUNK = 16 * MIB
DATA_OFFSET = 65536  # of block 0 in a chunk file


@pytest.fixture
def trio(stack_factory: Callable[..., Stack]) -> Stack:
    """Three chunkservers with short logs, and slow copies."""
    return stack_factory(
        replicas=3,
        chunkserver_options=("--wal-size", "64M", "--copy-rate", "8M", "--scrub-rate", "64M"),
        mds_options=("--copysets", "2"),
    )


@pytest.fixture
def filled(trio: Stack) -> tuple[Stack, Writer]:
    """A volume with some data in each chunk, a part of which is written all the time."""
    trio.create_volume("disk", str(SIZE))
    gateway = trio.gateway("disk")
    handle = connect(gateway.uri)
    for offset in range(SIZE // 2, SIZE, CHUNK):
        handle.pwrite(os.urandom(2 * MIB), offset)
    close(handle)
    writer = Writer(gateway.uri, default_layout(SIZE // 2), seed=8).start()
    wait_until(lambda: writer.stats.acknowledged > 300, 30, "load")
    return trio, writer


def _chunks(folder: Path) -> list[Path]:
    return sorted(folder.glob("chunks/1-*/chunk_*"))


def _members(stack: Stack, copyset: str) -> set[int]:
    found = stack.copygate_json("copyset", "show", copyset)
    return {m["chunkserver"] for m in found["members"] if m["role"] != "learner"}


def _settled(stack: Stack) -> bool:
    return all(
        found["state"] == "healthy"
        and found["change"] is None
        and found["last_index"] == found["applied_index"]
        and all(m["role"] == "leader" or m["behind"] == 0 for m in found["members"])
        for found in stack.copysets()
    )


def _compare(stack: Stack) -> None:
    """Stops the chunkservers in order, and compares their files."""
    wait_until(lambda: _settled(stack), 60, "settling", interval=0.2)
    expected = {
        found["copyset"]: {f"chunkserver-{m['chunkserver']}" for m in found["members"]}
        for found in stack.copysets()
    }
    for daemon in stack.chunkservers:
        assert daemon.stop() == 0
    folders = {folder.name: folder for folder in stack.data_folders}
    assert replicas.compare(folders, expected) == []
    assert replicas.count(folders)[0] > 0


def test_a_copy_that_is_killed_again_and_again_is_completed(
    filled: tuple[Stack, Writer],
) -> None:
    stack, writer = filled
    target = stack.add_chunkserver()
    stack.copygate("copyset", "move", "1-1", "--from", "1", "--to", "4")
    copy = stack.data_folders[3] / "chunks" / "1-1" / "copy"
    for _ in range(4):
        wait_until(copy.exists, 60, "copying", interval=0.02)
        before = len(_chunks(stack.data_folders[3]))
        wait_until(
            lambda before=before: (
                len(_chunks(stack.data_folders[3])) > before + 1 or not copy.exists()
            ),
            60,
            "some chunks",
            interval=0.02,
        )
        target.kill()
        target.start()
    wait_until(lambda: _members(stack, "1-1") == {2, 3, 4}, 90, "the move", interval=0.2)
    writer.check()
    assert not writer.stats.errors
    writer.verify()
    writer.stop()
    _compare(stack)


def _flip(path: Path, offset: int) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        byte = os.pread(fd, 1, offset)[0]
        os.pwrite(fd, bytes([byte ^ 4]), offset)
        os.fsync(fd)
    finally:
        os.close(fd)


def _bad_blocks(stack: Stack) -> int:
    servers: list[dict[str, Any]] = stack.copygate_json("status")["chunkservers"]
    return sum(server["scrub"]["bad_blocks"] for server in servers)


def _mended(stack: Stack) -> int:
    return sum(daemon.log.read_text().count("mended: chunk") for daemon in stack.chunkservers)


def test_flipped_bits_are_found_by_the_scrub_and_mended_from_the_majority(
    filled: tuple[Stack, Writer],
) -> None:
    stack, writer = filled
    stack.copygate("scrub", "--wait")  # it begins with a checkpoint
    # Of what is not being written: the second half of the volume.
    flipped = 0
    for number, folder in enumerate(stack.data_folders):
        for path in _chunks(folder):
            chunk = replicas.read_chunk(path)
            blocks = [b for b in chunk.blocks() if chunk.allocated(b)]
            if len(blocks) == 2 * MIB // 4096:
                _flip(path, DATA_OFFSET + blocks[100 * number + 7] * 4096 + 99)
                flipped += 1
                break
    assert flipped == 3, "each of them has a bad block now"
    stack.copygate("scrub")
    wait_until(lambda: _mended(stack) >= 3, 60, "mending", interval=0.2)
    wait_until(lambda: _bad_blocks(stack) == 0, 20, "a heartbeat", interval=0.2)
    writer.check()
    assert not writer.stats.errors
    writer.verify()
    writer.stop()
    _compare(stack)
