# SPDX-License-Identifier: BSD-3-Clause
"""How commands ask the gateway that runs on this machine: a unix socket in its folder.

A connection carries one request and one answer, each a line of JSON. Who may open the socket may
ask: it is for this user alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from gateway.errors import CopygateError, DeadlineError, InvalidArgumentError, UnavailableError

log = logging.getLogger("gateway.iscsi")

SOCKET = "control"
LINE_MAX = 16 << 20
TIMEOUT_S = 60.0

Answer = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


def default_folder() -> Path:
    """Where a gateway keeps its sockets: for root, for a service, for a user."""
    given = os.environ.get("RUNTIME_DIRECTORY")  # of systemd
    if given:
        return Path(given.split(":")[0])
    if os.geteuid() == 0:
        return Path("/run/copygate-iscsi")
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base:
        return Path(base) / "copygate-iscsi"
    return Path(f"/tmp/copygate-iscsi-{os.geteuid()}")  # noqa: S108 - its owner is checked


def folder_to_ask(given: Path | None) -> Path:
    """The folder of the gateway to ask: the given one, else ours, else the service's."""
    folder = given or default_folder()
    service = Path("/run/copygate-iscsi")
    if given is None and not (folder / SOCKET).exists() and service.exists():
        return service
    return folder


def check_folder(folder: Path) -> Path:
    """Checks that a folder is ours alone, and that sockets in it have names that are short
    enough."""
    about = folder.stat()
    if about.st_uid != os.geteuid():
        raise InvalidArgumentError(
            "the folder of the gateway belongs to somebody else",
            context={"folder": folder},
            hint="choose another with --run-dir",
        )
    if len(os.fsencode(folder)) > 107 - len("/0123456789abcdef/tgtd.1.lock"):
        raise InvalidArgumentError(
            "the path of the gateway's folder is too long for sockets",
            context={"folder": folder},
            hint="choose a shorter one with --run-dir",
        )
    return folder


async def serve(folder: Path, answer: Answer) -> asyncio.Server:
    """Answers requests until the server is closed. Only for the holder of the folder's lock."""
    path = folder / SOCKET
    path.unlink(missing_ok=True)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(await reader.readline())
            if not isinstance(request, dict):
                raise ValueError("it is not an object")
            reply = await answer(request)
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        except (ValueError, OSError, KeyError, RecursionError) as error:
            log.warning("a request of another program failed: %s", error)
        finally:
            writer.close()

    old = os.umask(0o177)
    try:
        return await asyncio.start_unix_server(handle, str(path), limit=LINE_MAX)
    finally:
        os.umask(old)


def ask(folder: Path, **request: Any) -> dict[str, Any]:
    """Asks the gateway that runs in a folder. Raises UnavailableError when none does."""
    path = folder / SOCKET
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(TIMEOUT_S)
        try:
            sock.connect(str(path))
            sock.sendall(json.dumps(request).encode() + b"\n")
            data = sock.makefile("rb").readline(LINE_MAX)
        except TimeoutError as error:
            raise DeadlineError(
                "the iSCSI gateway does not answer", context={"socket": path}
            ) from error
        except OSError as error:
            raise UnavailableError(
                "no iSCSI gateway runs here",
                context={"socket": path, "reason": error.strerror or str(error)},
                hint="start it: copygate iscsi serve (or copygate up --iscsi); as another user, or "
                "with another --run-dir, it is not seen from here",
            ) from error
    try:
        answer: dict[str, Any] = json.loads(data)
    except ValueError as error:
        raise CopygateError("the iSCSI gateway ended while it was asked") from error
    return answer
