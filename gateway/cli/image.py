# SPDX-License-Identifier: BSD-3-Clause
"""`copygate import` and `copygate export`: disk images in and out, holes kept.

nbdcopy moves the data between two NBD servers that it starts and ends: our nbdkit plugin for the
volume, and qemu-nbd where the image is a qcow2.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from gateway.cli.app import App, pass_app, volume_path
from gateway.cli.cluster import Cluster, connect
from gateway.cli.nbdkit import Export, plugin_environment
from gateway.cli.sizes import format_size
from gateway.errors import (
    BusyError,
    ConfigError,
    CopygateError,
    ExistsError,
    InvalidArgumentError,
    NoSpaceError,
    NotFoundError,
)

if TYPE_CHECKING:
    from gateway.mds.client import Volume

QCOW2_MAGIC = b"QFI\xfb"
SIZE_UNIT = 4096
SIZE_MIN = 1 << 20


@dataclass(frozen=True)
class Image:
    """A disk image on this machine."""

    path: Path
    format: str
    virtual_bytes: int
    data_bytes: int


@dataclass(frozen=True)
class Place:
    """A volume as a copy sees it."""

    path: str
    size: int
    allocated: int

    @classmethod
    def of(cls, name: str, volume: Volume) -> Place:
        """The place of a volume that was found under `name`."""
        return cls(volume_path(name), volume.size, volume.allocated)


def tool(name: str, package: str) -> str:
    """The path of a program; says which package has it when it is missing."""
    found = shutil.which(name)
    if found is None:
        raise ConfigError(f"{name} is not installed", hint=f"apt-get install {package}")
    return found


def run_json(command: Sequence[str], what: str) -> Any:
    """Runs a tool that answers in JSON; a failure carries its last line."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise InvalidArgumentError(f"{what}: {_last_line(result.stderr)}")
    return json.loads(result.stdout)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def examine(path: Path, image_format: str | None, allow_backing: bool) -> Image:
    """Finds out the format and size of an image.

    A qcow2 may name other files of this machine as its backing or data file: one from a stranger
    could so carry them into the volume; it is refused unless that is wanted.
    """
    if path.is_dir():
        raise InvalidArgumentError("the image is a folder", context={"image": path})
    if path.exists() and not path.is_file() and not path.is_block_device():
        raise InvalidArgumentError("the image is no file", context={"image": path})
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError as error:
        raise NotFoundError("there is no such image", context={"image": path}) from error
    found = image_format or ("qcow2" if magic == QCOW2_MAGIC else "raw")
    qemu_img = tool("qemu-img", "qemu-utils")
    name = str(path.absolute())
    info = run_json([qemu_img, "info", "--output=json", "-f", found, name], "cannot read the image")
    specific = info.get("format-specific", {}).get("data", {})
    outside = info.get("full-backing-filename") or specific.get("data-file")
    if outside and not allow_backing:
        raise InvalidArgumentError(
            f"the image takes data from another file: {outside}",
            context={"image": path},
            hint="--allow-backing-file if you trust whoever made it",
        )
    if specific.get("encrypt"):
        raise InvalidArgumentError(
            "the image is encrypted", context={"image": path}, hint="decrypt it with qemu-img first"
        )
    size = int(info["virtual-size"])
    if size == 0:
        raise InvalidArgumentError("the image is empty", context={"image": path})
    return Image(path, found, size, _image_data_bytes(qemu_img, found, name))


def _image_data_bytes(qemu_img: str, image_format: str, name: str) -> int:
    """Bytes of an image that hold data: what it will take in the store."""
    command = [qemu_img, "map", "--output=json", "-f", image_format, name]
    extents = run_json(command, "cannot read the image's map")
    return sum(extent["length"] for extent in extents if extent["data"] and not extent["zero"])


def _server(command: Sequence[str]) -> list[str]:
    """A server that nbdcopy starts for itself: [ COMMAND ]."""
    return ["[", *command, "]"]


def _qemu_nbd(image: Path, *, read_only: bool) -> list[str]:
    options = ["-r"] if read_only else ["--discard=unmap", "--detect-zeroes=unmap"]
    return [tool("qemu-nbd", "qemu-utils"), "-f", "qcow2", "--shared=16", *options, str(image)]


def _volume_server(app: App, volume: Place, *, read_only: bool, threads: int) -> list[str]:
    export = Export(
        mds=app.mds,
        owner=app.owner,
        volume=volume.path,
        read_only=read_only,
        threads=threads,
        password_file=app.root_password_file,
    )
    return _server(export.command())


def _percentages(stream: IO[str], report: Callable[[int], None]) -> None:
    """Reads nbdcopy's progress, lines such as 42/100."""
    for line in stream:
        done = line.partition("/")[0]
        if done.isdigit():
            report(int(done))


