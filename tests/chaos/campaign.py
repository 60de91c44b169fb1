#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Everything that can go wrong, at random moments, under a load that checks every answer.

Each round runs clients on a cluster of hosts (network namespaces), hurts it by a schedule that is
drawn from the seed, and waits after each episode until IO goes on for every client everywhere,
which it must within --resume seconds. Then it stops the clients, reads everything back, checks that
the history of each block of 512 bytes is that of a register, stops the chunkservers, and compares
their replicas byte for byte.

    python tests/chaos/campaign.py --rounds 20 --seed 1
"""

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chaos import network as chaos_network
from chaos import replicas as chaos_replicas
from chaos.cluster import ClientProcess, Cluster, Role
from chaos.disks import build_shim, own_mounts
from chaos.faults import Action, Hand
from chaos.history import operations
from chaos.linear import Op, check, still_in_doubt
from chaos.network import Network
from chaos.schedule import Episode, Site, draw, majority_serves

_APPS = ("app1", "app2")
# Seconds in which IO goes on during an outage of one chunkserver of three.
FAILOVER_S = 3.0


class ProblemError(AssertionError):
    """What the cluster must not do."""


class Campaign:
    """One cluster over all rounds."""

    def __init__(self, folder: Path, seed: int, options: argparse.Namespace) -> None:
        self._folder = folder
        self._seed = seed
        self._options = options
        self._hosts = [f"cs{i + 1}" for i in range(options.chunkservers)]
        self._network = Network(["mds", *self._hosts, *_APPS], folder, seed=seed)
        # With one replica a disk that fails is the end of its data.
        self._breakable = self._hosts[-1:] if options.replicas > 1 else []
        self._clients: dict[str, ClientProcess] = {}
        self._held: dict[str, dict[int, int]] = {}  # volume -> cell -> value
        self._doubts: dict[str, dict[int, list[Op]]] = {}
        self._cluster: Cluster | None = None
        self._began = time.monotonic()
        self.slowest_s = 0.0
        self.operations = 0

    # Where a reader is on a chunkserver's host, it reads chunk files itself.
    def _roles(self) -> list[Role]:
        return [
            Role("writer", "app1", "one", "exclusive"),
            Role("reader", self._hosts[0], "one", "read-only", 2),
            Role("left", "app1", "two", "shared", 3),
            Role("right", "app2", "two", "shared", 3),
        ]

    @property
    def cluster(self) -> Cluster:
        """The cluster; there is one while run() runs."""
        assert self._cluster is not None
        return self._cluster

    def say(self, text: str) -> None:
        """One line with the time since the beginning."""
        print(f"[{time.monotonic() - self._began:7.1f} s] {text}", flush=True)

    def run(self) -> None:
        """All rounds; AssertionError or TimeoutError at the first thing that is wrong."""
        options = self._options
        site = Site(
            self._hosts,
            self._breakable,
            [role.name for role in self._roles()],
            _APPS,
            options.replicas,
            membership=options.chunkservers > options.replicas,
            kinds=frozenset(filter(None, options.kinds.split(","))),
        )
        with self._network:
            shim = build_shim(self._folder)
            self._cluster = Cluster(
                self._folder,
                self._network,
                self._hosts,
                replica_count=options.replicas,
                megabytes=options.megabytes,
                wal_size=options.wal_size,
                shim=shim,
                breakable=self._breakable,
            )
            kinds = {disk.kind for disk in self._cluster.disks.values()}
            delays = "netem" if self._network.netem else "relay"
            self.say(f"disks: {', '.join(sorted(kinds))}; delays: {delays}")
            try:
                self._cluster.start()
                for volume in {role.volume for role in self._roles()}:
                    self._cluster.create_volume(volume)
                plan = draw(self._seed, site, options.rounds, options.episodes)
                for number, episodes in enumerate(plan, 1):
                    self._round(number, episodes, site)
                self._cluster.stop_chunkservers()
                self._cluster.mds.stop()
            except (AssertionError, TimeoutError) as error:
                self._held_still(error)
                raise
            finally:
                for client in self._clients.values():
                    with contextlib.suppress(AssertionError):
                        client.kill()
                self._cluster.close()

    def _held_still(self, error: BaseException) -> None:
        """With --hold, leaves everything as it is until SIGINT; tells how to look at it."""
        if not self._options.hold:
            return
        where = {host: daemon.pid for host, daemon in self.cluster.chunkservers.items()}
        self.say(f"{error}\nheld; mds: {self.cluster.mds.pid}, {where}; look with")
        print("nsenter --target PID --net --mount copygate " + self.cluster.options, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()

    def _round(self, number: int, episodes: list[Episode], site: Site) -> None:
        self._clients = {
            role.name: ClientProcess(
                role, self._network, self.cluster.mds_address, self._folder, self._seed
            )
            for role in self._roles()
        }
        for client in self._clients.values():
            client.launch()
            assert client.daemon is not None
            client.daemon.wait_ready()
        self._wait_for_io("the beginning", 20)
        for episode in episodes:
            self._play(episode, majority_serves(episode, site))
        for client in self._clients.values():
            client.finish()
            if client.failures:
                raise ProblemError(f"{client.failures} operations of {client.role.name} failed")
        self._judge(number)

    def _play(self, episode: Episode, serves: bool) -> None:
        text = "; ".join(str(fault) for fault in episode)
        hand = Hand(self.cluster, self._network, self._clients)
        events: list[tuple[float, int, Action]] = []
        for order, fault in enumerate(episode):
            begin, end = hand.actions(fault)
            events.append((fault.begin_s, order, begin))
            if end is not None:
                events.append((fault.begin_s + fault.seconds, order, end))
        events.sort(key=lambda event: event[:2])
        began = time.monotonic()
        during = ""
        for at, _, action in events:
            if serves and at - (time.monotonic() - began) > FAILOVER_S and not during:
                took = self._wait_for_io(text, FAILOVER_S, {fault.target for fault in episode})
                during = f", {took:.2f} s into it"
            time.sleep(max(0.0, at - (time.monotonic() - began)))
            action()
            for client in self._clients.values():
                client.mark()
        took = self._wait_for_io(text, self._options.resume)
        self.slowest_s = max(self.slowest_s, took)
        kinds = {fault.kind for fault in episode}
        if kinds & {"move", "wipe"}:
            self.cluster.settle(60, idle=False)
        if "rot" in kinds:
            self.cluster.scrub(60)
        self.say(f"  {text}: IO goes on after {took:.2f} s{during}")

    def _wait_for_io(self, what: str, limit_s: float, without: Collection[str] = ()) -> float:
        """Waits until all clients' IO has gone on everywhere, but for those on some hosts; returns
        the seconds since mark()."""
        deadline = time.monotonic() + limit_s
        waiting = [c for c in self._clients.values() if c.role.host not in without]
        slowest = 0.0
        while waiting:
            for client in list(waiting):
                client.check()
                if client.failures:
                    raise ProblemError(f"{what}: an operation of {client.role.name} failed")
                if (took := client.resume_time()) is not None:
                    slowest = max(slowest, took)
                    waiting.remove(client)
            if waiting and time.monotonic() > deadline:
                stuck = "; ".join(f"{client.role.name}: {client.stuck()}" for client in waiting)
                unwell = [c for c in self.cluster.copysets() if c["state"] != "healthy"]
                raise ProblemError(f"{what}: no IO within {limit_s:g} s: {stuck}\n{unwell}")
            time.sleep(0.005)
        self.cluster.check()
        return slowest

    # After the round.

    def _judge(self, number: int) -> None:
        options = self._options
        readers = self._read_back()
        told = checked = 0
        for volume in sorted({role.volume for role in self._roles()}):
            clients = [c for c in self._clients.values() if c.role.volume == volume]
            lives = [life for c in clients for life in c.lives] + readers[volume].lives
            history = operations(lives, fencing=volume == "one")
            for cell, doubts in self._doubts.get(volume, {}).items():
                history.setdefault(cell, []).extend(doubts)
            problems = check(history, self._held.get(volume))
            if problems:
                raise ProblemError(f"volume {volume}:\n" + "\n".join(problems))
            self._doubts[volume] = {cell: still_in_doubt(ops) for cell, ops in history.items()}
            self._held[volume] = {
                cell: max((op for op in ops if not op.write), key=lambda op: op.invoked).value
                for cell, ops in history.items()
            }
            told += sum(1 for ops in history.values() for op in ops if op.returned is not None)
            checked += len(history)
        longest = max(client.longest_s for client in self._clients.values())
        self.operations += told
        compared = self._compare()
        self.say(
            f"round {number}/{options.rounds}: {told} operations on {checked} cells linearizable, "
            f"longest {longest:.2f} s; {compared}"
        )

    def _read_back(self) -> dict[str, ClientProcess]:
        """Reads every cell of each volume once more."""
        readers = {}
        for volume in sorted({role.volume for role in self._roles()}):
            role = Role(f"last-{volume}", "app2", volume, "read-only", 1)
            reader = ClientProcess(
                role, self._network, self.cluster.mds_address, self._folder, self._seed
            )
            reader.launch(once=True)
            reader.join()
            readers[volume] = reader
            if reader.failures:
                raise ProblemError(f"volume {volume}: {reader.failures} reads failed at the end")
        return readers

    def _compare(self) -> str:
        """Stops the chunkservers, compares, starts them again."""
        cluster = self.cluster
        expected = cluster.settle(60, idle=True)
        cluster.stop_chunkservers()
        folders = {host: disk.data for host, disk in cluster.disks.items()}
        if problems := chaos_replicas.compare(folders, expected):
            raise ProblemError("replicas differ:\n" + "\n".join(problems))
        chunks, blocks = chaos_replicas.count(folders)
        cluster.start_chunkservers()
        return f"{len(expected)} copysets, {chunks} chunk files, {blocks} blocks agree"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--episodes", type=int, default=6, help="of each round")
    parser.add_argument("--seed", type=int, default=None, help="default: from the clock")
    parser.add_argument("--kinds", default="", help="only these faults, as kill,transfer")
    parser.add_argument("--chunkservers", type=int, default=4)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=400, help="of each disk")
    parser.add_argument("--wal-size", default="64M", help="of each chunkserver")
    parser.add_argument("--resume", type=float, default=5.0, help="seconds until IO goes on")
    parser.add_argument("--hold", action="store_true", help="stay as it is after a failure")
    parser.add_argument("--folder", type=Path, default=None, help="where everything goes")
    options = parser.parse_args()
    if reason := chaos_network.missing():
        print(reason, file=sys.stderr)
        return 2
    seed = options.seed if options.seed is not None else time.time_ns() % 1_000_000
    folder = options.folder or Path(tempfile.mkdtemp(prefix="copygate-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"seed {seed}, {options.rounds} rounds, files in {folder}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    own_mounts()
    campaign = Campaign(folder, seed, options)
    try:
        campaign.run()
    except (AssertionError, TimeoutError) as error:
        print(f"FAILED with seed {seed}; files stay in {folder}\n{error}")
        return 1
    print(
        f"{campaign.operations} operations, nothing lost, histories linearizable, replicas agree; "
        f"IO went on within {campaign.slowest_s:.2f} s"
    )
    if options.folder is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
