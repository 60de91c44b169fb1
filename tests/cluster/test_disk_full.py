# SPDX-License-Identifier: BSD-3-Clause
"""A disk that fills up: the client gets ENOSPC, nothing is lost, space lets it go on."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.libnbd import close, connect, nbd
from support.process import ProcessError
from support.stack import Stack
from support.tools import copygate, run, same

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system"),
]

BLOCK = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 MiB in memory."""
    folder = tmp_path / "small"
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=300m", "copygate-test", folder)
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

    What was acknowledged is in the log, even if the chunk files had no room for it: the chunkserver
    may refuse to start meanwhile, with a message about the space.
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
    try:
        stack.chunkserver.start()
    except ProcessError as refused:
        assert "space" in str(refused)
    hog.unlink()
    if not stack.chunkserver.running:
        stack.chunkserver.start()
    for number in range(50 + written):
        assert same(handle.pread(BLOCK, number * BLOCK), _block(number))
    assert _fill(handle, 50 + written, 20) == (20, 0)
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
