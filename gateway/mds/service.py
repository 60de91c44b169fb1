# SPDX-License-Identifier: BSD-3-Clause
"""The metadata server's methods: requests in, transactions, responses out; for every transport."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from gateway.errors import StorageError
from gateway.mds import (
    cluster,
    copysets,
    epochs,
    exports,
    files,
    leases,
    moves,
    recycle,
    rules,
    segments,
    shared_state,
    status,
    tree,
)
from gateway.mds.config import MdsConfig
from gateway.mds.liveness import Liveness, Presence, Transfers
from gateway.mds.refusal import RefusalError
from gateway.mds.store import Space, Store, Transaction
from gateway.proto import cluster_pb2 as cl
from gateway.proto import export_pb2 as ex
from gateway.proto import nameserver2_pb2 as ns
from gateway.proto import shared_state_pb2 as ss
from gateway.proto import topology_pb2 as topo
from gateway.rpc.service import Handler, Method, Peer, Reply, methods_of

log = logging.getLogger(__name__)

LEADER_SILENCE_MS = 2000
"""For so long, or three heartbeats if that is longer, a silent leader still counts as one."""


def wall_clock_us() -> int:
    return time.time_ns() // 1000


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler knows besides its request."""

    clock: leases.Clock
    peer: Peer
    root_password: str | None
    online: frozenset[int]

    def caller(self, request: Any) -> rules.Caller:
        return rules.authenticate(
            request.owner,
            request.signature,
            request.date,
            now_us=self.clock.now_us,
            root_password=self.root_password,
        )


def _create_file(
    txn: Transaction, call: Call, request: ns.CreateFileRequest
) -> ns.CreateFileResponse:
    new = files.NewFile(
        path=request.fileName,
        kind=request.fileType,
        length=request.fileLength,
        stripe_unit=request.stripeUnit,
        stripe_count=request.stripeCount,
        poolset=request.poolset,
    )
    info = files.create(txn, call.caller(request), new, call.clock.now_us)
    return ns.CreateFileResponse(statusCode=ns.kOK, fileInfo=info)


def _delete_file(
    txn: Transaction, call: Call, request: ns.DeleteFileRequest
) -> ns.DeleteFileResponse:
    recycle.delete_path(
        txn,
        call.caller(request),
        request.fileName,
        call.clock,
        file_id=request.fileId,
        force=request.forceDelete,
    )
    return ns.DeleteFileResponse(statusCode=ns.kOK)


def _recover_file(
    txn: Transaction, call: Call, request: ns.RecoverFileRequest
) -> ns.RecoverFileResponse:
    recycle.recover(txn, call.caller(request), request.fileName, request.fileId)
    return ns.RecoverFileResponse(statusCode=ns.kOK)


def _get_file_info(
    txn: Transaction, call: Call, request: ns.GetFileInfoRequest
) -> ns.GetFileInfoResponse:
    info = files.describe(txn, call.caller(request), request.fileName)
    return ns.GetFileInfoResponse(statusCode=ns.kOK, fileInfo=info)


def _get_or_allocate_segment(
    txn: Transaction, call: Call, request: ns.GetOrAllocateSegmentRequest
) -> ns.GetOrAllocateSegmentResponse:
    segment = segments.get_or_allocate(txn, call.caller(request), request, call.online)
    return ns.GetOrAllocateSegmentResponse(statusCode=ns.kOK, pageFileSegment=segment)


def _deallocate_segment(
    txn: Transaction, call: Call, request: ns.DeAllocateSegmentRequest
) -> ns.DeAllocateSegmentResponse:
    segments.deallocate(txn, call.caller(request), request)
    return ns.DeAllocateSegmentResponse(statusCode=ns.kOK)


def _rename_file(
    txn: Transaction, call: Call, request: ns.RenameFileRequest
) -> ns.RenameFileResponse:
    change = files.Rename(
        request.oldFileName, request.newFileName, request.oldFileID, request.newFileID
    )
    files.rename(txn, call.caller(request), change, call.clock)
    return ns.RenameFileResponse(statusCode=ns.kOK)


def _extend_file(
    txn: Transaction, call: Call, request: ns.ExtendFileRequest
) -> ns.ExtendFileResponse:
    files.extend(txn, call.caller(request), request.fileName, request.newSize)
    return ns.ExtendFileResponse(statusCode=ns.kOK)


