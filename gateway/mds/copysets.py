# SPDX-License-Identifier: BSD-3-Clause
"""Copysets: who their members are, and what a chunkserver is told of those that it holds.

A member's id is its chunkserver's id, and above 32 bits the configuration epoch at which it was
added: a chunkserver that comes back to a copyset is another member of it. The MDS decides who is
to be a member (gateway/mds/changes.py); who is one, the copyset's own log says, and ``observe``
follows it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from gateway.mds import placement, pool
from gateway.mds.store import (
    Space,
    Transaction,
    add_u64,
    get_record,
    get_u64,
    next_ids,
    parse,
    put_record,
    u32,
    u64,
)
from gateway.proto import cluster_pb2 as cl
from gateway.proto import store_pb2 as st

REVISION = b"assignment_revision"
"""Counter: grows with every change of what chunkservers are assigned, addresses included."""
INCARNATION = 32


def key(pool_id: int, copyset_id: int) -> bytes:
    return u32(pool_id) + u32(copyset_id)


def reclaim_key(chunk: cl.ChunkId) -> bytes:
    return key(chunk.logical_pool_id, chunk.copyset_id) + u64(chunk.chunk_id)


def get(txn: Transaction, pool_id: int, copyset_id: int) -> st.CopysetRecord | None:
    return get_record(txn, Space.COPYSETS, key(pool_id, copyset_id), st.CopysetRecord)


def put(txn: Transaction, record: st.CopysetRecord) -> None:
    put_record(txn, Space.COPYSETS, key(record.logical_pool_id, record.copyset_id), record)


def scan(txn: Transaction) -> Iterator[st.CopysetRecord]:
    for _, value in txn.scan(Space.COPYSETS):
        yield parse(st.CopysetRecord, value)


def name(record: st.CopysetRecord | cl.CopysetReport) -> str:
    """As people and folders write it: "1-4"."""
    return f"{record.logical_pool_id}-{record.copyset_id}"


def chunkserver_of(member_id: int) -> int:
    return member_id & ((1 << INCARNATION) - 1)


def new_member_id(chunkserver_id: int, configuration_epoch: int) -> int:
    return configuration_epoch << INCARNATION | chunkserver_id


def chunkservers_of(record: st.CopysetRecord) -> list[int]:
    """The chunkservers of all members, learners included."""
    return [chunkserver_of(m.member_id) for m in record.members]


def voters_of(record: st.CopysetRecord) -> list[int]:
    """The chunkservers of the members that vote."""
    return [chunkserver_of(m.member_id) for m in record.members if not m.learner]


def member_at(record: st.CopysetRecord, chunkserver_id: int) -> st.MemberRecord | None:
    """The chunkserver's member of the copyset."""
    found = [m for m in record.members if chunkserver_of(m.member_id) == chunkserver_id]
    return found[-1] if found else None


def majority(voters: Collection[object]) -> int:
    return len(voters) // 2 + 1


def held(txn: Transaction) -> set[int]:
    """The chunkservers that hold copysets."""
    return {i for record in scan(txn) for i in chunkservers_of(record)}


def revision(txn: Transaction) -> int:
    return get_u64(txn, Space.COUNTERS, REVISION)


def raise_revision(txn: Transaction) -> int:
    """Something that is assigned is about to change: everybody is told anew."""
    return add_u64(txn, Space.COUNTERS, REVISION, 1)


def create(txn: Transaction, zones: Mapping[int, str], wanted: int, served: Collection[int]) -> int:
    """Makes copysets until each of the chunkservers has ``wanted``, as far as ``zones`` (where
    they are) allows, but for those in ``served``; returns how many."""
    existing = [chunkservers_of(record) for record in scan(txn)]
    groups = placement.new_copysets(
        zones,
        existing,
        replicas=pool.replicas(txn),
        wanted=wanted,
        seed=get_u64(txn, Space.COUNTERS, b"copyset_id"),
        served=served,
    )
    if not groups:
        return 0
    number = raise_revision(txn)
    for copyset_id, group in zip(next_ids(txn, "copyset_id", len(groups)), groups, strict=True):
        put(
            txn,
            st.CopysetRecord(
                logical_pool_id=pool.POOL_ID,
                copyset_id=copyset_id,
                configuration_epoch=1,
                members=[
                    st.MemberRecord(member_id=i, learner=False, revision=number) for i in group
                ],
                founders=group,
            ),
        )
    return len(groups)


