# SPDX-License-Identifier: BSD-3-Clause
"""CPU time, memory, system calls of processes, and one fio run with all of it."""

import contextlib
import dataclasses
import json
import os
import re
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from support.tools import COPYGATE, fio_raw, run, which

_TICK = os.sysconf("SC_CLK_TCK")
_PF_KTHREAD = 0x00200000
_SPLIT = "tests/c/volume/bench_split"


def process_cpu_seconds(pid: int) -> float:
    """User and system time of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def machine_busy_seconds() -> float:
    """Time that the machine's cores spent on anything but idling, since boot."""
    fields = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / _TICK


def other_programs_seconds(ours: Collection[int]) -> float:
    """CPU time of all processes but the kernel's threads and `ours`, this one among them."""
    total = 0.0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in ours:
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if not int(fields[6]) & _PF_KTHREAD:
                    total += (int(fields[11]) + int(fields[12])) / _TICK
    return total


def memory_bytes(pids: Sequence[int]) -> tuple[int, int]:
    """Resident memory of processes: the sum of RSS, and of PSS (shared pages counted once)."""
    rss = pss = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            rss += int(re.search(r"^Rss:\s+(\d+)", text, re.M)[1]) << 10  # type: ignore[index]
            pss += int(re.search(r"^Pss:\s+(\d+)", text, re.M)[1]) << 10  # type: ignore[index]
    return rss, pss


@dataclasses.dataclass
class Result:
    """One run. CPU in microseconds an IO: of each process, and of the whole machine."""

    iops: float
    bytes_per_second: float
    latency_us: dict[str, float]
    cpu_us: dict[str, float]
    machine_us: float
    # Cores that programs which have nothing to do with it took meanwhile: what spoils figures.
    disturbance: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


class CpuMeter:
    """Measures named processes, the children that ended meanwhile, and the machine."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._known = {*self._pids.values(), os.getpid()}
        self._others = other_programs_seconds(self._known)
        self._began = time.monotonic()
        self._before = self._now()

    def _now(self) -> dict[str, float]:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        now = {name: process_cpu_seconds(pid) for name, pid in self._pids.items()}
        return {
            **now,
            "client": usage.ru_utime + usage.ru_stime,
            "machine": machine_busy_seconds(),
        }

    def disturbance(self) -> float:
        """Cores that other programs took since; less than the truth if some ended meanwhile."""
        taken = other_programs_seconds(self._known) - self._others
        return max(0.0, taken / (time.monotonic() - self._began))

    def per_io(self, ios: int) -> dict[str, float]:
        """Microseconds an IO since the meter was made."""
        after = self._now()
        return {name: (after[name] - self._before[name]) * 1e6 / max(ios, 1) for name in after}


@dataclasses.dataclass(frozen=True)
class Job:
    """What fio is to do, in fio's words."""

    rw: str
    block: str
    depth: int
    span: str
    seconds: float | None = None
    io_size: str | None = None

    def options(self) -> list[str]:
        """The options of fio for it."""
        words = [f"--rw={self.rw}", f"--bs={self.block}", f"--iodepth={self.depth}"]
        words += [f"--size={self.span}", "--norandommap=1", "--random_generator=tausworthe64"]
        if self.seconds is not None:
            words += ["--time_based=1", f"--runtime={self.seconds}"]
        if self.io_size is not None:
            words.append(f"--io_size={self.io_size}")
        return words


def _result(job: dict[str, Any], meter: CpuMeter) -> Result:
    cpu = meter.per_io(_total(job))
    side = job["read"] if job["read"]["total_ios"] else job["write"]
    percentiles = side["clat_ns"].get("percentile", {})
    latency = {
        name: percentiles[key] / 1000
        for name, key in (("p50", "50.000000"), ("p99", "99.000000"), ("p99.9", "99.900000"))
        if key in percentiles
    }
    machine = cpu.pop("machine")
    return Result(side["iops"], side["bw_bytes"], latency, cpu, machine, meter.disturbance())


def _total(job: dict[str, Any]) -> int:
    return int(job["read"]["total_ios"] + job["write"]["total_ios"])


def fio_nbd(uri: str, job: Job, pids: Mapping[str, int], workdir: Path) -> Result:
    """fio's nbd engine on a server whose processes are `pids`."""
    meter = CpuMeter(pids)
    done = fio_raw(
        "--name=bench", "--ioengine=nbd", f"--uri={uri}", *job.options(), workdir=workdir,
        timeout=900,
    )  # fmt: skip
    return _result(done, meter)


