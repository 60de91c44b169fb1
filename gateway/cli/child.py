# SPDX-License-Identifier: BSD-3-Clause
"""A program that runs as our child: started, relayed to our log, started again when it dies, ended.

What differs between programs (nbdkit, tgtd) is a Launch, which says how to start one, and two
functions: one returns when it serves, the other asks it to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import select
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import CopygateError

log = logging.getLogger("gateway.child")

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
# A child that lived this long was healthy: its next restart is quick again.
HEALTHY_S = 30.0
ORPHAN_TIMEOUT_S = 5.0


def package_folder() -> Path:
    """The folder of the installed `gateway` package."""
    spec = importlib.util.find_spec("gateway")
    if spec is None or spec.origin is None:
        raise CopygateError("the package gateway is not installed", hint="make build")
    return Path(spec.origin).parent


def end_orphan(pidfile: Path, name: str) -> None:
    """Ends the child that an earlier run left behind, if there is one.

    Only for the holder of the lock of the folder that the pid file is in: whoever wrote it is then
    known to be gone. The program's words must name the pid file.
    """
    try:
        pid = int(pidfile.read_text(encoding="ascii"))
        descriptor = os.pidfd_open(pid)
    except (OSError, ValueError):
        return
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        # A number is given out again: only what was started with this very file is meant.
        if os.fsencode(pidfile) in words:
            log.warning("ending %s, pid %d, of a run before this one", name, pid)
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            select.select([descriptor], [], [], ORPHAN_TIMEOUT_S)
    except OSError as error:
        log.warning("cannot end %s, pid %d: %s", name, pid, error)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Launch:
    """How to start a program."""

    command: Sequence[str]
    environment: Mapping[str, str]
    stdin: int = subprocess.DEVNULL


async def terminate(process: asyncio.subprocess.Process, name: str, timeout_s: float) -> None:
    """Ends a child: asks with SIGTERM first, and kills it when it does not go."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), timeout_s)
    except TimeoutError:
        log.warning("%s (pid %d) does not end: ending it", name, process.pid)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


class Supervisor:
    """One child, restarted with a growing pause whenever it dies.

    `launch` is asked before each start. `ready(process)` returns when the child serves, and raises
    a CopygateError when it will not; it is cancelled when the child dies meanwhile. `ask` tells the
    child to end, before SIGTERM does. `relay` gets each line that the child writes to its standard
    error.
    """

    def __init__(
        self,
        name: str,
        *,
        launch: Callable[[], Launch],
        ready: Callable[[asyncio.subprocess.Process], Awaitable[None]],
        relay: Callable[[str], None],
        stop_timeout_s: float,
        ask: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.name = name
        self.failure: str | None = None
        """Why it does not serve now; None while it serves."""
        self.restarts = 0
        self.settled = asyncio.Event()
        """Set once it serves, or has failed to, for the first time."""
        self._launch = launch
        self._ready = ready
        self._relay = relay
        self._ask = ask
        self._stop_timeout_s = stop_timeout_s
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._last_line = ""

    @property
    def pid(self) -> int | None:
        """The pid of the child that was started last, if there is one."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Starts the child and returns when it serves; raises when it does not."""
        process, reader = await self._spawn()
        try:
            await self._until_ready(process)
        except BaseException:
            await terminate(process, self.name, self._stop_timeout_s)
            await reader
            raise
        self._task = asyncio.create_task(self._supervise(process, reader))

    def keep_trying(self) -> None:
        """Starts the child, and goes on trying when that fails; returns at once."""
        self.failure = "starting"
        self._task = asyncio.create_task(self._supervise(None, None))

    def kill(self) -> None:
        """Ends the child at once; it is started again."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def stop(self) -> None:
        """Ends the child, in order if it lets us."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        process = self._process
        if process is None or process.returncode is not None:
            return
        if self._ask is not None:
            try:
                async with asyncio.timeout(self._stop_timeout_s):
                    await self._ask()
                    await process.wait()
            except (TimeoutError, CopygateError) as error:
                log.info("%s does not end when asked: %s", self.name, error or "no answer")
        await terminate(process, self.name, self._stop_timeout_s)

    async def _spawn(self) -> tuple[asyncio.subprocess.Process, asyncio.Task[None]]:
        launch = self._launch()
        self._last_line = ""
        process = await asyncio.create_subprocess_exec(
            *launch.command,
            stdin=launch.stdin,
            stdout=subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=dict(launch.environment),
            # Ctrl-C in a terminal is for us; we end our children in order.
            start_new_session=True,
        )
        self._process = process
        return process, asyncio.create_task(self._read(process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Passes what the child says on, a line at a time."""
        assert process.stderr is not None  # noqa: S101 - it is a pipe
        while True:
            try:
                raw = await process.stderr.readline()
            except ValueError:  # a line longer than the reader's limit: the rest follows
                continue
            if not raw:
                return
            line = raw.decode(errors="replace").strip()
            if line:
                if not raw[:1].isspace():  # else it says what to do about the line before
                    self._last_line = line.split("error: ", 1)[-1].removeprefix("copygate: ")
                self._relay(line)

    async def _until_ready(self, process: asyncio.subprocess.Process) -> None:
        serving = asyncio.ensure_future(self._ready(process))
        dying = asyncio.ensure_future(process.wait())
        try:
            await asyncio.wait({serving, dying}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                await serving
            elif dying.done():
                await asyncio.sleep(0.05)  # let the relay see its last words
                raise CopygateError(
                    f"{self.name} ended at once: {self._last_line or 'it said nothing'}",
                    context={"exit status": process.returncode},
                    hint="the log above says why",
                )
        finally:
            for task in (serving, dying):
                task.cancel()
            await asyncio.gather(serving, dying, return_exceptions=True)
        self.failure = None
        self.settled.set()

    async def _supervise(
        self, process: asyncio.subprocess.Process | None, reader: asyncio.Task[None] | None
    ) -> None:
        pause = BACKOFF_FIRST_S
        while True:
            if process is not None and reader is not None:
                began = time.monotonic()
                status = await process.wait()
                await reader
                if time.monotonic() - began > HEALTHY_S:
                    pause = BACKOFF_FIRST_S
                self.failure = f"{self.name} ended with status {status}"
                self.restarts += 1
                log.error("%s: starting it again in %.1f s", self.failure, pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, BACKOFF_MAX_S)
            try:
                process, reader = await self._spawn()
                await self._until_ready(process)
            except (CopygateError, OSError) as error:
                self.failure = str(error)
                self.settled.set()
                log.error("%s: trying again in %.1f s", error, pause)
                if process is not None:
                    await terminate(process, self.name, self._stop_timeout_s)
                process = reader = None
                await asyncio.sleep(pause)
                pause = min(pause * 2, BACKOFF_MAX_S)
            else:
                log.info("%s serves, pid %d", self.name, process.pid)
