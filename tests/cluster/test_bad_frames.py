# SPDX-License-Identifier: BSD-3-Clause
"""Garbage, truncated and oversized frames on every port, while verified IO goes on beside them."""

import random
import socket
import struct
from collections.abc import Iterator

import pytest
from support.cells import default_layout
from support.process import wait_until
from support.stack import Stack
from support.writer import Writer

pytestmark = pytest.mark.timeout(120)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _frame(
    service: str,
    method: str,
    message: bytes,
    attachment: bytes = b"",
    *,
    declared: int | None = None,
) -> bytes:
    """A baidu_std request; `declared` is an attachment size that may be a lie."""
    request = _field(1, service.encode()) + _field(2, method.encode())
    meta = _field(1, request) + _field(4, 77)
    size = len(attachment) if declared is None else declared
    if size:
        meta += _field(5, size & (1 << 64) - 1)
    body = meta + message + attachment
    return b"PRPC" + struct.pack(">II", len(body), len(meta)) + body


def _chunk_request(operation: int, offset: int, size: int, *, sn: int = 1, chunk: int = 1) -> bytes:
    fields = ((1, operation), (2, 1), (3, 1), (4, chunk), (6, offset), (7, size), (9, sn))
    return b"".join(_field(number, value) for number, value in fields)


CHUNK = "curve.chunkserver.ChunkService"
NAMES = "curve.mds.CurveFSService"
RAFT = "copygate.RaftService"


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _raft_message(kind: int, *, count: int = 0, group: int = 1 << 32 | 1, term: int = 1) -> bytes:
    """A message of raft from member 9 to member 1, with the fields of the longest kind."""
    fields = (0, 2, 3, 3, 4, 3, 4, 1)[kind & 7]
    return struct.pack("<HHIQQQQ", kind, 0, count, group, 9, 1, term) + bytes(8 * fields)


def _raft(
    messages: bytes,
    *,
    count: int = 1,
    version: int = 1,
    length: int | None = None,
    payload: bytes = b"",
    declared: int | None = None,
) -> bytes:
    """A frame of raft messages with a right checksum, whatever else is wrong with it."""
    rest = struct.pack(
        "<IIIIQ",
        version,
        32 + len(messages) if length is None else length,
        len(payload) if declared is None else declared,
        count,
        0,
    )
    rest += messages
    message = b"CGRS" + struct.pack("<I", _crc32c(rest)) + rest
    return _frame(RAFT, "Step", message, payload)


def _bad_raft_frames(pick: random.Random) -> Iterator[tuple[str, bytes]]:
    beat = _raft_message(5)
    entry = struct.pack("<QIIII", 1, 1, 72, 4096, 0) + bytes(72) + struct.pack("<I", 7)
    append = _raft_message(3, count=1)
    yield "raft: nothing", _frame(RAFT, "Step", b"")
    yield "raft: unknown method", _frame(RAFT, "Vote", beat)
    yield "raft: random bytes", _frame(RAFT, "Step", pick.randbytes(5000), pick.randbytes(9000))
    yield "raft: another version", _raft(beat, version=2)
    yield "raft: a count of 4 billion", _raft(beat, count=0xFFFFFFFF)
    yield "raft: more messages than there are", _raft(beat, count=2)
    yield "raft: a length that is a lie", _raft(beat, length=0xFFFFFFFF)
    yield "raft: payload that is a lie", _raft(beat, declared=1 << 30)
    yield "raft: payload of nobody", _raft(beat, payload=bytes(4096))
    yield "raft: an unknown copyset", _raft(_raft_message(5, group=1 << 40))
    yield "raft: a stranger", _raft(beat)
    yield "raft: a stranger's vote of the last term", _raft(_raft_message(1, term=2**64 - 1))
    yield "raft: 4 billion entries", _raft(_raft_message(3, count=0xFFFFFFFF))
    yield "raft: entries that are not there", _raft(_raft_message(3, count=1024))
    yield "raft: an entry without its payload", _raft(append + entry)
    yield "raft: a wrong checksum", _raft(append + entry, payload=bytes(4096))
    for kind in range(12):
        yield f"raft: message of kind {kind}", _raft(_raft_message(kind))
    for number in range(20):
        broken = bytearray(_raft(append + entry, payload=bytes(4096)))
        for _ in range(pick.randint(1, 4)):
            broken[pick.randrange(len(broken))] = pick.randrange(256)
        yield f"raft: flipped bytes {number}", bytes(broken)


