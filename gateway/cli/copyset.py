# SPDX-License-Identifier: BSD-3-Clause
"""`copygate copyset` and `copygate retire`: who has the replicas, who leads, and other places for
them."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click

from gateway.cli.app import App, pairs, pass_app, table
from gateway.cli.cluster import Cluster, connect
from gateway.errors import DeadlineError, NotFoundError

POLL_S = 0.2
TRANSFER_TIMEOUT_S = 10.0

Copyset = tuple[int, int]


class CopysetType(click.ParamType[Copyset]):
    """A copyset, written POOL-NUMBER as `copygate status` does."""

    name = "copyset"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Copyset:
        if isinstance(value, tuple):
            return value
        pool, dash, number = str(value).partition("-")
        if not dash or not pool.isascii() or not number.isascii():
            self.fail(f"'{value}' is not a copyset: write it as 1-4", param, ctx)
        try:
            found = int(pool), int(number)
        except ValueError:
            self.fail(f"'{value}' is not a copyset: write it as 1-4", param, ctx)
        if not all(0 <= part < 1 << 32 for part in found):
            self.fail(f"'{value}' is not a copyset: the numbers are too large", param, ctx)
        return found


COPYSET = CopysetType()
CHUNKSERVER = click.IntRange(1, (1 << 32) - 1)


def describe(status: Any) -> dict[str, Any]:
    """A copyset for --json."""
    from gateway.proto import cluster_pb2 as cl  # noqa: PLC0415

    change = None
    if status.HasField("change"):
        change = {
            "from": status.change.remove or None,
            "to": status.change.add or None,
            "stage": cl.ChangeStatus.Stage.Name(status.change.stage).lower(),
            "asked": datetime.fromtimestamp(status.change.asked_s, UTC).isoformat(),
        }
    return {
        "copyset": f"{status.logical_pool_id}-{status.copyset_id}",
        "state": cl.CopysetStatus.State.Name(status.state).lower().replace("_", " "),
        "leader": next((m.chunkserver_id for m in status.members if m.leader), None),
        "epoch": status.configuration_epoch,
        "term": status.term if status.HasField("term") else None,
        "last_index": status.last_index if status.HasField("last_index") else None,
        "applied_index": status.applied_index if status.HasField("applied_index") else None,
        "change": change,
        "members": [
            {
                "chunkserver": m.chunkserver_id,
                "member": m.member_id,
                "address": m.address or None,
                "zone": m.zone,
                "role": "leader" if m.leader else "learner" if m.learner else "voter",
                "online": m.online,
                "behind": m.behind if m.HasField("behind") else None,
                "copying": m.copying,
                "lagging": m.lagging,
            }
            for m in status.members
        ],
    }


def tell_change(change: dict[str, Any] | None) -> str:
    """A change in a few words."""
    if change is None:
        return ""
    stages = {
        "queued": "waits for other moves",
        "waiting": "waits for a leader",
        "creating": "the new replica is made",
    }
    stage = stages.get(change["stage"], change["stage"])
    if change["to"] is None:
        return f"{change['from']} goes: {stage}"
    return f"{change['from']} -> {change['to']}: {stage}"


def _member(member: dict[str, Any]) -> str:
    marks = {"leader": "*", "learner": "+"}.get(member["role"], "")
    return f"{member['chunkserver']}{marks}{'' if member['online'] else '!'}"


@click.group()
def copyset() -> None:
    """Show and change who has the replicas of which chunks."""


@copyset.command("list")
@click.option("--chunkserver", type=CHUNKSERVER, help="Those of one chunkserver.")
@click.option("--unhealthy", is_flag=True, help="Only those that are not healthy, or change.")
@pass_app
def list_copysets(app: App, chunkserver: int | None, unhealthy: bool) -> None:
    """List the copysets: members, leader (*), learners (+), who is offline (!)."""
    with connect(app) as cluster:
        found = [describe(c) for c in cluster.copysets(chunkserver=chunkserver)]
    if unhealthy:
        found = [c for c in found if c["state"] != "healthy" or c["change"]]
    app.emit(
        found,
        lambda: table(
            ("copyset", "state", "members", ">term", ">log", "change"),
            [
                (
                    c["copyset"],
                    c["state"],
                    " ".join(_member(m) for m in c["members"]),
                    "-" if c["term"] is None else c["term"],
                    "-" if c["last_index"] is None else c["last_index"],
                    tell_change(c["change"]),
                )
                for c in found
            ],
            "no copysets",
        ),
    )


@copyset.command("show")
@click.argument("copyset", type=COPYSET)
@pass_app
def show(app: App, copyset: Copyset) -> None:
    """Show one COPYSET (such as 1-4): its members, and how far each is."""
    with connect(app) as cluster:
        data = _get(cluster, copyset)
    app.emit(data, lambda: _show(data))


def _show(data: dict[str, Any]) -> None:
    pairs(
        [
            ("copyset", data["copyset"]),
            ("state", data["state"]),
            ("leader", data["leader"] or "none"),
            ("term", "-" if data["term"] is None else data["term"]),
            ("last entry", "-" if data["last_index"] is None else data["last_index"]),
            ("change", tell_change(data["change"]) or "none"),
        ]
    )
    click.echo()
    table(
        ("chunkserver", "address", "zone", "role", "state", ">entries behind", ">member"),
        [
            (
                m["chunkserver"],
                m["address"] or "unknown",
                m["zone"],
                m["role"],
                "copying" if m["copying"] else "online" if m["online"] else "offline",
                "-" if m["behind"] is None else m["behind"],
                m["member"],
            )
            for m in data["members"]
        ],
        "no members",
    )


def _get(cluster: Cluster, wanted: Copyset) -> dict[str, Any]:
    found = cluster.copysets(copyset=wanted)
    if not found:
        raise NotFoundError(f"there is no copyset {wanted[0]}-{wanted[1]}")
    return describe(found[0])


WAIT = click.option("--wait", is_flag=True, help="Wait until it is done, and show how far it is.")


@copyset.command("move")
@click.argument("copyset", type=COPYSET)
@click.option("--from", "source", type=CHUNKSERVER, required=True, help="Who has the replica.")
@click.option("--to", "target", type=CHUNKSERVER, required=True, help="Who gets it.")
@WAIT
@pass_app
def move(app: App, copyset: Copyset, *, source: int, target: int, wait: bool) -> None:
    """Put a replica of COPYSET on another chunkserver.

    The new replica copies everything before it counts; only then the old one goes. IO goes on
    meanwhile. It survives restarts of everything; `copygate copyset show` tells how far it is.
    """
    with connect(app) as cluster:
        done = cluster.move_replica(copyset, source, target)
        if wait and not done:
            _follow(app, lambda: [c for c in [_get(cluster, copyset)] if c["change"]])
        data = _get(cluster, copyset)
    app.emit(data, lambda: click.echo(_moved(data, target)))


def _moved(data: dict[str, Any], target: int) -> str:
    if data["change"] is None:
        return f"copyset {data['copyset']} is on chunkserver {target}"
    return f"copyset {data['copyset']} moves; watch it: copygate copyset show {data['copyset']}"


def _follow(app: App, left: Callable[[], list[dict[str, Any]]]) -> None:
    """Waits until no copyset is left, and tells each new stage."""
    told: dict[str, str] = {}
    while changing := left():
        for c in changing:
            text = f"copyset {c['copyset']}, {tell_change(c['change'])}"
            if told.get(c["copyset"]) != text:
                told[c["copyset"]] = text
                app.note(text)
        time.sleep(POLL_S)


@copyset.command("cancel")
@click.argument("copyset", type=COPYSET)
@pass_app
def cancel(app: App, copyset: Copyset) -> None:
    """Undo a move of COPYSET: the new replica goes again, the old one stays."""
    with connect(app) as cluster:
        cluster.cancel_change(copyset)
        data = _get(cluster, copyset)
    app.emit(data, lambda: click.echo(f"the move of copyset {data['copyset']} is undone"))


@copyset.command("transfer")
@click.argument("copyset", type=COPYSET)
@click.option("--to", "target", type=CHUNKSERVER, required=True, help="Who is to lead.")
@pass_app
def transfer(app: App, copyset: Copyset, *, target: int) -> None:
    """Make another member of COPYSET its leader, without a pause of IO; waits until it is."""
    with connect(app) as cluster:
        deadline = time.monotonic() + TRANSFER_TIMEOUT_S
        cluster.transfer_leader(copyset, target)
        while (data := _get(cluster, copyset))["leader"] != target:
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"chunkserver {target} does not lead copyset {data['copyset']} after "
                    f"{TRANSFER_TIMEOUT_S:.0f} s",
                    context={"leader": data["leader"] or "none"},
                    hint=f"is it far behind? copygate copyset show {data['copyset']}",
                )
            time.sleep(POLL_S)
    app.emit(data, lambda: click.echo(f"chunkserver {target} leads copyset {data['copyset']}"))


@click.command()
@click.argument("chunkserver", type=CHUNKSERVER)
@click.option("--to", "target", type=CHUNKSERVER, help="Who takes its place (default: by load).")
@click.option("--cancel", is_flag=True, help="Not any more: what has not gone stays.")
@WAIT
@pass_app
def retire(app: App, chunkserver: int, *, target: int | None, cancel: bool, wait: bool) -> None:
    """Move all replicas of a CHUNKSERVER elsewhere, so that it can go; also of one that is lost.

    It gets nothing new. Others are chosen so that the members of each copyset stay in different
    zones. A disk that was wiped and came back is another chunkserver: copygate retire OLD --to NEW.
    """
    if cancel and (target is not None or wait):
        raise click.UsageError("--cancel stands alone")
    with connect(app) as cluster:
        moving = cluster.retire_chunkserver(chunkserver, target=target, cancel=cancel)
        if wait:
            _follow(app, lambda: _leaving(cluster, chunkserver))
            moving = 0
    data = {"chunkserver": chunkserver, "retiring": not cancel, "copysets": moving}
    app.emit(data, lambda: click.echo(_retired(chunkserver, moving, cancel)))


def _leaving(cluster: Cluster, chunkserver: int) -> list[dict[str, Any]]:
    return [describe(c) for c in cluster.copysets(chunkserver=chunkserver)]


def _retired(chunkserver: int, moving: int, cancel: bool) -> str:
    if cancel:
        return f"chunkserver {chunkserver} stays"
    if moving:
        return (
            f"{moving} copysets leave chunkserver {chunkserver}; watch them: "
            f"copygate copyset list --chunkserver {chunkserver}"
        )
    return f"chunkserver {chunkserver} is empty"
