# SPDX-License-Identifier: BSD-3-Clause
"""A client of tgtd's management socket, so that no secret ever stands on a command line.

The protocol is tgtd's own (usr/tgtadm.h and usr/mgmt.c of tgt 1.0.85): a connection carries one
request, a fixed structure in the machine's byte order and then text, and one answer, which has an
error code and text. tgtd answers one request after another, on the thread that serves IO.
"""

from __future__ import annotations

import asyncio
import enum
import struct
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import (
    BusyError,
    CopygateError,
    DeadlineError,
    ExistsError,
    InvalidArgumentError,
    NotFoundError,
    ProtocolError,
    UnavailableError,
)
from gateway.iscsi.report import (
    Connection,
    TargetReport,
    parse_backing_stores,
    parse_connections,
    parse_portals,
    parse_targets,
)

# tgtd refuses a longer text by closing the connection.
REQUEST_TEXT_MAX = 8 * 1024
REPLY_TEXT_MAX = 16 << 20
DRIVER = "iscsi"
TIMEOUT_S = 10.0
# A new logical unit opens its volume, which may have to wait for servers.
OPEN_TIMEOUT_S = 90.0

# mode, op, lld, len, tid, sid, lun, cid, host_no, device_type, ac_dir, pack, force.
_REQUEST = struct.Struct("@ii64sIiQQIIIIII")
_ANSWER = struct.Struct("@II")


class Mode(enum.IntEnum):
    """What a request is about."""

    SYSTEM = 0
    TARGET = 1
    DEVICE = 2
    PORTAL = 3
    LLD = 4
    SESSION = 5
    CONNECTION = 6
    ACCOUNT = 7


class Op(enum.IntEnum):
    """What is to be done."""

    NEW = 0
    DELETE = 1
    SHOW = 2
    BIND = 3
    UNBIND = 4
    UPDATE = 5
    STATS = 6
    START = 7
    STOP = 8


@dataclass(frozen=True)
class _Reason:
    text: str
    kind: type[CopygateError] = CopygateError


# By tgtd's error code (usr/tgtadm_error.h).
_REASONS = {
    1: _Reason("it failed and does not say why"),
    2: _Reason("it has no memory left"),
    3: _Reason("it has no such driver, or the driver did not start"),
    4: _Reason("it has no such target", NotFoundError),
    5: _Reason("the target has no such logical unit", NotFoundError),
    6: _Reason("there is no such session", NotFoundError),
    7: _Reason("there is no such connection", NotFoundError),
    8: _Reason("the target is not bound to that", NotFoundError),
    9: _Reason("the target exists already", ExistsError),
    10: _Reason("the logical unit exists already", ExistsError),
    11: _Reason("it is bound to that already", ExistsError),
    12: _Reason("that initiator is allowed already", ExistsError),
    13: _Reason("that initiator was not allowed", NotFoundError),
    14: _Reason("the account exists already", ExistsError),
    15: _Reason("there is no such account", NotFoundError),
    16: _Reason("the target has too many accounts", InvalidArgumentError),
    17: _Reason("it does not accept the request", InvalidArgumentError),
    18: _Reason("the target has an outgoing account already", ExistsError),
    19: _Reason("the target has sessions", BusyError),
    20: _Reason("the logical unit has commands under way", BusyError),
    21: _Reason("its iSCSI driver is in use", BusyError),
    22: _Reason("it does not know the operation", InvalidArgumentError),
    23: _Reason("it does not know the parameter", InvalidArgumentError),
    24: _Reason("an initiator prevents the removal of the medium", BusyError),
}


def refusal(code: int, what: str) -> CopygateError:
    """tgtd's error code in words."""
    reason = _REASONS.get(code, _Reason("it answers with a code that is not known"))
    return reason.kind(f"tgtd cannot {what}: {reason.text}", context={"code": code})


def socket_path(folder: Path, control_port: int = 1) -> Path:
    """Where a tgtd that was started with TGT_IPC_SOCKET=folder/tgtd and -C control_port listens."""
    return folder / f"tgtd.{control_port}"


def _check(**texts: str) -> None:
    """tgtd cuts its parameters at commas, and ends them at a NUL."""
    for name, text in texts.items():
        if any(bad in text for bad in ",\0\n"):
            raise InvalidArgumentError(
                f"tgtd takes no comma, newline or NUL in {name}", context={name: text}
            )


