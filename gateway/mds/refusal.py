# SPDX-License-Identifier: BSD-3-Clause
"""How the metadata server says no: CurveBS's status code, and a sentence for people."""

from __future__ import annotations

from gateway.proto import nameserver2_pb2 as ns


class RefusalError(Exception):
    """A request that is not granted. The transaction in which it is raised changes nothing."""

    def __init__(self, status: ns.StatusCode.ValueType, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class ClusterRefusalError(Exception):
    """A request of copygate.ClusterService that is not granted: ``code`` is a gRPC status name."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
