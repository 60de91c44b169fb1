# SPDX-License-Identifier: BSD-3-Clause
"""A real store on this machine: MDS, chunkservers, gateways, each a process of `copygate`.

    with Stack(folder) as stack:
        stack.create_volume("disk", "1G")
        gateway = stack.gateway("disk")
        ... gateway.uri ...

With replicas=3 there are three chunkservers, in zones of their own; `add_chunkserver` starts more.
Everything listens on free ports of 127.0.0.1 and on unix sockets. Usable from scripts.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from support.libnbd import unix_uri
from support.process import (
    Daemon,
    ProcessError,
    free_port,
    says,
    tail,
    tcp_accepts,
    unix_accepts,
    wait_until,
)
from support.tools import CLEAN_ENV, COPYGATE, copygate, copygate_json

PLUGINS = ("c", "python")
REGISTERED = "registered as chunkserver"


class Gateway:
    """One nbdkit that exports one volume, on a unix socket or a TCP port."""

    def __init__(self, daemon: Daemon, uri: str, socket: Path | None, port: int | None) -> None:
        self.daemon = daemon
        self.uri = uri
        self.socket = socket
        self.port = port


class Stack:
    """The processes of one store; started by start() or `with`, ended by stop() or its end."""

    def __init__(
        self,
        folder: Path,
        *,
        chunkserver_options: Sequence[str] = (),
        mds_options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        data: Path | None = None,
        replicas: int = 1,
    ) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.replicas = replicas
        # Unix socket paths hold 107 bytes at most, pytest's folders can be longer.
        self.sockets = Path(tempfile.mkdtemp(prefix="cg-", dir="/tmp"))
        self.env = {**CLEAN_ENV, **(env or {})}
        self.mds_port, self.grpc_port = free_port(), free_port()
        self.gateways: list[Gateway] = []
        self.mds = Daemon(
            "mds",
            [
                *(COPYGATE, "mds", "--data", str(folder / "mds")),
                *("--listen", f"127.0.0.1:{self.mds_port}"),
                *("--grpc-listen", f"127.0.0.1:{self.grpc_port}"),
                *(("--replicas", str(replicas)) if replicas > 1 else ()),
                *mds_options,
            ],
            folder / "mds.log",
            lambda: tcp_accepts(self.mds_port) and tcp_accepts(self.grpc_port),
            env=self.env,
        )
        self.data_folders: list[Path] = []
        self.chunkserver_ports: list[int] = []
        self.chunkservers: list[Daemon] = []
        self._chunkserver_options = chunkserver_options
        for number in range(1, replicas + 1):
            name = "chunkserver" if replicas == 1 else f"chunkserver-{number}"
            self._new_chunkserver(name, data or folder / name, ())

    def _new_chunkserver(self, name: str, data: Path, options: Sequence[str]) -> Daemon:
        port = free_port()
        zone = ("--zone", f"z{len(self.chunkservers) + 1}") if self.replicas > 1 else ()
        daemon = Daemon(
            name,
            [
                *(COPYGATE, *self._mds_options, "chunkserver", "--data", str(data)),
                *("--listen", f"127.0.0.1:{port}"),
                *(*zone, *self._chunkserver_options, *options),
            ],
            self.folder / f"{name}.log",
            lambda: tcp_accepts(port),
            env=self.env,
        )
        self.data_folders.append(data)
        self.chunkserver_ports.append(port)
        self.chunkservers.append(daemon)
        return daemon

    def add_chunkserver(self, *options: str) -> Daemon:
        """Starts another one, in a zone of its own unless `options` say otherwise."""
        name = f"chunkserver-{len(self.chunkservers) + 1}"
        daemon = self._new_chunkserver(name, self.folder / name, options)
        daemon.start()
        wait_until(lambda: says(daemon.log, REGISTERED), 20, "registration")
        return daemon

    @property
    def chunkserver(self) -> Daemon:
        """The first one."""
        return self.chunkservers[0]

    @property
    def chunkserver_port(self) -> int:
        """Of the first one."""
        return self.chunkserver_ports[0]

    @property
    def data(self) -> Path:
        """The folder of the first one."""
        return self.data_folders[0]

    @property
    def mds_address(self) -> str:
        """What clients of the IO core are given as `mds`."""
        return f"127.0.0.1:{self.mds_port}"

    @property
    def _mds_options(self) -> list[str]:
        return ["--mds", self.mds_address, "--mds-grpc", f"127.0.0.1:{self.grpc_port}"]

    def start(self) -> "Stack":
        """Starts MDS and chunkservers; every copyset has a leader afterwards."""
        self.mds.start()
        # One after the other: their ids are in the order of the list. A chunkserver serves before
        # the MDS knows it; volumes can be placed only afterwards.
        for daemon in self.chunkservers:
            daemon.start()
            wait_until(lambda log=daemon.log: says(log, REGISTERED), 20, "registration")
        self.wait_for_leaders()
        return self

    def wait_for_leaders(self, timeout: float = 30) -> None:
        """Waits until every copyset has a leader."""

        def led() -> bool:
            copysets = self.copygate_json("status")["copysets"]
            return copysets["count"] > 0 and copysets["leaderless"] == 0

        wait_until(led, timeout, "leaders of all copysets")

    def copysets(self) -> list[Any]:
        """What `copygate copyset list` says."""
        return list(self.copygate_json("copyset", "list"))

    def stop(self, *, clean: bool = True) -> None:
        """Ends everything; `clean` asks politely and raises if something needed force."""
        problems: list[str] = []
        for gateway in reversed(self.gateways):
            # nbdkit waits for its clients to go, however long; a test may have left one connected.
            with contextlib.suppress(ProcessError):
                gateway.daemon.stop(timeout=1 if clean else 0)
        for daemon in (*self.chunkservers, self.mds):
            if not clean:
                daemon.kill()
                continue
            try:
                daemon.stop()
            except ProcessError as error:
                problems.append(str(error))
        shutil.rmtree(self.sockets, ignore_errors=True)
        if problems:
            raise ProcessError("\n".join(problems))

    def __enter__(self) -> "Stack":
        try:
            return self.start()
        except BaseException:
            self.stop(clean=False)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop(clean=error is None)

    def copygate(self, *arguments: str | Path, **kwargs: Any) -> Any:
        """Runs `copygate` against this store."""
        return copygate(*self._mds_options, *arguments, env=self.env, **kwargs)

    def copygate_json(self, *arguments: str | Path, **kwargs: Any) -> Any:
        """The same with --json; returns the parsed answer."""
        return copygate_json(*self._mds_options, *arguments, env=self.env, **kwargs)

    def create_volume(self, name: str, size: str) -> None:
        """Creates a volume; the size as people write it."""
        self.copygate("volume", "create", name, size)

    def gateway_daemon(
        self,
        volume: str,
        *,
        plugin: str = "c",
        tcp: bool = False,
        options: Sequence[str] = (),
    ) -> Gateway:
        """A gateway that is not started yet."""
        number = len(self.gateways)
        port = free_port() if tcp else None
        socket = None if tcp else self.sockets / f"nbd{number}"
        where = f"tcp:127.0.0.1:{port}" if tcp else f"unix:{socket}"
        uri = f"nbd://127.0.0.1:{port}/{volume}" if tcp else unix_uri(str(socket), volume)

        def ready() -> bool:
            return tcp_accepts(port) if port else unix_accepts(Path(str(socket)))

        daemon = Daemon(
            f"gateway-{number}",
            [
                *(COPYGATE, *self._mds_options, "nbd", "serve", volume),
                *("--listen", where, "--plugin", plugin, *options),
            ],
            self.folder / f"gateway-{number}.log",
            ready,
            env=self.env,
        )
        gateway = Gateway(daemon, uri, socket, port)
        self.gateways.append(gateway)
        return gateway

    def gateway(
        self,
        volume: str,
        *,
        plugin: str = "c",
        tcp: bool = False,
        options: Sequence[str] = (),
    ) -> Gateway:
        """Exports a volume through nbdkit; `plugin` is one of PLUGINS."""
        gateway = self.gateway_daemon(volume, plugin=plugin, tcp=tcp, options=options)
        gateway.daemon.start()
        return gateway

    def logs(self) -> str:
        """The ends of all logs, for the report of a failure."""
        return "\n".join(
            f"===== {log.name}\n{tail(log, 60)}" for log in sorted(self.folder.glob("*.log"))
        )


@contextlib.contextmanager
def temporary_stack(
    base: Path | None = None, *, keep: bool = False, **kwargs: Any
) -> Iterator[Stack]:
    """A stack in a new folder under `base`; removed afterwards, but not after a failure."""
    folder = Path(tempfile.mkdtemp(prefix="copygate-", dir=base))
    try:
        with Stack(folder, **kwargs) as stack:
            yield stack
    except BaseException:
        print(f"the store's files and logs are kept in {folder}", flush=True)
        raise
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)


def processes_of(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return [p for p in found if os.path.exists(f"/proc/{p}")]  # noqa: PTH110
