# SPDX-License-Identifier: BSD-3-Clause
"""Sizes as people write them. Every unit is a power of two: 1K = 1 KiB = 1024 bytes."""

from __future__ import annotations

import re
from fractions import Fraction

from gateway.errors import InvalidArgumentError

_UNITS = {"": 0, "B": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
_PATTERN = re.compile(r"(\d{1,20})(?:\.(\d{1,9}))?\s*([A-Za-z]*)", re.ASCII)
_MAX = (1 << 63) - 1


def parse_size(text: str) -> int:
    """Returns the bytes that `text` means: ``4096``, ``512M``, ``10G``, ``1TiB``, ``1.5G``.

    Raises InvalidArgumentError for anything else, among it ``10GB``, which some take for 10^10.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise InvalidArgumentError(
            f"'{text}' is not a size", hint="write it as 4096, 512M, 10G or 1TiB (powers of two)"
        )
    whole, fraction, unit = match.groups()
    prefix = unit.upper().removesuffix("IB") if len(unit) == 3 else unit.upper()
    if prefix not in _UNITS:
        hint = "units are K, M, G, T, P and KiB, MiB, GiB, TiB, PiB, all powers of two"
        if len(prefix) == 2 and prefix.endswith("B") and prefix[0] in _UNITS:
            hint = f"write {whole}{prefix[0]} or {whole}{prefix[0]}iB, a power of two"
        raise InvalidArgumentError(f"'{text}' is not a size: unit '{unit}'", hint=hint)
    exact = Fraction(f"{whole}.{fraction or 0}") * (1 << 10 * _UNITS[prefix])
    if exact.denominator != 1:
        raise InvalidArgumentError(f"'{text}' is not a whole number of bytes")
    if exact > _MAX:
        raise InvalidArgumentError(f"'{text}' is too large", hint="the most is 8 EiB less one byte")
    return int(exact)


_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_PERIOD_MAX = 10 * 365 * 86400


def parse_period(text: str) -> int:
    """Returns the seconds that `text` means: ``30m``, ``12h``, ``7d``, ``2w``.

    Raises InvalidArgumentError for anything else, and for less than a second or more than ten
    years.
    """
    match = re.fullmatch(r"(\d{1,12})([smhdw])", text.strip(), re.ASCII)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not 1 <= seconds <= _PERIOD_MAX:
        raise InvalidArgumentError(
            f"'{text}' is not a period", hint="write it as 30m, 12h, 7d or 2w; at most ten years"
        )
    return seconds


def format_size(count: int) -> str:
    """Returns `count` bytes with the largest unit that leaves at least 1: ``10 GiB``, ``1.5
    MiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} EiB"


def format_rate(per_second: float) -> str:
    """Returns a count per second as ``812``, ``12.3k``, ``1.25M``."""
    for unit, scale in (("M", 1e6), ("k", 1e3)):
        if per_second >= scale:
            return f"{per_second / scale:.3g}{unit}" if per_second < 1000 * scale else "huge"
    return f"{per_second:.0f}"
