# SPDX-License-Identifier: BSD-3-Clause
"""iSCSI: our backing store in tgtd beside tgtd's own, and beside the same store over NBD."""

import importlib.util
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from loads import OURS_C, say
from measure import (
    CpuMeter,
    Job,
    Result,
    count_system_calls,
    fio_nbd,
    median_result,
)
from support.process import Daemon, free_port, tcp_accepts
from support.stack import Stack
from support.tools import CLEAN_ENV, run, which

ISCSI = "copygate, iSCSI"
ISCSI_TWO = "copygate, two targets"
NULL = "tgtd null LUN"
RDWR = "tgtd rdwr, as it comes"
RDWR_SYNC = "tgtd rdwr, durable"

_LOAD = "tests/c/iscsi/bench_iscsi"
_SPAN_BYTES = 1 << 30
_VOLUME = "4G"
# What `copygate iscsi` sets on its targets.
_TUNED = {
    "MaxRecvDataSegmentLength": 1 << 20,
    "MaxXmitDataSegmentLength": 1 << 18,
    "FirstBurstLength": 1 << 18,
    "MaxBurstLength": 1 << 20,
    "InitialR2T": "No",
    "ImmediateData": "Yes",
}
_UNITS = {"k": 10, "m": 20, "g": 30}


def _bytes(size: str) -> int:
    return int(size[:-1]) << _UNITS[size[-1]]


def _module() -> Path:
    spec = importlib.util.find_spec("gateway")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package is not installed: make build")
    return Path(spec.origin).parent / "iscsi" / "bs_copygate.so"


class Target:
    """One tgtd with one LUN, on a free port of 127.0.0.1."""

    def __init__(
        self, name: str, lun: Sequence[str], folder: Path, number: int, *, tuned: bool, ours: bool
    ) -> None:
        self._control = str(200 + number)
        port = free_port()
        self._iqn = f"iqn.2026-11.io.copygate:bench{number}"
        self.url = f"iscsi://127.0.0.1:{port}/{self._iqn}/1"
        environment = {**CLEAN_ENV, "LD_PRELOAD": str(_module())} if ours else CLEAN_ENV
        self._daemon = Daemon(
            name,
            [
                *(which("tgtd") or "tgtd", "-f", "-C", self._control),
                *("--iscsi", f"portal=127.0.0.1:{port}"),
            ],
            folder / f"tgtd{number}.log",
            lambda: tcp_accepts(port),
            env=environment,
        )
        self._lun = lun
        self._parameters = _TUNED if tuned else {}

    def start(self) -> "Target":
        """Starts tgtd and makes the target."""
        self._daemon.start()
        try:
            self._admin("--op", "new", "--mode", "target", "-T", self._iqn)
            self._admin("--op", "new", "--mode", "logicalunit", "--lun", "1", *self._lun)
            for name, value in self._parameters.items():
                words = ("--op", "update", "--mode", "target")
                self._admin(*words, "--name", name, "--value", str(value))
            self._admin("--op", "bind", "--mode", "target", "-I", "ALL")
        except BaseException:
            self.kill()
            raise
        return self

    @property
    def pid(self) -> int:
        """tgtd's."""
        return self._daemon.pid

    def kill(self) -> None:
        """Ends it."""
        self._daemon.kill()

    def _admin(self, *words: str) -> None:
        run("tgtadm", "-C", self._control, "--lld", "iscsi", *words, "--tid", "1")


