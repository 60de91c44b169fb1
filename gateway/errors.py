# SPDX-License-Identifier: BSD-3-Clause
"""The one family of exceptions of Copygate.

Every error that a user can meet says what failed, where (``context``) and what to do (``hint``);
the command line prints the three and exits with ``exit_code``.
"""

from __future__ import annotations

from collections.abc import Mapping


class CopygateError(Exception):
    """Something failed in a way that the caller can report.

    ``message`` is one sentence without a full stop; ``context`` names the things involved (volume,
    server, file); ``hint`` says what would mend it, or is empty.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        context: Mapping[str, object] | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.context: dict[str, object] = dict(context or {})
        self.hint = hint

    def __str__(self) -> str:
        text = self.message
        if self.context:
            text += " (" + ", ".join(f"{k}: {v}" for k, v in self.context.items()) + ")"
        return text


class ConfigError(CopygateError):
    """An option, a configuration file or an environment variable is wrong."""

    exit_code = 2


class InvalidArgumentError(CopygateError):
    """A name, size, owner or other value is not acceptable."""

    exit_code = 2


class NotFoundError(CopygateError):
    """The volume, folder or session does not exist."""

    exit_code = 3


class ExistsError(CopygateError):
    """The name is taken."""

    exit_code = 4


class BusyError(CopygateError):
    """Someone else uses it: an open volume, a locked store, a bound address."""

    exit_code = 5


class AccessError(CopygateError):
    """The owner or the signature does not match."""

    exit_code = 6


class FencedError(CopygateError):
    """Another client took the volume over: its epoch is newer than ours."""

    exit_code = 7


class UnavailableError(CopygateError):
    """A server does not answer."""

    exit_code = 8


class DeadlineError(UnavailableError):
    """A server did not answer in time; the change may or may not have been made."""


class NoSpaceError(CopygateError):
    """No chunkserver can take more data."""

    exit_code = 9


class StorageError(CopygateError):
    """The metadata store or a disk failed."""

    exit_code = 10


class ProtocolError(CopygateError):
    """The peer sent something that is not the protocol, or answered what it may not answer."""

    exit_code = 11
