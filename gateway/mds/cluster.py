# SPDX-License-Identifier: BSD-3-Clause
"""Chunkservers: who is there, and what they are told."""

from __future__ import annotations

import ipaddress
import uuid as uuids

from gateway.mds import changes, copysets, epochs, pool
from gateway.mds.changes import NO_PORT
from gateway.mds.liveness import Liveness
from gateway.mds.refusal import ClusterRefusalError
from gateway.mds.store import (
    Space,
    Transaction,
    get_record,
    get_u64,
    next_ids,
    parse,
    put_record,
    u32,
)
from gateway.proto import cluster_pb2 as cl
from gateway.proto import store_pb2 as st
from gateway.proto import topology_pb2 as topo

RECLAIM_BATCH = 512
CHUNKSERVERS_MAX = 10_000
REQUESTED_COPYSETS_MAX = 65_536
TEXT_MAX = 4096

TOPOLOGY_OK = 0
TOPOLOGY_INVALID = -2
TOPOLOGY_COPYSET_NOT_FOUND = -11


def chunkservers(txn: Transaction) -> list[st.ChunkserverRecord]:
    return [parse(st.ChunkserverRecord, value) for _, value in txn.scan(Space.CHUNKSERVERS)]


def servers(txn: Transaction, reporting: frozenset[int]) -> changes.Servers:
    """All chunkservers; ``reporting`` are those that were heard of lately."""
    return changes.Servers({record.id: record for record in chunkservers(txn)}, reporting)


def register(
    txn: Transaction,
    request: cl.RegisterChunkserverRequest,
    *,
    copysets_per_chunkserver: int,
    reporting: frozenset[int],
    now_us: int,
) -> int:
    """Adds a chunkserver, or takes a new address of one that is known by its disk's uuid; returns
    its id. Makes copysets for the ones that are short of them, as soon as the zones allow.

    Refuses (INVALID_ARGUMENT) a bad address; (ALREADY_EXISTS) a disk that is in use elsewhere, and
    an address that another chunkserver uses.
    """
    disk = _check_registration(request)
    known = [c for c in chunkservers(txn) if c.uuid == disk]
    _take_address(txn, request, disk, reporting)
    if known:
        record = known[0]
        if record.id in reporting and record.data_directory != request.data_directory:
            raise ClusterRefusalError(
                "ALREADY_EXISTS",
                f"the disk {disk} is in use by chunkserver {record.id} at "
                f"{record.data_directory}; this one is a copy of it (if it was moved, wait until "
                "the old one counts as offline)",
            )
    else:
        if get_u64(txn, Space.COUNTERS, b"chunkserver_id") > CHUNKSERVERS_MAX:
            raise ClusterRefusalError("RESOURCE_EXHAUSTED", "the cluster has too many chunkservers")
        record = st.ChunkserverRecord(id=next_ids(txn, "chunkserver_id")[0], uuid=disk)
        record.used_bytes = 0
        record.registered_us = now_us
    if known and (record.ip, record.port) != (request.ip, request.port):
        copysets.raise_revision(txn)
    record.ip = request.ip
    record.port = request.port
    record.data_directory = request.data_directory
    record.capacity_bytes = request.capacity_bytes
    if request.zone:
        record.zone = request.zone
    put_record(txn, Space.CHUNKSERVERS, u32(record.id), record)
    txn.put(Space.CHUNKSERVER_UUIDS, disk.encode(), u32(record.id))
    make_copysets(txn, reporting | {record.id}, copysets_per_chunkserver)
    return int(record.id)


def _take_address(
    txn: Transaction,
    request: cl.RegisterChunkserverRequest,
    disk: str,
    reporting: frozenset[int],
) -> None:
    """Frees the address for who registers from there: nobody can reach another one by it."""
    for other in chunkservers(txn):
        if (other.ip, other.port) != (request.ip, request.port) or other.uuid == disk:
            continue
        if other.id in reporting:
            raise ClusterRefusalError(
                "ALREADY_EXISTS",
                f"chunkserver {other.id} with another disk reports from {other.ip}:{other.port}",
            )
        other.port = NO_PORT
        put_record(txn, Space.CHUNKSERVERS, u32(other.id), other)
        copysets.raise_revision(txn)


def make_copysets(txn: Transaction, reporting: frozenset[int], wanted: int) -> int:
    """Makes the copysets that the chunkservers which are there are short of; returns how many.

    With several replicas one in the zone of a lost chunkserver gets none: it is the one to put into
    the other's place, whose copysets it then has.
    """
    everyone = servers(txn, reporting)
    takers = everyone.takers()
    served: list[int] = []
    if pool.replicas(txn) > 1:
        missing = copysets.held(txn) - takers.keys()
        lost = {everyone.zone(i) for i in missing if not everyone.records[i].retiring}
        served = [i for i, zone in takers.items() if zone in lost]
    return copysets.create(txn, takers, wanted, served)


