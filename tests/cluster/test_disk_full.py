# SPDX-License-Identifier: BSD-3-Clause
"""A disk that fills up: the client gets ENOSPC, nothing is lost, space lets it go on."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.libnbd import close, connect, nbd
from support.process import wait_until
from support.stack import Stack
from support.tools import copygate, run, same

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system"),
]

BLOCK = 1 << 20


SIZE = "300m"


@pytest.fixture(params=["tmpfs", "ext4"])
def real_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 MiB, in memory and as disks have it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "tmpfs":
        run("mount", "-t", "tmpfs", "-o", f"size={SIZE}", "copygate-test", folder)
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(300 * BLOCK)
        run("mkfs.ext4", "-q", "-m", "0", image)
        if run("mount", "-o", "loop", image, folder, status=None).returncode != 0:
            pytest.skip("no loop devices here")
    yield folder
    run("umount", "-l", folder)


class Hog:
    """Another program that takes every block that is free."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "hog"

    def take_all(self) -> None:
        for piece in (BLOCK, 4096, 1):
            with contextlib.suppress(OSError), self.path.open("ab", buffering=0) as file:
                while True:
                    file.write(b"h" * piece)

    def give_back(self) -> None:
        self.path.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 MiB in memory."""
    folder = tmp_path / "small"
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={SIZE}", "copygate-test", folder)
    yield folder
    run("umount", "-l", folder)


def _fill(handle: object, first: int, limit: int) -> tuple[int, int]:
    """Writes blocks from `first` on until an error; returns how many, and the errno."""
    for number in range(first, first + limit):
        try:
            handle.pwrite(_block(number), number * BLOCK)  # type: ignore[attr-defined]
        except nbd.Error as error:
            return number - first, int(error.errnum)
    return limit, 0


def _block(number: int) -> bytes:
    return (number.to_bytes(8, "little") + b"full-disk") * (BLOCK // 17) + bytes(BLOCK % 17)


def test_full_disk_gives_enospc_and_service_goes_on_when_space_returns(
    stack_factory: Callable[..., Stack], small_disk: Path, plugin: str
) -> None:
    """Fill, read back, overwrite in place, free by trim, write again, restart, compare."""
    stack = stack_factory(
        data=small_disk / "disk",
        chunkserver_options=["--wal-size", "64M", "--reserve", "32M"],
    )
    stack.create_volume("disk", "1G")
    handle = connect(stack.gateway("disk", plugin=plugin).uri)
    written, error = _fill(handle, 0, 600)
    assert error == errno.ENOSPC
    assert written > 100
    for number in range(written):
        assert same(handle.pread(BLOCK, number * BLOCK), _block(number))
    # What is allocated can still be overwritten: no new space is needed.
    handle.pwrite(_block(7)[:4096], 3 * BLOCK)
    handle.pwrite(_block(3)[:4096], 3 * BLOCK)
    # Space comes back by trim, and the write that failed succeeds now.
    handle.trim(40 * BLOCK, 0)
    again, error = _fill(handle, written, 20)
    assert (again, error) == (20, 0)
    written += again
    close(handle)
    for daemon in (stack.gateways[0].daemon, stack.chunkserver):
        daemon.stop()
    stack.chunkserver.start()
    stack.gateways[0].daemon.start()
    handle = connect(stack.gateways[0].uri)
    assert same(handle.pread(BLOCK, 0), bytes(BLOCK))
    for number in range(40, written):
        assert same(handle.pread(BLOCK, number * BLOCK), _block(number))
    close(handle)


def test_space_that_others_take_is_an_error_not_a_loss(
    stack_factory: Callable[..., Stack], small_disk: Path
) -> None:
    """Another program fills the file system; when it gives the space back, everything is there.

    The chunkserver starts meanwhile.
    """
    stack = stack_factory(
        data=small_disk / "disk",
        chunkserver_options=["--wal-size", "64M", "--reserve", "32M"],
    )
    stack.create_volume("disk", "1G")
    gateway = stack.gateway("disk")
    handle = connect(gateway.uri)
    assert _fill(handle, 0, 50) == (50, 0)
    hog = small_disk / "hog"
    with hog.open("wb") as file:
        try:
            while True:
                file.write(bytes(BLOCK))
                file.flush()
        except OSError as error:
            assert error.errno == errno.ENOSPC
    written, error = _fill(handle, 50, 200)
    assert error == errno.ENOSPC
    stack.chunkserver.kill()
    stack.chunkserver.start()
    hog.unlink()
    for number in range(50 + written):
        assert same(handle.pread(BLOCK, number * BLOCK), _block(number))
    assert _fill(handle, 50 + written, 20) == (20, 0)
    close(handle)


def _writes(handle: object, number: int) -> bool:
    try:
        handle.pwrite(_block(number), number * BLOCK)  # type: ignore[attr-defined]
    except nbd.Error as error:
        assert int(error.errnum) == errno.ENOSPC
        return False
    return True


def test_restarts_on_a_disk_without_a_free_block(
    stack_factory: Callable[..., Stack], real_disk: Path
) -> None:
    """Killed again and again while others hold every block: it starts, reads, overwrites and trims.

    Space that a trim gives back, or that the others do, is written to without a restart.
    """
    stack = stack_factory(
        data=real_disk / "disk",
        chunkserver_options=["--wal-size", "64M", "--reserve", "32M"],
    )
    stack.create_volume("disk", "1G")
    handle = connect(stack.gateway("disk").uri)
    assert _fill(handle, 0, 100) == (100, 0)
    content = {number: _block(number) for number in range(100)}
    hog = Hog(real_disk)
    hog.take_all()
    for life in range(4):
        assert not _writes(handle, 100)
        # More than the log holds: it has to be saved and used again.
        for number in range(80):
            content[number] = _block(1000 * (life + 1) + number)
            handle.pwrite(content[number], number * BLOCK)
            if number % 20 == 0:
                hog.take_all()
        handle.trim(4096, 99 * BLOCK + life * 4096)
        content[99] = bytes(4096 * (life + 1)) + content[99][4096 * (life + 1) :]
        stack.chunkserver.kill()
        hog.take_all()
        stack.chunkserver.start()
        for number, data in content.items():
            assert same(handle.pread(BLOCK, number * BLOCK), data)
    handle.trim(60 * BLOCK, 0)
    wait_until(lambda: _writes(handle, 100), 20, "a write to what was trimmed")
    hog.take_all()
    stack.chunkserver.kill()
    hog.take_all()
    stack.chunkserver.start()
    assert same(handle.pread(BLOCK, 0), bytes(BLOCK))
    assert same(handle.pread(BLOCK, 100 * BLOCK), _block(100))
    hog.give_back()
    wait_until(lambda: _writes(handle, 101), 20, "a write when the others gave back")
    for number in range(60, 99):
        assert same(handle.pread(BLOCK, number * BLOCK), content[number])
    close(handle)


def test_disk_that_is_full_already_is_refused_at_start(small_disk: Path) -> None:
    """No room for even a small log: a clear message, a non-zero exit."""
    with (small_disk / "hog").open("wb") as hog:
        os.posix_fallocate(hog.fileno(), 0, 298 * BLOCK)
    refused = copygate(
        *("chunkserver", "--data", small_disk / "disk", "--listen", "127.0.0.1:0"),
        *("--mds", "127.0.0.1:1"),
        status=None,
        timeout=30,
    )
    assert refused.returncode != 0
    assert "space" in refused.stderr.lower()
    assert "Traceback" not in refused.stderr


def test_disk_smaller_than_the_default_log_works(
    stack_factory: Callable[..., Stack], small_disk: Path
) -> None:
    """A log of 1 GiB does not fit on 300 MiB: it makes do with less, and takes what fits."""
    stack = stack_factory(data=small_disk / "disk")
    stack.create_volume("disk", "1G")
    handle = connect(stack.gateway("disk").uri)
    written, error = _fill(handle, 0, 600)
    assert error == errno.ENOSPC
    assert written >= 40
    for number in range(written):
        assert same(handle.pread(BLOCK, number * BLOCK), _block(number))
    stack.chunkserver.kill()
    stack.chunkserver.start()
    for number in range(written):
        assert same(handle.pread(BLOCK, number * BLOCK), _block(number))
    close(handle)
