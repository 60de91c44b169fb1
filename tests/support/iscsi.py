# SPDX-License-Identifier: BSD-3-Clause
"""Debian's tgtd as a test drives it: in the foreground, on free loopback ports, with our module.

This is the bare daemon with the backing store, configured through tgtadm: what the tests of single
options, of two gateways and of restarts need. `copygate iscsi` has tests of its own.
"""

import importlib.util
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from support.libiscsi import Session
from support.process import Daemon, ProcessError, free_port, tail, wait_until
from support.tools import CLEAN_ENV, ToolError, which

TARGET = "iqn.2026-11.net.copygate:disk"


def module_path() -> Path:
    """The backing store of the installed package."""
    named = os.environ.get("COPYGATE_TGT_MODULE")
    if named:
        return Path(named)
    spec = importlib.util.find_spec("gateway")
    assert spec is not None and spec.origin is not None, "the package is not installed: make build"
    return Path(spec.origin).parent / "iscsi/bs_copygate.so"


def missing() -> str | None:
    """Why no target can run here, in words for a skip; None if one can."""
    for program in ("tgtd", "tgtadm"):
        if which(program) is None:
            return f"no {program}: packaging/install-deps.sh run installs it"
    return None


@dataclass(frozen=True)
class Lun:
    """A logical unit: `path` is the volume's name (the file's, for tgtd's own backing stores).

    `options` are the module's (without `mds`), `parameters` those of tgtadm's update.
    """

    path: str
    number: int = 1
    bstype: str = "copygate"
    options: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)