def _bad_frames(pick: random.Random) -> Iterator[tuple[str, bytes]]:
    good = _frame(CHUNK, "ReadChunk", _chunk_request(1, 0, 4096))
    yield "nothing", b""
    yield "one byte", b"P"
    yield "half a header", good[:7]
    yield "a header only", good[:12]
    yield "half a meta", good[:30]
    yield "no last byte", good[:-1]
    yield "wrong magic", b"XXXX" + good[4:]
    yield "body of 4 GiB", b"PRPC" + b"\xff" * 8 + good[12:]
    yield "body of 1 GiB", b"PRPC" + struct.pack(">II", 1 << 30, 50) + good[12:]
    yield "meta longer than body", b"PRPC" + struct.pack(">II", 20, 4000) + good[12:]
    yield "body of 0 bytes", b"PRPC" + bytes(8)
    yield "meta that is no protobuf", b"PRPC" + struct.pack(">II", 64, 64) + b"\xff" * 64
    yield (
        "attachment longer than sent",
        _frame(CHUNK, "WriteChunk", _chunk_request(2, 0, 4096), bytes(100), declared=4096),
    )
    yield "negative attachment", _frame(CHUNK, "ReadChunk", b"", declared=-5)
    yield (
        "attachment shorter than size",
        _frame(CHUNK, "WriteChunk", _chunk_request(2, 0, 8192), bytes(4096)),
    )
    yield (
        "attachment longer than size",
        _frame(CHUNK, "WriteChunk", _chunk_request(2, 0, 4096), bytes(8192)),
    )
    yield (
        "write past the chunk",
        _frame(CHUNK, "WriteChunk", _chunk_request(2, (16 << 20) - 4096, 8192), bytes(8192)),
    )
    yield (
        "offset of 4 GiB",
        _frame(CHUNK, "WriteChunk", _chunk_request(2, 0xFFFFF000, 4096), bytes(4096)),
    )
    yield (
        "write without sn",
        _frame(CHUNK, "WriteChunk", _chunk_request(2, 0, 4096, sn=0, chunk=1 << 40), bytes(4096)),
    )
    yield "read of 4 GiB", _frame(CHUNK, "ReadChunk", _chunk_request(1, 0, 0xFFFFFFFF))
    yield "unknown service", _frame("no.Such", "Thing", b"")
    yield "unknown method", _frame(CHUNK, "Nonsense", b"")
    yield "message that is no protobuf", _frame(CHUNK, "ReadChunk", b"\xff" * 40)
    yield "required fields missing", _frame(CHUNK, "WriteChunk", b"")
    yield "name that is no UTF-8", _frame(NAMES, "GetFileInfo", _field(1, b"\xff\xfe/\x00"))
    yield "name of a MiB", _frame(NAMES, "OpenFile", _field(1, b"/" + b"x" * (1 << 20)))
    yield "names without end", _frame(NAMES, "CreateFile", _field(1, b"/a" * 3000))
    yield "HTTP nonsense", b"GET " + b"/" * 70000 + b" HTTP/1.1\r\n\r\n"
    yield "HTTP/2 preface and garbage", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + pick.randbytes(4000)
    for size in (16, 1000, 100_000):
        yield f"{size} random bytes", pick.randbytes(size)
    for number in range(30):
        broken = bytearray(good if number % 2 else _frame(NAMES, "OpenFile", _field(1, b"/disk")))
        for _ in range(pick.randint(1, 6)):
            broken[pick.randrange(len(broken))] = pick.randrange(256)
        yield f"flipped bytes {number}", bytes(broken)


def _send(port: int, data: bytes, *, close_hard: bool) -> None:
    """Sends, takes whatever answer comes in a moment, and goes, politely or with a reset."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
        if close_hard:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            peer.sendall(data)
            peer.settimeout(0.03)
            while peer.recv(65536):
                pass
        except OSError:
            pass  # closed or silent: both are fine answers to garbage


def test_bad_frames_on_every_port_harm_nobody(stack: Stack) -> None:
    """Both ports of the MDS and the chunkserver's get all of it; the volume's IO goes on."""
    stack.create_volume("disk", "3G")
    gateway = stack.gateway("disk")
    # The lying frames name chunk 1 of copyset 1, where the writer's first region is: it would see
    # the change.
    writer = Writer(gateway.uri, default_layout(3 << 30), seed=4).start()
    wait_until(lambda: writer.stats.acknowledged > 200, 30, "load")
    pick = random.Random(99)
    frames = [*_bad_frames(pick), *_bad_raft_frames(pick)]
    for number, (what, data) in enumerate(frames):
        for port in (stack.mds_port, stack.grpc_port, stack.chunkserver_port):
            _send(port, data, close_hard=number % 3 == 0)
        writer.check()
        for daemon in (stack.mds, stack.chunkserver, gateway.daemon):
            assert daemon.running, f"{daemon.name} died of: {what}"
    writer.stop()
    # Everybody still answers everybody: a new volume works from end to end.
    stack.create_volume("after", "1G")
    assert any("after" in str(row) for row in stack.copygate_json("volume", "list"))


def test_connections_that_say_nothing_do_not_lock_others_out(stack: Stack) -> None:
    """Hundreds of idle and half-sent connections on each port; new clients still get in."""
    stack.create_volume("disk", "1G")
    half = _frame(CHUNK, "WriteChunk", _chunk_request(2, 0, 1 << 20), bytes(4096))[:2000]
    idle = []
    try:
        for number in range(300):
            for port in (stack.mds_port, stack.chunkserver_port):
                peer = socket.create_connection(("127.0.0.1", port), timeout=5)
                if number % 2:
                    peer.sendall(half)
                idle.append(peer)
        writer = Writer(
            stack.gateway("disk").uri, default_layout(1 << 30), seed=6, reconnect_timeout=20
        ).start()
        wait_until(lambda: writer.stats.acknowledged > 200, 30, "IO beside idle connections")
        writer.stop()
    finally:
        for peer in idle:
            peer.close()


def test_garbage_on_the_nbd_socket_ends_only_that_connection(stack: Stack, plugin: str) -> None:
    """What nbdkit hears before and instead of a handshake."""
    stack.create_volume("disk", "1G")
    gateway = stack.gateway("disk", plugin=plugin, tcp=True)
    writer = Writer(gateway.uri, default_layout(1 << 30), seed=5).start()
    wait_until(lambda: writer.stats.acknowledged > 200, 30, "load")
    pick = random.Random(5)
    assert gateway.port is not None
    for size in (0, 1, 100, 5000, 70000):
        _send(gateway.port, pick.randbytes(size), close_hard=size % 2 == 0)
        writer.check()
    assert gateway.daemon.running
    writer.stop()
