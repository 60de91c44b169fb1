# SPDX-License-Identifier: BSD-3-Clause
"""The network of the chaos tests does what it is told: otherwise they would prove nothing."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos import network as chaos_network
from chaos.network import Network

pytestmark = pytest.mark.skipif(
    chaos_network.missing() is not None, reason=chaos_network.missing() or ""
)

PORT = 4000


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """Three hosts that are well."""
    with Network(["one", "two", "three"], tmp_path) as made:
        yield made


class Ear:
    """A UDP socket on a host."""

    def __init__(self, network: Network, host: str) -> None:
        self._network = network
        self._address = (network.address(host), PORT)
        self._socket = network.on(host, self._open)

    def _open(self) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        made.bind(self._address)
        return made

    def arrivals(self, sender: str, count: int, quiet: float = 0.3) -> list[tuple[int, float]]:
        """Sends numbered datagrams from another host; returns the numbers and delays."""

        def send() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
                for number in range(count):
                    out.sendto(f"{number} {time.monotonic()}".encode(), self._address)

        self._network.on(sender, send)
        self._socket.settimeout(quiet)
        found = []
        while len(found) < count:
            try:
                number, sent = self._socket.recv(100).split()
            except TimeoutError:
                break
            found.append((int(number), time.monotonic() - float(sent)))
        return found


def test_everybody_reaches_everybody(network: Network) -> None:
    """Nothing is lost, late or out of order while nothing is wrong."""
    ear = Ear(network, "two")
    for sender in ("one", "three"):
        assert [number for number, _ in ear.arrivals(sender, 100)] == list(range(100))


def test_cut_is_one_way(network: Network) -> None:
    """What the one sends is lost; what the other sends is not."""
    one, two = Ear(network, "one"), Ear(network, "two")
    assert one.arrivals("two", 3)  # they know each other's hardware addresses
    network.cut("one", "two")
    assert two.arrivals("one", 5) == []
    assert len(one.arrivals("two", 5)) == 5
    network.mend("one", "two")
    assert len(two.arrivals("one", 5)) == 5


def test_partition_leaves_the_third(network: Network) -> None:
    """Two do not reach each other; the third reaches both; rejoin() ends it."""
    one, two = Ear(network, "one"), Ear(network, "two")
    network.partition("one", "two")
    assert two.arrivals("one", 5) == one.arrivals("two", 5) == []
    assert len(two.arrivals("three", 5)) == len(one.arrivals("three", 5)) == 5
    network.isolate("three")
    assert one.arrivals("three", 5) == []
    network.rejoin("three")
    assert len(one.arrivals("three", 5)) == 5
    assert one.arrivals("two", 5) == []
    network.heal()
    assert len(one.arrivals("two", 5)) == 5


def test_loss_takes_its_share(network: Network) -> None:
    """About a third is lost in each direction."""
    one, two = Ear(network, "one"), Ear(network, "two")
    assert one.arrivals("two", 1)
    network.lose("two", 0.33)
    assert 500 < len(two.arrivals("one", 1000)) < 850
    assert 500 < len(one.arrivals("two", 1000)) < 850
    network.lose("two", 0)
    assert len(two.arrivals("one", 500)) == 500


def test_delay_makes_late_and_reorders(network: Network) -> None:
    """All arrive, between 20 and 40 ms late, not in the order of sending; others are on time."""
    two, three = Ear(network, "two"), Ear(network, "three")
    assert two.arrivals("one", 1)
    network.delay("two", 30, 10)
    found = two.arrivals("one", 200)
    assert len(found) == 200
    assert min(delay for _, delay in found) > 0.019
    assert [number for number, _ in found] != list(range(200))
    assert max(delay for _, delay in three.arrivals("one", 5)) < 0.019
    network.delay("two", 0)
    assert max(delay for _, delay in two.arrivals("one", 5)) < 0.019


def test_tcp_goes_through_a_delay(network: Network) -> None:
    """Large frames and checksums that the card would fill in survive the detour."""
    network.delay("two", 5, 2)

    def listen() -> socket.socket:
        return socket.create_server((network.address("two"), PORT))

    def connect() -> socket.socket:
        return socket.create_connection((network.address("two"), PORT), timeout=5)

    data = bytes(range(256)) * 2000
    with network.on("two", listen) as listener, network.on("one", connect) as out:
        into, _ = listener.accept()

        def send() -> None:
            out.sendall(data)
            out.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        with into:
            received = b"".join(iter(lambda: into.recv(1 << 16), b""))
        sender.join()
    assert received == data
