# SPDX-License-Identifier: BSD-3-Clause
"""The real tgtd as our child: set up, changed while it runs, killed, ended. Its own backing store
of plain files takes the place of ours: what is tested here does not depend on it."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from support.process import free_port
from support.tools import run, which

from gateway.cli.child import end_orphan
from gateway.errors import (
    BusyError,
    CopygateError,
    DeadlineError,
    ExistsError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from gateway.iscsi import target as target_module
from gateway.iscsi.plan import GUARD, Account, Lun, Wanted
from gateway.iscsi.target import Target, check_free, environment, launch_command
from gateway.iscsi.tgtd import Tgtd, encode, socket_path

pytestmark = pytest.mark.skipif(
    which("tgtd") is None, reason="no tgtd: packaging/install-deps.sh run installs it"
)

IQN = "iqn.2026-11.io.copygate:v"
CHAP = Account("alice", "secret-of-alice")
NEW_CHAP = Account("alice", "other-of-alice")
MUTUAL = Account("gate", "secret-of-gate")


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose paths fit into a unix socket's address."""
    with tempfile.TemporaryDirectory(prefix="cg-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module, "find_module", lambda: None)


def disk(folder: Path, name: str = "disk") -> str:
    path = folder / name
    with path.open("wb") as file:
        file.truncate(64 << 20)
    return str(path)


def program_of(pid: int | None) -> str | None:
    """What a process runs; None when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except FileNotFoundError:
        return None


def all_words() -> bytes:
    """The command lines of this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes())
    return b"\n".join(found)


def wanted(folder: Path, **changes: object) -> Wanted:
    values: dict[str, object] = {
        "luns": frozenset({Lun(1, disk(folder), bstype="rdwr")}),
        "portals": frozenset({f"127.0.0.1:{free_port()}"}),
    }
    return Wanted(IQN, **{**values, **changes})  # type: ignore[arg-type]


def url(target: Target, account: Account | None = None, lun: int = 1) -> str:
    login = f"{account.user}%{account.secret}@" if account else ""
    return f"iscsi://{login}{min(target.wanted.portals)}/{IQN}/{lun}"


def capacity(target: Target, account: Account | None = None, lun: int = 1, who: str = "a") -> bool:
    """Whether an initiator can log in and read the unit's capacity."""
    words = ["iscsi-readcapacity16", "-i", f"iqn.2026-11.test:{who}", url(target, account, lun)]
    done = run(*words, status=None, timeout=20)
    return done.returncode == 0 and "Total size:" in done.stdout


async def can(*arguments: object, **options: object) -> bool:
    return await asyncio.to_thread(capacity, *arguments, **options)  # type: ignore[arg-type]


async def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    for _ in range(int(seconds * 50)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"it did not come to pass within {seconds} s")


@pytest.fixture
async def start(short: Path) -> AsyncIterator[Callable[[Wanted], Target]]:
    targets = []

    def make(what: Wanted) -> Target:
        targets.append(Target(short / str(len(targets)), what))
        targets[-1].start()
        return targets[-1]

    yield make
    for target in targets:
        await target.stop()


async def test_a_target_serves_and_ends(
    short: Path, start: Callable[[Wanted], Target], tmp_path: Path
) -> None:
    target = start(wanted(tmp_path))
    await target.settled(10)
    assert target.serves, target.reason
    assert await can(target)
    pid = target.pid
    assert program_of(pid) == "tgtd"
    await target.stop()
    assert program_of(pid) is None
    assert not target.folder.exists()


async def test_it_listens_only_where_it_was_told(
    start: Callable[[Wanted], Target], tmp_path: Path
) -> None:
    target = start(wanted(tmp_path))
    await target.settled(10)
    tgtd = Tgtd(socket_path(target.folder))
    assert await tgtd.portals() == sorted(target.wanted.portals)


async def test_the_other_driver_is_stopped_and_an_unknown_one_is_said(
    start: Callable[[Wanted], Target], tmp_path: Path
) -> None:
    target = start(wanted(tmp_path))
    await target.settled(10)
    tgtd = Tgtd(socket_path(target.folder))
    await tgtd.stop_driver("iser")
    with pytest.raises(CopygateError, match="no such driver"):
        await tgtd.stop_driver("none")
    with pytest.raises(BusyError, match="in use"):
        await tgtd.stop_driver("iscsi")


async def test_secrets_stand_in_no_command_line(
    start: Callable[[Wanted], Target], tmp_path: Path
) -> None:
    target = start(wanted(tmp_path, chap=CHAP, mutual=MUTUAL))
    await target.settled(10)
    assert target.serves, target.reason
    words = all_words()
    assert b"tgtd" in words
    assert CHAP.secret.encode() not in words
    assert MUTUAL.secret.encode() not in words


