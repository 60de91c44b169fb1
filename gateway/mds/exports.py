# SPDX-License-Identifier: BSD-3-Clause
"""The records of iSCSI exports: what the gateways shall serve. Changed by compare-and-set, followed
by a long poll.

The server judges a record's size and shape, and that its volumes are there, are the caller's, and
are exported by this target alone: two would take a volume from each other. An exported volume can
be renamed, and the record follows; it cannot be deleted or given away. What else is safe is decided
by the command that makes the record and again by the gateway that serves it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

from gateway.mds import tree
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
from gateway.proto import export_pb2 as ex
from gateway.proto import iscsi_pb2
from gateway.proto import nameserver2_pb2 as ns
from gateway.proto import store_pb2 as st

EXPORTS_MAX = 1024
RECORD_MAX = 32 << 10
IQN_MAX = 223
WAIT_MAX_MS = 10_000
REVISION = b"exports"
"""Counter: the revision of all exports."""


def _entry(stored: st.StoredExport) -> ex.ExportEntry:
    record = parse(iscsi_pb2.ExportRecord, stored.record)
    return ex.ExportEntry(record=record, owner=stored.owner, revision=stored.revision)


def listing(txn: Transaction, caller: Caller) -> ex.ListExportsResponse:
    """The caller's exports, without secrets."""
    revision = get_u64(txn, Space.COUNTERS, REVISION)
    response = ex.ListExportsResponse(statusCode=ns.kOK, revision=revision)
    for _, value in txn.scan(Space.EXPORTS):
        stored = parse(st.StoredExport, value)
        if caller.may_use(stored.owner):
            entry = _entry(stored)
            entry.record.ClearField("chap_secret")
            entry.record.ClearField("mutual_secret")
            response.exports.append(entry)
    return response


def _find(txn: Transaction, caller: Caller, iqn: str) -> st.StoredExport | None:
    """Refuses (kOwnerAuthFail) one that is somebody else's."""
    stored = get_record(txn, Space.EXPORTS, iqn.encode(), st.StoredExport)
    if stored is not None and not caller.may_use(stored.owner):
        raise RefusalError(ns.kOwnerAuthFail, f"the export {iqn} is not {caller.owner}'s")
    return stored


def lookup(txn: Transaction, caller: Caller, iqn: str) -> ex.ExportEntry:
    """An export with its secrets. Refuses kFileNotExists."""
    stored = _find(txn, caller, iqn)
    if stored is None:
        raise RefusalError(ns.kFileNotExists, f"there is no export {iqn[:IQN_MAX]}")
    return _entry(stored)


def _check(record: iscsi_pb2.ExportRecord, data: bytes) -> None:
    numbers = [lun.lun for lun in record.luns]
    gateways = [gateway.gateway for gateway in record.gateways]
    if not 1 <= len(record.iqn.encode()) <= IQN_MAX:
        raise RefusalError(ns.kParaError, f"a target's name has 1 to {IQN_MAX} characters")
    if len(data) > RECORD_MAX:
        raise RefusalError(
            ns.kParaError, f"the record of {record.iqn} is longer than {RECORD_MAX} bytes"
        )
    if len(set(numbers)) != len(numbers) or len(set(gateways)) != len(gateways):
        raise RefusalError(
            ns.kParaError, f"the record of {record.iqn} names a LUN or a gateway twice"
        )


def _conflict(iqn: str, stored: st.StoredExport | None) -> RefusalError:
    what = f"has the revision {stored.revision}" if stored is not None else "is not there"
    return RefusalError(
        ns.kSharedStateConflict, f"the export {iqn} {what}: somebody else changed it meanwhile"
    )


def _resolve(
    txn: Transaction,
    caller: Caller,
    record: iscsi_pb2.ExportRecord,
    stored: st.StoredExport | None,
) -> list[int]:
    """The id of each LUN's volume. One that the stored record has already is not looked up again.

    Refuses what tree.find_open_to_io does, and kFileOccupied when another target, or another LUN,
    exports the volume.
    """
    known = {}
    if stored is not None:
        old = parse(iscsi_pb2.ExportRecord, stored.record)
        known = dict(zip((lun.volume for lun in old.luns), stored.file_ids, strict=True))
    ids: list[int] = []
    for lun in record.luns:
        file_id = known.get(lun.volume, 0)
        if not file_id:
            file_id = tree.find_open_to_io(txn, _path(lun), caller).info.id
        others = [iqn for iqn in targets(txn, file_id) if iqn != record.iqn]
        if others or file_id in ids:
            where = others[0] if others else record.iqn
            raise RefusalError(
                ns.kFileOccupied,
                f"{lun.volume} is exported by {where} already; two exports would take it from each "
                "other: unexport it there first",
            )
        ids.append(file_id)
    return ids


def _index(txn: Transaction, iqn: str, before: Iterable[int], after: Iterable[int]) -> None:
    for file_id in before:
        txn.delete(Space.EXPORTED_FILES, u64(file_id) + iqn.encode())
    for file_id in after:
        txn.put(Space.EXPORTED_FILES, u64(file_id) + iqn.encode(), b"")


def fill_file_ids(txn: Transaction) -> None:
    """Schema 1 to 2: records had no ids of their volumes, and nobody saw to it that these exist.
    One that is gone has the id 0 until the record is changed."""
    for key, value in txn.scan(Space.EXPORTS):
        stored = parse(st.StoredExport, value)
        record = parse(iscsi_pb2.ExportRecord, stored.record)
        del stored.file_ids[:]
        for lun in record.luns:
            try:
                found = tree.find_volume(txn, _path(lun), None)
            except RefusalError:
                stored.file_ids.append(0)
            else:
                stored.file_ids.append(found.info.id)
        _index(txn, record.iqn, (), filter(None, stored.file_ids))
        put_record(txn, Space.EXPORTS, key, stored)


