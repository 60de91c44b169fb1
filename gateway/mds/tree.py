# SPDX-License-Identifier: BSD-3-Clause
"""The namespace as records in the store: folders, volumes, and who may use them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gateway.mds import rules
from gateway.mds.refusal import RefusalError
from gateway.mds.rules import Caller
from gateway.mds.store import (
    Space,
    Transaction,
    add_u64,
    get_record,
    get_u64,
    parse,
    put_record,
    u64,
)
from gateway.proto import nameserver2_pb2 as ns

ROOT_ID = 0
RECYCLE_BIN_ID = 1
FIRST_FILE_ID = 3  # as on CurveBS; 2 is its own

FOLDER_MAX = 50_000
"""Entries of a folder: a listing must fit into one message."""

VOLUMES = b"volumes"
"""Counter of volumes outside the recycle bin."""
ALLOCATED_BYTES = b"allocated_bytes"
"""Counter of bytes in allocated segments of all volumes."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path leads: the folder that has it, and what is there (None: nothing)."""

    names: tuple[str, ...]
    parent: ns.FileInfo
    info: ns.FileInfo | None

    @property
    def name(self) -> str:
        return self.names[-1] if self.names else "/"

    @property
    def path(self) -> str:
        return rules.join_path(self.names)


@dataclass(frozen=True, slots=True)
class Found(Place):
    """A place where there is something."""

    info: ns.FileInfo


def initialise(txn: Transaction, now_us: int) -> None:
    """Makes the recycle bin in an empty store."""
    if get_record(txn, Space.FILES, file_key(ROOT_ID, rules.RECYCLE_BIN), ns.FileInfo) is None:
        insert(
            txn,
            ns.FileInfo(
                id=RECYCLE_BIN_ID,
                fileName=rules.RECYCLE_BIN,
                parentId=ROOT_ID,
                fileType=ns.INODE_DIRECTORY,
                owner=rules.ROOT_OWNER,
                length=0,
                ctime=now_us,
            ),
        )


def root() -> ns.FileInfo:
    return ns.FileInfo(
        id=ROOT_ID,
        fileName="/",
        parentId=ROOT_ID,
        fileType=ns.INODE_DIRECTORY,
        owner=rules.ROOT_OWNER,
        length=0,
        ctime=0,
    )


def file_key(parent_id: int, name: str) -> bytes:
    return u64(parent_id) + name.encode()


def put(txn: Transaction, info: ns.FileInfo) -> None:
    """Stores what has changed about a file that is there."""
    put_record(txn, Space.FILES, file_key(info.parentId, info.fileName), info)


def insert(txn: Transaction, info: ns.FileInfo) -> None:
    """Adds a file to its folder. Refuses (kNotSupported) when the folder is full."""
    if add_u64(txn, Space.COUNTERS, _entries_key(info.parentId), 1) > FOLDER_MAX:
        where = "the recycle bin" if info.parentId == RECYCLE_BIN_ID else "the folder"
        raise RefusalError(
            ns.kNotSupported,
            f"{where} has {FOLDER_MAX} entries, which is as many as it takes; "
            + ("purge some" if info.parentId == RECYCLE_BIN_ID else "use another one"),
        )
    put(txn, info)


def remove(txn: Transaction, info: ns.FileInfo) -> None:
    """Takes a file out of its folder."""
    txn.delete(Space.FILES, file_key(info.parentId, info.fileName))
    key = _entries_key(info.parentId)
    if add_u64(txn, Space.COUNTERS, key, -1) == 0:
        txn.delete(Space.COUNTERS, key)


def move(txn: Transaction, info: ns.FileInfo, parent_id: int, name: str) -> None:
    """Gives the file another folder and name; ``info`` is changed."""
    remove(txn, info)
    info.parentId = parent_id
    info.fileName = name
    insert(txn, info)


def entries(txn: Transaction, folder_id: int) -> int:
    """How many files and folders the folder has."""
    return get_u64(txn, Space.COUNTERS, _entries_key(folder_id))


def _entries_key(folder_id: int) -> bytes:
    return b"entries:" + u64(folder_id)


def children(txn: Transaction, folder_id: int) -> Iterator[ns.FileInfo]:
    for _, value in txn.scan(Space.FILES, u64(folder_id)):
        yield parse(ns.FileInfo, value)


def by_id(txn: Transaction, file_ids: Iterable[int]) -> dict[int, tuple[str, ns.FileInfo]]:
    """The paths and records of files, those in the recycle bin included. Reads all there are."""
    files = {info.id: info for info in (parse(ns.FileInfo, v) for _, v in txn.scan(Space.FILES))}

    def path(info: ns.FileInfo) -> str:
        parent = files.get(info.parentId)
        return f"{path(parent) if parent is not None else ''}/{info.fileName}"

    return {i: (path(files[i]), files[i]) for i in file_ids if i in files}


