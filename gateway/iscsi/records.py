# SPDX-License-Identifier: BSD-3-Clause
"""Records of exports: how `export` and `unexport` change one, and what a gateway makes of it. Pure.

A change is declarative: what is given is so afterwards, what is not given stays as it is, and the
same change again changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gateway.errors import ConfigError, ExistsError, InvalidArgumentError, NotFoundError
from gateway.iscsi import rules
from gateway.iscsi.plan import GUARD, Account, Lun, Wanted
from gateway.proto.iscsi_pb2 import ExportLun, ExportRecord, GatewayPortals

DEFAULT_ADDRESS = "127.0.0.1"
PORTALS_MAX = 8
ACL_MAX = 256
# What separates tgtd's parameters and the module's options.
SEPARATORS = ",;|"


@dataclass(frozen=True)
class Change:
    """What `export` was told. None: not given."""

    volume: str
    gateway: str
    iqn: str | None = None
    lun: int | None = None
    block_size: int | None = None
    read_only: bool | None = None
    group: int | None = None
    portals: tuple[str, ...] | None = None
    acl: tuple[str, ...] | None = None
    chap: Account | None = None
    no_chap: bool = False
    mutual: Account | None = None
    anyone: bool | None = None
    allow_remote: bool = False


def check_volume(path: str) -> str:
    """Checks that a volume's path can be handed to tgtd."""
    if any(separator in path for separator in SEPARATORS):
        raise InvalidArgumentError(
            "a volume with ',', ';' or '|' in its name cannot be exported over iSCSI",
            context={"volume": path},
            hint="tgtd separates its parameters by them; rename it: copygate volume rename",
        )
    return path


def find(records: Iterable[ExportRecord], volume: str) -> ExportRecord | None:
    """The export of a volume."""
    for record in records:
        if any(lun.volume == volume for lun in record.luns):
            return record
    return None


def choose(records: Iterable[ExportRecord], change: Change) -> ExportRecord:
    """The record to change: the volume's, else the named one, else a new one."""
    records = list(records)
    has_it = find(records, change.volume)
    if has_it is not None and change.iqn not in (None, has_it.iqn):
        raise ExistsError(
            "the volume is exported by another target",
            context={"volume": change.volume, "target": has_it.iqn},
            hint="two targets would take it from each other: unexport it first",
        )
    if has_it is not None:
        return has_it
    iqn = rules.check_target_name(change.iqn or rules.default_target_name(change.volume))
    named = next((record for record in records if record.iqn == iqn), None)
    return named if named is not None else ExportRecord(iqn=iqn)


def changed(record: ExportRecord, change: Change, others: Iterable[ExportRecord]) -> ExportRecord:
    """The record after `export`. `others` are the other targets' records: for free portals.

    Raises InvalidArgumentError and ExistsError for what cannot be, and ConfigError for what would
    let strangers in.
    """
    new = ExportRecord()
    new.CopyFrom(record)
    _set_lun(new, change)
    _set_gateway(new, change, list(others))
    _set_access(new, change)
    check_access(new, allow_remote=change.allow_remote or _reaches_out(record, change.gateway))
    return new


def _set_lun(record: ExportRecord, change: Change) -> None:
    check_volume(change.volume)
    if change.lun is not None and not rules.LUN_MIN <= change.lun <= rules.LUN_MAX:
        raise InvalidArgumentError(
            f"--lun {change.lun} is not possible",
            hint=f"{rules.LUN_MIN} to {rules.LUN_MAX}; 0 is tgtd's own controller",
        )
    mine = next((lun for lun in record.luns if lun.volume == change.volume), None)
    taken = {lun.lun: lun.volume for lun in record.luns if lun is not mine}
    number = change.lun
    if number is None:
        free = (n for n in range(rules.LUN_MIN, rules.LUN_MAX + 1) if n not in taken)
        number = mine.lun if mine is not None else next(free, None)
    if number is None:
        raise InvalidArgumentError(
            "the target has no number left", context={"target": record.iqn}, hint="use --iqn"
        )
    if number in taken:
        raise ExistsError(
            f"LUN {number} of the target is another volume",
            context={"target": record.iqn, "volume": taken[number]},
            hint="choose another with --lun, or another target with --iqn",
        )
    if mine is None:
        mine = record.luns.add(lun=number, volume=change.volume)
    mine.lun = number
    if change.block_size is not None:
        mine.block_size = change.block_size
    if change.read_only is not None:
        mine.read_only = change.read_only
    _sort(record)


