# SPDX-License-Identifier: BSD-3-Clause
"""What has to be reached, against what was measured."""

import dataclasses
from typing import Any

from iscsi import ISCSI, ISCSI_TWO, NULL, RDWR, RDWR_SYNC
from loads import CORE, DISK, MEMORY, OURS_C, OURS_PYTHON, PLAIN_PYTHON
from rich.console import Console
from rich.table import Table


@dataclasses.dataclass
class Target:
    """One line of the table; `value` and `limit` in the same unit."""

    what: str
    limit: float
    value: float
    at_least: bool
    unit: str
    measured: str

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.value >= self.limit if self.at_least else self.value < self.limit

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "met": self.met}


# What, comparison, ours, rival, at least.
_RATIOS = (
    ("4K random read, depth 32, C plugin", "randread-32", OURS_C, MEMORY, 0.8),
    ("4K durable write, depth 32, C plugin", "randwrite-32", OURS_C, DISK, 0.8),
    ("4K durable write, depth 1, C plugin", "randwrite-1", OURS_C, DISK, 0.6),
    ("4K random read, depth 32, Python plugin", "randread-32", OURS_PYTHON, PLAIN_PYTHON, 1.5),
    ("core alone, 4K read, depth 32", "randread-32", CORE, OURS_C, 1.0),
    ("core alone, 4K write, depth 32", "randwrite-32", CORE, OURS_C, 1.0),
    ("1M sequential read, C plugin", "read-1m", OURS_C, DISK, 0.8),
    ("1M sequential write, C plugin", "write-1m", OURS_C, DISK, 0.5),
    ("iSCSI, 4K random read, depth 32", "iscsi-randread-32", ISCSI, NULL, 0.85),
    ("iSCSI, 4K durable write, depth 32", "iscsi-randwrite-32", ISCSI, OURS_C, 0.8),
    ("iSCSI, 64K durable write", "iscsi-write-64k", ISCSI, RDWR, 1.3),
    ("iSCSI, 1M durable write", "iscsi-write-1m", ISCSI, RDWR, 1.3),
    ("iSCSI, 64K durable write", "iscsi-write-64k", ISCSI, RDWR_SYNC, 1.3),
    ("iSCSI, 1M durable write", "iscsi-write-1m", ISCSI, RDWR_SYNC, 1.3),
    ("iSCSI, two targets, 4K random read", "iscsi-randread-32", ISCSI_TWO, ISCSI, 1.5),
    ("iSCSI, two targets, 4K durable write", "iscsi-randwrite-32", ISCSI_TWO, ISCSI, 1.5),
)


def console() -> Console:
    """Where tables go. One in a log file, too, has one line an entry."""
    return Console(width=max(Console().width, 170))


def _rate(result: dict[str, Any], block: bool) -> str:
    if block:
        return f"{result['bytes_per_second'] / (1 << 20):,.0f} MiB/s"
    return f"{result['iops']:,.0f}/s"


def judge(details: dict[str, Any]) -> list[Target]:
    """The targets whose comparison was measured."""
    targets = []
    for what, comparison, ours, rival, limit in _RATIOS:
        if comparison not in details:
            continue
        mine, other = details[comparison][ours], details[comparison][rival]
        block = comparison.endswith(("1m", "64k"))
        targets.append(
            Target(
                f"{what} / {rival}",
                limit,
                mine["bytes_per_second"] / max(other["bytes_per_second"], 1e-9),
                True,
                "x",
                f"{_rate(mine, block)} to {_rate(other, block)}",
            )
        )
    if "split" in details:
        split = details["split"]
        worst = max(split["read_ns"], split["write_ns"])
        measured = f"read {split['read_ns']:.0f} ns, write {split['write_ns']:.0f} ns"
        targets.append(
            Target("CPU of splitting and tracking a 4K request", 1000, worst, False, "ns", measured)
        )
    if "up" in details:
        up = details["up"]
        mib = 1 << 20
        targets += [
            Target("copygate up, new folder", 2.0, up["start_new_s"], False, "s", ""),
            Target("copygate up, old folder", 2.0, up["start_again_s"], False, "s", ""),
            Target("idle CPU", 1.0, up["idle_core"] * 100, False, "% of a core", ""),
            Target(
                "resident memory under load, all processes",
                200.0,
                up["peak_rss"] / mib,
                False,
                "MiB",
                f"idle {up['idle_rss'] / mib:.0f}, shared pages once: {up['peak_pss'] / mib:.0f}",
            ),
            Target(
                f"growth of it over {up['load_seconds']} s",
                5.0,
                up["rss_growth"] * 100,
                False,
                "%",
                "third quarter to last quarter",
            ),
        ]
    return targets


def print_targets(targets: list[Target]) -> None:
    """The table: target, measured, ratio, met or not."""
    table = Table(title="Targets", title_justify="left")
    for name in ("target", "wanted", "reached", "met", "measured"):
        table.add_column(name, justify="right" if name in {"wanted", "reached"} else "left")
    for target in targets:
        sign = ">=" if target.at_least else "<"
        table.add_row(
            target.what,
            f"{sign} {target.limit:g} {target.unit}",
            f"{target.value:.2f} {target.unit}",
            "[green]yes[/]" if target.met else "[bold red]NO[/]",
            target.measured,
        )
    console().print(table)


def print_details(details: dict[str, Any]) -> None:
    """Rates, latencies, CPU an IO and system calls an IO of every contender."""
    for comparison, contenders in details.items():
        if comparison in {"up", "split", "replicas"}:
            continue
        table = Table(title=f"{comparison} (medians)", title_justify="left")
        for name in ("contender", "IO/s", "MiB/s", "p50 us", "p99 us"):
            table.add_column(name, justify="left" if name == "contender" else "right")
        table.add_column("CPU us an IO: each process; all of the machine")
        table.add_column("system calls an IO")
        calls = contenders.get("system calls", {})
        for name, result in contenders.items():
            if name == "system calls":
                continue
            cpu = ", ".join(f"{k} {v:.2f}" for k, v in result["cpu_us"].items() if v >= 0.005)
            latency = result["latency_us"]
            table.add_row(
                name,
                f"{result['iops']:,.0f}",
                f"{result['bytes_per_second'] / (1 << 20):,.1f}",
                f"{latency.get('p50', 0):,.0f}",
                f"{latency.get('p99', 0):,.0f}",
                f"{cpu}; {result['machine_us']:.2f}",
                ", ".join(f"{k} {v:.2f}" for k, v in calls.get(name, {}).items()),
            )
        console().print(table)
