# SPDX-License-Identifier: BSD-3-Clause
"""How a metadata server is set up."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gateway.errors import ConfigError
from gateway.mds.pool import REPLICAS_MAX
from gateway.mds.rules import RECYCLE_BIN
from gateway.rpc.endpoint import Endpoint, parse_endpoint

LEASE_MIN_S = 1.0
LEASE_MAX_S = 4000.0
"""ProtoSession.leaseTime is a u32 in microseconds."""


@dataclass(frozen=True, slots=True)
class MdsConfig:
    """Where a metadata server keeps its data and where it listens.

    ``store`` is the SQLite file. ``listen`` are the baidu_std endpoints (for the IO core and for
    CurveBS's clients), ``grpc_listen`` the gRPC ones (command line, chunkservers); a port of 0
    picks one. Only this machine can reach it unless ``allow_remote``: there is no transport
    security. ``replicas`` is how many chunkservers have each chunk: for a new store 1 if it is
    None, and afterwards it cannot be another number.
    """

    store: Path
    listen: tuple[str, ...] = ("127.0.0.1:6700",)
    grpc_listen: tuple[str, ...] = ("127.0.0.1:6701",)
    allow_remote: bool = False
    root_password: str | None = field(default=None, repr=False)
    lease_s: float = 20.0
    heartbeat_interval_s: float = 1.0
    offline_after_s: float = 10.0
    replicas: int | None = None
    copysets_per_chunkserver: int = 8
    sweep_interval_s: float = 5.0

    def check(self) -> tuple[list[Endpoint], list[Endpoint]]:
        """The endpoints of ``listen`` and ``grpc_listen``. Raises ConfigError."""
        if not LEASE_MIN_S <= self.lease_s <= LEASE_MAX_S:
            raise ConfigError(
                f"the lease must be between {LEASE_MIN_S:g} and {LEASE_MAX_S:g} seconds",
                context={"lease_s": self.lease_s},
            )
        if not 1 <= self.copysets_per_chunkserver <= 1000:
            raise ConfigError(
                "a chunkserver has between 1 and 1000 copysets",
                context={"copysets_per_chunkserver": self.copysets_per_chunkserver},
            )
        if self.replicas is not None and not 1 <= self.replicas <= REPLICAS_MAX:
            raise ConfigError(
                f"there can be between 1 and {REPLICAS_MAX} replicas",
                context={"replicas": self.replicas},
            )
        for name in ("heartbeat_interval_s", "offline_after_s", "sweep_interval_s"):
            value = getattr(self, name)
            if not 0.01 <= value <= 86_400:
                raise ConfigError(
                    "the time must be between 0.01 s and a day", context={name: value}
                )
        if self.root_password is not None and not self.root_password:
            raise ConfigError(
                "the root password is empty", hint=f"without one, nobody is root in /{RECYCLE_BIN}"
            )
        baidu = [parse_endpoint(text, any_port=True) for text in self.listen]
        grpc = [parse_endpoint(text, any_port=True) for text in self.grpc_listen]
        if not baidu or not grpc:
            raise ConfigError("the metadata server needs a baidu_std and a gRPC address")
        for endpoint in (*baidu, *grpc):
            if not endpoint.is_local and not self.allow_remote:
                raise ConfigError(
                    "the address can be reached from other machines, and there is no transport "
                    "security",
                    context={"address": endpoint},
                    hint="listen on 127.0.0.1 or unix:/path, or allow remote access explicitly",
                )
        return baidu, grpc
