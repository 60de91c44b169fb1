# SPDX-License-Identifier: BSD-3-Clause
"""Which export is which volume, who shares an opening, and who takes a volume over."""

import errno
import json
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
from support.libnbd import close, connect, nbd
from support.nbdkit import Server, command
from support.process import wait_until
from support.stack import Stack
from support.tools import CLEAN_ENV, run

SIZE = 1 << 30


@pytest.fixture
def store(stack: Stack) -> Stack:
    """A store with the volumes "one" and "folder-less-two"."""
    stack.create_volume("one", "1G")
    stack.create_volume("two", "2G")
    return stack


def serve(store: Stack, plugin: str, *options: str, read_only: bool = False) -> Server:
    """nbdkit with this store's metadata server."""
    return Server(store.folder, plugin, f"mds={store.mds_address}", *options, read_only=read_only)


def listed(server: Server) -> list[str]:
    """The export names that a client is told."""
    shown = run("nbdinfo", "--list", "--json", server.uri()).stdout
    return sorted(export["export-name"] for export in json.loads(shown)["exports"])


def test_a_served_volume_is_listed_and_is_the_default(store: Stack, plugin: str) -> None:
    """With volume= there is one export, by its name, by its path, and by no name."""
    with serve(store, plugin, "volume=/one") as server:
        assert listed(server) == ["one"]
        for export in ("", "one", "/one"):
            handle = connect(server.uri(export))
            assert handle.get_size() == SIZE
            close(handle)
        described = json.loads(run("nbdinfo", "--json", server.uri()).stdout)["exports"][0]
        assert described["description"] == "Copygate volume one"


def test_another_export_name_is_refused(store: Stack, plugin: str) -> None:
    """volume= is all that there is, even where the store has the other one."""
    with serve(store, plugin, "volume=one") as server:
        with pytest.raises(nbd.Error) as refused:
            connect(server.uri("two"))
        assert refused.value.errnum == errno.ENOENT
        assert "there is no export two" in server.logged()
        close(connect(server.uri("one")))


def test_without_volume_the_client_chooses(store: Stack, plugin: str) -> None:
    """Each export name is a volume; none and unknown ones are refused."""
    with serve(store, plugin) as server:
        one, two = connect(server.uri("one")), connect(server.uri("two"))
        assert (one.get_size(), two.get_size()) == (SIZE, 2 * SIZE)
        one.pwrite(b"1" * 512, 0)
        two.pwrite(b"2" * 512, 0)
        assert one.pread(512, 0) == b"1" * 512
        for name, reason in (("", "no export name"), ("three", "three")):
            with pytest.raises(nbd.Error):
                connect(server.uri(name))
            assert reason in server.logged()
        close(one)
        close(two)


def test_the_python_plugin_lists_the_stores_volumes(store: Stack) -> None:
    """Where the client chooses it is told what there is."""
    with serve(store, "python") as server:
        assert listed(server) == ["one", "two"]


def test_the_c_plugin_lists_nothing_that_it_does_not_know(store: Stack) -> None:
    """An empty list, not an error."""
    with serve(store, "c") as server:
        assert listed(server) == []


def test_a_volume_that_is_not_there_ends_the_start(store: Stack, plugin: str) -> None:
    """The error names it."""
    done = subprocess.run(
        command(
            plugin,
            f"mds={store.mds_address}",
            "volume=absent",
            nbdkit=("-U", "-", "--run", "true"),
        ),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=CLEAN_ENV,
    )
    assert done.returncode == 1
    assert "absent" in done.stderr


def test_another_owners_volume_is_refused(store: Stack, plugin: str) -> None:
    """Only the owner may open it."""
    with pytest.raises(AssertionError, match="one"):
        serve(store, plugin, "volume=one", "owner=somebody").__enter__()


def test_read_only_refuses_writes_and_disturbs_no_writer(store: Stack, plugin: str) -> None:
    """nbdkit -r does not raise the epoch."""
    with serve(store, plugin, "volume=one") as writing:
        writer = connect(writing.uri())
        writer.pwrite(b"before" * 100, 0)
        with serve(store, plugin, "volume=one", read_only=True) as reading:
            reader = connect(reading.uri())
            assert reader.is_read_only()
            assert reader.pread(600, 0) == b"before" * 100
            for attempt in (
                lambda: reader.pwrite(b"x", 0),
                lambda: reader.trim(4096, 0),
                lambda: reader.zero(4096, 0),
            ):
                with pytest.raises(nbd.Error) as refused:
                    attempt()
                assert refused.value.errnum == errno.EPERM
            writer.pwrite(b"after!" * 100, 0)
            assert reader.pread(600, 0) == b"after!" * 100
            close(reader)
        close(writer)


def test_connections_share_one_opening(store: Stack, plugin: str) -> None:
    """Neither fences the other, and each sees what the other has written."""
    with serve(store, plugin, "volume=one") as server:
        first, second = connect(server.uri()), connect(server.uri())
        assert first.can_multi_conn()
        for number in range(20):
            first.pwrite(bytes([number]) * 4096, 0)
            assert second.pread(4096, 0) == bytes([number]) * 4096
            second.pwrite(bytes([number + 100]) * 4096, 4096)
            assert first.pread(4096, 4096) == bytes([number + 100]) * 4096
        close(first)
        second.pwrite(b"still" * 10, 0)
        close(second)