@contextlib.contextmanager
def progress(app: App, title: str) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error when that is a terminal and people are watching."""
    if app.json or not os.isatty(2):
        yield lambda _percent: None
        return
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    from gateway.cli.app import console  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console(stderr=True)) as bar:
        task = bar.add_task(title, total=100)
        yield lambda percent: bar.update(task, completed=percent)


def copy(app: App, title: str, source: list[str], target: list[str], options: list[str]) -> float:
    """Runs nbdcopy; returns the seconds that it took. Raises when it failed, with what it said."""
    reading, writing = os.pipe()
    command = [tool("nbdcopy", "libnbd-bin"), f"--progress={writing}", "--flush", *options, "--"]
    began = time.monotonic()
    with (
        progress(app, title) as report,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said,
        os.fdopen(reading, encoding="ascii", errors="replace") as stream,
    ):
        try:
            process = subprocess.Popen(
                [*command, *source, *target],
                stdin=subprocess.DEVNULL,
                stderr=said,
                pass_fds=(writing,),
                env=plugin_environment("c"),
            )
        finally:
            os.close(writing)
        watcher = threading.Thread(target=_percentages, args=(stream, report), daemon=True)
        watcher.start()
        try:
            status = process.wait()
        except BaseException:
            # nbdcopy ends the servers that it started.
            process.terminate()
            process.wait()
            raise
        watcher.join(timeout=5)
        said.seek(0)
        text = said.read()
    if status != 0:
        raise _copy_error(title, text)
    return time.monotonic() - began


def _copy_error(title: str, said: str) -> CopygateError:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    # The server that refused says why; nbdcopy's own line is only that it failed.
    telling = [line for line in lines if line.startswith(("nbdkit:", "qemu-nbd:"))] or lines
    text = (telling[-1] if telling else "nbdcopy failed").split("error: ", 1)[-1]
    kind = NoSpaceError if "No space left" in said or "store is full" in said else CopygateError
    return kind(f"{title} failed: {text}")


def _refuse_in_use(cluster: Cluster, volume: str, take_over: bool) -> None:
    sessions = cluster.sessions(volume)
    if sessions and not take_over:
        raise BusyError(
            "the volume is in use",
            context={"volume": volume, "by": ", ".join(sessions)},
            hint="close what uses it; or --take-over, which cuts it off",
        )


@click.command("import")
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("volume")
@click.option("--format", "image_format", type=click.Choice(["raw", "qcow2"]),
              help="The image's format (default: seen from its first bytes).")  # fmt: skip
@click.option("--allow-backing-file", is_flag=True, help="Follow a qcow2's backing file.")
@click.option("--take-over", is_flag=True, help="Cut off a client that has the volume open.")
@click.option("--overwrite", is_flag=True, help="Write over a volume that exists.")
@click.option("--threads", type=click.IntRange(1, 64), default=8, hidden=True)
@pass_app
def import_image(
    app: App,
    *,
    image: Path,
    volume: str,
    image_format: str | None,
    allow_backing_file: bool,
    take_over: bool,
    overwrite: bool,
    threads: int,
) -> None:
    """Copy a raw or qcow2 IMAGE into VOLUME, which is created when it is missing.

    Holes stay holes. A volume that is larger than the image is zero behind it.
    """
    found = examine(image, image_format, allow_backing_file)
    with connect(app) as cluster:
        existing = cluster.find(volume)
        created = existing is None
        if existing is None:
            _check_space(cluster, found.data_bytes)
            size = -(-found.virtual_bytes // SIZE_UNIT) * SIZE_UNIT
            target = Place.of(volume, cluster.create(volume, max(size, SIZE_MIN)))
        else:
            target = Place.of(volume, existing)
            _check_target(cluster, found, target, overwrite=overwrite, take_over=take_over)
    source = (
        _server(_qemu_nbd(found.path.absolute(), read_only=True))
        if found.format == "qcow2"
        else [str(found.path.absolute())]
    )
    options = [f"--threads={threads}"] + (["--destination-is-zero"] if created else [])
    try:
        server = _volume_server(app, target, read_only=False, threads=16)
        seconds = copy(app, "import", source, server, options)
        if not created:
            _zero_rest(app, target, found.virtual_bytes)
    except BaseException:
        if created:
            with connect(app) as cluster, contextlib.suppress(CopygateError):
                cluster.delete(volume, permanent=True)
        raise
    result = _summary(found, target, seconds) | {"created": created}
    app.emit(result, lambda: _tell(result, f"{image} -> volume {target.path}"))


def _check_space(cluster: Cluster, needed: int) -> None:
    free = cluster.free_bytes()
    if free < needed:
        raise NoSpaceError(
            f"the image holds {format_size(needed)}, the store has {format_size(free)} free",
            hint="add a disk, or delete volumes",
        )


def _check_target(
    cluster: Cluster, image: Image, target: Place, *, overwrite: bool, take_over: bool
) -> None:
    if not overwrite:
        raise ExistsError(
            "the volume exists",
            context={"volume": target.path},
            hint="--overwrite if its content is to be replaced",
        )
    if target.size < image.virtual_bytes:
        raise InvalidArgumentError(
            f"the image is {format_size(image.virtual_bytes)}, "
            f"the volume {format_size(target.size)}",
            context={"volume": target.path},
            hint=f"copygate volume resize {target.path} {image.virtual_bytes}",
        )
    _check_space(cluster, max(0, image.data_bytes - target.allocated))
    _refuse_in_use(cluster, target.path, take_over)


def _zero_rest(app: App, target: Place, start: int) -> None:
    """What the volume held behind the image's end would else be found there."""
    if target.size <= start:
        return
    from gateway.core import Client  # noqa: PLC0415

    step = 1 << 30
    with (
        Client(app.mds, owner=app.owner, root_password=app.root_password()) as client,
        client.open_volume(target.path) as volume,
    ):
        for offset in range(start, target.size, step):
            volume.write_zeroes(min(step, target.size - offset), offset)


