# SPDX-License-Identifier: BSD-3-Clause
"""libiscsi's conformance suites against our units: every test's outcome is written down here.

A test that fails or is skipped and is not in the tables fails this test, and so does one that is in
a table and passes. docs/iscsi-conformance.md has the same tables for readers, and a test compares.
"""

import re
from pathlib import Path

import pytest
from support import conformance
from support.conformance import FAILED, HUNG, PASSED, SKIPPED, Result
from support.iscsi import Lun, Target
from support.iscsi_targets import Targets
from support.tools import ROOT

LIMIT = 180  # seconds for a suite; most take less than one
MUST_RUN = (
    *("CompareAndWrite", "GetLBAStatus", "Unmap", "WriteSame10", "WriteSame16"),
    *("PrinReadKeys", "PrinServiceactionRange", "PrinReportCapabilities"),
    *("ProutRegister", "ProutReserve", "ProutClear", "ProutPreempt"),
)


def _each(reason: str, **suites: str) -> dict[str, str]:
    """The same reason for tests, given as suite="TEST TEST"."""
    return {f"{suite}.{test}": reason for suite, tests in suites.items() for test in tests.split()}


NOT_RUN = {
    "Sanitize": "SANITIZE is not supported; the suite waits for an answer for ever",
}
"""Suites that are left out."""

EXPECTED_FAILURES = {
    "GetLBAStatus.UnmapSingle": (
        "the test's own mistake where a physical block has eight logical ones: it asks for block "
        "n + 1 and wants n + 8; it passes on a 4Kn unit"
    ),
    "iSCSIdatasn.iSCSIDataSnInvalid": (
        "tgtd's iSCSI layer does not look at the DataSN of Data-Out PDUs"
    ),
}
"""Tests that fail, each with what fails and whose doing it is."""

EXPECTED_SKIPS = {
    **_each(
        "EXTENDED COPY is not supported",
        ExtendedCopy="Simple ParamHdr DescrLimits DescrType ValidTgtDescr ValidSegDescr",
        ReceiveCopyResults="CopyStatus OpParams",
    ),
    **_each(
        "the unit is a disk, not a removable medium",
        PreventAllow="Simple Eject ITNexusLoss Logout WarmReset ColdReset LUNReset 2ITNexuses",
        StartStopUnit="Simple",
    ),
    **_each(
        "there is no defect list to read: the store repairs by itself",
        ReadDefectData10="Simple",
        ReadDefectData12="Simple",
    ),
    **_each(
        "the INVALID FIELD IN CDB that it asks for comes, but without a field pointer, and then it "
        "takes it for a command that is not implemented",
        ReportSupportedOpcodes="OneCommand",
    ),
    **_each(
        "tgtd's iSCSI layer does not do target resets", Reserve6="TargetColdReset TargetWarmReset"
    ),
    **_each(
        "WRITE ATOMIC is optional and not supported",
        WriteAtomic16="Simple BeyondEol ZeroBlocks WriteProtect DpoFua VPD",
    ),
    **_each(
        "zero blocks would mean all up to the end, which VPD page B0 excludes (WSNZ)",
        WriteSame10="ZeroBlocks",
        WriteSame16="ZeroBlocks",
    ),
}
"""Tests that iscsi-test-cu skips by itself."""

THICK_ONLY_SKIPS = _each(
    "it wants a thin unit, and runs on one",
    CompareAndWrite="InvalidDataOutSize",
    GetLBAStatus="UnmapSingle",
    Inquiry="BlockLimits",
    Unmap="Simple VPD ZeroBlocks",
    WriteSame10="Unmap UnmapUnaligned UnmapUntilEnd InvalidDataOutSize",
    WriteSame16="Unmap UnmapUnaligned UnmapUntilEnd InvalidDataOutSize",
)
"""Those that it skips on a unit that is not thin provisioned, besides."""

READ_ONLY_SUITE = "ReadOnly"
"""It needs a write-protected unit, and skips itself on any other."""


