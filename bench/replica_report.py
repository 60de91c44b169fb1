# SPDX-License-Identifier: BSD-3-Clause
"""What replication has to reach, against what was measured; the table of its loads."""

import statistics
from typing import Any

from replicas import ONE, RAW, THREE, THREE_NBD
from rich.table import Table
from targets import Target, console


def judge_replicas(found: dict[str, Any]) -> list[Target]:
    """The targets whose figures are there."""
    targets: list[Target] = []

    def rate(comparison: str, name: str) -> float:
        return float(found[comparison][name]["iops"])

    def ratio(what: str, comparison: str, ours: str, rival: str, limit: float) -> None:
        mine, other = rate(comparison, ours), rate(comparison, rival)
        targets.append(
            Target(
                what, limit, mine / max(other, 1e-9), True, "x", f"{mine:,.0f} to {other:,.0f}/s"
            )
        )

    def efficiency(what: str, comparison: str, name: str, limit: float) -> None:
        row = found[comparison][name]
        value = 1e6 / row["busy_us"] if row["busy_us"] else 0.0
        measured = f"{row['iops']:,.0f}/s, {row['busy_us']:.1f} us of the machine each"
        targets.append(Target(what, limit, value, True, "/s", measured))

    if "write-32" in found:
        for name in (THREE, THREE_NBD):
            ratio(f"4K durable write, depth 1: {name} / disk", "write-1", name, RAW, 0.4)
            ratio(f"4K durable write, depth 32: {name} / disk", "write-32", name, RAW, 0.45)
            efficiency(f"writes per busy CPU second: {name}", "write-32", name, 10_000)
        ratio("4K random read, depth 32: 3 replicas / 1", "read-32", THREE, ONE, 0.9)
        ratio(
            f"512K sequential read, depth 8: {THREE_NBD} / disk", "seqread-8", THREE_NBD, RAW, 0.95
        )
        for name in (THREE, THREE_NBD):
            efficiency(f"reads per busy CPU second: {name}", "read-32", name, 30_000)
            value = rate("seqwrite-8", name)
            measured = f"disk {rate('seqwrite-8', RAW):,.0f}/s"
            what = f"512K sequential write, depth 8: {name}"
            targets.append(Target(what, 500, value, True, "/s", measured))
    if "pauses" in found:
        targets += _judge_pauses(found["pauses"])
    if "rejoin" in found:
        before, rates = found["rejoin"]["before"], found["rejoin"]["rates"]
        measured = f"{before:,.0f}/s before, {min(rates):,.0f}/s while it catches up"
        what = "4K durable writes while a wiped chunkserver catches up / before"
        targets.append(Target(what, 0.8, min(rates) / before, True, "x", measured))
    if "idle" in found:
        worst = max(found["idle"]["cores"]) * 100
        what = f"idle CPU, {found['idle']['copysets']} copysets, each chunkserver"
        targets.append(Target(what, 2.0, worst, False, "% of a core", "the worst of three"))
    if "start" in found:
        start = found["start"]
        what = f"start of {start['copysets']} copysets"
        measured = f"ports open after {start['serving_s']:.2f} s"
        targets.append(Target(what, 5.0, start["leaders_s"], False, "s", measured))
    return targets


def _judge_pauses(pauses: dict[str, Any]) -> list[Target]:
    targets = []
    calm = f"{pauses['calm'] * 1000:.0f} ms when nothing happens"
    for what, key, limit in (
        ("leader killed", "kills", 1.5),
        ("planned transfer", "transfers", 0.05),
    ):
        times = pauses[key]
        if times:
            median = statistics.median(times) * 1000
            measured = f"{len(times)} times, median {median:.0f} ms; {calm}"
            text = f"{what}, depth 32: longest pause"
            targets.append(Target(text, limit, max(times), False, "s", measured))
    return targets


def print_replicas(found: dict[str, Any]) -> None:
    """Rates, latencies, and what the machine did for each IO."""
    for comparison, rows in found.items():
        if comparison in {"pauses", "rejoin", "idle", "start"}:
            continue
        table = Table(title=f"replicas: {comparison} (medians)", title_justify="left")
        names = ("contender", "IO/s", "MiB/s", "p50 us", "p99 us", "busy us an IO")
        names += ("system calls", "switches", "device writes", "device KiB", "flushes")
        for name in names:
            table.add_column(name, justify="left" if name == "contender" else "right")
        for name, row in rows.items():
            table.add_row(
                name,
                f"{row['iops']:,.0f}",
                f"{row['bytes_per_second'] / (1 << 20):,.1f}",
                f"{row['latency_us'].get('p50', 0):,.0f}",
                f"{row['latency_us'].get('p99', 0):,.0f}",
                f"{row['busy_us']:.1f}",
                *(_each(row, key) for key in ("system_calls", "switches", "device_writes")),
                _each(row, "device_bytes", 1024),
                _each(row, "device_flushes"),
            )
        console().print(table)


def _each(row: dict[str, Any], key: str, unit: float = 1) -> str:
    return "" if row[key] is None else f"{row[key] / unit:.2f}"
