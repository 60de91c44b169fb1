# SPDX-License-Identifier: BSD-3-Clause
"""Prints the requirements of pyproject.toml, one a line: the build's, the project's and the
extras'.

The build happens without isolation, so that an incremental build folder stays valid; so everything
that it needs is installed beforehand, from the one list that there is.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """Returns what `pip install` needs for building, running and the named extras."""
    data = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    found = [*data["build-system"]["requires"], *data["project"]["dependencies"]]
    for extra in extras:
        found += data["project"]["optional-dependencies"][extra]
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent
    print("\n".join(requirements(root / "pyproject.toml", sys.argv[1:])))
