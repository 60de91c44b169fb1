#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Measures every target in one run and prints the ratios.

Contenders of one comparison run in turns (a, b, c, a, b, c, ...), at least three times each; the
medians count. Figures of one machine mean little, the ratios carry over. The store lies on the disk
of --folder, and so does the file that fio writes directly.

    python bench/run.py            # about 14 minutes
    python bench/run.py --quick    # about 7 minutes: shorter runs
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from daily import measure_up
from iscsi import IscsiLoads
from loads import Loads
from measure import split_nanoseconds
from pauses import measure_idle, measure_pauses, measure_rejoin, measure_start
from replica_report import judge_replicas, print_replicas
from replicas import ReplicaLoads
from targets import Target, judge, print_details, print_targets

_PARTS = ("random", "sequential", "iscsi", "up", "split", "replicas")
_PARTS += ("replica-loads", "replica-pauses", "replica-idle")  # parts of replicas


def sustained_bytes(quick: bool) -> int:
    """How much has to be written until the page cache cannot take it any more."""
    if quick:
        return 2 << 30
    memory = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        memory[name] = int(value.split()[0]) << 10
    ratio = int(Path("/proc/sys/vm/dirty_ratio").read_text())
    limit = memory["MemAvailable"] * max(ratio, 10) // 100
    return min(max(6 << 30, limit * 3 // 2), 24 << 30)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cores": os.cpu_count(),
        "cpu": cpu,
        "kernel": platform.release(),
        "load_before": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def measure_replicas(
    folder: Path, only: set[str], rounds: int, seconds: float, quick: bool
) -> dict[str, Any]:
    """Three replicas: the part `replicas` as a whole, or some of it."""
    every = not only or "replicas" in only
    found: dict[str, Any] = {}
    if every or "replica-loads" in only:
        with ReplicaLoads(folder, rounds=rounds, seconds=seconds) as loads:
            found |= loads.measure()
    if every or "replica-pauses" in only:
        found["pauses"] = measure_pauses(folder, 5 if quick else 20)
        found["rejoin"] = measure_rejoin(folder, seconds)
    if every or "replica-idle" in only:
        found["idle"] = measure_idle(folder, 5.0 if quick else 20.0)
        found["start"] = measure_start(folder)
    return found


def disturbance(details: dict[str, Any]) -> float:
    """The most that other programs took while something was measured, in cores."""
    loads = {**details, **details.get("replicas", {})}
    rows = [
        row
        for name, found in loads.items()
        if name not in {"up", "split", "replicas", "pauses", "rejoin", "idle", "start"}
        for kind, row in found.items()
        if kind != "system calls"
    ]
    return max((float(row["disturbance"]) for row in rows), default=0.0)


def main() -> int:
    """The command line. Exit status 1 if a target is missed and --strict was given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shorter runs")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (3)")
    parser.add_argument("--seconds", type=float, default=None, help="of one run (5; quick 2)")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure")
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"), help="JSON report")
    parser.add_argument("--only", default="", help=f"of {','.join(_PARTS)}")
    parser.add_argument("--build", type=Path, default=Path("build/c"), help="meson's build folder")
    parser.add_argument("--strict", action="store_true", help="exit 1 if a target is missed")
    arguments = parser.parse_args()
    seconds = arguments.seconds or (2.0 if arguments.quick else 5.0)
    only = set(filter(None, arguments.only.split(",")))
    base = arguments.folder or Path.cwd() / "build"
    base.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=base))
    about = machine()
    print(f"{about['cores']} cores, {about['cpu']}, Linux {about['kernel']}; store in {folder}")
    targets: list[Target] = []
    details: dict[str, Any] = {}
    try:
        if not only or only & {"random", "sequential"}:
            with Loads(folder, rounds=arguments.rounds, seconds=seconds) as loads:
                if not only or "random" in only:
                    details |= loads.random()
                if not only or "sequential" in only:
                    details |= loads.sequential(sustained_bytes(arguments.quick))
        if not only or "iscsi" in only:
            build = arguments.build.absolute()
            with IscsiLoads(folder, build, rounds=arguments.rounds, seconds=seconds) as iscsi:
                details |= iscsi.measure()
        if (not only or "split" in only) and (split := split_nanoseconds(arguments.build)):
            details["split"] = split
        if not only or "up" in only:
            details["up"] = measure_up(folder, quick=arguments.quick)
        if replicas := measure_replicas(folder, only, arguments.rounds, seconds, arguments.quick):
            details["replicas"] = replicas
        targets = judge(details) + judge_replicas(details.get("replicas", {}))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print_details(details)
    print_replicas(details.get("replicas", {}))
    print_targets(targets)
    print(
        f"Other programs took up to {disturbance(details):.2f} of {about['cores']} cores meanwhile."
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": about, "targets": [t.as_dict() for t in targets], "details": details}
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"JSON: {arguments.output}")
    return 1 if arguments.strict and not all(target.met for target in targets) else 0


if __name__ == "__main__":
    sys.exit(main())
