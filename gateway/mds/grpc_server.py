# SPDX-License-Identifier: BSD-3-Clause
"""Serves the same methods on gRPC.

A refusal is a normal response with CurveBS's status code; its sentence comes in the trailing
metadata ``copygate-detail-bin``. A refusal of ClusterService, whose messages have no status, is a
gRPC status.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

import grpc
import grpc.aio

from gateway.errors import ConfigError, ProtocolError, StorageError
from gateway.mds.refusal import ClusterRefusalError
from gateway.rpc.endpoint import Endpoint
from gateway.rpc.server import bind_error, remove_stale_socket
from gateway.rpc.service import Method, Peer, decode_message

log = logging.getLogger(__name__)

DETAIL_KEY = "copygate-detail-bin"
MESSAGE_MAX = 1 << 20
REPLY_MAX = 64 << 20
CALLS_MAX = 256
DETAIL_MAX = 2000


class GrpcServer:
    """A grpc.aio server over the methods; listen on endpoints, then start."""

    def __init__(self, methods: Iterable[Method]) -> None:
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MESSAGE_MAX),
                ("grpc.max_send_message_length", REPLY_MAX),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=CALLS_MAX,
        )
        by_service: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        for method in methods:
            by_service.setdefault(method.service, {})[method.name] = _handler(method)
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(name, h) for name, h in by_service.items()]
        )

    async def listen(self, endpoint: Endpoint) -> Endpoint:
        """Binds; returns the endpoint bound. Raises BusyError or ConfigError."""
        if endpoint.is_unix:
            await remove_stale_socket(endpoint)
        else:
            await _probe(endpoint)
        try:
            port = self._server.add_insecure_port(endpoint.grpc_target)
        except RuntimeError as error:
            raise ConfigError(
                "cannot listen",
                context={"address": endpoint, "reason": error},
                hint="is another server there? is the address this machine's?",
            ) from error
        return endpoint if endpoint.is_unix else Endpoint(host=endpoint.host, port=port)

    async def start(self) -> None:
        await self._server.start()

    async def close(self, grace_s: float = 1.0) -> None:
        await self._server.stop(grace_s)


async def _probe(endpoint: Endpoint) -> None:
    """Refuses an address that cannot be bound with its reason, which gRPC only prints."""
    try:
        server = await asyncio.start_server(
            lambda _, writer: writer.close(), endpoint.host, endpoint.port, start_serving=False
        )
    except OSError as error:
        raise bind_error(endpoint, error) from error
    server.close()
    await server.wait_closed()


def _handler(method: Method) -> grpc.RpcMethodHandler[Any, Any]:
    async def call(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        try:
            request = decode_message(method.request, data)
        except ProtocolError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        try:
            reply = await method.handler(request, b"", _peer(context.peer()))
        except ClusterRefusalError as refusal:
            await context.abort(grpc.StatusCode[refusal.code], refusal.detail)
        except StorageError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        if reply.detail:
            context.set_trailing_metadata(((DETAIL_KEY, reply.detail[:DETAIL_MAX].encode()),))
        return reply.message.SerializeToString()

    # Bytes in and out: decode_message is stricter than the runtime's own parsing.
    return grpc.unary_unary_rpc_method_handler(call)


def _peer(text: str) -> Peer:
    """gRPC says "ipv4:1.2.3.4:5", "ipv6:[::1]:5" (percent-encoded) or "unix:..."."""
    kind, _, rest = text.partition(":")
    host, _, port = rest.rpartition(":")
    if kind in ("ipv4", "ipv6") and port.isdigit():
        return Peer(ip=host.replace("%5B", "").replace("%5D", "").strip("[]"), port=int(port))
    return Peer(transport="grpc " + kind)
