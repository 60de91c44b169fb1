# SPDX-License-Identifier: BSD-3-Clause
"""From what a target should be to what has to be done. Pure functions.

`steps` compares what is wanted with what a tgtd has and returns actions in an order in which nobody
is let in meanwhile who is let in neither before nor afterwards; `applied` is what an action makes
of a tgtd. The target listens last: an initiator that comes back while tgtd is being set up is
refused a connection, which it tries again, and does not meet a target without its logical units,
which it would take for a loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

# What is negotiated with initiators. tgtd sends segments as long as the initiator takes.
PARAMETERS: Mapping[str, str] = {
    "MaxRecvDataSegmentLength": "1048576",
    "FirstBurstLength": "262144",
    "MaxBurstLength": "1048576",
    "InitialR2T": "No",
    "ImmediateData": "Yes",
    # An initiator that is gone without a word is found after some (interval x count) seconds.
    "nop_interval": "5",
    "nop_count": "4",
}

# Keeps CHAP on while an account is exchanged. Its secret is random and known to nobody.
GUARD = "copygate-guard"


@dataclass(frozen=True)
class Lun:
    """A logical unit. `options` are the module's (bsopts); `at_open` are more of them, which matter
    only when it is opened: it need not be opened again when they change."""

    number: int
    volume: str
    options: str = ""
    bstype: str = "copygate"
    at_open: str = field(default="", compare=False)


@dataclass(frozen=True)
class Account:
    """A name and secret of CHAP. The secret is not shown."""

    user: str
    secret: str = field(repr=False)


@dataclass(frozen=True)
class Wanted:
    """What a target of this gateway should be. Without `acl` any initiator may log in."""

    iqn: str
    luns: frozenset[Lun] = frozenset()
    acl: frozenset[str] = frozenset()
    chap: Account | None = None
    mutual: Account | None = None
    portals: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Present:
    """What a tgtd has; it has one target at most. `names` and `anyone` may log in."""

    iqn: str | None = None
    luns: frozenset[Lun] = frozenset()
    accounts: frozenset[Account] = frozenset()
    incoming: frozenset[str] = frozenset()
    outgoing: str | None = None
    names: frozenset[str] = frozenset()
    anyone: bool = False
    portals: frozenset[str] = frozenset()


@dataclass(frozen=True)
class NewTarget:
    iqn: str


@dataclass(frozen=True)
class SetParameter:
    name: str
    value: str


@dataclass(frozen=True)
class NewLun:
    lun: Lun


@dataclass(frozen=True)
class DeleteLun:
    lun: Lun


@dataclass(frozen=True)
class NewAccount:
    """Bound to the target: to let initiators in, or as the target's own (`outgoing`)."""

    account: Account
    outgoing: bool = False


@dataclass(frozen=True)
class DeleteAccount:
    user: str


@dataclass(frozen=True)
class Allow:
    """An initiator by its name; None: any."""

    name: str | None


@dataclass(frozen=True)
class Refuse:
    name: str | None


@dataclass(frozen=True)
class OpenPortal:
    portal: str


@dataclass(frozen=True)
class ClosePortal:
    portal: str


@dataclass(frozen=True)
class EndSessions:
    """Ends the sessions of initiators other than `kept` (None: of nobody, all end)."""

    kept: frozenset[str] | None


Action: TypeAlias = (
    NewTarget
    | SetParameter
    | NewLun
    | DeleteLun
    | NewAccount
    | DeleteAccount
    | Allow
    | Refuse
    | OpenPortal
    | ClosePortal
    | EndSessions
)


def steps(wanted: Wanted, present: Present, guard_secret: str) -> list[Action]:
    """What makes `wanted` of `present`, in order. `guard_secret` is random, of 12 to 16 bytes.

    The target of `present`, if it has one, must be `wanted`'s: a tgtd serves one in its life.
    """
    assert present.iqn in (None, wanted.iqn)  # noqa: S101 - the caller's duty
    actions: list[Action] = []
    if present.iqn is None:
        actions.append(NewTarget(wanted.iqn))
        actions += [SetParameter(name, value) for name, value in PARAMETERS.items()]
    actions += [ClosePortal(portal) for portal in sorted(present.portals - wanted.portals)]
    actions += _narrow(wanted, present)
    actions += [DeleteLun(lun) for lun in _ordered(present.luns - wanted.luns)]
    actions += [NewLun(lun) for lun in _ordered(wanted.luns - present.luns)]
    actions += _accounts(wanted, present, guard_secret)
    actions += [Allow(name) for name in sorted(wanted.acl - present.names)]
    if not wanted.acl:
        actions += [] if present.anyone else [Allow(None)]
        actions += [Refuse(name) for name in sorted(present.names)]
    actions += [OpenPortal(portal) for portal in sorted(wanted.portals - present.portals)]
    return actions


