# SPDX-License-Identifier: BSD-3-Clause
"""`copygate status`: the cluster at a glance."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import click

from gateway.cli.app import App, pairs, pass_app, table
from gateway.cli.cluster import connect
from gateway.cli.sizes import format_size

FAILING = 1
BLOCK = 4096


def describe_scrub(scrub: Any) -> dict[str, Any]:
    """What a chunkserver said of its scrub, for --json; sizes in bytes."""
    return {
        "rate": scrub.rate,
        "running": scrub.running,
        "request": scrub.request or None,
        "completed_request": scrub.completed_request or None,
        "started": _moment(scrub.started_s),
        "completed": _moment(scrub.completed_s),
        "checked": scrub.checked_blocks * BLOCK,
        "skipped": scrub.skipped_blocks * BLOCK,
        "found": scrub.found_blocks,
        "bad_blocks": scrub.bad_blocks,
        "bad_blocks_more": scrub.bad_blocks_more,
        "bad": [
            {
                "volume": bad.volume or None,
                "volume_id": bad.file_id or None,
                "volume_offset": bad.volume_offset if bad.HasField("volume_offset") else None,
                "chunk": bad.chunk_id,
                "copyset": f"{bad.logical_pool_id}-{bad.copyset_id}",
                "offset": bad.offset if bad.HasField("offset") else None,
                "metadata": not bad.HasField("offset"),
            }
            for bad in scrub.bad
        ],
    }


def _moment(seconds: int) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).isoformat() if seconds else None


def _sound(server: dict[str, Any]) -> bool:
    known_bad = server["scrub"] is not None and server["scrub"]["bad_blocks"] > 0
    return bool(server["online"] and not server["disk_error"] and not known_bad)


def describe(status: Any, address: str) -> dict[str, Any]:
    """The cluster's state for --json."""
    servers = [
        {
            "id": server.id,
            "address": server.address,
            "data": server.data_directory,
            "online": server.online,
            "capacity": server.capacity_bytes,
            "used": server.used_bytes,
            "copysets": server.copysets,
            "leaders": server.leaders,
            "zone": server.zone,
            "retiring": server.retiring,
            "lagging": server.lagging,
            "disk_error": server.disk_error or None,
            "scrub": describe_scrub(server.scrub) if server.HasField("scrub") else None,
            "last_heartbeat_ms_ago": (
                server.last_heartbeat_ms_ago if server.HasField("last_heartbeat_ms_ago") else None
            ),
        }
        for server in status.chunkservers
    ]
    sessions = [
        {
            "volume": session.volume,
            "session": session.session_id,
            "client": session.client,
            "expires_in_ms": session.expires_in_ms,
        }
        for session in status.sessions
    ]
    summary = {
        "count": status.copysets.copysets,
        "leaderless": status.copysets.leaderless,
        "without_majority": status.copysets.without_majority,
        "degraded": status.copysets.degraded,
        "changing": status.copysets.changing,
    }
    # One that is empty and retired may be taken away at any time.
    needed = [s for s in servers if s["copysets"] or not s["retiring"]]
    whole = not (summary["leaderless"] or summary["degraded"] or status.zones_missing)
    return {
        "healthy": bool(needed) and all(_sound(s) for s in needed) and whole,
        "mds_grpc": address,
        "version": status.version,
        "volumes": status.volumes,
        "allocated": status.allocated_bytes,
        "replicas": status.replicas,
        "zones_missing": status.zones_missing,
        "copysets": summary,
        "chunkservers": servers,
        "sessions": sessions,
    }


def _state(server: dict[str, Any]) -> str:
    if server["disk_error"]:
        return f"retired: {server['disk_error']}"
    state = "online" if server["online"] else "offline"
    if server["retiring"]:
        state += ", retiring" if server["copysets"] else ", retired"
    if server["lagging"]:
        state += f", {server['lagging']} replicas far behind"
    scrub = server["scrub"]
    if scrub is None or not scrub["bad_blocks"]:
        return state
    more = " or more" if scrub["bad_blocks_more"] else ""
    return f"{state}, {scrub['bad_blocks']}{more} bad blocks"


def _copysets(data: dict[str, Any]) -> str:
    if data["zones_missing"]:
        return f"none: chunkservers in {data['zones_missing']} more zones are needed"
    counted = data["copysets"]
    parts = [str(counted["count"])]
    waiting = counted["leaderless"] - counted["without_majority"]
    for number, what in (
        (counted["without_majority"], "without a majority: no IO"),
        (waiting, "without a leader"),
        (counted["degraded"], "with a member that is offline or far behind"),
        (counted["changing"], "moving"),
    ):
        if number:
            parts.append(f"{number} {what}")
    if len(parts) > 1:
        parts.append("see: copygate copyset list --unhealthy")
    return "; ".join(parts)


def scrub_state(scrub: dict[str, Any] | None) -> str:
    """The scrub in a few words."""
    if scrub is None:
        return "-"
    if not scrub["rate"]:
        return "off"
    if scrub["running"]:
        return f"running, {format_size(scrub['checked'])}"
    return f"{scrub['completed'][:16].replace('T', ' ')} UTC" if scrub["completed"] else "-"


def show_bad(scrubs: Iterable[dict[str, Any] | None]) -> None:
    """The bad blocks that are known, for people."""
    rows = [
        (
            bad["volume"] or (f"id {bad['volume_id']}" if bad["volume_id"] else "unknown"),
            "-" if bad["volume_offset"] is None else bad["volume_offset"],
            bad["copyset"],
            bad["chunk"],
            "metadata" if bad["metadata"] else bad["offset"],
        )
        for scrub in scrubs
        if scrub is not None
        for bad in scrub["bad"]
    ]
    if rows:
        click.echo()
        table(("bad block of", ">at byte", "copyset", ">chunk", ">at byte of it"), rows, "")


def _show(data: dict[str, Any]) -> None:
    pairs(
        [
            ("state", "healthy" if data["healthy"] else "NOT healthy"),
            ("MDS", f"{data['mds_grpc']}, {data['version']}"),
            ("volumes", f"{data['volumes']}, {format_size(data['allocated'])} allocated"),
            ("replicas", data["replicas"]),
            ("copysets", _copysets(data)),
        ]
    )
    click.echo()
    table(
        (
            "chunkserver",
            "address",
            "zone",
            "state",
            ">used",
            ">capacity",
            ">copysets",
            ">leaders",
            "scrub",
            "folder",
        ),
        [
            (
                server["id"],
                server["address"] or "unknown",
                server["zone"],
                _state(server),
                format_size(server["used"]),
                format_size(server["capacity"]),
                server["copysets"],
                server["leaders"],
                scrub_state(server["scrub"]),
                server["data"],
            )
            for server in data["chunkservers"]
        ],
        "no chunkservers",
    )
    show_bad(server["scrub"] for server in data["chunkservers"])
    if data["sessions"]:
        click.echo()
        table(
            ("open volume", "client", ">lease ends in"),
            [
                (session["volume"], session["client"], f"{session['expires_in_ms'] / 1000:.0f} s")
                for session in data["sessions"]
            ],
            "",
        )


@click.command()
@click.option(
    "--check",
    is_flag=True,
    help="Exit with 1 unless all chunkservers and copysets are healthy, without bad blocks.",
)
@pass_app
def status(app: App, check: bool) -> int:
    """Show the MDS, the chunkservers, the replicas, who has which volume open."""
    with connect(app) as cluster:
        data = describe(cluster.status(), app.grpc_address)
    app.emit(data, lambda: _show(data))
    return FAILING if check and not data["healthy"] else 0
