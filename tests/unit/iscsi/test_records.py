# SPDX-License-Identifier: BSD-3-Clause
"""Records of exports: what `export` makes of them, what it refuses, what a gateway serves."""

from dataclasses import replace

import pytest
from gateway.proto.iscsi_pb2 import ExportRecord

from gateway.errors import ConfigError, CopygateError, ExistsError, NotFoundError
from gateway.iscsi.plan import GUARD, Account
from gateway.iscsi.records import Access, Change, changed, choose, find, wanted, without

IQN = "iqn.2026-11.io.copygate:v"
CHAP = Account("alice", "secret-of-alice")
MUTUAL = Account("gate", "secret-of-gate")
BASE = Change(volume="/v", gateway="g1")
REMOTE = ("192.0.2.1:3260",)


def make(change: Change = BASE, *others: ExportRecord) -> ExportRecord:
    chosen = choose(others, change)
    return changed(chosen, change, [other for other in others if other.iqn != chosen.iqn])


def test_the_defaults() -> None:
    record = make()
    assert record.iqn == IQN
    assert [(lun.lun, lun.volume) for lun in record.luns] == [(1, "/v")]
    assert [(g.gateway, g.group, list(g.portals)) for g in record.gateways] == [
        ("g1", 1, ["127.0.0.1:3260"])
    ]


FULL = replace(
    BASE, lun=7, block_size=4096, read_only=True, group=5, portals=("127.0.0.1:5000",),
    acl=("iqn.2026-11.a.b:c",), chap=CHAP, mutual=MUTUAL,
)  # fmt: skip


@pytest.mark.parametrize("change", [BASE, FULL])
def test_the_same_again_changes_nothing(change: Change) -> None:
    record = make(change)
    assert changed(record, change, []) == record


def test_what_is_not_given_stays() -> None:
    record = make(FULL)
    assert changed(record, BASE, []) == record
    only = changed(record, replace(BASE, read_only=False), [])
    assert not only.luns[0].read_only
    only.luns[0].read_only = True
    assert only == record


def test_what_is_given_is_taken_back() -> None:
    record = changed(make(FULL), replace(BASE, acl=(), no_chap=True, block_size=512), [])
    assert list(record.acl) == []
    assert not record.HasField("chap_secret")
    assert not record.HasField("mutual_secret")
    assert record.luns[0].block_size == 512


def test_a_second_target_gets_the_next_port_and_a_second_unit_the_next_number() -> None:
    first = make()
    second = make(replace(BASE, volume="/w"), first)
    assert list(second.gateways[0].portals) == ["127.0.0.1:3261"]
    both = make(replace(BASE, volume="/w", iqn=IQN), first)
    assert [(lun.lun, lun.volume) for lun in both.luns] == [(1, "/v"), (2, "/w")]
    elsewhere = make(replace(BASE, volume="/w", gateway="g2"), first)
    assert list(elsewhere.gateways[0].portals) == ["127.0.0.1:3260"]


def test_a_second_gateway_gets_a_group_of_its_own() -> None:
    record = changed(make(), replace(BASE, gateway="g2"), [])
    assert [(g.gateway, g.group) for g in record.gateways] == [("g1", 1), ("g2", 2)]
    assert [lun.volume for lun in record.luns] == ["/v"]


