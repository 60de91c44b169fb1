# SPDX-License-Identifier: BSD-3-Clause
"""`copygate bench`: what the IO core does on a volume, without NBD in between."""

from __future__ import annotations

from typing import Any

import click

from gateway.cli.app import SIZE, App, pairs, pass_app
from gateway.cli.sizes import format_rate, format_size

WRITES = ("write", "randwrite", "randrw")


def figures(raw: dict[str, Any]) -> dict[str, Any]:
    """Adds the rates to what the load counted."""
    seconds = raw["elapsed_ns"] / 1e9 or 1e-9
    done = raw["reads"] + raw["writes"]
    moved = raw["read_bytes"] + raw["written_bytes"]
    return {
        **raw,
        "ios": done,
        "iops": done / seconds,
        "bytes_per_second": moved / seconds,
        "cpu_us_per_io": raw["cpu_ns"] / 1000 / done if done else None,
        "cpu_cores": raw["cpu_ns"] / 1e9 / seconds,
    }


def _latency(values: dict[str, int]) -> str:
    return ", ".join(f"{name} {value / 1000:.0f}" for name, value in values.items())


def _show(found: dict[str, Any]) -> None:
    rows: list[tuple[str, object]] = [
        ("IOPS", format_rate(found["iops"])),
        ("throughput", f"{format_size(round(found['bytes_per_second']))}/s"),
        ("IOs", f"{found['ios']} in {found['elapsed_ns'] / 1e9:.2f} s"),
    ]
    for kind in ("read", "write"):
        if values := found[f"{kind}_latency_ns"]:
            rows.append((f"{kind} latency, us", _latency(values)))
    if found["cpu_us_per_io"] is not None:
        text = f"{found['cpu_us_per_io']:.2f} us ({found['cpu_cores']:.2f} cores)"
        rows.append(("client CPU per IO", text))
    rows.append(("requests", f"{found['requests']}, {found['retries']} retries"))
    pairs(rows)


@click.command()
@click.argument("volume")
@click.option(
    "--rw",
    type=click.Choice(["randread", "randwrite", "read", "write", "randrw"]),
    default="randread",
    show_default=True,
    help="What to do, named as fio names it.",
)
@click.option("--bs", type=SIZE, default="4K", show_default=True, help="Bytes an IO.")
@click.option(
    "--iodepth",
    type=click.IntRange(1, 1024),
    default=32,
    show_default=True,
    help="IOs in flight at once.",
)
@click.option(
    "--runtime",
    type=click.FloatRange(0.01, 86400),
    default=5.0,
    show_default=True,
    help="Seconds that are measured.",
)
@click.option(
    "--ramp",
    type=click.FloatRange(0, 3600),
    default=0.5,
    show_default=True,
    help="Seconds before that which are not.",
)
@click.option("--size", type=SIZE, help="Use only this much from the volume's start.")
@click.option(
    "--rwmixread",
    type=click.IntRange(0, 100),
    default=50,
    show_default=True,
    help="Reads in a hundred IOs of randrw.",
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option(
    "--destroy-data", is_flag=True, help="Needed for loads that write: they overwrite the volume."
)
@pass_app
def bench(
    app: App,
    *,
    volume: str,
    rw: str,
    bs: int,
    iodepth: int,
    runtime: float,
    ramp: float,
    size: int | None,
    rwmixread: int,
    seed: int,
    destroy_data: bool,
) -> None:
    """Measure the IO core on VOLUME: IOPS, latency percentiles, CPU time an IO.

    The loop is C and has one thread; there is no NBD in between. Sizes are powers of two.
    """
    if not 1 <= bs <= 4 << 20:
        raise click.BadParameter("must be between 1 and 4M bytes", param_hint="--bs")
    if rw in WRITES and not destroy_data:
        raise click.UsageError(
            f"--rw {rw} overwrites what is in the volume: add --destroy-data if that is meant"
        )
    from gateway.cli import load  # noqa: PLC0415 - brings the IO core

    raw = load.run(
        app.mds,
        volume,
        owner=app.owner,
        password=app.root_password(),
        kind=rw,
        block_size=bs,
        depth=iodepth,
        read_percent=rwmixread,
        runtime_s=runtime,
        ramp_s=ramp,
        span=size or 0,
        seed=seed,
    )
    options = {"volume": volume, "rw": rw, "bs": bs, "iodepth": iodepth}
    found = {**options, **figures(raw)}
    app.emit(found, lambda: _show(found))
