# SPDX-License-Identifier: BSD-3-Clause
"""What earlier versions stored, brought to the present form; each in one transaction."""

from __future__ import annotations

from gateway.mds import copysets, exports, pool
from gateway.mds.store import Space, Transaction, parse, put_record
from gateway.proto import cluster_pb2 as cl


def to_members(txn: Transaction) -> None:
    """Schema 1 to 2: copysets had one replica, with no id of its own, and chunks to delete were
    listed by chunkserver. The pool keeps one replica if there are copysets. Exports did not know
    their volumes' ids."""
    records = list(copysets.scan(txn))
    number = copysets.raise_revision(txn) if records else 0
    for record in records:
        founders = list(record.chunkserver_ids)
        record.ClearField("chunkserver_ids")
        record.founders.extend(founders)
        for chunkserver_id in founders:
            record.members.add(member_id=chunkserver_id, learner=False, revision=number)
        copysets.put(txn, record)
    if records:
        pool.settle(txn, 1)
    for key, value in txn.scan(Space.RECLAIM_BEFORE_2):
        chunk = parse(cl.ChunkId, value)
        put_record(txn, Space.RECLAIM, copysets.reclaim_key(chunk), chunk)
        txn.delete(Space.RECLAIM_BEFORE_2, key)
    exports.fill_file_ids(txn)
