# SPDX-License-Identifier: BSD-3-Clause
"""The gateway's own socket: questions, answers, nonsense, nobody there; secrets from files."""

import asyncio
import os
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.app import App
from gateway.cli.iscsi_change import access_of, account
from gateway.errors import (
    ConfigError,
    CopygateError,
    InvalidArgumentError,
    UnavailableError,
)
from gateway.iscsi import control


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose paths fit into a unix socket's address."""
    with tempfile.TemporaryDirectory(prefix="cg-", dir="/tmp") as folder:
        yield Path(folder)


async def echo(request: Mapping[str, Any]) -> Mapping[str, Any]:
    if request.get("ask") == "break":
        raise KeyError("what")
    return {"heard": request}


async def test_a_question_is_answered(short: Path) -> None:
    server = await control.serve(short, echo)
    async with server:
        answer = await asyncio.to_thread(control.ask, short, ask="x", volume="/ä")
        assert answer == {"heard": {"ask": "x", "volume": "/ä"}}
        assert stat.S_IMODE((short / control.SOCKET).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"nonsense\n", b"[]\n", b"\xff\n", b'{"ask": "break"}\n', b"[" * 99999]
)
async def test_nonsense_does_not_end_the_gateway(short: Path, data: bytes) -> None:
    server = await control.serve(short, echo)
    async with server:
        reader, writer = await asyncio.open_unix_connection(str(short / control.SOCKET))
        writer.write(data)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        assert "heard" in await asyncio.to_thread(control.ask, short, ask="x")


def test_nobody_there_is_said(short: Path) -> None:
    with pytest.raises(UnavailableError, match="no iSCSI gateway runs here") as refused:
        control.ask(short, ask="status")
    assert "copygate iscsi serve" in refused.value.hint


async def test_a_gateway_that_ends_meanwhile_is_said(short: Path) -> None:
    async def close(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_unix_server(close, str(short / control.SOCKET)):
        with pytest.raises(CopygateError):
            await asyncio.to_thread(control.ask, short, ask="x")


def test_a_socket_left_behind_is_replaced(short: Path) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(short / control.SOCKET))

    async def again() -> None:
        async with await control.serve(short, echo):
            assert "heard" in await asyncio.to_thread(control.ask, short, ask="x")

    asyncio.run(again())


def test_the_folder_is_ours_and_short_enough(short: Path) -> None:
    assert control.check_folder(short) == short
    long = short / ("x" * 80)
    long.mkdir()
    with pytest.raises(InvalidArgumentError, match="too long"):
        control.check_folder(long)
    if os.geteuid() == 0:
        os.chown(short, 12345, 12345)
        with pytest.raises(InvalidArgumentError, match="somebody else"):
            control.check_folder(short)
        os.chown(short, 0, 0)


def test_a_secret_is_the_first_line_of_its_file(tmp_path: Path) -> None:
    for text in (b"123456789012", b"123456789012\n", b"123456789012\r\nmore\n"):
        path = tmp_path / "secret"
        path.write_bytes(text)
        found = account("alice", path, "--chap")
        assert found is not None
        assert found.secret == "123456789012"  # noqa: S105
        assert "123456789012" not in repr(found)
    assert account(None, None, "--chap") is None


def test_a_secrets_options_go_together_and_its_file_is_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="go together"):
        account("alice", None, "--chap")
    with pytest.raises(InvalidArgumentError, match="go together"):
        account(None, tmp_path, "--chap")
    with pytest.raises(ConfigError, match="cannot read"):
        account("alice", tmp_path / "none", "--chap")


@pytest.mark.parametrize(
    "app",
    [
        App(mds="127.0.0.1:1;owner=root"),
        App(owner="a|b"),
        App(owner="a,b"),
        App(owner="root"),
        App(owner="root", root_password_file=Path("/a,b")),
        App(owner="root", root_password_file=Path("/a;b")),
    ],
)
def test_what_would_change_the_modules_options_is_refused(app: App) -> None:
    with pytest.raises(CopygateError):
        access_of(app, "g1")


def test_several_metadata_servers_are_passed_on() -> None:
    assert access_of(App(mds="127.0.0.1:1,127.0.0.1:2"), "g1").mds == "127.0.0.1:1,127.0.0.1:2"
