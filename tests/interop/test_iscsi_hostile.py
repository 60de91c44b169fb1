# SPDX-License-Identifier: BSD-3-Clause
"""Garbage on the portal: tgtd survives it, and the sessions of others do not notice."""

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from support import scsi
from support.iscsi import Target

LOGIN, SCSI_COMMAND, NOP_OUT, TEXT, DATA_OUT = 0x03, 0x01, 0x00, 0x04, 0x05
KEYS = b"InitiatorName=iqn.2026-11.net.copygate:hostile\0SessionType=Normal\0"


def _header(
    opcode: int, length: int, *, ahs: int = 0, flags: int = 0x87, body: bytes = b""
) -> bytes:
    """A basic header segment; `length` is what it claims of the data that follows."""
    start = struct.pack(">BBxxB", 0x40 | opcode, flags, ahs) + length.to_bytes(3, "big")
    return (start + body).ljust(48, b"\0")


def _login_keys(target: Target) -> bytes:
    return KEYS + b"TargetName=" + target.name.encode() + b"\0AuthMethod=None\0"


def _frames(target: Target) -> Iterator[bytes]:
    """One hostile beginning of a connection after the other."""
    pick = random.Random(1)
    keys = _login_keys(target)
    padded = keys.ljust(-(-len(keys) // 4) * 4, b"\0")
    yield b""
    yield b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    yield bytes(48)
    yield b"\xff" * 48
    yield _header(LOGIN, len(keys))[:20]
    yield _header(LOGIN, len(keys)) + padded[:10]
    yield _header(LOGIN, 0xFFFFFF) + b"A" * 100_000
    yield _header(LOGIN, len(keys), ahs=0xFF) + bytes(1020) + padded
    yield _header(LOGIN, 8) + b"noequals"
    yield _header(LOGIN, 4096) + b"K=" + b"v" * 4094
    yield _header(LOGIN, len(keys), flags=0xFF) + padded
    yield _header(SCSI_COMMAND, 0, body=bytes(24) + scsi.read10(0, 8)) + bytes(48)
    yield _header(DATA_OUT, 4096) + bytes(4096)
    yield _header(NOP_OUT, 0) * 50
    yield _header(TEXT, 16) + b"SendTargets=All\0"
    # A login that is right, and then nonsense in the full feature phase.
    good = _header(LOGIN, len(keys), body=bytes(8)) + padded
    for opcode in (*range(0x08), 0x10, 0x1C, 0x1F, 0x3F):
        yield good + _header(opcode, 0xFFFFFF, flags=0xE0, body=pick.randbytes(40)) + b"X" * 5000
    yield good + _header(SCSI_COMMAND, 0, ahs=0xFF, flags=0xC0, body=pick.randbytes(40))
    for _ in range(40):
        yield pick.randbytes(pick.choice((1, 47, 48, 49, 500, 20_000)))
    for _ in range(40):
        spoiled = bytearray(good)
        for _ in range(pick.randint(1, 4)):
            spoiled[pick.randrange(len(spoiled))] ^= 1 << pick.randrange(8)
        yield bytes(spoiled)


def _throw(port: int, data: bytes, *, linger: float = 0.02) -> None:
    """Sends it and goes away without a word. That the server closes first is fine."""
    with (
        contextlib.suppress(ConnectionError, TimeoutError),
        socket.create_connection(("127.0.0.1", port), timeout=5) as connection,
    ):
        connection.sendall(data)
        connection.settimeout(linger)
        connection.recv(65536)


@pytest.mark.timeout(180)
def test_garbage_and_truncated_pdus_hurt_nobody_else(target: Target) -> None:
    """A session writes and reads back all the while; every answer comes within two seconds."""
    pid = target.daemon.pid
    stop = threading.Event()
    slowest = 0.0
    rounds = 0
    failure: list[BaseException] = []

    def work() -> None:
        nonlocal slowest, rounds
        try:
            with target.session(isid=7) as session:
                while not stop.is_set():
                    began = time.monotonic()
                    data = rounds.to_bytes(8, "big") * 512
                    session.good(scsi.write16(rounds % 64 * 8, 8), data)
                    assert session.good(scsi.read16(rounds % 64 * 8, 8), in_length=4096) == data
                    slowest = max(slowest, time.monotonic() - began)
                    rounds += 1
        except BaseException as error:  # noqa: BLE001 - raised by the test's own thread
            failure.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    # Connections that stay open and say nothing, or half of something.
    silent = [socket.create_connection(("127.0.0.1", target.ports[0])) for _ in range(10)]
    for connection in silent[5:]:
        connection.sendall(_header(LOGIN, 100)[:30])
    try:
        thrown = 0
        for frame in _frames(target):
            _throw(target.ports[0], frame)
            thrown += 1
            assert target.daemon.running, f"tgtd died of frame {thrown}: {frame[:64].hex()}"
    finally:
        stop.set()
        worker.join(60)
        for connection in silent:
            connection.close()
    if failure:
        raise failure[0]
    assert thrown > 90
    assert rounds > 50
    assert slowest < 2, f"an answer took {slowest:.1f} s"
    assert target.daemon.pid == pid
    with target.session() as session:
        session.good(scsi.read16(0, 8), in_length=4096)
