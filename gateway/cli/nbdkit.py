# SPDX-License-Identifier: BSD-3-Clause
"""nbdkit as our child: its command line, the sockets it listens on, and keeping it alive.

We bind the sockets and hand them to nbdkit (LISTEN_FDS, the protocol of systemd): then an
address in use is our error message, a port of 0 has a number that we can print, and while nbdkit
restarts connections wait in the backlog instead of being refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.util
import logging
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from gateway.cli.app import check_listen, split_address
from gateway.errors import BusyError, ConfigError, CopygateError, InvalidArgumentError

log = logging.getLogger("gateway.nbd")

UNIX_PATH_MAX = 107
LISTEN_FD = 3
DEFAULT_THREADS = 16
READY_TIMEOUT_S = 15.0
# nbdkit waits for its clients to go; they may not know that they should. What is in flight is
# done long before this, and what was acknowledged is durable.
STOP_TIMEOUT_S = 3.0
ORPHAN_TIMEOUT_S = 5.0
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
# A child that lived this long was healthy: its next restart is quick again.
HEALTHY_S = 30.0


@dataclass(frozen=True)
class Endpoint:
    """Where an export is offered: a unix socket or a TCP address."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str, *, allow_remote: bool, option: str = "--nbd") -> Endpoint:
        """Reads ``unix:PATH``, ``tcp:HOST:PORT`` or ``HOST:PORT``."""
        if text.startswith("unix:"):
            path = Path(text.removeprefix("unix:")).expanduser()
            if not path.name:
                raise InvalidArgumentError(f"{option} {text} has no path", hint="unix:/run/x.sock")
            path = path.absolute()
            if len(os.fsencode(path)) > UNIX_PATH_MAX:
                raise InvalidArgumentError(
                    f"the path of {option} is longer than {UNIX_PATH_MAX} bytes",
                    context={"path": path},
                    hint="choose a shorter one: the kernel does not take it",
                )
            return cls(path=path)
        address = text.removeprefix("tcp:")
        check_listen(address, option, allow_remote)
        host, port = split_address(address, option)
        return cls(host=host.removeprefix("[").removesuffix("]"), port=port)

    def uri(self, export: str = "") -> str:
        """The NBD URI of an export at this endpoint."""
        name = quote(export.lstrip("/"), safe="/")
        if self.path is not None:
            return f"nbd+unix:///{name}?socket={quote(str(self.path), safe='/')}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"nbd://{host}:{self.port}/{name}"

    def bind(self) -> tuple[socket.socket, Endpoint]:
        """Binds and listens; returns the socket and the endpoint with the port that was bound."""
        if self.path is not None:
            return _bind_unix(self.path), self
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            # A name is looked up here once, so that what is printed is what was bound.
            info = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
            family, address = info[0][0], info[0][4]
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except OSError as error:
            raise BusyError(
                f"cannot listen for NBD: {error.strerror or error}",
                context={"address": f"{self.host}:{self.port}"},
                hint="choose another address or port, or stop what uses it",
            ) from error
        sock.listen(128)
        return sock, Endpoint(host=self.host, port=sock.getsockname()[1])


