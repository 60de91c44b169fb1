# SPDX-License-Identifier: BSD-3-Clause
"""Processes that a test starts: logged to a file, ended by pid, never outliving the test."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class ProcessError(AssertionError):
    """A process did not start or did not end; the message carries its log's tail."""


def tail(path: Path, lines: int = 40) -> str:
    """The last lines of a log, for messages."""
    if not path.exists():
        return "(no log)"
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(
    condition: Callable[[], bool], timeout: float, what: str, interval: float = 0.01
) -> None:
    """Polls `condition` until it holds; TimeoutError naming `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout:g} s")
        time.sleep(interval)


def tcp_accepts(port: int) -> bool:
    """Whether somebody accepts connections on 127.0.0.1:port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def unix_accepts(path: Path) -> bool:
    """Whether somebody accepts connections on the unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        return probe.connect_ex(str(path)) == 0


def says(log: Path, text: str) -> bool:
    """Whether a daemon has logged `text` since it was started last."""
    return log.exists() and text in log.read_text(errors="replace").rpartition("\n--- ")[2]


class Daemon:
    """One long-running process, restartable with the same arguments.

    Its output is appended to `log`. It gets SIGKILL when the test's process dies.
    """

    def __init__(  # noqa: PLR0917
        self,
        name: str,
        argv: Sequence[str],
        log: Path,
        ready: Callable[[], bool],
        env: Mapping[str, str] | None = None,
        ready_timeout: float = 20.0,
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.log = log
        self._ready = ready
        self.environment = dict(os.environ if env is None else env)
        self._ready_timeout = ready_timeout
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id; the daemon must run."""
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Starts it without waiting."""
        assert not self.running, f"{self.name} runs already"
        with self.log.open("ab") as log:
            log.write(f"\n--- {' '.join(self.argv)}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - the tests fork from one thread
            )

    def start(self) -> "Daemon":
        """Starts it and waits until it is ready to serve."""
        self.launch()
        self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Waits until it serves; raises ProcessError with the log's tail if it does not."""
        deadline = time.monotonic() + self._ready_timeout
        while not self._ready():
            process = self._process
            if process is None or process.poll() is not None:
                code = None if process is None else process.returncode
                raise ProcessError(f"{self.name} ended with {code}:\n{tail(self.log)}")
            if time.monotonic() > deadline:
                self.kill()
                raise ProcessError(
                    f"{self.name} not ready within {self._ready_timeout:g} s:\n{tail(self.log)}"
                )
            time.sleep(0.005)

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process itself."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9, and waits for the end. The whole session goes, as a service manager would do."""
        self._end(signal.SIGKILL, 10)

    def stop(self, timeout: float = 20.0) -> int:
        """Asks it to end (SIGTERM); returns its exit status. Kills it after `timeout`, raises."""
        if self._process is None:
            return 0
        try:
            return self._end(signal.SIGTERM, timeout)
        except subprocess.TimeoutExpired:
            self._end(signal.SIGKILL, 10)
            raise ProcessError(
                f"{self.name} did not end within {timeout:g} s of SIGTERM:\n{tail(self.log)}"
            ) from None

    def wait(self, timeout: float) -> int:
        """Waits for it to end by itself; returns the exit status."""
        assert self._process is not None
        return self._process.wait(timeout)

    def _end(self, number: signal.Signals, timeout: float) -> int:
        process = self._process
        if process is None:
            return 0
        if process.poll() is None:
            # A stopped process must be continued, or it never sees SIGTERM.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
                if number == signal.SIGKILL:
                    os.killpg(process.pid, number)
                else:
                    os.kill(process.pid, number)
        code = process.wait(timeout)
        if number == signal.SIGKILL:
            # Children of the session that are left (they are ours: the session is its own).
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        self._process = None
        return code
