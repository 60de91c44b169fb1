# SPDX-License-Identifier: BSD-3-Clause
"""The schedule of the chaos tests: repeatable, and everything happens."""

import dataclasses

from chaos.schedule import Fault, Site, draw, majority_serves

SITE = Site(["cs1", "cs2", "cs3", "cs4"], ["cs4"], ["writer", "reader"], ["app1", "app2"])


def test_a_seed_is_a_schedule() -> None:
    """The same seed gives the same faults, another one others."""
    assert draw(5, SITE, 10, 6) == draw(5, SITE, 10, 6)
    assert draw(5, SITE, 10, 6) != draw(6, SITE, 10, 6)
    assert draw(5, SITE, 3, 6) == draw(5, SITE, 10, 6)[:3]


def test_every_kind_of_fault_happens() -> None:
    """Within some rounds; one replica alone knows no partition between chunkservers."""
    kinds = {f.kind for r in draw(1, SITE, 12, 6) for episode in r for f in episode}
    assert kinds == {
        *("kill", "stop", "isolate", "partition", "cut", "lose", "delay", "full", "eio"),
        *("kill-all", "transfer", "move", "wipe", "rot", "kill-client", "kill-mds", "stop-mds"),
    }
    alone = dataclasses.replace(SITE, chunkservers=["cs1"], breakable=[], replicas=1)
    kinds = {f.kind for r in draw(1, alone, 30, 6) for episode in r for f in episode}
    assert kinds.isdisjoint({"eio", "kill-all", "transfer", "move", "wipe"})


def test_some_faults_overlap() -> None:
    """And those that cannot, do not: a process that is dead is not stopped."""
    episodes = [e for r in draw(2, SITE, 50, 6) for e in r]
    assert any(len(episode) == 2 for episode in episodes)
    for episode in episodes:
        if len(episode) == 2 and episode[0].target == episode[1].target:
            assert {f.kind for f in episode} - {"kill", "stop", "eio", "full"}


def test_a_majority_serves_while_one_is_away() -> None:
    """With one of three out of reach IO has to go on; with two, or lossy links, it may wait."""
    kill, stop = Fault("kill", "cs1", seconds=4), Fault("stop", "cs2", seconds=4)
    assert majority_serves((kill,), SITE)
    assert majority_serves((kill, Fault("transfer", "cs2")), SITE)
    assert not majority_serves((kill, stop), SITE)
    assert not majority_serves((kill, Fault("lose", "app1", seconds=1, amount=0.2)), SITE)
    assert not majority_serves((Fault("partition", "app1", other="cs1"),), SITE)
    assert not majority_serves((kill,), dataclasses.replace(SITE, replicas=1))
