# SPDX-License-Identifier: BSD-3-Clause
"""baidu_std framing, pure functions.

A frame is a 12-byte header ("PRPC", u32 big-endian body size, u32 big-endian meta size), the
RpcMeta message, the request or response message, and the attachment last; the body size counts
meta, message and attachment (brpc, baidu_rpc_protocol.cpp).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from gateway.errors import ProtocolError
from gateway.proto import rpc_pb2

HEADER_SIZE = 12
BODY_MAX = 64 << 20
"""brpc's max_body_size."""
META_MAX = 4096
NAME_MAX = 96

# brpc's error codes (brpc errno.proto).
ENOSERVICE = 1001
ENOMETHOD = 1002
EREQUEST = 1003
EINTERNAL = 2001
ELIMIT = 2004

_MAGIC = b"PRPC"
_HEADER = struct.Struct(">4sII")


@dataclass(frozen=True, slots=True)
class Header:
    body_size: int
    meta_size: int


@dataclass(frozen=True, slots=True)
class Request:
    service: str
    method: str
    correlation_id: int
    log_id: int = 0
    attachment_size: int = 0


@dataclass(frozen=True, slots=True)
class Response:
    correlation_id: int
    error_code: int = 0
    error_text: str = ""
    attachment_size: int = 0


def decode_header(data: bytes, body_max: int = BODY_MAX) -> Header:
    """Reads the 12 bytes of ``data``. Raises ProtocolError for a wrong magic or size."""
    if len(data) != HEADER_SIZE:
        raise ProtocolError("a frame's header has 12 bytes", context={"length": len(data)})
    magic, body_size, meta_size = _HEADER.unpack(data)
    if magic != _MAGIC:
        raise ProtocolError("the peer does not speak baidu_std", context={"magic": magic.hex()})
    if body_size > body_max:
        raise ProtocolError(
            "a frame is over the limit", context={"body": body_size, "limit": body_max}
        )
    if meta_size > META_MAX or meta_size > body_size:
        raise ProtocolError("a frame's meta does not fit", context={"meta": meta_size})
    return Header(body_size, meta_size)


def decode_meta(data: bytes, header: Header) -> Request | Response:
    """Reads a frame's meta. Raises ProtocolError when it is not one or does not fit its frame."""
    meta = rpc_pb2.RpcMeta()
    try:
        meta.ParseFromString(data)
    except DecodeError as error:
        raise ProtocolError("a frame's meta is not protobuf") from error
    if not meta.IsInitialized() or meta.HasField("request") == meta.HasField("response"):
        raise ProtocolError("a frame is neither a request nor a response")
    if meta.compress_type != 0:
        raise ProtocolError(
            "a frame is compressed, which is not supported", context={"type": meta.compress_type}
        )
    if not 0 <= meta.attachment_size <= header.body_size - header.meta_size:
        raise ProtocolError(
            "a frame's attachment does not fit", context={"attachment": meta.attachment_size}
        )
    if meta.HasField("response"):
        return Response(
            correlation_id=meta.correlation_id,
            error_code=meta.response.error_code,
            error_text=_text(meta.response.error_text),
            attachment_size=meta.attachment_size,
        )
    return Request(
        service=_text(meta.request.service_name),
        method=_text(meta.request.method_name),
        correlation_id=meta.correlation_id,
        log_id=meta.request.log_id,
        attachment_size=meta.attachment_size,
    )


def encode(head: Request | Response, message: bytes, attachment: bytes = b"") -> bytes:
    """Builds a whole frame as brpc does: compress_type 0 and error_code 0 are written out,
    attachment_size only if there is one. ``head.attachment_size`` is ignored."""
    meta = rpc_pb2.RpcMeta(compress_type=0, correlation_id=head.correlation_id)
    if isinstance(head, Request):
        meta.request.service_name = head.service
        meta.request.method_name = head.method
        if head.log_id:
            meta.request.log_id = head.log_id
    else:
        meta.response.error_code = head.error_code
        if head.error_text:
            meta.response.error_text = head.error_text
    if attachment:
        meta.attachment_size = len(attachment)
    encoded = meta.SerializeToString()
    body_size = len(encoded) + len(message) + len(attachment)
    if body_size > BODY_MAX or len(encoded) > META_MAX:
        raise ProtocolError("the message is over the limit", context={"body": body_size})
    return b"".join((_HEADER.pack(_MAGIC, body_size, len(encoded)), encoded, message, attachment))


def _text(value: str | bytes) -> str:
    # The protobuf runtime hands out bytes for a proto2 string that is not UTF-8.
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
