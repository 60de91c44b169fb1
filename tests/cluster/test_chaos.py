# SPDX-License-Identifier: BSD-3-Clause
"""The short form of tests/chaos/campaign.py; `make chaos` runs the long one."""

import sys
from pathlib import Path

import pytest
from chaos import network as chaos_network
from support.tools import ROOT, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(chaos_network.missing() is not None, reason=chaos_network.missing() or ""),
]


def _campaign(folder: Path, *options: str) -> str:
    # In a process of its own: it takes a mount namespace for itself.
    campaign = ROOT / "tests/chaos/campaign.py"
    words = ["--folder", str(folder / "chaos"), *options]
    return run(sys.executable, "-P", campaign, *words, timeout=230).stdout


def test_one_replica_survives_everything(data_folder: Path) -> None:
    """The network, the process and the disk of a chunkserver fail; nothing is lost."""
    printed = _campaign(
        data_folder,
        *("--replicas", "1", "--chunkservers", "1"),
        *("--rounds", "1", "--episodes", "6", "--seed", "3"),
    )
    assert "histories linearizable" in printed


def test_three_replicas_survive_everything(data_folder: Path) -> None:
    """Twelve kinds of faults on four chunkservers: no error, nothing lost, replicas that agree."""
    printed = _campaign(data_folder, *("--rounds", "1", "--episodes", "10", "--seed", "1660"))
    assert "replicas agree" in printed
    for kind in ("kill", "kill-all", "stop", "partition", "cut", "isolate", "lose", "eio", "rot"):
        assert f": {kind} " in printed, "the schedule has changed"
    for kind in ("transfer", "move", "wipe"):
        assert f": {kind} " in printed, "the schedule has changed"
