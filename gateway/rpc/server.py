# SPDX-License-Identifier: BSD-3-Clause
"""A baidu_std server on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gateway.errors import BusyError, ConfigError, ProtocolError
from gateway.rpc import frame
from gateway.rpc.endpoint import Endpoint
from gateway.rpc.service import Method, Peer, Reply, RpcError, decode_message, index_methods

log = logging.getLogger(__name__)

WAITING_BODY = 4 << 10
"""The longest body of a request that waits without counting as one that is worked on."""
LARGE_BODY = 64 << 10
"""Bytes from which on a body counts against ServerLimits.large_bytes_max."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What bounds a server's memory: ``large_bytes_max``, and ``connections`` times
    ``inflight_per_connection`` bodies that are not large (``waiting_per_connection`` of
    WAITING_BODY bytes)."""

    connections: int = 512
    inflight_per_connection: int = 64
    waiting_per_connection: int = 1024
    """Requests of methods that wait, beside those: they must not keep others from being read."""
    body_max: int = frame.BODY_MAX
    large_bytes_max: int = 4 * frame.BODY_MAX
    """What bodies over LARGE_BODY may take together; at least ``body_max``."""
    body_timeout_s: float = 30.0
    """A frame that has begun must be complete after this; an idle connection may stay."""
    reply_timeout_s: float = 30.0
    """A peer that does not read its replies for this long is disconnected."""


class _Budget:
    """Bytes that large bodies may take together; who finds too few left waits in turn."""

    def __init__(self, free: int) -> None:
        self._free = free
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> int:
        """Waits for ``size`` bytes; returns what to give back (nothing for a small body)."""
        if size <= LARGE_BODY:
            return 0
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(size)
            raise
        return size

    def give(self, size: int) -> None:
        self._free += size
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if turn.cancelled():
                self._waiting.popleft()
                continue
            if self._free < size:
                break
            self._waiting.popleft()
            self._free -= size
            turn.set_result(None)


class BaiduServer:
    """Serves methods on any number of endpoints.

    A connection that sends what is not baidu_std, a frame over the limit, or half a frame is
    closed; an unknown method is answered 1002, a request that does not parse 1003. Requests of a
    connection run concurrently and are answered in the order they finish.
    """

    def __init__(self, methods: Iterable[Method], limits: ServerLimits | None = None) -> None:
        self._methods = index_methods(methods)
        self._limits = limits or ServerLimits()
        self._budget = _Budget(self._limits.large_bytes_max)
        self._servers: list[asyncio.Server] = []
        self._connections: set[_Connection] = set()
        self._unix_paths: list[Path] = []

    async def listen(self, endpoint: Endpoint) -> Endpoint:
        """Binds and starts to serve; returns the endpoint bound (port 0 becomes the port picked).

        Raises BusyError when someone listens there, ConfigError when the address is not ours.
        """
        if endpoint.is_unix:
            await remove_stale_socket(endpoint)
        try:
            if endpoint.is_unix:
                server = await asyncio.start_unix_server(self._accept, endpoint.path)
                self._unix_paths.append(Path(endpoint.path))
            else:
                server = await asyncio.start_server(self._accept, endpoint.host, endpoint.port)
        except OSError as error:
            raise bind_error(endpoint, error) from error
        self._servers.append(server)
        if endpoint.is_unix:
            return endpoint
        port = server.sockets[0].getsockname()[1]
        return Endpoint(host=endpoint.host, port=port)

    async def close(self) -> None:
        """Stops listening, lets requests that run finish for a moment, closes the connections."""
        for server in self._servers:
            server.close()
        connections = list(self._connections)
        await asyncio.gather(*(connection.finish() for connection in connections))
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()
        for path in self._unix_paths:
            path.unlink(missing_ok=True)
        self._unix_paths.clear()

    @property
    def connection_count(self) -> int:
        return len(self._connections)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= self._limits.connections:
            log.warning("refused a connection: %d are open", len(self._connections))
            writer.transport.abort()
            return
        connection = _Connection(self._methods, self._limits, self._budget, reader, writer)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)


class _Connection:
    def __init__(
        self,
        methods: dict[tuple[str, str], Method],
        limits: ServerLimits,
        budget: _Budget,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._methods = methods
        self._limits = limits
        self._budget = budget
        self._reader = reader
        self._writer = writer
        self._slots = asyncio.Semaphore(limits.inflight_per_connection)
        self._calls: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self._reading: asyncio.Task[None] | None = None
        self._peer = _peer_of(writer)
        sock = writer.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def run(self) -> None:
        self._reading = asyncio.current_task()
        try:
            while await self._serve_one():
                pass
            if self._calls:  # the peer has no more to ask, but may wait for answers
                await asyncio.wait(list(self._calls))
        except ProtocolError as error:
            log.warning("closed the connection of %s: %s", self._peer, error)
        except TimeoutError:
            log.warning("closed the connection of %s: it sent half a frame", self._peer)
        except (ConnectionError, asyncio.IncompleteReadError):
            log.debug("%s went away within a frame", self._peer)
        except asyncio.CancelledError:
            pass  # close() ends the reading; the calls were waited for there
        finally:
            for call in self._calls:
                call.cancel()
            self._writer.close()
            with contextlib.suppress(ConnectionError, OSError):
                await self._writer.wait_closed()

    async def finish(self) -> None:
        """Waits for the calls that run (a second at most), then ends the connection."""
        if self._calls:
            await asyncio.wait(list(self._calls), timeout=1.0)
        if self._reading is not None and not self._reading.done():
            self._reading.cancel()
            await asyncio.wait([self._reading], timeout=1.0)

    async def _serve_one(self) -> bool:
        # The wait for a slot is what stops reading from a peer with too much in flight.
        await self._slots.acquire()
        taken = 0
        started = False
        try:
            first = await self._reader.read(1)
            if not first:
                return False
            async with asyncio.timeout(self._limits.body_timeout_s):
                rest = await self._reader.readexactly(frame.HEADER_SIZE - 1)
            header = frame.decode_header(first + rest, self._limits.body_max)
            taken = await self._budget.take(header.body_size)
            async with asyncio.timeout(self._limits.body_timeout_s):
                body = await self._reader.readexactly(header.body_size)
            head = frame.decode_meta(body[: header.meta_size], header)
            if not isinstance(head, frame.Request):
                raise ProtocolError("a client sent a response")
            waits = self._may_wait(head, len(body))
            end = len(body) - head.attachment_size
            call = asyncio.create_task(
                self._call(head, body[header.meta_size : end], body[end:]),
                name=f"{head.service}.{head.method}"[:128],
            )
            self._calls.add(call)
            call.add_done_callback(partial(self._done, taken, waits))
            started = True
            if waits:
                self._waiting += 1
                self._slots.release()
        finally:
            if not started:
                self._slots.release()
                self._budget.give(taken)
        return True

    def _may_wait(self, head: frame.Request, size: int) -> bool:
        method = self._methods.get((head.service, head.method))
        return (
            method is not None
            and method.waits
            and size <= WAITING_BODY
            and self._waiting < self._limits.waiting_per_connection
        )

    def _done(self, taken: int, waited: bool, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        if waited:
            self._waiting -= 1
        else:
            self._slots.release()
        self._budget.give(taken)
        if not call.cancelled() and (error := call.exception()) is not None:
            log.error("a reply to %s failed", self._peer, exc_info=error)

    async def _call(self, head: frame.Request, message: bytes, attachment: bytes) -> None:
        try:
            self._writer.write(await self._answer(head, message, attachment))
            async with asyncio.timeout(self._limits.reply_timeout_s):
                await self._writer.drain()
        except TimeoutError:
            log.warning("%s does not read its replies: disconnected", self._peer)
            self._writer.transport.abort()
        except ConnectionError:
            log.debug("%s went away before its reply", self._peer)

    async def _answer(self, head: frame.Request, message: bytes, attachment: bytes) -> bytes:
        try:
            reply = await self._handle(head, message, attachment)
            return frame.encode(
                frame.Response(head.correlation_id),
                reply.message.SerializeToString(),
                reply.attachment,
            )
        except RpcError as failure:
            code, text = failure.code, failure.text
        except Exception:  # a handler's defect must be answered, or the caller waits in vain
            log.exception("%s.%s failed", head.service, head.method)
            code, text = frame.EINTERNAL, "the server failed; its log says why"
        return frame.encode(frame.Response(head.correlation_id, code, text), b"")

    async def _handle(self, head: frame.Request, message: bytes, attachment: bytes) -> Reply:
        method = self._methods.get((head.service, head.method))
        if method is None:
            name = f"{head.service[: frame.NAME_MAX]}.{head.method[: frame.NAME_MAX]}"
            raise RpcError(frame.ENOMETHOD, f"Fail to find method={name}")
        try:
            request = decode_message(method.request, message)
        except ProtocolError as error:
            raise RpcError(frame.EREQUEST, f"Fail to parse request: {error}") from error
        return await method.handler(request, attachment, self._peer)


def _peer_of(writer: asyncio.StreamWriter) -> Peer:
    name = writer.get_extra_info("peername")
    if isinstance(name, tuple):
        return Peer(ip=str(name[0]), port=int(name[1]), transport="tcp")
    return Peer(transport="unix")


async def remove_stale_socket(endpoint: Endpoint) -> None:
    """Removes the socket file that a killed server left. Raises BusyError if someone listens on it,
    ConfigError if the file is something else."""
    if not _is_socket(endpoint):
        return
    try:
        async with asyncio.timeout(2):
            _, writer = await asyncio.open_unix_connection(endpoint.path)
    except (ConnectionRefusedError, FileNotFoundError):
        _unlink(endpoint)
        return
    except (TimeoutError, OSError) as error:
        raise bind_error(endpoint, error) from error
    writer.close()
    raise BusyError(
        "another server listens there", context={"address": endpoint}, hint="stop it first"
    )


def _is_socket(endpoint: Endpoint) -> bool:
    path = Path(endpoint.path)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    except OSError as error:
        raise bind_error(endpoint, error) from error
    if not stat.S_ISSOCK(mode):
        raise ConfigError(
            "there is a file at the socket's path that is no socket",
            context={"path": path},
            hint="choose another path or remove the file",
        )
    return True


def _unlink(endpoint: Endpoint) -> None:
    try:
        Path(endpoint.path).unlink(missing_ok=True)
    except OSError as error:
        raise bind_error(endpoint, error) from error


def bind_error(endpoint: Endpoint, error: OSError | TimeoutError) -> BusyError | ConfigError:
    """What to tell when an endpoint cannot be bound."""
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    context = {"address": endpoint, "reason": reason}
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return BusyError(
            "the address is in use", context=context, hint="stop the other server first"
        )
    return ConfigError("cannot listen", context=context, hint="check the address and the folder")
