# SPDX-License-Identifier: BSD-3-Clause
"""The nbdkit plugin in Python: ``nbdkit python .../gateway/nbd/plugin.py volume=NAME``.

nbdkit embeds the system's Python and runs this file as ``__main__``; it knows nothing of virtual
environments, so the first thing here is to find the package. docs/nbd.md is the manual.
"""

from __future__ import annotations

import importlib.util
import os
import site
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import nbdkit  # type: ignore[import-not-found]

API_VERSION = 2

# nbdkit 1.32 takes requests of at most 64 MiB (MAX_REQUEST_SIZE in its server/internal.h).
_REQUEST_MAX = 64 << 20


def _is_importable() -> bool:
    try:
        if importlib.util.find_spec("gateway.core") is not None:
            return True
    except ModuleNotFoundError:
        return False
    # It may have met a source tree, which must not stay in the way of the installed package.
    sys.modules.pop("gateway", None)
    return False


def _find_package() -> None:
    """Puts the installed package on sys.path, or ends nbdkit with what to do.

    Installed, it is two folders above this file. From a source tree, a virtual environment has it.
    """
    root = Path(__file__).resolve().parents[2]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    environments = [Path(os.environ["VIRTUAL_ENV"])] if os.environ.get("VIRTUAL_ENV") else []
    environments.append(root / ".venv")
    folders = [root, *(path / "lib" / version / "site-packages" for path in environments)]
    if _is_importable():  # PYTHONPATH, or a package of the system
        return
    for folder in folders:
        if any((folder / "gateway").glob("core.*.so")):
            sys.path.insert(0, str(folder))
            # Its dependencies are next to it, some of them by way of .pth files.
            site.addsitedir(str(folder))
            return
        if folder != root and folder.is_dir():
            # An editable installation has a finder in a .pth file instead of the package.
            site.addsitedir(str(folder))
            if _is_importable():
                return
    sys.exit(
        f"nbdkit: error: {__file__}: cannot find the compiled package gateway.core for this "
        f"nbdkit's {version}; looked in {', '.join(map(str, folders))}: install copygate with "
        f"that Python, or set VIRTUAL_ENV to the environment that has it"
    )


_find_package()

from gateway.errors import CopygateError  # noqa: E402
from gateway.nbd import callbacks  # noqa: E402
from gateway.nbd.callbacks import Export  # noqa: E402
from gateway.nbd.exports import Exports, nbd_errno, plain_name  # noqa: E402
from gateway.nbd.options import Options  # noqa: E402

# nbdkit prints exceptions through traceback.format_exception. Errors that a user can meet are one
# sentence; where in the code they arose says nothing to him.
_format_exception = traceback.format_exception


def _format_briefly(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> list[str]:
    if isinstance(error, CopygateError):
        return [f"{error}: {error.hint}" if error.hint else str(error)]
    if isinstance(error, callbacks.QuietError):
        return [str(error)]
    return _format_exception(kind, error, trace)


traceback.format_exception = _format_briefly  # type: ignore[assignment]

_options = Options()
_exports: Exports | None = None


def _served() -> Exports:
    if _exports is None:
        raise CopygateError("nbdkit has not started this plugin")
    return _exports


def dump_plugin() -> None:
    """For nbdkit --dump-plugin."""
    from gateway import core  # noqa: PLC0415

    sys.stdout.write(f"copygate_version={core.version()}\n")
    sys.stdout.flush()


def config(key: str, value: str) -> None:
    """One key=value of the command line."""
    _options.set(key, value)


def config_complete() -> None:
    """After the last key=value."""
    _options.complete()


def thread_model() -> int:
    """Requests in parallel: the core is made for it, and the GIL is released while it works."""
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def get_ready() -> None:
    """Before nbdkit forks: what can fail at the start fails here, where the user sees it."""
    probe = Exports(_options)
    try:
        probe.check()
    finally:
        probe.close()


def after_fork() -> None:
    """The core's thread starts here: threads do not survive a fork."""
    global _exports  # noqa: PLW0603
    _exports = Exports(_options)


def cleanup() -> None:
    """No connection is left."""
    if _exports is not None:
        _exports.close()


def list_exports(readonly: bool, is_tls: bool) -> Iterable[tuple[str, str]]:
    """The volume served, or all volumes of the store where the client chooses."""
    if _options.volume is not None:
        return [(plain_name(_options.volume), "Copygate volume")]
    from gateway.nbd.listing import list_volumes  # noqa: PLC0415  asyncio, only where it is needed

    return [(name, "Copygate volume") for name in list_volumes(_options)]


def default_export(readonly: bool, is_tls: bool) -> str:
    """What a client gets that names no export."""
    return plain_name(_options.volume or "")


def open(readonly: bool) -> Export:  # noqa: A001  nbdkit looks the callback up by this name
    """A connection: opens the volume or joins those who have it open."""
    try:
        name = _served().choose(nbdkit.export_name())
        return _served().acquire(name, read_only=readonly)
    except CopygateError as error:
        nbdkit.set_error(nbd_errno(error))
        raise


def close(h: Export) -> None:
    """A connection ends; the last one closes the volume."""
    _served().release(h)


def export_description(h: Export) -> str:
    """For people who list the exports."""
    return f"Copygate volume {h.name}"


def get_size(h: Export) -> int:
    """Bytes, as of now: a resize shows to connections made after it."""
    return h.volume.info().size


def block_size(h: Export) -> tuple[int, int, int]:
    """Minimum (the store merges unaligned writes itself), preferred, maximum."""
    return (1, h.volume.info().block_size, _REQUEST_MAX)


def can_write(h: Export) -> bool:
    """Not with nbdkit -r."""
    return not h.volume.info().read_only


def can_flush(h: Export) -> bool:
    """Yes: a completed write is durable."""
    return True


def can_fua(h: Export) -> int:
    """Native, for the same reason."""
    return int(nbdkit.FUA_NATIVE)


def can_trim(h: Export) -> bool:
    """Yes: space goes back to the store."""
    return True


def can_zero(h: Export) -> bool:
    """Yes; no data is sent where the store has the operation."""
    return True


def can_fast_zero(h: Export) -> bool:
    """Only our own store zeroes without writing zeros."""
    return h.volume.info().native


def can_extents(h: Export) -> bool:
    """Yes: what is allocated is known."""
    return True


def can_multi_conn(h: Export) -> bool:
    """Yes: connections share one opening, and a completed write is seen by all of them."""
    return True


def is_rotational(h: Export) -> bool:
    """No seek order to respect."""
    return False


# Every request comes through these: they are C functions, no bytecode runs.
pread = callbacks.pread
pwrite = callbacks.pwrite
flush = callbacks.flush
trim = callbacks.trim
zero = callbacks.zero
extents = callbacks.extents
