# SPDX-License-Identifier: BSD-3-Clause
"""Deleting, recovering and purging volumes."""

from __future__ import annotations

from gateway.mds import epochs, exports, leases, rules, segments, tree
from gateway.mds.refusal import RefusalError
from gateway.mds.rules import Caller
from gateway.mds.store import Space, Transaction, add_u64, get_record, u64
from gateway.proto import nameserver2_pb2 as ns

PURGE_STEP_SEGMENTS = 64
"""Segments that one transaction of a purge gives up: others wait for no longer than that."""


def delete_path(
    txn: Transaction,
    caller: Caller,
    path: str,
    clock: leases.Clock,
    *,
    file_id: int = 0,
    force: bool = False,
) -> bool:
    """Deletes an empty folder, moves a volume to the recycle bin, or (``force``, only there) begins
    to purge it. Returns whether a purge is due."""
    found = tree.find(txn, path, caller, file_id)
    tree.refuse_system(found, "deleted")
    if found.info.fileType == ns.INODE_DIRECTORY:
        if tree.entries(txn, found.info.id):
            raise RefusalError(ns.kDirNotEmpty, f"the folder {found.path} is not empty")
        tree.remove(txn, found.info)
        return False
    in_bin = found.parent.id == tree.RECYCLE_BIN_ID
    if not force:
        if in_bin:
            raise RefusalError(
                ns.kNotSupported, f"{found.path} is deleted already; to purge it, use force"
            )
        delete(txn, found, clock)
        return False
    if not in_bin:
        raise RefusalError(
            ns.kNotSupported,
            f"only a volume in /{rules.RECYCLE_BIN} can be purged; delete {found.path} first",
        )
    if found.info.fileStatus == ns.kFileDeleting:
        raise RefusalError(ns.kFileUnderDeleting, f"{found.path} is being purged already")
    found.info.fileStatus = ns.kFileDeleting
    tree.put(txn, found.info)
    key = tree.file_key(found.info.parentId, found.info.fileName)
    txn.put(Space.PURGES, u64(found.info.id), key)
    return True


def delete(txn: Transaction, found: tree.Found, clock: leases.Clock) -> None:
    """Moves a closed volume to the recycle bin; its path is remembered."""
    leases.refuse_open(txn, found, clock)
    exports.refuse_exported(txn, found)
    leases.end_all(txn, found.info.id)
    found.info.originalFullPathName = found.path
    name = rules.recycled_name(found.name, found.info.id, clock.now_us)
    tree.move(txn, found.info, tree.RECYCLE_BIN_ID, name)
    add_u64(txn, Space.COUNTERS, tree.VOLUMES, -1)


def recover(txn: Transaction, caller: Caller, path: str, file_id: int = 0) -> ns.FileInfo:
    """Brings back a deleted volume to where it was. ``path`` is that place (then the one deleted
    last is taken, or the one with ``file_id``) or its name in the recycle bin."""
    names = rules.split_path(path)
    if names and names[0] == rules.RECYCLE_BIN:
        info = tree.find(txn, path, caller, file_id).info
        if info.parentId != tree.RECYCLE_BIN_ID:
            raise RefusalError(ns.kFileNotExists, f"{path} is no deleted volume")
    else:
        info = _find_deleted(txn, caller, path, file_id)
    if info.fileStatus == ns.kFileDeleting:
        raise RefusalError(ns.kFileUnderDeleting, f"{path} is being purged: it is lost")
    target = tree.locate(txn, info.originalFullPathName, caller)
    if target.info is not None:
        raise RefusalError(
            ns.kFileExists, f"{target.path} exists; rename it, then recover the deleted one"
        )
    info.ClearField("originalFullPathName")
    tree.move(txn, info, target.parent.id, target.name)
    add_u64(txn, Space.COUNTERS, tree.VOLUMES, 1)
    return info


def _find_deleted(txn: Transaction, caller: Caller, path: str, file_id: int) -> ns.FileInfo:
    candidates = [
        info
        for info in tree.children(txn, tree.RECYCLE_BIN_ID)
        if info.originalFullPathName == path and (not file_id or info.id == file_id)
    ]
    if not candidates:
        wanted = f" with the id {file_id}" if file_id else ""
        raise RefusalError(ns.kFileNotExists, f"no volume{wanted} was deleted at {path}")
    # The end of the recycled name is the second of the deletion; ids grow with creation.
    newest = max(candidates, key=lambda i: (int(i.fileName.rpartition("-")[2]), i.id))
    tree.check_owner(newest, path, caller)
    return newest


def purge_step(txn: Transaction) -> bool:
    """Gives up some segments of a volume that is being purged, or its record when none are left.
    Returns whether there was anything to do."""
    for key, file_key in txn.scan(Space.PURGES, limit=1):
        file_id = int.from_bytes(key, "big")
        if segments.release_some(txn, file_id, PURGE_STEP_SEGMENTS):
            return True
        epochs.forget(txn, file_id)
        leases.end_all(txn, file_id)
        txn.delete(Space.SHARED_STATES, u64(file_id))
        txn.delete(Space.PURGES, key)
        info = get_record(txn, Space.FILES, file_key, ns.FileInfo)
        if info is not None:
            tree.remove(txn, info)
        return True
    return False
