# SPDX-License-Identifier: BSD-3-Clause
"""`copygate iscsi` on real processes: a store, a gateway, tgtd with our backing store, libiscsi."""

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.iscsi import missing
from support.process import Daemon, free_port, wait_until
from support.stack import Stack, processes_of
from support.tools import CLEAN_ENV, COPYGATE, run

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

PREFIX = "iqn.2026-11.io.copygate"
SECRET, MUTUAL = "secret-of-alice", "secret-of-gate"
READY = "runs; Ctrl-C stops it"


class Iscsi:
    """`copygate iscsi serve` of a store, in a folder of its own, and the commands that go with
    it."""

    def __init__(self, stack: Stack, name: str = "g1") -> None:
        self.stack = stack
        self.name = name
        # Unix socket paths hold 107 bytes at most.
        self.folder = Path(tempfile.mkdtemp(prefix="cg-", dir="/tmp"))
        self.log = stack.folder / f"iscsi-{name}.log"
        self.daemon = Daemon(
            f"iscsi-{name}",
            [
                *(COPYGATE, "--mds", stack.mds_address, "--mds-grpc"),
                *(f"127.0.0.1:{stack.grpc_port}", "iscsi", "serve"),
                *("--gateway", name, "--run-dir", str(self.folder)),
            ],
            self.log,
            lambda: READY in self.log.read_text().rpartition("\n--- ")[2],
            env=stack.env,
        )

    def command(self, *words: str, status: int | None = 0) -> subprocess.CompletedProcess[str]:
        done: subprocess.CompletedProcess[str] = self.stack.copygate(
            "iscsi", *words, "--run-dir", str(self.folder), status=status
        )
        return done

    def export(self, volume: str, *words: str, status: int | None = 0) -> dict[str, Any]:
        if "--portal" not in words:
            words = (*words, "--portal", f"127.0.0.1:{free_port()}")
        return self.export_as_is(volume, *words, status=status)

    def export_as_is(self, volume: str, *words: str, status: int | None = 0) -> dict[str, Any]:
        done = self.command(
            "export", volume, "--gateway", self.name, *words, "--json", status=status
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def exports(self) -> dict[str, Any]:
        """What `list` shows, by the first volume's name."""
        found = json.loads(self.command("list", "--json").stdout)["exports"]
        return {item["luns"][0]["volume"].strip("/"): item for item in found}

    def state(self, volume: str) -> str:
        (gateway,) = self.exports()[volume]["gateways"]
        return f"{gateway['state']}: {gateway['reason']}"

    def state_of(self, volume: str) -> str:
        """How this one of several gateways serves a volume."""
        found = self.exports()[volume]["gateways"]
        return next(str(g["state"]) for g in found if g["gateway"] == self.name)

    def tgtds(self) -> list[int]:
        """The pids of this gateway's tgtd processes."""
        return [
            pid
            for pid in processes_of(self.daemon.pid)
            if Path(f"/proc/{pid}/comm").read_text() == "tgtd\n"
        ]

    def close(self) -> None:
        if self.daemon.running:
            self.daemon.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def gateways(stack: Stack) -> Iterator[Callable[..., Iscsi]]:
    made: list[Iscsi] = []

    def make(name: str = "g1") -> Iscsi:
        made.append(Iscsi(stack, name))
        return made[-1]

    yield make
    for gateway in made:
        gateway.close()


@pytest.fixture
def iscsi(stack: Stack, gateways: Callable[..., Iscsi]) -> Iscsi:
    """A gateway that runs, and a volume "a" of 1 GiB."""
    stack.create_volume("a", "1G")
    gateway = gateways()
    gateway.daemon.start()
    return gateway


def secret_file(folder: Path, secret: str) -> str:
    path = folder / f"{len(list(folder.iterdir()))}.secret"
    path.write_text(f"{secret}\n")
    path.chmod(0o600)
    return str(path)


def reaches(portal: str, volume: str = "a", lun: int = 1, login: str = "", who: str = "x") -> bool:
    """Whether an initiator can log in and read the unit's capacity."""
    url = f"iscsi://{login}{portal}/{PREFIX}:{volume}/{lun}"
    words = ["iscsi-readcapacity16", "-i", f"iqn.2026-11.test:{who}", url]
    done = run(*words, status=None, timeout=20)
    return done.returncode == 0 and "Total size:" in done.stdout


def test_export_twice_and_unexport_twice(iscsi: Iscsi) -> None:
    first = iscsi.export("a")
    assert (first["changed"], first["state"]) == (True, "serving")
    (portal,) = first["portals"]
    assert reaches(portal)
    (pid,) = iscsi.tgtds()
    again = iscsi.export_as_is("a")
    assert (again["changed"], again["state"], again["portals"]) == (False, "serving", [portal])
    assert iscsi.tgtds() == [pid]
    assert iscsi.state("a") == "serving: None"
    gone = iscsi.command("unexport", "a")
    assert "not exported any more" in gone.stdout
    assert not reaches(portal)
    assert iscsi.tgtds() == []
    assert "/a is not exported" in iscsi.command("unexport", "a").stdout
    assert iscsi.exports() == {}


def test_data_survive_a_kill_of_tgtd(iscsi: Iscsi, tmp_path: Path) -> None:
    (portal,) = iscsi.export("a")["portals"]
    url = f"iscsi://{portal}/{PREFIX}:a/1"
    data = tmp_path / "data"
    data.write_bytes(os.urandom(1 << 20))
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", data, url)
    (first,) = iscsi.tgtds()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: reaches(portal), 15, "tgtd's return", 0.1)
    (second,) = iscsi.tgtds()
    assert second != first
    back = tmp_path / "back"
    run("qemu-img", "dd", "-f", "raw", "-O", "raw", f"if={url}", f"of={back}", "bs=1M", "count=1")
    assert back.read_bytes() == data.read_bytes()


