# SPDX-License-Identifier: BSD-3-Clause
"""The life of a daemon: its data folder is its own, it serves until a signal, it stops in order."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from gateway.errors import BusyError, InvalidArgumentError

log = logging.getLogger("gateway.cli")

INTERRUPTED = 130


def make_folder(path: Path, what: str, option: str = "--data") -> Path:
    """Makes a folder for this user alone, if it is not there; returns its absolute path."""
    path = path.expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (FileExistsError, NotADirectoryError) as error:
        raise InvalidArgumentError(
            f"{what} is not a folder", context={"path": path}, hint=f"choose another with {option}"
        ) from error
    except OSError as error:
        raise InvalidArgumentError(
            f"cannot make {what}: {error.strerror}",
            context={"path": path},
            hint=f"choose one that this user may write with {option}",
        ) from error
    return path


@contextlib.contextmanager
def exclusive(folder: Path, what: str, option: str = "--data") -> Iterator[None]:
    """Holds a data folder: a second daemon on it is refused. The kernel frees it when we die."""
    path = folder / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidArgumentError(
            f"cannot write to {what}: {error.strerror}",
            context={"path": folder},
            hint=f"choose one that this user may write with {option}",
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            raise BusyError(
                f"{what} is in use by another copygate",
                context={"path": folder, "pid": holder or "unknown"},
                hint=f"stop that one, or choose another folder with {option}",
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        # The file stays: removing it would let two hold "the" lock, one of them a deleted file.
        os.close(descriptor)


class Stopper:
    """Waits for SIGINT or SIGTERM; during the start such a signal cancels the task that starts.

    A second SIGINT ends the process at once: nothing is lost by it, since what was acknowledged is
    durable, and the next start replays the log.
    """

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._starting = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        if self._asked.is_set():
            if number == signal.SIGINT:
                os._exit(INTERRUPTED)
            return
        self.stop(signal.Signals(number).name)

    def stop(self, why: str) -> None:
        """Ends the daemon as a signal does."""
        if self._asked.is_set():
            return
        log.info("%s: stopping", why)
        self._asked.set()
        if self._starting is not None:
            self._starting.cancel()

    async def wait(self) -> None:
        """To be called when everything runs: returns when a signal comes."""
        self._starting = None
        await self._asked.wait()


def run_daemon(start: Callable[[Stopper], Coroutine[Any, Any, None]]) -> None:
    """Runs a daemon in an event loop until it ends, or a signal ends its start."""

    async def run() -> None:
        stopper = Stopper()
        try:
            await start(stopper)
        except asyncio.CancelledError:
            log.info("stopped before it was ready")

    asyncio.run(run())


def stop_with_parent(stopper: Stopper) -> None:
    """Ends the daemon when its standard input does: a pipe of which its parent has the other end,
    so that it does not outlive a parent that was killed."""
    loop = asyncio.get_running_loop()

    def readable() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stopper.stop("the parent has ended")

    loop.add_reader(0, readable)
