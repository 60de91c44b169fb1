# SPDX-License-Identifier: BSD-3-Clause
"""One target: a tgtd of its own as our child, set up as wanted whenever it was started.

tgtd has one thread for everything, so a process for each target gives a core for each, and keeps a
stall or a crash to one target. Each has its own folder, with its management socket, and nothing is
installed into /usr/lib: the backing store is loaded by LD_PRELOAD, of tgtd alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import socket
import time
from pathlib import Path

from gateway.cli.child import Launch, Supervisor, end_orphan, package_folder
from gateway.errors import (
    BusyError,
    ConfigError,
    CopygateError,
    NotFoundError,
    UnavailableError,
)
from gateway.iscsi import plan, rules
from gateway.iscsi.plan import Action, Present, Wanted
from gateway.iscsi.report import Connection
from gateway.iscsi.tgtd import Tgtd, socket_path

log = logging.getLogger("gateway.iscsi")

TID = 1
MODULE = "bs_copygate.so"
TGTD_MODULES = Path("/usr/lib/tgt/backing-store")
# A loopback port that the kernel chooses: a tgtd that is given no portal, or one that it cannot
# bind, would listen on every address at port 3260.
FIRST_PORTAL = "127.0.0.1:0"
READY_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 5.0
RETRY_FIRST_S = 0.2
RETRY_MAX_S = 5.0
# What it says at every start, and that we know: limits that only root may raise, no RDMA.
NOISE = (
    "iser_ib_init",
    "oom-killer's pardon",
    "can't adjust nr_open",
    "timer_fd based scheduler",
    "use signalfd notification",
    "device_mgmt",
)


def find_tgtd() -> str:
    """The program. Raises ConfigError when it is not installed."""
    found = shutil.which("tgtd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise ConfigError("tgtd is not installed", hint="apt-get install tgt (make deps)")
    return found


def find_module() -> Path | None:
    """The backing store to load; None when it is where tgtd looks by itself."""
    named = os.environ.get("COPYGATE_TGT_MODULE")
    if named:
        path = Path(named).absolute()
        if not path.is_file():
            raise ConfigError("COPYGATE_TGT_MODULE names no file", context={"file": named})
        return _loadable(path)
    path = package_folder() / "iscsi" / MODULE
    if path.is_file():
        return _loadable(path.absolute())
    if (TGTD_MODULES / MODULE).is_file():
        return None
    raise ConfigError(
        "the backing store for tgtd is missing", context={"file": path}, hint="make build"
    )


def _loadable(path: Path) -> Path:
    if any(separator in str(path) for separator in " :"):
        raise ConfigError(
            "the path of tgtd's backing store has a blank or a colon",
            context={"file": path},
            hint="install Copygate elsewhere: the dynamic loader separates paths by them",
        )
    return path


def launch_command(folder: Path) -> list[str]:
    """The command line of a tgtd that has its files in `folder`.

    The kernel ends it with us (setpriv --pdeathsig), whatever ends us; its pid is in `folder`
    before it runs, and its words name that file.
    """
    pidfile = folder / "tgtd.pid"
    command = [
        *("/bin/sh", "-c", 'umask 077; echo $$ >"$1"; shift; exec "$@"', "tgtd-launch"),
        *(str(pidfile), "setpriv", "--pdeathsig", "KILL"),
    ]
    module = find_module()
    if module is not None:
        # Not in our own environment: the shell and setpriv could not load it.
        preload = ":".join(filter(None, (os.environ.get("LD_PRELOAD"), str(module))))
        command += ["env", f"LD_PRELOAD={preload}"]
    tgtd = [find_tgtd(), "-f", "-C", "1", "-p", str(pidfile), "--iscsi", f"portal={FIRST_PORTAL}"]
    return [*command, *tgtd]


def environment(folder: Path) -> dict[str, str]:
    """The environment of tgtd: without what a service manager tells us alone."""
    ours = ("LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_", "LD_PRELOAD")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return kept | {"TGT_IPC_SOCKET": str(folder / "tgtd")}


def check_free(portals: frozenset[str]) -> None:
    """Raises BusyError for a portal that somebody else has bound, or that is not this machine's."""
    for portal in sorted(portals):
        host, port = rules.parse_portal(portal)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise BusyError(
                    f"cannot listen for iSCSI: {(error.strerror or str(error)).lower()}",
                    context={"portal": portal},
                    hint="choose another with --portal, or stop what uses it (see: ss -tlnp); "
                    "Debian's tgt.service listens at port 3260 of every address",
                ) from error


