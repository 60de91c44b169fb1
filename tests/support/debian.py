# SPDX-License-Identifier: BSD-3-Clause
"""A small Debian system of the host's own release, made with mmdebstrap, for qemu to boot.

At every boot it checks what the boots before it wrote, writes more, and powers off. It is made once
and kept below the build folder, by the checksum of its recipe.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support.tools import ROOT, run, which

IMAGE_SIZE = 1536 << 20
ENDED_WELL = "SESSION: boot {} ended well"

_SESSION = """\
#!/bin/sh
set -e
exec >/dev/ttyS0 2>&1
mkdir -p /srv/data
boot=$(ls /srv/data | wc -l)
if [ -f /srv/sums ]; then
    sha256sum --quiet -c /srv/sums
fi
mkdir /srv/data/$boot
for number in 1 2 3 4 5 6 7 8; do
    dd if=/dev/urandom of=/srv/data/$boot/$number bs=1M count=2 conv=fsync status=none
done
find /srv/data /usr/bin /usr/lib/systemd -type f -print0 | xargs -0 sha256sum > /srv/sums
sync
echo "SESSION: boot $boot ended well"
"""
_SERVICE = """\
[Unit]
After=local-fs.target
[Service]
Type=oneshot
ExecStart=/root/session.sh
ExecStopPost=/bin/systemctl poweroff --no-block
"""
_PACKAGES = "systemd-sysv,udev,kmod,linux-image-amd64"
_OPTIONS = (
    *("--variant=minbase", f"--include={_PACKAGES}", '--aptopt=Acquire::Languages "none"'),
    *(f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "locale")),
)


def missing() -> str | None:
    """Why no system can be made and booted, in words for a skip; None if one can."""
    if platform.machine() != "x86_64":
        return "the system to boot is made for x86-64"
    if os.geteuid() != 0:
        return "only root can make the system to boot"
    for program in ("mmdebstrap", "qemu-system-x86_64", "qemu-img", "mkfs.ext4"):
        if which(program) is None:
            return f"no {program}: packaging/install-deps.sh vm installs it"
    return None


def _suite() -> str:
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if line
    )
    return release["VERSION_CODENAME"].strip('"')


@dataclass(frozen=True)
class System:
    """Its kernel and first root file system, and a raw disk with ext4 and no partitions."""

    kernel: Path
    initrd: Path
    disk: Path

    def boot(self, drive: str, log: Path, timeout: float) -> str:
        """Boots with `drive` (what qemu takes as a file) as disk until it powers off.

        Emulated, without KVM. Returns what its console said.
        """
        words = [
            *(which("qemu-system-x86_64") or "", "-machine", "q35", "-accel", "tcg,thread=multi"),
            *("-smp", "2", "-m", "1G", "-nographic", "-no-reboot", "-nic", "none"),
            *("-kernel", str(self.kernel), "-initrd", str(self.initrd)),
            # A getty would hang up the line that the session writes to.
            *("-append", "root=/dev/vda rw console=ttyS0 quiet panic=-1 systemd.getty_auto=no"),
            *("-drive", f"file={drive},format=raw,if=virtio,cache=none,werror=report"),
        ]
        with log.open("ab") as out:
            started = out.tell()
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=False,
            )
        said = log.read_bytes()[started:].decode(errors="replace")
        assert done.returncode == 0, f"qemu ended with {done.returncode}\n{said[-4000:]}"
        return said


def system() -> System:
    """The system, made now if it is not there yet; that takes a minute or two."""
    recipe: Sequence[str] = (*_OPTIONS, _SESSION, _SERVICE, _suite(), str(IMAGE_SIZE))
    name = hashlib.sha256("\0".join(recipe).encode()).hexdigest()[:12]
    folder = ROOT / "build" / f"debian-{name}"
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        # Moved to its name when it is whole.
        with tempfile.TemporaryDirectory(prefix="debian-", dir=folder.parent) as made:
            _make(Path(made))
            (Path(made) / "made").rename(folder)
    return System(folder / "vmlinuz", folder / "initrd", folder / "disk")


def _make(folder: Path) -> None:
    root, made = folder / "root", folder / "made"
    made.mkdir()
    run("mmdebstrap", "--quiet", "--mode=root", *_OPTIONS, _suite(), root, timeout=600)
    session = root / "root/session.sh"
    session.write_text(_SESSION)
    session.chmod(0o755)
    units = root / "etc/systemd/system"
    (units / "session.service").write_text(_SERVICE)
    wanted = units / "multi-user.target.wants"
    wanted.mkdir(exist_ok=True)
    (wanted / "session.service").symlink_to("../session.service")
    for part in ("vmlinuz", "initrd"):
        (found,) = (root / "boot").glob(f"{part}*")
        shutil.copyfile(found, made / part)
    run("mkfs.ext4", "-q", "-d", root, made / "disk", f"{IMAGE_SIZE >> 10}k", timeout=120)
    shutil.rmtree(root)
