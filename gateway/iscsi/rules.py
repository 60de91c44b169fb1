# SPDX-License-Identifier: BSD-3-Clause
"""Names, addresses and secrets of iSCSI: what is acceptable. Pure functions.

Sources: RFC 7143 sections 4.2.7 (names) and 9.2.1 (CHAP secrets), RFC 3721; what tgtd 1.0.85 takes;
Windows' initiator, whose secrets have 12 to 16 characters.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re

from gateway.errors import InvalidArgumentError

DEFAULT_PREFIX = "iqn.2026-11.io.copygate"
DEFAULT_PORT = 3260
NAME_MAX = 223
SECRET_MIN, SECRET_MAX = 12, 16
USER_MAX = 63
# SAM's single-level addressing; number 0 is tgtd's own controller.
LUN_MIN, LUN_MAX = 1, 255
GROUP_MIN, GROUP_MAX = 1, 65535
BLOCK_SIZES = (512, 4096)
GATEWAY_MAX = 63

# tgtd takes letters, digits, ':', '.' and '-' in a target's name; names are compared byte by byte,
# and RFC 3722 wants lower case.
_TARGET = re.compile(r"iqn\.\d{4}-(0[1-9]|1[0-2])\.[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[a-z0-9:.-]+)?")
_INITIATOR = re.compile(
    r"iqn\.\d{4}-\d{2}\.[!-+\--~]+|eui\.[0-9A-Fa-f]{16}|naa\.([0-9A-Fa-f]{16}|[0-9A-Fa-f]{32})"
)
_USER = re.compile(r"[!-+\--<>-~]+")
_GATEWAY = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


def check_target_name(name: str) -> str:
    """Checks a target's name (IQN)."""
    if len(name) > NAME_MAX:
        raise InvalidArgumentError(
            f"a target's name has at most {NAME_MAX} characters", context={"is": len(name)}
        )
    if not _TARGET.fullmatch(name):
        raise InvalidArgumentError(
            f"'{name}' is not a target's name",
            hint="write iqn.YYYY-MM.DOMAIN:NAME in lower case, the domain reversed, of letters, "
            "digits, '.', ':' and '-', as in iqn.2026-11.com.example:disk1",
        )
    return name


def check_initiator_name(name: str) -> str:
    """Checks an initiator's name as it stands in an ACL: it is compared byte by byte."""
    if len(name) > NAME_MAX or not _INITIATOR.fullmatch(name):
        raise InvalidArgumentError(
            f"'{name}' is not an initiator's name",
            hint="write it as the initiator shows it: iqn.YYYY-MM.DOMAIN:NAME (open-iscsi: "
            "/etc/iscsi/initiatorname.iscsi; Windows: Configuration), eui.HEX or naa.HEX",
        )
    return name


def default_target_name(volume: str) -> str:
    """The name of the target of a volume when none is given.

    Two volumes never get the same one: what has to be changed in a name is followed by a hash.
    """
    plain = volume.strip("/")
    clean = re.sub(r"[^a-z0-9:.-]+", "-", plain.lower().replace("/", ":")) or "-"
    room = NAME_MAX - len(DEFAULT_PREFIX) - 1
    if clean.replace(":", "/") != plain or ":" in plain or len(clean) > room:
        digest = hashlib.sha256(plain.encode()).hexdigest()[:8]
        clean = f"{clean[: room - 9]}.{digest}"
    return f"{DEFAULT_PREFIX}:{clean}"


def parse_portal(text: str) -> tuple[str, int]:
    """Splits ADDRESS, ADDRESS:PORT or [V6]:PORT into the address, bare, and the port (3260)."""
    bare = text.removeprefix("[").partition("]")
    if text.startswith("["):
        host, rest = bare[0], bare[2]
        port = rest.removeprefix(":") if rest else str(DEFAULT_PORT)
        valid = bool(bare[1]) and (not rest or rest.startswith(":"))
    else:
        host, colon, port = text.partition(":")
        port = port if colon else str(DEFAULT_PORT)
        valid = True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        valid = False
    if not (valid and port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise InvalidArgumentError(
            f"'{text}' is not a portal",
            hint="write ADDRESS:PORT, as in 192.0.2.1:3260 or [2001:db8::1]:3260; no host name",
        )
    return str(address), int(port)


def format_portal(address: str, port: int) -> str:
    """ADDRESS:PORT or [V6]:PORT."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def check_portal(text: str) -> str:
    """Checks a portal; returns it written out."""
    return format_portal(*parse_portal(text))


def is_local_portal(text: str) -> bool:
    """Whether only this machine reaches a portal."""
    return ipaddress.ip_address(parse_portal(text)[0]).is_loopback


def overlap(one: str, other: str) -> bool:
    """Whether two portals cannot be bound at once: the same port, and the same or any address."""
    (address, port), (address2, port2) = parse_portal(one), parse_portal(other)
    first, second = ipaddress.ip_address(address), ipaddress.ip_address(address2)
    if port != port2 or first.version != second.version:
        return False
    return first == second or first.is_unspecified or second.is_unspecified


def check_user(name: str, option: str) -> str:
    """Checks the name of an account."""
    if not 1 <= len(name) <= USER_MAX or not _USER.fullmatch(name):
        raise InvalidArgumentError(
            f"{option} is not a name: '{name}'",
            hint=f"1 to {USER_MAX} printable ASCII characters without blank, comma and '='",
        )
    return name


def check_secret(secret: bytes, option: str) -> bytes:
    """Checks a CHAP secret; the message does not repeat it."""
    if not SECRET_MIN <= len(secret) <= SECRET_MAX:
        raise InvalidArgumentError(
            f"the secret of {option} has {len(secret)} characters",
            hint=f"{SECRET_MIN} to {SECRET_MAX}: shorter ones can be guessed from what is seen on "
            "the network, longer ones Windows does not take",
        )
    if any(not 0x21 <= byte <= 0x7E for byte in secret):
        raise InvalidArgumentError(
            f"the secret of {option} has a blank or a character that is not ASCII",
            hint="use printable ASCII characters: initiators encode others differently",
        )
    return secret


def check_gateway(name: str) -> str:
    """Checks a gateway's name: it stands in tgtd's options."""
    if len(name) > GATEWAY_MAX or not _GATEWAY.fullmatch(name):
        raise InvalidArgumentError(
            f"'{name}' is not a gateway's name",
            hint=f"at most {GATEWAY_MAX} letters, digits, '.', '_' and '-', such as a host's name",
        )
    return name
