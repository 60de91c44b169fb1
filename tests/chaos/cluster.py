# SPDX-License-Identifier: BSD-3-Clause
"""An MDS, chunkservers and clients, each on a host of its own, and what can be done to them."""

import itertools
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.process import Daemon, says, wait_until
from support.tools import CLEAN_ENV, COPYGATE, ROOT, run

from chaos import replicas
from chaos.client import FENCED, parse_layout
from chaos.disks import Disk
from chaos.history import FAILED, READ, SEEN, WRITE, WRITTEN, Follower, Record
from chaos.network import Network

_MDS, _GRPC, _CHUNKSERVER = 6700, 6701, 6710
_VOLUME = "4G"
_COPYSETS = 12
# Runs of cells in three chunks of the first segment, over a chunk's border, and in the second
# segment. Each starts in the middle of a block of 4 KiB.
_CELLS = 12
_CHUNK, _SEGMENT = 16 << 20, 1 << 30
_STARTS = (2048, 2 * _CHUNK - 3072, 5 * _CHUNK + 7 * 512, 9 * _CHUNK + 2048, _SEGMENT + 2048)
LAYOUT = ",".join(f"{start}:{_CELLS}" for start in _STARTS)


@dataclass(frozen=True)
class Role:
    """What a client does, over all its lives."""

    name: str
    host: str
    volume: str
    mode: str
    threads: int = 4


class ClientProcess:
    """One client; killed and started again it is another to the store, with a file of its own."""

    _numbers = itertools.count(1)

    def __init__(self, role: Role, network: Network, mds: str, folder: Path, seed: int) -> None:
        self.role = role
        self._network = network
        self._mds = mds
        self._folder = folder
        self._seed = seed
        self._layout = parse_layout(LAYOUT)
        self.lives: list[list[Record]] = []
        self.daemon: Daemon | None = None
        self._follower: Follower | None = None
        self._begun: dict[int, Record] = {}
        self.failures = 0
        self.longest_s = 0.0
        self._mark = 0
        self._threads: dict[int, int] = {}
        self._regions: dict[int, int] = {}

    def launch(self, *, once: bool = False) -> None:
        """Starts a new life; does not wait."""
        number = next(self._numbers)
        name = f"{self.role.name}-{number}"
        history = self._folder / f"{name}.history"
        argv = [sys.executable, "-P", "-m", "chaos.client", "--mds", self._mds]
        argv += ["--volume", self.role.volume, "--mode", self.role.mode, "--layout", LAYOUT]
        argv += ["--client", str(number), "--threads", str(self.role.threads)]
        argv += ["--history", str(history), "--seed", str(self._seed)]
        if once:
            argv.append("--once")
        log = self._folder / f"{name}.log"
        env = {**CLEAN_ENV, "PYTHONPATH": str(ROOT / "tests")}
        self._follower = Follower(history)
        self._begun = {}
        self.lives.append([])
        self.daemon = Daemon(
            name,
            self._network.argv(self.role.host, argv),
            log,
            lambda: says(log, "opened"),
            env=env,
            ready_timeout=70,
        )
        self.daemon.launch()

    def kill(self) -> None:
        """kill -9."""
        assert self.daemon is not None
        self.daemon.kill()
        self.poll()

    def finish(self) -> None:
        """Lets the operations under way end, and the process. AssertionError if it fails."""
        assert self.daemon is not None
        self.daemon.wait_ready()
        self.daemon.send_signal(signal.SIGTERM)
        self.join()

    def join(self) -> None:
        """Waits for its end."""
        assert self.daemon is not None
        status = self.daemon.wait(60)
        self.poll()
        assert status == 0, f"{self.daemon.name} ended with {status}: {self._tail()}"

    def check(self) -> None:
        """AssertionError if it died by itself."""
        assert self.daemon is not None
        if not self.daemon.running:
            status = self.daemon.wait(1)
            why = "the volume was taken over" if status == FENCED else f"status {status}"
            raise AssertionError(f"{self.daemon.name} ended by itself, {why}: {self._tail()}")

    def _tail(self) -> str:
        assert self.daemon is not None
        return self.daemon.log.read_text(errors="replace")[-2000:]

    def mark(self) -> None:
        """From now on resume_time() counts."""
        self.poll()
        self._mark = time.monotonic_ns()
        self._threads = {}
        self._regions = {}

    def poll(self) -> None:
        """Takes in what the process has noted since."""
        if self._follower is None:
            return
        for record in self._follower.read():
            self.lives[-1].append(record)
            if record.event in {READ, WRITE}:
                self._begun[record.thread] = record
            elif record.event in {SEEN, WRITTEN, FAILED}:
                self._ended(record)

    def _ended(self, record: Record) -> None:
        begin = self._begun[record.thread]
        if record.event != SEEN or record.cell == begin.cell + begin.count - 1:
            del self._begun[record.thread]
        self.longest_s = max(self.longest_s, (record.time - begin.time) / 1e9)
        if record.event == FAILED:
            self.failures += 1
        elif begin.time >= self._mark:
            self._threads.setdefault(record.thread, record.time)
            self._regions.setdefault(self._layout.region_of(record.cell), record.time)

    def stuck(self) -> str:
        """What has been under way for more than a second."""
        now = time.monotonic_ns()
        return ", ".join(
            f"{'write' if begin.event == WRITE else 'read'} of cells {begin.cell}+{begin.count} "
            f"for {(now - begin.time) / 1e9:.1f} s"
            for begin in self._begun.values()
            if now - begin.time > 1e9
        )

    def resume_time(self) -> float | None:
        """Seconds from mark() until operations that began later had ended well, one at least of
        each thread and in each region. None: not yet. What was under way at mark() has ended
        by then, since a thread does one thing at a time."""
        self.poll()
        if len(self._regions) < len(self._layout.regions) or len(self._threads) < self.role.threads:
            return None
        return (max(*self._regions.values(), *self._threads.values()) - self._mark) / 1e9


