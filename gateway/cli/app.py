# SPDX-License-Identifier: BSD-3-Clause
"""What every command has: the shared options, the two ways to answer (people, `--json`), the
log."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from click.core import ParameterSource

from gateway.cli.sizes import parse_period, parse_size
from gateway.errors import ConfigError, CopygateError, InvalidArgumentError

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_MDS = "127.0.0.1:6700"
DEFAULT_MDS_GRPC = "127.0.0.1:6701"
DEFAULT_CHUNKSERVER = "127.0.0.1:6710"

_Function = TypeVar("_Function", bound=Callable[..., Any])


def volume_path(name: str) -> str:
    """The full path of a volume: "vol1" is "/vol1"."""
    return name if name.startswith("/") else f"/{name}"


@dataclass
class App:
    """The options that all commands share, as they came out of the four places (gateway.config)."""

    mds: str = DEFAULT_MDS
    mds_grpc: str | None = None
    owner: str = "copygate"
    root_password_file: Path | None = None
    json: bool = False
    debug: bool = False
    log_level: str = "info"

    @property
    def grpc_address(self) -> str:
        """Where the MDS answers gRPC: what was given, else one port above `mds`."""
        if self.mds_grpc:
            return self.mds_grpc
        host, port = split_address(self.mds.split(",")[0], "--mds")
        return f"{host}:{port + 1}"

    def root_password(self) -> str | None:
        """The password of owner root from its file or COPYGATE_ROOT_PASSWORD; None when unset."""
        if self.root_password_file is None:
            return os.environ.get("COPYGATE_ROOT_PASSWORD")
        try:
            return self.root_password_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                "cannot read the file of root's password",
                context={"file": self.root_password_file},
                hint=str(error),
            ) from error

    def emit(self, data: Mapping[str, Any] | Sequence[Any], human: Callable[[], None]) -> None:
        """Answers: `data` as JSON on standard output with --json, else by calling `human`."""
        if self.json:
            click.echo(json.dumps(data, indent=2, default=str))
        else:
            human()

    def note(self, text: str) -> None:
        """A line for people on standard output; nothing with --json."""
        if not self.json:
            click.echo(text)


def console(*, stderr: bool = False) -> Console:
    """A rich console; imported only when there is something to draw."""
    from rich.console import Console  # noqa: PLC0415 - a table is rare, starting is not

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Prints a table; a column whose title begins with '>' is aligned right."""
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for title in columns:
        drawn.add_column(
            title.lstrip(">"), justify="right" if title.startswith(">") else "left", no_wrap=True
        )
    count = 0
    for row in rows:
        drawn.add_row(*(Text(str(cell)) for cell in row))
        count += 1
    if count == 0:
        click.echo(empty)
        return
    target = console()
    # As wide as it has to be: a cell that is cut off helps nobody, and a file has no width.
    unbounded = target.options.update(max_width=10_000)
    target.width = max(target.width, target.measure(drawn, options=unbounded).maximum)
    target.print(drawn)


def pairs(rows: Iterable[tuple[str, object]]) -> None:
    """Prints names and values, aligned."""
    listed = list(rows)
    width = max((len(name) for name, _ in listed), default=0)
    for name, value in listed:
        click.echo(f"{name + ':':<{width + 1}} {value}")


