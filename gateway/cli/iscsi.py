# SPDX-License-Identifier: BSD-3-Clause
"""`copygate iscsi`: what is exported is recorded by the MDS; `serve` runs a gateway's targets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.app import SIZE, App, pass_app, setup_log, table, volume_path
from gateway.cli.cluster import connect
from gateway.cli.iscsi_list import describe, show
from gateway.cli.lifecycle import Stopper, exclusive, make_folder, run_daemon
from gateway.cli.sizes import format_size
from gateway.errors import (
    CopygateError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)

if TYPE_CHECKING:
    from gateway.iscsi.records import Access

log = logging.getLogger("gateway.iscsi")


def default_gateway() -> str:
    """The name of this machine's gateway."""
    return socket.gethostname()


@click.group()
def iscsi() -> None:
    """Export volumes over iSCSI.

    What is exported is recorded by the MDS; `copygate iscsi serve` runs on each gateway and serves
    what is recorded for it.

    \b
    copygate iscsi serve
    copygate iscsi export vol1
    iscsiadm -m discovery -t sendtargets -p 127.0.0.1
    """


_GATEWAY = click.option(
    "--gateway", metavar="NAME", help="The gateway (default: this host's name)."
)
_RUN_DIR = click.option(
    "--run-dir", type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the gateway's sockets (default: /run/copygate-iscsi, or the user's).",
)  # fmt: skip


@iscsi.command("export")
@click.argument("volume")
@click.option("--iqn", metavar="IQN", help="The target's name (default: made of the volume's).")
@click.option("--lun", type=int, metavar="N", help="The unit's number, 1 to 255 (default: free).")
@click.option(
    "--portal", "portals", multiple=True, metavar="ADDRESS:PORT",
    help="Where the target listens (default: a free port from 127.0.0.1:3260 on). Repeatable.",
)  # fmt: skip
@click.option("--acl", multiple=True, metavar="IQN|any", help="Who may log in. Repeatable.")
@click.option("--chap", metavar="USER", help="The name that initiators log in with.")
@click.option(
    "--chap-secret-file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="File with its secret, 12 to 16 characters; - is standard input.",
)  # fmt: skip
@click.option("--mutual-chap", metavar="USER", help="The name that the target proves itself with.")
@click.option(
    "--mutual-chap-secret-file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="File with its secret, another one.",
)  # fmt: skip
@click.option("--no-chap", is_flag=True, help="Ask for no secret any more.")
@click.option(
    "--4kn/--512e", "is_4kn", default=None,
    help="Logical blocks of 4096 bytes, or of 512 (the default; the physical ones have 4096).",
)  # fmt: skip
@click.option("--read-only/--read-write", "read_only", default=None, help="Write-protected.")
@_GATEWAY
@click.option("--group", type=int, metavar="N", help="Its target port group (default: free).")
@click.option("--allow-remote", is_flag=True, help="Allow portals other than loopback.")
@click.option(
    "--anyone/--not-anyone", "anyone", default=None,
    help="Allow such portals with neither --chap nor --acl. Gives up the only protection that "
    "there is: whoever reaches them may read and write the volume.",
)  # fmt: skip
@_RUN_DIR
@pass_app
def export(
    app: App,
    volume: str,
    *,
    iqn: str | None,
    lun: int | None,
    portals: tuple[str, ...],
    acl: tuple[str, ...],
    chap: str | None,
    chap_secret_file: Path | None,
    mutual_chap: str | None,
    mutual_chap_secret_file: Path | None,
    no_chap: bool,
    is_4kn: bool | None,
    read_only: bool | None,
    gateway: str | None,
    group: int | None,
    allow_remote: bool,
    anyone: bool | None,
    run_dir: Path | None,
) -> int:
    """Export VOLUME as a logical unit of a target, or change its export.

    What is given is so afterwards, what is not given stays: the same command again changes nothing.
    Another gateway for the same target: --gateway and --portal. `--acl any` takes the list back.
    """
    from gateway.cli.iscsi_change import account, put_change  # noqa: PLC0415 - brings protobuf
    from gateway.iscsi.records import Change  # noqa: PLC0415

    if no_chap and (chap or mutual_chap):
        raise InvalidArgumentError("--no-chap and --chap contradict each other")
    change = Change(
        volume=volume_path(volume),
        gateway=gateway or default_gateway(),
        iqn=iqn,
        lun=lun,
        block_size=None if is_4kn is None else 4096 if is_4kn else 512,
        read_only=read_only,
        group=group,
        portals=portals or None,
        acl=None if not acl else () if set(acl) == {"any"} else acl,
        chap=account(chap, chap_secret_file, "--chap"),
        no_chap=no_chap,
        mutual=account(mutual_chap, mutual_chap_secret_file, "--mutual-chap"),
        anyone=anyone,
        allow_remote=allow_remote,
    )
    with connect(app) as cluster:
        cluster.get(change.volume)
        name, revision, is_new = put_change(cluster, change)
    result: dict[str, Any] = {"iqn": name, "volume": change.volume, "changed": is_new}
    result |= _settle(run_dir, name, change.gateway, revision)
    app.emit(result, lambda: _tell_export(result))
    return 1 if result["reason"] else 0


