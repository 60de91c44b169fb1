# SPDX-License-Identifier: BSD-3-Clause
"""Chunkservers and copysets: who is there, who holds what, and what they are told."""

from __future__ import annotations

import ipaddress
import uuid as uuids
from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.mds import epochs, segments, tree
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

POOL_ID = 1
RECLAIM_BATCH = 512
CHUNKSERVERS_MAX = 10_000
REQUESTED_COPYSETS_MAX = 65_536
TEXT_MAX = 4096

TOPOLOGY_OK = 0
TOPOLOGY_INVALID = -2
TOPOLOGY_COPYSET_NOT_FOUND = -11


@dataclass(slots=True)
class Presence:
    """What a chunkserver said last. ``seen_ms`` is of a monotonic clock."""

    seen_ms: int
    capacity_bytes: int = 0
    used_bytes: int = 0
    leaders: int = 0
    scrub: cl.ScrubReport | None = None


@dataclass(slots=True)
class Liveness:
    """Which chunkservers have been heard of lately; in memory only. After a start everyone counts
    as present until the time for a heartbeat has passed."""

    timeout_ms: int
    started_ms: int
    seen: dict[int, Presence] = field(default_factory=dict)

    def heard(self, chunkserver_id: int, presence: Presence) -> None:
        self.seen[chunkserver_id] = presence

    def is_reporting(self, chunkserver_id: int, now_ms: int) -> bool:
        """Whether it was heard of since the start, and not too long ago."""
        presence = self.seen.get(chunkserver_id)
        return presence is not None and now_ms - presence.seen_ms < self.timeout_ms

    def is_online(self, chunkserver_id: int, now_ms: int) -> bool:
        if chunkserver_id not in self.seen:
            return now_ms - self.started_ms < self.timeout_ms
        return self.is_reporting(chunkserver_id, now_ms)

    def online(self, chunkserver_ids: Iterable[int], now_ms: int) -> frozenset[int]:
        return frozenset(i for i in chunkserver_ids if self.is_online(i, now_ms))


def chunkservers(txn: Transaction) -> list[st.ChunkserverRecord]:
    return [parse(st.ChunkserverRecord, value) for _, value in txn.scan(Space.CHUNKSERVERS)]


def copysets_of(txn: Transaction, chunkserver_id: int) -> list[st.CopysetRecord]:
    records = (parse(st.CopysetRecord, value) for _, value in txn.scan(Space.COPYSETS))
    return [r for r in records if chunkserver_id in r.chunkserver_ids]


def register(
    txn: Transaction,
    request: cl.RegisterChunkserverRequest,
    *,
    copysets_per_chunkserver: int,
    reporting: frozenset[int],
    now_us: int,
) -> int:
    """Adds a chunkserver, or takes a new address of one that is known by its disk's uuid; returns
    its id. A new one gets copysets of its own (with one replica each).

    Refuses (INVALID_ARGUMENT) a bad address; (ALREADY_EXISTS) a disk that is in use elsewhere, and
    an address that another chunkserver uses.
    """
    disk = _check_registration(request)
    known = [c for c in chunkservers(txn) if c.uuid == disk]
    for other in chunkservers(txn):
        taken = (other.ip, other.port) == (request.ip, request.port)
        if taken and other.uuid != disk and other.id in reporting:
            raise ClusterRefusalError(
                "ALREADY_EXISTS",
                f"chunkserver {other.id} with another disk reports from {other.ip}:{other.port}",
            )
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
        _create_copysets(txn, record.id, copysets_per_chunkserver)
    record.ip = request.ip
    record.port = request.port
    record.data_directory = request.data_directory
    record.capacity_bytes = request.capacity_bytes
    if request.zone:
        record.zone = request.zone
    put_record(txn, Space.CHUNKSERVERS, u32(record.id), record)
    txn.put(Space.CHUNKSERVER_UUIDS, disk.encode(), u32(record.id))
    return int(record.id)


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


def _create_copysets(txn: Transaction, chunkserver_id: int, count: int) -> None:
    for copyset_id in next_ids(txn, "copyset_id", count):
        record = st.CopysetRecord(
            logical_pool_id=POOL_ID,
            copyset_id=copyset_id,
            chunkserver_ids=[chunkserver_id],
            configuration_epoch=1,
        )
        put_record(txn, Space.COPYSETS, segments.copyset_key(POOL_ID, copyset_id), record)


def assignments(txn: Transaction, chunkserver_id: int) -> list[cl.CopysetAssignment]:
    """The copysets that a chunkserver must hold."""
    addresses = {c.id: f"{c.ip}:{c.port}:0" for c in chunkservers(txn)}
    return [
        cl.CopysetAssignment(
            logical_pool_id=r.logical_pool_id,
            copyset_id=r.copyset_id,
            peers=[addresses[i] for i in r.chunkserver_ids],
            configuration_epoch=r.configuration_epoch,
        )
        for r in copysets_of(txn, chunkserver_id)
    ]


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


