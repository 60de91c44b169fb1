# SPDX-License-Identifier: BSD-3-Clause
"""What names, owners, sizes and signatures are acceptable. Pure functions; refusals are raised.

CurveBS itself asks for lengths in whole GiB from 10 GiB on and restricts names hardly at all; ours
takes any length in whole blocks from 1 MiB on and only names that every front end can carry.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass

from gateway.mds.refusal import RefusalError
from gateway.proto import nameserver2_pb2 as ns

BLOCK_SIZE = 4096
CHUNK_SIZE = 16 << 20
SEGMENT_SIZE = 1 << 30
CHUNKS_PER_SEGMENT = SEGMENT_SIZE // CHUNK_SIZE
LENGTH_MIN = 1 << 20
LENGTH_MAX = 1 << 50

NAME_MAX = 200
"""Characters of a name, so that a recycled one ("name-id-seconds") stays below 255."""
DEPTH_MAX = 32
PATH_MAX = 1024
OWNER_MAX = 64

ROOT_OWNER = "root"
RECYCLE_BIN = "RecycleBin"
POOLSET = "default"
DATE_WINDOW_US = 15_000_000

_NAME = re.compile(r"[A-Za-z0-9._@:=,~+][A-Za-z0-9._@:=,~+-]*")
_STORED_NAME_MAX = 255


def split_path(path: str) -> tuple[str, ...]:
    """The names of an absolute path; () for "/". Refuses empty names, "." and "..", a slash at
    the end, what is too long, and other characters than letters, digits and ``._-@:=,~+``."""
    if not path.startswith("/"):
        raise _bad(f"the path {_quote(path)} does not begin with a slash")
    if len(path) > PATH_MAX:
        raise _bad(f"the path is longer than {PATH_MAX} characters")
    if path == "/":
        return ()
    names = tuple(path[1:].split("/"))
    if len(names) > DEPTH_MAX:
        raise _bad(f"the path has more than {DEPTH_MAX} levels")
    for name in names:
        limit = _STORED_NAME_MAX if names[0] == RECYCLE_BIN else NAME_MAX
        check_name(name, limit)
    return names


def check_name(name: str, limit: int = NAME_MAX) -> None:
    """Refuses what cannot be the name of a volume or folder."""
    if not name:
        raise _bad("a name in the path is empty")
    if name in (".", ".."):
        raise _bad(f"{name!r} is not a name")
    if len(name) > limit:
        raise _bad(f"the name {_quote(name)} is longer than {limit} characters")
    if not _NAME.fullmatch(name):
        raise _bad(
            f"the name {_quote(name)} has a character that is not allowed; use letters, digits "
            "and . _ - @ : = , ~ + (no - at the start)"
        )


def check_owner_name(owner: str) -> None:
    """Refuses what cannot be an owner."""
    if not owner:
        raise RefusalError(ns.kOwnerAuthFail, "the request names no owner")
    if len(owner) > OWNER_MAX or not _NAME.fullmatch(owner):
        raise RefusalError(
            ns.kOwnerAuthFail,
            f"the owner {_quote(owner)} is not acceptable: at most {OWNER_MAX} letters, digits "
            "and . _ - @ : = , ~ +",
        )


def check_length(length: int) -> None:
    """Refuses what cannot be the length of a volume in bytes."""
    if not LENGTH_MIN <= length <= LENGTH_MAX or length % BLOCK_SIZE != 0:
        raise RefusalError(
            ns.kFileLengthNotSupported,
            f"a volume of {length} bytes is not possible: the length must be a multiple of "
            f"{BLOCK_SIZE} between {LENGTH_MIN} (1 MiB) and {LENGTH_MAX} (1 PiB)",
        )


def check_extension(old_length: int, new_length: int) -> None:
    """Refuses to shrink, and lengths that no volume can have."""
    if new_length < old_length:
        raise RefusalError(
            ns.kShrinkBiggerFile,
            f"the volume has {old_length} bytes and cannot shrink to {new_length}",
        )
    if new_length > LENGTH_MAX:
        check_length(new_length)
    if new_length % BLOCK_SIZE != 0:
        raise RefusalError(
            ns.kExtentUnitError, f"the new length {new_length} is no multiple of {BLOCK_SIZE}"
        )


def check_stripes(unit: int, count: int) -> None:
    """Refuses stripes that do not fit: both or neither; the unit in whole blocks and a divisor of
    the chunk; the count a divisor of the chunks in a segment, so that a stripe stays within one."""
    if unit == 0 and count == 0:
        return
    if unit == 0 or count == 0:
        raise _bad("stripe unit and stripe count go together")
    if unit % BLOCK_SIZE != 0 or CHUNK_SIZE % unit != 0:
        raise _bad(
            f"the stripe unit {unit} is no multiple of {BLOCK_SIZE} that divides {CHUNK_SIZE}"
        )
    if CHUNKS_PER_SEGMENT % count != 0:
        raise _bad(f"the stripe count {count} does not divide {CHUNKS_PER_SEGMENT}")
    if count == 1 and unit != CHUNK_SIZE:
        raise _bad(f"one stripe has the unit {CHUNK_SIZE} or none")


def check_segment_offset(offset: int, length: int) -> None:
    """Refuses an offset that is not the start of one of the volume's segments. The last one may
    reach past the end of the volume."""
    if offset % SEGMENT_SIZE != 0:
        raise _bad(f"the offset {offset} is no multiple of the segment size {SEGMENT_SIZE}")
    if offset >= length:
        raise _bad(f"the offset {offset} is past the volume's end at {length}")


def recycled_name(name: str, file_id: int, now_us: int) -> str:
    """The name of a deleted volume in the recycle bin, as CurveBS forms it."""
    return f"{name}-{file_id}-{now_us // 1_000_000}"


def join_path(names: tuple[str, ...]) -> str:
    return "/" + "/".join(names)


def sign(password: str, owner: str, date_us: int) -> str:
    """CurveBS's signature of a request: base64(HMAC-SHA256(password, "<date>:<owner>"))."""
    digest = hmac.new(password.encode(), f"{date_us}:{owner}".encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, after authentication."""

    owner: str

    @property
    def is_root(self) -> bool:
        return self.owner == ROOT_OWNER

    def may_use(self, owner: str) -> bool:
        return self.is_root or self.owner == owner


def authenticate(
    owner: str, signature: str, date_us: int, *, now_us: int, root_password: str | None
) -> Caller:
    """Checks who asks, as CurveBS does: the date within 15 s of ours; root by its signature; other
    owners by name alone."""
    check_owner_name(owner)
    skew_us = date_us - now_us
    if abs(skew_us) >= DATE_WINDOW_US:
        raise RefusalError(
            ns.kOwnerAuthFail,
            f"the request's date is {abs(skew_us) / 1e6:.1f} s "
            f"{'ahead of' if skew_us > 0 else 'behind'} the metadata server's clock (15 s are "
            "allowed); set the clocks",
        )
    if owner == ROOT_OWNER:
        if root_password is None:
            raise RefusalError(
                ns.kOwnerAuthFail, "the metadata server has no root password: root is refused"
            )
        if not hmac.compare_digest(
            sign(root_password, owner, date_us).encode(), signature.encode()
        ):
            raise RefusalError(ns.kOwnerAuthFail, "the signature of root does not match")
    return Caller(owner)


def _bad(detail: str) -> RefusalError:
    return RefusalError(ns.kParaError, detail)


def _quote(text: str) -> str:
    return repr(text if len(text) <= 64 else text[:61] + "...")