def test_secrets_stand_nowhere_that_others_see(iscsi: Iscsi, tmp_path: Path) -> None:
    words = ["--chap", "alice", "--chap-secret-file", secret_file(tmp_path, SECRET)]
    words += ["--mutual-chap", "gate", "--mutual-chap-secret-file", secret_file(tmp_path, MUTUAL)]
    answer = iscsi.export("a", *words)
    (portal,) = answer["portals"]
    assert reaches(portal, login=f"alice%{SECRET}@")
    assert not reaches(portal)
    assert not reaches(portal, login=f"alice%{MUTUAL}@")
    shown = iscsi.command("list", "--json").stdout + iscsi.command("list").stdout
    shown += iscsi.log.read_text() + (iscsi.stack.folder / "mds.log").read_text()
    shown += json.dumps(answer)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        # Our own initiator above had it on its command line, and is gone.
        try:
            shown += path.read_text(errors="replace")
        except OSError:
            continue
    assert SECRET not in shown
    assert MUTUAL not in shown
    # It is asked for again after a restart of tgtd.
    os.kill(iscsi.tgtds()[0], signal.SIGKILL)
    wait_until(lambda: reaches(portal, login=f"alice%{SECRET}@"), 15, "tgtd's return", 0.1)
    assert not reaches(portal)


def test_an_acl_lets_in_whom_it_names(iscsi: Iscsi) -> None:
    answer = iscsi.export("a", "--acl", "iqn.2026-11.test:x", "--acl", "iqn.2026-11.test:y")
    (portal,) = answer["portals"]
    assert reaches(portal, who="x")
    assert not reaches(portal, who="z")
    iscsi.export_as_is("a", "--acl", "iqn.2026-11.test:z")
    assert reaches(portal, who="z")
    assert not reaches(portal, who="x")
    iscsi.export_as_is("a", "--acl", "any")
    assert reaches(portal, who="x")


