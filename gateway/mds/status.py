# SPDX-License-Identifier: BSD-3-Clause
"""The cluster as operators see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.mds import changes, cluster, copysets, placement, pool, segments, tree
from gateway.mds.liveness import Leader, Liveness
from gateway.mds.store import Transaction
from gateway.proto import cluster_pb2 as cl
from gateway.proto import store_pb2 as st


@dataclass(frozen=True, slots=True)
class _View:
    """What the description of a copyset is made from."""

    servers: changes.Servers
    online: frozenset[int]
    leaders: Mapping[tuple[int, int], Leader]


def _view(txn: Transaction, liveness: Liveness, now_ms: int) -> _View:
    reporting = liveness.reporting(now_ms)
    return _View(cluster.servers(txn, reporting), reporting, liveness.leaders(now_ms))


def describe(
    txn: Transaction, request: cl.ListCopysetsRequest, liveness: Liveness, now_ms: int
) -> cl.ListCopysetsResponse:
    """The copysets that the request names."""
    view = _view(txn, liveness, now_ms)
    response = cl.ListCopysetsResponse()
    for record in copysets.scan(txn):
        key = (record.logical_pool_id, record.copyset_id)
        if request.HasField("copyset_id") and key != (
            request.logical_pool_id,
            request.copyset_id,
        ):
            continue
        if request.HasField(
            "chunkserver_id"
        ) and request.chunkserver_id not in copysets.chunkservers_of(record):
            continue
        response.copysets.append(_copyset(txn, view, record))
    return response


def _copyset(txn: Transaction, view: _View, record: st.CopysetRecord) -> cl.CopysetStatus:
    leader = view.leaders.get((record.logical_pool_id, record.copyset_id))
    report = leader.report if leader is not None else None
    members = [_member(view, record, m, report) for m in record.members]
    described = cl.CopysetStatus(
        logical_pool_id=record.logical_pool_id,
        copyset_id=record.copyset_id,
        state=_state(members, report),
        configuration_epoch=record.configuration_epoch,
        members=members,
    )
    if report is not None:
        described.term = report.term
        described.last_index = report.last_index
        described.applied_index = report.applied_index
    change = changes.get(txn, record)
    if change is not None:
        stage, _ = changes.next_step(
            change, report, made=changes.is_made(view.servers, record, change), may_copy=True
        )
        described.change.CopyFrom(
            cl.ChangeStatus(
                add=copysets.chunkserver_of(change.add),
                remove=copysets.chunkserver_of(change.remove),
                stage=stage or cl.ChangeStatus.REMOVING,
                asked_s=change.asked_us // 1_000_000,
            )
        )
    return described


def _member(
    view: _View,
    record: st.CopysetRecord,
    member: st.MemberRecord,
    report: cl.CopysetReport | None,
) -> cl.MemberStatus:
    chunkserver_id = copysets.chunkserver_of(member.member_id)
    server = view.servers.records[chunkserver_id]
    described = cl.MemberStatus(
        member_id=member.member_id,
        chunkserver_id=chunkserver_id,
        address=cluster.address(server),
        zone=changes.zone_of(server),
        learner=member.learner,
        online=chunkserver_id in view.online and not server.disk_error,
        leader=report is not None and report.member_id == member.member_id,
        copying=False,
        lagging=False,
    )
    if report is None or described.leader:
        return described
    for progress in report.progress:
        if progress.member_id == member.member_id:
            described.behind = max(0, report.last_index - progress.match_index)
            described.copying = progress.copying
            if progress.HasField("heard_ms_ago"):
                described.heard_ms_ago = progress.heard_ms_ago
            silent = not progress.HasField("heard_ms_ago")
            described.lagging = progress.copying or silent or described.behind > changes.FAR_BEHIND
    return described


def _state(
    members: list[cl.MemberStatus], report: cl.CopysetReport | None
) -> cl.CopysetStatus.State.ValueType:
    voters = [m for m in members if not m.learner]
    if sum(m.online for m in voters) < copysets.majority(voters):
        return cl.CopysetStatus.NO_MAJORITY
    if report is None:
        return cl.CopysetStatus.LEADERLESS
    if any(not m.online or m.lagging for m in voters):
        return cl.CopysetStatus.DEGRADED
    return cl.CopysetStatus.HEALTHY


def status(txn: Transaction, liveness: Liveness, now_ms: int) -> cl.ClusterStatusResponse:
    """The whole cluster; sessions and version are added by the caller."""
    volumes, allocated = tree.totals(txn)
    view = _view(txn, liveness, now_ms)
    described = [_copyset(txn, view, record) for record in copysets.scan(txn)]
    replicas = pool.replicas(txn)
    zones = view.servers.takers().values()
    response = cl.ClusterStatusResponse(
        volumes=volumes,
        allocated_bytes=allocated,
        version="",
        replicas=replicas,
        copysets=_summary(described),
        zones_missing=0 if described else placement.missing_zones(zones, replicas),
    )
    held = Counter(m.chunkserver_id for c in described for m in c.members)
    leading = Counter(leader.chunkserver_id for leader in view.leaders.values())
    lagging = Counter(m.chunkserver_id for c in described for m in c.members if m.lagging)
    for record in view.servers.records.values():
        presence = liveness.seen.get(record.id)
        line = response.chunkservers.add(
            id=record.id,
            address=cluster.address(record),
            data_directory=record.data_directory,
            online=record.id in view.online,
            capacity_bytes=presence.capacity_bytes if presence else record.capacity_bytes,
            used_bytes=presence.used_bytes if presence else record.used_bytes,
            copysets=held[record.id],
            leaders=leading[record.id],
            zone=changes.zone_of(record),
            retiring=record.retiring,
            lagging=lagging[record.id],
        )
        if record.disk_error:
            line.disk_error = record.disk_error
        if presence is not None:
            line.last_heartbeat_ms_ago = max(0, now_ms - presence.seen_ms)
            if presence.scrub is not None:
                line.scrub.CopyFrom(presence.scrub)
    _locate_bad_blocks(txn, response)
    return response


def _summary(described: list[cl.CopysetStatus]) -> cl.CopysetSummary:
    states = Counter(c.state for c in described)
    without = states[cl.CopysetStatus.NO_MAJORITY]
    return cl.CopysetSummary(
        copysets=len(described),
        leaderless=states[cl.CopysetStatus.LEADERLESS] + without,
        without_majority=without,
        degraded=states[cl.CopysetStatus.DEGRADED],
        changing=sum(c.HasField("change") for c in described),
    )


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