class Cluster:
    """Starts everything; the methods are what a campaign does to it."""

    def __init__(
        self,
        folder: Path,
        network: Network,
        hosts: Sequence[str],
        *,
        replica_count: int,
        megabytes: int,
        wal_size: str,
        shim: Path | None,
        breakable: Sequence[str],
    ) -> None:
        self.folder = folder
        self.network = network
        self._replica_count = replica_count
        self._wal_size = wal_size
        self.disks = {host: Disk(folder, host, megabytes) for host in hosts}
        mds = network.address("mds")
        self.mds_address = f"{mds}:{_MDS}"
        self._mds_options = ["--mds", self.mds_address, "--mds-grpc", f"{mds}:{_GRPC}"]
        self.mds = Daemon(
            "mds",
            network.argv("mds", self._mds_argv()),
            folder / "mds.log",
            lambda: self.accepts("mds", _MDS) and self.accepts("mds", _GRPC),
            env=CLEAN_ENV,
        )
        self.chunkservers = {
            host: self._chunkserver(host, shim if host in breakable else None) for host in hosts
        }

    def _mds_argv(self) -> list[str]:
        mds = self.network.address("mds")
        argv = [COPYGATE, "mds", "--data", str(self.folder / "mds"), "--allow-remote"]
        argv += ["--listen", f"{mds}:{_MDS}", "--grpc-listen", f"{mds}:{_GRPC}"]
        if self._replica_count > 1:
            argv += ["--replicas", str(self._replica_count), "--copysets", str(_COPYSETS)]
        return argv

    def _chunkserver(self, host: str, shim: Path | None) -> Daemon:
        disk = self.disks[host]
        where = f"{self.network.address(host)}:{_CHUNKSERVER}"
        argv = [COPYGATE, *self._mds_options, "chunkserver", "--data", str(disk.data)]
        argv += ["--listen", where, "--allow-remote", "--zone", host]
        argv += ["--wal-size", self._wal_size, "--reserve", "32M"]
        env = CLEAN_ENV
        if shim is not None:
            # The shim is between the process and libc, where io_uring does not pass.
            argv += ["--backend", "epoll"]
            env = {**CLEAN_ENV, **disk.environment(shim)}
        log = self.folder / f"{host}.log"
        return Daemon(
            host,
            self.network.argv(host, argv),
            log,
            lambda: self.accepts(host, _CHUNKSERVER),
            env=env,
        )

    @property
    def options(self) -> str:
        """What `copygate` is given to reach the MDS."""
        return " ".join(self._mds_options)

    def accepts(self, host: str, port: int) -> bool:
        """Whether somebody accepts connections there. Asks on the host itself."""

        def connect() -> bool:
            with socket.socket() as probe:
                probe.settimeout(1)
                return probe.connect_ex((self.network.address(host), port)) == 0

        return self.network.on(host, connect)

    def start(self) -> None:
        """Starts the MDS and the chunkservers, and waits until the MDS knows them."""
        self.mds.start()
        self.start_chunkservers()

    def start_chunkservers(self) -> None:
        """Starts all of them, and waits until the MDS knows them."""
        for daemon in self.chunkservers.values():
            daemon.launch()
        self._wait_registered(self.chunkservers.values())

    @staticmethod
    def _wait_registered(daemons: Iterable[Daemon]) -> None:
        for daemon in daemons:
            daemon.wait_ready()
            wait_until(
                lambda d=daemon: says(d.log, "registered as chunkserver"),  # type: ignore[misc]
                40,
                f"registration of {daemon.name}",
            )

    def stop_chunkservers(self) -> None:
        """Stops all of them in order, each with a checkpoint."""
        for daemon in self.chunkservers.values():
            daemon.stop()

    def close(self) -> None:
        """Ends everything at once; the files stay, those of the disks in their images."""
        for daemon in (*self.chunkservers.values(), self.mds):
            daemon.kill()
        for disk in self.disks.values():
            disk.close()

    def check(self) -> None:
        """AssertionError if a daemon died by itself."""
        for daemon in (self.mds, *self.chunkservers.values()):
            assert daemon.running, f"{daemon.name} died by itself; see {daemon.log}"

    def copygate(self, *arguments: str) -> str:
        """Runs `copygate` on the MDS's host; returns what it printed."""
        return run(*self.network.argv("mds", [COPYGATE, *self._mds_options, *arguments])).stdout

    def copygate_json(self, *arguments: str) -> Any:
        """The same with --json; returns the parsed answer."""
        return json.loads(self.copygate(*arguments, "--json"))

    def copysets(self) -> list[dict[str, Any]]:
        """What the MDS knows about the copysets."""
        found: list[dict[str, Any]] = self.copygate_json("copyset", "list")
        return found

    def ids(self) -> dict[str, int]:
        """The chunkservers' ids, by host. Of one that was wiped, the one that it has now."""
        by_address = {
            f"{self.network.address(host)}:{_CHUNKSERVER}": host for host in self.chunkservers
        }
        known = self.copygate_json("status")["chunkservers"]
        return {
            by_address[server["address"]]: server["id"]
            for server in sorted(known, key=lambda server: server["id"])
            if server["address"] in by_address
        }

    # Leaders and members.

    def transfer(self, host: str) -> None:
        """Makes the host the leader of a copyset that it follows in; if it follows in one."""
        server = self.ids()[host]
        for copyset in self.copysets():
            roles = {member["chunkserver"]: member["role"] for member in copyset["members"]}
            if roles.get(server) == "voter":
                self.copygate("copyset", "transfer", copyset["copyset"], "--to", str(server))
                return

    def move(self, host: str) -> None:
        """Asks for a replica of a copyset to go to the host, away from its leader if it has one."""
        server = self.ids()[host]
        for copyset in self.copysets():
            members = [member["chunkserver"] for member in copyset["members"]]
            if server not in members and copyset["change"] is None:
                source = copyset["leader"] or members[0]
                words = ["--from", str(source), "--to", str(server)]
                self.copygate("copyset", "move", copyset["copyset"], *words)
                return

    def wipe(self, host: str) -> None:
        """The host's disk is replaced by an empty one: another chunkserver, which takes over what
        the old one had."""
        old = self.ids()[host]
        self.chunkservers[host].kill()
        shutil.rmtree(self.disks[host].data)
        self.chunkservers[host].launch()
        self._wait_registered([self.chunkservers[host]])
        self.copygate("retire", str(old), "--to", str(self.ids()[host]))

    def rot(self, host: str, which: float) -> None:
        """Flips a bit of a block that the host's disk holds, if it holds any."""
        files = sorted(self.disks[host].data.glob("chunks/*/chunk_*"))
        chunks = [chunk for chunk in map(replicas.read_chunk, files) if chunk.blocks()]
        if not chunks:
            return
        chunk = chunks[int(which * len(chunks)) % len(chunks)]
        blocks = chunk.blocks()
        offset = chunk.offset(blocks[int(which * 7919) % len(blocks)]) + int(which * 4093)
        with chunk.path.open("r+b", buffering=0) as file:
            old = os.pread(file.fileno(), 1, offset)
            os.pwrite(file.fileno(), bytes([old[0] ^ 1]), offset)

    def scrub(self, timeout_s: float) -> None:
        """Has every block checked, and what is bad repaired. AssertionError if some stays bad."""

        def clean() -> bool:
            argv = [COPYGATE, *self._mds_options, "scrub", "--wait"]
            return run(*self.network.argv("mds", argv), status=None).returncode == 0

        try:
            wait_until(clean, timeout_s, "scrub", interval=0.2)
        except TimeoutError:
            raise AssertionError(
                f"bad blocks after {timeout_s:g} s:\n{self.copygate('status')}"
            ) from None

    def settle(self, timeout_s: float, *, idle: bool) -> dict[str, set[str]]:
        """Waits until each copyset has all its members, no change under way, and no folder of a
        replica that was moved; and if there is no load, until no member is behind. Returns the
        hosts of each copyset."""
        holders: dict[str, set[str]] = {}

        def settled() -> bool:
            hosts = {server: host for host, server in self.ids().items()}
            found = self.copysets()
            if any(_unsettled(copyset, idle) for copyset in found):
                return False
            holders.clear()
            for copyset in found:
                members = {hosts.get(m["chunkserver"], "nobody") for m in copyset["members"]}
                holders[copyset["copyset"]] = members
            held = {host: set(replicas.folders(disk.data)) for host, disk in self.disks.items()}
            return all(
                held[host] == {name for name, members in holders.items() if host in members}
                for host in self.disks
            )

        try:
            wait_until(settled, timeout_s, "settling", interval=0.2)
        except TimeoutError:
            raise AssertionError(
                f"not settled within {timeout_s:g} s:\n"
                + "\n".join(json.dumps(c) for c in self.copysets() if _unsettled(c, idle))
            ) from None
        return holders

    def create_volume(self, name: str) -> None:
        """Creates a volume for the clients' layout."""
        self.copygate("volume", "create", name, _VOLUME)


def _unsettled(copyset: dict[str, Any], idle: bool) -> bool:
    members = copyset["members"]
    if copyset["state"] != "healthy" or copyset["change"] is not None:
        return True
    if any(member["role"] == "learner" or member["lagging"] for member in members):
        return True
    return idle and (
        copyset["last_index"] != copyset["applied_index"]
        or any(member["role"] == "voter" and member["behind"] != 0 for member in members)
    )