def _sort(record: ExportRecord) -> None:
    luns = sorted(record.luns, key=lambda lun: lun.lun)
    del record.luns[:]
    record.luns.extend(luns)


def _set_gateway(record: ExportRecord, change: Change, others: list[ExportRecord]) -> None:
    rules.check_gateway(change.gateway)
    mine = next((g for g in record.gateways if g.gateway == change.gateway), None)
    groups = {g.group: g.gateway for g in record.gateways if g is not mine}
    group = change.group
    if group is None:
        group = mine.group if mine else next(n for n in range(1, 65536) if n not in groups)
    if not rules.GROUP_MIN <= group <= rules.GROUP_MAX:
        raise InvalidArgumentError(
            f"--group {group} is not possible", hint=f"{rules.GROUP_MIN} to {rules.GROUP_MAX}"
        )
    if group in groups:
        raise ExistsError(
            f"group {group} is that of another gateway",
            context={"gateway": groups[group]},
            hint="each gateway of a target has a group of its own: choose another with --group",
        )
    bound = _bound(others, change.gateway)
    if change.portals is not None:
        portals = tuple(dict.fromkeys(rules.check_portal(portal) for portal in change.portals))
    elif mine is not None and mine.portals:
        portals = tuple(mine.portals)
    else:
        portals = (_free_portal(bound),)
    if len(portals) > PORTALS_MAX:
        raise InvalidArgumentError(f"a target has at most {PORTALS_MAX} portals on a gateway")
    for portal in portals:
        for other, target in bound.items():
            if rules.overlap(portal, other):
                raise ExistsError(
                    f"portal {portal} is that of another target",
                    context={"target": target},
                    hint="each target has a tgtd, and so a port, of its own: choose another with "
                    "--portal",
                )
    if mine is None:
        mine = record.gateways.add(gateway=change.gateway, group=group)
    mine.group = group
    mine.portals[:] = portals


def _bound(records: Iterable[ExportRecord], gateway: str) -> dict[str, str]:
    """Portals of a gateway -> target."""
    return {
        portal: record.iqn
        for record in records
        for entry in record.gateways
        if entry.gateway == gateway
        for portal in entry.portals
    }


def _free_portal(bound: Mapping[str, str]) -> str:
    for port in range(rules.DEFAULT_PORT, 65536):
        portal = rules.format_portal(DEFAULT_ADDRESS, port)
        if not any(rules.overlap(portal, other) for other in bound):
            return portal
    raise InvalidArgumentError("no port is left", hint="give one with --portal")


def _set_access(record: ExportRecord, change: Change) -> None:
    if change.acl is not None:
        names = sorted({rules.check_initiator_name(name) for name in change.acl})
        if len(names) > ACL_MAX:
            raise InvalidArgumentError(f"an ACL has at most {ACL_MAX} initiators")
        record.acl[:] = names
    if change.no_chap:
        for name in ("chap_user", "chap_secret", "mutual_user", "mutual_secret"):
            record.ClearField(name)
    if change.chap is not None:
        record.chap_user = rules.check_user(change.chap.user, "--chap")
        record.chap_secret = rules.check_secret(change.chap.secret.encode(), "--chap")
    if change.mutual is not None:
        if not record.chap_user:
            raise InvalidArgumentError(
                "--mutual-chap needs --chap: a target proves itself only to an initiator that does"
            )
        record.mutual_user = rules.check_user(change.mutual.user, "--mutual-chap")
        record.mutual_secret = rules.check_secret(change.mutual.secret.encode(), "--mutual-chap")
    if GUARD in (record.chap_user, record.mutual_user):
        raise InvalidArgumentError(f"the name {GUARD} is ours", hint="choose another")
    if record.mutual_user:
        if record.mutual_secret == record.chap_secret:
            raise InvalidArgumentError(
                "both secrets of CHAP are the same",
                hint="an initiator could answer with what it hears: choose two",
            )
        if record.mutual_user == record.chap_user:
            raise InvalidArgumentError(
                "both names of CHAP are the same", hint="tgtd has one secret a name: choose two"
            )
    if change.anyone is not None:
        record.anyone = change.anyone


def _reaches_out(record: ExportRecord, gateway: str) -> bool:
    portals = [p for g in record.gateways if g.gateway == gateway for p in g.portals]
    return any(not rules.is_local_portal(portal) for portal in portals)