async def test_chap_and_acl(start: Callable[[Wanted], Target], tmp_path: Path) -> None:
    first = wanted(tmp_path, chap=CHAP)
    target = start(first)
    await target.settled(10)
    assert await can(target, CHAP)
    assert not await can(target)
    assert not await can(target, NEW_CHAP)
    names = frozenset({"iqn.2026-11.test:b"})
    target.change(Wanted(IQN, first.luns, acl=names, chap=NEW_CHAP, portals=first.portals))
    await target.settled(10)
    assert target.serves, target.reason
    assert await can(target, NEW_CHAP, who="b")
    assert not await can(target, NEW_CHAP, who="a")
    assert not await can(target, CHAP, who="b")
    (report,) = await Tgtd(socket_path(target.folder)).targets()
    assert report.accounts == [NEW_CHAP.user]
    assert GUARD not in report.accounts
    assert report.allowed == ["iqn.2026-11.test:b"]


async def test_units_and_portals_come_and_go(
    start: Callable[[Wanted], Target], tmp_path: Path
) -> None:
    first = wanted(tmp_path)
    target = start(first)
    await target.settled(10)
    pid = target.pid
    (lun,) = first.luns
    second = Lun(2, disk(tmp_path, "second"), bstype="rdwr")
    portals = frozenset({f"127.0.0.1:{free_port()}"})
    target.change(Wanted(IQN, frozenset({lun, second}), portals=portals))
    await target.settled(10)
    assert target.serves, target.reason
    assert await can(target, lun=2)
    target.change(Wanted(IQN, frozenset({second}), portals=portals))
    await target.settled(10)
    assert not await can(target, lun=1)
    assert await can(target, lun=2)
    assert target.pid == pid
    assert target.restarts == 0


async def test_after_a_kill_it_is_started_and_set_up_again(
    start: Callable[[Wanted], Target], tmp_path: Path
) -> None:
    target = start(wanted(tmp_path, chap=CHAP, acl=frozenset({"iqn.2026-11.test:a"})))
    await target.settled(10)
    first = target.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: target.restarts == 1 and target.serves)
    assert target.pid != first
    assert await can(target, CHAP)
    assert not await can(target)
    assert not await can(target, CHAP, who="b")


async def test_a_unit_that_cannot_be_opened_keeps_the_target_off_the_network(
    start: Callable[[Wanted], Target], tmp_path: Path
) -> None:
    good = wanted(tmp_path)
    bad = Lun(2, str(tmp_path / "later"), bstype="rdwr")
    target = start(Wanted(IQN, good.luns | {bad}, portals=good.portals))
    await target.settled(10)
    assert not target.serves
    assert "LUN 2 cannot be served" in str(target.reason)
    assert "No such file" in str(target.reason)
    check_free(target.wanted.portals)
    disk(tmp_path, "later")
    await eventually(lambda: target.serves)
    assert await can(target, lun=2)


