# SPDX-License-Identifier: BSD-3-Clause
"""How each fault of a schedule is done to a cluster, and how it is undone."""

import signal
from collections.abc import Callable, Mapping

from support.process import Daemon

from chaos.cluster import ClientProcess, Cluster
from chaos.network import Network
from chaos.schedule import Fault

Action = Callable[[], object]


class Hand:
    """What hurts and heals; `clients` are those of the round."""

    def __init__(
        self, cluster: Cluster, network: Network, clients: Mapping[str, ClientProcess]
    ) -> None:
        self._cluster = cluster
        self._network = network
        self._clients = clients

    def actions(self, fault: Fault) -> tuple[Action, Action | None]:
        """What to do at the fault's beginning and at its end."""
        begin, end = {
            "kill": self._kill,
            "kill-mds": self._kill,
            "kill-all": self._kill_all,
            "kill-client": self._kill_client,
            "stop": self._stop,
            "stop-mds": self._stop,
            "partition": self._between,
            "cut": self._between,
            "isolate": self._isolate,
            "lose": self._lose,
            "delay": self._delay,
            "full": self._full,
            "eio": self._break,
            "transfer": self._change,
            "move": self._change,
            "wipe": self._change,
            "rot": self._rot,
        }[fault.kind](fault)
        return begin, end

    def _daemon(self, name: str) -> Daemon:
        return self._cluster.mds if name == "mds" else self._cluster.chunkservers[name]

    def _kill(self, fault: Fault) -> tuple[Action, Action]:
        daemon = self._daemon(fault.target)
        return daemon.kill, daemon.start

    def _kill_all(self, _: Fault) -> tuple[Action, Action]:
        daemons = list(self._cluster.chunkservers.values())

        def begin() -> None:
            for daemon in daemons:
                daemon.kill()

        def end() -> None:
            for daemon in daemons:
                daemon.launch()
            for daemon in daemons:
                daemon.wait_ready()

        return begin, end

    def _kill_client(self, fault: Fault) -> tuple[Action, Action]:
        client = self._clients[fault.target]
        return client.kill, client.launch

    def _stop(self, fault: Fault) -> tuple[Action, Action]:
        daemon = self._daemon(fault.target)
        return (
            lambda: daemon.send_signal(signal.SIGSTOP),
            lambda: daemon.send_signal(signal.SIGCONT),
        )

    def _between(self, fault: Fault) -> tuple[Action, Action]:
        begin = self._network.cut if fault.kind == "cut" else self._network.partition
        pair = (fault.target, fault.other)
        return lambda: begin(*pair), lambda: self._network.mend(*pair)

    def _isolate(self, fault: Fault) -> tuple[Action, Action]:
        host = fault.target
        return lambda: self._network.isolate(host), lambda: self._network.rejoin(host)

    def _lose(self, fault: Fault) -> tuple[Action, Action]:
        host, lose = fault.target, self._network.lose
        return lambda: lose(host, fault.amount), lambda: lose(host, 0)

    def _delay(self, fault: Fault) -> tuple[Action, Action]:
        host, delay = fault.target, self._network.delay
        return lambda: delay(host, fault.amount, fault.amount / 2), lambda: delay(host, 0)

    def _full(self, fault: Fault) -> tuple[Action, Action]:
        disk = self._cluster.disks[fault.target]
        return disk.fill, disk.free

    def _break(self, fault: Fault) -> tuple[Action, Action]:
        disk, daemon = self._cluster.disks[fault.target], self._daemon(fault.target)

        def end() -> None:
            # The disk is well again; its server does not trust it any more, a new one does.
            disk.work()
            daemon.kill()
            daemon.start()

        return disk.fail, end

    def _rot(self, fault: Fault) -> tuple[Action, None]:
        return lambda: self._cluster.rot(fault.target, fault.amount), None

    def _change(self, fault: Fault) -> tuple[Action, None]:
        cluster = self._cluster
        change = {"transfer": cluster.transfer, "move": cluster.move, "wipe": cluster.wipe}
        return lambda: change[fault.kind](fault.target), None
