# SPDX-License-Identifier: BSD-3-Clause
"""Who may log in: CHAP in one and in both directions, access by initiator name."""

import pytest
from support import scsi
from support.iscsi import Target
from support.iscsi_targets import Targets
from support.libiscsi import IscsiError, Session

USER, SECRET = "initiator", "one-way-secret"
MUTUAL_USER, MUTUAL_SECRET = "target", "other-secret-2"
FRIEND, STRANGER = "iqn.2026-11.net.copygate:friend", "iqn.2026-11.net.copygate:stranger"


def _works(session: Session) -> None:
    session.clear_attentions()
    session.good(scsi.write16(0, 8), b"\x5a" * 4096)
    assert session.good(scsi.read16(0, 8), in_length=4096) == b"\x5a" * 4096


def _refused(target: Target, why: str, **options: object) -> None:
    with pytest.raises(IscsiError, match=why):
        target.session(**options)


def test_one_way_chap_lets_in_who_knows_the_secret_and_nobody_else(targets: Targets) -> None:
    """A wrong secret, another user and no CHAP at all are refused; who is in stays in."""
    targets.volume()
    target = targets.target(chap=(USER, SECRET))
    with target.session(chap=(USER, SECRET)) as session:
        _works(session)
        for chap in (None, (USER, "wrong-secret-12"), ("somebody", SECRET), (USER, SECRET[:-1])):
            _refused(target, "login", chap=chap, isid=2)
        _works(session)
    # What failed before does not count against who knows the secret.
    with target.session(chap=(USER, SECRET)) as session:
        _works(session)


def test_mutual_chap_lets_the_initiator_refuse_a_false_target(targets: Targets) -> None:
    """The target proves that it knows its own secret."""
    targets.volume()
    target = targets.target(chap=(USER, SECRET), mutual=(MUTUAL_USER, MUTUAL_SECRET))
    with target.session(chap=(USER, SECRET), mutual=(MUTUAL_USER, MUTUAL_SECRET)) as session:
        _works(session)
    _refused(target, "login", chap=(USER, SECRET), mutual=(MUTUAL_USER, "false-secret-99"))
    _refused(target, "login", chap=(USER, "wrong-secret-12"), mutual=(MUTUAL_USER, MUTUAL_SECRET))


def test_access_list_lets_in_named_initiators_only(targets: Targets) -> None:
    """A stranger neither logs in nor sees the target; the friend's session goes on."""
    targets.volume()
    target = targets.target(acl=[FRIEND])
    with target.session(initiator=FRIEND) as session:
        _works(session)
        _refused(target, "login", initiator=STRANGER)
        _works(session)
    with Session(target.portal(), None, initiator=FRIEND) as discovery:
        assert list(discovery.discover()) == [target.name]
    with Session(target.portal(), None, initiator=STRANGER) as discovery:
        assert discovery.discover() == {}


def test_unknown_target_is_refused_and_others_go_on(target: Target) -> None:
    """A login to a name that is not there."""
    with target.session() as session:
        with pytest.raises(IscsiError, match="login"):
            Session(target.portal(), "iqn.2026-11.net.copygate:nothing", isid=2)
        _works(session)
