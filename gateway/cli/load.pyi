# SPDX-License-Identifier: BSD-3-Clause
from typing import Any

KINDS: dict[str, int]
PERCENTILES: tuple[float, ...]

def run(
    mds: str,
    path: str,
    *,
    owner: str,
    password: str | None = None,
    kind: str,
    block_size: int,
    depth: int,
    read_percent: int = 50,
    runtime_s: float = 5.0,
    ramp_s: float = 0.0,
    span: int = 0,
    seed: int = 1,
) -> dict[str, Any]: ...
