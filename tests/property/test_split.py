# SPDX-License-Identifier: BSD-3-Clause
"""The splitter against a model of CurveBS's striping, byte by byte where it matters."""

import errno

from hypothesis import assume, given
from hypothesis import strategies as st
from support.cbinding import internals

ffi, lib = internals(("volume/split.h",), ("volume/split.c",))

MIB = 1 << 20
GIB = 1 << 30


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int, int]:
    """(chunk_size, stripe_unit, stripe_count) as a metadata server may hand them out."""
    chunk_size = draw(st.sampled_from([64 << 10, MIB, 16 * MIB, 12 * MIB, GIB]))
    unit = draw(st.sampled_from([0, 4096, 16 << 10, 64 << 10, MIB]))
    assume(unit == 0 or chunk_size % unit == 0)
    count = draw(st.integers(0, 64)) if unit else 0
    return chunk_size, unit, count


def make(shape: tuple[int, int, int]) -> object:
    """The C struct of a layout."""
    layout = ffi.new("struct cg_layout *")
    assert lib.cg_layout_init(layout, *shape) == 0
    return layout


def place(shape: tuple[int, int, int], offset: int) -> tuple[int, int]:
    """The model: which chunk holds a byte of the volume, and where in it."""
    chunk_size, unit, count = shape
    if unit == 0 or count <= 1:
        return divmod(offset, chunk_size)
    row, rest = divmod(offset, chunk_size * count)
    number, within = divmod(rest, unit)
    return row * count + number % count, number // count * unit + within


@given(
    layouts(),
    st.integers(0, 1 << 50),
    st.integers(1, 70 * MIB),
    st.sampled_from([4096, 65536, MIB]),
)
def test_pieces_cover_the_range_in_order_and_lie_where_the_model_says(
    shape: tuple[int, int, int], offset: int, length: int, limit: int
) -> None:
    """No byte is left out, doubled or misplaced; no piece is too long or leaves its chunk."""
    layout = make(shape)
    piece = ffi.new("struct cg_piece *")
    unit = shape[1] if shape[1] and shape[2] > 1 else shape[0]
    assume(length // min(unit, limit) < 3000)
    end = offset + length
    while offset < end:
        lib.cg_split_next(layout, offset, end - offset, limit, piece)
        assert 1 <= piece.length <= min(limit, end - offset)
        assert piece.chunk_offset + piece.length <= shape[0]
        first = (piece.chunk_index, piece.chunk_offset)
        assert first == place(shape, offset)
        last = (piece.chunk_index, piece.chunk_offset + piece.length - 1)
        assert last == place(shape, offset + piece.length - 1)
        offset += piece.length


@given(layouts(), st.integers(0, 1 << 40))
def test_a_piece_ends_only_where_it_must(shape: tuple[int, int, int], offset: int) -> None:
    """A split costs a request: where the next byte is adjacent in the same chunk there is none."""
    layout = make(shape)
    piece = ffi.new("struct cg_piece *")
    lib.cg_split_next(layout, offset, GIB, 2 * GIB - 1, piece)
    chunk, within = place(shape, offset + piece.length)
    striped = shape[1] and shape[2] > 1
    if not striped:
        assert piece.length == min(GIB, shape[0] - offset % shape[0])
    else:
        assert (chunk, within) != (piece.chunk_index, piece.chunk_offset + piece.length) or (
            (offset + piece.length) % shape[1] == 0
        )


@given(st.integers(0, 1 << 64 - 1), st.integers(0, 1 << 64 - 1), st.integers(0, 1 << 64 - 1))
def test_any_numbers_give_a_layout_or_a_refusal(chunk_size: int, unit: int, count: int) -> None:
    """What the metadata server sends is not trusted."""
    layout = ffi.new("struct cg_layout *")
    result = lib.cg_layout_init(layout, chunk_size, unit, count)
    assert result in (0, -errno.EINVAL)
    if chunk_size == 0 or chunk_size > GIB:
        assert result == -errno.EINVAL
    if unit and count > 1 and (chunk_size % unit or count > 1024):
        assert result == -errno.EINVAL
