# SPDX-License-Identifier: BSD-3-Clause
"""baidu_std framing against the bytes of a running CurveBS, and against nonsense."""

import struct

import pytest
from support.golden import captured

from gateway.errors import ProtocolError
from gateway.proto import rpc_pb2
from gateway.rpc import frame

HEADER = frame.Header(body_size=1000, meta_size=10)


@pytest.mark.parametrize("message", captured(), ids=lambda m: f"{m.method}-{m.is_request}")
def test_captured_frame_decodes_and_encodes_to_the_same_bytes(message):
    header = frame.decode_header(message.header)
    assert header.body_size == len(message.meta) + len(message.body)
    assert header.meta_size == len(message.meta)
    head = frame.decode_meta(message.meta, header)
    assert isinstance(head, frame.Request if message.is_request else frame.Response)
    if isinstance(head, frame.Request):
        assert f"{head.service}.{head.method}" == message.method
    assert frame.encode(head, message.body) == message.frame


def test_attachment_is_counted_and_comes_last():
    data = frame.encode(frame.Response(7), b"message", b"attachment")
    header = frame.decode_header(data[:12])
    head = frame.decode_meta(data[12 : 12 + header.meta_size], header)
    assert head.attachment_size == len(b"attachment")
    assert data.endswith(b"messageattachment")
    assert header.body_size == len(data) - 12


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"XXXX" + struct.pack(">II", 10, 5), "does not speak"),
        (b"PRPC" + struct.pack(">II", (64 << 20) + 1, 5), "over the limit"),
        (b"PRPC" + struct.pack(">II", 0xFFFFFFFF, 5), "over the limit"),
        (b"PRPC" + struct.pack(">II", 10, 11), "does not fit"),
        (b"PRPC" + struct.pack(">II", 10000, 4097), "does not fit"),
        (b"PRPC", "12 bytes"),
    ],
)
def test_bad_header_is_refused(data, words):
    with pytest.raises(ProtocolError, match=words):
        frame.decode_header(data)


def test_largest_frame_is_accepted():
    header = frame.decode_header(b"PRPC" + struct.pack(">II", 64 << 20, 4096))
    assert header == frame.Header(64 << 20, 4096)


def _meta(**fields):
    meta = rpc_pb2.RpcMeta(**fields)
    if not fields.get("response"):
        meta.request.service_name = "s"
        meta.request.method_name = "m"
    return meta.SerializeToString()


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff",
        b"",
        rpc_pb2.RpcMeta(correlation_id=1).SerializeToString(),
        _meta(compress_type=1),
        _meta(attachment_size=-1),
        _meta(attachment_size=991),
        _meta() + rpc_pb2.RpcMeta(response=rpc_pb2.RpcResponseMeta()).SerializeToString(),
        rpc_pb2.RpcMeta(request=rpc_pb2.RpcRequestMeta()).SerializePartialToString(),
    ],
    ids=["garbage", "empty", "neither", "compressed", "negative", "too long", "both", "nameless"],
)
def test_bad_meta_is_refused(data):
    with pytest.raises(ProtocolError):
        frame.decode_meta(data, HEADER)


def test_name_that_is_not_utf8_does_not_break_the_decoder():
    data = _meta().replace(b"\x01s", b"\x01\xff")
    head = frame.decode_meta(data, HEADER)
    assert isinstance(head, frame.Request)
    assert head.service == "\ufffd"


def test_message_over_the_limit_is_not_encoded():
    with pytest.raises(ProtocolError, match="over the limit"):
        frame.encode(frame.Response(1), bytes(64 << 20))
