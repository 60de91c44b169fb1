# SPDX-License-Identifier: BSD-3-Clause
"""The command itself: messages, exit codes, what a start costs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("COPYGATE_")}


def copygate(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "gateway.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=ENVIRONMENT | environment,
        stdin=subprocess.DEVNULL,
    )


def test_version() -> None:
    done = copygate("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("copygate ")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("voluem",), 2, "did you mean 'volume'?"),
        (("volume", "create", "v"), 2, "SIZE"),
        (("volume", "create", "v", "10GB"), 2, "10G or 10GiB"),
        (("up", "--volume", "v:"), 2, "NAME:SIZE"),
        (("up", "--volume", "v:1G", "--volume", "v:2G"), 2, "twice"),
        (("up", "--mds-listen", "0.0.0.0:6700"), 2, "--allow-remote"),
        (("mds", "--data", "/proc/none"), 2, "/proc/none"),
        (("up", "--data", "/dev/null/x"), 2, "/dev/null/x"),
        (("status", "--mds", "nonsense"), 2, "HOST:PORT"),
        (("status", "--mds", "127.0.0.1:1"), 8, "127.0.0.1:2"),
        (("import", "/nowhere.img", "v"), 3, "/nowhere.img"),
        (("bench", "v", "--rw", "randwrite"), 2, "--destroy-data"),
        (("completion", "tcsh"), 2, "tcsh"),
        (("copyset", "show", "seven"), 2, "write it as 1-4"),
        (("copyset", "show", "1-²"), 2, "write it as 1-4"),
        (("copyset", "show", f"1-{1 << 32}"), 2, "too large"),
        (("copyset", "move", "1-4", "--from", "1"), 2, "--to"),
        (("retire", "0"), 2, "0 is not in the range"),
        (("retire", "1", "--cancel", "--to", "2"), 2, "stands alone"),
        (("mds", "--data", "/tmp", "--replicas", "8"), 2, "8 is not in the range"),
        (("up", "--replicas", "three"), 2, "'three'"),
        (
            (
                *("up", "--data", "/dev/null/x", "--replicas", "3"),
                *("--chunkserver-listen", "127.0.0.1:65534"),
            ),
            2,
            "65533 at most",
        ),
    ],
)
def test_mistakes_get_a_line_or_two_and_a_code(
    arguments: tuple[str, ...], status: int, message: str
) -> None:
    done = copygate(*arguments)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    assert done.stdout == ""


def test_errors_are_json_too_on_request() -> None:
    done = copygate("--json", "status", "--mds", "127.0.0.1:1")
    error = json.loads(done.stdout)["error"]
    assert error["exit_code"] == done.returncode == 8
    assert "127.0.0.1:2" in error["context"]["address"]


def test_a_traceback_only_for_those_who_debug() -> None:
    assert "Traceback" in copygate("--debug", "status", "--mds", "nonsense").stderr


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(  # noqa: S602 - a pipe is what is tested
        f"{sys.executable} -P -m gateway.cli.main --help 2>{tmp_path}/err | head -1",
        shell=True,
        check=False,
        timeout=60,
        capture_output=True,
        env=ENVIRONMENT,
    )
    assert done.stdout.startswith(b"Usage")
    assert b"Traceback" not in (tmp_path / "err").read_bytes()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_the_command(shell: str) -> None:
    done = copygate("completion", shell)
    assert done.returncode == 0
    assert "_COPYGATE_COMPLETE" in done.stdout


def test_completion_completes() -> None:
    done = copygate(COMP_WORDS="copygate vol", COMP_CWORD="1", _COPYGATE_COMPLETE="bash_complete")
    assert "volume" in done.stdout


def test_a_start_brings_neither_grpc_nor_rich() -> None:
    code = (
        "import sys; from gateway.cli.main import cli; cli(['volume', '--help'], "
        "standalone_mode=False); print(sorted(m for m in sys.modules if m in ('grpc', 'rich')))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip().endswith("[]")
