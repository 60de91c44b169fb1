# SPDX-License-Identifier: BSD-3-Clause
"""What the whole machine does while a load runs: busy CPU, switches, system calls, device writes.

Counted between two moments within the load's measured time, so neither its start nor its end is in
it.
"""

import dataclasses
import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measure import machine_busy_seconds, other_programs_seconds
from support.tools import run, which

_SECTOR = 512


@dataclasses.dataclass(frozen=True)
class Counters:
    """Totals since boot. The device's are those of one disk."""

    at: float
    busy_s: float
    switches: int
    device_writes: int
    device_bytes: int
    device_flushes: int

    @classmethod
    def now(cls, folder: Path) -> "Counters":
        """Of the machine and the disk that `folder` is on."""
        switches = next(
            int(line.split()[1])
            for line in Path("/proc/stat").read_text().splitlines()
            if line.startswith("ctxt ")
        )
        device = folder.stat().st_dev
        block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
        # Documentation/block/stat.rst of the kernel. A file system over several disks has none.
        fields = [int(word) for word in block.read_text().split()] if block.exists() else [0] * 17
        busy = machine_busy_seconds()
        return cls(time.monotonic(), busy, switches, fields[4], fields[6] * _SECTOR, fields[15])


@dataclasses.dataclass
class Window:
    """One load. All but the rates and the latencies are for each IO; None: not counted."""

    iops: float
    bytes_per_second: float
    latency_us: dict[str, float]
    busy_us: float
    switches: float | None = None
    device_writes: float | None = None
    device_bytes: float | None = None
    device_flushes: float | None = None
    system_calls: float | None = None
    disturbance: float = 0.0  # cores that other programs took

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def _children(pid: int) -> set[int]:
    """Of a process: fio's work is done by one."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return {int(word) for word in listed.read_text().split()} if listed.exists() else set()


def system_calls(seconds: float) -> float | None:
    """System calls of the whole machine a second, over that long; None without perf."""
    perf = which("perf")
    if perf is None:
        return None
    words = ["stat", "-a", "-x", ";", "-e", "raw_syscalls:sys_enter", "--", "sleep", str(seconds)]
    done = run(perf, *words, status=None, timeout=seconds + 20)
    line = next((text for text in done.stderr.splitlines() if "raw_syscalls" in text), "")
    count = line.split(";")[0]
    return int(count) / seconds if count.isdigit() else None


def watch(
    argv: Sequence[str | Path],
    report: Callable[[str], dict[str, Any]],
    folder: Path,
    seconds: float,
    pids: Sequence[int],
) -> Window:
    """Runs a load of `seconds` seconds or more and looks at the machine in the middle of it.

    `report` makes {"iops", "bytes_per_second", "latency_us"} of what the load prints. `pids` are
    the servers, which are no disturbance.
    """
    words = [str(word) for word in argv]
    load = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=folder)
    try:
        time.sleep(1.0)
        known = {*pids, load.pid, *_children(load.pid), os.getpid()}
        others = other_programs_seconds(known)
        before = Counters.now(folder)
        time.sleep(max(0.5, seconds - 2.0))
        after = Counters.now(folder)
        others = other_programs_seconds(known) - others
        calls = system_calls(0.5)
        printed, _ = load.communicate(timeout=seconds + 60)
    finally:
        load.kill()
        load.wait()
    if load.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} ended with {load.returncode}")
    found = report(printed)
    elapsed = after.at - before.at
    ios = max(found["iops"] * elapsed, 1e-9)
    return Window(
        found["iops"],
        found["bytes_per_second"],
        found["latency_us"],
        (after.busy_s - before.busy_s) * 1e6 / ios,
        (after.switches - before.switches) / ios,
        (after.device_writes - before.device_writes) / ios,
        (after.device_bytes - before.device_bytes) / ios,
        (after.device_flushes - before.device_flushes) / ios,
        None if calls is None else calls / max(found["iops"], 1e-9),
        max(0.0, others / elapsed),
    )


def bench_report(printed: str) -> dict[str, Any]:
    """Of `copygate bench --json`."""
    done = json.loads(printed)
    latency = done["write_latency_ns"] or done["read_latency_ns"]
    return {
        "iops": done["iops"],
        "bytes_per_second": done["bytes_per_second"],
        "latency_us": {name: value / 1000 for name, value in latency.items()},
    }


def fio_report(printed: str) -> dict[str, Any]:
    """Of fio --output-format=json."""
    job = json.loads(printed[printed.index("{") :])["jobs"][0]
    side = job["read"] if job["read"]["total_ios"] else job["write"]
    found = side["clat_ns"].get("percentile", {})
    latency = {f"p{float(key):g}": value / 1000 for key, value in found.items()}
    latency["max"] = side["clat_ns"]["max"] / 1000
    return {"iops": side["iops"], "bytes_per_second": side["bw_bytes"], "latency_us": latency}
