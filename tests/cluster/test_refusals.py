# SPDX-License-Identifier: BSD-3-Clause
"""Mistakes that people make: each gets a sentence and a non-zero exit, and nothing is lost."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.libnbd import close, connect
from support.process import Daemon, free_port, says, wait_until
from support.stack import Stack
from support.tools import COPYGATE, copygate, run

pytestmark = pytest.mark.timeout(90)


def _refused(*arguments: str | Path, timeout: float = 40) -> str:
    """Runs `copygate`, which must fail with a message for people; returns the message."""
    done = copygate(*arguments, status=None, timeout=timeout)
    assert done.returncode not in (0, -6, -11), done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr.strip(), "no message"
    return done.stderr


def test_second_chunkserver_on_the_same_folder_is_refused(stack: Stack) -> None:
    """The first goes on undisturbed."""
    stack.create_volume("disk", "1G")
    handle = connect(stack.gateway("disk").uri)
    handle.pwrite(b"kept", 0)
    message = _refused(
        *("chunkserver", "--data", stack.data, "--listen", "127.0.0.1:0"),
        *("--mds", stack.mds_address),
    )
    assert str(stack.data) in message
    handle.pwrite(b"on", 4)
    assert handle.pread(6, 0) == b"kepton"
    close(handle)


def test_second_mds_on_the_same_folder_is_refused(stack: Stack) -> None:
    """Two writers of one database would hand out the same ids."""
    message = _refused(
        *("mds", "--data", stack.folder / "mds"),
        *("--listen", f"127.0.0.1:{free_port()}", "--grpc-listen", f"127.0.0.1:{free_port()}"),
    )
    assert str(stack.folder / "mds") in message
    stack.create_volume("still", "1G")


def test_port_in_use_is_named(stack: Stack, tmp_path: Path) -> None:
    """A second server on the same port says which port."""
    message = _refused(
        *("mds", "--data", tmp_path / "other"),
        *("--listen", stack.mds_address, "--grpc-listen", f"127.0.0.1:{free_port()}"),
    )
    assert str(stack.mds_port) in message
    message = _refused(
        *("chunkserver", "--data", tmp_path / "disk", "--mds", stack.mds_address),
        *("--mds-grpc", f"127.0.0.1:{stack.grpc_port}"),
        *("--listen", f"127.0.0.1:{stack.chunkserver_port}"),
    )
    assert str(stack.chunkserver_port) in message


@contextlib.contextmanager
def _read_only(folder: Path) -> Iterator[None]:
    """Makes a folder unwritable, for root too."""
    if os.geteuid() == 0:
        run("mount", "-t", "tmpfs", "-o", "ro,size=1m", "copygate-test", folder)
        try:
            yield
        finally:
            run("umount", folder)
    else:
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(0o755)


@pytest.mark.parametrize("command", ["mds", "chunkserver", "up"])
def test_read_only_folder_is_refused(command: str, tmp_path: Path) -> None:
    """The message names the folder."""
    folder = tmp_path / "folder"
    folder.mkdir()
    arguments: list[str | Path] = [command, "--data", folder / "data"]
    if command == "mds":
        arguments += ["--listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0"]
    elif command == "chunkserver":
        arguments += ["--listen", "127.0.0.1:0", "--mds", "127.0.0.1:1"]
    else:
        arguments += ["--volume", "disk:1G", "--nbd", f"unix:{tmp_path}/s"]
    with _read_only(folder):
        message = _refused(*arguments)
    assert str(folder) in message


def test_missing_mds_is_an_error_in_time(stack: Stack) -> None:
    """Nobody listens there: the gateway and the command say so within seconds."""
    nowhere = f"127.0.0.1:{free_port()}"
    for arguments in (
        ("volume", "list", "--mds", nowhere),
        ("status", "--mds", nowhere),
        ("nbd", "serve", "disk", "--mds", nowhere, "--listen", f"unix:{stack.sockets}/none"),
    ):
        began = time.monotonic()
        message = _refused(*arguments)
        assert time.monotonic() - began < 30
        assert nowhere.rpartition(":")[2] in message or str(int(nowhere[10:]) + 1) in message


def test_mds_that_never_answers_is_an_error_in_time(stack: Stack) -> None:
    """A server that accepts and stays silent is no better than none."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        _refused(
            *("nbd", "serve", "disk", "--mds", address, "--mds-grpc", address),
            *("--listen", f"unix:{stack.sockets}/silent"),
        )
        assert time.monotonic() - began < 35


