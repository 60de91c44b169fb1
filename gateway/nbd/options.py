# SPDX-License-Identifier: BSD-3-Clause
"""The options of the nbdkit plugin; csrc/frontends/nbdkit_options.c takes the same ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gateway.errors import ConfigError

DEFAULT_MDS = "127.0.0.1:6700"
DEFAULT_OWNER = "copygate"
NAME_MAX = 4096
PASSWORD_MAX = 1024
TIMEOUT_MAX_S = 3600
_TRUE = {"1", "true", "t", "yes", "y", "on"}
_FALSE = {"0", "false", "f", "no", "n", "off"}


@dataclass
class Options:
    """What nbdkit's command line says. ``set`` takes one key=value, ``complete`` ends it."""

    volume: str | None = None
    """None: the client's export name chooses."""
    mds: str = DEFAULT_MDS
    owner: str = DEFAULT_OWNER
    password: str | None = field(default=None, repr=False)
    shared: bool = False
    timeout_s: int | None = None
    """None: the core's default."""
    _given: set[str] = field(default_factory=set, repr=False)

    def set(self, key: str, value: str) -> None:
        """Takes one option. Raises ConfigError, which names the option, the value and the mend."""
        setters = {
            "volume": self._set_volume,
            "mds": self._set_mds,
            "owner": self._set_owner,
            "password-file": self._set_password_file,
            "shared": self._set_shared,
            "timeout": self._set_timeout,
        }
        if key == "readonly":
            raise ConfigError(
                f"readonly={value} is not an option: run nbdkit with -r to serve read-only"
            )
        if key not in setters:
            raise ConfigError(
                f"{key}= is not an option of copygate: known are volume=, mds=, owner=, "
                "password-file=, shared= and timeout="
            )
        if key in self._given:
            raise ConfigError(f"{key}= is given twice: give it once")
        setters[key](value)
        self._given.add(key)

    def complete(self) -> None:
        """Checks what depends on two options. Raises ConfigError."""
        if self.password is not None and self.owner != "root":
            raise ConfigError(
                "password-file= is for owner=root alone: other owners have no password; add "
                "owner=root or leave password-file= out"
            )

    def _set_volume(self, value: str) -> None:
        if not value.strip("/"):
            raise ConfigError(
                f"volume={value} names no volume: give a name as `copygate volume list` shows it, "
                "or leave volume= out and let the client's export name choose"
            )
        if len(value.encode(errors="surrogateescape")) > NAME_MAX:
            raise ConfigError(f"volume= is longer than {NAME_MAX} bytes: no volume has such a name")
        self.volume = value

    def _set_mds(self, value: str) -> None:
        if not value:
            raise ConfigError(
                "mds= is empty: give the metadata servers as HOST:PORT[,HOST:PORT...], for example "
                f"mds={DEFAULT_MDS}"
            )
        self.mds = value

    def _set_owner(self, value: str) -> None:
        if not value:
            raise ConfigError(
                "owner= is empty: give the volume's owner, or leave owner= out for `copygate`"
            )
        self.owner = value

    def _set_password_file(self, value: str) -> None:
        try:
            with Path(value).open("rb") as file:
                line = file.read(PASSWORD_MAX + 2).split(b"\n", 1)[0].removesuffix(b"\r")
        except OSError as error:
            raise ConfigError(f"password-file={value}: cannot open: {error.strerror}") from error
        if not line or len(line) > PASSWORD_MAX:
            fault = "is too long" if line else "is empty"
            raise ConfigError(
                f"password-file={value}: the first line {fault}: it must hold the password, at "
                f"most {PASSWORD_MAX} bytes"
            )
        try:
            self.password = line.decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"password-file={value}: the password is not UTF-8") from error

    def _set_shared(self, value: str) -> None:
        if value.lower() not in _TRUE | _FALSE:
            raise ConfigError(f"shared={value} is neither yes nor no: give shared=yes or shared=no")
        self.shared = value.lower() in _TRUE

    def _set_timeout(self, value: str) -> None:
        digits = value.isascii() and value.isdigit() and len(value) <= 9
        if not digits or not 1 <= int(value) <= TIMEOUT_MAX_S:
            raise ConfigError(
                f"timeout={value} is not a deadline: give whole seconds between 1 and "
                f"{TIMEOUT_MAX_S}, for example timeout=25"
            )
        self.timeout_s = int(value)
