# SPDX-License-Identifier: BSD-3-Clause
"""Which chunkservers have been heard of lately, and what they said; in memory only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gateway.proto import cluster_pb2 as cl

CopysetKey = tuple[int, int]
"""Pool and copyset."""
TRANSFER_TIMEOUT_MS = 10_000


@dataclass(slots=True)
class Presence:
    """What a chunkserver said last. ``seen_ms`` is of a monotonic clock."""

    seen_ms: int
    capacity_bytes: int = 0
    used_bytes: int = 0
    reports: Mapping[CopysetKey, cl.CopysetReport] = field(default_factory=dict)
    scrub: cl.ScrubReport | None = None


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads a copyset, and what it said."""

    chunkserver_id: int
    report: cl.CopysetReport


@dataclass(slots=True)
class Liveness:
    """After a start everyone counts as present until the time for a heartbeat has passed.

    ``leader_timeout_ms`` is how long a leader may be silent and still counts as one.
    """

    timeout_ms: int
    leader_timeout_ms: int
    started_ms: int
    seen: dict[int, Presence] = field(default_factory=dict)

    def heard(self, chunkserver_id: int, presence: Presence) -> None:
        self.seen[chunkserver_id] = presence

    def is_reporting(self, chunkserver_id: int, now_ms: int) -> bool:
        """Whether it was heard of since the start, and not too long ago."""
        presence = self.seen.get(chunkserver_id)
        return presence is not None and now_ms - presence.seen_ms < self.timeout_ms

    def reporting(self, now_ms: int, timeout_ms: int | None = None) -> frozenset[int]:
        """Those that were heard of within ``timeout_ms``, else the time for a heartbeat."""
        longest = self.timeout_ms if timeout_ms is None else timeout_ms
        return frozenset(i for i, p in self.seen.items() if now_ms - p.seen_ms < longest)

    def is_online(self, chunkserver_id: int, now_ms: int) -> bool:
        if chunkserver_id not in self.seen:
            return now_ms - self.started_ms < self.timeout_ms
        return self.is_reporting(chunkserver_id, now_ms)

    def online(self, chunkserver_ids: Iterable[int], now_ms: int) -> frozenset[int]:
        return frozenset(i for i in chunkserver_ids if self.is_online(i, now_ms))

    def leaders(self, now_ms: int) -> dict[CopysetKey, Leader]:
        """The copysets that have a leader. Of two that say so the one with the higher term is it:
        the other has not noticed yet."""
        found: dict[CopysetKey, Leader] = {}
        for chunkserver_id, presence in self.seen.items():
            if now_ms - presence.seen_ms >= self.leader_timeout_ms:
                continue
            for key, report in presence.reports.items():
                if report.leader and (key not in found or report.term > found[key].report.term):
                    found[key] = Leader(chunkserver_id, report)
        return found


class Transfers:
    """Leaders that operators asked for, until they lead. In memory only: who waits for one asks
    again."""

    def __init__(self) -> None:
        self._asked: dict[CopysetKey, tuple[int, int]] = {}

    def ask(self, key: CopysetKey, member_id: int, now_ms: int) -> None:
        self._asked[key] = (member_id, now_ms)

    def steps(self, reports: Iterable[cl.CopysetReport], now_ms: int) -> list[cl.ConfigurationStep]:
        """What a chunkserver that reports has to do about them."""
        found = []
        for report in reports if self._asked else ():
            key = (report.logical_pool_id, report.copyset_id)
            if not report.leader or key not in self._asked:
                continue
            member_id, asked_ms = self._asked[key]
            if member_id == report.member_id or now_ms - asked_ms > TRANSFER_TIMEOUT_MS:
                del self._asked[key]
                continue
            found.append(
                cl.ConfigurationStep(
                    logical_pool_id=key[0],
                    copyset_id=key[1],
                    kind=cl.ConfigurationStep.TRANSFER,
                    member_id=member_id,
                )
            )
        return found