def _settle(run_dir: Path | None, iqn: str, gateway: str, revision: int) -> dict[str, Any]:
    """How a target is served by the gateway that runs here, after it saw a revision."""
    from gateway.iscsi import control  # noqa: PLC0415

    result: dict[str, Any] = {"gateway": gateway, "state": "recorded", "reason": None}
    result["portals"] = []
    try:
        status = control.ask(control.folder_to_ask(run_dir), ask="settle", revision=revision)
    except UnavailableError:
        return result
    if status["gateway"] != gateway:
        return result
    target = next((t for t in status["targets"] if t["iqn"] == iqn), None)
    if target is None:
        return result
    result["portals"] = target["portals"]
    result["state"] = "serving" if target["serving"] else "not served"
    result["reason"] = None if target["serving"] else target["reason"]
    result["luns"] = target["luns"]
    return result


def _tell_export(result: dict[str, Any]) -> None:
    verb = "exported" if result["changed"] else "exported already, nothing changed"
    click.echo(f"{result['volume']} {verb}: {result['iqn']}")
    if result["state"] == "serving":
        lun = next(u["lun"] for u in result["luns"] if u["volume"] == result["volume"])
        for portal in result["portals"]:
            click.echo(f"  serving at iscsi://{portal}/{result['iqn']}/{lun}")
    elif result["state"] == "recorded":
        click.echo(
            f"  recorded; no gateway {result['gateway']} runs here: copygate iscsi serve --gateway "
            f"{result['gateway']}"
        )
    else:
        click.echo(f"  NOT served: {result['reason']}")


@iscsi.command("unexport")
@click.argument("volume")
@click.option("--gateway", metavar="NAME", help="Take away only this gateway of its target.")
@_RUN_DIR
@pass_app
def unexport(app: App, volume: str, *, gateway: str | None, run_dir: Path | None) -> None:
    """Take VOLUME's export back: sessions with it end. The volume stays.

    A volume that is not exported is no error.
    """
    from gateway.cli.iscsi_change import remove_export  # noqa: PLC0415

    path = volume_path(volume)
    with connect(app) as cluster:
        removed, revision = remove_export(cluster, path, gateway)
    if removed is not None:
        _settle(run_dir, removed, gateway or default_gateway(), revision)
    result = {"volume": path, "iqn": removed, "changed": removed is not None}
    app.emit(
        result,
        lambda: click.echo(
            f"{path} is not exported any more" if removed else f"{path} is not exported"
        ),
    )


@iscsi.command("list")
@_RUN_DIR
@pass_app
def list_exports(app: App, *, run_dir: Path | None) -> None:
    """Show what is exported, by which gateways, and how the one that runs here serves it."""
    from gateway.iscsi import control  # noqa: PLC0415

    try:
        here = control.ask(control.folder_to_ask(run_dir), ask="status")
    except UnavailableError:
        here = None
    with connect(app) as cluster:
        _, entries = cluster.exports()
        exports = [describe(cluster, entry, here) for entry in entries]
    data = {"gateway": here["gateway"] if here else None, "exports": exports}
    app.emit(data, lambda: show(exports, here))


@iscsi.command("sessions")
@_RUN_DIR
@pass_app
def sessions(app: App, *, run_dir: Path | None) -> None:
    """Show who is logged in at the gateway that runs here."""
    from gateway.iscsi import control  # noqa: PLC0415

    here = control.ask(control.folder_to_ask(run_dir), ask="status")
    found = [
        {"iqn": target["iqn"], **connection}
        for target in here["targets"]
        for connection in target["sessions"] or []
    ]
    silent = [t["iqn"] for t in here["targets"] if t["sessions"] is None]
    data = {"gateway": here["gateway"], "sessions": found, "not_served": silent}
    app.emit(data, lambda: _show_sessions(found, silent))


