# SPDX-License-Identifier: BSD-3-Clause
"""What operators ask for: replicas that move, leaders, chunkservers that are emptied.

Everything is checked here, and refused with a reason; gateway/mds/changes.py carries it out. To ask
again for what is under way or done changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from gateway.mds import changes, copysets, placement
from gateway.mds.refusal import ClusterRefusalError
from gateway.mds.store import Space, Transaction, put_record, u32
from gateway.proto import cluster_pb2 as cl
from gateway.proto import store_pb2 as st


def move(
    txn: Transaction, servers: changes.Servers, request: cl.MoveReplicaRequest, now_us: int
) -> cl.MoveReplicaResponse:
    """Begins to put one chunkserver's replica on another.

    Refuses (NOT_FOUND) an unknown copyset or chunkserver, (INVALID_ARGUMENT) what makes no sense,
    (FAILED_PRECONDITION) what cannot be now.
    """
    record = _find(txn, request.logical_pool_id, request.copyset_id)
    source, target = request.source, request.target
    for chunkserver_id in (source, target):
        _check_known(servers, chunkserver_id)
    done = _begin_move(txn, servers, record, (source, target), now_us)
    return cl.MoveReplicaResponse(done=done)


def _begin_move(
    txn: Transaction,
    servers: changes.Servers,
    record: st.CopysetRecord,
    ends: tuple[int, int],
    now_us: int,
) -> bool:
    """As move, from the first to the second of ``ends``; returns whether it has been done."""
    source, target = ends
    if source == target:
        raise ClusterRefusalError("INVALID_ARGUMENT", "a replica cannot move to where it is")
    change = changes.get(txn, record)
    if change is not None:
        if changes.ends(change) == (target, source):
            return False
        name = copysets.name(record)
        raise ClusterRefusalError(
            "FAILED_PRECONDITION",
            f"copyset {name} is being changed already: {changes.tell(change)}; wait until that is "
            f"done, or cancel it: copygate copyset cancel {name}",
        )
    voters = copysets.voters_of(record)
    if target in voters and source not in voters:
        return True
    _check_move(servers, record, source, target)
    old = copysets.member_at(record, source)
    assert old is not None  # noqa: S101 - it votes
    change = st.ChangeRecord(
        logical_pool_id=record.logical_pool_id,
        copyset_id=record.copyset_id,
        add=copysets.add_member(txn, record, target),
        remove=old.member_id,
        asked_us=now_us,
    )
    changes.put(txn, change)
    return False


def _check_move(
    servers: changes.Servers, record: st.CopysetRecord, source: int, target: int
) -> None:
    what = f"copyset {copysets.name(record)}"
    voters = copysets.voters_of(record)
    if source not in voters:
        raise ClusterRefusalError(
            "INVALID_ARGUMENT",
            f"chunkserver {source} has no replica of {what}; its members are {_listed(voters)}",
        )
    if target in copysets.chunkservers_of(record):
        raise ClusterRefusalError(
            "INVALID_ARGUMENT", f"chunkserver {target} has a replica of {what} already"
        )
    _check_taker(servers, target)
    for other in copysets.chunkservers_of(record):
        if other != source and servers.zone(other) == servers.zone(target):
            raise ClusterRefusalError(
                "INVALID_ARGUMENT",
                f"chunkserver {target} is in the zone {servers.zone(target)!r}, as chunkserver "
                f"{other} of {what} is: losing that zone would lose two replicas",
            )


def _listed(chunkserver_ids: list[int]) -> str:
    return ", ".join(map(str, chunkserver_ids))


def cancel(txn: Transaction, pool_id: int, copyset_id: int) -> None:
    """Undoes a change: what was to be added goes again. Refuses (NOT_FOUND) if there is none,
    (FAILED_PRECONDITION) if the new member votes already."""
    record = _find(txn, pool_id, copyset_id)
    change = changes.get(txn, record)
    if change is None:
        raise ClusterRefusalError(
            "NOT_FOUND", f"the members of copyset {copysets.name(record)} are not being changed"
        )
    if not _cancel(txn, record, change):
        raise ClusterRefusalError(
            "FAILED_PRECONDITION",
            f"the new replica of copyset {copysets.name(record)} votes already: only the old one "
            "has yet to go",
        )


def _cancel(txn: Transaction, record: st.CopysetRecord, change: st.ChangeRecord) -> bool:
    # The old member is removed only after a report that made the new one a voter in the record:
    # until then nothing is lost by taking the new one away.
    if change.add in {m.member_id for m in record.members if not m.learner}:
        return False
    if change.add:
        change.add, change.remove = 0, change.add
        changes.put(txn, change)
    return True


def check_transfer(
    txn: Transaction, servers: changes.Servers, request: cl.TransferLeaderRequest
) -> st.MemberRecord:
    """The member that is to lead. Refuses as move does."""
    record = _find(txn, request.logical_pool_id, request.copyset_id)
    _check_known(servers, request.target)
    member = copysets.member_at(record, request.target)
    if member is None or member.learner:
        raise ClusterRefusalError(
            "INVALID_ARGUMENT",
            f"chunkserver {request.target} has no vote in copyset {copysets.name(record)}; its "
            f"members are {_listed(copysets.voters_of(record))}",
        )
    if request.target not in servers.reporting:
        raise ClusterRefusalError("FAILED_PRECONDITION", f"chunkserver {request.target} is offline")
    return member


def retire(
    txn: Transaction, servers: changes.Servers, request: cl.RetireChunkserverRequest, now_us: int
) -> int:
    """Begins to empty a chunkserver, all of it or nothing; returns how many copysets have to go
    yet. Refuses as move does, and if there is nowhere to go."""
    source = request.chunkserver_id
    _check_known(servers, source)
    target = request.target if request.HasField("target") else None
    if target is not None:
        _check_known(servers, target)
        if target == source:
            raise ClusterRefusalError("INVALID_ARGUMENT", "a chunkserver cannot take its own place")
    record = servers.records[source]
    record.retiring = True
    _put_server(txn, record)
    load = Counter(i for r in copysets.scan(txn) for i in copysets.chunkservers_of(r))
    moving = 0
    for copyset in list(copysets.scan(txn)):
        if source not in copysets.chunkservers_of(copyset):
            continue
        moving += 1
        change = changes.get(txn, copyset)
        coming, going = changes.ends(change) if change is not None else (0, 0)
        if going == source and target in (None, coming):
            continue  # asked for before
        to = target if target is not None else _substitute(servers, load, copyset, source)
        _begin_move(txn, servers, copyset, (source, to), now_us)
        load[to] += 1
    return moving


def _substitute(
    servers: changes.Servers, load: Mapping[int, int], record: st.CopysetRecord, source: int
) -> int:
    present = copysets.chunkservers_of(record)
    stay = {servers.zone(i) for i in present if i != source}
    free = {i: zone for i, zone in servers.takers().items() if i not in present}
    found = placement.substitute(free, load, stay)
    if found is None:
        raise ClusterRefusalError(
            "FAILED_PRECONDITION",
            f"chunkserver {source} cannot be emptied: no other chunkserver that is online, in a "
            f"zone of its own, can take its place in copyset {copysets.name(record)}; add one",
        )
    return found


def keep(txn: Transaction, servers: changes.Servers, chunkserver_id: int) -> int:
    """Ends retire: what has not gone stays. Returns how many moves were cancelled."""
    _check_known(servers, chunkserver_id)
    record = servers.records[chunkserver_id]
    record.retiring = False
    _put_server(txn, record)
    cancelled = 0
    for change in changes.scan(txn):
        if change.add and changes.ends(change)[1] == chunkserver_id:
            copyset = _find(txn, change.logical_pool_id, change.copyset_id)
            cancelled += _cancel(txn, copyset, change)
    return cancelled


def _put_server(txn: Transaction, record: st.ChunkserverRecord) -> None:
    put_record(txn, Space.CHUNKSERVERS, u32(record.id), record)


def _find(txn: Transaction, pool_id: int, copyset_id: int) -> st.CopysetRecord:
    record = copysets.get(txn, pool_id, copyset_id)
    if record is None:
        raise ClusterRefusalError("NOT_FOUND", f"there is no copyset {pool_id}-{copyset_id}")
    return record


def _check_known(servers: changes.Servers, chunkserver_id: int) -> None:
    if chunkserver_id not in servers.records:
        raise ClusterRefusalError("NOT_FOUND", f"there is no chunkserver {chunkserver_id}")


def _check_taker(servers: changes.Servers, chunkserver_id: int) -> None:
    record = servers.records[chunkserver_id]
    if record.disk_error:
        why = f"has a disk error: {record.disk_error}"
    elif record.retiring:
        why = f"is being retired (copygate retire {chunkserver_id} --cancel ends that)"
    elif chunkserver_id not in servers.reporting:
        why = "is offline"
    else:
        return
    raise ClusterRefusalError("FAILED_PRECONDITION", f"chunkserver {chunkserver_id} {why}")
