# SPDX-License-Identifier: BSD-3-Clause
"""What is next in a change of members, from what the leader says; without a server."""

import pytest

from gateway.mds import changes
from gateway.proto import cluster_pb2 as cl
from gateway.proto import store_pb2 as st

OLD, OTHER, THIRD = 1, 2, 3
NEW = 4 | 5 << 32
Stage = cl.ChangeStatus
Step = cl.ConfigurationStep


def report(voters, learners=(), *, leader=OTHER, committed=True, **progress):
    """A leader with these members; `progress` says how many entries of 100 one lacks."""
    found = cl.CopysetReport(
        logical_pool_id=1, copyset_id=2, leader=True, applied_index=100, member_id=leader, term=1,
        last_index=100, members_index=7, members_committed=committed,
    )  # fmt: skip
    for member in (*voters, *learners):
        found.members.add(member_id=member, learner=member in learners)
        if member != leader:
            lacks = progress.get({NEW: "new", OLD: "old"}.get(member, "others"), 0)
            found.progress.add(
                member_id=member, match_index=100 - lacks, heard_ms_ago=1, copying=lacks == 100
            )
    return found


def after(said, *, add=NEW, remove=OLD, made=True, may_copy=True):
    """The stage, the kind of step and whom it is about."""
    change = st.ChangeRecord(logical_pool_id=1, copyset_id=2, add=add, remove=remove, asked_us=1)
    stage, step = changes.next_step(change, said, made=made, may_copy=may_copy)
    return stage, (step.kind, step.member_id) if step is not None else None


BEFORE = (OLD, OTHER, THIRD)


@pytest.mark.parametrize(
    ("said", "stage", "step"),
    [
        (None, Stage.WAITING, None),
        (report(BEFORE), Stage.COPYING, (Step.ADD_LEARNER, NEW)),
        (report(BEFORE, (NEW,), new=100), Stage.COPYING, (Step.PROMOTE, NEW)),
        (report(BEFORE, (NEW,), new=1), Stage.PROMOTING, (Step.PROMOTE, NEW)),
        (report((*BEFORE, NEW)), Stage.REMOVING, (Step.REMOVE, OLD)),
        (report((*BEFORE, NEW), leader=OLD), Stage.TRANSFERRING, (Step.TRANSFER, NEW)),
        (report((*BEFORE, NEW), leader=OLD, new=3), Stage.TRANSFERRING, (Step.TRANSFER, OTHER)),
        (report((OTHER, THIRD, NEW)), None, None),
    ],
)  # fmt: skip
def test_one_step_after_the_other(said, stage, step):
    assert after(said) == (stage, step)


@pytest.mark.parametrize(
    ("said", "stage"),
    [
        (report(BEFORE, committed=False), Stage.COPYING),
        (report(BEFORE, (NEW,), committed=False), Stage.PROMOTING),
        (report((*BEFORE, NEW), committed=False), Stage.REMOVING),
        (report((*BEFORE, NEW), leader=OLD, committed=False), Stage.TRANSFERRING),
        (report((OTHER, THIRD, NEW), committed=False), Stage.REMOVING),
    ],
)
def test_nothing_more_while_a_configuration_is_not_committed(said, stage):
    assert after(said) == (stage, None)


def test_the_new_replica_has_to_be_there_and_to_have_its_turn():
    assert after(report(BEFORE), made=False) == (Stage.CREATING, None)
    assert after(report(BEFORE), may_copy=False) == (Stage.QUEUED, None)
    assert after(report(BEFORE, (NEW,)), may_copy=False)[1] is not None, "it has begun"


def test_what_is_only_to_go_goes():
    assert after(report(BEFORE, (NEW,)), add=0, remove=NEW) == (
        Stage.REMOVING, (Step.REMOVE, NEW),
    )  # fmt: skip
    assert after(report(BEFORE), add=0, remove=NEW) == (None, None)


def test_a_leader_that_knows_of_nobody_else_keeps_the_lead():
    alone = report((OLD, NEW), leader=OLD)
    del alone.progress[:]
    assert after(alone) == (Stage.TRANSFERRING, None)
