# SPDX-License-Identifier: BSD-3-Clause
"""The names of a store's volumes, for clients that list the exports; asked over baidu_std."""

from __future__ import annotations

import asyncio
import time

from gateway.errors import CopygateError, UnavailableError
from gateway.mds.rules import RECYCLE_BIN, sign
from gateway.nbd.options import Options
from gateway.proto import nameserver2_pb2 as ns
from gateway.rpc.client import BaiduClient
from gateway.rpc.endpoint import parse_endpoint

NAMES_MAX = 10_000
"""nbdkit's own limit on exports in one list."""
DEPTH_MAX = 8
TIMEOUT_S = 5.0
_SERVICE = "curve.mds.CurveFSService"


def list_volumes(options: Options) -> list[str]:
    """Returns the names, as export names, in order. Raises CopygateError when no MDS answers."""
    return asyncio.run(_ask_each(options))


async def _ask_each(options: Options) -> list[str]:
    failure: CopygateError | None = None
    for address in options.mds.split(","):
        try:
            async with BaiduClient(parse_endpoint(address.strip())) as client:
                return sorted(await _walk(client, options))
        except UnavailableError as error:
            failure = error
    raise failure or UnavailableError("no metadata server is named")


async def _walk(client: BaiduClient, options: Options) -> list[str]:
    names: list[str] = []
    folders = [("/", 0)]
    while folders and len(names) < NAMES_MAX:
        folder, depth = folders.pop()
        for entry in await _list_folder(client, options, folder):
            path = folder.rstrip("/") + "/" + entry.fileName
            if entry.fileType == ns.INODE_PAGEFILE:
                names.append(path.lstrip("/"))
            elif (
                entry.fileType == ns.INODE_DIRECTORY
                and path != f"/{RECYCLE_BIN}"
                and depth < DEPTH_MAX
            ):
                folders.append((path, depth + 1))
    return names[:NAMES_MAX]


async def _list_folder(client: BaiduClient, options: Options, folder: str) -> list[ns.FileInfo]:
    date_us = time.time_ns() // 1000
    request = ns.ListDirRequest(fileName=folder, owner=options.owner, date=date_us)
    if options.password is not None:
        request.signature = sign(options.password, options.owner, date_us)
    response, _ = await client.call(
        _SERVICE, "ListDir", request, ns.ListDirResponse, timeout_s=TIMEOUT_S
    )
    if response.statusCode == ns.kOwnerAuthFail and folder != "/":
        return []  # another owner's folder: nothing in it could be opened
    if response.statusCode != ns.kOK:
        raise CopygateError(
            "the metadata server does not list the volumes",
            context={"folder": folder, "status": ns.StatusCode.Name(response.statusCode)},
        )
    return list(response.fileInfo)
