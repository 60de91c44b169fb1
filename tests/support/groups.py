# SPDX-License-Identifier: BSD-3-Clause
"""Chunkservers as the metadata server sees them, with copysets that follow raft's rules but have no
data: a test says who is there and who leads, and lets them report and do what they are told."""

import uuid
from dataclasses import dataclass, field
from typing import Any

from gateway.mds.client import MdsClient
from gateway.proto import cluster_pb2 as cl

Key = tuple[int, int]
Step = cl.ConfigurationStep


@dataclass
class Group:
    """One copyset: its configuration, one entry after the other, all committed at once."""

    voters: set[int]
    learners: set[int] = field(default_factory=set)
    index: int = 0
    term: int = 1
    last_index: int = 10
    leader: int = 0  # member id; 0: none
    behind: dict[int, int] = field(default_factory=dict)
    refuses: bool = False

    def do(self, step: cl.ConfigurationStep) -> None:
        """What the leader does about a step; as the raft core, or nothing."""
        member = step.member_id
        if self.refuses:
            return
        if step.kind == Step.TRANSFER:
            assert member in self.voters
            self.leader = member
            self.term += 1
            return
        if step.kind == Step.ADD_LEARNER and member not in self.voters | self.learners:
            self.learners.add(member)
            self.behind[member] = self.last_index
        elif step.kind == Step.PROMOTE and member in self.learners and not self.behind[member]:
            self.learners.remove(member)
            self.voters.add(member)
        elif step.kind == Step.REMOVE and len(self.voters | self.learners) > 1:
            self.voters.discard(member)
            self.learners.discard(member)
        else:
            return
        self.last_index += 1
        self.index = self.last_index


class Chunkserver:
    """One that registers, reports, and has the replicas that it was told to make."""

    def __init__(self, number: int, groups: dict[Key, Group], zone: str = "") -> None:
        self.number = number
        self.uuid = str(uuid.UUID(int=number))
        self.zone = zone or f"zone{number}"
        self.port = 8200 + number
        self.groups = groups
        self.id = 0
        self.replicas: dict[Key, int] = {}
        self.assignments: dict[Key, cl.CopysetAssignment] = {}
        self.revision: int | None = None
        self.steps: list[cl.ConfigurationStep] = []

    async def register(self, client: MdsClient) -> None:
        """Registers and makes what it is told to."""
        response = await client.register_chunkserver(
            cl.RegisterChunkserverRequest(
                uuid=self.uuid, ip="127.0.0.1", port=self.port, zone=self.zone,
                data_directory=f"/data/{self.number}", capacity_bytes=1 << 40,
            )
        )  # fmt: skip
        self.id = response.chunkserver_id
        self._take(response.copysets, response.assignment_revision)

    async def beat(self, client: MdsClient, **changes: Any) -> cl.HeartbeatResponse:
        """One heartbeat, and what it asks for."""
        request = cl.HeartbeatRequest(
            chunkserver_id=self.id, uuid=self.uuid, capacity_bytes=1 << 40, used_bytes=5,
            assignment_revision=self.revision, copysets=[*self._reports()], **changes,
        )  # fmt: skip
        response = await client.heartbeat(request)
        if response.copysets:
            self._take(response.copysets, response.assignment_revision)
        self.revision = response.assignment_revision
        for removal in response.removals:
            key = (removal.logical_pool_id, removal.copyset_id)
            if self.replicas.get(key) == removal.member_id:
                del self.replicas[key]
        self.steps = list(response.steps)
        for step in response.steps:
            self.groups[step.logical_pool_id, step.copyset_id].do(step)
        return response

    def _take(self, assigned: Any, revision: int) -> None:
        self.assignments = {(a.logical_pool_id, a.copyset_id): a for a in assigned}
        for key, assignment in self.assignments.items():
            if key in self.replicas:
                continue
            assert assignment.create, f"{key} was never made here"
            self.replicas[key] = assignment.member_id
            if assignment.founders:
                group = self.groups.setdefault(key, Group(set(assignment.founders)))
                assert group.index or group.voters == set(assignment.founders)
                group.leader = group.leader or min(group.voters)
        self.revision = revision

    def _reports(self) -> list[cl.CopysetReport]:
        return [self._report(key, member) for key, member in sorted(self.replicas.items())]

    def _report(self, key: Key, member: int) -> cl.CopysetReport:
        group = self.groups.get(key, Group(set()))
        report = cl.CopysetReport(
            logical_pool_id=key[0], copyset_id=key[1], leader=group.leader == member,
            applied_index=group.last_index, member_id=member, term=group.term,
        )  # fmt: skip
        if report.leader:
            report.last_index = group.last_index
            report.members_index = group.index
            report.members_committed = True
            for other in sorted(group.voters | group.learners):
                report.members.add(member_id=other, learner=other in group.learners)
                if other != member:
                    match = group.last_index - group.behind.get(other, 0)
                    report.progress.add(
                        member_id=other, match_index=match, heard_ms_ago=5, copying=False
                    )
        return report
