# SPDX-License-Identifier: BSD-3-Clause
"""`copygate status`: the cluster at a glance."""

from __future__ import annotations

from typing import Any

import click

from gateway.cli.app import App, pairs, pass_app, table
from gateway.cli.cluster import connect
from gateway.cli.sizes import format_size

FAILING = 1


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
            "disk_error": server.disk_error or None,
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
    healthy = bool(servers) and all(s["online"] and not s["disk_error"] for s in servers)
    return {
        "healthy": healthy,
        "mds_grpc": address,
        "version": status.version,
        "volumes": status.volumes,
        "allocated": status.allocated_bytes,
        "chunkservers": servers,
        "sessions": sessions,
    }


def _state(server: dict[str, Any]) -> str:
    if server["disk_error"]:
        return f"retired: {server['disk_error']}"
    return "online" if server["online"] else "offline"


def _show(data: dict[str, Any]) -> None:
    pairs(
        [
            ("state", "healthy" if data["healthy"] else "NOT healthy"),
            ("MDS", f"{data['mds_grpc']}, {data['version']}"),
            ("volumes", f"{data['volumes']}, {format_size(data['allocated'])} allocated"),
        ]
    )
    click.echo()
    table(
        ("chunkserver", "address", "state", ">used", ">capacity", ">copysets", "folder"),
        [
            (
                server["id"],
                server["address"],
                _state(server),
                format_size(server["used"]),
                format_size(server["capacity"]),
                server["copysets"],
                server["data"],
            )
            for server in data["chunkservers"]
        ],
        "no chunkservers",
    )
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
@click.option("--check", is_flag=True, help="Exit with 1 unless all chunkservers are healthy.")
@pass_app
def status(app: App, check: bool) -> int:
    """Show the MDS, the chunkservers, who has which volume open."""
    with connect(app) as cluster:
        data = describe(cluster.status(), app.grpc_address)
    app.emit(data, lambda: _show(data))
    return FAILING if check and not data["healthy"] else 0
