# SPDX-License-Identifier: BSD-3-Clause
"""A volume's epoch: who opened it for writing last. It only grows, and is durable before it is
told to anybody. Chunkservers that were away learn the raises they missed by revision."""

from __future__ import annotations

from gateway.mds.refusal import RefusalError
from gateway.mds.store import Space, Transaction, add_u64, get_u64, parse, put_record, u64
from gateway.mds.tree import put
from gateway.proto import nameserver2_pb2 as ns
from gateway.proto import store_pb2 as st

REVISION = b"epoch_revision"
BATCH_MAX = 4096


def raise_epoch(txn: Transaction, info: ns.FileInfo) -> None:
    """Raises the volume's epoch by one; ``info`` is changed and stored."""
    info.epoch += 1
    put(txn, info)
    forget(txn, info.id)
    revision = add_u64(txn, Space.COUNTERS, REVISION, 1)
    record = st.EpochRecord(file_id=info.id, epoch=info.epoch, revision=revision)
    put_record(txn, Space.EPOCHS, u64(revision), record)
    txn.put(Space.EPOCH_REVISIONS, u64(info.id), u64(revision))


def check(info: ns.FileInfo, epoch: int, *, exactly: bool = False) -> None:
    """Refuses (kEpochTooOld) a client that someone else has taken over from. ``exactly`` refuses
    an epoch that the volume never had, too."""
    if info.epoch > epoch or (exactly and info.epoch != epoch):
        raise RefusalError(
            ns.kEpochTooOld,
            f"/{info.fileName} was opened by another client: its epoch is {info.epoch}, the "
            f"request's {epoch}",
        )


def forget(txn: Transaction, file_id: int) -> None:
    """Drops the volume from what chunkservers are told (it is raised anew, or purged)."""
    revision = txn.get(Space.EPOCH_REVISIONS, u64(file_id))
    if revision is not None:
        txn.delete(Space.EPOCHS, revision)
        txn.delete(Space.EPOCH_REVISIONS, u64(file_id))


def since(txn: Transaction, revision: int) -> tuple[list[st.EpochRecord], int]:
    """The newest epoch of each volume raised after ``revision``, oldest first, and the revision
    that these reach to. A revision that this store never had (it was made anew) counts as none."""
    newest = get_u64(txn, Space.COUNTERS, REVISION)
    if revision > newest:
        revision = 0
    records = [
        parse(st.EpochRecord, value)
        for _, value in txn.scan(Space.EPOCHS, after=u64(revision), limit=BATCH_MAX)
    ]
    if len(records) == BATCH_MAX:
        return records, records[-1].revision
    return records, newest
