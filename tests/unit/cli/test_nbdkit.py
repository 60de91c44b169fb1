# SPDX-License-Identifier: BSD-3-Clause
"""nbdkit as a child: endpoints, sockets, the command line, and that it is started again."""

import asyncio
import os
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.cli import nbdkit
from gateway.cli.child import Supervisor, end_orphan
from gateway.cli.nbdkit import Endpoint, Export, plugin_environment, supervise
from gateway.errors import BusyError, ConfigError, CopygateError, InvalidArgumentError


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose paths fit into a unix socket's address."""
    with tempfile.TemporaryDirectory(prefix="cg-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("tcp:127.0.0.1:10809", "nbd://127.0.0.1:10809/v"),
        ("127.0.0.1:10809", "nbd://127.0.0.1:10809/v"),
        ("tcp:[::1]:10809", "nbd://[::1]:10809/v"),
        ("unix:/run/a b", "nbd+unix:///v?socket=/run/a%20b"),
    ],
)
def test_an_endpoint_has_a_uri(text: str, uri: str) -> None:
    assert Endpoint.parse(text, allow_remote=False).uri("v") == uri


def test_a_name_is_quoted_in_a_uri() -> None:
    endpoint = Endpoint.parse("unix:/s", allow_remote=False)
    assert endpoint.uri("/a/b?c") == "nbd+unix:///a/b%3Fc?socket=/s"


@pytest.mark.parametrize(
    "text",
    ["", "unix:", "unix:/", "tcp:", "tcp:127.0.0.1", "127.0.0.1:x", "127.0.0.1:65536", "::1:5"],
)
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        Endpoint.parse(text, allow_remote=True)


def test_other_machines_only_on_request() -> None:
    for text in ("tcp:0.0.0.0:1", "tcp:192.0.2.1:1", "tcp:[::]:1", "tcp:example.org:1"):
        with pytest.raises(InvalidArgumentError) as refused:
            Endpoint.parse(text, allow_remote=False)
        assert "--allow-remote" in refused.value.hint
        Endpoint.parse(text, allow_remote=True)


def test_a_path_that_the_kernel_does_not_take_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="107 bytes"):
        Endpoint.parse("unix:/" + "x" * 107, allow_remote=False)


def test_a_bound_socket_is_for_this_user_alone(short: Path) -> None:
    path = short / "s"
    sock, _ = Endpoint(path=path).bind()
    with sock:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_stale_socket_is_replaced_and_a_served_one_is_not(short: Path) -> None:
    path = short / "s"
    first, _ = Endpoint(path=path).bind()
    with pytest.raises(BusyError):
        Endpoint(path=path).bind()
    first.close()
    second, _ = Endpoint(path=path).bind()
    second.close()


def test_a_file_is_not_taken_for_a_socket(short: Path) -> None:
    path = short / "precious"
    path.write_text("kept")
    with pytest.raises(InvalidArgumentError, match="no socket"):
        Endpoint(path=path).bind()
    assert path.read_text() == "kept"


def test_port_0_gets_a_number_and_a_used_port_is_named() -> None:
    sock, bound = Endpoint(host="127.0.0.1", port=0).bind()
    with sock:
        assert bound.port == sock.getsockname()[1]
        with pytest.raises(BusyError) as refused:
            bound.bind()
        assert str(bound.port) in str(refused.value)


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.so"
    plugin.touch()
    monkeypatch.setenv("COPYGATE_NBDKIT_PLUGIN", str(plugin))
    export = Export(mds="a:1", owner="root", volume="v", read_only=True, threads=4,
                    password_file=Path("/p"))  # fmt: skip
    command = export.command(pidfile=Path("/pid"), exit_with_parent=True)
    assert command[1:] == [
        *("--foreground", "--threads", "4", "--exit-with-parent", "--pidfile", "/pid"),
        *("--readonly", str(plugin), "mds=a:1", "owner=root", "volume=v", "password-file=/p"),
    ]


def test_a_plugin_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPYGATE_NBDKIT_PLUGIN", "/nowhere.so")
    with pytest.raises(ConfigError, match=r"/nowhere\.so"):
        Export(mds="a:1", owner="o").command()


def test_the_environment_of_a_service_manager_does_not_reach_nbdkit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert not [key for key in plugin_environment("c") if key.startswith("LISTEN_")]
    assert "site-packages" in plugin_environment("python")["PYTHONPATH"]


FAKE = r"""#!/bin/sh
# Behaves as nbdkit does to its parent: takes the socket as descriptor 3, writes its pid file.
[ "$LISTEN_PID" = $$ ] && [ "$LISTEN_FDS" = 1 ] || { echo "nbdkit: error: no socket" >&2; exit 1; }
[ -S /proc/self/fd/3 ] || { echo "nbdkit: error: 3 is no socket" >&2; exit 1; }
if [ -e "$FAKE_REFUSES" ]; then
    echo "nbdkit: error: volume v does not exist" >&2
    echo "  make it first" >&2
    exit 1
fi
while [ "$1" != --pidfile ]; do shift; done
echo $$ > "$2"
exec sleep 1000
"""


@pytest.fixture
def fake(short: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in nbdkit's place."""
    program = short / "nbdkit"
    program.write_text(FAKE)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{short}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_REFUSES", str(short / "refuse"))
    monkeypatch.setattr(nbdkit, "find_plugin", lambda _kind: ["plugin"])
    return short


def supervisor(folder: Path) -> tuple[Supervisor, socket.socket]:
    sock, _ = Endpoint(path=folder / "s").bind()
    return supervise(Export(mds="a:1", owner="o"), sock, folder / "pid"), sock


def alive(pid: int) -> bool:
    """A zombie does not count: who reaps it is not our concern."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to pass within 10 s")


async def test_nbdkit_is_started_again_and_ends_with_us(fake: Path) -> None:
    child, sock = supervisor(fake)
    with sock:
        await child.start()
        first = child.pid
        assert first is not None
        os.kill(first, 9)
        await eventually(lambda: child.pid != first and (fake / "pid").exists())
        second = child.pid
        assert second is not None
        await child.stop()
        assert not alive(second)


async def test_what_nbdkit_refuses_is_said(fake: Path) -> None:
    (fake / "refuse").touch()
    child, sock = supervisor(fake)
    with sock:
        with pytest.raises(CopygateError, match="ended at once: volume v does not exist"):
            await child.start()
        await child.stop()


def start_program(words: list[str]) -> subprocess.Popen[bytes]:
    program = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    # The kernel shows a process's words a moment after it has started.
    while not Path(f"/proc/{program.pid}/cmdline").read_bytes():
        time.sleep(0.001)
    return program


def test_an_orphan_is_ended_and_a_stranger_with_its_number_is_not(short: Path) -> None:
    pidfile = short / "nbdkit.pid"
    end_orphan(pidfile, "nbdkit")
    pidfile.write_text("nonsense")
    end_orphan(pidfile, "nbdkit")
    # Its words as nbdkit's: the shell ignores what follows the script.
    orphan = start_program(["/bin/sh", "-c", "sleep 1000; :", "nbdkit", str(pidfile)])
    pidfile.write_text(f"{orphan.pid}\n")
    end_orphan(pidfile, "nbdkit")
    assert orphan.wait(timeout=5) == -signal.SIGKILL
    stranger = start_program(["sleep", "1000"])
    pidfile.write_text(str(stranger.pid))
    end_orphan(pidfile, "nbdkit")
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()
