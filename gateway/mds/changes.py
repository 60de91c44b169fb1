# SPDX-License-Identifier: BSD-3-Clause
"""Changes of a copyset's members, and how they go on.

A change says which member is to be added and which is to go. What has to be done next follows from
that and from the configuration that the copyset's leader reports: the new replica is made blank,
becomes a learner, copies, gets a vote, the leadership leaves the one that goes, and that one is
removed. One step at a time is given to the leader in the answers to its heartbeats, again and again
until a report shows that it was done. Nothing else is remembered, so a restart of this server, of a
leader or of anything else changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from gateway.mds import copysets
from gateway.mds.store import Space, Transaction, get_record, parse, put_record
from gateway.proto import cluster_pb2 as cl
from gateway.proto import store_pb2 as st

COPIES_MAX = 2
"""Replicas that a chunkserver takes in at once, copying one after the other; further ones wait."""
NO_PORT = 0
"""Of a chunkserver whose address another one has now: its disk is lost, or will register again."""
FAR_BEHIND = 1024
"""Entries by which a member is far behind its leader."""

Step = cl.ConfigurationStep
Stage = cl.ChangeStatus


@dataclass(frozen=True, slots=True)
class Servers:
    """The chunkservers as a change has to know them."""

    records: Mapping[int, st.ChunkserverRecord]
    reporting: frozenset[int]

    def zone(self, chunkserver_id: int) -> str:
        return zone_of(self.records[chunkserver_id])

    def takers(self) -> dict[int, str]:
        """Those that may get replicas, and where they are."""
        return {
            i: zone_of(record)
            for i, record in self.records.items()
            if i in self.reporting
            and not record.retiring
            and not record.disk_error
            and record.port != NO_PORT
        }


def zone_of(record: st.ChunkserverRecord) -> str:
    """Where a chunkserver counts as being; without a zone of its own its host is one."""
    return record.zone or record.ip


def get(txn: Transaction, record: st.CopysetRecord) -> st.ChangeRecord | None:
    key = copysets.key(record.logical_pool_id, record.copyset_id)
    return get_record(txn, Space.CHANGES, key, st.ChangeRecord)


def put(txn: Transaction, change: st.ChangeRecord) -> None:
    key = copysets.key(change.logical_pool_id, change.copyset_id)
    put_record(txn, Space.CHANGES, key, change)


def scan(txn: Transaction) -> list[st.ChangeRecord]:
    return [parse(st.ChangeRecord, value) for _, value in txn.scan(Space.CHANGES)]


def ends(change: st.ChangeRecord) -> tuple[int, int]:
    """The chunkservers that come and go."""
    return copysets.chunkserver_of(change.add), copysets.chunkserver_of(change.remove)


def tell(change: st.ChangeRecord) -> str:
    to, source = ends(change)
    if not to:
        return f"the replica of chunkserver {source} is removed"
    return f"a replica moves from chunkserver {source} to {to}"


def next_step(
    change: st.ChangeRecord,
    report: cl.CopysetReport | None,
    *,
    made: bool,
    may_copy: bool,
) -> tuple[Stage.Stage.ValueType | None, Step | None]:
    """What is to be done next, given what the copyset's leader said last: the stage, None if the
    change is done, and the step for the leader, if it is the leader's turn. ``made``: the new
    replica is there. ``may_copy``: it may begin to copy. Pure."""
    if report is None:
        return Stage.WAITING, None
    members = {m.member_id: m for m in report.members}
    if change.add and (change.add not in members or members[change.add].learner):
        stage, kind, member_id = _addition(
            change, report, present=change.add in members, made=made, may_copy=may_copy
        )
    elif change.remove in members:
        stage, kind, member_id = _removal(change, report)
    else:
        return (None if report.members_committed else Stage.REMOVING), None
    if kind is None or not report.members_committed:
        return stage, None  # one change after the other
    return stage, Step(
        logical_pool_id=report.logical_pool_id,
        copyset_id=report.copyset_id,
        kind=kind,
        member_id=member_id,
    )


_Next = tuple[Stage.Stage.ValueType, Step.Kind.ValueType | None, int]


def _addition(
    change: st.ChangeRecord,
    report: cl.CopysetReport,
    *,
    present: bool,
    made: bool,
    may_copy: bool,
) -> _Next:
    if present:
        # The leader refuses as long as it is not there yet.
        behind = behind_of(report, change.add)
        stage = Stage.COPYING if behind is None or behind > FAR_BEHIND else Stage.PROMOTING
        return stage, Step.PROMOTE, change.add
    if not made:
        return Stage.CREATING, None, 0
    if not may_copy:
        return Stage.QUEUED, None, 0
    return Stage.COPYING, Step.ADD_LEARNER, change.add


def _removal(change: st.ChangeRecord, report: cl.CopysetReport) -> _Next:
    if change.remove != report.member_id:
        return Stage.REMOVING, Step.REMOVE, change.remove
    successor = _successor(change, report)
    return Stage.TRANSFERRING, Step.TRANSFER if successor else None, successor


def behind_of(report: cl.CopysetReport, member_id: int) -> int | None:
    """How many entries a member lacks; None: it is not known, or it is being sent the state."""
    for progress in report.progress:
        if progress.member_id == member_id:
            if progress.copying or not progress.HasField("heard_ms_ago"):
                return None
            return max(0, report.last_index - progress.match_index)
    return None


def _successor(change: st.ChangeRecord, report: cl.CopysetReport) -> int:
    """The voter that follows most closely; 0: there is none."""
    voters = {m.member_id for m in report.members if not m.learner} - {report.member_id}
    known = [p for p in report.progress if p.member_id in voters and p.HasField("heard_ms_ago")]
    if not known:
        return 0
    # The new one rather than another: it has no other work yet.
    best = max(known, key=lambda p: (p.match_index, p.member_id == change.add))
    return int(best.member_id)


def follow(
    txn: Transaction,
    servers: Servers,
    reports: Iterable[cl.CopysetReport],
    now_us: int,
) -> list[Step]:
    """Takes over what a chunkserver reports of the copysets that it leads, ends the changes that
    are done, and returns the next steps of the others."""
    led = [r for r in reports if r.leader and r.HasField("member_id")]
    for report in led:
        record = copysets.get(txn, report.logical_pool_id, report.copyset_id)
        if record is not None and copysets.observe(txn, record, report):
            _remove_strays(txn, record, now_us)
    pending = scan(txn)
    if not pending:
        return []
    by_copyset = {(r.logical_pool_id, r.copyset_id): r for r in led}
    copying = _copying(txn, pending)
    steps = []
    for change in pending:
        record = copysets.get(txn, change.logical_pool_id, change.copyset_id)
        current = by_copyset.get((change.logical_pool_id, change.copyset_id))
        if record is None or current is None:
            continue
        stage, step = next_step(
            change,
            current,
            made=is_made(servers, record, change),
            may_copy=copying[ends(change)[0]] < COPIES_MAX,
        )
        if stage is None:
            _finish(txn, record, change)
        if step is not None:
            steps.append(step)
            copying[ends(change)[0]] += step.kind == Step.ADD_LEARNER
    return steps


def is_made(servers: Servers, record: st.CopysetRecord, change: st.ChangeRecord) -> bool:
    """Whether the replica that the change adds is there."""
    server = servers.records.get(copysets.chunkserver_of(change.add))
    member = next((m for m in record.members if m.member_id == change.add), None)
    return server is not None and member is not None and copysets.has_made(member, server)


def _copying(txn: Transaction, changes: Collection[st.ChangeRecord]) -> Counter[int]:
    """How many replicas each chunkserver is copying."""
    found: Counter[int] = Counter()
    for change in changes:
        record = copysets.get(txn, change.logical_pool_id, change.copyset_id)
        for member in record.members if record is not None else ():
            if member.member_id == change.add and member.learner and not member.pending:
                found[ends(change)[0]] += 1
    return found


def _finish(txn: Transaction, record: st.CopysetRecord, change: st.ChangeRecord) -> None:
    txn.delete(Space.CHANGES, copysets.key(change.logical_pool_id, change.copyset_id))
    if any(m.member_id == change.remove for m in record.members):
        copysets.drop_member(txn, record, change.remove)  # it had not become one yet


def _remove_strays(txn: Transaction, record: st.CopysetRecord, now_us: int) -> None:
    """A learner that no change asks for (it was cancelled while the step was on its way) goes."""
    if get(txn, record) is not None:
        return
    for member in record.members:
        if member.learner and not member.pending:
            put(
                txn,
                st.ChangeRecord(
                    logical_pool_id=record.logical_pool_id,
                    copyset_id=record.copyset_id,
                    add=0,
                    remove=member.member_id,
                    asked_us=now_us,
                ),
            )
            return
