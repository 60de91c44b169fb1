# SPDX-License-Identifier: BSD-3-Clause
"""The shared state of a volume: some bytes with a revision, which all who have it open see change.

Who acts by the state (an iSCSI gateway, by the reservations in it) follows it: a call of GetState
waits here for the next revision, and the revision that a call says it knows is the one that its
session acts by. A change is done when nobody acts by an older one any more, that is, when each
other session that follows

- has said that it knows the new revision, or
- has a lease that ran out. It is ended then, so that a late refresh does not revive it: its client
  has stopped IO at three quarters of the lease, and has to open again and to look before it goes
  on. Or it
- writes with an epoch below one that a change has named: who named it had taken the volume over
  before, and the chunkservers refuse the older one.

Who follows is kept in the store, with the session. What they said is kept in memory: after a
restart they have to say it again, which they do as soon as they notice that the connection is gone.
So a server that restarts, or takes over from another, leaves nobody out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gateway.mds import epochs, leases, tree
from gateway.mds.refusal import RefusalError
from gateway.mds.rules import Caller
from gateway.mds.store import Space, Transaction, get_record, put_record, u64
from gateway.proto import nameserver2_pb2 as ns
from gateway.proto import shared_state_pb2 as ss
from gateway.proto import store_pb2 as st

log = logging.getLogger(__name__)

STATE_MAX = 64 << 10
"""Bytes of a state."""
FOLLOWERS_MAX = 64
"""Sessions of a volume that follow."""
AWAITS_MAX = 64
"""Calls of AwaitState that wait for a volume; more are answered at once."""
WAIT_MAX_MS = 10_000
RECHECK_S = 1.0
"""Leases are looked at this often at least: the clock may be set."""


# What is in the store


def find_session(
    txn: Transaction, caller: Caller, path: str, session_id: str
) -> tuple[tree.Found, st.SessionRecord]:
    """The volume and its session. Refuses kSessionNotExist, and what find_open_to_io refuses."""
    found = tree.find_open_to_io(txn, path, caller)
    record = leases.lookup(txn, found.info.id, session_id)
    if record is None:
        raise RefusalError(
            ns.kSessionNotExist, f"there is no session {session_id[:64]!r} of {found.path}"
        )
    return found, record


def read(txn: Transaction, file_id: int) -> st.SharedStateRecord:
    """The volume's state; revision 0 if it was never set."""
    record = get_record(txn, Space.SHARED_STATES, u64(file_id), st.SharedStateRecord)
    if record is None:
        return st.SharedStateRecord(revision=0, state=b"", token=0, owner_epoch=0)
    return record


def follow(
    txn: Transaction, found: tree.Found, session: st.SessionRecord, epoch: int, clock: leases.Clock
) -> None:
    """Makes the session one that changes wait for. Refuses kSharedStateFollowers when the volume
    has too many."""
    if not session.follows:
        others = [
            record
            for record in leases.of_file(txn, found.info.id)
            if record.follows and leases.is_live(record, clock)
        ]
        if len(others) >= FOLLOWERS_MAX:
            raise RefusalError(
                ns.kSharedStateFollowers,
                f"{FOLLOWERS_MAX} clients follow the shared state of {found.path} already",
            )
    leases.follow(txn, session, epoch)


def replace(
    txn: Transaction, found: tree.Found, request: ss.SetStateRequest
) -> st.SharedStateRecord | None:
    """Replaces the state; None when the revision is not the expected one. A try again of the change
    that made what is there is done already."""
    if len(request.state) > STATE_MAX:
        raise RefusalError(
            ns.kParaError,
            f"the shared state of {found.path} would have {len(request.state)} bytes; it can have "
            f"{STATE_MAX}",
        )
    record = read(txn, found.info.id)
    if record.revision > 0 and record.token == request.token:
        return record
    if request.epoch:
        epochs.check(found.info, request.epoch, exactly=True)
    if record.revision != request.expected_revision:
        return None
    record.revision += 1
    record.state = request.state
    record.token = request.token
    record.owner_epoch = max(record.owner_epoch, request.epoch)
    put_record(txn, Space.SHARED_STATES, u64(found.info.id), record)
    return record


@dataclass(frozen=True, slots=True)
class Change:
    """Made by a session."""

    file_id: int
    session_id: str
    revision: int