def _run(target: Target, log: Path, suites: dict[str, list[str]]) -> list[Result]:
    urls = [target.url(portal=number) for number in range(len(target.ports))]
    results = []
    for suite, tests in suites.items():
        results += conformance.run_suite(suite, tests, urls, log, LIMIT)
        assert target.daemon.running, f"tgtd died in {suite}"
    return results


def _judge(results: list[Result], skips: dict[str, str]) -> None:
    """Compares with the tables; raises with everything that differs."""
    wrong = []
    expected = dict.fromkeys(EXPECTED_FAILURES, FAILED) | dict.fromkeys(skips, SKIPPED)
    for result in results:
        if result.outcome != expected.get(result.name, PASSED):
            text = f"{result.name}: {result.outcome}, not {expected.get(result.name, PASSED)}"
            wrong.append(f"{text}\n    {result.said[:600]}" if result.outcome != PASSED else text)
    counts = {o: sum(r.outcome == o for r in results) for o in (PASSED, FAILED, SKIPPED, HUNG)}
    print("iscsi-test-cu:", ", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    assert not wrong, f"{counts}\n" + "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["thin", "thick"])
def test_every_conformance_test_ends_as_the_tables_say(
    targets: Targets, tmp_path: Path, kind: str
) -> None:
    """All suites, one process each, over two portals, which lets MultipathIO run."""
    reason = conformance.missing()
    if reason:
        pytest.skip(reason)
    targets.volume(size="256M")
    options = {"thin": "no"} if kind == "thick" else {}
    target = targets.target([Lun("disk", options=options)], portals=2)
    suites = {
        suite: tests
        for suite, tests in conformance.list_tests().items()
        if suite not in NOT_RUN and suite != READ_ONLY_SUITE
    }
    results = _run(target, tmp_path / "iscsi-test-cu.log", suites)
    skips = {**EXPECTED_SKIPS, **(THICK_ONLY_SKIPS if kind == "thick" else {})}
    _judge(results, skips)
    ran = {r.suite for r in results if r.outcome == PASSED}
    assert ran >= {*MUST_RUN, "MultipathIO"} - ({"Unmap"} if kind == "thick" else set())


def test_lba_status_suite_passes_on_a_4kn_unit(targets: Targets, tmp_path: Path) -> None:
    """Where a logical block is a physical one, the test that is wrong otherwise is right."""
    reason = conformance.missing()
    if reason:
        pytest.skip(reason)
    targets.volume(size="256M")
    target = targets.target([Lun("disk", options={"block": "4096"})])
    suite = {"GetLBAStatus": conformance.list_tests()["GetLBAStatus"]}
    results = _run(target, tmp_path / "iscsi-test-cu.log", suite)
    assert {r.outcome for r in results} == {PASSED}, results


def test_read_only_suite_passes_on_a_write_protected_unit(targets: Targets, tmp_path: Path) -> None:
    """Every writing command is refused with DATA PROTECT."""
    reason = conformance.missing()
    if reason:
        pytest.skip(reason)
    targets.volume(size="256M")
    target = targets.target([Lun("disk", options={"read-only": "yes"})])
    tests = conformance.list_tests()[READ_ONLY_SUITE]
    _judge(_run(target, tmp_path / "iscsi-test-cu.log", {READ_ONLY_SUITE: tests}), {})


def test_tables_are_those_of_the_documentation() -> None:
    """Every entry is in docs/iscsi-conformance.md with its reason, and nothing else is."""
    text = (ROOT / "docs/iscsi-conformance.md").read_text()
    rows = re.findall(r"^\| `([\w.-]+)` \| (.+?) \|$", text, re.MULTILINE)
    tables = (NOT_RUN, EXPECTED_FAILURES, EXPECTED_SKIPS, THICK_ONLY_SKIPS)
    assert sorted(rows) == sorted(item for table in tables for item in table.items())
