# SPDX-License-Identifier: BSD-3-Clause
"""The MDS as a command uses it: blocking calls over its gRPC client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from gateway.cli.app import App, volume_path
from gateway.errors import InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from gateway.mds.client import MdsClient, Volume, Volumes
    from gateway.proto.cluster_pb2 import (
        ClusterStatusResponse,
        CopysetStatus,
        StartScrubResponse,
    )
    from gateway.proto.export_pb2 import ExportEntry
    from gateway.proto.iscsi_pb2 import ExportRecord

RECYCLE_BIN = "RecycleBin"

_T = TypeVar("_T")


class Cluster:
    """One connection to the MDS. Errors are those of MdsClient."""

    def __init__(self, client: MdsClient, runner: asyncio.Runner) -> None:
        self._client = client
        self._runner = runner

    def _wait(self, call: Coroutine[Any, Any, _T]) -> _T:
        return self._runner.run(call)

    def get(self, name: str) -> Volume:
        """A volume. Raises NotFoundError; InvalidArgumentError when it is a folder."""
        volume = self._wait(self._client.info(name))
        if volume.is_folder:
            raise InvalidArgumentError("that is a folder", context={"path": volume_path(name)})
        return volume

    def find(self, name: str) -> Volume | None:
        """A volume, or None."""
        try:
            return self.get(name)
        except NotFoundError:
            return None

    def create(
        self, name: str, size: int, *, stripe_unit: int = 0, stripe_count: int = 0
    ) -> Volume:
        """Makes a volume."""
        return self._wait(
            self._client.create_volume(
                name, size, stripe_unit=stripe_unit, stripe_count=stripe_count
            )
        )

    def create_folder(self, name: str) -> Volume:
        """Makes a folder."""
        return self._wait(self._client.create_folder(name))

    def list(self, folder: str) -> Volumes:
        """What a folder has."""
        return self._wait(self._client.list(folder))

    def list_deleted(self) -> Volumes:
        """What is in the recycle bin."""
        return self._wait(self._client.list_deleted())

    def resize(self, name: str, size: int) -> None:
        """Makes a volume longer."""
        self._wait(self._client.resize(name, size))

    def rename(self, old: str, new: str) -> None:
        """Gives a volume another name."""
        self._wait(self._client.rename(old, new))

    def delete(self, name: str, *, permanent: bool = False) -> None:
        """Moves a volume to the recycle bin, or removes an empty folder; with `permanent` the
        volume is destroyed, wherever it is. Its space comes back within some heartbeats."""
        path = volume_path(name)
        if not permanent:
            self._wait(self._client.delete(path))
            return
        if not path.startswith(f"/{RECYCLE_BIN}/"):
            found = self._wait(self._client.info(path))
            self._wait(self._client.delete(path))
            if found.is_folder:
                return
            deleted = self._wait(self._client.list_deleted())
            path = next(item.name for item in deleted if item.id == found.id)
        self._wait(self._client.purge(path))

    def recover(self, name: str, volume_id: int = 0) -> None:
        """Brings a deleted volume back."""
        self._wait(self._client.recover(name, volume_id=volume_id))

    def exports(self) -> tuple[int, Sequence[ExportEntry]]:
        """The revision of all exports over iSCSI, and ours, without secrets."""
        revision, entries = self._wait(self._client.list_exports())
        return revision, entries or []

    def export(self, iqn: str) -> ExportEntry:
        """An export with its secrets."""
        return self._wait(self._client.get_export(iqn))

    def put_export(self, record: ExportRecord, expected_revision: int) -> int:
        """Makes or replaces an export; BusyError when it has another revision."""
        return self._wait(self._client.put_export(record, expected_revision))

    def delete_export(self, iqn: str, expected_revision: int) -> None:
        """Removes an export; BusyError when it has another revision."""
        self._wait(self._client.delete_export(iqn, expected_revision))

    def active_gateway(self, name: str) -> tuple[str | None, int]:
        """The gateway that said last that it serves a volume's IO over iSCSI, None if none ever
        did, and the volume's epoch then."""
        from gateway.proto.iscsi_pb2 import LunState  # noqa: PLC0415

        _, data = self._wait(self._client.shared_state(name))
        state = LunState.FromString(data)
        return state.active_gateway or None, state.active_epoch

    def status(self) -> ClusterStatusResponse:
        """The cluster as operators see it."""
        return self._wait(self._client.status())

    def start_scrub(self, chunkserver_ids: Sequence[int]) -> StartScrubResponse:
        """Asks chunkservers for a pass of the scrub: all that are online if none is named."""
        return self._wait(self._client.start_scrub(chunkserver_ids))

    def copysets(
        self, *, copyset: tuple[int, int] | None = None, chunkserver: int | None = None
    ) -> Sequence[CopysetStatus]:
        """All copysets, or the one with this pool and number, or those of a chunkserver."""
        call = self._client.list_copysets(copyset=copyset, chunkserver_id=chunkserver)
        return self._wait(call)

    def move_replica(self, copyset: tuple[int, int], source: int, target: int) -> bool:
        """Begins to move a replica; True if it had been done."""
        return self._wait(self._client.move_replica(copyset, source, target))

    def cancel_change(self, copyset: tuple[int, int]) -> None:
        """Undoes a move that is under way."""
        self._wait(self._client.cancel_change(copyset))

    def transfer_leader(self, copyset: tuple[int, int], target: int) -> bool:
        """Asks for another leader; True if it leads already."""
        return self._wait(self._client.transfer_leader(copyset, target))

    def retire_chunkserver(
        self, chunkserver: int, *, target: int | None = None, cancel: bool = False
    ) -> int:
        """Begins to empty a chunkserver, or ends that; returns how many copysets have to go."""
        return self._wait(
            self._client.retire_chunkserver(chunkserver, target=target, cancel=cancel)
        )

    def free_bytes(self) -> int:
        """What the chunkservers that are online have free."""
        servers = [server for server in self.status().chunkservers if server.online]
        return sum(max(0, server.capacity_bytes - server.used_bytes) for server in servers)

    def sessions(self, name: str) -> Sequence[str]:
        """Who has the volume open."""
        path = volume_path(name)
        return [s.client for s in self.status().sessions if volume_path(s.volume) == path]


@contextlib.contextmanager
def connect(app: App) -> Iterator[Cluster]:
    """Opens a connection to the MDS that the options name."""
    from gateway.mds.client import MdsClient  # noqa: PLC0415 - brings gRPC

    with asyncio.Runner() as runner:

        async def open_client() -> MdsClient:
            return MdsClient(app.grpc_address, owner=app.owner, root_password=app.root_password())

        client = runner.run(open_client())
        try:
            yield Cluster(client, runner)
        finally:
            runner.run(client.close())
