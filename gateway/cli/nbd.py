# SPDX-License-Identifier: BSD-3-Clause
"""`copygate nbd serve`: nbdkit in the foreground, with the right arguments."""

from __future__ import annotations

import click

from gateway.cli.app import App, pass_app
from gateway.cli.nbdkit import DEFAULT_THREADS, Endpoint, Export, exec_nbdkit


@click.group()
def nbd() -> None:
    """Serve volumes over NBD."""


@nbd.command("serve")
@click.argument("volume", required=False)
@click.option(
    "--listen", metavar="unix:PATH|tcp:HOST:PORT", default="tcp:127.0.0.1:10809", show_default=True,
    help="Where to serve. A unix socket is for this user alone.",
)  # fmt: skip
@click.option("--read-only", is_flag=True, help="Serve for reading only; fences nobody.")
@click.option(
    "--plugin", type=click.Choice(["c", "python"]), default="c", show_default=True,
    help="Which nbdkit plugin serves.",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(1, 256), default=DEFAULT_THREADS, show_default=True,
    help="Requests that nbdkit works on at once, a connection.",
)  # fmt: skip
@click.option(
    "--allow-remote", is_flag=True,
    help="Allow addresses other than loopback: whoever reaches it may read and write the volume.",
)  # fmt: skip
@pass_app
def serve(
    app: App,
    *,
    volume: str | None,
    listen: str,
    read_only: bool,
    plugin: str,
    threads: int,
    allow_remote: bool,
) -> None:
    """Serve VOLUME, or any volume by its export name when none is given, until a signal.

    The process becomes nbdkit. It opens the volume when a client connects; a second server that
    writes to the same volume takes it over, and the first one's writes are refused from then on.
    """
    endpoint = Endpoint.parse(listen, allow_remote=allow_remote, option="--listen")
    export = Export(
        mds=app.mds,
        owner=app.owner,
        volume=volume,
        read_only=read_only,
        plugin=plugin,
        threads=threads,
        password_file=app.root_password_file,
    )
    export.command()  # what is missing is said before anything is bound
    sock, bound = endpoint.bind()
    app.emit(
        {"uri": bound.uri(volume or ""), "volume": volume, "read_only": read_only},
        lambda: click.echo(f"serving {volume or 'all volumes'} at {bound.uri(volume or '')}"),
    )
    exec_nbdkit(export, sock)