def test_gateway_of_a_volume_that_is_not_there_is_refused(stack: Stack, plugin: str) -> None:
    """The message names the volume."""
    done = stack.copygate(
        *("nbd", "serve", "nosuch", "--listen", f"unix:{stack.sockets}/x", "--plugin", plugin),
        status=None,
        timeout=30,
    )
    assert done.returncode != 0
    assert "nosuch" in done.stderr
    assert "Traceback" not in done.stderr


def test_stale_socket_is_replaced_and_a_used_one_is_not(stack: Stack, plugin: str) -> None:
    """After kill -9 the socket file stays: the next gateway takes it. A served one is refused."""
    stack.create_volume("disk", "1G")
    gateway = stack.gateway("disk", plugin=plugin)
    assert gateway.socket is not None
    message = _refused(
        *("nbd", "serve", "disk", "--mds", stack.mds_address),
        *("--mds-grpc", f"127.0.0.1:{stack.grpc_port}", "--listen", f"unix:{gateway.socket}"),
    )
    assert str(gateway.socket) in message
    handle = connect(gateway.uri)
    handle.pwrite(b"kept", 0)
    gateway.daemon.kill()
    assert gateway.socket.exists()
    gateway.daemon.start()
    handle = connect(gateway.uri)
    assert handle.pread(4, 0) == b"kept"
    close(handle)


def test_file_in_the_place_of_the_socket_is_not_removed(stack: Stack) -> None:
    """Only a socket is replaced; a user's file is not."""
    stack.create_volume("disk", "1G")
    precious = stack.sockets / "precious"
    precious.write_text("not a socket")
    done = stack.copygate(
        "nbd", "serve", "disk", "--listen", f"unix:{precious}", status=None, timeout=30
    )
    assert done.returncode != 0
    assert precious.read_text() == "not a socket"


@pytest.mark.parametrize(
    "name", ["", "/", "..", "a/../b", "a//b", "with\nnewline", "x" * 300, "/RecycleBin/x", " "]
)
def test_bad_volume_names_are_refused(stack: Stack, name: str) -> None:
    """And nothing is made."""
    before = stack.copygate_json("volume", "list")
    done = stack.copygate("volume", "create", name, "1G", status=None)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert stack.copygate_json("volume", "list") == before


@pytest.mark.parametrize("size", ["0", "-1G", "1.5", "abc", "10X", "99999999999T", "1G1G", ""])
def test_bad_sizes_are_refused(stack: Stack, size: str) -> None:
    """The message repeats the size that was given."""
    done = stack.copygate("volume", "create", "disk", "--", size, status=None)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert size in done.stderr


def test_shrinking_is_refused_and_loses_nothing(stack: Stack) -> None:
    """A smaller size would cut data off."""
    stack.create_volume("disk", "2G")
    handle = connect(stack.gateway("disk").uri)
    handle.pwrite(b"end", (2 << 30) - 3)
    done = stack.copygate("volume", "resize", "disk", "1G", status=None)
    assert done.returncode != 0
    assert handle.pread(3, (2 << 30) - 3) == b"end"
    close(handle)


@pytest.mark.parametrize(
    "text",
    ["not toml [", "[client]\nmdss = 'x'\n", "[client]\nmds = 5\n", "[nosuch]\nx = 1\n", "\0\0"],
)
def test_bad_configuration_files_are_refused(tmp_path: Path, text: str) -> None:
    """The message names the file."""
    path = tmp_path / "copygate.toml"
    path.write_text(text)
    assert str(path) in _refused("--config", path, "status")


