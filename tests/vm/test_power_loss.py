# SPDX-License-Identifier: BSD-3-Clause
"""The short form of power_loss.py."""

from pathlib import Path

import power_loss
import pytest
from support import vm

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("replicas", [1, 3])
def test_acknowledged_writes_survive_a_power_loss_of_the_machine(
    tmp_path: Path, replicas: int
) -> None:
    """The plug is pulled under load: page cache and the disk's own cache are lost.

    With three replicas the machine is a rack: all lose what they had not synced, at once.
    """
    if reason := vm.missing():
        pytest.skip(reason)
    power_loss.campaign(tmp_path, rounds=1, seed=30, replicas=replicas)