class IscsiLoads:
    """One store with two volumes over iSCSI and one over NBD, and tgtd's own backing stores."""

    def __init__(self, folder: Path, build: Path, *, rounds: int, seconds: float) -> None:
        self._folder = folder
        self._load = build / _LOAD
        self._rounds = rounds
        self._seconds = max(1, round(seconds))
        self._stack = Stack(folder / "iscsi-store")
        self._targets: dict[str, list[Target]] = {}

    def __enter__(self) -> "IscsiLoads":
        run("ninja", "-C", self._load.parents[3], _LOAD, timeout=600)
        self._stack.start()
        try:
            self._start()
        except BaseException:
            self._end(clean=False)
            raise
        return self

    def _start(self) -> None:
        for name in ("a", "b", "nbd"):
            self._stack.create_volume(name, _VOLUME)
        self._uri = self._stack.gateway("nbd").uri
        ours = [
            self._target(f"copygate-{name}", self._volume(name), tuned=True, ours=True)
            for name in ("a", "b")
        ]
        self._targets[ISCSI], self._targets[ISCSI_TWO] = ours[:1], ours
        null = ["--bstype", "null", "-b", str(_SPAN_BYTES)]
        self._targets[NULL] = [self._target("null", null, tuned=True)]
        for name, more in ((RDWR, []), (RDWR_SYNC, ["--bsoflags", "sync"])):
            backing = Path(tempfile.mkstemp(prefix="rdwr-", dir=self._folder)[1])
            with backing.open("r+b") as file:
                file.truncate(_SPAN_BYTES)
            lun = ["--bstype", "rdwr", "-b", str(backing), *more]
            self._targets[name] = [self._target(f"rdwr{len(more)}", lun, tuned=False)]

    def _volume(self, name: str) -> list[str]:
        options = f"mds={self._stack.mds_address}"
        return ["--bstype", "copygate", "-b", name, "--bsopts", options]

    def _target(self, name: str, lun: list[str], *, tuned: bool, ours: bool = False) -> Target:
        number = len(self._targets) + len(list(self._folder.glob("tgtd*.log")))
        return Target(name, lun, self._folder, number, tuned=tuned, ours=ours).start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end(clean=error is None)
        if error is not None:
            say(self._stack.logs())

    def _end(self, *, clean: bool) -> None:
        for target in {id(t): t for targets in self._targets.values() for t in targets}.values():
            target.kill()
        self._stack.stop(clean=clean)

    def _pids(self, name: str) -> dict[str, int]:
        if name == OURS_C:
            return {
                "nbdkit": self._stack.gateways[0].daemon.pid,
                "chunkserver": self._stack.chunkserver.pid,
            }
        pids = {f"tgtd{i or ''}": t.pid for i, t in enumerate(self._targets[name])}
        if name in {ISCSI, ISCSI_TWO}:
            pids["chunkserver"] = self._stack.chunkserver.pid
        return pids

    def _command(self, name: str, job: Job, seconds: int | None) -> list[str]:
        """`seconds` None: the span once, in order."""
        order = "random" if job.rw.startswith("rand") else "sequential"
        words = ["write" if "write" in job.rw else "read", order, str(_bytes(job.block))]
        words += [str(job.depth), str(_bytes(job.span))]
        words.append("once" if seconds is None else str(seconds))
        return [str(self._load), *words, *(target.url for target in self._targets[name])]

    def _one(self, name: str, job: Job) -> Result:
        if name == OURS_C:
            return fio_nbd(self._uri, job, self._pids(name), self._folder)
        meter = CpuMeter(self._pids(name))
        command = self._command(name, job, self._seconds)
        done = json.loads(run(*command, timeout=self._seconds + 120).stdout)
        # The half second before it counts is in the meter, too.
        cpu = meter.per_io(int(done["ios"] * (1 + 0.5 / self._seconds)))
        machine = cpu.pop("machine")
        latency = {k: done[f"{k.replace('.', '_')}_ns"] / 1000 for k in ("p50", "p99", "p99.9")}
        return Result(
            done["iops"], done["bytes_per_second"], latency, cpu, machine, meter.disturbance()
        )

    def _compare(self, what: str, job: Job, names: list[str]) -> dict[str, Any]:
        results: dict[str, list[Result]] = {name: [] for name in names}
        for number in range(self._rounds):
            for name in names:
                results[name].append(self._one(name, job))
                rate = results[name][-1].iops
                say(f"  {what}, turn {number + 1}: {name}: {rate:,.0f}/s")
        return {name: median_result(found).as_dict() for name, found in results.items()}

    def _system_calls(self, name: str, job: Job) -> dict[str, float]:
        counted: dict[str, float] = {}
        for process, pid in self._pids(name).items():
            load = subprocess.Popen(
                self._command(name, job, 2), stdout=subprocess.PIPE, cwd=self._folder
            )
            time.sleep(1.0)
            count = count_system_calls(pid, 1.0)
            done = json.loads(load.communicate(timeout=60)[0])
            if count is not None and done["iops"]:
                counted[process] = count / done["iops"]
        return counted

    def measure(self) -> dict[str, Any]:
        """All comparisons. Every contender's data is written first, so that none reads holes."""
        fill = Job("write", "1m", 4, "1g", io_size="1g")
        for name in (ISCSI_TWO, RDWR, RDWR_SYNC):
            say(f"  filling: {name}")
            run(*self._command(name, fill, None), timeout=600)
        say(f"  filling: {OURS_C}")
        self._one(OURS_C, fill)
        found: dict[str, Any] = {}
        for rw, names in (
            ("randread", [ISCSI, NULL, ISCSI_TWO, RDWR]),
            ("randwrite", [ISCSI, OURS_C, ISCSI_TWO, NULL, RDWR, RDWR_SYNC]),
        ):
            job = Job(rw, "4k", 32, "1g", seconds=self._seconds)
            key = f"iscsi-{rw}-32"
            found[key] = self._compare(f"iSCSI 4K {rw}, depth 32", job, names)
            say(f"  system calls: iSCSI {rw}")
            found[key]["system calls"] = {
                name: self._system_calls(name, job) for name in (ISCSI, NULL)
            }
        for block in ("64k", "1m"):
            job = Job("randwrite", block, 8, "1g", seconds=self._seconds)
            names = [ISCSI, RDWR, RDWR_SYNC]
            found[f"iscsi-write-{block}"] = self._compare(f"iSCSI {block} write", job, names)
        return found
