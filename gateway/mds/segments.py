# SPDX-License-Identifier: BSD-3-Clause
"""Segments: 1 GiB of a volume each, allocated when first written as chunks spread over copysets."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gateway.mds import epochs, rules, tree
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
    u32,
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
    copysets: Sequence[st.CopysetRecord], online: frozenset[int], broken: frozenset[int]
) -> list[st.CopysetRecord]:
    """Copysets that may take new chunks: those whose chunkservers are all online; if there are
    none, those that are not broken for good (their chunkserver may come back within the deadline
    of the write that waits for the segment)."""
    sound = [c for c in copysets if not broken.intersection(c.chunkserver_ids)]
    return [c for c in sound if online.issuperset(c.chunkserver_ids)] or sound


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
    broken = frozenset(c.id for c in chunkservers if c.disk_error)
    records = [parse(st.CopysetRecord, v) for _, v in txn.scan(Space.COPYSETS)]
    usable = usable_copysets(records, online, broken)
    if not usable:
        raise RefusalError(
            ns.kSegmentAllocateError,
            "no chunkserver can take data: "
            + ("all have a disk error" if chunkservers else "none has registered yet"),
        )
    pool_id = usable[0].logical_pool_id
    copysets = [c.copyset_id for c in usable if c.logical_pool_id == pool_id]
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
                next_ids(txn, "chunk_id", count), place(copysets, start, count), strict=True
            )
        ],
    )
    put_record(txn, Space.SEGMENTS, segment_key(info.id, offset), segment)
    tree.add_allocated(txn, info.id, pool_id, info.segmentSize)
    return segment


def deallocate(txn: Transaction, caller: Caller, request: ns.DeAllocateSegmentRequest) -> None:
    """Gives a segment up: its range reads as zeros, its chunks go to the chunkservers' reclaim
    lists, and their ids are never used again."""
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
    members: dict[int, Sequence[int]] = {}
    for chunk in segment.chunks:
        if chunk.copysetID not in members:
            copyset = get_record(
                txn,
                Space.COPYSETS,
                copyset_key(segment.logicalPoolID, chunk.copysetID),
                st.CopysetRecord,
            )
            members[chunk.copysetID] = copyset.chunkserver_ids if copyset is not None else ()
        chunk_id = cl.ChunkId(
            logical_pool_id=segment.logicalPoolID,
            copyset_id=chunk.copysetID,
            chunk_id=chunk.chunkID,
        )
        for chunkserver in members[chunk.copysetID]:
            put_record(txn, Space.RECLAIM, reclaim_key(chunkserver, chunk.chunkID), chunk_id)


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


def copyset_key(pool_id: int, copyset_id: int) -> bytes:
    return u32(pool_id) + u32(copyset_id)


def reclaim_key(chunkserver_id: int, chunk_id: int) -> bytes:
    return u32(chunkserver_id) + u64(chunk_id)
