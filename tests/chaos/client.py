# SPDX-License-Identifier: BSD-3-Clause
"""A client as a process: the IO core on one volume, several threads, everything noted.

    python -m chaos.client --mds HOST:PORT --volume NAME --mode exclusive --layout 0:8,8192:8 ...

Each thread writes and reads runs of cells of 512 bytes at random, one operation at a time, until
SIGTERM. With --once it reads every cell once and ends. Exit status 3: the volume was taken over.
"""

import argparse
import itertools
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from support.cells import Layout, Region

from chaos.history import CELL, FAILED, OPENED, READ, WRITE, WRITTEN, Notebook, content, value_of
from gateway import errors
from gateway.core import Client

FENCED = 3
MODES = ("exclusive", "shared", "read-only")


def parse_layout(text: str) -> Layout:
    """ "OFFSET:CELLS,OFFSET:CELLS" in bytes and cells."""
    pairs = (part.split(":") for part in text.split(","))
    return Layout(CELL, [Region(int(offset), int(cells)) for offset, cells in pairs])


class Load:
    """What the threads share."""

    def __init__(self, volume: Any, arguments: argparse.Namespace, notes: Notebook) -> None:
        self.volume = volume
        self.layout = parse_layout(arguments.layout)
        self.notes = notes
        self.stop = threading.Event()
        self.fenced = False
        self._arguments = arguments
        self._numbers = itertools.count(1)  # next() of it is one step under the GIL

    def _next_value(self) -> int:
        return self._arguments.client << 40 | next(self._numbers)

    def read(self, thread: int, cell: int, count: int) -> None:
        """Reads a run of cells."""
        self.notes.note(READ, thread, cell, count)
        data = self.volume.pread(count * CELL, self.layout.offset(cell))
        values = [value_of(cell + i, data[i * CELL : (i + 1) * CELL]) for i in range(count)]
        self.notes.seen(thread, cell, values)

    def write(self, thread: int, cell: int, count: int) -> None:
        """Writes one new value to a run of cells."""
        value = self._next_value()
        data = b"".join(content(i, value) for i in range(cell, cell + count))
        self.notes.note(WRITE, thread, cell, count, value)
        self.volume.pwrite(data, self.layout.offset(cell))
        self.notes.note(WRITTEN, thread, cell, count, value)

    def guarded(self, thread: int, action: Any, cell: int, count: int) -> None:
        """Runs an operation; one that fails is noted and told."""
        try:
            action(thread, cell, count)
        except errors.CopygateError as error:
            self.notes.note(FAILED, thread, cell, count)
            print(f"thread {thread}, cells {cell}+{count}: {error}", file=sys.stderr, flush=True)
            if isinstance(error, errors.FencedError):
                self.fenced = True
                self.stop.set()

    def run(self, thread: int) -> None:
        """One thread's work."""
        arguments = self._arguments
        pick = random.Random(f"{arguments.seed}/{arguments.client}/{thread}")
        writes = 0 if arguments.mode == "read-only" else arguments.writes
        while not self.stop.is_set():
            cell = pick.randrange(self.layout.count)
            longest = min(self.layout.run_limit(cell), pick.choice((1, 1, 1, 2, 8, 16)))
            action = self.write if pick.randrange(100) < writes else self.read
            self.guarded(thread, action, cell, pick.randint(1, longest))
            time.sleep(pick.uniform(0, 2 * arguments.think / 1000))

    def once(self) -> None:
        """Reads every cell."""
        for cell, count in self.layout.runs(16):
            self.guarded(0, self.read, cell, count)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mds", required=True)
    parser.add_argument("--volume", required=True)
    parser.add_argument("--mode", choices=MODES, default="exclusive")
    parser.add_argument("--client", type=int, required=True, help="a number for its values")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--layout", required=True)
    parser.add_argument("--history", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--writes", type=int, default=50, help="in a hundred operations")
    parser.add_argument(
        "--think", type=float, default=1.0, help="ms between operations, on average"
    )
    parser.add_argument("--once", action="store_true")
    arguments = parser.parse_args()
    notes = Notebook(arguments.history)
    mode = {"read_only": arguments.mode == "read-only", "shared": arguments.mode == "shared"}
    with (
        Client(arguments.mds, log_level="warning") as client,
        client.open_volume(arguments.volume, open_timeout=60, **mode) as volume,
    ):
        if arguments.mode == "exclusive":
            notes.note(OPENED, 0)
        print("opened", flush=True)
        load = Load(volume, arguments, notes)
        if arguments.once:
            load.once()
            return 0
        signal.signal(signal.SIGTERM, lambda *_: load.stop.set())
        threads = [threading.Thread(target=load.run, args=(i,)) for i in range(arguments.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(f"ended: {volume.stats()}", flush=True)
        return FENCED if load.fenced else 0


if __name__ == "__main__":
    sys.exit(main())