def _path(lun: iscsi_pb2.ExportLun) -> str:
    return lun.volume if lun.volume.startswith("/") else "/" + lun.volume


def targets(txn: Transaction, file_id: int) -> list[str]:
    """The names of the targets that export the volume."""
    return [key[8:].decode() for key, _ in txn.scan(Space.EXPORTED_FILES, u64(file_id))]


def refuse_exported(txn: Transaction, found: tree.Found) -> None:
    """Refuses (kFileOccupied) while a target exports the volume."""
    names = targets(txn, found.info.id)
    if names:
        raise RefusalError(
            ns.kFileOccupied,
            f"{found.path} is exported over iSCSI by {names[0]}; unexport it first: copygate iscsi "
            "unexport",
        )


def follow_rename(txn: Transaction, file_id: int, path: str) -> None:
    """The volume has another path now: so it has in the records."""
    for iqn in targets(txn, file_id):
        stored = get_record(txn, Space.EXPORTS, iqn.encode(), st.StoredExport)
        if stored is None:
            continue
        record = parse(iscsi_pb2.ExportRecord, stored.record)
        for lun, lun_file_id in zip(record.luns, stored.file_ids, strict=True):
            if lun_file_id == file_id:
                lun.volume = path
        stored.record = record.SerializeToString()
        stored.revision = add_u64(txn, Space.COUNTERS, REVISION, 1)
        put_record(txn, Space.EXPORTS, iqn.encode(), stored)


def put(
    txn: Transaction, caller: Caller, record: iscsi_pb2.ExportRecord, expected_revision: int
) -> int:
    """Makes or replaces an export if its revision is the expected one; returns the new one."""
    data = record.SerializeToString()
    _check(record, data)
    stored = _find(txn, caller, record.iqn)
    if (stored.revision if stored is not None else 0) != expected_revision:
        raise _conflict(record.iqn, stored)
    if stored is None and sum(1 for _ in txn.scan(Space.EXPORTS)) >= EXPORTS_MAX:
        raise RefusalError(ns.kParaError, f"there are {EXPORTS_MAX} exports already")
    file_ids = _resolve(txn, caller, record, stored)
    _index(txn, record.iqn, stored.file_ids if stored is not None else (), file_ids)
    revision = add_u64(txn, Space.COUNTERS, REVISION, 1)
    owner = stored.owner if stored is not None else caller.owner
    new = st.StoredExport(owner=owner, revision=revision, record=data, file_ids=file_ids)
    put_record(txn, Space.EXPORTS, record.iqn.encode(), new)
    return revision


def delete(txn: Transaction, caller: Caller, iqn: str, expected_revision: int) -> None:
    """Removes an export if its revision is the expected one. Refuses kFileNotExists."""
    lookup(txn, caller, iqn)
    stored = _find(txn, caller, iqn)
    if stored is None or stored.revision != expected_revision:
        raise _conflict(iqn, stored)
    _index(txn, iqn, stored.file_ids, ())
    txn.delete(Space.EXPORTS, iqn.encode())
    add_u64(txn, Space.COUNTERS, REVISION, 1)


class Exports:
    """The methods of ExportService; they raise RefusalError and StorageError.

    ``run`` runs a transaction, ``caller_of`` tells who makes a request. All on one event loop.
    """

    def __init__(
        self,
        run: Callable[[Callable[[Transaction], Any]], Awaitable[Any]],
        caller_of: Callable[[Any], Caller],
    ) -> None:
        self._run = run
        self._caller_of = caller_of
        self._changed = asyncio.Event()
        self._closed = False

    def close(self) -> None:
        """The server stops: who waits is answered, now and from now on."""
        self._closed = True
        self._changed.set()

    async def list(self, request: ex.ListExportsRequest) -> ex.ListExportsResponse:
        """Answers at once if the revision is not the known one, else when it changes or the wait
        is over."""
        caller = self._caller_of(request)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(request.wait_ms, WAIT_MAX_MS) / 1000
        while True:
            changed = self._changed
            response: ex.ListExportsResponse = await self._run(partial(listing, caller=caller))
            known = request.HasField("known_revision")
            if not known or response.revision != request.known_revision:
                return response
            left_s = deadline - loop.time()
            if self._closed or left_s <= 0:
                response.ClearField("exports")
                return response
            try:
                async with asyncio.timeout(left_s):
                    await changed.wait()
            except TimeoutError:
                response.ClearField("exports")
                return response

    async def get(self, request: ex.GetExportRequest) -> ex.GetExportResponse:
        caller = self._caller_of(request)
        entry = await self._run(partial(lookup, caller=caller, iqn=request.iqn))
        return ex.GetExportResponse(statusCode=ns.kOK, export=entry)

    async def put(self, request: ex.PutExportRequest) -> ex.PutExportResponse:
        caller = self._caller_of(request)
        revision = await self._run(
            lambda txn: put(txn, caller, request.record, request.expected_revision)
        )
        self.changed()
        return ex.PutExportResponse(statusCode=ns.kOK, revision=revision)

    async def delete(self, request: ex.DeleteExportRequest) -> ex.DeleteExportResponse:
        caller = self._caller_of(request)
        await self._run(lambda txn: delete(txn, caller, request.iqn, request.expected_revision))
        self.changed()
        return ex.DeleteExportResponse(statusCode=ns.kOK)

    def changed(self) -> None:
        """A record was changed: those who wait look again."""
        self._changed.set()
        if not self._closed:
            self._changed = asyncio.Event()
