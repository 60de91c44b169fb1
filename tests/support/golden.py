# SPDX-License-Identifier: BSD-3-Clause
"""The metadata messages captured from a running CurveBS."""

from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).parent.parent / "golden" / "curvebs-mds.txt"


@dataclass(frozen=True)
class Captured:
    """One message: the bytes of its header, meta and body."""

    method: str
    is_request: bool
    header: bytes
    meta: bytes
    body: bytes

    @property
    def frame(self) -> bytes:
        return self.header + self.meta + self.body


def captured() -> list[Captured]:
    """The messages, in the order they were sent."""
    messages = []
    lines = [line for line in FILE.read_text().splitlines() if not line.startswith("#")]
    for start in range(0, len(lines), 4):
        kind, method = lines[start].split()
        parts = [bytes.fromhex(line.split()[1]) for line in lines[start + 1 : start + 4]]
        messages.append(Captured(method, kind == "REQ", *parts))
    return messages


def pair(name: str) -> tuple[Captured, Captured]:
    """The request and the response of a method, by its last name."""
    found = [m for m in captured() if m.method.endswith("." + name)]
    return found[0], found[1]
