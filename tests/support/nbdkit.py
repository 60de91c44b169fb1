# SPDX-License-Identifier: BSD-3-Clause
"""nbdkit with our plugins, started directly: what `copygate nbd serve` does not show."""

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from gateway.cli.nbdkit import find_plugin
from support.process import Daemon, tail, unix_accepts
from support.tools import CLEAN_ENV


def command(plugin: str, *options: str, nbdkit: Sequence[str] = ()) -> list[str]:
    """nbdkit's command line: its own options first, the plugin ("c" or "python"), the plugin's."""
    return ["nbdkit", *nbdkit, *find_plugin(plugin), *options]


def refused(plugin: str, *options: str, timeout: float = 30) -> str:
    """Starts nbdkit, which must end with an error; returns what it said."""
    done = subprocess.run(
        command(plugin, *options, nbdkit=("-U", "-", "--run", "exit 77")),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=CLEAN_ENV,
    )
    assert done.returncode == 1, f"ended with {done.returncode}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stderr


class Server:
    """A running nbdkit on a unix socket, in the foreground; `with Server(...) as server`."""

    def __init__(self, folder: Path, plugin: str, *options: str, read_only: bool = False) -> None:
        self._sockets = tempfile.TemporaryDirectory(prefix="cg-", dir="/tmp")
        self.socket = Path(self._sockets.name) / "nbd"
        self.log = folder / f"nbdkit-{os.path.basename(self._sockets.name)}.log"  # noqa: PTH119
        flags = ["-f", "-U", str(self.socket), *(["-r"] if read_only else [])]
        self.daemon = Daemon(
            "nbdkit",
            command(plugin, *options, nbdkit=flags),
            self.log,
            lambda: unix_accepts(self.socket),
            env=CLEAN_ENV,
        )

    def uri(self, export: str = "") -> str:
        """The NBD URI of an export."""
        return f"nbd+unix:///{export}?socket={self.socket}"

    def logged(self) -> str:
        """What it has said so far."""
        return tail(self.log, 1000)

    def __enter__(self) -> "Server":
        self.daemon.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.daemon.stop()
        self._sockets.cleanup()