class Target:
    """One target of this gateway. `wanted` may be changed while it runs.

    A tgtd that dies is started again; what it does not accept is tried again, with a growing pause,
    and `problem` says why it is not as wanted.
    """

    def __init__(self, folder: Path, wanted: Wanted) -> None:
        self.folder = folder
        self.problem: str | None = "starting"
        self._wanted = wanted
        self._present = Present()
        self._tgtd = Tgtd(socket_path(folder))
        self._set_up = asyncio.Event()
        self._changed = asyncio.Event()
        self._taking: set[str] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._said: list[str] = []
        self._supervisor = Supervisor(
            f"tgtd of {wanted.iqn}",
            launch=self._launch,
            ready=self._ready,
            relay=self._relay,
            ask=self._ask,
            stop_timeout_s=STOP_TIMEOUT_S,
        )

    @property
    def wanted(self) -> Wanted:
        return self._wanted

    @property
    def pid(self) -> int | None:
        """The pid of tgtd."""
        return self._supervisor.pid

    @property
    def restarts(self) -> int:
        """How often tgtd had to be started again."""
        return self._supervisor.restarts

    @property
    def serves(self) -> bool:
        """Whether initiators can log in and find all that is wanted."""
        return self.problem is None and self._supervisor.failure is None

    @property
    def reason(self) -> str | None:
        """Why it does not serve as wanted."""
        return self._supervisor.failure or self.problem

    def start(self) -> None:
        """Begins; `settled` says when it serves or why it cannot."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        end_orphan(self.folder / "tgtd.pid", "tgtd")
        self._supervisor.keep_trying()
        self._keeper = asyncio.create_task(self._keep())

    def change(self, wanted: Wanted) -> None:
        """Changes what is wanted; what did not change is not touched."""
        if wanted != self._wanted:
            self._wanted = wanted
            self.problem = "changing"
            self._changed.set()

    def try_now(self) -> None:
        """Tries again at once what failed."""
        self._changed.set()

    def take(self, volume: str) -> None:
        """Opens a volume again, and takes it over from whoever has it. Sessions stay."""
        self._taking.add(volume)
        self.problem = "changing"
        self._changed.set()

    async def stop(self) -> None:
        """Ends the sessions and tgtd."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        await self._supervisor.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def sessions(self) -> list[Connection]:
        """Who is logged in. Raises a CopygateError when tgtd does not answer."""
        if not self._set_up.is_set() or self._present.iqn is None:
            return []
        return await self._tgtd.connections(TID)

    async def settled(self, timeout_s: float) -> None:
        """Waits until it serves as wanted, or was tried once; `reason` says what is wrong."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.serves or (self.reason not in ("starting", "changing")):
                return
            await asyncio.sleep(0.02)

    # tgtd, the process

    def _launch(self) -> Launch:
        self._set_up.clear()
        self._present = Present()
        check_free(self._wanted.portals)
        socket_path(self.folder).unlink(missing_ok=True)
        return Launch(launch_command(self.folder), environment(self.folder))

    async def _ready(self, _process: asyncio.subprocess.Process) -> None:
        """The management answers, and nobody can connect yet."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            try:
                portals = await self._tgtd.portals()
                break
            except UnavailableError as error:
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"tgtd was not ready within {READY_TIMEOUT_S:.0f} s",
                        context={"folder": self.folder},
                    ) from error
            await asyncio.sleep(0.01)
        for portal in portals:
            await self._tgtd.delete_portal(portal)
        # Where there is RDMA, tgtd listens for it at port 3260 of every address.
        await self._tgtd.stop_driver("iser")
        kinds = await self._tgtd.backing_stores()
        missing = {lun.bstype for lun in self._wanted.luns} - set(kinds)
        if missing:
            raise ConfigError(
                f"tgtd did not take the backing store {min(missing)}",
                context={"it said": self._last_words() or "nothing"},
                hint="is it for this version of tgt? docs/iscsi.md says which are known",
            )
        self._set_up.set()
        self.problem = "starting"
        self._changed.set()

    async def _ask(self) -> None:
        """tgtd takes no notice of SIGTERM: its target is deleted, then it ends when told to."""
        for portal in await self._tgtd.portals():
            await self._tgtd.delete_portal(portal)
        with contextlib.suppress(NotFoundError):
            while True:
                try:
                    await self._tgtd.delete_target(TID, force=True)
                    break
                except BusyError:  # commands under way: each ends within its deadline
                    await asyncio.sleep(0.05)
        await self._tgtd.shut_down()

    def _relay(self, line: str) -> None:
        text = line.removeprefix("tgtd: ")
        noise = any(known in text for known in NOISE)
        if not noise:
            self._said = [*self._said[-7:], text]
        log.log(logging.DEBUG if noise else logging.INFO, "[%s] %s", self._wanted.iqn, text)

    def _last_words(self) -> str:
        return self._said[-1] if self._said else ""

    # What it is set up to

    async def _keep(self) -> None:
        pause = RETRY_FIRST_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause if self.problem else None):
                    await self._changed.wait()
                    pause = RETRY_FIRST_S
            self._changed.clear()
            if not self._set_up.is_set():
                continue
            try:
                await self._apply(self._wanted)
            except CopygateError as error:
                if self.problem != str(error):
                    log.error("[%s] %s", self._wanted.iqn, error)
                self.problem = str(error)
                pause = min(pause * 2, RETRY_MAX_S)
            else:
                if self.problem is not None:
                    log.info("[%s] serves at %s", self._wanted.iqn, _listing(self._wanted))
                self.problem = None

    async def _apply(self, wanted: Wanted) -> None:
        for lun in [lun for lun in self._present.luns if lun.volume in self._taking]:
            await self._step(plan.DeleteLun(lun))
        guard = secrets.token_hex(rules.SECRET_MAX // 2)
        for action in plan.steps(wanted, self._present, guard):
            await self._step(action)
        self._taking.clear()

    async def _step(self, action: Action) -> None:
        try:
            await self._do(action)
        except UnavailableError:
            # Dead, or stuck: whether it was done is not known. The supervisor begins anew.
            self._kill()
            raise
        self._present = plan.applied(self._present, action)

    async def _do(self, action: Action) -> None:  # noqa: PLR0912 - a case an action
        tgtd = self._tgtd
        match action:
            case plan.NewTarget(iqn):
                await tgtd.new_target(TID, iqn)
            case plan.SetParameter(name, value):
                await tgtd.set_parameter(TID, name, value)
            case plan.NewLun(lun):
                await self._new_lun(lun)
            case plan.DeleteLun(lun):
                await tgtd.delete_lun(TID, lun.number)
            case plan.NewAccount(account, outgoing):
                await tgtd.new_account(account.user, account.secret)
                await tgtd.bind_account(TID, account.user, outgoing=outgoing)
            case plan.DeleteAccount(user):
                await tgtd.delete_account(user)
            case plan.Allow(None):
                await tgtd.allow_address(TID, "ALL")
            case plan.Allow(str(name)):
                await tgtd.allow_name(TID, name)
            case plan.Refuse(None):
                await tgtd.refuse_address(TID, "ALL")
            case plan.Refuse(str(name)):
                await tgtd.refuse_name(TID, name)
            case plan.OpenPortal(portal):
                await self._open_portal(portal)
            case plan.ClosePortal(portal):
                await tgtd.delete_portal(portal)
            case plan.EndSessions(kept):
                for connection in await tgtd.connections(TID):
                    if kept is None or connection.initiator not in kept:
                        with contextlib.suppress(NotFoundError):  # it went by itself
                            await tgtd.close_connection(TID, connection)

    async def _new_lun(self, lun: plan.Lun) -> None:
        self._said.clear()
        at_open = "" if lun.volume in self._taking else lun.at_open
        options = ";".join(filter(None, (lun.options, at_open)))
        try:
            await self._tgtd.new_lun(
                TID, lun.number, path=lun.volume, bstype=lun.bstype, bsopts=options
            )
        except UnavailableError:
            raise
        except CopygateError as error:
            # tgtd's code says only that it failed; why is in its log.
            await asyncio.sleep(0.05)
            raise CopygateError(
                f"LUN {lun.number} cannot be served: {self._last_words() or error.message}",
                context={"volume": lun.volume},
            ) from error

    async def _open_portal(self, portal: str) -> None:
        check_free(frozenset({portal}))
        await self._tgtd.new_portal(portal)

    def _kill(self) -> None:
        log.error("[%s] tgtd does not answer: ending it", self._wanted.iqn)
        self._supervisor.kill()


def _listing(wanted: Wanted) -> str:
    return ", ".join(sorted(wanted.portals))
