# SPDX-License-Identifier: BSD-3-Clause
"""The volumes that an nbdkit process has open.

Connections to the same volume share one opening of it: the core takes IO from any thread, and a
second opening for writing would fence the first.
"""

from __future__ import annotations

import errno
import threading
from dataclasses import dataclass

from gateway import core
from gateway.errors import BusyError, FencedError, InvalidArgumentError, NotFoundError
from gateway.nbd.callbacks import Export
from gateway.nbd.options import Options

VOLUMES_MAX = 256
"""Volumes that one nbdkit process may have open."""


@dataclass
class _Opened:
    export: Export
    connections: int = 0


def plain_name(name: str) -> str:
    """The volume's name without the leading slash that CurveBS paths have."""
    return name.lstrip("/")


class Exports:
    """Opens volumes for connections and closes them after the last one. Any thread."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._client = self._connect()
        self._lock = threading.Lock()
        self._opened: dict[tuple[str, bool], _Opened] = {}

    def _connect(self) -> core.Client:
        return core.Client(
            self._options.mds, owner=self._options.owner, root_password=self._options.password
        )

    def _open(self, name: str, *, read_only: bool, shared: bool) -> core.Volume:
        timeout = self._options.timeout_s
        return self._client.open_volume(
            name,
            read_only=read_only,
            shared=shared,
            io_timeout=timeout,
            # A deadline shorter than the core's default for opening holds for opening too.
            open_timeout=timeout if timeout is not None and timeout < 10 else None,
        )

    def check(self) -> None:
        """Opens volume= read-only and closes it: an error at the start beats one at first use."""
        if self._options.volume is not None:
            self._open(self._options.volume, read_only=True, shared=False).close()

    def choose(self, export_name: str) -> str:
        """The volume that a client means. Raises NotFoundError, InvalidArgumentError."""
        volume = self._options.volume
        name = plain_name(export_name)
        if volume is None:
            if not name:
                raise InvalidArgumentError(
                    "the client gave no export name: connect to nbd://HOST/VOLUME, or start nbdkit "
                    "with volume=NAME"
                )
            return name
        if name not in ("", plain_name(volume)):
            raise NotFoundError(f"there is no export {name}: this server has volume={volume} alone")
        return plain_name(volume)

    def acquire(self, name: str, *, read_only: bool) -> Export:
        """Opens the volume or joins its connections."""
        key = (name, read_only)
        with self._lock:
            opened = self._opened.get(key)
            if opened is None:
                if len(self._opened) >= VOLUMES_MAX:
                    raise BusyError(
                        f"cannot open volume {name}: {VOLUMES_MAX} volumes are open, which is the "
                        "limit of one nbdkit process"
                    )
                volume = self._open(name, read_only=read_only, shared=self._options.shared)
                opened = self._opened[key] = _Opened(Export(volume, name, read_only))
            elif opened.export.fenced:
                # Joining would take the volume back under connections that were told it is lost.
                raise FencedError(
                    f"volume {name} was taken over by another client: close the connections to it, "
                    "then connect anew to take it back"
                )
            opened.connections += 1
            return opened.export

    def release(self, export: Export) -> None:
        """The last connection that leaves closes the volume, which waits for the IO in flight."""
        key = (export.name, export.read_only)
        with self._lock:
            opened = self._opened[key]
            opened.connections -= 1
            if opened.connections == 0:
                del self._opened[key]
                # Under the lock: a new opening for writing must not start before this one's end.
                opened.export.volume.close()

    def close(self) -> None:
        """Closes everything; no connection is left."""
        self._client.close()


def nbd_errno(error: BaseException) -> int:
    """The errno for nbdkit.set_error when an exception ends opening a volume."""
    if isinstance(error, NotFoundError | InvalidArgumentError):
        return errno.ENOENT
    if isinstance(error, FencedError):
        return errno.ESHUTDOWN
    return errno.EIO
