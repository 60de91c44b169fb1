# SPDX-License-Identifier: BSD-3-Clause
"""CRC-32C, histograms and signatures against independent implementations."""

import base64
import hashlib
import hmac
import math

from hypothesis import given
from hypothesis import strategies as st
from support.cbinding import internals

crc_ffi, crc = internals(("base/crc32c.h",), ("base/crc32c.c",), ("isal",))
hist_ffi, hist = internals(("base/histogram.h",), ("base/histogram.c",))
sign_ffi, sign = internals(("volume/signature.h",), ("volume/signature.c",), ("nettle",))


def crc32c_by_bits(data: bytes) -> int:
    """RFC 3720, appendix B.4, one bit at a time."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def test_crc32c_of_the_standard_vectors() -> None:
    """RFC 3720's own examples."""
    assert crc.cg_crc32c(0, b"123456789", 9) == 0xE3069283
    assert crc.cg_crc32c(0, bytes(32), 32) == 0x8A9136AA
    assert crc.cg_crc32c(0, b"\xff" * 32, 32) == 0x62A8AB43
    assert crc.cg_crc32c(0, b"", 0) == 0


@given(st.binary(max_size=600), st.integers(0, 15))
def test_crc32c_equals_the_definition_at_any_alignment(data: bytes, shift: int) -> None:
    """Vectorised code has heads and tails: they must not show."""
    memory = crc_ffi.new("uint8_t[]", bytes(shift) + data)
    assert crc.cg_crc32c(0, memory + shift, len(data)) == crc32c_by_bits(data)


@given(st.binary(max_size=3000), st.data())
def test_crc32c_of_pieces_is_that_of_the_whole(data: bytes, draw: st.DataObject) -> None:
    """crc32c(crc32c(0, a), b) == crc32c(0, ab)."""
    cut = draw.draw(st.integers(0, len(data)))
    head = crc.cg_crc32c(0, data[:cut], cut)
    assert crc.cg_crc32c(head, data[cut:], len(data) - cut) == crc.cg_crc32c(0, data, len(data))


@given(
    st.lists(st.integers(0, (1 << 63) - 1) | st.integers(0, 200_000), min_size=1, max_size=200),
    st.floats(0, 100),
)
def test_percentiles_are_at_most_a_bucket_above_the_truth(
    values: list[int], percent: float
) -> None:
    """Never below the true value, and at most 1.6 % above."""
    histogram = hist_ffi.new("struct cg_histogram *")
    for value in values:
        hist.cg_histogram_add(histogram, value)
    assert histogram.count == len(values)
    assert histogram.max == max(values)
    assert histogram.sum == sum(values) % (1 << 64)
    rank = max(math.ceil(percent / 100 * len(values) - 1e-9), 1)
    truth = sorted(values)[rank - 1]
    found = hist.cg_histogram_percentile(histogram, percent)
    assert truth <= found <= truth * 1.016 + 1


@given(st.lists(st.integers(0, 1 << 40)), st.lists(st.integers(0, 1 << 40)))
def test_merged_histograms_are_those_of_all_values(left: list[int], right: list[int]) -> None:
    """Merging loses nothing."""
    parts = [hist_ffi.new("struct cg_histogram *") for _ in range(3)]
    for histogram, values in zip(parts, (left, right, left + right), strict=True):
        for value in values:
            hist.cg_histogram_add(histogram, value)
    hist.cg_histogram_merge(parts[0], parts[1])
    assert bytes(hist_ffi.buffer(parts[0])) == bytes(hist_ffi.buffer(parts[2]))


@given(
    st.text(st.characters(blacklist_categories=("Cs",), min_codepoint=1), max_size=100),
    st.integers(0, (1 << 64) - 1),
    st.text(st.characters(blacklist_categories=("Cs",), min_codepoint=1), max_size=100),
)
def test_signatures_equal_those_of_another_implementation(
    password: str, date_us: int, owner: str
) -> None:
    """base64(HMAC-SHA256(password, "<date>:<owner>")), as CurveBS computes it."""
    out = sign_ffi.new("char[45]")
    sign.cg_signature(password.encode(), date_us, owner.encode(), out)
    digest = hmac.new(password.encode(), f"{date_us}:{owner}".encode(), hashlib.sha256).digest()
    assert sign_ffi.string(out) == base64.b64encode(digest)