def locate(txn: Transaction, path: str, caller: Caller | None) -> Place:
    """Follows a path. Every folder on the way must be the caller's, as on CurveBS (None: no check);
    the root and the recycle bin are everybody's to pass through.

    Refuses kParaError (the path), kFileNotExists and kNotDirectory (a folder), kOwnerAuthFail.
    """
    names = rules.split_path(path)
    parent = root()
    if not names:
        return Place(names, parent, parent)
    for depth, name in enumerate(names[:-1], 1):
        where = rules.join_path(names[:depth])
        folder = get_record(txn, Space.FILES, file_key(parent.id, name), ns.FileInfo)
        if folder is None:
            raise RefusalError(ns.kFileNotExists, f"the folder {where} does not exist")
        if folder.fileType != ns.INODE_DIRECTORY:
            raise RefusalError(ns.kNotDirectory, f"{where} is a volume, not a folder")
        if folder.id != RECYCLE_BIN_ID:
            check_owner(folder, where, caller)
        parent = folder
    info = get_record(txn, Space.FILES, file_key(parent.id, names[-1]), ns.FileInfo)
    return Place(names, parent, info)


def find(txn: Transaction, path: str, caller: Caller | None, file_id: int = 0) -> Found:
    """Follows a path to something that exists and is the caller's. With ``file_id`` it must have
    that id. Refuses as locate does, and kFileNotExists, kFileIdNotMatch."""
    place = locate(txn, path, caller)
    if place.info is None:
        raise RefusalError(ns.kFileNotExists, f"{place.path} does not exist")
    if place.info.id not in (ROOT_ID, RECYCLE_BIN_ID):
        check_owner(place.info, place.path, caller)
    if file_id and place.info.id != file_id:
        raise RefusalError(
            ns.kFileIdNotMatch, f"{place.path} has the id {place.info.id}, not {file_id}"
        )
    return Found(place.names, place.parent, place.info)


def find_volume(txn: Transaction, path: str, caller: Caller | None) -> Found:
    """As find; refuses what is not a volume (kNotSupported)."""
    found = find(txn, path, caller)
    if found.info.fileType != ns.INODE_PAGEFILE:
        raise RefusalError(ns.kNotSupported, f"{found.path} is a folder, not a volume")
    return found


def find_open_to_io(txn: Transaction, path: str, caller: Caller) -> Found:
    """As find_volume; refuses a volume in the recycle bin (kFileUnderDeleting)."""
    found = find_volume(txn, path, caller)
    if found.info.parentId == RECYCLE_BIN_ID:
        raise RefusalError(
            ns.kFileUnderDeleting, f"{found.path} is deleted; recover it before using it"
        )
    return found


def check_owner(info: ns.FileInfo, path: str, caller: Caller | None) -> None:
    if caller is not None and not caller.may_use(info.owner):
        raise RefusalError(
            ns.kOwnerAuthFail, f"{path} belongs to {info.owner!r}, not to {caller.owner!r}"
        )


def refuse_system(found: Place, what: str) -> None:
    """Refuses to change the root and the recycle bin."""
    if found.info is not None and found.info.id in (ROOT_ID, RECYCLE_BIN_ID):
        raise RefusalError(ns.kParaError, f"{found.path} cannot be {what}")


def allocated_key(file_id: int, pool_id: int) -> bytes:
    return u64(file_id) + pool_id.to_bytes(4, "big")


def allocated(txn: Transaction, file_id: int) -> dict[int, int]:
    """Bytes in the volume's allocated segments, by logical pool."""
    return {
        int.from_bytes(key[8:], "big"): int.from_bytes(value, "big")
        for key, value in txn.scan(Space.ALLOCATED, u64(file_id))
    }


def add_allocated(txn: Transaction, file_id: int, pool_id: int, delta: int) -> None:
    key = allocated_key(file_id, pool_id)
    if add_u64(txn, Space.ALLOCATED, key, delta) == 0:
        txn.delete(Space.ALLOCATED, key)
    add_u64(txn, Space.COUNTERS, ALLOCATED_BYTES, delta)


def totals(txn: Transaction) -> tuple[int, int]:
    """Volumes outside the recycle bin, and bytes allocated to all volumes."""
    return get_u64(txn, Space.COUNTERS, VOLUMES), get_u64(txn, Space.COUNTERS, ALLOCATED_BYTES)
