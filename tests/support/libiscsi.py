# SPDX-License-Identifier: BSD-3-Clause
"""Sessions of libiscsi for tests: any command, many in flight, and no help that hides an answer.

    with Session(portal, target) as session:
        answer = session.execute(scsi.read16(0, 8), in_length=4096)
        assert answer.status == scsi.GOOD

Unit attentions are shown, not eaten; a lost connection stays lost. The library makes progress only
inside pump(), wait() and what calls them: a session that nobody pumps is a reader that has stopped
reading. One thread a session.
"""

import functools
import os
import select
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import TracebackType
from typing import Any

import cffi

INITIATOR = "iqn.2026-11.net.copygate:test"
UNANSWERED = -1
"""Status of a command that ended without an answer: cancelled, timed out, connection lost."""

ABORT_TASK, ABORT_TASK_SET, CLEAR_TASK_SET = 1, 2, 4
LUN_RESET, TARGET_WARM_RESET, TARGET_COLD_RESET = 5, 6, 7
TASK_DOES_NOT_EXIST = 1

_CDEF = """
struct iscsi_context;
struct iscsi_data { size_t size; unsigned char *data; };
struct scsi_data { int size; unsigned char *data; };
struct scsi_task {
    int status; size_t residual; int residual_status; struct scsi_data datain;
    uint32_t itt; uint32_t cmdsn; ...; };
struct iscsi_target_portal { struct iscsi_target_portal *next; const char *portal; };
struct iscsi_discovery_address {
    struct iscsi_discovery_address *next; const char *target_name;
    struct iscsi_target_portal *portals; };
typedef void (*iscsi_command_cb)(struct iscsi_context *iscsi, int status, void *data, void *user);
struct iscsi_context *iscsi_create_context(const char *initiator_name);
int iscsi_destroy_context(struct iscsi_context *iscsi);
int iscsi_set_targetname(struct iscsi_context *iscsi, const char *name);
int iscsi_set_session_type(struct iscsi_context *iscsi, int kind);
int iscsi_set_header_digest(struct iscsi_context *iscsi, int kind);
int iscsi_set_initiator_username_pwd(struct iscsi_context *iscsi, const char *user, const char *pw);
int iscsi_set_target_username_pwd(struct iscsi_context *iscsi, const char *user, const char *pw);
int iscsi_set_isid_random(struct iscsi_context *iscsi, uint32_t value, uint32_t qualifier);
int iscsi_set_immediate_data(struct iscsi_context *iscsi, int value);
int iscsi_set_initial_r2t(struct iscsi_context *iscsi, int value);
void iscsi_set_noautoreconnect(struct iscsi_context *iscsi, int state);
int iscsi_set_timeout(struct iscsi_context *iscsi, int seconds);
int iscsi_connect_async(struct iscsi_context *i, const char *portal, iscsi_command_cb cb, void *u);
int iscsi_login_async(struct iscsi_context *iscsi, iscsi_command_cb cb, void *user);
int iscsi_logout_async(struct iscsi_context *iscsi, iscsi_command_cb cb, void *user);
int iscsi_discovery_async(struct iscsi_context *iscsi, iscsi_command_cb cb, void *user);
int iscsi_nop_out_async(struct iscsi_context *i, iscsi_command_cb cb, unsigned char *d, int len,
    void *user);
int iscsi_task_mgmt_async(struct iscsi_context *i, int lun, int function, uint32_t ritt,
    uint32_t rcmdsn, iscsi_command_cb cb, void *user);
int iscsi_get_fd(struct iscsi_context *iscsi);
int iscsi_which_events(struct iscsi_context *iscsi);
int iscsi_service(struct iscsi_context *iscsi, int revents);
int iscsi_queue_length(struct iscsi_context *iscsi);
int iscsi_is_logged_in(struct iscsi_context *iscsi);
const char *iscsi_get_error(struct iscsi_context *iscsi);
struct scsi_task *scsi_create_task(int size, unsigned char *cdb, int direction, int length);
void scsi_free_scsi_task(struct scsi_task *task);
int iscsi_scsi_command_async(struct iscsi_context *i, int lun, struct scsi_task *task,
    iscsi_command_cb cb, struct iscsi_data *data, void *user);
extern "Python" void copygate_test_done(struct iscsi_context *, int, void *, void *);
"""


def missing() -> str | None:
    """Why there is no libiscsi, in words for a skip; None if there is."""
    if Path("/usr/include/iscsi/iscsi.h").exists():
        return None
    return "no libiscsi: packaging/install-deps.sh test installs it"


