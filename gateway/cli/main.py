# SPDX-License-Identifier: BSD-3-Clause
"""The entry point: finds the command, reads the configuration, turns errors into messages."""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from gateway import config
from gateway.cli.app import App, fail, setup_log, shared_options
from gateway.errors import (
    BusyError,
    CopygateError,
    InvalidArgumentError,
    NoSpaceError,
)

EPILOG = """Sizes are powers of two: 10G = 10GiB = 10 x 2^30 bytes.

Exit codes: 0 done; 1 failed; 2 wrong option, value or configuration; 3 not found; 4 the name is
taken; 5 in use; 6 the owner does not match; 7 taken over by another client; 8 a server does not
answer; 9 no space; 10 the store failed; 11 protocol error; 130 interrupted.

Each option can be set as COPYGATE_<COMMAND>_<OPTION> or in a TOML file: see docs/operations.md."""

# Command -> module:function. A command's module is imported when the command runs.
COMMANDS = {
    "up": "gateway.cli.up:up",
    "mds": "gateway.cli.daemons:mds",
    "chunkserver": "gateway.cli.daemons:chunkserver",
    "volume": "gateway.cli.volume:volume",
    "nbd": "gateway.cli.nbd:nbd",
    "iscsi": "gateway.cli.iscsi:iscsi",
    "import": "gateway.cli.image:import_image",
    "export": "gateway.cli.image:export_image",
    "bench": "gateway.cli.bench:bench",
    "status": "gateway.cli.status:status",
    "copyset": "gateway.cli.copyset:copyset",
    "retire": "gateway.cli.copyset:retire",
    "scrub": "gateway.cli.scrub:scrub",
    "completion": "gateway.cli.completion:completion",
}


class LazyGroup(click.Group):
    """Imports a command only when it is asked for, and proposes the nearest name for a wrong
    one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, name = target.partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)  # noqa: S101 - our own table
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            mend = f"did you mean '{near[0]}'?" if near else "commands: " + ", ".join(COMMANDS)
            raise click.UsageError(f"no command '{args[0]}': {mend}", ctx)
        return super().resolve_command(ctx, args)


def _load_config(ctx: click.Context, _param: click.Parameter, value: Path | None) -> None:
    path = value or config.find_file()
    if path is None or ctx.resilient_parsing:
        return
    tables = config.load(path)
    defaults: dict[str, Any] = dict(tables.pop("client", {}))
    if "mds" in defaults:
        defaults["mds_address"] = defaults.pop("mds")
    for command, values in tables.items():
        if command in ("nbd", "iscsi"):
            defaults[command] = {"serve": values}
        else:
            defaults[command] = values
    ctx.default_map = defaults


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import version  # noqa: PLC0415

    click.echo(f"copygate {version('copygate')}")
    ctx.exit()


@click.group(
    cls=LazyGroup,
    epilog=EPILOG.replace("\n\n", "\0").replace("\n", " ").replace("\0", "\n\n"),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="COPYGATE_CONFIG",
    is_eager=True,
    expose_value=False,
    callback=_load_config,
    help="Configuration file (TOML).",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and exit.",
)
@shared_options
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Block storage: replicated volumes that leave as NBD exports and iSCSI LUNs.

    Begin with: copygate up --volume vol1:10G
    """
    ctx.ensure_object(App)


def _os_error(error: OSError) -> CopygateError:
    """The operating system's errors that a user can mend, in our words."""
    context = {"file": error.filename} if error.filename else {}
    text = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError("no space left", context=context, hint="free some, or use another disk")
    if error.errno == errno.EADDRINUSE:
        return BusyError(
            f"the address is in use: {text}",
            context=context,
            hint="stop the other, or pick another",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InvalidArgumentError(
            text, context=context, hint="use a folder that this user may write"
        )
    return CopygateError(text, context=context)


def _run(arguments: list[str], app: App) -> int:
    try:
        result = cli.main(
            arguments,
            prog_name="copygate",
            standalone_mode=False,
            obj=app,
            auto_envvar_prefix=config.ENV_PREFIX,
        )
    except click.UsageError as error:
        click.echo(f"copygate: {error.format_message()}", err=True)
        if error.ctx is not None:
            click.echo(f"  see: {error.ctx.command_path} --help", err=True)
        return 2
    except click.Abort:
        click.echo("copygate: interrupted", err=True)
        return 130
    return result if isinstance(result, int) else 0


def main() -> None:
    """Runs `copygate`. Every failure ends in one or two lines and an exit code, never a
    traceback."""
    app = App()
    setup_log("info")
    try:
        code = _run(sys.argv[1:], app)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # The reader of our output went away; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except CopygateError as error:
        if app.debug:
            traceback.print_exc()
        fail(error, as_json=app.json)
    except OSError as error:
        if app.debug:
            traceback.print_exc()
        fail(_os_error(error), as_json=app.json)
    except Exception as error:  # noqa: BLE001 - the outermost: say it in a line
        if app.debug:
            traceback.print_exc()
        hint = "this is a defect of copygate: run it again with --debug and report what it prints"
        fail(
            CopygateError(f"internal error: {type(error).__name__}: {error}", hint=hint),
            as_json=app.json,
        )
    sys.exit(code)


if __name__ == "__main__":
    main()
