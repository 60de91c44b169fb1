# SPDX-License-Identifier: BSD-3-Clause
"""The targets of one test: tgtds that serve volumes of one store."""

from collections.abc import Sequence
from typing import Any

from support.iscsi import Lun, Target
from support.stack import Stack


class Targets:
    """Makes targets of one store; all end with the test."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._made: list[Target] = []

    def volume(self, name: str = "disk", size: str = "1G") -> str:
        """A new volume; returns its name."""
        self.stack.create_volume(name, size)
        return name

    def target(self, luns: Sequence[Lun] = (Lun("disk"),), **options: Any) -> Target:
        """A started target with these units."""
        options.setdefault("label", f"tgtd-{len(self._made)}")
        target = Target(self.stack.folder, luns, mds=self.stack.mds_address, **options)
        self._made.append(target)
        return target.start()

    def gateway(self, name: str, group: int, *, standby: bool = False, **options: Any) -> Target:
        """A gateway of the volume "disk" in a target port group of its own."""
        settings = {"gateway": name, "group": str(group)}
        if standby:
            settings["standby"] = "yes"
        return self.target([Lun("disk", options=settings)], label=f"tgtd-{name}", **options)

    def close(self) -> None:
        """Ends all that still run."""
        for target in self._made:
            target.close()
