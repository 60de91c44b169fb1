# SPDX-License-Identifier: BSD-3-Clause
"""gateway.core: the IO core from Python, on a real store."""

import array
import mmap
import threading
import time
from collections.abc import Iterator

import pytest
from support.process import free_port
from support.stack import Stack

from gateway import core, errors

SIZE = 2 << 30


@pytest.fixture
def client(stack: Stack) -> Iterator[core.Client]:
    """A client of a store with the volume "disk"."""
    stack.create_volume("disk", "2G")
    with core.Client(stack.mds_address) as client:
        yield client


@pytest.fixture
def volume(client: core.Client) -> Iterator[core.Volume]:
    """The volume, open for writing."""
    with client.open_volume("disk") as volume:
        yield volume


def test_info_tells_what_was_created(volume: core.Volume) -> None:
    """Sizes as the store has them."""
    info = volume.info()
    assert info.size == SIZE
    assert info.block_size == 4096
    assert info.chunk_size == 16 << 20
    assert info.segment_size == 1 << 30
    assert info.native
    assert not info.read_only
    assert info.uuid.int != 0


@pytest.mark.parametrize("offset", [0, 1, 4095, 4096, (16 << 20) - 7, SIZE - 70000])
@pytest.mark.parametrize("length", [1, 511, 4096, 65537])
def test_what_is_written_is_read(volume: core.Volume, offset: int, length: int) -> None:
    """At any alignment, over borders, up to the end."""
    data = bytes((offset + i) % 251 for i in range(length))
    assert volume.pwrite(data, offset) == length
    assert volume.pread(length, offset) == data
    target = bytearray(length)
    assert volume.readinto(target, offset) == length
    assert target == data


def test_any_buffer_will_do(volume: core.Volume) -> None:
    """The buffer protocol, contiguous, and writable where it is filled."""
    volume.pwrite(array.array("I", range(1024)), 0)
    with mmap.mmap(-1, 8192) as memory:
        assert volume.readinto(memory, 0) == 8192
        assert memory[:4096] == array.array("I", range(1024)).tobytes()
    view = memoryview(bytearray(8192))
    assert volume.readinto(view[4096:], 0) == 4096
    assert bytes(view[:4096]) == bytes(4096)
    with pytest.raises(BufferError):
        volume.readinto(b"read-only", 0)
    with pytest.raises(BufferError):
        volume.pwrite(view[::2], 0)
    with pytest.raises(TypeError):
        volume.pwrite("text", 0)  # type: ignore[arg-type]


def test_zeroes_trim_and_block_status_belong_together(volume: core.Volume) -> None:
    """A hole before, data after the write, zeros or a hole again."""
    volume.pwrite(b"x" * (1 << 20), 1 << 20)
    extents = volume.block_status(4 << 20, 0)
    assert extents[0].offset == 0
    assert sum(extent.length for extent in extents) == 4 << 20
    at = {extent.offset: extent for extent in extents}
    assert at[0].hole
    assert at[0].zero
    data = next(e for e in extents if e.offset <= 1 << 20 < e.offset + e.length)
    assert not data.hole
    assert not data.zero
    volume.write_zeroes(1 << 20, 1 << 20, no_hole=True, fast=True)
    assert volume.pread(1 << 20, 1 << 20) == bytes(1 << 20)
    volume.pwrite(b"y" * 8192, 1 << 20)
    volume.trim(1 << 20, 1 << 20)
    assert volume.pread(8192, 1 << 20) == bytes(8192)
    volume.flush()


def test_compare_and_write_is_all_or_nothing(volume: core.Volume) -> None:
    """The first differing byte is told; nothing is written then."""
    volume.pwrite(b"a" * 4096, 0)
    assert volume.compare_and_write(b"a" * 4096, b"b" * 4096, 0) is None
    assert volume.pread(4096, 0) == b"b" * 4096
    wrong = b"b" * 100 + b"?" + b"b" * 3995
    assert volume.compare_and_write(wrong, b"c" * 4096, 0) == 100
    assert volume.pread(4096, 0) == b"b" * 4096
    with pytest.raises(errors.InvalidArgumentError, match="equally long"):
        volume.compare_and_write(b"a", b"bb", 0)


def test_ranges_beyond_the_end_are_refused(volume: core.Volume) -> None:
    """With what was asked for in the error."""
    for attempt in (
        lambda: volume.pread(1, SIZE),
        lambda: volume.pread(2, SIZE - 1),
        lambda: volume.pwrite(b"ab", SIZE - 1),
        lambda: volume.trim(1, SIZE),
        lambda: volume.write_zeroes(4096, (1 << 64) - 4096),
    ):
        with pytest.raises(errors.InvalidArgumentError) as refused:
            attempt()
        assert refused.value.context["volume"] == "disk"
    with pytest.raises(OverflowError):
        volume.pread(1, -1)