def _bind_unix(path: Path) -> socket.socket:
    """Binds a unix socket for this user alone; removes one that nobody serves any more."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISSOCK(mode):
        raise InvalidArgumentError(
            "cannot listen for NBD: a file of that name exists and is no socket",
            context={"path": path},
            hint="choose another path",
        )
    if mode is not None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(2)
            answer = probe.connect_ex(str(path))
        if answer not in (errno.ECONNREFUSED, errno.ENOENT):
            raise BusyError(
                "another server listens there",
                context={"path": path},
                hint="stop it (see: ss -xlp), or choose another path with --nbd",
            )
        path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o177)
    try:
        sock.bind(str(path))
    except OSError as error:
        sock.close()
        raise InvalidArgumentError(
            f"cannot listen for NBD: {error.strerror}",
            context={"path": path},
            hint="the folder must exist and be writable",
        ) from error
    finally:
        os.umask(old)
    sock.listen(128)
    return sock


def package_folder() -> Path:
    """The folder of the installed `gateway` package."""
    spec = importlib.util.find_spec("gateway")
    if spec is None or spec.origin is None:
        raise CopygateError("the package gateway is not installed", hint="make build")
    return Path(spec.origin).parent


def find_plugin(kind: str) -> list[str]:
    """Returns the nbdkit arguments that name our plugin: the C one, or the Python one."""
    if kind == "python":
        script = package_folder() / "nbd/plugin.py"
        if not script.is_file():
            raise ConfigError("the nbdkit plugin in Python is missing", context={"file": script})
        return ["python", str(script)]
    named = os.environ.get("COPYGATE_NBDKIT_PLUGIN")
    name = "nbdkit-copygate-plugin.so"
    places = [Path(named)] if named else [package_folder() / "nbd" / name, package_folder() / name]
    for place in places:
        if place.is_file():
            return [str(place.absolute())]
    if named:
        raise ConfigError("COPYGATE_NBDKIT_PLUGIN names no file", context={"file": named})
    return ["copygate"]


def plugin_environment(kind: str) -> dict[str, str]:
    """The environment of nbdkit. Its Python plugin embeds the system's Python, which has to find
    us."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LISTEN_")}
    if kind == "python":
        places = [str(package_folder().parent)]
        places += [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        if old := environment.get("PYTHONPATH"):
            places.append(old)
        environment["PYTHONPATH"] = ":".join(dict.fromkeys(places))
    return environment


@dataclass(frozen=True)
class Export:
    """What one nbdkit process serves. Without a volume the client's export name chooses."""

    mds: str
    owner: str
    volume: str | None = None
    read_only: bool = False
    plugin: str = "c"
    threads: int = DEFAULT_THREADS
    password_file: Path | None = None
    extra: tuple[str, ...] = ()

    def command(self, *, pidfile: Path | None = None, exit_with_parent: bool = False) -> list[str]:
        """The command line of nbdkit, which gets its listening socket as descriptor 3."""
        nbdkit = shutil.which("nbdkit")
        if nbdkit is None:
            raise ConfigError("nbdkit is not installed", hint="apt-get install nbdkit (make deps)")
        command = [nbdkit, "--foreground", "--threads", str(self.threads)]
        if exit_with_parent:
            command.append("--exit-with-parent")
        if pidfile is not None:
            command += ["--pidfile", str(pidfile)]
        if self.read_only:
            command.append("--readonly")
        command += [*find_plugin(self.plugin), f"mds={self.mds}", f"owner={self.owner}"]
        if self.volume is not None:
            command.append(f"volume={self.volume}")
        if self.password_file is not None and self.owner == "root":
            command.append(f"password-file={self.password_file}")
        return command + list(self.extra)


# LISTEN_PID must be the pid of nbdkit itself, which only the process that becomes it knows.
_LAUNCH = 'LISTEN_PID=$$ LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS; exec "$@" 3<&0 </dev/null'


def launch_command(command: Sequence[str]) -> list[str]:
    """Wraps a command so that the socket on its standard input becomes descriptor 3."""
    return ["/bin/sh", "-c", _LAUNCH, "nbdkit-launch", *command]


def end_orphan(pidfile: Path) -> None:
    """Ends the nbdkit that an earlier run left behind, if there is one.

    When we are killed, nbdkit is told to end (--exit-with-parent), but it waits for its clients,
    maybe for ever. Only for the holder of the data folder's lock: whoever wrote the pid file is
    then known to be gone.
    """
    try:
        pid = int(pidfile.read_text(encoding="ascii"))
        descriptor = os.pidfd_open(pid)
    except (OSError, ValueError):
        return
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        # A number is given out again: only what was started with this very file is meant.
        if os.fsencode(pidfile) in words:
            log.warning("ending nbdkit, pid %d, of a run before this one", pid)
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            select.select([descriptor], [], [], ORPHAN_TIMEOUT_S)
    except OSError as error:
        log.warning("cannot end nbdkit, pid %d: %s", pid, error)
    finally:
        os.close(descriptor)


def exec_nbdkit(export: Export, sock: socket.socket) -> None:
    """Becomes nbdkit with `sock` as its listening socket; returns never."""
    command = export.command()
    environment = plugin_environment(export.plugin)
    environment |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    if sock.fileno() == LISTEN_FD:
        os.set_inheritable(LISTEN_FD, True)
    else:
        os.dup2(sock.fileno(), LISTEN_FD, inheritable=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, environment)  # noqa: S606 - no shell is wanted


class Supervisor:
    """One nbdkit process, restarted with a growing pause whenever it dies."""

    def __init__(self, export: Export, sock: socket.socket, pidfile: Path) -> None:
        self._export = export
        self._sock = sock
        self._pidfile = pidfile
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._last_line = ""

    @property
    def pid(self) -> int | None:
        """The pid of the running nbdkit, if there is one."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Starts nbdkit and returns when it accepts connections; raises when it does not start."""
        process, reader = await self._spawn()
        try:
            await self._wait_ready(process)
        except CopygateError:
            await _terminate(process)
            await reader
            raise
        self._task = asyncio.create_task(self._supervise(process, reader))

    async def stop(self) -> None:
        """Ends nbdkit: it finishes the requests that it has, closes its volumes and goes."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._process is not None:
            await _terminate(self._process)
        self._pidfile.unlink(missing_ok=True)

    async def _spawn(self) -> tuple[asyncio.subprocess.Process, asyncio.Task[None]]:
        self._pidfile.unlink(missing_ok=True)
        command = self._export.command(pidfile=self._pidfile, exit_with_parent=True)
        process = await asyncio.create_subprocess_exec(
            *launch_command(command),
            stdin=self._sock.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=plugin_environment(self._export.plugin),
            # Ctrl-C in a terminal is for us; we end our children in order.
            start_new_session=True,
        )
        self._process = process
        return process, asyncio.create_task(self._relay(process))

    async def _relay(self, process: asyncio.subprocess.Process) -> None:
        """Passes what nbdkit says on to our log, a line an event."""
        assert process.stderr is not None  # noqa: S101 - it is a pipe
        while True:
            try:
                raw = await process.stderr.readline()
            except ValueError:  # a line longer than the reader's limit: the rest follows
                continue
            if not raw:
                return
            line = raw.decode(errors="replace").strip()
            self._last_line = line.split("error: ", 1)[-1]
            level = logging.DEBUG if ": debug: " in line else logging.WARNING
            log.log(level, "%s", line)

    async def _wait_ready(self, process: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self._pidfile.exists():
            if process.returncode is not None:
                await asyncio.sleep(0.05)  # let the relay see its last words
                raise CopygateError(
                    f"nbdkit ended at once: {self._last_line or 'it said nothing'}",
                    context={"exit status": process.returncode},
                    hint="the log above says why; `copygate nbd serve` runs it in the foreground",
                )
            if time.monotonic() > deadline:
                raise CopygateError(f"nbdkit was not ready within {READY_TIMEOUT_S:.0f} s")
            await asyncio.sleep(0.005)

    async def _supervise(
        self, process: asyncio.subprocess.Process, reader: asyncio.Task[None]
    ) -> None:
        pause = BACKOFF_FIRST_S
        while True:
            began = time.monotonic()
            status = await process.wait()
            await reader
            if time.monotonic() - began > HEALTHY_S:
                pause = BACKOFF_FIRST_S
            log.error("nbdkit ended with status %d: starting it again in %.1f s", status, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, BACKOFF_MAX_S)
            process, reader = await self._spawn()
            try:
                await self._wait_ready(process)
            except CopygateError as error:
                log.error("%s", error)
                await _terminate(process)
            else:
                log.info("nbdkit serves again, pid %d", process.pid)


async def _terminate(process: asyncio.subprocess.Process) -> None:
    """Ends a child: asks first, and kills it when it does not go."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
    except TimeoutError:
        log.warning("nbdkit (pid %d) waits for its clients: ending it", process.pid)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
