# SPDX-License-Identifier: BSD-3-Clause
"""libnbd's Python module: what the server promises, and random IO against a model of the bytes."""

import errno
import threading

import pytest
from support.blockmodel import RandomIO
from support.libnbd import close, connect, nbd
from support.stack import Gateway, Stack
from support.tools import same

SIZE = 3 << 30


def test_handshake_promises_what_the_store_keeps(gateway: Gateway) -> None:
    """Size, flags and block sizes as the NBD protocol tells them."""
    handle = connect(gateway.uri)
    assert handle.get_size() == SIZE
    assert not handle.is_read_only()
    assert handle.can_fua()
    assert handle.can_flush()
    assert handle.can_trim()
    assert handle.can_zero()
    assert handle.can_multi_conn()
    assert handle.get_block_size(nbd.SIZE_MINIMUM) == 1
    assert handle.get_block_size(nbd.SIZE_PREFERRED) % 4096 == 0
    assert handle.get_block_size(nbd.SIZE_MAXIMUM) >= 1 << 20
    close(handle)


def test_unwritten_bytes_read_as_zeros(gateway: Gateway) -> None:
    """A new volume is zeros everywhere, up to its last byte."""
    handle = connect(gateway.uri)
    for offset, length in ((0, 4096), (1, 1), ((1 << 30) - 100, 200), (SIZE - 513, 513)):
        assert same(handle.pread(length, offset), bytes(length))
    close(handle)


def test_last_bytes_can_be_written_and_nothing_beyond(gateway: Gateway) -> None:
    """The volume ends where it ends: no short write, no wrap, an error instead."""
    handle = connect(gateway.uri)
    handle.pwrite(b"end", SIZE - 3)
    assert same(handle.pread(5, SIZE - 5), b"\0\0end")
    with pytest.raises(nbd.Error) as refused:
        handle.pwrite(b"beyond", SIZE - 3)
    assert refused.value.errnum in (errno.EINVAL, errno.ENOSPC)
    with pytest.raises(nbd.Error) as refused:
        handle.pread(4096, SIZE)
    assert refused.value.errnum == errno.EINVAL
    assert same(handle.pread(3, SIZE - 3), b"end")
    close(handle)


def test_block_status_tells_holes_and_data_apart(gateway: Gateway) -> None:
    """base:allocation: a hole before the write, data where it went, a hole again after the trim."""

    def extents(offset: int, length: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []

        def note(_context: str, _offset: int, entries: list[int], _error: object) -> None:
            found.extend(zip(entries[::2], entries[1::2], strict=True))

        handle.block_status(length, offset, note)
        return found

    handle = connect(gateway.uri, block_status=True)
    assert handle.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    hole = nbd.STATE_HOLE | nbd.STATE_ZERO
    length, flags = extents(0, 64 << 20)[0]
    assert length >= 16 << 20
    assert flags == hole
    handle.pwrite(b"\x55" * (64 << 10), 16 << 20)
    assert extents(16 << 20, 4096)[0][1] == 0
    handle.trim(64 << 10, 16 << 20)
    assert extents(16 << 20, 4096)[0][1] == hole
    assert same(handle.pread(64 << 10, 16 << 20), bytes(64 << 10))
    close(handle)


def test_fast_zero_is_fast_or_refused_but_never_wrong(gateway: Gateway) -> None:
    """FAST_ZERO either zeroes or answers ENOTSUP and leaves the data alone."""
    handle = connect(gateway.uri)
    if not handle.can_fast_zero():
        close(handle)
        return
    handle.pwrite(b"\xaa" * 12288, 5000)
    expected = b"\xaa" * 12288
    for start, length in ((8192, 4096), (6000, 100)):
        try:
            handle.zero(length, start, nbd.CMD_FLAG_FAST_ZERO)
        except nbd.Error as error:
            assert error.errnum == errno.ENOTSUP
        else:
            begin = start - 5000
            expected = expected[:begin] + bytes(length) + expected[begin + length :]
        assert same(handle.pread(12288, 5000), expected)
    close(handle)


def test_random_io_matches_a_model_in_four_threads(gateway: Gateway) -> None:
    """Unaligned reads, writes, zeroes and trims on four ranges that meet inside blocks of 4 KiB."""
    sizes = [3_000_001, 4_000_003, 2_500_007, 3_333_333]
    starts = [(16 << 20) - 3_000_001, 16 << 20, (16 << 20) + 4_000_003, (1 << 30) - 1_234_567]
    failures: list[BaseException] = []
    workers = []

    def work(number: int) -> None:
        try:
            io = RandomIO(connect(gateway.uri), starts[number], sizes[number], seed=number)
            for _ in range(400):
                io.step()
            io.check_all()
            assert min(io.reads, io.writes, io.zeroes, io.trims) > 0
            close(io.handle)
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            failures.append(error)

    for number in range(4):
        workers.append(threading.Thread(target=work, args=(number,)))
        workers[-1].start()
    for worker in workers:
        worker.join(100)
        assert not worker.is_alive(), "a worker hangs"
    if failures:
        raise failures[0]


def test_data_written_through_one_connection_is_read_through_another(gateway: Gateway) -> None:
    """What multi-conn promises: no cache stands between two connections."""
    one, two = connect(gateway.uri), connect(gateway.uri)
    for number in range(50):
        data = bytes([number + 1]) * 5000
        one.pwrite(data, 777)
        assert same(two.pread(5000, 777), data)
        two.zero(5000, 777)
        assert same(one.pread(5000, 777), bytes(5000))
    close(one)
    close(two)


def test_data_survives_a_clean_restart_of_everything(stack: Stack, plugin: str) -> None:
    """Stop gateway, chunkserver and MDS with SIGTERM; the same bytes are there afterwards."""
    stack.create_volume("disk", "1G")
    gateway = stack.gateway("disk", plugin=plugin)
    handle = connect(gateway.uri)
    io = RandomIO(handle, 12345, 2_000_000, seed=5)
    for _ in range(200):
        io.step()
    close(handle)
    for daemon in (gateway.daemon, stack.chunkserver, stack.mds):
        daemon.stop()
    for daemon in (stack.mds, stack.chunkserver, gateway.daemon):
        daemon.start()
    io.handle = connect(gateway.uri)
    io.check_all()
    close(io.handle)


def test_read_only_export_refuses_writes_and_fences_nobody(stack: Stack, plugin: str) -> None:
    """A reader beside a writer: it sees the data, cannot change it, and does not take over."""
    stack.create_volume("disk", "1G")
    writer = connect(stack.gateway("disk", plugin=plugin).uri)
    writer.pwrite(b"before", 4096)
    reader = connect(stack.gateway("disk", plugin=plugin, options=["--read-only"]).uri)
    assert reader.is_read_only()
    assert same(reader.pread(6, 4096), b"before")
    with pytest.raises(nbd.Error):
        reader.pwrite(b"x", 0)
    writer.pwrite(b"after!", 4096)
    assert same(reader.pread(6, 4096), b"after!")
    close(reader)
    close(writer)