def _list_dir(txn: Transaction, call: Call, request: ns.ListDirRequest) -> ns.ListDirResponse:
    entries = files.listing(txn, call.caller(request), request.fileName)
    return ns.ListDirResponse(statusCode=ns.kOK, fileInfo=entries)


def _session(record: Any) -> ns.ProtoSession:
    return ns.ProtoSession(
        sessionID=record.session_id,
        leaseTime=record.lease_us,
        createTime=record.created_us,
        sessionStatus=0,
    )


def _open_file(txn: Transaction, call: Call, request: ns.OpenFileRequest) -> ns.OpenFileResponse:
    found = tree.find_open_to_io(txn, request.fileName, call.caller(request))
    record = leases.begin(txn, found, str(call.peer), call.clock)
    return ns.OpenFileResponse(
        statusCode=ns.kOK, protoSession=_session(record), fileInfo=found.info
    )


def _client(call: Call, request: Any) -> tuple[str, int]:
    return request.clientIP[:64] or call.peer.ip, request.clientPort or call.peer.port


def _close_file(txn: Transaction, call: Call, request: ns.CloseFileRequest) -> ns.CloseFileResponse:
    found = tree.find_volume(txn, request.fileName, call.caller(request))
    leases.finish(txn, found, request.sessionID, _client(call, request))
    return ns.CloseFileResponse(statusCode=ns.kOK)


def _refresh_session(
    txn: Transaction, call: Call, request: ns.ReFreshSessionRequest
) -> ns.ReFreshSessionResponse:
    found = tree.find_open_to_io(txn, request.fileName, call.caller(request))
    record = leases.refresh(txn, found, request.sessionID, _client(call, request), call.clock)
    return ns.ReFreshSessionResponse(
        statusCode=ns.kOK,
        sessionID=request.sessionID,
        fileInfo=found.info,
        protoSession=_session(record),
    )


def _increase_file_epoch(
    txn: Transaction, call: Call, request: ns.IncreaseFileEpochRequest
) -> ns.IncreaseFileEpochResponse:
    info = tree.find_open_to_io(txn, request.fileName, call.caller(request)).info
    epochs.raise_epoch(txn, info)
    holders, enough = cluster.epoch_holders(txn)
    return ns.IncreaseFileEpochResponse(
        statusCode=ns.kOK, fileInfo=info, csLocs=holders, replicas=enough
    )


def _change_owner(
    txn: Transaction, call: Call, request: ns.ChangeOwnerRequest
) -> ns.ChangeOwnerResponse:
    caller = rules.authenticate(
        request.rootOwner,
        request.signature,
        request.date,
        now_us=call.clock.now_us,
        root_password=call.root_password,
    )
    if not caller.is_root:
        raise RefusalError(ns.kOwnerAuthFail, "only root may change an owner")
    files.change_owner(txn, request.fileName, request.newOwner, call.clock)
    return ns.ChangeOwnerResponse(statusCode=ns.kOK)


def _get_allocated_size(
    txn: Transaction, call: Call, request: ns.GetAllocatedSizeRequest
) -> ns.GetAllocatedSizeResponse:
    sizes = files.allocated_size(txn, request.fileName)
    return ns.GetAllocatedSizeResponse(
        statusCode=ns.kOK, allocatedSize=sum(sizes.values()), allocSizeMap=sizes
    )


def _get_file_size(
    txn: Transaction, call: Call, request: ns.GetFileSizeRequest
) -> ns.GetFileSizeResponse:
    return ns.GetFileSizeResponse(
        statusCode=ns.kOK, fileSize=files.file_size(txn, request.fileName)
    )


_NAMESPACE: dict[str, Callable[[Transaction, Call, Any], Message]] = {
    "CreateFile": _create_file,
    "DeleteFile": _delete_file,
    "RecoverFile": _recover_file,
    "GetFileInfo": _get_file_info,
    "GetOrAllocateSegment": _get_or_allocate_segment,
    "DeAllocateSegment": _deallocate_segment,
    "RenameFile": _rename_file,
    "ExtendFile": _extend_file,
    "ListDir": _list_dir,
    "OpenFile": _open_file,
    "CloseFile": _close_file,
    "RefreshSession": _refresh_session,
    "IncreaseFileEpoch": _increase_file_epoch,
    "ChangeOwner": _change_owner,
    "GetAllocatedSize": _get_allocated_size,
    "GetFileSize": _get_file_size,
}


