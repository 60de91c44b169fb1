# SPDX-License-Identifier: BSD-3-Clause
"""A daemon's folder is its own, and it ends when it is told to."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from gateway.cli.lifecycle import Stopper, exclusive, make_folder, run_daemon
from gateway.errors import BusyError, InvalidArgumentError


def test_a_folder_is_made_for_this_user_alone(tmp_path: Path) -> None:
    made = make_folder(tmp_path / "a/b", "the folder")
    assert made.stat().st_mode & 0o777 == 0o700


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(InvalidArgumentError, match=str(tmp_path)):
            make_folder(path, "the folder")


def test_a_second_holder_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    with exclusive(tmp_path, "the folder"):
        with pytest.raises(BusyError) as refused, exclusive(tmp_path, "the folder"):
            pass
        assert refused.value.context["pid"] == str(os.getpid())
    with exclusive(tmp_path, "the folder"):
        pass


def test_a_signal_ends_a_daemon_that_runs() -> None:
    ended = []

    async def daemon(stopper: Stopper) -> None:
        asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
        await stopper.wait()
        ended.append("in order")

    run_daemon(daemon)
    assert ended == ["in order"]


def test_a_signal_ends_a_daemon_that_starts() -> None:
    undone = []

    async def daemon(stopper: Stopper) -> None:
        asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
        try:
            await asyncio.sleep(60)
        finally:
            undone.append("what was started")

    run_daemon(daemon)
    assert undone == ["what was started"]
