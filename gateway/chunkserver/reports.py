# SPDX-License-Identifier: BSD-3-Clause
"""What a chunkserver reports, as the messages of its heartbeat."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gateway.proto import cluster_pb2 as cl

if TYPE_CHECKING:
    from gateway.chunkserver.engine import BadBlock, Copyset, Stats

LEADER = "leader"


def copyset_report(copyset: Copyset) -> cl.CopysetReport:
    """How a replica is; what a leader knows of the others only by one that serves."""
    leads = copyset.role == LEADER and copyset.ready
    report = cl.CopysetReport(
        logical_pool_id=copyset.pool,
        copyset_id=copyset.copyset,
        leader=leads,
        applied_index=copyset.applied_index,
        member_id=copyset.member,
        term=copyset.term,
    )
    if not leads:
        return report
    report.last_index = copyset.last_index
    report.members_index = copyset.members_index
    report.members_committed = copyset.members_committed
    for member in copyset.members:
        report.members.add(member_id=member.id, learner=member.learner)
    for other in copyset.progress:
        report.progress.add(
            member_id=other.id,
            match_index=other.match,
            heard_ms_ago=other.heard_ms_ago,
            copying=other.copying,
        )
    return report


def scrub_report(stats: Stats, bad_blocks: Iterable[BadBlock]) -> cl.ScrubReport:
    """How far the scrub is, and some of the bad blocks that are known."""
    scrub = stats.scrub
    report = cl.ScrubReport(
        rate=scrub.rate,
        running=scrub.running,
        request=scrub.request,
        queued_request=scrub.queued,
        completed_request=scrub.completed,
        started_s=scrub.started_s,
        completed_s=scrub.completed_s,
        checked_blocks=scrub.checked,
        skipped_blocks=scrub.skipped,
        found_blocks=scrub.found,
        bad_blocks=scrub.bad_blocks,
        bad_blocks_more=scrub.bad_blocks_more,
    )
    for bad in bad_blocks:
        report.bad.add(
            logical_pool_id=bad.pool,
            copyset_id=bad.copyset,
            chunk_id=bad.chunk,
            file_id=bad.file_id,
            offset=bad.offset,
        )
    return report