def test_errors_of_opening_name_volume_and_mend(client: core.Client) -> None:
    """NotFoundError for a volume that is not there."""
    with pytest.raises(errors.NotFoundError) as missing:
        client.open_volume("absent")
    assert missing.value.context["volume"] == "absent"
    assert missing.value.hint


def test_bad_arguments_are_refused_before_anything_is_sent(client: core.Client) -> None:
    """Each with its own message."""
    with pytest.raises(errors.ConfigError, match="nonsense"):
        core.Client("nonsense")
    with pytest.raises(errors.InvalidArgumentError, match="log_level"):
        core.Client("127.0.0.1:6700", log_level="loud")
    with pytest.raises(errors.InvalidArgumentError, match="path"):
        client.open_volume("")
    with pytest.raises(errors.InvalidArgumentError, match="io_timeout"):
        client.open_volume("disk", io_timeout=0)
    with pytest.raises(errors.InvalidArgumentError, match="open_timeout"):
        client.open_volume("disk", open_timeout=float("nan"))
    with pytest.raises(errors.InvalidArgumentError, match="inflight_max"):
        client.open_volume("disk", inflight_max=-1)
    with pytest.raises(TypeError):
        core.Volume()


def test_a_missing_metadata_server_ends_the_open_in_time() -> None:
    """Not later than open_timeout and a bit."""
    began = time.monotonic()
    with (
        core.Client(f"127.0.0.1:{free_port()}", log_level=None) as client,
        pytest.raises(errors.CopygateError),
    ):
        client.open_volume("disk", open_timeout=0.3)
    assert time.monotonic() - began < 3


def test_read_only_volumes_refuse_writes(client: core.Client) -> None:
    """AccessError, and the data stays."""
    with client.open_volume("disk", read_only=True) as volume:
        assert volume.info().read_only
        with pytest.raises(errors.AccessError):
            volume.pwrite(b"x", 0)


def test_a_second_opening_fences_the_first(client: core.Client, stack: Stack) -> None:
    """FencedError for the late write; the newer one works."""
    with client.open_volume("disk") as first, core.Client(stack.mds_address) as other:
        first.pwrite(b"first", 0)
        with other.open_volume("disk") as second:
            assert second.info().epoch > first.info().epoch
            with pytest.raises(errors.FencedError):
                first.pwrite(b"late!", 0)
            assert second.pread(5, 0) == b"first"


def test_closing_waits_for_those_who_work(client: core.Client) -> None:
    """Threads inside the core finish; later calls are refused."""
    volume = client.open_volume("disk")
    stop = threading.Event()
    outcomes: list[str] = []

    def work(number: int) -> None:
        data = bytes([number]) * 65536
        try:
            while not stop.is_set():
                volume.pwrite(data, number * 65536)
        except errors.CopygateError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    volume.close()
    volume.close()
    stop.set()
    for thread in threads:
        thread.join(10)
    assert all("closed" in outcome for outcome in outcomes)
    with pytest.raises(errors.CopygateError, match="closed"):
        volume.pread(1, 0)


def test_closing_the_client_closes_its_volumes(stack: Stack) -> None:
    """And a second close does nothing."""
    stack.create_volume("other", "1G")
    client = core.Client(stack.mds_address)
    volume = client.open_volume("other")
    client.close()
    client.close()
    with pytest.raises(errors.CopygateError, match="closed"):
        volume.info()
    with pytest.raises(errors.CopygateError, match="closed"):
        client.open_volume("other")


def test_other_python_threads_run_while_the_core_works(volume: core.Volume) -> None:
    """The GIL is released: a counter goes on while a long write is under way."""
    counted = 0
    done = threading.Event()

    def count() -> None:
        nonlocal counted
        while not done.is_set():
            counted += 1

    thread = threading.Thread(target=count)
    thread.start()
    before = counted
    volume.pwrite(bytes(64 << 20), 0)
    during = counted - before
    done.set()
    thread.join()
    assert during > 100


def test_stats_count_what_was_done(volume: core.Volume) -> None:
    """IOs and bytes."""
    for number in range(10):
        volume.pwrite(b"x" * 4096, number * 4096)
    volume.pread(8192, 0)
    stats = volume.stats()
    assert stats.writes == 10
    assert stats.written_bytes == 40960
    assert stats.reads == 1
    assert stats.read_bytes == 8192
    assert stats.errors == 0
    assert stats.inflight == 0