def _check_registration(request: cl.RegisterChunkserverRequest) -> str:
    try:
        disk = str(uuids.UUID(request.uuid))
    except ValueError as error:
        raise ClusterRefusalError("INVALID_ARGUMENT", "the disk's uuid is not one") from error
    try:
        address = ipaddress.IPv4Address(request.ip)
    except ValueError as error:
        raise ClusterRefusalError(
            "INVALID_ARGUMENT", f"{request.ip[:64]!r} is no dotted IPv4 address"
        ) from error
    if address.is_unspecified or address.is_multicast:
        raise ClusterRefusalError(
            "INVALID_ARGUMENT", f"clients cannot reach {address}; advertise the real address"
        )
    if not 1 <= request.port <= 65535:
        raise ClusterRefusalError("INVALID_ARGUMENT", f"{request.port} is no port")
    if len(request.data_directory) > TEXT_MAX or len(request.zone) > TEXT_MAX:
        raise ClusterRefusalError("INVALID_ARGUMENT", "the folder or the zone is too long")
    return disk


def assignments(txn: Transaction, chunkserver_id: int) -> list[cl.CopysetAssignment]:
    """The copysets that a chunkserver holds or has to make."""
    records = {c.id: c for c in chunkservers(txn)}
    addresses = {i: address(c) for i, c in records.items()}
    return copysets.assignments(txn, records[chunkserver_id], addresses)


def known(txn: Transaction, chunkserver_id: int, disk: str | None) -> st.ChunkserverRecord:
    """The record of a chunkserver that reports. Refuses (NOT_FOUND) an unknown one, and
    (FAILED_PRECONDITION) an id that belongs to another disk."""
    key = u32(chunkserver_id)
    record = get_record(txn, Space.CHUNKSERVERS, key, st.ChunkserverRecord)
    if record is None:
        raise ClusterRefusalError(
            "NOT_FOUND", f"there is no chunkserver {chunkserver_id}; it must register first"
        )
    if disk is not None and record.uuid != disk:
        raise ClusterRefusalError(
            "FAILED_PRECONDITION",
            f"chunkserver {chunkserver_id} has the disk {record.uuid}, not {disk[:64]}",
        )
    return record


def heartbeat(
    txn: Transaction,
    request: cl.HeartbeatRequest,
    *,
    copysets_per_chunkserver: int,
    reporting: frozenset[int],
    fresh: frozenset[int],
    now_us: int,
) -> cl.HeartbeatResponse:
    """Notes what a chunkserver says; answers with what it must hold, the next steps of changes of
    members, the epochs it has not been told, and the chunks to delete. Of those that count as
    ``reporting``, new copysets are made on ``fresh`` ones only."""
    record = known(txn, request.chunkserver_id, request.uuid)
    before = record.SerializeToString(deterministic=True)
    record.disk_error = request.disk_error[:TEXT_MAX]
    acknowledged = request.assignment_revision
    if acknowledged <= copysets.revision(txn):  # else this store was restored from a backup
        record.assigned_revision = max(record.assigned_revision, acknowledged)
    if record.SerializeToString(deterministic=True) != before:
        put_record(txn, Space.CHUNKSERVERS, u32(record.id), record)
    if len(request.copysets) < copysets_per_chunkserver:
        make_copysets(txn, fresh | {record.id}, copysets_per_chunkserver)
    everyone = servers(txn, reporting | {record.id})
    steps = changes.follow(txn, everyone, request.copysets, now_us)
    removals = copysets.removals(txn, record, request.copysets)
    raised, revision = epochs.since(txn, request.epoch_revision)
    response = cl.HeartbeatResponse(
        epochs=[cl.FileEpoch(file_id=e.file_id, epoch=e.epoch) for e in raised],
        reclaim=_reclaim(txn, request),
        epoch_revision=revision,
        scrub_request=record.scrub_request or None,
        assignment_revision=copysets.revision(txn),
        steps=steps,
        removals=removals,
    )
    known_already = request.HasField("assignment_revision")
    if not known_already or acknowledged != response.assignment_revision:
        response.copysets.extend(assignments(txn, record.id))
    return response


def _reclaim(txn: Transaction, request: cl.HeartbeatRequest) -> list[cl.ChunkId]:
    """Chunks to delete of the copysets that the chunkserver leads."""
    found: list[cl.ChunkId] = []
    if not any(txn.scan(Space.RECLAIM, limit=1)):
        return found
    for report in request.copysets:
        room = RECLAIM_BATCH - len(found)
        if report.leader and room > 0:
            key = copysets.key(report.logical_pool_id, report.copyset_id)
            found += [parse(cl.ChunkId, v) for _, v in txn.scan(Space.RECLAIM, key, limit=room)]
    return found


