# SPDX-License-Identifier: BSD-3-Clause
"""libcurve's own bytes against our server: each captured request, on a connection of its own as
libcurve sends it, and our reply against CurveBS's."""

import asyncio

import pytest_asyncio
from support.golden import captured, pair

from gateway.proto import nameserver2_pb2 as ns
from gateway.proto import topology_pb2 as topo
from gateway.rpc import frame


def capture_date_us() -> int:
    request = ns.OpenFileRequest.FromString(pair("OpenFile")[0].body)
    return request.date


@pytest_asyncio.fixture
async def replayed(mds):
    """The server at the time of the capture, with its volume and its twelve copysets."""
    mds.clock.ahead_us = capture_date_us() - mds.clock.now_us()
    await mds.restart(copysets_per_chunkserver=12)
    for number in (1, 2, 3):
        await mds.add_chunkserver(number, port=18199 + number)
    request = ns.CreateFileRequest(fileName="/vol1", fileType=1, fileLength=10 << 30)
    assert (await mds.call(request, ns.CreateFileResponse, owner="bench")).statusCode == 0
    return mds


async def replay(mds, message):
    endpoint = mds.server.addresses[0]
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    writer.write(message.frame)
    header = frame.decode_header(await reader.readexactly(12))
    body = await reader.readexactly(header.body_size)
    writer.close()
    return body[: header.meta_size], body[header.meta_size :]


def test_runtime_writes_the_captured_responses_byte_for_byte():
    kinds = {
        "OpenFile": ns.OpenFileResponse,
        "GetOrAllocateSegment": ns.GetOrAllocateSegmentResponse,
        "GetChunkServerListInCopySets": topo.GetChunkServerListInCopySetsResponse,
        "CloseFile": ns.CloseFileResponse,
    }
    for message in captured():
        if not message.is_request:
            kind = kinds[message.method.rpartition(".")[2]]
            assert kind.FromString(message.body).SerializeToString() == message.body


async def test_open_file_reply_has_all_that_curvebs_told(replayed):
    request, expected = pair("OpenFile")
    meta, body = await replay(replayed, request)
    assert meta == expected.meta
    ours, theirs = (ns.OpenFileResponse.FromString(b) for b in (body, expected.body))
    assert ours.IsInitialized()
    assert ours.statusCode == ns.kOK
    for field, value in theirs.fileInfo.ListFields():
        # The times differ, and throttles, which libcurve does not enforce, are not ours.
        if field.name not in ("ctime", "throttleParams"):
            assert getattr(ours.fileInfo, field.name) == value, field.name
    assert ours.fileInfo.HasField("ctime")
    assert not ours.fileInfo.HasField("epoch")
    assert len(ours.fileInfo.uuid) == 16
    assert ours.fileInfo.features == 1
    assert ours.protoSession.sessionID
    assert ours.protoSession.leaseTime == 20_000_000
    assert abs(ours.protoSession.createTime - theirs.protoSession.createTime) < 60_000_000
    assert ours.protoSession.sessionStatus == theirs.protoSession.sessionStatus


async def test_segment_reply_is_curvebs_s_but_for_the_copysets(replayed):
    request, expected = pair("GetOrAllocateSegment")
    meta, body = await replay(replayed, request)
    assert meta == expected.meta
    ours, theirs = (ns.GetOrAllocateSegmentResponse.FromString(b) for b in (body, expected.body))
    members = {c.copysetID for c in ours.pageFileSegment.chunks}
    assert members == set(range(1, 37))
    for answer in (ours, theirs):
        for chunk in answer.pageFileSegment.chunks:
            chunk.copysetID = 1
    assert ours == theirs
    assert await replay(replayed, request) == (meta, body), "a repeated request changed the answer"


async def test_copysets_are_answered_one_by_one_with_the_repeated_ones(replayed):
    request, expected = pair("GetChunkServerListInCopySets")
    meta, body = await replay(replayed, request)
    assert meta == expected.meta
    ours, theirs = (
        topo.GetChunkServerListInCopySetsResponse.FromString(b) for b in (body, expected.body)
    )
    assert [c.copysetId for c in ours.csInfo] == [c.copysetId for c in theirs.csInfo]
    location = ours.csInfo[0].csLocs[0]
    assert location == theirs.csInfo[0].csLocs[0]


async def test_close_file_reply_is_curvebs_s_byte_for_byte(replayed):
    await replay(replayed, pair("OpenFile")[0])
    request, expected = pair("CloseFile")
    assert await replay(replayed, request) == (expected.meta, expected.body)


async def test_captured_request_is_refused_when_its_date_is_over(replayed):
    replayed.clock.move(20)
    _, body = await replay(replayed, pair("OpenFile")[0])
    assert ns.OpenFileResponse.FromString(body).statusCode == ns.kOwnerAuthFail
