# SPDX-License-Identifier: BSD-3-Clause
"""`copygate up`: a whole store in one process, and nbdkit beside it that offers its volumes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli import chunkservers
from gateway.cli.app import (
    DEFAULT_CHUNKSERVER,
    DEFAULT_MDS,
    DEFAULT_MDS_GRPC,
    SIZE,
    App,
    check_listen,
    pass_app,
    setup_log,
    volume_path,
)
from gateway.cli.child import end_orphan
from gateway.cli.daemons import REPLICAS
from gateway.cli.lifecycle import Stopper, exclusive, make_folder, run_daemon
from gateway.cli.nbdkit import DEFAULT_THREADS, Endpoint, Export, supervise
from gateway.cli.sizes import format_size, parse_size
from gateway.errors import InvalidArgumentError

if TYPE_CHECKING:
    from gateway.mds.server import MdsServer

log = logging.getLogger("gateway.up")

JOIN_TIMEOUT_S = 30.0
FORM_TIMEOUT_S = 300.0  # logs are replayed meanwhile


def default_folder() -> Path:
    """Where the data goes when nothing is said: the system's place for root, else the user's."""
    if os.geteuid() == 0:
        return Path("/var/lib/copygate")
    home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(home).expanduser() / "copygate"


def _check_iscsi(text: str, allow_remote: bool) -> str:
    """Checks --iscsi before anything is started; "" stands for the default portal."""
    from gateway.iscsi import rules  # noqa: PLC0415
    from gateway.iscsi.target import find_module, find_tgtd  # noqa: PLC0415

    find_tgtd()
    find_module()
    if not text:
        return text
    portal = rules.check_portal(text)
    check_listen(portal, "--iscsi", allow_remote)
    return portal


def parse_volume(text: str) -> tuple[str, int | None]:
    """Reads NAME:SIZE, or NAME for a volume that exists already."""
    name, colon, size = text.rpartition(":")
    if not colon:
        return text, None
    if not name or not size:
        raise InvalidArgumentError(
            f"--volume {text} is not NAME:SIZE", hint="write it as --volume vol1:10G"
        )
    return name, parse_size(size)


@dataclass(frozen=True)
class Disk:
    """A chunkserver that serves."""

    address: str
    pid: int | None


@dataclass(frozen=True)
class Plan:
    """The options of `copygate up`, checked."""

    folder: Path
    volumes: tuple[tuple[str, int | None], ...]
    endpoint: Endpoint | None
    iscsi: str | None
    run_folder: Path | None
    read_only: bool
    plugin: str
    threads: int
    replicas: int | None
    wal_bytes: int
    scrub_rate: int | None
    mds_listen: str
    grpc_listen: str
    chunkserver_listen: str
    allow_remote: bool


async def run(app: App, plan: Plan, stopper: Stopper) -> None:
    """Starts everything, says so, waits for a signal, stops everything in the reverse order."""
    began = time.monotonic()
    # Imported here: a start that fails for an option should not wait for gRPC.
    from gateway.mds.config import MdsConfig  # noqa: PLC0415
    from gateway.mds.server import MdsServer  # noqa: PLC0415

    async with contextlib.AsyncExitStack() as stack:
        sock = endpoint = None
        pidfile = plan.folder / "nbdkit.pid"
        # nbdkit was told to end when we were killed, but waits for its clients, maybe for ever.
        end_orphan(pidfile, "nbdkit")
        if plan.endpoint is not None:
            sock, endpoint = plan.endpoint.bind()
            stack.callback(_close_socket, sock, endpoint)
        mds_folder = make_folder(plan.folder / "mds", "the MDS's folder")
        mds = MdsServer(
            MdsConfig(
                store=mds_folder / "metadata.sqlite",
                listen=(plan.mds_listen,),
                grpc_listen=(plan.grpc_listen,),
                allow_remote=plan.allow_remote,
                root_password=app.root_password(),
                replicas=plan.replicas,
            )
        )
        await mds.start()
        stack.push_async_callback(mds.stop)
        start_disks = _start_disk if mds.replicas == 1 else _start_chunkservers
        disks = await start_disks(app, plan, mds, stack)
        local = App(
            mds=mds.address,
            mds_grpc=mds.grpc_address,
            owner=app.owner,
            root_password_file=app.root_password_file,
        )
        for name, size in plan.volumes:
            await asyncio.to_thread(_ensure_volume, local, name, size)
        supervisor = None
        if sock is not None:
            supervisor = supervise(_export(local, plan), sock, pidfile)
            stack.callback(pidfile.unlink, missing_ok=True)
            await supervisor.start()
            stack.push_async_callback(supervisor.stop)
        ready = _ready(plan, mds, disks, endpoint)
        if plan.iscsi is not None:
            ready["iscsi"] = await _serve_iscsi(local, plan, stack)
        ready["pid"] = os.getpid()
        ready["nbdkit_pid"] = supervisor.pid if supervisor is not None else None
        ready["seconds"] = round(time.monotonic() - began, 3)
        app.emit(ready, lambda: _tell(ready, plan))
        await stopper.wait()
    log.info("stopped")


async def _start_disk(
    app: App, plan: Plan, mds: MdsServer, stack: contextlib.AsyncExitStack
) -> list[Disk]:
    """One chunkserver in this process."""
    from gateway.chunkserver.host import SCRUB_RATE, Host, Settings, open_engine  # noqa: PLC0415

    settings = Settings(
        folder=plan.folder / "chunkserver",
        listen=plan.chunkserver_listen,
        mds_grpc=mds.grpc_address,
        wal_bytes=plan.wal_bytes,
        scrub_rate=SCRUB_RATE if plan.scrub_rate is None else plan.scrub_rate,
        log_level=app.log_level,
    )
    host = Host(settings, await asyncio.to_thread(open_engine, settings))
    stack.push_async_callback(host.stop)
    await host.start(timeout_s=JOIN_TIMEOUT_S)
    return [Disk(host.address, os.getpid())]


async def _start_chunkservers(
    app: App, plan: Plan, mds: MdsServer, stack: contextlib.AsyncExitStack
) -> list[Disk]:
    """As many chunkservers as there are replicas, in processes of their own."""
    from gateway.mds.client import MdsClient  # noqa: PLC0415

    client = await stack.enter_async_context(MdsClient(mds.grpc_address))
    settings = chunkservers.Settings(
        folder=plan.folder,
        count=mds.replicas,
        listen=plan.chunkserver_listen,
        mds=mds.address,
        mds_grpc=mds.grpc_address,
        wal_bytes=plan.wal_bytes,
        scrub_rate=plan.scrub_rate,
        log_level=app.log_level,
        allow_remote=plan.allow_remote,
    )
    children = chunkservers.Chunkservers(settings, client)
    stack.push_async_callback(children.stop)
    return [Disk(address, pid) for address, pid in await children.start(FORM_TIMEOUT_S)]


async def _serve_iscsi(app: App, plan: Plan, stack: contextlib.AsyncExitStack) -> dict[str, Any]:
    """Records an export of each volume and runs the gateway; returns volume -> how it is served."""
    from gateway.cli import iscsi, iscsi_change  # noqa: PLC0415
    from gateway.iscsi import control  # noqa: PLC0415

    assert plan.iscsi is not None  # noqa: S101 - the caller asked
    access = iscsi_change.access_of(app, iscsi.default_gateway())
    names = [volume_path(name) for name, _ in plan.volumes]
    revision = await asyncio.to_thread(_record_exports, app, plan, names, access.gateway)
    folder = plan.run_folder or control.default_folder()
    folder = make_folder(folder, "the gateway's folder", "--run-dir")
    control.check_folder(folder)
    stack.enter_context(exclusive(folder, "the gateway's folder", "--run-dir"))
    gateway = await stack.enter_async_context(iscsi.running(app, access, folder))
    await gateway.settled(revision)
    found: dict[str, Any] = {}
    for target in (await gateway.status())["targets"]:
        for lun in target["luns"]:
            reason = None if target["serving"] else target["reason"]
            uris = [f"iscsi://{at}/{target['iqn']}/{lun['lun']}" for at in target["portals"]]
            found[lun["volume"].lstrip("/")] = {
                "iqn": target["iqn"],
                "portals": target["portals"],
                "lun": lun["lun"],
                "uri": uris[0],
                "reason": reason,
            }
    return found


def _record_exports(app: App, plan: Plan, names: list[str], gateway: str) -> int:
    from gateway.cli.cluster import connect  # noqa: PLC0415
    from gateway.cli.iscsi_change import put_change  # noqa: PLC0415
    from gateway.iscsi import rules  # noqa: PLC0415
    from gateway.iscsi.records import Change  # noqa: PLC0415

    revision = 0
    with connect(app) as cluster:
        for index, name in enumerate(names):
            portals = None
            if plan.iscsi:
                # Each target has a tgtd, and so a port, of its own.
                address, port = rules.parse_portal(plan.iscsi)
                portals = (rules.format_portal(address, port + index),)
            change = Change(
                volume=name,
                gateway=gateway,
                portals=portals,
                read_only=plan.read_only,
                allow_remote=plan.allow_remote,
                anyone=True if plan.allow_remote else None,
            )
            _, revision, _ = put_change(cluster, change)
    return revision


def _close_socket(sock: Any, endpoint: Endpoint) -> None:
    sock.close()
    if endpoint.path is not None:
        endpoint.path.unlink(missing_ok=True)


def _export(app: App, plan: Plan) -> Export:
    # With one volume it is the default export; with several, or none yet, the client names one.
    only = plan.volumes[0][0] if len(plan.volumes) == 1 else None
    return Export(
        mds=app.mds,
        owner=app.owner,
        volume=only,
        read_only=plan.read_only,
        plugin=plan.plugin,
        threads=plan.threads,
        password_file=app.root_password_file,
    )


def _ensure_volume(app: App, name: str, size: int | None) -> None:
    """The volume is there afterwards, with at least this size; it never becomes smaller."""
    from gateway.cli.cluster import connect  # noqa: PLC0415

    with connect(app) as cluster:
        volume = cluster.find(name)
        if volume is None:
            if size is None:
                raise InvalidArgumentError(
                    f"--volume {name}: there is no such volume yet",
                    hint=f"give its size: --volume {name}:10G",
                )
            cluster.create(name, size)
            log.info("volume %s created, %s", name, format_size(size))
        elif size is not None and size < volume.size:
            raise InvalidArgumentError(
                f"--volume {name}: it has {format_size(volume.size)}, and a volume cannot shrink",
                hint=f"leave the size out, or delete it: copygate volume delete {name}",
            )
        elif size is not None and size > volume.size:
            cluster.resize(name, size)
            log.info(
                "volume %s extended from %s to %s",
                name,
                format_size(volume.size),
                format_size(size),
            )


def _ready(
    plan: Plan, mds: MdsServer, disks: list[Disk], endpoint: Endpoint | None
) -> dict[str, Any]:
    names = [name.lstrip("/") for name, _ in plan.volumes]
    return {
        "data": str(plan.folder),
        "mds": mds.address,
        "mds_grpc": mds.grpc_address,
        "replicas": mds.replicas,
        "chunkserver": disks[0].address,
        "chunkservers": [{"address": disk.address, "pid": disk.pid} for disk in disks],
        "nbd": endpoint.uri() if endpoint else None,
        "nbd_of_name": endpoint.uri("NAME") if endpoint else None,
        "volumes": {name: endpoint.uri(name) if endpoint else None for name in names},
        "iscsi": None,
        "read_only": plan.read_only,
        "plugin": plan.plugin,
    }


def _tell(ready: dict[str, Any], plan: Plan) -> None:
    click.echo(f"copygate is ready after {ready['seconds']:.2f} s; data in {ready['data']}")
    click.echo(f"  MDS          {ready['mds']} (gRPC {ready['mds_grpc']})")
    for disk in ready["chunkservers"]:
        click.echo(f"  chunkserver  {disk['address']}")
    if ready["replicas"] > 1:
        click.echo(f"  replicas     {ready['replicas']} of everything")
    mode = ", read-only" if plan.read_only else ""
    for name, uri in ready["volumes"].items():
        click.echo(f"  volume       {name}{mode}: {uri}")
    uris = [uri for uri in ready["volumes"].values() if uri]
    for name, served in (ready["iscsi"] or {}).items():
        state = f"NOT served: {served['reason']}" if served["reason"] else served["uri"]
        click.echo(f"  iSCSI        {name}{mode}: {state}")
    if ready["nbd"] and not uris:
        click.echo(f"  NBD          {ready['nbd_of_name']}  (copygate volume create NAME SIZE)")
    if uris:
        uri = shlex.quote(uris[0])
        click.echo("Try:")
        click.echo(f"  fio --name=t --ioengine=nbd --uri={uri} --rw=randread --bs=4k --iodepth=32")
        click.echo(f"  qemu-system-x86_64 -drive file={uri},format=raw,if=virtio ...")
        click.echo(f"  qemu-img convert -n -O raw disk.qcow2 {uri}")
        click.echo(f"  nbdcopy disk.raw {uri}")
    for served in list((ready["iscsi"] or {}).values())[:1]:
        portal = served["portals"][0]
        click.echo("Try, over iSCSI (it and NBD take the volume from each other, so use one):")
        click.echo(f"  iscsiadm -m discovery -t sendtargets -p {portal}")
        click.echo(f"  iscsiadm -m node -T {served['iqn']} -p {portal} --login")
        click.echo(f"  qemu-system-x86_64 -drive file={served['uri']},format=raw,if=virtio ...")
    click.echo("Ctrl-C stops it.")


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Folder of all data.")
@click.option(
    "--volume", multiple=True, metavar="NAME:SIZE",
    help="Create this volume, or extend it to this size. May be given several times.",
)  # fmt: skip
@click.option(
    "--nbd", metavar="unix:PATH|tcp:HOST:PORT|none",
    help="Where NBD is served (default: unix:DATA/nbd.sock).",
)  # fmt: skip
@click.option(
    "--iscsi", metavar="[ADDRESS:PORT]", is_flag=False, flag_value="",
    help="Export the volumes over iSCSI too, the first at this portal (default: 127.0.0.1:3260), "
    "the others at the ports behind it.",
)  # fmt: skip
@click.option(
    "--run-dir", type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the iSCSI gateway's sockets (default: /run/copygate-iscsi, or the user's).",
)  # fmt: skip
@click.option("--read-only", is_flag=True, help="Serve the volumes for reading only.")
@click.option(
    "--plugin", type=click.Choice(["c", "python"]), default="c", show_default=True,
    help="Which nbdkit plugin serves.",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(1, 256), default=DEFAULT_THREADS, show_default=True,
    help="Requests that nbdkit works on at once, a connection.",
)  # fmt: skip
@click.option(
    "--replicas", type=REPLICAS,
    help="Keep everything so many times, on as many chunkservers, each a process with a folder of "
    "its own. For a new store (default 1); it cannot be changed.",
)  # fmt: skip
@click.option("--wal-size", type=SIZE, help="Write-ahead log of a chunkserver (default 1G).")
@click.option(
    "--scrub-rate", type=SIZE,
    help="Bytes per second that the scrub reads at most (default 16M); 0: no scrub.",
)  # fmt: skip
@click.option("--mds-listen", metavar="HOST:PORT", default=DEFAULT_MDS, show_default=True)
@click.option("--grpc-listen", metavar="HOST:PORT", default=DEFAULT_MDS_GRPC, show_default=True)
@click.option(
    "--chunkserver-listen", metavar="HOST:PORT", default=DEFAULT_CHUNKSERVER, show_default=True,
    help="Of the first chunkserver; the others are at the ports behind it.",
)  # fmt: skip
@click.option(
    "--allow-remote", is_flag=True,
    help="Allow addresses other than loopback. Gives up the only protection that there is: whoever "
    "reaches them may read and write every volume.",
)  # fmt: skip
@pass_app
def up(
    app: App,
    *,
    data: Path | None,
    volume: tuple[str, ...],
    nbd: str | None,
    iscsi: str | None,
    run_dir: Path | None,
    read_only: bool,
    plugin: str,
    threads: int,
    replicas: int | None,
    wal_size: int | None,
    scrub_rate: int | None,
    mds_listen: str,
    grpc_listen: str,
    chunkserver_listen: str,
    allow_remote: bool,
) -> None:
    """Run a whole store on this machine and serve its volumes over NBD.

    One process holds the metadata server and the chunkserver; nbdkit runs beside it and is started
    again if it dies, as are the chunkservers with --replicas 3. Volumes stay between starts. Sizes
    are powers of two: 10G is 10 GiB.

    \b
    copygate up --volume vol1:10G
    copygate up --data /srv/copygate --volume a:10G --volume b:1T --nbd tcp:127.0.0.1:10809
    copygate up --volume vol1:10G --iscsi
    copygate up --volume vol1:10G --replicas 3
    """
    setup_log(app.log_level)
    parsed = tuple(parse_volume(text) for text in volume)
    names = [name for name, _ in parsed]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidArgumentError(f"--volume {doubled[0]} is given twice", hint="give it once")
    for option, address in (
        ("--mds-listen", mds_listen),
        ("--grpc-listen", grpc_listen),
        ("--chunkserver-listen", chunkserver_listen),
    ):
        check_listen(address, option, allow_remote)
    if replicas is not None and replicas > 1:
        chunkservers.addresses(chunkserver_listen, replicas)  # before a store is made
    portal = None if iscsi is None else _check_iscsi(iscsi, allow_remote)
    folder = (data or default_folder()).expanduser().absolute()
    endpoint = None
    if nbd != "none":
        endpoint = Endpoint.parse(nbd or f"unix:{folder}/nbd.sock", allow_remote=allow_remote)
    plan = Plan(
        folder=make_folder(folder, "the data folder"),
        volumes=parsed,
        endpoint=endpoint,
        iscsi=portal,
        run_folder=run_dir,
        read_only=read_only,
        plugin=plugin,
        threads=threads,
        replicas=replicas,
        wal_bytes=wal_size or 0,
        scrub_rate=scrub_rate,
        mds_listen=mds_listen,
        grpc_listen=grpc_listen,
        chunkserver_listen=chunkserver_listen,
        allow_remote=allow_remote,
    )
    with exclusive(plan.folder, "the data folder"):
        run_daemon(lambda stopper: run(app, plan, stopper))
