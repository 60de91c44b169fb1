# SPDX-License-Identifier: BSD-3-Clause
"""Operations on volumes and folders. Each is a step of a transaction; refusals are raised."""

from __future__ import annotations

import os
from dataclasses import dataclass

from gateway.mds import exports, leases, recycle, rules, tree
from gateway.mds.refusal import RefusalError
from gateway.mds.rules import Caller
from gateway.mds.store import Space, Transaction, add_u64, next_ids
from gateway.proto import nameserver2_pb2 as ns

FEATURE_NATIVE = 1
"""FileInfo.features: chunkservers know chunk.proto's operations and fields from 1000 on."""


@dataclass(frozen=True, slots=True)
class NewFile:
    """What CreateFile asks for."""

    path: str
    kind: ns.FileType.ValueType
    length: int = 0
    stripe_unit: int = 0
    stripe_count: int = 0
    poolset: str = ""


def create(txn: Transaction, caller: Caller, new: NewFile, now_us: int) -> ns.FileInfo:
    """Makes a volume or folder. Refuses a bad name, length or stripe, a taken name, a missing
    folder, and the recycle bin."""
    if new.kind not in (ns.INODE_PAGEFILE, ns.INODE_DIRECTORY):
        raise RefusalError(ns.kNotSupported, "only volumes and folders can be created")
    if new.kind == ns.INODE_PAGEFILE:
        rules.check_length(new.length)
        rules.check_stripes(new.stripe_unit, new.stripe_count)
        if new.poolset not in ("", rules.POOLSET):
            raise RefusalError(ns.kPoolsetNotExist, f"there is no poolset {new.poolset[:64]!r}")
    place = tree.locate(txn, new.path, caller)
    if place.info is not None:
        raise RefusalError(ns.kFileExists, f"{place.path} exists already")
    check_destination(place)
    info = ns.FileInfo(
        id=next_ids(txn, "file_id", first=tree.FIRST_FILE_ID)[0],
        fileName=place.name,
        parentId=place.parent.id,
        fileType=new.kind,
        owner=caller.owner,
        length=new.length if new.kind == ns.INODE_PAGEFILE else 0,
        ctime=now_us,
    )
    if new.kind == ns.INODE_PAGEFILE:
        info.MergeFrom(_volume_fields(new))
        add_u64(txn, Space.COUNTERS, tree.VOLUMES, 1)
    tree.insert(txn, info)
    return info


def _volume_fields(new: NewFile) -> ns.FileInfo:
    return ns.FileInfo(
        chunkSize=rules.CHUNK_SIZE,
        segmentSize=rules.SEGMENT_SIZE,
        seqNum=1,
        fileStatus=ns.kFileCreated,
        stripeUnit=new.stripe_unit,
        stripeCount=new.stripe_count,
        poolset=rules.POOLSET,
        blocksize=rules.BLOCK_SIZE,
        uuid=os.urandom(16),
        features=FEATURE_NATIVE,
    )


def check_destination(place: tree.Place) -> None:
    """Refuses to put something into the recycle bin by hand."""
    if place.parent.id == tree.RECYCLE_BIN_ID:
        raise RefusalError(ns.kParaError, f"/{rules.RECYCLE_BIN} takes deleted volumes only")


def describe(txn: Transaction, caller: Caller | None, path: str) -> ns.FileInfo:
    """What is at the path, with the bytes allocated to it."""
    info = tree.find(txn, path, caller).info
    if info.fileType == ns.INODE_PAGEFILE:
        info.allocatedBytes = sum(tree.allocated(txn, info.id).values())
    return info


def listing(txn: Transaction, caller: Caller, path: str) -> list[ns.FileInfo]:
    """What the folder has. In the root and the recycle bin a caller sees only what is theirs."""
    try:
        found = tree.find(txn, path, caller)
    except RefusalError as refusal:
        if refusal.status == ns.kFileNotExists:
            raise RefusalError(ns.kDirNotExist, refusal.detail) from refusal
        raise
    if found.info.fileType != ns.INODE_DIRECTORY:
        raise RefusalError(ns.kNotDirectory, f"{found.path} is a volume, not a folder")
    shared = found.info.id in (tree.ROOT_ID, tree.RECYCLE_BIN_ID)
    entries = [
        info
        for info in tree.children(txn, found.info.id)
        if not shared or caller.may_use(info.owner)
    ]
    for info in entries:
        if info.fileType == ns.INODE_PAGEFILE:
            info.allocatedBytes = sum(tree.allocated(txn, info.id).values())
    return entries