def test_configuration_file_that_is_missing_or_a_folder_is_refused(tmp_path: Path) -> None:
    """A file that was asked for has to be there."""
    assert "none.toml" in _refused("--config", tmp_path / "none.toml", "status")
    _refused("--config", tmp_path, "status")


@pytest.mark.parametrize(
    "option", ["volume=", "volume=nosuch", "mds=nonsense", "mds=", "nosuch=1", "volume=a//b"]
)
def test_bad_plugin_options_are_refused(stack: Stack, plugin: str, option: str) -> None:
    """nbdkit started by hand with the plugin: a sentence and exit status 1, no crash."""
    stack.create_volume("disk", "1G")
    socket = stack.sockets / "nbd-options"
    started = stack.gateway_daemon("disk", plugin=plugin)
    command = _nbdkit_command(started.daemon)
    key = option.partition("=")[0]
    words = [word for word in command if not word.startswith(f"{key}=")]
    words = [word for word in words if word != "--foreground"]
    done = subprocess.run(
        [*words[:1], "-f", "-U", str(socket), *words[1:], option],
        capture_output=True,
        timeout=40,
        check=False,
        text=True,
        env=started.daemon.environment | _plugin_environment(plugin),
    )
    stack.gateways.clear()
    assert done.returncode == 1, done.stderr
    assert "error" in done.stderr
    assert "Traceback" not in done.stderr


def _nbdkit_command(daemon: Daemon) -> list[str]:
    """The nbdkit command line that `copygate nbd serve` becomes, read from the running process."""
    daemon.start()
    process = Path(f"/proc/{daemon.pid}")
    try:
        # The command binds the socket before it becomes nbdkit.
        wait_until(lambda: (process / "comm").read_text() == "nbdkit\n", 10, "nbdkit")
        # exec changes the name first and the arguments a moment later.
        wait_until(lambda: bool((process / "cmdline").read_bytes()), 10, "nbdkit's arguments")
        raw = (process / "cmdline").read_bytes()
    finally:
        daemon.stop()
    return [word.decode() for word in raw.rstrip(b"\0").split(b"\0")]


def _plugin_environment(plugin: str) -> dict[str, str]:
    from gateway.cli.nbdkit import plugin_environment

    return plugin_environment(plugin) if plugin == "python" else {}


def test_up_serves_and_ends_cleanly(tmp_path: Path, stack_factory: Callable[..., Stack]) -> None:
    """`copygate up` in one go: ready, data kept over a SIGTERM and a kill -9 of all of it."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="cg-") as short:
        socket = Path(short) / "up"
        daemon = Daemon(
            "up",
            [
                *(COPYGATE, "up", "--data", str(tmp_path / "data"), "--volume", "disk:1G"),
                *("--nbd", f"unix:{socket}", "--wal-size", "64M"),
                *("--mds-listen", f"127.0.0.1:{free_port()}"),
                *("--grpc-listen", f"127.0.0.1:{free_port()}"),
                *("--chunkserver-listen", "127.0.0.1:0"),
            ],
            tmp_path / "up.log",
            lambda: says(tmp_path / "up.log", "copygate is ready"),
        )
        uri = f"nbd+unix:///disk?socket={socket}"
        daemon.start()
        handle = connect(uri)
        handle.pwrite(b"before the end", 5)
        close(handle)
        assert daemon.stop() == 0
        daemon.start()
        handle = connect(uri)
        assert handle.pread(14, 5) == b"before the end"
        handle.pwrite(b"before the kill", 500)
        daemon.kill()
        daemon.start()
        handle = connect(uri)
        assert handle.pread(15, 500) == b"before the kill"
        close(handle)
        assert daemon.stop() == 0