class SizeType(click.ParamType[int]):
    """A size in bytes, written 4096, 512M, 10G or 1TiB: powers of two."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except InvalidArgumentError as error:
            self.fail(f"{error.message}: {error.hint}" if error.hint else error.message, param, ctx)


SIZE = SizeType()


class PeriodType(click.ParamType[int]):
    """A time such as 12h, as seconds."""

    name = "period"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_period(str(value))
        except InvalidArgumentError as error:
            self.fail(f"{error.message}: {error.hint}" if error.hint else error.message, param, ctx)


PERIOD = PeriodType()


def split_address(text: str, option: str) -> tuple[str, int]:
    """Splits "host:port" or "[v6]:port". Raises InvalidArgumentError that names `option`."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidArgumentError(
            f"{option} is not an address: '{text}'", hint="write HOST:PORT, as in 127.0.0.1:6700"
        )
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise InvalidArgumentError(
            f"{option} is not an address: '{text}'", hint="an IPv6 address is written [::1]:6700"
        )
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a socket bound to `host`."""
    import ipaddress  # noqa: PLC0415

    bare = host.removeprefix("[").removesuffix("]")
    if bare == "localhost":
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False


def check_listen(text: str, option: str, allow_remote: bool) -> str:
    """Checks an address to bind: well formed, and on loopback unless --allow-remote."""
    if text.startswith("unix:"):
        return text
    host, _ = split_address(text, option)
    if not is_loopback(host) and not allow_remote:
        raise InvalidArgumentError(
            f"{option} {text} can be reached from other machines, and nothing checks who connects",
            hint="use 127.0.0.1, or --allow-remote if everybody on that network may read and write",
        )
    return text


def _store(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        # Behind a command only what was typed there counts: the environment and the file were read
        # in front of it, and must not win over what was typed there.
        typed = ctx.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
        if value is not None and value is not False and (typed or ctx.parent is None):
            setattr(ctx.ensure_object(App), name, value)
        return value

    return callback


def shared_options(function: _Function) -> _Function:
    """Adds the shared options to a command; they may stand before or after its name."""
    options = [
        click.option(
            "--mds",
            # "mds" is a table of the configuration: that of the command.
            "mds_address",
            metavar="HOST:PORT",
            envvar="COPYGATE_MDS",
            expose_value=False,
            callback=_store("mds"),
            help=f"Where the MDS serves the data path (default {DEFAULT_MDS}).",
        ),
        click.option(
            "--mds-grpc",
            metavar="HOST:PORT",
            expose_value=False,
            callback=_store("mds_grpc"),
            help="Where the MDS serves gRPC (default: one port above --mds).",
        ),
        click.option(
            "--owner",
            metavar="NAME",
            expose_value=False,
            callback=_store("owner"),
            help="Who we are to the MDS (default copygate).",
        ),
        click.option(
            "--root-password-file",
            type=click.Path(path_type=Path, dir_okay=False),
            expose_value=False,
            callback=_store("root_password_file"),
            help="File with the password of owner root; or COPYGATE_ROOT_PASSWORD.",
        ),
        click.option(
            "--json",
            is_flag=True,
            expose_value=False,
            callback=_store("json"),
            help="Answer in JSON on standard output.",
        ),
        click.option(
            "--log-level",
            type=click.Choice(["debug", "info", "warning", "error"]),
            expose_value=False,
            callback=_store("log_level"),
            help="Lowest level of the log on standard error (default info).",
        ),
        click.option(
            "--debug",
            is_flag=True,
            expose_value=False,
            callback=_store("debug"),
            help="Show the traceback of an error.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def pass_app(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the shared options and passes the App as the first argument."""

    @shared_options
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        app = click.get_current_context().ensure_object(App)
        return function(app, *args, **kwargs)

    return wrapper


class _UtcFormatter(logging.Formatter):
    """2026-11-21T01:47:38.123Z INFO mds: text, always on one line."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        source = record.name.removeprefix("gateway.")
        text = record.getMessage()
        if record.exc_info:
            text += " | " + self.formatException(record.exc_info)
        text = text.replace("\r", "\\r").replace("\n", "\\n")
        return f"{stamp}.{int(record.msecs):03d}Z {record.levelname} {source}: {text}"


def setup_log(level: str) -> None:
    """Sends the log to standard error, a line an event."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_UtcFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def fail(error: CopygateError, *, as_json: bool) -> NoReturn:
    """Prints an error, what and then the mend, and exits with its code."""
    click.echo(f"copygate: {error}", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)
    if as_json:
        body = {
            "message": error.message,
            "context": error.context,
            "hint": error.hint,
            "exit_code": error.exit_code,
        }
        click.echo(json.dumps({"error": body}, indent=2, default=str))
    sys.exit(error.exit_code)