def wait_for_others(
    txn: Transaction, change: Change, known: Mapping[str, int], clock: leases.Clock
) -> int | None:
    """Microseconds until the first lease runs out of those that the change waits for; None if it
    waits for nobody. ``known`` is the revision that each session acts by. Ends sessions whose lease
    ran out before they learned of the change."""
    owner_epoch = read(txn, change.file_id).owner_epoch
    waits = []
    for record in leases.of_file(txn, change.file_id):
        behind = record.follows and known.get(record.session_id, 0) < change.revision
        if record.session_id == change.session_id or not behind:
            continue
        if record.follow_epoch and record.follow_epoch < owner_epoch:
            continue
        if leases.is_live(record, clock):
            waits.append(leases.remaining_us(record, clock))
        else:
            log.warning(
                "the session of %s with %s ends: its lease ran out before it learned of revision "
                "%d of the shared state",
                record.path,
                record.client,
                change.revision,
            )
            leases.end(txn, record)
    return min(waits) if waits else None


# Who waits


@dataclass(slots=True)
class _Volume:
    known: dict[str, int] = field(default_factory=dict)
    """The revision that each session acts by, as far as it said so since the server started."""
    looks: dict[str, asyncio.Future[None]] = field(default_factory=dict)
    """Calls of GetState that wait, one a session."""
    waits: set[asyncio.Future[None]] = field(default_factory=set)
    """Calls of AwaitState that wait."""


class SharedStates:
    """The methods of SharedStateService; they raise RefusalError and StorageError.

    ``run`` runs a transaction, ``caller_of`` tells who makes a request. All on one event loop.
    """

    def __init__(
        self,
        run: Callable[[Callable[[Transaction], Any]], Awaitable[Any]],
        caller_of: Callable[[Any], Caller],
        clock: Callable[[], leases.Clock],
    ) -> None:
        self._run = run
        self._caller_of = caller_of
        self._clock = clock
        self._volumes: dict[int, _Volume] = {}
        # Counted, so that who looks at the store notices what comes meanwhile.
        self._sets = 0
        self._acknowledgements = 0
        self._closed = False

    def close(self) -> None:
        """The server stops: ends all waiting, now and from now on."""
        self._closed = True
        for volume in self._volumes.values():
            for look in volume.looks.values():
                _wake(look)
            _wake_all(volume.waits)

    def session_closed(self, session_id: str) -> None:
        """A session was closed: changes may have waited for it."""
        self._acknowledgements += 1
        for file_id, volume in list(self._volumes.items()):
            volume.known.pop(session_id, None)
            _wake_all(volume.waits)
            if not (volume.known or volume.looks or volume.waits):
                del self._volumes[file_id]

    async def get(self, request: ss.GetStateRequest) -> ss.GetStateResponse:
        """Answers at once if the revision is not the known one, else when it changes or the wait
        is over, or when the session asks again."""
        caller = self._caller_of(request)
        deadline = _deadline(request.wait_ms)
        while True:
            sets = self._sets
            clock = self._clock()
            look = await self._run(partial(_look, caller=caller, request=request, clock=clock))
            volume = self._volume(look.file_id)
            if request.follow:
                self._heard(volume, request, look)
            response = ss.GetStateResponse(statusCode=ns.kOK, revision=look.record.revision)
            if look.record.revision != request.known_revision or not request.HasField(
                "known_revision"
            ):
                response.state = look.record.state
                return response
            if sets != self._sets:
                continue  # it may have changed meanwhile
            if self._closed or not await _wait_look(volume, request.sessionID, deadline):
                return response

    async def set(self, request: ss.SetStateRequest) -> ss.SetStateResponse:
        """Replaces the state if its revision is the expected one."""
        caller = self._caller_of(request)
        file_id, record, done = await self._run(partial(_set, caller=caller, request=request))
        if not done:
            return ss.SetStateResponse(
                statusCode=ns.kSharedStateConflict, revision=record.revision, state=record.state
            )
        self._sets += 1
        _wake_all(self._volume(file_id).looks.values())
        made = Change(file_id, request.sessionID, record.revision)
        wait_us = await self._wait_for_others(made)
        return ss.SetStateResponse(
            statusCode=ns.kOK, revision=record.revision, acknowledged=wait_us is None
        )

    async def wait(self, request: ss.AwaitStateRequest) -> ss.AwaitStateResponse:
        """Answers when nobody else acts by an older revision any more, or when the wait is over."""
        caller = self._caller_of(request)
        deadline = _deadline(request.wait_ms)
        file_id = await self._run(partial(_await_target, caller=caller, request=request))
        change = Change(file_id, request.sessionID, request.revision)
        while True:
            heard = self._acknowledgements
            wait_us = await self._wait_for_others(change)
            if wait_us is None:
                return ss.AwaitStateResponse(statusCode=ns.kOK, acknowledged=True)
            if heard != self._acknowledgements:
                continue  # there may be nobody left
            wait_s = min(deadline - _now(), wait_us / 1e6, RECHECK_S)
            waits = self._volume(file_id).waits
            if self._closed or wait_s <= 0 or len(waits) >= AWAITS_MAX:
                return ss.AwaitStateResponse(statusCode=ns.kOK, acknowledged=False)
            await _wait_any(waits, wait_s)

    def _volume(self, file_id: int) -> _Volume:
        return self._volumes.setdefault(file_id, _Volume())

    async def _wait_for_others(self, change: Change) -> int | None:
        known = dict(self._volume(change.file_id).known)
        clock = self._clock()
        wait_us: int | None = await self._run(
            lambda txn: wait_for_others(txn, change, known, clock)
        )
        return wait_us

    def _heard(self, volume: _Volume, request: ss.GetStateRequest, look: _Look) -> None:
        """The session acts by the revision that it knows. One that there never was says nothing."""
        if look.sessions is not None:
            volume.known = {i: r for i, r in volume.known.items() if i in look.sessions}
        if volume.known.get(request.sessionID, 0) < request.known_revision <= look.record.revision:
            volume.known[request.sessionID] = request.known_revision
            self._acknowledgements += 1
            _wake_all(volume.waits)


