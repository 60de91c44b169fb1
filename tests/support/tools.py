# SPDX-License-Identifier: BSD-3-Clause
"""Runs other people's programs and says clearly what went wrong."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# The command of the environment that the tests run in, not one of the same name elsewhere.
COPYGATE = str(Path(sys.executable).with_name("copygate"))

# A developer's own configuration must not reach the tests.
CLEAN_ENV = {k: v for k, v in os.environ.items() if not k.startswith("COPYGATE_")}


def same(found: bytes | bytearray, expected: bytes | bytearray) -> bool:
    """Compares data in an assertion; pytest's own report on megabytes that differ takes minutes."""
    return bytes(found) == bytes(expected)


class ToolError(AssertionError):
    """A program ended with another status than expected; the message carries its output."""


def which(program: str) -> str | None:
    """Where `program` is; looks into the sbin folders too, which users often lack in PATH."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def run(
    *argv: str | Path,
    timeout: float = 60,
    status: int | None = 0,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end. `status` None accepts any exit status."""
    words = [str(word) for word in argv]
    words[0] = which(words[0]) or words[0]
    done = subprocess.run(
        words,
        input=stdin,
        capture_output=True,
        timeout=timeout,
        check=False,
        env={**CLEAN_ENV, **(env or {})},
    )
    out, err = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
    if status is not None and done.returncode != status:
        raise ToolError(
            f"{' '.join(words)}\n  ended with {done.returncode}, expected {status}\n{out}\n{err}"
        )
    return subprocess.CompletedProcess(words, done.returncode, out, err)


def copygate(*arguments: str | Path, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Runs the `copygate` command."""
    return run(COPYGATE, *arguments, **kwargs)


def copygate_json(*arguments: str | Path, **kwargs: Any) -> Any:
    """Runs `copygate ... --json` and returns what it printed."""
    return json.loads(copygate(*arguments, "--json", **kwargs).stdout)


def fio(
    uri: str, *options: str, workdir: Path, timeout: float = 120, name: str = "job"
) -> dict[str, Any]:
    """Runs one fio job through its nbd engine; returns the job's part of the JSON report."""
    return fio_raw(
        f"--name={name}",
        "--ioengine=nbd",
        f"--uri={uri}",
        *options,
        workdir=workdir,
        timeout=timeout,
    )


def fio_raw(*options: str, workdir: Path, timeout: float = 120) -> dict[str, Any]:
    """Runs fio with one job; returns the job's part of its JSON report. Raises on any IO error."""
    report = workdir / f"fio-{time.monotonic_ns()}.json"
    # No status files in the caller's folder: fio writes verify state next to where it runs.
    words: Sequence[str] = [which("fio") or "fio", *options, "--output-format=json"]
    words = [*words, f"--output={report}", "--verify_state_save=0"]
    done = subprocess.run(
        words, capture_output=True, timeout=timeout, check=False, cwd=workdir, text=True
    )
    text = report.read_text() if report.exists() else ""
    if done.returncode != 0:
        raise ToolError(f"{' '.join(words)}\n{done.stdout}\n{done.stderr}\n{text[-3000:]}")
    # fio puts its notes in front of the JSON, into the same file.
    job: dict[str, Any] = json.loads(text[text.index("{") :])["jobs"][0]
    if job["error"] != 0:
        raise ToolError(f"{' '.join(words)}\n{done.stderr}\n{text[-3000:]}")
    return job