class MetadataService:
    """Runs the methods against a store. ``now_us`` is wall-clock time, ``now_ms`` monotonic."""

    def __init__(
        self,
        store: Store,
        config: MdsConfig,
        *,
        now_us: Callable[[], int] = wall_clock_us,
        now_ms: Callable[[], int] = monotonic_ms,
        version: str = "",
    ) -> None:
        self._store = store
        self._config = config
        self._now_us = now_us
        self._now_ms = now_ms
        self._version = version
        self._grace_until_ms = now_ms() + int(config.lease_s * 1000)
        self._liveness = Liveness(
            timeout_ms=int(config.offline_after_s * 1000),
            leader_timeout_ms=max(LEADER_SILENCE_MS, int(config.heartbeat_interval_s * 3000)),
            started_ms=now_ms(),
        )
        self._transfers = Transfers()
        self.purge_wanted: Callable[[], None] = lambda: None
        self.shared_states = shared_state.SharedStates(store.run, self._caller, self.clock)
        self.exports = exports.Exports(store.run, self._caller)

    def wire_methods(self) -> list[Method]:
        """CurveFSService, TopologyService and SharedStateService: what baidu_std and gRPC serve."""
        names = ns.DESCRIPTOR.services_by_name["CurveFSService"]
        topology = topo.DESCRIPTOR.services_by_name["TopologyService"]
        shared = ss.DESCRIPTOR.services_by_name["SharedStateService"]
        return (
            methods_of(names, self._namespace_handler)
            + methods_of(topology, lambda _: self._topology)
            + methods_of(shared, self._shared_state_handler, waits={"GetState", "AwaitState"})
        )

    def cluster_methods(self) -> list[Method]:
        """ClusterService: gRPC only."""
        handlers: dict[str, Handler] = {
            "RegisterChunkserver": self._register,
            "Heartbeat": self._heartbeat,
            "ReclaimDone": self._reclaim_done,
            "StartScrub": self._start_scrub,
            "Status": self._status,
            "ListCopysets": self._list_copysets,
            "MoveReplica": self._move_replica,
            "CancelChange": self._cancel_change,
            "TransferLeader": self._transfer_leader,
            "RetireChunkserver": self._retire_chunkserver,
        }
        return methods_of(cl.DESCRIPTOR.services_by_name["ClusterService"], handlers.__getitem__)

    def export_methods(self) -> list[Method]:
        """ExportService: gRPC only."""
        service = ex.DESCRIPTOR.services_by_name["ExportService"]
        return methods_of(service, self._export_handler)

    def clock(self) -> leases.Clock:
        now_us = self._now_us()
        grace_ms = max(0, self._grace_until_ms - self._now_ms())
        return leases.Clock(
            now_us=now_us,
            lease_us=int(self._config.lease_s * 1e6),
            grace_until_us=now_us + grace_ms * 1000,
        )

    async def sweep(self) -> int:
        """Marks sessions that ran out."""
        clock = self.clock()
        return await self._store.run(lambda txn: leases.sweep(txn, clock))

    async def purge_step(self) -> bool:
        """One step of purging deleted volumes; whether there may be more."""
        return await self._store.run(recycle.purge_step)

    def _namespace_handler(self, name: str) -> Handler:
        function = _NAMESPACE[name]
        descriptor = ns.DESCRIPTOR.services_by_name["CurveFSService"].methods_by_name[name]
        response_type = getattr(ns, descriptor.output_type.name)

        async def handle(request: Message, _: bytes, peer: Peer) -> Reply:
            clock = self.clock()

            def transaction(txn: Transaction) -> Message:
                call = Call(clock, peer, self._config.root_password, self._online(txn))
                return function(txn, call, request)

            try:
                reply = Reply(await self._store.run(transaction))
            except RefusalError as refusal:
                return _refused(name, response_type, request, refusal, peer)
            except StorageError as error:
                failure = RefusalError(ns.kStorageError, str(error))
                return _refused(name, response_type, request, failure, peer)
            if name == "DeleteFile" and getattr(request, "forceDelete", False):
                self.purge_wanted()
            if isinstance(request, ns.RenameFileRequest):
                self.exports.changed()
            if isinstance(request, ns.CloseFileRequest):
                self.shared_states.session_closed(request.sessionID)
            return reply

        return handle

    def _shared_state_handler(self, name: str) -> Handler:
        functions: dict[str, Callable[[Any], Awaitable[Message]]] = {
            "GetState": self.shared_states.get,
            "SetState": self.shared_states.set,
            "AwaitState": self.shared_states.wait,
        }
        return _answering(name, functions[name], getattr(ss, f"{name}Response"))

    def _export_handler(self, name: str) -> Handler:
        functions: dict[str, Callable[[Any], Awaitable[Message]]] = {
            "ListExports": self.exports.list,
            "GetExport": self.exports.get,
            "PutExport": self.exports.put,
            "DeleteExport": self.exports.delete,
        }
        return _answering(name, functions[name], getattr(ex, f"{name}Response"))

    def _caller(self, request: Any) -> rules.Caller:
        return rules.authenticate(
            request.owner,
            request.signature,
            request.date,
            now_us=self._now_us(),
            root_password=self._config.root_password,
        )

    def _online(self, txn: Transaction) -> frozenset[int]:
        ids = (int.from_bytes(key, "big") for key, _ in txn.scan(Space.CHUNKSERVERS))
        return self._liveness.online(ids, self._now_ms())

    async def _topology(self, request: Message, _: bytes, peer: Peer) -> Reply:
        assert isinstance(request, topo.GetChunkServerListInCopySetsRequest)  # noqa: S101
        wanted = request
        try:
            return Reply(
                await self._store.run(lambda txn: cluster.chunkservers_in_copysets(txn, wanted))
            )
        except StorageError as error:
            log.error("a topology request of %s failed: %s", peer, error)
            failed = topo.GetChunkServerListInCopySetsResponse(statusCode=-4)
            return Reply(failed, detail=str(error))

    def _fresh(self) -> frozenset[int]:
        """Those that have not missed some heartbeats. Whoever had an address or a disk is given no
        longer: a chunkserver that was wiped comes back soon."""
        return self._liveness.reporting(self._now_ms(), self._liveness.leader_timeout_ms)

    async def _register(self, request: Any, _: bytes, peer: Peer) -> Reply:
        now_us = self._now_us()
        fresh = self._fresh()

        def transaction(txn: Transaction) -> cl.RegisterChunkserverResponse:
            chunkserver_id = cluster.register(
                txn,
                request,
                copysets_per_chunkserver=self._config.copysets_per_chunkserver,
                reporting=fresh,
                now_us=now_us,
            )
            return cl.RegisterChunkserverResponse(
                chunkserver_id=chunkserver_id,
                copysets=cluster.assignments(txn, chunkserver_id),
                assignment_revision=copysets.revision(txn),
                heartbeat_interval_ms=int(self._config.heartbeat_interval_s * 1000),
            )

        response = await self._store.run(transaction)
        log.info(
            "chunkserver %d registered at %s:%d (%s)",
            response.chunkserver_id,
            request.ip,
            request.port,
            peer,
        )
        return Reply(response)

    async def _heartbeat(self, request: Any, _: bytes, peer: Peer) -> Reply:
        now_us = self._now_us()
        reporting, fresh = self._liveness.reporting(self._now_ms()), self._fresh()
        response = await self._store.run(
            lambda txn: cluster.heartbeat(
                txn,
                request,
                copysets_per_chunkserver=self._config.copysets_per_chunkserver,
                reporting=reporting,
                fresh=fresh,
                now_us=now_us,
            )
        )
        presence = Presence(
            seen_ms=self._now_ms(),
            capacity_bytes=request.capacity_bytes,
            used_bytes=request.used_bytes,
            reports={(r.logical_pool_id, r.copyset_id): r for r in request.copysets},
            scrub=request.scrub if request.HasField("scrub") else None,
        )
        self._liveness.heard(request.chunkserver_id, presence)
        response.steps.extend(self._transfers.steps(request.copysets, presence.seen_ms))
        return Reply(response)

    async def _reclaim_done(self, request: Any, _: bytes, peer: Peer) -> Reply:
        await self._store.run(lambda txn: cluster.reclaimed(txn, request))
        return Reply(cl.ReclaimDoneResponse())

    async def _start_scrub(self, request: Any, _: bytes, peer: Peer) -> Reply:
        now_ms, now_us = self._now_ms(), self._now_us()
        response = await self._store.run(
            lambda txn: cluster.start_scrub(
                txn, request, self._liveness, now_ms=now_ms, now_us=now_us
            )
        )
        log.info("%s asks for a scrub of chunkservers %s", peer, list(response.chunkserver_ids))
        return Reply(response)

    async def _status(self, request: Message, _: bytes, peer: Peer) -> Reply:
        clock, now_ms = self.clock(), self._now_ms()

        def transaction(txn: Transaction) -> cl.ClusterStatusResponse:
            response = status.status(txn, self._liveness, now_ms)
            for record in leases.everything(txn):
                if leases.is_live(record, clock):
                    response.sessions.add(
                        volume=record.path,
                        session_id=record.session_id,
                        client=record.client,
                        expires_in_ms=leases.remaining_us(record, clock) // 1000,
                    )
            return response

        response = await self._store.run(transaction)
        response.version = self._version
        return Reply(response)

    async def _list_copysets(self, request: Any, _: bytes, peer: Peer) -> Reply:
        now_ms = self._now_ms()
        return Reply(
            await self._store.run(lambda txn: status.describe(txn, request, self._liveness, now_ms))
        )

    async def _move_replica(self, request: Any, _: bytes, peer: Peer) -> Reply:
        reporting, now_us = self._liveness.reporting(self._now_ms()), self._now_us()
        return Reply(
            await self._store.run(
                lambda txn: moves.move(txn, cluster.servers(txn, reporting), request, now_us)
            )
        )

    async def _cancel_change(self, request: Any, _: bytes, peer: Peer) -> Reply:
        await self._store.run(
            lambda txn: moves.cancel(txn, request.logical_pool_id, request.copyset_id)
        )
        return Reply(cl.CancelChangeResponse())

    async def _transfer_leader(self, request: Any, _: bytes, peer: Peer) -> Reply:
        now_ms = self._now_ms()
        reporting = self._liveness.reporting(now_ms)
        member = await self._store.run(
            lambda txn: moves.check_transfer(txn, cluster.servers(txn, reporting), request)
        )
        key = (request.logical_pool_id, request.copyset_id)
        leader = self._liveness.leaders(now_ms).get(key)
        done = leader is not None and leader.report.member_id == member.member_id
        if not done:
            self._transfers.ask(key, member.member_id, now_ms)
        return Reply(cl.TransferLeaderResponse(done=done))

    async def _retire_chunkserver(self, request: Any, _: bytes, peer: Peer) -> Reply:
        reporting, now_us = self._liveness.reporting(self._now_ms()), self._now_us()

        def transaction(txn: Transaction) -> int:
            servers = cluster.servers(txn, reporting)
            if request.cancel:
                moves.keep(txn, servers, request.chunkserver_id)
                return 0
            return moves.retire(txn, servers, request, now_us)

        return Reply(cl.RetireChunkserverResponse(moving=await self._store.run(transaction)))


def _answering(
    name: str,
    function: Callable[[Any], Awaitable[Message]],
    response_type: Callable[..., Message],
) -> Handler:
    """The handler of a method whose response has a statusCode."""

    async def handle(request: Message, _: bytes, peer: Peer) -> Reply:
        try:
            return Reply(await function(request))
        except RefusalError as refusal:
            return _refused(name, response_type, request, refusal, peer)
        except StorageError as error:
            failure = RefusalError(ns.kStorageError, str(error))
            return _refused(name, response_type, request, failure, peer)

    return handle


def _refused(
    name: str,
    response_type: Callable[..., Message],
    request: Any,
    refusal: RefusalError,
    peer: Peer,
) -> Reply:
    serious = refusal.status in (ns.kOwnerAuthFail, ns.kStorageError, ns.kSegmentAllocateError)
    log.log(
        logging.WARNING if serious else logging.DEBUG,
        "%s of %s refused, %s: %s",
        name,
        peer,
        ns.StatusCode.Name(refusal.status),
        refusal.detail,
    )
    extra = {"sessionID": request.sessionID} if name == "RefreshSession" else {}
    return Reply(response_type(statusCode=refusal.status, **extra), detail=refusal.detail)
