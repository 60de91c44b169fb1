# SPDX-License-Identifier: BSD-3-Clause
"""Which chunkservers form a copyset. Pure.

The members of a copyset are of different zones. New ones are made by permutations, as in "Copysets"
(Cidon et al., 2013): each chunkserver gets as many as it should have, the load stays even, and
the scatter width (with how many others it shares copysets) becomes as wide as that number allows.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping


def missing_zones(zones: Collection[str], replicas: int) -> int:
    """How many more zones need a chunkserver before there can be copysets."""
    return max(0, replicas - len(set(zones)))


def new_copysets(
    zones: Mapping[int, str],
    existing: Iterable[Collection[int]],
    *,
    replicas: int,
    wanted: int,
    seed: int,
    served: Collection[int] = (),
) -> list[tuple[int, ...]]:
    """The copysets to make so that each chunkserver has ``wanted`` of them, as far as the zones
    allow. ``zones`` says in which zone each chunkserver is. Those in ``served`` need none of their
    own.

    Others take part in the copysets of one that is short of them, but none gets more than
    ``replicas * wanted``: that is what all of them have on average if each joined a full cluster.
    """
    counts: Counter[int] = Counter(dict.fromkeys(zones, 0))
    together: Counter[tuple[int, int]] = Counter()

    def note(members: Iterable[int]) -> None:
        present = [m for m in members if m in zones]
        counts.update(present)
        together.update((a, b) for a in present for b in present if a != b)

    for members in existing:
        note(members)
    order = sorted(zones)
    permutation = random.Random(seed)  # noqa: S311 - spreads; the same again if it is run again
    made: list[tuple[int, ...]] = []
    stuck = set(served)
    while True:
        permutation.shuffle(order)
        short = [i for i in order if counts[i] < wanted and i not in stuck]
        if not short:
            return made
        group = [min(short, key=lambda i: counts[i])]
        while len(group) < replicas:
            used = {zones[i] for i in group}
            others = [i for i in order if zones[i] not in used and counts[i] < replicas * wanted]
            if not others:
                break
            group.append(min(others, key=lambda i: (counts[i], sum(together[i, j] for j in group))))
        if len(group) < replicas:
            stuck.add(group[0])
            continue
        made.append(tuple(sorted(group)))
        note(group)


def substitute(
    zones: Mapping[int, str], copysets: Mapping[int, int], stay: Collection[str]
) -> int | None:
    """The chunkserver that takes the place of a member: the one with the fewest copysets of those
    whose zone is not one of ``stay``, the zones of the members that stay. None: there is none."""
    free = [i for i in sorted(zones) if zones[i] not in stay]
    return min(free, key=lambda i: copysets.get(i, 0), default=None)