def test_opening_elsewhere_takes_the_volume_over(store: Stack, plugin: str) -> None:
    """The old gateway answers ESHUTDOWN and takes it back only once its old clients are gone."""
    with (
        serve(store, plugin, "volume=one") as old_server,
        serve(store, plugin, "volume=one") as new_server,
    ):
        old = connect(old_server.uri())
        old.pwrite(b"old" * 100, 0)
        new = connect(new_server.uri())
        with pytest.raises(nbd.Error) as fenced:
            old.pwrite(b"late" * 100, 0)
        assert fenced.value.errnum == errno.ESHUTDOWN
        assert new.pread(300, 0) == b"old" * 100
        with pytest.raises(nbd.Error):
            connect(old_server.uri())
        assert "taken" in old_server.logged()
        close(old)
        new.pwrite(b"new" * 100, 0)
        back = connect(old_server.uri())
        assert back.pread(300, 0) == b"new" * 100
        back.pwrite(b"back" * 100, 0)
        with pytest.raises(nbd.Error) as fenced:
            new.pwrite(b"late" * 100, 0)
        assert fenced.value.errnum == errno.ESHUTDOWN
        close(back)
        close(new)


def test_shared_writers_fence_nobody(store: Stack, plugin: str) -> None:
    """shared=yes on both sides, as CurveBS itself does it."""
    with (
        serve(store, plugin, "volume=one", "shared=yes") as one,
        serve(store, plugin, "volume=one", "shared=yes") as other,
    ):
        first, second = connect(one.uri()), connect(other.uri())
        first.pwrite(b"a" * 4096, 0)
        second.pwrite(b"b" * 4096, 4096)
        first.pwrite(b"c" * 4096, 8192)
        assert second.pread(12288, 0) == b"a" * 4096 + b"b" * 4096 + b"c" * 4096
        close(first)
        close(second)


def test_failures_are_logged_once_a_second(store: Stack, plugin: str) -> None:
    """A client that repeats a failing request does not fill the disk with lines."""
    with (
        serve(store, plugin, "volume=one") as old_server,
        serve(store, plugin, "volume=one") as new_server,
    ):
        old, new = connect(old_server.uri()), connect(new_server.uri())
        for _ in range(300):
            with pytest.raises(nbd.Error):
                old.pwrite(b"late", 0)
        lines = [line for line in old_server.logged().splitlines() if "takeover" not in line]
        assert sum("taken the volume over" in line for line in lines) <= 5
        close(old)
        close(new)


def test_it_serves_from_the_background(store: Stack, plugin: str) -> None:
    """nbdkit forks after the options: what needs threads starts in the child."""
    with tempfile.TemporaryDirectory(prefix="cg-", dir="/tmp") as folder:
        socket, pidfile = Path(folder) / "nbd", Path(folder) / "pid"
        run(
            *command(
                plugin,
                f"mds={store.mds_address}",
                "volume=one",
                nbdkit=("-U", str(socket), "-P", str(pidfile)),
            )
        )
        wait_until(lambda: pidfile.exists() and pidfile.read_text() != "", 10, "the pid file")
        pid = int(pidfile.read_text())
        try:
            handle = connect(f"nbd+unix:///?socket={socket}")
            handle.pwrite(b"background", 1234)
            assert handle.pread(10, 1234) == b"background"
            close(handle)
        finally:
            subprocess.run(["kill", f"-{int(signal.SIGTERM)}", str(pid)], check=True)
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), 10, "the end of nbdkit")


def test_connections_come_and_go_while_others_work(store: Stack, plugin: str) -> None:
    """Opening, closing and the threads of a connection leave the others alone."""
    with serve(store, plugin, "volume=one") as server:
        problems: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for round_number in range(15):
                    handle = connect(server.uri())
                    data = bytes([number, round_number]) * 2048
                    handle.pwrite(data, number * 4096)
                    assert handle.pread(4096, number * 4096) == data
                    close(handle)
            except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
                problems.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        assert server.daemon.running


def test_zeroes_without_a_hole_stay_allocated(store: Stack, plugin: str) -> None:
    """NBD_CMD_FLAG_NO_HOLE reserves the space; without it the space goes back."""

    def status(handle: "nbd.NBD", offset: int) -> int:
        flags: list[int] = []
        handle.block_status(4096, offset, lambda _c, _o, entries, _e: flags.extend(entries[1::2]))
        return flags[0]

    with serve(store, plugin, "volume=one") as server:
        handle = connect(server.uri(), block_status=True)
        handle.pwrite(b"\xaa" * (1 << 20), 0)
        handle.zero(1 << 20, 0, nbd.CMD_FLAG_NO_HOLE)
        assert not status(handle, 0) & nbd.STATE_HOLE
        assert handle.pread(1 << 20, 0) == bytes(1 << 20)
        handle.zero(1 << 20, 0)
        assert handle.pread(1 << 20, 0) == bytes(1 << 20)
        assert status(handle, 0) & nbd.STATE_ZERO
        close(handle)
