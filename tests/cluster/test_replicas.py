# SPDX-License-Identifier: BSD-3-Clause
"""Three replicas as their user meets them: `copygate up --replicas 3`, copysets that move,
chunkservers that are killed, wiped and replaced, all under a verified load."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cells import default_layout
from support.libnbd import close, connect
from support.process import Daemon, wait_until
from support.stack import Stack, processes_of
from support.tools import COPYGATE, copygate_json, run
from support.writer import Writer

from gateway.mds.client import MdsClient

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SIZE = 1 << 30


class Up:
    """`copygate up` with three replicas, in a process of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.answer = folder / "up.log"
        self.daemon = Daemon(
            "up",
            [
                *(COPYGATE, "--json", "up", "--data", str(folder / "data"), "--wal-size", "64M"),
                *("--mds-listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0"),
                *("--chunkserver-listen", "127.0.0.1:0", "--nbd", f"unix:{folder}/nbd.sock"),
                *("--volume", f"disk:{SIZE}", *options),
            ],
            self.answer,
            lambda: bool(self._ready()),
            ready_timeout=60,
        )

    def _ready(self) -> dict[str, Any]:
        """What it printed when it was ready; nothing before that."""
        said = self.answer.read_text().rpartition("\n--- ")[2] if self.answer.exists() else ""
        begin, end = said.find("\n{\n"), said.find("\n}\n")
        return dict(json.loads(said[begin : end + 3])) if 0 <= begin < end else {}

    @property
    def ready(self) -> dict[str, Any]:
        """What it said when it was ready."""
        return self._ready()

    @property
    def uri(self) -> str:
        """Where the volume is."""
        return str(self.ready["volumes"]["disk"])

    def status(self) -> dict[str, Any]:
        """`copygate status`."""
        where = ("--mds", self.ready["mds"], "--mds-grpc", self.ready["mds_grpc"])
        return dict(copygate_json(*where, "status"))


@pytest.fixture
def up(data_folder: Path) -> Iterator[Up]:
    """It runs."""
    made = Up(data_folder, "--replicas", "3")
    made.daemon.start()
    try:
        yield made
    finally:
        made.daemon.kill()


def _load(uri: str, seed: int = 4) -> Writer:
    writer = Writer(uri, default_layout(SIZE), seed=seed).start()
    wait_until(lambda: writer.stats.acknowledged > 500, 30, "load")
    return writer


def _goes_on(writer: Writer, timeout: float = 20) -> None:
    before = writer.stats.acknowledged
    wait_until(lambda: writer.stats.acknowledged > before + 300, timeout, "IO")
    writer.check()


