# SPDX-License-Identifier: BSD-3-Clause
"""Segments: 1 GiB of a volume each, allocated when first written as chunks spread over copysets."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from gateway.mds import changes, copysets, epochs, pool, rules, tree
from gateway.mds.refusal import RefusalError
from gateway.mds.rules import Caller
from gateway.mds.store import (
    Space,
    Transaction,
    add_u64,
    get_record,
    next_ids,
    parse,
    put_record,
    u64,
)
from gateway.proto import cluster_pb2 as cl
from gateway.proto import nameserver2_pb2 as ns
from gateway.proto import store_pb2 as st

PLACEMENT = b"placement"
"""Counter of chunks placed: where the round over the copysets goes on."""


def place(copysets: Sequence[int], start: int, count: int) -> list[int]:
    """The copysets of ``count`` chunks: round-robin from ``start``."""
    return [copysets[(start + i) % len(copysets)] for i in range(count)]


def usable_copysets(
    records: Sequence[st.CopysetRecord],
    online: frozenset[int],
    servers: Mapping[int, st.ChunkserverRecord],
) -> list[st.CopysetRecord]:
    """Copysets that may take new chunks: those of which a majority is online and has its replica;
    if there are none, those of which a majority is not broken for good (it may come back within
    the deadline of the write that waits for the segment)."""
    sound = [c for c in records if _has_majority(c, lambda i, _: not servers[i].disk_error)]
    ready = [
        c
        for c in sound
        if _has_majority(
            c,
            lambda i, m: (
                i in online and not servers[i].disk_error and copysets.has_made(m, servers[i])
            ),
        )
    ]
    return ready or sound


def _has_majority(record: st.CopysetRecord, good: Callable[[int, st.MemberRecord], bool]) -> bool:
    voters = [m for m in record.members if not m.learner]
    count = sum(good(copysets.chunkserver_of(m.member_id), m) for m in voters)
    return count >= copysets.majority(voters)


def get_or_allocate(
    txn: Transaction,
    caller: Caller,
    request: ns.GetOrAllocateSegmentRequest,
    online: frozenset[int],
) -> ns.PageFileSegment:
    """The segment at an offset; made if asked for, and if the caller's epoch is not too old."""
    info = tree.find_open_to_io(txn, request.fileName, caller).info
    if request.allocateIfNotExist and request.HasField("epoch"):
        epochs.check(info, request.epoch)
    rules.check_segment_offset(request.offset, info.length)
    segment = get_record(
        txn, Space.SEGMENTS, segment_key(info.id, request.offset), ns.PageFileSegment
    )
    if segment is not None:
        return segment
    if not request.allocateIfNotExist:
        raise RefusalError(
            ns.kSegmentNotAllocated, f"the segment at {request.offset} is not allocated"
        )
    return _allocate(txn, info, request.offset, online)


def _allocate(
    txn: Transaction, info: ns.FileInfo, offset: int, online: frozenset[int]
) -> ns.PageFileSegment:
    chunkservers = [parse(st.ChunkserverRecord, v) for _, v in txn.scan(Space.CHUNKSERVERS)]
    servers = {c.id: c for c in chunkservers}
    records = list(copysets.scan(txn))
    usable = usable_copysets(records, online, servers)
    if not usable:
        raise RefusalError(
            ns.kSegmentAllocateError,
            f"no chunkserver can take data: {_why_none(txn, records, servers)}",
        )
    pool_id = usable[0].logical_pool_id
    chosen = [c.copyset_id for c in usable if c.logical_pool_id == pool_id]
    count = info.segmentSize // info.chunkSize
    start = add_u64(txn, Space.COUNTERS, PLACEMENT, count) - count
    segment = ns.PageFileSegment(
        logicalPoolID=pool_id,
        startOffset=offset,
        segmentSize=info.segmentSize,
        chunkSize=info.chunkSize,
        chunks=[
            ns.PageFileChunkInfo(chunkID=chunk, copysetID=copyset)
            for chunk, copyset in zip(
                next_ids(txn, "chunk_id", count), place(chosen, start, count), strict=True
            )
        ],
    )
    put_record(txn, Space.SEGMENTS, segment_key(info.id, offset), segment)
    tree.add_allocated(txn, info.id, pool_id, info.segmentSize)
    return segment


def _why_none(
    txn: Transaction,
    records: Sequence[st.CopysetRecord],
    servers: Mapping[int, st.ChunkserverRecord],
) -> str:
    if not servers:
        return "none has registered yet"
    if records:
        return "disks with errors take the majority from every copyset"
    replicas = pool.replicas(txn)
    if replicas == 1:
        return "all have a disk error"
    zones = len({changes.zone_of(c) for c in servers.values()})
    return (
        f"there are no copysets yet; {replicas} replicas need chunkservers in {replicas} zones, "
        f"and those that have registered are in {zones}"
    )


def deallocate(txn: Transaction, caller: Caller, request: ns.DeAllocateSegmentRequest) -> None:
    """Gives a segment up: its range reads as zeros, its chunks go to the list of those to
    delete, and their ids are never used again."""
    info = tree.find_open_to_io(txn, request.fileName, caller).info
    if request.HasField("epoch"):
        epochs.check(info, request.epoch, exactly=True)
    rules.check_segment_offset(request.offset, info.length)
    key = segment_key(info.id, request.offset)
    segment = get_record(txn, Space.SEGMENTS, key, ns.PageFileSegment)
    if segment is None:
        raise RefusalError(
            ns.kSegmentNotAllocated, f"the segment at {request.offset} is not allocated"
        )
    _release(txn, info.id, key, segment)


def release_some(txn: Transaction, file_id: int, limit: int) -> int:
    """Gives up at most ``limit`` segments of a volume; returns how many."""
    found = list(txn.scan(Space.SEGMENTS, u64(file_id), limit=limit))
    for key, value in found:
        _release(txn, file_id, key, parse(ns.PageFileSegment, value))
    return len(found)


def _release(txn: Transaction, file_id: int, key: bytes, segment: ns.PageFileSegment) -> None:
    txn.delete(Space.SEGMENTS, key)
    tree.add_allocated(txn, file_id, segment.logicalPoolID, -segment.segmentSize)
    for chunk in segment.chunks:
        chunk_id = cl.ChunkId(
            logical_pool_id=segment.logicalPoolID,
            copyset_id=chunk.copysetID,
            chunk_id=chunk.chunkID,
        )
        put_record(txn, Space.RECLAIM, copysets.reclaim_key(chunk_id), chunk_id)


def chunk_offsets(txn: Transaction, file_id: int, chunk_ids: Collection[int]) -> dict[int, int]:
    """Where in the volume chunks begin, bytes; those that it does not have are left out."""
    found = {}
    for _, value in txn.scan(Space.SEGMENTS, u64(file_id)):
        segment = parse(ns.PageFileSegment, value)
        for number, chunk in enumerate(segment.chunks):
            if chunk.chunkID in chunk_ids:
                found[chunk.chunkID] = segment.startOffset + number * segment.chunkSize
    return found


def segment_key(file_id: int, offset: int) -> bytes:
    return u64(file_id) + u64(offset)
