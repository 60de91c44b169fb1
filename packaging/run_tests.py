# SPDX-License-Identifier: BSD-3-Clause
"""Runs the C tests (meson) and the Python tests (pytest) and ends with one line of totals.

    run_tests.py --c BUILD_FOLDER [-- PYTEST_ARGUMENTS]

Exits with 0 only if nothing failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree


@dataclass
class Totals:
    """Counts of one run; `failed` includes errors."""

    passed: int = 0
    failed: int = 0
    skipped: list[str] = field(default_factory=list)

    def add_report(self, report: Path, kind: str) -> None:
        """Adds a JUnit report, which meson and pytest both write."""
        for case in ElementTree.parse(report).getroot().iter("testcase"):  # noqa: S314 - our own
            name = f"{kind}: {case.get('classname', '')} {case.get('name', '')}"
            skipped = case.find("skipped")
            if case.find("failure") is not None or case.find("error") is not None:
                self.failed += 1
            elif skipped is not None:
                self.skipped.append(f"{name}: {skipped.get('message') or 'skipped'}")
            else:
                self.passed += 1


def run(c_folder: Path, pytest_arguments: list[str]) -> int:
    """Runs both; returns the exit status for the shell."""
    totals = Totals()
    c_report = c_folder / "meson-logs/testlog.junit.xml"
    c_report.unlink(missing_ok=True)
    c_status = subprocess.run(
        ["meson", "test", "-C", str(c_folder), "--print-errorlogs"],
        check=False,
    ).returncode
    with tempfile.TemporaryDirectory(prefix="copygate-test-") as folder:
        report = Path(folder) / "pytest.xml"
        pytest = [sys.executable, "-P", "-m", "pytest", "-ra", f"--junitxml={report}"]
        python_status = subprocess.run([*pytest, *pytest_arguments], check=False).returncode
        for path, kind in ((c_report, "C"), (report, "Python")):
            if path.is_file():
                totals.add_report(path, kind)
            else:
                print(f"run_tests: the {kind} tests left no report", file=sys.stderr)
                totals.failed += 1
    for line in totals.skipped:
        print(f"skipped: {line}")
    # A run that failed as a whole (a build error, no tests) must not look like a success.
    if (c_status or python_status) and not totals.failed:
        totals.failed = 1
    print(f"{totals.passed} passed, {totals.failed} failed, {len(totals.skipped)} skipped")
    return 1 if totals.failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--c", type=Path, required=True, help="meson's build folder")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest")
    options = parser.parse_args()
    sys.exit(run(options.c, options.pytest))