@click.command("export")
@click.argument("volume")
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--format", "image_format", type=click.Choice(["raw", "qcow2"]),
              help="Default: qcow2 when IMAGE ends so, else raw.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
@click.option("--threads", type=click.IntRange(1, 64), default=8, hidden=True)
@pass_app
def export_image(
    app: App, *, volume: str, image: Path, image_format: str | None, overwrite: bool, threads: int
) -> None:
    """Copy VOLUME into a raw or qcow2 IMAGE.

    Holes stay holes. The volume may be in use: it is read as it changes, so stop its writer first
    if the image must be consistent.
    """
    chosen = image_format or ("qcow2" if image.suffix == ".qcow2" else "raw")
    if image.exists() and not overwrite:
        raise ExistsError(
            "the file exists", context={"image": image}, hint="--overwrite if it may be replaced"
        )
    if image.exists() and not image.is_file():
        raise InvalidArgumentError("the image is not a plain file", context={"image": image})
    folder = image.absolute().parent
    if not folder.is_dir():
        raise NotFoundError("the image's folder does not exist", context={"folder": folder})
    with connect(app) as cluster:
        place = Place.of(volume, cluster.get(volume))
    needed = _data_bytes(app, place)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NoSpaceError(
            f"the volume holds {format_size(needed)}, the folder has {format_size(free)} free",
            context={"folder": folder},
        )
    # Under another name until it is whole: nobody takes a part for the image.
    partial = image.with_name(f".{image.name}.{os.getpid()}.part")
    try:
        server = _volume_server(app, place, read_only=True, threads=16)
        if chosen == "qcow2":
            create = [tool("qemu-img", "qemu-utils"), "create", "-q", "-f", "qcow2", str(partial)]
            subprocess.run([*create, str(place.size)], check=True, stdout=subprocess.DEVNULL)
            target = _server(_qemu_nbd(partial.absolute(), read_only=False))
            options = ["--destination-is-zero"]
        else:
            target = [str(partial.absolute())]
            options = []
        options.append(f"--threads={threads}")
        seconds = copy(app, "export", server, target, options)
        _sync(partial)
        partial.replace(image)
    finally:
        partial.unlink(missing_ok=True)
    result = _summary(Image(image, chosen, place.size, needed), place, seconds)
    app.emit(result, lambda: _tell(result, f"volume {place.path} -> {image}"))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _data_bytes(app: App, volume: Place) -> int:
    """Bytes of the volume that hold data, from its block status."""
    from gateway.core import Client  # noqa: PLC0415

    total = 0
    with (
        Client(app.mds, owner=app.owner, root_password=app.root_password()) as client,
        client.open_volume(volume.path, read_only=True) as opened,
    ):
        offset, end = 0, opened.info().size
        while offset < end:
            extents = opened.block_status(min(1 << 30, end - offset), offset)
            total += sum(extent.length for extent in extents if not extent.zero)
            offset = extents[-1].offset + extents[-1].length
    return total


def _summary(image: Image, volume: Place, seconds: float) -> dict[str, Any]:
    return {
        "volume": volume.path,
        "image": str(image.path),
        "format": image.format,
        "size": image.virtual_bytes,
        "data_bytes": image.data_bytes,
        "seconds": round(seconds, 3),
    }


def _tell(result: dict[str, Any], what: str) -> None:
    rate = result["data_bytes"] / max(result["seconds"], 1e-3)
    click.echo(
        f"{what}: {format_size(result['size'])}, of it {format_size(result['data_bytes'])} data, "
        f"in {result['seconds']:.1f} s ({format_size(round(rate))}/s)"
    )
