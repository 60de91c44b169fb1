# SPDX-License-Identifier: BSD-3-Clause
"""The units of systemd: well formed, hardened alike, with commands and settings that exist."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from support.tools import ROOT

from gateway.cli.main import COMMANDS

UNITS = sorted((ROOT / "systemd").glob("*.service"))
HARDENED = [
    *("NoNewPrivileges=yes", "CapabilityBoundingSet=", "ProtectSystem=strict", "ProtectHome=yes"),
    *("PrivateTmp=yes", "PrivateDevices=yes", "ProtectProc=invisible", "RestrictNamespaces=yes"),
    *("RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX", "SystemCallArchitectures=native"),
    *("UMask=0077", "User=copygate", "KillMode=mixed", "Restart=on-failure"),
]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_it_is_hardened_and_its_command_exists(unit: Path) -> None:
    lines = unit.read_text().splitlines()
    assert [line for line in HARDENED if line not in lines] == []
    (start,) = [line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart=")]
    assert shlex.split(start)[1] in COMMANDS


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_it_waits_for_the_addresses_of_a_cluster(unit: Path) -> None:
    """They cannot be bound earlier, and after five tries within seconds systemd gives up."""
    lines = unit.read_text().splitlines()
    assert "Wants=network-online.target" in lines
    assert any(line.startswith("After=network-online.target") for line in lines)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_no_fault(unit: Path, tmp_path: Path) -> None:
    program = tmp_path / "copygate"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / unit.name.replace("@", "@x")
    copy.write_text(unit.read_text().replace("/opt/copygate/bin/copygate", str(program)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    complaints = [line for line in done.stderr.splitlines() if unit.name.split("@")[0] in line]
    assert complaints == []
