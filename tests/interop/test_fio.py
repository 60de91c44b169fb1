# SPDX-License-Identifier: BSD-3-Clause
"""fio's verification over both plugins: what it reads must carry the checksum it wrote."""

import threading
from pathlib import Path
from typing import Any

import pytest
from support.blockmodel import RandomIO
from support.libnbd import close, connect
from support.stack import Gateway
from support.tools import fio

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

_VERIFY = ("--verify=crc32c", "--verify_fatal=1", "--do_verify=1")


def _verified(gateway: Gateway, tmp_path: Path, *options: str) -> dict[str, Any]:
    job = fio(gateway.uri, *_VERIFY, *options, workdir=tmp_path, timeout=150)
    assert job["read"]["io_bytes"] > 0, "fio verified nothing"
    return job


def test_fio_verifies_unaligned_writes_of_512_bytes_to_1_mib(
    gateway: Gateway, tmp_path: Path
) -> None:
    """Random sizes, any byte offset, depth 64, over borders of chunks and of a segment."""
    job = _verified(
        gateway,
        tmp_path,
        *("--rw=randwrite", "--bsrange=512-1m", "--bs_unaligned=1", "--iodepth=64"),
        *("--offset=940m", "--size=192m", "--randseed=11"),
    )
    assert job["write"]["total_ios"] > 100


def test_fio_verifies_small_unaligned_writes(gateway: Gateway, tmp_path: Path) -> None:
    """Sizes from 512 bytes to 6 KiB: neighbours share blocks of 4 KiB, in flight at once."""
    job = _verified(
        gateway,
        tmp_path,
        *("--rw=randwrite", "--bsrange=512-6k", "--bs_unaligned=1", "--iodepth=64"),
        *("--offset=12345", "--size=24m", "--randseed=12"),
    )
    assert job["write"]["total_ios"] > 1000


def test_fio_verifies_while_trims_and_zeroes_race_beside_it(
    gateway: Gateway, tmp_path: Path
) -> None:
    """fio trims and rewrites its range; in the same 4 KiB block begins what another zeroes.

    fio's own engine cannot write zeroes, so a second connection does, checked against a model.
    """
    border = (47 << 20) + 1111
    neighbour = RandomIO(connect(gateway.uri), border, 20 << 20, seed=13)
    stop = threading.Event()
    failure: list[BaseException] = []

    def race() -> None:
        try:
            while not stop.is_set():
                neighbour.step()
            neighbour.check_all()
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            failure.append(error)

    thread = threading.Thread(target=race)
    thread.start()
    try:
        job = _verified(
            gateway,
            tmp_path,
            *("--rw=randtrimwrite", "--bsrange=512-1m", "--bs_unaligned=1", "--iodepth=64"),
            # With an offset fio 3.33 would write without trimming first.
            *("--offset=0", f"--size={border}", "--randseed=14"),
            *("--io_size=160m", "--serialize_overlap=1"),
        )
    finally:
        stop.set()
        thread.join(60)
    if failure:
        raise failure[0]
    close(neighbour.handle)
    assert job["trim"]["total_ios"] > 50
    assert neighbour.zeroes > 5
    assert neighbour.trims > 5


def test_fio_verifies_in_four_jobs_over_four_connections(gateway: Gateway, tmp_path: Path) -> None:
    """Four clients on ranges that touch inside a block; each reads back only its own data."""
    workers = []
    errors: list[BaseException] = []
    size = (16 << 20) + 777

    def work(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            _verified(
                gateway,
                folder,
                *("--rw=randwrite", "--bsrange=512-128k", "--bs_unaligned=1", "--iodepth=16"),
                *(f"--offset={number * size}", f"--size={size}", f"--randseed={number}"),
            )
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            errors.append(error)

    for number in range(4):
        workers.append(threading.Thread(target=work, args=(number,)))
        workers[-1].start()
    for worker in workers:
        worker.join(150)
    if errors:
        raise errors[0]
