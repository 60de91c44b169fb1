# SPDX-License-Identifier: BSD-3-Clause
"""The comparisons that need a store: random and sequential IO through each way in."""

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from measure import (
    Job,
    Result,
    core_bench,
    drop_cached,
    fio_disk,
    fio_nbd,
    median_result,
    system_calls_per_io,
)
from support.libnbd import unix_uri
from support.process import Daemon, unix_accepts
from support.stack import Stack
from support.tools import CLEAN_ENV, which

SPAN = "1g"
SPAN_BYTES = 1 << 30
VOLUME = "8G"
PLAIN_PYTHON = "nbdkit plain Python"
MEMORY = "nbdkit memory (C)"
DISK = "disk by fio"
CORE = "core alone"
OURS_C = "copygate, C plugin"
OURS_PYTHON = "copygate, Python plugin"


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


class Loads:
    """One store with three volumes, and the servers that it is compared with."""

    def __init__(self, folder: Path, *, rounds: int, seconds: float) -> None:
        self._folder = folder
        self._rounds = rounds
        self._seconds = seconds
        self._stack = Stack(folder / "store")
        self._sockets = Path(tempfile.mkdtemp(prefix="cgb-"))
        self._raw = folder / "raw"
        self._rivals: dict[str, Daemon] = {}
        self._uris: dict[str, str] = {}
        self._pids: dict[str, dict[str, int]] = {}

    def __enter__(self) -> "Loads":
        self._stack.start()
        chunkserver = {"chunkserver": self._stack.chunkserver.pid, "mds": self._stack.mds.pid}
        for name, plugin in ((OURS_C, "c"), (OURS_PYTHON, "python")):
            self._stack.create_volume(plugin, VOLUME)
            gateway = self._stack.gateway(plugin, plugin=plugin)
            self._uris[name] = gateway.uri
            self._pids[name] = {"nbdkit": gateway.daemon.pid, **chunkserver}
        self._stack.create_volume("core", VOLUME)
        self._pids[CORE] = chunkserver
        plain = str(Path(__file__).with_name("memory_plugin.py"))
        self._rival(MEMORY, ["memory", "size=1G"])
        self._rival(PLAIN_PYTHON, ["python", plain, f"size={SPAN_BYTES}"])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for daemon in self._rivals.values():
            daemon.kill()
        self._stack.stop(clean=error is None)
        if error is not None:
            say(self._stack.logs())
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _rival(self, name: str, arguments: list[str]) -> None:
        socket = self._sockets / f"{len(self._rivals)}"
        daemon = Daemon(
            name,
            [which("nbdkit") or "nbdkit", "--foreground", "--unix", str(socket), *arguments],
            self._folder / f"rival{len(self._rivals)}.log",
            lambda: unix_accepts(socket),
            env=CLEAN_ENV,
            ready_timeout=60,
        )
        self._rivals[name] = daemon.start()
        self._uris[name] = unix_uri(str(socket))
        self._pids[name] = {"nbdkit": daemon.pid}

    def _one(self, name: str, job: Job) -> Result:
        if name == DISK:
            return fio_disk(self._raw, job, self._folder)
        if name == CORE:
            mds = ["--mds", self._stack.mds_address]
            seconds = job.seconds or 1.0
            return core_bench(mds, "core", job, self._pids[CORE], seconds)
        return fio_nbd(self._uris[name], job, self._pids[name], self._folder)

    def _compare(
        self, what: str, job: Job, names: list[str], prepare: Callable[[], None] | None = None
    ) -> dict[str, Any]:
        results: dict[str, list[Result]] = {name: [] for name in names}
        for number in range(self._rounds):
            for name in names:
                if prepare is not None:
                    prepare()
                results[name].append(self._one(name, job))
                rate = results[name][-1].iops
                say(f"  {what}, turn {number + 1}: {name}: {rate:,.0f}/s")
        return {name: median_result(found).as_dict() for name, found in results.items()}

    def _fill(self) -> None:
        """Real data everywhere: nobody reads holes, nobody allocates while it is timed."""
        fill = Job("write", "1m", 8, SPAN)
        for name in (*self._uris, DISK):
            say(f"  filling: {name}")
            self._one(name, fill)
        # copygate bench has no io_size: what it fills in a second or two depends on the disk.
        self._one(CORE, Job("write", "1m", 8, SPAN, seconds=max(4.0, self._seconds)))
        warm = Job("read", "1m", 8, SPAN)
        for name in self._uris:
            self._one(name, warm)

    def random(self) -> dict[str, Any]:
        """4 KiB at depth 32 and 1; data in the page cache for all."""
        self._fill()
        found: dict[str, Any] = {}
        for depth in (32, 1):
            job = Job("randread", "4k", depth, SPAN, seconds=self._seconds)
            names = [OURS_C, MEMORY, OURS_PYTHON, PLAIN_PYTHON, CORE]
            found[f"randread-{depth}"] = self._compare(f"4K read, depth {depth}", job, names)
            job = Job("randwrite", "4k", depth, SPAN, seconds=self._seconds)
            names = [OURS_C, DISK, MEMORY, OURS_PYTHON, PLAIN_PYTHON, CORE]
            found[f"randwrite-{depth}"] = self._compare(f"4K write, depth {depth}", job, names)
        for rw in ("randread", "randwrite"):
            say(f"  system calls: {rw}")
            job = Job(rw, "4k", 32, SPAN, seconds=3)
            found[f"{rw}-32"]["system calls"] = {
                name: system_calls_per_io(self._uris[name], job, self._pids[name], self._folder)
                for name in (OURS_C, OURS_PYTHON, MEMORY)
            }
        return found

    def sequential(self, total: int) -> dict[str, Any]:
        """1 MiB at depth 8: reads from the disk, writes until the page cache is full."""
        span = "4g"
        write = Job("write", "1m", 8, span, io_size=str(total))
        say(f"  1 MiB writes: {total >> 30} GiB a turn")
        found = {"write-1m": self._compare("1M write", write, [OURS_C, DISK], self._settle)}
        read = Job("read", "1m", 8, span, io_size=str(4 << 30))
        found["read-1m"] = self._compare("1M read", read, [OURS_C, DISK], self._settle)
        return found

    def _settle(self) -> None:
        drop_cached(self._folder)
