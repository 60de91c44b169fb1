# SPDX-License-Identifier: BSD-3-Clause
"""The short form of crash_campaign.py; `make crash` runs the long one."""

from pathlib import Path

import crash_campaign
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_no_acknowledged_write_is_lost_when_processes_are_killed(data_folder: Path) -> None:
    """Eight rounds of kill -9 on the machine's best disk interface."""
    crash_campaign.run(data_folder / "crash", rounds=8, seed=20)


def test_no_acknowledged_write_is_lost_without_io_uring(data_folder: Path) -> None:
    """The same over the fallback that containers use."""
    crash_campaign.run(data_folder / "crash", rounds=4, seed=21, backend="epoll")
