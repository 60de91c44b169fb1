# SPDX-License-Identifier: BSD-3-Clause
"""A baidu_std client on asyncio: one connection, many calls at once, replies in any order."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TypeVar

from google.protobuf.message import Message

from gateway.errors import DeadlineError, ProtocolError, UnavailableError
from gateway.rpc import frame
from gateway.rpc.endpoint import Endpoint
from gateway.rpc.service import decode_message

M = TypeVar("M", bound=Message)


class CallError(ProtocolError):
    """The server answered with an RPC error (brpc's code, e.g. 1002 for an unknown method)."""

    def __init__(self, code: int, text: str, method: str) -> None:
        super().__init__(
            f"the server refused the call: {text}", context={"method": method, "code": code}
        )
        self.code = code
        self.text = text


class BaiduClient:
    """Use as an asynchronous context manager, or connect() and close()."""

    def __init__(
        self, endpoint: Endpoint, *, inflight_max: int = 1024, body_max: int = frame.BODY_MAX
    ) -> None:
        self._endpoint = endpoint
        self._body_max = body_max
        self._slots = asyncio.Semaphore(inflight_max)
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[frame.Response, bytes, bytes]]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._broken: Exception | None = None

    async def __aenter__(self) -> BaiduClient:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self, timeout_s: float = 5.0) -> None:
        """Raises UnavailableError when the server cannot be reached."""
        try:
            async with asyncio.timeout(timeout_s):
                if self._endpoint.is_unix:
                    reader, writer = await asyncio.open_unix_connection(self._endpoint.path)
                else:
                    reader, writer = await asyncio.open_connection(
                        self._endpoint.host, self._endpoint.port
                    )
        except (OSError, TimeoutError) as error:
            raise UnavailableError(
                "cannot reach the server",
                context={"address": self._endpoint, "reason": str(error) or "no answer"},
                hint="is it running, and is the address right?",
            ) from error
        self._broken = None
        self._writer = writer
        self._reading = asyncio.create_task(self._read(reader), name="baidu_std replies")

    async def close(self) -> None:
        """Ends the connection; calls that wait fail with UnavailableError."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
            self._reading = None
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
            self._writer = None

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        response_type: type[M],
        *,
        attachment: bytes = b"",
        timeout_s: float = 5.0,
    ) -> tuple[M, bytes]:
        """Calls and returns the response and its attachment.

        Raises CallError (the server's RPC error), DeadlineError, UnavailableError (connection
        lost), ProtocolError (the answer does not parse).
        """
        name = f"{service}.{method}"
        encoded = request.SerializeToString()
        try:
            async with asyncio.timeout(timeout_s), self._slots:
                head, message, reply = await self._exchange(service, method, encoded, attachment)
        except TimeoutError as error:
            raise DeadlineError(
                "the server did not answer in time",
                context={"address": self._endpoint, "method": name, "seconds": timeout_s},
            ) from error
        if head.error_code != 0:
            raise CallError(head.error_code, head.error_text, name)
        return decode_message(response_type, message), reply

    async def _exchange(
        self, service: str, method: str, encoded: bytes, attachment: bytes
    ) -> tuple[frame.Response, bytes, bytes]:
        if self._writer is None or self._broken is not None:
            raise self._lost(self._broken)
        correlation_id = next(self._ids)
        head = frame.Request(service, method, correlation_id)
        future: asyncio.Future[tuple[frame.Response, bytes, bytes]] = (
            asyncio.get_running_loop().create_future()
        )
        self._waiting[correlation_id] = future
        try:
            self._writer.write(frame.encode(head, encoded, attachment))
            # A loss is reported by the reader, which knows its cause.
            with contextlib.suppress(ConnectionError):
                await self._writer.drain()
            return await future
        finally:
            self._waiting.pop(correlation_id, None)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        cause: Exception | None = None
        try:
            while True:
                header = frame.decode_header(
                    await reader.readexactly(frame.HEADER_SIZE), self._body_max
                )
                body = await reader.readexactly(header.body_size)
                head = frame.decode_meta(body[: header.meta_size], header)
                if not isinstance(head, frame.Response):
                    raise ProtocolError("a server sent a request")
                end = len(body) - head.attachment_size
                future = self._waiting.get(head.correlation_id)
                # No one waits for a reply whose deadline has passed.
                if future is not None and not future.done():
                    future.set_result((head, body[header.meta_size : end], body[end:]))
        except (ProtocolError, ConnectionError, OSError, asyncio.IncompleteReadError) as error:
            cause = error
        finally:
            self._broken = cause or ConnectionError("the connection was closed")
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(self._lost(cause))

    def _lost(self, cause: Exception | None) -> Exception:
        if isinstance(cause, ProtocolError):
            return cause
        return UnavailableError("the connection was lost", context={"address": self._endpoint})
