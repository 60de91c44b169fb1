#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 of any process at random moments under verified load.

Two writers run all the time, over the C plugin (aligned cells of 4 KiB) and over the Python plugin
(unaligned cells of 1536 bytes); both know what every byte may hold. Each round kills one process
or several, at a random moment, restarts them after a random pause, sometimes kills them again
while they recover, and then reads everything back. Killing the MDS or the chunkserver must not show
as an error to the NBD clients; when a gateway dies its client connects again.

    python tests/cluster/crash_campaign.py --rounds 200 --seed 1
"""

import argparse
import contextlib
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.cells import default_layout
from support.process import Daemon
from support.stack import Gateway, Stack
from support.writer import Writer, WriterStats

VOLUME_SIZE = 3 << 30


class Campaign:
    """One store, two gateways with a writer each, and the order in which things die."""

    def __init__(
        self, folder: Path, seed: int, *, depth: int = 16, backend: str | None = None
    ) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        # A small log, so that it is recycled many times over a campaign.
        options = ["--wal-size", "64M"] + (["--backend", backend] if backend else [])
        self.stack = Stack(folder, chunkserver_options=options)
        self.gateways: list[Gateway] = []
        self.writers: list[Writer] = []
        self._seed = seed
        self._depth = depth

    def start(self) -> None:
        """Starts the store, the gateways and the load."""
        self.stack.start()
        for number, (plugin, cell) in enumerate((("c", 4096), ("python", 1536))):
            self.stack.create_volume(plugin, str(VOLUME_SIZE))
            gateway = self.stack.gateway(plugin, plugin=plugin)
            writer = Writer(
                gateway.uri,
                default_layout(VOLUME_SIZE, cell),
                seed=self._seed + number,
                depth=self._depth,
                log=self.folder / f"writer-{plugin}.bin",
            )
            self.gateways.append(gateway)
            self.writers.append(writer.start())

    def _victims(self) -> list[Daemon]:
        """What dies this round, in the order in which it is started again."""
        mds, chunkserver = self.stack.mds, self.stack.chunkserver
        gateways = [gateway.daemon for gateway in self.gateways]
        draw = self.random.random()
        if draw < 0.40:
            return [chunkserver]
        if draw < 0.60:
            return [self.random.choice(gateways)]
        if draw < 0.75:
            return [mds]
        if draw < 0.85:
            return [chunkserver, self.random.choice(gateways)]
        if draw < 0.92:
            return [mds, chunkserver]
        return [mds, chunkserver, *gateways]

    def round(self) -> str:
        """One round; returns a line that says what died and how long the longest IO took."""
        for writer in self.writers:
            writer.stats.longest = 0.0
        time.sleep(self.random.uniform(0.02, 0.8))
        victims = self._victims()
        for victim in victims:
            victim.kill()
        time.sleep(self.random.choice((0.0, self.random.uniform(0, 0.6))))
        for victim in victims:
            if self.random.random() < 0.15:
                # Again while it recovers: recovery has to be repeatable.
                victim.launch()
                time.sleep(self.random.uniform(0, 0.4))
                victim.kill()
            victim.start()
        self.check_alive()
        for writer in self.writers:
            writer.verify(timeout=60)
        longest = max(writer.stats.longest for writer in self.writers)
        return f"{'+'.join(victim.name for victim in victims)}, longest IO {longest:.2f} s"

    def check_alive(self) -> None:
        """Nobody may have died but by our hand."""
        daemons = [self.stack.mds, self.stack.chunkserver, *(g.daemon for g in self.gateways)]
        for daemon in daemons:
            assert daemon.running, f"{daemon.name} died by itself:\n{self.stack.logs()}"
        for writer in self.writers:
            writer.check()

    def finish(self) -> list[WriterStats]:
        """Stops the load, verifies everything, restarts everything cleanly, verifies again."""
        for writer in self.writers:
            writer.pause()
        for daemon in (self.stack.chunkserver, self.stack.mds):
            daemon.stop()
        for daemon in (self.stack.mds, self.stack.chunkserver):
            daemon.start()
        for writer in self.writers:
            writer.resume()
        results = [writer.stop() for writer in self.writers]
        self.stack.stop()
        return results

    def abort(self) -> None:
        """Ends everything after a failure; the files stay."""
        for writer in self.writers:
            with contextlib.suppress(BaseException):
                writer.stop(2, verify=False)
        self.stack.stop(clean=False)


def run(folder: Path, rounds: int, seed: int, backend: str | None = None) -> None:
    """Runs a campaign; prints a line for each round; raises at the first wrong byte."""
    campaign = Campaign(folder, seed, backend=backend)
    began = time.monotonic()
    try:
        campaign.start()
        for number in range(1, rounds + 1):
            line = campaign.round()
            print(
                f"[{time.monotonic() - began:7.1f} s] round {number}/{rounds}: {line}", flush=True
            )
        results = campaign.finish()
    except BaseException:
        campaign.abort()
        raise
    for gateway, result in zip(("c", "python"), results, strict=True):
        print(
            f"{gateway}: {result.acknowledged} acknowledged, {result.reads} reads while it ran, "
            f"{result.maybe} in doubt, {result.reconnects} reconnections, "
            f"{result.cells_verified} cells verified, nothing lost"
        )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None, help="default: from the clock")
    parser.add_argument("--folder", type=Path, default=None, help="where the store goes")
    parser.add_argument("--backend", choices=("io_uring", "epoll"), default=None)
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else time.time_ns() % 1_000_000
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="copygate-crash-"))
    print(f"seed {seed}, {arguments.rounds} rounds, store in {folder}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run(folder, arguments.rounds, seed, arguments.backend)
    except AssertionError as error:
        print(f"FAILED with seed {seed}; the store and its logs stay in {folder}\n{error}")
        return 1
    if arguments.folder is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