async def test_a_port_in_use_is_named_and_taken_when_it_is_free(
    start: Callable[[Wanted], Target], tmp_path: Path
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        portal = f"127.0.0.1:{other.getsockname()[1]}"
        target = start(wanted(tmp_path, portals=frozenset({portal})))
        await target.settled(10)
        assert not target.serves
        assert portal in str(target.reason)
        assert "in use" in str(target.reason)
        assert target.pid is None
    await eventually(lambda: target.serves)


async def test_sessions_are_shown_and_end_with_the_right_to_log_in(
    start: Callable[[Wanted], Target], tmp_path: Path
) -> None:
    first = wanted(tmp_path)
    target = start(first)
    await target.settled(10)
    assert await target.sessions() == []
    program = subprocess.Popen(  # noqa: ASYNC220 - it runs beside
        ["iscsi-perf", "-i", "iqn.2026-11.test:a", "-t", "60", url(target)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        found = []
        for _ in range(200):
            found = await target.sessions()
            if found:
                break
            await asyncio.sleep(0.02)
        (connection,) = found
        assert connection.initiator == "iqn.2026-11.test:a"
        assert connection.address == "127.0.0.1"
        names = frozenset({"iqn.2026-11.test:b"})
        target.change(Wanted(IQN, first.luns, acl=names, portals=first.portals))
        await target.settled(10)
        assert target.serves, target.reason
        assert await target.sessions() == []
    finally:
        program.kill()
        program.wait()


async def test_stopping_ends_sessions_that_are_busy(
    start: Callable[[Wanted], Target], tmp_path: Path
) -> None:
    target = start(wanted(tmp_path))
    await target.settled(10)
    program = subprocess.Popen(  # noqa: ASYNC220 - it runs beside
        ["iscsi-perf", "-t", "60", url(target)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            if await target.sessions():
                break
            await asyncio.sleep(0.02)
        pid = target.pid
        async with asyncio.timeout(10):
            await target.stop()
        assert program_of(pid) is None
    finally:
        program.kill()
        program.wait()


def test_tgtd_ends_with_whoever_started_it(short: Path) -> None:
    """kill -9 of the supervisor: the kernel ends tgtd; and if not, the next run does."""
    folder = short / "t"
    folder.mkdir()
    words = launch_command(folder)
    parent = subprocess.Popen(
        ["/bin/sh", "-c", '"$@"; exit', "parent", *words],
        env=environment(folder),
        stderr=subprocess.DEVNULL,
    )
    deadline = 500
    while not socket_path(folder).exists() and deadline:
        deadline -= 1
        asyncio.run(asyncio.sleep(0.02))
    pid = int((folder / "tgtd.pid").read_text())
    assert program_of(pid) == "tgtd"
    parent.kill()
    parent.wait()
    for _ in range(250):
        if program_of(pid) is None:
            break
        asyncio.run(asyncio.sleep(0.02))
    assert program_of(pid) is None


def test_an_orphan_is_ended(short: Path) -> None:
    folder = short / "t"
    folder.mkdir()
    words = [word for word in launch_command(folder) if word not in ("--pdeathsig", "KILL")]
    orphan = subprocess.Popen(words, env=environment(folder), stderr=subprocess.DEVNULL)
    for _ in range(500):
        if socket_path(folder).exists():
            break
        asyncio.run(asyncio.sleep(0.02))
    end_orphan(folder / "tgtd.pid", "tgtd")
    assert orphan.wait(timeout=5) == -signal.SIGKILL


async def test_refusals_are_in_words(start: Callable[[Wanted], Target], tmp_path: Path) -> None:
    target = start(wanted(tmp_path, chap=CHAP))
    await target.settled(10)
    tgtd = Tgtd(socket_path(target.folder))
    with pytest.raises(ExistsError, match=r"cannot create target .*exists already"):
        await tgtd.new_target(1, "iqn.2026-11.io.copygate:w")
    with pytest.raises(NotFoundError, match="no such target"):
        await tgtd.delete_target(7)
    with pytest.raises(NotFoundError, match="no such logical unit"):
        await tgtd.delete_lun(1, 9)
    with pytest.raises(ExistsError, match="account exists already"):
        await tgtd.new_account(CHAP.user, "x" * 12)
    with pytest.raises(InvalidArgumentError, match="does not accept"):
        await tgtd.new_lun(1, 2, path="/none", bstype="rdwr", bsopts="")
    with pytest.raises(InvalidArgumentError, match="no comma"):
        await tgtd.new_lun(1, 2, path="a,bstype=null", bstype="rdwr", bsopts="")
    with pytest.raises(InvalidArgumentError, match="too long"):
        await tgtd.set_parameter(1, "a", "x" * 9000)


async def test_a_tgtd_that_is_not_there_or_silent(short: Path) -> None:
    with pytest.raises(UnavailableError, match="does not answer"):
        await Tgtd(short / "none").portals()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(short / "silent"))
        silent.listen()
        with pytest.raises(DeadlineError, match="did not show portals in time"):
            await Tgtd(short / "silent", timeout_s=0.1).portals()


def test_a_request_is_as_tgtd_has_it() -> None:
    """sizeof(struct tgtadm_req) is 120; a text ends with a NUL and is counted."""
    assert len(encode(3, 2)) == 120
    request = encode(1, 0, "ab", tid=-1, sid=2, lun=3, cid=4, direction=1, force=1)
    assert len(request) == 123
    assert request[72:76] == (123).to_bytes(4, "little")
    assert request[8:14] == b"iscsi\0"
    assert request[76:80] == b"\xff" * 4
    assert (request[80], request[88], request[96], request[108], request[116]) == (2, 3, 4, 1, 1)


def test_a_free_port_is_free() -> None:
    check_free(frozenset({f"127.0.0.1:{free_port()}"}))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(BusyError):
            check_free(frozenset({f"127.0.0.1:{other.getsockname()[1]}"}))
    with pytest.raises(BusyError, match="cannot assign"):
        check_free(frozenset({"192.0.2.77:3260"}))
