# SPDX-License-Identifier: BSD-3-Clause
"""`copygate mds` and `copygate chunkserver`: the daemons of a cluster, each in its own process."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import click

from gateway.cli.app import (
    DEFAULT_CHUNKSERVER,
    DEFAULT_MDS,
    DEFAULT_MDS_GRPC,
    PERIOD,
    SIZE,
    App,
    check_listen,
    pass_app,
    setup_log,
    split_address,
)
from gateway.cli.lifecycle import Stopper, exclusive, make_folder, run_daemon, stop_with_parent

REMOTE_HELP = (
    "Allow addresses other than loopback. Gives up the only protection that there is: whoever "
    "reaches them may read and write every volume."
)

REPLICAS = click.IntRange(1, 7)
REPLICAS_HELP = (
    "How many chunkservers, in as many zones, have each chunk. For a new store (default 1); it "
    "cannot be changed."
)

# As people call them -> as the engine does.
BACKENDS = {"auto": "auto", "io_uring": "uring", "epoll": "epoll"}


@click.command("mds")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of metadata.")
@click.option(
    "--listen", metavar="HOST:PORT", default=DEFAULT_MDS, show_default=True,
    help="Where the data path (baidu_std) is served.",
)  # fmt: skip
@click.option(
    "--grpc-listen", metavar="HOST:PORT", default=DEFAULT_MDS_GRPC, show_default=True,
    help="Where gRPC is served.",
)  # fmt: skip
@click.option("--replicas", type=REPLICAS, help=REPLICAS_HELP)
@click.option(
    "--copysets", type=click.IntRange(1, 1000), default=8, show_default=True,
    help="Copysets that a chunkserver gets.",
)  # fmt: skip
@click.option("--allow-remote", is_flag=True, help=REMOTE_HELP)
@pass_app
def mds(
    app: App,
    *,
    data: Path,
    listen: str,
    grpc_listen: str,
    replicas: int | None,
    copysets: int,
    allow_remote: bool,
) -> None:
    """Run a metadata server on an embedded database (SQLite) in the folder --data."""
    setup_log(app.log_level)
    check_listen(listen, "--listen", allow_remote)
    check_listen(grpc_listen, "--grpc-listen", allow_remote)
    folder = make_folder(data, "the MDS's folder")

    async def run(stopper: Stopper) -> None:
        from gateway.mds.config import MdsConfig  # noqa: PLC0415
        from gateway.mds.server import MdsServer  # noqa: PLC0415

        config = MdsConfig(
            store=folder / "metadata.sqlite",
            listen=(listen,),
            grpc_listen=(grpc_listen,),
            allow_remote=allow_remote,
            root_password=app.root_password(),
            replicas=replicas,
            copysets_per_chunkserver=copysets,
        )
        server = MdsServer(config)
        await server.start()
        try:
            ready = {
                "mds": server.address,
                "mds_grpc": server.grpc_address,
                "replicas": server.replicas,
                "pid": os.getpid(),
            }
            app.emit(
                ready,
                lambda: click.echo(
                    f"MDS ready at {server.address} (gRPC {server.grpc_address}), "
                    f"replicas: {server.replicas}"
                ),
            )
            await stopper.wait()
        finally:
            await server.stop()

    with exclusive(folder, "the MDS's folder"):
        run_daemon(run)


@click.command("chunkserver")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of chunks.")
@click.option(
    "--listen", metavar="HOST:PORT", default=DEFAULT_CHUNKSERVER, show_default=True,
    help="Where chunks are served.",
)  # fmt: skip
@click.option("--advertise", metavar="IP:PORT", help="Where clients reach it, if elsewhere.")
@click.option("--zone", help="Failure domain, such as a rack (default: the address's host).")
@click.option("--wal-size", type=SIZE, help="Write-ahead log (default 1G).")
@click.option("--memory", type=SIZE, help="Buffers of requests in flight (default 64M).")
@click.option("--reserve", type=SIZE, help="Free space that is kept back (default 64M).")
@click.option("--inflight-max", type=click.IntRange(1), help="Requests at once (default 5000).")
@click.option(
    "--scrub-rate", type=SIZE,
    help="Bytes per second that the scrub reads at most (default 16M); 0: no scrub.",
)  # fmt: skip
@click.option(
    "--scrub-period", type=PERIOD, metavar="TIME",
    help="From one pass of the scrub to the next, such as 12h or 7d (the default).",
)  # fmt: skip
@click.option(
    "--copy-rate", type=SIZE,
    help="Bytes per second that replicas are copied with at most (default 100M).",
)  # fmt: skip
@click.option(
    "--backend", type=click.Choice(list(BACKENDS)), default="auto",
    show_default=True, help="How it talks to the kernel.",
)  # fmt: skip
@click.option("--allow-remote", is_flag=True, help=REMOTE_HELP)
@click.option(
    "--child", is_flag=True, hidden=True,
    help="Of copygate up: end when standard input does.",
)  # fmt: skip
@click.option("--pidfile", hidden=True, help="Of copygate up, which writes it.")
@pass_app
def chunkserver(
    app: App,
    *,
    data: Path,
    listen: str,
    advertise: str | None,
    zone: str | None,
    wal_size: int | None,
    memory: int | None,
    reserve: int | None,
    inflight_max: int | None,
    scrub_rate: int | None,
    scrub_period: int | None,
    copy_rate: int | None,
    backend: str,
    allow_remote: bool,
    child: bool,
    pidfile: str | None,
) -> None:
    """Serve the chunks of one disk, the folder --data, and join the cluster of --mds-grpc.

    The MDS decides which chunks it has. Replicas of one chunk are in different zones: give each
    chunkserver of a machine, or of a rack, the same --zone.
    """
    del pidfile  # only to be found by it
    setup_log(app.log_level)
    for address in listen.split(","):
        check_listen(address, "--listen", allow_remote)
    if advertise is not None:
        split_address(advertise, "--advertise")
    folder = make_folder(data, "the chunkserver's folder")

    async def run(stopper: Stopper) -> None:
        if child:
            stop_with_parent(stopper)
        from gateway.chunkserver.host import (  # noqa: PLC0415
            SCRUB_PERIOD_S,
            SCRUB_RATE,
            Host,
            Settings,
            open_engine,
        )

        settings = Settings(
            folder=folder,
            listen=listen,
            mds_grpc=app.grpc_address,
            advertise=advertise,
            zone=zone,
            wal_bytes=wal_size or 0,
            memory_bytes=memory or 0,
            inflight_max=inflight_max or 0,
            reserve_bytes=reserve or 0,
            scrub_rate=SCRUB_RATE if scrub_rate is None else scrub_rate,
            scrub_period_s=scrub_period or SCRUB_PERIOD_S,
            copy_rate=copy_rate or 0,
            backend=BACKENDS[backend],
            log_level=app.log_level,
        )
        async with contextlib.AsyncExitStack() as stack:
            host = Host(settings, await asyncio.to_thread(open_engine, settings))
            stack.push_async_callback(host.stop)
            await host.start()
            ready = {"chunkserver": host.address, "id": host.id, "pid": os.getpid()}
            app.emit(ready, lambda: click.echo(f"chunkserver {host.id} ready at {host.address}"))
            await stopper.wait()

    run_daemon(run)  # the engine holds the folder's lock itself
