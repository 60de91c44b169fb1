# SPDX-License-Identifier: BSD-3-Clause
"""A gateway: follows the records of exports that the MDS keeps, and runs the targets that are its.

What it does is a function of what is recorded and what runs (records.differences), done again
whenever one of them changes. A target that cannot be served says so and is tried again; the others
go on. While the MDS is away what runs goes on as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.errors import CopygateError, NotFoundError, StorageError, UnavailableError
from gateway.iscsi import control, records
from gateway.iscsi.plan import Wanted
from gateway.iscsi.records import Access
from gateway.iscsi.target import Target
from gateway.mds.client import MdsClient
from gateway.proto.iscsi_pb2 import ExportRecord

log = logging.getLogger("gateway.iscsi")

# Volumes that are gone, or back, are noticed within this time.
FOLLOW_S = 5.0
RETRY_FIRST_S = 0.2
RETRY_MAX_S = 5.0
SETTLE_S = 30.0


def target_folder(folder: Path, iqn: str) -> Path:
    """The folder of a target: a short name, since sockets are in it."""
    return folder / hashlib.sha256(iqn.encode()).hexdigest()[:16]


class Gateway:
    """The targets of one gateway. `folder` must be locked by the caller."""

    def __init__(self, client: MdsClient, access: Access, folder: Path) -> None:
        self.access = access
        self.folder = folder
        self._client = client
        self._records: dict[str, tuple[int, ExportRecord]] = {}
        self._targets: dict[str, Target] = {}
        self._problems: dict[str, str] = {}
        self._lost: dict[str, str] = {}
        self._mds_problem: str | None = "not asked yet"
        self._revision: int | None = None
        self._done = -1  # the revision that was acted upon
        self._told = asyncio.Condition()
        self._poke = asyncio.Event()
        self._cleanup = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Begins; returns at once."""
        server = await control.serve(self.folder, self._answer)
        self._cleanup.callback(server.close)
        task = asyncio.create_task(self._follow())
        self._cleanup.push_async_callback(_cancel, task)

    async def stop(self) -> None:
        """Ends all targets."""
        await self._cleanup.aclose()
        await asyncio.gather(*(target.stop() for target in self._targets.values()))
        self._targets.clear()
        (self.folder / control.SOCKET).unlink(missing_ok=True)

    async def settled(self, revision: int, timeout_s: float = SETTLE_S) -> None:
        """Waits until the records of this revision were read, and each target serves or says
        why not."""
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._told:
                await self._told.wait_for(lambda: self._done >= revision)
        for target in list(self._targets.values()):
            await target.settled(max(0.0, deadline - time.monotonic()))

    async def status(self) -> dict[str, Any]:
        """What is recorded and how it is served, for people and --json."""
        targets = [
            await self._describe(iqn, record) for iqn, (_, record) in sorted(self._records.items())
        ]
        return {
            "gateway": self.access.gateway,
            "mds": {"reachable": self._mds_problem is None, "problem": self._mds_problem},
            "revision": self._revision,
            "targets": targets,
        }

    async def _describe(self, iqn: str, record: ExportRecord) -> dict[str, Any]:
        mine = next(g for g in record.gateways if g.gateway == self.access.gateway)
        target = self._targets.get(iqn)
        reason = self._problems.get(iqn) or (target.reason if target else None)
        sessions: list[dict[str, Any]] | None = None
        if target is not None:
            try:
                sessions = [
                    {
                        "session": connection.session,
                        "connection": connection.connection,
                        "initiator": connection.initiator,
                        "address": connection.address,
                    }
                    for connection in await target.sessions()
                ]
            except CopygateError as error:
                reason = reason or str(error)
        return {
            "iqn": iqn,
            "serving": target is not None and target.serves,
            "reason": reason,
            "portals": list(mine.portals),
            "group": mine.group,
            "luns": [
                {"lun": lun.lun, "volume": lun.volume, "problem": self._lost.get(lun.volume)}
                for lun in record.luns
            ],
            "sessions": sessions,
            "restarts": target.restarts if target else 0,
            "pid": target.pid if target else None,
        }

    async def _answer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        match request.get("ask"):
            case "status":
                return await self.status()
            case "settle":
                self._poke.set()
                for target in self._targets.values():
                    target.try_now()
                await self.settled(int(request.get("revision", 0)))
                return await self.status()
            case "take":
                return await self._take(str(request.get("volume")))
        return {"error": "that is not a question"}

    async def _take(self, volume: str) -> Mapping[str, Any]:
        for iqn, target in self._targets.items():
            if any(lun.volume == volume for lun in target.wanted.luns):
                target.take(volume)
                await target.settled(SETTLE_S)
                return {"iqn": iqn, "reason": target.reason}
        return {"iqn": None, "reason": None}

    # Following the records

    async def _follow(self) -> None:
        pause = RETRY_FIRST_S
        while True:
            try:
                await self._read()
                self._lost = await self._find_lost()
            except CopygateError as error:
                if self._mds_problem != str(error):
                    self._mds_problem = str(error)
                    what = "what is served goes on" if self._targets else "waiting for it"
                    log.warning("%s; %s", error, what)
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_MAX_S)
                continue
            if self._mds_problem is not None and pause != RETRY_FIRST_S:
                log.info("the metadata server answers again")
            self._mds_problem, pause = None, RETRY_FIRST_S
            await self._reconcile()
            async with self._told:
                self._done = self._revision if self._revision is not None else -1
                self._told.notify_all()

    async def _read(self) -> None:
        """Waits for a change, and reads the records that are ours."""
        first = self._revision is None or self._mds_problem is not None
        revision, entries = await self._list(None if first else self._revision)
        if entries is not None:
            mine: dict[str, tuple[int, ExportRecord]] = {}
            for entry in entries:
                iqn = entry.record.iqn
                if all(g.gateway != self.access.gateway for g in entry.record.gateways):
                    continue
                known = self._records.get(iqn)
                if known is not None and known[0] == entry.revision:
                    mine[iqn] = known
                    continue
                with contextlib.suppress(NotFoundError):  # it went since
                    full = await self._client.get_export(iqn)
                    mine[iqn] = (full.revision, full.record)
            self._records = mine
        self._revision = revision

    async def _list(self, known: int | None) -> tuple[int, Any]:
        """Asks for the list; somebody who pokes ends the wait."""
        self._poke.clear()
        call = asyncio.ensure_future(self._client.list_exports(known, FOLLOW_S))
        poke = asyncio.ensure_future(self._poke.wait())
        try:
            await asyncio.wait({call, poke}, return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                return await call
        finally:
            for task in (call, poke):
                task.cancel()
            await asyncio.gather(call, poke, return_exceptions=True)
        return await self._client.list_exports(known)

    async def _find_lost(self) -> dict[str, str]:
        """Which volumes of the records cannot be had, and why."""
        names = {lun.volume for _, record in self._records.values() for lun in record.luns}
        lost = {}
        for name in sorted(names):
            try:
                found = await self._client.info(name)
            except (UnavailableError, StorageError):
                raise  # nothing is known of the volume
            except NotFoundError:
                lost[name] = f"the volume {name} does not exist"
            except CopygateError as error:
                lost[name] = str(error)
            else:
                if found.is_folder:
                    lost[name] = f"{name} is a folder"
        return lost

    async def _reconcile(self) -> None:
        wanted: dict[str, Wanted] = {}
        problems: dict[str, str] = {}
        for iqn, (_, record) in self._records.items():
            lost = [self._lost[lun.volume] for lun in record.luns if lun.volume in self._lost]
            if lost:
                problems[iqn] = "; ".join(lost)
            try:
                found = records.wanted(record, self.access, frozenset(self._lost))
            except CopygateError as error:
                problems[iqn] = str(error)
                continue
            if found is not None:
                wanted[iqn] = found
        for iqn, problem in problems.items():
            if self._problems.get(iqn) != problem:
                log.error("[%s] %s", iqn, problem)
        self._problems = problems
        running = {iqn: target.wanted for iqn, target in self._targets.items()}
        todo = records.differences(wanted, running)
        await asyncio.gather(*(self._end(iqn) for iqn in todo.stop))
        for iqn, change in todo.change.items():
            self._targets[iqn].change(change)
        for iqn, start in todo.start.items():
            target = Target(target_folder(self.folder, iqn), start)
            try:
                target.start()
            except OSError as error:
                self._problems[iqn] = f"cannot start: {error}"
                log.error("[%s] cannot start: %s", iqn, error)
            else:
                self._targets[iqn] = target

    async def _end(self, iqn: str) -> None:
        await self._targets.pop(iqn).stop()
        log.info("[%s] is not served any more", iqn)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
