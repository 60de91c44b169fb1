# SPDX-License-Identifier: BSD-3-Clause
"""`copygate scrub`: has chunkservers check all their blocks now."""

from __future__ import annotations

import time
from typing import Any

import click

from gateway.cli.app import App, pass_app, table
from gateway.cli.cluster import Cluster, connect
from gateway.cli.sizes import format_size
from gateway.cli.status import FAILING, describe_scrub, show_bad

POLL_S = 0.5


def _reports(cluster: Cluster, ids: list[int]) -> dict[int, dict[str, Any]]:
    """What the chunkservers said last; empty for one that was not heard of."""
    servers = {server.id: server for server in cluster.status().chunkservers}
    return {
        i: describe_scrub(servers[i].scrub) | {"online": servers[i].online}
        for i in ids
        if i in servers and servers[i].HasField("scrub")
    }


def _complete(report: dict[str, Any] | None, request: int) -> bool:
    return report is not None and (report["completed_request"] or 0) >= request


def _wait(app: App, cluster: Cluster, ids: list[int], request: int) -> dict[int, dict[str, Any]]:
    told: set[int] = set()
    while True:
        reports = _reports(cluster, ids)
        waiting = [i for i in ids if not _complete(reports.get(i), request)]
        if not waiting:
            return reports
        for i in waiting:
            if i in reports and not reports[i]["online"] and i not in told:
                told.add(i)
                app.note(f"chunkserver {i} is offline; its pass goes on when it is back")
        time.sleep(POLL_S)


def _show(reports: dict[int, dict[str, Any]]) -> None:
    table(
        ("chunkserver", ">checked", ">written meanwhile", ">bad blocks"),
        [
            (
                i,
                format_size(report["checked"]),
                format_size(report["skipped"]),
                report["bad_blocks"],
            )
            for i, report in reports.items()
        ],
        "no chunkservers",
    )
    show_bad(reports.values())


@click.command()
@click.argument("chunkserver", nargs=-1, type=click.IntRange(1))
@click.option(
    "--wait", is_flag=True,
    help="Wait until it is through; exit with 1 if there are bad blocks.",
)  # fmt: skip
@pass_app
def scrub(app: App, chunkserver: tuple[int, ...], wait: bool) -> int:
    """Read all blocks now and check them: on the CHUNKSERVERs with these ids, else on all.

    It goes at the pace of --scrub-rate and gives way to other IO. Blocks written meanwhile are left
    to the next pass. `copygate status` shows how far it is and what it found.
    """
    with connect(app) as cluster:
        asked = cluster.start_scrub(chunkserver)
        ids = list(asked.chunkserver_ids)
        if not wait:
            names = ", ".join(map(str, ids))
            app.emit(
                {"request": asked.request, "chunkservers": ids},
                lambda: click.echo(f"asked of chunkserver {names}; watch it: copygate status"),
            )
            return 0
        reports = _wait(app, cluster, ids, asked.request)
    data = [{"id": i} | report for i, report in reports.items()]
    app.emit({"request": asked.request, "chunkservers": data}, lambda: _show(reports))
    return FAILING if any(report["bad_blocks"] for report in reports.values()) else 0