def _show_sessions(found: Sequence[dict[str, Any]], silent: Sequence[str]) -> None:
    table(
        ("target", ">session", ">connection", "initiator", "address"),
        [(s["iqn"], s["session"], s["connection"], s["initiator"], s["address"]) for s in found],
        "nobody is logged in",
    )
    for iqn in silent:
        click.echo(f"not served, so without sessions: {iqn}")


@iscsi.command("take")
@click.argument("volume")
@_RUN_DIR
@pass_app
def take(app: App, volume: str, *, run_dir: Path | None) -> None:
    """Take VOLUME over for the gateway that runs here: from another gateway, or an NBD client.

    What the other one still writes is refused. Sessions stay; they see the unit come back.
    """
    from gateway.iscsi import control  # noqa: PLC0415

    path = volume_path(volume)
    answer = control.ask(control.folder_to_ask(run_dir), ask="take", volume=path)
    if answer["iqn"] is None:
        raise NotFoundError(
            "the gateway that runs here does not serve the volume",
            context={"volume": path},
            hint="copygate iscsi list shows what it serves",
        )
    if answer["reason"]:
        raise CopygateError(
            f"the volume was not taken over: {answer['reason']}", context={"volume": path}
        )
    app.emit(
        {"volume": path, "iqn": answer["iqn"]},
        lambda: click.echo(f"{path} is this gateway's now"),
    )


@iscsi.command("resize")
@click.argument("volume")
@click.argument("size", type=SIZE)
@pass_app
def resize(app: App, volume: str, size: int) -> None:
    """Extend VOLUME to SIZE; initiators that are logged in are told within some seconds.

    Linux takes it over by a rescan (iscsiadm -m session --rescan), Windows by Rescan Disks.
    """
    with connect(app) as cluster:
        before = cluster.get(volume).size
        if size != before:
            cluster.resize(volume, size)
        _, entries = cluster.exports()
    path = volume_path(volume)
    targets = [e.record.iqn for e in entries if any(u.volume == path for u in e.record.luns)]
    data = {"volume": path, "size": size, "before": before, "targets": targets}
    app.emit(
        data, lambda: click.echo(f"{path} has {format_size(size)} (before: {format_size(before)})")
    )


@iscsi.command("serve")
@_GATEWAY
@_RUN_DIR
@pass_app
def serve(app: App, *, gateway: str | None, run_dir: Path | None) -> None:
    """Serve what is recorded for this gateway, until a signal.

    Each target is a tgtd of its own, started again if it dies. Changes of the records are taken
    over while it runs. An MDS that is away is waited for.
    """
    from gateway.cli.iscsi_change import access_of  # noqa: PLC0415
    from gateway.iscsi import control  # noqa: PLC0415
    from gateway.iscsi.target import find_module, find_tgtd  # noqa: PLC0415

    setup_log(app.log_level)
    access = access_of(app, gateway or default_gateway())
    find_tgtd()
    find_module()
    folder = make_folder(run_dir or control.default_folder(), "the gateway's folder", "--run-dir")
    control.check_folder(folder)

    async def run(stopper: Stopper) -> None:
        async with running(app, access, folder):
            ready = {"gateway": access.gateway, "run_dir": str(folder), "pid": os.getpid()}
            app.emit(
                ready,
                lambda: click.echo(f"iSCSI gateway {access.gateway} runs; Ctrl-C stops it."),
            )
            await stopper.wait()
        log.info("stopped")

    with exclusive(folder, "the gateway's folder", "--run-dir"):
        run_daemon(run)


@contextlib.asynccontextmanager
async def running(app: App, access: Access, folder: Path) -> Any:
    """A gateway in this event loop; ended at the end."""
    from gateway.iscsi.gateway import Gateway  # noqa: PLC0415
    from gateway.mds.client import MdsClient  # noqa: PLC0415

    password = await asyncio.to_thread(app.root_password)
    async with MdsClient(app.grpc_address, owner=app.owner, root_password=password) as client:
        made = Gateway(client, access, folder)
        await made.start()
        try:
            yield made
        finally:
            await made.stop()
