# SPDX-License-Identifier: BSD-3-Clause
"""A store of the version before replication is opened by this one and loses nothing.

`store-1.tar.xz` holds the folders of an MDS and a chunkserver as that version left them: a
checkpoint of the first half of STEPS, the second half in the log alone, killed. It was made by
running this file as a script in that version's tree (commit 14dc659):
`python tests/cluster/test_upgrade.py FOLDER`, then `tar --sparse -cJf store-1.tar.xz mds
chunkserver` inside FOLDER.
"""

import sys
import tarfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import libnbd
from support.stack import Stack

ARCHIVE = Path(__file__).resolve().parents[1] / "golden" / "store-1.tar.xz"
BLOCK = 4096
SIZE = 160 << 20

# What was done to the volume, in order: (operation, offset, length, seed of the data).
STEPS = [
    ("write", 0, 256 << 10, 1),
    ("write", 40 << 20, 64 << 10, 2),
    ("write", 100 << 20, 16 << 10, 3),
    ("write", (100 << 20) + 700, 5000, 4),
    ("trim", 64 << 10, 64 << 10, 0),
    # The checkpoint is here.
    ("write", 32 << 10, 64 << 10, 5),
    ("write", (40 << 20) + 513, 9000, 6),
    ("zero", 200 << 10, 16 << 10, 0),
    ("trim", 100 << 20, 8 << 10, 0),
    ("write", 150 << 20, 128 << 10, 7),
    ("write", (150 << 20) + 4096, 512, 8),
]
HALF = 5
PIECE = 1 << 20


def data(seed: int, length: int) -> bytes:
    """Bytes that compress well and differ by seed."""
    line = b"".join((seed * 1000 + i).to_bytes(4, "little") for i in range(16))
    return (line * (length // len(line) + 1))[:length]


def carry_out(uri: str, steps: list[tuple[str, int, int, int]]) -> None:
    """Does them through a gateway."""
    handle = libnbd.connect(uri)
    for operation, offset, length, seed in steps:
        if operation == "write":
            handle.pwrite(data(seed, length), offset)
        elif operation == "trim":
            handle.trim(length, offset)
        else:
            handle.zero(length, offset)
    libnbd.close(handle)


def expected(steps: list[tuple[str, int, int, int]]) -> bytearray:
    """What the volume must hold afterwards."""
    volume = bytearray(SIZE)
    for operation, offset, length, seed in steps:
        volume[offset : offset + length] = (
            data(seed, length) if operation == "write" else bytes(length)
        )
    return volume


def compare(uri: str, steps: list[tuple[str, int, int, int]]) -> None:
    """Reads the whole volume."""
    volume = expected(steps)
    handle = libnbd.connect(uri)
    for offset in range(0, SIZE, PIECE):
        assert handle.pread(PIECE, offset) == volume[offset : offset + PIECE], hex(offset)
    libnbd.close(handle)


def test_a_folder_of_the_version_before_replication_is_taken_over(tmp_path: Path) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path)  # noqa: S202 - our own archive
    with Stack(tmp_path) as stack:
        gateway = stack.gateway("disk")
        compare(gateway.uri, STEPS)
        more = [("write", 12345, 100000, 9)]
        carry_out(gateway.uri, more)
        stack.chunkserver.kill()
        stack.chunkserver.start()
        compare(gateway.uri, STEPS + more)


def make(folder: Path) -> None:
    """Makes what the archive holds."""
    stack = Stack(folder)
    stack.start()
    stack.create_volume("disk", "1G")
    gateway = stack.gateway("disk")
    carry_out(gateway.uri, STEPS[:HALF])
    stack.chunkserver.stop()  # writes a checkpoint
    stack.chunkserver.start()
    carry_out(gateway.uri, STEPS[HALF:])
    compare(gateway.uri, STEPS)
    stack.chunkserver.kill()
    gateway.daemon.kill()
    stack.stop(clean=False)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
