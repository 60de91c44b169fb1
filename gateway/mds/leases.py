# SPDX-License-Identifier: BSD-3-Clause
"""Sessions of open volumes.

A session says who has a volume open; its lease is what the client renews. The lease protects a
volume that is open from being renamed or deleted, and it tells clients when to stop; it does not
fence: the epoch does (gateway/mds/epochs.py). So a session that ran out is kept for a while and
revived by a late refresh, as CurveBS, which forgets nothing that it is told again, would do.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from gateway.mds.refusal import RefusalError
from gateway.mds.store import Space, Transaction, get_record, parse, put_record, u64
from gateway.mds.tree import Found
from gateway.proto import nameserver2_pb2 as ns
from gateway.proto import store_pb2 as st

SESSIONS_PER_FILE_MAX = 1024
STALE_KEPT_US = 24 * 3600 * 1_000_000


@dataclass(frozen=True, slots=True)
class Clock:
    """``now_us`` is wall-clock time. Until ``grace_until_us`` no session runs out: the server has
    only just started, and clients could not refresh meanwhile."""

    now_us: int
    lease_us: int
    grace_until_us: int = 0


def is_live(record: st.SessionRecord, clock: Clock) -> bool:
    if record.stale:
        return False
    return clock.now_us < max(record.expires_us, clock.grace_until_us)


def is_forgotten(record: st.SessionRecord, clock: Clock) -> bool:
    """Whether a session that ran out need not be kept any longer."""
    return record.stale and clock.now_us >= record.expires_us + STALE_KEPT_US


def renewed(record: st.SessionRecord, clock: Clock) -> st.SessionRecord:
    """The session with a whole lease from now on."""
    new = st.SessionRecord()
    new.CopyFrom(record)
    new.lease_us = clock.lease_us
    new.expires_us = clock.now_us + clock.lease_us
    new.ClearField("stale")
    return new


def remaining_us(record: st.SessionRecord, clock: Clock) -> int:
    return max(0, max(record.expires_us, clock.grace_until_us) - clock.now_us)


def anonymous_id(ip: str, port: int) -> str:
    """The session of a client that refreshes without having been given an id (CurveBS gives the
    empty one to everybody)."""
    return f"@{ip}:{port}"


def session_key(file_id: int, session_id: str) -> bytes:
    return u64(file_id) + session_id.encode()


def of_file(txn: Transaction, file_id: int) -> list[st.SessionRecord]:
    return [parse(st.SessionRecord, v) for _, v in txn.scan(Space.SESSIONS, u64(file_id))]


def everything(txn: Transaction) -> list[st.SessionRecord]:
    return [parse(st.SessionRecord, v) for _, v in txn.scan(Space.SESSIONS)]


def refuse_open(txn: Transaction, found: Found, clock: Clock) -> None:
    """Refuses (kFileOccupied) while someone has the volume open."""
    holders = [r for r in of_file(txn, found.info.id) if is_live(r, clock)]
    if holders:
        left_s = max(remaining_us(r, clock) for r in holders) / 1e6
        raise RefusalError(
            ns.kFileOccupied,
            f"{found.path} is open at {', '.join(sorted({r.client for r in holders})[:4])}; close "
            f"it first (a client that died is forgotten after {left_s:.0f} s)",
        )


def begin(
    txn: Transaction, found: Found, client: str, clock: Clock, session_id: str = ""
) -> st.SessionRecord:
    """Opens a session. Refuses kFileOccupied when the volume has too many."""
    records = of_file(txn, found.info.id)
    if len(records) >= SESSIONS_PER_FILE_MAX:
        stale = [r for r in records if not is_live(r, clock)]
        if not stale:
            raise RefusalError(
                ns.kFileOccupied, f"{found.path} is open {SESSIONS_PER_FILE_MAX} times"
            )
        end(txn, min(stale, key=lambda r: r.expires_us))
    record = st.SessionRecord(
        session_id=session_id or secrets.token_hex(16),
        file_id=found.info.id,
        path=found.path,
        client=client,
        created_us=clock.now_us,
        expires_us=clock.now_us + clock.lease_us,
        lease_us=clock.lease_us,
    )
    _put(txn, record)
    return record


def lookup(txn: Transaction, file_id: int, session_id: str) -> st.SessionRecord | None:
    return get_record(txn, Space.SESSIONS, session_key(file_id, session_id), st.SessionRecord)


def refresh(
    txn: Transaction, found: Found, session_id: str, client: tuple[str, int], clock: Clock
) -> st.SessionRecord:
    """Renews the lease. An unknown session is refused (kSessionNotExist), but the empty one begins
    a session in the client's name."""
    name = session_id or anonymous_id(*client)
    record = lookup(txn, found.info.id, name)
    if record is None:
        if session_id:
            raise RefusalError(
                ns.kSessionNotExist, f"there is no session {session_id[:64]!r} of {found.path}"
            )
        return begin(txn, found, f"{client[0]}:{client[1]}", clock, name)
    record = renewed(record, clock)
    record.path = found.path
    _put(txn, record)
    return record


def finish(txn: Transaction, found: Found, session_id: str, client: tuple[str, int]) -> None:
    """Closes a session. An unknown one is refused (kSessionNotExist), but not the empty one."""
    record = lookup(txn, found.info.id, session_id or anonymous_id(*client))
    if record is not None:
        end(txn, record)
    elif session_id:
        raise RefusalError(
            ns.kSessionNotExist, f"there is no session {session_id[:64]!r} of {found.path}"
        )


def end(txn: Transaction, record: st.SessionRecord) -> None:
    txn.delete(Space.SESSIONS, session_key(record.file_id, record.session_id))


def follow(txn: Transaction, record: st.SessionRecord, epoch: int) -> None:
    """Notes that the session follows the volume's shared state, and writes with ``epoch`` (0: it
    does not write)."""
    if not record.follows or record.follow_epoch != epoch:
        record.follows = True
        record.follow_epoch = epoch
        _put(txn, record)


def end_all(txn: Transaction, file_id: int) -> None:
    for record in of_file(txn, file_id):
        end(txn, record)


def sweep(txn: Transaction, clock: Clock) -> int:
    """Marks the sessions that ran out and drops those that did so long ago; returns how many
    records changed."""
    changed = 0
    for record in everything(txn):
        if is_forgotten(record, clock):
            end(txn, record)
            changed += 1
        elif not record.stale and not is_live(record, clock):
            record.stale = True
            _put(txn, record)
            changed += 1
        elif record.expires_us > clock.now_us + record.lease_us:
            # The wall clock was set back: no lease is longer than itself.
            record.expires_us = clock.now_us + record.lease_us
            _put(txn, record)
            changed += 1
    return changed


def _put(txn: Transaction, record: st.SessionRecord) -> None:
    put_record(txn, Space.SESSIONS, session_key(record.file_id, record.session_id), record)