def forget_what_is_exported(stack: Stack) -> None:
    """Then a volume can be deleted below its export, as in a store that was mended by hand."""
    stack.mds.stop()
    with contextlib.closing(sqlite3.connect(stack.folder / "mds/metadata.sqlite")) as db:
        assert db.execute("DELETE FROM kv WHERE space = 15").rowcount > 0
        db.commit()
    stack.mds.start()


def test_a_volume_that_is_gone_is_said_and_the_others_go_on(stack: Stack, iscsi: Iscsi) -> None:
    stack.create_volume("b", "1G")
    (portal,) = iscsi.export("a")["portals"]
    (other,) = iscsi.export("b")["portals"]
    (pid,) = [p for p in iscsi.tgtds() if b"cg-" in Path(f"/proc/{p}/cmdline").read_bytes()][:1]
    iscsi.daemon.stop()
    refused = stack.copygate("volume", "delete", "b", status=None)
    assert refused.returncode != 0
    assert "unexport it first" in refused.stderr
    forget_what_is_exported(stack)
    stack.copygate("volume", "delete", "b")
    iscsi.daemon.start()
    wait_until(lambda: reaches(portal), 15, "the other target", 0.1)
    assert iscsi.state("b") == "not served: the volume /b does not exist"
    assert iscsi.state("a") == "serving: None"
    assert not reaches(other, "b")
    assert iscsi.tgtds() != [pid]
    done = iscsi.export_as_is("a")
    assert done["state"] == "serving"
    # It comes back, and is served again.
    stack.copygate("volume", "recover", "b")
    wait_until(lambda: reaches(other, "b"), 20, "its return", 0.2)
    assert len(iscsi.tgtds()) == 2


def test_an_mds_that_is_down_at_the_start_is_waited_for(stack: Stack, iscsi: Iscsi) -> None:
    (portal,) = iscsi.export("a")["portals"]
    iscsi.daemon.stop()
    assert not reaches(portal)
    stack.mds.stop()
    iscsi.daemon.start()
    wait_until(lambda: "waiting for it" in iscsi.log.read_text(), 15, "the message", 0.1)
    answer = json.loads(
        run(COPYGATE, "iscsi", "sessions", "--run-dir", iscsi.folder, "--json").stdout
    )
    assert answer["sessions"] == []
    stack.mds.start()
    wait_until(lambda: reaches(portal), 20, "the target", 0.2)


def test_an_mds_that_goes_away_disturbs_nobody(stack: Stack, iscsi: Iscsi) -> None:
    (portal,) = iscsi.export("a")["portals"]
    stack.mds.kill()
    time.sleep(1)
    assert reaches(portal)
    stack.mds.start()
    assert iscsi.export_as_is("a", "--acl", "iqn.2026-11.test:x")["state"] == "serving"


def test_a_port_in_use_is_said_and_taken_when_it_is_free(iscsi: Iscsi) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        portal = f"127.0.0.1:{other.getsockname()[1]}"
        answer = iscsi.export("a", "--portal", portal, status=1)
        assert answer["state"] == "not served"
        assert "address already in use" in answer["reason"]
        assert portal in answer["reason"]
        assert iscsi.tgtds() == []
    wait_until(lambda: reaches(portal), 15, "the target", 0.2)


