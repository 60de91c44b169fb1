# SPDX-License-Identifier: BSD-3-Clause
"""nbdkit as our child: its command line, the sockets it listens on, and keeping it alive.

We bind the sockets and hand them to nbdkit (LISTEN_FDS, the protocol of systemd): then an
address in use is our error message, a port of 0 has a number that we can print, and while nbdkit
restarts connections wait in the backlog instead of being refused.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import socket
import stat
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from gateway.cli.app import check_listen, split_address
from gateway.cli.child import Launch, Supervisor, package_folder
from gateway.errors import BusyError, ConfigError, CopygateError, InvalidArgumentError

log = logging.getLogger("gateway.nbd")

UNIX_PATH_MAX = 107
LISTEN_FD = 3
DEFAULT_THREADS = 16
READY_TIMEOUT_S = 15.0
# nbdkit waits for its clients to go; they may not know that they should. What is in flight is
# done long before this, and what was acknowledged is durable.
STOP_TIMEOUT_S = 3.0


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


def supervise(export: Export, sock: socket.socket, pidfile: Path) -> Supervisor:
    """One nbdkit process with `sock` as its listening socket, restarted whenever it dies.

    It writes `pidfile` when it serves. When it is told to end it finishes the requests that it has,
    closes its volumes and goes.
    """

    def launch() -> Launch:
        pidfile.unlink(missing_ok=True)
        command = export.command(pidfile=pidfile, exit_with_parent=True)
        return Launch(launch_command(command), plugin_environment(export.plugin), sock.fileno())

    async def ready(_process: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not pidfile.exists():  # noqa: ASYNC240 - no disk is asked
            if time.monotonic() > deadline:
                raise CopygateError(f"nbdkit was not ready within {READY_TIMEOUT_S:.0f} s")
            await asyncio.sleep(0.005)

    return Supervisor(
        "nbdkit", launch=launch, ready=ready, relay=_relay, stop_timeout_s=STOP_TIMEOUT_S
    )


def _relay(line: str) -> None:
    log.log(logging.DEBUG if ": debug: " in line else logging.WARNING, "%s", line)
