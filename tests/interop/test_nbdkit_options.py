# SPDX-License-Identifier: BSD-3-Clause
"""The plugins' options: bad values are refused at the start, with option, value and mend."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.nbdkit import command, refused
from support.process import free_port
from support.tools import CLEAN_ENV, ROOT, run

from gateway.nbd import options

# Without a virtual environment: Python also looks for one next to the python3 in PATH.
PLAIN_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}

BAD = [
    ((), "volume=", ["volume=", "volume list", "export name"]),
    ((), "volume=/", ["volume=/", "names no volume"]),
    ((), "volume=" + "x" * 5000, ["volume=", "4096"]),
    (("volume=a",), "volume=b", ["volume= is given twice"]),
    ((), "mds=", ["mds= is empty", "HOST:PORT"]),
    (("volume=a",), "mds=nonsense", ["mds=", "nonsense", "HOST:PORT", "127.0.0.1:6700"]),
    (("volume=a",), "mds=127.0.0.1:0", ["mds=", "127.0.0.1:0"]),
    (("volume=a",), "mds=127.0.0.1:65536", ["mds=", "127.0.0.1:65536"]),
    (("volume=a",), "mds=127.0.0.1:6700,,", ["mds=", "127.0.0.1:6700,,"]),
    (("mds=127.0.0.1:1",), "mds=127.0.0.1:2", ["mds= is given twice"]),
    ((), "owner=", ["owner= is empty", "copygate"]),
    (("owner=root",), "password-file=/nonexistent", ["password-file=/nonexistent", "No such file"]),
    (("owner=root",), "password-file=/", ["password-file=/", "directory"]),
    (("owner=root",), "password-file=/dev/null", ["password-file=/dev/null", "is empty"]),
    (("owner=root",), "password-file=/dev/zero", ["password-file=/dev/zero", "too long"]),
    ((), "password-file=/proc/self/comm", ["password-file=", "owner=root"]),
    ((), "shared=perhaps", ["shared=perhaps", "shared=yes or shared=no"]),
    (("shared=yes",), "shared=yes", ["shared= is given twice"]),
    ((), "timeout=0", ["timeout=0 ", "between 1 and 3600"]),
    ((), "timeout=3601", ["timeout=3601 ", "between 1 and 3600"]),
    ((), "timeout=-5", ["timeout=-5 ", "between 1 and 3600"]),
    ((), "timeout=2.5", ["timeout=2.5 ", "whole seconds"]),
    ((), "timeout=25s", ["timeout=25s ", "whole seconds"]),
    ((), "timeout=", ["timeout= ", "whole seconds"]),
    ((), "timeout=99999999999999999999", ["timeout=9999", "between 1 and 3600"]),
    (("timeout=5",), "timeout=5", ["timeout= is given twice"]),
    ((), "readonly=1", ["readonly=1", "nbdkit with -r"]),
    ((), "size=1G", ["size= is not an option", "volume=", "timeout="]),
]


@pytest.mark.parametrize(("before", "bad", "said"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_option_is_refused_with_the_mend(
    plugin: str, before: tuple[str, ...], bad: str, said: list[str]
) -> None:
    """Both plugins say the same; nbdkit does not start."""
    error = refused(plugin, *before, bad)
    for part in said:
        assert part in error


def test_the_password_is_never_printed(plugin: str, tmp_path: Path) -> None:
    """Not even where the options are refused afterwards."""
    secret = tmp_path / "password"
    secret.write_text("s3cret-of-root\n")
    error = refused(plugin, f"password-file={secret}")
    assert "s3cret" not in error


@pytest.mark.parametrize("text", ["pass\n", "pass\r\n", "pass", "pass\nsecond line\n"])
def test_the_password_is_the_files_first_line(tmp_path: Path, text: str) -> None:
    """Editors end files with a newline, some with two characters."""
    secret = tmp_path / "password"
    secret.write_bytes(text.encode())
    parsed = options.Options()
    parsed.set("password-file", str(secret))
    assert parsed.password == "pass"  # noqa: S105
    assert "pass'" not in repr(parsed)


def test_a_missing_metadata_server_is_named_at_the_start(plugin: str) -> None:
    """Within the deadline, with the address."""
    address = f"127.0.0.1:{free_port()}"
    error = refused(plugin, "volume=disk", f"mds={address}", "timeout=2")
    assert address in error
    assert "disk" in error


def test_a_failed_start_shows_although_nbdkit_goes_into_the_background(plugin: str) -> None:
    """The check comes before the fork: a script sees the exit status."""
    words = command(plugin, "volume=disk", f"mds=127.0.0.1:{free_port()}", "timeout=2")
    words[1:1] = ["-U", f"/tmp/copygate-test-{os.getpid()}.sock"]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=30, check=False, env=CLEAN_ENV
    )
    assert done.returncode == 1
    assert "disk" in done.stderr


def test_the_c_plugin_explains_its_options() -> None:
    """nbdkit copygate --help."""
    shown = run(*command("c", "--help")).stdout
    for option in ("volume=", "mds=", "owner=", "password-file=", "shared=", "timeout="):
        assert option in shown


def test_the_version_can_be_asked(plugin: str) -> None:
    """nbdkit --dump-plugin."""
    assert "copygate_version=copygate " in run(*command(plugin, "--dump-plugin")).stdout


def test_the_python_plugin_runs_from_the_source_tree() -> None:
    """It finds the package in the tree's .venv."""
    script = ROOT / "gateway/nbd/plugin.py"
    if not (ROOT / ".venv").is_dir():
        pytest.skip("the tree has no .venv")
    done = subprocess.run(
        ["nbdkit", "python", str(script), "--dump-plugin"],
        capture_output=True,
        text=True,
        check=False,
        env=PLAIN_ENV,
        cwd="/",
    )
    assert "copygate_version=" in done.stdout, done.stderr


def test_the_python_plugin_without_its_package_says_what_to_do(tmp_path: Path) -> None:
    """Copied elsewhere, it names where it looked and how to mend it."""
    script = tmp_path / "gateway/nbd/plugin.py"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / "gateway/nbd/plugin.py", script)
    done = subprocess.run(
        ["nbdkit", "-U", "-", "python", str(script), "volume=a", "--run", "true"],
        capture_output=True,
        text=True,
        check=False,
        env=PLAIN_ENV,
    )
    assert done.returncode != 0
    assert "VIRTUAL_ENV" in done.stderr
    assert "gateway.core" in done.stderr
    assert "Traceback" not in done.stderr
