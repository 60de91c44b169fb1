# SPDX-License-Identifier: BSD-3-Clause
"""libnbd's Python module, which Debian installs for the system's Python only.

A virtual environment does not see it, and adding all of dist-packages to sys.path would let the
system's other modules in; so it is loaded by its path.
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_FOLDER = Path("/usr/lib/python3/dist-packages")


def _load(name: str) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.machinery.PathFinder.find_spec(name, [str(_FOLDER)])
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} not found in {_FOLDER}: install Debian's python3-libnbd")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_load("libnbdmod")
nbd = _load("nbd")


def unix_uri(socket: Path | str, export: str = "") -> str:
    """The NBD URI of a unix socket."""
    return f"nbd+unix:///{export}?socket={socket}"


def connect(uri: str, *, block_status: bool = False) -> "nbd.NBD":
    """A connected handle without libnbd's own alignment checks: the server sees all."""
    handle = nbd.NBD()
    if block_status:
        handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.set_uri_allow_local_file(True)
    handle.connect_uri(uri)
    handle.set_strict_mode(0)
    return handle


def close(handle: "nbd.NBD") -> None:
    """Ends a connection as the protocol asks, if it is still usable."""
    if handle.aio_is_ready():
        handle.shutdown()
