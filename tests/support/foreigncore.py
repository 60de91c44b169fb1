# SPDX-License-Identifier: BSD-3-Clause
"""The IO core in a loop that the test turns by hand, through cffi: a gateway that does just what it
is told, also nothing at all."""

import errno
import itertools
import select
import time
from collections.abc import Callable
from typing import Any

from support.cbinding import public

FOREIGN_LOOP = 1
READ_ONLY = 1
GET, SET, FOLLOW = 0, 1, 2
READ, WRITE = 0, 1
NO_WAIT = 1
UNKNOWN = (1 << 64) - 1

_ffi, _lib = public()


def name_of(result: int) -> str:
    """ "OK", or the name of the errno."""
    return "OK" if result == 0 else errno.errorcode[-result]


class Pending:
    """A call of the core's under way; ``result`` is None until it has ended."""

    def __init__(self) -> None:
        self.result: str | None = None
        self.revision = 0
        self.state = b""
        self.data = b""
        self.ended_at = 0


class Core:
    """A client with one volume. Nothing happens unless somebody turns the loop."""

    _numbers = itertools.count(1)
    _ends = itertools.count(1)

    def __init__(self, mds: str, owner: str = "copygate") -> None:
        self._kept: list[Any] = []
        self._handles: dict[Any, Callable[..., None]] = {}
        options = _ffi.new("struct cg_client_options *")
        options.struct_size = _ffi.sizeof("struct cg_client_options")
        options.mode = FOREIGN_LOOP
        options.mds = self._text(mds)
        options.owner = self._text(owner)
        out = _ffi.new("struct cg_client **")
        assert _lib.cg_client_create(options, out) == 0
        self.client = out[0]
        self.volume: Any = None
        self._opened = self._keep(_ffi.callback("cg_open_done", self._on_opened))
        self._closed = self._keep(_ffi.callback("void(void *)", self._on_user))
        self._on_state = self._keep(
            _ffi.callback("void(struct cg_state_call *)", lambda call: self._on_user(call.user))
        )
        self._on_io = self._keep(
            _ffi.callback("void(struct cg_io *)", lambda io: self._on_user(io.user))
        )

    def _keep(self, thing: Any) -> Any:
        self._kept.append(thing)
        return thing

    def _text(self, text: str) -> Any:
        return self._keep(_ffi.new("char[]", text.encode()))

    def _user(self, ended: Callable[..., None]) -> Any:
        number = next(self._numbers)
        self._handles[number] = ended
        return _ffi.cast("void *", number)

    def _on_user(self, user: Any, *arguments: Any) -> None:
        self._handles.pop(int(_ffi.cast("uintptr_t", user)))(*arguments)

    def _on_opened(self, user: Any, result: int, volume: Any, error: Any) -> None:
        self._on_user(user, result, volume, _ffi.string(error).decode())

    def turn(self, seconds: float = 0.02) -> None:
        """Waits for events for so long at most, and handles them."""
        if select.select([_lib.cg_client_fd(self.client)], [], [], seconds)[0]:
            assert _lib.cg_client_progress(self.client) >= 0

    def open(self, path: str, *, read_only: bool = False) -> Pending:
        """Opens a volume; ``state`` of the result says what was wrong."""
        pending = Pending()
        options = _ffi.new("struct cg_volume_options *")
        options.struct_size = _ffi.sizeof("struct cg_volume_options")
        options.path = self._text(path)
        options.flags = READ_ONLY if read_only else 0

        def ended(result: int, volume: Any, error: str) -> None:
            self.volume = volume
            pending.state = error.encode()
            pending.result = name_of(result)

        assert _lib.cg_volume_open_start(self.client, options, self._opened, self._user(ended)) == 0
        return pending

    def close(self) -> Pending:
        """Closes the volume."""
        pending = Pending()

        def ended() -> None:
            pending.result = "OK"

        assert _lib.cg_volume_close_start(self.volume, self._closed, self._user(ended)) == 0
        self.volume = None
        return pending

    def destroy(self) -> None:
        """Closes what is open, and waits for it."""
        _lib.cg_client_destroy(self.client)

    def epoch(self) -> int:
        info = _ffi.new("struct cg_volume_info *")
        _lib.cg_volume_info(self.volume, info)
        return int(info.epoch)

    def state(
        self,
        op: int,
        known: int = 0,
        data: bytes = b"",
        *,
        flags: int = 0,
        epoch: int = 0,
        timeout_ms: int = 0,
        then: Callable[[Pending], None] | None = None,
    ) -> Pending:
        """GET, SET or FOLLOW; ``then`` is called inside ``done``."""
        pending = Pending()
        call = self._keep(_ffi.new("struct cg_state_call *"))
        buffer = self._keep(_ffi.new("char[]", 65536))
        call.op, call.flags, call.revision_known = op, flags, known
        call.data = self._keep(_ffi.new("char[]", data))
        call.length = len(data)
        call.buffer, call.capacity = buffer, 65536
        call.epoch, call.timeout_ms = epoch, timeout_ms

        def ended() -> None:
            pending.revision = int(call.revision)
            pending.state = bytes(_ffi.buffer(buffer, call.buffer_length))
            pending.ended_at = next(self._ends)
            pending.result = name_of(call.result)
            if then is not None:
                then(pending)

        call.done = self._on_state
        call.user = self._user(ended)
        _lib.cg_state_submit(self.volume, call)
        return pending

    def io(self, op: int, offset: int, data: bytes = b"", length: int = 0) -> Pending:
        """READ of ``length`` bytes or WRITE of ``data``."""
        pending = Pending()
        size = len(data) if op == WRITE else length
        io = self._keep(_ffi.new("struct cg_io *"))
        buffer = self._keep(_ffi.new("char[]", data.ljust(size, b"\0")))
        iov = self._keep(_ffi.new("struct iovec *", {"iov_base": buffer, "iov_len": size}))
        io.op, io.offset, io.length, io.iov, io.iovcnt = op, offset, size, iov, 1

        def ended() -> None:
            pending.data = bytes(_ffi.buffer(buffer, size))
            pending.ended_at = next(self._ends)
            pending.result = name_of(io.result)

        io.done = self._on_io
        io.user = self._user(ended)
        _lib.cg_submit(self.volume, io)
        return pending


def turn_until(cores: list[Core], condition: Callable[[], bool], timeout_s: float) -> None:
    """Turns all their loops until the condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        for core in cores:
            core.turn(0.005)


def finish(cores: list[Core], pending: Pending, timeout_s: float = 15) -> Pending:
    """Turns all their loops until the call has ended."""
    turn_until(cores, lambda: pending.result is not None, timeout_s)
    return pending
