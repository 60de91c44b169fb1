# SPDX-License-Identifier: BSD-3-Clause
"""What goes wrong and when, drawn from a seed. Pure: the same seed and cluster, the same schedule.

A round is a number of episodes; the campaign waits after each until IO goes on, so that every
episode begins with a cluster that works. In an episode one fault happens, or two that overlap.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong, and how long.

    `target` is a host or a client, `other` the second host of a partition; `amount` is a share of
    frames, or milliseconds, or (0 to 1) which of the host's blocks.
    """

    kind: str
    target: str
    begin_s: float = 0.0
    seconds: float = 0.0
    other: str = ""
    amount: float = 0.0

    def __str__(self) -> str:
        words = [self.kind, self.target]
        if self.other:
            words.append(self.other)
        if self.amount:
            words.append(f"{self.amount:g}")
        if self.seconds:
            words.append(f"for {self.seconds:.2f} s")
        return f"at {self.begin_s:.2f} s: {' '.join(words)}"


@dataclass(frozen=True)
class Site:
    """What there is to be hurt. `breakable`: chunkservers whose disk can give EIO."""

    chunkservers: Sequence[str]
    breakable: Sequence[str]
    clients: Sequence[str]
    client_hosts: Sequence[str]  # of their own, no chunkserver there
    replicas: int = 3
    membership: bool = True
    kinds: frozenset[str] = frozenset()  # nothing else happens; empty: everything does


Episode = tuple[Fault, ...]
_Maker = Callable[[random.Random, Site], Fault]


def _one(kind: str, longest: float, shortest: float = 0.3) -> _Maker:
    def make(pick: random.Random, site: Site) -> Fault:
        seconds = pick.uniform(shortest, longest)
        return Fault(kind, pick.choice(site.chunkservers), seconds=seconds)

    return make


def _pair(kind: str) -> _Maker:
    def make(pick: random.Random, site: Site) -> Fault:
        one, other = pick.sample([*site.chunkservers], 2)
        return Fault(kind, one, seconds=pick.uniform(0.5, 5), other=other)

    return make


def _client_link(kind: str) -> _Maker:
    def make(pick: random.Random, site: Site) -> Fault:
        client = pick.choice(site.client_hosts)
        ends = [client, pick.choice([host for host in site.chunkservers if host != client])]
        pick.shuffle(ends)
        return Fault(kind, ends[0], seconds=pick.uniform(0.5, 4), other=ends[1])

    return make


def _anyone(kind: str, amounts: Sequence[float]) -> _Maker:
    def make(pick: random.Random, site: Site) -> Fault:
        host = pick.choice([*site.chunkservers, *site.client_hosts, "mds"])
        return Fault(kind, host, seconds=pick.uniform(1, 5), amount=pick.choice(amounts))

    return make


def _break(pick: random.Random, site: Site) -> Fault:
    return Fault("eio", pick.choice(site.breakable), seconds=pick.uniform(0.5, 3))


def _all(pick: random.Random, site: Site) -> Fault:
    return Fault("kill-all", "chunkservers", seconds=pick.choice((0.0, pick.uniform(0, 2))))


def _mds(kind: str) -> _Maker:
    def make(pick: random.Random, site: Site) -> Fault:
        return Fault(kind, "mds", seconds=pick.uniform(0.5, 5))

    return make


def _client(pick: random.Random, site: Site) -> Fault:
    return Fault("kill-client", pick.choice(site.clients))


def _moment(kind: str) -> _Maker:
    def make(pick: random.Random, site: Site) -> Fault:
        return Fault(kind, pick.choice(site.chunkservers))

    return make


def _rot(pick: random.Random, site: Site) -> Fault:
    return Fault("rot", pick.choice(site.chunkservers), amount=round(pick.uniform(0.001, 1), 4))


# How often each comes, for one replica and for several.
_ALWAYS: tuple[tuple[int, _Maker], ...] = (
    (14, _one("kill", 3.0, 0.0)),
    (8, _one("stop", 4.0)),
    (4, _one("isolate", 5.0)),
    (3, _client_link("partition")),
    (3, _client_link("cut")),
    (5, _anyone("lose", (0.01, 0.05, 0.2))),
    (5, _anyone("delay", (2.0, 10.0, 40.0))),
    (4, _one("full", 4.0, 1.0)),
    (2, _mds("kill-mds")),
    (2, _mds("stop-mds")),
    (3, _client),
)
_REPLICATED: tuple[tuple[int, _Maker], ...] = (
    (8, _pair("partition")),
    (7, _pair("cut")),
    (4, _all),
    (5, _moment("transfer")),
    (3, _rot),
)
_MEMBERSHIP: tuple[tuple[int, _Maker], ...] = ((5, _moment("move")), (3, _moment("wipe")))
_OVERLAP = 0.3
# Two of these at once would be one after the other, or ask for what the first makes impossible.
_ALONE = {"kill-all", "wipe"}


def _menu(site: Site) -> list[tuple[int, _Maker]]:
    menu = [*_ALWAYS]
    if site.breakable:
        menu.append((4, _break))
    if site.replicas > 1:
        menu += _REPLICATED
        if site.membership:
            menu += _MEMBERSHIP
    if site.kinds:
        # What kind a maker makes, it shows.
        pick = random.Random(0)
        menu = [(weight, make) for weight, make in menu if make(pick, site).kind in site.kinds]
    assert menu, f"none of {site.kinds} can happen here"
    return menu


def _episode(pick: random.Random, site: Site, menu: Sequence[tuple[int, _Maker]]) -> Episode:
    weights, makers = [weight for weight, _ in menu], [maker for _, maker in menu]
    first = pick.choices(makers, weights)[0](pick, site)
    if first.kind in _ALONE or pick.random() >= _OVERLAP:
        return (first,)
    second = pick.choices(makers, weights)[0](pick, site)
    if second.kind in _ALONE or (second.kind, second.target) == (first.kind, first.target):
        return (first,)
    if second.target == first.target and {first.kind, second.kind} <= _ON_PROCESS:
        return (first,)
    begin = pick.uniform(0, max(first.seconds, 0.3))
    return (first, Fault(**{**second.__dict__, "begin_s": begin}))


# Faults of one process: killing what is stopped, or breaking what is dead, is no second fault.
_ON_PROCESS = {"kill", "stop", "eio", "full", "kill-mds", "stop-mds"}


def draw(seed: int, site: Site, rounds: int, episodes: int) -> list[list[Episode]]:
    """The schedule: for each round its episodes. Every kind comes once before any comes twice."""
    pick = random.Random(f"schedule/{seed}")
    menu = _menu(site)
    unseen: list[tuple[int, _Maker]] = []
    plan = []
    for _ in range(rounds):
        chosen = []
        for _ in range(episodes):
            if pick.random() < 0.5:
                if not unseen:
                    unseen = pick.sample(menu, len(menu))
                chosen.append((unseen.pop()[1](pick, site),))
            else:
                chosen.append(_episode(pick, site, menu))
        plan.append(chosen)
    return plan


def majority_serves(episode: Episode, site: Site) -> bool:
    """Whether IO has to go on while the episode lasts: one chunkserver at most is out of reach of
    the others or of the clients, and nothing else is wrong."""
    if site.replicas < 3:
        return False
    out = set()
    for fault in episode:
        if fault.kind in {"kill", "stop", "isolate", "eio"}:
            out.add(fault.target)
        elif fault.kind not in {"transfer", "full", "rot"}:
            return False
    return len(out) <= 1
