# SPDX-License-Identifier: BSD-3-Clause
"""Where a server listens: ``127.0.0.1:67``, ``[::1]:67``, ``localhost:67`` or ``unix:/path``."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import ConfigError

UNIX_PATH_MAX = 107
"""Bytes that a unix socket's path may have (sun_path less its NUL)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A TCP address (``host`` and ``port``) or a unix socket (``path``, then host is empty)."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def is_unix(self) -> bool:
        return bool(self.path)

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        if self.is_unix or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def grpc_target(self) -> str:
        """The form that gRPC takes."""
        return f"unix:{self.path}" if self.is_unix else str(self)

    def __str__(self) -> str:
        if self.is_unix:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_endpoint(text: str, *, any_port: bool = False) -> Endpoint:
    """Reads an endpoint. ``any_port`` allows port 0 (a server then picks one).

    Raises ConfigError with what is wrong and the form that was expected.
    """
    hint = "write HOST:PORT or unix:/path"
    context = {"address": text}
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path or "\0" in path:
            raise ConfigError("the socket's path is empty or has a NUL", context=context, hint=hint)
        if len(str(Path(path).absolute()).encode()) > UNIX_PATH_MAX:
            raise ConfigError(
                f"the socket's path is longer than {UNIX_PATH_MAX} bytes",
                context=context,
                hint="use a shorter folder",
            )
        return Endpoint(path=path)
    host, separator, port_text = text.rpartition(":")
    if not separator or not host:
        raise ConfigError("the address has no host or no port", context=context, hint=hint)
    if host.startswith("["):
        if not host.endswith("]"):
            raise ConfigError("the address has an unclosed bracket", context=context, hint=hint)
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(
            "an IPv6 address needs brackets", context=context, hint="write [ADDRESS]:PORT"
        )
    if not port_text.isascii() or not port_text.isdigit():
        raise ConfigError("the port is not a number", context=context, hint=hint)
    port = int(port_text)
    if port > 65535 or (port == 0 and not any_port):
        raise ConfigError("the port is not between 1 and 65535", context=context, hint=hint)
    return Endpoint(host=host, port=port)
