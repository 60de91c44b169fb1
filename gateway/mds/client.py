# SPDX-License-Identifier: BSD-3-Clause
"""A typed gRPC client of the metadata server, for the command line and for chunkserver hosts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TypeAlias, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from gateway.errors import (
    AccessError,
    BusyError,
    ConfigError,
    CopygateError,
    DeadlineError,
    ExistsError,
    FencedError,
    InvalidArgumentError,
    NoSpaceError,
    NotFoundError,
    ProtocolError,
    StorageError,
    UnavailableError,
)
from gateway.mds import rules
from gateway.proto import cluster_pb2 as cl
from gateway.proto import export_pb2 as ex
from gateway.proto import iscsi_pb2
from gateway.proto import nameserver2_pb2 as ns
from gateway.proto import shared_state_pb2 as ss
from gateway.rpc.endpoint import parse_endpoint

M = TypeVar("M", bound=Message)

DETAIL_KEY = "copygate-detail-bin"
REPLY_MAX = 64 << 20
DEFAULT_OWNER = "copygate"

_BY_STATUS: dict[int, type[CopygateError]] = {
    ns.kFileExists: ExistsError,
    ns.kFileNotExists: NotFoundError,
    ns.kDirNotExist: NotFoundError,
    ns.kSessionNotExist: NotFoundError,
    ns.kSegmentNotAllocated: NotFoundError,
    ns.kPoolsetNotExist: NotFoundError,
    ns.kFileIdNotMatch: NotFoundError,
    ns.kOwnerAuthFail: AccessError,
    ns.kFileOccupied: BusyError,
    ns.kFileUnderDeleting: BusyError,
    ns.kDirNotEmpty: BusyError,
    ns.kSegmentAllocateError: NoSpaceError,
    ns.kEpochTooOld: FencedError,
    ns.kSharedStateConflict: BusyError,
    ns.kSharedStateFollowers: BusyError,
    ns.kStorageError: StorageError,
    ns.KInternalError: StorageError,
}
_BY_CODE: dict[grpc.StatusCode, type[CopygateError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: ExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: BusyError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: BusyError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
}


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume or folder as the metadata server knows it; sizes in bytes."""

    name: str
    id: int
    owner: str
    is_folder: bool
    size: int
    allocated: int
    created: datetime
    epoch: int
    stripe_unit: int
    stripe_count: int
    uuid: bytes
    original_path: str
    """In the recycle bin: where it was."""
    is_being_purged: bool

    @classmethod
    def of(cls, info: ns.FileInfo) -> Volume:
        return cls(
            name=info.fileName,
            id=info.id,
            owner=info.owner,
            is_folder=info.fileType == ns.INODE_DIRECTORY,
            size=info.length,
            allocated=info.allocatedBytes,
            created=datetime.fromtimestamp(info.ctime / 1e6, UTC),
            epoch=info.epoch,
            stripe_unit=info.stripeUnit,
            stripe_count=info.stripeCount,
            uuid=info.uuid,
            original_path=info.originalFullPathName,
            is_being_purged=info.fileStatus == ns.kFileDeleting,
        )


Volumes: TypeAlias = list[Volume]
"""Named, because MdsClient has a method of the name list."""


def _wall_clock_us() -> int:
    return time.time_ns() // 1000


