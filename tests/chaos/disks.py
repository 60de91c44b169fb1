# SPDX-License-Identifier: BSD-3-Clause
"""Disks of limited size that fill up and fail when they are told to.

Each is ext4 on a loop device, or tmpfs where there are no loop devices. They are mounted in a mount
namespace of the run's own (own_mounts), so nothing is left of them however it ends.
"""

import contextlib
import ctypes
import os
from pathlib import Path

from support.tools import run

_CLONE_NEWNS = 0x20000
_LIBC = ctypes.CDLL(None, use_errno=True)


def own_mounts() -> None:
    """What this process and its children mount from now on is seen by nobody else. Needs root."""
    if _LIBC.unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNS)")
    run("mount", "--make-rprivate", "/")


class Disk:
    """A small disk, mounted at `path`."""

    def __init__(self, folder: Path, name: str, megabytes: int) -> None:
        self.path = folder / name
        self.path.mkdir()
        self._hog = self.path / "hog"
        # Outside of the disk: it has to be seen however full that is.
        self._broken = folder / f"{name}.broken"
        image = folder / f"{name}.image"
        with image.open("wb") as file:
            file.truncate(megabytes << 20)
        run("mkfs.ext4", "-q", "-m", "0", image)
        self.kind = "ext4"
        if run("mount", "-o", "loop", image, self.path, status=None).returncode != 0:
            image.unlink()
            self.kind = "tmpfs"
            run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "copygate-chaos", self.path)

    def close(self) -> None:
        """Takes it off; what was on it stays in its image, if it has one."""
        run("umount", "-l", self.path)

    @property
    def data(self) -> Path:
        """The chunkserver's folder on it."""
        return self.path / "chunkserver"

    def fill(self) -> None:
        """Another program takes every block that is free."""
        # Allocated in one step as far as that goes; the last blocks by writing until it fails.
        free = os.statvfs(self.path).f_bavail * os.statvfs(self.path).f_frsize
        with contextlib.suppress(OSError), self._hog.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(free - (1 << 20), 1))
        for piece in (4096, 1):
            with contextlib.suppress(OSError), self._hog.open("ab", buffering=0) as file:
                while True:
                    file.write(b"h" * piece)

    def free(self) -> None:
        """It gives them back."""
        self._hog.unlink(missing_ok=True)

    def environment(self, shim: Path) -> dict[str, str]:
        """What a process needs in its environment to see that the disk fails; see eio.c."""
        return {"LD_PRELOAD": str(shim), "COPYGATE_TEST_EIO": str(self._broken)}

    def fail(self) -> None:
        """Writes and syncs give EIO from now on, to processes with environment()."""
        self._broken.touch()

    def work(self) -> None:
        """They succeed again."""
        self._broken.unlink(missing_ok=True)


def build_shim(folder: Path) -> Path:
    """Compiles eio.c."""
    shim = folder / "eio.so"
    source = Path(__file__).with_name("eio.c")
    run("gcc", "-O1", "-shared", "-fPIC", "-o", shim, source)
    return shim