def check_access(record: ExportRecord, *, allow_remote: bool = True) -> None:
    """Refuses (ConfigError) a target that other machines reach and that nothing protects."""
    portals = [portal for gateway in record.gateways for portal in gateway.portals]
    remote = next((portal for portal in portals if not rules.is_local_portal(portal)), None)
    if remote is None:
        return
    if not allow_remote:
        raise ConfigError(
            f"portal {remote} can be reached from other machines",
            hint="use 127.0.0.1, or --allow-remote on a network that is for storage alone: iSCSI "
            "is not encrypted",
        )
    if not (record.acl or record.chap_user or record.anyone):
        raise ConfigError(
            f"portal {remote} can be reached from other machines, and nothing checks who connects",
            hint="use --chap or --acl, or --anyone if everybody on that network may read and write",
        )


def without(record: ExportRecord, volume: str, gateway: str | None) -> ExportRecord | None:
    """The record after `unexport`: without the volume, or without the gateway alone; None when
    nothing is left."""
    new = ExportRecord()
    new.CopyFrom(record)
    if gateway is not None:
        kept = [g for g in record.gateways if g.gateway != gateway]
        if len(kept) == len(record.gateways):
            raise NotFoundError(
                "that gateway does not serve the target",
                context={"gateway": gateway, "target": record.iqn},
            )
        del new.gateways[:]
        new.gateways.extend(kept)
        return new if kept else None
    luns = [lun for lun in record.luns if lun.volume != volume]
    del new.luns[:]
    new.luns.extend(luns)
    return new if luns else None


@dataclass(frozen=True)
class Access:
    """How a gateway's modules reach the store."""

    gateway: str
    mds: str
    owner: str
    password_file: str | None = None


def wanted(
    record: ExportRecord, access: Access, gone: frozenset[str] = frozenset()
) -> Wanted | None:
    """What a gateway serves of a record; None if nothing. `gone` are volumes that cannot be had.

    Raises a CopygateError for a record that is not safe or not possible.
    """
    mine = next((g for g in record.gateways if g.gateway == access.gateway), None)
    if mine is None or not mine.portals:
        return None
    check_access(record)
    rules.check_target_name(record.iqn)
    several = len(record.gateways) > 1
    luns = frozenset(
        Lun(
            number=lun.lun,
            volume=check_volume(lun.volume),
            options=_options(lun, mine, access),
            # Of several gateways one has the volume, and a restart of another does not take it.
            at_open="standby=yes" if several else "",
        )
        for lun in record.luns
        if lun.volume not in gone
    )
    if not luns:
        return None
    return Wanted(
        iqn=record.iqn,
        luns=luns,
        acl=frozenset(rules.check_initiator_name(name) for name in record.acl),
        chap=_account(record.chap_user, record.chap_secret),
        mutual=_account(record.mutual_user, record.mutual_secret),
        portals=frozenset(rules.check_portal(portal) for portal in mine.portals),
    )


def _account(user: str, secret: bytes) -> Account | None:
    if not user:
        return None
    rules.check_user(user, "CHAP")
    return Account(user, rules.check_secret(secret, "CHAP").decode())


def _options(lun: ExportLun, mine: GatewayPortals, access: Access) -> str:
    options = {
        "mds": access.mds.replace(",", "|"),
        "owner": access.owner,
        "gateway": access.gateway,
        "group": str(mine.group),
    }
    if access.password_file and access.owner == "root":
        options["password-file"] = access.password_file
    if lun.block_size and lun.block_size != 512:
        options["block"] = str(lun.block_size)
    if lun.read_only:
        options["read-only"] = "yes"
    return ";".join(f"{key}={value}" for key, value in options.items())


@dataclass(frozen=True)
class Differences:
    """What a gateway has to do: targets by name."""

    stop: frozenset[str] = frozenset()
    change: Mapping[str, Wanted] = field(default_factory=dict)
    start: Mapping[str, Wanted] = field(default_factory=dict)


def differences(wanted: Mapping[str, Wanted], running: Mapping[str, Wanted]) -> Differences:
    """What makes `wanted` of `running`. Stopping comes first: it frees portals."""
    return Differences(
        stop=frozenset(running.keys() - wanted.keys()),
        change={n: w for n, w in wanted.items() if n in running and running[n] != w},
        start={n: w for n, w in wanted.items() if n not in running},
    )