@dataclass(frozen=True, slots=True)
class _Look:
    file_id: int
    record: st.SharedStateRecord
    sessions: frozenset[str] | None
    """The volume's, when this one began to follow."""


def _look(
    txn: Transaction, caller: Caller, request: ss.GetStateRequest, clock: leases.Clock
) -> _Look:
    sessions = None
    if request.follow or request.wait_ms:
        found, session = find_session(txn, caller, request.fileName, request.sessionID)
        if request.follow:
            if not session.follows:
                sessions = frozenset(r.session_id for r in leases.of_file(txn, found.info.id))
            follow(txn, found, session, request.epoch, clock)
    else:
        found = tree.find_open_to_io(txn, request.fileName, caller)
    return _Look(found.info.id, read(txn, found.info.id), sessions)


def _set(
    txn: Transaction, caller: Caller, request: ss.SetStateRequest
) -> tuple[int, st.SharedStateRecord, bool]:
    """The file's id, the record that is there now, and whether it is the wanted one."""
    found, _ = find_session(txn, caller, request.fileName, request.sessionID)
    record = replace(txn, found, request)
    if record is not None:
        return found.info.id, record, True
    return found.info.id, read(txn, found.info.id), False


def _await_target(txn: Transaction, caller: Caller, request: ss.AwaitStateRequest) -> int:
    found, _ = find_session(txn, caller, request.fileName, request.sessionID)
    revision = read(txn, found.info.id).revision
    if request.revision > revision:
        raise RefusalError(
            ns.kParaError,
            f"the shared state of {found.path} has the revision {revision}, not yet "
            f"{request.revision}",
        )
    return found.info.id


async def _wait_look(volume: _Volume, session_id: str, deadline: float) -> bool:
    """Waits for a change. False: the wait is over, or the session asks again."""
    timeout_s = deadline - _now()
    if timeout_s <= 0:
        return False
    look = asyncio.get_running_loop().create_future()
    older = volume.looks.get(session_id)
    volume.looks[session_id] = look
    if older is not None:
        _wake(older)
    try:
        await asyncio.wait([look], timeout=timeout_s)
        return look.done() and volume.looks.get(session_id) is look
    finally:
        if volume.looks.get(session_id) is look:
            del volume.looks[session_id]


async def _wait_any(waits: set[asyncio.Future[None]], timeout_s: float) -> None:
    future = asyncio.get_running_loop().create_future()
    waits.add(future)
    try:
        await asyncio.wait([future], timeout=timeout_s)
    finally:
        waits.discard(future)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _wake_all(futures: Iterable[asyncio.Future[None]]) -> None:
    for future in futures:
        _wake(future)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _deadline(wait_ms: int) -> float:
    return _now() + min(wait_ms, WAIT_MAX_MS) / 1000
