# SPDX-License-Identifier: BSD-3-Clause
"""Sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.sizes import format_rate, format_size, parse_period, parse_size
from gateway.errors import InvalidArgumentError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1K", 1024),
        ("512M", 512 << 20),
        ("10G", 10 << 30),
        ("10g", 10 << 30),
        ("10GiB", 10 << 30),
        ("1TiB", 1 << 40),
        ("1.5G", 3 << 29),
        (" 2P ", 2 << 50),
        ("7B", 7),
    ],
)
def test_sizes_are_powers_of_two(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "G",
        "-1G",
        "+1G",
        "1.5",
        "10X",
        "1G1G",
        "1e3",
        "0x10",
        "1,5G",
        "٣",
        "8E",
        "9" * 30,
        "1iB",
    ],
)
def test_anything_else_is_refused_and_repeated(text: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        parse_size(text)
    assert text in refused.value.message


def test_ten_to_the_power_is_refused_with_the_mend() -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        parse_size("10GB")
    assert "10G or 10GiB" in refused.value.hint


@given(st.integers(min_value=0, max_value=(1 << 63) - 1))
def test_plain_bytes_come_back(count: int) -> None:
    assert parse_size(str(count)) == count


@given(st.integers(min_value=0, max_value=8000), st.sampled_from("KMGTP"))
def test_the_binary_and_the_short_unit_are_the_same(count: int, unit: str) -> None:
    if count << 10 * ("KMGTP".index(unit) + 1) < 1 << 63:
        assert parse_size(f"{count}{unit}") == parse_size(f"{count}{unit}iB")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (3 << 29, "1.5 GiB"), (1 << 62, "4 EiB")],
)
def test_format_size(count: int, text: str) -> None:
    assert format_size(count) == text


@pytest.mark.parametrize(
    ("rate", "text"), [(0, "0"), (812.4, "812"), (12_345, "12.3k"), (1_250_000, "1.25M")]
)
def test_format_rate(rate: float, text: str) -> None:
    assert format_rate(rate) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("90m", 5400), ("12h", 43200), ("7d", 604800), ("2w", 1209600)],
)
def test_parse_period(text: str, seconds: int) -> None:
    assert parse_period(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "0d", "-1d", "1.5h", "7 days", "11000d", "d", "7D"])
def test_what_is_no_period_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_period(text)
