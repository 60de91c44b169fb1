# SPDX-License-Identifier: BSD-3-Clause
"""The baidu_std server and client over real sockets."""

import asyncio
import contextlib
import socket
import struct

import pytest

from gateway.errors import BusyError, ConfigError, DeadlineError, ProtocolError, UnavailableError
from gateway.proto import nameserver2_pb2 as ns
from gateway.rpc import frame
from gateway.rpc.client import BaiduClient, CallError
from gateway.rpc.endpoint import Endpoint
from gateway.rpc.server import BaiduServer, ServerLimits
from gateway.rpc.service import Reply, RpcError, methods_of

SERVICE = "curve.mds.CurveFSService"
LIMITS = ServerLimits(
    connections=4, inflight_per_connection=4, body_max=1 << 16, body_timeout_s=0.2
)


class Echo:
    """GetFileSize answers the number in the name, after as many milliseconds, with the attachment
    backwards; GetAllocatedSize fails in its own ways."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0

    def handler(self, name):
        return {"GetFileSize": self.size, "GetAllocatedSize": self.fail}.get(name, self.size)

    async def size(self, request, attachment, peer):
        self.running += 1
        self.most = max(self.most, self.running)
        number = int(request.fileName)
        await asyncio.sleep(number / 1000)
        self.running -= 1
        return Reply(ns.GetFileSizeResponse(statusCode=0, fileSize=number), attachment[::-1])

    async def fail(self, request, attachment, peer):
        if request.fileName == "refuse":
            raise RpcError(2004, "no more")
        raise ValueError("a defect")


@contextlib.asynccontextmanager
async def serving(limits=LIMITS):
    echo = Echo()
    service = ns.DESCRIPTOR.services_by_name["CurveFSService"]
    server = BaiduServer(methods_of(service, echo.handler), limits)
    endpoint = await server.listen(Endpoint(host="127.0.0.1", port=0))
    try:
        yield server, endpoint, echo
    finally:
        await server.close()


async def size(client, number, **kwargs):
    request = ns.GetFileSizeRequest(fileName=str(number))
    return await client.call(SERVICE, "GetFileSize", request, ns.GetFileSizeResponse, **kwargs)


async def exchange(endpoint, data, *, half_close=False):
    """Sends bytes; returns what comes until the server closes, and whether it closed in time."""
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    writer.write(data)
    if half_close:
        writer.write_eof()
    try:
        async with asyncio.timeout(2):
            return await reader.read(), True
    except TimeoutError:
        return b"", False
    except ConnectionError:
        return b"", True
    finally:
        writer.close()


async def test_replies_come_in_the_order_they_finish_and_are_matched():
    async with serving() as (_, endpoint, _), BaiduClient(endpoint) as client:
        finished = []

        async def one(number):
            response, _ = await size(client, number)
            finished.append(number)
            return response.fileSize

        assert await asyncio.gather(*map(one, (90, 50, 10))) == [90, 50, 10]
        assert finished == [10, 50, 90]


async def test_attachment_goes_both_ways():
    async with serving() as (_, endpoint, _), BaiduClient(endpoint) as client:
        data = bytes(range(256)) * 100
        _, reply = await size(client, 0, attachment=data)
        assert reply == data[::-1]


async def test_unknown_method_and_service_are_answered_1002():
    async with serving() as (_, endpoint, _), BaiduClient(endpoint) as client:
        request = ns.GetFileSizeRequest(fileName="1")
        for service, method in ((SERVICE, "Nothing"), ("no.Service", "GetFileSize")):
            with pytest.raises(CallError) as caught:
                await client.call(service, method, request, ns.GetFileSizeResponse)
            assert caught.value.code == 1002


async def test_service_name_without_its_package_is_accepted():
    async with serving() as (_, endpoint, _), BaiduClient(endpoint) as client:
        request = ns.GetFileSizeRequest(fileName="5")
        got, _ = await client.call("CurveFSService", "GetFileSize", request, ns.GetFileSizeResponse)
        assert got.fileSize == 5


@pytest.mark.parametrize("body", [b"\xff\xff", b"", b"\x0a\x02\xff\xfe"])
async def test_request_that_does_not_parse_is_answered_1003_and_the_connection_stays(body):
    async with serving() as (_, endpoint, _):
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        for correlation in (1, 2):
            writer.write(frame.encode(frame.Request(SERVICE, "GetFileSize", correlation), body))
            header = frame.decode_header(await reader.readexactly(12))
            reply = frame.decode_meta(await reader.readexactly(header.body_size), header)
            assert (reply.error_code, reply.correlation_id) == (1003, correlation)
        writer.close()


async def test_handler_that_fails_is_answered_and_the_next_call_works():
    async with serving() as (_, endpoint, _), BaiduClient(endpoint) as client:
        for name, code in (("refuse", 2004), ("defect", 2001)):
            request = ns.GetAllocatedSizeRequest(fileName=name)
            with pytest.raises(CallError) as caught:
                await client.call(SERVICE, "GetAllocatedSize", request, ns.GetAllocatedSizeResponse)
            assert caught.value.code == code
        assert (await size(client, 1))[0].fileSize == 1


GOOD = frame.encode(
    frame.Request(SERVICE, "GetFileSize", 1),
    ns.GetFileSizeRequest(fileName="0").SerializeToString(),
)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"XRPC" + GOOD[4:],
        b"PRPC" + struct.pack(">II", (1 << 16) + 1, 10) + bytes(100),
        b"PRPC" + struct.pack(">II", 1 << 30, 10),
        b"PRPC" + struct.pack(">II", 10, 20) + bytes(100),
        b"PRPC" + struct.pack(">II", 20, 20) + b"\xff" * 20,
        b"PRPC" + bytes(8),
        frame.encode(frame.Response(1), b"x"),
        GOOD[:5],
        GOOD[:12],
        GOOD[:-1],
    ],
    ids=[
        "http", "magic", "over the limit", "a GiB", "meta", "garbage meta", "empty", "a response",
        "half header", "header alone", "no last byte",
    ],
)  # fmt: skip
async def test_what_is_no_request_closes_the_connection_without_an_answer(data):
    async with serving() as (server, endpoint, _):
        assert await exchange(endpoint, data) == (b"", True)
        async with BaiduClient(endpoint) as client:
            assert (await size(client, 1))[0].fileSize == 1
        await asyncio.sleep(0.05)
        assert server.connection_count == 0


def whole_frames(data):
    """The responses in `data`, which must end with a whole one."""
    found = []
    while data:
        header = frame.decode_header(data[:12])
        body = data[12 : 12 + header.body_size]
        assert len(body) == header.body_size
        found.append(frame.decode_meta(body[: header.meta_size], header))
        data = data[12 + header.body_size :]
    return found


async def test_requests_before_garbage_are_answered_whole_or_not_at_all():
    async with serving() as (_, endpoint, _):
        data, closed = await exchange(endpoint, GOOD + GOOD + b"garbage" * 10)
        assert closed
        assert len(whole_frames(data)) <= 2


async def test_client_that_has_no_more_to_ask_still_gets_its_answers():
    async with serving() as (_, endpoint, _):
        data, closed = await exchange(endpoint, GOOD * 3, half_close=True)
        assert closed
        assert [head.error_code for head in whole_frames(data)] == [0, 0, 0]


async def test_idle_connection_stays_open():
    async with serving() as (_, endpoint, _), BaiduClient(endpoint) as client:
        await asyncio.sleep(LIMITS.body_timeout_s * 2)
        assert (await size(client, 1))[0].fileSize == 1


async def test_no_more_than_the_limit_runs_at_once():
    async with serving() as (_, endpoint, echo), BaiduClient(endpoint) as client:
        await asyncio.gather(*(size(client, 5) for _ in range(40)))
        assert echo.most == LIMITS.inflight_per_connection


async def test_connections_over_the_limit_are_closed_and_those_that_are_open_work():
    async with serving() as (_, endpoint, _), contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(BaiduClient(endpoint)) for _ in range(4)]
        await asyncio.gather(*(size(client, 1) for client in clients))
        assert await exchange(endpoint, GOOD) == (b"", True)
        await asyncio.gather(*(size(client, 1) for client in clients))


async def test_silent_server_is_reported_after_the_deadline():
    async with serving() as (_, endpoint, _), BaiduClient(endpoint) as client:
        with pytest.raises(DeadlineError):
            await size(client, 1000, timeout_s=0.05)
        assert (await size(client, 1))[0].fileSize == 1


async def test_lost_connection_fails_the_calls_that_wait():
    async with serving() as (server, endpoint, _):
        client = BaiduClient(endpoint)
        await client.connect()
        call = asyncio.create_task(size(client, 30_000, timeout_s=20))
        await asyncio.sleep(0.05)
        await server.close()
        with pytest.raises(UnavailableError):
            await call
        with pytest.raises(UnavailableError):
            await size(client, 1)
        await client.close()


async def test_server_that_sends_garbage_is_reported_as_such():
    async def garbage(reader, writer):
        writer.write(b"this is no frame, whatever it may be")

    server = await asyncio.start_server(garbage, "127.0.0.1", 0)
    endpoint = Endpoint(host="127.0.0.1", port=server.sockets[0].getsockname()[1])
    async with BaiduClient(endpoint) as client:
        with pytest.raises(ProtocolError):
            await size(client, 1)
    server.close()


async def test_nobody_there_is_reported():
    with pytest.raises(UnavailableError):
        await BaiduClient(Endpoint(host="127.0.0.1", port=1)).connect()


async def test_bound_address_and_stale_or_foreign_socket_files(tmp_path):
    async with serving() as (server, endpoint, _):
        with pytest.raises(BusyError):
            await server.listen(endpoint)
        with pytest.raises(ConfigError):
            await server.listen(Endpoint(host="192.0.2.1", port=0))
        path = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
        unix = await server.listen(Endpoint(path=str(path)))
        async with BaiduClient(unix) as client:
            assert (await size(client, 1))[0].fileSize == 1
        with pytest.raises(BusyError):
            await server.listen(unix)
        (tmp_path / "file").write_text("precious")
        with pytest.raises(ConfigError):
            await server.listen(Endpoint(path=str(tmp_path / "file")))
        assert (tmp_path / "file").read_text() == "precious"
        with pytest.raises(ConfigError):
            await server.listen(Endpoint(path=str(tmp_path / "no" / "s")))
    assert not path.exists()


async def test_large_bodies_wait_for_one_another_and_small_ones_do_not():
    limits = ServerLimits(body_max=1 << 20, large_bytes_max=1 << 20, body_timeout_s=5)
    async with serving(limits) as (_, endpoint, echo):
        head = b"PRPC" + struct.pack(">II", 1 << 20, 10)
        _, stalled = await asyncio.open_connection(endpoint.host, endpoint.port)
        stalled.write(head)
        await stalled.drain()
        await asyncio.sleep(0.05)
        async with BaiduClient(endpoint) as client, BaiduClient(endpoint) as other:
            large = asyncio.create_task(size(client, 1, attachment=bytes(1 << 19)))
            assert (await size(other, 2))[0].fileSize == 2
            await asyncio.sleep(0.05)
            assert not large.done()
            stalled.close()
            assert (await large)[1] == bytes(1 << 19)
            for _ in range(20):
                await size(client, 0, attachment=bytes(1 << 19))
        assert echo.running == 0