class Tgtd:
    """One tgtd. Every method raises UnavailableError when it does not run, DeadlineError when it
    is silent, and its refusals as NotFoundError, ExistsError, BusyError, InvalidArgumentError."""

    def __init__(self, path: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        self.path = path
        self._timeout_s = timeout_s

    # Targets

    async def new_target(self, tid: int, name: str) -> None:
        _check(name=name)
        await self._call(
            f"create target {name}", Mode.TARGET, Op.NEW, f"targetname={name}", tid=tid
        )

    async def delete_target(self, tid: int, *, force: bool = False) -> None:
        """With `force` its sessions end. Refused while commands are under way (BusyError)."""
        await self._call("delete the target", Mode.TARGET, Op.DELETE, tid=tid, force=int(force))

    async def set_parameter(self, tid: int, name: str, value: str) -> None:
        """For the sessions that begin after it."""
        _check(name=name, value=value)
        await self._call(
            f"set {name} to {value}", Mode.TARGET, Op.UPDATE, f"{name}={value}", tid=tid
        )

    async def parameters(self, tid: int) -> dict[str, str]:
        """The parameters that are offered to initiators."""
        text = await self._call("show the parameters", Mode.TARGET, Op.SHOW, tid=tid)
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    async def targets(self) -> list[TargetReport]:
        """All targets with their logical units and who may log in."""
        return parse_targets(await self._call("show targets", Mode.TARGET, Op.SHOW, tid=-1))

    # Logical units

    async def new_lun(self, tid: int, lun: int, *, path: str, bstype: str, bsopts: str) -> None:
        """Number 0 is tgtd's own controller."""
        _check(path=path, bstype=bstype, bsopts=bsopts)
        text = f"path={path},bstype={bstype}"
        if bsopts:
            text += f",bsopts={bsopts}"
        await self._call(
            f"open {path} as logical unit {lun}", Mode.DEVICE, Op.NEW, text,
            tid=tid, lun=lun, timeout_s=OPEN_TIMEOUT_S,
        )  # fmt: skip

    async def delete_lun(self, tid: int, lun: int) -> None:
        """Refused while it has commands under way (BusyError)."""
        await self._call(f"delete logical unit {lun}", Mode.DEVICE, Op.DELETE, tid=tid, lun=lun)

    async def update_lun(self, tid: int, lun: int, parameters: str) -> None:
        """Parameters as tgtd writes them, NAME=VALUE with commas between."""
        await self._call(
            f"change logical unit {lun}", Mode.DEVICE, Op.UPDATE, parameters, tid=tid, lun=lun
        )

    # Who may log in

    async def allow_name(self, tid: int, initiator: str) -> None:
        _check(initiator=initiator)
        await self._call(
            f"allow {initiator}", Mode.TARGET, Op.BIND, f"initiator-name={initiator}", tid=tid
        )

    async def refuse_name(self, tid: int, initiator: str) -> None:
        _check(initiator=initiator)
        await self._call(
            f"refuse {initiator}", Mode.TARGET, Op.UNBIND, f"initiator-name={initiator}", tid=tid
        )

    async def allow_address(self, tid: int, address: str) -> None:
        """An address, a network or ALL. tgtd refuses only whom neither name nor address allows."""
        _check(address=address)
        await self._call(
            f"allow {address}", Mode.TARGET, Op.BIND, f"initiator-address={address}", tid=tid
        )

    async def refuse_address(self, tid: int, address: str) -> None:
        _check(address=address)
        await self._call(
            f"refuse {address}", Mode.TARGET, Op.UNBIND, f"initiator-address={address}", tid=tid
        )

    # Accounts of CHAP

    async def new_account(self, user: str, secret: str) -> None:
        _check(user=user)
        if "\0" in secret:
            raise InvalidArgumentError("a CHAP secret has a NUL in it")
        await self._call(
            f"create account {user}", Mode.ACCOUNT, Op.NEW, f"user={user},password={secret}"
        )

    async def delete_account(self, user: str) -> None:
        """Unbinds it too."""
        _check(user=user)
        await self._call(f"delete account {user}", Mode.ACCOUNT, Op.DELETE, f"user={user}")

    async def bind_account(self, tid: int, user: str, *, outgoing: bool = False) -> None:
        """`outgoing`: the target's own, towards initiators that ask (mutual CHAP)."""
        _check(user=user)
        await self._call(
            f"bind account {user}", Mode.ACCOUNT, Op.BIND, f"user={user}",
            tid=tid, direction=int(outgoing),
        )  # fmt: skip

    # Portals

    async def new_portal(self, portal: str) -> None:
        """`portal`: HOST:PORT or [V6]:PORT, of all targets of this tgtd."""
        _check(portal=portal)
        await self._call(f"listen at {portal}", Mode.PORTAL, Op.NEW, f"portal={portal}")

    async def delete_portal(self, portal: str) -> None:
        """Sessions that came in by it stay."""
        _check(portal=portal)
        await self._call(f"stop listening at {portal}", Mode.PORTAL, Op.DELETE, f"portal={portal}")

    async def portals(self) -> list[str]:
        """Where it listens."""
        return parse_portals(await self._call("show portals", Mode.PORTAL, Op.SHOW))

    # Sessions

    async def connections(self, tid: int) -> list[Connection]:
        """Who is logged in."""
        text = await self._call("show sessions", Mode.CONNECTION, Op.SHOW, tid=tid)
        return parse_connections(text)

    async def close_connection(self, tid: int, connection: Connection) -> None:
        """Ends a connection; the initiator may log in again."""
        await self._call(
            "end a connection", Mode.CONNECTION, Op.DELETE,
            tid=tid, sid=connection.session, cid=connection.connection,
        )  # fmt: skip

    # The process

    async def backing_stores(self) -> list[str]:
        """The kinds of backing stores that it knows."""
        return parse_backing_stores(await self._call("show itself", Mode.SYSTEM, Op.SHOW))

    async def stop_driver(self, name: str) -> None:
        """Ends a driver, as "iser"; one that does not run is no error."""
        await self._call(f"stop its driver {name}", Mode.LLD, Op.STOP, driver=name)

    async def shut_down(self) -> None:
        """Tells it to end. Refused unless its targets are deleted."""
        await self._call("end", Mode.SYSTEM, Op.DELETE)

    async def _call(
        self,
        what: str,
        mode: Mode,
        op: Op,
        text: str = "",
        *,
        tid: int = 0,
        sid: int = 0,
        lun: int = 0,
        cid: int = 0,
        direction: int = 0,
        force: int = 0,
        driver: str = DRIVER,
        timeout_s: float | None = None,
    ) -> str:
        """One request; returns the answer's text. `what` completes "tgtd cannot ..."."""
        request = encode(
            mode, op, text,
            tid=tid, sid=sid, lun=lun, cid=cid, direction=direction, force=force, driver=driver,
        )  # fmt: skip
        seconds = timeout_s or self._timeout_s
        try:
            async with asyncio.timeout(seconds):
                return await self._exchange(request, what)
        except TimeoutError as error:
            raise DeadlineError(
                f"tgtd did not {what} in time", context={"socket": self.path, "seconds": seconds}
            ) from error
        except (OSError, asyncio.IncompleteReadError) as error:
            reason = "it closed the connection"
            if isinstance(error, OSError):
                reason = error.strerror or str(error)
            raise UnavailableError(
                "tgtd does not answer",
                context={"socket": self.path, "reason": reason},
                hint="it runs as this user and group, and serves nobody else's requests",
            ) from error

    async def _exchange(self, request: bytes, what: str) -> str:
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        try:
            writer.write(request)
            await writer.drain()
            code, length = _ANSWER.unpack(await reader.readexactly(_ANSWER.size))
            if code:
                raise refusal(code, what)
            if not _ANSWER.size <= length <= REPLY_TEXT_MAX:
                raise ProtocolError(
                    "tgtd's answer has an impossible length", context={"is": length}
                )
            # The last byte is a NUL, and an answer may be empty.
            text = await reader.readexactly(length - _ANSWER.size)
            return text.rstrip(b"\0").decode(errors="replace")
        finally:
            writer.close()


def encode(
    mode: Mode,
    op: Op,
    text: str = "",
    *,
    tid: int = 0,
    sid: int = 0,
    lun: int = 0,
    cid: int = 0,
    direction: int = 0,
    force: int = 0,
    driver: str = DRIVER,
) -> bytes:
    """The bytes of a request. Raises InvalidArgumentError for a text that tgtd would not read."""
    body = text.encode() + b"\0" if text else b""
    if len(body) > REQUEST_TEXT_MAX:
        raise InvalidArgumentError(
            "a request to tgtd is too long", context={"bytes": len(body), "most": REQUEST_TEXT_MAX}
        )
    head = _REQUEST.pack(
        mode, op, driver.encode(), _REQUEST.size + len(body),
        tid, sid, lun, cid, 0, 0, direction, 0, force,
    )  # fmt: skip
    return head + body