def test_sessions_are_listed(iscsi: Iscsi) -> None:
    (portal,) = iscsi.export("a")["portals"]
    assert "nobody is logged in" in iscsi.command("sessions").stdout
    program = subprocess.Popen(
        ["iscsi-perf", "-i", "iqn.2026-11.test:x", "-t", "60", f"iscsi://{portal}/{PREFIX}:a/1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: "test:x" in iscsi.command("sessions").stdout, 10, "the session", 0.1)
        (gateway,) = iscsi.exports()["a"]["gateways"]
        assert gateway["sessions"] == 1
    finally:
        program.kill()
        program.wait()


def test_resize(iscsi: Iscsi) -> None:
    (portal,) = iscsi.export("a")["portals"]
    done = iscsi.stack.copygate_json("iscsi", "resize", "a", "2G")
    assert done["targets"] == [f"{PREFIX}:a"]

    def has_two() -> bool:
        url = f"iscsi://{portal}/{PREFIX}:a/1"
        return "2147483648" in run("iscsi-readcapacity16", url, status=None).stdout

    wait_until(has_two, 15, "the new size", 0.2)


def test_4kn_and_read_only(iscsi: Iscsi) -> None:
    (portal,) = iscsi.export("a", "--4kn", "--read-only")["portals"]
    url = f"iscsi://{portal}/{PREFIX}:a/1"
    assert "BLOCK LENGTH IN BYTES:4096" in run("iscsi-readcapacity16", url).stdout
    (lun,) = iscsi.exports()["a"]["luns"]
    assert (lun["block_size"], lun["read_only"]) == (4096, True)


def test_kill_of_the_gateway_leaves_no_tgtd_and_the_next_one_serves(iscsi: Iscsi) -> None:
    (portal,) = iscsi.export("a")["portals"]
    (pid,) = iscsi.tgtds()
    os.kill(iscsi.daemon.pid, signal.SIGKILL)
    iscsi.daemon.wait(10)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 10, "the end of tgtd")
    iscsi.daemon.kill()
    iscsi.daemon.start()
    wait_until(lambda: reaches(portal), 15, "the target", 0.1)


def test_a_second_gateway_in_the_folder_is_refused(iscsi: Iscsi) -> None:
    done = iscsi.command("serve", status=5)
    assert "in use by another copygate" in done.stderr


def test_without_a_gateway_it_is_recorded_and_said(stack: Stack, gateways: Any) -> None:
    stack.create_volume("a", "1G")
    gateway = gateways()
    answer = gateway.export("a")
    assert answer["state"] == "recorded"
    assert "unknown" in gateway.command("list").stdout
    done = gateway.command("sessions", status=8)
    assert "no iSCSI gateway runs here" in done.stderr
    gateway.daemon.start()
    (entry,) = gateway.exports()["a"]["gateways"]
    wait_until(lambda: reaches(entry["portals"][0]), 15, "the target", 0.1)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["none"], 3, "none"),
        (["a", "--iqn", "Nonsense"], 2, "not a target's name"),
        (["a", "--lun", "0"], 2, "--lun 0"),
        (["a", "--portal", "192.0.2.1"], 2, "other machines"),
        (["a", "--portal", "192.0.2.1", "--allow-remote"], 2, "nothing checks"),
        (["a", "--chap", "u"], 2, "go together"),
        (["a", "--chap", "u", "--chap-secret-file", "/nowhere"], 2, "/nowhere"),
        (["a", "--chap", "u", "--chap-secret-file", "/dev/null"], 2, "12 to 16"),
        (["a", "--acl", "x y"], 2, "not an initiator"),
        (["a", "--no-chap", "--chap", "u", "--chap-secret-file", "/dev/null"], 2, "contradict"),
        (["a", "--gateway", "a;b"], 2, "not a gateway"),
    ],
)
def test_mistakes_are_said(iscsi: Iscsi, words: list[str], status: int, message: str) -> None:
    done = iscsi.command("export", *words, status=status)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert iscsi.exports() == {}


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """`copygate up` with the volumes "a" and "b" of 1 GiB, and the words given."""
    folder = Path(tempfile.mkdtemp(prefix="cg-", dir="/tmp"))
    daemons: list[Daemon] = []

    def start(*words: str) -> dict[str, Any]:
        log = tmp_path / "up.log"
        log.touch()
        daemon = Daemon(
            "up",
            [
                *(COPYGATE, "up", "--json", "--data", str(folder / "data"), "--wal-size", "64M"),
                *("--mds-listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0"),
                *("--chunkserver-listen", "127.0.0.1:0", "--run-dir", str(folder / "run")),
                *("--volume", "a:1G", "--volume", "b:1G", *words),
            ],
            log,
            lambda: log.read_text().rstrip().endswith("\n}"),
            env=CLEAN_ENV,
        )
        daemons.append(daemon)
        daemon.start()
        text = log.read_text().rpartition("\n--- ")[2]
        ready: dict[str, Any] = json.loads(text[text.index("\n{") :])
        return ready

    yield start
    for daemon in daemons:
        daemon.stop()
    shutil.rmtree(folder)


