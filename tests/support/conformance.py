# SPDX-License-Identifier: BSD-3-Clause
"""Runs libiscsi's iscsi-test-cu, one suite a process, and reads what became of each of its tests.

Its exit status says nothing, a test that it skipped counts as passed there, and one suite that
hangs takes the rest with it: hence a process and a time limit for each suite.
"""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support.tools import which

PASSED, FAILED, SKIPPED, HUNG = "passed", "failed", "skipped", "hung"

_TEST = re.compile(r"^  Test: (.+?) \.\.\.", re.MULTILINE)


def missing() -> str | None:
    """Why the suites cannot run, in words for a skip; None if they can."""
    if which("iscsi-test-cu") is None:
        return "no iscsi-test-cu: packaging/install-deps.sh test installs it"
    return None


@dataclass(frozen=True)
class Result:
    """One test of one suite; `said` is what was printed while it ran."""

    suite: str
    test: str
    outcome: str
    said: str

    @property
    def name(self) -> str:
        """As the tables write it."""
        return f"{self.suite}.{self.test}"


def list_tests() -> dict[str, list[str]]:
    """The suites with their tests."""
    done = subprocess.run(
        ["iscsi-test-cu", "--list"], capture_output=True, text=True, timeout=30, check=False
    )
    suites: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        words = line.strip().split(".")
        if words[0] == "ALL" and len(words) == 3:
            suites.setdefault(words[1], []).append(words[2])
    assert suites, f"iscsi-test-cu lists no test:\n{done.stdout}{done.stderr}"
    return suites


def parse(suite: str, tests: Sequence[str], output: str) -> list[Result]:
    """What became of each of `tests`; one that the output does not name, or does not end, hung."""
    pieces: dict[str, str] = {}
    starts = list(_TEST.finditer(output))
    for start, following in zip(starts, [*starts[1:], None], strict=True):
        pieces[start.group(1)] = output[start.end() : following.start() if following else None]
    results = []
    for test in tests:
        said = pieces.get(test, "")
        end = re.search(r"(passed|FAILED)\s*(\n|$| {4}\[)", said)
        if end is None:
            outcome = HUNG
        elif end.group(1) == "FAILED":
            outcome = FAILED
        elif "[SKIPPED]" in said[: end.start()]:
            outcome = SKIPPED
        else:
            outcome = PASSED
        results.append(Result(suite, test, outcome, said[:2000].strip()))
    return results


def run_suite(
    suite: str, tests: Sequence[str], urls: Sequence[str], log: Path, timeout: float
) -> list[Result]:
    """Runs one suite against one or two URLs of the same logical unit."""
    words = ["iscsi-test-cu", "--dataloss", "--test", f"ALL.{suite}", *urls]
    try:
        done = subprocess.run(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
        output = done.stdout
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
    text = output.decode(errors="replace")
    with log.open("a") as out:
        out.write(f"--- {' '.join(words)}\n{text}\n")
    return parse(suite, tests, text)