def test_a_volume_is_found_without_its_targets_name() -> None:
    record = make(replace(BASE, iqn="iqn.2026-11.com.example:other"))
    assert choose([record], BASE).iqn == "iqn.2026-11.com.example:other"
    assert find([record], "/w") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"volume": "/a,b"}, "','"),
        ({"volume": "/w", "iqn": IQN, "lun": 1}, "LUN 1 of the target is another volume"),
        ({"iqn": "iqn.2026-11.com.example:other"}, "exported by another target"),
        ({"iqn": "nonsense", "volume": "/w"}, "not a target's name"),
        ({"lun": 0}, "--lun 0"),
        ({"lun": 256}, "--lun 256"),
        ({"group": 0}, "--group 0"),
        ({"gateway": "g2", "group": 1}, "group 1 is that of another gateway"),
        ({"portals": ("localhost",)}, "not a portal"),
        ({"portals": REMOTE}, "other machines"),
        ({"portals": REMOTE, "allow_remote": True}, "nothing checks who connects"),
        ({"acl": ("ALL",)}, "not an initiator"),
        ({"chap": Account("a,b", "x" * 12)}, "--chap is not a name"),
        ({"chap": Account("a", "x" * 11)}, "11 characters"),
        ({"mutual": MUTUAL}, "needs --chap"),
        ({"chap": CHAP, "mutual": Account("gate", CHAP.secret)}, "secrets of CHAP are the same"),
        ({"chap": CHAP, "mutual": Account("alice", MUTUAL.secret)}, "names of CHAP are the same"),
        ({"chap": Account(GUARD, "x" * 12)}, GUARD),
        ({"gateway": "a;b"}, "not a gateway's name"),
        ({"volume": "/w", "portals": ("127.0.0.1",)}, "that of another target"),
        ({"portals": tuple(f"127.0.0.1:{n}" for n in range(1, 10))}, "at most 8"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    record = make()
    change_ = replace(BASE, **change)  # type: ignore[arg-type]
    with pytest.raises(CopygateError) as refused:
        chosen = choose([record], change_)
        others = [] if chosen.iqn == record.iqn else [record]
        changed(chosen, change_, others)
    assert message in f"{refused.value} {refused.value.hint}"


@pytest.mark.parametrize(
    "extra", [{"chap": CHAP}, {"acl": ("iqn.2026-11.a.b:c",)}, {"anyone": True}]
)
def test_other_machines_reach_what_is_protected_or_said_to_be_open(
    extra: dict[str, object],
) -> None:
    change = replace(BASE, portals=REMOTE, allow_remote=True, **extra)  # type: ignore[arg-type]
    record = make(change)
    # It is allowed already: what is changed later need not say so again, and cannot open it.
    assert changed(record, BASE, []) == record
    with pytest.raises(ConfigError):
        changed(record, replace(BASE, acl=(), no_chap=True, anyone=False), [])


def test_unexport() -> None:
    first = make()
    both = make(replace(BASE, volume="/w", iqn=IQN), first)
    assert without(first, "/v", None) is None
    left = without(both, "/v", None)
    assert left is not None
    assert [lun.volume for lun in left.luns] == ["/w"]
    two = changed(first, replace(BASE, gateway="g2"), [])
    assert without(two, "/v", "g2") == first
    assert without(first, "/v", "g1") is None
    with pytest.raises(NotFoundError):
        without(first, "/v", "g9")


ACCESS = Access("g1", "127.0.0.1:1,127.0.0.1:2", "copygate")


def test_what_a_gateway_serves() -> None:
    found = wanted(make(FULL), ACCESS)
    assert found is not None
    (lun,) = found.luns
    assert lun.options == (
        "mds=127.0.0.1:1|127.0.0.1:2;owner=copygate;gateway=g1;group=5;block=4096;read-only=yes"
    )
    assert (lun.number, lun.volume, lun.at_open) == (7, "/v", "")
    assert found.acl == {"iqn.2026-11.a.b:c"}
    assert (found.chap, found.mutual) == (CHAP, MUTUAL)
    assert found.portals == {"127.0.0.1:5000"}


def test_a_gateway_serves_what_names_it_and_is_there() -> None:
    assert wanted(make(), replace(ACCESS, gateway="g2")) is None
    assert wanted(make(), ACCESS, frozenset({"/v"})) is None
    two = changed(make(), replace(BASE, gateway="g2"), [])
    found, alone = wanted(two, ACCESS), wanted(make(), ACCESS)
    assert found is not None
    assert alone is not None
    assert [lun.at_open for lun in found.luns] == ["standby=yes"]
    # A second gateway does not make the first one open its units again.
    assert found.luns == alone.luns


def test_the_password_is_passed_as_a_file_and_only_for_root() -> None:
    for owner, there in (("root", True), ("copygate", False)):
        access = replace(ACCESS, owner=owner, password_file="/etc/pw")  # noqa: S106
        found = wanted(make(), access)
        assert found is not None
        assert ("password-file=/etc/pw" in min(found.luns, key=str).options) is there


def test_a_record_that_others_made_unsafe_is_not_served() -> None:
    record = make()
    record.gateways[0].portals[:] = REMOTE
    with pytest.raises(ConfigError):
        wanted(record, ACCESS)
    record = make()
    record.luns[0].volume = "/v;owner=root"
    with pytest.raises(CopygateError):
        wanted(record, ACCESS)


def test_a_target_with_two_units_and_one_number_is_refused() -> None:
    record = make()
    with pytest.raises(ExistsError):
        changed(record, replace(BASE, volume="/w", lun=1), [])