def test_up_exports_beside_nbd(up: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    port = free_port()
    ready = up("--iscsi", f"127.0.0.1:{port}")
    assert ready["iscsi"]["a"]["uri"] == f"iscsi://127.0.0.1:{port}/{PREFIX}:a/1"
    assert ready["iscsi"]["b"]["portals"] == [f"127.0.0.1:{port + 1}"]
    assert [item["reason"] for item in ready["iscsi"].values()] == [None, None]
    data = tmp_path / "data"
    data.write_bytes(os.urandom(1 << 20))
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", data, ready["iscsi"]["a"]["uri"])
    # What was written by the one door is read by the other, which takes the volume over.
    back = tmp_path / "back"
    words = ["qemu-img", "dd", "-f", "raw", "-O", "raw", f"if={ready['volumes']['a']}"]
    run(*words, f"of={back}", "bs=1M", "count=1")
    assert back.read_bytes() == data.read_bytes()


def test_up_says_what_is_wrong_with_its_portal(up: Callable[..., dict[str, Any]]) -> None:
    for text, message in (("nonsense", "not a portal"), ("192.0.2.1:3260", "--allow-remote")):
        done = run(COPYGATE, "up", "--data", "/tmp/never", "--iscsi", text, status=2)
        assert message in f"{done.stderr}"
    assert not Path("/tmp/never").exists()


def test_two_gateways_one_has_the_volume(stack: Stack, gateways: Callable[..., Iscsi]) -> None:
    stack.create_volume("a", "1G")
    first, second = gateways("g1"), gateways("g2")
    first.daemon.start()
    (portal,) = first.export("a")["portals"]
    (pid,) = first.tgtds()
    second.daemon.start()
    (other,) = second.export("a")["portals"]
    assert other != portal
    # The second is standby, the first goes on as it was.
    assert reaches(portal)
    assert not reaches(other)
    assert first.tgtds() == [pid]
    found = first.exports()["a"]
    assert [g["group"] for g in found["gateways"]] == [1, 2]
    assert found["luns"][0]["active_gateway"] == "g1"
    # A standby that is started again does not take the volume.
    second.daemon.stop()
    second.daemon.start()
    wait_until(lambda: second.state_of("a") == "serving", 15, "the second gateway", 0.1)
    assert reaches(portal)
    assert not reaches(other)
    # The one that has it has it again after a restart.
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: reaches(portal), 15, "the first gateway", 0.1)
    first.command("unexport", "a", "--gateway", "g1")
    assert not reaches(portal)
    assert [g["gateway"] for g in second.exports()["a"]["gateways"]] == ["g2"]


def test_a_volume_is_taken_back_from_an_nbd_client(stack: Stack, iscsi: Iscsi) -> None:
    (portal,) = iscsi.export("a")["portals"]
    assert not iscsi.exports()["a"]["luns"][0]["taken_over"]
    nbd = stack.gateway("a")
    run("nbdinfo", nbd.uri)
    wait_until(lambda: not reaches(portal), 10, "the loss of the volume", 0.1)
    (lun,) = iscsi.exports()["a"]["luns"]
    assert lun["taken_over"]
    assert "TAKEN OVER" in iscsi.command("list").stdout
    (pid,) = iscsi.tgtds()
    assert "this gateway's now" in iscsi.command("take", "a").stdout
    assert reaches(portal)
    assert iscsi.tgtds() == [pid]
    assert not iscsi.exports()["a"]["luns"][0]["taken_over"]
    assert iscsi.command("take", "none", status=3).stderr
