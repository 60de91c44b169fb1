# SPDX-License-Identifier: BSD-3-Clause
"""The checker of block histories against a search through all orders, and on known defects."""

import itertools
import random
import time

import pytest
from chaos.linear import FOREVER, Op, check, check_block
from hypothesis import given, settings
from hypothesis import strategies as st

A, B = 1, 2


def write(value: int, invoked: int, returned: int | None, settled: int = FOREVER) -> Op:
    return Op(True, value, invoked, returned, settled)


def read(value: int, invoked: int, returned: int) -> Op:
    return Op(False, value, invoked, returned)


def _one_by_one(*values: int) -> list[Op]:
    return [read(value, 10 + 2 * i, 11 + 2 * i) for i, value in enumerate(values)]


def _in_some_order(ops: frozenset[tuple[int, Op]], value: int) -> bool:
    """Wing and Gong's search: the next may be any that began before the first of the rest ended."""
    if not ops:
        return True
    first_end = min(op.returned for _, op in ops if op.returned is not None)
    for entry in ops:
        op = entry[1]
        fits = op.invoked <= first_end and (op.write or op.value == value)
        if fits and _in_some_order(ops - {entry}, op.value):
            return True
    return False


def _explained(ops: list[Op]) -> bool:
    """Whether some order explains them, with some of the writes in doubt and without the others."""
    certain = [op for op in ops if op.returned is not None]
    doubtful = [op._replace(returned=op.settled) for op in ops if op.returned is None]
    return any(
        _in_some_order(frozenset(enumerate([*certain, *chosen])), 0)
        for count in range(len(doubtful) + 1)
        for chosen in itertools.combinations(doubtful, count)
    )


@st.composite
def histories(draw: st.DrawFn) -> list[Op]:
    """Anything: most of them are wrong. Ties in time are common."""
    ops = []
    writes = draw(st.integers(0, 4))
    for value in range(1, writes + 1):
        begin = draw(st.integers(0, 12))
        end = begin + draw(st.integers(0, 8))
        doubt = draw(st.sampled_from(("told", "told", "doubt", "settled")))
        told = {"told": (end, FOREVER), "doubt": (None, FOREVER), "settled": (None, end)}
        ops.append(write(value, begin, *told[doubt]))
    for _ in range(draw(st.integers(0, 4))):
        begin = draw(st.integers(0, 14))
        value = draw(st.integers(0, writes))
        ops.append(read(value, begin, begin + draw(st.integers(0, 8))))
    return ops


def atomic(pick: random.Random, count: int, clients: int) -> list[Op]:
    """The history of a real register: each operation takes place at one moment of its interval."""
    points = []
    free = [0] * clients
    for number in range(1, count + 1):
        client = pick.randrange(clients)
        begin = free[client] + pick.randint(1, 20)
        point = begin + pick.randint(0, 30)
        end = point + pick.randint(0, 30)
        free[client] = end
        points.append((point, number, begin, end, pick.random() < 0.5))
    value = 0
    ops = []
    for _, number, begin, end, is_write in sorted(points):
        if not is_write:
            ops.append(read(value, begin, end))
        elif pick.random() < 0.1:
            # In doubt: the client died. Half of them took place.
            ops.append(write(number, begin, None))
            value = number if pick.random() < 0.5 else value
        else:
            ops.append(write(number, begin, end))
            value = number
    return ops


@settings(max_examples=3000, deadline=None)
@given(histories())
def test_agrees_with_a_search_through_all_orders(ops: list[Op]) -> None:
    """The intervals decide what the search decides, for right histories and wrong ones."""
    assert (check_block(ops) is None) == _explained(ops)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 200), st.integers(1, 8))
def test_accepts_what_a_register_does(seed: int, count: int, clients: int) -> None:
    """Nothing that a register did is called wrong."""
    assert check_block(atomic(random.Random(seed), count, clients)) is None


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 32))
def test_finds_an_acknowledged_write_that_is_lost(seed: int) -> None:
    """The last write of a busy history is undone: the read after it tells."""
    pick = random.Random(seed)
    ops = atomic(pick, 60, 4)
    end = 1 + max(op.returned or op.invoked for op in ops)
    values = [op.value for op in ops if op.write and op.returned is not None]
    wrong = [*ops, write(9999, end + 1, end + 2), read(pick.choice([0, *values]), end + 3, end + 4)]
    assert check_block(wrong) is not None


@pytest.mark.parametrize(
    ("what", "ops"),
    [
        ("lost", [write(A, 0, 1), read(0, 2, 3)]),
        ("stale read", [write(A, 0, 1), write(B, 2, 3), read(A, 4, 5)]),
        ("read too early", [read(A, 0, 1), write(A, 2, 3)]),
        ("never written", [read(A, 0, 1)]),
        ("back again", [write(A, 0, 9), write(B, 0, 9), *_one_by_one(A, B, A)]),
        ("new, then old", [write(A, 0, 9), read(A, 1, 2), read(0, 3, 4)]),
        ("in doubt, gone again", [write(A, 0, None), read(A, 5, 6), read(0, 7, 8)]),
        ("landed too late", [write(A, 0, None, 5), write(B, 6, 7), read(B, 8, 9), read(A, 10, 11)]),
    ],
)  # fmt: skip
def test_refuses(what: str, ops: list[Op]) -> None:
    """The defects that replication must not have, each in its smallest form."""
    assert check_block(ops) is not None, what


@pytest.mark.parametrize(
    "ops",
    [
        [write(A, 0, None), read(0, 5, 6), read(A, 7, 8)],
        [write(A, 0, None), read(0, 5, 6)],
        [write(A, 0, None), write(B, 1, 2), read(B, 3, 4), read(A, 5, 6)],
        [write(A, 0, None, 4), read(A, 9, 10)],
        [write(A, 0, 9), read(0, 1, 2), read(A, 3, 4)],
    ],
)
def test_accepts_writes_in_doubt(ops: list[Op]) -> None:
    """One that nobody acknowledged may take place late, or never."""
    assert check_block(ops) is None


def test_blocks_are_judged_each_for_itself() -> None:
    """The same value may be in many blocks; the report names the block that is wrong."""
    good, bad = [write(A, 0, 1), read(A, 2, 3)], [write(A, 0, 1), read(0, 2, 3)]
    assert check({7: good, 8: bad, 9: good})[0].startswith("block 8:")
    assert check({7: good, 9: good}) == []


def test_is_fast_enough_for_long_histories() -> None:
    """200,000 operations on one block take seconds, not the square of them."""
    ops = atomic(random.Random(1), 200_000, 16)
    began = time.process_time()
    assert check_block(ops) is None
    assert time.process_time() - began < 20
