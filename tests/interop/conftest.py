# SPDX-License-Identifier: BSD-3-Clause
"""Targets of Debian's tgtd with our backing store, for the tests of the iSCSI front end."""

from collections.abc import Callable, Iterator

import pytest
from support import iscsi, libiscsi
from support.iscsi import Target
from support.iscsi_targets import Targets
from support.stack import Stack


@pytest.fixture
def targets(stack_factory: Callable[..., Stack]) -> Iterator[Targets]:
    """A store without volumes, for targets."""
    reason = iscsi.missing() or libiscsi.missing()
    if reason:
        pytest.skip(reason)
    made = Targets(stack_factory())
    yield made
    made.close()


@pytest.fixture
def target(targets: Targets) -> Target:
    """A target with the volume "disk" of 1 GiB as unit 1."""
    targets.volume()
    return targets.target()
