# SPDX-License-Identifier: BSD-3-Clause
"""Three replicas on one machine and its one disk, beside the raw disk and a single replica."""

import statistics
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from loads import say
from measure import Job, drop_cached, fio_disk, fio_nbd
from support.stack import Stack
from support.tools import COPYGATE, which
from window import Window, bench_report, fio_report, watch

RAW = "disk by fio"
ONE = "1 replica, core"
THREE = "3 replicas, core"
THREE_NBD = "3 replicas, NBD"

_SPAN = "1G"
_VOLUME = "8G"
_FILL_S = 12.0


def _middle(windows: list[Window]) -> dict[str, Any]:
    """Medians, each figure for itself; the worst disturbance."""
    rows = [window.as_dict() for window in windows]
    found: dict[str, Any] = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        if name == "latency_us":
            found[name] = {k: statistics.median(v.get(k, 0.0) for v in values) for k in first}
        elif name == "disturbance":
            found[name] = max(values)
        elif None in values:
            found[name] = None
        else:
            found[name] = statistics.median(values)
    return found


class ReplicaLoads:
    """A store with one replica and one with three; both idle while the other works."""

    def __init__(self, folder: Path, *, rounds: int, seconds: float) -> None:
        self._folder = folder
        self._rounds = rounds
        self._seconds = max(seconds, 3.5)  # watch() looks at the middle of it
        self._one = Stack(folder / "one")
        self._three = Stack(folder / "three", replicas=3)
        self._gateway = self._three.gateway_daemon("nbd", plugin="c")
        self._raw = folder / "raw"

    def __enter__(self) -> "ReplicaLoads":
        for stack in (self._one, self._three):
            stack.start()
            stack.create_volume("bench", _VOLUME)
        self._three.create_volume("nbd", _VOLUME)
        self._gateway.daemon.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for stack in (self._one, self._three):
            stack.stop(clean=error is None)
            if error is not None:
                say(stack.logs())

    # One load.

    def _core(self, stack: Stack, rw: str, block: str, depth: int, seconds: float) -> list[str]:
        words = [COPYGATE, "--mds", stack.mds_address, "bench", "bench", "--rw", rw, "--bs", block]
        words += ["--iodepth", str(depth), "--runtime", str(seconds), "--size", _SPAN]
        return [*words, "--json", *(["--destroy-data"] if "write" in rw else [])]

    @staticmethod
    def _fio(target: list[str], rw: str, block: str, depth: int, seconds: float) -> list[str]:
        words = [which("fio") or "fio", "--name=bench", *target, f"--rw={rw}", f"--bs={block}"]
        words += [f"--iodepth={depth}", f"--size={_SPAN}", "--norandommap=1"]
        words += ["--time_based=1", f"--runtime={seconds}", "--output-format=json"]
        return words

    def _argv(self, name: str, *load: Any) -> list[str]:
        if name == RAW:
            target = ["--ioengine=libaio", f"--filename={self._raw}", "--direct=1"]
            return self._fio([*target, "--sync=dsync"], *load)
        if name == THREE_NBD:
            return self._fio(["--ioengine=nbd", f"--uri={self._gateway.uri}"], *load)
        return self._core(self._three if name == THREE else self._one, *load)

    def _pids(self) -> list[int]:
        stacks = (self._one, self._three)
        pids = [daemon.pid for s in stacks for daemon in (s.mds, *s.chunkservers)]
        return [*pids, self._gateway.daemon.pid]

    def _run(
        self, name: str, rw: str, block: str, depth: int, seconds: float | None = None
    ) -> Window:
        seconds = seconds or self._seconds
        report = fio_report if name in {RAW, THREE_NBD} else bench_report
        argv = self._argv(name, rw, block, depth, seconds)
        return watch(argv, report, self._folder, seconds, self._pids())

    def _read_once(self, name: str, rw: str, block: str, depth: int) -> Window:
        """From the disk: each byte once, and nothing in the page cache before."""
        drop_cached(self._folder)
        job = Job(rw, block, depth, _SPAN)
        if name == RAW:
            result = fio_disk(self._raw, job, self._folder)
        else:
            result = fio_nbd(self._gateway.uri, job, {}, self._folder)
        return Window(
            result.iops,
            result.bytes_per_second,
            result.latency_us,
            busy_us=result.machine_us,
            disturbance=result.disturbance,
        )

    def _compare(
        self, run: Callable[..., Window], names: list[str], rw: str, block: str, depth: int
    ) -> dict[str, Any]:
        found: dict[str, list[Window]] = {name: [] for name in names}
        for turn in range(self._rounds):
            for name in names:
                window = run(name, rw, block, depth)
                found[name].append(window)
                say(f"  {rw} {block}, depth {depth}, turn {turn + 1}: {name}: {window.iops:,.0f}/s")
        return {name: _middle(windows) for name, windows in found.items()}

    def measure(self) -> dict[str, Any]:
        """All comparisons. Everything is written once before it is timed."""
        for name in (RAW, ONE, THREE, THREE_NBD):
            say(f"  filling: {name}")
            self._run(name, "write", "512K", 8, _FILL_S)
        writers = [RAW, ONE, THREE, THREE_NBD]
        return {
            "write-1": self._compare(self._run, writers, "randwrite", "4K", 1),
            "write-32": self._compare(self._run, writers, "randwrite", "4K", 32),
            "read-32": self._compare(self._run, [ONE, THREE, THREE_NBD], "randread", "4K", 32),
            "seqwrite-8": self._compare(self._run, writers, "write", "512K", 8),
            "seqread-8": self._compare(self._read_once, [RAW, THREE_NBD], "read", "512K", 8),
        }
