# SPDX-License-Identifier: BSD-3-Clause
"""Settings of the command line, from four places; the first that has a value wins:

1. the option on the command line,
2. the environment variable ``COPYGATE_<OPTION>`` or ``COPYGATE_<COMMAND>_<OPTION>``,
3. the configuration file (TOML): ``--config FILE``, else ``COPYGATE_CONFIG``, else the first of
   ``$XDG_CONFIG_HOME/copygate/copygate.toml`` and ``/etc/copygate/copygate.toml`` that exists,
4. the default.

The file has a table for what all commands share (``[client]``) and one for each command with
settings of its own. A name that is not known is refused, with the nearest one that is: a
mistyped option that is silently ignored costs somebody a night.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.errors import ConfigError

ENV_PREFIX = "COPYGATE"
MAX_FILE_BYTES = 1 << 20

# Table -> key -> the type of its value. "size" is a number of bytes or text such as "10G".
SCHEMA: Mapping[str, Mapping[str, str]] = {
    "client": {
        "mds": "text",
        "mds_grpc": "text",
        "owner": "text",
        "root_password_file": "text",
        "log_level": "text",
        "json": "boolean",
    },
    "up": {
        "data": "text",
        "volume": "list",
        "nbd": "text",
        "iscsi": "text",
        "run_dir": "text",
        "read_only": "boolean",
        "plugin": "text",
        "mds_listen": "text",
        "grpc_listen": "text",
        "chunkserver_listen": "text",
        "threads": "integer",
        "replicas": "integer",
        "wal_size": "size",
        "scrub_rate": "size",
        "allow_remote": "boolean",
    },
    "mds": {
        "data": "text",
        "listen": "text",
        "grpc_listen": "text",
        "replicas": "integer",
        "copysets": "integer",
        "allow_remote": "boolean",
    },
    "chunkserver": {
        "data": "text",
        "listen": "text",
        "advertise": "text",
        "zone": "text",
        "wal_size": "size",
        "memory": "size",
        "reserve": "size",
        "inflight_max": "integer",
        "scrub_rate": "size",
        "scrub_period": "text",
        "copy_rate": "size",
        "backend": "text",
        "allow_remote": "boolean",
    },
    "nbd": {
        "listen": "text",
        "read_only": "boolean",
        "plugin": "text",
        "threads": "integer",
        "allow_remote": "boolean",
    },
    "iscsi": {
        "gateway": "text",
        "run_dir": "text",
    },
}

_EXPECTED = {
    "text": "text",
    "boolean": "true or false",
    "integer": "an integer",
    "size": 'a size such as "10G"',
    "list": "a list of text",
}


def default_files(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Returns where a configuration file is looked for when none is named, best first."""
    home = environment.get("XDG_CONFIG_HOME") or str(Path("~/.config").expanduser())
    return [Path(home) / "copygate/copygate.toml", Path("/etc/copygate/copygate.toml")]


def find_file(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Returns the configuration file to read when no option names one, or None."""
    return next((path for path in default_files(environment) if path.is_file()), None)


def load(path: Path) -> dict[str, dict[str, Any]]:
    """Reads and checks a configuration file: table -> key -> value.

    Raises ConfigError when it cannot be read, is not TOML, has a name that is not known or a
    value of the wrong type.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration file: {error.strerror}", context={"file": path}
        ) from error
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError("the configuration file is longer than 1 MiB", context={"file": path})
    try:
        data = tomllib.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"the configuration file is not TOML: {error}", context={"file": path}
        ) from error
    return check(data, str(path))


def check(data: Mapping[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """Checks names and types of a parsed file; `source` is named in errors."""
    checked: dict[str, dict[str, Any]] = {}
    for table, values in data.items():
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"'{table}' stands outside of a table",
                context={"file": source},
                hint=_suggest_home(table),
            )
        if table not in SCHEMA:
            raise ConfigError(
                f"unknown table [{table}]", context={"file": source}, hint=_suggest_table(table)
            )
        checked[table] = {key: _value(table, key, values[key], source) for key in values}
    return checked


def _suggest_table(name: str) -> str:
    near = difflib.get_close_matches(name, SCHEMA, n=1, cutoff=0.5)
    if near:
        return f"did you mean [{near[0]}]?"
    return "known tables: " + ", ".join(f"[{table}]" for table in SCHEMA)


def _suggest_home(key: str) -> str:
    homes = [f"[{table}]" for table, keys in SCHEMA.items() if key in keys]
    if homes:
        return "write it below " + " or ".join(homes)
    return _suggest_table(key)


def _value(table: str, key: str, value: object, source: str) -> object:
    keys = SCHEMA[table]
    if key not in keys:
        near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else "known keys: " + ", ".join(keys)
        raise ConfigError(f"unknown key '{key}' in [{table}]", context={"file": source}, hint=hint)
    kind = keys[key]
    fits = {
        "text": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "integer": isinstance(value, int) and not isinstance(value, bool),
        "size": isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)),
        "list": isinstance(value, list) and all(isinstance(item, str) for item in value),
    }[kind]
    if not fits:
        raise ConfigError(
            f"'{key}' in [{table}] must be {_EXPECTED[kind]}, not {value!r}",
            context={"file": source},
        )
    return str(value) if kind == "size" else value