def fio_disk(path: Path, job: Job, workdir: Path) -> Result:
    """fio on a file directly: libaio, O_DIRECT, and O_DSYNC for writes."""
    options = ["--name=bench", "--ioengine=libaio", f"--filename={path}", "--direct=1"]
    if "write" in job.rw:
        options.append("--sync=dsync")
    meter = CpuMeter({})
    done = fio_raw(*options, *job.options(), workdir=workdir, timeout=900)
    return _result(done, meter)


def core_bench(
    mds: Sequence[str], volume: str, job: Job, pids: Mapping[str, int], seconds: float
) -> Result:
    """`copygate bench`: the IO core without NBD."""
    words = ["bench", volume, "--rw", job.rw, "--bs", job.block.upper(), "--iodepth"]
    words += [str(job.depth), "--runtime", str(seconds), "--size", job.span.upper(), "--json"]
    if "write" in job.rw:
        words.append("--destroy-data")
    meter = CpuMeter(pids)
    done = json.loads(run(COPYGATE, *mds, *words, timeout=900).stdout)
    # The command's start and its warm-up are in the meter, so its own figure is the client's.
    cpu = meter.per_io(max(int(done["ios"]), 1))
    machine = cpu.pop("machine")
    cpu["client"] = done["cpu_us_per_io"] or 0.0
    latency = done["write_latency_ns"] if "write" in job.rw else done["read_latency_ns"]
    return Result(
        done["iops"],
        done["bytes_per_second"],
        {name: value / 1000 for name, value in (latency or {}).items()},
        cpu,
        machine,
        meter.disturbance(),
    )


def split_nanoseconds(build: Path) -> dict[str, float] | None:
    """The microbenchmark of the splitter in a build folder of meson; None if there is none."""
    if not (build / "build.ninja").exists():
        return None
    run("ninja", "-C", build, _SPLIT, timeout=600)
    printed = run(build / _SPLIT, timeout=120, status=None).stdout
    found = re.search(r"read (\d+) ns, write (\d+) ns", printed)
    return {"read_ns": float(found[1]), "write_ns": float(found[2])} if found else None


def count_system_calls(pid: int, seconds: float) -> int | None:
    """System calls of a process in the next `seconds`: by perf, else by strace, else None."""
    perf = which("perf")
    if perf is not None:
        done = run(
            *(perf, "stat", "-x", ";", "-e", "raw_syscalls:sys_enter", "-p", str(pid)),
            *("--", "sleep", str(seconds)),
            status=None,
            timeout=seconds + 20,
        )
        first = next((line for line in done.stderr.splitlines() if "raw_syscalls" in line), "")
        count = first.split(";")[0]
        if count.isdigit():
            return int(count)
    strace = which("strace")
    if strace is None:
        return None
    done = run(
        *("timeout", "-s", "INT", str(seconds), strace, "-c", "-f", "-qq", "-p", str(pid)),
        status=None,
        timeout=seconds + 20,
    )
    total = next((line for line in done.stderr.splitlines() if line.endswith("total")), "")
    words = total.split()
    return int(words[3]) if len(words) > 3 and words[3].isdigit() else None


def system_calls_per_io(
    uri: str, job: Job, pids: Mapping[str, int], workdir: Path
) -> dict[str, float]:
    """System calls an IO of each process; one short run for each."""
    counted: dict[str, float] = {}
    for name, pid in pids.items():
        report = workdir / "syscalls.json"
        words = [which("fio") or "fio", "--name=bench", "--ioengine=nbd", f"--uri={uri}"]
        words += [*job.options(), "--output-format=json", f"--output={report}"]
        load = subprocess.Popen(words, stdout=subprocess.DEVNULL, cwd=workdir)
        try:
            time.sleep(0.7)
            window = 1.0
            count = count_system_calls(pid, window)
        finally:
            load.wait(60)
        text = report.read_text()
        done = json.loads(text[text.index("{") :])["jobs"][0]
        iops = done["read"]["iops"] + done["write"]["iops"]
        if count is not None and iops:
            counted[name] = count / window / iops
    return counted


def median_result(results: Sequence[Result]) -> Result:
    """Medians, each figure for itself."""

    def middle(pick: Callable[[Result], float]) -> float:
        return statistics.median(pick(result) for result in results)

    first = results[0]
    return Result(
        middle(lambda r: r.iops),
        middle(lambda r: r.bytes_per_second),
        {k: middle(lambda r, k=k: r.latency_us.get(k, 0.0)) for k in first.latency_us},  # type: ignore[misc]
        {k: middle(lambda r, k=k: r.cpu_us.get(k, 0.0)) for k in first.cpu_us},  # type: ignore[misc]
        middle(lambda r: r.machine_us),
        max(result.disturbance for result in results),
    )


def drop_cached(folder: Path) -> None:
    """Takes the files of a folder out of the page cache, after their data is on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fdatasync(descriptor)
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(descriptor)
