# SPDX-License-Identifier: BSD-3-Clause
"""Names, portals and secrets: what is taken, what is refused and how."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidArgumentError
from gateway.iscsi import rules


@pytest.mark.parametrize(
    "name",
    ["iqn.2026-11.io.copygate:vol1", "iqn.2026-11.com.example", "iqn.2026-01.a:b:c.d-e"],
)
def test_a_targets_name(name: str) -> None:
    assert rules.check_target_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "vol1", "iqn.2026-13.com.example:a", "iqn.2026-11.com.example:A", "iqn.2026-11.:a"),
        *("iqn.2026-11.com.example:a_b", "iqn.2026-11.com.example:a b", "eui.0123456789abcdef"),
        *("iqn.2026-11.com.example:a,b", "iqn.2026-11.com.example:", "iqn.2026-11.com.example:ä"),
        "iqn.2026-11.com.example:" + "a" * 200,
        "iqn.2026-11.com.example:a\n",
    ],
)
def test_what_is_no_targets_name(name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        rules.check_target_name(name)


@pytest.mark.parametrize(
    ("volume", "name"),
    [
        ("vol1", "vol1"),
        ("/vol1", "vol1"),
        ("/a/b", "a:b"),
        ("a_b", "a-b."),
        ("a-b", "a-b"),
        ("Vol", "vol."),
        ("a:b", "a:b."),
        ("ä" * 200, "-."),
    ],
)
def test_the_default_name(volume: str, name: str) -> None:
    found = rules.check_target_name(rules.default_target_name(volume))
    found = found.removeprefix(f"{rules.DEFAULT_PREFIX}:")
    assert found.startswith(name) if name.endswith(".") else found == name


@given(st.lists(st.text(min_size=1, max_size=300), min_size=2, max_size=2, unique=True))
def test_two_volumes_never_have_the_same_default_name(volumes: list[str]) -> None:
    first, second = (rules.default_target_name(volume) for volume in volumes)
    assert (first == second) == (volumes[0].strip("/") == volumes[1].strip("/"))
    for name in (first, second):
        rules.check_target_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "iqn.1991-05.com.microsoft:desktop-1",
        "iqn.1993-08.org.debian:01:A_b",
        "eui.02004567A425678D",
        "naa.52004567BA64678D",
    ],
)
def test_an_initiators_name(name: str) -> None:
    assert rules.check_initiator_name(name) == name


@pytest.mark.parametrize("name", ["", "ALL", "host", "iqn.1991-05.a b", "iqn.1991-05.a,b", "eui.0"])
def test_what_is_no_initiators_name(name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        rules.check_initiator_name(name)


@pytest.mark.parametrize(
    ("text", "portal", "local"),
    [
        ("127.0.0.1", "127.0.0.1:3260", True),
        ("127.0.0.2:1", "127.0.0.2:1", True),
        ("[::1]", "[::1]:3260", True),
        ("[::1]:65535", "[::1]:65535", True),
        ("192.0.2.1:3260", "192.0.2.1:3260", False),
        ("0.0.0.0", "0.0.0.0:3260", False),  # noqa: S104 - not bound
        ("[2001:DB8::0:1]:3261", "[2001:db8::1]:3261", False),
    ],
)
def test_a_portal(text: str, portal: str, local: bool) -> None:
    assert rules.check_portal(text) == portal
    assert rules.is_local_portal(text) is local


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", ":3260", "localhost:3260", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536"),
        *("::1", "::1:3260", "[::1", "[::1]3260", "[::1]:", "127.0.0.1:3260,1", "127.0.0.1:٣"),
    ],
)
def test_what_is_no_portal(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        rules.check_portal(text)


def test_portals_that_cannot_be_bound_at_once() -> None:
    assert rules.overlap("127.0.0.1:1", "0.0.0.0:1")
    assert rules.overlap("127.0.0.1:1", "127.0.0.1:1")
    assert not rules.overlap("127.0.0.1:1", "127.0.0.2:1")
    assert not rules.overlap("127.0.0.1:1", "127.0.0.1:2")
    assert not rules.overlap("127.0.0.1:1", "[::]:1")


@pytest.mark.parametrize("secret", [b"123456789012", b"1234567890123456", b"a,b=c;d|e'f\"g"])
def test_a_secret(secret: bytes) -> None:
    assert rules.check_secret(secret, "--chap") == secret


@pytest.mark.parametrize(
    "secret", [b"", b"12345678901", b"12345678901234567", b"1234567 89012", b"12345678901\xe4"]
)
def test_a_secret_that_is_refused_is_not_repeated(secret: bytes) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        rules.check_secret(secret, "--chap")
    if secret:
        assert secret.decode("latin-1") not in f"{refused.value} {refused.value.hint}"


@pytest.mark.parametrize("name", ["", "a,b", "a b", "a=b", "ä", "a" * 64, "a\0"])
def test_what_is_no_accounts_name(name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        rules.check_user(name, "--chap")


@pytest.mark.parametrize("name", ["", "a;b", "a|b", "-a", "a b", "a" * 64, "a,b", "ä"])
def test_what_is_no_gateways_name(name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        rules.check_gateway(name)


def test_a_gateways_name() -> None:
    assert rules.check_gateway("gate-1.example.com") == "gate-1.example.com"