class MdsClient:
    """Use as an asynchronous context manager. Paths may be written without the first slash.

    Every method raises a CopygateError: InvalidArgumentError, NotFoundError, ExistsError,
    BusyError, AccessError, FencedError, NoSpaceError, StorageError as the server refuses,
    UnavailableError when it cannot be reached, DeadlineError when it is silent for ``timeout_s``.
    """

    def __init__(
        self,
        address: str,
        *,
        owner: str = DEFAULT_OWNER,
        root_password: str | None = None,
        timeout_s: float = 10.0,
        now_us: Callable[[], int] = _wall_clock_us,
    ) -> None:
        self.address = address
        self.owner = owner
        self._root_password = root_password
        self._timeout_s = timeout_s
        self._now_us = now_us
        if owner == rules.ROOT_OWNER and root_password is None:
            raise ConfigError("the owner root needs the root password")
        self._channel = grpc.aio.insecure_channel(
            parse_endpoint(address).grpc_target,
            options=[
                ("grpc.max_receive_message_length", REPLY_MAX),
                ("grpc.enable_http_proxy", 0),
                # A server that restarts is found again at once, not after gRPC's growing pauses.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
            ],
        )

    async def __aenter__(self) -> MdsClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close()

    async def wait_ready(self, timeout_s: float) -> None:
        """Waits until the server answers; raises UnavailableError after ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._channel.channel_ready()
        except TimeoutError as error:
            raise UnavailableError(
                "the metadata server does not answer",
                context={"address": self.address, "seconds": timeout_s},
                hint="is it running, and is this its gRPC address?",
            ) from error

    # Volumes and folders

    async def create_volume(
        self, path: str, size: int, *, stripe_unit: int = 0, stripe_count: int = 0
    ) -> Volume:
        """Makes a volume of ``size`` bytes: a multiple of 4096, at least 1 MiB."""
        _check_range("size", size)
        request = ns.CreateFileRequest(
            fileName=_absolute(path),
            fileType=ns.INODE_PAGEFILE,
            fileLength=size,
            stripeUnit=stripe_unit,
            stripeCount=stripe_count,
            **self._credentials(),
        )
        response = await self._call("CreateFile", request, ns.CreateFileResponse)
        return Volume.of(response.fileInfo)

    async def create_folder(self, path: str) -> Volume:
        """Makes a folder; the one it is in must exist."""
        request = ns.CreateFileRequest(
            fileName=_absolute(path), fileType=ns.INODE_DIRECTORY, **self._credentials()
        )
        response = await self._call("CreateFile", request, ns.CreateFileResponse)
        return Volume.of(response.fileInfo)

    async def info(self, path: str) -> Volume:
        """What is at the path."""
        request = ns.GetFileInfoRequest(fileName=_absolute(path), **self._credentials())
        response = await self._call("GetFileInfo", request, ns.GetFileInfoResponse)
        return Volume.of(response.fileInfo)

    async def list(self, folder: str = "/") -> Volumes:
        """What the folder has, by name; of the root and the recycle bin only what is ours."""
        request = ns.ListDirRequest(fileName=_absolute(folder), **self._credentials())
        response = await self._call("ListDir", request, ns.ListDirResponse)
        return [Volume.of(info) for info in response.fileInfo]

    async def list_deleted(self) -> Volumes:
        """The volumes in the recycle bin that are ours."""
        return await self.list("/" + rules.RECYCLE_BIN)

    async def resize(self, path: str, size: int) -> None:
        """Makes a volume longer; it cannot shrink."""
        _check_range("size", size)
        request = ns.ExtendFileRequest(
            fileName=_absolute(path), newSize=size, **self._credentials()
        )
        await self._call("ExtendFile", request, ns.ExtendFileResponse)

    async def rename(self, old: str, new: str) -> None:
        """Gives a closed volume another path where nothing is."""
        request = ns.RenameFileRequest(
            oldFileName=_absolute(old), newFileName=_absolute(new), **self._credentials()
        )
        await self._call("RenameFile", request, ns.RenameFileResponse)

    async def delete(self, path: str) -> None:
        """Moves a closed volume to the recycle bin, or removes an empty folder."""
        request = ns.DeleteFileRequest(fileName=_absolute(path), **self._credentials())
        await self._call("DeleteFile", request, ns.DeleteFileResponse)

    async def purge(self, recycled_name: str) -> None:
        """Destroys a deleted volume for good; ``recycled_name`` is its name in list_deleted."""
        name = recycled_name.removeprefix(f"/{rules.RECYCLE_BIN}/")
        request = ns.DeleteFileRequest(
            fileName=f"/{rules.RECYCLE_BIN}/{name}", forceDelete=True, **self._credentials()
        )
        await self._call("DeleteFile", request, ns.DeleteFileResponse)

    async def recover(self, path: str, *, volume_id: int = 0) -> None:
        """Brings a deleted volume back to ``path``, where it was; with several, the one deleted
        last, or the one with ``volume_id``."""
        request = ns.RecoverFileRequest(fileName=_absolute(path), **self._credentials())
        if volume_id:
            request.fileId = volume_id
        await self._call("RecoverFile", request, ns.RecoverFileResponse)

    async def change_owner(self, path: str, new_owner: str) -> None:
        """Gives a volume or an empty folder away; only root may."""
        credentials = self._credentials()
        request = ns.ChangeOwnerRequest(
            fileName=_absolute(path),
            newOwner=new_owner,
            rootOwner=self.owner,
            signature=credentials["signature"],
            date=credentials["date"],
        )
        await self._call("ChangeOwner", request, ns.ChangeOwnerResponse)

    async def raise_epoch(self, path: str) -> int:
        """Takes a volume over: whoever has it open for writing is fenced. Returns the epoch."""
        request = ns.IncreaseFileEpochRequest(fileName=_absolute(path), **self._credentials())
        response = await self._call("IncreaseFileEpoch", request, ns.IncreaseFileEpochResponse)
        return response.fileInfo.epoch

    async def shared_state(self, path: str) -> tuple[int, bytes]:
        """The revision and the bytes that those who have the volume open share; (0, b"") if nobody
        ever set them."""
        request = ss.GetStateRequest(fileName=_absolute(path), **self._credentials())
        name = f"/{ss.DESCRIPTOR.package}.SharedStateService/GetState"
        response = await self._checked(name, request, ss.GetStateResponse)
        return response.revision, response.state

    # Exports over iSCSI

    async def list_exports(
        self, known_revision: int | None = None, wait_s: float = 0
    ) -> tuple[int, Sequence[ex.ExportEntry] | None]:
        """The revision of all exports, and ours, without secrets. With ``known_revision`` it waits
        for another one, at most ``wait_s`` (10 at most), and returns None if there is none."""
        request = ex.ListExportsRequest(**self._credentials())
        if known_revision is not None:
            request.known_revision = known_revision
            request.wait_ms = int(wait_s * 1000)
        response = await self._export("ListExports", request, ex.ListExportsResponse, wait_s)
        if response.revision == known_revision:
            return response.revision, None
        return response.revision, list(response.exports)

    async def get_export(self, iqn: str) -> ex.ExportEntry:
        """An export with its secrets."""
        request = ex.GetExportRequest(iqn=iqn, **self._credentials())
        return (await self._export("GetExport", request, ex.GetExportResponse)).export

    async def put_export(self, record: iscsi_pb2.ExportRecord, expected_revision: int) -> int:
        """Makes (``expected_revision`` 0) or replaces an export; returns its new revision.
        BusyError: it has another revision than the expected one."""
        request = ex.PutExportRequest(
            record=record, expected_revision=expected_revision, **self._credentials()
        )
        return (await self._export("PutExport", request, ex.PutExportResponse)).revision

    async def delete_export(self, iqn: str, expected_revision: int) -> None:
        """Removes an export. BusyError: it has another revision than the expected one."""
        request = ex.DeleteExportRequest(
            iqn=iqn, expected_revision=expected_revision, **self._credentials()
        )
        await self._export("DeleteExport", request, ex.DeleteExportResponse)

    async def _export(
        self, method: str, request: Message, response_type: type[M], wait_s: float = 0
    ) -> M:
        name = f"/{ex.DESCRIPTOR.package}.ExportService/{method}"
        return await self._checked(name, request, response_type, wait_s)

    # The cluster

    async def register_chunkserver(
        self, request: cl.RegisterChunkserverRequest
    ) -> cl.RegisterChunkserverResponse:
        return await self._cluster("RegisterChunkserver", request, cl.RegisterChunkserverResponse)

    async def heartbeat(self, request: cl.HeartbeatRequest) -> cl.HeartbeatResponse:
        return await self._cluster("Heartbeat", request, cl.HeartbeatResponse)

    async def reclaim_done(self, request: cl.ReclaimDoneRequest) -> None:
        await self._cluster("ReclaimDone", request, cl.ReclaimDoneResponse)

    async def start_scrub(self, chunkserver_ids: Iterable[int] = ()) -> cl.StartScrubResponse:
        """Asks chunkservers for a pass of the scrub: all that are online if none is named."""
        request = cl.StartScrubRequest(chunkserver_ids=chunkserver_ids)
        return await self._cluster("StartScrub", request, cl.StartScrubResponse)

    async def status(self) -> cl.ClusterStatusResponse:
        return await self._cluster("Status", cl.ClusterStatusRequest(), cl.ClusterStatusResponse)

    async def list_copysets(
        self, *, copyset: tuple[int, int] | None = None, chunkserver_id: int | None = None
    ) -> Sequence[cl.CopysetStatus]:
        """All copysets, or the one with this pool and number, or those of a chunkserver."""
        request = cl.ListCopysetsRequest(chunkserver_id=chunkserver_id)
        if copyset is not None:
            request.logical_pool_id, request.copyset_id = copyset
        response = await self._cluster("ListCopysets", request, cl.ListCopysetsResponse)
        return response.copysets

    async def move_replica(self, copyset: tuple[int, int], source: int, target: int) -> bool:
        """Begins to move a replica from one chunkserver to another; True if it had been done."""
        request = cl.MoveReplicaRequest(
            logical_pool_id=copyset[0], copyset_id=copyset[1], source=source, target=target
        )
        return (await self._cluster("MoveReplica", request, cl.MoveReplicaResponse)).done

    async def cancel_change(self, copyset: tuple[int, int]) -> None:
        """Undoes a move that is under way."""
        request = cl.CancelChangeRequest(logical_pool_id=copyset[0], copyset_id=copyset[1])
        await self._cluster("CancelChange", request, cl.CancelChangeResponse)

    async def transfer_leader(self, copyset: tuple[int, int], target: int) -> bool:
        """Asks for another leader; True if it leads already."""
        request = cl.TransferLeaderRequest(
            logical_pool_id=copyset[0], copyset_id=copyset[1], target=target
        )
        return (await self._cluster("TransferLeader", request, cl.TransferLeaderResponse)).done

    async def retire_chunkserver(
        self, chunkserver_id: int, *, target: int | None = None, cancel: bool = False
    ) -> int:
        """Begins to empty a chunkserver, or ends that; returns how many copysets have to go."""
        request = cl.RetireChunkserverRequest(
            chunkserver_id=chunkserver_id, target=target, cancel=cancel
        )
        response = await self._cluster("RetireChunkserver", request, cl.RetireChunkserverResponse)
        return response.moving

    # How

    def _credentials(self) -> dict[str, Any]:
        date = self._now_us()
        signature = ""
        if self.owner == rules.ROOT_OWNER and self._root_password is not None:
            signature = rules.sign(self._root_password, self.owner, date)
        return {"owner": self.owner, "signature": signature, "date": date}

    async def _call(self, method: str, request: Message, response_type: type[M]) -> M:
        name = f"/{ns.DESCRIPTOR.package}.CurveFSService/{method}"
        return await self._checked(name, request, response_type)

    async def _checked(
        self, name: str, request: Message, response_type: type[M], wait_s: float = 0
    ) -> M:
        response, detail = await self._unary(name, request, response_type, wait_s)
        status = cast(Any, response).statusCode
        if status != ns.kOK:
            label = ns.StatusCode.Name(status) if status in ns.StatusCode.values() else str(status)
            kind = _BY_STATUS.get(status, InvalidArgumentError)
            what = detail or f"the metadata server refused {name.rpartition('/')[2]}"
            raise kind(what, context={"code": label})
        return response

    async def _cluster(self, method: str, request: Message, response_type: type[M]) -> M:
        name = f"/{cl.DESCRIPTOR.package}.ClusterService/{method}"
        return (await self._unary(name, request, response_type))[0]

    async def _unary(
        self, name: str, request: Message, kind: type[M], wait_s: float = 0
    ) -> tuple[M, str]:
        """``wait_s`` is how long the server may wait before it answers."""
        method: grpc.aio.UnaryUnaryMultiCallable[Message, M] = self._channel.unary_unary(
            name,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=kind.FromString,
        )
        call = method(request, timeout=self._timeout_s + wait_s)
        try:
            response = await call
            trailers = await call.trailing_metadata()
        except grpc.aio.AioRpcError as error:
            raise self._failure(name, error) from error
        detail = trailers.get(DETAIL_KEY) if trailers is not None else None
        return response, detail.decode() if isinstance(detail, bytes) else ""

    def _failure(self, name: str, error: grpc.aio.AioRpcError) -> CopygateError:
        kind = _BY_CODE.get(error.code(), ProtocolError)
        context = {"address": self.address, "method": name.rpartition("/")[2]}
        reason = error.details() or error.code().name
        if kind is UnavailableError:
            return UnavailableError(
                "the metadata server cannot be reached",
                context={**context, "reason": reason},
                hint="is it running, and is this its gRPC address?",
            )
        if kind is DeadlineError:
            return DeadlineError(
                "the metadata server did not answer in time",
                context={**context, "seconds": self._timeout_s},
            )
        return kind(reason, context=context)


def _absolute(path: str) -> str:
    return path if path.startswith("/") else "/" + path


def _check_range(what: str, value: int) -> None:
    if not 0 <= value < 1 << 64:
        raise InvalidArgumentError(f"the {what} is out of range", context={what: value})