@functools.cache
def _binding() -> Any:
    """The compiled binding: the installed headers decide how the structures are laid out."""
    name = "copygate_test_libiscsi"
    builder = cffi.FFI()
    builder.cdef(_CDEF)
    source = """
        #include <poll.h>
        #include <stddef.h>
        #include <iscsi/iscsi.h>
        #include <iscsi/scsi-lowlevel.h>
    """
    builder.set_source(name, source)
    with tempfile.TemporaryDirectory(prefix="copygate-libiscsi-") as folder:
        code, library = Path(folder, f"{name}.c"), Path(folder, f"{name}.so")
        builder.emit_c_code(str(code))
        words = [
            *(os.environ.get("CC") or "cc").split(),
            *("-shared", "-fPIC", "-O1", "-w", f"-I{sysconfig.get_path('include')}"),
            *(str(code), "-o", str(library), "-liscsi"),
        ]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr}"
        loader = ExtensionFileLoader(name, str(library))
        spec = spec_from_loader(name, loader)
        assert spec is not None
        module = module_from_spec(spec)
        loader.exec_module(module)
    _define_callback(module)
    return module


def _define_callback(module: Any) -> None:
    ffi = module.ffi

    @ffi.def_extern(name="copygate_test_done")
    def done(_context: Any, status: int, data: Any, user: Any) -> None:
        ffi.from_handle(user)(status, data)


class IscsiError(AssertionError):
    """A connection or login failed; the message is libiscsi's."""


@dataclass(frozen=True)
class Answer:
    """How a command ended. `sense` is the raw sense data; key, asc and ascq are read from it."""

    status: int
    data: bytes = b""
    sense: bytes = b""
    residual: int = 0

    @property
    def key(self) -> int:
        """The sense key; 0 without sense data."""
        if len(self.sense) < 3:
            return 0
        return (self.sense[1] if self.sense[0] & 0x7F >= 0x72 else self.sense[2]) & 0x0F

    @property
    def code(self) -> int:
        """Additional sense code and qualifier, as in 0x2A09."""
        if len(self.sense) < 4:
            return 0
        if self.sense[0] & 0x7F >= 0x72:
            return self.sense[2] << 8 | self.sense[3]
        return self.sense[12] << 8 | self.sense[13] if len(self.sense) > 13 else 0

    @property
    def information(self) -> int | None:
        """The INFORMATION field of fixed format sense data, if it is valid."""
        if len(self.sense) < 7 or self.sense[0] != 0xF0:
            return None
        return int.from_bytes(self.sense[3:7], "big")

    def __str__(self) -> str:
        if self.status == UNANSWERED:
            return "unanswered"
        return f"status {self.status:#04x}, sense {self.key:x}/{self.code:04x}"


class Command:
    """A command on its way; `answer` is None until it has ended."""

    def __init__(self, cdb: bytes) -> None:
        self.cdb = cdb
        self.answer: Answer | None = None
        self.sent_at = time.monotonic()
        self.seconds = 0.0
        self.itt = 0
        self.cmdsn = 0
        self.keep: tuple[Any, ...] = ()

    def __repr__(self) -> str:
        return f"<{self.cdb.hex()}: {self.answer or 'in flight'}>"


