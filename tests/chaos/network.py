# SPDX-License-Identifier: BSD-3-Clause
"""Hosts as network namespaces on one bridge, and what can be wrong with the network between them.

    with Network(["mds", "cs1", "cs2"], folder) as network:
        Daemon("mds", network.argv("mds", [...]), ...)
        network.cut("cs1", "cs2")          # cs1's frames do not reach cs2
        network.delay("cs1", 20, 10)       # what goes to cs1 is late by 20 ms, give or take 10
        network.heal()

The bridge is in a namespace of its own. No namespace has a name: they live as long as the processes
in them and this object's descriptors, so nothing is left of them however the run ends. Needs root.

Cuts and loss are rules of nftables at the bridge, replaced as one. Delays are the kernel's netem
where it has it, else relay.py's, which the frames of a delayed host are led through.
"""

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netns import setns
from support.process import Daemon
from support.tools import CLEAN_ENV, run, which

from chaos.relay import PASSED

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_SUBNET = "10.213.71"
_RELAY = "relay"


def missing() -> str | None:
    """Why hosts cannot be made here, in words for a skip; None if they can."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    if which("nft") is None:
        return "no nft: packaging/install-deps.sh test installs it"
    return None


class Namespace:
    """A network namespace without a name."""

    def __init__(self) -> None:
        self._fd = self._in_thread(self._new)

    @staticmethod
    def _new() -> int:
        if _LIBC.unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    @staticmethod
    def _in_thread(function: Callable[[], T]) -> T:
        """A thread's namespace is its own; it ends with the thread."""
        results: list[T] = []
        failures: list[BaseException] = []

        def body() -> None:
            try:
                results.append(function())
            except BaseException as failure:  # noqa: BLE001 - raised again by the caller's thread
                failures.append(failure)

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]
        return results[0]

    @property
    def fd(self) -> int:
        """A descriptor of it, as netlink takes them."""
        return self._fd

    @property
    def path(self) -> str:
        """Where other processes find it, while this process lives and close() was not called."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def run(self, function: Callable[[], T]) -> T:
        """Calls a function inside, in a thread of its own."""

        def inside() -> T:
            setns(self._fd)
            return function()

        return self._in_thread(inside)

    def links(self, function: Callable[[Any], T]) -> T:
        """Calls a function with pyroute2's IPRoute inside."""

        def inside() -> T:
            with IPRoute() as route:
                return function(route)

        return self.run(inside)

    def argv(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` inside (it becomes that program: the pid is its)."""
        return [which("nsenter") or "nsenter", f"--net={self.path}", *argv]

    def close(self) -> None:
        """Lets go of it; it ends with the last process inside."""
        os.close(self._fd)


def _up(route: Any, name: str) -> int:
    index = int(route.link_lookup(ifname=name)[0])
    route.link("set", index=index, state="up")
    return index


class Network:
    """The hosts, by name. Port `p-NAME` of the bridge leads to eth0 of host NAME."""

    def __init__(self, hosts: Sequence[str], folder: Path, *, seed: int = 0) -> None:
        self._folder = folder
        self._hosts = {name: Namespace() for name in hosts}
        self._address = {name: f"{_SUBNET}.{10 + i}" for i, name in enumerate(hosts)}
        self._switch = Namespace()
        self._seed = seed
        self._cuts: set[tuple[str, str]] = set()
        self._loss: dict[str, float] = {}
        self._delays: dict[str, tuple[float, float]] = {}
        self._relays: dict[str, Daemon] = {}
        self.netem = False

    def __enter__(self) -> "Network":
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the relays and lets go of the namespaces."""
        for relay in self._relays.values():
            relay.kill()
        self._relays.clear()
        for namespace in (*self._hosts.values(), self._switch):
            with contextlib.suppress(OSError):
                namespace.close()

    def address(self, host: str) -> str:
        """A host's IPv4 address."""
        return self._address[host]

    def argv(self, host: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs a program on a host."""
        return self._hosts[host].argv(argv)

    def on(self, host: str, function: Callable[[], T]) -> T:
        """Calls a function on a host."""
        return self._hosts[host].run(function)

    def _build(self) -> None:
        self._switch.links(self._build_switch)
        for name, namespace in self._hosts.items():
            namespace.links(lambda route, name=name: self._build_host(route, name))
        self.netem = self._switch.links(self._has_netem)

    def _build_switch(self, route: Any) -> None:
        _up(route, "lo")
        route.link("add", ifname="bridge", kind="bridge")
        bridge = _up(route, "bridge")
        for name, namespace in self._hosts.items():
            peer = {"ifname": "eth0", "net_ns_fd": namespace.fd}
            route.link("add", ifname=f"p-{name}", kind="veth", peer=peer)
            route.link("set", index=_up(route, f"p-{name}"), master=bridge)

    def _build_host(self, route: Any, name: str) -> None:
        _up(route, "lo")
        index = _up(route, "eth0")
        route.addr("add", index=index, address=self._address[name], prefixlen=24)

    def _has_netem(self, route: Any) -> bool:
        index = int(route.link_lookup(ifname="bridge")[0])
        try:
            route.tc("add", "netem", index, "1:", delay=1000)
        except NetlinkError:
            return False
        route.tc("del", "netem", index, "1:")
        return True

    # What is wrong with the network. Each call takes effect for the next frame.

    def cut(self, source: str, target: str) -> None:
        """Nothing that `source` sends reaches `target`. The other direction is as it was."""
        self._cuts.add((source, target))
        self._apply()

    def partition(self, one: str, other: str) -> None:
        """Neither reaches the other."""
        self._cuts |= {(one, other), (other, one)}
        self._apply()

    def isolate(self, host: str) -> None:
        """Nobody reaches the host and it reaches nobody."""
        for other in self._hosts:
            if other != host:
                self._cuts |= {(host, other), (other, host)}
        self._apply()

    def mend(self, one: str, other: str) -> None:
        """Ends what cut() and partition() did between two hosts."""
        self._cuts -= {(one, other), (other, one)}
        self._apply()

    def rejoin(self, host: str) -> None:
        """Ends all cuts to and from a host."""
        self._cuts = {pair for pair in self._cuts if host not in pair}
        self._apply()

    def lose(self, host: str, share: float) -> None:
        """That share (0 to 1) of the frames to and from the host is lost; 0 ends it."""
        self._loss.pop(host, None)
        if share > 0:
            self._loss[host] = share
        self._apply()

    def delay(self, host: str, delay_ms: float, jitter_ms: float = 0) -> None:
        """What goes to the host is late by delay_ms +- jitter_ms, and so reordered; 0 ends it."""
        if host in self._delays:
            self._undelay(host)
        if delay_ms > 0:
            self._delays[host] = (delay_ms, jitter_ms)
            if self.netem:
                self._switch.links(lambda route: self._add_netem(route, host))
            else:
                self._start_relay(host)
        self._apply()

    def heal(self) -> None:
        """Ends everything that is wrong."""
        self._cuts.clear()
        self._loss.clear()
        for host in list(self._delays):
            self._undelay(host)
        self._apply()

    def _add_netem(self, route: Any, host: str) -> None:
        delay, jitter = (round(ms * 1000) for ms in self._delays[host])
        index = int(route.link_lookup(ifname=f"p-{host}")[0])
        route.tc("add", "netem", index, "1:", delay=delay, jitter=jitter, limit=10000)

    def _undelay(self, host: str) -> None:
        del self._delays[host]
        if relay := self._relays.pop(host, None):
            self._apply()
            relay.kill()
        else:
            self._switch.links(
                lambda route: route.tc(
                    "del", "netem", int(route.link_lookup(ifname=f"p-{host}")[0]), "1:"
                )
            )

    def _start_relay(self, host: str) -> None:
        name = f"{_RELAY}-{host}"
        delay, jitter = self._delays[host]
        argv = [sys.executable, str(Path(__file__).with_name("relay.py")), name, f"p-{host}"]
        argv += [str(delay), str(jitter), str(self._seed)]

        def there() -> bool:
            return bool(self._switch.links(lambda route: route.link_lookup(ifname=name)))

        relay = Daemon(
            name, self._switch.argv(argv), self._folder / f"{name}.log", there, env=CLEAN_ENV
        )
        self._relays[host] = relay.start()

    def _rules(self) -> str:
        forward = [
            f'iifname "p-{source}" oifname "p-{target}" drop'
            for source, target in sorted(self._cuts)
        ]
        for host, share in sorted(self._loss.items()):
            dice = f"numgen random mod 10000 < {round(share * 10000)} drop"
            forward += [f'iifname "p-{host}" {dice}', f'oifname "p-{host}" {dice}']
        late = [
            f'chain {relay.name} {{ type filter hook egress device "p-{host}" priority 0\n'
            f'meta mark != {PASSED} fwd to "{relay.name}"\n}}'
            for host, relay in sorted(self._relays.items())
        ]
        lines = ["table bridge chaos {}", "delete table bridge chaos", "table bridge chaos {"]
        lines += ["chain forward { type filter hook forward priority 0", *forward, "}", "}"]
        lines += ["table netdev chaos {}", "delete table netdev chaos", "table netdev chaos {"]
        return "\n".join([*lines, *late, "}", ""])

    def _apply(self) -> None:
        argv = self._switch.argv([which("nft") or "nft", "-f", "-"])
        run(*argv, stdin=self._rules().encode())
