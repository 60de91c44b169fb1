# SPDX-License-Identifier: BSD-3-Clause
"""What `copygate iscsi list` shows: records of the MDS, and how the gateway here serves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.app import table
from gateway.cli.cluster import Cluster
from gateway.cli.sizes import format_size
from gateway.errors import CopygateError, NotFoundError

if TYPE_CHECKING:
    from gateway.proto.export_pb2 import ExportEntry

UNKNOWN_ELSEWHERE = "not known here"


def describe(cluster: Cluster, entry: ExportEntry, here: dict[str, Any] | None) -> dict[str, Any]:
    record = entry.record
    served = {t["iqn"]: t for t in here["targets"]} if here else {}
    gateways = []
    for gateway in record.gateways:
        state: dict[str, Any] = {"state": UNKNOWN_ELSEWHERE, "reason": None, "sessions": None}
        target = served.get(record.iqn)
        if here is not None and gateway.gateway == here["gateway"] and target is not None:
            state["state"] = "serving" if target["serving"] else "not served"
            state["reason"] = target["reason"]
            found = target["sessions"]
            state["sessions"] = None if found is None else len({c["session"] for c in found})
        gateways.append(
            {
                "gateway": gateway.gateway,
                "group": gateway.group,
                "portals": list(gateway.portals),
                **state,
            }
        )
    return {
        "iqn": record.iqn,
        "owner": entry.owner,
        "luns": [_describe_lun(cluster, lun) for lun in record.luns],
        "gateways": gateways,
        "acl": list(record.acl),
        "chap_user": record.chap_user or None,
        "mutual_user": record.mutual_user or None,
        "anyone": record.anyone,
    }


def _describe_lun(cluster: Cluster, lun: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "lun": lun.lun,
        "volume": lun.volume,
        "block_size": lun.block_size or 512,
        "read_only": lun.read_only,
        "size": None,
        "active_gateway": None,
        "taken_over": False,
        "problem": None,
    }
    try:
        volume = cluster.get(lun.volume)
        found["size"] = volume.size
        found["active_gateway"], epoch = cluster.active_gateway(lun.volume)
        # Who opens a volume for writing raises its epoch; a gateway that does says so.
        found["taken_over"] = found["active_gateway"] is not None and volume.epoch > epoch
    except NotFoundError:
        found["problem"] = "the volume does not exist"
    except CopygateError as error:
        found["problem"] = str(error)
    return found


def show(exports: Sequence[dict[str, Any]], here: dict[str, Any] | None) -> None:
    rows = []
    for item in exports:
        who = item["chap_user"] and f"CHAP {item['chap_user']}"
        who = ", ".join(filter(None, [who, f"{len(item['acl'])} names" if item["acl"] else None]))
        for lun in item["luns"]:
            size = format_size(lun["size"]) if lun["size"] is not None else lun["problem"]
            for gateway in item["gateways"]:
                state = gateway["state"]
                if gateway["sessions"]:
                    state += f", {gateway['sessions']} sessions"
                if gateway["reason"]:
                    state += f": {gateway['reason']}"
                elif lun["taken_over"]:
                    state += "; TAKEN OVER by another client (copygate iscsi take)"
                elif lun["active_gateway"] not in (None, gateway["gateway"]):
                    state += ", standby"
                where = ", ".join(gateway["portals"])
                rows.append(
                    (lun["volume"], lun["lun"], size, item["iqn"], gateway["gateway"], where,
                     who or "anyone", state)
                )  # fmt: skip
    table(
        ("volume", ">LUN", ">size", "target", "gateway", "portals", "who", "state"),
        rows,
        "nothing is exported: copygate iscsi export VOLUME",
    )
    if here is None:
        click.echo(
            "No gateway runs here (copygate iscsi serve): how exports are served is unknown."
        )
    elif not here["mds"]["reachable"]:
        click.echo(f"The gateway here cannot reach the MDS: {here['mds']['problem']}")
