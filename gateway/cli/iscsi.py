# SPDX-License-Identifier: BSD-3-Clause
"""`copygate iscsi`: what is exported is recorded by the MDS; `serve` runs a gateway's targets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.app import SIZE, App, pass_app, setup_log, table, volume_path
from gateway.cli.cluster import Cluster, connect
from gateway.cli.lifecycle import Stopper, exclusive, make_folder, run_daemon
from gateway.cli.sizes import format_size
from gateway.errors import (
    BusyError,
    ConfigError,
    CopygateError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)

if TYPE_CHECKING:
    from gateway.iscsi.plan import Account
    from gateway.iscsi.records import Access
    from gateway.proto.export_pb2 import ExportEntry

log = logging.getLogger("gateway.iscsi")

# Somebody else may change a record between our look and our change.
CHANGE_TRIES = 5
UNKNOWN_ELSEWHERE = "not known here"


def default_gateway() -> str:
    """The name of this machine's gateway."""
    return socket.gethostname()


def read_secret(path: Path | None, option: str) -> bytes | None:
    """A secret from the first line of a file; '-' is standard input."""
    if path is None:
        return None
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.readline()
        else:
            data = path.read_bytes()
            if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                log.warning("%s: others may read %s; better: chmod 600", option, path)
    except OSError as error:
        raise ConfigError(
            f"cannot read the secret of {option}: {error.strerror}", context={"file": path}
        ) from error
    return data.split(b"\n", 1)[0].rstrip(b"\r")


def account(user: str | None, path: Path | None, option: str) -> Account | None:
    """A CHAP account from its two options, which go together."""
    from gateway.iscsi import rules  # noqa: PLC0415
    from gateway.iscsi.plan import Account  # noqa: PLC0415

    if (user is None) != (path is None):
        raise InvalidArgumentError(
            f"{option} and {option}-secret-file go together",
            hint="the secret comes from a file of 12 to 16 characters, never from the command line",
        )
    secret = read_secret(path, option)
    if user is None or secret is None:
        return None
    rules.check_user(user, option)
    return Account(user, rules.check_secret(secret, option).decode())


def access_of(app: App, gateway: str) -> Access:
    """How the gateway's modules reach the store."""
    from gateway.iscsi import records, rules  # noqa: PLC0415

    password = app.root_password_file
    path = str(password.absolute()) if password is not None else None
    for name, text in (("--mds", app.mds), ("--owner", app.owner), ("the password file", path)):
        if text is not None and any(bad in text.replace(",", "") for bad in records.SEPARATORS):
            raise InvalidArgumentError(f"{name} has a ';' or '|'", context={name: text})
    if path is not None and "," in path:
        raise InvalidArgumentError("the password file has a comma in its name")
    if app.owner == "root" and path is None:
        raise ConfigError(
            "the owner root needs --root-password-file",
            hint="tgtd's module reads it: the environment is not passed on",
        )
    return records.Access(rules.check_gateway(gateway), app.mds, app.owner, path)


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


def put_change(cluster: Cluster, change: Any) -> tuple[str, int, bool]:
    """Records a change; returns the target's name, the revision, and whether anything changed."""
    from gateway.iscsi import records  # noqa: PLC0415

    for attempt in range(CHANGE_TRIES):
        revision, entries = cluster.exports()
        shown = [entry.record for entry in entries]
        chosen = records.choose(shown, change)
        known = next((entry for entry in entries if entry.record.iqn == chosen.iqn), None)
        full = cluster.export(chosen.iqn) if known is not None else None
        record = full.record if full is not None else chosen
        others = [other for other in shown if other.iqn != record.iqn]
        new = records.changed(record, change, others)
        if full is not None and new == record:
            return record.iqn, revision, False
        try:
            return record.iqn, cluster.put_export(new, full.revision if full else 0), True
        except BusyError:
            if attempt + 1 == CHANGE_TRIES:
                raise
    raise AssertionError("the loop returns or raises")


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


