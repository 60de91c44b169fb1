# SPDX-License-Identifier: BSD-3-Clause
"""A writer that knows what every part of the disk may hold, whatever dies meanwhile.

The rules are those of `cells.Model`. When the connection dies the writer connects again. The
gateway raises the volume's epoch when it opens it, so a write of the dead gateway cannot land after
that: what a read saw stays.
"""

import contextlib
import dataclasses
import random
import struct
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

from support.cells import Layout, Model, cell_content
from support.libnbd import nbd

_LOG_RECORD = struct.Struct("<cQQIIi")  # event, time in ns, operation, first cell, cells, errno
_READ_RUN = 1 << 20  # bytes of one read of a verification


class WriterError(AssertionError):
    """An operation failed that must not fail, or the server did not come back in time."""


@dataclasses.dataclass
class WriterStats:
    """What a writer did; times in seconds."""

    acknowledged: int = 0
    reads: int = 0
    maybe: int = 0
    reconnects: int = 0
    cells_verified: int = 0
    longest: float = 0.0
    errors: list[tuple[str, int, int]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Mix:
    """How often each kind of operation comes."""

    write: int = 60
    read: int = 30
    zero: int = 6
    trim: int = 4


class Writer:
    """Drives one NBD server from a thread of its own, with `depth` operations in flight."""

    def __init__(
        self,
        uri: str,
        layout: Layout,
        *,
        seed: int,
        depth: int = 16,
        mix: Mix | None = None,
        log: Path | None = None,
        reconnect_timeout: float = 40.0,
        stop_on_error: bool = True,
    ) -> None:
        self.uri = uri
        self.layout = layout
        self.model = Model(layout)
        self.stats = WriterStats()
        self._random = random.Random(seed)
        self._depth = depth
        self._mix = mix or Mix()
        self._log: BinaryIO | None = log.open("wb") if log else None
        self._reconnect_timeout = reconnect_timeout
        self._stop_on_error = stop_on_error
        self._handle: Any = None
        self._inflight: dict[int, tuple[str, Any, int, int, float, Any]] = {}
        self._done: list[tuple[int, int]] = []
        # libnbd 1.14 never lets go of an asynchronous command's buffer: they are used again.
        self._buffers: dict[int, list[bytearray]] = {}
        self._next = 1
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._pause = threading.Event()
        self._idle = threading.Event()
        self._verify = threading.Event()
        self._verified = threading.Event()
        self._thread: threading.Thread | None = None
        self.connected = threading.Event()

    # What the test calls.

    def start(self) -> "Writer":
        """Connects and begins."""
        self._thread = threading.Thread(target=self._main, name="verified-writer", daemon=True)
        self._thread.start()
        return self

    def check(self) -> None:
        """Raises what the writer found wrong so far."""
        if self._failure is not None:
            raise self._failure

    def verify(self, timeout: float = 60.0) -> None:
        """Lets what is in flight end, then reads and checks every cell; then the load goes on."""
        self._verified.clear()
        self._verify.set()
        self._wait(self._verified, timeout, "verification")

    def pause(self, timeout: float = 60.0) -> None:
        """Lets what is in flight end and stays idle until resume()."""
        self._idle.clear()
        self._pause.set()
        self._wait(self._idle, timeout, "pause")

    def resume(self) -> None:
        """Goes on after pause()."""
        self._pause.clear()

    def switch(self, uri: str) -> None:
        """Goes on at another server; call it while paused. What was in doubt is settled by then."""
        self.uri = uri
        with contextlib.suppress(nbd.Error):
            self._handle.shutdown()
        self._connect()

    def stop(self, timeout: float = 60.0, *, verify: bool = True) -> WriterStats:
        """Verifies everything, disconnects, ends the thread; raises what was wrong."""
        try:
            if verify:
                self.verify(timeout)
        finally:
            self._stop.set()
            if self._thread is not None:
                self._thread.join(timeout)
            if self._log is not None:
                self._log.close()
        self.check()
        return self.stats

    def _wait(self, event: threading.Event, timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not event.wait(0.05):
            self.check()
            if time.monotonic() > deadline:
                ages = [time.monotonic() - entry[4] for entry in self._inflight.values()]
                raise WriterError(
                    f"{what} not within {timeout:g} s; {len(ages)} operations in flight, "
                    f"the oldest for {max(ages, default=0):.1f} s"
                )
        self.check()

    # The writer's thread.

    def _main(self) -> None:
        try:
            self._connect()
            while not self._stop.is_set():
                self._step()
            self._drain()
        except BaseException as failure:  # noqa: BLE001 - handed to the test's thread by check()
            self._failure = failure
        finally:
            if self._log is not None:
                self._log.flush()
            with contextlib.suppress(nbd.Error):
                if self._handle is not None and self._handle.aio_is_ready():
                    self._handle.shutdown()
            self._handle = None

    def _step(self) -> None:
        if self._verify.is_set():
            self._drain()
            self._verify_all()
            self._verify.clear()
            self._verified.set()
        if self._pause.is_set():
            self._drain()
            self._idle.set()
            time.sleep(0.01)
            return
        while len(self._inflight) < self._depth:
            if not self._submit_one():
                break
        self._poll()

    def _connect(self) -> None:
        deadline = time.monotonic() + self._reconnect_timeout
        while True:
            handle = nbd.NBD()
            handle.set_uri_allow_local_file(True)
            try:
                handle.connect_uri(self.uri)
                break
            except nbd.Error as error:
                if self._stop.is_set() or time.monotonic() > deadline:
                    raise WriterError(
                        f"no connection to {self.uri} within {self._reconnect_timeout:g} s: {error}"
                    ) from None
                time.sleep(0.02)
        handle.set_strict_mode(0)
        self._handle = handle
        self.connected.set()

    def _reconnect(self) -> None:
        self.connected.clear()
        self.stats.reconnects += 1
        old, self._handle = self._handle, None
        del old  # libnbd calls the completions of what was in flight before this
        lost, self._inflight = self._inflight, {}
        self._done.clear()
        self._connect()
        # Only now are their ends known: the new gateway's epoch refuses them from here on.
        for number, (kind, thing, first, count, *_) in lost.items():
            if kind == "read":
                self.model.end_read(thing, None)
            else:
                self.model.maybe(thing, first, count)
                self.stats.maybe += 1
                self._record(b"?", number, first, count, 0)

    def _alive(self) -> bool:
        handle = self._handle
        return bool(handle.aio_is_ready() or handle.aio_is_processing())

    def _poll(self, timeout_ms: int = 50) -> None:
        try:
            if self._alive():
                self._handle.poll(timeout_ms)
        except nbd.Error:
            if self._alive():
                raise
        alive = self._alive()
        done, self._done = self._done, []
        for number, error in done:
            # On a dead connection an error means "no answer": _reconnect() settles those.
            if alive or not error:
                self._completed(number, error)
        if not alive:
            self._reconnect()

    def _drain(self) -> None:
        while self._inflight:
            self._poll()

    def _choose(self) -> tuple[str, int, int]:
        mix = self._mix
        kinds = ("write", "read", "zero", "trim")
        weights = (mix.write, mix.read, mix.zero, mix.trim if self.layout.aligned else 0)
        kind = self._random.choices(kinds, weights)[0]
        first = self._random.randrange(self.layout.count)
        longest = min(self.layout.run_limit(first), self._random.choice((1, 1, 1, 2, 4, 16, 64)))
        return kind, first, self._random.randint(1, longest)

    def _buffer(self, length: int) -> bytearray:
        free = self._buffers.get(length)
        return free.pop() if free else bytearray(length)

    def _submit_one(self) -> bool:
        kind, first, count = self._choose()
        number = self._next
        self._next += 1
        offset = self.layout.offset(first)
        length = count * self.layout.cell_size
        thing: Any
        if kind == "read":
            thing = self.model.begin_read(first, count)
        else:
            thing = self.model.submit(number, kind, first, count)
            self._record(b"s", number, first, count, 0)
        buffer = None
        if kind == "read":
            buffer = self._buffer(length)
        elif kind == "write":
            size = self.layout.cell_size
            data = b"".join(cell_content(c, number, size) for c in range(first, first + count))
            buffer = self._buffer(length)
            buffer[:] = data

        self._inflight[number] = (kind, thing, first, count, time.monotonic(), buffer)

        def completed(error: Any) -> int:
            self._done.append((number, int(error.value)))  # judged outside of libnbd, in _poll()
            return 1

        try:
            if kind == "read":
                self._handle.aio_pread(buffer, offset, completion=completed)
            elif kind == "write":
                self._handle.aio_pwrite(buffer, offset, completion=completed)
            elif kind == "zero":
                flags = self._random.choice((0, nbd.CMD_FLAG_NO_HOLE))
                self._handle.aio_zero(length, offset, completion=completed, flags=flags)
            else:
                self._handle.aio_trim(length, offset, completion=completed)
        except nbd.Error:
            if self._alive():
                raise
            return False  # the poll that follows sees the dead connection and counts it as lost
        return True

    def _completed(self, number: int, error: int) -> None:
        kind, thing, first, count, since, buffer = self._inflight.pop(number)
        self.stats.longest = max(self.stats.longest, time.monotonic() - since)
        if error:
            self._failed(number, kind, thing, first, count, error)
        elif kind == "read":
            self.stats.reads += 1
            self.model.end_read(thing, buffer)
        else:
            self.stats.acknowledged += 1
            self._record(b"a", number, first, count, 0)
            self.model.acknowledge(thing, first, count)
        if buffer is not None:
            self._buffers.setdefault(len(buffer), []).append(buffer)

    def _failed(  # noqa: PLR0917
        self, number: int, kind: str, thing: Any, first: int, count: int, error: int
    ) -> None:
        self.stats.errors.append((kind, error, first))
        self._record(b"e", number, first, count, error)
        if kind == "read":
            self.model.end_read(thing, None)
        else:
            self.model.maybe(thing, first, count)
        if self._stop_on_error:
            raise WriterError(
                f"{kind} of {count} cells at byte {self.layout.offset(first)} failed: errno {error}"
            )

    def _verify_all(self) -> None:
        limit = max(1, _READ_RUN // self.layout.cell_size)
        for first, count in self.layout.runs(limit):
            while True:
                read = self.model.begin_read(first, count)
                try:
                    data = self._handle.pread(
                        count * self.layout.cell_size, self.layout.offset(first)
                    )
                except nbd.Error as error:
                    self.model.end_read(read, None)
                    if self._alive():
                        raise WriterError(
                            f"verifying read at {self.layout.offset(first)}: {error}"
                        ) from None
                    self._reconnect()
                    continue
                self.model.end_read(read, data)
                self.stats.cells_verified += count
                break

    def _record(self, event: bytes, number: int, first: int, count: int, error: int) -> None:
        if self._log is not None:
            now = time.monotonic_ns()
            self._log.write(_LOG_RECORD.pack(event, now, number, first, count, error))
