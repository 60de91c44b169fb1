# SPDX-License-Identifier: BSD-3-Clause
"""qemu boots Debian from a volume through its own iSCSI driver, whichever gateway serves it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support import debian, iscsi
from support.iscsi import Lun, Target
from support.stack import Stack
from support.tools import run

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(900)]


def test_debian_boots_from_a_volume_and_again_from_another_gateway(
    stack_factory: Callable[..., Stack], tmp_path: Path
) -> None:
    """It writes files at each boot and checks those of the boots before; the first gateway dies."""
    reason = iscsi.missing() or debian.missing()
    if reason:
        pytest.skip(reason)
    system = debian.system()
    stack = stack_factory()
    stack.create_volume("root", str(debian.IMAGE_SIZE))
    log = stack.folder / "console.log"

    def gateway(name: str, group: int) -> Target:
        options = {"gateway": name, "group": str(group)}
        luns = [Lun("root", options=options)]
        return Target(stack.folder, luns, mds=stack.mds_address, label=f"tgtd-{name}")

    first, second = gateway("a", 1), gateway("b", 2)
    try:
        first.start()
        image = ("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", system.disk, first.url())
        run(*image, timeout=120)
        assert debian.ENDED_WELL.format(0) in system.boot(first.url(), log, 280)
        first.kill()
        second.start()
        assert debian.ENDED_WELL.format(1) in system.boot(second.url(), log, 280)
    finally:
        first.close()
        second.close()