def extend(txn: Transaction, caller: Caller, path: str, new_length: int) -> ns.FileInfo:
    """Makes a volume longer; open clients learn it when they refresh their session."""
    info = tree.find_open_to_io(txn, path, caller).info
    rules.check_extension(info.length, new_length)
    if new_length != info.length:
        info.length = new_length
        tree.put(txn, info)
    return info


@dataclass(frozen=True, slots=True)
class Rename:
    """What RenameFile asks for; ids of 0 are not checked."""

    old: str
    new: str
    old_id: int = 0
    new_id: int = 0


def rename(txn: Transaction, caller: Caller, request: Rename, clock: leases.Clock) -> None:
    """Gives a closed volume another path. A volume at the new path is replaced (it goes to the
    recycle bin) only when the request names its id."""
    source = tree.find(txn, request.old, caller, request.old_id)
    tree.refuse_system(source, "renamed")
    if source.info.fileType != ns.INODE_PAGEFILE:
        raise RefusalError(ns.kNotSupported, f"{source.path} is a folder: folders keep their names")
    if source.parent.id == tree.RECYCLE_BIN_ID:
        raise RefusalError(ns.kNotSupported, f"{source.path} is deleted; recover it instead")
    target = tree.locate(txn, request.new, caller)
    if target.names == source.names:
        raise RefusalError(ns.kFileExists, f"{source.path} has that name already")
    check_destination(target)
    leases.refuse_open(txn, source, clock)
    if target.info is not None:
        _replace(txn, caller, target, request.new_id, clock)
    tree.move(txn, source.info, target.parent.id, target.name)
    exports.follow_rename(txn, source.info.id, target.path)


def _replace(
    txn: Transaction, caller: Caller, target: tree.Place, expected_id: int, clock: leases.Clock
) -> None:
    found = tree.find(txn, target.path, caller, expected_id)
    if not expected_id or found.info.fileType != ns.INODE_PAGEFILE:
        raise RefusalError(ns.kFileExists, f"{target.path} exists already")
    recycle.delete(txn, found, clock)


def change_owner(txn: Transaction, path: str, owner: str, clock: leases.Clock) -> None:
    """Gives a closed volume or an empty folder to another owner. For root alone; the caller checks
    that."""
    rules.check_owner_name(owner)
    found = tree.find(txn, path, None)
    tree.refuse_system(found, "given away")
    if found.info.owner == owner:
        return
    if found.info.fileType == ns.INODE_DIRECTORY:
        if tree.entries(txn, found.info.id):
            raise RefusalError(ns.kDirNotEmpty, f"the folder {found.path} is not empty")
    else:
        leases.refuse_open(txn, found, clock)
        exports.refuse_exported(txn, found)
    found.info.owner = owner
    tree.put(txn, found.info)


def allocated_size(txn: Transaction, path: str) -> dict[int, int]:
    """Bytes allocated by logical pool, of a volume or of all below a folder."""
    sizes: dict[int, int] = {}
    for info in _volumes_below(txn, tree.find(txn, path, None).info):
        for pool, size in tree.allocated(txn, info.id).items():
            sizes[pool] = sizes.get(pool, 0) + size
    return sizes


def file_size(txn: Transaction, path: str) -> int:
    """Length in bytes, of a volume or of all below a folder."""
    volumes = _volumes_below(txn, tree.find(txn, path, None).info)
    return sum(info.length for info in volumes)


def _volumes_below(txn: Transaction, start: ns.FileInfo) -> list[ns.FileInfo]:
    volumes: list[ns.FileInfo] = []
    pending = [start]
    while pending:
        info = pending.pop()
        if info.fileType == ns.INODE_DIRECTORY:
            pending.extend(tree.children(txn, info.id))
        else:
            volumes.append(info)
    return volumes
