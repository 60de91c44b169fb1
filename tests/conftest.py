# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures that start a real store; the report of a failed test shows its processes' logs."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.stack import Gateway, Stack

# Before any test imports grpc, and for the reason that gateway/__init__.py gives.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")


def pytest_addoption(parser: pytest.Parser) -> None:
    """--data-folder: where the stores' disks go."""
    parser.addoption(
        "--data-folder",
        default=os.environ.get("COPYGATE_TEST_DATA"),
        help="folder on a real disk for the stores of the tests (default: pytest's own)",
    )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Adds the ends of the stores' logs to the report of a test that failed."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed:
        for stack in getattr(item, "copygate_stacks", []):
            report.sections.append((f"store in {stack.folder}", stack.logs()))


@pytest.fixture
def data_folder(tmp_path: Path, pytestconfig: pytest.Config) -> Iterator[Path]:
    """An empty folder for a store's disk."""
    base = pytestconfig.getoption("--data-folder")
    if base is None:
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="copygate-", dir=base))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def stack_factory(
    data_folder: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Stack]]:
    """Makes started stacks; all end with the test. Their files go when the test has passed."""
    stacks: list[Stack] = []
    request.node.copygate_stacks = stacks

    def make(**kwargs: Any) -> Stack:
        stack = Stack(data_folder / f"stack{len(stacks)}", **kwargs)
        stacks.append(stack)
        return stack.start()

    failed_before = request.session.testsfailed
    try:
        yield make
    finally:
        failed = request.session.testsfailed != failed_before
        for stack in stacks:
            stack.stop(clean=not failed)
            if not failed:
                shutil.rmtree(stack.folder, ignore_errors=True)


@pytest.fixture
def stack(stack_factory: Callable[..., Stack]) -> Stack:
    """A store with one chunkserver and no volume."""
    return stack_factory()


@pytest.fixture(params=["c", "python"])
def plugin(request: pytest.FixtureRequest) -> str:
    """Each of the two nbdkit plugins."""
    return str(request.param)


@pytest.fixture
def gateway(stack: Stack, plugin: str) -> Gateway:
    """A volume "disk" of 3 GiB, exported on a unix socket through the plugin under test."""
    stack.create_volume("disk", "3G")
    return stack.gateway("disk", plugin=plugin)