def remove_export(cluster: Cluster, path: str, gateway: str | None) -> tuple[str | None, int]:
    """Takes an export back; returns its target's name, None if there was none."""
    from gateway.iscsi import records  # noqa: PLC0415

    for attempt in range(CHANGE_TRIES):
        revision, entries = cluster.exports()
        known = records.find((entry.record for entry in entries), path)
        if known is None:
            return None, revision
        try:
            full = cluster.export(known.iqn)
            left = records.without(full.record, path, gateway)
            if left is None:
                cluster.delete_export(known.iqn, full.revision)
            else:
                cluster.put_export(left, full.revision)
            return known.iqn, cluster.exports()[0]
        except BusyError:
            if attempt + 1 == CHANGE_TRIES:
                raise
    raise AssertionError("the loop returns or raises")


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
        exports = [_describe(cluster, entry, here) for entry in entries]
    data = {"gateway": here["gateway"] if here else None, "exports": exports}
    app.emit(data, lambda: _show_exports(exports, here))


def _describe(cluster: Cluster, entry: ExportEntry, here: dict[str, Any] | None) -> dict[str, Any]:
    record = entry.record
    served = {t["iqn"]: t for t in here["targets"]} if here else {}
    gateways = []
    for gateway in record.gateways:
        state: dict[str, Any] = {"state": UNKNOWN_ELSEWHERE, "reason": None, "sessions": None}
        target = served.get(record.iqn)
        if here is not None and gateway.gateway == here["gateway"] and target is not None:
            state["state"] = "serving" if target["serving"] else "not served"
            state["reason"] = target["reason"]
            found = target["sessions"]
            state["sessions"] = None if found is None else len({c["session"] for c in found})
        gateways.append(
            {
                "gateway": gateway.gateway,
                "group": gateway.group,
                "portals": list(gateway.portals),
                **state,
            }
        )
    return {
        "iqn": record.iqn,
        "owner": entry.owner,
        "luns": [_describe_lun(cluster, lun) for lun in record.luns],
        "gateways": gateways,
        "acl": list(record.acl),
        "chap_user": record.chap_user or None,
        "mutual_user": record.mutual_user or None,
        "anyone": record.anyone,
    }


def _describe_lun(cluster: Cluster, lun: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "lun": lun.lun,
        "volume": lun.volume,
        "block_size": lun.block_size or 512,
        "read_only": lun.read_only,
        "size": None,
        "active_gateway": None,
        "taken_over": False,
        "problem": None,
    }
    try:
        volume = cluster.get(lun.volume)
        found["size"] = volume.size
        found["active_gateway"], epoch = cluster.active_gateway(lun.volume)
        # Who opens a volume for writing raises its epoch; a gateway that does says so.
        found["taken_over"] = found["active_gateway"] is not None and volume.epoch > epoch
    except NotFoundError:
        found["problem"] = "the volume does not exist"
    except CopygateError as error:
        found["problem"] = str(error)
    return found


def _show_exports(exports: Sequence[dict[str, Any]], here: dict[str, Any] | None) -> None:
    rows = []
    for item in exports:
        who = item["chap_user"] and f"CHAP {item['chap_user']}"
        who = ", ".join(filter(None, [who, f"{len(item['acl'])} names" if item["acl"] else None]))
        for lun in item["luns"]:
            size = format_size(lun["size"]) if lun["size"] is not None else lun["problem"]
            for gateway in item["gateways"]:
                state = gateway["state"]
                if gateway["sessions"]:
                    state += f", {gateway['sessions']} sessions"
                if gateway["reason"]:
                    state += f": {gateway['reason']}"
                elif lun["taken_over"]:
                    state += "; TAKEN OVER by another client (copygate iscsi take)"
                elif lun["active_gateway"] not in (None, gateway["gateway"]):
                    state += ", standby"
                where = ", ".join(gateway["portals"])
                rows.append(
                    (lun["volume"], lun["lun"], size, item["iqn"], gateway["gateway"], where,
                     who or "anyone", state)
                )  # fmt: skip
    table(
        ("volume", ">LUN", ">size", "target", "gateway", "portals", "who", "state"),
        rows,
        "nothing is exported: copygate iscsi export VOLUME",
    )
    if here is None:
        click.echo(
            "No gateway runs here (copygate iscsi serve): how exports are served is unknown."
        )
    elif not here["mds"]["reachable"]:
        click.echo(f"The gateway here cannot reach the MDS: {here['mds']['problem']}")


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