def assignments(
    txn: Transaction, chunkserver: st.ChunkserverRecord, addresses: Mapping[int, str]
) -> list[cl.CopysetAssignment]:
    """The copysets that a chunkserver holds or has to make."""
    assigned = []
    for record in scan(txn):
        member = member_at(record, chunkserver.id)
        if member is None:
            continue
        create_it = member.revision > chunkserver.assigned_revision
        founder = create_it and member.member_id in record.founders
        assigned.append(
            cl.CopysetAssignment(
                logical_pool_id=record.logical_pool_id,
                copyset_id=record.copyset_id,
                configuration_epoch=record.configuration_epoch,
                members=[
                    cl.CopysetMember(
                        member_id=m.member_id,
                        chunkserver_id=chunkserver_of(m.member_id),
                        address=addresses[chunkserver_of(m.member_id)],
                        learner=m.learner,
                    )
                    for m in record.members
                ],
                member_id=member.member_id,
                create=create_it,
                founders=record.founders if founder else (),
            )
        )
    return assigned


def has_made(member: st.MemberRecord, chunkserver: st.ChunkserverRecord) -> bool:
    """Whether the chunkserver has said that it has the replica."""
    return member.revision <= chunkserver.assigned_revision


def add_member(txn: Transaction, record: st.CopysetRecord, chunkserver_id: int) -> int:
    """Makes a chunkserver a member to be: it gets a blank replica. Returns the member's id."""
    record.configuration_epoch += 1
    member_id = new_member_id(chunkserver_id, record.configuration_epoch)
    record.members.add(
        member_id=member_id, learner=True, revision=raise_revision(txn), pending=True
    )
    put(txn, record)
    return member_id


def drop_member(txn: Transaction, record: st.CopysetRecord, member_id: int) -> None:
    """The member is none any more: its chunkserver has to delete the replica."""
    left = [m for m in record.members if m.member_id != member_id]
    _set_members(txn, record, left)


def observe(txn: Transaction, record: st.CopysetRecord, report: cl.CopysetReport) -> bool:
    """Takes over the configuration that a leader reports, if it is committed and newer than the
    one that is known; returns whether it was."""
    if not report.members_committed or report.members_index <= record.members_index:
        return False
    known = {m.member_id: m for m in record.members}
    members = []
    for m in report.members:
        before = known.get(m.member_id)
        # One that is not known was added before this store was restored from a backup.
        since = before.revision if before is not None else 0
        members.append(st.MemberRecord(member_id=m.member_id, learner=m.learner, revision=since))
    present = {m.member_id for m in members}
    members += [m for m in record.members if m.pending and m.member_id not in present]
    record.members_index = report.members_index
    _set_members(txn, record, members)
    return True


def _set_members(
    txn: Transaction, record: st.CopysetRecord, members: Iterable[st.MemberRecord]
) -> None:
    number = raise_revision(txn)
    before = {m.member_id for m in record.members}
    kept = list(members)
    record.configuration_epoch += 1
    del record.members[:]
    record.members.extend(kept)
    put(txn, record)
    for member_id in before - {m.member_id for m in kept}:
        removal = st.RemovalRecord(
            logical_pool_id=record.logical_pool_id,
            copyset_id=record.copyset_id,
            member_id=member_id,
            revision=number,
        )
        put_record(txn, Space.REMOVALS, _removal_key(removal), removal)


def _removal_key(removal: st.RemovalRecord) -> bytes:
    copyset = key(removal.logical_pool_id, removal.copyset_id)
    return u32(chunkserver_of(removal.member_id)) + copyset + u64(removal.member_id)


def removals(
    txn: Transaction, chunkserver: st.ChunkserverRecord, reports: Iterable[cl.CopysetReport]
) -> list[cl.ReplicaRemoval]:
    """The replicas that a chunkserver has to delete; forgets those that are gone: not reported
    by one that knows that it is not to make them."""
    there = {(r.logical_pool_id, r.copyset_id, r.member_id) for r in reports}
    found = []
    for _, value in txn.scan(Space.REMOVALS, u32(chunkserver.id)):
        removal = parse(st.RemovalRecord, value)
        which = (removal.logical_pool_id, removal.copyset_id, removal.member_id)
        if which not in there and chunkserver.assigned_revision >= removal.revision:
            txn.delete(Space.REMOVALS, _removal_key(removal))
            continue
        found.append(
            cl.ReplicaRemoval(logical_pool_id=which[0], copyset_id=which[1], member_id=which[2])
        )
    return found
