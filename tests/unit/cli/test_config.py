# SPDX-License-Identifier: BSD-3-Clause
"""The configuration file: what is known, what is refused, what wins over what."""

import importlib
import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from gateway import config
from gateway.cli import daemons
from gateway.cli.app import App, pass_app
from gateway.cli.main import COMMANDS, cli
from gateway.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "copygate.toml"
    path.write_text(text)
    return path


def test_a_file_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, '[client]\nmds = "a:1"\n[up]\nvolume = ["v:1G"]\nwal_size = 4096\n')
    assert config.load(path) == {
        "client": {"mds": "a:1"},
        "up": {"volume": ["v:1G"], "wal_size": "4096"},
    }


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[clinet]\n", "unknown table [clinet]", "[client]"),
        ('mds = "a:1"\n', "'mds' stands outside of a table", "below [client]"),
        ("up = 5\n", "'up' stands outside of a table", "did you mean [up]?"),
        ("[up]\nvolumes = []\n", "unknown key 'volumes' in [up]", "'volume'"),
        ("[up]\nzzz = 1\n", "unknown key 'zzz'", "known keys: data"),
        ("[client]\nmds = 5\n", "'mds' in [client] must be text", ""),
        ("[up]\nread_only = 'yes'\n", "must be true or false", ""),
        ("[up]\nthreads = true\n", "must be an integer", ""),
        ("[up]\nvolume = 'v:1G'\n", "must be a list of text", ""),
        ("[up]\nwal_size = 1.5\n", "must be a size", ""),
        ("not toml [", "is not TOML", ""),
        ("\0", "is not TOML", ""),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str, hint: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        config.load(path)
    assert message in refused.value.message
    assert hint in refused.value.hint
    assert str(path) in str(refused.value)


def test_a_file_that_is_not_there_or_is_huge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        config.load(tmp_path / "none.toml")
    path = write(tmp_path, "#" * (config.MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigError, match="longer"):
        config.load(path)


def test_the_users_file_comes_before_the_systems(tmp_path: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert config.default_files(environment) == [
        tmp_path / "copygate/copygate.toml",
        Path("/etc/copygate/copygate.toml"),
    ]
    (tmp_path / "copygate").mkdir()
    (tmp_path / "copygate/copygate.toml").write_text("")
    assert config.find_file(environment) == tmp_path / "copygate/copygate.toml"


def command(name: str) -> click.Command:
    module, _, attribute = COMMANDS[name].partition(":")
    found = getattr(importlib.import_module(module), attribute)
    assert isinstance(found, click.Command)
    if isinstance(found, click.Group):
        return found.commands["serve"]
    return found


@pytest.mark.parametrize("table", [name for name in config.SCHEMA if name != "client"])
def test_each_key_is_an_option_and_each_option_a_key(table: str) -> None:
    shared = {parameter.name for parameter in cli.params}
    options = {
        parameter.name
        for parameter in command(table).params
        if isinstance(parameter, click.Option)
        and parameter.name not in shared
        and not parameter.hidden
    }
    assert set(config.SCHEMA[table]) == options


def test_the_clients_keys_are_the_shared_options() -> None:
    shared = {parameter.name for parameter in cli.params}
    assert set(config.SCHEMA["client"]) - {"mds"} <= shared
    assert "mds_address" in shared


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a command would get, instead of doing it."""
    got: dict[str, Any] = {}

    @click.command()
    @click.option("--listen", default="default")
    @pass_app
    def probe(app: App, **options: object) -> None:
        got.update(options, mds=app.mds, json=app.json)

    monkeypatch.setattr(daemons, "mds", probe)
    return got


@pytest.mark.parametrize(
    ("arguments", "environment", "listen"),
    [
        (["mds", "--listen", "option"], {"COPYGATE_MDS_LISTEN": "environment"}, "option"),
        (["mds"], {"COPYGATE_MDS_LISTEN": "environment"}, "environment"),
        (["mds"], {}, "file"),
    ],
)
def test_option_before_environment_before_file(
    tmp_path: Path,
    seen: dict[str, Any],
    arguments: list[str],
    environment: dict[str, str],
    listen: str,
) -> None:
    path = write(tmp_path, '[mds]\nlisten = "file"\n[client]\nmds = "from-file:1"\njson = true\n')
    CliRunner(env=environment).invoke(
        cli,
        ["--config", str(path), *arguments],
        auto_envvar_prefix=config.ENV_PREFIX,
        catch_exceptions=False,
        obj=App(),
    )
    assert seen == {"listen": listen, "mds": "from-file:1", "json": True}


def test_shared_options_work_on_both_sides_of_the_command(seen: dict[str, Any]) -> None:
    for arguments in (["--mds", "x:1", "--json", "mds"], ["mds", "--mds", "x:1", "--json"]):
        seen.clear()
        CliRunner().invoke(cli, arguments, catch_exceptions=False, obj=App())
        assert (seen["mds"], seen["json"]) == ("x:1", True), json.dumps(seen)


def test_what_is_typed_wins_over_the_environment_wherever_it_stands(seen: dict[str, Any]) -> None:
    for arguments in (["--mds", "typed:1", "mds"], ["mds", "--mds", "typed:1"]):
        seen.clear()
        CliRunner(env={"COPYGATE_MDS": "environment:1"}).invoke(
            cli,
            arguments,
            auto_envvar_prefix=config.ENV_PREFIX,
            catch_exceptions=False,
            obj=App(),
        )
        assert seen["mds"] == "typed:1"