def _ordered(luns: frozenset[Lun]) -> list[Lun]:
    return sorted(luns, key=lambda lun: lun.number)


def _narrow(wanted: Wanted, present: Present) -> list[Action]:
    """Takes the right to log in from those who shall not have it, and ends their sessions."""
    if not wanted.acl:
        return []
    actions: list[Action] = [Refuse(None)] if present.anyone else []
    actions += [Refuse(name) for name in sorted(present.names - wanted.acl)]
    return [*actions, EndSessions(wanted.acl)] if actions else []


def _accounts(wanted: Wanted, present: Present, guard_secret: str) -> list[Action]:
    roles = {account: account.user in present.incoming for account in present.accounts}
    keep = set()
    for account, incoming in ((wanted.chap, True), (wanted.mutual, False)):
        if account is not None and roles.get(account) is incoming:
            keep.add(account)
    gone = sorted(account.user for account in present.accounts - keep)
    actions: list[Action] = []
    chap_is_new = wanted.chap is not None and wanted.chap not in keep
    # Without any account tgtd asks for none: CHAP would be off for a moment.
    guarded = chap_is_new and any(user in present.incoming for user in gone)
    if guarded and GUARD not in gone:
        actions.append(NewAccount(Account(GUARD, guard_secret)))
    actions += [DeleteAccount(user) for user in gone if user != GUARD]
    if chap_is_new and wanted.chap is not None:
        actions.append(NewAccount(wanted.chap))
    if guarded or GUARD in gone:
        actions.append(DeleteAccount(GUARD))
    if wanted.mutual is not None and wanted.mutual not in keep:
        actions.append(NewAccount(wanted.mutual, outgoing=True))
    if chap_is_new and present.iqn is not None and not present.incoming:
        # They came in without being asked who they are.
        actions.append(EndSessions(None))
    return actions


def applied(  # noqa: PLR0911, PLR0912 - a case an action
    present: Present, action: Action
) -> Present:
    """What `action` makes of `present`. Raises ValueError where tgtd would refuse it."""
    match action:
        case NewTarget(iqn):
            _must(present.iqn is None, action)
            return replace(present, iqn=iqn)
        case NewLun(lun):
            _must(lun.number not in {other.number for other in present.luns}, action)
            return replace(present, luns=present.luns | {lun})
        case DeleteLun(lun):
            _must(lun in present.luns, action)
            return replace(present, luns=present.luns - {lun})
        case NewAccount(account, outgoing):
            _must(account.user not in {other.user for other in present.accounts}, action)
            accounts = present.accounts | {account}
            if outgoing:
                _must(present.outgoing is None, action)
                return replace(present, accounts=accounts, outgoing=account.user)
            return replace(present, accounts=accounts, incoming=present.incoming | {account.user})
        case DeleteAccount(user):
            kept = frozenset(a for a in present.accounts if a.user != user)
            _must(kept != present.accounts, action)
            outgoing_user = None if present.outgoing == user else present.outgoing
            incoming = present.incoming - {user}
            return replace(present, accounts=kept, incoming=incoming, outgoing=outgoing_user)
        case Allow(name):
            _must(not present.anyone if name is None else name not in present.names, action)
            if name is None:
                return replace(present, anyone=True)
            return replace(present, names=present.names | {name})
        case Refuse(name):
            _must(present.anyone if name is None else name in present.names, action)
            if name is None:
                return replace(present, anyone=False)
            return replace(present, names=present.names - {name})
        case OpenPortal(portal):
            _must(portal not in present.portals, action)
            return replace(present, portals=present.portals | {portal})
        case ClosePortal(portal):
            _must(portal in present.portals, action)
            return replace(present, portals=present.portals - {portal})
        case SetParameter() | EndSessions():
            _must(present.iqn is not None, action)
            return present


def _must(condition: bool, action: Action) -> None:
    if not condition:
        raise ValueError(f"tgtd would refuse {action}")