def heartbeat(txn: Transaction, request: cl.HeartbeatRequest) -> cl.HeartbeatResponse:
    """Notes a disk's failure; answers with what the chunkserver must hold, the epochs it has not
    been told, and the chunks to delete."""
    record = known(txn, request.chunkserver_id, request.uuid)
    error = request.disk_error[:TEXT_MAX]
    if error != record.disk_error:
        record.disk_error = error
        put_record(txn, Space.CHUNKSERVERS, u32(record.id), record)
    raised, revision = epochs.since(txn, request.epoch_revision)
    reclaim = txn.scan(Space.RECLAIM, u32(record.id), limit=RECLAIM_BATCH)
    return cl.HeartbeatResponse(
        copysets=assignments(txn, record.id),
        epochs=[cl.FileEpoch(file_id=e.file_id, epoch=e.epoch) for e in raised],
        reclaim=[parse(cl.ChunkId, value) for _, value in reclaim],
        epoch_revision=revision,
        scrub_request=record.scrub_request or None,
    )


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
    """Takes chunks that are gone off the chunkserver's reclaim list."""
    known(txn, request.chunkserver_id, None)
    for chunk in request.chunks:
        txn.delete(Space.RECLAIM, segments.reclaim_key(request.chunkserver_id, chunk.chunk_id))


def location(record: st.ChunkserverRecord) -> topo.ChunkServerLocation:
    return topo.ChunkServerLocation(
        chunkServerID=record.id, hostIp=record.ip, port=record.port, externalIp=record.ip
    )


def locations(txn: Transaction) -> list[topo.ChunkServerLocation]:
    """Where all chunkservers are."""
    return [location(record) for record in chunkservers(txn)]


def chunkservers_in_copysets(
    txn: Transaction, request: topo.GetChunkServerListInCopySetsRequest
) -> topo.GetChunkServerListInCopySetsResponse:
    """One answer an id asked for, in that order, repeated ids included: as CurveBS answers."""
    response = topo.GetChunkServerListInCopySetsResponse(statusCode=TOPOLOGY_OK)
    if len(request.copysetId) > REQUESTED_COPYSETS_MAX:
        response.statusCode = TOPOLOGY_INVALID
        return response
    servers = {c.id: location(c) for c in chunkservers(txn)}
    members: dict[int, list[topo.ChunkServerLocation]] = {}
    for copyset_id in request.copysetId:
        if copyset_id not in members:
            key = segments.copyset_key(request.logicalPoolId, copyset_id)
            record = get_record(txn, Space.COPYSETS, key, st.CopysetRecord)
            if record is None:
                response.statusCode = TOPOLOGY_COPYSET_NOT_FOUND
                return response
            members[copyset_id] = [servers[i] for i in record.chunkserver_ids]
        response.csInfo.add(copysetId=copyset_id, csLocs=members[copyset_id])
    return response


def status(txn: Transaction, liveness: Liveness, now_ms: int) -> cl.ClusterStatusResponse:
    """The cluster as operators see it; sessions and version are added by the caller."""
    volumes, allocated = tree.totals(txn)
    response = cl.ClusterStatusResponse(volumes=volumes, allocated_bytes=allocated, version="")
    for record in chunkservers(txn):
        presence = liveness.seen.get(record.id)
        line = response.chunkservers.add(
            id=record.id,
            address=f"{record.ip}:{record.port}",
            data_directory=record.data_directory,
            online=liveness.is_reporting(record.id, now_ms),
            capacity_bytes=presence.capacity_bytes if presence else record.capacity_bytes,
            used_bytes=presence.used_bytes if presence else record.used_bytes,
            copysets=len(copysets_of(txn, record.id)),
            leaders=presence.leaders if presence else 0,
        )
        if record.disk_error:
            line.disk_error = record.disk_error
        if presence is not None:
            line.last_heartbeat_ms_ago = max(0, now_ms - presence.seen_ms)
            if presence.scrub is not None:
                line.scrub.CopyFrom(presence.scrub)
    _locate_bad_blocks(txn, response)
    return response


def _locate_bad_blocks(txn: Transaction, response: cl.ClusterStatusResponse) -> None:
    """Says of bad blocks in which volume they are and where in it."""
    bad = [b for line in response.chunkservers for b in line.scrub.bad]
    if not bad:
        return
    wanted = {b.chunk_id for b in bad}
    volumes = tree.by_id(txn, {b.file_id for b in bad})
    places: dict[int, int] = {}
    for file_id, (_, info) in volumes.items():
        if not info.stripeUnit:  # the blocks of a striped chunk lie all over its segment
            places |= segments.chunk_offsets(txn, file_id, wanted)
    for b in bad:
        if b.file_id in volumes:
            b.volume = volumes[b.file_id][0]
        if b.HasField("offset") and b.chunk_id in places:
            b.volume_offset = places[b.chunk_id] + b.offset
