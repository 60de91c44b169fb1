# SPDX-License-Identifier: BSD-3-Clause
"""Disk images go in and come out unchanged, through the tools that people use for it."""

import hashlib
import random
from pathlib import Path

import pytest
from support.stack import Gateway, Stack
from support.tools import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def _tree(folder: Path, size: int) -> None:
    pick = random.Random(7)
    for number in range(60):
        path = folder / f"d{number % 7}" / f"file-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pick.randbytes(pick.randint(0, size // 40)))


def _ext4(path: Path, size: str = "512M") -> Path:
    tree = path.with_suffix(".tree")
    tree.mkdir()
    _tree(tree, 40 << 20)
    run("truncate", "-s", size, path)
    run("mkfs.ext4", "-q", "-F", "-d", tree, path)
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture(scope="module")
def ext4_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw image with ext4 and 60 files."""
    return _ext4(tmp_path_factory.mktemp("image") / "ext4.img")


@pytest.fixture(scope="module")
def qcow2_image(ext4_image: Path) -> Path:
    """The same disk as a qcow2 file."""
    path = ext4_image.with_suffix(".qcow2")
    run("qemu-img", "convert", "-O", "qcow2", ext4_image, path)
    return path


def test_qemu_img_convert_in_and_out_compares_equal(
    stack: Stack, plugin: str, qcow2_image: Path, tmp_path: Path
) -> None:
    """A qcow2 disk onto the volume, off again as qcow2, and the volume itself against both."""
    stack.create_volume("disk", "512M")
    uri = stack.gateway("disk", plugin=plugin).uri
    out = tmp_path / "out.qcow2"
    run("qemu-img", "convert", "-n", "-O", "raw", qcow2_image, uri, timeout=120)
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", qcow2_image, uri, timeout=120)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, out, timeout=120)
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", uri, out, timeout=120)
    run("qemu-img", "compare", qcow2_image, out)
    raw = tmp_path / "out.img"
    run("qemu-img", "convert", "-O", "raw", out, raw)
    run("e2fsck", "-fn", raw)


def test_qemu_img_map_sees_the_holes(stack: Stack, plugin: str, qcow2_image: Path) -> None:
    """A sparse image stays sparse: the volume reports holes where the image has them."""
    stack.create_volume("disk", "512M")
    uri = stack.gateway("disk", plugin=plugin).uri
    run("qemu-img", "convert", "-n", "-O", "raw", qcow2_image, uri, timeout=120)
    mapped = run("qemu-img", "map", "-f", "raw", "--output=json", uri).stdout
    assert '"data": false' in mapped
    assert '"data": true' in mapped


def test_nbdcopy_ext4_in_and_out_passes_fsck(
    stack: Stack, plugin: str, ext4_image: Path, tmp_path: Path
) -> None:
    """nbdcopy uses several connections and block status; every byte comes out the same."""
    stack.create_volume("disk", "512M")
    uri = stack.gateway("disk", plugin=plugin).uri
    out = tmp_path / "out.img"
    run("nbdcopy", ext4_image, uri, timeout=120)
    run("nbdcopy", uri, out, timeout=120)
    assert _digest(out) == _digest(ext4_image)
    run("e2fsck", "-fn", out)


def test_xfs_made_on_the_volume_passes_repair(stack: Stack, plugin: str, tmp_path: Path) -> None:
    """mkfs.xfs into a file, in over nbdcopy, out again: xfs_repair finds nothing."""
    image, out = tmp_path / "xfs.img", tmp_path / "out.img"
    run("truncate", "-s", "512M", image)
    run("mkfs.xfs", "-q", image)
    stack.create_volume("disk", "512M")
    uri = stack.gateway("disk", plugin=plugin).uri
    run("nbdcopy", image, uri, timeout=120)
    run("nbdcopy", uri, out, timeout=120)
    assert _digest(out) == _digest(image)
    run("xfs_repair", "-n", out)


def test_ext4_can_be_changed_in_place(stack: Stack, plugin: str, tmp_path: Path) -> None:
    """qemu's own NBD client serves the volume to nbdcopy; and e2fsprogs works on what comes out."""
    first, second = tmp_path / "one.img", tmp_path / "two.img"
    _ext4(first, "256M")
    stack.create_volume("disk", "256M")
    uri = stack.gateway("disk", plugin=plugin).uri
    run("nbdcopy", first, uri)
    # A change by e2fsprogs, sent as the differing blocks only: small writes over a file system.
    before = first.read_bytes()
    run("tune2fs", "-L", "changed", first)
    run("debugfs", "-w", "-R", "rm d1/file-1", first)
    after = first.read_bytes()
    commands = []
    for offset in range(0, len(after), 1024):
        if before[offset : offset + 1024] != after[offset : offset + 1024]:
            piece = tmp_path / f"piece-{offset}"
            piece.write_bytes(after[offset : offset + 1024])
            commands += ["-c", f"write -s {piece} {offset} 1024"]
    assert commands, "nothing changed"
    run("qemu-io", "-f", "raw", *commands, uri)
    run("nbdcopy", uri, second)
    assert _digest(second) == _digest(first)
    run("e2fsck", "-fn", second)


def test_qemu_io_writes_zeroes_discards_and_reads_back(gateway: Gateway) -> None:
    """qemu-io checks patterns itself and ends with an error if one differs."""
    done = run(
        *("qemu-io", "-f", "raw", "-d", "unmap", "-t", "none"),
        *("-c", "write -P 0x5a 1000 9999", "-c", "read -P 0x5a 1000 9999"),
        *("-c", "write -z 4096 4096", "-c", "read -P 0 4096 4096"),
        *("-c", "read -P 0x5a 1000 3096", "-c", "read -P 0x5a 8192 2807"),
        *("-c", "discard 1M 1M", "-c", "write -f -P 0x11 1M 64k", "-c", "flush"),
        *("-c", "read -P 0x11 1M 64k", "-c", "read -P 0 1088k 960k"),
        *("-c", "aio_write -P 0x33 2M 1M", "-c", "aio_write -P 0x44 3M 1M", "-c", "aio_flush"),
        *("-c", "read -P 0x33 2M 1M", "-c", "read -P 0x44 3M 1M"),
        gateway.uri,
    )
    assert "verification failed" not in done.stdout
    assert "error" not in done.stdout.lower()


def test_nbdinfo_describes_the_export(gateway: Gateway) -> None:
    """nbdinfo agrees on size and abilities, and lists the export."""
    size = run("nbdinfo", "--size", gateway.uri).stdout.strip()
    assert size == str(3 << 30)
    described = run("nbdinfo", gateway.uri).stdout
    for line in ("can_fua: true", "can_trim: true", "can_zero: true", "can_multi_conn: true"):
        assert line in described
    for ability in ("trim", "zero", "flush", "fua", "multi-conn"):
        run("nbdinfo", "--can", ability, gateway.uri)
    assert "disk" in run("nbdinfo", "--list", gateway.uri).stdout


def test_copygate_import_and_export_round_trip(
    stack: Stack, qcow2_image: Path, ext4_image: Path, tmp_path: Path
) -> None:
    """The command's own import and export, of qcow2 and raw."""
    out = tmp_path / "out.img"
    stack.copygate("import", qcow2_image, "imported", timeout=120)
    stack.copygate("export", "imported", out, timeout=120)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", ext4_image, out)
