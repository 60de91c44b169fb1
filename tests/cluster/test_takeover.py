# SPDX-License-Identifier: BSD-3-Clause
"""A volume has one writer: who opens it takes it over, and the one before is refused."""

import errno

import pytest
from support.cells import default_layout
from support.libnbd import close, connect, nbd
from support.process import wait_until
from support.stack import Stack
from support.tools import same
from support.writer import Mix, Writer

REFUSED = (errno.EIO, errno.ESHUTDOWN, errno.EPERM)


def test_second_writer_takes_over_and_the_first_is_refused(stack: Stack, plugin: str) -> None:
    """Late writes, zeroes and trims of the first fail; its data stays; the second may write."""
    stack.create_volume("disk", "1G")
    first = connect(stack.gateway("disk", plugin=plugin).uri)
    first.pwrite(b"first" * 1000, 4096)
    second = connect(stack.gateway("disk", plugin=plugin).uri)
    assert same(second.pread(5000, 4096), b"first" * 1000)
    second.pwrite(b"second", 0)
    for late in (
        lambda: first.pwrite(b"late", 4096),
        lambda: first.zero(4096, 4096),
        lambda: first.trim(1 << 20, 0),
    ):
        with pytest.raises(nbd.Error) as refused:
            late()
        assert refused.value.errnum in REFUSED
    assert same(second.pread(5000, 4096), b"first" * 1000)
    assert same(second.pread(6, 0), b"second")
    second.pwrite(b"still mine", 8192)
    assert same(second.pread(10, 8192), b"still mine")
    close(second)


def test_fenced_reader_never_sees_old_data(stack: Stack, plugin: str) -> None:
    """A read of the first after the second's write fails, or returns what the second wrote."""
    stack.create_volume("disk", "1G")
    first = connect(stack.gateway("disk", plugin=plugin).uri)
    first.pwrite(b"old" * 1000, 4096)
    assert same(first.pread(3000, 4096), b"old" * 1000)
    second = connect(stack.gateway("disk", plugin=plugin).uri)
    for number in range(20):
        data = b"%04d" % number * 1000
        second.pwrite(data, 4096)
        try:
            assert same(first.pread(4000, 4096), data)
        except nbd.Error as error:
            assert error.errnum in REFUSED
    close(second)


def test_late_writes_into_a_segment_that_was_never_allocated_are_refused(stack: Stack) -> None:
    """The fenced client cannot allocate either."""
    stack.create_volume("disk", "3G")
    first = connect(stack.gateway("disk").uri)
    first.pwrite(b"x", 0)
    second = connect(stack.gateway("disk").uri)
    second.pwrite(b"y", 1)
    with pytest.raises(nbd.Error) as refused:
        first.pwrite(b"late", 2 << 30)
    assert refused.value.errnum in REFUSED
    assert same(second.pread(4, 2 << 30), bytes(4))
    close(second)


@pytest.mark.timeout(120)
def test_takeover_under_load_keeps_every_acknowledged_write(stack: Stack, plugin: str) -> None:
    """The first writer has many requests in flight when the second opens the volume."""
    size = 3 << 30
    stack.create_volume("disk", str(size))
    layout = default_layout(size)
    gateway = stack.gateway("disk", plugin=plugin)
    writer = Writer(gateway.uri, layout, seed=3, mix=Mix(read=0), stop_on_error=False).start()
    wait_until(lambda: writer.stats.acknowledged > 500, 30, "load")
    successor = stack.gateway("disk", plugin=plugin)
    reader = connect(successor.uri)
    wait_until(lambda: bool(writer.stats.errors), 30, "the first writer's refusal")
    writer.check()
    assert {error for _, error, _ in writer.stats.errors} <= set(REFUSED)
    # A little longer: now that everything is refused, nothing may change under the successor.
    before = [reader.pread(n * 4096, layout.offset(first)) for first, n in layout.runs(256)]
    acknowledged = writer.stats.acknowledged
    wait_until(lambda: len(writer.stats.errors) > 200, 30, "more refusals")
    assert writer.stats.acknowledged == acknowledged
    after = [reader.pread(n * 4096, layout.offset(first)) for first, n in layout.runs(256)]
    assert all(map(same, before, after))
    close(reader)
    writer.pause()
    writer.switch(successor.uri)
    writer.stop()


def test_reopening_by_the_first_takes_the_volume_back(stack: Stack) -> None:
    """Ownership follows the newest opening, as often as it changes."""
    stack.create_volume("disk", "1G")
    handles = []
    for number in range(4):
        handle = connect(stack.gateway("disk").uri)
        handle.pwrite(bytes([number]) * 512, number * 512)
        handles.append(handle)
    for handle in handles[:-1]:
        with pytest.raises(nbd.Error):
            handle.pwrite(b"late", 0)
    expected = b"".join(bytes([number]) * 512 for number in range(4))
    assert handles[-1].pread(2048, 0) == expected
    close(handles[-1])