def start_scrub(
    txn: Transaction,
    request: cl.StartScrubRequest,
    liveness: Liveness,
    *,
    now_ms: int,
    now_us: int,
) -> cl.StartScrubResponse:
    """Asks chunkservers for a pass of the scrub; they learn of it in their next heartbeat. The
    request's number is the time, so that numbers grow even if this store is lost.

    Refuses (NOT_FOUND) an unknown chunkserver, (FAILED_PRECONDITION) one that is offline or does
    not scrub, and if there is none that does.
    """
    records = {record.id: record for record in chunkservers(txn)}
    refusals = {
        i: refusal for i in records if (refusal := _why_not_scrub(liveness, i, now_ms)) is not None
    }
    for chunkserver_id in request.chunkserver_ids:
        if chunkserver_id not in records:
            raise ClusterRefusalError("NOT_FOUND", f"there is no chunkserver {chunkserver_id}")
        if chunkserver_id in refusals:
            raise ClusterRefusalError("FAILED_PRECONDITION", refusals[chunkserver_id])
    wanted = set(request.chunkserver_ids) or records.keys() - refusals.keys()
    if not wanted:
        why = "; ".join(refusals.values()) or "there is no chunkserver"
        raise ClusterRefusalError("FAILED_PRECONDITION", f"nothing can be scrubbed: {why}")
    number = max(now_us, *(record.scrub_request + 1 for record in records.values()))
    for chunkserver_id in wanted:
        records[chunkserver_id].scrub_request = number
        put_record(txn, Space.CHUNKSERVERS, u32(chunkserver_id), records[chunkserver_id])
    return cl.StartScrubResponse(request=number, chunkserver_ids=sorted(wanted))


def _why_not_scrub(liveness: Liveness, chunkserver_id: int, now_ms: int) -> str | None:
    if not liveness.is_reporting(chunkserver_id, now_ms):
        return f"chunkserver {chunkserver_id} is offline"
    scrub = liveness.seen[chunkserver_id].scrub
    if scrub is None or scrub.rate == 0:
        return f"the scrub of chunkserver {chunkserver_id} is off (--scrub-rate)"
    return None


def reclaimed(txn: Transaction, request: cl.ReclaimDoneRequest) -> None:
    """Takes chunks that are gone off the list of those to delete."""
    known(txn, request.chunkserver_id, None)
    for chunk in request.chunks:
        txn.delete(Space.RECLAIM, copysets.reclaim_key(chunk))


def address(record: st.ChunkserverRecord) -> str:
    """Where it is, "ip:port"; empty if it has lost its address to another."""
    return f"{record.ip}:{record.port}" if record.port != NO_PORT else ""


def location(record: st.ChunkserverRecord) -> topo.ChunkServerLocation:
    return topo.ChunkServerLocation(
        chunkServerID=record.id, hostIp=record.ip, port=record.port, externalIp=record.ip
    )


def epoch_holders(txn: Transaction) -> tuple[list[topo.ChunkServerLocation], int]:
    """The chunkservers that hold copysets, and how many of them have to miss a new epoch before a
    copyset may: fewer than this and each has it on one of its members, so in its log."""
    held = copysets.held(txn)
    there = [c for c in chunkservers(txn) if c.id in held and c.port != NO_PORT]
    # One that cannot be asked counts as one that missed it.
    return [location(c) for c in there], max(1, pool.replicas(txn) - (len(held) - len(there)))


def chunkservers_in_copysets(
    txn: Transaction, request: topo.GetChunkServerListInCopySetsRequest
) -> topo.GetChunkServerListInCopySetsResponse:
    """One answer an id asked for, in that order, repeated ids included: as CurveBS answers."""
    response = topo.GetChunkServerListInCopySetsResponse(statusCode=TOPOLOGY_OK)
    if len(request.copysetId) > REQUESTED_COPYSETS_MAX:
        response.statusCode = TOPOLOGY_INVALID
        return response
    locations = {c.id: location(c) for c in chunkservers(txn) if c.port != NO_PORT}
    members: dict[int, list[topo.ChunkServerLocation]] = {}
    for copyset_id in request.copysetId:
        if copyset_id not in members:
            record = copysets.get(txn, request.logicalPoolId, copyset_id)
            if record is None:
                response.statusCode = TOPOLOGY_COPYSET_NOT_FOUND
                return response
            voters = copysets.voters_of(record)
            members[copyset_id] = [locations[i] for i in voters if i in locations]
        response.csInfo.add(copysetId=copyset_id, csLocs=members[copyset_id])
    return response
