# SPDX-License-Identifier: BSD-3-Clause
"""The scrub finds what a disk changed by itself, says where, and disturbs nobody."""

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cells import default_layout
from support.libnbd import close, connect, nbd
from support.process import wait_until
from support.stack import Stack
from support.tools import run, same
from support.writer import Writer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

MIB = 1 << 20
BLOCK = 4096
DATA_OFFSET = 65536  # of block 0 in a chunk file


def _chunk(data: Path, content: bytes) -> tuple[Path, int]:
    """The chunk file, and the offset in it, of a block with this content."""
    for path in sorted(data.glob("chunks/*/chunk_*")):
        at = path.read_bytes().find(content, DATA_OFFSET)
        if at >= 0:
            return path, at
    raise AssertionError("the block is in no chunk file")


def _flip(path: Path, offset: int) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        byte = os.pread(fd, 1, offset)[0]
        os.pwrite(fd, bytes([byte ^ 4]), offset)
        os.fsync(fd)
    finally:
        os.close(fd)


def _scrub(stack: Stack, status: int = 0) -> dict[str, Any]:
    """A pass, waited for; what the one chunkserver reports."""
    answer = stack.copygate_json("scrub", "--wait", status=status)
    [report] = answer["chunkservers"]
    return dict(report)


def _status(stack: Stack) -> dict[str, Any]:
    [server] = stack.copygate_json("status")["chunkservers"]
    return dict(server["scrub"])


def _content(number: int) -> bytes:
    return (number.to_bytes(4, "little") + os.urandom(60)) * (BLOCK // 64)


@pytest.fixture
def image_disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """An ext4 in a file: the file, and where it is mounted."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount an image")
    image, folder = tmp_path / "disk.img", tmp_path / "disk"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(600 * MIB)
    run("mkfs.ext4", "-q", "-b", str(BLOCK), image)
    run("mount", "-o", "loop", image, folder)
    yield image, folder
    run("umount", "-l", folder)


def _flip_medium(image: Path, path: Path, offset: int) -> None:
    """Changes a byte of a file below its file system, whose page cache does not notice."""
    wanted = offset // BLOCK
    extents = run("filefrag", "-v", f"-b{BLOCK}", path).stdout
    for first, last, physical in re.findall(
        r"^\s*\d+:\s*(\d+)\.\.\s*(\d+):\s*(\d+)\.\.", extents, re.M
    ):
        if int(first) <= wanted <= int(last):
            _flip(image, (int(physical) + wanted - int(first)) * BLOCK + offset % BLOCK)
            return
    raise AssertionError(f"block {wanted} is in no extent:\n{extents}")


def test_damage_behind_the_page_cache_is_found_shown_and_cleared_by_a_write(
    stack_factory: Callable[..., Stack], image_disk: tuple[Path, Path]
) -> None:
    """Readers see nothing of it while the page cache has the block; the scrub does."""
    image, folder = image_disk
    stack = stack_factory(
        data=folder / "chunkserver", chunkserver_options=["--wal-size", "64M", "--reserve", "32M"]
    )
    stack.create_volume("disk", "2G")
    handle = connect(stack.gateway("disk").uri)
    blocks = [_content(number) for number in range(512)]
    for number, block in enumerate(blocks):
        handle.pwrite(block, (1 << 30) + number * BLOCK)
    assert _scrub(stack)["checked"] == 512 * BLOCK
    stack.copygate("status", "--check")

    path, at = _chunk(folder / "chunkserver", blocks[300])
    _flip_medium(image, path, at + 77)
    assert same(handle.pread(BLOCK, (1 << 30) + 300 * BLOCK), blocks[300])
    report = _scrub(stack, status=1)
    assert (report["bad_blocks"], report["found"]) == (1, 1)
    [bad] = report["bad"]
    assert (bad["volume"], bad["volume_offset"]) == ("/disk", (1 << 30) + 300 * BLOCK)
    assert bad["offset"] == at - DATA_OFFSET
    assert "1 bad blocks" in stack.copygate("status").stdout
    assert "/disk" in stack.copygate("status", "--check", status=1).stdout
    assert _scrub(stack, status=1)["found"] == 0
    lines = [
        line for line in stack.chunkserver.log.read_text().splitlines() if "bad block:" in line
    ]
    assert len(lines) == 1
    assert f"offset {bad['offset']} of the chunk" in lines[0]

    handle.pwrite(blocks[300], (1 << 30) + 300 * BLOCK)
    wait_until(lambda: _status(stack)["bad_blocks"] == 0, 20, "a heartbeat")
    stack.copygate("status", "--check")
    assert _scrub(stack)["checked"] == 512 * BLOCK
    close(handle)


def test_what_is_known_outlives_the_chunkserver_until_it_is_trimmed(
    stack_factory: Callable[..., Stack], plugin: str
) -> None:
    """Found by a scrub, still known after kill -9, EIO for whoever reads it, gone with a trim."""
    stack = stack_factory()
    stack.create_volume("disk", "1G")
    gateway = stack.gateway("disk", plugin=plugin)
    handle = connect(gateway.uri)
    blocks = [_content(number) for number in range(64)]
    handle.pwrite(b"".join(blocks), 0)
    _scrub(stack)
    path, at = _chunk(stack.data, blocks[9])
    _flip(path, at + 5)
    assert _scrub(stack, status=1)["bad_blocks"] == 1
    completed = _status(stack)["completed"]
    stack.chunkserver.kill()
    stack.chunkserver.start()
    wait_until(lambda: _status(stack)["bad_blocks"] == 1, 20, "what was known before")
    assert _status(stack)["completed"] == completed
    with pytest.raises(nbd.Error) as refused:
        handle.pread(BLOCK, 9 * BLOCK)
    assert refused.value.errnum == errno.EIO
    assert same(handle.pread(BLOCK, 10 * BLOCK), blocks[10])
    handle.trim(BLOCK, 9 * BLOCK)
    wait_until(lambda: _status(stack)["bad_blocks"] == 0, 20, "a heartbeat")
    assert _scrub(stack)["bad_blocks"] == 0
    close(handle)


def test_io_during_scrubs_is_right_and_no_scrub_calls_good_data_bad(
    stack_factory: Callable[..., Stack], plugin: str
) -> None:
    """Verified reads, writes, trims and a kill -9, with one fast pass after the other."""
    stack = stack_factory(chunkserver_options=["--scrub-rate", "1G"])
    stack.create_volume("disk", "2G")
    gateway = stack.gateway("disk", plugin=plugin)
    writer = Writer(gateway.uri, default_layout(2 << 30), seed=11).start()
    checked = 0
    for round_ in range(3):
        before = writer.stats.acknowledged
        checked += _scrub(stack)["checked"]
        wait_until(lambda n=before: writer.stats.acknowledged > n + 1000, 30, "load")
        if round_ == 0:
            stack.chunkserver.kill()
            stack.chunkserver.start()
    writer.stop()
    assert checked > 0
    assert _scrub(stack)["bad_blocks"] == 0


def test_a_scrub_that_is_off_says_so(stack_factory: Callable[..., Stack]) -> None:
    """With --scrub-rate 0, or an id that there is not, nothing is asked for."""
    stack = stack_factory(chunkserver_options=["--scrub-rate", "0"])
    assert "is off (--scrub-rate)" in stack.copygate("scrub", status=5).stderr
    assert "no chunkserver 7" in stack.copygate("scrub", "7", status=3).stderr
