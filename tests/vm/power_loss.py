#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Power loss of a whole machine under verified load.

`copygate up` runs in a virtual machine, its data on ext4 on a virtual disk with a volatile write
cache: nbdkit's cache filter holds what was written until the guest flushes, or sets FUA. A writer
on the host works over NBD. At a random moment the machine and its disk are killed: the guest's page
cache is lost and so is the disk's cache. Then the machine boots again from the same disk, and every
acknowledged write has to be there.

With --replicas 3 the machine is a rack: three chunkservers, and all of them lose what they had not
synced.

    python tests/vm/power_loss.py --rounds 10 --seed 1
    python tests/vm/power_loss.py --rounds 10 --replicas 3
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import vm
from support.cells import default_layout
from support.process import Daemon, free_port, unix_accepts, wait_until
from support.tools import COPYGATE, run, which
from support.writer import Writer

VOLUME_SIZE = 1 << 30
_SCRIPT = """
modprobe ext4
blkid /dev/vda >/dev/null || mkfs.ext4 -q /dev/vda
e2fsck -p /dev/vda || [ $? -le 1 ]
mkdir -p /tmp/data
mount /dev/vda /tmp/data
echo GUEST: mounted
exec {copygate} up --data /tmp/data/store --volume disk:1G --wal-size 64M \\
    --replicas {replicas} --nbd tcp:0.0.0.0:10809 --allow-remote
"""


class Machine:
    """The virtual machine and its disk."""

    def __init__(self, folder: Path, replicas: int) -> None:
        self._folder = folder
        self._replicas = replicas
        self._image = folder / "disk.img"
        run("truncate", "-s", "3G", self._image)
        self._sockets = Path(tempfile.mkdtemp(prefix="cgv-"))
        socket = self._sockets / "disk"
        self.port = free_port()
        self._disk = Daemon(
            "virtual disk",
            [
                *(which("nbdkit") or "nbdkit", "--foreground", "--unix", str(socket)),
                *("--filter=cache", "file", str(self._image), "cache=writeback"),
            ],
            folder / "disk.log",
            lambda: unix_accepts(socket),
        )
        self._socket = socket
        self._guest: vm.Guest | None = None

    def boot(self) -> None:
        """Powers on; returns at once."""
        self._socket.unlink(missing_ok=True)
        self._disk.start()
        self._guest = vm.Guest(
            _SCRIPT.format(copygate=COPYGATE, replicas=self._replicas),
            self._folder,
            memory="2G",
            disk=f"nbd:unix:{self._socket}",
            forward=(self.port, 10809),
        )

    def check(self) -> None:
        """Raises if the guest ended by itself."""
        assert self._guest is not None
        assert self._guest.running, f"the guest ended:\n{self._guest.output()[-4000:]}"

    def output(self) -> str:
        """What the guest printed since it booted."""
        return self._guest.output() if self._guest else ""

    def pull_the_plug(self) -> None:
        """The machine first: a disk that dies before it would be seen as errors by the client."""
        if self._guest is not None:
            self._guest.power_off()
            self._guest = None
        self._disk.kill()

    def scrap(self) -> None:
        """Ends it and removes its sockets."""
        self.pull_the_plug()
        shutil.rmtree(self._sockets, ignore_errors=True)


def campaign(folder: Path, rounds: int, seed: int, replicas: int = 1) -> None:
    """Boots, loads, pulls the plug, verifies after the next boot; `rounds` times."""
    pick = random.Random(seed)
    machine = Machine(folder, replicas)
    layout = default_layout(VOLUME_SIZE, cells=256)
    writer = Writer(
        f"nbd://127.0.0.1:{machine.port}/disk",
        layout,
        seed=seed,
        depth=8,
        reconnect_timeout=150,
        log=folder / "writer.bin",
    )
    began = time.monotonic()
    try:
        machine.boot()
        writer.start()
        wait_until(writer.connected.is_set, 150, "the first connection", interval=0.1)
        for number in range(1, rounds + 1):
            time.sleep(pick.uniform(1, 6))
            machine.check()
            writer.check()
            done = writer.stats.acknowledged
            machine.pull_the_plug()
            machine.boot()
            writer.verify(timeout=200)
            machine.check()
            print(
                f"[{time.monotonic() - began:6.1f} s] round {number}/{rounds}: "
                f"{done} acknowledged writes survived",
                flush=True,
            )
        stats = writer.stop()
        assert stats.acknowledged > 20 * rounds, "hardly anything was written"
    except BaseException:
        print(machine.output()[-4000:])
        raise
    finally:
        machine.scrap()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=None, help="default: from the clock")
    parser.add_argument("--replicas", type=int, default=1, help="of everything, one disk for all")
    arguments = parser.parse_args()
    if reason := vm.missing():
        print(reason, file=sys.stderr)
        return 2
    seed = arguments.seed if arguments.seed is not None else time.time_ns() % 1_000_000
    folder = Path(tempfile.mkdtemp(prefix="copygate-power-"))
    print(f"seed {seed}, {arguments.rounds} rounds, files in {folder}", flush=True)
    try:
        campaign(folder, arguments.rounds, seed, arguments.replicas)
    except (AssertionError, TimeoutError) as error:
        print(f"FAILED with seed {seed}; files stay in {folder}\n{error}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
