# SPDX-License-Identifier: BSD-3-Clause
"""Copysets over zones: distinct zones, an even load, a wide scatter."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gateway.mds import placement

REPLICAS = st.integers(1, 5)
WANTED = st.integers(1, 12)


def servers(sizes):
    """Chunkservers in zones of these sizes; their numbers are mixed."""
    where = [f"zone{n}" for n, size in enumerate(sizes) for _ in range(size)]
    random.Random(len(where)).shuffle(where)
    return dict(enumerate(where, 1))


def neighbours(groups):
    """With whom each shares a copyset."""
    found = {}
    for group in groups:
        for member in group:
            found.setdefault(member, set()).update(set(group) - {member})
    return found


@given(st.lists(st.integers(1, 5), max_size=7), REPLICAS, WANTED, st.integers(0, 9))
def test_members_are_of_different_zones_and_nobody_has_far_too_many(sizes, replicas, wanted, seed):
    zones = servers(sizes)
    groups = placement.new_copysets(zones, [], replicas=replicas, wanted=wanted, seed=seed)
    for group in groups:
        assert len(group) == replicas
        assert len({zones[i] for i in group}) == replicas
    assert bool(groups) == (len(sizes) >= replicas)
    assert placement.missing_zones(zones.values(), replicas) == max(0, replicas - len(sizes))
    counts = Counter(i for group in groups for i in group)
    assert max(counts.values(), default=0) <= replicas * wanted
    again = placement.new_copysets(zones, [], replicas=replicas, wanted=wanted, seed=seed)
    assert again == groups, "a transaction that runs again does the same"


@given(st.integers(1, 6), REPLICAS, WANTED, st.integers(0, 9))
def test_equal_zones_are_loaded_evenly_and_everybody_gets_enough(size, replicas, wanted, seed):
    zones = servers([size] * replicas)
    groups = placement.new_copysets(zones, [], replicas=replicas, wanted=wanted, seed=seed)
    counts = Counter(i for group in groups for i in group)
    assert counts == dict.fromkeys(zones, wanted)


@given(st.integers(2, 6), st.integers(2, 4), WANTED, st.integers(0, 9))
def test_the_scatter_is_about_as_wide_as_the_number_of_copysets_allows(
    size, replicas, wanted, seed
):
    zones = servers([size] * replicas)
    groups = placement.new_copysets(zones, [], replicas=replicas, wanted=wanted, seed=seed)
    possible = (replicas - 1) * min(size, wanted)
    for others in neighbours(groups).values():
        assert len(others) >= possible / 2
    widths = [len(others) for others in neighbours(groups).values()]
    assert sum(widths) / len(widths) >= 0.75 * possible


@given(st.lists(st.integers(0, 4), min_size=3, max_size=20), WANTED)
def test_one_after_the_other_joins_and_gets_its_copysets(joining, wanted):
    zones = {}
    groups = []
    for number, zone in enumerate(joining, 1):
        zones[number] = f"zone{zone}"
        groups += placement.new_copysets(zones, groups, replicas=3, wanted=wanted, seed=len(groups))
    counts = Counter(i for group in groups for i in group)
    assert max(counts.values(), default=0) <= 3 * wanted
    for short in (i for i in zones if counts[i] < wanted):
        free = {zones[i] for i in zones if counts[i] < 3 * wanted} - {zones[short]}
        assert len(free) < 2, "it could have been in one more"


@given(st.lists(st.integers(1, 4), min_size=4, max_size=6), st.data())
def test_who_takes_a_place_is_of_another_zone_and_has_the_least_to_do(sizes, data):
    zones = servers(sizes)
    load = {i: data.draw(st.integers(0, 3)) for i in zones}
    stay = data.draw(st.sets(st.sampled_from(sorted(set(zones.values()))), max_size=len(sizes)))
    found = placement.substitute(zones, load, stay)
    free = [i for i in zones if zones[i] not in stay]
    assert (found is None) == (not free)
    if found is not None:
        assert zones[found] not in stay
        assert load[found] == min(load[i] for i in free)
