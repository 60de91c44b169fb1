# SPDX-License-Identifier: BSD-3-Clause
"""Servers that are away, stopped or slow; a volume that grows while it is in use."""

import signal
import time

import pytest
from support.cells import default_layout
from support.libnbd import close, connect, nbd
from support.process import wait_until
from support.stack import Stack
from support.writer import Writer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SIZE = 3 << 30


def _loaded(stack: Stack, plugin: str, **kwargs: object) -> Writer:
    stack.create_volume("disk", str(SIZE))
    gateway = stack.gateway("disk", plugin=plugin)
    writer = Writer(gateway.uri, default_layout(SIZE), seed=9, **kwargs).start()  # type: ignore[arg-type]
    wait_until(lambda: writer.stats.acknowledged > 2000, 30, "load")
    return writer


def test_short_mds_outage_does_not_stop_io(stack: Stack, plugin: str) -> None:
    """IO to allocated segments does not need the MDS while the lease lasts."""
    writer = _loaded(stack, plugin)
    stack.mds.kill()
    writer.stats.longest = 0.0
    before = writer.stats.acknowledged
    time.sleep(1.5)
    assert writer.stats.acknowledged > before + 500
    assert writer.stats.longest < 0.5
    stack.mds.start()
    time.sleep(2)
    before = writer.stats.acknowledged
    wait_until(lambda: writer.stats.acknowledged > before + 500, 10, "IO after the MDS is back")
    writer.stop()


def test_long_mds_outage_stops_io_and_its_return_resumes_it(stack: Stack) -> None:
    """Without a renewed lease IO stops: another could have been given the volume by then.

    The lease is 20 seconds long, and IO stops after three quarters of it.
    """
    writer = _loaded(stack, "c", stop_on_error=False)
    stack.mds.kill()
    time.sleep(16)
    before = writer.stats.acknowledged
    time.sleep(1)
    assert writer.stats.acknowledged == before, "IO goes on without a lease"
    stack.mds.start()
    wait_until(lambda: writer.stats.acknowledged > before + 500, 40, "IO after the MDS is back")
    writer.check()
    writer.stop()


def test_stopped_chunkserver_delays_io_without_errors(stack: Stack, plugin: str) -> None:
    """SIGSTOP for four seconds: requests wait, are retried, and no retry is a second write."""
    writer = _loaded(stack, plugin)
    for _ in range(2):
        stack.chunkserver.send_signal(signal.SIGSTOP)
        time.sleep(4)
        stack.chunkserver.send_signal(signal.SIGCONT)
        before = writer.stats.acknowledged
        wait_until(lambda b=before: writer.stats.acknowledged > b + 500, 20, "IO after SIGCONT")  # type: ignore[misc]
    writer.stop()


def test_stopped_mds_does_not_stop_io_within_the_lease(stack: Stack) -> None:
    """An MDS that hangs is like one that is away: nothing waits for it."""
    writer = _loaded(stack, "c")
    writer.stats.longest = 0.0
    stack.mds.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    stack.mds.send_signal(signal.SIGCONT)
    assert writer.stats.longest < 0.5
    writer.stop()


def test_chunkserver_outage_of_seconds_is_invisible_but_for_the_delay(
    stack: Stack, plugin: str
) -> None:
    """Killed and started three seconds later: the same requests succeed, none fails."""
    writer = _loaded(stack, plugin)
    stack.chunkserver.kill()
    time.sleep(3)
    stack.chunkserver.start()
    back = time.monotonic()
    before = writer.stats.acknowledged
    wait_until(lambda: writer.stats.acknowledged > before + 100, 20, "IO after the restart")
    assert time.monotonic() - back < 3, "IO resumes late"
    writer.stop()


def test_chunkserver_that_stays_away_gives_an_error_within_the_deadline(stack: Stack) -> None:
    """No request hangs: after 25 seconds at most the client is told."""
    stack.create_volume("disk", "1G")
    handle = connect(stack.gateway("disk").uri)
    handle.pwrite(b"here", 0)
    stack.chunkserver.kill()
    began = time.monotonic()
    with pytest.raises(nbd.Error):
        handle.pread(4, 0)
    assert 5 < time.monotonic() - began < 40
    stack.chunkserver.start()
    assert handle.pread(4, 0) == b"here"
    close(handle)


def test_volume_grows_while_it_is_in_use(stack: Stack, plugin: str) -> None:
    """A resize while connected disturbs nobody; a new connection sees the new size."""
    writer = _loaded(stack, plugin)
    stack.copygate("volume", "resize", "disk", "5G")
    stack.copygate("volume", "info", "disk")

    def grown() -> bool:
        handle = connect(writer.uri)
        size = handle.get_size()
        close(handle)
        return bool(size == 5 << 30)

    wait_until(grown, 15, "the new size", interval=0.2)
    handle = connect(writer.uri)
    handle.pwrite(b"beyond", 4 << 30)
    assert handle.pread(6, 4 << 30) == b"beyond"
    close(handle)
    writer.stop()