class Target:
    """One tgtd with one target; start() or `with`, restartable on the same ports.

    `mds` is an address, or several as the module's option takes them. Without `acl` and `chap`
    everybody may log in.
    """

    def __init__(
        self,
        folder: Path,
        luns: Sequence[Lun],
        *,
        mds: str = "",
        name: str = TARGET,
        label: str = "tgtd",
        portals: int = 1,
        ports: Sequence[int] = (),
        chap: tuple[str, str] | None = None,
        mutual: tuple[str, str] | None = None,
        acl: Sequence[str] = (),
        parameters: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        self.name, self.luns, self.mds = name, list(luns), mds
        self.ports = list(ports) or [free_port() for _ in range(portals)]
        self._chap, self._mutual, self._acl = chap, mutual, list(acl)
        self._parameters = dict(parameters or {})
        # Unix socket paths hold 107 bytes at most.
        self._sockets = tempfile.TemporaryDirectory(prefix="cg-", dir="/tmp")
        self._socket = Path(self._sockets.name) / "tgtd"
        environment = {**CLEAN_ENV, "TGT_IPC_SOCKET": str(self._socket), **(env or {})}
        self._environment = dict(environment)
        if any(lun.bstype == "copygate" for lun in luns):
            environment["LD_PRELOAD"] = str(module_path())
        self.log = folder / f"{label}.log"
        portals = ",".join(f"portal=127.0.0.1:{port}" for port in self.ports)
        words = [*wrapper, which("tgtd") or "tgtd", "-f", "-C", "1", "--iscsi", portals]
        self.daemon = Daemon("tgtd", words, self.log, self._answers, env=environment)

    def _answers(self) -> bool:
        if not Path(f"{self._socket}.1").exists():
            return False
        done = self._run("--op", "show", "--mode", "sys")
        return done.returncode == 0

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [which("tgtadm") or "tgtadm", "-C", "1", "--lld", "iscsi", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=self._environment,
        )

    def tgtadm(self, *arguments: str) -> str:
        """Runs tgtadm against this tgtd; returns what it printed, raises if it failed."""
        done = self._run(*arguments)
        if done.returncode != 0:
            raise ToolError(
                f"tgtadm {' '.join(arguments)}: {done.stdout}{done.stderr}\n{tail(self.log)}"
            )
        return done.stdout

    def add_lun(self, lun: Lun) -> None:
        """Creates a logical unit."""
        words = [*("--op", "new", "--mode", "logicalunit", "--tid", "1")]
        words += ["--lun", str(lun.number), "-b", lun.path, "--bstype", lun.bstype]
        options = dict(lun.options)
        if lun.bstype == "copygate":
            options = {"mds": self.mds, **options}
        if options:
            words += ["--bsopts", ";".join(f"{key}={value}" for key, value in options.items())]
        self.tgtadm(*words)
        if lun.parameters:
            self.update_lun(lun.number, **lun.parameters)

    def update_lun(self, number: int, **parameters: str) -> None:
        """tgtadm --op update --params."""
        text = ",".join(f"{key}={value}" for key, value in parameters.items())
        self.tgtadm(
            *("--op", "update", "--mode", "logicalunit", "--tid", "1"),
            *("--lun", str(number), "--params", text),
        )

    def start(self) -> "Target":
        """Starts tgtd and makes the target; sessions may log in as soon as its units are there."""
        self.daemon.start()
        self.tgtadm("--op", "new", "--mode", "target", "--tid", "1", "-T", self.name)
        for key, value in self._parameters.items():
            self.tgtadm(
                *("--op", "update", "--mode", "target", "--tid", "1", "--name", key),
                *("--value", value),
            )
        for lun in self.luns:
            self.add_lun(lun)
        for account, outgoing in ((self._chap, False), (self._mutual, True)):
            if account is not None:
                user, secret = account
                self.tgtadm(
                    *("--op", "new", "--mode", "account", "--user", user, "--password", secret)
                )
                words = ["--op", "bind", "--mode", "account", "--tid", "1", "--user", user]
                self.tgtadm(*words, *(["--outgoing"] if outgoing else []))
        bind = ("--op", "bind", "--mode", "target", "--tid", "1")
        for initiator in self._acl:
            self.tgtadm(*bind, "--initiator-name", initiator)
        if not self._acl:
            self.tgtadm(*bind, "-I", "ALL")
        return self

    def stop(self) -> None:
        """Asks tgtd to end; it does not while units are in use, and is then killed."""
        if self.daemon.running:
            self._run("--op", "update", "--mode", "sys", "--name", "State", "-v", "offline")
            self._run("--op", "delete", "--mode", "target", "--tid", "1", "--force")
            self._run("--op", "delete", "--mode", "system")
            try:
                wait_until(lambda: not self.daemon.running, 10, "tgtd's end")
            except TimeoutError as error:
                self.daemon.kill()
                raise ProcessError(f"{error}\n{tail(self.log)}") from None

    def kill(self) -> None:
        """kill -9."""
        self.daemon.kill()

    def close(self) -> None:
        """kill -9 if it runs; its folder goes."""
        if self.daemon.running:
            self.daemon.kill()
        self._sockets.cleanup()

    def portal(self, number: int = 0) -> str:
        """ADDRESS:PORT of one of its portals."""
        return f"127.0.0.1:{self.ports[number]}"

    def url(self, lun: int = 1, portal: int = 0) -> str:
        """The URL that libiscsi's programs and qemu take."""
        return f"iscsi://{self.portal(portal)}/{self.name}/{lun}"

    def session(self, *, portal: int = 0, clear: bool = True, **options: Any) -> Session:
        """A logged-in session; `clear` takes the unit attentions of a new nexus."""
        session = Session(self.portal(portal), self.name, **options)
        if clear:
            session.clear_attentions()
        return session

    def sessions(self) -> str:
        """What tgtadm shows of the target."""
        return self.tgtadm("--op", "show", "--mode", "target")

    def __enter__(self) -> "Target":
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.stop()
        finally:
            self.close()


def login_again(
    target: Target, *, timeout: float = 30, clear: bool = True, **options: Any
) -> Session:
    """Logs in as soon as the target serves again."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return target.session(clear=clear, **options)
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
