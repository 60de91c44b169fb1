# SPDX-License-Identifier: BSD-3-Clause
"""Services as tables of methods, independent of the transport that serves them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from gateway.errors import ProtocolError

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Peer:
    """Who called: an address to show and record. A unix socket's peer has no ip."""

    ip: str = ""
    port: int = 0
    transport: str = ""

    def __str__(self) -> str:
        return f"{self.ip}:{self.port}" if self.ip else self.transport or "local"


@dataclass(frozen=True, slots=True)
class Reply:
    """A response message; ``detail`` is a sentence for people when the message reports an error
    (carried by gRPC only: CurveBS's messages have no room for it)."""

    message: Message
    attachment: bytes = b""
    detail: str = ""


Handler = Callable[[Message, bytes, Peer], Awaitable[Reply]]
"""Takes the request, its attachment and the caller."""


@dataclass(frozen=True, slots=True)
class Method:
    service: str
    name: str
    request: type[Message]
    response: type[Message]
    handler: Handler = field(compare=False)
    waits: bool = False
    """Its small requests may wait for something to happen, and do not count as being worked on."""


class RpcError(Exception):
    """A handler's way to fail the call itself (not to answer with a status in the message)."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def methods_of(
    descriptor: ServiceDescriptor,
    handler_for: Callable[[str], Handler],
    *,
    waits: Container[str] = (),
) -> list[Method]:
    """A .proto file's service as methods; ``handler_for`` maps a method's name to its handler,
    ``waits`` has the names of those that wait."""
    return [
        Method(
            service=descriptor.full_name,
            name=method.name,
            request=GetMessageClass(method.input_type),
            response=GetMessageClass(method.output_type),
            handler=handler_for(method.name),
            waits=method.name in waits,
        )
        for method in descriptor.methods
    ]


@lru_cache(maxsize=256)
def _string_fields(descriptor: Descriptor) -> tuple[str, ...]:
    return tuple(
        f.name
        for f in descriptor.fields
        if f.type == FieldDescriptor.TYPE_STRING and not f.is_repeated
    )


def decode_message(message_type: type[M], data: bytes) -> M:
    """Parses ``data`` strictly: no missing required field, no string that is not UTF-8.

    Raises ProtocolError. (The runtime itself accepts both in proto2.)
    """
    message = message_type()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ProtocolError("not a valid message", context={"type": _name(message_type)}) from error
    if not message.IsInitialized():
        raise ProtocolError("a required field is missing", context={"type": _name(message_type)})
    for name in _string_fields(message.DESCRIPTOR):
        if isinstance(getattr(message, name), bytes):
            raise ProtocolError(
                "a text is not UTF-8", context={"type": _name(message_type), "field": name}
            )
    return message


def index_methods(methods: Iterable[Method]) -> dict[tuple[str, str], Method]:
    """By service and method; the service also without its package, as brpc accepts it."""
    table: dict[tuple[str, str], Method] = {}
    for method in methods:
        table[(method.service, method.name)] = method
        table[(method.service.rpartition(".")[2], method.name)] = method
    return table


def _name(message_type: type[Message]) -> str:
    return str(message_type.DESCRIPTOR.full_name)
