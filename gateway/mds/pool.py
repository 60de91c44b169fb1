# SPDX-License-Identifier: BSD-3-Clause
"""The pool: how many replicas everything has. Chosen when the cluster is made, and kept."""

from __future__ import annotations

from gateway.errors import ConfigError
from gateway.mds.store import Space, Transaction, get_record, put_record, u32
from gateway.proto import store_pb2 as st

POOL_ID = 1
REPLICAS_MAX = 7
"""A group of the raft core has at most 9 members, and a change needs room for one more."""


def replicas(txn: Transaction) -> int:
    """Of how many chunkservers a copyset is."""
    record = get_record(txn, Space.POOLS, u32(POOL_ID), st.PoolRecord)
    assert record is not None  # noqa: S101 - settle() comes first
    return record.replicas


def settle(txn: Transaction, wanted: int | None) -> int:
    """Stores how many replicas a new cluster keeps (1 if nothing is wanted); returns what holds.

    Raises ConfigError when the cluster was made with another number.
    """
    record = get_record(txn, Space.POOLS, u32(POOL_ID), st.PoolRecord)
    if record is None:
        record = st.PoolRecord(logical_pool_id=POOL_ID, replicas=wanted or 1)
        put_record(txn, Space.POOLS, u32(POOL_ID), record)
    elif wanted is not None and wanted != record.replicas:
        raise ConfigError(
            f"this cluster was made with {record.replicas} replica"
            f"{'' if record.replicas == 1 else 's'} of everything, and that cannot be changed",
            context={"wanted": wanted},
            hint="leave the number out, or make a new cluster and copy the volumes",
        )
    return record.replicas