def _lives(pid: int) -> bool:
    """Whether there is a process that has not ended; who takes the orphans may be slow to."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _child_of_copyset_leader(up: Up) -> int:
    """The pid of the chunkserver that leads most."""
    servers = up.status()["chunkservers"]
    most = max(servers, key=lambda s: s["leaders"])
    pids = {s["address"]: s["pid"] for s in up.ready["chunkservers"]}
    return int(pids[most["address"]])


def test_up_with_three_replicas_serves_and_survives_the_death_of_any_chunkserver(up: Up) -> None:
    status = up.status()
    assert status["replicas"] == 3
    assert [s["data"] for s in status["chunkservers"]] == [
        str(up.folder / "data" / f"chunkserver-{n}") for n in (1, 2, 3)
    ]
    assert len({s["zone"] for s in status["chunkservers"]}) == 3
    assert status["copysets"]["leaderless"] == 0, "it is ready only when there are leaders"
    writer = _load(up.uri)
    writer.stats.longest = 0.0
    os.kill(_child_of_copyset_leader(up), signal.SIGKILL)
    _goes_on(writer)
    assert writer.stats.longest < 5
    assert not writer.stats.errors
    wait_until(lambda: up.status()["healthy"], 30, "the chunkserver is started again")
    writer.verify()
    writer.stop()


def test_up_keeps_its_replicas_over_restarts_and_leaves_no_process(up: Up) -> None:
    handle = connect(up.uri)
    handle.pwrite(b"here", 1 << 20)
    close(handle)
    family = processes_of(up.daemon.pid)
    assert len(family) >= 5, "itself, three chunkservers, nbdkit"
    assert up.daemon.stop() == 0
    assert not [p for p in family if _lives(p)]
    refused = run(*up.daemon.argv[:-2], "--replicas", "1", status=2)
    assert "made with 3 replicas" in refused.stderr
    up.daemon.argv = up.daemon.argv[:-2]
    up.daemon.start()
    assert up.ready["replicas"] == 3, "it knows"
    handle = connect(up.uri)
    assert handle.pread(4, 1 << 20) == b"here"
    close(handle)


def test_children_end_with_an_up_that_is_killed_and_the_next_one_starts(up: Up) -> None:
    children = [int(s["pid"]) for s in up.ready["chunkservers"]]
    os.kill(children[0], signal.SIGSTOP)  # it cannot see that its parent is gone
    os.kill(up.daemon.pid, signal.SIGKILL)
    up.daemon.wait(10)
    wait_until(lambda: not any(_lives(p) for p in children[1:]), 20, "children ended")
    up.daemon.start()
    assert not _lives(children[0])
    wait_until(lambda: up.status()["healthy"], 20, "health")


def test_a_child_that_cannot_start_is_told_and_two_are_enough(up: Up) -> None:
    up.daemon.stop()
    (up.folder / "data" / "chunkserver-2" / "format").write_bytes(b"garbage")
    up.daemon.start()
    assert len(up.ready["chunkservers"]) == 2
    assert "chunkserver 2 ended at once" in up.answer.read_text()
    handle = connect(up.uri)
    handle.pwrite(b"two of three", 0)
    close(handle)
    assert not up.status()["healthy"]
    up.daemon.stop()
    (up.folder / "data" / "chunkserver-3" / "format").write_bytes(b"garbage")
    up.daemon.launch()
    assert up.daemon.wait(60) == 1
    assert "is damaged" in up.answer.read_text()


def _taken_behind_a_free_one() -> socket.socket:
    """A socket that listens at the port behind one that is free."""
    while True:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            taken = socket.socket()
            try:
                taken.bind(("127.0.0.1", free.getsockname()[1] + 1))
            except (OSError, OverflowError):  # in use, or 65536
                taken.close()
            else:
                taken.listen()
                return taken


def test_a_new_store_whose_second_port_is_taken_says_so_at_once(data_folder: Path) -> None:
    with _taken_behind_a_free_one() as taken:
        port = taken.getsockname()[1]
        listen = ("--chunkserver-listen", f"127.0.0.1:{port - 1}")
        new = Up(data_folder, "--replicas", "3", *listen)
        new.daemon.launch()
        try:
            assert new.daemon.wait(30) == 1
        finally:
            new.daemon.kill()
    error = new.answer.read_text().rpartition("\n{\n")[2]
    assert f"chunkserver 2 ended at once: cannot listen on 127.0.0.1:{port}" in error


@pytest.fixture
def trio(stack_factory: Any) -> Stack:
    """Three chunkservers in zones of their own."""
    return stack_factory(  # type: ignore[no-any-return]
        replicas=3, chunkserver_options=("--wal-size", "64M"), mds_options=("--copysets", "2")
    )


@pytest.fixture
def loaded(trio: Stack) -> Iterator[tuple[Stack, Writer]]:
    """The same, with a volume under a verified load."""
    trio.create_volume("disk", str(SIZE))
    writer = _load(trio.gateway("disk").uri)
    yield trio, writer
    with contextlib.suppress(AssertionError):
        writer.stop(verify=False)


def _members(stack: Stack, copyset: str) -> set[int]:
    found = stack.copygate_json("copyset", "show", copyset)
    return {m["chunkserver"] for m in found["members"] if m["role"] != "learner"}


async def _begin_move(stack: Stack) -> None:
    async with MdsClient(f"127.0.0.1:{stack.grpc_port}") as client:
        assert not await client.move_replica((1, 1), 1, 4)


def _moved(stack: Stack, copyset: str, members: set[int]) -> bool:
    found = stack.copygate_json("copyset", "show", copyset)
    return found["change"] is None and _members(stack, copyset) == members


def test_a_replica_moves_under_load_through_restarts_of_mds_and_chunkservers(
    loaded: tuple[Stack, Writer],
) -> None:
    stack, writer = loaded
    target = stack.add_chunkserver()
    move = ("copyset", "move", "1-1", "--from", "1", "--to", "4")
    target.send_signal(signal.SIGSTOP)
    asyncio.run(_begin_move(stack))  # a command takes its time to start, and 4 soon is offline
    stack.mds.kill()
    stack.mds.start()
    assert "moves" in stack.copygate(*move).stdout, "it is under way, and asked for again"
    found = stack.copygate_json("copyset", "show", "1-1")
    assert found["change"]["from"] == 1
    assert found["change"]["to"] == 4
    stack.chunkservers[1].kill()
    stack.chunkservers[1].start()
    target.send_signal(signal.SIGCONT)
    wait_until(lambda: _moved(stack, "1-1", {2, 3, 4}), 60, "the move", interval=0.2)
    assert "is on chunkserver 4" in stack.copygate(*move).stdout
    _goes_on(writer)
    # The chunks of the replica that went are deleted; the new one has some.
    gone, new = (stack.data_folders[n] / "chunks" / "1-1" for n in (0, 3))
    wait_until(lambda: not list(gone.glob("chunk_*")), 20, "the old replica is deleted")
    assert list(new.glob("chunk_*"))
    writer.verify()
    writer.stop()


def test_a_wiped_chunkserver_comes_back_as_another_and_takes_its_old_place(
    loaded: tuple[Stack, Writer],
) -> None:
    stack, writer = loaded
    first = stack.chunkservers[0]
    first.kill()
    shutil.rmtree(stack.data_folders[0])
    writer.stats.longest = 0.0
    _goes_on(writer)
    first.start()

    def registered() -> bool:
        return len(stack.copygate_json("status")["chunkservers"]) == 4

    wait_until(registered, 30, "another registration")
    stack.copygate("retire", "1", "--to", "4", "--wait", timeout=120)
    status = stack.copygate_json("status")
    assert [s["copysets"] for s in status["chunkservers"]] == [0, 2, 2, 2]
    wait_until(lambda: stack.copygate_json("status")["healthy"], 20, "health")
    stack.chunkservers[1].kill()
    _goes_on(writer)
    assert not writer.stats.errors
    stack.chunkservers[1].start()
    writer.verify()
    writer.stop()


def test_leadership_is_handed_over_without_an_error(loaded: tuple[Stack, Writer]) -> None:
    stack, writer = loaded
    for target in (1, 2, 3, 1):
        stack.copygate("copyset", "transfer", "1-1", "--to", str(target))
        assert stack.copygate_json("copyset", "show", "1-1")["leader"] == target
        _goes_on(writer)
    assert not writer.stats.errors
    writer.verify()
    writer.stop()


def test_chunkservers_find_each_other_without_the_mds(loaded: tuple[Stack, Writer]) -> None:
    stack, writer = loaded
    stack.mds.kill()
    for daemon in stack.chunkservers:
        daemon.kill()
    for daemon in stack.chunkservers:
        daemon.start()
    _goes_on(writer)
    stack.mds.start()
    stack.wait_for_leaders()
    _goes_on(writer)
    writer.verify()
    writer.stop()


def test_deleted_volumes_are_deleted_on_every_replica(trio: Stack) -> None:
    trio.create_volume("disk", "1G")
    gateway = trio.gateway("disk")
    handle = connect(gateway.uri)
    for offset in range(0, 1 << 30, 16 << 20):
        handle.pwrite(b"x" * 4096, offset)
    close(handle)
    gateway.daemon.stop()

    def chunks() -> list[int]:
        return [len(list((f / "chunks").glob("1-*/chunk_*"))) for f in trio.data_folders]

    wait_until(lambda: min(chunks()) >= 64, 20, "chunks on all three")
    trio.copygate("volume", "delete", "disk", "--permanent")
    wait_until(lambda: max(chunks()) == 0, 60, "chunks deleted on all three", interval=0.2)