class Session:
    """One session of one connection.

    `chap` and `mutual` are pairs of user and secret. `isid` tells initiator ports of one name
    apart. `timeout` is libiscsi's for a command, in seconds, and that of the calls that wait.
    """

    def __init__(
        self,
        portal: str,
        target: str | None,
        *,
        lun: int = 1,
        initiator: str = INITIATOR,
        isid: int = 1,
        chap: tuple[str, str] | None = None,
        mutual: tuple[str, str] | None = None,
        immediate_data: bool = True,
        initial_r2t: bool = False,
        header_digest: bool = False,
        timeout: int = 30,
    ) -> None:
        module = _binding()
        self._ffi, self._lib = module.ffi, module.lib
        self._timeout = timeout
        self.portal, self.target, self.lun = portal, target, lun
        self._handles: dict[int, Any] = {}
        self._next_handle = 0
        self._context = self._lib.iscsi_create_context(initiator.encode())
        assert self._context != self._ffi.NULL
        self._lib.iscsi_set_noautoreconnect(self._context, 1)
        self._lib.iscsi_set_timeout(self._context, timeout)
        self._lib.iscsi_set_isid_random(self._context, isid, 0)
        self._lib.iscsi_set_header_digest(self._context, 3 if header_digest else 0)
        self._lib.iscsi_set_immediate_data(self._context, immediate_data)
        self._lib.iscsi_set_initial_r2t(self._context, initial_r2t)
        if chap is not None:
            self._lib.iscsi_set_initiator_username_pwd(self._context, *(s.encode() for s in chap))
        if mutual is not None:
            self._lib.iscsi_set_target_username_pwd(self._context, *(s.encode() for s in mutual))
        try:
            self._login()
        except BaseException:
            self.drop()
            raise

    def _login(self) -> None:
        # 1: discovery, 2: normal.
        self._lib.iscsi_set_session_type(self._context, 1 if self.target is None else 2)
        if self.target is not None:
            self._lib.iscsi_set_targetname(self._context, self.target.encode())
        portal = self.portal.encode()
        self._await(
            "connect", functools.partial(self._lib.iscsi_connect_async, self._context, portal)
        )
        self._await("login", functools.partial(self._lib.iscsi_login_async, self._context))

    @property
    def alive(self) -> bool:
        """Whether it is logged in, as far as pump() has seen."""
        return self._context is not None and bool(self._lib.iscsi_is_logged_in(self._context))

    @property
    def fd(self) -> int:
        """The connection's descriptor."""
        return int(self._lib.iscsi_get_fd(self._context))

    def error(self) -> str:
        """What libiscsi complained of last."""
        return str(self._ffi.string(self._lib.iscsi_get_error(self._context)).decode())

    def _start(
        self, what: str, begin: Callable[..., int], done: Callable[[int, Any], None]
    ) -> None:
        """Calls `begin` with libiscsi's callback and its argument, so that `done` is called."""
        number = self._next_handle
        self._next_handle += 1

        def called(status: int, data: Any) -> None:
            # A connection's callback comes again when the connection is lost: it keeps its handle.
            if what != "connect":
                self._handles.pop(number, None)
            done(status, data)

        self._handles[number] = self._ffi.new_handle(called)
        if begin(self._lib.copygate_test_done, self._handles[number]) != 0:
            self._handles.pop(number, None)
            raise IscsiError(f"{what}: {self.error()}")

    def _await(
        self, what: str, begin: Callable[..., int], take: Callable[[Any], Any] = lambda data: None
    ) -> Any:
        """Runs one request that is no SCSI command; returns what `take` makes of its answer."""
        got: list[tuple[int, Any]] = []
        self._start(
            what,
            begin,
            lambda status, data: got.append((status, take(data) if status == 0 else None)),
        )
        deadline = time.monotonic() + self._timeout
        while not got:
            if not self._step(0.2) and not got:
                raise IscsiError(f"{what}: {self.error() or 'connection lost'}")
            if time.monotonic() > deadline:
                raise IscsiError(f"{what}: no answer within {self._timeout} s")
        status, value = got[0]
        if status != 0:
            raise IscsiError(f"{what}: {self.error()}")
        return value

    def _step(self, seconds: float) -> bool:
        """One round of IO of at most `seconds`; False when the connection is lost."""
        if self._context is None:
            return False
        fd = self._lib.iscsi_get_fd(self._context)
        if fd < 0:
            return False
        poll = select.poll()
        poll.register(fd, self._lib.iscsi_which_events(self._context))
        events = poll.poll(seconds * 1000)
        ready = events[0][1] if events else 0
        return bool(self._lib.iscsi_service(self._context, ready) == 0)

    def pump(self, seconds: float = 0.0) -> bool:
        """Sends and receives what is there, for `seconds`; False when the connection is lost."""
        deadline = time.monotonic() + seconds
        while True:
            if not self._step(max(0.0, min(0.05, deadline - time.monotonic()))):
                return False
            if time.monotonic() >= deadline:
                return True

    def submit(
        self, cdb: bytes, data: bytes = b"", *, in_length: int = 0, lun: int | None = None
    ) -> Command:
        """Queues a command; its `answer` comes with pump() or wait()."""
        # 0 none, 1 from the target, 2 to it.
        direction, length = (2, len(data)) if data else ((1, in_length) if in_length else (0, 0))
        task = self._lib.scsi_create_task(len(cdb), self._ffi.from_buffer(cdb), direction, length)
        assert task != self._ffi.NULL
        command = Command(cdb)
        buffer = self._ffi.from_buffer(data)
        out = self._ffi.NULL
        if data:
            out = self._ffi.new("struct iscsi_data *", {"size": len(data), "data": buffer})
        # libiscsi sends from this memory until the command has ended.
        command.keep = (data, buffer, out)

        def done(status: int, _data: Any) -> None:
            command.seconds = time.monotonic() - command.sent_at
            command.answer = self._answer(status, task)
            command.keep = ()
            self._lib.scsi_free_scsi_task(task)

        def begin(callback: Any, user: Any) -> int:
            number = self.lun if lun is None else lun
            return int(
                self._lib.iscsi_scsi_command_async(self._context, number, task, callback, out, user)
            )

        try:
            self._start(cdb.hex(), begin, done)
        except IscsiError:
            self._lib.scsi_free_scsi_task(task)
            raise
        command.itt, command.cmdsn = task.itt, task.cmdsn
        return command

    def _answer(self, status: int, task: Any) -> Answer:
        if status >= 0x0F000000:
            return Answer(UNANSWERED)
        size = task.datain.size
        data = bytes(self._ffi.buffer(task.datain.data, size)) if size > 0 else b""
        residual = task.residual if task.residual_status == 1 else 0
        if status == 0x02:
            # Two bytes of length, then the sense data.
            return Answer(status, b"", data[2:], residual)
        return Answer(status, data, b"", residual)

    def wait(self, commands: Iterable[Command], timeout: float | None = None) -> None:
        """Pumps until all have ended; a lost connection ends them, unanswered."""
        waiting = list(commands)
        deadline = time.monotonic() + (timeout or self._timeout + 5)
        while any(command.answer is None for command in waiting):
            if not self._step(0.2):
                for command in waiting:
                    if command.answer is None:
                        command.answer = Answer(UNANSWERED)
                return
            if time.monotonic() > deadline:
                left = sum(command.answer is None for command in waiting)
                raise TimeoutError(
                    f"{left} of {len(waiting)} commands have not ended: {waiting[0]}"
                )

    def execute(
        self, cdb: bytes, data: bytes = b"", *, in_length: int = 0, lun: int | None = None
    ) -> Answer:
        """Sends one command and waits for its end."""
        command = self.submit(cdb, data, in_length=in_length, lun=lun)
        self.wait([command])
        assert command.answer is not None
        return command.answer

    def good(
        self, cdb: bytes, data: bytes = b"", *, in_length: int = 0, lun: int | None = None
    ) -> bytes:
        """The same; returns the data, raises AssertionError unless the status is GOOD."""
        answer = self.execute(cdb, data, in_length=in_length, lun=lun)
        assert answer.status == 0, f"{cdb.hex()}: {answer}"
        return answer.data

    def clear_attentions(self) -> list[int]:
        """Takes the unit attentions that wait for this session; returns their codes."""
        found = []
        for _ in range(20):
            answer = self.execute(bytes(6))
            if answer.key != 0x6:
                return found
            found.append(answer.code)
        raise AssertionError(f"unit attentions without end: {found}")

    def manage(self, function: int, command: Command | None = None) -> int:
        """A task management function; returns the response (0: done)."""
        itt, cmdsn = (command.itt, command.cmdsn) if command else (0xFFFFFFFF, 0)

        def begin(callback: Any, user: Any) -> int:
            return int(
                self._lib.iscsi_task_mgmt_async(
                    self._context, self.lun, function, itt, cmdsn, callback, user
                )
            )

        def response(data: Any) -> int:
            return int(self._ffi.cast("uint32_t *", data)[0]) if data != self._ffi.NULL else 0

        return int(self._await(f"task management {function}", begin, response))

    def ping(self) -> None:
        """NOP-Out, and waits for its NOP-In."""
        self._await(
            "NOP-Out",
            lambda callback, user: self._lib.iscsi_nop_out_async(
                self._context, callback, self._ffi.NULL, 0, user
            ),
        )

    def discover(self) -> dict[str, list[str]]:
        """SendTargets=All of a discovery session (target None): portals by target name."""

        def take(data: Any) -> dict[str, list[str]]:
            found: dict[str, list[str]] = {}
            address = self._ffi.cast("struct iscsi_discovery_address *", data)
            while address != self._ffi.NULL:
                name = self._ffi.string(address.target_name).decode()
                portals = found.setdefault(name, [])
                portal = address.portals
                while portal != self._ffi.NULL:
                    portals.append(self._ffi.string(portal.portal).decode())
                    portal = portal.next
                address = address.next
            return found

        result: dict[str, list[str]] = self._await(
            "discovery", functools.partial(self._lib.iscsi_discovery_async, self._context), take
        )
        return result

    def logout(self) -> None:
        """Ends the session as the protocol asks."""
        self._await("logout", functools.partial(self._lib.iscsi_logout_async, self._context))
        self.drop()

    def drop(self) -> None:
        """Cuts the connection; what is in flight ends unanswered."""
        if self._context is not None:
            self._lib.iscsi_destroy_context(self._context)
            self._context = None
        self._handles.clear()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and self.alive:
            self.logout()
        else:
            self.drop()
