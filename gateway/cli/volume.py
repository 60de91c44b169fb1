# SPDX-License-Identifier: BSD-3-Clause
"""`copygate volume ...`: the namespace of the MDS."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.app import SIZE, App, pairs, pass_app, table, volume_path
from gateway.cli.cluster import connect
from gateway.cli.sizes import format_size
from gateway.errors import BusyError, InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from gateway.mds.client import Volume

# What lists a folder must not run for ever in one that contains itself by some defect.
DEPTH_MAX = 32


def describe(volume: Volume, path: str) -> dict[str, Any]:
    """A volume for --json."""
    data: dict[str, Any] = {"path": path, "id": volume.id, "owner": volume.owner}
    if volume.is_folder:
        return data | {"type": "folder", "created": volume.created.isoformat()}
    data |= {
        "type": "volume",
        "size": volume.size,
        "allocated": volume.allocated,
        "created": volume.created.isoformat(),
        "epoch": volume.epoch,
        "stripe_unit": volume.stripe_unit,
        "stripe_count": volume.stripe_count,
        "uuid": str(uuid.UUID(bytes=volume.uuid)) if len(volume.uuid) == 16 else None,
    }
    if volume.original_path:
        data |= {"original_path": volume.original_path, "purging": volume.is_being_purged}
    return data


def _when(moment: datetime.datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")


def _size(volume: Volume) -> str:
    return "folder" if volume.is_folder else format_size(volume.size)


def _allocated(volume: Volume) -> str:
    return "" if volume.is_folder else format_size(volume.allocated)


@click.group()
def volume() -> None:
    """Create, list, inspect, resize, rename, delete and recover volumes."""


@volume.command("create")
@click.argument("name")
@click.argument("size", type=SIZE, required=False)
@click.option("--stripe-unit", type=SIZE, default=0, help="Bytes a stripe block; with a count.")
@click.option("--stripe-count", type=click.IntRange(0, 4096), default=0, help="Chunks a stripe.")
@click.option("--folder", is_flag=True, help="Create a folder, which has no size.")
@pass_app
def create(
    app: App, *, name: str, size: int | None, stripe_unit: int, stripe_count: int, folder: bool
) -> None:
    """Create a volume of SIZE bytes: 10G, 512M, 1TiB (powers of two).

    It takes no space until it is written.
    """
    if folder == (size is not None):
        raise click.UsageError("give a SIZE, or --folder")
    with connect(app) as cluster:
        made = (
            cluster.create(name, size, stripe_unit=stripe_unit, stripe_count=stripe_count)
            if size is not None
            else cluster.create_folder(name)
        )
    path = volume_path(name)
    app.emit(describe(made, path), lambda: click.echo(f"{path} created ({_size(made)})"))


def _walk(cluster: Any, folder: str, recursive: bool) -> list[tuple[str, Volume]]:
    found: list[tuple[str, Volume]] = []
    waiting = [(folder, 0)]
    while waiting:
        current, depth = waiting.pop()
        for item in cluster.list(current):
            path = f"{current.rstrip('/')}/{item.name}"
            found.append((path, item))
            if recursive and item.is_folder and depth < DEPTH_MAX:
                waiting.append((path, depth + 1))
    return sorted(found, key=lambda pair: pair[0])


@volume.command("list")
@click.argument("folder", default="/")
@click.option("-r", "--recursive", is_flag=True, help="Also what is in folders.")
@click.option("--deleted", is_flag=True, help="What is in the recycle bin.")
@pass_app
def list_volumes(app: App, folder: str, recursive: bool, deleted: bool) -> None:
    """List the volumes of FOLDER (default: /)."""
    with connect(app) as cluster:
        if deleted:
            found = [(item.original_path or item.name, item) for item in cluster.list_deleted()]
        else:
            found = _walk(cluster, volume_path(folder), recursive)

    def human() -> None:
        rows: list[Sequence[object]] = [
            (path, _size(item), _allocated(item), item.owner, _when(item.created), item.id)
            for path, item in found
        ]
        columns = ("volume", ">size", ">allocated", "owner", "created", ">id")
        table(columns, rows, "no deleted volumes" if deleted else "no volumes")

    app.emit([describe(item, path) for path, item in found], human)


@volume.command("info")
@click.argument("name")
@pass_app
def info(app: App, name: str) -> None:
    """Show a volume: size, allocation, epoch, who has it open."""
    with connect(app) as cluster:
        found = cluster.get(name)
        sessions = cluster.sessions(name)
    data = describe(found, volume_path(name)) | {"sessions": sessions}

    def human() -> None:
        pairs(
            [
                ("volume", data["path"]),
                ("size", f"{format_size(found.size)} ({found.size} bytes)"),
                ("allocated", format_size(found.allocated)),
                ("owner", found.owner),
                ("created", _when(found.created)),
                ("epoch", found.epoch),
                ("id", found.id),
                ("uuid", data["uuid"] or "-"),
                ("stripes", _stripes(found)),
                ("open by", ", ".join(sessions) or "nobody"),
            ]
        )

    app.emit(data, human)


def _stripes(found: Volume) -> str:
    if found.stripe_count <= 1:
        return "none"
    return f"{found.stripe_count} of {format_size(found.stripe_unit)}"


@volume.command("resize")
@click.argument("name")
@click.argument("size")
@pass_app
def resize(app: App, name: str, size: str) -> None:
    """Make a volume longer: SIZE is the new size, or +SIZE what is added.

    It may be in use; a volume cannot shrink.
    """
    from gateway.cli.sizes import parse_size  # noqa: PLC0415

    with connect(app) as cluster:
        before = cluster.get(name)
        wanted = parse_size(size.removeprefix("+")) + (before.size if size.startswith("+") else 0)
        if wanted < before.size:
            raise InvalidArgumentError(
                f"the volume has {format_size(before.size)} and cannot shrink",
                context={"volume": volume_path(name), "size": size},
                hint="create a smaller one and copy what it holds",
            )
        if wanted != before.size:
            cluster.resize(name, wanted)
        after = cluster.get(name)
    text = f"{volume_path(name)}: {format_size(before.size)} -> {format_size(after.size)}"
    app.emit(describe(after, volume_path(name)), lambda: click.echo(text))


@volume.command("rename")
@click.argument("old")
@click.argument("new")
@pass_app
def rename(app: App, old: str, new: str) -> None:
    """Give a volume that nobody has open another name."""
    with connect(app) as cluster:
        cluster.rename(old, new)
    paths = {"old": volume_path(old), "path": volume_path(new)}
    app.emit(paths, lambda: click.echo(f"{paths['old']} is now {paths['path']}"))


@volume.command("delete")
@click.argument("name")
@click.option("--permanent", is_flag=True, help="Not into the recycle bin: gone for good.")
@pass_app
def delete(app: App, name: str, permanent: bool) -> None:
    """Delete a volume, or an empty folder.

    A volume goes to the recycle bin and can be recovered: its space is free only after
    --permanent. A volume of the recycle bin is named by its path there (copygate volume list
    --deleted).
    """
    path = volume_path(name)
    with connect(app) as cluster:
        cluster.delete(path, permanent=permanent)
    text = f"{path} deleted" + ("" if permanent else f"; back with: copygate volume recover {path}")
    data = {"path": path, "permanent": permanent}
    app.emit(data, lambda: click.echo(text))


@volume.command("recover")
@click.argument("name")
@click.option("--id", "volume_id", type=click.IntRange(1), default=None, help="Which of several.")
@pass_app
def recover(app: App, name: str, volume_id: int | None) -> None:
    """Bring a deleted volume back to the name that it had; of several, the one deleted last."""
    path = volume_path(name)
    with connect(app) as cluster:
        if cluster.find(path) is not None:
            raise BusyError(
                "the name is taken", context={"volume": path}, hint="rename that volume first"
            )
        try:
            cluster.recover(path, volume_id or 0)
        except NotFoundError as error:
            error.hint = error.hint or "see: copygate volume list --deleted"
            raise
        found = cluster.get(path)
    app.emit(describe(found, path), lambda: click.echo(f"{path} is back ({_size(found)})"))
