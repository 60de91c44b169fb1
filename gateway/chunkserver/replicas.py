# SPDX-License-Identifier: BSD-3-Clause
"""The replicas of a chunkserver: made, changed and deleted as the MDS says.

What the MDS assigned last is kept in a file of the chunkserver's folder, so that its replicas find
each other before an MDS answers. A replica itself knows who it is, and is never made by that file.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from google.protobuf.message import DecodeError

from gateway.proto import cluster_pb2 as cl

if TYPE_CHECKING:
    from gateway.chunkserver.engine import Copyset

log = logging.getLogger("gateway.chunkserver")

FILE = "assignments"

Key = tuple[int, int]
Change = Literal["add-learner", "promote", "remove"]
CHANGES: Mapping[int, Change] = {
    cl.ConfigurationStep.ADD_LEARNER: "add-learner",
    cl.ConfigurationStep.PROMOTE: "promote",
    cl.ConfigurationStep.REMOVE: "remove",
}


class Engine(Protocol):
    """What of the C engine is needed here. The calls block for as long as a durable write takes."""

    def copysets(self) -> list[Copyset]: ...
    def set_peer(self, chunkserver: int, address: str) -> None: ...
    def add_copyset(
        self, pool: int, copyset: int, *, member: int, founders: Sequence[int] = ()
    ) -> None: ...
    def remove_copyset(self, pool: int, copyset: int, *, member: int) -> None: ...
    def change_members(self, pool: int, copyset: int, change: Change, member: int) -> None: ...
    def transfer(self, pool: int, copyset: int, member: int) -> None: ...


class Replicas:
    """Does to the engine what assignments say. Blocking; one call at a time."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine = engine
        self._path = folder / FILE
        self._stored = b""
        self._peers: dict[int, str] = {}
        self._complaints: set[str] = set()
        self.held = 0
        """How many copysets were assigned last."""

    def restore(self) -> None:
        """Tells the engine where the members were when this ran last. A file that cannot be read is
        left out: the MDS says it all again."""
        try:
            data = self._path.read_bytes()
            stored = cl.StoredAssignments.FromString(data)
        except FileNotFoundError:
            return
        except (OSError, DecodeError) as error:
            log.warning("cannot read %s: %s; waiting for the MDS instead", self._path, error)
            return
        self._stored = data
        self.held = len(stored.copysets)
        self._set_peers(stored.copysets)

    def assign(self, chunkserver_id: int, assigned: Sequence[cl.CopysetAssignment]) -> bool:
        """Makes what has to be made, and keeps what was said; returns whether all of that was done.
        Raises OSError when the disk does not take a replica."""
        self._set_peers(assigned)
        here = {(c.pool, c.copyset): c.member for c in self._engine.copysets()}
        complete = True
        for assignment in assigned:
            key = (assignment.logical_pool_id, assignment.copyset_id)
            complete = self._make(assignment, here.get(key)) and complete
        self.held = len(assigned)
        return self._store(chunkserver_id, assigned) and complete

    def _make(self, assignment: cl.CopysetAssignment, member: int | None) -> bool:
        """``member`` is who is there: None nobody, 0 a replica of a version without members."""
        pool, copyset = assignment.logical_pool_id, assignment.copyset_id
        if member == assignment.member_id:
            return True
        if not member and assignment.create:
            try:
                self._engine.add_copyset(
                    pool, copyset, member=assignment.member_id, founders=list(assignment.founders)
                )
            except OSError as error:
                if error.errno != errno.EEXIST:
                    raise
                self._complain(
                    f"copyset {pool}-{copyset} is here as another member than the MDS assigns; it "
                    "is left as it is"
                )
                return False
            return True
        if member:
            self._complain(
                f"copyset {pool}-{copyset} is here as member {member}, and the MDS assigns "
                f"{assignment.member_id}; it is left as it is"
            )
            return not assignment.create
        # A blank replica with the id of one that has voted could vote again.
        self._complain(
            f"the replica of copyset {pool}-{copyset} that was here is gone, and is not made "
            "again; put another chunkserver in its place: copygate copyset move"
        )
        return True

    def _complain(self, text: str) -> None:
        if text not in self._complaints:
            self._complaints.add(text)
            log.error("%s", text)

    def remove(self, removals: Iterable[cl.ReplicaRemoval]) -> None:
        """Deletes replicas that are no members any more; others with their name stay. What cannot
        be deleted now the MDS names again."""
        wanted = list(removals)
        here = {(c.pool, c.copyset): c.member for c in self._engine.copysets()} if wanted else {}
        for removal in wanted:
            pool, copyset = removal.logical_pool_id, removal.copyset_id
            if here.get((pool, copyset)) != removal.member_id:
                continue
            try:
                self._engine.remove_copyset(pool, copyset, member=removal.member_id)
            except OSError as error:
                self._complain(f"cannot delete the replica of copyset {pool}-{copyset}: {error}")
            else:
                log.info("copyset %d-%d has gone elsewhere: its replica is deleted", pool, copyset)

    def change(self, steps: Iterable[cl.ConfigurationStep]) -> None:
        """Begins changes of members where this chunkserver leads. What a leader cannot do now it is
        told again; what came of it shows in its reports."""
        for step in steps:
            pool, copyset, member = step.logical_pool_id, step.copyset_id, step.member_id
            name = cl.ConfigurationStep.Kind.Name(step.kind)
            try:
                if step.kind == cl.ConfigurationStep.TRANSFER:
                    self._engine.transfer(pool, copyset, member)
                else:
                    self._engine.change_members(pool, copyset, CHANGES[step.kind], member)
            except OSError as error:
                later = error.errno in {errno.EAGAIN, errno.EPERM}
                log.log(
                    logging.DEBUG if later else logging.WARNING,
                    "copyset %d-%d, %s of member %d: %s", pool, copyset, name, member, error,
                )  # fmt: skip
            else:
                log.info("copyset %d-%d: %s of member %d begins", pool, copyset, name, member)

    def _set_peers(self, assigned: Iterable[cl.CopysetAssignment]) -> None:
        for assignment in assigned:
            for member in assignment.members:
                known = self._peers.get(member.chunkserver_id)
                if member.address and member.address != known:
                    self._engine.set_peer(member.chunkserver_id, member.address)
                    self._peers[member.chunkserver_id] = member.address

    def _store(self, chunkserver_id: int, assigned: Iterable[cl.CopysetAssignment]) -> bool:
        stored = cl.StoredAssignments(chunkserver_id=chunkserver_id, copysets=assigned)
        for copyset in stored.copysets:
            copyset.create = False
            copyset.ClearField("founders")
        data = stored.SerializeToString(deterministic=True)
        if data == self._stored:
            return True
        try:
            _replace(self._path, data)
        except OSError as error:
            # On a full disk, say: what is in the file now is of use, too.
            self._complain(f"cannot write {self._path}: {error.strerror}")
            return False
        self._stored = data
        return True


def _replace(path: Path, data: bytes) -> None:
    """Puts a new file in the place of one, durably."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
