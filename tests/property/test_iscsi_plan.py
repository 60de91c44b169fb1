# SPDX-License-Identifier: BSD-3-Clause
"""From any tgtd to any wanted target: it gets there, and opens no door on the way."""

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gateway.iscsi import plan
from gateway.iscsi.plan import (
    GUARD,
    Account,
    Lun,
    NewLun,
    OpenPortal,
    Present,
    Wanted,
    applied,
    steps,
)
from gateway.iscsi.records import differences

IQN = "iqn.2026-11.io.copygate:v"
NAMES = ["iqn.a:1", "iqn.b:2", "iqn.c:3"]
ACCOUNTS = [Account(user, secret) for user in ("u", "v") for secret in ("s" * 12, "t" * 12)]
GUARD_SECRET = "g" * 16

luns = st.dictionaries(
    st.integers(1, 3), st.tuples(st.sampled_from("ab"), st.sampled_from("xy")), max_size=3
).map(lambda d: frozenset(Lun(number, volume, options) for number, (volume, options) in d.items()))


@st.composite
def targets(draw: st.DrawFn) -> Wanted:
    chap = draw(st.sampled_from([None, *ACCOUNTS]))
    mutual = None
    if chap is not None:
        others = [account for account in ACCOUNTS if account.user != chap.user]
        mutual = draw(st.sampled_from([None, *others]))
    return Wanted(
        iqn=IQN,
        luns=draw(luns),
        acl=draw(st.frozensets(st.sampled_from(NAMES))),
        chap=chap,
        mutual=mutual,
        portals=draw(st.frozensets(st.sampled_from(["127.0.0.1:1", "127.0.0.1:2", "[::1]:1"]))),
    )


def run(wanted: Wanted, present: Present) -> list[Present]:
    """All states on the way, the last is the end. Raises where tgtd would refuse a step."""
    states = [present]
    for action in steps(wanted, present, GUARD_SECRET):
        states.append(applied(states[-1], action))
    return states


@st.composite
def presents(draw: st.DrawFn) -> Present:
    """A tgtd that has been set up, maybe interrupted somewhere on the way to something else."""
    states = run(draw(targets()), Present())
    states = run(draw(targets()), states[-1])
    return draw(st.sampled_from(states))


def reached(wanted: Wanted, present: Present) -> bool:
    incoming = frozenset({wanted.chap.user}) if wanted.chap else frozenset()
    accounts = frozenset(a for a in (wanted.chap, wanted.mutual) if a is not None)
    return present == Present(
        iqn=wanted.iqn,
        luns=wanted.luns,
        accounts=accounts,
        incoming=incoming,
        outgoing=wanted.mutual.user if wanted.mutual else None,
        names=wanted.acl,
        anyone=not wanted.acl,
        portals=wanted.portals,
    )


@given(targets(), presents())
def test_it_gets_there_from_anywhere(wanted: Wanted, present: Present) -> None:
    assert reached(wanted, run(wanted, present)[-1])


@given(targets())
def test_nothing_is_done_twice(wanted: Wanted) -> None:
    end = run(wanted, Present())[-1]
    assert steps(wanted, end, GUARD_SECRET) == []


@given(targets(), targets())
def test_what_does_not_change_is_not_touched(first: Wanted, second: Wanted) -> None:
    end = run(first, Present())[-1]
    touched = {
        action.lun
        for action in steps(second, end, GUARD_SECRET)
        if isinstance(action, plan.NewLun | plan.DeleteLun)
    }
    assert not touched & (first.luns & second.luns)


def doors(present: Present) -> set[tuple[str, Account | None]]:
    """Who may log in, and by which account (None: by none). tgtd asks for no account if it has
    none. What only the guard opens is open to nobody: its secret is not known."""
    if present.iqn is None:
        return set()
    names = [*NAMES, "iqn.stranger:9"] if present.anyone else sorted(present.names)
    if not present.incoming:
        return set(itertools.product(names, [None, *ACCOUNTS]))
    keys = [a for a in present.accounts if a.user in present.incoming and a.user != GUARD]
    return set(itertools.product(names, keys))


@given(targets(), presents())
def test_nobody_gets_in_on_the_way_who_gets_in_neither_before_nor_after(
    wanted: Wanted, present: Present
) -> None:
    states = run(wanted, present)
    allowed = doors(states[0]) | doors(states[-1])
    for state in states:
        assert doors(state) <= allowed


@given(targets())
def test_a_new_tgtd_listens_when_all_else_is_done(wanted: Wanted) -> None:
    actions = steps(wanted, Present(), GUARD_SECRET)
    opened = [i for i, action in enumerate(actions) if isinstance(action, OpenPortal)]
    assert opened == list(range(len(actions) - len(wanted.portals), len(actions)))


@given(targets(), presents())
def test_who_loses_the_right_to_log_in_is_thrown_out(wanted: Wanted, present: Present) -> None:
    lost = {name for name, _ in doors(present)} - {
        name for name, _ in doors(run(wanted, present)[-1])
    }
    ends = [a for a in steps(wanted, present, GUARD_SECRET) if isinstance(a, plan.EndSessions)]
    if lost:
        assert any(end.kept is None or not lost & end.kept for end in ends)


@given(targets())
def test_chap_switched_on_throws_out_who_came_without(wanted: Wanted) -> None:
    open_one = run(replace(wanted, chap=None, mutual=None), Present())[-1]
    ends = [a for a in steps(wanted, open_one, GUARD_SECRET) if isinstance(a, plan.EndSessions)]
    assert bool(ends) == (wanted.chap is not None)


def test_secrets_are_not_shown() -> None:
    assert "s" * 12 not in repr(Wanted(IQN, chap=Account("u", "s" * 12)))
    assert NewLun(Lun(1, "a")).lun.bstype == "copygate"


wanteds = st.dictionaries(st.sampled_from("abcd"), targets(), max_size=4)


@given(wanteds, wanteds)
def test_a_gateways_differences_make_the_one_of_the_other(
    wanted: dict[str, Wanted], running: dict[str, Wanted]
) -> None:
    todo = differences(wanted, running)
    after = {name: what for name, what in running.items() if name not in todo.stop}
    assert not todo.start.keys() & after.keys()
    assert todo.change.keys() <= after.keys()
    assert {**after, **todo.change, **todo.start} == wanted


@given(wanteds)
def test_a_gateway_that_is_as_wanted_does_nothing(wanted: dict[str, Wanted]) -> None:
    todo = differences(wanted, wanted)
    assert not todo.stop
    assert not todo.change
    assert not todo.start
