# SPDX-License-Identifier: BSD-3-Clause
"""Addresses as people write them."""

import pytest

from gateway.errors import ConfigError
from gateway.rpc.endpoint import Endpoint, parse_endpoint


@pytest.mark.parametrize(
    "text", ["127.0.0.1:6700", "[::1]:6700", "localhost:1", "mds-1.example:65535", "unix:/run/x"]
)
def test_address_is_read_and_written_alike(text):
    assert str(parse_endpoint(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "host", "host:", ":80", "host:x", "host:0", "host:65536", "host:-1", "::1:80",
        "[::1:80", "unix:", "unix:/a\0b", "unix:/" + "x" * 107, "host:\uff18\uff10",
    ],
)  # fmt: skip
def test_bad_address_is_refused_with_a_hint(text):
    with pytest.raises(ConfigError) as caught:
        parse_endpoint(text)
    assert caught.value.hint


def test_server_may_ask_for_any_port():
    assert parse_endpoint("127.0.0.1:0", any_port=True).port == 0


@pytest.mark.parametrize(
    ("endpoint", "local"),
    [
        (Endpoint(host="127.0.0.1", port=1), True),
        (Endpoint(host="127.9.9.9", port=1), True),
        (Endpoint(host="::1", port=1), True),
        (Endpoint(host="localhost", port=1), True),
        (Endpoint(path="/run/x"), True),
        (Endpoint(host="0.0.0.0", port=1), False),  # noqa: S104
        (Endpoint(host="::", port=1), False),
        (Endpoint(host="10.0.0.1", port=1), False),
        (Endpoint(host="example.org", port=1), False),
    ],
)
def test_only_loopback_and_unix_sockets_are_local(endpoint, local):
    assert endpoint.is_local is local
