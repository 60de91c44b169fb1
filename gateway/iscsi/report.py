# SPDX-License-Identifier: BSD-3-Clause
"""Reads what tgtd shows of itself: lines of text, indented by four spaces a level. Pure functions.

tgtd's text is made for people: what is not understood is passed over, and what is missing is left
at its default.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

INDENT = 4


@dataclass(frozen=True)
class LunReport:
    """A logical unit."""

    number: int
    path: str = ""
    bstype: str = ""
    online: bool = False
    read_only: bool = False
    block_size: int = 0


@dataclass
class TargetReport:
    """A target. `allowed` are the names and addresses that may log in."""

    tid: int
    name: str
    state: str = ""
    luns: list[LunReport] = field(default_factory=list)
    accounts: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Connection:
    """A connection of a session. `session` is tgtd's number of the session."""

    session: int
    connection: int
    initiator: str = ""
    address: str = ""


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Level and content of each line that has any."""
    for line in text.splitlines():
        content = line.strip()
        if content:
            yield (len(line) - len(line.lstrip(" "))) // INDENT, content


def _pair(content: str) -> tuple[str, str]:
    """ "Key: value" """
    key, _, value = content.partition(":")
    return key.strip(), value.strip()


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def parse_targets(text: str) -> list[TargetReport]:
    """Reads the list of all targets."""
    targets: list[TargetReport] = []
    section = ""
    lun: dict[str, str] = {}

    def finish() -> None:
        number = _number(lun.get("LUN", ""))
        if targets and number is not None:
            targets[-1].luns.append(_lun(number, lun))
        lun.clear()

    for level, content in _lines(text):
        key, value = _pair(content)
        if level == 0:
            finish()
            section = ""
            word, _, number = key.partition(" ")
            tid = _number(number.strip())
            if word == "Target" and tid is not None:
                targets.append(TargetReport(tid, value))
        elif not targets:
            continue
        elif level == 1:
            finish()
            section = key
        elif section == "LUN information":
            if level == 2:
                finish()
            lun[key] = value
        elif level == 2:
            if section == "System information" and key == "State":
                targets[-1].state = value
            elif section == "Account information":
                targets[-1].accounts.append(content)
            elif section == "ACL information":
                targets[-1].allowed.append(content)
    finish()
    return targets


def _lun(number: int, values: dict[str, str]) -> LunReport:
    # "Size: 1074 MB, Block size: 512": the size is rounded, and of no use.
    _, _, block_size = values.get("Size", "").rpartition("Block size:")
    return LunReport(
        number=number,
        path=values.get("Backing store path", ""),
        bstype=values.get("Backing store type", ""),
        online=values.get("Online") == "Yes",
        read_only=values.get("Readonly") == "Yes",
        block_size=_number(block_size.strip()) or 0,
    )


def parse_connections(text: str) -> list[Connection]:
    """Reads the list of a target's connections."""
    found: list[Connection] = []
    session = 0
    values: dict[str, str] = {}

    def finish() -> None:
        number = _number(values.get("Connection", ""))
        if number is not None:
            initiator, address = values.get("Initiator", ""), values.get("IP Address", "")
            found.append(Connection(session, number, initiator, address))
        values.clear()

    for level, content in _lines(text):
        key, value = _pair(content)
        if level == 0:
            finish()
            session = _number(value) or 0
        else:
            if level == 1:
                finish()
            values[key] = value
    finish()
    return found


def parse_portals(text: str) -> list[str]:
    """Reads the list of portals: "Portal: 127.0.0.1:3260,1", the group behind the comma."""
    portals = []
    for _, content in _lines(text):
        key, value = _pair(content)
        if key == "Portal":
            portals.append(value.partition(",")[0].strip())
    return portals


def parse_backing_stores(text: str) -> list[str]:
    """Reads the kinds of backing stores from what tgtd shows of itself."""
    kinds: list[str] = []
    within = False
    for level, content in _lines(text):
        if level == 0:
            within = content == "Backing stores:"
        elif within:
            kinds.append(content.partition(" ")[0])
    return kinds
