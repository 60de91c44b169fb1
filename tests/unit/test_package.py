# SPDX-License-Identifier: BSD-3-Clause
"""What importing the package does to the process."""

import os
import subprocess
import sys


def test_grpc_does_not_prepare_children_for_a_fork_without_exec() -> None:
    """Else a child may abort before its program begins (grpc issue 43055)."""
    environment = {k: v for k, v in os.environ.items() if k != "GRPC_ENABLE_FORK_SUPPORT"}
    seen = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            "import os, gateway; print(os.environ['GRPC_ENABLE_FORK_SUPPORT'])",
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout.strip() == "false"
