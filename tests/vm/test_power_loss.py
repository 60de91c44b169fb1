# SPDX-License-Identifier: BSD-3-Clause
"""The short form of power_loss.py."""

from pathlib import Path

import power_loss
import pytest
from support import vm

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(400)]


def test_acknowledged_writes_survive_a_power_loss_of_the_machine(tmp_path: Path) -> None:
    """The plug is pulled under load: page cache and the disk's own cache are lost."""
    if reason := vm.missing():
        pytest.skip(reason)
    power_loss.campaign(tmp_path, rounds=1, seed=30)
